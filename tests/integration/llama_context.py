"""llama.cpp's own functions through llama-cpp-python, for tests and measurements: a model and one context of it."""
import ctypes

import llama_cpp
import numpy as np

import engines          # finds the package samkv
from samkv import llama

F32, F16, Q8_0 = 0, 1, 8        # ggml types
BATCH = 512

assert engines


@llama_cpp.llama_log_callback
def _say_nothing(level, text, data):
    pass


llama_cpp.llama_log_set(_say_nothing, ctypes.c_void_p())


class Context:
    """A llama.cpp context over a GGUF file."""

    def __init__(self, path, k_type=F32, v_type=F32, flash=False, sequences=1, unified=False, cells=1024, threads=1):
        p = llama_cpp.llama_model_default_params()
        p.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), p)
        assert self.model, path
        c = llama_cpp.llama_context_default_params()
        c.n_ctx, c.n_batch, c.n_threads, c.n_threads_batch = cells * sequences, BATCH, threads, threads
        c.n_seq_max, c.kv_unified, c.type_k, c.type_v = sequences, unified, k_type, v_type
        c.flash_attn_type = 1 if flash else 0
        c.offload_kqv = False
        self.context = llama_cpp.llama_init_from_model(self.model, c)
        assert self.context
        self.known_layout = None

    def close(self):
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def layout(self, sequence=0):
        return llama.read_layout(self.model, self.context, sequence)

    def decode(self, tokens, position, sequence=0):
        """The logits after the last token."""
        for at in range(0, len(tokens), BATCH):
            self.decode_batch(tokens[at:at + BATCH], position + at, sequence)
        vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, -1), (vocabulary,)).copy()

    def decode_batch(self, tokens, position, sequence):
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(token), position + i, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, i == len(tokens) - 1
        status = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_batch_free(batch)
        assert status == 0, status

    def load(self, cache):
        """Sequence 0 becomes the cache."""
        if self.known_layout is None:
            self.known_layout = self.layout()
        llama.set_state(self.context, llama.state_of(cache, self.known_layout))

    def clear(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)

    def is_end(self, token):
        return llama_cpp.llama_vocab_is_eog(llama_cpp.llama_model_get_vocab(self.model), token)

    def tokens(self, text):
        """Of a text without anything in front, special tokens known."""
        raw, out = text.encode(), (ctypes.c_int32 * (len(text.encode()) + 8))()
        count = llama_cpp.llama_tokenize(llama_cpp.llama_model_get_vocab(self.model), raw, len(raw), out, len(out),
                                         False, True)
        return out[:count]

    def text(self, tokens):
        vocabulary, piece, raw = llama_cpp.llama_model_get_vocab(self.model), ctypes.create_string_buffer(256), b""
        for token in tokens:
            count = llama_cpp.llama_token_to_piece(vocabulary, token, piece, len(piece), 0, False)
            raw += piece.raw[:count]
        return raw.decode(errors="replace")

    def state(self, sequence=0):
        count = llama_cpp.llama_state_seq_get_size(self.context, sequence)
        out = (ctypes.c_uint8 * count)()
        assert llama_cpp.llama_state_seq_get_data(self.context, out, count, sequence) == count
        return np.array(out)
