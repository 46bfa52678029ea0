"""A fetched cache: arrays over the memory that the daemon filled, without a copy.

Ownership. The memory stays mapped while a `Cache` or any array or tensor made from it is alive, also when the daemon is
dead or the client closed; it is unmapped when the last of them goes. Memory in a GPU is the daemon's again then: all
work on the GPU that reads it must be done by that time.

The host's memory is read-only and shared with other readers: NumPy refuses to write to it, and writing through a torch
tensor of it ends the process, as PyTorch knows no read-only tensors. `clone()` what is to be changed.
"""
import ctypes
import dataclasses
import os
import typing
import warnings
import weakref

import numpy as np

from . import _library

# By the numbers of enum samkv_dtype: (name, as an array interface says it, bytes)
_DTYPES = {0: ("f32", "<f4", 4), 1: ("f16", "<f2", 2), 2: ("bf16", "<u2", 2)}


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a fetch did. Lists have one element a document, in the order of the request; times are milliseconds."""
    documents: int
    preamble_tokens: int
    kept_tokens: int            # document tokens in the cache
    total_tokens: int           # document tokens in all
    next_position: int          # where the query, or what follows it, goes on
    block_tokens: int
    sequence_ratio: float       # kept / total
    recompute_ratio: float      # recomputed (token, layer) pairs of all
    top_p: typing.List[float]
    document_tokens: typing.List[int]
    keep: typing.List[typing.List[int]]     # block numbers of each document
    stable_layers: typing.List[int]
    bytes_read: int
    bytes_stored: int
    anchors_exceed_budget: bool
    backend: str
    timing_ms: typing.Dict[str, float]
    request: int                # the daemon's number of this request, in its log and traces; 0: it has none
    decision: str               # "sparse", "raised", "full_quality", "full_cheaper": what was done, and why
    ratio: float                # that was used
    sparse_ms: float            # with a deadline: what either way was expected to take; negative: not known
    full_ms: float


_DECISIONS = ("sparse", "raised", "full_quality", "full_cheaper")


def read_figures(f: "_library.FiguresInput") -> Figures:
    """Copies them out of the library's memory."""
    names = ("documents", "preamble_tokens", "kept_tokens", "total_tokens", "next_position", "block_tokens",
             "sequence_ratio", "recompute_ratio", "bytes_read", "bytes_stored", "anchors_exceed_budget", "request",
             "ratio", "sparse_ms", "full_ms")
    return Figures(top_p=f.top_p[:f.documents] if f.documents else [],
                   document_tokens=f.document_tokens[:f.documents] if f.documents else [],
                   keep=[f.keep[i].blocks[:f.keep[i].count] if f.keep[i].count else [] for i in range(f.documents)],
                   stable_layers=f.stable_layers[:f.stable_layer_count] if f.stable_layer_count else [],
                   backend=_library.text(f.backend),
                   decision=_DECISIONS[f.decision] if f.decision < len(_DECISIONS) else str(f.decision),
                   timing_ms={name: getattr(f.timing_ms, name) for name, _ in _library.Timing._fields_},
                   **{name: getattr(f, name) for name in names})


class _Memory:
    """Owns the library's cache. What is made from it holds a reference to this."""

    def __init__(self, pointer):
        self.pointer = pointer
        # Not at the interpreter's end: arrays may outlive this then, and the system takes the memory back anyway.
        weakref.finalize(self, _library.call, "samkv_cache_free", pointer).atexit = False


class DeviceArray:
    """K or V in the memory of a GPU, for whoever knows `__cuda_array_interface__` (PyTorch, CuPy, Numba).

    `shape` is (layers, rows, kv_heads, head_dim); bf16 is given as its 16 bits (`<u2`), since the interface has no
    name for it. The array keeps the memory. `ordinal` is the GPU's number in this process.
    """

    def __init__(self, memory, address, shape, strides, typestr, ordinal):
        self._memory, self.shape, self.strides, self.typestr, self.ordinal = memory, shape, strides, typestr, ordinal
        self.address = address

    @property
    def __cuda_array_interface__(self) -> dict:
        # stream 1, the legacy default stream: what is there was complete when the fetch returned.
        return {"version": 3, "shape": self.shape, "strides": self.strides, "typestr": self.typestr,
                "data": (self.address, False), "stream": 1}


class _HostView:
    """What NumPy makes an array of; the array's base is this, which keeps the memory."""

    def __init__(self, memory, address, shape, strides, typestr, writable):
        self._memory = memory
        self.__array_interface__ = {"version": 3, "shape": shape, "strides": strides, "typestr": typestr,
                                    "data": (address, not writable)}


class Tensors(typing.NamedTuple):
    """A cache as torch tensors."""
    k: typing.Any           # (layers, rows, kv_heads, head_dim), after RoPE
    v: typing.Any           # (layers, rows, kv_heads, head_dim)
    tokens: typing.Any      # (rows), int32
    doc: typing.Any         # (rows), int32
    index: typing.Any       # (rows), int32
    position: typing.Any    # (rows), int32
    logits: typing.Any      # (vocabulary), float32, or None


class Cache:
    """K and V of the kept tokens, and which tokens they are.

    Attributes: `layers`, `rows`, `kv_heads`, `head_dim`; `dtype` ("f32", "f16" or "bf16"); `where` ("host" or
    "device"); `device` (the GPU's ordinal in this process, None on the host and on a daemon that plays a GPU);
    `figures` (a `Figures`); `next_position` (where the query, or with `with_query` what follows it, goes on).

    `k`, `v` (layers, rows, kv_heads, head_dim): K after RoPE at `position`, and V. NumPy arrays, or a `DeviceArray` on a
    GPU. bf16 is an array of ml_dtypes.bfloat16 where that package is installed, else of its bits as uint16; `torch`
    gives bfloat16 in any case.
    `tokens`, `doc`, `index`, `position` (rows) int32: token ids; number of the document in the request, -1 the preamble,
    -2 the query; place in its document; position, ascending, with gaps unless `positions="compact"` was asked for.
    `logits` (vocabulary) float32: of what follows the query's last token; None without `with_query`.
    """

    def __init__(self, pointer):
        """Takes the library's cache: for `Client.fetch`."""
        self._memory = _Memory(pointer)
        c = pointer.contents
        self.layers, self.rows, self.kv_heads, self.head_dim = c.layers, c.rows, c.kv_heads, c.head_dim
        self.dtype, self._typestr, self._element_bytes = _DTYPES[c.dtype]
        self.where = "device" if c.where else "host"
        self.device: typing.Optional[int] = c.device if c.where and c.device >= 0 else None
        self.figures = read_figures(c.figures)
        self.next_position = self.figures.next_position
        self._strides = (c.layer_stride_bytes, c.row_stride_bytes, c.head_stride_bytes, self._element_bytes)
        for name in ("tokens", "doc", "index", "position"):
            setattr(self, name, self._column(getattr(c, name), self.rows, "<i4"))
        self.logits: typing.Optional[np.ndarray] = self._column(c.logits, c.vocab, "<f4") if c.logits else None

    tokens: np.ndarray
    doc: np.ndarray
    index: np.ndarray
    position: np.ndarray

    def __repr__(self):
        return "<samkv.Cache: %d layers of (%d, %d, %d) %s on the %s>" % (
            self.layers, self.rows, self.kv_heads, self.head_dim, self.dtype, self.where)

    def _column(self, pointer, count, typestr):
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        return np.asarray(_HostView(self._memory, address, (count,), None, typestr, False))

    def _bits(self, name):
        """K or V without a copy, bf16 as uint16: an array or a DeviceArray."""
        if self._memory is None:
            raise ValueError("the cache is closed")
        address = _library.call("samkv_cache_" + name, self._memory.pointer, 0)
        shape = (self.layers, self.rows, self.kv_heads, self.head_dim)
        if self.device is not None:
            return DeviceArray(self._memory, address, shape, self._strides, self._typestr, self.device)
        view = _HostView(self._memory, address, shape, self._strides, self._typestr, self.where == "device")
        return np.asarray(view)

    def _array(self, name):
        bits = self._bits(name)
        if self.dtype != "bf16" or self.device is not None:
            return bits
        try:
            import ml_dtypes
        except ImportError:
            return bits
        return bits.view(ml_dtypes.bfloat16)

    @property
    def k(self) -> typing.Union[np.ndarray, DeviceArray]:
        """(layers, rows, kv_heads, head_dim): K after RoPE."""
        return self._array("k")

    @property
    def v(self) -> typing.Union[np.ndarray, DeviceArray]:
        """(layers, rows, kv_heads, head_dim)"""
        return self._array("v")

    def torch(self) -> Tensors:
        """The same memory as torch tensors, on the device where it is. On the host they must not be written to."""
        import torch
        kind = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[self.dtype]

        def from_host(array):
            with warnings.catch_warnings():     # that the memory is read-only: the docstring says so
                warnings.simplefilter("ignore", UserWarning)
                return torch.from_numpy(array)

        def kv(name):
            bits = self._bits(name)
            if self.device is None:
                return from_host(bits.view(np.int16) if self.dtype == "bf16" else bits).view(kind)
            with torch.cuda.device(bits.ordinal):
                return torch.as_tensor(bits, device="cuda:%d" % bits.ordinal).view(kind)

        columns = [from_host(getattr(self, name)) for name in ("tokens", "doc", "index", "position")]
        return Tensors(kv("k"), kv("v"), *columns, None if self.logits is None else from_host(self.logits))

    def fileno(self) -> int:
        """The sealed memory's descriptor, to map or to pass on; it stays the cache's. A valid safetensors file, unless K
        and V are on a device."""
        return _library.call("samkv_cache_fd", self.pointer)

    def save(self, path) -> None:
        """Writes a safetensors file that appears whole or not at all."""
        _library.call("samkv_cache_save", self.pointer, os.fsencode(path))

    @property
    def pointer(self):
        """The library's struct samkv_cache, for calls through ctypes; good while this object is."""
        if self._memory is None:
            raise ValueError("the cache is closed")
        return self._memory.pointer

    def close(self) -> None:
        """Gives up this object's hold on the memory. Arrays and tensors made before keep theirs."""
        self._memory = None
        for name in ("tokens", "doc", "index", "position", "logits"):
            setattr(self, name, None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
