"""What samkvd holds in memory while it serves from a store far larger than its budget. Linux; Python 3 with numpy.

    resident.py [--gigabytes 2] [--budget 256M]

Makes a store of that size (a tiny model with a wide KV cache, random token ids, codec raw), starts the daemon anew with
and without memory in front of it, and reads every document twice through fetches that keep every token. Prints its
resident set: anonymous memory (what the budget is about) and pages of files (weights and data file, which the kernel
takes back when it likes), each as it is at rest, the highest seen while reading, and afterwards.
"""
import argparse
import json
import pathlib
import random
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
import models  # noqa: E402
from harness import Daemon, documents_jsonl  # noqa: E402

LAYERS, HIDDEN, HEADS = 16, 128, 2
TOKENS = 1024     # of a document
MB = 1e6


def resident(daemon):
    """Anonymous, file and shared memory in MB."""
    status = pathlib.Path("/proc/%d/status" % daemon.process.pid).read_text()
    return [int(status.split(name + ":")[1].split()[0]) * 1024 / MB for name in ("RssAnon", "RssFile", "RssShmem")]


class Watch(threading.Thread):
    """The highest of each, sampled a hundred times a second."""

    def __init__(self, daemon):
        super().__init__(daemon=True)
        self.subject, self.most, self.over = daemon, [0, 0, 0], False

    def run(self):
        while not self.over:
            self.most = [max(a, b) for a, b in zip(self.most, resident(self.subject))]
            time.sleep(0.01)


def fill(daemon, gigabytes):
    """Documents until the store has so much. Returns their ids."""
    rng, names = random.Random(1), []
    while daemon.json("status")["bytes_used"] < gigabytes * 1e9:
        batch = {"d%05d" % (len(names) + i): [rng.randrange(3, models.VOCABULARY) for _ in range(TOKENS)]
                 for i in range(16)}
        daemon.json("ingest", "-", text=documents_jsonl(batch), timeout=3600)
        names += batch
    return names


def touch_everything(daemon, names):
    for at in range(0, len(names), 2):
        daemon.json("fetch", "--docs", ",".join(names[at:at + 2]), "--query-tokens", "5,6", "--ratio", "1.0",
                    "--no-recompute", timeout=3600)


def main():
    parser = argparse.ArgumentParser(description="samkvd's memory beside its budget")
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("--budget", default="256M")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="samkv-models-") as folder:
        path = models.make_model("%s/wide" % folder, "llama", layers=LAYERS, hidden=HIDDEN, heads=HEADS)
        daemon = Daemon({"wide": path}, arguments=["--codec", "raw", "--host-cache-bytes", "0"])
        with daemon:
            names = fill(daemon, options.gigabytes)
            print("%d documents, %.2f GB in use, weights %.0f MB" %
                  (len(names), daemon.json("status")["bytes_used"] / 1e9,
                   daemon.json("status")["models"][0]["weight_bytes"] / MB))
            print("%-10s %-22s %10s %10s %10s" % ("budget", "MB", "anonymous", "files", "shared"))
            for budget in ("0", options.budget):
                daemon.stop()
                daemon.arguments = ["--codec", "raw", "--host-cache-bytes", budget]
                daemon.start()
                rows = [("at rest", resident(daemon))]
                watch = Watch(daemon)
                watch.start()
                for _ in range(2):
                    touch_everything(daemon, names)
                watch.over = True
                watch.join()
                rows += [("highest while reading", watch.most), ("after all was read", resident(daemon))]
                for label, values in rows:
                    print("%-10s %-22s %10.1f %10.1f %10.1f" % ((budget, label) + tuple(values)))
                tiers = [t for t in daemon.json("status")["tiers"] if t["tier"] == "host"]
                if tiers:
                    print(json.dumps(tiers[0]))


if __name__ == "__main__":
    main()
