#!/usr/bin/env python3
"""The Python package on a GPU: a fetched cache as CUDA tensors that nobody copied, and in Hugging Face transformers.

usage: SAMKV_BIN=FOLDER LD_LIBRARY_PATH=FOLDER SAMKV_LIBRARY=FOLDER/libsamkv.so.1 test_python_cuda.py
FOLDER: samkvd and samkvctl with samkv_cuda.so and their libraries (target device_bundle). Needs PyTorch with CUDA and
transformers. The models are tiny, with random weights. A GPU computes in bf16 or f16, whatever is stored, so logits
differ from PyTorch's by rounding, and greedy answers part where two tokens are as likely.
"""
import gc
import pathlib
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
import engines  # noqa: E402,F401  (where the package is found)
import cases    # noqa: E402
import models   # noqa: E402
import numpy as np      # noqa: E402
import torch            # noqa: E402
import transformers     # noqa: E402
import samkv            # noqa: E402
from harness import Daemon, enter   # noqa: E402
from samkv import transformers as hf    # noqa: E402

FAMILIES = sorted(models.FAMILIES)
QUESTION, ANSWER_TOKENS, DOCUMENTS = "Who did what, and why?", 16, ["a", "b", "c"]
# (dtype, relative bound of logits): some roundings of 2^-9 and 2^-12 through four layers.
TYPES = (("bf16", 6e-2), ("f16", 1e-2))
FETCHES = ({"ratio": 0.4}, {"ratio": 0.4, "positions": "compact"}, {"ratio": 0.4, "update": "cosine"},
           {"ratio": 1.0, "selection": "fixed"})


class OnTheDevice(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        transformers.utils.logging.set_verbosity_error()
        folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        cls.addClassCleanup(folder.cleanup)
        cls.daemons, cls.clients, cls.models = {}, {}, {}
        for dtype, _ in TYPES:
            kind = dtype.upper()
            paths = {f: models.make_model("%s/%s-%s" % (folder.name, f, dtype), f, dtype=kind) for f in FAMILIES}
            for path in paths.values():
                models.ascii_tokenizer(path)
            daemon = cls.daemons[dtype] = enter(cls, Daemon(paths, dtype=dtype, device="cuda"))
            client = cls.clients[dtype] = samkv.Client(daemon.socket)
            cls.addClassCleanup(client.close)
            rng = cases.seeded(5)
            for family in FAMILIES:
                for name in DOCUMENTS:
                    client.ingest(name, cases.tokens(rng, rng.randint(60, 120)), collection=family, model=family,
                                  preamble=[7, 9], block_tokens=8, init_tokens=8, local_tokens=8)
            for family in FAMILIES:
                cls.models[family, dtype] = transformers.AutoModelForCausalLM.from_pretrained(
                    paths[family], dtype=getattr(torch, {"f16": "float16", "bf16": "bfloat16"}[dtype])).to("cuda")

    def every_case(self, check):
        for dtype, bound in TYPES:
            for family in FAMILIES:
                for options in FETCHES:
                    with self.subTest(dtype=dtype, family=family, **options):
                        check(dtype, bound, family, dict(options, collection=family))

    def test_same_bytes_as_on_the_host(self):
        def check(dtype, _, family, options):
            client = self.clients[dtype]
            there = client.fetch(DOCUMENTS, QUESTION, placement="device", **options)
            here = client.fetch(DOCUMENTS, QUESTION, **options)
            self.assertEqual((there.where, here.where), ("device", "host"))
            a, b = there.torch(), here.torch()
            self.assertTrue(a.k.is_cuda and a.v.is_cuda and a.k.dtype == b.k.dtype)
            self.assertEqual(a.k.data_ptr(), there.k.address)   # a view, no copy
            self.assertTrue(torch.equal(a.k.cpu(), b.k) and torch.equal(a.v.cpu(), b.v))
            np.testing.assert_array_equal(there.position, here.position)
        self.every_case(check)

    def test_logits(self):
        def check(dtype, bound, family, options):
            client, model = self.clients[dtype], self.models[family, dtype]
            cache = client.fetch(DOCUMENTS, QUESTION, placement="device", **options)
            whole = client.fetch(DOCUMENTS, QUESTION, placement="device", with_query=True, **options)
            query = whole.tokens[whole.doc == -2]
            with torch.no_grad():
                logits = model(**hf.forward_inputs(model, cache, query)).logits[0, -1].float().cpu().numpy()
            self.assertLessEqual(cases.relative_error(logits, whole.logits), bound)
        self.every_case(check)

    def test_generate(self):
        """generate goes on from the device's cache, with the token that the daemon's logits choose, or one as good."""
        def check(dtype, bound, family, options):
            client, model = self.clients[dtype], self.models[family, dtype]
            cache = client.fetch(DOCUMENTS, QUESTION, placement="device", **options)
            if not hf.continues_positions(model) and cache.next_position != cache.rows:
                return      # refused: test_transformers has that
            whole = client.fetch(DOCUMENTS, QUESTION, with_query=True, **options)
            query = torch.tensor(whole.tokens[whole.doc == -2].astype(np.int64), device="cuda")
            got = model.generate(**hf.generation_inputs(model, cache, query), max_new_tokens=ANSWER_TOKENS,
                                 min_new_tokens=ANSWER_TOKENS, do_sample=False, pad_token_id=0)[0].tolist()
            self.assertEqual(got[:cache.rows], cache.tokens.tolist())
            self.assertEqual(len(got), cache.rows + len(query) + ANSWER_TOKENS)
            best, first = float(whole.logits.max()), got[cache.rows + len(query)]
            self.assertGreaterEqual(float(whole.logits[first]), best - bound * float(np.abs(whole.logits).max()))
        self.every_case(check)

    def test_memory_lives_as_long_as_a_tensor_and_no_longer(self):
        client = self.clients["bf16"]
        cache = client.fetch(DOCUMENTS, QUESTION, placement="device", ratio=0.4, collection="llama")
        expected = client.fetch(DOCUMENTS, QUESTION, ratio=0.4, collection="llama").torch().k.clone()
        k = cache.torch().k
        cache.close()
        del cache
        gc.collect()
        others = [client.fetch(DOCUMENTS, QUESTION, placement="device", ratio=0.9, collection="mha") for _ in range(8)]
        self.assertTrue(torch.equal(k.cpu(), expected))
        del k, others
        gc.collect()
        for _ in range(100):
            lent = self.daemons["bf16"].json("status")["counters"]["device_replies_held"]
            if lent == 0:
                return
            time.sleep(0.05)
        self.fail("%d replies are still held" % lent)


if __name__ == "__main__":
    unittest.main(verbosity=1)
