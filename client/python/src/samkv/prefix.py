"""Caches for engines that load prefixes: what vLLM and SGLang have in common, without either of them.

Their interfaces know K and V of a prompt's *first* n tokens at positions 0 … n - 1, and nothing else. So the prompt is
what a fetch kept, at compact positions, with the query behind it: `prompt_of`. The cache itself is handed over as a path:
of its sealed memory, /proc/PID/fd/N of the process that fetched it (the same machine and user; the `Cache` must stay open
until the answer is there), or of a file that `cache.save` wrote. `CacheFile` reads it; both are safetensors files
(proto/PROTOCOL.md, section 5), and are believed no further than they are checked, since whoever names the path may be
somebody else.
"""
import dataclasses
import json
import math
import mmap
import os
import secrets
import stat
import typing

import numpy as np

_HEADER_BYTES_MAX = 4 << 20
_TYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "I32": np.dtype("<i4")}


class Identity(typing.NamedTuple):
    """Which file a path led to: it may lead to another one later."""
    device: int
    inode: int
    bytes: int


class CacheFile:
    """The arrays of a cache's file, mapped. `dtype` is "f32", "f16" or "bf16" (whose arrays are its bits as uint16).

    `k(layer)`, `v(layer)`: (rows, kv_heads, head_dim), K after RoPE at `position`. `tokens`, `position`: (rows) int32.
    Raises OSError when there is no such file, ValueError when it is no cache.
    """

    def __init__(self, path: str, expected: typing.Optional[Identity] = None):
        # Not to hang on a pipe; what is opened is looked at before it is mapped.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)
            self.identity = Identity(found.st_dev, found.st_ino, found.st_size)
            if not stat.S_ISREG(found.st_mode) or found.st_size < 10:
                raise ValueError("%s is no cache" % path)
            if expected is not None and self.identity != expected:
                raise ValueError("%s is another file by now: keep the cache open until the answer is there" % path)
            self._memory = mmap.mmap(descriptor, found.st_size, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        self._read_header(path)

    def _read_header(self, path):
        count = int.from_bytes(self._memory[:8], "little")
        if not 2 <= count <= min(_HEADER_BYTES_MAX, len(self._memory) - 8):
            raise ValueError("%s is no safetensors file" % path)
        try:
            header = json.loads(self._memory[8:8 + count])
            self._tensors = {name: self._array(entry, 8 + count) for name, entry in header.items()
                             if name != "__metadata__"}
            self.tokens, self.position = self._tensors["tokens"], self._tensors["position"]
            self.dtype = {"F32": "f32", "F16": "f16", "BF16": "bf16"}[header["k.0"]["dtype"]]
            self.rows, self.kv_heads, self.head_dim = self._tensors["k.0"].shape
            self.layers = sum(name.startswith("k.") for name in self._tensors)
            for layer in range(self.layers):
                for array in (self.k(layer), self.v(layer)):
                    if array.shape != self.k(0).shape or array.dtype != self.k(0).dtype:
                        raise ValueError
            if self.tokens.shape != (self.rows,) or self.position.shape != (self.rows,) or not self.rows:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError("%s holds no cache with K and V (one with placement=\"device\" has them on the GPU)" %
                             path) from None

    def _array(self, entry, data):
        begin, end = entry["data_offsets"]
        shape, kind = tuple(entry["shape"]), _TYPES[entry["dtype"]]
        if not all(isinstance(n, int) and n >= 0 for n in shape + (begin, end)) or len(shape) > 4 or \
                end - begin != math.prod(shape) * kind.itemsize or data + end > len(self._memory):
            raise ValueError
        return np.frombuffer(self._memory, kind, math.prod(shape), data + begin).reshape(shape)

    def k(self, layer: int) -> np.ndarray:
        return self._tensors["k.%d" % layer]

    def v(self, layer: int) -> np.ndarray:
        return self._tensors["v.%d" % layer]

    def serves(self, prompt: typing.Sequence[int]) -> bool:
        """Whether its rows are the front of this prompt, at the positions that an engine counts by itself."""
        return self.rows <= len(prompt) and np.array_equal(self.position, np.arange(self.rows, dtype=np.int32)) and \
            np.array_equal(self.tokens, np.asarray(prompt[:self.rows], np.int64))


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request. vLLM: `prompt` and `extra_args` for its Python interface; over HTTP, the members of `prompt` and
    `kv_transfer_params` stand in the body. SGLang: `announce` it, then `body` is that of /generate."""
    prompt: typing.Dict[str, typing.Any]
    kv_transfer_params: typing.Dict[str, typing.Any]

    @property
    def body(self) -> typing.Dict[str, typing.Any]:
        return {"input_ids": self.prompt["prompt_token_ids"], "cache_salt": self.prompt["cache_salt"]}

    @property
    def extra_args(self) -> typing.Dict[str, typing.Any]:
        return {"kv_transfer_params": self.kv_transfer_params}


def prompt_of(cache, query: typing.Sequence[int], saved: typing.Optional[str] = None) -> Asked:
    """The request for a query's tokens (one or more) over a cache that was fetched with positions="compact".

    Raises ValueError for a cache with gaps, with the query's rows in it, or whose K and V are on a GPU.
    """
    query = [int(token) for token in query]
    if not query:
        raise ValueError("the query needs at least one token: it is what the engine computes")
    if (cache.doc == -2).any():
        raise ValueError("the cache has the query's rows already: fetch without with_query")
    if cache.next_position != cache.rows:
        raise ValueError("engines count a prefix's positions by themselves: fetch with positions=\"compact\"")
    if cache.where != "host":
        raise ValueError("the file of a cache on a GPU has no K and V: fetch with placement=\"host\"")
    path = saved or "/proc/%d/fd/%d" % (os.getpid(), cache.fileno())
    return Asked({"prompt_token_ids": cache.tokens.tolist() + query, "cache_salt": secrets.token_hex(16)},
                 {"samkv": {"path": path}})


class Announcement:
    """A cache that an engine was told of through a folder; `withdraw`, or leaving `with`, ends that."""

    def __init__(self, folder: str, asked: Asked):
        name = os.path.join(folder, asked.prompt["cache_salt"])
        with open(name + ".part", "w", encoding="ascii") as out:
            json.dump({"path": asked.kv_transfer_params["samkv"]["path"], "cache_salt": asked.prompt["cache_salt"]}, out)
        self.path = name + ".json"
        os.rename(name + ".part", self.path)    # whole, or not there

    def withdraw(self) -> None:
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.withdraw()


def announce(folder: str, asked: Asked) -> Announcement:
    """Tells SGLang of a cache, before the request is made; see samkv.sglang. Who may write to the folder may do so."""
    return Announcement(folder, asked)
