"""A load test: clients of several users fetch, ingest, remove, send garbage and hang up, all at once.

It fails when an answer is not the one that must come (BUSY may always), when memory or descriptors grow, when the
daemon's counters are not what the clients counted, or when it does not end cleanly. Prints what was measured. With
--strict the 99th percentile of small fetches must be within five times the median, which a busy machine may spoil.
    load.py --clients 200 --seconds 600 --pause 0 --strict
Root's clients are of four users; anybody else's are of one.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
import cases
import models
from harness import Daemon, documents_jsonl, under_sanitizer

SHARED_DOCUMENTS = 16       # as load_clients.c has it
USERS = (5001, 5002, 5003, 5004)
GROWTH_BYTES = 24 << 20     # of the median of private memory from the second to the last fifth of the run
SETTLE_S = 30


def clients_of(daemon, uid, count, options, seed, hidden):
    programs, environment = daemon.programs_for_all("load_clients")
    command = [programs / "load_clients", daemon.socket, count, options.seconds, options.pause, seed, hidden]
    become = {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False,
                          env=dict(os.environ, **environment), **become)
    sys.stderr.write(done.stderr)
    if done.returncode:
        raise SystemExit("load_clients ended with %d" % done.returncode)
    return json.loads(done.stdout)


def watch(daemon, seconds):
    """(private memory, descriptors, answers within a second) some times a second."""
    samples, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        samples.append((daemon.resident_bytes(), daemon.open_fds()))
        time.sleep(min(1.0, seconds / 30))
    return samples


def fifth(samples, which, column):
    n = len(samples)
    return statistics.median(s[column] for s in samples[which * n // 5:(which + 1) * n // 5])


def settled(daemon):
    """The daemon's status once nothing runs any more."""
    end = time.monotonic() + SETTLE_S
    while True:
        status = daemon.json("status")
        if (status["connections"], status["counters"].get("requests_running")) == (1, 1) or time.monotonic() > end:
            return status
        time.sleep(0.2)


def add(results):
    total = {}
    for result in results:
        for name, value in result.items():
            if name in ("fetch_ms", "late_ms"):
                continue
            if isinstance(value, list):
                total[name] = [a + b for a, b in zip(total.get(name, [0, 0]), value)]
            else:
                total[name] = total.get(name, 0) + value
    return total


def check_counters(total, counters, before, problems):
    """What the clients counted against what the daemon did: requests that were dropped may have run or not."""
    def counted(name):
        return counters[name] - before.get(name, 0)

    dropped = total["drop"][0]
    for name, seen in (("requests_fetch", total["fetch"][0] + total["fetch_own"][0] + total["refused"][0]),
                       ("requests_ingest", total["ingest"][0]), ("requests_remove", total["remove"][0]),
                       ("requests_list", total["list"][0])):
        slack = dropped + total["refused"][0] + sum(total[w][1] for w in ("fetch", "fetch_own", "refused", "ingest"))
        low = seen - (total["refused"][0] if name == "requests_fetch" else 0)
        if not low <= counted(name) <= seen + slack:
            problems.append("%s is %d, the clients saw %d and dropped %d" % (name, counted(name), seen, dropped))
    busy = sum(value[1] for value in total.values() if isinstance(value, list)) + total["connects_busy"]
    told = counted("requests_busy") + counted("connections_refused")
    if told < busy or told > busy + dropped:
        problems.append("%d were told BUSY, the daemon counts %d" % (busy, told))
    if counted("protocol_errors") < total["garbage"][0]:
        problems.append("%d sent garbage, the daemon counts %d" % (total["garbage"][0], counted("protocol_errors")))


def run(options, daemon):
    rng = cases.seeded(9)
    own = "--block-size", 8, "--init-tokens", 8, "--local-tokens", 8
    daemon.json("ingest", "-", "--collection", "load", *own, text=documents_jsonl(
        {"s%d" % i: cases.tokens(rng, 60) for i in range(SHARED_DOCUMENTS)}))
    users = USERS if os.getuid() == 0 else (None,)
    if os.getuid() == 0:
        daemon.json("set", "load", "--mode", "0644")
        daemon.json("ingest", "-", "--collection", "hidden", text=documents_jsonl({"s0": cases.tokens(rng, 60)}))
        os.chmod(daemon.folder, 0o711)
        os.chmod(daemon.socket, 0o666)
    daemon.programs_for_all("load_clients")     # before threads ask for them
    before, fds = daemon.json("status")["counters"], daemon.open_fds()
    share = options.clients // len(users)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = [pool.submit(clients_of, daemon, uid, share, options, 100 + i, "hidden" if uid else "")
                   for i, uid in enumerate(users)]
        samples = watch(daemon, options.seconds)
        results = [r.result() for r in running]
    total, status = add(results), settled(daemon)
    latency = sorted(ms for r in results for ms in r["fetch_ms"][:-1])
    late = sorted(ms for r in results for ms in r["late_ms"][:-1])
    report(options, total, latency, samples, status, fds, daemon)
    print("sleeps of 1 ms beside it, too long by ms: median %.2f, 90 %% %.2f, 99 %% %.2f, most %.2f" % (
        *(percentile(late, p) for p in (.5, .9, .99)), late[-1]), flush=True)
    problems = []
    check(options, total, latency, samples, status, fds, daemon, problems)
    check_counters(total, status["counters"], before, problems)
    return problems


def percentile(values, p):
    return values[min(len(values) - 1, int(p * len(values)))] if values else 0


def report(options, total, latency, samples, status, fds, daemon):
    requests = sum(value[0] for value in total.values() if isinstance(value, list))
    print("%d clients, %d s: %d requests, %s" % (options.clients, options.seconds, requests, ", ".join(
        "%s %d" % (name, value[0]) for name, value in total.items() if isinstance(value, list))))
    print("wrong %d, busy %s, connections %d (%d refused)" % (
        total["wrong"], sum(value[1] for value in total.values() if isinstance(value, list)), total["connects"],
        total["connects_busy"]))
    print("small fetches, ms: median %.2f, 90 %% %.2f, 99 %% %.2f, most %.2f; 99 %% over median %.2f" % (
        percentile(latency, .5), percentile(latency, .9), percentile(latency, .99), latency[-1] if latency else 0,
        percentile(latency, .99) / max(percentile(latency, .5), 1e-9)))
    print("private memory, MB: %.1f in the second fifth, %.1f in the last, %.1f at most; descriptors %d before, %d at most, "
          "%d after; documents %d" % (fifth(samples, 1, 0) / 1e6, fifth(samples, 4, 0) / 1e6,
                                      max(s[0] for s in samples) / 1e6, fds, max(s[1] for s in samples),
                                      daemon.open_fds(), status["documents"]), flush=True)


def check(options, total, latency, samples, status, fds, daemon, problems):
    if total["wrong"]:
        problems.append("%d answers were wrong" % total["wrong"])
    if min(total[name][0] for name in ("fetch", "ingest", "remove", "list", "refused", "drop", "garbage", "half")) == 0:
        problems.append("something was never done")
    if status["connections"] != 1 or status["counters"].get("requests_running") != 1:
        problems.append("something goes on: %d connections, %d requests" % (
            status["connections"], status["counters"].get("requests_running", 0)))
    growth = fifth(samples, 4, 0) - fifth(samples, 1, 0)
    if growth > GROWTH_BYTES and not under_sanitizer():
        problems.append("memory grew by %.1f MB" % (growth / 1e6))
    if daemon.open_fds() > fds + 2:
        problems.append("%d descriptors before, %d after" % (fds, daemon.open_fds()))
    if options.strict and percentile(latency, .99) > 5 * percentile(latency, .5):
        problems.append("the 99th percentile is more than five times the median")
    if daemon.json("verify")["damaged"]:
        problems.append("the store is damaged")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--pause", type=int, default=100, help="milliseconds between a client's requests, on average")
    parser.add_argument("--strict", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="samkv-models-") as folder:
        model = models.make_model(folder + "/llama", "llama", layers=2, hidden=32)
        with Daemon({"llama": model}, arguments=["--log-level", "error", "--max-connections", "512", "--threads", "1"]) as daemon:
            problems = run(options, daemon)
    for problem in problems:
        print("load.py: " + problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
