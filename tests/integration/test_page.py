"""tests/bench/page.py: the page's numbers are those of the results, the plots are XML, and a run may lack steps.

Needs no daemon: the results are made up here.
"""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

PAGE = pathlib.Path(__file__).resolve().parent.parent / "bench" / "page.py"
PLOTS = {"phases", "documents", "ratios", "clients"}

SHAPE = dict(hidden=1000, heads=10, kv_heads=5, head_dim=100, ffn=2000, vocab=1000, theta=10000.0)
SETUP = dict(step="setup", device="NVIDIA H100 80GB HBM3", torch="2.0", layers=11, shape=SHAPE)


def fetch(step, **fields):
    """A fetch of 4 documents of 250 tokens at ratio 0.2, with a query of 24: 224 rows of 2 * 11 * 500 numbers."""
    line = dict(step=step, label=step, documents=4, query=24, ratio=0.2, clients=1, fetches=5, placement="device", ms=20.0,
                p10=19.0, p90=23.0, p99=24.0, fetches_s=48.5, daemon=16.5, queue=0.0, index=1.25, query_ms=2.5, select=0.75,
                read=0.5, recompute=9.25, reply=1.5, kept=200, total=1000, sequence_ratio=0.2, recompute_ratio=0.2, mb_read=3.0,
                mb_stored=30.0, mb_cache=4.928)
    return dict(line, **fields)


COMPLETE = [
    SETUP,
    dict(step="copy", what="host to device", bytes=1 << 28, ms=5.0, gb_s=50.0),
    dict(step="copy", what="device to host", bytes=1 << 28, ms=6.7, gb_s=40.0),
    dict(step="hf", what="prompt", tokens=1024, ms=150.0, tflop_s=300.0),
    dict(step="hf", what="prompt", tokens=2024, ms=333.0, tflop_s=310.0),
    dict(step="hf", what="product 8192^3", ms=1.5, tflop_s=700.0),
    dict(step="ingest", collection="default", documents=8, tokens=2000, seconds=1.5, tokens_s=1333, gb_stored=0.12, gb_raw=0.17,
         prefill_ms=400.0, tflop_s=350.0),
    fetch("hot"),
    fetch("hot", placement="host", ms=31.5, daemon=30.5, reply=14.5),
    fetch("warm in host memory", ms=24.5, daemon=20.25, index=5.25),
    fetch("cold", ms=88.0, daemon=84.0, index=60.0, mb_disk=5.5),
    fetch("cold", ms=77.0, daemon=73.0, index=50.0),
    fetch("cold", ms=66.0, daemon=62.0, index=40.0, mb_disk=6.5),
    fetch("documents"),
    fetch("documents", documents=8, total=2000, kept=400, ms=41.5),
    fetch("ratio", ratio=0.1, sequence_ratio=0.1, recompute_ratio=0.1, ms=12.5),
    fetch("ratio", ratio=1, sequence_ratio=1.0, recompute_ratio=1.0, ms=120.0),
    fetch("clients"),
    fetch("clients", clients=16, ms=111.0, p90=222.0, fetches_s=97.0),
    fetch("naive reuse", recompute_ratio=0.0, sequence_ratio=1.0, ms=17.25),
    fetch("full prefill", ratio=1, recompute_ratio=1.0, sequence_ratio=1.0, kept=1000, mb_cache=22.528, ms=144.0, daemon=140.0,
          recompute=130.0),
    dict(step="alternatives", label="cacheblend", documents=4, query=24, ratio=0.15, kept=1000, ms=55.5, read=20.0, recompute=33.0),
]


class Page(unittest.TestCase):
    def make(self, lines):
        """The page, and the plots by their names; all are checked to be XML without anything outside the picture."""
        with tempfile.TemporaryDirectory(prefix="samkv-page-") as folder:
            results, out = pathlib.Path(folder, "results.jsonl"), pathlib.Path(folder, "out")
            results.write_text("".join(json.dumps(l) + "\n" for l in lines))
            done = subprocess.run([sys.executable, str(PAGE), str(results), str(out)], capture_output=True, text=True, check=False)
            self.assertEqual(done.returncode, 0, done.stderr)
            page = (out / "README.md").read_text(encoding="utf-8")
            plots = {p.stem: self.check_plot(p.read_text(encoding="utf-8")) for p in out.glob("*.svg")}
        for name in PLOTS:
            self.assertEqual("(%s.svg)" % name in page, name in plots, name)
        return page, plots

    def check_plot(self, text):
        root = xml.etree.ElementTree.fromstring(text)
        width, height = float(root.get("width")), float(root.get("height"))
        for part in root.iter():
            for key, limit in (("x", width), ("y", height)):
                at = float(part.get(key, 0))
                self.assertTrue(0 <= at <= limit, "%s=%s" % (key, at))
        return [part.text for part in root.iter() if part.tag.endswith("}text")]

    def row(self, page, first, behind="\n"):
        """Cells of the first row so called behind a heading."""
        at = page.index(behind)
        line = next(l for l in page[at:].splitlines() if l.startswith("| %s |" % first))
        return [c.strip() for c in line.strip("|").split("|")]

    def test_numbers(self):
        page, _ = self.make(COMPLETE)
        self.assertEqual(self.row(page, "hot, in device memory"), ["hot, in device memory", "7.50×", "20.00", "19.00", "23.00", "5"])
        self.assertEqual(self.row(page, "cold, from disk")[2], "77.00")  # the middle one
        self.assertEqual(self.row(page, "CacheBlend-style")[1:3], ["2.70×", "55.50"])
        self.assertEqual(self.row(page, "full prefill, HF SDPA")[1:3], ["1.00×", "150.0"])
        self.assertEqual(self.row(page, "hot, in device memory", "## Where"),
                         ["hot, in device memory", "20.00", "1.25", "2.50", "0.75", "9.25", "1.50", "1.25", "3.50", "0.50"])
        self.assertEqual(self.row(page, "8", "## Number")[2:7], ["device", "8.02×", "41.50", "23.00", "333.0"])
        self.assertEqual(self.row(page, "0.1", "## Ratio")[1:5], ["10.0 %", "device", "12.00×", "12.50"])
        self.assertEqual(self.row(page, "16", "## Clients")[1:6], ["device", "2.00×", "97.00", "111.0", "222.0"])
        self.assertEqual(self.row(page, "default", "## Ingest")[2:],
                         ["2,000", "1,333", "1.50", "400.0", "350.0", "50 %", "0.12", "0.17"])
        self.assertIn("**7.5 times faster than**", page)
        self.assertIn("counted 5.50, –, 6.50 MB", page)
        self.assertNotIn("Missing from this run", page)

    def test_floors(self):
        page, _ = self.make(COMPLETE)
        # A layer has 1000 * (2 * 1000 + 2 * 500 + 3 * 2000) = 9e6 weights, of which 1e6 for K and V.
        work = 2 * 224 * (10 * 9e6 + 1e6) + 10 * 2 * 224**2 * 1000
        floor = work / 700e12 * 1e3
        self.assertEqual(self.row(page, "hot, in device memory: recompute")[2:], ["%.2f" % floor, "9.25", "%.2f" % (9.25 / floor)])
        floor = 2 * (11 * 9e6 - 7e6) / 3.35e12 * 1e3
        self.assertEqual(self.row(page, "query")[2:], ["%.2f" % floor, "2.50", "%.2f" % (2.5 / floor)])
        self.assertEqual(self.row(page, "warm, in host memory: index + anchors")[2:], ["0.06", "5.25", "87.50"])
        self.assertEqual(self.row(page, "hot, reply in host memory: reply")[2:4], ["0.12", "14.50"])
        self.assertNotIn("naive reuse: recompute", page)  # rows of different depths

    def test_plots(self):
        _, plots = self.make(COMPLETE)
        self.assertEqual(set(plots), PLOTS)
        for text in ("20.0 ms (7.5×)", "77.0 ms (1.9×)", "150 ms", "CacheBlend-style", "index + anchors"):
            self.assertTrue(any(text == t or t.startswith(text) for t in plots["phases"]), text)
        for name, texts in (("documents", ("20", "42", "150", "333")), ("ratios", ("12", "120", "full prefill, HF SDPA: 150 ms")),
                            ("clients", ("48.5", "97.0", "20", "23", "111", "222"))):
            for text in texts:
                self.assertIn(text, plots[name], name)

    def test_steps_alone(self):
        """Each step by itself, and none: no section, plot or number of the others."""
        for lines in [[]] + [[l] for l in COMPLETE]:
            with self.subTest(step=lines and lines[0]["step"]):
                page, plots = self.make(lines)
                self.assertIn("Missing from this run", page)
                self.assertEqual("## Clients" in page, bool(lines) and lines[0]["step"] == "clients")
                self.assertNotIn("## Floors", page)
                self.assertLessEqual(len(plots), 1)

    def test_each_step_missing(self):
        for step in {l["step"] for l in COMPLETE}:
            with self.subTest(step=step):
                self.make([l for l in COMPLETE if l["step"] != step])

    def test_unknown_device(self):
        page, _ = self.make([dict(SETUP, device="Another GPU")] + COMPLETE[1:])
        self.assertIn("## Floors", page)
        self.assertNotIn("data sheet,", page)

    def test_errors(self):
        page, plots = self.make(COMPLETE[:8] + [dict(step="clients", error="no `memory`\nleft", clients="64")])
        self.assertIn("- clients: `no 'memory' left`, clients 64", page)
        self.assertNotIn("clients", plots)
        self.assertNotIn("## Failed", self.make(COMPLETE)[0])

    def test_an_earlier_page(self):
        """Plots of a run that had more steps do not stay behind."""
        with tempfile.TemporaryDirectory(prefix="samkv-page-") as folder:
            results = pathlib.Path(folder, "results.jsonl")
            for lines, count in ((COMPLETE, 4), (COMPLETE[:8], 1)):
                results.write_text("".join(json.dumps(l) + "\n" for l in lines))
                subprocess.run([sys.executable, str(PAGE), str(results), folder], check=True)
                self.assertEqual(len(list(pathlib.Path(folder).glob("*.svg"))), count)


if __name__ == "__main__":
    unittest.main()
