"""Users beside each other: who sees what, what an answer gives away, and whose limits are whose.

Root starts the daemon and becomes several other users; where that cannot be, nothing of this can be tested, and it is
skipped and says so.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import unittest

import cases
import models
import wire
from harness import DONE, SOME_FAILED, Daemon, documents_jsonl, enter, under_sanitizer

ALICE, BOB, CAROL = 4001, 4002, 4003        # numbers need no names
TEAM, ADMINS = 4100, 4200
NOT_FOUND, INVALID, FULL, BUSY, CANCELLED, DENIED = 1, 2, 6, 7, 8, 18
DEADLINE_S = 120
QUERY = wire.tokens([5, 6, 7])


class User:
    """Another user of the daemon, with samkvctl and with the protocol by hand."""

    def __init__(self, daemon, uid, groups=()):
        self.daemon, self.uid, self.groups = daemon, uid, list(groups)

    def ctl(self, *arguments, text=None):
        programs, environment = self.daemon.programs_for_all("samkvctl")
        command = [programs / "samkvctl"] + self.daemon.command(*arguments)[1:]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False, user=self.uid,
                              group=self.uid, extra_groups=self.groups, timeout=DEADLINE_S,
                              env=dict(os.environ, **environment))

    def json(self, *arguments, text=None):
        done = self.ctl(*arguments, "--json", text=text)
        if done.returncode != DONE:
            raise AssertionError("%s: %s" % (arguments, done.stderr))
        return json.loads(done.stdout)

    def ingest(self, collection, documents, *options):
        return self.json("ingest", "-", "--collection", collection, *options, text=documents_jsonl(documents))

    def connection(self, **options):
        """Credentials are those of the moment of connecting."""
        os.setgroups(self.groups)
        os.setegid(self.uid)
        os.seteuid(self.uid)
        try:
            return wire.Connection(self.daemon.socket, **options)
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups([0])


def open_to_all(daemon):
    os.chmod(daemon.folder, 0o711)
    os.chmod(daemon.socket, 0o666)


def requests_about(collection):
    """One request of every type about a collection and a document in it: (name, type, payload)."""
    ingest = wire.message(f1=collection, f2="probe", f5=wire.tokens([1, 2, 3]))
    fetch = wire.message(f1=collection, f2=["d0"], f4=QUERY)
    return [
        ("fetch", wire.FETCH, fetch), ("ask", wire.ASK, wire.message(f1=fetch, f2=b"?")),
        ("ls", wire.LIST, wire.message(f1=collection)), ("show", wire.SHOW, wire.message(f1=collection, f2="d0")),
        ("rm", wire.REMOVE, wire.message(f1=collection, f2=["d0"])),
        ("rm --all", wire.REMOVE, wire.message(f1=collection, f3=1)),
        ("pin", wire.PIN, wire.message(f1=collection, f2=["d0"])),
        ("set", wire.CONFIGURE, wire.message(f1=collection, f2=1000)),
        ("set --mode", wire.CONFIGURE, wire.message(f1=collection, f21=0o644)),
        ("verify", wire.VERIFY, wire.message(f1=collection)), ("ingest", wire.INGEST, ingest),
    ]


@unittest.skipIf(os.getuid() != 0, "only root can be other users")
class Isolation(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        cls.addClassCleanup(folder.cleanup)
        cls.model = {"llama": models.make_model(folder.name + "/llama", "llama")}
        cls.daemon = enter(cls, Daemon(cls.model, arguments=["--admin-group", str(ADMINS)]))
        open_to_all(cls.daemon)
        cls.rng = cases.seeded(77)
        cls.alice, cls.bob = User(cls.daemon, ALICE, [TEAM]), User(cls.daemon, BOB, [TEAM])
        cls.carol, cls.admin = User(cls.daemon, CAROL), User(cls.daemon, 4004, [ADMINS])
        try:
            if cls.alice.ctl("ping").returncode != DONE:
                raise unittest.SkipTest("another user cannot run samkvctl here")
        except PermissionError as error:
            raise unittest.SkipTest("this place does not let root be another user") from error

    def some(self, count, tokens=40):
        return {"d%d" % i: cases.tokens(self.rng, tokens) for i in range(count)}

    def names(self, user):
        return [c["name"] for c in user.json("ls", "--collections")["collections"]]

    # -------------------------------------------------------------- who sees what

    def test_what_one_makes_is_ones_own(self):
        self.alice.ingest("own", self.some(2))
        self.bob.ingest("own", self.some(1))
        self.daemon.json("ingest", "-", "--collection", "own", text=documents_jsonl(self.some(3)))
        for user, name, ids in ((self.alice, "own", 2), (self.bob, "own", 1), (self.bob, "~%d/own" % BOB, 1)):
            self.assertEqual(len(user.json("ls", "--collection", name)["documents"]), ids)
        self.assertEqual(len(self.daemon.json("ls", "--collection", "own")["documents"]), 3)
        self.assertEqual(len(self.daemon.json("ls", "--collection", "~%d/own" % ALICE)["documents"]), 2)
        self.assertIn("~%d/own" % ALICE, self.names(self.alice))
        self.assertNotIn("~%d/own" % ALICE, self.names(self.bob))
        self.assertNotIn("own", self.names(self.bob))      # the daemon's group is not his
        self.assertIn("~%d/own" % ALICE, self.names(self.admin))
        shown = {c["name"]: c for c in self.alice.json("status")["collection_list"]}["~%d/own" % ALICE]
        self.assertEqual((shown["owner"], shown["group"], shown["mode"]), (ALICE, ALICE, "0640"))

    def test_modes(self):
        """Every mode against every kind of user: what may be read, written and changed."""
        self.alice.ingest("modes", self.some(1))
        name = "~%d/modes" % ALICE
        for mode in (0o600, 0o640, 0o660, 0o604, 0o606, 0o644, 0o664, 0o666, 0o646):
            said = self.alice.json("set", "modes", "--mode", "%04o" % mode, "--group", TEAM)["collection"]
            self.assertEqual((said["mode"], said["group"]), ("%04o" % mode, TEAM))
            for user, bits in ((self.alice, 6), (self.bob, mode >> 3 & 7), (self.carol, mode & 7), (self.admin, 6)):
                with self.subTest(mode=oct(mode), uid=user.uid), user.connection() as c:
                    flags, _ = c.ask(wire.SHOW, wire.message(f1=name, f2="d0"))
                    self.assertEqual(not flags & wire.ERROR, bool(bits & 4))
                    self.assertEqual(name in self.names(user), bool(bits & 4))
                    flags, reply = c.ask(wire.PIN, wire.message(f1=name, f2=["d0"], f3=1))
                    if bits == 0:       # as in a collection that is not there
                        self.assertEqual(wire.fields(reply), {2: [b"d0"]})
                    else:
                        self.assertEqual(not flags & wire.ERROR, bool(bits & 2), reply)
                    if user in (self.bob, self.carol):
                        status, _ = c.error_of(wire.CONFIGURE, wire.message(f1=name, f3=0))
                        self.assertEqual(status, DENIED if bits & 4 else NOT_FOUND)

    def test_modes_and_groups_that_cannot_be(self):
        self.alice.ingest("wrong", self.some(1))
        with self.alice.connection() as c:
            for mode in (0, 0o400, 0o620, 0o602, 0o641, 0o6400, 0o777, 0o1640, 0xFFFFFFFF):
                self.assertEqual(c.error_of(wire.CONFIGURE, wire.message(f1="wrong", f21=mode))[0], INVALID, oct(mode))
                if mode:
                    body = wire.message(f1="new", f2="x", f5=wire.tokens([1]), f6=wire.message(f20=mode))
                    self.assertEqual(c.error_of(wire.INGEST, body)[0], INVALID, oct(mode))
            self.assertEqual(c.error_of(wire.CONFIGURE, wire.message(f1="wrong", f20=0xFFFFFFFF))[0], INVALID)
            for group in (0, 1, BOB):
                self.assertEqual(c.error_of(wire.CONFIGURE, wire.message(f1="wrong", f20=group))[0], DENIED, group)
            for name in ("~", "~x", "~/x", "~%d" % ALICE, "~%d/" % ALICE, "~-1/x", "~99999999999/x"):
                body = wire.message(f1=name, f2="x", f5=wire.tokens([1]))
                self.assertIn(c.error_of(wire.INGEST, body)[0], (INVALID, NOT_FOUND), name)
            body = wire.message(f1="~%d/theirs" % BOB, f2="x", f5=wire.tokens([1]))
            self.assertEqual(c.error_of(wire.INGEST, body)[0], NOT_FOUND)

    def test_administrators_only(self):
        for user, allowed in ((self.carol, False), (self.admin, True)):
            for command in (("gc",), ("compact",), ("verify",)):
                done = user.ctl(*command)
                self.assertEqual(done.returncode == DONE, allowed, (command, done.stderr))
                if not allowed:
                    self.assertIn("--admin-group", done.stderr)
            status = user.json("status")
            self.assertEqual((status["partial"], bool(status["counters"])), (not allowed, allowed))
        self.assertEqual(self.carol.json("status")["collection_list"], [])
        self.assertIn("administrators", self.carol.ctl("top", "--once").stderr)
        self.assertIn("yours", self.carol.ctl("status").stdout)

    def test_traces_are_ones_own(self):
        self.alice.ingest("traced", self.some(1))
        seen = {t["uid"] for t in self.carol.json("trace")["requests"]}
        self.assertLessEqual(seen, {CAROL})
        self.assertIn(ALICE, {t["uid"] for t in self.admin.json("trace")["requests"]})

    def test_a_bundle_has_no_owner(self):
        self.alice.ingest("travels", self.some(3), "--preamble-tokens", "1,2,3")
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o777)
            path = folder + "/b.skb"
            self.alice.json("export", "travels", "--out", path)
            os.chmod(path, 0o644)
            self.assertEqual(self.bob.json("import", path)["documents"], 3)
            self.daemon.json("import", path, "--collection", "taken")
        there = [self.alice.json("ls", "--collection", "travels"), self.bob.json("ls", "--collection", "travels"),
                 self.daemon.json("ls", "--collection", "taken")]
        self.assertEqual(len({tuple(d["key"] for d in listed["documents"]) for listed in there}), 1)
        self.assertEqual(self.bob.json("ls", "--collections")["collections"][-1]["owner"], BOB)
        for name in ("~%d/travels" % ALICE, "~%d/travels" % BOB, "taken"):
            self.assertEqual(self.daemon.json("verify", "--collection", name)["damaged"], 0)

    def test_one_bundle_of_a_user_at_a_time(self):
        self.alice.ingest("slow", self.some(30, 200))
        reader, writer = os.pipe()
        with self.alice.connection() as c, self.carol.connection() as other:
            c.send_with(wire.EXPORT, wire.message(f1="slow"), [writer])     # nobody reads it: it waits in the pipe
            time.sleep(0.5)
            c.send_with(wire.EXPORT, wire.message(f1="slow"), [writer])
            while True:
                number, flags, reply = c.receive()
                if number == c.number:
                    break
            self.assertTrue(flags & wire.ERROR)
            self.assertEqual(wire.fields(reply)[1][0], BUSY)
            flags, reply = other.last_of(wire.EXPORT, wire.message(f1="no such"), [writer])
            self.assertEqual(wire.fields(reply)[1][0], NOT_FOUND)       # others are not concerned
        os.close(reader)
        os.close(writer)

    # -------------------------------------------------------------- what an answer gives away

    def test_hidden_answers_as_absent(self):
        """Byte for byte, but for the name that was asked."""
        self.alice.ingest("secret", self.some(1), )
        self.daemon.json("ingest", "-", "--collection", "secrat", text=documents_jsonl(self.some(1)))
        pairs = (("~%d/secret" % ALICE, "~%d/absent" % ALICE), ("secrat", "absent"))
        for hidden, absent in pairs:
            with self.carol.connection() as c:
                for (what, kind, there), (_, _, not_there) in zip(requests_about(hidden), requests_about(absent)):
                    if what == "ingest" and hidden == "secrat":
                        continue        # makes carol's own; below
                    with self.subTest(what=what, hidden=hidden):
                        (flags, reply), (other_flags, other) = c.ask(kind, there), c.ask(kind, not_there)
                        self.assertEqual(flags, other_flags)
                        self.assertEqual(reply.replace(hidden.encode(), absent.encode()), other)
        self.assertEqual(self.carol.ingest("secrat", self.some(1))["ingested"], 1)
        self.assertEqual(self.carol.json("ls", "--collection", "secrat")["documents"][0]["collection"],
                         "~%d/secrat" % CAROL)
        self.assertEqual(len(self.daemon.json("ls", "--collection", "secrat")["documents"]), 1)

    def timed(self, connection, kind, payload):
        start = time.perf_counter()
        connection.ask(kind, payload)
        return time.perf_counter() - start

    def test_the_clock_does_not_tell_either(self):
        """Who bets on the slower one of a hidden and an absent collection wins half of the time: a busy machine slows
        both alike, so this holds there too. What was measured is printed."""
        rounds = 300 if under_sanitizer() else 1500
        self.alice.ingest("clock", self.some(1))
        times = {"clock": [], "clack": []}
        order = list(times)
        with self.carol.connection() as c:
            for _ in range(rounds):
                self.rng.shuffle(order)
                for name in order:
                    times[name].append(self.timed(c, wire.SHOW, wire.message(f1="~%d/%s" % (ALICE, name), f2="d0")))
        won = sum(hidden > absent for hidden, absent in zip(*times.values())) / rounds
        print("\n# hidden %.1f us, absent %.1f us, hidden is slower in %.1f %% of the rounds" %
              (1e6 * statistics.median(times["clock"]), 1e6 * statistics.median(times["clack"]), 100 * won),
              file=sys.stderr)
        self.assertLess(abs(won - 0.5), 0.1)

    def test_nothing_is_shared_between_owners(self):
        """The same document ingested by somebody else is computed again, and takes its own place; twice by the same is
        skipped. Otherwise its time would tell that it is there."""
        long = {"long": cases.tokens(self.rng, 2000)}
        first = self.alice.ingest("dedup", long, "--preamble-tokens", "1,2,3,4")
        again = self.alice.ingest("dedup", long)
        self.assertEqual((first["ingested"], again["skipped"]), (1, 1))
        before = self.daemon.json("status")
        taken = []
        for user, name in ((self.bob, "dedup"), (self.carol, "dedup")):
            start = time.perf_counter()
            self.assertEqual(user.ingest(name, long, "--preamble-tokens", "1,2,3,4")["ingested"], 1)
            taken.append(time.perf_counter() - start)
        after = self.daemon.json("status")
        self.assertEqual(after["documents"] - before["documents"], 4)   # with their preambles
        prefilled = [r for r in self.daemon.json("trace", "--limit", 20)["requests"]
                     if r["type"] == "INGEST" and r["uid"] in (BOB, CAROL)][:2]
        for request in prefilled:
            self.assertIn("prefill", json.dumps(self.daemon.json("trace", request["request"])))
        # A collection that others write has its own, too; the daemon's others share as ever.
        for name, options, counted in (("plain-a", (), 1), ("plain-b", (), 0)):
            before = self.daemon.json("status")["documents"]
            self.daemon.json("ingest", "-", "--collection", name, *options, text=documents_jsonl(long))
            self.assertEqual(self.daemon.json("status")["documents"] - before, counted, name)
        self.daemon.json("ingest", "-", "--collection", "plain-shared", "--mode", "0660", text=documents_jsonl(long))
        self.assertEqual(self.daemon.json("status")["documents"] - before, 1)

    # -------------------------------------------------------------- limits

    def test_sharing_and_fetching(self):
        self.alice.ingest("shared", self.some(2))
        name = "~%d/shared" % ALICE
        self.alice.json("set", "shared", "--mode", "0664", "--group", TEAM)
        self.bob.ingest(name, {"bobs": cases.tokens(self.rng, 30)})
        fetched = self.carol.json("fetch", "--docs", "d0,bobs", "--collection", name, "--query-tokens", "5,6")
        self.assertGreater(fetched["kept_tokens"], 0)
        refused = self.carol.ctl("ingest", "-", "--collection", name, text=documents_jsonl(self.some(1)))
        self.assertEqual(refused.returncode, SOME_FAILED)
        self.assertIn("only be read", refused.stderr)
        self.assertEqual(self.carol.ctl("rm", "--collection", name, "--all").returncode, SOME_FAILED)
        self.alice.json("set", "shared", "--mode", "0600")
        self.assertIn("no collection", self.carol.ctl("fetch", "--docs", "d0", "--collection", name, "--query-tokens",
                                                      "5").stderr)


@unittest.skipIf(os.getuid() != 0, "only root can be other users")
class Bounds(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        cls.addClassCleanup(folder.cleanup)
        cls.daemon = enter(cls, Daemon({"llama": models.make_model(folder.name + "/llama", "llama")}, arguments=[
            "--user-quota-bytes", "300K", "--user-quota", "%d=30K" % BOB, "--user-quota", "4030=0", "--max-connections", "12",
            "--max-user-connections", "5", "--max-user-requests", "20", "--max-in-flight", "30", "--connection-bytes",
            "128K", "--stall-timeout", "3"]))
        open_to_all(cls.daemon)
        cls.rng = cases.seeded(78)
        cls.alice, cls.bob = User(cls.daemon, ALICE), User(cls.daemon, BOB)

    def documents(self, count, tokens=40, start=0):
        return {"d%03d" % i: cases.tokens(self.rng, tokens) for i in range(start, start + count)}

    def test_hard_quota(self):
        """Refused, with nothing evicted; what is removed makes room; and it is one sum over all collections."""
        count, failed = 0, None
        while failed is None and count < 100:
            done = self.alice.ctl("ingest", "-", "--collection", "q%d" % (count % 3),
                                  text=documents_jsonl(self.documents(1, start=count)))
            count, failed = count + 1, done.stderr if done.returncode else None
        self.assertIn("user %d" % ALICE, failed)
        status = self.alice.json("status")
        self.assertEqual(status["user_quota_bytes"], 300 << 10)
        self.assertLessEqual(status["user_bytes"], 300 << 10)
        self.assertGreater(status["user_bytes"], 250 << 10)
        self.assertEqual(sum(c["documents"] for c in status["collection_list"]), count - 1)
        self.assertEqual(self.bob.ctl("ingest", "-", text=documents_jsonl(self.documents(1, 400))).returncode, SOME_FAILED)
        self.assertEqual(self.bob.json("status")["user_quota_bytes"], 30 << 10)
        self.assertEqual(self.daemon.json("ingest", "-", text=documents_jsonl(self.documents(20)))["failed"], 0)
        # A restart counts the same.
        before = status["user_bytes"]
        self.daemon.stop()
        self.daemon.start()
        open_to_all(self.daemon)
        self.assertEqual(self.alice.json("status")["user_bytes"], before)
        self.alice.json("rm", "--collection", "q0", "--all")
        self.assertLess(self.alice.json("status")["user_bytes"], before)
        self.assertEqual(self.alice.ctl("ingest", "-", "--collection", "q1",
                                        text=documents_jsonl(self.documents(1, start=900))).returncode, DONE)

    def test_connections_of_a_user(self):
        held = [self.alice.connection() for _ in range(5)]
        with self.assertRaises(wire.Closed) as refused:
            self.alice.connection()
        self.assertEqual(refused.exception.args[0][1], [BUSY])
        self.bob.connection().socket.close()        # others are not concerned
        held.extend(self.bob.connection() for _ in range(5))
        held.extend(User(self.daemon, 4010 + i).connection() for i in range(2))
        with self.assertRaises(wire.Closed):
            User(self.daemon, 4020).connection()
        with wire.Connection(self.daemon.socket) as root:        # gets in all the same
            self.assertFalse(root.ask(wire.PING)[0] & wire.ERROR)
        for connection in held:
            connection.socket.close()
        self.assertIn("refused", json.dumps(self.daemon.json("status")["counters"]))

    def test_requests_of_a_user(self):
        """BUSY at once, while the others are served."""
        body = wire.message(f1="busy", f2="x", f5=wire.tokens(cases.tokens(self.rng, 1500)))
        connections = [User(self.daemon, 4030).connection() for _ in range(2)]
        for connection in connections:
            for _ in range(20):
                connection.send(wire.INGEST, body)
        answers = []
        for connection in connections:
            for _ in range(20):
                _, flags, reply = connection.receive()
                answers.append(wire.fields(reply)[1][0] if flags & wire.ERROR else 0)
            connection.socket.close()
        self.assertIn(BUSY, answers)
        self.assertIn(0, answers)
        self.assertLessEqual(set(answers), {0, BUSY})

    def test_a_frame_beyond_the_connections_memory(self):
        with User(self.daemon, 4040).connection() as c:
            status, text = c.error_of(wire.INGEST, wire.message(f2="x", f4="y" * (200 << 10)))
            self.assertEqual(status, 11)
            self.assertIn("131072", text)
            self.assertFalse(c.ask(wire.PING)[0] & wire.ERROR)

    def test_replies_that_nobody_reads(self):
        """They become BUSY when too many wait, and the client is let go when it goes on like that."""
        self.daemon.json("ingest", "-", "--collection", "unread", text=documents_jsonl(self.documents(300)))
        with wire.Connection(self.daemon.socket) as c:
            for _ in range(28):
                c.send(wire.LIST, wire.message(f1="unread"))
            time.sleep(1.5)
            answers = []
            for _ in range(28):
                _, flags, reply = c.receive()
                answers.append(wire.fields(reply)[1][0] if flags & wire.ERROR else 0)
            self.assertIn(BUSY, answers)
            self.assertIn(0, answers)
            self.assertFalse(c.ask(wire.PING)[0] & wire.ERROR)
        with wire.Connection(self.daemon.socket) as c:
            for _ in range(28):
                c.send(wire.LIST, wire.message(f1="unread"))
            self.wait_for_end(c, lambda: None)

    def wait_for_end(self, connection, keep_going):
        """The daemon lets the client go within some seconds, whatever keep_going does meanwhile."""
        start, before = time.monotonic(), self.daemon.json("status")["connections"]
        while time.monotonic() - start < 30:
            try:
                keep_going()
            except (OSError, wire.Closed):
                break
            if self.daemon.json("status")["connections"] < before:
                break
            time.sleep(0.3)
        else:
            self.fail("it is still connected")
        self.assertGreater(time.monotonic() - start, 1)

    def test_a_frame_that_trickles(self):
        """One byte now and then is no progress."""
        with wire.Connection(self.daemon.socket) as c:
            c.raw(wire.HEADER.pack(100000, wire.INGEST, 0, 1) + b"\x12\x01x")
            self.wait_for_end(c, lambda: c.raw(b"y"))

    def test_deadlines(self):
        self.daemon.json("ingest", "-", "--collection", "slow", text=documents_jsonl(self.documents(2, 2000)))
        with wire.Connection(self.daemon.socket) as c:
            big = cases.tokens(self.rng, 3000)
            for i in range(6):
                c.send(wire.INGEST, wire.message(f1="slow", f2="big%d" % i, f5=wire.tokens(big[i:])))
            c.send(wire.INGEST, wire.message(f1="slow", f2="late", f5=wire.tokens(big[10:]), f50=1))
            late = c.number
            while True:
                number, flags, reply = c.receive()
                if number == late:
                    break
                self.assertFalse(flags & wire.ERROR, reply)
            self.assertTrue(flags & wire.ERROR)
            self.assertEqual(wire.fields(reply)[1][0], CANCELLED)
            self.assertIn(b"1 ms", wire.fields(reply)[2][0])
        fetched = self.daemon.json("fetch", "--docs", "d000,d001", "--collection", "slow", "--query-tokens", "5",
                                   "--deadline", 60000)
        self.assertGreater(fetched["kept_tokens"], 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
