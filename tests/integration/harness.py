"""A samkvd of one's own for a test or the demo: start, talk to it through samkvctl, stop, look at what it left.

Standard library only. The binaries are found in SAMKV_BIN (set by ctest) or build/release/bin.
"""
import ctypes
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
BIN = pathlib.Path(os.environ.get("SAMKV_BIN", ROOT / "build" / "release" / "bin"))
START_DEADLINE_S = 120
STOP_DEADLINE_S = 60
COMMAND_DEADLINE_S = 300

# Exit codes of samkvctl.
DONE, SOME_FAILED, WRONG_USAGE, NO_DAEMON = 0, 1, 2, 3

SANITIZER_WORDS = ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "runtime error:", "WARNING: ThreadSanitizer")


class HarnessError(RuntimeError):
    """The daemon or a command did not do what every test relies on; the text says what it printed."""


def _die_with_parent():
    """Runs in the child: no daemon outlives a test that was killed (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Daemon:
    """One samkvd with a temporary folder for store, socket and log. A context manager: start … stop."""

    def __init__(self, models, dtype="f32", binaries=BIN, arguments=(), environment=None, device="cpu"):
        """models: name → path. A stopped daemon can be started again over the same store."""
        self.models, self.dtype, self.arguments, self.device = models, dtype, list(arguments), device
        self.binaries = pathlib.Path(binaries)
        # SAMKV_… variables are options of samkvd and samkvctl.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SAMKV_")}
        self.environment = dict(inherited, **(environment or {}))
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="samkv-"))
        self.store, self.socket, self.log_path = self.folder / "store", self.folder / "s", self.folder / "log"
        self.process = None

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, kind, value, trace):
        try:
            self.stop(check=kind is None)
        finally:
            self.remove()

    def start(self):
        command = [str(self.binaries / "samkvd"), "--store", str(self.store), "--socket", str(self.socket),
                   "--device", self.device, "--dtype", self.dtype]
        for name, path in self.models.items():
            command += ["--model", "%s=%s" % (name, path)]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(command + self.arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env=self.environment, preexec_fn=_die_with_parent)
        deadline = time.monotonic() + START_DEADLINE_S
        while self.ctl("ping").returncode != DONE:
            if self.process.poll() is not None:
                raise HarnessError("samkvd ended with %s while starting:\n%s" % (self.process.returncode, self.log()))
            if time.monotonic() > deadline:
                self.kill()
                raise HarnessError("samkvd did not answer in %d s:\n%s" % (START_DEADLINE_S, self.log()))
            time.sleep(0.02)

    def stop(self, check=True):
        """Asks it to end. With check, anything but a clean end (leaks included) raises."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
        try:
            code = self.process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise HarnessError("samkvd did not stop in %d s:\n%s" % (STOP_DEADLINE_S, self.log())) from None
        self.process = None
        if check and (code != 0 or any(word in self.log() for word in SANITIZER_WORDS)):
            raise HarnessError("samkvd ended with %d:\n%s" % (code, self.log()))

    def kill(self):
        """SIGKILL, as a crash would be."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def remove(self):
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self, lines=40):
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def programs_for_all(self, *names):
        """Copies of programs and the library where every user gets, for tests that are others: a checkout may lie where
        only root does. Returns their folder and what the environment needs."""
        programs = self.folder / "programs"
        os.chmod(self.folder, 0o711)
        if not programs.exists():
            (programs / "bin").mkdir(parents=True)
            shutil.copytree(self.binaries.parent / "lib", programs / "lib")
        for name in names:
            if not (programs / "bin" / name).exists():
                shutil.copy(self.binaries / name, programs / "bin")
        return programs / "bin", {"LD_LIBRARY_PATH": str(programs / "lib")}

    def command(self, *arguments):
        """The command line of samkvctl for this daemon."""
        return [str(self.binaries / "samkvctl"), "--socket", str(self.socket), *map(str, arguments)]

    def ctl(self, *arguments, text=None, timeout=COMMAND_DEADLINE_S):
        """Runs samkvctl; `text` (str or bytes) is its standard input."""
        raw = text.encode() if isinstance(text, str) else text
        done = subprocess.run(self.command(*arguments), input=raw, timeout=timeout, capture_output=True, check=False,
                              env=self.environment, **({} if raw is not None else {"stdin": subprocess.DEVNULL}))
        done.stdout, done.stderr = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        return done

    def json(self, *arguments, text=None, timeout=COMMAND_DEADLINE_S):
        """Runs samkvctl … --json, which must succeed, and returns what it printed."""
        done = self.ctl(*arguments, "--json", text=text, timeout=timeout)
        if done.returncode != DONE:
            said = " ".join(map(str, arguments))[:300]
            raise HarnessError("samkvctl %s: exit %d: %s\ndaemon:\n%s" %
                               (said, done.returncode, done.stderr.strip(), self.log(10)))
        return json.loads(done.stdout)

    def refuse(self, test, code, *arguments, text=None):
        """A command that must fail with this exit code and one line on stderr, with the daemon serving on. The line."""
        done = self.ctl(*arguments, text=text)
        lines = done.stderr.strip().splitlines()
        test.assertEqual(done.returncode, code, (arguments, done.stdout[-300:], done.stderr[-300:]))
        test.assertEqual(len(lines), 1, (arguments, done.stderr[-1000:]))
        test.assertEqual(self.ctl("ping").returncode, DONE, "the daemon does not answer after %s" % (arguments,))
        return lines[0]

    def open_fds(self):
        return len(os.listdir("/proc/%d/fd" % self.process.pid))

    def resident_bytes(self):
        """Private memory in use; mapped files (weights, the store) come and go by the kernel's will."""
        status = pathlib.Path("/proc/%d/status" % self.process.pid).read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024


def enter(test_class, daemon):
    """Starts a daemon for all tests of a unittest class; after them it is stopped and must have ended cleanly."""
    daemon.__enter__()
    test_class.addClassCleanup(daemon.__exit__, None, None, None)
    return daemon


def documents_jsonl(documents):
    """id → token ids, as `samkvctl ingest -` takes them."""
    return "".join(json.dumps({"id": name, "tokens": list(map(int, ids))}) + "\n" for name, ids in documents.items())


def comma(values):
    return ",".join(str(int(v)) for v in values)


def under_sanitizer():
    """Whether the binaries carry a sanitizer, which makes memory levels meaningless and everything slow."""
    return b"__asan_init" in (BIN / "samkvd").read_bytes() or b"__tsan_init" in (BIN / "samkvd").read_bytes()
