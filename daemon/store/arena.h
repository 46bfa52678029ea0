#pragma once
/*
 * An arena of chunks: memory of a fixed size, handed out in chains of equal chunks. A chain's chunks need not lie side
 * by side, so there is no fragmentation beyond the last chunk of each chain: as long as enough chunks are free, any
 * size fits. (malloc gives no such promise: pieces of 100 KB to 2 MB come and go in other sizes than the holes between
 * them.) Where they do lie side by side they are copied in one go.
 *
 * The caller gives the memory and holds its own lock: taking and giving are not safe beside each other. Whoever has a
 * chain may read, write and walk it without any lock until it is given back.
 *
 *   chunk    SAMKV_CHUNK_BYTES, by number; 0 is none.
 *   fresh    chunks that were never handed out: their memory has not been touched yet, and costs nothing.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SAMKV_CHUNK_BYTES ((size_t)4096)

struct samkv_arena {
    uint32_t *next;  /* [count + 1]: the chunk that follows in its chain */
    uint8_t *chunks; /* [count][SAMKV_CHUNK_BYTES] */
    uint32_t count, fresh, free_first, free_count;
};

/* `next` and `chunks` are the caller's and may hold anything. */
void samkv_arena_init(struct samkv_arena *, uint32_t count, uint32_t *next, uint8_t *chunks);

/* Chunks that samkv_arena_take could give now. */
uint32_t samkv_arena_free_chunks(const struct samkv_arena *);

/* A chain of `chunks` (at least 1, at most what is free) chunks; *last its last one. Contents are undefined. */
uint32_t samkv_arena_take(struct samkv_arena *, uint32_t chunks, uint32_t *last);

/* Gives a whole chain back. */
void samkv_arena_give(struct samkv_arena *, uint32_t first, uint32_t last, uint32_t chunks);

static inline uint8_t *samkv_arena_chunk(const struct samkv_arena *arena, uint32_t chunk)
{
    return arena->chunks + (size_t)(chunk - 1) * SAMKV_CHUNK_BYTES;
}

/* A place in a chain, to copy from or to. It must not go beyond the chain's end. */
struct samkv_arena_cursor {
    const struct samkv_arena *arena;
    uint32_t chunk;
    size_t at; /* within it */
};

void samkv_arena_write(struct samkv_arena_cursor *, const void *from, size_t bytes);
void samkv_arena_read(struct samkv_arena_cursor *, void *to, size_t bytes);
