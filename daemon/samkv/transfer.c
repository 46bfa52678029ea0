#include "daemon/samkv/transfer.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/pool.h"

/* Half of the ring is filled while the other half is on its way. Large enough for the kept blocks of an ordinary fetch.
 */
#define HALF_BYTES       ((size_t)128 << 20)
#define DOWN_BYTES       ((size_t)16 << 20) /* a step of a reply on its way down */
#define RECORD_ALIGNMENT 64
#define MAX_THREADS      16
#define BYTES_PER_THREAD (1u << 20) /* a thread is worth its start from about so many bytes on */

struct half {
    uint8_t *memory;
    size_t bytes;
    struct samkv_event *sent; /* everything that lay in it has arrived */
};

struct samkv_transfer {
    struct samkv_device *device;
    struct samkv_stream *stream;
    struct samkv_device_cache *cache;
    pthread_mutex_t turn;        /* one transfer at a time */
    pthread_mutex_t stream_lock; /* within it: the threads that decode share the stream */
    struct half halves[2];
};

void samkv_transfer_free(struct samkv_transfer *t)
{
    if (!t)
        return;
    const struct samkv_ops *ops = t->device->ops;
    for (int i = 0; i < 2; i++) {
        ops->event_free(t->halves[i].sent);
        ops->host_release(t->device, t->halves[i].memory);
    }
    samkv_device_cache_free(t->cache);
    if (t->stream)
        ops->stream_free(t->stream);
    pthread_mutex_destroy(&t->turn);
    pthread_mutex_destroy(&t->stream_lock);
    free(t);
}

static enum samkv_status grow(struct samkv_transfer *t, struct half *half, size_t bytes)
{
    if (bytes <= half->bytes)
        return SAMKV_OK;
    t->device->ops->host_release(t->device, half->memory);
    *half = (struct half){.sent = half->sent};
    enum samkv_status status = t->device->ops->host_alloc(t->device, bytes, (void **)&half->memory);
    if (!status)
        half->bytes = bytes;
    return status;
}

enum samkv_status samkv_transfer_new(struct samkv_device *device, uint64_t cache_bytes, struct samkv_transfer **out,
                                     struct samkv_error *err)
{
    struct samkv_transfer *t = calloc(1, sizeof *t);
    if (!t)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    t->device = device;
    pthread_mutex_init(&t->turn, NULL);
    pthread_mutex_init(&t->stream_lock, NULL);
    enum samkv_status status = device->ops->stream_new(device, &t->stream);
    for (int i = 0; i < 2 && !status; i++) {
        status = device->ops->event_new(device, &t->halves[i].sent);
        if (!status)
            status = grow(t, &t->halves[i], HALF_BYTES);
    }
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
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    size_t threads = bytes / BYTES_PER_THREAD + 1;
    if (cores > 0 && threads > (size_t)cores)
        threads = (size_t)cores;
    return threads > MAX_THREADS ? MAX_THREADS : (int)threads;
}

/* ------------------------------------------------------------------ up */

/* Records that go up together, through one half of the ring. */
struct wave {
    struct samkv_transfer *t;
    struct samkv_record_want *wants;
    enum samkv_status (*fill)(void *arg, size_t i, void *host, struct samkv_error *);
    void *arg;
    const size_t *missing; /* numbers of wants; this wave's are [0, count) */
    size_t count;
    const size_t *offsets; /* in the half */
    struct half *half;
    pthread_mutex_t lock; /* of the two below */
    enum samkv_status status;
    struct samkv_error *err;
};

static void record_failure(struct wave *w, enum samkv_status status, const struct samkv_error *err)
{
    pthread_mutex_lock(&w->lock);
    if (!w->status) {
        w->status = status;
        if (w->err)
            *w->err = *err;
    }
    pthread_mutex_unlock(&w->lock);
}

static bool has_failed(struct wave *w)
{
    pthread_mutex_lock(&w->lock);
    bool failed = w->status != SAMKV_OK;
    pthread_mutex_unlock(&w->lock);
    return failed;
}

static void bring_one(void *arg, int i)
{
    struct wave *w = arg;
    struct samkv_record_want *want = &w->wants[w->missing[i]];
    struct samkv_transfer *t = w->t;
    struct samkv_error err = {0};
    uint8_t *host = w->half->memory + w->offsets[i];
    if (has_failed(w))
        return;
    enum samkv_status status = w->fill(w->arg, w->missing[i], host, &err);
    if (!status && samkv_device_cache_make(t->cache, &want->key, want->bytes, &want->entry))
        status = samkv_fail(&err, SAMKV_NO_MEMORY,
                            "%s has no memory for the documents' blocks: ask for fewer documents or a lower ratio",
                            t->device->name);
    if (status) {
        record_failure(w, status, &err);
        return;
    }
    pthread_mutex_lock(&t->stream_lock);
    t->device->ops->upload(t->stream, samkv_cached_memory(want->entry), host, want->bytes);
    pthread_mutex_unlock(&t->stream_lock);
}

static size_t aligned(size_t bytes)
{
    return (bytes + RECORD_ALIGNMENT - 1) / RECORD_ALIGNMENT * RECORD_ALIGNMENT;
}

/* How many of the missing records go into a half, at least one; their offsets, and the bytes of all. */
static size_t cut_wave(const struct samkv_record_want *wants, const size_t *missing, size_t count, size_t *offsets,
                       size_t *bytes)
{
    size_t n = 0;
    *bytes = 0;
    while (n < count && (n == 0 || *bytes + wants[missing[n]].bytes <= HALF_BYTES)) {
        offsets[n] = *bytes;
        *bytes += aligned(wants[missing[n++]].bytes);
    }
    return n;
}

/* The missing records, wave by wave: one half is decoded into while the other is on its way. */
static enum samkv_status bring_missing(struct samkv_transfer *t, struct wave *w, const size_t *missing, size_t count,
                                       size_t *offsets, struct samkv_error *err)
{
    for (size_t first = 0, number = 0; first < count; first += w->count, number++) {
        size_t bytes;
        w->missing = missing + first;
        w->offsets = offsets;
        w->count = cut_wave(w->wants, w->missing, count - first, offsets, &bytes);
        w->half = &t->halves[number % 2];
        enum samkv_status status = t->device->ops->event_sync(w->half->sent, err);
        if (!status && grow(t, w->half, bytes))
            status = samkv_fail(err, SAMKV_NO_MEMORY, "no page-locked memory for a record of %zu MB", bytes >> 20);
        if (status)
            return status;
        samkv_parallel_for((int)w->count, thread_count(bytes), bring_one, w);
        t->device->ops->record(t->stream, w->half->sent);
        if (w->status)
            return w->status;
    }
    return SAMKV_OK;
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

static enum samkv_status bring(struct samkv_transfer *t, struct wave *w, size_t *missing, size_t count,
                               struct samkv_error *err)
{
    pthread_mutex_lock(&t->turn);
    enum samkv_status status = bring_missing(t, w, missing, count, missing + count, err);
    enum samkv_status synced = t->device->ops->sync(t->stream, status ? NULL : err);
    pthread_mutex_unlock(&t->turn);
    if (!status)
        status = synced;
    for (size_t i = 0; i < count && !status; i++)
        samkv_device_cache_publish(w->wants[missing[i]].entry);
    return status;
}

enum samkv_status samkv_transfer_up(struct samkv_transfer *t, struct samkv_record_want *wants, size_t count,
                                    enum samkv_status (*fill)(void *arg, size_t i, void *host, struct samkv_error *),
                                    void *arg, struct samkv_error *err)
{
    struct wave w = {.t = t, .wants = wants, .fill = fill, .arg = arg, .err = err};
    size_t *missing = malloc(2 * (count + 1) * sizeof *missing);
    for (size_t i = 0; i < count; i++)
        wants[i].entry = NULL;
    if (!missing)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    size_t n = find_cached(t, wants, count, missing);
    enum samkv_status status = SAMKV_OK;
    if (n) {
        pthread_mutex_init(&w.lock, NULL);
        status = bring(t, &w, missing, n, err);
        pthread_mutex_destroy(&w.lock);
    }
    free(missing);
    return status;
}

/* ------------------------------------------------------------------ into a KV cache */

/* Device memory of one placement. */
struct scratch {
    struct samkv_run *runs;
    int32_t *positions;
    float *rope;
};

static enum samkv_status place_all(struct samkv_transfer *t, const struct scratch *s, const struct samkv_run *runs,
                                   size_t count, const int32_t *positions, size_t rows, const double *inv_freq_device,
                                   float rope_scale, const struct samkv_place_runs *place, struct samkv_error *err)
{
    const struct samkv_ops *ops = t->device->ops;
    struct samkv_place_runs p = *place;
    p.runs = s->runs;
    p.rope = s->rope;
    p.count = (int)count;
    p.max_tokens = 0;
    for (size_t i = 0; i < count; i++)
        if (runs[i].tokens > p.max_tokens)
            p.max_tokens = runs[i].tokens;
    pthread_mutex_lock(&t->turn);
    ops->upload(t->stream, s->runs, runs, count * sizeof *runs);
    ops->upload(t->stream, s->positions, positions, rows * sizeof *positions);
    ops->rope_table(t->stream, inv_freq_device, p.head_dim / 2, s->positions, (int)rows, rope_scale, s->rope);
    ops->place_runs(t->stream, &p);
    enum samkv_status status = ops->sync(t->stream, err);
    pthread_mutex_unlock(&t->turn);
    return status;
}

enum samkv_status samkv_transfer_place(struct samkv_transfer *t, const struct samkv_record_want *wants,
                                       struct samkv_run *runs, size_t count, const int32_t *positions, size_t rows,
                                       const double *inv_freq_device, float rope_scale,
                                       const struct samkv_place_runs *place, struct samkv_error *err)
{
    struct samkv_device *device = t->device;
    struct scratch s = {0};
    enum samkv_status status = SAMKV_OK;
    if (!count)
        return SAMKV_OK;
    for (size_t i = 0; i < count; i++)
        runs[i].src = samkv_cached_memory(wants[i].entry);
    if (device->ops->alloc(device, count * sizeof *runs, (void **)&s.runs) ||
        device->ops->alloc(device, rows * sizeof *positions, (void **)&s.positions) ||
        device->ops->alloc(device, rows * (size_t)place->head_dim * sizeof(float), (void **)&s.rope))
        status = samkv_fail(err, SAMKV_NO_MEMORY, "no memory on %s to place %zu tokens", device->name, rows);
    else
        status = place_all(t, &s, runs, count, positions, rows, inv_freq_device, rope_scale, place, err);
    device->ops->release(device, s.runs);
    device->ops->release(device, s.positions);
    device->ops->release(device, s.rope);
    return status;
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

static void spread_copy(uint8_t *to, const uint8_t *from, size_t bytes)
{
    int threads = thread_count(bytes) < 4 ? thread_count(bytes) : 4;
    struct spread s = {to, from, bytes, (bytes + (size_t)threads - 1) / (size_t)threads};
    samkv_parallel_for((int)((bytes + s.share - 1) / s.share), threads, copy_share, &s);
}

static void start_down(struct samkv_transfer *t, size_t number, const uint8_t *from, size_t bytes)
{
    struct half *half = &t->halves[number % 2];
    t->device->ops->download(t->stream, half->memory, from, bytes);
    t->device->ops->record(t->stream, half->sent);
}

static size_t step_at(size_t first, size_t bytes)
{
    return bytes - first < DOWN_BYTES ? bytes - first : DOWN_BYTES;
}

/* One step is on its way while the step before is copied on. */
enum samkv_status samkv_transfer_down(struct samkv_transfer *t, const void *device_src, void *host_dst, size_t bytes,
                                      struct samkv_error *err)
{
    const uint8_t *from = device_src;
    uint8_t *to = host_dst;
    enum samkv_status status = SAMKV_OK;
    if (!bytes)
        return SAMKV_OK;
    pthread_mutex_lock(&t->turn);
    start_down(t, 0, from, step_at(0, bytes));
    for (size_t first = 0, number = 0; first < bytes && !status; first += DOWN_BYTES, number++) {
        size_t next = first + DOWN_BYTES;
        if (next < bytes)
            start_down(t, number + 1, from + next, step_at(next, bytes));
        status = t->device->ops->event_sync(t->halves[number % 2].sent, err);
        if (!status)
            spread_copy(to + first, t->halves[number % 2].memory, step_at(first, bytes));
    }
    enum samkv_status synced = t->device->ops->sync(t->stream, status ? NULL : err);
    pthread_mutex_unlock(&t->turn);
    return status ? status : synced;
}
