"""Caches as prefixes of engines (samkv.prefix), with NumPy alone: the file that another process reads is the cache, and
whatever else a path leads to is refused."""
import os
import pathlib
import random
import struct
import tempfile
import types
import unittest

import engines

engines.load_sanitizer()

import numpy as np      # noqa: E402

import cases            # noqa: E402
import models           # noqa: E402
import samkv            # noqa: E402
from harness import Daemon, enter   # noqa: E402
from samkv.prefix import CacheFile, Identity, announce, prompt_of    # noqa: E402

QUERY = [5, 6, 7]


class Prefix(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.daemon = enter(cls, Daemon({"llama": models.make_model(cls.folder.name + "/llama", "llama")}))
        cls.client = samkv.Client(cls.daemon.socket)
        cls.addClassCleanup(cls.client.close)
        rng = cases.seeded(8)
        for name in ("a", "b"):
            cls.client.ingest(name, cases.tokens(rng, 80), preamble=[7, 9], block_tokens=8, init_tokens=8, local_tokens=8)

    def fetch(self, **options):
        cache = self.client.fetch(["a", "b"], QUERY, ratio=0.4, **options)
        self.addCleanup(cache.close)
        return cache

    def test_the_file_is_the_cache(self):
        cache = self.fetch(positions="compact")
        asked = prompt_of(cache, QUERY)
        self.assertEqual(asked.prompt["prompt_token_ids"], cache.tokens.tolist() + QUERY)
        self.assertEqual(asked.extra_args, {"kv_transfer_params": asked.kv_transfer_params})
        self.assertNotEqual(asked.prompt["cache_salt"], prompt_of(cache, QUERY).prompt["cache_salt"])
        file = CacheFile(asked.kv_transfer_params["samkv"]["path"])
        self.assertEqual((file.layers, file.rows, file.kv_heads, file.head_dim, file.dtype),
                         (cache.layers, cache.rows, cache.kv_heads, cache.head_dim, cache.dtype))
        for layer in range(cache.layers):
            self.assertTrue(np.array_equal(file.k(layer), cache.k[layer]))
            self.assertTrue(np.array_equal(file.v(layer), cache.v[layer]))
        self.assertTrue(file.serves(asked.prompt["prompt_token_ids"]))
        self.assertTrue(file.serves(cache.tokens.tolist()))
        self.assertFalse(file.serves(cache.tokens.tolist()[:-1]))
        self.assertFalse(file.serves([8] + asked.prompt["prompt_token_ids"][1:]))
        with self.assertRaises(ValueError):
            file.k(0)[0, 0, 0] = 1    # read-only

    def test_what_is_no_prefix(self):
        gaps = self.fetch()
        with tempfile.TemporaryDirectory() as folder:
            gaps.save(folder + "/gaps")
            self.assertFalse(CacheFile(folder + "/gaps").serves(gaps.tokens.tolist() + QUERY))
        compact = self.fetch(positions="compact")
        on_a_gpu = types.SimpleNamespace(rows=compact.rows, next_position=compact.rows, doc=compact.doc, where="device")
        for cache, query in ((gaps, QUERY), (compact, []), (self.fetch(positions="compact", with_query=True), QUERY),
                             (on_a_gpu, QUERY)):
            with self.assertRaises(ValueError):
                prompt_of(cache, query)

    def test_another_file_under_the_same_name(self):
        with tempfile.TemporaryDirectory() as folder:
            path = folder + "/cache"
            self.fetch(positions="compact").save(path)
            first = CacheFile(path).identity
            self.assertEqual(CacheFile(path, first).identity, first)
            kept = os.open(path, os.O_RDONLY)     # so that its inode is not used again
            self.addCleanup(os.close, kept)
            self.fetch(positions="compact").save(path)
            with self.assertRaises(ValueError):
                CacheFile(path, first)
            with self.assertRaises(ValueError):
                CacheFile(path, Identity(0, 0, 0))

    def test_mutated_files(self):
        """Refused with one of two exceptions, or read inside their bounds."""
        rng, refused = random.Random(9), 0
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "cache")
            self.fetch(positions="compact").save(path)
            whole = path.read_bytes()
            header = 8 + struct.unpack("<Q", whole[:8])[0]
            for number in range(600):
                changed = bytearray(whole)
                for _ in range(rng.randint(1, 3)):
                    changed[rng.randrange(header)] = rng.choice(b'0123456789"{}[],:-ek.\x00\xff')
                if number % 5 == 0:
                    del changed[rng.randrange(len(changed)):]
                if number % 7 == 0:
                    changed[:8] = struct.pack("<Q", rng.choice([0, 1, 2, header, 2 ** 31, 2 ** 63, 2 ** 64 - 1]))
                path.unlink()
                path.write_bytes(changed)
                try:
                    file = CacheFile(str(path))
                    float(np.sum(np.asarray(file.k(file.layers - 1), np.float64) * 0))
                except (ValueError, OSError):
                    refused += 1
        self.assertGreater(refused, 200)
        for path in ("/nowhere", "/dev/zero", "/dev/null", "/", "/proc/self/mem", "/proc/self/environ"):
            with self.assertRaises((ValueError, OSError)):
                CacheFile(path)

    def test_announcements(self):
        cache = self.fetch(positions="compact")
        with tempfile.TemporaryDirectory() as folder:
            with announce(folder, prompt_of(cache, QUERY)) as said:
                self.assertEqual(os.listdir(folder), [os.path.basename(said.path)])
            self.assertEqual(os.listdir(folder), [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
