#pragma once
/*
 * Fetched caches for llama.cpp: the bytes that llama_state_seq_set_data takes. Needs no header of llama.cpp and is not
 * linked against it; the engine's own functions are called by the engine's program.
 *
 *   struct samkv_llama_layout layout;
 *   llama_decode(ctx, one_token_in_sequence_0);                   once a context: any token, so that a state has a cell
 *   size_t n = llama_state_seq_get_size(ctx, 0);
 *   llama_state_seq_get_data(ctx, sample, n, 0);
 *   samkv_llama_layout_read(sample, n, llama_model_rope_type(model), &layout, &err);
 *   samkv_llama_state_bytes(cache, &layout, &bytes, &err);                                              for each cache
 *   samkv_llama_state_write(cache, &layout, 0, state, bytes, &err);
 *   llama_state_seq_set_data(ctx, state, bytes, 0);
 *   … decode the query's tokens in sequence 0 at positions cache->figures.next_position, + 1, …
 *
 * Why a sample: llama.cpp documents neither the form of a state nor a version of it, and it depends on the context
 * (types of K and V, flash attention, sequences). A state of the very context says all of it, and a form that is not
 * exactly the known one is refused (UNSUPPORTED) before anything is written. Tested with llama.cpp commit 0c1e57098 of
 * October 2026 (in PyPI's llama-cpp-python 0.3.36); states that begin without its number 0xaf143cd8, as older ones do,
 * are refused.
 *
 * Glossary
 *   cell     a token's place in llama.cpp's cache, with its position; a cache's row becomes a cell, gaps stay gaps.
 *   stream   a part of llama.cpp's cache; more than one when a context has several sequences and no unified cache.
 *   width    kv_heads * head_dim: elements of a row of K or V in one layer.
 *
 * Head order. K is kept after RoPE. Models whose rope type is NORM (llama, mistral) rotate neighbouring elements: their
 * GGUF files permute the rows of the Q and K projections, and K is permuted here likewise, within each head:
 * (0, d/2, 1, d/2 + 1, …) of Hugging Face's order. NEOX (qwen2, qwen3) keeps Hugging Face's order. V is never permuted.
 *
 * Errors and ownership are as in samkv.h. Threads: any; nothing is kept between calls. A cache in a GPU's memory is
 * copied to the host layer by layer.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "samkv/samkv.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Values of llama.cpp's enum ggml_type that K and V may have here. */
enum samkv_llama_type { SAMKV_LLAMA_F32 = 0, SAMKV_LLAMA_F16 = 1, SAMKV_LLAMA_BF16 = 30 };

/* Values of llama.cpp's enum llama_rope_type; any other is UNSUPPORTED. */
enum samkv_llama_rope { SAMKV_LLAMA_ROPE_NORM = 0, SAMKV_LLAMA_ROPE_NEOX = 2 };

/* How a context keeps its sequences. */
struct samkv_llama_layout {
    uint32_t streams;
    uint32_t layers, width;
    int32_t k_type, v_type; /* enum samkv_llama_type */
    bool v_transposed;      /* V as (width, cells) and not (cells, width): a context without flash attention */
    int32_t rope_type;      /* enum samkv_llama_rope */
    uint64_t reserved[4];
};

/*
 * Learns the layout from what llama_state_seq_get_data gave for a sequence of one cell or more. rope_type: what
 * llama_model_rope_type says. INVALID: the sequence is empty. UNSUPPORTED: a form, type or rotation that is not known
 * here. The bytes may be anything; nothing outside of them is read.
 */
SAMKV_API enum samkv_status samkv_llama_layout_read(const void *state, size_t bytes, int rope_type,
                                                    struct samkv_llama_layout *out,
                                                    struct samkv_error *err) SAMKV_MUST_USE;

/*
 * Bytes of this cache's state. MISMATCH: the context's model has other layers or another width. INVALID: the query
 * would not go on right behind the last row, which llama.cpp demands (a fetch without local anchors and with a dropped
 * last block): fetch with local_tokens of 1 or more, or positions COMPACT. PROTOCOL: positions do not ascend.
 */
SAMKV_API enum samkv_status samkv_llama_state_bytes(const struct samkv_cache *, const struct samkv_llama_layout *,
                                                    size_t *out, struct samkv_error *err) SAMKV_MUST_USE;

/*
 * Writes the state: K and V of all rows, (rows, kv_heads, head_dim) a layer, in the context's types (rounded to nearest
 * even). sequence: the number that llama_state_seq_set_data will get too. bytes: exactly samkv_llama_state_bytes, else
 * INVALID. NO_MEMORY; DEVICE when copying from a GPU fails. Fails like samkv_llama_state_bytes besides.
 */
SAMKV_API enum samkv_status samkv_llama_state_write(const struct samkv_cache *, const struct samkv_llama_layout *,
                                                    int32_t sequence, void *out, size_t bytes,
                                                    struct samkv_error *err) SAMKV_MUST_USE;

#ifdef __cplusplus
}
#endif
