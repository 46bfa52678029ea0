"""kill -9 of the daemon at random moments of an ingest.

What was acknowledged is there and verifies, nothing is half there; the client that was cut off says so in one line and
ends with "no daemon". 6 rounds; the long form, SAMKV_TEST_LONG=1, makes 50.
"""
import json
import os
import random
import subprocess
import tempfile
import time
import unittest

import cases
import models
import wire
from harness import DONE, NO_DAEMON, Daemon, HarnessError, documents_jsonl

ROUNDS = 50 if os.environ.get("SAMKV_TEST_LONG") == "1" else 6
DOCUMENTS = 40
LENGTHS = (1, 9, 64, 100, 300, 700)


class Kill(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        self.addCleanup(folder.cleanup)
        self.daemon = Daemon({"llama": models.make_model(folder.name + "/llama", "llama")})
        self.addCleanup(self.daemon.remove)

    def documents(self, number):
        rng = cases.seeded(number)
        return {"r%d-%d" % (number, i): cases.tokens(rng, rng.choice(LENGTHS)) for i in range(DOCUMENTS)}

    def ingest_until_killed(self, documents, seconds):
        """Ingests one after the other on the wire, until a kill after `seconds`. Returns the ids acknowledged."""
        acknowledged, deadline = [], time.monotonic() + seconds
        killer = subprocess.Popen(["sh", "-c", "sleep %f; kill -9 %d" % (seconds, self.daemon.process.pid)])
        try:
            with wire.Connection(self.daemon.socket) as c:
                for name, ids in documents.items():
                    flags, reply = c.ask(wire.INGEST, wire.message(f2=name, f5=wire.tokens(ids)))
                    self.assertFalse(flags & wire.ERROR, reply)
                    acknowledged.append(name)
        except (wire.Closed, ConnectionError):
            self.assertGreaterEqual(time.monotonic(), deadline - 0.5, "the connection ended by itself")
        killer.wait()
        self.daemon.kill()
        return acknowledged

    def listed(self):
        """id → tokens of what the daemon says it has."""
        return {d["id"]: d["tokens"] for d in self.daemon.json("ls")["documents"]}

    def check(self, everything, acknowledged):
        listed = self.listed()
        self.assertLessEqual(set(acknowledged), set(listed), "acknowledged documents are missing")
        self.assertLessEqual(set(listed), set(everything), "documents that nobody sent")
        for name, count in listed.items():
            self.assertEqual(count, len(everything[name]), name)
        verified = self.daemon.json("verify")
        contents = {tuple(everything[name]) for name in listed}    # the same tokens twice are one document
        self.assertEqual((verified["damaged"], verified["documents"]), (0, len(contents)))
        whole = max(listed, key=listed.get, default=None)
        if whole:
            fetched = self.daemon.json("fetch", "--docs", whole, "--query-tokens", "5,6", "--ratio", 1,
                                       "--selection", "fixed")
            self.assertEqual(fetched["kept_tokens"], listed[whole])

    def duration_s(self):
        """How long a round's ingest takes here when nobody disturbs it."""
        self.daemon.start()
        began = time.monotonic()
        self.daemon.json("ingest", "-", "--collection", "timing", text=documents_jsonl(self.documents(1000)))
        seconds = time.monotonic() - began
        self.daemon.json("rm", "--collection", "timing", *self.documents(1000))
        self.daemon.stop()
        return seconds

    def test_kill_at_random_moments(self):
        rng, everything, acknowledged = random.Random(7), {}, []
        seconds = self.duration_s()
        for number in range(ROUNDS):
            with self.subTest(round=number):
                self.daemon.start()
                self.check(everything, acknowledged)
                documents = self.documents(number)
                everything.update(documents)
                acknowledged += self.ingest_until_killed(documents, rng.uniform(0, 1.2 * seconds))
        self.daemon.start()
        self.check(everything, acknowledged)
        # The rest goes in, and what was there is skipped.
        said = self.daemon.json("ingest", "-", text=documents_jsonl(everything))
        self.assertEqual(said["failed"], 0)
        self.assertGreaterEqual(said["skipped"], len(acknowledged))
        self.check(everything, list(everything))
        self.daemon.stop()

    def test_the_client_says_clearly_that_the_daemon_died(self):
        self.daemon.start()
        everything = {}
        for number in range(20):
            everything.update(self.documents(number))
        source = self.daemon.folder / "all.jsonl"
        source.write_text(documents_jsonl(everything))
        client = subprocess.Popen(self.daemon.command("ingest", source, "--json"), stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not self.listed() and time.monotonic() < deadline:
            time.sleep(0.01)
        self.daemon.kill()
        out, error = client.communicate(timeout=60)
        lines = error.decode().strip().splitlines()
        self.assertEqual(client.returncode, NO_DAEMON, error)
        self.assertTrue(lines)
        self.assertEqual(len(lines), 1, error)
        self.daemon.start()
        acknowledged = json.loads(out)["ids"] if out.strip() else []
        self.check(everything, acknowledged)
        self.daemon.stop()

    def test_a_daemon_that_is_not_there(self):
        for command in (["ping"], ["ls"], ["status"], ["fetch", "--docs", "a", "--query-tokens", "1"]):
            done = self.daemon.ctl(*command)
            self.assertEqual(done.returncode, NO_DAEMON, done)
            self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)

    def test_two_daemons_do_not_share_a_store(self):
        self.daemon.start()
        second = Daemon(self.daemon.models)
        self.addCleanup(second.remove)
        second.store = self.daemon.store
        with self.assertRaises(HarnessError) as raised:
            second.start()
        self.assertIn("ended with", str(raised.exception))
        self.assertEqual(self.daemon.ctl("ping").returncode, DONE)
        self.daemon.stop()


if __name__ == "__main__":
    unittest.main(verbosity=2)
