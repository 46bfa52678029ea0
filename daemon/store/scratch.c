#include "daemon/store/scratch.h"

#include <stdlib.h>

#define IDLE_MAX        32
#define KEEP_BUFFER_MAX ((size_t)64 << 20) /* a buffer that one giant block needed is not kept for ever */

void samkv_scratch_pool_init(struct samkv_scratch_pool *pool)
{
    *pool = (struct samkv_scratch_pool){0};
    pthread_mutex_init(&pool->lock, NULL);
}

static void scratch_free(struct samkv_scratch *s)
{
    ZSTD_freeCCtx(s->compress);
    ZSTD_freeDCtx(s->decompress);
    for (int b = 0; b < SAMKV_SCRATCH_BUFFERS; b++)
        free(s->buffer[b]);
    free(s);
}

void samkv_scratch_pool_deinit(struct samkv_scratch_pool *pool)
{
    while (pool->idle) {
        struct samkv_scratch *s = pool->idle;
        pool->idle = s->next;
        scratch_free(s);
    }
    pthread_mutex_destroy(&pool->lock);
}

struct samkv_scratch *samkv_scratch_take(struct samkv_scratch_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    struct samkv_scratch *s = pool->idle;
    if (s) {
        pool->idle = s->next;
        pool->idle_count--;
    }
    pthread_mutex_unlock(&pool->lock);
    if (s)
        return s;
    s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->lanes = samkv_lanes_choice(0);
    s->compress = ZSTD_createCCtx();
    s->decompress = ZSTD_createDCtx();
    if (!s->compress || !s->decompress) {
        scratch_free(s);
        return NULL;
    }
    return s;
}

void samkv_scratch_give(struct samkv_scratch_pool *pool, struct samkv_scratch *s)
{
    if (!s)
        return;
    for (int b = 0; b < SAMKV_SCRATCH_BUFFERS; b++)
        if (s->buffer_bytes[b] > KEEP_BUFFER_MAX) {
            free(s->buffer[b]);
            s->buffer[b] = NULL;
            s->buffer_bytes[b] = 0;
        }
    pthread_mutex_lock(&pool->lock);
    if (pool->idle_count < IDLE_MAX) {
        s->next = pool->idle;
        pool->idle = s;
        pool->idle_count++;
        s = NULL;
    }
    pthread_mutex_unlock(&pool->lock);
    if (s)
        scratch_free(s);
}

uint8_t *samkv_scratch_buffer(struct samkv_scratch *s, int which, size_t bytes)
{
    if (s->buffer_bytes[which] >= bytes && s->buffer[which])
        return s->buffer[which];
    free(s->buffer[which]);
    s->buffer[which] = malloc(bytes ? bytes : 1);
    s->buffer_bytes[which] = s->buffer[which] ? bytes : 0;
    return s->buffer[which];
}
