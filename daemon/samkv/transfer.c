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

/* Runs, positions and angles of a placement on the device; `runs` has some for each band. On the stream. */
static enum samkv_status upload_placing(struct samkv_transfer *t, const struct samkv_placing *p,
                                        const struct samkv_run *runs, size_t count, struct samkv_error *err)
{
    const struct samkv_ops *ops = t->device->ops;
    enum samkv_status status = reserve_scratch(t, count, p->rows, (size_t)p->place->head_dim);
    if (status)
        return samkv_fail(err, status, "no memory on %s to place %zu tokens", t->device->name, p->rows);
    ops->upload(t->stream, t->scratch.runs, runs, count * sizeof *runs);
    ops->upload(t->stream, t->scratch.positions, p->positions, p->rows * sizeof *p->positions);
    ops->rope_table(t->stream, p->inv_freq, p->place->head_dim / 2, t->scratch.positions, (int)p->rows, p->rope_scale,
                    t->scratch.rope);
    return SAMKV_OK;
}

static int longest(const struct samkv_run *runs, size_t count)
{
    int most = 0;
    for (size_t i = 0; i < count; i++)
        most = runs[i].tokens > most ? runs[i].tokens : most;
    return most;
}

enum samkv_status samkv_transfer_place(struct samkv_transfer *t, const struct samkv_record_want *wants, size_t count,
                                       const struct samkv_placing *placing, struct samkv_error *err)
{
    if (!count)
        return SAMKV_OK;
    for (size_t i = 0; i < count; i++)
        placing->runs[i].src = samkv_cached_memory(wants[i].entry);
    struct samkv_place_runs p = *placing->place;
    p.count = (int)count;
    p.max_tokens = longest(placing->runs, count);
    pthread_mutex_lock(&t->turn);
    enum samkv_status status = upload_placing(t, placing, placing->runs, count, err);
    if (!status) {
        p.runs = t->scratch.runs;
        p.rope = t->scratch.rope;
        t->device->ops->place_runs(t->stream, &p);
        status = t->device->ops->sync(t->stream, err);
    }
    pthread_mutex_unlock(&t->turn);
    return status;
}

/* ------------------------------------------------------------------ up */

/* The missing records of one call, on their way through the ring. */
struct ascent {
    struct samkv_transfer *t;
    struct samkv_record_want *wants;
    size_t want_count;
    samkv_fill *fill;
    void *arg;
    size_t *missing; /* [count] numbers of wants */
    size_t count;
    size_t slot_bytes, slots; /* record i of the missing goes through slot i % slots */
    pthread_mutex_t lock;     /* of the two below */
    enum samkv_status status;
    struct samkv_error *err;
    /* In bands; NULL: not. */
    struct samkv_bands *bands;
    const struct samkv_placing *placing;
    struct samkv_run *runs;       /* [bands][want_count] */
    size_t left[SAMKV_BANDS_MAX]; /* missing records that have not sent their part of a band; under t->lock */
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

/* Waits until the records that used the slot before have left it: they were begun before, so they will. */
static enum samkv_status await_slot(struct samkv_transfer *t, struct slot *slot, size_t turn, struct samkv_error *err)
{
    pthread_mutex_lock(&t->lock);
    while (slot->turn != turn)
        pthread_cond_wait(&t->turned, &t->lock);
    pthread_mutex_unlock(&t->lock);
    return t->device->ops->event_sync(slot->sent, err);
}

/* The next band into the cache: all its bytes are on the stream. With t->lock held, or alone. */
static void place_band(struct ascent *a, int band)
{
    struct samkv_transfer *t = a->t;
    struct samkv_place_runs p = *a->placing->place;
    uint32_t first = a->bands->first_layer[band];
    p.layers = (int)(a->bands->first_layer[band + 1] - first);
    if (p.no_rope)
        p.no_rope += first;
    p.k_cache = (uint8_t *)p.k_cache + first * p.layer_stride_bytes;
    p.v_cache = (uint8_t *)p.v_cache + first * p.layer_stride_bytes;
    p.runs = t->scratch.runs + (size_t)band * a->want_count;
    p.rope = t->scratch.rope;
    p.count = (int)a->want_count;
    p.max_tokens = longest(a->placing->runs, a->want_count);
    if (p.count)
        t->device->ops->place_runs(t->stream, &p);
    samkv_bands_arrive(a->bands, t->stream);
}

/* One missing record on its way. */
struct passage {
    struct ascent *a;
    const struct samkv_record_want *want;
    const uint8_t *host;
    int sent; /* bands */
};

static size_t band_end(const struct passage *p, int band)
{
    const struct samkv_bands *b = p->a->bands;
    return p->want->bytes / b->first_layer[b->count] * b->first_layer[band + 1];
}

/* The first `bytes` are there: sends the bands that are whole. */
static void send_bands(void *arg, size_t bytes)
{
    struct passage *p = arg;
    struct samkv_transfer *t = p->a->t;
    for (; p->sent < p->a->bands->count && bytes >= band_end(p, p->sent); p->sent++) {
        size_t from = p->sent ? band_end(p, p->sent - 1) : 0, end = band_end(p, p->sent);
        pthread_mutex_lock(&t->lock);
        t->device->ops->upload(t->stream, (uint8_t *)samkv_cached_memory(p->want->entry) + from, p->host + from,
                               end - from);
        if (--p->a->left[p->sent] == 0)
            place_band(p->a, p->sent);
        pthread_mutex_unlock(&t->lock);
    }
}

static void bring_one(void *arg, int i)
{
    struct ascent *a = arg;
    struct samkv_transfer *t = a->t;
    struct slot *slot = &t->slots[(size_t)i % a->slots];
    struct samkv_record_want *want = &a->wants[a->missing[i]];
    uint8_t *host = t->ring + (size_t)i % a->slots * a->slot_bytes;
    struct passage passage = {.a = a, .want = want, .host = host};
    const struct samkv_fill_watch watch = {a->bands ? send_bands : NULL, &passage};
    struct samkv_error err = {0};
    enum samkv_status status = await_slot(t, slot, (size_t)i / a->slots, &err);
    bool wanted = !status && !has_failed(a);
    if (wanted)
        status = a->fill(a->arg, a->missing[i], host, &watch, &err);
    if (wanted && !status && a->bands)
        send_bands(&passage, want->bytes);
    pthread_mutex_lock(&t->lock);
    if (wanted && !status && !a->bands)
        t->device->ops->upload(t->stream, samkv_cached_memory(want->entry), host, want->bytes);
    if (wanted)
        t->device->ops->record(t->stream, slot->sent);
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

/* Entries for what is missing, which is noted. */
static enum samkv_status find_or_make(struct ascent *a, struct samkv_error *err)
{
    struct samkv_transfer *t = a->t;
    for (size_t i = 0; i < a->want_count; i++) {
        a->wants[i].entry = samkv_device_cache_find(t->cache, &a->wants[i].key);
        if (!a->wants[i].entry)
            a->missing[a->count++] = i;
    }
    for (size_t i = 0; i < a->count; i++) {
        struct samkv_record_want *want = &a->wants[a->missing[i]];
        if (samkv_device_cache_make(t->cache, &want->key, want->bytes, &want->entry))
            return samkv_fail(err, SAMKV_NO_MEMORY,
                              "%s has no memory for the documents' blocks: ask for fewer documents or a lower ratio",
                              t->device->name);
    }
    return SAMKV_OK;
}

/* Each band's runs: where in the records its layers begin. */
static void cut_runs(struct ascent *a)
{
    const struct samkv_bands *b = a->bands;
    for (size_t i = 0; i < a->want_count; i++) {
        struct samkv_run *run = &a->placing->runs[i];
        size_t layer_bytes = a->wants[i].bytes / b->first_layer[b->count];
        run->src = samkv_cached_memory(a->wants[i].entry);
        for (int band = 0; band < b->count; band++) {
            struct samkv_run *part = &a->runs[(size_t)band * a->want_count + i];
            int32_t first = (int32_t)b->first_layer[band];
            *part = *run;
            part->src = (const uint8_t *)run->src + (size_t)first * layer_bytes;
            part->first_layer = run->first_layer > first ? run->first_layer - first : 0;
        }
    }
}

/* What bands need before the first record comes; what is there already may be in place at once. */
static enum samkv_status begin_bands(struct ascent *a, struct samkv_error *err)
{
    cut_runs(a);
    enum samkv_status status = upload_placing(a->t, a->placing, a->runs, (size_t)a->bands->count * a->want_count, err);
    for (int band = 0; band < a->bands->count && !status; band++) {
        a->left[band] = a->count;
        if (!a->count)
            place_band(a, band);
    }
    return status;
}

/* In this transfer's turn. Waits until everything has arrived, also what a failure left under way. */
static enum samkv_status ascend(struct ascent *a, struct samkv_error *err)
{
    struct samkv_transfer *t = a->t;
    size_t bytes = 0;
    pthread_mutex_lock(&t->turn);
    enum samkv_status status = a->count ? cut_ring(a, &bytes, err) : SAMKV_OK;
    if (!status && a->bands)
        status = begin_bands(a, err);
    if (!status && a->count) {
        samkv_team_run(t->team, (int)a->count, thread_count(bytes), bring_one, a);
        status = a->status;
    }
    if (status && a->bands)
        samkv_bands_fail(a->bands, status);
    enum samkv_status synced = t->device->ops->sync(t->stream, status ? NULL : err);
    pthread_mutex_unlock(&t->turn);
    return status ? status : synced;
}

static enum samkv_status bring(struct ascent *a, struct samkv_error *err)
{
    for (size_t i = 0; i < a->want_count; i++)
        a->wants[i].entry = NULL;
    a->missing = malloc((a->want_count + 1) * sizeof *a->missing);
    a->runs = a->bands ? malloc(((size_t)a->bands->count * a->want_count + 1) * sizeof *a->runs) : NULL;
    enum samkv_status status = SAMKV_OK;
    if (!a->missing || (a->bands && !a->runs))
        status = samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    if (!status)
        status = find_or_make(a, err);
    if (status && a->bands)
        samkv_bands_fail(a->bands, status);
    if (!status && (a->count || a->bands)) {
        pthread_mutex_init(&a->lock, NULL);
        status = ascend(a, err);
        pthread_mutex_destroy(&a->lock);
    }
    for (size_t i = 0; i < a->count && !status; i++)
        samkv_device_cache_publish(a->wants[a->missing[i]].entry);
    free(a->missing);
    free(a->runs);
    return status;
}

enum samkv_status samkv_transfer_up(struct samkv_transfer *t, struct samkv_record_want *wants, size_t count,
                                    samkv_fill *fill, void *arg, struct samkv_error *err)
{
    struct ascent a = {.t = t, .wants = wants, .want_count = count, .fill = fill, .arg = arg, .err = err};
    return bring(&a, err);
}

enum samkv_status samkv_transfer_stream(struct samkv_transfer *t, struct samkv_record_want *wants, size_t count,
                                        samkv_fill *fill, void *arg, const struct samkv_placing *placing,
                                        struct samkv_bands *bands, struct samkv_error *err)
{
    struct ascent a = {.t = t, .wants = wants, .want_count = count, .fill = fill, .arg = arg, .err = err};
    a.placing = placing;
    a.bands = bands;
    return bring(&a, err);
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
