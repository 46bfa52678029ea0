#pragma once
/* The memory of a reply: a memfd that is a valid safetensors file. Private to this room. */
#include "daemon/fetch/fetch.h"

struct samkv_reply_memory {
    int fd;
    uint8_t *map; /* writable until sealed */
    struct samkv_fetch_layout layout;
};

/* vocab 0: no logits. Without K and V, the layout's offsets of them are those in a device's memory: K at 0, then V. */
enum samkv_status samkv_reply_memory_new(struct samkv_reply_memory *, const struct samkv_kv_shape *, uint32_t rows,
                                         uint32_t vocab, bool with_kv, struct samkv_error *) SAMKV_MUST_USE;

/* Unmaps and seals it against any further change; the fd stays open. */
enum samkv_status samkv_reply_memory_seal(struct samkv_reply_memory *, struct samkv_error *) SAMKV_MUST_USE;

void samkv_reply_memory_free(struct samkv_reply_memory *);

/* Whether this much more memory can be had without endangering the machine: TOO_LARGE says what to do. */
enum samkv_status samkv_memory_check(uint64_t bytes, struct samkv_error *) SAMKV_MUST_USE;
