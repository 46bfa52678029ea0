"""Documents of families that the reference does not know (layers without RoPE, YaRN, fused matrices, a window), through a
whole daemon.

One document that is stored and fetched whole, with nothing recomputed, is the prompt itself: its logits are those that
transformers computed over it in one piece (tests/data/logits.npz). So what is stored is before RoPE, and what is placed
has it. Several documents: the CPU, which scores in float64, and the device with a memory of its own, which scores by the
operation of GPUs, choose the same blocks.
"""
import tempfile
import unittest

import numpy as np

import cases
import logits
import models
from harness import ROOT, Daemon, documents_jsonl, enter

DEVICES = ("cpu", "cpu:discrete")
FAMILIES = sorted(models.MORE_FAMILIES)
WANTED = np.load(ROOT / "tests" / "data" / "logits.npz")
PREAMBLE, QUERY = 5, 7
DEEP_LAYERS = 18    # are placed in bands that do not begin where every fourth layer is


class Families(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        cls.addClassCleanup(cls.folder.cleanup)
        paths = {family: models.make_model("%s/%s" % (cls.folder.name, family), family) for family in FAMILIES}
        paths["deep"] = models.make_model(cls.folder.name + "/deep", "smollm3", layers=DEEP_LAYERS, dtype="BF16")
        cls.daemons = {device: enter(cls, Daemon(paths, device=device)) for device in DEVICES}

    def case(self, family, docs, preamble, query, **params):
        return {"family": family, "preamble": preamble, "docs": docs, "query": query, "block_size": 8, "init_tokens": 8,
                "local_tokens": 8,
                "params": dict({"init_tokens": 8, "local_tokens": 8, "stable_layers": [3], "ratio": 1.0,
                                "selection": "fixed", "update": "overwrite", "recompute": False,
                                "positions": "original", "with_query": True}, **params)}

    def test_a_whole_document_is_the_prompt(self):
        prompt = [int(token) for token in logits.prompts()[-1]]
        for device in DEVICES:
            for family in FAMILIES:
                with self.subTest(device=device, family=family):
                    case = self.case(family, [prompt[PREAMBLE:-QUERY]], prompt[:PREAMBLE], prompt[-QUERY:])
                    _, tensors = cases.run_case(self.daemons[device], case, family + "-whole")
                    self.assertLessEqual(cases.relative_error(tensors["logits"].ravel(), WANTED[family][-1]), 1e-4)

    def test_both_scores_choose_the_same(self):
        for family in FAMILIES:
            rng = cases.seeded(9)
            for number, stable in enumerate(([3], [2, 3], [0, 1, 2, 3])):
                docs = [cases.tokens(rng, rng.randint(40, 70)) for _ in range(3)]
                case = self.case(family, docs, cases.tokens(rng, 6), cases.tokens(rng, 5), stable_layers=stable,
                                 ratio=0.6, selection="dynamic", recompute=True)
                with self.subTest(family=family, stable=stable):
                    got = [cases.run_case(self.daemons[device], case, "%s-%d" % (family, number))[1]
                           for device in DEVICES]
                    np.testing.assert_array_equal(got[0]["index"], got[1]["index"])
                    self.assertLess(len(got[0]["index"]), sum(map(len, docs)))
                    self.assertLessEqual(cases.relative_error(got[0]["logits"], got[1]["logits"]), 1e-4)

    def test_bands_of_layers(self):
        rng = cases.seeded(10)
        docs = [cases.tokens(rng, rng.randint(40, 70)) for _ in range(3)]
        case = self.case("deep", docs, cases.tokens(rng, 6), cases.tokens(rng, 5), stable_layers=[DEEP_LAYERS - 1],
                         ratio=0.6, selection="dynamic")
        got = [cases.run_case(self.daemons[device], case, "deep")[1] for device in DEVICES]
        np.testing.assert_array_equal(got[0]["index"], got[1]["index"])
        for name in sorted(got[0]):
            if name[:2] in ("k.", "v."):
                self.assertLessEqual(cases.relative_error(got[0][name], got[1][name]), 1e-4, name)

    def test_a_window_is_kept(self):
        """256 tokens of preamble, documents and query fit this model's window; what does not is refused with the
        reason."""
        for device in DEVICES:
            daemon = self.daemons[device]
            for family in ("mistral", "phi3"):
                with self.subTest(device=device, family=family):
                    texts = documents_jsonl({"a": [9] * 120, "b": [8] * 126, "long": [7] * 257})
                    said = daemon.ctl("ingest", "-", "--model", family, "--collection", family + "-window",
                                      "--preamble-tokens", "3,4,5", text=texts)
                    self.assertNotEqual(said.returncode, 0)
                    self.assertIn("exceed the model's sliding window of 256", said.stderr + said.stdout)
                    fetch = ["fetch", "--collection", family + "-window", "--docs", "a,b", "--query-tokens"]
                    daemon.json(*fetch, ",".join(["6"] * 7))
                    said = daemon.ctl(*fetch, ",".join(["6"] * 8))
                    self.assertNotEqual(said.returncode, 0)
                    self.assertIn("257 tokens", said.stderr)
                    self.assertIn("sliding window of 256", said.stderr)


if __name__ == "__main__":
    unittest.main()
