"""Clients that send garbage, lie about sizes, stop reading or vanish; and that nothing is left behind by many requests.

Each is answered by one clear error or let go, while the daemon serves the next client. The long form, with 10,000
requests: SAMKV_TEST_LONG=1.
"""
import os
import random
import socket
import tempfile
import threading
import time
import unittest

import cases
import models
import wire
from harness import DONE, Daemon, documents_jsonl, enter, under_sanitizer

LONG = os.environ.get("SAMKV_TEST_LONG") == "1"
REQUESTS = 10000 if LONG else 500
GROWTH_LIMIT_BYTES = 8 << 20    # of memory after many requests; 1 KB a request would be 10 MB in the long form
INVALID, NOT_FOUND, UNSUPPORTED, TOO_LARGE, PROTOCOL = 2, 1, 9, 11, 12


class Hostile(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        cls.addClassCleanup(folder.cleanup)
        cls.daemon = enter(cls, Daemon({"llama": models.make_model(folder.name + "/llama", "llama")}))
        rng = cases.seeded(5)
        cls.daemon.json("ingest", "-", "--block-size", 8, "--init-tokens", 8, "--local-tokens", 8, "--preamble-tokens",
                        "1,5,9", text=documents_jsonl({"d%d" % i: cases.tokens(rng, 120) for i in range(4)}))

    def connect(self, **options):
        return wire.Connection(self.daemon.socket, **options)

    def fetch(self, **more):
        """An encoded FetchRequest over two documents, with fields of one's own."""
        said = {"f2": ["d0", "d1"], "f4": wire.tokens([7, 8, 9]), "f5": 0.5}
        said.update(more)
        return wire.message(**said)

    def assert_serving(self):
        with self.connect() as other:
            flags, _ = other.ask(wire.FETCH, self.fetch())
            self.assertFalse(flags & wire.ERROR)

    def tearDown(self):
        self.assertIsNone(self.daemon.process.poll(), self.daemon.log())
        self.assert_serving()

    def assert_closes(self, connection):
        """The daemon may answer with an Error first; then it ends the connection."""
        with self.assertRaises(wire.Closed):
            while True:
                _, flags, _ = connection.receive()
                self.assertTrue(flags & wire.ERROR)

    # -------------------------------------------------------------- bytes that are no protocol

    def test_garbage_instead_of_hello(self):
        rng = random.Random(1)
        for size in (1, 15, 16, 17, 1000, 100000):
            with self.connect(hello=False) as c:
                try:
                    c.raw(b"\xff" + rng.randbytes(size - 1))
                except wire.Closed:
                    continue
                c.socket.shutdown(socket.SHUT_WR)
                self.assert_closes(c)

    def test_garbage_after_hello(self):
        rng = random.Random(2)
        for _ in range(20):
            with self.connect() as c:
                try:
                    c.raw(b"\xff" * 8 + rng.randbytes(5000))
                except wire.Closed:
                    continue
                c.socket.shutdown(socket.SHUT_WR)
                self.assert_closes(c)

    def test_wrong_magic_and_wrong_version(self):
        for payload in (wire.message(f1=b"http", f2=1, f3=1), wire.message(f1=b"samkv", f2=7, f3=9), b"", b"\x0a\xff"):
            with self.connect(hello=False) as c:
                c.send(wire.HELLO, payload)
                _, flags, reply = c.receive()
                self.assertTrue(flags & wire.ERROR)
                self.assertIn(wire.fields(reply)[1][0], (PROTOCOL, UNSUPPORTED))
                self.assert_closes(c)

    def test_request_before_hello(self):
        with self.connect(hello=False) as c:
            c.send(wire.FETCH, self.fetch())
            self.assert_closes(c)

    def test_unknown_request_type(self):
        with self.connect() as c:
            status, text = c.error_of(999)
            self.assertIn(status, (UNSUPPORTED, PROTOCOL, INVALID))
            self.assertTrue(text)

    def test_payloads_that_are_no_messages(self):
        rng = random.Random(3)
        for kind in (wire.INGEST, wire.FETCH, wire.ASK, wire.LIST, wire.SHOW, wire.REMOVE, wire.VERIFY,
                     wire.CONFIGURE, wire.PIN, wire.GC, wire.TRACE):
            with self.connect() as c:
                for payload in (b"\x0a\xff\xff\xff\xff\x7f", b"\x07", b"\x0a", rng.randbytes(100) + b"\x0a\x80"):
                    status, text = c.error_of(kind, payload)
                    self.assertIn(status, (PROTOCOL, INVALID))
                    self.assertTrue(text)
                    self.assertNotIn("\n", text)

    def test_limits_that_mean_nothing(self):
        for kind, body in ((wire.CONFIGURE, wire.message(f1="default")), (wire.CONFIGURE, wire.message(f1="a\nb", f3=1)),
                           (wire.CONFIGURE, wire.message(f1="x" * 256, f3=1)), (wire.PIN, wire.message(f1="default")),
                           (wire.PIN, wire.message(f2=["a"] * 5000)), (wire.PIN, wire.message(f2=["a\x01"])),
                           (wire.REMOVE, wire.message(f3=1)), (wire.REMOVE, wire.message(f1="default", f2=["d0"], f3=1))):
            with self.connect() as c:
                status, text = c.error_of(kind, body)
                self.assertEqual(status, INVALID)
                self.assertTrue(text)
        with self.connect() as c:    # the largest numbers there are, and back
            for value in (2 ** 64 - 1, 2 ** 63, 0):
                flags, _ = c.ask(wire.CONFIGURE, wire.message(f1="default", f2=value, f3=value))
                self.assertFalse(flags & wire.ERROR)
                self.assert_serving()
            body = wire.message(f1="hostile-terms", f2="a", f5=wire.tokens([1, 2]),
                                f6=wire.message(f9=2 ** 64 - 1, f10=2 ** 64 - 1))
            self.assertFalse(c.ask(wire.INGEST, body)[0] & wire.ERROR)
            self.assertFalse(c.ask(wire.REMOVE, wire.message(f1="hostile-terms", f3=1))[0] & wire.ERROR)
            self.assertEqual(c.error_of(wire.CONFIGURE, wire.message(f1="hostile-terms", f2=1))[0], NOT_FOUND)

    # -------------------------------------------------------------- sizes

    def test_a_query_of_100_mb(self):
        """Larger than a frame may be: one error that says so, whether or not the connection is kept."""
        with self.connect() as c:
            try:
                c.send(wire.FETCH, b"x" * (1 << 20), claimed=100 << 20)
                for _ in range(99):
                    c.raw(b"x" * (1 << 20))
            except wire.Closed:
                pass    # it need not read what it will not use
            _, flags, reply = c.receive()
            self.assertTrue(flags & wire.ERROR)
            self.assertEqual(wire.fields(reply)[1][0], TOO_LARGE)

    def test_a_query_of_40_mb(self):
        """It fits a frame, but no context."""
        with self.connect() as c:
            status, text = c.error_of(wire.FETCH, self.fetch(f4=wire.field(1, b"\x07" * (40 << 20))))
            self.assertIn(status, (INVALID, TOO_LARGE))
            self.assertTrue(text)

    def test_a_frame_of_4_gb(self):
        with self.connect() as c:
            c.send(wire.FETCH, claimed=0xFFFFFFFF)
            _, flags, reply = c.receive()
            self.assertTrue(flags & wire.ERROR)
            self.assertEqual(wire.fields(reply)[1][0], TOO_LARGE)

    def test_10000_documents_in_a_request(self):
        with self.connect() as c:
            status, text = c.error_of(wire.FETCH, self.fetch(f2=["d%d" % (i % 4) for i in range(10000)]))
            self.assertIn(status, (INVALID, TOO_LARGE))
            self.assertIn("10000", text)

    # -------------------------------------------------------------- values

    def test_values_out_of_range(self):
        nan, infinity = float("nan"), float("inf")
        wrong = [{"f2": ["nobody"]}, {"f2": []}, {"f2": [b"\xff\xfe"]}, {"f2": ["x" * 256]},
                 {"f4": wire.tokens([])}, {"f4": wire.tokens([models.VOCABULARY])}, {"f4": wire.tokens([-1])},
                 {"f4": wire.tokens([1 << 31])}, {"f5": 0.0}, {"f5": 2.0}, {"f5": nan}, {"f5": -0.5}, {"f5": infinity},
                 {"f6": 9}, {"f7": [99]}, {"f7": [0xFFFFFFFF]}, {"f7": list(range(700))}, {"f8": 0xFFFFFFFF},
                 {"f9": 0xFFFFFFFF}, {"f10": 7}, {"f10": 2, "f11": nan}, {"f10": 2, "f11": 1.5}, {"f13": 5}, {"f15": 2},
                 {"f1": "no-such-collection"}, {"f3": "text and tokens"}]
        with self.connect() as c:
            for change in wrong:
                with self.subTest(change={k: str(v)[:40] for k, v in change.items()}):
                    status, text = c.error_of(wire.FETCH, self.fetch(**change))
                    self.assertIn(status, (INVALID, NOT_FOUND, TOO_LARGE, UNSUPPORTED, PROTOCOL))
                    self.assertTrue(text)
                    self.assertNotIn("\n", text)
            flags, _ = c.ask(wire.FETCH, self.fetch())
            self.assertFalse(flags & wire.ERROR, "the same connection goes on")

    def test_bad_documents(self):
        wrong = [wire.message(f2="x"), wire.message(f4=b"text"), wire.message(f2="", f5=wire.tokens([5])),
                 wire.message(f2="a\nb", f5=wire.tokens([5])), wire.message(f2="x", f5=wire.tokens([])),
                 wire.message(f2="x", f5=wire.tokens([models.VOCABULARY])), wire.message(f2="x", f5=wire.tokens([-5])),
                 wire.message(f2="x", f5=wire.tokens([5] * 5000)),    # longer than the model's context
                 wire.message(f2="x", f4=b"this model has no tokenizer"),
                 wire.message(f1="n", f2="x", f5=wire.tokens([5]), f6=wire.message(f5=0)),
                 wire.message(f1="n", f2="x", f5=wire.tokens([5]), f6=wire.message(f5=0xFFFFFFFF)),
                 wire.message(f1="n", f2="x", f5=wire.tokens([5]), f6=wire.message(f1="no-such-model")),
                 wire.message(f1="n", f2="x", f5=wire.tokens([5]), f6=wire.message(f3=wire.tokens([-1]), f4=1)),
                 wire.message(f2="x", f5=wire.tokens([5]), f6=wire.message(f5=4))]    # the collection has 8
        with self.connect() as c:
            for payload in wrong:
                with self.subTest(payload=payload[:60]):
                    status, text = c.error_of(wire.INGEST, payload)
                    self.assertTrue(text)
                    self.assertNotIn("\n", text)
        self.assertEqual(self.daemon.ctl("show", "x").returncode, 1, "none of them may have gone in")

    # -------------------------------------------------------------- clients that misbehave

    def test_a_client_that_stops_reading(self):
        """It sends requests until the daemon takes no more; the daemon keeps little for it and serves others."""
        before = self.daemon.resident_bytes()
        with self.connect(timeout=5) as c:
            frame = wire.HEADER.pack(0, wire.STATUS, 0, 1)
            sent = 0
            try:
                while sent < 64 << 20:
                    c.socket.sendall(frame * 4096)
                    sent += len(frame) * 4096
            except TimeoutError:
                pass
            self.assertLess(sent, 64 << 20, "requests without end were taken although no reply was read")
            self.assert_serving()
            if not under_sanitizer():
                self.assertLess(self.daemon.resident_bytes() - before, 64 << 20)

    def test_clients_that_vanish(self):
        """In the middle of a frame, with requests running, with a result unread."""
        for i in range(30):
            with self.connect() as c:
                c.send(wire.FETCH, self.fetch(), claimed=10000)
            with self.connect() as c:
                c.send(wire.FETCH, self.fetch())
            with self.connect() as c:
                for _ in range(40):
                    c.send(wire.FETCH, self.fetch())
                if i % 3 == 0:
                    c.receive()
            with self.connect() as c:
                c.raw(wire.HEADER.pack(100, wire.INGEST, 0, 5)[:1 + i % 15])
            with self.connect(hello=False):
                pass
        self.assert_fds_return(self.settled_fds)

    def test_many_idle_connections(self):
        connections = [self.connect(hello=i % 2 == 0) for i in range(200)]
        self.assert_serving()
        for c in connections:
            c.socket.close()
        self.assert_fds_return(self.settled_fds)

    def test_requests_in_flight_together(self):
        """Pings overtake a slow fetch; every request gets exactly its own answer."""
        with self.connect() as c:
            waiting = set()
            for i in range(60):
                c.send(wire.FETCH if i % 3 == 0 else wire.PING if i % 3 == 1 else wire.STATUS,
                       self.fetch() if i % 3 == 0 else b"")
                waiting.add(c.number)
            while waiting:
                number, flags, _ = c.receive()
                self.assertFalse(flags & wire.ERROR)
                waiting.remove(number)

    # -------------------------------------------------------------- nothing is left behind

    @property
    def settled_fds(self):
        """Descriptors of the daemon with no client."""
        return type(self).idle_fds

    def assert_fds_return(self, level):
        """The daemon notices a closed socket a moment later."""
        deadline = time.monotonic() + 30
        while self.daemon.open_fds() > level and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertLessEqual(self.daemon.open_fds(), level)

    def setUp(self):
        if not hasattr(type(self), "idle_fds"):
            self.assert_serving()
            time.sleep(0.5)
            type(self).idle_fds = self.daemon.open_fds()

    def make_requests(self, count, number):
        """Fetches with small variations, documents that come and go, mistakes; on new and old connections."""
        rng = random.Random(number)
        connection = self.connect()
        for i in range(count):
            kind = rng.randrange(8)
            if kind == 0:
                connection.error_of(wire.FETCH, self.fetch(f5=2.0))
            elif kind == 1:
                name = "n%d-%d" % (number, i % 3)
                body = wire.message(f2=name, f5=wire.tokens(cases.tokens(rng, 30)))
                self.assertFalse(connection.ask(wire.INGEST, body)[0] & wire.ERROR)
                self.assertFalse(connection.ask(wire.REMOVE, wire.message(f2=[name]))[0] & wire.ERROR)
            elif kind == 2:
                connection.ask(wire.STATUS)
            else:
                change = {"f4": wire.tokens(cases.tokens(rng, 5)), "f14": kind % 2, "f6": kind % 2, "f13": i % 2}
                self.assertFalse(connection.ask(wire.FETCH, self.fetch(**change))[0] & wire.ERROR)
            if rng.randrange(50) == 0:
                connection.__exit__()
                connection = self.connect()
        connection.__exit__()

    def run_in_threads(self, count):
        failures = []

        def work(number):
            try:
                self.make_requests(count // 4, number)
            except BaseException as error:    # pylint: disable=broad-except
                failures.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(failures, [])

    def test_many_requests_leave_nothing(self):
        self.run_in_threads(max(200, REQUESTS // 5))    # pools and caches fill
        before = self.daemon.resident_bytes()
        self.run_in_threads(REQUESTS)
        self.assert_fds_return(self.settled_fds)
        if not under_sanitizer():    # a sanitizer keeps freed memory; it reports leaks itself when the daemon ends
            self.assertLess(self.daemon.resident_bytes() - before, GROWTH_LIMIT_BYTES)
        self.assertEqual(self.daemon.ctl("verify").returncode, DONE)


if __name__ == "__main__":
    unittest.main(verbosity=2)
