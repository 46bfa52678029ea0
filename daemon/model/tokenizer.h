#pragma once
/*
 * Text ↔ token ids, byte-level BPE (GPT-2 kind: Llama 3, Qwen, SmolLM2) and byte-fallback BPE (Llama 2, Mistral),
 * exactly as the model's own tokenizer does it. Immutable once made: any thread may use it, many at once.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"
#include "daemon/base/ids.h"

struct samkv_tokenizer;
struct samkv_gguf;

/* From the bytes of a tokenizer.json. A part that is not supported gives UNSUPPORTED and is named. */
enum samkv_status samkv_tokenizer_from_json(const char *json, size_t bytes, struct samkv_tokenizer **out,
                                            struct samkv_error *) SAMKV_MUST_USE;
/* From tokenizer.ggml.* metadata. */
enum samkv_status samkv_tokenizer_from_gguf(const struct samkv_gguf *, struct samkv_tokenizer **out,
                                            struct samkv_error *) SAMKV_MUST_USE;
void samkv_tokenizer_free(struct samkv_tokenizer *); /* NULL is allowed */

enum {
    SAMKV_ENCODE_SPECIAL =
        1,                /* special tokens written in the text ("<|im_start|>") become their ids; else plain text */
    SAMKV_ENCODE_BOS = 2, /* put what the tokenizer's post-processor puts in front (BOS), if anything */
};

/* Appends to out. Text need not be valid UTF-8 (each bad sequence becomes U+FFFD). Any length; bounded memory: a small
 * multiple of `bytes`. */
enum samkv_status samkv_tokenizer_encode(const struct samkv_tokenizer *, const char *text, size_t bytes, int flags,
                                         struct samkv_ids *out, struct samkv_error *) SAMKV_MUST_USE;

/*
 * Bytes of the ids, heap, NUL-terminated besides *bytes (free() it). The bytes of a single token can be an incomplete
 * UTF-8 sequence: who streams keeps a tail until it is complete. Ids out of range give INVALID.
 */
enum samkv_status samkv_tokenizer_decode(const struct samkv_tokenizer *, const int32_t *ids, size_t count,
                                         bool skip_special, char **out, size_t *bytes,
                                         struct samkv_error *) SAMKV_MUST_USE;

/* The id of a token by its exact text (special tokens included), -1 when there is none. */
int32_t samkv_tokenizer_id(const struct samkv_tokenizer *, const char *token);

uint32_t samkv_tokenizer_vocab(const struct samkv_tokenizer *);
