#include "daemon/samkv/transfer.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/team.h"

/* All page-locked memory of fetches, unless one record is larger. Enough that threads hardly wait for what is under
 * way. */
#define RING_BYTES       ((size_t)256 << 20)
#define DOWN_BYTES       ((size_t)16 << 20) /* a step of a reply on its way down */
#define DOWN_STEPS       4
#define RECORD_ALIGNMENT 64
#define SLOTS            64
#define MAX_THREADS      16
#define BYTES_PER_THREAD (1u << 19) /* a thread is worth waking from about so many bytes on */

/* A part of the ring, used again and again within a transfer. */
struct slot {
    struct samkv_event *sent; /* what lay in it has arrived */
    size_t turn;              /* how often it was used: whose turn it is */
};

struct samkv_transfer {
    struct samkv_device *device;
    struct samkv_stream *stream;
    struct samkv_device_cache *cache;
    struct samkv_team *team;
    pthread_mutex_t turn; /* one transfer at a time */
    pthread_mutex_t lock; /* within it: the stream, which the threads that decode share, and the slots' turns */
    pthread_cond_t turned;
    uint8_t *ring;
    size_t ring_bytes;
    struct slot slots[SLOTS];
    /* Device memory of placements. */
    struct {
        struct samkv_run *runs;
        int32_t *positions;
        float *rope;
        size_t runs_bytes, positions_bytes, rope_bytes;
    } scratch;
};

void samkv_transfer_free(struct samkv_transfer *t)
{
    if (!t)
        return;
    const struct samkv_ops *ops = t->device->ops;
    for (int i = 0; i < SLOTS; i++)
        ops->event_free(t->slots[i].sent);
    ops->host_release(t->device, t->ring);
    ops->release(t->device, t->scratch.runs);
    ops->release(t->device, t->scratch.positions);
    ops->release(t->device, t->scratch.rope);
    samkv_device_cache_free(t->cache);
    samkv_team_free(t->team);
    if (t->stream)
        ops->stream_free(t->stream);
    pthread_cond_destroy(&t->turned);
    pthread_mutex_destroy(&t->turn);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

/* Nothing may be on its way. */
static enum samkv_status reserve_ring(struct samkv_transfer *t, size_t bytes)
{
    if (bytes <= t->ring_bytes)
        return SAMKV_OK;
    t->device->ops->host_release(t->device, t->ring);
    t->ring = NULL;
    t->ring_bytes = 0;
    enum samkv_status status = t->device->ops->host_alloc(t->device, bytes, (void **)&t->ring);
    if (!status)
        t->ring_bytes = bytes;
    return status;
}

static int processors(void)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores < 1 ? 1 : cores > MAX_THREADS ? MAX_THREADS : (int)cores;
}

enum samkv_status samkv_transfer_new(struct samkv_device *device, uint64_t cache_bytes, struct samkv_transfer **out,
                                     struct samkv_error *err)
{
    struct samkv_transfer *t = calloc(1, sizeof *t);
    if (!t)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    t->device = device;
    pthread_mutex_init(&t->turn, NULL);
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->turned, NULL);
    enum samkv_status status = samkv_team_new("transfer", processors(), &t->team);
    if (!status)
        status = device->ops->stream_new(device, &t->stream);
    for (int i = 0; i < SLOTS && !status; i++)
        status = device->ops->event_new(device, &t->slots[i].sent);
    if (!status)
        status = reserve_ring(t, RING_BYTES);
    if (!status)
        status = samkv_device_cache_new(device, cache_bytes, &t->cache);
    if (status) {
        samkv_transfer_free(t);
        return samkv_fail(err, status, "cannot set up copies to %s: is its memory, or the host's, used up?",
                          device->name);
    }
    *out = t;
    return SAMKV_OK;
}

struct samkv_device_cache *samkv_transfer_cache(struct samkv_transfer *t)
{
    return t->cache;
}

static int thread_count(size_t bytes)
{
    size_t threads = bytes / BYTES_PER_THREAD + 1;
    return threads > MAX_THREADS ? MAX_THREADS : (int)threads;
}

/* ------------------------------------------------------------------ up */

/* The missing records of one call, on their way through the ring. */
struct ascent {
    struct samkv_transfer *t;
    struct samkv_record_want *wants;
    enum samkv_status (*fill)(void *arg, size_t i, void *host, struct samkv_error *);
    void *arg;
    const size_t *missing; /* [count] numbers of wants */
    size_t count;
    size_t slot_bytes, slots; /* record i of the missing goes through slot i % slots */
    pthread_mutex_t lock;     /* of the two below */
    enum samkv_status status;
    struct samkv_error *err;
};

static void record_failure(struct ascent *a, enum samkv_status status, const struct samkv_error *err)
{
    pthread_mutex_lock(&a->lock);
    if (!a->status) {
        a->status = status;
        if (a->err)
            *a->err = *err;
    }
    pthread_mutex_unlock(&a->lock);
}

static bool has_failed(struct ascent *a)
{
    pthread_mutex_lock(&a->lock);
    bool failed = a->status != SAMKV_OK;
    pthread_mutex_unlock(&a->lock);
    return failed;
}

/* Record and entry, decoded and made but not sent. */
static enum samkv_status prepare(struct ascent *a, size_t number, void *host, struct samkv_error *err)
{
    struct samkv_record_want *want = &a->wants[number];
    enum samkv_status status = a->fill(a->arg, number, host, err);
    if (!status && samkv_device_cache_make(a->t->cache, &want->key, want->bytes, &want->entry))
        status = samkv_fail(err, SAMKV_NO_MEMORY,
                            "%s has no memory for the documents' blocks: ask for fewer documents or a lower ratio",
                            a->t->device->name);
    return status;
}

/* Waits until the records that used the slot before have left it: they were begun before, so they will. */
static enum samkv_status await_slot(struct samkv_transfer *t, struct slot *slot, size_t turn, struct samkv_error *err)
{
    pthread_mutex_lock(&t->lock);
    while (slot->turn != turn)
        pthread_cond_wait(&t->turned, &t->lock);
    pthread_mutex_unlock(&t->lock);
    return t->device->ops->event_sync(slot->sent, err);
}

static void bring_one(void *arg, int i)
{
    struct ascent *a = arg;
    struct samkv_transfer *t = a->t;
    struct slot *slot = &t->slots[(size_t)i % a->slots];
    struct samkv_record_want *want = &a->wants[a->missing[i]];
    uint8_t *host = t->ring + (size_t)i % a->slots * a->slot_bytes;
    struct samkv_error err = {0};
    enum samkv_status status = await_slot(t, slot, (size_t)i / a->slots, &err);
    if (!status && !has_failed(a))
        status = prepare(a, a->missing[i], host, &err);
    pthread_mutex_lock(&t->lock);
    if (!status && want->entry) {
        t->device->ops->upload(t->stream, samkv_cached_memory(want->entry), host, want->bytes);
        t->device->ops->record(t->stream, slot->sent);
    }
    slot->turn++;
    pthread_cond_broadcast(&t->turned);
    pthread_mutex_unlock(&t->lock);
    if (status)
        record_failure(a, status, &err);
}

/* Cuts the ring into slots for the largest record. Returns the bytes of all. */
static enum samkv_status cut_ring(struct ascent *a, size_t *bytes, struct samkv_error *err)
{
    struct samkv_transfer *t = a->t;
    size_t largest = 1;
    *bytes = 0;
    for (size_t i = 0; i < a->count; i++) {
        size_t one = a->wants[a->missing[i]].bytes;
        largest = one > largest ? one : largest;
        *bytes += one;
    }
    a->slot_bytes = (largest + RECORD_ALIGNMENT - 1) / RECORD_ALIGNMENT * RECORD_ALIGNMENT;
    if (reserve_ring(t, a->slot_bytes))
        return samkv_fail(err, SAMKV_NO_MEMORY, "no page-locked memory for a record of %zu MB", largest >> 20);
    a->slots = t->ring_bytes / a->slot_bytes;
    a->slots = a->slots > SLOTS ? SLOTS : a->slots;
    for (int i = 0; i < SLOTS; i++)
        t->slots[i].turn = 0;
    return SAMKV_OK;
}

static enum samkv_status bring_missing(struct ascent *a, struct samkv_error *err)
{
    struct samkv_transfer *t = a->t;
    size_t bytes;
    pthread_mutex_lock(&t->turn);
    enum samkv_status status = cut_ring(a, &bytes, err);
    if (!status) {
        samkv_team_run(t->team, (int)a->count, thread_count(bytes), bring_one, a);
        status = a->status;
    }
    enum samkv_status synced = t->device->ops->sync(t->stream, status ? NULL : err);
    pthread_mutex_unlock(&t->turn);
    return status ? status : synced;
}

static size_t find_cached(struct samkv_transfer *t, struct samkv_record_want *wants, size_t count, size_t *missing)
{
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        wants[i].entry = samkv_device_cache_find(t->cache, &wants[i].key);
        if (!wants[i].entry)
            missing[n++] = i;
    }
    return n;
}

enum samkv_status samkv_transfer_up(struct samkv_transfer *t, struct samkv_record_want *wants, size_t count,
                                    enum samkv_status (*fill)(void *arg, size_t i, void *host, struct samkv_error *),
                                    void *arg, struct samkv_error *err)
{
    struct ascent a = {.t = t, .wants = wants, .fill = fill, .arg = arg, .err = err};
    size_t *missing = malloc((count + 1) * sizeof *missing);
    for (size_t i = 0; i < count; i++)
        wants[i].entry = NULL;
    if (!missing)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    a.missing = missing;
    a.count = find_cached(t, wants, count, missing);
    enum samkv_status status = SAMKV_OK;
    if (a.count) {
        pthread_mutex_init(&a.lock, NULL);
        status = bring_missing(&a, err);
        pthread_mutex_destroy(&a.lock);
    }
    for (size_t i = 0; i < a.count && !status; i++)
        samkv_device_cache_publish(wants[missing[i]].entry);
    free(missing);
    return status;
}

/* ------------------------------------------------------------------ into a KV cache */

/* Makes room for a placement; grows only, and what a placement before used is in order on the stream. */
static enum samkv_status reserve_scratch(struct samkv_transfer *t, size_t runs, size_t rows, size_t head_dim)
{
    struct samkv_device *device = t->device;
    const struct {
        void **memory;
        size_t *bytes, wanted;
    } parts[] = {
        {(void **)&t->scratch.runs, &t->scratch.runs_bytes, runs * sizeof(struct samkv_run)},
        {(void **)&t->scratch.positions, &t->scratch.positions_bytes, rows * sizeof(int32_t)},
        {(void **)&t->scratch.rope, &t->scratch.rope_bytes, rows * head_dim * sizeof(float)},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (parts[i].wanted <= *parts[i].bytes)
            continue;
        device->ops->release(device, *parts[i].memory);
        *parts[i].memory = NULL;
        *parts[i].bytes = 0;
        enum samkv_status status = device->ops->alloc(device, parts[i].wanted, parts[i].memory);
        if (status)
            return status;
        *parts[i].bytes = parts[i].wanted;
    }
    return SAMKV_OK;
}

static enum samkv_status place_all(struct samkv_transfer *t, const struct samkv_run *runs, size_t count,
                                   const int32_t *positions, size_t rows, const double *inv_freq_device,
                                   float rope_scale, const struct samkv_place_runs *place, struct samkv_error *err)
{
    const struct samkv_ops *ops = t->device->ops;
    struct samkv_place_runs p = *place;
    p.count = (int)count;
    p.max_tokens = 0;
    for (size_t i = 0; i < count; i++)
        if (runs[i].tokens > p.max_tokens)
            p.max_tokens = runs[i].tokens;
    pthread_mutex_lock(&t->turn);
    enum samkv_status status = reserve_scratch(t, count, rows, (size_t)p.head_dim);
    if (status) {
        pthread_mutex_unlock(&t->turn);
        return samkv_fail(err, status, "no memory on %s to place %zu tokens", t->device->name, rows);
    }
    p.runs = t->scratch.runs;
    p.rope = t->scratch.rope;
    ops->upload(t->stream, t->scratch.runs, runs, count * sizeof *runs);
    ops->upload(t->stream, t->scratch.positions, positions, rows * sizeof *positions);
    ops->rope_table(t->stream, inv_freq_device, p.head_dim / 2, t->scratch.positions, (int)rows, rope_scale,
                    t->scratch.rope);
    ops->place_runs(t->stream, &p);
    status = ops->sync(t->stream, err);
    pthread_mutex_unlock(&t->turn);
    return status;
}

enum samkv_status samkv_transfer_place(struct samkv_transfer *t, const struct samkv_record_want *wants,
                                       struct samkv_run *runs, size_t count, const int32_t *positions, size_t rows,
                                       const double *inv_freq_device, float rope_scale,
                                       const struct samkv_place_runs *place, struct samkv_error *err)
{
    if (!count)
        return SAMKV_OK;
    for (size_t i = 0; i < count; i++)
        runs[i].src = samkv_cached_memory(wants[i].entry);
    return place_all(t, runs, count, positions, rows, inv_freq_device, rope_scale, place, err);
}

/* ------------------------------------------------------------------ down */

struct spread {
    uint8_t *to;
    const uint8_t *from;
    size_t bytes, share;
};

static void copy_share(void *arg, int i)
{
    const struct spread *s = arg;
    size_t first = (size_t)i * s->share, left = s->bytes - first;
    memcpy(s->to + first, s->from + first, left < s->share ? left : s->share);
}

static void spread_copy(struct samkv_transfer *t, uint8_t *to, const uint8_t *from, size_t bytes)
{
    int threads = samkv_team_threads(t->team);
    struct spread s = {to, from, bytes, (bytes + (size_t)threads - 1) / (size_t)threads};
    samkv_team_run(t->team, (int)((bytes + s.share - 1) / s.share), threads, copy_share, &s);
}

static size_t step_at(size_t first, size_t bytes)
{
    return bytes - first < DOWN_BYTES ? bytes - first : DOWN_BYTES;
}

static void start_step(struct samkv_transfer *t, size_t number, const uint8_t *from, size_t bytes)
{
    t->device->ops->download(t->stream, t->ring + number % DOWN_STEPS * DOWN_BYTES, from + number * DOWN_BYTES,
                             step_at(number * DOWN_BYTES, bytes));
    t->device->ops->record(t->stream, t->slots[number % DOWN_STEPS].sent);
}

/* Some steps are on their way while an earlier one is copied on. */
enum samkv_status samkv_transfer_down(struct samkv_transfer *t, const void *device_src, void *host_dst, size_t bytes,
                                      struct samkv_error *err)
{
    size_t steps = (bytes + DOWN_BYTES - 1) / DOWN_BYTES, started = 0;
    uint8_t *to = host_dst;
    enum samkv_status status = SAMKV_OK;
    pthread_mutex_lock(&t->turn);
    for (; started < steps && started < DOWN_STEPS; started++)
        start_step(t, started, device_src, bytes);
    for (size_t n = 0; n < steps && !status; n++) {
        status = t->device->ops->event_sync(t->slots[n % DOWN_STEPS].sent, err);
        if (status)
            break;
        spread_copy(t, to + n * DOWN_BYTES, t->ring + n % DOWN_STEPS * DOWN_BYTES, step_at(n * DOWN_BYTES, bytes));
        if (started < steps)
            start_step(t, started++, device_src, bytes);
    }
    enum samkv_status synced = t->device->ops->sync(t->stream, status ? NULL : err);
    pthread_mutex_unlock(&t->turn);
    return status ? status : synced;
}
