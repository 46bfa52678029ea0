"""Caches for SGLang, as a storage backend of its HiCache: no patch, the reduced prompt's pages are found in storage.

    python -m sglang.launch_server --model-path … --enable-hierarchical-cache --page-size 16 \\
        --hicache-storage-backend dynamic --hicache-storage-backend-extra-config '{"backend_name": "samkv",
        "module_path": "samkv.sglang", "class_name": "SamkvStorage", "folder": "/run/me/samkv", "prefetch_threshold": 32}'

    cache = client.fetch(ids, question, positions="compact")
    asked = prompt_of(cache, query_tokens)
    with announce("/run/me/samkv", asked):
        answer = requests.post(url + "/generate", json=dict(asked.body, sampling_params={"max_new_tokens": 64}))

SGLang's storage interface knows pages by a chain of hashes: of all tokens up to the page's end, begun with the request's
`cache_salt`. So it is prefix only, as vLLM's is, and the same reduced prompt at compact positions is what fits; the salt
keeps its pages from being another prompt's. The interface gives a backend hashes, not tokens: a cache is therefore
announced beforehand, in a folder that both sides know, as the path of its sealed memory (samkv.prefix). SGLang must run on
the same machine and as the same user, and the `Cache` must stay open until the answer is there. Tokens behind the last
whole page are computed by SGLang, as the query is.

Pages are given only: what SGLang wants to store is refused, since documents are ingested into samkvd. Of its memory pools,
those of plain K and V in f16, bf16 or f32 (MHATokenToKVPoolHost) are filled, in every layout that takes a flat page; not
those of MLA, hybrid models, or quantised caches. Tested with the interface, the hashes, the factory and the pool of SGLang
0.5.23, on a CPU; the server was not run.
"""
import json
import logging
import os
import threading
import typing

import torch
from sglang.srt.mem_cache.hicache_storage import HiCacheStorage
from sglang.srt.mem_cache.utils import get_hash_str, storage_namespace_seed

from .prefix import CacheFile, Identity, announce, prompt_of     # the last two: for those who ask through this module

__all__ = ["SamkvStorage", "announce", "prompt_of"]

_log = logging.getLogger("sglang.samkv")
_MAX_ANNOUNCEMENTS, _MAX_ANNOUNCEMENT_BYTES = 4096, 64 << 10
# How the flat page of each of the pool's layouts is ordered, from (K or V, layer, token, head, dim).
_LAYOUTS = {"layer_first": (0, 1, 2, 3, 4), "page_first": (0, 2, 1, 3, 4), "page_first_direct": (0, 1, 2, 3, 4),
            "page_head": (0, 3, 2, 1, 4)}


class _Announced(typing.NamedTuple):
    path: str
    identity: Identity
    keys: typing.List[str]


class SamkvStorage(HiCacheStorage):
    """See the module's description. SGLang calls it from threads of its own."""

    def __init__(self, storage_config, kwargs=None):
        extra = storage_config.extra_config or {}
        self._folder = extra.get("folder")
        if not isinstance(self._folder, str) or not os.path.isdir(self._folder):
            raise ValueError("name the folder of announcements in the backend's extra config: {\"folder\": PATH}")
        if storage_config.is_mla_model or storage_config.dcp_size != 1:
            raise ValueError("samkv's caches are of plain K and V: no MLA, no context parallelism of the decoder")
        if getattr(storage_config, "attn_cp_size", 1) != 1:
            raise ValueError("samkv's caches cannot be split over context parallelism")
        self._rank, self._ranks = storage_config.tp_rank, storage_config.tp_size
        self._lock = threading.Lock()
        self._announced: typing.Dict[str, typing.Optional[_Announced]] = {}     # by file; None: of no use
        self._pages: typing.Dict[str, typing.Tuple[_Announced, int]] = {}       # by key: which of its pages

    # ------------------------------------------------------------------ what was announced

    def _read(self, name: str) -> typing.Optional[_Announced]:
        path = os.path.join(self._folder, name)
        try:
            with open(path, "rb") as source:
                text = source.read(_MAX_ANNOUNCEMENT_BYTES + 1)
            said = json.loads(text) if len(text) <= _MAX_ANNOUNCEMENT_BYTES else None
            if not isinstance(said, dict) or not isinstance(said.get("path"), str) or \
                    not isinstance(said.get("cache_salt"), str):
                raise ValueError("%s is no announcement" % path)
            file = CacheFile(said["path"])
            tokens = file.tokens.tolist()
            if not file.serves(tokens):
                raise ValueError("the cache of %s has gaps: fetch with positions=\"compact\"" % path)
        except (OSError, ValueError, RecursionError) as error:
            _log.warning("a cache is not used: %s", error)
            return None
        page = self.mem_pool_host.page_size
        whole = len(tokens) // page * page
        keys = get_hash_str(tokens[:whole], storage_namespace_seed(None, said["cache_salt"]), page) if whole else []
        return _Announced(said["path"], file.identity, keys)

    def _look(self) -> None:
        """Takes note of what came to the folder, and of what went. With the lock held."""
        there = sorted(name for name in os.listdir(self._folder) if name.endswith(".json"))[:_MAX_ANNOUNCEMENTS]
        for name in set(self._announced).difference(there):
            gone = self._announced.pop(name)
            for key in gone.keys if gone else ():
                self._pages.pop(key, None)
        for name in there:
            if name not in self._announced:
                found = self._announced[name] = self._read(name)
                for number, key in enumerate(found.keys if found else ()):
                    self._pages[key] = (found, number)

    def _find(self, key: str) -> typing.Optional[typing.Tuple[_Announced, int]]:
        with self._lock:
            if key not in self._pages:
                self._look()
            return self._pages.get(key)

    # ------------------------------------------------------------------ pages

    def _page(self, file: CacheFile, number: int) -> torch.Tensor:
        """A page as the pool's layout has it, flat. Raises ValueError when it is not of this model."""
        pool, size = self.mem_pool_host, self.mem_pool_host.page_size
        heads = max(file.kv_heads // self._ranks, 1)
        first_layer = getattr(pool, "start_layer", 0) or 0
        if pool.layout not in _LAYOUTS or (pool.head_num, pool.head_dim) != (heads, file.head_dim) or \
                first_layer + pool.layer_num > file.layers or not pool.dtype.is_floating_point or pool.dtype.itemsize < 2:
            raise ValueError("SGLang's pool is %d layers of (%d, %d) %s in the layout %s, the cache %d of (%d, %d)" %
                             (pool.layer_num, pool.head_num, pool.head_dim, pool.dtype, pool.layout, file.layers, heads,
                              file.head_dim))
        first = self._rank * file.kv_heads // self._ranks
        rows, part = slice(number * size, (number + 1) * size), slice(first, first + heads)
        out = torch.empty((2, pool.layer_num, size, heads, file.head_dim), dtype=pool.dtype)
        for layer in range(pool.layer_num):
            for which, array in enumerate((file.k(first_layer + layer), file.v(first_layer + layer))):
                values = torch.from_numpy(array[rows, part].copy())     # the memory is read-only and shared
                out[which, layer] = values.view(torch.bfloat16) if file.dtype == "bf16" else values
        return out.permute(_LAYOUTS[pool.layout]).flatten()

    def batch_get(self, keys, target_locations=None, target_sizes=None):
        """A flat page for each key, None from the first on that cannot be given."""
        out: typing.List[typing.Optional[torch.Tensor]] = [None] * len(keys)
        file, of = None, None
        for i, key in enumerate(keys):
            found = self._find(key)
            if found is None:
                break
            try:
                if of is not found[0]:
                    file, of = CacheFile(found[0].path, found[0].identity), found[0]
                out[i] = self._page(file, found[1])
            except (OSError, ValueError) as error:
                _log.warning("a page is not given: %s", error)
                break
        return out

    def get(self, key, target_location=None, target_sizes=None):
        return self.batch_get([key])[0]

    def exists(self, key) -> bool:
        return self._find(key) is not None

    def batch_exists(self, keys, extra_info=None) -> int:
        for i, key in enumerate(keys):
            if not self.exists(key):
                return i
        return len(keys)

    def set(self, key, value=None, target_location=None, target_sizes=None) -> bool:
        return False

    def batch_set(self, keys, values=None, target_locations=None, target_sizes=None) -> bool:
        return False
