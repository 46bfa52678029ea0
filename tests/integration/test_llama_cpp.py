"""A fetched cache as llama.cpp's sequence state, against the real library: the bytes that it writes itself for the same
tokens, and the logits and greedy tokens that it computes over a sparse cache.

Needs the packages llama-cpp-python (0.3.36 was tested: `pip install llama-cpp-python gguf` compiles llama.cpp in some ten
minutes) and gguf; skipped without them. CPU only. The daemon reads a model in Hugging Face's layout, llama.cpp the same
weights in a GGUF file's.
"""
import json
import tempfile
import unittest

import engines

engines.need("llama_cpp", "gguf")

import llama_cpp        # noqa: E402
import numpy as np      # noqa: E402

import cases            # noqa: E402
import models           # noqa: E402
import samkv            # noqa: E402
from harness import Daemon, enter   # noqa: E402
from llama_context import F16, F32, Q8_0, Context   # noqa: E402
from samkv import llama             # noqa: E402

END = 2                 # the models' eos
FAMILIES = ("llama", "tied", "mha", "qwen2", "qwen3")   # llama rotates neighbours, qwen halves
PREAMBLE, QUESTION, ANSWER_TOKENS = [7, 9, 11], "Who did it?", 16
QUERY = [ord(letter) for letter in QUESTION]      # as models.ascii_tokenizer has it
MAGIC_AND_CELLS = 16    # bytes in front of the cells


def split_state(state, layout, cells):
    """(bytes that are no K or V, K (layers, cells, width), V (layers, cells, width)) as float32."""
    kinds = {F32: np.float32, F16: np.float16}
    at, plain, k, v = MAGIC_AND_CELLS + 12 * cells + 8, [], [], []
    plain.append(state[:at])
    for what, kind, turned in ((k, layout.k_type, False), (v, layout.v_type, layout.v_transposed)):
        count = cells * layout.width
        for _ in range(layout.layers):
            plain.append(state[at:at + 12])
            values = np.frombuffer(state[at + 12:].tobytes(), kinds[kind], count).astype(np.float32)
            what.append(values.reshape(layout.width, cells).T if turned else values.reshape(cells, layout.width))
            at += 12 + count * np.dtype(kinds[kind]).itemsize
    plain.append(state[at:])
    return np.concatenate(plain), np.stack(k), np.stack(v)


class LlamaCpp(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        cls.addClassCleanup(cls.folder.cleanup)
        paths = {family: models.make_model("%s/%s" % (cls.folder.name, family), family) for family in FAMILIES}
        for path in paths.values():
            models.ascii_tokenizer(path)
        cls.files = {family: "%s/%s.gguf" % (cls.folder.name, family) for family in FAMILIES}
        for family, path in paths.items():
            engines.write_gguf(json.loads((path / "config.json").read_text()), path, cls.files[family])
        cls.daemon = enter(cls, Daemon(paths))
        cls.client = samkv.Client(cls.daemon.socket)
        cls.addClassCleanup(cls.client.close)
        rng = cases.seeded(17)
        for family in FAMILIES:
            for name in ("a", "b", "c"):
                cls.client.ingest(name, cases.tokens(rng, rng.randint(60, 120)), collection=family, model=family,
                                  preamble=PREAMBLE, block_tokens=8, init_tokens=8, local_tokens=8)

    def fetch(self, family, ids=("a", "b", "c"), **options):
        return self.client.fetch(list(ids), QUERY, collection=family, **options)

    def check_bytes(self, family, k_type, v_type, flash):
        """Ours for one document that is kept and recomputed whole, beside llama.cpp's after a prefill of its tokens.

        Layer 0 has seen no attention, and is equal up to its type's rounding. Later ones, too, in float32 without flash
        attention; otherwise llama.cpp's own attention reads halves, and what follows from it is as far away as that."""
        cache = self.fetch(family, ids=["a"], ratio=1.0, selection="fixed")
        self.assertEqual(cache.position.tolist(), list(range(cache.rows)))
        with Context(self.files[family], k_type, v_type, flash) as context:
            layout = context.layout()
            self.assertEqual((layout.k_type, layout.v_type, layout.v_transposed), (k_type, v_type, not flash))
            context.decode(cache.tokens, 0)
            theirs, ours = context.state(), llama.state_of(cache, layout)
        self.assertEqual(len(ours), len(theirs))
        mine, expected = (split_state(state, layout, cache.rows) for state in (ours, theirs))
        np.testing.assert_array_equal(mine[0], expected[0])
        exact = not flash and k_type == v_type == F32
        for a, b, kind in zip(mine[1:], expected[1:], (k_type, v_type)):
            np.testing.assert_allclose(a[0], b[0], rtol=1e-5 if kind == F32 else 2**-10, atol=2e-6 * np.abs(b[0]).max())
            for layer in range(cache.layers):
                self.assertLessEqual(cases.relative_error(a[layer], b[layer]), 2e-6 if exact else 3e-3)

    def test_bytes_are_llama_cpps_own(self):
        for family in FAMILIES:
            for k_type, v_type, flash in ((F32, F32, False), (F32, F32, True), (F16, F16, False), (F16, F16, True),
                                          (F16, F32, True), (F32, F16, False)):
                with self.subTest(family=family, k=k_type, v=v_type, flash=flash):
                    self.check_bytes(family, k_type, v_type, flash)

    def test_the_other_head_order_is_another_k(self):
        cache = self.fetch("llama", ids=["a"], ratio=1.0, selection="fixed")
        with Context(self.files["llama"]) as context:
            layout = context.layout()
            context.decode(cache.tokens, 0)
            theirs = split_state(context.state(), layout, cache.rows)
            layout.rope_type = 2
            ours = split_state(llama.state_of(cache, layout), layout, cache.rows)
        self.assertGreater(cases.relative_error(ours[1], theirs[1]), 0.5)
        self.assertLess(cases.relative_error(ours[2], theirs[2]), 1e-5)

    def test_state_comes_back_as_it_went_in(self):
        """What llama.cpp took, gaps included, it gives again, byte for byte; in any sequence."""
        for sequences, unified, sequence in ((1, False, 0), (3, False, 1), (3, True, 2)):
            for flash in (False, True):
                with self.subTest(sequences=sequences, unified=unified, flash=flash):
                    cache = self.fetch("llama", ratio=0.4)
                    self.assertNotEqual(np.diff(cache.position).max(), 1, "no gap")
                    with Context(self.files["llama"], F16, F16, flash, sequences, unified) as context:
                        layout = context.layout(sequence)
                        self.assertEqual(layout.streams, 1 if unified else sequences)
                        llama.set_state(context.context, llama.state_of(cache, layout, sequence), sequence)
                        position = [cell[0] for cell in
                                    context.state(sequence)[self.cells(layout, sequence):][:12 * cache.rows]
                                    .view(np.int32).reshape(-1, 3)]
                        self.assertEqual(position, cache.position.tolist())
                        again = context.state(sequence)
                    # The stream that has the cells may be another one; what is in it may not.
                    one = type(layout)(**{n: getattr(layout, n) for n in ("layers", "width", "k_type", "v_type",
                                                                          "v_transposed", "rope_type")}, streams=1)
                    at = self.cells(layout, sequence)
                    expected = llama.state_of(cache, one, sequence)[MAGIC_AND_CELLS:]
                    np.testing.assert_array_equal(again[at:at + len(expected)], expected)

    @staticmethod
    def cells(layout, sequence):
        """Where the cells begin in a state that llama.cpp wrote: empty streams come first."""
        return MAGIC_AND_CELLS + (4 * sequence if layout.streams > 1 else 0)

    def test_logits_over_a_sparse_cache(self):
        for family in FAMILIES:
            for options in ({"ratio": 0.4}, {"ratio": 0.4, "positions": "compact"}, {"update": "cosine"},
                            {"recompute": False}):
                cache = self.fetch(family, **options)
                expected = self.fetch(family, with_query=True, **options).logits
                for kind, flash, tolerance in ((F32, False, 1e-4), (F32, True, 1e-2), (F16, False, 1e-2)):
                    with self.subTest(family=family, kind=kind, flash=flash, **options), \
                            Context(self.files[family], kind, kind, flash) as context:
                        llama.set_state(context.context, llama.state_of(cache, context.layout()))
                        logits = context.decode(QUERY, cache.next_position)
                        self.assertLessEqual(cases.relative_error(logits, expected), tolerance)

    def test_greedy_answers_as_ask(self):
        for family in FAMILIES:
            for options in ({"ratio": 0.4}, {"ratio": 0.4, "positions": "compact"}, {"ratio": 1.0}):
                with self.subTest(family=family, **options), Context(self.files[family]) as context:
                    cache, tokens = self.fetch(family, **options), []
                    llama.set_state(context.context, llama.state_of(cache, context.layout()))
                    logits = context.decode(QUERY, cache.next_position)
                    while len(tokens) < ANSWER_TOKENS and logits.argmax() != END:
                        tokens.append(int(logits.argmax()))
                        logits = context.decode(tokens[-1:], cache.next_position + len(QUERY) + len(tokens) - 1)
                    said = self.client.ask(["a", "b", "c"], QUESTION, raw=True, max_tokens=ANSWER_TOKENS,
                                           collection=family, **options)
                    self.assertEqual((models.ascii_text(tokens), len(tokens)), (said.text, said.answer_tokens))

    def test_llama_cpp_pythons_own_class(self):
        """`samkv.llama.load`, then generate: the answers of `ask`, one after another on the same object."""
        folder = self.daemon.models["llama"]
        path = folder / "with_tokenizer.gguf"
        engines.write_gguf(json.loads((folder / "config.json").read_text()), folder, path, models.ascii_tokens())
        llm = llama_cpp.Llama(str(path), n_ctx=1024, n_threads=1, n_threads_batch=1, type_k=F32, type_v=F32,
                              flash_attn=False, n_gpu_layers=0, verbose=False)
        self.assertEqual(llm.tokenize(QUESTION.encode(), add_bos=False, special=True), QUERY)
        for ids in (["a", "b", "c"], ["b", "a"]):
            for options in ({"ratio": 0.4}, {"ratio": 0.4, "positions": "compact"}):
                tokens = llama.greedy(llm, self.fetch("llama", ids=ids, **options), QUERY, ANSWER_TOKENS)
                said = self.client.ask(ids, QUESTION, raw=True, max_tokens=ANSWER_TOKENS, collection="llama", **options)
                self.assertEqual((models.ascii_text(tokens), len(tokens)), (said.text, said.answer_tokens))
        short = llama_cpp.Llama(str(path), n_ctx=64, n_gpu_layers=0, verbose=False)
        self.assertRaisesRegex(ValueError, "n_ctx is", llama.load, short, self.fetch("llama"))

    def test_refusals(self):
        cache = self.fetch("llama")
        with Context(self.files["mha"]) as context, self.assertRaisesRegex(samkv.SamkvError, "same model") as caught:
            llama.state_of(cache, context.layout())
        self.assertEqual(caught.exception.status, samkv.Status.MISMATCH)
        gap = self.fetch("llama", local_tokens=0, init_tokens=8, stable_layers=[0], ratio=0.1)
        self.assertNotEqual(gap.position[-1] + 1, gap.next_position)
        with Context(self.files["llama"]) as context, self.assertRaisesRegex(samkv.SamkvError, "local_tokens"):
            llama.state_of(gap, context.layout())
        with Context(self.files["llama"]) as context:
            state = llama.state_of(cache, context.layout())
            state[0] ^= 1
            self.assertRaises(ValueError, llama.set_state, context.context, state)
        quantised = models.make_model(self.folder.name + "/wide", "llama", hidden=128)
        engines.write_gguf(json.loads((quantised / "config.json").read_text()), quantised, quantised / "wide.gguf")
        with Context(quantised / "wide.gguf", Q8_0, Q8_0, True) as context, \
                self.assertRaisesRegex(samkv.SamkvError, "ggml type 8.*f16") as caught:
            context.layout()
        self.assertEqual(caught.exception.status, samkv.Status.UNSUPPORTED)


if __name__ == "__main__":
    unittest.main(verbosity=2)
