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

struct samkv_scratch {
    const struct samkv_lanes *lanes; /* the processor's best; a test may take another */
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
