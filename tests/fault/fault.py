"""Faults, counted: kills, damaged and truncated files, failing and full disks, maps that cannot grow.

usage: fault.py [CLASS ...]    without a class: all of them. Prints a JSON object a line for each.

What must hold, whatever happens: no wrong byte is given out, nothing acknowledged is lost that its tokens could bring
back, nothing crashes, and the next start works. The exit code is 1 when any of these fails. The short form takes less
than a minute; SAMKV_TEST_LONG=1 makes the long one.
"""
import hashlib
import json
import os
import pathlib
import random
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
sys.dont_write_bytecode = True
import models  # noqa: E402
import wire  # noqa: E402
from harness import BIN, DONE, Daemon, HarnessError, under_sanitizer  # noqa: E402

LONG = os.environ.get("SAMKV_TEST_LONG") == "1"
TOOL, SHIM = BIN / "fault_store", BIN / "io_shim.so"
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
PAGE = 4096
NOT_FOUND = 1    # proto/status.h

# Whole-store commands that may be under way when the kill comes; those that this build has are taken.
STORE_COMMANDS = [["verify", "--repair"], ["gc"], ["compact"]]


# ------------------------------------------------------------------ the store's own tool
def data_file(store):
    """The newest: a store that was compacted has data.N.mdb."""
    return max(store.glob("data*.mdb"), key=lambda path: int(path.name.split(".")[1]) if path.name.count(".") > 1 else 0)


def tool(*arguments):
    """Runs a class of fault_store; its counts."""
    done = subprocess.run([str(TOOL), *map(str, arguments)], capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        raise HarnessError("fault_store %s: exit %d: %s" % (arguments, done.returncode, done.stderr[-2000:]))
    said = json.loads(done.stdout)
    said["failed"] = said["stuck"] + said["wrong"] + said["crash"]
    if said["failed"]:
        said["stderr"] = done.stderr[-1000:]
    return said


def bits():
    return tool("bits", 10000 if LONG else 150, 100)


def blocks():
    return tool("blocks", 1000 if LONG else 60, 200)


def truncations():
    return tool("truncations", PAGE if LONG else 10 * PAGE)


class Counts:
    """Cases by outcome; an outcome of FAILURES is one that must not be."""
    FAILURES = ("crash", "wrong", "stuck", "lost")

    def __init__(self, name):
        self.name, self.of, self.first = name, {}, None

    def add(self, outcome, detail=None):
        self.of[outcome] = self.of.get(outcome, 0) + 1
        if outcome in self.FAILURES and self.first is None:
            self.first = str(detail)[:1000]

    def result(self, **more):
        out = {"class": self.name, "cases": sum(self.of.values()), **self.of, **more}
        out["failed"] = sum(self.of.get(f, 0) for f in self.FAILURES)
        if self.first:
            out["first_failure"] = self.first
        return out


def worker_case(counts, folder, environment=None, limits=(), steps=12):
    """Steps of a worker whose world is unkind; then, in a kind one, what was acknowledged must be there."""
    log = folder / "log"
    log.unlink(missing_ok=True)

    def limit():
        for which, value in limits:
            resource.setrlimit(which, (value, value))

    done = subprocess.run([str(TOOL), "worker", str(folder / "store"), "0", str(steps), str(log)], check=False,
                          env=dict(os.environ, **(environment or {})), preexec_fn=limit, capture_output=True, text=True,
                          timeout=120)
    after = subprocess.run([str(TOOL), "check", str(folder / "store"), str(log)], check=False, capture_output=True,
                           text=True, timeout=120)
    detail = (environment, limits, done.returncode, done.stderr[-500:], after.stdout, after.stderr[-500:])
    if done.returncode < 0 or after.returncode < 0:
        counts.add("crash", detail)
    elif done.returncode == 1:
        counts.add("wrong", detail)
    elif after.returncode:
        counts.add("lost", detail)
    else:
        text = log.read_text() if log.exists() else ""
        counts.add("refused" if done.returncode == 3 else "failed_steps" if "F" in text else "unaffected")


def in_folder(case, *arguments, **named):
    with tempfile.TemporaryDirectory(prefix="samkv-fault-", dir=MEMORY) as folder:
        case(*arguments, pathlib.Path(folder), **named)


def io_errors():
    """EIO and ENOSPC from every call on the data file, once or for good, and by chance."""
    counts = Counts("io_errors")
    for calls in ("pread", "write", "sync", "truncate"):
        for code in ("EIO", "ENOSPC") if calls != "pread" else ("EIO",):
            for nth in range(1, 60) if LONG else (1, 2, 5, 17):
                for stays in (False, True):
                    environment = {"LD_PRELOAD": str(SHIM), "SAMKV_SHIM_CALLS": calls, "SAMKV_SHIM_ERRNO": code,
                                   "SAMKV_SHIM_NTH": str(nth)}
                    if stays:
                        environment["SAMKV_SHIM_STAYS"] = "1"
                    elif calls == "write":
                        environment["SAMKV_SHIM_SHORT"] = "1"
                    in_folder(worker_case, counts, environment=environment)
    for seed in range(200 if LONG else 10):
        environment = {"LD_PRELOAD": str(SHIM), "SAMKV_SHIM_CALLS": "pread,write,sync,truncate",
                       "SAMKV_SHIM_ERRNO": "EIO", "SAMKV_SHIM_CHANCE": "0.05", "SAMKV_SHIM_SEED": str(seed)}
        in_folder(worker_case, counts, environment=environment)
    return counts.result()


def full_disk():
    """A small file system where root may mount one, else a limit on the file's size."""
    counts, mounted = Counts("full_disk"), 0
    for kib in range(200, 2000, 60 if LONG else 450):
        folder = pathlib.Path(tempfile.mkdtemp(prefix="samkv-fault-"))
        (folder / "store").mkdir()
        mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%dk" % kib, "none", str(folder / "store")],
                               capture_output=True, check=False).returncode == 0
        mounted += mount
        try:
            worker_case(counts, folder, limits=() if mount else [(resource.RLIMIT_FSIZE, kib << 10)], steps=30)
        finally:
            if mount:
                subprocess.run(["umount", str(folder / "store")], check=False)
            shutil.rmtree(folder, ignore_errors=True)
    return counts.result(mounted=mounted)


def small_maps():
    """Little address space, and limits of the file that are soon reached."""
    counts = Counts("small_maps")
    for mib in range(24, 600, 24 if LONG else 144):
        in_folder(worker_case, counts, limits=[(resource.RLIMIT_AS, mib << 20)])
    for kib in range(1024, 4096, 128 if LONG else 1024):
        in_folder(worker_case, counts, environment={"FAULT_LIMIT": str(kib << 10)}, steps=40)
    return counts.result()


# ------------------------------------------------------------------ the daemon
class Fetching(wire.Connection):
    """Reads a reply's memory, too."""

    def everything_of(self, name):
        """(status, digest): of the document's K and V as stored. Status None: there it is."""
        self.send(wire.FETCH, wire.message(f2=name, f4=wire.tokens([5]), f5=1.0, f6=1, f12=1))
        fds = []

        def exactly(count):
            out = bytearray()
            while len(out) < count:
                piece, passed = socket.recv_fds(self.socket, count - len(out), 4)[:2]
                fds.extend(passed)
                if not piece:
                    raise wire.Closed
                out += piece
            return bytes(out)

        size, _, flags, _ = wire.HEADER.unpack(exactly(wire.HEADER.size))
        said = wire.fields(exactly(size))
        try:
            if flags & wire.ERROR:
                return (said[1][0], said[2][0].decode(errors="replace")), None
            digest = hashlib.sha256()
            width = said[5][0] * said[6][0] * (4 if said.get(2, [0])[0] == 0 else 2)
            for layer in range(said[3][0]):
                for start in (said[7][0], said[8][0]):
                    digest.update(os.pread(fds[0], said[4][0] * width, start + layer * said[9][0]))
            return None, digest.hexdigest()
        finally:
            for fd in fds:
                os.close(fd)


def contents(count, rng):
    return [[rng.randrange(3, models.VOCABULARY) for _ in range(rng.choice((1, 9, 16, 40, 100, 230)))]
            for _ in range(count)]


class Stored:
    """A daemon, its documents, and what their bytes were when each was ingested alone into a store of its own."""

    def __init__(self, documents):
        self.folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        self.daemon = Daemon({"llama": models.make_model(self.folder.name + "/llama", "llama")})
        self.documents, self.right = documents, []
        self.daemon.start()
        with self.connect() as c:
            for number, ids in enumerate(documents):
                self.ingest(c, "reference", ids)
                failed, digest = c.everything_of("reference")
                if failed:
                    raise HarnessError("the reference %d cannot be read: %s" % (number, failed))
                self.right.append(digest)
        self.daemon.stop()
        shutil.rmtree(self.daemon.store)

    def connect(self):
        return Fetching(self.daemon.socket)

    @staticmethod
    def ingest(connection, name, ids):
        flags, reply = connection.ask(wire.INGEST, wire.message(f2=name, f5=wire.tokens(ids)))
        return None if not flags & wire.ERROR else wire.fields(reply)

    def start_ms(self):
        began = time.monotonic()
        self.daemon.start()
        return round(1000 * (time.monotonic() - began))

    def remove(self):
        self.daemon.remove()
        self.folder.cleanup()


def newest_data_file(store):
    """data.mdb, or data.N.mdb after a compaction."""
    return max(store.glob("data*.mdb"), key=lambda path: int("0" + "".join(filter(str.isdigit, path.name))))


def damage_some_blocks(path, rng, count):
    """Overwrites a few whole pages in the middle of records; LMDB's own pages are left."""
    data = bytearray(path.read_bytes())
    pages = [p for p in range(2, len(data) // PAGE) if int.from_bytes(data[p * PAGE:p * PAGE + 8], "little") != p]
    for page in rng.sample(pages, min(count, len(pages))):
        with open(path, "r+b") as f:
            f.seek(page * PAGE)
            f.write(rng.randbytes(PAGE))


class Killing:
    """Rounds of work that end with SIGKILL."""

    def __init__(self, names, stored, rng):
        self.names, self.stored, self.rng = names, stored, rng
        self.may_be = {name: {None} for name in names}    # what each name may hold: numbers of contents, or nothing
        self.acknowledged = 0
        helped = stored.daemon.ctl("--help").stdout
        self.commands = [c for c in STORE_COMMANDS if "\n  %s " % c[0] in helped]

    def work(self, seconds):
        """Ingests and removes, with a whole-store command beside it, until the daemon is killed after `seconds`."""
        daemon, beside = self.stored.daemon, None
        killer = subprocess.Popen(["sh", "-c", "sleep %f; kill -9 %d" % (seconds, daemon.process.pid)])
        if self.commands and self.rng.random() < 0.7:
            beside = subprocess.Popen(daemon.command(*self.rng.choice(self.commands)), stdin=subprocess.DEVNULL,
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with self.stored.connect() as c:
                while True:
                    self.step(c)
        except (wire.Closed, ConnectionError, OSError):
            pass
        killer.wait()
        daemon.kill()
        if beside:
            beside.wait()

    def step(self, connection):
        name = self.rng.choice(self.names)
        before = self.may_be[name]
        if self.rng.random() < 0.3:
            self.may_be[name] = before | {None}
            flags, reply = connection.ask(wire.REMOVE, wire.message(f2=name))
            ok, after = not flags & wire.ERROR, None
        else:
            number = self.rng.randrange(len(self.stored.documents))
            self.may_be[name] = before | {number}
            reply = self.stored.ingest(connection, name, self.stored.documents[number])
            ok, after = reply is None, number
        if ok:
            self.may_be[name] = {after}
            self.acknowledged += 1

    def check(self, counts):
        with self.stored.connect() as c:
            for name in self.names:
                failed, digest = c.everything_of(name)
                found = None if failed and failed[0] == NOT_FOUND else "unreadable"
                if digest:
                    found = next((n for n in self.may_be[name] if n is not None and self.stored.right[n] == digest),
                                 "wrong")
                if found in self.may_be[name]:
                    self.may_be[name] = {found}
                    counts.add("absent" if found is None else "whole")
                else:
                    counts.add("lost" if found in (None, "unreadable") else "wrong",
                               (name, failed, digest, self.may_be[name]))


def kills():
    rng = random.Random(3)
    stored, starts = Stored(contents(24, rng)), []
    counts = Counts("kills")
    killing = Killing(["n%d" % i for i in range(16)], stored, rng)
    rounds = 300 if LONG else 12
    try:
        for number in range(rounds):
            if number % 3 == 2:
                damage_some_blocks(newest_data_file(stored.daemon.store), rng, 3)    # for verify to repair, and fetches
            try:
                starts.append(stored.start_ms())
            except HarnessError as error:
                counts.add("crash", error)
                break
            killing.check(counts)
            killing.work(rng.uniform(0.0, 0.6))
        starts.append(stored.start_ms())
        killing.check(counts)
        stored.daemon.stop()
    finally:
        stored.remove()
    starts.sort()
    return counts.result(kills=rounds, acknowledged=killing.acknowledged, commands=[c[0] for c in killing.commands],
                         start_ms_median=starts[len(starts) // 2], start_ms_most=starts[-1])


def damaged_stores():
    """A damaged file under a whole daemon: fetches heal what they meet and answer with the right bytes."""
    rng = random.Random(4)
    stored, counts = Stored(contents(8, rng)), Counts("damaged_stores")
    try:
        stored.start_ms()
        with stored.connect() as c:
            for number, ids in enumerate(stored.documents):
                stored.ingest(c, "d%d" % number, ids)
        stored.daemon.stop()
        healthy = (data_file(stored.daemon.store)).read_bytes()
        for case in range(400 if LONG else 12):
            damaged = bytearray(healthy)
            if case % 2:
                bit = rng.randrange(8 * len(damaged))
                damaged[bit // 8] ^= 1 << bit % 8
            else:
                at, size = rng.randrange(len(damaged) // PAGE) * PAGE, rng.choice((PAGE, 16 * PAGE))
                size = min(size, len(damaged) - at)
                damaged[at:at + size] = bytes(size) if case % 4 else rng.randbytes(size)
            damaged_store(stored, counts, damaged, case)
    finally:
        stored.remove()
    return counts.result()


def damaged_store(stored, counts, data, case):
    daemon, old = stored.daemon, stored.daemon.store
    data_file(old).write_bytes(data)
    outcome = "served"
    try:
        try:
            daemon.start()
        except HarnessError as error:
            if daemon.process.returncode != 1:
                counts.add("crash", (case, error))
                return
            daemon.store, outcome = old.with_name("salvaged"), "salvaged"
            subprocess.run([str(BIN / "samkvd"), "--store", str(old), "--salvage", str(daemon.store)], check=False,
                           capture_output=True)
            daemon.start()
        with stored.connect() as c:
            for number, ids in enumerate(stored.documents):
                failed, digest = c.everything_of("d%d" % number)
                if failed:    # a name, tokens or settings are damaged: the text says to ingest it again
                    outcome = "ingested"
                    again = stored.ingest(c, "d%d" % number, ids)
                    failed, digest = c.everything_of("d%d" % number)
                    if failed or again:
                        counts.add("stuck", (case, number, failed, again))
                        return
                if digest != stored.right[number]:
                    counts.add("wrong", (case, number, digest))
                    return
        if daemon.process.poll() is not None:
            counts.add("crash", (case, daemon.log()))
            return
        if outcome == "served" and "damage met by a fetch" in daemon.log():
            outcome = "healed"
        counts.add(outcome)
    except (HarnessError, wire.Closed, OSError) as error:
        counts.add("crash", (case, error, daemon.log(10)))
    finally:
        daemon.kill()
        daemon.log_path.write_text("")
        if daemon.store != old:
            shutil.rmtree(daemon.store, ignore_errors=True)
            daemon.store = old


CLASSES = [bits, blocks, truncations, io_errors, full_disk, small_maps, kills, damaged_stores]

# A sanitizer wants to be loaded before any shim, and more addresses than these maps leave.
NOT_UNDER_A_SANITIZER = {io_errors, small_maps}


def main(arguments):
    by_name = {c.__name__: c for c in CLASSES}
    unknown = [a for a in arguments if a not in by_name]
    if unknown:
        print("usage: fault.py [%s]" % "|".join(by_name), file=sys.stderr)
        return 2
    failed = 0
    for run in [by_name[a] for a in arguments] or CLASSES:
        if run in NOT_UNDER_A_SANITIZER and under_sanitizer():
            print(json.dumps({"class": run.__name__, "skipped": "not under a sanitizer"}), flush=True)
            continue
        began = time.monotonic()
        result = run()
        result["seconds"] = round(time.monotonic() - began, 1)
        print(json.dumps(result), flush=True)
        failed += result["failed"]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
