"""A fetched cache in Hugging Face transformers: the same logits and the same greedy tokens as the daemon's own.

Needs PyTorch (the CPU's is enough) and transformers 5.10 or later; skipped without them.
"""
import gc
import tempfile
import unittest

import engines

engines.need("torch", "transformers")

import numpy as np      # noqa: E402
import torch            # noqa: E402
import transformers     # noqa: E402

import cases            # noqa: E402
import models           # noqa: E402
import samkv            # noqa: E402
from harness import Daemon, enter   # noqa: E402
from samkv import transformers as hf    # noqa: E402

FAMILIES = sorted(models.FAMILIES)
QUESTION, ANSWER_TOKENS = "Who did what, and why?", 24
# (fetch's options, what samkvctl calls them)
FETCHES = ({"ratio": 0.4}, {"ratio": 0.4, "positions": "compact"}, {"ratio": 0.4, "update": "cosine"},
           {"ratio": 1.0, "selection": "fixed"}, {"ratio": 0.3, "recompute": False})


class Transformers(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(1)
        cls.folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        cls.addClassCleanup(cls.folder.cleanup)
        paths = {family: models.make_model("%s/%s" % (cls.folder.name, family), family) for family in FAMILIES}
        for path in paths.values():
            models.ascii_tokenizer(path)
        cls.daemon = enter(cls, Daemon(paths))
        cls.client = samkv.Client(cls.daemon.socket)
        cls.addClassCleanup(cls.client.close)
        rng = cases.seeded(5)
        for family in FAMILIES:
            for name in ("a", "b", "c"):
                cls.client.ingest(name, cases.tokens(rng, rng.randint(60, 120)), collection=family, model=family,
                                  preamble=[7, 9], block_tokens=8, init_tokens=8, local_tokens=8)
        cls.models = {family: transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
                      for family, path in paths.items()}

    def caches(self, family, **options):
        """The same fetch without and with the query's rows and logits."""
        ask = dict(options, collection=family)
        return (self.client.fetch(["a", "b", "c"], QUESTION, **ask),
                self.client.fetch(["a", "b", "c"], QUESTION, with_query=True, **ask))

    def test_logits(self):
        for family in FAMILIES:
            for options in FETCHES:
                with self.subTest(family=family, **options), torch.no_grad():
                    cache, whole = self.caches(family, **options)
                    query = whole.tokens[whole.doc == -2]
                    out = self.models[family](**hf.forward_inputs(self.models[family], cache, query))
                    logits = out.logits[0, -1].numpy()
                    self.assertLessEqual(cases.relative_error(logits, whole.logits), 1e-4)

    def test_query_rows_in_the_cache(self):
        """A cache with the query's rows goes on with the token that its logits choose."""
        with torch.no_grad():
            for family in FAMILIES:
                cache, whole = self.caches(family, ratio=0.4)
                query = whole.tokens[whole.doc == -2].tolist()
                first = int(whole.logits.argmax())
                model = self.models[family]
                longer = model(**hf.forward_inputs(model, cache, query + [first])).logits[0, -1].numpy()
                shorter = model(**hf.forward_inputs(model, whole, [first])).logits[0, -1].numpy()
                self.assertLessEqual(cases.relative_error(shorter, longer), 1e-4)

    def test_generate_as_ask(self):
        for family in FAMILIES:
            for options in FETCHES:
                with self.subTest(family=family, **options):
                    cache, whole = self.caches(family, **options)
                    if not hf.continues_positions(self.models[family]) and cache.next_position != cache.rows:
                        query = whole.tokens[whole.doc == -2]
                        self.assertRaisesRegex(RuntimeError, "compact", hf.generation_inputs, self.models[family],
                                               cache, query)
                        continue
                    query = torch.tensor(whole.tokens[whole.doc == -2].astype(np.int64))
                    inputs = hf.generation_inputs(self.models[family], cache, query)
                    got = self.models[family].generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False,
                                                       pad_token_id=0)[0].tolist()
                    self.assertEqual(got[:cache.rows], cache.tokens.tolist())
                    got = got[cache.rows + len(query):]
                    got = got[:-1] if got[-1] == 2 else got     # the token that ends an answer is no part of it
                    said = self.client.ask(["a", "b", "c"], QUESTION, raw=True, max_tokens=ANSWER_TOKENS,
                                           collection=family, **options)
                    self.assertEqual((models.ascii_text(got), len(got)), (said.text, said.answer_tokens))

    def test_beams_and_samples(self):
        """The best of some beams is no worse than the greedy answer; samples differ in what follows the prompt only."""
        model = self.models["llama"]
        cache, whole = self.caches("llama", ratio=0.4, positions="compact")
        query = whole.tokens[whole.doc == -2].tolist()
        prompt = cache.tokens.tolist() + query

        def generate(sequences, **how):
            return model.generate(**hf.generation_inputs(model, cache, query, sequences), max_new_tokens=6,
                                  min_new_tokens=6, pad_token_id=0, **how)

        def likelihood(tokens):
            with torch.no_grad():
                logits = model(**hf.forward_inputs(model, cache, (query + tokens)[:-1])).logits[0, -len(tokens):]
            return logits.log_softmax(-1)[range(len(tokens)), tokens].sum().item()
        greedy, beams = (generate(n, num_beams=n, do_sample=False)[0].tolist() for n in (1, 4))
        self.assertEqual((greedy[:len(prompt)], beams[:len(prompt)]), (prompt, prompt))
        self.assertGreaterEqual(likelihood(beams[len(prompt):]) + 1e-4, likelihood(greedy[len(prompt):]))
        samples = generate(3, num_return_sequences=3, do_sample=True).tolist()
        self.assertEqual([s[:len(prompt)] for s in samples], [prompt] * 3)

    def test_another_model_is_refused(self):
        cache, _ = self.caches("mha")
        self.assertRaisesRegex(ValueError, "load the same model", hf.forward_inputs, self.models["llama"], cache, [5])
        self.assertRaises(ValueError, hf.forward_inputs, self.models["mha"], cache, [])

    def test_nothing_is_copied(self):
        cache, _ = self.caches("llama")
        tensors = cache.torch()
        self.assertEqual(tensors.k.data_ptr(), cache.k.ctypes.data)
        self.assertEqual(tuple(tensors.v.shape), cache.v.shape)
        dynamic = hf.to_dynamic_cache(cache)
        self.assertEqual(dynamic.get_seq_length(), cache.rows)
        for layer in range(cache.layers):
            self.assertEqual(dynamic.layers[layer].keys.data_ptr(), cache.k[layer].ctypes.data)
            self.assertEqual(tuple(dynamic.layers[layer].values.shape),
                             (1, cache.kv_heads, cache.rows, cache.head_dim))
        expected = np.array(cache.k[1])
        cache.close()
        del cache, tensors
        gc.collect()
        np.testing.assert_array_equal(dynamic.layers[1].keys[0].transpose(0, 1).numpy(), expected)


class Halves(unittest.TestCase):
    def test_bf16(self):
        with tempfile.TemporaryDirectory(prefix="samkv-models-") as folder:
            path = models.make_model(folder + "/llama", "llama", dtype="BF16")
            with Daemon({"llama": path}, dtype="bf16") as daemon, samkv.Client(daemon.socket) as client:
                client.ingest("d", cases.tokens(cases.seeded(1), 90))
                cache = client.fetch(["d"], [7, 8, 9], positions="compact")
                tensors = cache.torch()
                self.assertEqual(tensors.k.dtype, torch.bfloat16)
                self.assertEqual(tensors.k.data_ptr(), cache.k.ctypes.data)
                np.testing.assert_array_equal(tensors.k.float().numpy(), models.from_bf16(cache.k.view(np.uint16)))
                model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
                inputs = hf.generation_inputs(model, cache, [7, 8, 9])
                self.assertEqual(model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False,
                                                pad_token_id=0).shape[1], cache.rows + 3 + 3)


if __name__ == "__main__":
    unittest.main(verbosity=2)
