/* Records up, runs into a KV cache and replies down, over a CPU that plays a GPU. */
#include <check.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/samkv/transfer.h"

#define MB         ((size_t)1 << 20)
#define HALF       (128 * MB) /* of the ring, as transfer.c has it: these tests only have to lie on both sides of it */
#define SMALL      4099       /* bytes, no multiple of anything */
#define BUDGET     (1024 * MB)
#define TOLERANCE  1e-6f
#define MAX_CALLED 4096

static struct samkv_device *device;
static struct samkv_transfer *transfer;

static void open_transfer(uint64_t cache_bytes)
{
    struct samkv_error err;
    ck_assert_int_eq(samkv_cpu_discrete_new(2, &device, NULL), SAMKV_OK);
    ck_assert_msg(samkv_transfer_new(device, cache_bytes, &transfer, &err) == SAMKV_OK, "%s", err.text);
}

static void set_up(void)
{
    open_transfer(BUDGET);
}

/* The device asserts that all of its memory came back. */
static void tear_down(void)
{
    samkv_transfer_free(transfer);
    device->ops->device_free(device);
}

static struct samkv_device_cache_stats stats(void)
{
    struct samkv_device_cache_stats out;
    samkv_device_cache_stats(samkv_transfer_cache(transfer), &out);
    return out;
}

/* ------------------------------------------------------------------ records whose bytes their key tells */

static uint64_t word_of(uint32_t number, size_t i)
{
    uint64_t z = ((uint64_t)number << 40) + i;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    return z ^ z >> 27;
}

static void write_record(uint32_t number, uint8_t *out, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += 8) {
        uint64_t word = word_of(number, at);
        memcpy(out + at, &word, bytes - at < 8 ? bytes - at : 8);
    }
}

static bool is_record(uint32_t number, const uint8_t *in, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += 8) {
        uint64_t word = word_of(number, at);
        if (memcmp(in + at, &word, bytes - at < 8 ? bytes - at : 8) != 0)
            return false;
    }
    return true;
}

static void name_want(struct samkv_record_want *want, uint32_t number, size_t bytes)
{
    *want = (struct samkv_record_want){
        .key = {.kind = SAMKV_CACHED_BLOCK, .number = number}, .bytes = bytes, .entry = (void *)want};
    memset(want->key.document, (int)(number % 251), sizeof want->key.document);
}

/* One call of up: what is asked for, and what fill was asked for. */
struct call {
    struct samkv_record_want *wants;
    size_t count;
    size_t failing; /* want whose fill fails; beyond the count: none */
    atomic_uint called[MAX_CALLED];
    atomic_uint misaligned;
};

static enum samkv_status fill(void *arg, size_t i, void *host, const struct samkv_fill_watch *watch,
                              struct samkv_error *err)
{
    struct call *c = arg;
    (void)watch;
    atomic_fetch_add(&c->called[i], 1);
    atomic_fetch_add(&c->misaligned, (uintptr_t)host % 64 != 0);
    if (i == c->failing)
        return samkv_fail(err, SAMKV_CORRUPT, "record %zu is damaged", i);
    write_record(c->wants[i].key.number, host, c->wants[i].bytes);
    return SAMKV_OK;
}

/* Records first, first + 1, …, all of one size. */
static struct call *new_call(uint32_t first, size_t count, size_t bytes)
{
    struct call *c = calloc(1, sizeof *c);
    ck_assert_uint_le(count, MAX_CALLED);
    c->wants = calloc(count, sizeof *c->wants);
    c->count = count;
    c->failing = SIZE_MAX;
    for (size_t i = 0; i < count; i++)
        name_want(&c->wants[i], first + (uint32_t)i, bytes);
    return c;
}

static enum samkv_status up(struct call *c, struct samkv_error *err)
{
    return samkv_transfer_up(transfer, c->wants, c->count, fill, c, err);
}

static void expect_up(struct call *c)
{
    struct samkv_error err = {0};
    ck_assert_msg(up(c, &err) == SAMKV_OK, "%s", err.text);
    ck_assert_uint_eq(atomic_load(&c->misaligned), 0);
}

static unsigned times_called(const struct call *c)
{
    unsigned sum = 0;
    for (size_t i = 0; i < c->count; i++)
        sum += atomic_load(&c->called[i]);
    return sum;
}

/* Through a stream of the test's own, so that nothing of the transfer's order helps. */
static bool is_on_device(const struct samkv_record_want *want)
{
    uint8_t *host = malloc(want->bytes);
    struct samkv_stream *stream;
    ck_assert_ptr_nonnull(host);
    ck_assert_int_eq(device->ops->stream_new(device, &stream), SAMKV_OK);
    device->ops->download(stream, host, samkv_cached_memory(want->entry), want->bytes);
    ck_assert_int_eq(device->ops->sync(stream, NULL), SAMKV_OK);
    device->ops->stream_free(stream);
    bool right = is_record(want->key.number, host, want->bytes);
    free(host);
    return right;
}

static void expect_all(const struct call *c)
{
    for (size_t i = 0; i < c->count; i++) {
        ck_assert_ptr_nonnull(c->wants[i].entry);
        ck_assert_msg(is_on_device(&c->wants[i]), "record %zu has other bytes", i);
    }
}

static void free_call(struct call *c)
{
    for (size_t i = 0; i < c->count; i++)
        samkv_device_cache_unpin(c->wants[i].entry);
    free(c->wants);
    free(c);
}

/* ------------------------------------------------------------------ up */

START_TEST(records_come_once)
{
    struct call *c = new_call(0, 100, SMALL);
    expect_up(c);
    expect_all(c);
    for (size_t i = 0; i < c->count; i++)
        ck_assert_uint_eq(atomic_load(&c->called[i]), 1);
    free_call(c);
    c = new_call(50, 100, SMALL); /* half of them are there */
    expect_up(c);
    expect_all(c);
    for (size_t i = 0; i < c->count; i++)
        ck_assert_uint_eq(atomic_load(&c->called[i]), i >= 50);
    ck_assert_uint_eq(stats().entries, 150);
    ck_assert_uint_eq(stats().hits, 50);
    free_call(c);
    c = new_call(0, 0, SMALL);
    expect_up(c);
    free_call(c);
}
END_TEST

/* More than both halves of the ring together: each is used again. */
START_TEST(more_than_the_ring)
{
    struct call *c = new_call(0, 45, 8 * MB - 24);
    ck_assert_uint_gt(c->count * c->wants[0].bytes, 2 * HALF + HALF / 2);
    expect_up(c);
    expect_all(c);
    ck_assert_uint_eq(times_called(c), c->count);
    free_call(c);
}
END_TEST

START_TEST(a_record_larger_than_half_of_the_ring)
{
    struct call *c = new_call(0, 4, SMALL);
    name_want(&c->wants[1], 1, HALF + 5 * MB + 3);
    expect_up(c);
    expect_all(c);
    free_call(c);
}
END_TEST

/* As when a document is in a fetch twice: its blocks are wanted twice. */
START_TEST(one_key_twice)
{
    struct call *c = new_call(0, 6, SMALL);
    name_want(&c->wants[4], 1, SMALL);
    expect_up(c);
    expect_all(c);
    free_call(c);
    ck_assert_uint_eq(stats().entries, 5);
    c = new_call(0, 6, SMALL);
    name_want(&c->wants[4], 1, SMALL);
    expect_up(c);
    ck_assert_ptr_eq(c->wants[4].entry, c->wants[1].entry);
    ck_assert_uint_eq(times_called(c), 0);
    free_call(c);
}
END_TEST

START_TEST(what_cannot_be_kept_still_comes)
{
    tear_down();
    open_transfer(10 * SMALL);
    for (int turn = 0; turn < 3; turn++) {
        struct call *c = new_call(0, 200, SMALL);
        expect_up(c);
        expect_all(c);
        free_call(c);
        ck_assert_uint_le(stats().bytes, 10 * SMALL);
    }
}
END_TEST

/* ------------------------------------------------------------------ failures */

static void expect_failure(struct call *c)
{
    struct samkv_error err = {0};
    char text[64];
    snprintf(text, sizeof text, "record %zu is damaged", c->failing);
    ck_assert_int_eq(up(c, &err), SAMKV_CORRUPT);
    ck_assert_str_eq(err.text, text);
}

/* Nothing that one call brought is found after it failed, whichever of its records did. */
START_TEST(a_failure_publishes_nothing)
{
    static const size_t failing[] = {0, 37, 99};
    struct call *known = new_call(10, 5, SMALL);
    expect_up(known);
    free_call(known);
    for (size_t i = 0; i < sizeof failing / sizeof *failing; i++) {
        struct call *c = new_call(0, 100, SMALL);
        c->failing = failing[i];
        expect_failure(c);
        free_call(c);
        ck_assert_uint_eq(stats().entries, 5);
        c = new_call(0, 100, SMALL);
        c->failing = failing[i];
        ck_assert_int_eq(up(c, NULL), SAMKV_CORRUPT);
        free_call(c);
    }
    struct call *c = new_call(0, 100, SMALL);
    expect_up(c);
    expect_all(c);
    ck_assert_uint_eq(times_called(c), 95);
    free_call(c);
}
END_TEST

/* In the last of several waves: the first ones are on the device by then. */
START_TEST(a_failure_ends_it_early_or_late)
{
    struct call *c = new_call(0, 40, 8 * MB);
    c->failing = 39;
    expect_failure(c);
    free_call(c);
    ck_assert_uint_eq(stats().entries, 0);
    c = new_call(0, 40, 8 * MB);
    c->failing = 0;
    expect_failure(c);
    ck_assert_uint_le(times_called(c), HALF / (8 * MB)); /* the first wave's at most */
    free_call(c);
    ck_assert_uint_eq(stats().entries, 0);
    ck_assert_uint_eq(stats().bytes, 0);
}
END_TEST

/* ------------------------------------------------------------------ several at once */

#define THREADS 4
#define ROUNDS  25

struct worker {
    pthread_t thread;
    unsigned seed, wrong;
};

/* Overlapping records; now and then one that fails, which must not touch the others. */
static void *work(void *arg)
{
    struct worker *w = arg;
    for (int round = 0; round < ROUNDS; round++) {
        size_t bytes = 60000;
        struct call *c = new_call((uint32_t)rand_r(&w->seed) % 200, 40, bytes);
        if (round % 5 == 4)
            c->failing = 20;
        enum samkv_status status = up(c, NULL);
        bool may_fail = c->failing != SIZE_MAX && atomic_load(&c->called[20]);
        w->wrong += status != (may_fail ? SAMKV_CORRUPT : SAMKV_OK);
        for (size_t i = 0; i < c->count && !status; i++)
            w->wrong += !is_on_device(&c->wants[i]);
        uint8_t *down = malloc(bytes);
        if (!status) {
            w->wrong +=
                samkv_transfer_down(transfer, samkv_cached_memory(c->wants[7].entry), down, bytes, NULL) != SAMKV_OK;
            w->wrong += !is_record(c->wants[7].key.number, down, bytes);
        }
        free(down);
        free_call(c);
    }
    return NULL;
}

START_TEST(many_threads)
{
    struct worker workers[THREADS];
    tear_down();
    open_transfer(100 * 60000); /* so that records also go while others come */
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.seed = i + 1};
        ck_assert_int_eq(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        ck_assert_uint_eq(workers[i].wrong, 0);
    }
    ck_assert_uint_le(stats().bytes, 100 * 60000);
    ck_assert_uint_gt(stats().evictions, 0);
}
END_TEST

/* ------------------------------------------------------------------ into a KV cache */

enum { LAYERS = 14, KV_HEADS = 2, HEAD_DIM = 6, BLOCK = 5, RECORDS = 3, ROWS = 16 };
enum { WIDTH = KV_HEADS * HEAD_DIM, CACHE = LAYERS * ROWS * WIDTH };

static const float untouched = 1234.5f, rope_scale = 1.25f;
static const double inv_freq[HEAD_DIM / 2] = {1.0, 0.1, 0.01};
static const uint8_t no_rope[LAYERS] = {[3] = 1, [7] = 1, [11] = 1};
static const int first_row[RECORDS] = {0, ROWS - BLOCK, 5}, first_layer[RECORDS] = {0, 6, LAYERS};

/* A record is [layers][K, V][tokens][width]. */
static enum samkv_status fill_floats(void *arg, size_t i, void *host, const struct samkv_fill_watch *watch,
                                     struct samkv_error *err)
{
    float *out = host;
    (void)arg, (void)watch, (void)err;
    for (int j = 0; j < LAYERS * 2 * BLOCK * WIDTH; j++)
        out[j] = (float)((j * 37 + (int)i * 101) % 97) / 97 - 0.5f;
    return SAMKV_OK;
}

static void *to_device(const void *host, size_t bytes)
{
    void *out;
    struct samkv_stream *stream;
    ck_assert_int_eq(device->ops->alloc(device, bytes, &out), SAMKV_OK);
    ck_assert_int_eq(device->ops->stream_new(device, &stream), SAMKV_OK);
    device->ops->upload(stream, out, host, bytes);
    ck_assert_int_eq(device->ops->sync(stream, NULL), SAMKV_OK);
    device->ops->stream_free(stream);
    return out;
}

/* K of one head in double precision: pairs lie half a head apart. */
static void expect_rotated(const float *got, const float *stored, int position)
{
    for (int j = 0; j < HEAD_DIM / 2; j++) {
        double angle = position * inv_freq[j], c = cos(angle) * rope_scale, s = sin(angle) * rope_scale;
        double a = stored[j], b = stored[j + HEAD_DIM / 2];
        ck_assert(fabs(got[j] - (a * c - b * s)) <= TOLERANCE);
        ck_assert(fabs(got[j + HEAD_DIM / 2] - (b * c + a * s)) <= TOLERANCE);
    }
}

static void expect_row(const float *k, const float *v, const float *record, int layer, int token, int position)
{
    const float *k_stored = record + (2 * layer * BLOCK + token) * WIDTH, *v_stored = k_stored + BLOCK * WIDTH;
    if (no_rope[layer])
        ck_assert(memcmp(k, k_stored, WIDTH * sizeof *k) == 0);
    for (int h = 0; h < KV_HEADS && !no_rope[layer]; h++)
        expect_rotated(k + h * HEAD_DIM, k_stored + h * HEAD_DIM, position);
    ck_assert(memcmp(v, v_stored, WIDTH * sizeof *v) == 0);
}

static int position_of(int row)
{
    return row * row + 3;
}

/* The record that a row of a layer comes from; RECORDS: none. */
static int record_at(int layer, int row)
{
    int i = 0;
    while (i < RECORDS && (layer < first_layer[i] || row < first_row[i] || row >= first_row[i] + BLOCK))
        i++;
    return i;
}

static void expect_cache(const float *k, const float *v)
{
    float record[LAYERS * 2 * BLOCK * WIDTH];
    for (int layer = 0; layer < LAYERS; layer++) {
        for (int row = 0; row < ROWS; row++) {
            size_t at = (size_t)(layer * ROWS + row) * WIDTH;
            int i = record_at(layer, row);
            if (i == RECORDS) {
                ck_assert(k[at] == untouched && k[at + WIDTH - 1] == untouched && v[at] == untouched);
                continue;
            }
            ck_assert_int_eq(fill_floats(NULL, (size_t)i, record, NULL, NULL), SAMKV_OK);
            expect_row(k + at, v + at, record, layer, row - first_row[i], position_of(row));
        }
    }
}

/* Wants and runs of the records above, brought up. */
static void bring_records(struct samkv_record_want *wants, struct samkv_run *runs)
{
    for (int i = 0; i < RECORDS; i++) {
        name_want(&wants[i], (uint32_t)i, LAYERS * 2 * BLOCK * WIDTH * sizeof(float));
        runs[i] = (struct samkv_run){.tokens = BLOCK, .first_row = first_row[i], .first_layer = first_layer[i]};
    }
    ck_assert_int_eq(samkv_transfer_up(transfer, wants, RECORDS, fill_floats, NULL, NULL), SAMKV_OK);
}

/* A cache full of `untouched` and where the records above go in it. */
struct target {
    struct samkv_run runs[RECORDS];
    int32_t positions[ROWS];
    float k[CACHE], v[CACHE];
    struct samkv_place_runs place;
    struct samkv_placing placing;
};

static void target_init(struct target *t)
{
    for (int i = 0; i < CACHE; i++)
        t->k[i] = t->v[i] = untouched;
    for (int i = 0; i < ROWS; i++)
        t->positions[i] = position_of(i);
    t->place = (struct samkv_place_runs){.src_dtype = SAMKV_F32,
                                         .k_cache = to_device(t->k, sizeof t->k),
                                         .v_cache = to_device(t->v, sizeof t->v),
                                         .layer_stride_bytes = ROWS * WIDTH * sizeof(float),
                                         .layers = LAYERS,
                                         .kv_heads = KV_HEADS,
                                         .head_dim = HEAD_DIM,
                                         .no_rope = to_device(no_rope, sizeof no_rope)};
    t->placing = (struct samkv_placing){.runs = t->runs,
                                        .positions = t->positions,
                                        .rows = ROWS,
                                        .inv_freq = to_device(inv_freq, sizeof inv_freq),
                                        .rope_scale = rope_scale,
                                        .place = &t->place};
}

static void target_deinit(struct target *t)
{
    device->ops->release(device, (void *)t->placing.inv_freq);
    device->ops->release(device, (void *)t->place.no_rope);
    device->ops->release(device, t->place.k_cache);
    device->ops->release(device, t->place.v_cache);
}

START_TEST(runs_are_placed)
{
    static struct target t;
    struct samkv_record_want wants[RECORDS];
    target_init(&t);
    bring_records(wants, t.runs);
    for (size_t count = 0; count <= RECORDS; count += RECORDS) /* none is allowed */
        ck_assert_int_eq(samkv_transfer_place(transfer, wants, count, &t.placing, NULL), SAMKV_OK);
    ck_assert_int_eq(samkv_transfer_down(transfer, t.place.k_cache, t.k, sizeof t.k, NULL), SAMKV_OK);
    ck_assert_int_eq(samkv_transfer_down(transfer, t.place.v_cache, t.v, sizeof t.v, NULL), SAMKV_OK);
    expect_cache(t.k, t.v);
    for (int i = 0; i < RECORDS; i++)
        samkv_device_cache_unpin(wants[i].entry);
    target_deinit(&t);
}
END_TEST

/* ------------------------------------------------------------------ in bands */

/* Who reads the cache layer by layer, from the first band on, in a thread and a stream of its own. */
struct reader {
    struct target *target;
    struct samkv_bands bands;
    pthread_t thread;
    int begun;
    enum samkv_status status;
    uint32_t layers; /* that it got */
    float k[CACHE], v[CACHE];
};

static void *read_layers(void *arg)
{
    struct reader *r = arg;
    const struct samkv_place_runs *place = &r->target->place;
    struct samkv_stream *stream;
    ck_assert_int_eq(device->ops->stream_new(device, &stream), SAMKV_OK);
    while (r->layers < LAYERS && !(r->status = samkv_bands_await(&r->bands, stream, r->layers, NULL))) {
        size_t at = r->layers * place->layer_stride_bytes;
        device->ops->download(stream, (uint8_t *)r->k + at, (uint8_t *)place->k_cache + at, place->layer_stride_bytes);
        device->ops->download(stream, (uint8_t *)r->v + at, (uint8_t *)place->v_cache + at, place->layer_stride_bytes);
        r->layers++;
    }
    ck_assert_int_eq(device->ops->sync(stream, NULL), SAMKV_OK);
    device->ops->stream_free(stream);
    return NULL;
}

static void begin_reading(void *arg)
{
    struct reader *r = arg;
    ck_assert_int_eq(r->begun++, 0);
    ck_assert_int_eq(pthread_create(&r->thread, NULL, read_layers, r), 0);
}

enum telling { TELLS_NOTHING, TELLS_PIECES, TELLS_AND_WAITS, FAILS_LATE, FAILS_AT_ONCE };

/* Writes a layer after the other; what is not written yet is garbage. */
static enum samkv_status fill_layers(void *arg, size_t i, void *host, const struct samkv_fill_watch *watch,
                                     struct samkv_error *err)
{
    enum telling how = *(enum telling *)arg;
    size_t layer_bytes = 2 * BLOCK * WIDTH * sizeof(float);
    float record[LAYERS * 2 * BLOCK * WIDTH];
    ck_assert_int_eq(fill_floats(NULL, i, record, NULL, NULL), SAMKV_OK);
    memset(host, 0x7f, sizeof record);
    if (how == FAILS_AT_ONCE)
        return samkv_fail(err, SAMKV_CORRUPT, "record %zu is damaged", i);
    for (size_t layer = 0; layer < LAYERS; layer++) {
        if (how == TELLS_AND_WAITS)
            usleep(300 * (unsigned)(i + 1));
        memcpy((uint8_t *)host + layer * layer_bytes, (uint8_t *)record + layer * layer_bytes, layer_bytes);
        if (how == FAILS_LATE && layer == LAYERS - 2 && i == 1)
            return samkv_fail(err, SAMKV_CORRUPT, "record %zu is damaged", i);
        if (how != TELLS_NOTHING)
            watch->fn(watch->arg, (layer + 1) * layer_bytes - (i == 2 ? 1 : 0)); /* an odd place is no whole layer */
    }
    return SAMKV_OK;
}

static void stream_records(struct reader *r, enum telling how, bool one_is_there)
{
    struct samkv_record_want wants[RECORDS];
    struct samkv_error err = {0};
    *r = (struct reader){.target = r->target};
    target_init(r->target);
    bring_records(wants, r->target->runs);
    for (int i = 0; i < RECORDS; i++)
        samkv_device_cache_unpin(wants[i].entry);
    samkv_device_cache_trim(samkv_transfer_cache(transfer));
    if (one_is_there) {
        ck_assert_int_eq(samkv_transfer_up(transfer, wants, 1, fill_floats, NULL, NULL), SAMKV_OK);
        samkv_device_cache_unpin(wants[0].entry);
    }
    ck_assert_int_eq(samkv_bands_init(&r->bands, device, LAYERS, 2 * WIDTH * sizeof(float), begin_reading, r, &err),
                     SAMKV_OK);
    ck_assert_int_eq(r->bands.count, 3);
    bool fails = how >= FAILS_LATE;
    ck_assert_int_eq(
        samkv_transfer_stream(transfer, wants, RECORDS, fill_layers, &how, &r->target->placing, &r->bands, &err),
        fails ? SAMKV_CORRUPT : SAMKV_OK);
    ck_assert_int_ge(r->begun, fails ? 0 : 1); /* a failure may come before the others have their first band */
    ck_assert_int_le(r->begun, how == FAILS_AT_ONCE ? 0 : 1);
    if (r->begun)
        pthread_join(r->thread, NULL);
    ck_assert_int_eq(r->status, r->begun && fails ? SAMKV_CORRUPT : SAMKV_OK);
    for (int i = 0; i < RECORDS; i++)
        samkv_device_cache_unpin(wants[i].entry);
    ck_assert_uint_eq(stats().entries, fails ? one_is_there : RECORDS); /* what failed is nobody's to find */
    samkv_bands_deinit(&r->bands, device);
    target_deinit(r->target);
}

START_TEST(in_bands)
{
    static struct target target;
    static struct reader r;
    r.target = &target;
    for (int round = 0; round < 10; round++) {
        stream_records(&r, (enum telling)_i, round % 2);
        if (_i >= FAILS_LATE)
            ck_assert_uint_lt(r.layers, LAYERS);
        else
            expect_cache(r.k, r.v);
    }
}
END_TEST

/* Everything is in the device's cache: all bands at once. And nothing at all: the bands come all the same. */
START_TEST(in_bands_without_anything_to_bring)
{
    static struct target target;
    static struct reader r;
    struct samkv_record_want wants[RECORDS];
    enum telling how = FAILS_AT_ONCE;
    for (size_t count = 0; count <= RECORDS; count += RECORDS) {
        r = (struct reader){.target = &target};
        target_init(&target);
        bring_records(wants, target.runs);
        ck_assert_int_eq(samkv_bands_init(&r.bands, device, LAYERS, 2 * WIDTH * sizeof(float), begin_reading, &r, NULL),
                         SAMKV_OK);
        struct samkv_record_want again[RECORDS];
        memcpy(again, wants, sizeof again);
        ck_assert_int_eq(
            samkv_transfer_stream(transfer, again, count, fill_layers, &how, &target.placing, &r.bands, NULL),
            SAMKV_OK);
        ck_assert_int_eq(r.begun, 1);
        pthread_join(r.thread, NULL);
        ck_assert_int_eq(r.status, SAMKV_OK);
        if (count)
            expect_cache(r.k, r.v);
        for (size_t i = 0; i < RECORDS; i++) {
            samkv_device_cache_unpin(wants[i].entry);
            samkv_device_cache_unpin(i < count ? again[i].entry : NULL);
        }
        samkv_bands_deinit(&r.bands, device);
        target_deinit(&target);
    }
}
END_TEST

/* ------------------------------------------------------------------ down */

/* Sizes around the steps that it goes down in, which are some megabytes. */
START_TEST(down)
{
    static const size_t sizes[] = {0, 1, SMALL, 16 * MB - 1, 16 * MB, 16 * MB + 1, 50 * MB + 13};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t bytes = sizes[i];
        uint8_t *host = malloc(bytes + 1);
        struct call *c = new_call(7, 1, bytes ? bytes : 1);
        expect_up(c);
        host[bytes] = 0xa5;
        ck_assert_int_eq(samkv_transfer_down(transfer, samkv_cached_memory(c->wants[0].entry), host, bytes, NULL),
                         SAMKV_OK);
        ck_assert(is_record(7, host, bytes));
        ck_assert_uint_eq(host[bytes], 0xa5);
        free_call(c);
        free(host);
        tear_down();
        set_up();
    }
}
END_TEST

/* The device says that this is no memory of its own; the next transfer is none the worse for it. */
START_TEST(a_failing_device)
{
    uint8_t host[SMALL], elsewhere[SMALL] = {0};
    struct samkv_error err = {0};
    ck_assert_int_eq(samkv_transfer_down(transfer, elsewhere, host, SMALL, &err), SAMKV_DEVICE);
    ck_assert_uint_gt(strlen(err.text), 10);
    struct call *c = new_call(0, 3, SMALL);
    expect_up(c);
    expect_all(c);
    ck_assert_int_eq(samkv_transfer_down(transfer, samkv_cached_memory(c->wants[2].entry), host, SMALL, &err),
                     SAMKV_OK);
    ck_assert(is_record(2, host, SMALL));
    free_call(c);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("transfer");
    TCase *tc = tcase_create("transfer");
    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, set_up, tear_down);
    tcase_add_test(tc, records_come_once);
    tcase_add_test(tc, more_than_the_ring);
    tcase_add_test(tc, a_record_larger_than_half_of_the_ring);
    tcase_add_test(tc, one_key_twice);
    tcase_add_test(tc, what_cannot_be_kept_still_comes);
    tcase_add_test(tc, a_failure_publishes_nothing);
    tcase_add_test(tc, a_failure_ends_it_early_or_late);
    tcase_add_test(tc, many_threads);
    tcase_add_test(tc, runs_are_placed);
    tcase_add_loop_test(tc, in_bands, TELLS_NOTHING, FAILS_AT_ONCE + 1);
    tcase_add_test(tc, in_bands_without_anything_to_bring);
    tcase_add_test(tc, down);
    tcase_add_test(tc, a_failing_device);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
