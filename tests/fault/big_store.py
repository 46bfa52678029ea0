"""The start of a daemon over a large store, and what it keeps in memory while it serves.

usage: big_store.py GIB [DIR] [OPTION=VALUE ...]    options of samkvd beside, like host-cache-bytes=256M

Makes a store of that size with `fault_store big` (random records, written at the disk's speed) in DIR (default: a folder
that goes away), starts samkvd over it and over an empty one in turn, cold and warm, and prints the times from exec to
the first answered ping; then reads documents through `samkvctl verify` and prints the resident memory beside the
empty daemon's. One JSON object. Not a test: it takes the disk.
"""
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
sys.dont_write_bytecode = True
import wire  # noqa: E402
from harness import BIN  # noqa: E402

REPEATS = 5


def drop_caches():
    subprocess.run(["sync"], check=False)
    try:
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
        return True
    except OSError:
        return False


def start(store, folder, options):
    """A daemon that answers; (process, seconds from exec until then)."""
    path = folder / "s"
    path.unlink(missing_ok=True)
    began = time.monotonic()
    daemon = subprocess.Popen([str(BIN / "samkvd"), "--store", str(store), "--socket", str(path), "--device", "cpu",
                               "--log-level", "error", *options])
    while True:
        if daemon.poll() is not None:
            raise RuntimeError("samkvd ended with %d" % daemon.returncode)
        try:
            with wire.Connection(path) as c:
                c.ask(wire.PING)
                return daemon, time.monotonic() - began
        except (OSError, wire.Closed, socket.timeout):
            time.sleep(0.001)


def stop(daemon):
    daemon.terminate()
    daemon.wait(60)


def memory(daemon):
    status = pathlib.Path("/proc/%d/status" % daemon.pid).read_text()
    return {name: int(status.split(name + ":")[1].split()[0]) * 1024 for name in ("RssAnon", "RssFile", "VmHWM")}


def times(store, folder, options, cold):
    out = []
    for _ in range(REPEATS):
        if cold:
            drop_caches()
        daemon, seconds = start(store, folder, options)
        stop(daemon)
        out.append(round(1000 * seconds, 1))
    return sorted(out)


def reading(store, folder, options):
    """Memory at its highest while everything is read, and the rate of that."""
    daemon, _ = start(store, folder, options)
    most, done = dict.fromkeys(("RssAnon", "RssFile"), 0), threading.Event()

    def watch():
        while not done.wait(0.05):
            now = memory(daemon)
            for name in most:
                most[name] = max(most[name], now[name])

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    said = subprocess.run([str(BIN / "samkvctl"), "--socket", str(folder / "s"), "verify", "--json"], check=False,
                          capture_output=True, text=True)
    seconds = time.monotonic() - began
    done.set()
    watcher.join()
    stop(daemon)
    verified = json.loads(said.stdout) if said.returncode == 0 else {"error": said.stderr.strip()}
    return {"most": most, "seconds": round(seconds, 1), "verified": verified}


def main(arguments):
    options = [word for a in arguments if "=" in a for word in ("--" + a.split("=")[0], a.split("=")[1])]
    rest = [a for a in arguments if "=" not in a]
    if not rest:
        print(__doc__, file=sys.stderr)
        return 2
    folder = pathlib.Path(tempfile.mkdtemp(prefix="samkv-big-", dir=rest[1] if len(rest) > 1 else None))
    try:
        began = time.monotonic()
        made = json.loads(subprocess.run([str(BIN / "fault_store"), "big", str(folder / "store"), rest[0]], check=True,
                                         capture_output=True, text=True).stdout)
        made["seconds"] = round(time.monotonic() - began, 1)
        (folder / "empty").mkdir()
        daemon, _ = start(folder / "empty", folder, options)
        empty_memory = memory(daemon)
        stop(daemon)
        result = {"made": made, "options": options, "caches_dropped": drop_caches(),
                  "start_ms": {"empty": times(folder / "empty", folder, options, True),
                               "cold": times(folder / "store", folder, options, True),
                               "warm": times(folder / "store", folder, options, False)},
                  "memory_empty": empty_memory, "reading": reading(folder / "store", folder, options)}
        print(json.dumps(result))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
