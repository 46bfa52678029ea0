#include "daemon/store/host_cache.h"

#include <assert.h>
#include <pthread.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/store/arena.h"

#define MOST_HITS   3
#define GHOST_WAYS  4
#define SMALL_SHARE 10 /* the small queue has one part in so many */

enum queue_name { SMALL, MAIN, QUEUES };

/* At the beginning of its first chunk; its bytes follow. Entries are named by that chunk: 0 is none. */
struct samkv_hosted {
    struct samkv_host_key key;
    uint64_t bytes;
    uint32_t first, last, chunks;
    uint32_t chain;                            /* of its bucket */
    uint32_t newer, older;                     /* of its queue */
    uint32_t document_next, document_previous; /* of its slot */
    uint32_t pins;
    uint8_t hits;
    uint8_t queue;
    bool published;
};

/* Documents by hash: their entries, and which epochs may see them. */
struct slot {
    uint64_t since;     /* the first epoch that may */
    uint32_t documents; /* first entry */
    uint32_t closed;    /* next closed slot + 1; NOT_CLOSED: it is open */
};

#define NOT_CLOSED UINT32_MAX

struct queue {
    uint32_t newest, oldest;
    uint64_t chunks;
};

/* A key that was evicted, when so many chunks had been evicted before. Zero fingerprint: nothing. */
struct ghost {
    uint32_t fingerprint, when;
};

/* At the beginning of the mapping. */
struct samkv_host_cache {
    pthread_mutex_t lock;
    struct samkv_arena arena;
    struct queue queues[QUEUES];
    uint32_t *buckets;
    struct slot *slots;
    struct ghost *ghosts;
    size_t bucket_count, slot_count, ghost_count; /* powers of two */
    uint32_t closed;                              /* first closed slot + 1 */
    uint32_t evicted_chunks;                      /* wraps around */
    atomic_uint_fast64_t epoch;                   /* changed with the lock held */
    size_t map_bytes, table_bytes;
    struct samkv_host_cache_stats stats;
};

/* ------------------------------------------------------------------ layout of the mapping */

static size_t power_of_two(size_t at_most)
{
    size_t n = 1;
    while (2 * n <= at_most)
        n *= 2;
    return n;
}

static size_t align_up(size_t bytes, size_t to)
{
    return (bytes + to - 1) / to * to;
}

/* What stands before the chunks, for so many of them. Typical entries have 8 to 500 chunks. */
static size_t lay_out(struct samkv_host_cache *cache, uint8_t *base, size_t chunks)
{
    size_t buckets = power_of_two(chunks / 4 + 1), slots = power_of_two(chunks / 16 + 1),
           ghosts = power_of_two(chunks / 4 + GHOST_WAYS);
    slots = slots > 16384 ? 16384 : slots;
    size_t at = align_up(sizeof *cache, alignof(struct slot)), slots_at = at;
    at += slots * sizeof(struct slot);
    size_t ghosts_at = at;
    at += ghosts * sizeof(struct ghost);
    size_t buckets_at = at;
    at += buckets * sizeof(uint32_t);
    size_t next_at = at;
    at = align_up(at + (chunks + 1) * sizeof(uint32_t), SAMKV_CHUNK_BYTES);
    if (!base)
        return at;
    cache->slots = (struct slot *)(base + slots_at);
    cache->ghosts = (struct ghost *)(base + ghosts_at);
    cache->buckets = (uint32_t *)(base + buckets_at);
    cache->slot_count = slots, cache->ghost_count = ghosts, cache->bucket_count = buckets;
    samkv_arena_init(&cache->arena, (uint32_t)chunks, (uint32_t *)(base + next_at), base + at);
    return at;
}

enum samkv_status samkv_host_cache_new(uint64_t budget_bytes, struct samkv_host_cache **out, struct samkv_error *err)
{
    *out = NULL;
    if (budget_bytes < SAMKV_HOST_CACHE_MIN_BYTES)
        return samkv_fail(err, SAMKV_INVALID, "a host cache of %llu bytes is too small: give it 1 MiB or more, or 0",
                          (unsigned long long)budget_bytes);
    uint64_t most = (uint64_t)(UINT32_MAX - 1) * SAMKV_CHUNK_BYTES;
    size_t page = (size_t)sysconf(_SC_PAGESIZE),
           map_bytes = (size_t)(budget_bytes < most ? budget_bytes : most) / page * page;
    size_t chunks = map_bytes / SAMKV_CHUNK_BYTES;
    while (lay_out(NULL, NULL, chunks) + chunks * SAMKV_CHUNK_BYTES > map_bytes)
        chunks -=
            (lay_out(NULL, NULL, chunks) + chunks * SAMKV_CHUNK_BYTES - map_bytes - 1) / SAMKV_CHUNK_BYTES / 2 + 1;
    uint8_t *base = mmap(NULL, map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return samkv_fail(err, SAMKV_NO_MEMORY,
                          "no room for a host cache of %llu MiB: ask for less with --host-cache-bytes",
                          (unsigned long long)(map_bytes >> 20));
    (void)madvise(base, map_bytes, MADV_DONTDUMP); /* core files are about the daemon, not about documents */
    (void)madvise(base, map_bytes, MADV_HUGEPAGE); /* the first use of a page costs more than copying it */
    struct samkv_host_cache *cache = (struct samkv_host_cache *)base;
    cache->map_bytes = map_bytes;
    cache->table_bytes = lay_out(cache, base, chunks);
    for (size_t i = 0; i < cache->slot_count; i++)
        cache->slots[i].closed = NOT_CLOSED;
    cache->stats.budget_bytes = budget_bytes;
    atomic_init(&cache->epoch, 1);
    pthread_mutex_init(&cache->lock, NULL);
    *out = cache;
    return SAMKV_OK;
}

void samkv_host_cache_free(struct samkv_host_cache *cache)
{
    if (!cache)
        return;
    pthread_mutex_destroy(&cache->lock);
    munmap(cache, cache->map_bytes);
}

/* ------------------------------------------------------------------ look-up and lists (lock held) */

static struct samkv_hosted *entry_of(const struct samkv_host_cache *cache, uint32_t name)
{
    return name ? (struct samkv_hosted *)samkv_arena_chunk(&cache->arena, name) : NULL;
}

/* Document keys are hashes already. */
static uint64_t hash_of(const struct samkv_host_key *key)
{
    uint64_t h;
    memcpy(&h, key->document.bytes, sizeof h);
    h = (h ^ ((uint64_t)key->kind << 32 | key->number)) * 0x9e3779b97f4a7c15u;
    h = (h ^ h >> 29) * 0xbf58476d1ce4e5b9u;
    return h ^ h >> 32;
}

static struct slot *slot_of(const struct samkv_host_cache *cache, const struct samkv_key *document)
{
    uint64_t h;
    memcpy(&h, document->bytes + sizeof document->bytes - sizeof h, sizeof h);
    return &cache->slots[(h ^ h >> 32) & (cache->slot_count - 1)];
}

static bool may_see(const struct samkv_host_cache *cache, uint64_t epoch, const struct samkv_key *document)
{
    const struct slot *slot = slot_of(cache, document);
    return slot->closed == NOT_CLOSED && epoch >= slot->since;
}

static uint32_t *bucket_of(const struct samkv_host_cache *cache, const struct samkv_host_key *key)
{
    return &cache->buckets[hash_of(key) & (cache->bucket_count - 1)];
}

static struct samkv_hosted *look_up(const struct samkv_host_cache *cache, const struct samkv_host_key *key)
{
    struct samkv_hosted *at = entry_of(cache, *bucket_of(cache, key));
    while (at && memcmp(&at->key, key, sizeof *key) != 0)
        at = entry_of(cache, at->chain);
    return at;
}

static void enter_queue(struct samkv_host_cache *cache, struct samkv_hosted *entry, enum queue_name name)
{
    struct queue *queue = &cache->queues[name];
    entry->queue = (uint8_t)name;
    entry->newer = 0;
    entry->older = queue->newest;
    *(queue->newest ? &entry_of(cache, queue->newest)->newer : &queue->oldest) = entry->first;
    queue->newest = entry->first;
    queue->chunks += entry->chunks;
}

static void leave_queue(struct samkv_host_cache *cache, struct samkv_hosted *entry)
{
    struct queue *queue = &cache->queues[entry->queue];
    *(entry->newer ? &entry_of(cache, entry->newer)->older : &queue->newest) = entry->older;
    *(entry->older ? &entry_of(cache, entry->older)->newer : &queue->oldest) = entry->newer;
    queue->chunks -= entry->chunks;
}

/* To where find and close find it. */
static void link_entry(struct samkv_host_cache *cache, struct samkv_hosted *entry)
{
    uint32_t *bucket = bucket_of(cache, &entry->key);
    entry->chain = *bucket;
    *bucket = entry->first;
    struct slot *slot = slot_of(cache, &entry->key.document);
    entry->document_previous = 0;
    entry->document_next = slot->documents;
    if (slot->documents)
        entry_of(cache, slot->documents)->document_previous = entry->first;
    slot->documents = entry->first;
    entry->published = true;
    cache->stats.entries++;
}

static void unlink_entry(struct samkv_host_cache *cache, struct samkv_hosted *entry)
{
    uint32_t *at = bucket_of(cache, &entry->key);
    while (*at != entry->first)
        at = &entry_of(cache, *at)->chain;
    *at = entry->chain;
    uint32_t next = entry->document_next, previous = entry->document_previous;
    *(previous ? &entry_of(cache, previous)->document_next : &slot_of(cache, &entry->key.document)->documents) = next;
    if (next)
        entry_of(cache, next)->document_previous = previous;
    entry->published = false;
    cache->stats.entries--;
}

/* The entry and all that it has. */
static void give_back(struct samkv_host_cache *cache, const struct samkv_hosted *entry)
{
    samkv_arena_give(&cache->arena, entry->first, entry->last, entry->chunks);
}

/* Out of queue and tables; its memory too, unless somebody has it pinned. */
static void discard(struct samkv_host_cache *cache, struct samkv_hosted *entry)
{
    unlink_entry(cache, entry);
    if (entry->pins == 0)
        give_back(cache, entry);
}

/* ------------------------------------------------------------------ ghosts (lock held) */

static struct ghost *ghost_set(const struct samkv_host_cache *cache, uint64_t hash, uint32_t *fingerprint)
{
    *fingerprint = (uint32_t)(hash >> 32) | 1u;
    return &cache->ghosts[hash & (cache->ghost_count - 1) & ~(uint64_t)(GHOST_WAYS - 1)];
}

/* Remembered for as many evicted chunks as the main queue holds. */
static bool is_recent(const struct samkv_host_cache *cache, const struct ghost *ghost)
{
    uint32_t limit = cache->arena.count - cache->arena.count / SMALL_SHARE;
    return ghost->fingerprint && cache->evicted_chunks - ghost->when <= limit;
}

static void remember(struct samkv_host_cache *cache, const struct samkv_hosted *entry)
{
    uint32_t fingerprint;
    struct ghost *set = ghost_set(cache, hash_of(&entry->key), &fingerprint), *to = set;
    cache->evicted_chunks += entry->chunks;
    for (int i = 0; i < GHOST_WAYS; i++) {
        if (set[i].fingerprint == fingerprint || !set[i].fingerprint) {
            to = &set[i];
            break;
        }
        if (cache->evicted_chunks - set[i].when > cache->evicted_chunks - to->when)
            to = &set[i];
    }
    *to = (struct ghost){fingerprint, cache->evicted_chunks};
}

/* Whether it was evicted lately; forgotten with that. */
static bool recall(struct samkv_host_cache *cache, const struct samkv_host_key *key)
{
    uint32_t fingerprint;
    struct ghost *set = ghost_set(cache, hash_of(key), &fingerprint);
    for (int i = 0; i < GHOST_WAYS; i++) {
        if (set[i].fingerprint == fingerprint) {
            bool recent = is_recent(cache, &set[i]);
            set[i].fingerprint = 0;
            return recent;
        }
    }
    return false;
}

/* ------------------------------------------------------------------ S3-FIFO (lock held) */

/* One step: the oldest of the small or the main queue is evicted, or moves on because it was used. */
static void evict_step(struct samkv_host_cache *cache)
{
    struct queue *small = &cache->queues[SMALL], *main = &cache->queues[MAIN];
    bool from_small = small->oldest && (small->chunks > cache->arena.count / SMALL_SHARE || !main->oldest);
    struct samkv_hosted *entry = entry_of(cache, from_small ? small->oldest : main->oldest);
    leave_queue(cache, entry);
    if (entry->hits > 0) {
        entry->hits = from_small ? 0 : entry->hits - 1;
        enter_queue(cache, entry, MAIN);
        return;
    }
    if (from_small)
        remember(cache, entry);
    cache->stats.evictions++;
    discard(cache, entry);
}

/* False when not so many chunks can be had: the rest is pinned or being filled. Every step evicts or takes a hit away,
 * of which an entry has few, so it ends. */
static bool make_room(struct samkv_host_cache *cache, uint32_t chunks)
{
    while (samkv_arena_free_chunks(&cache->arena) < chunks) {
        if (!cache->queues[SMALL].oldest && !cache->queues[MAIN].oldest)
            return false;
        evict_step(cache);
    }
    return true;
}

/* ------------------------------------------------------------------ entries */

struct samkv_hosted *samkv_host_cache_find(struct samkv_host_cache *cache, uint64_t epoch,
                                           const struct samkv_host_key *key)
{
    pthread_mutex_lock(&cache->lock);
    struct samkv_hosted *entry = may_see(cache, epoch, &key->document) ? look_up(cache, key) : NULL;
    if (entry) {
        entry->pins++;
        entry->hits = (uint8_t)(entry->hits + (entry->hits < MOST_HITS));
        cache->stats.hits++;
    } else {
        cache->stats.misses++;
    }
    pthread_mutex_unlock(&cache->lock);
    return entry;
}

struct samkv_hosted *samkv_host_cache_make(struct samkv_host_cache *cache, uint64_t epoch,
                                           const struct samkv_host_key *key, size_t bytes)
{
    struct samkv_hosted *entry = NULL;
    if (bytes > (size_t)cache->arena.count * SAMKV_CHUNK_BYTES - sizeof *entry)
        return NULL;
    uint32_t chunks = (uint32_t)((sizeof *entry + bytes + SAMKV_CHUNK_BYTES - 1) / SAMKV_CHUNK_BYTES), last;
    pthread_mutex_lock(&cache->lock);
    if (may_see(cache, epoch, &key->document) && !look_up(cache, key) && make_room(cache, chunks)) {
        uint32_t first = samkv_arena_take(&cache->arena, chunks, &last);
        entry = entry_of(cache, first);
        *entry = (struct samkv_hosted){
            .key = *key, .bytes = bytes, .first = first, .last = last, .chunks = chunks, .pins = 1};
    }
    pthread_mutex_unlock(&cache->lock);
    return entry;
}

void samkv_host_cache_publish(struct samkv_host_cache *cache, uint64_t epoch, struct samkv_hosted *entry)
{
    pthread_mutex_lock(&cache->lock);
    if (may_see(cache, epoch, &entry->key.document) && !look_up(cache, &entry->key)) {
        link_entry(cache, entry);
        enter_queue(cache, entry, recall(cache, &entry->key) ? MAIN : SMALL);
    }
    pthread_mutex_unlock(&cache->lock);
}

void samkv_host_cache_unpin(struct samkv_host_cache *cache, struct samkv_hosted *entry)
{
    pthread_mutex_lock(&cache->lock);
    assert(entry->pins > 0);
    if (--entry->pins == 0 && !entry->published)
        give_back(cache, entry);
    pthread_mutex_unlock(&cache->lock);
}

static struct samkv_arena_cursor bytes_of(const struct samkv_host_cache *cache, const struct samkv_hosted *entry)
{
    return (struct samkv_arena_cursor){&cache->arena, entry->first, sizeof *entry};
}

bool samkv_hosted_copy(const struct samkv_host_cache *cache, const struct samkv_hosted *entry,
                       const struct samkv_layout *layout, void *const *dst)
{
    if (entry->bytes != samkv_layout_bytes(layout))
        return false;
    struct samkv_arena_cursor cursor = bytes_of(cache, entry);
    for (size_t i = 0; i < layout->count; i++)
        samkv_arena_read(&cursor, dst[i], layout->bytes);
    return true;
}

bool samkv_host_cache_read(struct samkv_host_cache *cache, uint64_t epoch, const struct samkv_host_key *key,
                           const struct samkv_layout *layout, void *const *dst)
{
    struct samkv_hosted *entry = samkv_host_cache_find(cache, epoch, key);
    if (!entry)
        return false;
    bool copied = samkv_hosted_copy(cache, entry, layout, dst);
    samkv_host_cache_unpin(cache, entry);
    return copied;
}

void samkv_host_cache_add(struct samkv_host_cache *cache, uint64_t epoch, const struct samkv_host_key *key,
                          const struct samkv_layout *layout, void *const *src)
{
    struct samkv_hosted *entry = samkv_host_cache_make(cache, epoch, key, samkv_layout_bytes(layout));
    if (!entry)
        return;
    struct samkv_arena_cursor cursor = bytes_of(cache, entry);
    for (size_t i = 0; i < layout->count; i++)
        samkv_arena_write(&cursor, src[i], layout->bytes);
    samkv_host_cache_publish(cache, epoch, entry);
    samkv_host_cache_unpin(cache, entry);
}

/* ------------------------------------------------------------------ versions */

uint64_t samkv_host_cache_epoch(struct samkv_host_cache *cache)
{
    return atomic_load(&cache->epoch);
}

void samkv_host_cache_close(struct samkv_host_cache *cache, const struct samkv_key *document)
{
    if (!cache)
        return;
    pthread_mutex_lock(&cache->lock);
    struct slot *slot = slot_of(cache, document);
    if (slot->closed == NOT_CLOSED) {
        slot->closed = cache->closed;
        cache->closed = (uint32_t)(slot - cache->slots) + 1;
    }
    for (uint32_t at = slot->documents, next; at; at = next) {
        struct samkv_hosted *entry = entry_of(cache, at);
        next = entry->document_next;
        if (memcmp(&entry->key.document, document, sizeof *document) == 0) {
            leave_queue(cache, entry);
            discard(cache, entry);
        }
    }
    pthread_mutex_unlock(&cache->lock);
}

void samkv_host_cache_reopen(struct samkv_host_cache *cache)
{
    if (!cache)
        return;
    pthread_mutex_lock(&cache->lock);
    uint64_t epoch = atomic_load(&cache->epoch) + (cache->closed != 0);
    while (cache->closed) {
        struct slot *slot = &cache->slots[cache->closed - 1];
        cache->closed = slot->closed;
        slot->closed = NOT_CLOSED;
        slot->since = epoch;
    }
    atomic_store(&cache->epoch, epoch);
    pthread_mutex_unlock(&cache->lock);
}

void samkv_host_cache_stats(struct samkv_host_cache *cache, struct samkv_host_cache_stats *out)
{
    pthread_mutex_lock(&cache->lock);
    *out = cache->stats;
    uint64_t used = cache->arena.count - samkv_arena_free_chunks(&cache->arena);
    out->bytes = cache->table_bytes + used * SAMKV_CHUNK_BYTES;
    pthread_mutex_unlock(&cache->lock);
}
