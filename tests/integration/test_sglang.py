"""A fetched cache in SGLang, through its own classes: the factory makes the backend, its hashes find the pages, its host
pool takes them, in every layout.

Needs SGLang (0.5.23 was tested) and no GPU: the server itself is not run. Skipped without it.
"""
import os
import tempfile
import unittest

import engines

engines.need("torch", "sglang", "sglang.srt.mem_cache.hicache_storage")

import torch            # noqa: E402

import cases            # noqa: E402
import models           # noqa: E402
import samkv            # noqa: E402
from harness import Daemon, enter   # noqa: E402
from samkv.prefix import announce, prompt_of    # noqa: E402
from samkv.sglang import SamkvStorage   # noqa: E402
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig    # noqa: E402
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost      # noqa: E402
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory       # noqa: E402
from sglang.srt.mem_cache.utils import get_storage_hash_str      # noqa: E402

PAGE, PAGES, QUERY = 8, 40, [5, 6, 7]


class Key(list):
    """Tokens with what a request names its cache by, as SGLang's radix keys have it."""
    extra_key = cache_salt = None


def keys_of(tokens, salt):
    key = Key(tokens)
    key.cache_salt = salt
    return get_storage_hash_str(key, None, page_size=PAGE)


def make_pool(cache, layout, dtype=torch.float32, heads=None):
    """SGLang's own pool of plain K and V; made without its constructor, which asks for a GPU's buffers."""
    pool = object.__new__(MHATokenToKVPoolHost)
    pool.layout, pool.page_size, pool.dtype, pool.device, pool.pin_memory = layout, PAGE, dtype, "cpu", False
    pool.layer_num, pool.head_num, pool.head_dim = cache.layers, heads or cache.kv_heads, cache.head_dim
    pool.v_head_dim, pool.start_layer, pool.end_layer = cache.head_dim, 0, cache.layers
    n, h, d, tokens = pool.layer_num, pool.head_num, pool.head_dim, PAGES * PAGE
    shapes = {"layer_first": (2, n, tokens, h, d), "page_first": (2, tokens, n, h, d),
              "page_first_direct": (2, PAGES, n, PAGE, h, d), "page_head": (2, PAGES, h, PAGE, n, d)}
    pool.kv_buffer = torch.zeros(shapes[layout], dtype=dtype)
    return pool


def rows_of(pool, index, count):
    """(2, layers, count, heads, dim) from a token's place on."""
    b = pool.kv_buffer
    if pool.layout == "layer_first":
        return b[:, :, index:index + count]
    if pool.layout == "page_first":
        return b[:, index:index + count].permute(0, 2, 1, 3, 4)
    pages = b[:, index // PAGE:(index + count) // PAGE]
    pages = pages.permute(0, 2, 1, 3, 4, 5) if pool.layout == "page_first_direct" else pages.permute(0, 4, 1, 3, 2, 5)
    return pages.flatten(2, 3)


class Sglang(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        torch.set_num_threads(1)
        cls.folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.daemon = enter(cls, Daemon({"llama": models.make_model(cls.folder.name + "/llama", "llama")}))
        cls.client = samkv.Client(cls.daemon.socket)
        cls.addClassCleanup(cls.client.close)
        rng = cases.seeded(7)
        for name in ("a", "b", "c"):
            cls.client.ingest(name, cases.tokens(rng, rng.randint(60, 120)), preamble=[7, 9], block_tokens=8,
                              init_tokens=8, local_tokens=8)

    def setUp(self):
        announcements = tempfile.TemporaryDirectory()
        self.addCleanup(announcements.cleanup)
        self.where = announcements.name
        self.cache = self.client.fetch(["a", "b", "c"], QUERY, ratio=0.4, positions="compact")
        self.addCleanup(self.cache.close)
        self.asked = prompt_of(self.cache, QUERY)

    def backend(self, pool, rank=0, ranks=1):
        extra = {"backend_name": "samkv", "module_path": "samkv.sglang", "class_name": "SamkvStorage",
                 "folder": self.where}
        config = HiCacheStorageConfig(tp_rank=rank, tp_size=ranks, pp_rank=0, pp_size=1, attn_cp_rank=0, attn_cp_size=1,
                                      is_mla_model=False, enable_storage_metrics=False, is_page_first_layout=False,
                                      model_name="llama", extra_config=extra)
        out = StorageBackendFactory.create_backend("dynamic", config, pool)
        self.assertIsInstance(out, SamkvStorage)
        out.register_mem_pool_host(pool)
        return out

    def keys(self):
        body = self.asked.body
        return keys_of(body["input_ids"], body["cache_salt"])

    def assert_filled(self, pool, backend, keys, heads=slice(None)):
        """As SGLang's controller does it with a backend whose interface has no v1."""
        pages = backend.batch_get(keys, [pool.get_dummy_flat_data_page() for _ in keys])
        for i, page in enumerate(pages):
            pool.set_from_flat_data_page(PAGE * (i + 1), page)
        tensors, count = self.cache.torch(), PAGE * len(keys)
        found = rows_of(pool, PAGE, count)
        for which, wanted in enumerate((tensors.k, tensors.v)):
            self.assertTrue(torch.equal(found[which], wanted[:, :count, heads].to(pool.dtype)))
        self.assertFalse(bool(rows_of(pool, 0, PAGE).any()), "nothing else is touched")

    def test_pages_in_every_layout(self):
        whole = self.cache.rows // PAGE
        self.assertGreater(whole, 3)
        with announce(self.where, self.asked):
            for layout in ("layer_first", "page_first", "page_first_direct", "page_head"):
                with self.subTest(layout=layout):
                    pool = make_pool(self.cache, layout)
                    backend = self.backend(pool)
                    self.assertEqual(backend.batch_exists(self.keys()), whole)
                    self.assert_filled(pool, backend, self.keys()[:whole])

    def test_ranks_and_types(self):
        half = self.cache.kv_heads // 2
        with announce(self.where, self.asked):
            for rank in range(2):
                pool = make_pool(self.cache, "layer_first", torch.bfloat16, half)
                self.assert_filled(pool, self.backend(pool, rank, 2), self.keys()[:4],
                                   slice(rank * half, (rank + 1) * half))

    def test_only_what_is_announced_and_only_for_its_salt(self):
        pool = make_pool(self.cache, "layer_first")
        backend, whole = self.backend(pool), self.cache.rows // PAGE
        self.assertEqual(backend.batch_exists(self.keys()), 0)
        said = announce(self.where, self.asked)
        self.assertEqual(backend.batch_exists(self.keys()), whole)
        self.assertEqual(backend.batch_exists(keys_of(self.asked.body["input_ids"], "another")), 0)
        self.assertEqual(backend.batch_exists(keys_of(self.asked.body["input_ids"], None)), 0)
        self.assertEqual(backend.batch_get([self.keys()[0], "00" * 32, self.keys()[1]])[1:], [None, None])
        said.withdraw()
        said.withdraw()
        self.assertFalse(backend.set("key", torch.zeros(1)))
        self.assertEqual(backend.batch_exists(["00" * 32]), 0)     # looks into the folder
        self.assertEqual(backend.batch_exists(self.keys()), 0)

    def test_a_cache_that_went(self):
        cache = self.client.fetch(["a", "b"], QUERY, ratio=0.4, positions="compact")
        self.asked = prompt_of(cache, QUERY)
        pool = make_pool(cache, "layer_first")
        backend = self.backend(pool)
        with announce(self.where, self.asked):
            self.assertGreater(backend.batch_exists(self.keys()), 2)
            number = cache.fileno()
            cache.close()
            os.dup2(os.open("/dev/null", os.O_RDONLY), number)
            self.addCleanup(os.close, number)
            self.assertEqual(backend.batch_get(self.keys()[:2]), [None, None])

    def test_bad_announcements_and_other_models(self):
        for number, text in enumerate((b"", b"{", b"[]", b'{"path": 7}', b"[" * 5000, b'{"path": "/dev/zero", "cache_salt": "x"}',
                                       b'{"path": "/nowhere", "cache_salt": "x"}', b" " * 100000)):
            with open("%s/%d.json" % (self.where, number), "wb") as out:
                out.write(text)
        os.mkdir(self.where + "/folder.json")
        pool = make_pool(self.cache, "layer_first", heads=self.cache.kv_heads + 1)
        backend = self.backend(pool)
        with announce(self.where, self.asked):
            self.assertGreater(backend.batch_exists(self.keys()), 3)
            self.assertEqual(backend.batch_get(self.keys()[:1]), [None])


if __name__ == "__main__":
    unittest.main(verbosity=2)
