"""/metrics and /healthz beside what was done, and the dashboard beside what is exposed."""
import http.client
import json
import os
import pathlib
import re
import socket
import stat
import subprocess
import threading
import unittest

import cases
import exposition
import wire
from harness import DONE, ROOT, SOME_FAILED, Daemon, documents_jsonl
from observed import DEADLINE_S, Case, Observed, ask, eventually

PHASES = ("queue", "index", "query", "select", "read", "recompute", "reply", "total")
DASHBOARD = ROOT / "systemd" / "samkvd-dashboard.json"


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
            self.assertEqual(daemon.process.wait(DEADLINE_S), 0)
            self.assertIn((503, "stopping\n"), seen)


class Dashboard(Case):
    device = "cpu:discrete"   # its tiers are on the dashboard too

    def test_every_panel_asks_for_what_there_is(self):
        self.fetch()
        self.daemon.json("set", "default", "--quality", "kl=5", "--gate-share", "0")
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
            "samkv_store_limit_bytes", "samkv_store_free_bytes", "samkv_store_punched_bytes_total", "samkv_quality_gates",
            "samkv_quality_waiting",
            "samkv_store_moved_bytes_total", "samkv_store_compactions_total", "samkv_store_allocated_bytes", "samkv_store_sample_age_seconds", "samkv_tier_records",
            "samkv_device_replies", "samkv_device_replies_limit_bytes", "process_start_time_seconds"} |
            {name for name in left if self.is_unknown(name)})

    def is_unknown(self, name):
        """A counter without a row of its own in the table."""
        return self.daemon.scrape()[name].help == "As in samkvctl status."


if __name__ == "__main__":
    unittest.main(verbosity=2)
