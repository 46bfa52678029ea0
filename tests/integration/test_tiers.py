"""Memory in front of the store: the second fetch reads nothing from disk, and never gives what is no longer true."""
import os
import tempfile
import unittest
import zlib

import cases
import models
from harness import DONE, WRONG_USAGE, Daemon, comma, documents_jsonl, enter

BUDGET = 16 << 20
ALL = ("--ratio", "1.0", "--no-recompute", "--query-tokens", "5,6,7")     # reads every block


class Tiers(unittest.TestCase):
    device = "cpu"

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        cls.addClassCleanup(folder.cleanup)
        cls.paths = {"llama": models.make_model("%s/llama" % folder.name, "llama")}
        cls.daemon = cls.start(cls, "--host-cache-bytes", str(BUDGET), "--codec", "raw")

    def start(self, *arguments):
        return enter(type(self) if isinstance(self, unittest.TestCase) else self,
                     Daemon(self.paths, arguments=arguments, device=self.device))

    def setUp(self):
        self.collection = self.id().rsplit(".", 1)[1]
        self.rng = cases.seeded(zlib.crc32(self.collection.encode()))     # tests share no document

    def ingest(self, name, tokens, collection=None, daemon=None):
        said = (daemon or self.daemon).json("ingest", "-", "--collection", collection or self.collection,
                                            text=documents_jsonl({name: tokens}))
        self.assertEqual(said["failed"], 0, said)

    def fetch(self, *names, options=ALL, collection=None, daemon=None):
        """(what it said, the file's bytes)"""
        daemon = daemon or self.daemon
        out = daemon.folder / "out.safetensors"
        info = daemon.json("fetch", "--collection", collection or self.collection, "--docs", ",".join(names), *options,
                           "--out", out)
        return info, out.read_bytes()

    def tier(self, name, daemon=None):
        found = [t for t in (daemon or self.daemon).json("status")["tiers"] if t["tier"] == name]
        return found[0] if found else None

    def test_the_second_fetch_reads_nothing(self):
        for name in ("a", "b"):
            self.ingest(name, cases.tokens(self.rng, 150))
        before = self.tier("host")
        first, one = self.fetch("a", "b")
        second, two = self.fetch("a", "b")
        after = self.tier("host")
        self.assertGreater(first["bytes_read"], 0)
        self.assertEqual(second["bytes_read"], 0)
        self.assertEqual(one, two)
        self.assertGreater(after["hits"], before["hits"])
        self.assertGreater(after["misses"], before["misses"])
        self.assertGreater(after["bytes_used"], before["bytes_used"])
        self.assertLessEqual(after["bytes_used"], after["bytes_limit"])
        self.assertEqual(after["bytes_limit"], BUDGET)
        self.assertAlmostEqual(after["hit_rate"], after["hits"] / (after["hits"] + after["misses"]))
        self.fetch("a", options=("--query-tokens", "9,8"))     # recomputed in part: index and anchors
        self.assertEqual(self.fetch("a", "b", options=("--query-tokens", "9,8"))[0]["bytes_read"], 0)

    def test_another_document_under_the_same_id(self):
        old, new = cases.tokens(self.rng, 90), cases.tokens(self.rng, 110)
        self.ingest("x", new, self.collection + "-other")
        expected = self.fetch("x", collection=self.collection + "-other")[1]
        self.ingest("x", old)
        was = self.fetch("x")[1]
        self.assertNotEqual(was, expected)
        for remove_first in (True, False):
            if remove_first:
                self.assertEqual(self.daemon.ctl("rm", "x", "--collection", self.collection).returncode, DONE)
            self.ingest("x", new)
            for _ in range(2):
                self.assertEqual(self.fetch("x")[1], expected)
            self.ingest("x", old)
            for _ in range(2):
                self.assertEqual(self.fetch("x")[1], was)

    def test_removed_and_ingested_again(self):
        tokens = cases.tokens(self.rng, 130)
        self.ingest("x", tokens)
        self.fetch("x")
        info, was = self.fetch("x")
        self.assertEqual(info["bytes_read"], 0)
        held = self.tier("host")["bytes_used"]
        self.assertEqual(self.daemon.ctl("rm", "x", "--collection", self.collection).returncode, DONE)
        self.assertLess(self.tier("host")["bytes_used"], held)
        self.ingest("x", tokens)
        info, now = self.fetch("x")
        self.assertGreater(info["bytes_read"], 0)     # what memory had of it went with it
        self.assertEqual(now, was)

    def test_verify_and_repair_look_at_the_disk(self):
        self.ingest("x", cases.tokens(self.rng, 128))
        self.fetch("x")
        info, was = self.fetch("x")
        self.assertEqual(info["bytes_read"], 0)
        self.damage()
        self.assertEqual(self.fetch("x")[1], was)     # memory serves on
        self.assertEqual(self.daemon.ctl("verify", "--collection", self.collection).returncode, 1)
        said = self.daemon.json("verify", "--collection", self.collection, "--repair")
        self.assertEqual((said["damaged"], said["repaired"]), (1, 1))
        self.assertEqual(self.daemon.json("verify", "--collection", self.collection)["damaged"], 0)
        info, now = self.fetch("x")
        self.assertGreater(info["bytes_read"], 0)
        self.assertEqual(self.fetch("x")[0]["bytes_read"], 0)

    def damage(self):
        """Flips a byte of the document's first block, which is stored raw: its V in layer 0 as the fetch gave it."""
        tensors = models.load_safetensors(self.daemon.folder / "out.safetensors")
        path = self.daemon.store / "data.mdb"
        at = path.read_bytes().find(tensors["v.0"][:16].tobytes())
        self.assertGreater(at, 0)
        with open(path, "r+b") as file:
            file.seek(at + 100)
            byte = file.read(1)[0]
            file.seek(at + 100)
            file.write(bytes([byte ^ 1]))
            os.fsync(file.fileno())

    def test_a_small_budget_is_kept_and_changes_no_byte(self):
        small, none = self.start("--host-cache-bytes", "1M"), self.start("--host-cache-bytes", "0")
        names = ["d%d" % i for i in range(12)]
        for name in names:
            tokens = cases.tokens(self.rng, 200)
            for daemon in (small, none):
                self.ingest(name, tokens, daemon=daemon)
        for _ in range(2):
            for pair in zip(names, names[1:]):
                self.assertEqual(self.fetch(*pair, daemon=small)[1], self.fetch(*pair, daemon=none)[1])
                tier = self.tier("host", small)
                self.assertLessEqual(tier["bytes_used"], 1 << 20)
        self.assertGreater(tier["evictions"], 0)
        self.assertIsNone(self.tier("host", none))
        self.assertNotIn("host_cache_bytes", none.json("status")["counters"])

    def test_status_prints_the_tiers(self):
        lines = self.daemon.ctl("status").stdout.splitlines()
        at = next(i for i, line in enumerate(lines) if line.startswith("tiers"))
        self.assertEqual(lines[at].split(), ["tiers", "used", "limit", "hit", "rate", "evictions"])
        self.assertEqual([line.split()[0] for line in lines[at + 1:at + 3]], ["host", "disk"])

    def test_budgets_that_cannot_be(self):
        daemon = Daemon(self.paths, arguments=["--host-cache-bytes", "1000"])
        with self.assertRaisesRegex(Exception, "ended with %d(.|\n)*--host-cache-bytes: give 1M" % WRONG_USAGE):
            daemon.start()
        daemon.remove()


class TiersWithDevice(unittest.TestCase):
    """A device in front of memory: three tiers."""

    def test_three_tiers(self):
        with tempfile.TemporaryDirectory(prefix="samkv-models-") as folder:
            paths = {"llama": models.make_model("%s/llama" % folder, "llama")}
            with Daemon(paths, device="cpu:discrete", arguments=["--host-cache-bytes", "4M"]) as daemon:
                tokens = cases.tokens(cases.seeded(5), 100)
                daemon.json("ingest", "-", text=documents_jsonl({"a": tokens}))
                for _ in range(2):
                    info = daemon.json("fetch", "--docs", "a", "--query-tokens", comma(tokens[:4]))
                self.assertEqual(info["bytes_read"], 0)
                tiers = {t["tier"]: t for t in daemon.json("status")["tiers"]}
                self.assertEqual(list(tiers), ["device", "host", "disk"])
                self.assertGreater(tiers["device"]["hits"], 0)
                self.assertGreater(tiers["host"]["misses"], 0)
                for tier in tiers.values():
                    self.assertLessEqual(tier["bytes_used"], tier["bytes_limit"])


if __name__ == "__main__":
    unittest.main()
