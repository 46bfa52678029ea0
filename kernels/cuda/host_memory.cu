/*
 * Page-locked host memory from a pool: locking pages costs about a millisecond a megabyte, and a fetch takes and gives
 * back tens of megabytes. A block that is given back waits for what every stream had enqueued by then, as device memory
 * does; until that is over, requests pass it by. Blocks are used for requests of at least half their size.
 */
#include <assert.h>
#include <stdlib.h>

#include "kernels/cuda/backend.cuh"

#define KEEP_BYTES ((size_t)2 << 30) /* more than this is given back to the system, oldest first */
#define UNIT_BYTES ((size_t)64 << 10)

struct host_block {
    struct host_block *next;
    void *memory;
    size_t bytes;
    cudaEvent_t idle; /* recorded at release: nothing enqueued before it uses the block any more */
};

struct host_pool {
    pthread_mutex_t lock;
    struct host_block *used, *kept; /* kept: the oldest first */
    size_t kept_bytes;
};

enum samkv_status samkv_cuda_host_pool_new(struct host_pool **out)
{
    *out = (struct host_pool *)calloc(1, sizeof **out);
    if (!*out)
        return SAMKV_NO_MEMORY;
    pthread_mutex_init(&(*out)->lock, NULL);
    return SAMKV_OK;
}

/* Frees a list of blocks, whole. */
static void free_blocks(struct host_block *list)
{
    while (list) {
        struct host_block *block = list;
        list = block->next;
        if (block->idle) {
            (void)cudaEventSynchronize(block->idle);
            (void)cudaEventDestroy(block->idle);
        }
        if (block->memory)
            (void)cudaFreeHost(block->memory);
        free(block);
    }
    (void)cudaGetLastError();
}

void samkv_cuda_host_pool_free(struct host_pool *pool)
{
    if (!pool)
        return;
    assert(!pool->used);
    free_blocks(pool->kept);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

/* Steps of an eighth, so that requests of about one size get the same blocks. 0: too large. */
static size_t rounded(size_t bytes)
{
    size_t step = UNIT_BYTES;
    if (bytes > SIZE_MAX / 4)
        return 0;
    while (step < bytes / 16)
        step *= 2;
    return bytes ? (bytes + step - 1) / step * step : UNIT_BYTES;
}

static bool is_idle(const struct host_block *block)
{
    bool idle = cudaEventQuery(block->idle) == cudaSuccess;
    (void)cudaGetLastError(); /* "not ready" must not surface in the next launch */
    return idle;
}

/* Takes the smallest kept block that fits, and puts it among the used ones; NULL without one. */
static void *reuse(struct host_pool *pool, size_t bytes)
{
    struct host_block **best = NULL;
    void *memory = NULL;
    pthread_mutex_lock(&pool->lock);
    for (struct host_block **at = &pool->kept; *at; at = &(*at)->next)
        if ((*at)->bytes >= bytes && (*at)->bytes <= 2 * bytes && (!best || (*at)->bytes < (*best)->bytes) &&
            is_idle(*at))
            best = at;
    if (best) {
        struct host_block *block = *best;
        *best = block->next;
        pool->kept_bytes -= block->bytes;
        block->next = pool->used;
        pool->used = block;
        memory = block->memory;
    }
    pthread_mutex_unlock(&pool->lock);
    return memory;
}

/* Takes the oldest kept blocks out of the list until at most `keep` bytes are left. */
static struct host_block *shed(struct host_pool *pool, size_t keep)
{
    struct host_block *shed = NULL;
    while (pool->kept && pool->kept_bytes > keep) {
        struct host_block *block = pool->kept;
        pool->kept = block->next;
        pool->kept_bytes -= block->bytes;
        block->next = shed;
        shed = block;
    }
    return shed;
}

static cudaError_t lock_pages(struct host_pool *pool, size_t bytes, void **out)
{
    cudaError_t error = cudaHostAlloc(out, bytes, cudaHostAllocPortable);
    if (error != cudaErrorMemoryAllocation)
        return error;
    (void)cudaGetLastError();
    pthread_mutex_lock(&pool->lock);
    struct host_block *kept = shed(pool, 0);
    pthread_mutex_unlock(&pool->lock);
    free_blocks(kept);
    return cudaHostAlloc(out, bytes, cudaHostAllocPortable);
}

enum samkv_status samkv_cuda_host_alloc(struct samkv_device *device, size_t wanted, void **out)
{
    struct cuda_device *d = (struct cuda_device *)device;
    size_t bytes = rounded(wanted);
    *out = NULL;
    enum samkv_status status = bytes ? samkv_cuda_enter(d) : SAMKV_NO_MEMORY;
    if (status)
        return status;
    *out = reuse(d->host, bytes);
    if (*out)
        return SAMKV_OK;
    struct host_block *block = (struct host_block *)calloc(1, sizeof *block);
    if (!block)
        return SAMKV_NO_MEMORY;
    cudaError_t error = cudaEventCreateWithFlags(&block->idle, cudaEventDisableTiming);
    if (error == cudaSuccess)
        error = lock_pages(d->host, bytes, &block->memory);
    if (error != cudaSuccess) {
        free_blocks(block);
        return samkv_cuda_seen(d, error);
    }
    block->bytes = bytes;
    pthread_mutex_lock(&d->host->lock);
    block->next = d->host->used;
    d->host->used = block;
    pthread_mutex_unlock(&d->host->lock);
    *out = block->memory;
    return SAMKV_OK;
}

static struct host_block *take_used(struct host_pool *pool, const void *memory)
{
    pthread_mutex_lock(&pool->lock);
    struct host_block **at = &pool->used;
    while (*at && (*at)->memory != memory)
        at = &(*at)->next;
    struct host_block *block = *at;
    if (block) {
        *at = block->next;
        block->next = NULL;
    }
    pthread_mutex_unlock(&pool->lock);
    assert(block);
    return block;
}

/* Makes the block the newest kept one; what is too much then comes back, to be freed without the lock. */
static struct host_block *keep(struct host_pool *pool, struct host_block *block)
{
    if (block->bytes > KEEP_BYTES)
        return block;
    pthread_mutex_lock(&pool->lock);
    struct host_block **end = &pool->kept;
    while (*end)
        end = &(*end)->next;
    *end = block;
    pool->kept_bytes += block->bytes;
    struct host_block *too_much = shed(pool, KEEP_BYTES);
    pthread_mutex_unlock(&pool->lock);
    return too_much;
}

void samkv_cuda_host_release(struct samkv_device *device, void *memory)
{
    struct cuda_device *d = (struct cuda_device *)device;
    struct host_block *block = memory ? take_used(d->host, memory) : NULL;
    if (!block)
        return;
    bool alive = samkv_cuda_enter(d) == SAMKV_OK;
    if (alive) {
        samkv_cuda_wait_for_streams(d);
        alive = samkv_cuda_seen(d, cudaEventRecord(block->idle, d->releases)) == SAMKV_OK;
    }
    if (alive)
        free_blocks(keep(d->host, block));
    else
        free(block); /* the memory stays: a lost GPU may still write to it */
    (void)cudaGetLastError();
}
