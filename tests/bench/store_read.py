"""What bench_store_read measured, as a table: medians of its rounds, and ratios to the raw reads of the same run.

usage: store_read.py DIR [MAX_THREADS [SECONDS]]    a store made with `bench_store_read make DIR GIB`

Starts a redis-server of its own on a socket when there is one, and fio over a file of the store's size beside it.
"""
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
sys.dont_write_bytecode = True
from harness import BIN  # noqa: E402

KINDS = ["raw_direct", "raw_buffered", "raw_ahead", "map", "record", "record_direct", "block",
         "block_direct", "block_warm", "safetensors", "redis"]


def fio(path, size, threads, seconds):
    """MB/s of random reads of `size` bytes with O_DIRECT; None when fio is not installed."""
    if not shutil.which("fio"):
        return None
    done = subprocess.run(["fio", "--name=read", "--readonly", "--rw=randread", "--direct=1", "--ioengine=psync",
                           "--bs=%d" % size, "--thread", "--numjobs=%d" % threads, "--time_based", "--group_reporting",
                           "--runtime=%g" % seconds, "--filename=%s" % path, "--output-format=json"],
                          capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["jobs"][0]["read"]["bw_bytes"] / 1e6


def rows_of(store, threads, seconds, folder):
    command, redis = [str(BIN / "bench_store_read"), "run", store, threads, seconds], None
    if shutil.which("redis-server"):
        path = folder + "/r"
        redis = subprocess.Popen(["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder],
                                 stdout=subprocess.DEVNULL)
        while not pathlib.Path(path).exists():
            redis.poll()
        command.append(path)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]
    finally:
        if redis:
            redis.terminate()
            redis.wait()


def main(arguments):
    if not arguments or len(arguments) > 3:
        print(__doc__, file=sys.stderr)
        return 2
    store, most, seconds = (arguments + ["8", "2"][len(arguments) - 1:])[:3]
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_of(store, most, seconds, folder)
    about, rows = rows[0], rows[1:]
    counts = sorted({r["threads"] for r in rows})
    page = -(-about["block_stored"] // 4096) * 4096
    beside = {t: fio(store + "/data.mdb", page, t, float(seconds)) for t in counts}
    print(json.dumps(about))
    for row in rows:
        print(json.dumps(row))
    print("\n%-14s" % "MB/s" + "".join("%10d" % t for t in counts) + "   threads")
    medians = {}
    for kind in KINDS:
        for t in counts:
            values = [r["mb_s"] for r in rows if r["kind"] == kind and r["threads"] == t]
            medians[kind, t] = statistics.median(values) if values else None
        print("%-14s" % kind + "".join("%10s" % ("-" if medians[kind, t] is None else "%.0f" % medians[kind, t])
                                       for t in counts))
    print("%-14s" % "fio direct" + "".join("%10s" % ("-" if beside[t] is None else "%.0f" % beside[t]) for t in counts))
    for of, to in (("record_direct", "raw_direct"), ("block_direct", "raw_direct"), ("record", "raw_buffered"), ("record", "map")):
        print("%-28s" % ("%s / %s" % (of, to)) + " ".join("%.2f" % (medians[of, t] / medians[to, t]) for t in counts))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
