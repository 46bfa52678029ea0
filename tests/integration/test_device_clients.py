"""Caches in device memory and the processes that map them: killed at any moment, outliving the daemon, many at once.

usage: test_device_clients.py [--device cpu:discrete] [--dtype f32] [--model PATH] [--fetches N] [unittest's arguments]

The CPU plays the GPU, some 300 fetches; SAMKV_TEST_LONG=1 makes 10,000. On a machine with a GPU: --device cuda --dtype
bf16, with SAMKV_BIN naming the folder of samkvd, samkvctl and client_tool. SAMKV_TEST_DEVICE, SAMKV_TEST_DTYPE and
SAMKV_TEST_MODEL say the same as the arguments. Without --model a tiny one is made. One line of JSON tells what the
kills came to.
"""
import argparse
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import cases
import models
from harness import BIN, Daemon, comma, documents_jsonl, enter, under_sanitizer

LONG = os.environ.get("SAMKV_TEST_LONG") == "1"
OPTIONS = argparse.ArgumentParser(usage=__doc__.splitlines()[2][len("usage: "):])
OPTIONS.add_argument("--device", default=os.environ.get("SAMKV_TEST_DEVICE", "cpu:discrete"))
OPTIONS.add_argument("--dtype", default=os.environ.get("SAMKV_TEST_DTYPE", "f32"))
OPTIONS.add_argument("--model", default=os.environ.get("SAMKV_TEST_MODEL"))
OPTIONS.add_argument("--fetches", type=int, default=10000 if LONG else 300)
OPTIONS, UNITTEST_ARGUMENTS = OPTIONS.parse_known_args()
ON_GPU = not OPTIONS.device.startswith("cpu")

DOCUMENTS, DOCUMENT_TOKENS = 12, 200
CLIENTS = 12 if ON_GPU else 6           # alive at a time
FETCHES_A_CLIENT = 80 if ON_GPU else 8  # at most; on a GPU opening its context costs as much as many fetches
SETTLE_DEADLINE_S = 60
GROWTH_LIMIT_BYTES = 8 << 20            # of the daemon's own memory, after all kills
DEVICE_GROWTH_LIMIT_MB = 64
MB = 1 << 20


def device_used_mb():
    """GPU memory in use, of all GPUs together; None where there is no GPU."""
    if not ON_GPU:
        return None
    done = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
                          capture_output=True, text=True, check=True)
    return sum(int(line) for line in done.stdout.split())


def make_model(folder):
    """Small, with the head size that GPUs have kernels for."""
    if OPTIONS.model:
        return OPTIONS.model
    size = {"hidden": 512, "ffn": 1024, "dtype": "BF16"} if ON_GPU else {}
    return models.make_model(folder, "llama", **size)


class Request:
    """What a fetch asks for."""

    def __init__(self, ids, ratio, seed):
        self.ids, self.ratio, self.seed = ids, ratio, seed

    def __str__(self):
        return "%g %d %s" % (self.ratio, self.seed, ",".join(self.ids))


class Client:
    """A process of client_tool, told what to do one line at a time. A context manager: killed at its end, if alive."""

    def __init__(self, daemon):
        self.process = start_tool(daemon)

    def __enter__(self):
        self.tell("connect")
        self.expect("connected")
        return self

    def __exit__(self, *_):
        self.kill()

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self):
        line = self.process.stdout.readline().strip()
        if not line:
            raise AssertionError("client_tool ended with %s" % self.process.wait())
        return line.split(" ", 3)

    def expect(self, *words):
        heard = self.hear()
        if heard[:len(words)] != [str(w) for w in words]:
            raise AssertionError("expected %s, heard %s" % (words, heard))
        return heard[len(words):]

    def fetch(self, slot, request, placement="device"):
        """Bytes of K and V."""
        self.tell("fetch %d %s %s" % (slot, placement, request))
        return int(self.expect("cache", slot)[0])

    def fetch_failing(self, slot, request):
        """(status, text) of a fetch that must fail."""
        self.tell("fetch %d device %s" % (slot, request))
        return tuple(self.expect("failed", slot))

    def sum(self, slot):
        self.tell("sum %d" % slot)
        return self.expect("sum", slot)[0]

    def free(self, slot):
        self.tell("free %d" % slot)
        self.expect("freed", slot)

    def sum_once(self, request, placement="device"):
        self.fetch(0, request, placement)
        out = self.sum(0)
        self.free(0)
        return out

    def finish(self):
        """An orderly end. Its exit code, which is not 0 if it leaked under a sanitizer."""
        self.process.stdin.close()
        code = self.process.wait()
        self.process.stdout.close()
        return code

    def kill(self):
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def start_tool(daemon):
    return subprocess.Popen([str(BIN / "client_tool"), str(daemon.socket), "c"], env=daemon.environment, text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)


# What a victim does last. Each has a part that the timer `die` should fall into; later is as good.

def _unanswered(rng, request):
    return ["die %d" % rng.randrange(5000)] + ["submit %d device %s" % (i, request) for i in range(rng.randint(1, 3))]


def _unmapped(rng, request):
    return ["submit 0 device %s" % request, "receive", "die %d" % rng.randrange(200)]


def _mapping(rng, request):
    return ["die %d" % rng.randrange(10000), "fetch 0 device %s" % request]


def _holding(rng, request):
    return ["fetch 0 device %s" % request, "die %d" % rng.randrange(3000), "sum 0"]


def _freeing(rng, request):
    return ["fetch 0 device %s" % request, "die %d" % rng.randrange(100), "free 0"]


ENDS = (_unanswered, _unmapped, _mapping, _holding, _freeing)


class Victims:
    """Clients that fetch, check what they got, and are killed: by themselves at a chosen step, or from outside."""

    def __init__(self, daemon, expected, seed):
        self.daemon, self.expected, self.rng = daemon, expected, random.Random(seed)
        self.lock, self.wrong = threading.Lock(), []
        self.fetches = self.kills = 0

    def script(self):
        """(lines, the sums in their order) of some whole fetches."""
        lines, sums = ["connect"], []
        for _ in range(self.rng.randint(1, FETCHES_A_CLIENT)):
            request = self.rng.choice(list(self.expected))
            lines.append("fetch 1 device %s" % request)
            if self.rng.random() < 0.2:
                lines.append("pause %d" % self.rng.randrange(2000))
            if self.rng.random() < 0.3:
                lines.append("sum 1")
                sums.append(self.expected[request])
            lines.append("free 1")
        return lines, sums

    def plan(self):
        """(lines, sums, how many lines it may say before it is killed from outside, or None)"""
        with self.lock:
            lines, sums = self.script()
            if self.rng.random() < 0.3:
                said = sum(not line.startswith("pause") for line in lines)
                return lines, sums, self.rng.randint(1, said)
            request = self.rng.choice(list(self.expected))
            return lines + self.rng.choice(ENDS)(self.rng, request), sums + [self.expected[request]], None

    def run_one(self):
        lines, sums, patience = self.plan()
        process = start_tool(self.daemon)
        process.stdin.write("\n".join(lines) + "\n")
        process.stdin.flush()
        heard = [process.stdout.readline() for _ in range(patience or 0)]
        if patience:
            process.kill()
        rest, _ = process.communicate()
        self.judge(lines, sums, [line.strip() for line in heard + rest.splitlines()], process.returncode)

    def judge(self, lines, sums, heard, code):
        seen = [line.split(" ")[2] for line in heard if line.startswith("sum ") and len(line.split(" ")) == 3]
        bad = [line for line in heard if line.startswith("failed")]
        with self.lock:
            self.kills += 1
            self.fetches += sum(line.startswith(("cache", "received")) for line in heard)
            if code != -signal.SIGKILL or bad or any(a != b for a, b in zip(seen, sums)):
                self.wrong.append((code, bad[:3], seen, sums, lines[-4:]))

    def run(self, fetches):
        def work():
            while self.fetches < fetches and not self.wrong:
                try:
                    self.run_one()
                except BaseException as error:    # pylint: disable=broad-except
                    self.wrong.append(repr(error))

        threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()


class Level:
    """What the daemon holds while it has no client."""

    def __init__(self, daemon):
        self.counters = daemon.json("status")["counters"]
        folder = pathlib.Path("/proc/%d/fd" % daemon.process.pid)
        self.descriptors = self.shared = self.shared_bytes = self.replies = 0
        for link in folder.iterdir():
            try:
                name, size = os.readlink(link), os.stat(link).st_size
            except FileNotFoundError:
                continue
            self.replies += "memfd:samkv-reply" in name
            if "memfd:samkv-device" in name:
                self.shared, self.shared_bytes = self.shared + 1, self.shared_bytes + size
            else:
                self.descriptors += 1
        self.resident_bytes, self.device_mb = daemon.resident_bytes(), device_used_mb()

    def is_quiet(self):
        """Nothing is held, and all shared memory is what waits for the next reply."""
        return (self.counters["device_replies_held"] == 0 and self.counters["device_replies_bytes"] == 0 and
                self.counters["requests_running"] <= 1 and self.replies == 0 and
                (ON_GPU or self.shared_bytes == self.counters["device_replies_kept_bytes"]))


class DeviceClients(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        cls.addClassCleanup(folder.cleanup)
        cls.model = make_model(folder.name + "/llama")
        cls.ids = ["d%d" % i for i in range(DOCUMENTS)]
        cls.daemon = enter(cls, cls.make_daemon())
        cls.ingest(cls.daemon)
        rng = cases.seeded(11)
        cls.requests = [Request(rng.sample(cls.ids, rng.choice([1, 2, 3, 5])), rng.choice([0.2, 0.5, 1.0]), seed)
                        for seed in range(16)]
        cls.all_documents = Request(cls.ids, 1.0, 99)
        with Client(cls.daemon) as client:
            cls.expected = {request: client.sum_once(request, "host") for request in cls.requests}

    @classmethod
    def make_daemon(cls, *arguments):
        return Daemon({"llama": cls.model}, dtype=OPTIONS.dtype, device=OPTIONS.device, arguments=arguments)

    @classmethod
    def ingest(cls, daemon):
        rng = cases.seeded(10)
        documents = {name: cases.tokens(rng, DOCUMENT_TOKENS) for name in cls.ids}
        documents["tiny"] = cases.tokens(rng, 10)
        daemon.json("ingest", "-", "--collection", "c", "--block-size", 8, "--init-tokens", 8, "--local-tokens", 8,
                    "--preamble-tokens", comma([1, 5, 9]), text=documents_jsonl(documents))

    def started(self, *arguments):
        """A daemon of this test's own, over a copy of the store: documents that are prefilled anew share their passes with
        others, and then round otherwise where products depend on the number of rows."""
        daemon = self.make_daemon(*arguments)
        daemon.store.mkdir(mode=0o700)
        shutil.copyfile(self.daemon.store / "data.mdb", daemon.store / "data.mdb")
        daemon.__enter__()
        self.addCleanup(daemon.__exit__, None, None, None)
        return daemon

    def settled(self, daemon, descriptors=None):
        """Its level once it has noticed that all clients are gone, samkvctl's last one too: the fewest descriptors of
        some looks, or no more than `descriptors`."""
        deadline, looks, fewest = time.monotonic() + SETTLE_DEADLINE_S, 0, None
        while True:
            level = Level(daemon)
            fewest = min(level.descriptors, fewest or level.descriptors)
            looks += level.is_quiet()
            if time.monotonic() > deadline or (looks and fewest <= descriptors if descriptors else looks >= 5):
                break
            time.sleep(0.05)
        self.assertTrue(level.is_quiet(), (vars(level), daemon.log()))
        level.descriptors = fewest
        return level

    def assert_right(self, client, request):
        self.assertEqual(client.sum_once(request), self.expected[request])

    # -------------------------------------------------------------- clients that are killed

    def run_victims(self, fetches, seed):
        victims = Victims(self.daemon, self.expected, seed)
        victims.run(fetches)
        self.assertEqual(victims.wrong, [])
        return victims

    def test_clients_killed_at_random_moments(self):
        with Client(self.daemon) as client:    # the device's cache is full
            client.sum_once(self.all_documents)
        self.run_victims(max(100, OPTIONS.fetches // 10), 1)
        before = self.settled(self.daemon)
        since = time.monotonic()
        victims = self.run_victims(OPTIONS.fetches, 2)
        seconds = time.monotonic() - since
        after = self.settled(self.daemon, before.descriptors)
        print(json.dumps({
            "device": OPTIONS.device, "fetches": victims.fetches, "kills": victims.kills, "seconds": round(seconds, 1),
            "descriptors": [before.descriptors, after.descriptors],
            "resident_mb": [round(before.resident_bytes / MB, 1), round(after.resident_bytes / MB, 1)],
            "device_mb": [before.device_mb, after.device_mb],
            "kept_mb": [round(x.counters["device_replies_kept_bytes"] / MB, 1) for x in (before, after)]}), flush=True)
        self.assertLessEqual(after.descriptors, before.descriptors)
        if not under_sanitizer():    # a sanitizer keeps freed memory; it reports leaks itself when the daemon ends
            self.assertLess(after.resident_bytes - before.resident_bytes, GROWTH_LIMIT_BYTES)
        if ON_GPU:
            kept = [x.counters["device_replies_kept_bytes"] / MB for x in (before, after)]
            self.assertLess(after.device_mb - before.device_mb - (kept[1] - kept[0]), DEVICE_GROWTH_LIMIT_MB)
        with Client(self.daemon) as client:
            for request in self.requests:
                self.assert_right(client, request)
            self.assertEqual(client.finish(), 0)

    def test_others_keep_what_they_hold(self):
        with Client(self.daemon) as a, Client(self.daemon) as b:
            held = [(c, slot, r) for slot, r in enumerate(self.requests[:6]) for c in (a, b)]
            for client, slot, request in held:
                client.fetch(slot, request)
            self.run_victims(100, 3)
            b.kill()
            a.fetch(200, self.requests[6])
            for client, slot, request in held:
                if client is a:
                    self.assertEqual(a.sum(slot), self.expected[request])
            self.assertEqual(a.sum(200), self.expected[self.requests[6]])
            self.assertEqual(a.finish(), 0)
        self.settled(self.daemon)

    def shared_memory_of(self, client):
        """The one piece of the daemon's shared memory that the client maps, opened here through the daemon."""
        with open("/proc/%d/maps" % client.process.pid, encoding="utf-8") as maps:
            inode, = {int(line.split()[4]) for line in maps if "memfd:samkv-device" in line}
        folder = pathlib.Path("/proc/%d/fd" % self.daemon.process.pid)
        return open(next(link for link in folder.iterdir() if os.stat(link).st_ino == inode), "rb")

    @unittest.skipIf(ON_GPU, "a GPU's memory cannot be looked at from outside")
    def test_memory_of_the_dead_is_not_used_again(self):
        with Client(self.daemon) as client:
            client.fetch(0, self.requests[0])
            memory = self.shared_memory_of(client)
            was = memory.read()
            client.kill()
        with memory:
            self.settled(self.daemon)
            with Client(self.daemon) as client:
                for request in self.requests:
                    self.assert_right(client, request)
            memory.seek(0)
            self.assertTrue(memory.read() == was, "the daemon wrote to memory that a client may still map")

    # -------------------------------------------------------------- the daemon is killed

    def test_a_cache_outlives_the_daemon(self):
        daemon = self.started()
        request = self.requests[0]
        with Client(daemon) as client:
            client.fetch(0, request)
            client.fetch(1, self.requests[1])
            before = client.sum(0)
            self.assertEqual(before, self.expected[request])
            daemon.kill()
            self.assertEqual(client.sum(0), before)
            client.free(1)
            daemon.start()
            client.tell("connect")
            client.expect("connected")
            client.fetch(2, request)
            self.assertEqual(client.sum(2), before)
            self.assertEqual(client.sum(0), before)
            client.free(0)
            self.assertEqual(client.sum(2), before)
            client.free(2)
            self.assertEqual(client.finish(), 0)
        self.settled(daemon)

    def test_a_fetch_that_the_daemon_dies_in_fails(self):
        daemon = self.started()
        with Client(daemon) as client:
            client.fetch(0, self.requests[0])
            daemon.process.send_signal(signal.SIGSTOP)
            client.tell("submit 1 device %s" % self.requests[1])
            client.tell("next")
            daemon.kill()
            status, _ = client.expect("failed", 1)
            self.assertEqual(status, "CLOSED")
            self.assertEqual(client.sum(0), self.expected[self.requests[0]])
            self.assertEqual(client.finish(), 0)

    # -------------------------------------------------------------- limits

    def test_the_pool_is_bounded(self):
        daemon = self.started("--device-reply-bytes", "8M")
        with Client(daemon) as client, Client(daemon) as other:
            held, failure = 0, None
            while failure is None and held < 200:
                client.tell("fetch %d device %s" % (held, self.all_documents))
                heard = client.hear()
                held, failure = (held + 1, None) if heard[0] == "cache" else (held, heard)
            self.assertIsNotNone(failure, "nothing bounds what clients hold")
            self.assertGreater(held, 0)
            self.assertEqual(failure[2], "BUSY")
            for words in ("free some", "host memory", "--device-reply-bytes"):
                self.assertIn(words, failure[3])
            self.assertEqual(other.fetch_failing(0, self.all_documents)[0], "BUSY")
            other.sum_once(self.all_documents, "host")    # as the text says
            client.free(0)
            right = other.sum_once(self.all_documents)
            self.assertEqual({client.sum(slot) for slot in range(1, held)} | {right}, {right})
            client.kill()                                 # what it held comes back without a word
            self.settled(daemon)
            for slot in range(held):
                other.fetch(slot, self.all_documents)
        self.settled(daemon)

    def test_a_reply_beyond_the_pool(self):
        small, large = Request(["tiny"], 1.0, 1), self.all_documents
        with Client(self.daemon) as client:
            limit = 2 * client.fetch(0, small)
            self.assertGreater(client.fetch(1, large), limit)
        daemon = self.started("--device-reply-bytes", str(limit))
        with Client(daemon) as client:
            for _ in range(3):
                status, text = client.fetch_failing(0, large)
                self.assertEqual(status, "TOO_LARGE")
                self.assertIn("--device-reply-bytes", text)
                client.fetch(0, small)
                client.free(0)
        self.settled(daemon)

    # -------------------------------------------------------------- the device's own cache, and many at once

    def test_eviction_changes_no_bytes(self):
        for budget in ("1M", "64K", "1"):
            daemon = self.started("--device-cache-bytes", budget)
            with self.subTest(budget=budget), Client(daemon) as client:
                for request in self.requests + self.requests[::-1]:
                    self.assert_right(client, request)
            self.settled(daemon)

    def test_many_in_flight_at_once(self):
        """Several clients with several requests each, before any of them hears an answer."""
        rng = random.Random(4)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(self.daemon)) for _ in range(5)]
            for _ in range(4):
                asked = [[rng.choice(self.requests) for _ in range(6)] for _ in clients]
                for client, requests in zip(clients, asked):
                    for slot, request in enumerate(requests):
                        placement = rng.choice(["device", "device", "host"])
                        client.tell("submit %d %s %s" % (slot, placement, request))
                for client, requests in zip(clients, asked):
                    for _ in requests:
                        client.tell("next")
                        client.expect("cache")
                    for slot, request in enumerate(requests):
                        self.assertEqual(client.sum(slot), self.expected[request])
                        client.free(slot)
            for client in clients:
                self.assertEqual(client.finish(), 0)
        self.settled(self.daemon)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + UNITTEST_ARGUMENTS, verbosity=2)
