#pragma once
/*
 * Private to the tokenizer: token texts by id and ids by text, and the merges of byte-pair encoding as a table
 * (left id, right id) → (rank, merged id). Built once, then only read.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"

enum {
    SAMKV_TOK_PRESENT = 1, /* the id has a text (vocabularies may have holes) */
    SAMKV_TOK_MODEL = 2,   /* merging may produce it */
    SAMKV_TOK_ADDED = 4,   /* found in the text as a whole, before merging */
    SAMKV_TOK_SPECIAL = 8, /* an added token that plain text must not become */
};

struct samkv_tok_index {
    uint32_t *slots; /* id + 1, 0 is empty; open addressing */
    uint32_t mask;
};

struct samkv_tok_vocab {
    char *arena; /* all texts, one behind the other */
    size_t arena_count, arena_capacity;
    uint32_t *offset, *length; /* by id */
    uint8_t *flags;            /* by id, SAMKV_TOK_* */
    uint32_t ids;              /* one more than the highest id */
    struct samkv_tok_index model, added;
};

/* ids: one more than the highest id; tokens, text_bytes: bounds of what will be added. */
enum samkv_status samkv_tok_vocab_init(struct samkv_tok_vocab *, uint32_t ids, uint32_t tokens, size_t text_bytes,
                                       struct samkv_error *) SAMKV_MUST_USE;
void samkv_tok_vocab_deinit(struct samkv_tok_vocab *);
/* INVALID: the id or, within the same kind, the text is taken. A token may be both a model's and an added one. */
enum samkv_status samkv_tok_vocab_add(struct samkv_tok_vocab *, uint32_t id, const char *text, size_t bytes,
                                      uint8_t flags, struct samkv_error *) SAMKV_MUST_USE;
int32_t samkv_tok_vocab_find(const struct samkv_tok_vocab *, const struct samkv_tok_index *, const char *text,
                             size_t bytes); /* -1: none */
static inline const char *samkv_tok_vocab_text(const struct samkv_tok_vocab *vocab, uint32_t id)
{
    return vocab->arena + vocab->offset[id];
}

#define SAMKV_TOK_NO_MERGE UINT64_MAX

struct samkv_tok_merges {
    struct samkv_tok_merge {
        uint64_t pair; /* left id << 32 | right id; UINT64_MAX is empty */
        uint64_t into; /* rank << 32 | merged id */
    } * slots;
    int shift; /* 64 - log2(slots) */
    uint32_t mask;
};

enum samkv_status samkv_tok_merges_init(struct samkv_tok_merges *, size_t count) SAMKV_MUST_USE;
void samkv_tok_merges_deinit(struct samkv_tok_merges *);
/* A pair that comes twice takes the later rank. At most as many as init was told. */
void samkv_tok_merges_put(struct samkv_tok_merges *, uint32_t left, uint32_t right, uint32_t rank, uint32_t merged);

static inline uint64_t samkv_tok_merges_get(const struct samkv_tok_merges *merges, uint32_t left, uint32_t right)
{
    uint64_t pair = (uint64_t)left << 32 | right;
    uint32_t at = (uint32_t)((pair * 0x9E3779B97F4A7C15u) >> merges->shift);
    while (merges->slots[at].pair != pair) {
        if (merges->slots[at].pair == UINT64_MAX)
            return SAMKV_TOK_NO_MERGE;
        at = (at + 1) & merges->mask;
    }
    return merges->slots[at].into;
}
