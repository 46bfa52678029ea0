#pragma once
/*
 * Working memory of one encode or decode: zstd contexts and growing buffers. Making them costs more than using
 * them, so a store keeps those that are idle in a small pool; nothing hangs on threads, nothing leaks with them.
 */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <zstd.h>

#include "daemon/store/lanes.h"

#define SAMKV_SCRATCH_BUFFERS 2

/* Who wants to use the first pieces of a record while later ones are decoded. fn is called on the decoding thread, with
 * a number that grows: pieces [0, pieces) are in place. Codecs that have all pieces at once never call it. */
struct samkv_decode_watch {
    void (*fn)(void *arg, size_t pieces);
    void *arg;
};

struct samkv_scratch {
    const struct samkv_lanes *lanes;        /* the processor's best; a test may take another */
    const struct samkv_decode_watch *watch; /* of the decode under way; NULL: none */
    ZSTD_CCtx *compress;
    ZSTD_DCtx *decompress;
    uint8_t *buffer[SAMKV_SCRATCH_BUFFERS];
    size_t buffer_bytes[SAMKV_SCRATCH_BUFFERS];
    struct samkv_scratch *next;
};

struct samkv_scratch_pool {
    pthread_mutex_t lock;
    struct samkv_scratch *idle;
    int idle_count;
};

void samkv_scratch_pool_init(struct samkv_scratch_pool *);
void samkv_scratch_pool_deinit(struct samkv_scratch_pool *);

/* NULL: no memory. The taker owns it until it gives it back; any thread. */
struct samkv_scratch *samkv_scratch_take(struct samkv_scratch_pool *);
void samkv_scratch_give(struct samkv_scratch_pool *, struct samkv_scratch *); /* NULL is allowed */

/* At least `bytes` of memory in buffer `which`, valid until the next call for it; NULL: no memory. Contents are
 * undefined. */
uint8_t *samkv_scratch_buffer(struct samkv_scratch *, int which, size_t bytes);

/* A decoder's: pieces [0, pieces) are in place. */
static inline void samkv_scratch_tell(const struct samkv_scratch *s, size_t pieces)
{
    if (s->watch)
        s->watch->fn(s->watch->arg, pieces);
}
