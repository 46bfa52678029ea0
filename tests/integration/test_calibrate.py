"""Calibration, the quality gates of collections, and fetches with a deadline.

Tiny random models show the mechanics. What a trained model gains is shown where one is there: SAMKV_TEST_READER names a
Hugging Face directory that answers token ids (its model.safetensors may be packed by xz), SAMKV_TEST_READER_CASES the
JSON Lines of {"preamble", "docs", "query", "answer"} that it was trained for; tests/data/reader and cases.jsonl in it
unless said.
"""
import json
import lzma
import os
import pathlib
import tempfile
import time
import unittest
import zlib

import numpy as np

import cases
import exposition
import models
import observed
import wire
from harness import DATA, DONE, SOME_FAILED, WRONG_USAGE, Daemon, comma, documents_jsonl, enter, under_sanitizer

READER = pathlib.Path(os.environ.get("SAMKV_TEST_READER", DATA / "reader"))
READER_CASES = pathlib.Path(os.environ.get("SAMKV_TEST_READER_CASES", READER / "cases.jsonl"))
LAYERS = 4
PATIENCE_S = 120
INVALID = 2


class Quality(unittest.TestCase):
    device = "cpu"

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        cls.addClassCleanup(folder.cleanup)
        cls.paths = {"llama": models.make_model("%s/llama" % folder.name, "llama", layers=LAYERS)}
        cls.daemon = enter(cls, Daemon(cls.paths, device=cls.device))

    def setUp(self):
        self.collection = self.id().rsplit(".", 1)[1]
        self.rng = cases.seeded(zlib.crc32(self.collection.encode()))     # tests share no document

    def ingest(self, count=4, length=200, daemon=None, **sizes):
        """Documents of the test's own collection; their ids."""
        documents = {"d%d" % i: cases.tokens(self.rng, length) for i in range(count)}
        arguments = [a for name, size in sizes.items() for a in ("--" + name.replace("_", "-"), size)]
        said = (daemon or self.daemon).json("ingest", "-", "--collection", self.collection, "--preamble-tokens", "1,5",
                                            *arguments, text=documents_jsonl(documents))
        self.assertEqual(said["failed"], 0, said)
        return list(documents)

    def fetch(self, ids, *more, daemon=None):
        return (daemon or self.daemon).json("fetch", "--collection", self.collection, "--docs", ",".join(ids),
                                            "--query-tokens", comma(cases.tokens(self.rng, 6)), *more)

    def quality(self, daemon=None):
        found = [q for q in (daemon or self.daemon).json("status")["qualities"] if q["collection"] == self.collection]
        return found[0] if found else None

    def counter(self, name, daemon=None):
        return (daemon or self.daemon).json("status")["counters"][name]

    def measure(self, ids, count, *more, daemon=None):
        """Fetches that the gate measures all, in bites that its queue takes; what is known afterwards."""
        before = self.quality(daemon)["measured"]
        for first in range(0, count, 4):
            for _ in range(min(4, count - first)):
                self.fetch(ids, *more, daemon=daemon)
            self.wait(lambda: self.counter("quality_waiting", daemon) == 0)
        self.wait(lambda: self.quality(daemon)["measured"] >= before + count - 4)
        return self.quality(daemon)

    def climb(self, ids):
        """What was seen of the gate until it had everything recomputed. The first layer alone being stable, the others
        are not recomputed: so no ratio makes the sparse way what the target wants."""
        self.daemon.json("set", self.collection, "--quality", "kl=0.0001", "--gate-share", "1")
        seen = []
        while not seen or not seen[-1]["full"]:
            self.assertLess(len(seen), 40, seen)
            seen.append(self.measure(ids, 8, "--stable-layers", "0"))
        return seen

    def wait(self, condition):
        until = time.monotonic() + PATIENCE_S
        while not condition():
            self.assertLess(time.monotonic(), until, self.daemon.log())
            time.sleep(0.03)

    # -------------------------------------------------------------- calibration

    def calibrate(self, *more, **options):
        return self.daemon.json("calibrate", "--collection", self.collection, "--sample", "4", *more, **options)

    def test_calibration_ranks_layers_and_reaches_full_recomputation_at_ratio_one(self):
        self.ingest(block_size=8, init_tokens=8, local_tokens=8)
        said = self.calibrate()
        self.assertEqual(said["samples"], 4)
        self.assertFalse(said["applied"])
        self.assertEqual(len(said["layer_recall"]), LAYERS)
        for recall in said["layer_recall"]:
            self.assertTrue(0 <= recall <= 1 + 1e-9, said["layer_recall"])
        sets = [v for v in said["variants"] if v["kind"] == "layers"]
        self.assertEqual([v["what"] for v in sets if v["chosen"]],
                         [min(sets, key=lambda v: v["kl"])["what"]])
        best = max(range(LAYERS), key=lambda l: said["layer_recall"][l])
        self.assertIn([best], [v["stable_layers"] for v in sets])
        alone = next(v for v in sets if v["stable_layers"] == [LAYERS - 1])
        self.assertAlmostEqual(alone["recall"], said["layer_recall"][LAYERS - 1], places=6)
        ratios = [v for v in said["variants"] if v["kind"] == "ratio"]
        self.assertEqual(len(ratios), 6)
        self.assertAlmostEqual(ratios[-1]["sequence_ratio"], 1)
        self.assertEqual(said["calibration"]["samples"], 4)
        blocks = [v for v in said["variants"] if v["kind"] == "blocks"]
        self.assertEqual([v["what"] for v in blocks], ["blocks of %d" % size for size in (8, 16, 32, 64)])
        self.assertTrue(0 <= blocks[0]["recall"] <= 1, blocks)
        self.assertIsNone(blocks[-1]["recall"])     # two anchors of 64 tokens are more than 15 % of 200
        chosen = [v["what"] for v in blocks if v["chosen"]]
        self.assertEqual(chosen, ["blocks of %d" % said["calibration"]["block_size"]])

    def test_what_kl_and_agreement_mean(self):
        """With the last layer stable, everything kept is everything recomputed: no difference to be seen."""
        ids = self.ingest(block_size=8, init_tokens=8, local_tokens=8)
        questions = "".join(json.dumps({"query": cases.tokens(self.rng, 5), "docs": ids}) + "\n" for _ in range(3))
        said = self.daemon.json("calibrate", "--collection", self.collection, "--questions", "-", text=questions)
        self.assertEqual(said["samples"], 3)
        full = [v for v in said["variants"] if v["kind"] == "ratio" and v["ratio"] == 1][0]
        sparse = [v for v in said["variants"] if v["kind"] == "ratio" and v["ratio"] < 0.2][0]
        if LAYERS - 1 in full["stable_layers"]:
            self.assertLess(full["kl"], 1e-6)
            self.assertEqual(full["agreement"], 1)
        self.assertGreater(sparse["kl"], full["kl"])

    def test_the_same_seed_draws_the_same_questions(self):
        self.ingest(block_size=8, init_tokens=8, local_tokens=8)
        one, two, other = (self.calibrate("--seed", seed) for seed in ("7", "7", "8"))
        for said in (one, two, other):
            for v in said["variants"]:
                del v["ms"]
        self.assertEqual(one["variants"], two["variants"])
        self.assertNotEqual(one["variants"], other["variants"])

    def test_what_was_found_is_used_until_it_is_forgotten(self):
        with Daemon(self.paths, device=self.device) as daemon:
            ids = self.ingest(daemon=daemon, block_size=8, init_tokens=8, local_tokens=8)
            before = self.fetch(ids, daemon=daemon)
            self.assertEqual(before["stable_layers"], [LAYERS - 1])
            self.assertEqual(before["ratio"], 0.15)
            for seed in range(8):    # one whose choice is not the default, so that it can be told apart
                said = daemon.json("calibrate", "--collection", self.collection, "--sample", 3, "--seed", seed,
                                   "--quality", "kl=1e-4", "--apply")
                if said["calibration"]["stable_layers"] != [LAYERS - 1] and said["calibration"]["ratio"]:
                    break
            self.assertTrue(said["applied"])
            found = said["calibration"]
            self.assertNotEqual(found["stable_layers"], [LAYERS - 1])
            for restarted in (False, True):
                if restarted:
                    daemon.stop()
                    daemon.start()
                now = self.fetch(ids, daemon=daemon)
                self.assertEqual(now["stable_layers"], found["stable_layers"])
                self.assertEqual(now["ratio"], found["ratio"])
                self.assertEqual(self.fetch(ids, "--stable-layers", "2", "--ratio", "0.3", daemon=daemon)["ratio"], 0.3)
                self.assertEqual(daemon.json("status")["calibrations"][0]["stable_layers"], found["stable_layers"])
                self.assertEqual(daemon.json("show", "--collection", self.collection, ids[0])["calibration"], found)
            self.assertTrue(daemon.json("calibrate", "--collection", self.collection, "--forget")["applied"])
            self.assertFalse(daemon.json("calibrate", "--collection", self.collection, "--forget")["applied"])
            self.assertEqual(self.fetch(ids, daemon=daemon)["stable_layers"], [LAYERS - 1])
            self.assertEqual(daemon.json("status")["calibrations"], [])

    def test_questions_may_bring_their_documents(self):
        self.ingest(count=1, block_size=8, init_tokens=8, local_tokens=8)
        texts = [cases.tokens(self.rng, 90) for _ in range(3)]
        line = {"query": [5, 6, 7], "docs": [texts[0], {"id": "named", "tokens": texts[1]}, "d0"]}
        self.calibrate("--questions", "-", text=json.dumps(line) + "\n")
        listed = {d["id"] for d in self.daemon.json("ls", "--collection", self.collection)["documents"]}
        self.assertIn("named", listed)
        self.assertEqual(len(listed), 3)

    def test_what_cannot_be_calibrated_is_refused_with_one_line(self):
        refuse = lambda *a, text=None: self.daemon.refuse(self, SOME_FAILED, "calibrate", *a, text=text)
        self.assertIn("no collection", refuse("--collection", "nothing-of-that-name"))
        self.ingest(count=2, length=12)     # all anchors
        own = ("--collection", self.collection)
        self.assertIn("all anchors", refuse(*own))
        self.assertIn("no document 'nope'", refuse(*own, "--questions", "-", text='{"query": [5], "docs": ["nope"]}\n'))
        self.assertIn("all anchors", refuse(*own, "--questions", "-", text='{"query": [5], "docs": ["d0"]}\n'))
        self.assertIn("vocabulary", refuse(*own, "--questions", "-", text='{"query": [99999], "docs": ["d0"]}\n'))
        self.assertIn("-:2: ", refuse(*own, "--questions", "-", text='{"query": [5], "docs": ["d0"]}\n{"docs": []}\n'))
        self.assertIn("tokenizer", refuse(*own, "--questions", "-", text='{"question": "x", "docs": ["d0"]}\n'))
        self.assertIn("quality 'f1=2'", refuse(*own, "--quality", "f1=2"))
        self.daemon.refuse(self, WRONG_USAGE, "calibrate", "--apply", "--forget")
        self.daemon.refuse(self, WRONG_USAGE, "calibrate", "--sample", "513")

    def test_hostile_calibrations(self):
        self.ingest(count=2, block_size=8, init_tokens=8, local_tokens=8)
        question = lambda **f: wire.message(**f)
        for said in ({"f3": 513}, {"f5": 0.0}, {"f5": float("nan")}, {"f6": 2}, {"f7": 2}, {"f8": "kl=nan"},
                     {"f9": 1, "f10": 1}, {"f2": question(f2=wire.tokens([5]))},
                     {"f2": question(f2=wire.tokens([5]), f1=b"x", f4=["d0"])}, {"f2": question(f4=["d0"])},
                     {"f2": question(f2=wire.tokens([-5]), f4=["d0"])}, {"f2": question(f2=wire.tokens([5]), f4=[""])}):
            with self.subTest(said), wire.Connection(self.daemon.socket) as connection:
                flags, reply = connection.ask(wire.CALIBRATE, wire.message(f1=self.collection, **said))
                self.assertTrue(flags & wire.ERROR)
                self.assertEqual(wire.fields(reply)[1], [INVALID], reply)

    def test_a_client_that_goes_away_ends_it(self):
        self.ingest(count=6, length=700, block_size=8, init_tokens=8, local_tokens=8)
        connection = wire.Connection(self.daemon.socket)
        with connection:
            connection.send(wire.CALIBRATE, wire.message(f1=self.collection, f3=512))
            self.wait(lambda: self.counter("requests_running") > 1)
        self.wait(lambda: self.counter("requests_running") == 1)    # this status

    # -------------------------------------------------------------- gates

    def test_a_gate_rises_until_everything_is_recomputed(self):
        ids = self.ingest(block_size=8, init_tokens=8, local_tokens=8)
        said = self.daemon.json("set", self.collection, "--quality", "kl=0.0001", "--gate-share", "1")["quality"]
        self.assertEqual((said["target"], said["share"], said["level"]), ("kl=0.0001", 1, 0))
        self.assertEqual(self.fetch(ids)["decision"], "sparse")
        seen = self.climb(ids)
        levels = [q["level"] for q in seen]
        self.assertEqual(levels, sorted(levels))
        self.assertEqual(seen[-1]["raised"], seen[-1]["level"])
        self.assertIn(0.5, [q["ratio"] for q in seen])
        now = self.fetch(ids, "--ratio", "0.2")
        self.assertEqual((now["decision"], now["ratio"]), ("full_quality", 1))
        self.assertAlmostEqual(now["sequence_ratio"], 1)
        self.assertGreater(self.counter("fetch_full_quality"), 0)
        self.assertGreater(self.counter("fetch_raised"), 0)
        self.assertIn("raised to level=", self.daemon.log(2000))
        self.daemon.json("set", self.collection, "--quality", "none")
        self.assertIsNone(self.quality())
        self.assertEqual(self.fetch(ids)["decision"], "sparse")

    def test_everything_recomputed_is_the_full_prefill(self):
        """The same cache as keeping all blocks and recomputing them through all layers, which the reference confirms."""
        ids = self.ingest(block_size=8, init_tokens=8, local_tokens=8)
        query = ("--docs", ",".join(ids), "--collection", self.collection, "--query-tokens", "5,6,7", "--with-query")
        one, two = self.daemon.folder / "one", self.daemon.folder / "two"
        all_kept = ("--ratio", "1", "--selection", "fixed", "--stable-layers", str(LAYERS - 1))
        for positions in ("original", "compact"):
            self.daemon.json("fetch", *query, *all_kept, "--positions", positions, "--out", one)
            self.climb(ids)
            said = self.daemon.json("fetch", *query, "--positions", positions, "--no-recompute", "--out", two)
            self.daemon.json("set", self.collection, "--quality", "none")
            self.assertEqual(said["decision"], "full_quality")
            self.assertAlmostEqual(said["recompute_ratio"], 1)
            expected, got = models.load_safetensors(one), models.load_safetensors(two)
            self.assertEqual(expected.keys(), got.keys())
            for name, values in expected.items():
                if values.dtype == np.float32:
                    self.assertLess(np.linalg.norm(values - got[name]), 1e-4 * np.linalg.norm(values), name)
                else:
                    np.testing.assert_array_equal(values, got[name], name)

    def test_a_gate_survives_a_restart_and_goes_with_its_collection(self):
        with Daemon(self.paths, device=self.device) as daemon:
            ids = self.ingest(daemon=daemon, block_size=8, init_tokens=8, local_tokens=8)
            daemon.json("set", self.collection, "--quality", "kl=0.0001", "--gate-share", "1")
            for _ in range(10):
                if self.measure(ids, 8, daemon=daemon)["level"]:
                    break
            before = self.quality(daemon)
            self.assertGreater(before["level"], 0)
            daemon.stop()
            daemon.start()
            after = self.quality(daemon)
            self.assertEqual(after, before)
            daemon.json("rm", "--collection", self.collection, "--all")
            self.assertIsNone(self.quality(daemon))
            self.ingest(daemon=daemon)
            self.assertIsNone(self.quality(daemon))
            daemon.stop()
            daemon.start()
            self.assertIsNone(self.quality(daemon))

    def test_a_share_of_nothing_measures_nothing(self):
        ids = self.ingest()
        self.daemon.json("set", self.collection, "--quality", "agreement=0.5", "--gate-share", "0")
        for _ in range(5):
            self.fetch(ids)
        time.sleep(0.2)
        self.assertEqual(self.quality()["measured"], 0)

    def test_documents_that_go_meanwhile_cost_a_measurement_only(self):
        ids = self.ingest()
        self.daemon.json("set", self.collection, "--quality", "agreement=0.5", "--gate-share", "1")
        dropped = self.counter("quality_dropped")
        with wire.Connection(self.daemon.socket) as connection:   # fetch and remove before anything is idle
            fetch = wire.message(f1=self.collection, f2=ids, f4=wire.tokens([7, 8, 9]))
            remove = wire.message(f1=self.collection, f2=ids)
            for _ in range(3):
                connection.send(wire.FETCH, fetch)
            connection.send(wire.REMOVE, remove)
            for _ in range(4):
                connection.receive()
        self.wait(lambda: self.counter("quality_waiting") == 0)
        self.wait(lambda: self.counter("quality_dropped") + self.quality()["measured"] >= dropped + 3)
        self.assertEqual(self.daemon.ctl("ping").returncode, DONE)

    def test_wrong_qualities_are_refused(self):
        self.ingest(count=1)
        for wrong in ("agreement=2", "kl=-1", "f1=0.5", "kl=", "agreement=nan"):
            self.assertIn("quality", self.daemon.refuse(self, SOME_FAILED, "set", self.collection, "--quality", wrong))
        self.daemon.refuse(self, WRONG_USAGE, "set", self.collection, "--gate-share", "1.5")
        self.daemon.refuse(self, WRONG_USAGE, "set", self.collection)
        self.assertIn("no collection", self.daemon.refuse(self, SOME_FAILED, "set", "nope", "--quality", "kl=1"))
        for share in (-0.1, 1.1, float("nan")):
            with wire.Connection(self.daemon.socket) as connection:
                flags, reply = connection.ask(wire.CONFIGURE, wire.message(f1=self.collection, f21=share))
                self.assertTrue(flags & wire.ERROR)
                self.assertEqual(wire.fields(reply)[1], [INVALID])
        self.assertIsNone(self.quality())

    # -------------------------------------------------------------- deadlines

    def test_without_a_deadline_nothing_is_estimated(self):
        said = self.fetch(self.ingest())
        self.assertEqual((said["decision"], said["ratio"]), ("sparse", 0.15))
        self.assertNotIn("expected_full_ms", said)

    def test_where_everything_is_anchors_recomputing_is_sooner(self):
        # A daemon of its own: where no prefill was ever measured, it goes by the recomputation, and nothing by chance.
        with Daemon(self.paths, device=self.device) as daemon:
            ids = self.ingest(daemon=daemon, count=20, length=30)
            said = self.fetch(ids, "--deadline", "60000", daemon=daemon)
            self.assertEqual((said["decision"], said["expected_full_ms"]), ("sparse", None))     # it is not known yet
            said = self.fetch(ids, "--deadline", "60000", daemon=daemon)
            self.assertLess(said["expected_full_ms"], said["expected_sparse_ms"])
            self.assertEqual((said["decision"], said["ratio"]), ("full_cheaper", 1))
            self.assertAlmostEqual(said["recompute_ratio"], 1)
            self.assertEqual(self.counter("fetch_full_cheaper", daemon), 1)

    def test_where_little_is_kept_the_sparse_way_is_sooner(self):
        ids = self.ingest(count=4, length=700, block_size=8, init_tokens=8, local_tokens=8)
        for _ in range(3):
            self.fetch(ids)
        said = self.fetch(ids, "--deadline", "60000")
        self.assertLess(said["expected_sparse_ms"], said["expected_full_ms"])
        self.assertEqual(said["decision"], "sparse")

    def test_what_cannot_be_in_time_fails_at_once(self):
        ids = self.ingest(count=10, length=700, block_size=8, init_tokens=8, local_tokens=8)
        much = ("--ratio", "0.9", "--selection", "fixed")
        for _ in range(3):
            took = self.fetch(ids, *much)["timing_ms"]["total"]
        before = self.counter("fetch_deadline_missed")
        line = self.daemon.refuse(self, SOME_FAILED, "fetch", "--collection", self.collection, "--docs", ",".join(ids),
                                  "--query-tokens", "5,6", *much, "--deadline", max(1, int(took / 5)))
        self.assertRegex(line, "would take about [0-9]+ ms and [0-9]+ ms are left of the deadline")
        self.assertEqual(self.counter("fetch_deadline_missed"), before + 1)
        self.fetch(ids, "--deadline", "60000")


class QualityOnAnotherDevice(Quality):
    """Everything again where memory is the device's own, as on a GPU."""
    device = "cpu:discrete"


class Metrics(unittest.TestCase):
    def test_each_collections_quality_is_exposed(self):
        with tempfile.TemporaryDirectory(prefix="samkv-models-") as folder:
            path = models.make_model("%s/llama" % folder, "llama")
            with tempfile.TemporaryDirectory(prefix="samkv-metrics-") as place:
                endpoint = "%s/m" % place
                with Daemon({"llama": path}, arguments=["--metrics", endpoint]) as daemon:
                    if not pathlib.Path(endpoint).exists():
                        self.skipTest("built without libmicrohttpd")
                    name = 'with "quotes" \\ and more'
                    daemon.json("ingest", "-", "--collection", name, text=documents_jsonl({"d": [5] * 80}))
                    daemon.json("set", name, "--quality", "agreement=0.9")
                    shown = name.replace("\\", "\\\\").replace('"', '\\"')     # as the format escapes it
                    families = exposition.parse(observed.ask(endpoint, "/metrics")[2])
                    self.assertEqual(exposition.value(families, "samkv_quality_target", collection=shown,
                                                      metric="agreement"), 0.9)
                    self.assertEqual(exposition.value(families, "samkv_quality_met", collection=shown,
                                                      metric="agreement"), 1)
                    self.assertEqual(exposition.value(families, "samkv_quality_gates"), 1)


@unittest.skipUnless(READER.exists() and READER_CASES.exists(), "no trained reader: see the first lines of this file")
@unittest.skipIf(under_sanitizer(), "too slow under a sanitizer")
class Reader(unittest.TestCase):
    """A model that answers: what calibrating and the gate are for."""

    @classmethod
    def setUpClass(cls):
        every = [json.loads(line) for line in READER_CASES.read_text().splitlines()]
        cls.cases = every[::max(1, len(every) // 16)][:16]
        cls.daemon = enter(cls, Daemon({"reader": cls.unpacked()}))
        documents = {"%s/%d" % (c["id"], i): d for c in cls.cases for i, d in enumerate(c["docs"])}
        cls.daemon.json("ingest", "-", "--preamble-tokens", comma(cls.cases[0]["preamble"]), "--block-size", 8,
                        "--init-tokens", 8, "--local-tokens", 8, text=documents_jsonl(documents))

    @classmethod
    def unpacked(cls):
        if (READER / "model.safetensors").exists():
            return READER
        folder = tempfile.TemporaryDirectory(prefix="samkv-reader-")
        cls.addClassCleanup(folder.cleanup)
        path = pathlib.Path(folder.name)
        (path / "config.json").write_bytes((READER / "config.json").read_bytes())
        (path / "model.safetensors").write_bytes(lzma.decompress((READER / "model.safetensors.xz").read_bytes()))
        return path

    @staticmethod
    def ids(case):
        return ["%s/%d" % (case["id"], i) for i in range(len(case["docs"]))]

    def right(self, *more):
        """How many of the cases' answers begin as they should, and the last fetch's figures."""
        out, count = self.daemon.folder / "out.safetensors", 0
        for case in self.cases:
            said = self.daemon.json("fetch", "--docs", ",".join(self.ids(case)), "--query-tokens", comma(case["query"]),
                                    "--with-query", "--out", out, *more)
            count += int(np.argmax(models.load_safetensors(out)["logits"])) == case["answer"][0]
        return count, said

    def test_1_calibrated_layers_answer_more_than_the_last_one(self):
        questions = "".join(json.dumps({"query": c["query"], "docs": self.ids(c)}) + "\n" for c in self.cases)
        before, said = self.right()
        self.assertEqual(said["stable_layers"], [7])
        found = self.daemon.json("calibrate", "--questions", "-", "--apply", text=questions)
        sets = {v["what"]: v for v in found["variants"] if v["kind"] == "layers"}
        chosen = next(v for v in sets.values() if v["chosen"])
        self.assertGreater(chosen["recall"], sets["last eighth"]["recall"] + 0.01)
        self.assertLess(chosen["kl"], sets["last eighth"]["kl"])
        after, said = self.right()
        self.assertEqual(said["stable_layers"], chosen["stable_layers"])
        self.assertGreater(after, before)
        whole = [v for v in found["variants"] if v["kind"] == "ratio"][-1]
        self.assertLess(whole["kl"], 1e-3)
        self.assertGreaterEqual(whole["agreement"], 0.98)

    def test_2_the_gate_raises_the_ratio_until_answers_are_right(self):
        self.daemon.ctl("calibrate", "--forget")
        before, _ = self.right()
        self.daemon.json("set", "default", "--quality", "agreement=0.9", "--gate-share", "1")
        until, quality = time.monotonic() + 300, {"level": 0}
        while quality["level"] < 2:
            self.assertLess(time.monotonic(), until, quality)
            self.right()
            quality = self.daemon.json("status")["qualities"][0]
        after, said = self.right()
        self.assertIn(said["decision"], ("raised", "full_quality"))
        self.assertGreaterEqual(said["sequence_ratio"], 0.3)
        self.assertGreater(after, before + 2)


if __name__ == "__main__":
    unittest.main(verbosity=2)
