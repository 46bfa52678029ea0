"""Device memory that is announced while it is computed, frame by frame: what the daemon sends, and what it makes of
clients that end their lease meanwhile. The CPU plays the GPU.
"""
import mmap
import os
import socket
import struct
import tempfile
import time
import unittest

import numpy as np

import cases
import models
import wire
from harness import Daemon, comma, documents_jsonl, enter

SETTLE_DEADLINE_S = 60
PAGE_BYTES, OVERFLOW, LONG_BYTES = 4096, 4, 20000
PAGE_HEADER = struct.Struct("<Q2xHI")    # of LMDB's pages: number, flags, pages of an overflow record
BUSY = 7
# Fields of FetchReply, and `bytes` of its DeviceMemory.
LAYERS, ROWS, KV_HEADS, HEAD_DIM, K_OFFSET, V_OFFSET, LAYER_STRIDE, DEVICE = 3, 4, 5, 6, 7, 8, 9, 36
LAYOUT = range(2, 10)
DEVICE_BYTES = 2


class Connection(wire.Connection):
    """Keeps the descriptors that come with a frame."""

    def __init__(self, path):
        self.passed = []
        super().__init__(path)

    def _exactly(self, count):
        out = bytearray()
        while len(out) < count:
            piece, passed = socket.recv_fds(self.socket, count - len(out), 4)[:2]
            self.passed += passed
            if not piece:
                raise wire.Closed
            out += piece
        return bytes(out)

    def receive_with(self):
        """(flags, fields, descriptors) of the next frame."""
        self.passed = []
        number, flags, reply = self.receive()
        assert number == self.number
        return flags, wire.fields(reply), self.passed


def kv_of(fd, said):
    """The bytes of K and V, layer by layer."""
    shape = [said[f][0] for f in (ROWS, KV_HEADS, HEAD_DIM)]
    layer_bytes = 4 * shape[0] * shape[1] * shape[2]
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as memory:
        return [bytes(memory[at:at + layer_bytes]) for offset in (K_OFFSET, V_OFFSET) for l in range(said[LAYERS][0])
                for at in [said.get(offset, [0])[0] + l * said[LAYER_STRIDE][0]]]


class Announce(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        cls.addClassCleanup(folder.cleanup)
        cls.daemon = enter(cls, Daemon({"llama": models.make_model(folder.name + "/llama", "llama")},
                                       device="cpu:discrete"))
        rng = cases.seeded(12)
        cls.daemon.json("ingest", "-", "--block-size", 64, "--init-tokens", 8, "--local-tokens", 8,
                        "--preamble-tokens", comma([1, 5, 9]),
                        text=documents_jsonl({"d%d" % i: cases.tokens(rng, 400) for i in range(3)}))

    def fetch(self, **more):
        said = {"f2": ["d0", "d1", "d2"], "f4": wire.tokens([7, 8, 9]), "f5": 0.5}
        said.update(more)
        return wire.message(**said)

    def connect(self):
        return Connection(self.daemon.socket)

    def receive_announcement(self, c):
        """(fields, memory, lease)"""
        flags, said, passed = c.receive_with()
        self.assertEqual(flags, wire.REPLY | wire.MORE | wire.FD, said)
        self.assertEqual(len(passed), 2)
        self.addCleanup(os.close, passed[0])
        self.assertEqual(os.fstat(passed[0]).st_size, wire.fields(said[DEVICE][0])[DEVICE_BYTES][0])
        return said, passed[0], socket.socket(fileno=passed[1])

    def receive_reply(self, c, announced):
        """Fields of the last frame, which must speak of what was announced."""
        flags, said, passed = c.receive_with()
        for fd in passed:
            os.close(fd)
        self.assertEqual(flags, wire.REPLY | wire.FD, said)
        self.assertEqual(len(passed), 1)
        for number in (DEVICE, *LAYOUT):
            self.assertEqual(said.get(number), announced.get(number), number)
        return said

    def host_kv(self):
        """Of a fetch into host memory, which is not announced."""
        with self.connect() as c:
            c.send(wire.FETCH, self.fetch())
            flags, said, passed = c.receive_with()
            self.assertEqual(flags, wire.REPLY | wire.FD)
            self.assertNotIn(DEVICE, said)
            fd, = passed
            self.addCleanup(os.close, fd)
            return kv_of(fd, said)

    def counters(self, daemon=None):
        return (daemon or self.daemon).json("status")["counters"]

    def assert_none_held(self, daemon=None):
        """Once the daemon has noticed. Bytes that it keeps for the next reply."""
        deadline = time.monotonic() + SETTLE_DEADLINE_S
        while self.counters(daemon)["device_replies_held"] and time.monotonic() < deadline:
            time.sleep(0.02)
        counters = self.counters(daemon)
        self.assertEqual((counters["device_replies_held"], counters["device_replies_bytes"]), (0, 0))
        return counters["device_replies_kept_bytes"]

    def test_memory_comes_first_and_its_contents_with_the_reply(self):
        expected = self.host_kv()
        with self.connect() as c:
            c.send(wire.FETCH, self.fetch(f15=1))
            announced, memory, lease = self.receive_announcement(c)
            said = self.receive_reply(c, announced)
        with lease:
            self.assertTrue(kv_of(memory, said) == expected, "not the bytes of host memory")
            self.assertEqual(self.counters()["device_replies_held"], 1)
            lease.sendall(b"R")
        self.assertGreater(self.assert_none_held(), 0)

    def test_a_lease_that_ends_before_the_reply(self):
        """The reply comes all the same. What was returned is used again, what was not is given up."""
        for word in (b"R", b"", b"x"):
            with self.subTest(word=word), self.connect() as c:
                kept = self.assert_none_held()
                c.send(wire.FETCH, self.fetch(f15=1))
                announced, memory, lease = self.receive_announcement(c)
                size = os.fstat(memory).st_size
                lease.sendall(word)
                lease.close()
                self.receive_reply(c, announced)
                after = self.assert_none_held()
                self.assertEqual(after, max(kept, size) if word == b"R" else max(kept - size, 0))

    def test_a_client_that_dies_after_the_announcement(self):
        for _ in range(10):
            with self.connect() as c:
                c.send(wire.FETCH, self.fetch(f15=1))
                _, _, lease = self.receive_announcement(c)
                lease.close()
        self.assert_none_held()
        self.assertEqual(self.daemon.ctl("ping").returncode, 0)

    # -------------------------------------------------------------- a fetch that is tried again

    def started(self, damaged_record, *arguments):
        """A daemon over a copy of the store, of which one record is damaged."""
        daemon = Daemon(self.daemon.models, device=self.daemon.device, arguments=arguments)
        daemon.store.mkdir(mode=0o700)
        store = bytearray((self.daemon.store / "data.mdb").read_bytes())
        store[damaged_record] ^= 0xFF
        (daemon.store / "data.mdb").write_bytes(store)
        daemon.__enter__()
        self.addCleanup(daemon.__exit__, None, None, None)
        return daemon

    def long_records(self):
        """Where the middles of the store's long records are: blocks. Shorter ones share their pages with others."""
        store, page = (self.daemon.store / "data.mdb").read_bytes(), 0
        while (page + 1) * PAGE_BYTES <= len(store):
            number, flags, pages = PAGE_HEADER.unpack_from(store, page * PAGE_BYTES)
            is_record = number == page and flags == OVERFLOW and pages
            if is_record and pages * PAGE_BYTES > LONG_BYTES:
                yield page * PAGE_BYTES + pages * PAGE_BYTES // 2
            page += pages if is_record else 1

    def fetch_late(self):
        """A fetch that reads blocks while it computes, so that it meets their damage after it has announced."""
        return self.fetch(f5=1.0, f7=wire.varint(0), f15=1)

    def announcements(self, c):
        """All announcements, and the frame behind them."""
        out = []
        while True:
            flags, said, passed = c.receive_with()
            if not flags & wire.MORE:
                for fd in passed:
                    os.close(fd)
                return out, flags, said
            self.assertEqual(len(passed), 2)
            self.addCleanup(os.close, passed[0])
            out.append((said, passed[0], socket.socket(fileno=passed[1])))

    def met_late(self, *arguments):
        """(daemon, announcements, flags and fields of the last frame) of a fetch that met damage late."""
        for record in self.long_records():
            daemon = self.started(record, *arguments)
            with Connection(daemon.socket) as c:
                c.send(wire.FETCH, self.fetch_late())
                announced, flags, said = self.announcements(c)
            if len(announced) > 1 or flags & wire.ERROR:
                return daemon, announced, flags, said
            for _, _, lease in announced:
                lease.close()
            daemon.stop()
        self.fail("no damage is met behind the announcement")

    def test_damage_met_after_the_announcement(self):
        with self.connect() as c:
            c.send(wire.FETCH, self.fetch_late())
            announced, memory, lease = self.receive_announcement(c)
            expected = kv_of(memory, self.receive_reply(c, announced))
            lease.close()
        daemon, announced, flags, said = self.met_late()
        self.assertEqual((len(announced), flags), (2, wire.REPLY | wire.FD), said)
        for number in (DEVICE, *LAYOUT):
            self.assertEqual(said.get(number), announced[1][0].get(number), number)
        self.assertNotEqual(*(os.fstat(memory).st_ino for _, memory, _ in announced))
        # What was repaired was prefilled alone, and may round otherwise than what shared its pass.
        for mine, theirs in zip(kv_of(announced[1][1], said), expected, strict=True):
            error = cases.relative_error(np.frombuffer(mine, np.float32), np.frombuffer(theirs, np.float32))
            self.assertLessEqual(error, cases.MAX_RELATIVE_ERROR)
        for _, _, lease in announced:
            lease.sendall(b"R")
            lease.close()
        self.assert_none_held(daemon)

    def test_an_error_after_the_announcement(self):
        """The first lease is held, and there is room for no other: what was announced ends with an Error."""
        with self.connect() as c:
            c.send(wire.FETCH, self.fetch_late())
            announced, memory, lease = self.receive_announcement(c)
            self.receive_reply(c, announced)
            lease.close()
        daemon, announced, flags, said = self.met_late("--device-reply-bytes", str(os.fstat(memory).st_size))
        self.assertEqual((len(announced), flags), (1, wire.REPLY | wire.ERROR), said)
        self.assertEqual(said[1][0], BUSY)
        self.assertEqual(self.counters(daemon)["device_replies_held"], 1)    # the job's share has ended, not the client's
        announced[0][2].sendall(b"R")
        announced[0][2].close()
        self.assertGreater(self.assert_none_held(daemon), 0)


if __name__ == "__main__":
    unittest.main()
