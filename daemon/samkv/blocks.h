#pragma once
/*
 * How a document is cut: blocks of B tokens from its start (the last may be short) and the anchors at both ends, whole
 * blocks that are always kept. Pure functions.
 */
#include <stdbool.h>
#include <stdint.h>

struct samkv_blocks {
    uint32_t tokens, block_tokens, count;
    uint32_t init;  /* blocks [0, init) are initial anchors: the shortest prefix with >= init_tokens */
    uint32_t local; /* blocks [local, count) are local anchors: the shortest suffix with >= local_tokens */
};

/* tokens and block_tokens >= 1. In a short document the two kinds of anchors may overlap. */
struct samkv_blocks samkv_blocks_make(uint32_t tokens, uint32_t block_tokens, uint32_t init_tokens,
                                      uint32_t local_tokens);

static inline uint32_t samkv_block_first(const struct samkv_blocks *b, uint32_t block)
{
    return block * b->block_tokens;
}

static inline uint32_t samkv_block_size(const struct samkv_blocks *b, uint32_t block)
{
    uint32_t first = samkv_block_first(b, block), left = b->tokens - first;
    return left < b->block_tokens ? left : b->block_tokens;
}

static inline bool samkv_block_is_anchor(const struct samkv_blocks *b, uint32_t block)
{
    return block < b->init || block >= b->local;
}
