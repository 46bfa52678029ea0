"""Limits as an operator meets them: quotas, times to live, pins, gc, whole collections, and a daemon that evicts."""
import concurrent.futures
import tempfile
import time
import unittest

import cases
import models
from harness import DONE, SOME_FAILED, WRONG_USAGE, Daemon, documents_jsonl, enter

QUERY = ("--query-tokens", "5,6,7")


class Limits(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        cls.addClassCleanup(folder.cleanup)
        cls.model = {"llama": models.make_model(folder.name + "/llama", "llama")}
        cls.daemon = enter(cls, Daemon(cls.model))
        cls.rng = cases.seeded(21)

    def ingest(self, collection, documents, *options, daemon=None):
        return (daemon or self.daemon).json("ingest", "-", "--collection", collection, *options,
                                            text=documents_jsonl(documents))

    def ids(self, collection, daemon=None):
        return [d["id"] for d in (daemon or self.daemon).json("ls", "--collection", collection)["documents"]]

    def collection(self, name, daemon=None):
        return {c["name"]: c for c in (daemon or self.daemon).json("status")["collection_list"]}[name]

    def some(self, count, tokens=40, start=0):
        return {"d%03d" % i: cases.tokens(self.rng, tokens) for i in range(start, start + count)}

    def test_quota(self):
        one = self.ingest("quota", self.some(1))["bytes_stored"]
        said = self.daemon.json("set", "quota", "--quota", 5 * one + one // 2)
        self.assertEqual((said["evicted"], said["collection"]["documents"]), (0, 1))
        self.assertEqual(self.daemon.json("pin", "d000", "--collection", "quota"), {"pinned": 1, "missing": []})
        for start in range(1, 12):
            self.assertEqual(self.ingest("quota", self.some(1, start=start))["failed"], 0)
            self.assertLessEqual(self.collection("quota")["bytes_stored"], 5 * one + one // 2)
        left = self.ids("quota")
        self.assertEqual((left[0], left[-1], len(left) in (4, 5)), ("d000", "d011", True), left)
        # What is fetched stays; what is not goes.
        for _ in range(3):
            self.daemon.json("fetch", "--docs", left[1], "--collection", "quota", *QUERY)
        shown = self.daemon.json("show", left[1], "--collection", "quota")["document"]
        self.assertEqual((shown["uses"], shown["pinned"], shown["expires_unix_s"]), (3, False, 0))
        self.assertAlmostEqual(shown["used_unix_s"], time.time(), delta=100)
        self.assertIn("3 times", self.daemon.ctl("show", left[1], "--collection", "quota").stdout)
        self.ingest("quota", self.some(3, start=20))
        self.assertIn(left[1], self.ids("quota"))
        self.assertNotIn(left[2], self.ids("quota"))
        lowered = self.daemon.json("set", "quota", "--quota", 2 * one + one // 2)
        self.assertGreaterEqual(lowered["evicted"], 2)
        self.assertEqual(self.ids("quota"), ["d000", left[1]])
        done = self.daemon.ctl("ingest", "-", "--collection", "quota", text=documents_jsonl(self.some(1, 400, 90)))
        self.assertEqual(done.returncode, SOME_FAILED)
        self.assertIn("quota", done.stderr)
        self.assertEqual(self.ids("quota"), ["d000", left[1]])    # nothing went for it
        status = self.daemon.json("status")
        self.assertGreater(status["evictions"], 5)
        self.assertGreater(status["bytes_disk_free"], 0)
        self.assertIn("evicted", self.daemon.ctl("status").stdout)

    def test_quota_and_ttl_belong_to_the_collection(self):
        self.ingest("terms", self.some(1), "--quota", "3M", "--ttl", "7d")
        c = self.collection("terms")
        self.assertEqual((c["quota_bytes"], c["ttl_s"]), (3 << 20, 7 * 86400))
        self.assertEqual(self.ingest("terms", self.some(1), "--quota", "3M", "--ttl", "168h")["failed"], 0)
        for other in (["--quota", "4M"], ["--ttl", "none"]):
            line = self.daemon.ctl("ingest", "-", "--collection", "terms", *other, text=documents_jsonl(self.some(1)))
            self.assertEqual(line.returncode, SOME_FAILED)
            self.assertIn("samkvctl set", line.stderr)
        self.daemon.json("set", "terms", "--quota", "none", "--ttl", "90")
        c = self.collection("terms")
        self.assertEqual((c["quota_bytes"], c["ttl_s"]), (0, 90))

    def test_mistakes(self):
        self.ingest("mistakes", self.some(1))
        for arguments in (["set", "mistakes"], ["set"], ["set", "mistakes", "--quota", "1X"],
                          ["set", "mistakes", "--quota", "-1"], ["set", "mistakes", "--ttl", "99999999999999999999d"],
                          ["set", "mistakes", "--ttl", "9223372036854775807w"], ["pin"], ["rm"], ["rm", "--all"],
                          ["rm", "a", "--all", "--collection", "mistakes"], ["gc", "now"]):
            with self.subTest(arguments=arguments):
                self.daemon.refuse(self, WRONG_USAGE, *arguments)
        for arguments in (["set", "nobody", "--quota", "1G"], ["rm", "--all", "--collection", "nobody"],
                          ["pin", "nobody", "--collection", "mistakes"], ["unpin", "d000", "--collection", "nobody"]):
            with self.subTest(arguments=arguments):
                self.daemon.refuse(self, SOME_FAILED, *arguments)

    def test_ttl(self):
        self.ingest("ttl", self.some(3), "--ttl", "2s")
        self.daemon.json("pin", "d001", "--collection", "ttl")
        shown = self.daemon.json("show", "d001", "--collection", "ttl")["document"]
        self.assertEqual((shown["pinned"], shown["expires_unix_s"]), (True, 0))
        deadline = time.monotonic() + 60
        while self.ids("ttl") != ["d001"] and time.monotonic() < deadline:
            time.sleep(0.1)
        self.assertEqual(self.ids("ttl"), ["d001"])
        self.daemon.refuse(self, SOME_FAILED, "fetch", "--docs", "d000", "--collection", "ttl", *QUERY)
        self.daemon.json("gc")
        status = self.daemon.json("status")
        self.assertGreaterEqual(status["expirations"], 2)
        self.assertEqual(self.collection("ttl")["documents"], 1)
        self.assertEqual(self.daemon.json("unpin", "d001", "--collection", "ttl")["unpinned"], 1)
        line = self.daemon.refuse(self, SOME_FAILED, "show", "d001", "--collection", "ttl")
        self.assertRegex(line, "has expired|there is no document")
        again = self.ingest("ttl", self.some(1))
        self.assertEqual(again["failed"], 0)

    def test_a_whole_collection(self):
        before = self.daemon.json("status")
        self.ingest("whole", self.some(300, 3), "--preamble-tokens", "1,2,3")
        self.daemon.json("pin", "d007", "--collection", "whole")
        said = self.daemon.json("rm", "--all", "--collection", "whole")
        self.assertEqual(said["removed"], 300)
        self.assertEqual(self.daemon.json("gc")["documents_unreferenced"], 0)
        after = self.daemon.json("status")
        self.assertEqual((after["documents"], after["names"], after["collections"], after["bytes_stored"]),
                         (before["documents"], before["names"], before["collections"], before["bytes_stored"]))
        self.assertEqual(self.ingest("whole", self.some(2, 3), "--block-size", 8)["ingested"], 2)   # anew

    def test_a_daemon_at_its_limit(self):
        limit = 8 << 20
        with Daemon(self.model, arguments=["--store-max-bytes", str(limit)]) as daemon:
            self.ingest("c", {"kept": cases.tokens(self.rng, 50)}, daemon=daemon)
            daemon.json("pin", "kept", "--collection", "c")
            stop = []

            def fetch():
                count = 0
                while not stop:
                    done = daemon.ctl("fetch", "--docs", "kept", "--collection", "c", *QUERY, "--json")
                    self.assertEqual(done.returncode, DONE, done.stderr)
                    count += 1
                return count

            def allocated():
                """What the disk has given: of two files, while the store is compacted."""
                return daemon.json("status")["counters"]["store_allocated_bytes"]

            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                fetches = pool.submit(fetch)
                try:
                    for start in range(0, 240, 20):
                        said = self.ingest("c", self.some(20, 120, start), daemon=daemon)
                        self.assertEqual((said["ingested"], said["failed"]), (20, 0))
                        self.assertLessEqual(allocated(), limit)
                finally:
                    stop.append(True)
                self.assertGreater(fetches.result(), 3)
            status = daemon.json("status")
            self.assertGreater(status["evictions"], 20)
            self.assertLessEqual(status["bytes_used"], limit)
            self.assertIn("kept", self.ids("c", daemon))
            before = self.ids("c", daemon)
            self.assertEqual(daemon.json("verify")["damaged"], 0)
            daemon.stop()
            daemon.start()
            self.assertEqual(self.ids("c", daemon), before)
            shown = daemon.json("show", "kept", "--collection", "c")["document"]
            self.assertGreater(shown["uses"], 3)    # usage survived
            self.assertTrue(shown["pinned"])

    def test_a_daemon_that_refuses(self):
        with Daemon(self.model, arguments=["--store-max-bytes", "3M", "--when-full", "refuse"]) as daemon:
            done = daemon.ctl("ingest", "-", text=documents_jsonl(self.some(120, 120)))
            self.assertEqual(done.returncode, SOME_FAILED)
            self.assertIn("limit", done.stderr)
            self.assertEqual(daemon.json("status")["evictions"], 0)
            self.assertTrue(self.ids("default", daemon))


if __name__ == "__main__":
    unittest.main(verbosity=2)
