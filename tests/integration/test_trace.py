"""What became of a request: traces, the log, `top`, and damage that was met."""
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
import unittest

import cases
import exposition
import wire
from harness import DONE, SOME_FAILED, WRONG_USAGE, Daemon, documents_jsonl
from observed import DEADLINE_S, Case, Observed, eventually

PHASES = ("index", "query", "select", "read", "recompute", "reply")
NOBODY = 65534


class Traces(Case):
    def trace(self, number, daemon=None):
        found = (daemon or self.daemon).json("trace", number)["requests"]
        self.assertEqual(len(found), 1)
        return found[0]

    def test_a_fetch_from_its_reply_to_its_timeline(self):
        figures = self.fetch("d2", "d0")
        t = self.trace(figures["request"])
        self.assertEqual((t["request"], t["type"], t["status"], t["running"]),
                         (figures["request"], "FETCH", "OK", False))
        self.assertEqual((t["documents"], t["document_count"], t["uid"], t["gid"]),
                         (["d2", "d0"], 2, os.getuid(), os.getgid()))
        self.assertGreater(t["pid"], 1)
        self.assertEqual((t["tokens"], t["kept_tokens"]), (figures["total_tokens"], figures["kept_tokens"]))
        self.assertEqual(t["read_bytes"], figures["bytes_read"])
        self.assertGreater(t["cache_bytes"], 0)
        self.assertGreater(t["reply_bytes"], 0)
        self.check_spans(t, figures["timing_ms"])
        self.assertIn("req=%d " % figures["request"], self.daemon.log(400))

    def check_spans(self, t, timing):
        starts = [s["start_ms"] for s in t["spans"]]
        self.assertEqual(starts, sorted(starts))
        for s in t["spans"]:
            self.assertGreaterEqual(s["start_ms"], 0)
            self.assertLessEqual(s["start_ms"] + s["ms"], t["ms"] + 1e-6)
        for phase in PHASES:
            took = sum(s["ms"] for s in t["spans"] if s["phase"] == phase)
            self.assertAlmostEqual(took, timing[phase], delta=0.01, msg=phase)

    def test_an_ingest_has_prefill_and_commit(self):
        self.daemon.json("ingest", "-", "--collection", "traced",
                         text=documents_jsonl({"only": cases.tokens(self.rng, 60)}))
        t = self.daemon.json("trace", "--limit", 1)["requests"][0]
        self.assertEqual((t["type"], t["collection"], t["documents"]), ("INGEST", "traced", ["only"]))
        self.assertEqual([s["phase"] for s in t["spans"]], ["queue", "prefill", "commit"])

    def test_a_failure_keeps_its_reason(self):
        self.daemon.refuse(self, SOME_FAILED, "fetch", "--docs", "nope", "--query-tokens", "5")
        t = self.daemon.json("trace", "--limit", 1)["requests"][0]
        self.assertEqual((t["status"], t["documents"]), ("NOT_FOUND", ["nope"]))
        self.assertIn("nope", t["error"])
        self.assertRegex(self.daemon.log(60), r"failed req=%d type=FETCH uid=%d pid=%d .*status=NOT_FOUND" %
                         (t["request"], t["uid"], t["pid"]))

    def test_who_looks_on_is_not_listed(self):
        figures = self.fetch()
        for _ in range(5):
            self.daemon.json("status")
            self.daemon.json("trace")
        newest = self.daemon.json("trace", "--limit", 1)["requests"][0]
        self.assertEqual(newest["request"], figures["request"])

    def test_numbers_are_the_daemons(self):
        """One number a request, whoever asks and however its client counts."""
        with wire.Connection(self.daemon.socket) as a, wire.Connection(self.daemon.socket) as b:
            body = wire.message(f2=["d0"], f4=wire.tokens([5, 6]))
            numbers = []
            for c in (a, b, a, b):
                flags, said = c.ask(wire.FETCH, body)
                self.assertFalse(flags & wire.ERROR)
                numbers.append(wire.fields(said)[40][0] if isinstance(said, bytes) else said[40][0])
        self.assertEqual(len(set(numbers)), 4)
        self.assertEqual(numbers, sorted(numbers))

    def test_numbers_that_are_gone(self):
        for number in (1 << 40, (1 << 63) - 1):
            self.assertIn("not among", self.daemon.refuse(self, SOME_FAILED, "trace", number))
        self.daemon.refuse(self, WRONG_USAGE, "trace", "x")

    def test_hostile_trace_requests(self):
        with wire.Connection(self.daemon.socket) as c:
            for payload in (b"\x0a\xff\xff\xff\xff\x7f", b"\x07", b"\x08", b"\xff" * 50):
                self.assertTrue(c.error_of(wire.TRACE, payload)[1])
            for body in (wire.message(f2=0xFFFFFFFF), wire.message(f99=b"x" * 1000), b""):
                flags, _ = c.ask(wire.TRACE, body)
                self.assertFalse(flags & wire.ERROR)

    def test_names_of_every_length_come_back_as_text(self):
        for length in (95, 96, 97, 255):
            name = ("é" * 200).encode()[:length].decode(errors="ignore")
            self.daemon.refuse(self, SOME_FAILED, "fetch", "--docs", name, "--query-tokens", "5")
            shown = self.daemon.json("trace", "--limit", 1)["requests"][0]["documents"][0]
            self.assertTrue(name == shown or (shown.endswith("...") and name.startswith(shown[:-3])), shown)

    @unittest.skipIf(os.getuid() != 0, "only root can be another user")
    def test_others_see_only_their_own(self):
        figures = self.fetch()
        os.chmod(self.daemon.folder, 0o711)
        os.chmod(self.daemon.socket, 0o666)

        def as_nobody(*arguments):
            return subprocess.run(self.daemon.command(*arguments), capture_output=True, text=True, check=False,
                                  user=NOBODY, group=NOBODY, extra_groups=[], timeout=DEADLINE_S)

        try:
            probe = as_nobody("ping")
        except PermissionError:
            self.skipTest("this place does not let root be another user")
        if probe.returncode != DONE:
            self.skipTest("another user cannot run samkvctl here: %s" % probe.stderr)
        self.assertEqual(json.loads(as_nobody("trace", "--json").stdout), {"requests": []})
        self.daemon.json("set", "default", "--mode", "0644")
        self.assertEqual(as_nobody("trace", str(figures["request"])).returncode, SOME_FAILED)
        own = as_nobody("fetch", "--docs", "d0", "--query-tokens", "5", "--json")
        seen = json.loads(as_nobody("trace", "--json").stdout)["requests"]
        self.assertEqual([(t["request"], t["uid"]) for t in seen], [(json.loads(own.stdout)["request"], NOBODY)])
        self.assertEqual(self.trace(seen[0]["request"])["uid"], NOBODY)


class Damage(Case):
    def test_damage_is_counted_and_shown(self):
        """One byte in each long record is wrong: what is met is counted, and computed again."""
        self.daemon.json("ingest", "-", "--collection", "long", text=documents_jsonl(
            {"l%d" % i: cases.tokens(self.rng, 400) for i in range(2)}))
        store = bytearray((self.daemon.store / "data.mdb").read_bytes())
        page_bytes, page, damaged = 4096, 0, 0
        while (page + 1) * page_bytes <= len(store):
            number, flags, pages = struct.unpack_from("<Q2xHI", store, page * page_bytes)
            record = number == page and flags == 4 and 1 < pages < 10000   # an overflow page of LMDB
            if record:
                store[page * page_bytes + pages * page_bytes // 2] ^= 0xFF
                damaged += 1
            page += pages if record else 1
        self.assertGreater(damaged, 2)
        daemon = Observed(self.paths)
        daemon.store.mkdir(mode=0o700)
        (daemon.store / "data.mdb").write_bytes(store)
        with daemon:
            figures = daemon.json("fetch", "--docs", "l0,l1", "--collection", "long", "--query-tokens", "5,6,7",
                                  "--ratio", 1)
            t = daemon.json("trace", figures["request"])["requests"][0]
            self.assertIn("heal", [s["phase"] for s in t["spans"]])
            counters = daemon.json("status")["counters"]
            self.assertGreater(counters["checksum_failures"], 0)
            self.assertGreater(counters["repaired_records"], 0)
            eventually(self, "the metrics tell of it", lambda: exposition.value(
                daemon.scrape(), "samkv_damaged_records_total") >= counters["checksum_failures"])
            self.assertEqual(exposition.value(daemon.scrape(), "samkv_repaired_records_total"),
                             counters["repaired_records"])


class Top(Case):
    def watch(self, rows, columns):
        """`top` on a terminal of its own: (process, our end, its terminal's settings before)"""
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        self.addCleanup(os.close, theirs)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        before = termios.tcgetattr(theirs)
        process = subprocess.Popen(self.daemon.command("top", "--interval", "0.1"), stdin=theirs, stdout=theirs,
                                   stderr=theirs, start_new_session=True)
        self.addCleanup(process.kill)
        return process, ours, theirs, before

    def read_until(self, ours, holds):
        seen = b""
        deadline = time.monotonic() + DEADLINE_S
        while not holds(seen):
            self.assertLess(time.monotonic(), deadline, seen[-2000:])
            os.set_blocking(ours, False)
            try:
                seen += os.read(ours, 65536)
            except BlockingIOError:
                time.sleep(0.02)
        return seen

    def screens(self, seen):
        """What was drawn, screen by screen, as lines without codes."""
        return [re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", part).split("\r\n")
                for part in seen.decode().split("\x1b[H")[1:]]

    def test_it_fits_the_terminal_and_leaves_it_as_it_was(self):
        self.fetch()
        for rows, columns, end in ((24, 80, "interrupt"), (10, 40, "key"), (3, 20, "terminate")):
            process, ours, theirs, before = self.watch(rows, columns)
            seen = self.read_until(ours, lambda s: s.count(b"\x1b[J") >= 3)
            for screen in self.screens(seen)[:2]:
                self.assertLessEqual(len(screen), rows)
                self.assertLessEqual(max(map(len, screen)), columns)
            if end == "key":
                os.write(ours, b"q")
            else:
                process.send_signal(signal.SIGINT if end == "interrupt" else signal.SIGTERM)
            self.assertEqual(process.wait(DEADLINE_S), DONE)
            self.read_until(ours, lambda s: s.endswith(b"\x1b[?25h\x1b[?1049l"))
            self.assertEqual(termios.tcgetattr(theirs), before)

    def test_another_size_is_drawn_at_once(self):
        process, ours, theirs, _ = self.watch(24, 80)
        self.read_until(ours, lambda s: b"\x1b[J" in s)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 6, 30, 0, 0))
        process.send_signal(signal.SIGWINCH)
        self.read_until(ours, lambda s: any(len(x) == 6 and max(map(len, x)) <= 30 for x in self.screens(s)[:-1]))
        os.write(ours, b"q")
        self.assertEqual(process.wait(DEADLINE_S), DONE)

    def test_the_daemon_going_away_ends_it_in_order(self):
        daemon = Daemon({})
        with daemon:
            kept, self.daemon = self.daemon, daemon
            try:
                process, ours, theirs, before = self.watch(24, 80)
            finally:
                self.daemon = kept
            self.read_until(ours, lambda s: b"\x1b[J" in s)
            daemon.stop()
            self.assertEqual(process.wait(DEADLINE_S), 3)
            seen = self.read_until(ours, lambda s: b"samkvctl: " in s)
            self.assertLess(seen.index(b"\x1b[?1049l"), seen.index(b"samkvctl: "))   # told where it stays to be read
            self.assertEqual(termios.tcgetattr(theirs), before)

    def test_for_scripts(self):
        self.fetch()
        seen = self.daemon.json("top", "--interval", 0.2)
        total = next(p for p in seen["phases"] if (p["name"], p["phase"]) == ("fetch_phase_seconds", "total"))
        self.assertGreaterEqual(total["all"]["count"], 1)
        self.assertGreater(total["all"]["p99_ms"], 0)
        self.assertEqual([t["tier"] for t in seen["tiers"]][-1], "disk")
        self.assertTrue(seen["slowest"])
        once = self.daemon.ctl("top", "--once", "--interval", 0.2)
        self.assertEqual(once.returncode, DONE)
        self.assertIn("fetch total", once.stdout)
        self.assertNotIn("\x1b", once.stdout)


class Log(Case):
    def test_a_storm_of_failures_is_cut_and_counted(self):
        with wire.Connection(self.daemon.socket) as c:
            body = wire.message(f2=["storm"], f4=wire.tokens([5]))
            for _ in range(300):
                c.error_of(wire.FETCH, body)
        eventually(self, "what was suppressed is told", lambda: "suppressed=" in self.daemon.log(10000))
        lines = self.daemon.log(10000).splitlines()
        told = sum(int(re.search(r"suppressed=(\d+)", line).group(1)) for line in lines if "suppressed=" in line)
        failed = sum("'storm'" in line for line in lines)
        eventually(self, "all are told of", lambda: self.told() == 300)
        self.assertLess(failed, 150)
        self.assertLessEqual(told + failed, 300)

    def told(self):
        lines = self.daemon.log(10000).splitlines()
        return (sum(int(re.search(r"suppressed=(\d+)", line).group(1)) for line in lines if "suppressed=" in line) +
                sum("'storm'" in line for line in lines))

    def test_an_agents_name_makes_no_fields(self):
        with wire.Connection(self.daemon.socket, hello=False) as c:
            hello = wire.message(f1=b"samkv", f2=1, f3=1, f4='x uid=0 req=1: "\n\x1b[31m é')
            c.send(wire.HELLO, hello)
            c.receive()
            c.error_of(wire.FETCH, wire.message(f2=["named"], f4=wire.tokens([5])))
        line = next(x for x in self.daemon.log(10000).splitlines() if "'named'" in x)
        self.assertRegex(line, r" agent=x_uid_0_req_1___[^ ]* status=NOT_FOUND ")

    def test_priorities_where_the_journal_reads_stderr(self):
        if os.path.exists("/run/systemd/journal/socket"):
            self.skipTest("here the lines would go to the machine's own journal")
        daemon = Observed({})
        daemon.log_path.touch()
        at = os.stat(daemon.log_path)
        daemon.environment["JOURNAL_STREAM"] = "%d:%d" % (at.st_dev, at.st_ino)
        with daemon:
            pass_lines = daemon.log(100).splitlines()
        self.assertTrue(pass_lines)
        for line in pass_lines:
            self.assertRegex(line, r"^<[34567]>")


if __name__ == "__main__":
    unittest.main(verbosity=2)
