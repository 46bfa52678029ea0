"""A daemon with a metrics endpoint, and what tests ask of it."""
import http.client
import socket
import subprocess
import tempfile
import time
import unittest

import cases
import exposition
import models
from harness import BIN, Daemon, comma, documents_jsonl, enter

DEADLINE_S = 60


class UnixHttp(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=DEADLINE_S)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def ask(path, url, method="GET", body=None):
    """(status, headers, text)"""
    connection = UnixHttp(path)
    try:
        connection.request(method, url, body=body)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


def eventually(test, what, holds):
    """Waits for what comes in its own time; never judges how fast."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        if time.monotonic() > deadline:
            test.fail("it did not come about that " + what)
        time.sleep(0.05)


class Observed(Daemon):
    """A daemon with a metrics socket in its folder."""

    def __init__(self, paths, *arguments, **options):
        super().__init__(paths, **options)
        self.metrics_path = self.folder / "m"
        self.arguments = ["--metrics", str(self.metrics_path), "--log-level", "debug", *arguments]

    def scrape(self):
        status, headers, text = ask(self.metrics_path, "/metrics")
        assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4"), (status, headers)
        return exposition.parse(text)


class Case(unittest.TestCase):
    device = "cpu"

    @classmethod
    def setUpClass(cls):
        version = subprocess.run([str(BIN / "samkvd"), "--version"], capture_output=True, text=True, check=True).stdout
        if "without --metrics" in version:
            raise unittest.SkipTest("this samkvd was built without libmicrohttpd")
        folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        cls.addClassCleanup(folder.cleanup)
        cls.paths = {"llama": models.make_model(folder.name + "/llama", "llama")}
        cls.daemon = enter(cls, Observed(cls.paths, device=cls.device))
        cls.rng = cases.seeded(5)
        documents = {"d%d" % i: cases.tokens(cls.rng, 90 + i) for i in range(3)}
        cls.daemon.json("ingest", "-", "--block-size", 8, "--init-tokens", 8, "--local-tokens", 8,
                        text=documents_jsonl(documents))

    def fetch(self, *ids, daemon=None):
        return (daemon or self.daemon).json("fetch", "--docs", ",".join(ids or ("d0", "d1")), "--query-tokens",
                                            comma(cases.tokens(self.rng, 5)), "--ratio", 0.3)
