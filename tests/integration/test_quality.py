"""What answers lose in sparse caches, on a small reader that answers nearly everything when it sees it all.

The reader and its cases: tests/data/reader/README.md. Six cases of each type, documents of 200 to 300 tokens, at a
ratio of 0.15. The bounds are what was measured, less what one or two cases of them may do; a change that makes
selection, recomputation, positions or the store worse shows here.
"""
import json
import lzma
import pathlib
import tempfile
import unittest

from harness import DATA, Daemon, enter

READER = DATA / "reader"
LAYERS = "+layers=5-7"      # where this reader's query finds what it looks for
BEST = "samkv+fixed+exact+both+cosine+local=0" + LAYERS
METHODS = ["full", "reuse", "cacheblend", "cacheblend+share=0.3", "epic", "reuse+random", "samkv", "samkv+fixed" + LAYERS,
           "samkv+fixed+tokens" + LAYERS, "samkv+fixed+exact" + LAYERS, "samkv+fixed+exact+delta" + LAYERS, BEST]


def unpack(folder):
    """The reader as a Hugging Face directory."""
    folder = pathlib.Path(folder)
    (folder / "config.json").write_bytes((READER / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes(lzma.decompress((READER / "model.safetensors.xz").read_bytes()))
    return folder


def evaluate(daemon, *arguments, cases=READER / "cases.jsonl"):
    said = daemon.json("eval", cases, "--ratios", "0.15", "--json", *arguments)
    assert said["failed"] == 0, said
    names = [s["set"].split("/")[-1] if len(said["sets"]) > 1 else "all" for s in said["sets"]]
    return {(name, v["method"]): v for name, s in zip(names, said["sets"]) for v in s["variants"]}


def mean(results, method, measure="score", kind="all"):
    return results[kind, method][measure]["mean"]


class Quality(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="samkv-reader-")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.model = unpack(cls.folder.name)
        cls.daemon = enter(cls, Daemon({"reader": cls.model}))
        cls.out, cls.html = cls.daemon.folder / "results.jsonl", cls.daemon.folder / "report.html"
        cls.results = evaluate(cls.daemon, "--methods", ",".join(METHODS), "--out", cls.out, "--html", cls.html)

    def test_full(self):
        self.assertGreaterEqual(mean(self.results, "full"), 0.95)
        self.assertEqual(mean(self.results, "full", "agrees"), 1)
        self.assertEqual(mean(self.results, "full", "kl"), 0)

    def test_reuse_loses_what_documents_say_of_each_other(self):
        self.assertGreaterEqual(mean(self.results, "reuse", kind="single"), 0.8)
        for method in ("reuse", "cacheblend", "epic"):
            self.assertLessEqual(mean(self.results, method, kind="same"), 0.67, method)

    def test_cacheblend_recomputes_what_differs(self):
        """Three tenths of the tokens mend much of what reuse loses; any others would mend nothing."""
        self.assertGreaterEqual(mean(self.results, "cacheblend+share=0.3", "log_likelihood", "same"),
                                mean(self.results, "reuse", "log_likelihood", "same") + 0.4)
        self.assertAlmostEqual(mean(self.results, "cacheblend+share=0.3", "recompute_ratio"), 0.3 + 0.7 * 2 / 8, places=3)

    def test_selection_at_the_same_size(self):
        """Each step of the ablation is better than the one before, and the best is near the full cache."""
        steps = ["samkv", "samkv+fixed" + LAYERS, "samkv+fixed+exact" + LAYERS, BEST]
        likelihood = [mean(self.results, step, "log_likelihood") for step in steps]
        facts = [mean(self.results, step, "facts_kept") for step in steps]
        self.assertEqual(likelihood, sorted(likelihood))
        self.assertEqual(facts, sorted(facts))
        self.assertGreaterEqual(mean(self.results, BEST), mean(self.results, "full") - 0.10)
        self.assertGreaterEqual(mean(self.results, BEST, "facts_kept"), 0.9)
        self.assertLessEqual(mean(self.results, "samkv"), 0.6)
        self.assertLessEqual(mean(self.results, "reuse+random"), 0.4)
        for step in steps:
            self.assertLessEqual(mean(self.results, step, "sequence_ratio"), 0.15)

    def test_delta_recomputes_twice(self):
        plain, delta = "samkv+fixed+exact" + LAYERS, "samkv+fixed+exact+delta" + LAYERS
        self.assertAlmostEqual(mean(self.results, delta, "recompute_ratio"),
                               2 * mean(self.results, plain, "recompute_ratio"))
        self.assertEqual(mean(self.results, delta, "facts_kept"), mean(self.results, plain, "facts_kept"))
        self.assertGreaterEqual(mean(self.results, delta), mean(self.results, "samkv"))

    def test_everything_recomputed_is_full(self):
        same = "samkv+fixed,samkv+fixed+delta,cacheblend+share=1,full"
        results = evaluate(self.daemon, "--methods", same, "--limit", "2", "--ratios", "1")
        for method in same.split(","):
            self.assertLess(mean(results, method, "kl"), 1e-5, method)
            self.assertEqual(mean(results, method, "agrees"), 1, method)

    def test_cut_caches_are_as_large(self):
        self.assertAlmostEqual(mean(self.results, "reuse+random", "sequence_ratio"),
                               mean(self.results, "samkv+fixed" + LAYERS, "sequence_ratio"), delta=0.01)

    def test_results_go_on(self):
        """A file that lost its end is completed, a whole one only read, and one of other settings refused."""
        lines = self.out.read_bytes().splitlines(keepends=True)
        cut = self.daemon.folder / "cut.jsonl"
        cut.write_bytes(b"".join(lines[:10]) + lines[10][:-20])
        again = evaluate(self.daemon, "--methods", ",".join(METHODS), "--out", cut, "--resume")
        self.assertEqual(cut.read_bytes().splitlines(keepends=True)[:10], lines[:10])
        self.assertEqual(len(cut.read_bytes().splitlines()), len(lines))
        for method in METHODS:
            self.assertEqual(mean(again, method), mean(self.results, method), method)
        done = self.daemon.ctl("eval", READER / "cases.jsonl", "--methods", "full", "--out", cut, "--resume")
        self.assertEqual(done.returncode, 1)
        self.assertIn("other methods", done.stderr)
        done = self.daemon.ctl("eval", READER / "cases.jsonl", "--methods", "full", "--out", cut)
        self.assertIn("--resume", done.stderr)

    def test_report(self):
        text = self.html.read_text()
        self.assertEqual(text.count("<h2>"), 5)
        self.assertIn("<svg viewBox", text)
        for word in ("<script", "src=", "href=", "nan", "inf"):
            self.assertNotIn(word, text)

    def test_refused(self):
        bad = self.daemon.folder / "bad.jsonl"
        bad.write_text('{"id": "x", "question": "?"}\n')
        for arguments, words in (((bad,), "documents"), ((READER / "cases.jsonl", "--methods", "best"), "samkv"),
                                 ((READER / "cases.jsonl", "--methods", "samkv+first"), "itself"),
                                 ((READER / "cases.jsonl", "--methods", "samkv+layers=4-"), "range"),
                                 ((READER / "cases.jsonl", "--ratios", "2"), "ratio"),
                                 ((READER / "cases.jsonl", "--resume"), "--out"),
                                 ((self.daemon.folder / "none.jsonl",), "cannot open")):
            done = self.daemon.ctl("eval", *arguments)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertIn(words, done.stderr)
        # Only the daemon knows how many layers there are.
        done = self.daemon.ctl("eval", READER / "cases.jsonl", "--limit", "1", "--methods", "samkv+layers=8")
        self.assertEqual(done.returncode, 1)
        self.assertIn("stable layer 8", done.stderr)


class Discrete(unittest.TestCase):
    """A device with a memory of its own gives the same caches."""

    def test_same_figures(self):
        arguments = ("--methods", ",".join(METHODS), "--limit", "3")
        with tempfile.TemporaryDirectory(prefix="samkv-reader-") as folder:
            model = unpack(folder)
            with Daemon({"reader": model}) as one, Daemon({"reader": model}, device="cpu:discrete") as other:
                a, b = evaluate(one, *arguments), evaluate(other, *arguments)
        for key, variant in a.items():
            for measure in ("score", "log_likelihood", "kl", "sequence_ratio", "recompute_ratio", "facts_kept"):
                self.assertAlmostEqual(variant[measure]["mean"], b[key][measure]["mean"], places=3, msg=(key, measure))


if __name__ == "__main__":
    unittest.main()
