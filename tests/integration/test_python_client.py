"""The Python package over the library: everything that needs NumPy alone.

Of engines: test_transformers.py and test_llama_cpp.py.
"""
import gc
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import unittest

import engines

engines.load_sanitizer()

import numpy as np                  # noqa: E402

import cases                        # noqa: E402
import layouts                      # noqa: E402
import models                       # noqa: E402
import samkv                        # noqa: E402
from harness import ROOT, Daemon, enter, under_sanitizer     # noqa: E402
from samkv import _library          # noqa: E402

PREAMBLE, QUERY = [1, 5, 9], [7, 8, 9, 10]


def mapped():
    """Sealed memory that this process maps: lines of its map."""
    return [line for line in pathlib.Path("/proc/self/maps").read_text().splitlines() if "memfd:" in line]


def documents():
    rng = cases.seeded(11)
    return {"d%d" % i: cases.tokens(rng, 70 + 9 * i) for i in range(3)}


class Structures(unittest.TestCase):
    def test_the_compiler_agrees(self):
        expected = layouts.of_compiler(_library)
        if expected is None:
            self.skipTest("no C compiler")
        self.assertEqual(layouts.of_ctypes(_library), expected)

    def test_another_library_is_refused(self):
        """Its structures have other sizes: an import error, and no crash later."""
        self.assertEqual(_library.call("samkv_client_struct_bytes", b"samkv_nothing"), 0)
        kept = _library.STRUCTS["samkv_reply"]
        try:
            _library.STRUCTS["samkv_reply"] = _library.Timing
            self.assertRaisesRegex(ImportError, "another struct samkv_reply", _library._check_structures)
        finally:
            _library.STRUCTS["samkv_reply"] = kept

    def test_statuses(self):
        header = (ROOT / "proto" / "status.h").read_text()
        for status in samkv.Status:
            self.assertRegex(header, r"X\(%s, +%d, " % (status.name, status.value))


class Daemonless(unittest.TestCase):
    def test_nobody_listens(self):
        with self.assertRaises(samkv.NoDaemon) as caught:
            samkv.Client("/nonexistent/samkv.sock")
        self.assertIsInstance(caught.exception, ConnectionError)
        self.assertEqual(caught.exception.status, samkv.Status.NO_DAEMON)
        self.assertIn("/nonexistent/samkv.sock", caught.exception.text)

    def test_path_that_does_not_fit(self):
        with self.assertRaises(samkv.SamkvError) as caught:
            samkv.Client("/" + 300 * "x")
        self.assertEqual(caught.exception.status, samkv.Status.INVALID)

    def test_default_socket(self):
        self.assertEqual(samkv.default_socket("/some/where"), "/some/where")

    def test_library_is_searched_for(self):
        """A wrong SAMKV_LIBRARY is named; without one, what lies beside the package is taken, then the loader's."""
        def run(**environment):
            changed = {**os.environ, **environment, "PYTHONPATH": os.path.dirname(os.path.dirname(samkv.__file__))}
            return subprocess.run([sys.executable, "-c", "import samkv; print(samkv.library_path())"], check=False,
                                  env={k: v for k, v in changed.items() if v is not None}, capture_output=True,
                                  text=True)
        wrong = run(SAMKV_LIBRARY="/nonexistent/libsamkv.so.1")
        self.assertNotEqual(wrong.returncode, 0)
        self.assertIn("ImportError: cannot load /nonexistent/libsamkv.so.1", wrong.stderr)
        if under_sanitizer():
            return      # what is loaded by name needs the sanitizer's runtime first
        loader = run(SAMKV_LIBRARY=None, LD_LIBRARY_PATH=os.path.dirname(os.environ["SAMKV_LIBRARY"]))
        self.assertEqual(loader.stdout.strip(), "libsamkv.so.1", loader.stderr)


class Conversation(unittest.TestCase):
    device = "cpu"

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        cls.addClassCleanup(folder.cleanup)
        path = models.make_model(folder.name + "/llama", "llama")
        cls.daemon = enter(cls, Daemon({"llama": path}, device=cls.device))
        cls.client = samkv.Client(cls.daemon.socket)
        cls.addClassCleanup(cls.client.close)
        cls.documents = documents()
        for name, ids in cls.documents.items():
            cls.client.ingest(name, ids, preamble=PREAMBLE, block_tokens=8, init_tokens=8, local_tokens=8)

    def saved(self, *arguments):
        """What samkvctl writes for the same request."""
        out = self.daemon.folder / "out.safetensors"
        self.daemon.json("fetch", "--docs", ",".join(self.documents), "--query-tokens", "7,8,9,10", "--out", out,
                         *arguments)
        return models.load_safetensors(out)

    def check_same(self, cache, expected):
        self.assertEqual(cache.rows, len(expected["tokens"]))
        for name in ("tokens", "doc", "index", "position"):
            np.testing.assert_array_equal(getattr(cache, name), expected[name])
            self.assertEqual(getattr(cache, name).dtype, np.int32)
        self.assertEqual(cache.k.shape, (cache.layers, cache.rows, cache.kv_heads, cache.head_dim))
        for layer in range(cache.layers):
            np.testing.assert_array_equal(cache.k[layer], expected["k.%d" % layer])
            np.testing.assert_array_equal(cache.v[layer], expected["v.%d" % layer])
        if "logits" in expected:
            np.testing.assert_array_equal(cache.logits, expected["logits"])
        else:
            self.assertIsNone(cache.logits)

    def test_every_option_arrives(self):
        for options, arguments in (
                ({}, ()),
                ({"ratio": 0.5, "selection": "fixed"}, ("--ratio", 0.5, "--selection", "fixed")),
                ({"stable_layers": [1, 3], "ratio": 0.4}, ("--stable-layers", "1,3", "--ratio", 0.4)),
                ({"init_tokens": 0, "local_tokens": 16}, ("--init-tokens", 0, "--local-tokens", 16)),
                ({"update": "cosine"}, ("--update", "cosine")),
                ({"update": 0.25}, ("--update", 0.25)),
                ({"recompute": False}, ("--no-recompute",)),
                ({"positions": "compact", "ratio": 0.3}, ("--positions", "compact", "--ratio", 0.3)),
                ({"with_query": True}, ("--with-query",)),
                ({"placement": "host"}, ("--placement", "host"))):
            with self.subTest(**options):
                expected = self.saved(*arguments)
                with self.client.fetch(list(self.documents), QUERY, **options) as cache:
                    self.check_same(cache, expected)

    def test_figures(self):
        said = self.daemon.json("fetch", "--docs", ",".join(self.documents), "--query-tokens", "7,8,9,10")
        cache = self.client.fetch(list(self.documents), QUERY)
        figures = cache.figures
        for name in ("kept_tokens", "total_tokens", "keep", "stable_layers", "bytes_stored", "backend",
                     "document_tokens"):
            self.assertEqual(getattr(figures, name), said[name], name)
        for name in ("sequence_ratio", "recompute_ratio", "top_p"):
            np.testing.assert_allclose(getattr(figures, name), said[name], rtol=1e-9)
        self.assertEqual(figures.total_tokens, sum(map(len, self.documents.values())))
        self.assertEqual(set(figures.timing_ms), {"total", "index", "query", "select", "read", "recompute", "reply",
                                                  "queue"})
        self.assertEqual(cache.next_position, len(PREAMBLE) + figures.total_tokens)

    def test_memory_lives_as_long_as_its_last_array(self):
        gc.collect()
        before = len(mapped())
        cache = self.client.fetch(list(self.documents), QUERY)
        expected = np.array(cache.k), np.array(cache.tokens)
        self.assertFalse(cache.k.flags.owndata)
        addresses = {cache.k.ctypes.data, cache.k[0].ctypes.data}
        self.assertEqual(len(addresses), 1, "k is copied")
        piece, tokens = cache.k[-1, 2:], cache.tokens
        self.assertEqual(len(mapped()), before + 1)
        cache.close()
        self.assertRaises(ValueError, getattr, cache, "k")
        del cache
        gc.collect()
        self.assertEqual(len(mapped()), before + 1)
        np.testing.assert_array_equal(piece, expected[0][-1, 2:])
        np.testing.assert_array_equal(tokens, expected[1])
        del piece
        gc.collect()
        self.assertEqual(len(mapped()), before + 1)
        del tokens
        gc.collect()
        self.assertEqual(len(mapped()), before)

    def test_host_memory_is_read_only(self):
        cache = self.client.fetch(list(self.documents), QUERY)
        for array in (cache.k, cache.v, cache.tokens, cache.position):
            with self.assertRaises(ValueError):
                array[0] = 0
        self.assertRaises(ValueError, cache.k.setflags, write=True)

    def test_save_and_descriptor(self):
        cache = self.client.fetch(list(self.documents), QUERY)
        path = self.daemon.folder / "säved.safetensors"
        cache.save(path)
        self.check_same(cache, models.load_safetensors(path))
        self.assertEqual(os.fstat(cache.fileno()).st_size, path.stat().st_size)

    def test_documents(self):
        client, text = self.client, "Grüße\0, text."
        with self.assertRaises(samkv.SamkvError) as caught:     # the model has no tokenizer
            client.ingest("text", text)
        self.assertEqual(caught.exception.status, samkv.Status.UNSUPPORTED)
        said = client.ingest("ä", [5, 6, 7] * 10, title="Ü", collection="other", block_tokens=4)
        self.assertEqual([(d.id, d.tokens, d.skipped) for d in said.documents], [("ä", 30, False)])
        self.assertTrue(client.ingest("ä", [5, 6, 7] * 10, title="Ü", collection="other").documents[0].skipped)
        split = client.ingest("long", [5, 6, 7] * 20, collection="other", chunk_tokens=25)
        self.assertEqual([d.id for d in split.documents], ["long#1", "long#2", "long#3"])
        found = {d.id: d for d in client.ls("other")}
        self.assertEqual(list(found), ["long#1", "long#2", "long#3", "ä"])
        self.assertEqual((found["ä"].title, found["ä"].tokens, found["ä"].collection), ("Ü", 30, "other"))
        collection, = [c for c in client.collections() if c.name == "other"]
        self.assertEqual((collection.block_tokens, collection.documents, collection.model), (4, 4, "llama"))
        self.assertEqual(client.show("ä", "other").document, found["ä"])
        self.assertEqual(client.rm(["ä", "nothing"], "other"), ["nothing"])
        self.assertEqual(len(list(client.ls("other"))), 3)

    def test_what_a_collection_keeps(self):
        client = self.client
        said = client.ingest("p", [5, 6, 7] * 9, collection="kept", quota_bytes=10**9, ttl_s=3600)
        client.ingest("q", [8, 6, 7] * 9, collection="kept")
        self.assertGreaterEqual(said.request, 1)
        self.assertEqual(client.pin(["p", "nothing"], "kept"), ["nothing"])
        first, second = client.ls("kept")
        self.assertEqual((first.pinned, second.pinned), (True, False))
        self.assertEqual((first.expires_unix_s, second.expires_unix_s > 0, first.uses), (0, True, 0))
        client.pin(["p"], "kept", pinned=False)
        self.assertFalse(next(client.ls("kept")).pinned)
        collection = client.configure("kept", ttl_s=0)
        self.assertEqual((collection.quota_bytes, collection.ttl_s, collection.documents), (10**9, 0, 2))
        self.assertGreater(collection.bytes_stored, 0)
        self.assertEqual(client.rm_collection("kept"), 2)
        self.assertNotIn("kept", [c.name for c in client.collections()])
        self.assertEqual(client.gc().names_expired, 0)

    def test_many_documents_come_page_by_page(self):
        names = ["n%04d" % i for i in range(300)]
        for i, name in enumerate(names):
            self.client.ingest(name, [3 + i % 200, 4 + i // 200, 5], collection="many")
        self.assertEqual([d.id for d in self.client.ls("many")], names)

    def test_daemon(self):
        status, server = self.client.status(), self.client.server
        self.assertRegex(server, r"^samkvd/\d")
        self.assertEqual([m.name for m in status.models], ["llama"])
        self.assertGreater(status.bytes_stored, 0)
        self.assertTrue(status.counters)
        self.client.ping()
        verified = self.client.verify()
        self.assertEqual((verified.damaged, verified.damaged_ids), (0, []))
        self.assertGreaterEqual(verified.documents, 3)

    def test_mistakes(self):
        fetch, ids = self.client.fetch, list(self.documents)
        self.assertRaises(samkv.NotFound, fetch, ["nowhere"], QUERY)
        for wrong in ({"selection": "best"}, {"update": "never"}, {"positions": "none"}, {"placement": "moon"},
                      {"stable_layers": [-1]}):
            self.assertRaises(ValueError, fetch, ids, QUERY, **wrong)
        self.assertRaises(ValueError, fetch, ids, [2**31])
        self.assertRaises(TypeError, fetch, "d0", QUERY)
        for wrong in ({"ratio": 0.0}, {"ratio": float("nan")}, {"update": 1.5}, {"stable_layers": [99]}):
            with self.assertRaises(samkv.SamkvError) as caught:
                fetch(ids, QUERY, **wrong)
            self.assertEqual(caught.exception.status, samkv.Status.INVALID, wrong)
            self.assertTrue(str(caught.exception))
        self.client.ping()

    def test_closed(self):
        client = samkv.Client(self.daemon.socket, timeout_s=60)
        cache = client.fetch(list(self.documents), QUERY)
        client.close()
        client.close()
        self.assertRaises(ValueError, client.ping)
        self.assertRaises(ValueError, lambda: client.server)
        self.assertTrue(np.isfinite(cache.k).all())

    def test_threads_share_a_client(self):
        expected, wrong = self.saved(), []

        def work():
            for _ in range(20):
                cache = self.client.fetch(list(self.documents), QUERY)
                if not np.array_equal(cache.k[0], expected["k.0"]):
                    wrong.append(cache)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])


class Discrete(Conversation):
    """A daemon that plays a GPU: placement "device" gives memory of its kind."""
    device = "cpu:discrete"

    def fetch(self):
        return self.client.fetch(list(self.documents), QUERY, placement="device")

    def test_device_memory(self):
        expected, cache = self.saved(), self.fetch()
        self.assertEqual((cache.where, cache.device), ("device", None))
        self.check_same(cache, expected)
        cache.k[0, 0, 0, 0] = 77        # an engine may change it in place
        self.assertEqual(cache.k[0, 0, 0, 0], 77)

    def test_gpu_memory_is_described(self):
        """As it would be on a GPU: the interface's numbers, read back as if they were the host's, give the same."""
        cache = self.fetch()
        host_k, host_v = np.array(cache.k), np.array(cache.v)
        cache.device = 0
        for array, expected in ((cache.k, host_k), (cache.v, host_v)):
            said = array.__cuda_array_interface__
            self.assertEqual(said["version"], 3)
            self.assertEqual(said["shape"], expected.shape)
            self.assertEqual(said["typestr"], "<f4")
            self.assertFalse(said["data"][1], "read-only")
            self.assertEqual(said["stream"], 1)

            class Host:
                __array_interface__ = {k: v for k, v in said.items() if k != "stream"}
            np.testing.assert_array_equal(np.asarray(Host()), expected)
        kept = cache.k
        cache.close()
        del cache
        gc.collect()
        self.assertIsNotNone(kept._memory)


class Answers(unittest.TestCase):
    """With a tokenizer: texts in and out."""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        cls.addClassCleanup(folder.cleanup)
        path = models.make_model(folder.name + "/llama", "llama")
        models.ascii_tokenizer(path)
        cls.daemon = enter(cls, Daemon({"llama": path}))
        cls.client = samkv.Client(cls.daemon.socket)
        cls.addClassCleanup(cls.client.close)
        for name in "ab":
            cls.client.ingest(name, "Document %s says so. " % name * 6, preamble="Hello. ")

    def test_text_is_what_its_tokens_are(self):
        shown = self.client.show("a")
        self.assertEqual(shown.text, "Document a says so. " * 6)
        cache = self.client.fetch(["a", "b"], "Who?", with_query=True)
        self.assertEqual(models.ascii_text(cache.tokens[cache.doc == -2]), "Who?")
        self.assertEqual(models.ascii_text(cache.tokens[cache.doc == -1]), "Hello. ")

    def test_ask_as_the_command_line(self):
        for method in ("samkv", "full", "reuse"):
            said = self.daemon.json("ask", "--docs", "a,b", "--method", method, "--max-tokens", 9, "--raw", "Who?")
            pieces = []
            answer = self.client.ask(["a", "b"], "Who?", method=method, max_tokens=9, raw=True, on_text=pieces.append)
            self.assertEqual((answer.text, answer.answer_tokens), (said["answer"], said["answer_tokens"]))
            self.assertEqual("".join(pieces), answer.text)
            self.assertEqual(answer.prompt_tokens, said["prompt_tokens"])
            self.assertEqual(answer.figures is None, method != "samkv")

    def test_what_the_callback_raises_arrives(self):
        def stop(_):
            raise KeyError("enough")
        with self.assertRaises(KeyError):
            self.client.ask(["a"], "Who?", max_tokens=50, raw=True, on_text=stop)
        self.client.ping()


class Halves(unittest.TestCase):
    """A store of bf16, for which NumPy has no type."""

    def test_bf16(self):
        with tempfile.TemporaryDirectory(prefix="samkv-models-") as folder:
            path = models.make_model(folder + "/llama", "llama", dtype="BF16")
            with Daemon({"llama": path}, dtype="bf16") as daemon, samkv.Client(daemon.socket) as client:
                client.ingest("d", cases.tokens(cases.seeded(1), 90))
                out = daemon.folder / "out.safetensors"
                daemon.json("fetch", "--docs", "d", "--query-tokens", "7,8,9,10", "--out", out)
                expected = models.load_safetensors(out)
                cache = client.fetch(["d"], QUERY)
                self.assertEqual(cache.dtype, "bf16")
                bits = cache.k.view(np.uint16)
                self.assertFalse(bits.flags.owndata)
                np.testing.assert_array_equal(models.from_bf16(bits[1]), expected["k.1"])
                np.testing.assert_array_equal(models.from_bf16(cache.v.view(np.uint16)[0]), expected["v.0"])
                cache.device = 0
                self.assertEqual(cache.k.__cuda_array_interface__["typestr"], "<u2")


if __name__ == "__main__":
    unittest.main(verbosity=2)
