/* Attention and the cache's rows against the CPU twin; run by test_cuda_ops. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/device/pair.h"

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

void test_cache_rows(struct pair *);
void test_runs(struct pair *);
void test_attention(struct pair *);

/* ------------------------------------------------------------------ cache rows */

struct write_shape {
    struct samkv_kv_write w;
    bool listed; /* by rows[] */
};

static void run_kv_write(struct samkv_stream *s, void *const *o, const void *shape)
{
    const struct write_shape *ws = shape;
    struct samkv_kv_write w = ws->w;
    w.k = o[0];
    w.v = o[1];
    w.rope = o[2];
    w.rows = ws->listed ? o[3] : NULL;
    w.k_cache = o[4];
    w.v_cache = o[5];
    s->device->ops->kv_write(s, &w);
}

static void check_kv_write(struct pair *p, const struct write_shape *ws)
{
    const struct samkv_kv_write *w = &ws->w;
    struct pair_test t = {"kv_write", run_kv_write, ws, pair_rounding(p, 3)};
    size_t width = (size_t)w->kv_heads * (size_t)w->head_dim, cached = (size_t)(w->n * 2 + w->first_row) * width;
    pair_add_random(p, &t, PAIR_ACTIVATION, (size_t)w->n * w->ld, 1);
    pair_add_random(p, &t, PAIR_ACTIVATION, (size_t)w->n * w->ld, 1);
    pair_add_table(p, &t, w->n, w->head_dim / 2);
    int32_t *rows = pair_add(&t, PAIR_I32, (size_t)w->n)->contents;
    for (int i = 0; i < w->n; i++)
        rows[i] = 2 * i + (int32_t)pair_random(p, 2);
    float *k = pair_add_random(p, &t, PAIR_ACTIVATION, cached, 1)->contents;
    float *v = pair_add_random(p, &t, PAIR_ACTIVATION, cached, 1)->contents;
    t.operand[4].output = t.operand[5].output = true;
    for (int i = w->update == SAMKV_UPDATE_OVERWRITE ? 0 : w->fresh_from; i < w->n; i++) {
        size_t row = (size_t)(ws->listed ? rows[i] : w->first_row + i); /* what is fresh was never written before */
        for (size_t j = row * width; j < (row + 1) * width; j++)
            k[j] = v[j] = NAN;
    }
    if (w->update == SAMKV_UPDATE_COSINE && w->fresh_from > 0) { /* a zero row has no direction: θ = 0 */
        size_t row = (size_t)(ws->listed ? rows[0] : w->first_row);
        memset(k + row * width, 0, width * sizeof *k);
    }
    pair_check(p, &t);
}

static void run_place(struct samkv_stream *s, void *const *o, const void *shape)
{
    struct samkv_place w = *(const struct samkv_place *)shape;
    w.k_src = o[0];
    w.v_src = o[1];
    w.rope = o[2];
    w.k_cache = o[3];
    w.v_cache = o[4];
    s->device->ops->place(s, &w);
}

static void check_place(struct pair *p, const struct samkv_place *w)
{
    enum pair_kind kind = w->src_dtype == SAMKV_F32 ? PAIR_F32 : w->src_dtype == SAMKV_F16 ? PAIR_F16 : PAIR_BF16;
    struct pair_test t = {"place", run_place, w, pair_rounding(p, 2)};
    size_t width = (size_t)w->kv_heads * (size_t)w->head_dim;
    pair_add_random(p, &t, kind, (size_t)w->n * width, 1);
    pair_add_random(p, &t, kind, (size_t)w->n * width, 1);
    pair_add_table(p, &t, w->n, w->head_dim / 2);
    pair_add_output(&t, PAIR_ACTIVATION, (size_t)(w->n + w->first_row + 1) * width);
    pair_add_output(&t, PAIR_ACTIVATION, (size_t)(w->n + w->first_row + 1) * width);
    pair_check(p, &t);
}

static void run_place_in_place(struct samkv_stream *s, void *const *o, const void *shape)
{
    struct samkv_place w = *(const struct samkv_place *)shape;
    size_t skip = (size_t)w.first_row * (size_t)w.kv_heads * (size_t)w.head_dim * samkv_dtype_bytes(s->device->dtype);
    w.src_dtype = s->device->dtype;
    w.k_src = (uint8_t *)o[1] + skip;
    w.v_src = (uint8_t *)o[2] + skip;
    w.rope = o[0];
    w.k_cache = o[1];
    w.v_cache = o[2];
    s->device->ops->place(s, &w);
}

static void check_place_in_place(struct pair *p, const struct samkv_place *w)
{
    struct pair_test t = {"place in place", run_place_in_place, w, pair_rounding(p, 2)};
    size_t count = (size_t)(w->n + w->first_row + 1) * (size_t)w->kv_heads * (size_t)w->head_dim;
    pair_add_table(p, &t, w->n, w->head_dim / 2);
    pair_add_random(p, &t, PAIR_ACTIVATION, count, 1)->output = true;
    pair_add_random(p, &t, PAIR_ACTIVATION, count, 1)->output = true;
    pair_check(p, &t);
}

/* ------------------------------------------------------------------ runs */

#define RUNS     5
#define RUN_ROWS 230

struct runs_shape {
    struct samkv_place_runs p;
    size_t layer; /* elements from one layer of the cache to the next */
};

/* Out of order, with gaps; one has no tokens, one leaves a layer alone, one all of them. */
static const struct samkv_run runs[RUNS] = {{.tokens = 64, .first_row = 70},
                                            {.tokens = 1, .first_row = 0, .first_layer = 2},
                                            {.tokens = 17, .first_row = 134, .first_layer = 1},
                                            {.tokens = 0, .first_row = 5},
                                            {.tokens = 33, .first_row = 180, .first_layer = 9}};

/* Elements of run r as stored, rounded up so that the next one is aligned in every type. */
static size_t run_elements(const struct samkv_place_runs *p, int r)
{
    size_t width = (size_t)p->kv_heads * (size_t)p->head_dim;
    return ((size_t)p->layers * 2 * (size_t)runs[r].tokens * width + 15) / 16 * 16;
}

static void run_place_runs(struct samkv_stream *s, void *const *o, const void *shape)
{
    const struct runs_shape *rs = shape;
    struct samkv_place_runs p = rs->p;
    struct samkv_run placed[RUNS];
    const uint8_t *src = o[0];
    for (int r = 0; r < RUNS; r++) {
        placed[r] = runs[r];
        placed[r].src = src;
        src += run_elements(&p, r) * samkv_dtype_bytes(p.src_dtype);
    }
    void *there = pair_upload(s, placed, sizeof placed);
    p.runs = there;
    p.count = RUNS;
    p.max_tokens = 64;
    p.rope = o[1];
    p.k_cache = o[2];
    p.v_cache = o[3];
    p.layer_stride_bytes = rs->layer * samkv_dtype_bytes(s->device->dtype);
    s->device->ops->place_runs(s, &p);
    s->device->ops->release(s->device, there);
}

/* skew: layers begin at odd places, so that no access can be of 16 bytes */
static void check_place_runs(struct pair *p, const struct samkv_place_runs *shape, bool skew)
{
    enum pair_kind kind = shape->src_dtype == SAMKV_F32   ? PAIR_F32
                          : shape->src_dtype == SAMKV_F16 ? PAIR_F16
                                                          : PAIR_BF16;
    size_t layer = RUN_ROWS * (size_t)shape->kv_heads * (size_t)shape->head_dim + (skew ? 5 : 0), stored = 0;
    const struct runs_shape rs = {*shape, layer};
    struct pair_test t = {"place_runs", run_place_runs, &rs, pair_rounding(p, 2)};
    for (int r = 0; r < RUNS; r++)
        stored += run_elements(shape, r);
    pair_add_random(p, &t, kind, stored, 1);
    pair_add_table(p, &t, RUN_ROWS, shape->head_dim / 2);
    pair_add_output(&t, PAIR_ACTIVATION, (size_t)shape->layers * layer);
    pair_add_output(&t, PAIR_ACTIVATION, (size_t)shape->layers * layer);
    pair_check(p, &t);
}

void test_runs(struct pair *p)
{
    static const struct {
        int layers, kv_heads, head_dim;
    } shapes[] = {{1, 1, 2}, {3, 3, 20}, {4, 2, 64}, {2, 3, 80}, {5, 8, 128}, {1, 1, 512}};
    for (int i = 0; i < COUNT(shapes); i++)
        for (int j = 0; j < 6; j++) {
            const struct samkv_place_runs shape = {.src_dtype = (enum samkv_dtype)(j / 2),
                                                   .layers = shapes[i].layers,
                                                   .kv_heads = shapes[i].kv_heads,
                                                   .head_dim = shapes[i].head_dim};
            check_place_runs(p, &shape, j % 2);
        }
}

void test_cache_rows(struct pair *p)
{
    static const struct {
        int n, kv_heads, head_dim;
        size_t ld;
    } shapes[] = {{1, 1, 2, 2},     {5, 3, 20, 67},     {7, 2, 64, 136},  {9, 3, 80, 240},
                  {33, 5, 96, 480}, {67, 8, 128, 6144}, {3, 2, 256, 512}, {2, 1, 512, 512}};
    for (int i = 0; i < COUNT(shapes); i++) {
        for (int j = 0; j < 8; j++) {
            const struct write_shape ws = {
                .w = {.ld = shapes[i].ld,
                      .n = shapes[i].n,
                      .kv_heads = shapes[i].kv_heads,
                      .head_dim = shapes[i].head_dim,
                      .first_row = j % 2 ? 0 : 3,
                      .update = (enum samkv_update)(j / 2),
                      .theta = 0.3f,
                      .fresh_from = j / 2 ? shapes[i].n * 2 / 3 : 0},
                .listed = j % 2,
            };
            check_kv_write(p, &ws);
        }
        for (int j = 0; j < 3; j++) {
            const struct samkv_place w = {.src_dtype = (enum samkv_dtype)j,
                                          .first_row = j * 3,
                                          .n = shapes[i].n,
                                          .kv_heads = shapes[i].kv_heads,
                                          .head_dim = shapes[i].head_dim};
            check_place(p, &w);
            check_place_in_place(p, &w);
        }
    }
}

/* ------------------------------------------------------------------ attention */

enum sight {
    CAUSAL,    /* row i sees the last keys up to its own */
    SPARSE,    /* limits jump: keys are not contiguous in position */
    DOCUMENTS, /* packed documents with holes between their keys, some shorter than a row's tile */
};

struct attention_shape {
    int n, n_keys, heads, kv_heads, head_dim, prefix;
    enum sight sight;
    bool odd; /* rows at odd distances: no 16-byte accesses */
};

static void run_attention(struct samkv_stream *s, void *const *o, const void *shape)
{
    const struct attention_shape *a = shape;
    size_t width = (size_t)a->heads * (size_t)a->head_dim;
    const struct samkv_attention call = {
        .q = o[0],
        .ldq = width + (a->odd ? 3 : 16),
        .k = o[1],
        .v = o[2],
        .out = o[5],
        .ldo = width + (a->odd ? 1 : 8),
        .n = a->n,
        .n_keys = a->n_keys,
        .heads = a->heads,
        .kv_heads = a->kv_heads,
        .head_dim = a->head_dim,
        .scale = 1 / sqrtf((float)a->head_dim),
        .prefix = a->prefix,
        .first = a->sight == DOCUMENTS ? o[3] : NULL,
        .limit = o[4],
    };
    s->device->ops->attention(s, &call);
}

/* Fills first and limit; marks in `seen` the keys that some row sees. */
static void fill_sight(struct pair *p, const struct attention_shape *a, int32_t *first, int32_t *limit, bool *seen)
{
    int behind = a->n_keys - a->prefix, at = 0;
    for (int i = 0; i < a->n; i++) {
        first[i] = a->prefix;
        if (a->sight == CAUSAL)
            limit[i] = a->n_keys - a->n + i + 1 > 0 ? a->n_keys - a->n + i + 1 : 1;
        else if (a->sight == SPARSE && behind > 0)
            limit[i] = a->prefix + 1 + (int32_t)((int64_t)(behind - 1) * i / a->n);
        else
            limit[i] = 1 + i % a->n_keys; /* inside the prefix */
    }
    for (int i = 0, document = 0; i < a->n && a->sight == DOCUMENTS; document++) {
        int rows = 1 + (int)pair_random(p, (uint32_t)(a->n / 3 + 1));
        rows = rows < a->n - i ? rows : a->n - i;
        for (int j = 0; j < rows; j++, i++) {
            first[i] = a->prefix + at;
            limit[i] = first[i] + j + 1;
        }
        int hole = document % 2 ? 70 : 1; /* now and then more than a block of keys */
        at += rows + (at + rows + hole + a->n - i <= behind ? hole : 0);
    }
    for (int i = 0; i < a->n; i++)
        for (int key = first[i]; key < limit[i] && key < a->n_keys; key++)
            seen[key] = true;
    for (int key = 0; key < a->prefix; key++)
        seen[key] = true;
}

static void check_attention(struct pair *p, const struct attention_shape *a)
{
    char name[128];
    snprintf(name, sizeof name, "attention n=%d keys=%d heads=%d/%d dim=%d prefix=%d sight=%d odd=%d", a->n, a->n_keys,
             a->heads, a->kv_heads, a->head_dim, a->prefix, (int)a->sight, a->odd);
    struct pair_test t = {name, run_attention, a, pair_rounding(p, 5)};
    size_t width = (size_t)a->heads * (size_t)a->head_dim, kv = (size_t)a->kv_heads * (size_t)a->head_dim;
    pair_add_random(p, &t, PAIR_ACTIVATION, (size_t)a->n * (width + (a->odd ? 3 : 16)), 1.5f);
    pair_add_random(p, &t, PAIR_ACTIVATION, (size_t)a->n_keys * kv, 1);
    pair_add_random(p, &t, PAIR_ACTIVATION, (size_t)a->n_keys * kv, 1);
    int32_t *first = pair_add(&t, PAIR_I32, (size_t)a->n)->contents;
    int32_t *limit = pair_add(&t, PAIR_I32, (size_t)a->n)->contents;
    pair_add_output(&t, PAIR_ACTIVATION, (size_t)a->n * (width + (a->odd ? 1 : 8)));
    bool *seen = calloc((size_t)a->n_keys, sizeof *seen);
    fill_sight(p, a, first, limit, seen);
    /* What no row sees may be anything. The twin gets numbers there, so that this is a statement about the GPU. */
    for (int i = 1; i <= 2 && p->gpu->dtype != SAMKV_F32; i++) {
        size_t bytes = (size_t)a->n_keys * kv * sizeof(float);
        float *other = malloc(bytes);
        memcpy(other, t.operand[i].contents, bytes);
        for (size_t j = 0; j < (size_t)a->n_keys * kv; j++)
            if (!seen[j / kv])
                other[j] = NAN;
        t.operand[i].gpu_contents = other;
    }
    free(seen);
    pair_check(p, &t);
}

void test_attention(struct pair *p)
{
    static const int dims[] = {64, 80, 96, 128, 256, 40, 18, 512};
    static const struct attention_shape shapes[] = {
        {1, 1, 1, 1, .sight = CAUSAL},
        {77, 77, 4, 1, .sight = CAUSAL},             /* one tile and a bit */
        {130, 203, 3, 3, .sight = CAUSAL},           /* no groups */
        {61, 150, 7, 1, .sight = CAUSAL},            /* tiles that cut through a token's group */
        {1, 1500, 8, 2, .sight = CAUSAL},            /* decoding: splits of the flat tile */
        {4, 333, 9, 3, .sight = CAUSAL},             /* the same with several rows */
        {33, 1601, 8, 2, .sight = SPARSE},           /* splits of the tall tile */
        {50, 400, 4, 2, 0, 37, .sight = SPARSE},     /* with a prefix */
        {50, 20, 4, 2, 0, 20, .sight = SPARSE},      /* limits below the prefix */
        {150, 1300, 4, 1, .sight = DOCUMENTS},       /* packed documents */
        {90, 900, 6, 2, 0, 66, .sight = DOCUMENTS},  /* behind a preamble */
        {5, 40, 4, 2, .sight = CAUSAL, .odd = true}, /* unaligned: the plain kernel */
        {20, 500, 4, 2, 0, 7, DOCUMENTS, .odd = true},
    };
    for (int i = 0; i < COUNT(dims); i++) {
        for (int j = 0; j < COUNT(shapes); j++) {
            struct attention_shape a = shapes[j];
            a.head_dim = dims[i];
            check_attention(p, &a);
        }
    }
}
