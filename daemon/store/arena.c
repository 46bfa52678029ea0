#include "daemon/store/arena.h"

#include <assert.h>
#include <string.h>

void samkv_arena_init(struct samkv_arena *arena, uint32_t count, uint32_t *next, uint8_t *chunks)
{
    *arena = (struct samkv_arena){.next = next, .chunks = chunks, .count = count, .fresh = 1};
}

uint32_t samkv_arena_free_chunks(const struct samkv_arena *arena)
{
    return arena->free_count + (arena->count + 1 - arena->fresh);
}

/* Used chunks before fresh ones: memory that the system has given already. */
static uint32_t take_one(struct samkv_arena *arena)
{
    if (!arena->free_count)
        return arena->fresh++;
    uint32_t chunk = arena->free_first;
    arena->free_first = arena->next[chunk];
    arena->free_count--;
    return chunk;
}

uint32_t samkv_arena_take(struct samkv_arena *arena, uint32_t chunks, uint32_t *last)
{
    assert(chunks >= 1 && chunks <= samkv_arena_free_chunks(arena));
    uint32_t first = take_one(arena), at = first;
    for (uint32_t i = 1; i < chunks; i++) {
        uint32_t chunk = take_one(arena);
        arena->next[at] = chunk;
        at = chunk;
    }
    arena->next[at] = 0;
    *last = at;
    return first;
}

void samkv_arena_give(struct samkv_arena *arena, uint32_t first, uint32_t last, uint32_t chunks)
{
    arena->next[last] = arena->free_count ? arena->free_first : 0;
    arena->free_first = first;
    arena->free_count += chunks;
}

/* The memory from the cursor on that lies in one piece, at most `most` bytes; moves the cursor behind it. */
static uint8_t *advance(struct samkv_arena_cursor *c, size_t most, size_t *bytes)
{
    const struct samkv_arena *arena = c->arena;
    if (c->at == SAMKV_CHUNK_BYTES) {
        c->chunk = arena->next[c->chunk];
        c->at = 0;
    }
    assert(c->chunk);
    uint8_t *from = samkv_arena_chunk(arena, c->chunk) + c->at;
    size_t run = SAMKV_CHUNK_BYTES - c->at;
    while (run < most && arena->next[c->chunk] == c->chunk + 1) {
        c->chunk++;
        run += SAMKV_CHUNK_BYTES;
    }
    *bytes = run < most ? run : most;
    c->at = SAMKV_CHUNK_BYTES - (run - *bytes);
    return from;
}

void samkv_arena_write(struct samkv_arena_cursor *c, const void *from, size_t bytes)
{
    for (size_t run; bytes; bytes -= run) {
        uint8_t *to = advance(c, bytes, &run);
        memcpy(to, from, run);
        from = (const uint8_t *)from + run;
    }
}

void samkv_arena_read(struct samkv_arena_cursor *c, void *to, size_t bytes)
{
    for (size_t run; bytes; bytes -= run) {
        const uint8_t *from = advance(c, bytes, &run);
        memcpy(to, from, run);
        to = (uint8_t *)to + run;
    }
}
