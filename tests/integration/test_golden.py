"""Fetches through the command line against the reference's stored results, for every family of models.

The same documents are kept, block for block; every K and V tensor (and the logits) agrees to a relative error of 1e-4;
the same request twice gives the same bytes. What the stored results are: make_golden.py.
"""
import json
import tempfile
import unittest

import numpy as np

import cases
import models
from harness import DATA, Daemon, enter


def expected_of(arrays, number):
    prefix = "%d." % number
    out = {name[len(prefix):]: arrays[name] for name in arrays.files if name.startswith(prefix)}
    return {name: values.astype(np.int32) if values.dtype == np.int16 else values for name, values in out.items()}


class Golden(unittest.TestCase):
    device = "cpu"

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        cls.addClassCleanup(cls.folder.cleanup)
        paths = {family: models.make_model("%s/%s" % (cls.folder.name, family), family) for family in models.FAMILIES}
        # The same weights in two files with an index must be the same model.
        models.make_model(paths["qwen2"], "qwen2", shards=3)
        (paths["qwen2"] / "model.safetensors").unlink()
        cls.daemon = enter(cls, Daemon(paths, device=cls.device))

    def check_family(self, family):
        described = json.loads((DATA / "golden" / (family + ".json")).read_text())
        self.assertGreaterEqual(len(described), 5)
        with np.load(DATA / "golden" / (family + ".npz")) as arrays:
            for number, entry in enumerate(described):
                with self.subTest(case=number, params=entry["case"]["params"]):
                    info, tensors = cases.run_case(self.daemon, entry["case"], "%s-%d" % (family, number))
                    bad, _ = cases.differences(info, tensors, entry["info"], expected_of(arrays, number))
                    self.assertEqual(bad, [])

    def test_llama(self):
        self.check_family("llama")

    def test_tied(self):
        self.check_family("tied")

    def test_scaled(self):
        self.check_family("scaled")

    def test_mha(self):
        self.check_family("mha")

    def test_qwen2(self):
        self.check_family("qwen2")

    def test_qwen3(self):
        self.check_family("qwen3")


class Discrete(Golden):
    """The same on a device with a memory of its own, as a GPU's fetches go."""
    device = "cpu:discrete"


class Comparison(unittest.TestCase):
    """The comparison itself notices what it is there to notice."""

    def test_a_wrong_value_is_found(self):
        with np.load(DATA / "golden" / "llama.npz") as arrays:
            expected = expected_of(arrays, 1)
        info = json.loads((DATA / "golden" / "llama.json").read_text())[1]["info"]
        said = dict(info, kept_tokens=info["kept"], total_tokens=info["total"])
        good = {name: values.copy() for name, values in expected.items()}
        self.assertEqual(cases.differences(said, good, info, expected)[0], [])
        for change in (lambda t: t["k.3"].__imul__(1.0002), lambda t: t["v.0"].__setitem__((0, 0, 0), np.nan),
                       lambda t: t["position"].__setitem__(-1, 0), lambda t: t.pop("logits")):
            spoiled = {name: values.copy() for name, values in expected.items()}
            change(spoiled)
            self.assertNotEqual(cases.differences(said, spoiled, info, expected)[0], [])
        said["keep"] = [keep[:-1] for keep in said["keep"]]
        self.assertNotEqual(cases.differences(said, good, info, expected)[0], [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
