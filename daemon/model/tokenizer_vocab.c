#include "daemon/model/tokenizer_vocab.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* A power of two at least twice count: half-empty tables keep probes short. */
static uint32_t table_size(size_t count)
{
    uint32_t size = 16;
    while (size / 2 < count && size < (1u << 31))
        size *= 2;
    return size;
}

static enum samkv_status index_init(struct samkv_tok_index *index, size_t count)
{
    uint32_t size = table_size(count);
    index->slots = calloc(size, sizeof *index->slots);
    index->mask = size - 1;
    return index->slots ? SAMKV_OK : SAMKV_NO_MEMORY;
}

enum samkv_status samkv_tok_vocab_init(struct samkv_tok_vocab *vocab, uint32_t ids, uint32_t tokens, size_t text_bytes,
                                       struct samkv_error *err)
{
    *vocab = (struct samkv_tok_vocab){.ids = ids};
    if (ids == 0 || ids > INT32_MAX / 2 || tokens > INT32_MAX / 2 || text_bytes > UINT32_MAX / 2)
        return samkv_fail(err, SAMKV_INVALID, "the tokenizer has no token, or far too many");
    vocab->arena_capacity = text_bytes ? text_bytes : 1;
    vocab->arena = malloc(vocab->arena_capacity);
    vocab->offset = calloc(ids, sizeof *vocab->offset);
    vocab->length = calloc(ids, sizeof *vocab->length);
    vocab->flags = calloc(ids, 1);
    if (!vocab->arena || !vocab->offset || !vocab->length || !vocab->flags ||
        index_init(&vocab->model, tokens) != SAMKV_OK || index_init(&vocab->added, tokens) != SAMKV_OK) {
        samkv_tok_vocab_deinit(vocab);
        return samkv_fail(err, SAMKV_NO_MEMORY, "not enough memory for a tokenizer of %u tokens", tokens);
    }
    return SAMKV_OK;
}

void samkv_tok_vocab_deinit(struct samkv_tok_vocab *vocab)
{
    free(vocab->arena);
    free(vocab->offset);
    free(vocab->length);
    free(vocab->flags);
    free(vocab->model.slots);
    free(vocab->added.slots);
    *vocab = (struct samkv_tok_vocab){0};
}

static bool has_text(const struct samkv_tok_vocab *vocab, uint32_t id, const char *text, size_t bytes)
{
    return vocab->length[id] == bytes && memcmp(samkv_tok_vocab_text(vocab, id), text, bytes) == 0;
}

/* The slot of text, or the empty one where it belongs. */
static uint32_t *slot_of(const struct samkv_tok_vocab *vocab, const struct samkv_tok_index *index, const char *text,
                         size_t bytes)
{
    uint32_t at = (uint32_t)XXH3_64bits(text, bytes) & index->mask;
    while (index->slots[at] && !has_text(vocab, index->slots[at] - 1, text, bytes))
        at = (at + 1) & index->mask;
    return &index->slots[at];
}

static enum samkv_status index_put(struct samkv_tok_vocab *vocab, struct samkv_tok_index *index, uint32_t id,
                                   struct samkv_error *err)
{
    const char *text = samkv_tok_vocab_text(vocab, id);
    uint32_t *slot = slot_of(vocab, index, text, vocab->length[id]);
    if (*slot)
        return samkv_fail(err, SAMKV_INVALID, "tokens %u and %u of the tokenizer have the same text \"%.*s\"",
                          *slot - 1, id, (int)(vocab->length[id] < 64 ? vocab->length[id] : 64), text);
    *slot = id + 1;
    return SAMKV_OK;
}

enum samkv_status samkv_tok_vocab_add(struct samkv_tok_vocab *vocab, uint32_t id, const char *text, size_t bytes,
                                      uint8_t flags, struct samkv_error *err)
{
    if (id >= vocab->ids)
        return samkv_fail(err, SAMKV_INVALID, "token id %u is beyond the vocabulary of %u", id, vocab->ids);
    bool known = vocab->flags[id] & SAMKV_TOK_PRESENT;
    if (known && (!has_text(vocab, id, text, bytes) || (vocab->flags[id] & flags)))
        return samkv_fail(err, SAMKV_INVALID, "token id %u is given to two tokens", id);
    if (!known) {
        if (bytes > vocab->arena_capacity - vocab->arena_count)
            return samkv_fail(err, SAMKV_INTERNAL, "the texts of the vocabulary were measured wrong");
        memcpy(vocab->arena + vocab->arena_count, text, bytes);
        vocab->offset[id] = (uint32_t)vocab->arena_count;
        vocab->length[id] = (uint32_t)bytes;
        vocab->arena_count += bytes;
    }
    vocab->flags[id] |= flags | SAMKV_TOK_PRESENT;
    enum samkv_status status = SAMKV_OK;
    if (flags & SAMKV_TOK_MODEL)
        status = index_put(vocab, &vocab->model, id, err);
    if (status == SAMKV_OK && (flags & SAMKV_TOK_ADDED))
        status = index_put(vocab, &vocab->added, id, err);
    return status;
}

int32_t samkv_tok_vocab_find(const struct samkv_tok_vocab *vocab, const struct samkv_tok_index *index, const char *text,
                             size_t bytes)
{
    return (int32_t)*slot_of(vocab, index, text, bytes) - 1;
}

enum samkv_status samkv_tok_merges_init(struct samkv_tok_merges *merges, size_t count)
{
    uint32_t size = table_size(count);
    merges->slots = malloc(size * sizeof *merges->slots);
    if (!merges->slots)
        return SAMKV_NO_MEMORY;
    memset(merges->slots, 0xFF, size * sizeof *merges->slots);
    merges->mask = size - 1;
    merges->shift = 64 - __builtin_ctz(size);
    return SAMKV_OK;
}

void samkv_tok_merges_deinit(struct samkv_tok_merges *merges)
{
    free(merges->slots);
    *merges = (struct samkv_tok_merges){0};
}

void samkv_tok_merges_put(struct samkv_tok_merges *merges, uint32_t left, uint32_t right, uint32_t rank,
                          uint32_t merged)
{
    uint64_t pair = (uint64_t)left << 32 | right;
    uint32_t at = (uint32_t)((pair * 0x9E3779B97F4A7C15u) >> merges->shift);
    while (merges->slots[at].pair != UINT64_MAX && merges->slots[at].pair != pair)
        at = (at + 1) & merges->mask;
    merges->slots[at].pair = pair;
    merges->slots[at].into = (uint64_t)rank << 32 | merged;
}
