"""Collections from one daemon to another: files and pipes, what breaks off and goes on, and descriptors that are none.

kill -9 of either side at random moments: 4 rounds each; the long form, SAMKV_TEST_LONG=1, makes 40.
"""
import os
import random
import signal
import socket
import shlex
import subprocess
import tempfile
import time
import unittest

import cases
import models
import wire
from harness import DONE, NO_DAEMON, SOME_FAILED, Daemon, documents_jsonl

ROUNDS = 40 if os.environ.get("SAMKV_TEST_LONG") == "1" else 4
DOCUMENTS = 40
LENGTHS = (1, 9, 64, 100, 300, 700)
NOT_FOUND, INVALID, IO, BUSY = 1, 2, 5, 7
DEADLINE_S = 60


def documents(seed=3):
    rng = cases.seeded(seed)
    return {"d%02d" % i: cases.tokens(rng, rng.choice(LENGTHS)) for i in range(DOCUMENTS)}


class Bundle(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.models = {"llama": models.make_model(cls.folder.name + "/llama", "llama")}
        cls.other = {"qwen": models.make_model(cls.folder.name + "/qwen", "qwen3")}
        cls.source = Daemon(cls.models)
        cls.source.__enter__()
        cls.addClassCleanup(cls.source.__exit__, None, None, None)
        cls.documents = documents()
        cls.source.json("ingest", "-", "--preamble-tokens", "1,5,9", "--block-size", 8, "--collection", "wiki",
                        text=documents_jsonl(cls.documents))
        cls.file = cls.source.folder / "wiki.skb"
        cls.said = cls.source.json("export", "wiki", "--out", cls.file)

    def setUp(self):
        self.target = Daemon(self.models)
        self.addCleanup(self.target.remove)
        self.target.start()
        self.work = tempfile.TemporaryDirectory(prefix="samkv-bundle-")
        self.addCleanup(self.work.cleanup)

    def path(self, name):
        return os.path.join(self.work.name, name)

    def fetched(self, daemon, ids, collection="wiki"):
        """The bytes that an engine would get."""
        out = self.path("cache.safetensors")
        daemon.json("fetch", "--collection", collection, "--docs", ",".join(ids), "--query-tokens", "5,6,7", "--ratio",
                    0.5, "--with-query", "--out", out)
        with open(out, "rb") as file:
            return file.read()

    def assert_same(self, daemon, collection="wiki"):
        listed = {d["id"]: d["tokens"] for d in daemon.json("ls", "--collection", collection)["documents"]}
        self.assertEqual(listed, {name: len(ids) for name, ids in self.documents.items()})
        self.assertEqual(daemon.json("verify")["damaged"], 0)
        for ids in (["d00", "d07"], ["d01"], ["d39", "d20", "d03"]):
            self.assertEqual(self.fetched(daemon, ids, collection), self.fetched(self.source, ids), ids)

    # -------------------------------------------------------------- there and back

    def test_a_file(self):
        self.assertEqual((self.said["documents"], self.said["bytes"]), (DOCUMENTS, os.path.getsize(self.file)))
        checked = self.target.json("import", self.file, "--check")
        self.assertEqual((checked["documents"], checked["collection"]), (DOCUMENTS, "wiki"))
        self.assertEqual(self.target.json("ls", "--collections")["collections"], [])
        said = self.target.json("import", self.file)
        self.assertEqual((said["imported"], said["skipped"]), (DOCUMENTS, 0))
        self.assert_same(self.target)
        said = self.target.json("import", self.file)
        self.assertEqual((said["imported"], said["skipped"]), (0, DOCUMENTS))
        # Back from the copy: the same file, to the byte.
        self.target.json("export", "wiki", "--out", self.path("again.skb"))
        with open(self.file, "rb") as one, open(self.path("again.skb"), "rb") as two:
            self.assertEqual(one.read(), two.read())
        self.target.stop()

    def test_a_pipe_and_another_name(self):
        line = "%s | cat | %s" % (shlex.join(self.source.command("export", "wiki")),
                                  shlex.join(self.target.command("import", "-", "--collection", "two")))
        done = subprocess.run(["sh", "-c", line], capture_output=True, timeout=DEADLINE_S, check=False)
        self.assertEqual((done.returncode, done.stderr), (DONE, b""))
        self.assert_same(self.target, "two")
        self.target.stop()

    def test_standard_output_into_a_file_that_has_something(self):
        out = self.path("appended")
        for opened in (">>", ">"):
            with open(out, "w", encoding="ascii") as file:
                file.write("before\n")
            line = "{ echo first; %s; echo last; } %s %s" % (shlex.join(self.source.command("export", "wiki")), opened,
                                                                     shlex.quote(str(out)))
            subprocess.run(["sh", "-c", line], timeout=DEADLINE_S, check=True)
            with open(out, "rb") as one, open(self.file, "rb") as two:
                self.assertEqual(one.read(), (b"before\n" if opened == ">>" else b"") + b"first\n" + two.read() + b"last\n")
        self.target.stop()

    def test_keep_or_replace(self):
        other = {"d00": [7, 8, 9], "mine": [3, 4]}
        self.target.json("ingest", "-", "--preamble-tokens", "1,5,9", "--block-size", 8, "--collection", "wiki",
                         text=documents_jsonl(other))
        said = self.target.json("import", self.file, "--keep")
        self.assertEqual((said["kept"], said["imported"]), (1, DOCUMENTS - 1))
        said = self.target.json("import", self.file)
        self.assertEqual((said["replaced"], said["imported"], said["skipped"]), (1, 1, DOCUMENTS - 1))
        self.assertEqual(self.fetched(self.target, ["d00"]), self.fetched(self.source, ["d00"]))
        self.assertEqual(len(self.target.json("ls", "--collection", "wiki")["documents"]), DOCUMENTS + 1)
        self.target.stop()

    # -------------------------------------------------------------- what does not fit

    def test_another_model_dtype_or_collection_is_refused(self):
        for there, dtype, words in ((self.other, "f32", "fingerprint"), (self.models, "bf16", "--dtype f32")):
            with Daemon(there, dtype=dtype) as other:
                self.assertIn(words, other.refuse(self, SOME_FAILED, "import", self.file))
                self.assertEqual(other.json("ls", "--collections")["collections"], [])
        self.target.json("ingest", "-", "--block-size", 16, "--collection", "wiki", text=documents_jsonl({"x": [1, 2]}))
        self.assertIn("wiki", self.target.refuse(self, SOME_FAILED, "import", self.file))
        self.target.json("import", self.file, "--collection", "other")
        self.target.stop()

    def test_what_is_no_bundle(self):
        with open(self.file, "rb") as file:
            whole = file.read()
        spoilt = bytearray(whole)
        spoilt[len(whole) // 2] ^= 1
        for name, content in (("empty", b""), ("text", b"hello\n" * 1000), ("spoilt", spoilt), ("cut", whole[:-1]),
                              ("twice", whole + whole)):
            with open(self.path(name), "wb") as file:
                file.write(content)
            for extra in ([], ["--check"]):
                self.target.refuse(self, SOME_FAILED, "import", self.path(name), *extra)
        self.target.refuse(self, SOME_FAILED, "import", self.path("nothing there"))
        self.source.refuse(self, SOME_FAILED, "export", "nobody", "--out", self.path("nobody.skb"))
        self.source.refuse(self, SOME_FAILED, "export", "wiki", "--out", self.path("no folder") + "/x")
        self.assertEqual(self.target.json("verify")["damaged"], 0)
        self.target.json("import", self.file)
        self.assert_same(self.target)
        self.target.stop()

    # -------------------------------------------------------------- what breaks off

    def kill_after(self, seconds, pid):
        return subprocess.Popen(["sh", "-c", "sleep %f; kill -9 %d" % (seconds, pid)], stderr=subprocess.DEVNULL)

    def test_imports_that_are_killed_go_on(self):
        rng = random.Random(11)
        began = time.monotonic()
        self.target.json("import", self.file, "--collection", "timing")
        seconds = time.monotonic() - began
        self.target.stop()
        for number in range(2 * ROUNDS):
            with self.subTest(round=number), Daemon(self.models) as target:
                command = target.command("import", self.file)
                client = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                          stderr=subprocess.DEVNULL)
                victim = client.pid if number % 2 else target.process.pid
                self.kill_after(rng.uniform(0, seconds), victim).wait()
                client.wait(DEADLINE_S)
                if number % 2 == 0:
                    target.kill()
                    target.start()
                there = [d for c in target.json("ls", "--collections")["collections"]
                         for d in target.json("ls", "--collection", c["name"])["documents"]]
                self.assertEqual(target.json("verify")["damaged"], 0)
                said = target.json("import", self.file)
                self.assertGreaterEqual(said["skipped"], len(there))
                self.assertEqual(said["documents"], DOCUMENTS)
                self.assert_same(target)

    def test_exports_that_are_killed_go_on(self):
        rng = random.Random(12)
        out = self.path("x.skb")
        with open(self.file, "rb") as file:
            whole = file.read()
        for number in range(2 * ROUNDS):
            with self.subTest(round=number):
                # What a crash leaves: some beginning, with or without something else behind it.
                with open(out + ".part", "wb") as part:
                    part.write(whole[:rng.randrange(len(whole))] + b"\0" * (number % 2) * rng.randrange(5000))
                said = self.source.json("export", "wiki", "--out", out, "--resume")
                self.assertEqual((said["documents"], said["bytes"]), (DOCUMENTS, len(whole)))
                self.assertFalse(os.path.exists(out + ".part"))
                with open(out, "rb") as file:
                    self.assertEqual(file.read(), whole)
                os.unlink(out)
        # And a client that is killed; whatever its daemon does meanwhile, the next one has the file to itself.
        for number in range(ROUNDS):
            client = subprocess.Popen(self.source.command("export", "wiki", "--out", out), stdin=subprocess.DEVNULL,
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self.kill_after(rng.uniform(0, 0.03), client.pid).wait()
            client.wait(DEADLINE_S)
            deadline = time.monotonic() + DEADLINE_S
            while True:
                done = self.source.ctl("export", "wiki", "--out", out, "--resume")
                if done.returncode == DONE:
                    break
                self.assertIn("another export", done.stderr)
                self.assertLess(time.monotonic(), deadline)
            with open(out, "rb") as file:
                self.assertEqual(file.read(), whole)
        self.target.stop()

    def test_exports_of_a_daemon_that_is_killed_go_on(self):
        rng = random.Random(14)
        out = self.path("x.skb")
        self.target.json("import", self.file)
        for number in range(ROUNDS):
            with self.subTest(round=number):
                client = subprocess.Popen(self.target.command("export", "wiki", "--out", out), stdin=subprocess.DEVNULL,
                                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                self.kill_after(rng.uniform(0, 0.03), self.target.process.pid).wait()
                _, said = client.communicate(timeout=DEADLINE_S)
                self.target.kill()
                self.assertIn(client.returncode, (DONE, NO_DAEMON), said)
                if client.returncode == NO_DAEMON and os.path.exists(out + ".part"):
                    self.assertIn(b"--resume", said)
                self.target.start()
                self.target.json("export", "wiki", "--out", out, "--resume")
                with open(out, "rb") as one, open(self.file, "rb") as two:
                    self.assertEqual(one.read(), two.read())
                os.unlink(out)
        self.target.stop()

    def test_resume_refuses_other_files_and_collections(self):
        out = self.path("x.skb")
        with open(out + ".part", "wb") as part:
            part.write(b"somebody's diary\n" * 100)
        self.source.refuse(self, SOME_FAILED, "export", "wiki", "--out", out, "--resume")
        with open(out + ".part", "rb") as part:
            self.assertEqual(part.read(), b"somebody's diary\n" * 100)
        self.source.json("ingest", "-", "--collection", "small", text=documents_jsonl({"x": [1, 2]}))
        with open(self.file, "rb") as file, open(out + ".part", "wb") as part:
            part.write(file.read()[:-5])
        self.assertIn("wiki", self.source.refuse(self, SOME_FAILED, "export", "small", "--out", out, "--resume"))
        self.target.stop()

    # -------------------------------------------------------------- pipes that nobody serves

    def requests_now(self):
        """Exports that run: a third one is refused."""
        read, write = os.pipe()
        try:
            with wire.Connection(self.source.socket) as c:
                c.send_with(wire.EXPORT, wire.message(f1="nobody"), [write])
                _, flags, reply = c.receive()
                return BUSY if wire.fields(reply)[1][0] == BUSY else 0
        finally:
            os.close(read)
            os.close(write)

    def test_readers_that_stop_cost_two_workers_and_no_more(self):
        level = self.source.open_fds()
        pipes = [os.pipe(), os.pipe()]
        clients = []
        for _, write in pipes:
            clients.append(subprocess.Popen(self.source.command("export", "wiki"), stdin=subprocess.DEVNULL,
                                            stdout=write, stderr=subprocess.DEVNULL))
        deadline = time.monotonic() + DEADLINE_S
        while self.requests_now() != BUSY:
            self.assertLess(time.monotonic(), deadline)
        # Others are served meanwhile, also ingests.
        self.fetched(self.source, ["d00"])
        self.source.json("ingest", "-", "--collection", "meanwhile", text=documents_jsonl({"x": [1, 2, 3]}))
        self.assertIn("try again", self.source.refuse(self, SOME_FAILED, "export", "wiki", "--out", self.path("x")))
        clients[0].kill()                   # one client goes, the other one's reader does
        os.close(pipes[1][1])
        os.close(pipes[1][0])
        self.assertEqual(clients[1].wait(DEADLINE_S), SOME_FAILED)
        clients[0].wait(DEADLINE_S)
        while self.requests_now() == BUSY or self.source.open_fds() > level:
            self.assertLess(time.monotonic(), deadline, "requests or descriptors are left behind")
            time.sleep(0.05)
        os.close(pipes[0][0])
        os.close(pipes[0][1])
        self.target.stop()

    def test_an_import_from_a_pipe_whose_writer_stops_ends_with_its_client(self):
        level = self.target.open_fds()
        read, write = os.pipe()
        client = subprocess.Popen(self.target.command("import", "-"), stdin=read, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL)
        os.close(read)
        with open(self.file, "rb") as file:
            beginning = file.read(300000)
        os.write(write, beginning[:60000])
        deadline = time.monotonic() + DEADLINE_S
        while not self.target.json("ls", "--collections")["collections"]:
            self.assertLess(time.monotonic(), deadline)
        client.send_signal(signal.SIGKILL)
        client.wait(DEADLINE_S)
        while self.target.open_fds() > level:
            self.assertLess(time.monotonic(), deadline, "descriptors are left behind")
            time.sleep(0.05)
        os.close(write)
        self.target.json("import", self.file)
        self.assert_same(self.target)
        self.target.stop()

    # -------------------------------------------------------------- descriptors

    def test_descriptors_of_every_kind(self):
        level = self.source.open_fds()
        plain, written = self.path("plain"), self.path("written")
        with open(plain, "wb") as file:
            file.write(b"x")
        pair, datagrams = socket.socketpair(), socket.socketpair(type=socket.SOCK_DGRAM)
        read, write = os.pipe()
        opened = {
            "a folder": os.open(self.work.name, os.O_RDONLY),
            "a device": os.open("/dev/zero", os.O_RDWR),
            "a path": os.open(plain, os.O_PATH),
            "a datagram socket": os.dup(datagrams[0].fileno()),
        }
        cases_of = [(wire.EXPORT, name, [fd]) for name, fd in opened.items()]
        cases_of += [(wire.IMPORT, name, [fd]) for name, fd in opened.items()]
        read_only, write_only = os.open(plain, os.O_RDONLY), os.open(written, os.O_WRONLY | os.O_CREAT)
        cases_of += [(wire.EXPORT, "read-only", [read_only]), (wire.EXPORT, "a pipe's wrong end", [read]),
                     (wire.IMPORT, "write-only", [write_only]), (wire.IMPORT, "a pipe's wrong end", [write]),
                     (wire.EXPORT, "none", []), (wire.IMPORT, "none", []), (wire.EXPORT, "two", [write, write]),
                     (wire.EXPORT, "many", [write] * 20)]
        with wire.Connection(self.source.socket) as c:
            for kind, name, fds in cases_of:
                with self.subTest(kind=kind, name=name):
                    flags, reply = c.last_of(kind, wire.message(f1="wiki"), fds)
                    self.assertTrue(flags & wire.ERROR, reply)
                    self.assertEqual(wire.fields(reply)[1][0], INVALID, reply)
            # Others' requests take none, and one that came too early is not another's.
            for _ in range(50):
                c.send_with(wire.PING, b"", [write, read])
                self.assertFalse(c.receive()[1] & wire.ERROR)
            self.assertEqual(c.error_of(wire.EXPORT, wire.message(f1="wiki"))[0], INVALID)
            # A socket will do. Nobody reads: the request ends when its reader is gone.
            c.send_with(wire.EXPORT, wire.message(f1="wiki"), [pair[0].fileno()])
            got = b""
            while len(got) < self.said["bytes"]:
                got += pair[1].recv(1 << 20)
            while c.receive()[1] & wire.MORE:
                pass
            with open(self.file, "rb") as file:
                self.assertEqual(got, file.read())
            self.assertEqual(c.error_of(wire.EXPORT, wire.message(f1="a\nb"))[0], INVALID)
        # Connections that end before their request is whole.
        for cut in (1, 8, 17):
            with wire.Connection(self.source.socket) as c:
                payload = wire.message(f1="wiki")
                raw = wire.HEADER.pack(len(payload), wire.EXPORT, 0, 1) + payload
                socket.send_fds(c.socket, [raw[:cut]], [write])
        for fd in [*opened.values(), read, write, read_only, write_only]:
            os.close(fd)
        for s in (*pair, *datagrams):
            s.close()
        deadline = time.monotonic() + DEADLINE_S
        while self.source.open_fds() > level:
            self.assertLess(time.monotonic(), deadline, "descriptors are left behind")
            time.sleep(0.05)
        self.target.stop()

    def test_a_descriptor_comes_before_the_rest_of_its_request(self):
        out = self.path("pieces")
        with wire.Connection(self.source.socket) as c, open(out, "wb") as file:
            payload = wire.message(f1="wiki")
            raw = wire.HEADER.pack(len(payload), wire.EXPORT, 0, 1) + payload
            socket.send_fds(c.socket, [raw[:1]], [file.fileno()])
            for at in range(1, len(raw)):
                time.sleep(0.001)
                c.raw(raw[at:at + 1])
            while True:
                _, flags, reply = c.receive()
                self.assertFalse(flags & wire.ERROR, reply)
                if not flags & wire.MORE:
                    break
        with open(out, "rb") as one, open(self.file, "rb") as two:
            self.assertEqual(one.read(), two.read())
        self.target.stop()

    def test_a_file_that_is_cut_while_it_is_read(self):
        rng = random.Random(13)
        with open(self.file, "rb") as file:
            whole = file.read()
        for _ in range(ROUNDS):
            path = self.path("shrinking")
            with open(path, "wb") as file:
                file.write(whole)
            client = subprocess.Popen(self.target.command("import", path, "--collection", "wiki"), stdin=subprocess.DEVNULL,
                                      stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            os.truncate(path, rng.randrange(len(whole)))
            _, said = client.communicate(timeout=DEADLINE_S)
            self.assertIn(client.returncode, (DONE, SOME_FAILED), said)
        self.assertEqual(self.target.json("verify")["damaged"], 0)
        self.target.json("import", self.file)
        self.assert_same(self.target)
        self.target.stop()


if __name__ == "__main__":
    unittest.main(verbosity=2)
