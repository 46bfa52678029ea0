#include "daemon/samkv/device_cache.h"

#include <assert.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_BUCKETS 1024 /* a power of two; doubled as entries come */

struct samkv_cached {
    struct samkv_device_cache *cache;
    struct samkv_cached_key key;
    void *memory;
    size_t bytes;
    uint32_t pins;
    bool published;
    struct samkv_cached *chain;         /* of its bucket, when published */
    struct samkv_cached *newer, *older; /* among the published that nobody has pinned */
};

struct samkv_device_cache {
    struct samkv_device *device;
    pthread_mutex_t lock;
    struct samkv_cached **buckets;
    size_t bucket_count;
    struct samkv_cached *newest, *oldest;
    struct samkv_device_cache_stats stats;
};

/* Document keys are hashes already. */
static size_t bucket_of(const struct samkv_device_cache *cache, const struct samkv_cached_key *key)
{
    uint64_t h;
    memcpy(&h, key->document, sizeof h);
    h ^= ((uint64_t)key->kind << 32 | key->number) * 0x9e3779b97f4a7c15u;
    return (size_t)(h ^ h >> 32) & (cache->bucket_count - 1);
}

static struct samkv_cached *look_up(const struct samkv_device_cache *cache, const struct samkv_cached_key *key)
{
    struct samkv_cached *at = cache->buckets[bucket_of(cache, key)];
    while (at && memcmp(&at->key, key, sizeof *key))
        at = at->chain;
    return at;
}

static void link_chain(struct samkv_device_cache *cache, struct samkv_cached *entry)
{
    struct samkv_cached **bucket = &cache->buckets[bucket_of(cache, &entry->key)];
    entry->chain = *bucket;
    *bucket = entry;
}

static void unlink_chain(struct samkv_device_cache *cache, struct samkv_cached *entry)
{
    struct samkv_cached **at = &cache->buckets[bucket_of(cache, &entry->key)];
    while (*at != entry)
        at = &(*at)->chain;
    *at = entry->chain;
}

static void link_newest(struct samkv_device_cache *cache, struct samkv_cached *entry)
{
    entry->newer = NULL;
    entry->older = cache->newest;
    if (cache->newest)
        cache->newest->newer = entry;
    else
        cache->oldest = entry;
    cache->newest = entry;
}

static void unlink_used(struct samkv_device_cache *cache, struct samkv_cached *entry)
{
    *(entry->newer ? &entry->newer->older : &cache->newest) = entry->older;
    *(entry->older ? &entry->older->newer : &cache->oldest) = entry->newer;
}

enum samkv_status samkv_device_cache_new(struct samkv_device *device, uint64_t budget_bytes,
                                         struct samkv_device_cache **out)
{
    struct samkv_device_cache *cache = calloc(1, sizeof *cache);
    if (!cache)
        return SAMKV_NO_MEMORY;
    cache->device = device;
    cache->bucket_count = FIRST_BUCKETS;
    cache->buckets = calloc(cache->bucket_count, sizeof(struct samkv_cached *));
    cache->stats.budget_bytes = budget_bytes;
    if (!cache->buckets) {
        free(cache);
        return SAMKV_NO_MEMORY;
    }
    pthread_mutex_init(&cache->lock, NULL);
    *out = cache;
    return SAMKV_OK;
}

static void destroy(struct samkv_cached *entry)
{
    struct samkv_device *device = entry->cache->device;
    device->ops->release(device, entry->memory);
    free(entry);
}

void samkv_device_cache_free(struct samkv_device_cache *cache)
{
    if (!cache)
        return;
    while (cache->oldest) {
        struct samkv_cached *entry = cache->oldest;
        unlink_used(cache, entry);
        cache->stats.entries--;
        destroy(entry);
    }
    assert(cache->stats.entries == 0); /* else something is pinned */
    pthread_mutex_destroy(&cache->lock);
    free(cache->buckets);
    free(cache);
}

struct samkv_cached *samkv_device_cache_find(struct samkv_device_cache *cache, const struct samkv_cached_key *key)
{
    pthread_mutex_lock(&cache->lock);
    struct samkv_cached *entry = look_up(cache, key);
    if (entry && entry->pins++ == 0)
        unlink_used(cache, entry);
    cache->stats.hits += entry != NULL;
    cache->stats.misses += entry == NULL;
    pthread_mutex_unlock(&cache->lock);
    return entry;
}

/* Lock held. Takes the oldest entry out; it is destroyed by the caller without the lock. */
static struct samkv_cached *evict(struct samkv_device_cache *cache)
{
    struct samkv_cached *entry = cache->oldest;
    if (!entry)
        return NULL;
    unlink_used(cache, entry);
    unlink_chain(cache, entry);
    cache->stats.entries--;
    cache->stats.evictions++;
    cache->stats.bytes -= entry->bytes;
    return entry;
}

/* Evicts until no more than `most` bytes are left, or nothing is left to evict. Lock held, but let go meanwhile. */
static bool evict_down_to(struct samkv_device_cache *cache, uint64_t most)
{
    bool any = false;
    while (cache->stats.bytes > most) {
        struct samkv_cached *entry = evict(cache);
        if (!entry)
            break;
        any = true;
        pthread_mutex_unlock(&cache->lock);
        destroy(entry);
        pthread_mutex_lock(&cache->lock);
    }
    return any;
}

static void make_room(struct samkv_device_cache *cache, size_t bytes)
{
    pthread_mutex_lock(&cache->lock);
    evict_down_to(cache, bytes < cache->stats.budget_bytes ? cache->stats.budget_bytes - bytes : 0);
    cache->stats.entries++;
    cache->stats.bytes += bytes;
    pthread_mutex_unlock(&cache->lock);
}

bool samkv_device_cache_trim(struct samkv_device_cache *cache)
{
    pthread_mutex_lock(&cache->lock);
    bool any = evict_down_to(cache, 0);
    pthread_mutex_unlock(&cache->lock);
    return any;
}

enum samkv_status samkv_device_cache_make(struct samkv_device_cache *cache, const struct samkv_cached_key *key,
                                          size_t bytes, struct samkv_cached **out)
{
    struct samkv_cached *entry = calloc(1, sizeof *entry);
    *out = NULL;
    if (!entry)
        return SAMKV_NO_MEMORY;
    make_room(cache, bytes);
    enum samkv_status status = cache->device->ops->alloc(cache->device, bytes, &entry->memory);
    if (status == SAMKV_NO_MEMORY && samkv_device_cache_trim(cache))
        status = cache->device->ops->alloc(cache->device, bytes, &entry->memory);
    if (status) {
        pthread_mutex_lock(&cache->lock);
        cache->stats.entries--;
        cache->stats.bytes -= bytes;
        pthread_mutex_unlock(&cache->lock);
        free(entry);
        return status;
    }
    entry->cache = cache;
    entry->key = *key;
    entry->bytes = bytes;
    entry->pins = 1;
    *out = entry;
    return SAMKV_OK;
}

/* Lock held. Without memory for more buckets the chains grow longer, and that is all. */
static void spread(struct samkv_device_cache *cache)
{
    size_t old_count = cache->bucket_count;
    struct samkv_cached **old = cache->buckets, **grown = calloc(2 * old_count, sizeof(struct samkv_cached *));
    if (!grown)
        return;
    cache->buckets = grown;
    cache->bucket_count = 2 * old_count;
    for (size_t i = 0; i < old_count; i++) {
        for (struct samkv_cached *entry = old[i], *next; entry; entry = next) {
            next = entry->chain;
            link_chain(cache, entry);
        }
    }
    free(old);
}

void samkv_device_cache_publish(struct samkv_cached *entry)
{
    struct samkv_device_cache *cache = entry->cache;
    pthread_mutex_lock(&cache->lock);
    if (cache->stats.entries > 2 * cache->bucket_count)
        spread(cache);
    if (!look_up(cache, &entry->key)) {
        entry->published = true;
        link_chain(cache, entry);
    }
    pthread_mutex_unlock(&cache->lock);
}

void samkv_device_cache_unpin(struct samkv_cached *entry)
{
    if (!entry)
        return;
    struct samkv_device_cache *cache = entry->cache;
    bool gone = false;
    pthread_mutex_lock(&cache->lock);
    if (--entry->pins == 0) {
        gone = !entry->published || cache->stats.bytes > cache->stats.budget_bytes;
        if (gone) {
            if (entry->published)
                unlink_chain(cache, entry);
            cache->stats.entries--;
            cache->stats.bytes -= entry->bytes;
        } else {
            link_newest(cache, entry);
        }
    }
    pthread_mutex_unlock(&cache->lock);
    if (gone)
        destroy(entry);
}

void *samkv_cached_memory(const struct samkv_cached *entry)
{
    return entry->memory;
}

void samkv_device_cache_stats(struct samkv_device_cache *cache, struct samkv_device_cache_stats *out)
{
    pthread_mutex_lock(&cache->lock);
    *out = cache->stats;
    pthread_mutex_unlock(&cache->lock);
}
