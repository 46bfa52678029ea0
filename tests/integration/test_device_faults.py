"""A GPU that is lost at any moment, or has too little memory, through a whole daemon: one request fails at a time, with a
status that says what to do, and everything that needs no device goes on. The CPU plays the GPU (cpu:discrete:lost=N)."""
import json
import shutil
import tempfile
import pathlib
import unittest

import cases
import models
from harness import DONE, SOME_FAILED, Daemon, HarnessError, comma, documents_jsonl

DOCUMENTS, TOKENS = 6, 150
IDS = ["d%d" % i for i in range(DOCUMENTS)]
MB = 1 << 20


def ingest_text():
    rng = cases.seeded(5)
    return documents_jsonl({name: cases.tokens(rng, TOKENS) for name in IDS})


def ingest_arguments():
    return ("ingest", "-", "--block-size", "8", "--init-tokens", "8", "--local-tokens", "8", "--preamble-tokens", comma([1, 5]))


def fetch_arguments(number, out):
    rng = cases.seeded(number)
    names = rng.sample(IDS, 3)
    return ("fetch", "--docs", ",".join(names), "--query-tokens", comma(cases.tokens(rng, 9)), "--ratio", "0.4",
            "--placement", ("host", "device")[number % 2], "--out", out)


class DeviceFaults(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="samkv-faults-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        cls.model = models.make_model(cls.folder / "model", "llama")
        # What is right: the answers of a device that is never lost, from the same stored documents.
        with cls.daemon_on("cpu:discrete") as daemon:
            daemon.json(*ingest_arguments(), text=ingest_text())
            cls.expected = [cls.fetch(daemon, number) for number in range(8)]
            daemon.stop()
            shutil.copyfile(daemon.store / "data.mdb", cls.folder / "data.mdb")

    @classmethod
    def daemon_on(cls, device, stored=False):
        daemon = Daemon({"m": cls.model}, device=device)
        if stored:
            daemon.store.mkdir(mode=0o700)
            shutil.copyfile(cls.folder / "data.mdb", daemon.store / "data.mdb")
        return daemon

    def started(self, device, stored=False):
        """A daemon that runs, or what it said when it did not start."""
        daemon = self.daemon_on(device, stored)
        try:
            daemon.start()
        except HarnessError as e:
            daemon.remove()
            return str(e)
        self.addCleanup(daemon.remove)
        return daemon

    @classmethod
    def fetch(cls, daemon, number):
        """The file's bytes, or the error's line."""
        out = daemon.folder / "out.safetensors"
        done = daemon.ctl(*fetch_arguments(number, out))
        return out.read_bytes() if done.returncode == DONE else done.stderr.strip()

    def assert_serves(self, daemon):
        """What needs no device is answered."""
        self.assertEqual(daemon.ctl("ping").returncode, DONE)
        self.assertEqual(len(json.loads(daemon.ctl("ls", "--json").stdout)["documents"]), DOCUMENTS)
        self.assertEqual(daemon.ctl("status").returncode, DONE)
        self.assertEqual(daemon.ctl("verify").returncode, DONE)

    def test_lost_at_any_moment_of_a_fetch(self):
        lost_in = 0
        for copies in list(range(40, 140, 9)) + [200, 300]:
            daemon = self.started("cpu:discrete:lost=%d" % copies, stored=True)
            if isinstance(daemon, str):  # lost while the model was loaded
                self.assertRegex(daemon, "lost|restart")
                continue
            answers = [self.fetch(daemon, number) for number in range(8)]
            first_bad = next((i for i, a in enumerate(answers) if isinstance(a, str)), 8)
            for number, answer in enumerate(answers):
                if number < first_bad:
                    self.assertEqual(answer, self.expected[number], (copies, number))
                else:
                    self.assertRegex(answer, "^samkvctl: .*(lost|restart)", (copies, number))
            lost_in += first_bad < 8
            self.assert_serves(daemon)
            daemon.stop()  # cleanly, with nothing left on the device: the double looks
        self.assertGreater(lost_in, 5)

    def test_lost_in_an_ingest(self):
        lost_in = 0
        for copies in (60, 90, 130, 170):
            daemon = self.started("cpu:discrete:lost=%d" % copies)
            if isinstance(daemon, str):
                self.assertRegex(daemon, "lost|restart")
                continue
            done = daemon.ctl(*ingest_arguments(), text=ingest_text())
            self.assertIn(done.returncode, (DONE, SOME_FAILED), done.stderr)
            lost_in += done.returncode == SOME_FAILED
            self.assertEqual(daemon.ctl("ping").returncode, DONE)
            daemon.stop()
            # What was acknowledged is whole; the rest goes in with a device that works.
            daemon.device = "cpu:discrete"
            daemon.start()
            self.assertEqual(json.loads(daemon.ctl("verify", "--json").stdout)["damaged"], 0)
            daemon.json(*ingest_arguments(), text=ingest_text())
            self.assert_serves(daemon)
            for number in range(4):
                self.assertIsInstance(self.fetch(daemon, number), bytes)
            daemon.stop()
        self.assertGreater(lost_in, 0)

    def test_too_little_memory(self):
        """Enough for the model; then for less and less of a fetch. Nothing is lost by asking again with less."""
        daemon = self.started("cpu:discrete", stored=True)
        weights = json.loads(daemon.ctl("status", "--json").stdout)["models"][0]["weight_bytes"]
        daemon.stop()
        outcomes = set()
        for extra in (64 * 1024, 256 * 1024, MB, 4 * MB, 32 * MB):
            daemon = self.started("cpu:discrete:memory=%d" % (weights + extra), stored=True)
            if isinstance(daemon, str):
                self.assertRegex(daemon, "(?i)memory")
                outcomes.add("no start")
                continue
            for number in range(4):
                answer = self.fetch(daemon, number)
                if isinstance(answer, str):
                    self.assertRegex(answer, "(?i)memory|fewer|busy", extra)
                    outcomes.add("refused")
                else:
                    self.assertEqual(answer, self.expected[number])
                    outcomes.add("answered")
            self.assert_serves(daemon)
            daemon.stop()
        self.assertIn("answered", outcomes)
        self.assertGreater(len(outcomes), 1, outcomes)


if __name__ == "__main__":
    unittest.main()
