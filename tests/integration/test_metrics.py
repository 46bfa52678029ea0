"""What an operator looks at: /metrics and /healthz, the dashboard over them, traces of requests, `top`, and the log."""
import fcntl
import http.client
import json
import os
import pathlib
import pty
import re
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import termios
import threading
import time
import unittest

import cases
import exposition
import models
import wire
from harness import DONE, ROOT, SOME_FAILED, WRONG_USAGE, Daemon, comma, documents_jsonl, enter

PHASES = ("queue", "index", "query", "select", "read", "recompute", "reply", "total")
DEADLINE_S = 60
NOBODY = 65534
DASHBOARD = ROOT / "systemd" / "samkvd-dashboard.json"


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


class Metrics(Case):
    def test_the_format_is_what_scrapers_want(self):
        families = self.daemon.scrape()   # the parser is strict
        self.assertGreater(len(families), 40)
        for name in families:
            self.assertRegex(name, "^(samkv|process)_")
        version = self.daemon.json("status")["version"]
        self.assertEqual(exposition.value(families, "samkv_build_info", version=version), 1)

    def test_counters_are_what_was_done(self):
        def number(families, name, **labels):
            return exposition.value(families, name, **labels)

        before = self.daemon.scrape()
        figures = [self.fetch() for _ in range(4)]
        self.daemon.refuse(self, SOME_FAILED, "fetch", "--docs", "nope", "--query-tokens", "5")
        ingested = self.daemon.json("ingest", "-", text=documents_jsonl({"new": cases.tokens(self.rng, 77)}))
        self.daemon.json("ingest", "-", text=documents_jsonl({"new-too": [5] * 40, "again": [5] * 40}))
        self.daemon.json("rm", "new", "new-too", "again")
        after = self.daemon.scrape()

        def grown(name, **labels):
            return number(after, name, **labels) - number(before, name, **labels)

        self.assertEqual(grown("samkv_requests_total", type="fetch"), 5)
        self.assertEqual(grown("samkv_requests_failed_total"), 1)
        self.assertEqual(grown("samkv_requests_busy_total"), 0)
        self.assertEqual(grown("samkv_requests_total", type="ingest"), 3)
        self.assertEqual(grown("samkv_ingest_tokens_total"), 77 + 2 * 40)
        self.assertEqual(grown("samkv_ingest_documents_total", result="stored"), 3)
        self.assertGreaterEqual(grown("samkv_store_written_bytes_total"), ingested["bytes_stored"])
        self.assertEqual(grown("samkv_store_read_bytes_total"), sum(f["bytes_read"] for f in figures))
        self.assertEqual(grown("samkv_fetch_stored_bytes_total"), sum(f["bytes_stored"] for f in figures))
        self.assertEqual(grown("samkv_fetch_tokens_total", kind="kept"), sum(f["kept_tokens"] for f in figures))
        self.assertEqual(grown("samkv_fetch_tokens_total", kind="all"), sum(f["total_tokens"] for f in figures))
        for phase in PHASES:
            self.assertEqual(grown("samkv_fetch_phase_seconds_count", phase=phase), 4, phase)
            seconds = sum(f["timing_ms"][phase] for f in figures) / 1e3
            self.assertAlmostEqual(grown("samkv_fetch_phase_seconds_sum", phase=phase), seconds, delta=1e-6)
        for phase in ("queue", "prefill", "commit", "total"):
            self.assertEqual(grown("samkv_ingest_phase_seconds_count", phase=phase), 3, phase)
        for ratio in ("sequence", "recompute"):
            self.assertEqual(grown("samkv_fetch_%s_ratio_count" % ratio), 4)
            self.assertAlmostEqual(grown("samkv_fetch_%s_ratio_sum" % ratio),
                                   sum(f[ratio + "_ratio"] for f in figures), delta=1e-6)

    def test_status_and_metrics_agree(self):
        self.fetch()
        counters, families = self.daemon.json("status")["counters"], self.daemon.scrape()
        for name, metric, labels in (("requests_fetch", "samkv_requests_total", {"type": "fetch"}),
                                     ("ingest_tokens", "samkv_ingest_tokens_total", {}),
                                     ("fetch_bytes_read", "samkv_store_read_bytes_total", {}),
                                     ("requests_failed", "samkv_requests_failed_total", {})):
            self.assertEqual(counters[name], exposition.value(families, metric, **labels), name)

    def test_every_counter_of_status_is_exposed(self):
        def exposed():
            return sum(len(f.samples) for f in self.daemon.scrape().values() if f.type != "histogram")

        self.assertGreaterEqual(exposed(), len(self.daemon.json("status")["counters"]))

    def test_the_stores_sums_come_in_their_own_time(self):
        name = "sums-%d" % self.rng.randrange(1 << 30)
        self.daemon.json("ingest", "-", "--collection", name, text=documents_jsonl({"x": cases.tokens(self.rng, 50)}))
        wanted = self.daemon.json("status")["documents"]
        eventually(self, "the number of documents is that of status",
                   lambda: exposition.value(self.daemon.scrape(), "samkv_store_documents") == wanted)
        self.daemon.json("rm", "x", "--collection", name)

    def test_other_paths_and_methods(self):
        path = self.daemon.metrics_path
        self.assertEqual(ask(path, "/healthz")[0::2], (200, "ok\n"))
        self.assertEqual(ask(path, "/metrics", method="HEAD")[0::2], (200, ""))
        for url in ("/", "/metrics/", "/metricsx", "/../etc/passwd", "/" + "a" * 5000):
            self.assertEqual(ask(path, url)[0], 404, url)
        for method in ("POST", "PUT", "DELETE"):
            self.assertEqual(ask(path, "/metrics", method=method)[0], 405, method)
        self.assertEqual(ask(path, "/healthz")[0], 200)

    def test_what_is_no_http_is_survived(self):
        for junk in (b"\x00" * 100, b"GET /metrics HTTP/9.9\r\n\r\n", b"GET " + b"a" * 100000 + b" HTTP/1.1\r\n\r\n",
                     b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 20000 + b"\r\n", b"\r\n\r\n", b""):
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(DEADLINE_S)
                s.connect(str(self.daemon.metrics_path))
                try:
                    s.sendall(junk)
                    s.shutdown(socket.SHUT_WR)
                    while s.recv(65536):
                        pass
                except (BrokenPipeError, ConnectionResetError, OSError):
                    pass
        self.daemon.scrape()
        self.assertEqual(self.daemon.ctl("ping").returncode, DONE)

    def test_scrapers_that_do_not_go_on_block_nobody_for_long(self):
        idle = []
        try:
            for _ in range(12):   # more than there is room for
                s = socket.socket(socket.AF_UNIX)
                idle.append(s)
                s.settimeout(DEADLINE_S)
                s.connect(str(self.daemon.metrics_path))
                s.sendall(b"GET /metrics HTTP/1.1\r\nHost:")
            self.fetch()   # the daemon itself is not held up
            self.daemon.scrape()   # and there is room again once they have timed out
        finally:
            for s in idle:
                s.close()

    def test_scrapes_beside_requests(self):
        """Counters never go back, and every text is whole."""
        failures, stop = [], threading.Event()

        def scrape():
            last = {}
            try:
                while not stop.is_set():
                    families = self.daemon.scrape()
                    for family in families.values():
                        for key, value in family.samples.items():
                            grows = family.type == "counter" or family.type == "histogram"
                            assert not grows or value >= last.get(key, 0), key
                            last[key] = value
            except Exception as error:  # pylint: disable=broad-except
                failures.append(error)

        threads = [threading.Thread(target=scrape) for _ in range(3)]
        for t in threads:
            t.start()
        for i in range(15):
            self.fetch()
            self.daemon.json("ingest", "-", text=documents_jsonl({"beside": cases.tokens(self.rng, 20 + i)}))
        stop.set()
        for t in threads:
            t.join()
        self.assertEqual(failures, [])
        self.daemon.json("rm", "beside")

    def test_descriptors_and_threads_do_not_pile_up(self):
        for _ in range(20):
            self.daemon.scrape()
        fds = self.daemon.open_fds()
        for _ in range(200):
            self.daemon.scrape()
        eventually(self, "the descriptors are level", lambda: self.daemon.open_fds() <= fds + 2)


class Endpoint(Case):
    """Where it listens, and how it ends."""

    def test_addresses_of_other_machines_are_refused(self):
        for address in ("0.0.0.0:9464", "example.org:80", "[::]:9464", "x"):
            done = subprocess.run([str(self.daemon.binaries / "samkvd"), "--store", str(self.daemon.folder / "other"),
                                   "--socket", str(self.daemon.folder / "o"), "--metrics", address],
                                  capture_output=True, text=True, check=False, timeout=DEADLINE_S)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn("127.0.0.1:PORT", done.stderr.splitlines()[-1])

    def test_a_port_on_this_machine(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        daemon = Daemon({}, arguments=["--metrics", "127.0.0.1:%d" % port])
        with daemon:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
            connection.request("GET", "/metrics")
            families = exposition.parse(connection.getresponse().read().decode())
            connection.close()
            self.assertEqual(exposition.value(families, "samkv_lane_jobs_waiting"), 0)

    def test_off_unless_asked_for(self):
        with Daemon({}) as daemon:
            listening = {line.split()[-1] for line in pathlib.Path("/proc/net/unix").read_text().splitlines()
                         if str(daemon.folder) in line}
            self.assertEqual(listening, {str(daemon.socket)})

    def test_the_socket_is_the_groups_and_goes_with_the_daemon(self):
        daemon = Observed({})
        with daemon:
            mode = os.stat(daemon.metrics_path)
            self.assertTrue(stat.S_ISSOCK(mode.st_mode))
            self.assertEqual(stat.S_IMODE(mode.st_mode), 0o660)
            daemon.kill()
            self.assertTrue(daemon.metrics_path.exists())
            daemon.start()   # what a crash left is replaced
            daemon.scrape()
            daemon.stop()
            self.assertFalse(daemon.metrics_path.exists())

    def test_a_second_daemon_does_not_take_it(self):
        done = subprocess.run([str(self.daemon.binaries / "samkvd"), "--store", str(self.daemon.folder / "second"),
                               "--socket", str(self.daemon.folder / "2"), "--metrics", str(self.daemon.metrics_path)],
                              capture_output=True, text=True, check=False, timeout=DEADLINE_S)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("another daemon", done.stderr)
        self.daemon.scrape()

    def test_not_healthy_while_it_stops(self):
        daemon = Observed({})
        with daemon, wire.Connection(daemon.socket) as c:
            # Answers that nobody reads: the daemon waits a while before it gives them up.
            for _ in range(60):
                c.send(wire.STATUS, wire.message(f41=1))
            eventually(self, "all are answered", lambda: exposition.value(
                daemon.scrape(), "samkv_requests_total", type="status") == 60)
            self.assertEqual(ask(daemon.metrics_path, "/healthz")[0::2], (200, "ok\n"))
            daemon.process.terminate()
            seen = set()
            while daemon.process.poll() is None:
                try:
                    seen.add(ask(daemon.metrics_path, "/healthz")[0::2])
                except OSError:
                    break
            self.assertIn((503, "stopping\n"), seen)


class Dashboard(Case):
    device = "cpu:discrete"   # its tiers are on the dashboard too

    def test_every_panel_asks_for_what_there_is(self):
        self.fetch()
        families = self.daemon.scrape()
        names = {name for f in families.values() for name, _ in f.samples}
        values = {}
        for family in families.values():
            for _, labels in family.samples:
                for label, value in labels:
                    values.setdefault(label, set()).add(value)
        board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
        panels = [p for p in board["panels"] if p["type"] != "row"]
        self.assertGreaterEqual(len(panels), 20)
        for panel in panels:
            self.assertTrue(panel["targets"], panel["title"])
            for target in panel["targets"]:
                self.check_expression(target["expr"], names, values, panel["title"])

    def check_expression(self, expr, names, values, title):
        asked = re.findall(r"\b(?:samkv|process)_[a-z0-9_]+", expr)
        self.assertTrue(asked, title)
        for name in asked:
            self.assertIn(name, names, title)
        for label, value in re.findall(r'(\w+)!?="([^"]*)"', expr):
            self.assertIn(value, values.get(label, ()), (title, expr))
        for labels in re.findall(r"by \(([^)]*)\)", expr):
            for label in labels.split(","):
                self.assertIn(label.strip(), values, (title, expr))
        self.assertEqual([expr.count(c) for c in "({["], [expr.count(c) for c in ")}]"], (title, expr))

    def test_panels_have_their_own_places(self):
        board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
        self.assertEqual(len({p["id"] for p in board["panels"]}), len(board["panels"]))
        taken = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            self.assertLessEqual(at["x"] + at["w"], 24)
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            self.assertFalse(cells & taken, panel["title"])
            taken |= cells

    def test_families_that_are_on_no_panel(self):
        """Each is left out on purpose: a new one belongs on the dashboard, or here."""
        text = DASHBOARD.read_text(encoding="utf-8")
        left = {name for name in self.daemon.scrape() if not re.search(r"\b%s(_bucket|_sum|_count)?\b" % name, text)}
        self.assertLessEqual(left, {
            "samkv_connections_accepted_total", "samkv_socket_received_bytes_total", "samkv_socket_sent_bytes_total",
            "samkv_ask_tokens_total", "samkv_store_collections", "samkv_store_names", "samkv_store_file_bytes",
            "samkv_store_limit_bytes", "samkv_store_sample_age_seconds", "samkv_tier_records",
            "samkv_device_replies", "samkv_device_replies_limit_bytes", "process_start_time_seconds"} |
            {name for name in left if self.is_unknown(name)})

    def is_unknown(self, name):
        """A counter without a row of its own in the table."""
        return self.daemon.scrape()[name].help == "As in samkvctl status."


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
        for phase in PHASES[1:-1]:
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
