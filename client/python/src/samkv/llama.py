"""Caches for llama.cpp, through llama-cpp-python.

    llm = llama_cpp.Llama("model.gguf", n_ctx=8192)
    load(llm, cache)
    for token in llm.generate(query_tokens, temp=0, reset=False):
        …

`query_tokens` must be the tokens that the daemon would have (`llm.tokenize(text, add_bos=False, special=True)`); n_ctx must
exceed the positions, not only the rows, unless the cache has compact ones. K and V of the context may be f16, bf16 or
f32, with flash attention or without. The same for programs in C: samkv/samkv_llama.h, which also says which versions of
llama.cpp were tested; another form of its states raises SamkvError with UNSUPPORTED.

Threads: as llama.cpp's context, one at a time.
"""
import ctypes
import typing
import weakref

import llama_cpp
import numpy as np

from . import _library
from ._library import call
from .cache import Cache

_layouts: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


def _decode_one(context, sequence):
    """A token into an empty sequence, so that its state shows the context's layout."""
    llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(context), sequence, -1, -1)
    batch = llama_cpp.llama_batch_init(1, 0, 1)
    try:
        batch.n_tokens, batch.token[0], batch.pos[0], batch.logits[0] = 1, 0, 0, True
        batch.n_seq_id[0], batch.seq_id[0][0] = 1, sequence
        status = llama_cpp.llama_decode(context, batch)
    finally:
        llama_cpp.llama_batch_free(batch)
    if status:
        raise RuntimeError("llama.cpp could not decode a token (%d)" % status)


def read_layout(model, context, sequence: int = 0) -> "_library.LlamaLayout":
    """How this context keeps its sequences. model, context: llama.cpp's pointers. The sequence is emptied; it must not be
    in use. Raises SamkvError: UNSUPPORTED."""
    _decode_one(context, sequence)
    count = llama_cpp.llama_state_seq_get_size(context, sequence)
    sample = (ctypes.c_uint8 * max(count, 1))()
    count = llama_cpp.llama_state_seq_get_data(context, sample, count, sequence)
    llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(context), sequence, -1, -1)
    layout = _library.LlamaLayout()
    call("samkv_llama_layout_read", sample, count, llama_cpp.llama_model_rope_type(model), ctypes.byref(layout))
    return layout


def state_of(cache: Cache, layout: "_library.LlamaLayout", sequence: int = 0) -> np.ndarray:
    """The bytes (uint8) that llama_state_seq_set_data takes for a context of this layout."""
    count = ctypes.c_size_t()
    call("samkv_llama_state_bytes", cache.pointer, ctypes.byref(layout), ctypes.byref(count))
    state = np.empty(count.value, np.uint8)
    call("samkv_llama_state_write", cache.pointer, ctypes.byref(layout), sequence, state.ctypes.data, state.size)
    return state


def set_state(context, state: np.ndarray, sequence: int = 0) -> None:
    """Replaces the sequence's contents. Raises ValueError when llama.cpp refuses, for instance for want of room."""
    pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    if llama_cpp.llama_state_seq_set_data(context, pointer, state.size, sequence) != state.size:
        raise ValueError("llama.cpp refused the cache: is n_ctx larger than its rows?")


def load(llm: "llama_cpp.Llama", cache: Cache) -> None:
    """Makes the cache the model's context, whose contents it replaces; go on with `generate(…, reset=False)`."""
    if cache.next_position >= llm.n_ctx():
        raise ValueError("the query begins at position %d, and n_ctx is %d: make a larger context, or fetch with "
                         "positions='compact'" % (cache.next_position, llm.n_ctx()))
    layout = _layouts.get(llm)
    if layout is None:
        layout = _layouts[llm] = read_layout(llm.model, llm.ctx)
    llm.reset()
    set_state(llm.ctx, state_of(cache, layout))
    llm.input_ids[cache.position] = cache.tokens
    llm.n_tokens = cache.next_position


def greedy(llm: "llama_cpp.Llama", cache: Cache, query: typing.Sequence[int], max_tokens: int) -> typing.List[int]:
    """Greedy answer to a query over the cache, without the token that ends it."""
    load(llm, cache)
    out: typing.List[int] = []
    vocabulary = llama_cpp.llama_model_get_vocab(llm.model)
    if max_tokens <= 0:
        return out
    for token in llm.generate(list(query), temp=0.0, reset=False):
        if llama_cpp.llama_vocab_is_eog(vocabulary, token):
            break
        out.append(token)
        if len(out) == max_tokens:
            break
    return out
