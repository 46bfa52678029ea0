"""Hot fetches with and without memory in front of the store, on the CPU, in one run; the disk's pages are in the page
cache in both. Standard library only.

    tiers.py MODEL QUESTIONS.jsonl [ROUNDS]

QUESTIONS.jsonl: {"question", "documents": [{"text"}, ...]} a line; the first line is used.
"""
import json
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
from harness import Daemon  # noqa: E402

REQUESTS = (
    ("sparse (ratio 0.15)", []),
    ("every token, nothing recomputed", ["--ratio", "1.0", "--no-recompute"]),
)


def measure(daemon, names, question, options, rounds):
    """Median milliseconds of index, read and total, and the last one's bytes from the store."""
    said = [daemon.json("fetch", "--docs", ",".join(names), "--query", question, *options) for _ in range(rounds + 1)]
    times = [s["timing_ms"] for s in said[1:]]
    return [statistics.median(t[k] for t in times) for k in ("index", "read", "total")] + [said[-1]["bytes_read"]]


def main():
    model, questions = sys.argv[1], sys.argv[2]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 9
    case = json.loads(pathlib.Path(questions).read_text().splitlines()[0])
    names = ["d%d" % i for i in range(len(case["documents"]))]
    lines = "".join(json.dumps({"id": n, "text": d["text"]}) + "\n" for n, d in zip(names, case["documents"]))
    off = Daemon({"m": model}, arguments=["--host-cache-bytes", "0"])
    on = Daemon({"m": model}, arguments=["--host-cache-bytes", "1G"])
    with off, on:
        stored = 0
        for daemon in (off, on):
            stored = daemon.json("ingest", "-", text=lines)["bytes_stored"]
        print("%d documents, %.1f MB stored" % (len(names), stored / 1e6))
        print("%-34s %-8s %10s %10s %10s %14s" % ("", "memory", "index ms", "read ms", "total ms", "MB from store"))
        for label, options in REQUESTS:
            for name, daemon in (("off", off), ("on", on), ("off", off), ("on", on)):
                index, read, total, stored = measure(daemon, names, case["question"], options, rounds)
                print("%-34s %-8s %10.2f %10.2f %10.1f %14.1f" % (label, name, index, read, total, stored / 1e6))
        tier = next(t for t in on.json("status")["tiers"] if t["tier"] == "host")
        print("memory used: %.1f MB" % (tier["bytes_used"] / 1e6))


if __name__ == "__main__":
    main()
