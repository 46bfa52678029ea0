"""Logits of a tiny random model of every family beside those that transformers computed for the same weights in float32
(tests/data/logits.npz, made by compare_logits.py --store): from a Hugging Face directory, and from GGUF where the package
gguf is there."""
import importlib.util
import json
import pathlib
import tempfile
import unittest

import numpy as np

import logits
import models
from harness import ROOT

BOUND = 1e-4
WANTED = np.load(ROOT / "tests" / "data" / "logits.npz")


class Logits(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def check(self, path, family, bound=BOUND):
        distance = logits.distance(logits.ours(path, logits.prompts()), WANTED[family])
        self.assertTrue(distance <= bound, "%s: %g" % (path, distance))

    def test_every_family_is_kept(self):
        self.assertEqual(sorted(WANTED.files), sorted({**models.FAMILIES, **models.MORE_FAMILIES}))

    def test_directories(self):
        for family in WANTED.files:
            with self.subTest(family=family):
                self.check(models.make_model(self.folder / family, family), family)

    def test_shards(self):
        for family in ("llama", "phi3"):
            with self.subTest(family=family):
                self.check(models.make_model(self.folder / family, family, shards=3), family)

    @unittest.skipUnless(importlib.util.find_spec("gguf"), "no package gguf")
    def test_gguf(self):
        import engines
        for family in WANTED.files:
            with self.subTest(family=family):
                path = models.make_model(self.folder / family, family)
                file = self.folder / (family + ".gguf")
                engines.write_gguf(json.loads((path / "config.json").read_text()), path, file)
                self.check(file, family)

    def test_every_instruction_set(self):
        """Whatever the CPU is, the portable path is there, and in whole models it agrees like the best one."""
        for family in ("llama", "smollm3"):
            path = models.make_model(self.folder / family, family)
            for isa in ("portable", "avx2", "avx512"):
                with self.subTest(family=family, isa=isa):
                    got = logits.ours(path, logits.prompts(), isa=isa)
                    if isa == "portable":
                        self.assertIsNotNone(got)
                    if got is not None:
                        self.assertLessEqual(logits.distance(got, WANTED[family]), BOUND)

    def test_bf16(self):
        """Products in bf16 are as far away as their rounding: more than float32's, less than 0.04 of the largest logit."""
        for family in ("llama", "qwen2", "qwen3", "phi3", "smollm3"):
            with self.subTest(family=family):
                path = models.make_model(self.folder / family, family)
                distance = logits.distance(logits.ours(path, logits.prompts(), "--bf16"), WANTED[family])
                self.assertLessEqual(distance, 0.04)
                if b"avx512_bf16" in pathlib.Path("/proc/cpuinfo").read_bytes():
                    self.assertGreater(distance, BOUND)

    def test_a_window_holds(self):
        """transformers' logits within the window are ours; a text beyond it is refused with the reason."""
        path = models.make_model(self.folder / "mistral", "mistral")
        with self.assertRaisesRegex(RuntimeError, "position 256 is beyond the 256 tokens .* sliding window"):
            logits.ours(path, [np.full(257, 7, np.int32)])
        logits.ours(path, [np.full(256, 7, np.int32)])

    def test_a_wrong_model_is_seen(self):
        """The bound tells families apart whose files are the same but for one number."""
        path = models.make_model(self.folder / "yarn", "yarn")
        config = json.loads((path / "config.json").read_text())
        config["rope_scaling"]["factor"] = 4.1
        (path / "config.json").write_text(json.dumps(config))
        self.assertGreater(logits.distance(logits.ours(path, logits.prompts()), WANTED["yarn"]), BOUND)


if __name__ == "__main__":
    unittest.main()
