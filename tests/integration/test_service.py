"""samkvd as a service: systemd's notify protocol, reload, the configuration's checks, and the unit files.

systemd itself is not needed: the test plays its side. What only systemd-analyze can judge is skipped where it is not.
"""
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest

from harness import BIN, ROOT, Daemon, enter

UNITS = ROOT / "systemd"
SAMKVD = str(BIN / "samkvd")
WAIT_S = 30
EXPOSURE_LIMIT = 2.0


def samkvd(*arguments, **options):
    return subprocess.run([SAMKVD, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False, **options)


class Listener:
    """systemd's end of NOTIFY_SOCKET."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(WAIT_S)

    def until(self, wanted):
        """All messages up to the first that has this line."""
        seen = []
        while not seen or wanted not in seen[-1].splitlines():
            seen.append(self.socket.recv(4096).decode())
        return seen


class Notify(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.mkdtemp(prefix="samkv-notify-")
        cls.addClassCleanup(shutil.rmtree, folder)
        cls.listener = Listener(pathlib.Path(folder) / "n")
        cls.addClassCleanup(cls.listener.socket.close)
        cls.config = pathlib.Path(folder) / "samkvd.conf"
        cls.config.write_text("[samkvd]\nlog-level = warning\n")
        cls.daemon = enter(cls, Daemon({}, arguments=["--config", str(cls.config)], environment={
            "NOTIFY_SOCKET": str(pathlib.Path(folder) / "n"), "WATCHDOG_USEC": "4000000"}))

    def test_1_ready_then_alive(self):
        self.assertEqual(self.listener.until("READY=1"), ["READY=1"])
        self.listener.until("WATCHDOG=1")

    def reload(self):
        self.daemon.process.send_signal(signal.SIGHUP)
        said = self.listener.until("READY=1")
        reloading = [m for m in said if m.startswith("RELOADING=1\n")]
        self.assertEqual(len(reloading), 1, said)
        self.assertRegex(reloading[0], r"\nMONOTONIC_USEC=\d+$")

    def test_2_reload_takes_what_it_can(self):
        self.config.write_text("[samkvd]\nlog-level = info\nworkers = 6\n")
        self.reload()
        self.assertIn("reloaded the configuration", self.daemon.log())
        self.assertIn("workers differs; restart samkvd for the new value", self.daemon.log())

    def test_3_a_mistake_changes_nothing(self):
        self.config.write_text("[samkvd]\nlog-level = info\nworkerz = 6\n")
        self.reload()
        self.assertRegex(self.daemon.log(), r"stays as it was: .*samkvd.conf:3: unknown option 'workerz'; did you mean workers")
        self.assertEqual(self.daemon.ctl("ping").returncode, 0)

    def test_4_many_reloads_at_once(self):
        self.config.write_text("[samkvd]\nlog-level = info\n")
        for _ in range(50):
            self.daemon.process.send_signal(signal.SIGHUP)
        self.listener.until("READY=1")
        self.assertEqual(self.daemon.ctl("ping").returncode, 0)

    def test_5_stopping(self):
        self.daemon.process.terminate()
        self.listener.until("STOPPING=1")
        self.assertEqual(self.daemon.process.wait(WAIT_S), 0)


class Activation(unittest.TestCase):
    """No connection is refused across a restart: the socket stays with systemd, and waits."""

    def test_clients_wait_for_the_next_daemon(self):
        with tempfile.TemporaryDirectory(prefix="samkv-act-") as folder:
            path = os.path.join(folder, "s")
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(path)
            listener.listen(64)

            def start():
                def adopt():
                    os.dup2(listener.fileno(), 3)
                    os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"] = str(os.getpid()), "1"
                    os.execv(SAMKVD, [SAMKVD, "--store", os.path.join(folder, "store")])
                return subprocess.Popen(["true"], preexec_fn=adopt, pass_fds=[3], stderr=subprocess.DEVNULL)

            for _ in range(3):
                # The client comes first; it is served by a daemon that starts later.
                client = subprocess.Popen([str(BIN / "samkvctl"), "--socket", path, "ping"], stdout=subprocess.DEVNULL)
                time.sleep(0.05)
                self.assertIsNone(client.poll())
                daemon = start()
                try:
                    self.assertEqual(client.wait(WAIT_S), 0)
                finally:
                    daemon.terminate()
                    self.assertEqual(daemon.wait(WAIT_S), 0)
                self.assertTrue(os.path.exists(path))
            listener.close()


class Configuration(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="samkv-conf-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.path = self.folder / "samkvd.conf"

    def check(self, text):
        self.path.write_text(text)
        return samkvd("--check-config", "--config", self.path)

    def test_every_mistake_is_told_with_its_line(self):
        done = self.check("[samkvd]\nlog-level = loud\nworkrs = 4\nthreads = 5000\nno equals sign\n[modle]\na = b\n")
        self.assertEqual(done.returncode, 2)
        for line, words in ((2, "'loud' is none of"), (3, "did you mean workers?"), (4, "out of range"),
                            (5, "not of the form"), (7, "unknown section [modle]")):
            self.assertRegex(done.stderr, r"%s:%d: .*%s" % (re.escape(str(self.path)), line, re.escape(words)))
        self.assertIn("5 mistakes", done.stderr)

    def test_a_good_file(self):
        (self.folder / "m.gguf").write_text("")
        done = self.check("[samkvd]\nthreads = 2\n[model]\nm = %s\n" % (self.folder / "m.gguf"))
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_a_model_that_is_not_there(self):
        done = self.check("[model]\nm = /no/such/model.gguf\n")
        self.assertEqual(done.returncode, 2)
        self.assertIn("model m: cannot read /no/such/model.gguf", done.stderr)

    def test_a_dump_is_a_configuration(self):
        self.path.write_text("[samkvd]\nstore-max-bytes = 10G\nlog-level = debug\n[model]\nm = /x/y\n")
        environment = dict(os.environ, SAMKV_THREADS="3")
        first = samkvd("--dump-config", "--config", self.path, "--codec", "raw", env=environment).stdout
        self.assertIn("; from: environment\nthreads = 3\n", first)
        self.assertIn("; from: command line\ncodec = raw\n", first)
        self.assertRegex(first, r"; from: file\nstore-max-bytes = 10737418240\n")
        self.assertTrue(first.endswith("[model]\nm = /x/y\n"), first)
        self.path.write_text(first)
        self.assertEqual(values(samkvd("--dump-config", "--config", self.path).stdout), values(first))

    def test_the_example_has_every_option_and_its_default(self):
        example = (UNITS / "samkvd.conf").read_text()
        commented = dict(re.findall(r"^;([a-z-]+) = (.*)$", example, re.M))
        dumped = values(samkvd("--dump-config", env={"PATH": os.environ["PATH"], "STATE_DIRECTORY": "/var/lib/samkv",
                                                     "RUNTIME_DIRECTORY": "/run/samkv"}).stdout)
        for name, value in dumped.items():
            self.assertIn(name, commented, "systemd/samkvd.conf does not tell of this option")
            if name not in ("workers", "host-cache-bytes"):  # by the machine
                self.assertEqual(commented[name], value, name)
        # With the comments taken away it is a configuration.
        self.path.write_text(re.sub(r"^;(?=[a-z-]+ = )", "", re.split(r"^\[(?:user-quota|model)\]", example, flags=re.M)[0], flags=re.M))
        done = samkvd("--check-config", "--config", self.path)
        self.assertEqual(done.returncode, 0, done.stderr)


def values(dump):
    found = dict(re.findall(r"^([a-z-]+) = (.*)$", re.split(r"^\[(?:user-quota|model)\]", dump, flags=re.M)[0], re.M))
    found.pop("config", None)
    return found


class Units(unittest.TestCase):
    def analyze(self, *arguments):
        if not shutil.which("systemd-analyze"):
            self.skipTest("no systemd-analyze here")
        return subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False)

    def test_units_are_well_formed(self):
        with tempfile.TemporaryDirectory() as folder:
            program = pathlib.Path(folder) / "samkvd"  # under a name without spaces
            program.symlink_to(SAMKVD)
            for name in ("samkvd.service", "samkvd.socket"):
                text = (UNITS / name).read_text().replace("/usr/sbin/samkvd", str(program))
                (pathlib.Path(folder) / name).write_text(text)
            done = self.analyze("verify", "--man=no", pathlib.Path(folder) / "samkvd.service", pathlib.Path(folder) / "samkvd.socket")
        complaints = [line for line in done.stderr.splitlines() if "samkvd" in line]
        self.assertEqual(complaints, [])

    def test_exposure(self):
        def exposure(path):
            done = self.analyze("security", "--offline=yes", path)
            return float(re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout).group(1))
        service = (UNITS / "samkvd.service").read_text()
        with tempfile.TemporaryDirectory() as folder:
            gpu = pathlib.Path(folder) / "gpu.service"
            gpu.write_text(service.split("[Install]")[0] + (UNITS / "samkvd-gpu.conf").read_text().replace("[Service]", ""))
            plain, with_gpu = exposure(UNITS / "samkvd.service"), exposure(gpu)
        print("exposure: %.1f, with a GPU %.1f" % (plain, with_gpu))
        self.assertLessEqual(plain, EXPOSURE_LIMIT)


if __name__ == "__main__":
    unittest.main()
