/*
 * Every operation of the CUDA backend against its CPU twin, at odd sizes.
 *   test_cuda_ops MODULE [bf16|f16 [TEST-LEFT-OUT...]]     MODULE: samkv_cuda.so, or "cpu" to try the test itself
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/device/pair.h"

struct rows_shape {
    int n, width, heads, head_dim;
    size_t ld, ldo;
};

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

static int32_t *integers(struct pair_operand *o)
{
    return o->contents;
}

/* ------------------------------------------------------------------ rows */

static void run_embed(struct samkv_stream *s, void *const *o, const void *shape)
{
    const struct rows_shape *r = shape;
    s->device->ops->embed(s, o[0], o[1], r->n, r->width, o[2]);
}

static void run_gather(struct samkv_stream *s, void *const *o, const void *shape)
{
    const struct rows_shape *r = shape;
    s->device->ops->gather(s, o[0], o[1], r->n, r->width, o[2]);
}

static void test_gathers(struct pair *p)
{
    static const struct rows_shape shapes[] = {{1, 1}, {3, 7}, {17, 64}, {33, 72}, {257, 576}, {5, 4096}, {70, 1001}};
    for (int i = 0; i < 2 * COUNT(shapes); i++) {
        const struct rows_shape *r = &shapes[i / 2];
        struct pair_test t = {i % 2 ? "gather" : "embed", i % 2 ? run_gather : run_embed, r, 0};
        int table = r->n / 2 + 3;
        pair_add_random(p, &t, PAIR_ACTIVATION, (size_t)table * (size_t)r->width, 1);
        int32_t *ids = integers(pair_add(&t, PAIR_I32, (size_t)r->n));
        for (int j = 0; j < r->n; j++)
            ids[j] = (int32_t)pair_random(p, (uint32_t)table);
        pair_add_output(&t, PAIR_ACTIVATION, (size_t)r->n * (size_t)r->width);
        pair_check(p, &t);
    }
}

static void run_rmsnorm(struct samkv_stream *s, void *const *o, const void *shape)
{
    const struct rows_shape *r = shape;
    s->device->ops->rmsnorm(s, o[0], r->ld, o[1], 1e-5f, r->n, r->width, o[2], r->ldo);
}

static void run_rmsnorm_in_place(struct samkv_stream *s, void *const *o, const void *shape)
{
    const struct rows_shape *r = shape;
    s->device->ops->rmsnorm(s, o[0], r->ld, o[1], 1e-5f, r->n, r->width, o[0], r->ld);
}

static void test_rmsnorm(struct pair *p)
{
    static const struct rows_shape shapes[] = {
        {1, 1, .ld = 1, .ldo = 1},
        {3, 31, .ld = 40, .ldo = 33},
        {7, 64, .ld = 64, .ldo = 72},
        {19, 576, .ld = 576, .ldo = 576},
        {2, 4096, .ld = 4104, .ldo = 4096},
        {5, 14336, .ld = 14336, .ldo = 14336},
        {2, 33000, .ld = 33000, .ldo = 33000},
    };
    for (int i = 0; i < COUNT(shapes); i++) {
        const struct rows_shape *r = &shapes[i];
        struct pair_test t = {"rmsnorm", run_rmsnorm, r, pair_rounding(p, 2)};
        pair_add_random(p, &t, PAIR_ACTIVATION, (size_t)r->n * r->ld, 2);
        pair_add_random(p, &t, PAIR_ACTIVATION, (size_t)r->width, 1);
        pair_add_output(&t, PAIR_ACTIVATION, (size_t)r->n * r->ldo);
        pair_check(p, &t);
        struct pair_test in_place = {"rmsnorm in place", run_rmsnorm_in_place, r, pair_rounding(p, 2)};
        pair_add_random(p, &in_place, PAIR_ACTIVATION, (size_t)r->n * r->ld, 2)->output = true;
        pair_add_random(p, &in_place, PAIR_ACTIVATION, (size_t)r->width, 1);
        pair_check(p, &in_place);
    }
}

static void run_head_norm(struct samkv_stream *s, void *const *o, const void *shape)
{
    const struct rows_shape *r = shape;
    s->device->ops->head_norm(s, o[0], r->ld, o[1], 1e-6f, r->n, r->heads, r->head_dim);
}

static void run_rope(struct samkv_stream *s, void *const *o, const void *shape)
{
    const struct rows_shape *r = shape;
    s->device->ops->rope(s, o[0], r->ld, o[1], r->n, r->heads, r->head_dim);
}

static void run_rope_f32(struct samkv_stream *s, void *const *o, const void *shape)
{
    const struct rows_shape *r = shape;
    s->device->ops->rope_f32(s, o[0], o[1], r->n, r->heads, r->head_dim);
}

static void test_heads(struct pair *p)
{
    static const struct rows_shape shapes[] = {
        {1, .heads = 1, .head_dim = 2, .ld = 2},     {5, .heads = 3, .head_dim = 20, .ld = 67},
        {9, .heads = 5, .head_dim = 64, .ld = 328},  {13, .heads = 7, .head_dim = 80, .ld = 560},
        {17, .heads = 9, .head_dim = 96, .ld = 864}, {33, .heads = 32, .head_dim = 128, .ld = 6144},
        {3, .heads = 2, .head_dim = 256, .ld = 512}, {2, .heads = 1, .head_dim = 512, .ld = 512},
    };
    for (int i = 0; i < COUNT(shapes); i++) {
        const struct rows_shape *r = &shapes[i];
        size_t packed = (size_t)r->n * (size_t)(r->heads * r->head_dim);
        struct pair_test norm = {"head_norm", run_head_norm, r, pair_rounding(p, 2)};
        pair_add_random(p, &norm, PAIR_ACTIVATION, (size_t)r->n * r->ld, 2)->output = true;
        pair_add_random(p, &norm, PAIR_ACTIVATION, (size_t)r->head_dim, 1);
        pair_check(p, &norm);
        struct pair_test rope = {"rope", run_rope, r, pair_rounding(p, 2)};
        pair_add_random(p, &rope, PAIR_ACTIVATION, (size_t)r->n * r->ld, 1)->output = true;
        pair_add_table(p, &rope, r->n, r->head_dim / 2);
        pair_check(p, &rope);
        struct pair_test index = {"rope_f32", run_rope_f32, r, 1e-5};
        pair_add_random(p, &index, PAIR_F32, packed, 1)->output = true;
        pair_add_table(p, &index, r->n, r->head_dim / 2);
        pair_check(p, &index);
    }
}

static void run_rope_table(struct samkv_stream *s, void *const *o, const void *shape)
{
    const struct rows_shape *r = shape;
    s->device->ops->rope_table(s, o[0], r->width, o[1], r->n, 1.25f, o[2]);
}

static void test_rope_table(struct pair *p)
{
    static const struct rows_shape shapes[] = {{1, 1}, {7, 10}, {129, 64}};
    for (int i = 0; i < COUNT(shapes); i++) {
        const struct rows_shape *r = &shapes[i];
        struct pair_test t = {"rope_table", run_rope_table, r, 1e-6};
        double *inv_freq = pair_add(&t, PAIR_F64, (size_t)r->width)->contents;
        for (int j = 0; j < r->width; j++)
            inv_freq[j] = pow(500000.0, -(double)j / r->width);
        int32_t *pos = integers(pair_add(&t, PAIR_I32, (size_t)r->n));
        for (int j = 0; j < r->n; j++)
            pos[j] = (int32_t)pair_random(p, 200000) - 50000;
        pair_add_output(&t, PAIR_F32, (size_t)r->n * 2 * (size_t)r->width);
        pair_check(p, &t);
    }
}

static void run_swiglu(struct samkv_stream *s, void *const *o, const void *shape)
{
    const struct rows_shape *r = shape;
    s->device->ops->swiglu(s, o[0], r->n, r->width, o[1]);
}

static void test_swiglu(struct pair *p)
{
    static const struct rows_shape shapes[] = {{1, 1}, {3, 37}, {65, 128}, {7, 1536}, {2, 14336}};
    for (int i = 0; i < COUNT(shapes); i++) {
        const struct rows_shape *r = &shapes[i];
        struct pair_test t = {"swiglu", run_swiglu, r, pair_rounding(p, 2)};
        float *gate_up = pair_add_random(p, &t, PAIR_ACTIVATION, (size_t)r->n * 2 * (size_t)r->width, 4)->contents;
        gate_up[0] = -200; /* the exponential overflows here */
        pair_add_output(&t, PAIR_ACTIVATION, (size_t)r->n * (size_t)r->width);
        pair_check(p, &t);
    }
}

/* ------------------------------------------------------------------ products */

static void run_matmul(struct samkv_stream *s, void *const *o, const void *shape)
{
    struct samkv_matmul m = *(const struct samkv_matmul *)shape;
    m.x = o[0];
    m.w = o[1];
    m.y = o[2];
    m.bias = m.bias ? o[3] : NULL;
    s->device->ops->matmul(s, &m);
}

static void test_matmul(struct pair *p)
{
    const void *biased = p;
    const struct samkv_matmul shapes[] = {
        {.n = 1, .in = 64, .out = 64, .ldx = 64, .ldy = 64},
        {.n = 1, .in = 576, .out = 1001, .ldx = 576, .ldy = 1001, .bias = biased},
        {.n = 3, .in = 17, .out = 5, .ldx = 17, .ldy = 5},
        {.n = 7, .in = 72, .out = 40, .ldx = 80, .ldy = 48, .accumulate = true},
        {.n = 130, .in = 576, .out = 192, .ldx = 576, .ldy = 960, .bias = biased},
        {.n = 257, .in = 1536, .out = 576, .ldx = 1536, .ldy = 576, .accumulate = true},
        {.n = 1025, .in = 640, .out = 136, .ldx = 640, .ldy = 136, .accumulate = true, .bias = biased},
        {.n = 37, .in = 4096, .out = 6144, .ldx = 4096, .ldy = 6144},
    };
    for (int i = 0; i < COUNT(shapes); i++) {
        const struct samkv_matmul *m = &shapes[i];
        struct pair_test t = {"matmul", run_matmul, m, pair_rounding(p, m->accumulate ? 3 : 2)};
        pair_add_random(p, &t, PAIR_ACTIVATION, (size_t)m->n * m->ldx, 1);
        pair_add_random(p, &t, PAIR_ACTIVATION, (size_t)m->in * (size_t)m->out, 1 / sqrtf((float)m->in));
        if (m->accumulate)
            pair_add_random(p, &t, PAIR_ACTIVATION, (size_t)m->n * m->ldy, 1)->output = true;
        else
            pair_add_output(&t, PAIR_ACTIVATION, (size_t)m->n * m->ldy);
        if (m->bias)
            pair_add_random(p, &t, PAIR_ACTIVATION, (size_t)m->out, 1);
        pair_check(p, &t);
    }
}

/* ------------------------------------------------------------------ conversions and the index */

struct convert_shape {
    enum samkv_dtype from, to;
    size_t count, skip; /* skip: elements before the first, to try alignments */
};

static void run_convert(struct samkv_stream *s, void *const *o, const void *shape)
{
    const struct convert_shape *c = shape;
    s->device->ops->convert(s, (uint8_t *)o[0] + c->skip * samkv_dtype_bytes(c->from), c->from,
                            (uint8_t *)o[1] + c->skip * samkv_dtype_bytes(c->to), c->to, c->count);
}

static void test_convert(struct pair *p)
{
    static const enum pair_kind kinds[] = {PAIR_F32, PAIR_F16, PAIR_BF16};
    static const enum samkv_dtype types[] = {SAMKV_F32, SAMKV_F16, SAMKV_BF16};
    static const size_t counts[] = {1, 8, 1003, 70001};
    for (int i = 0; i < 9 * COUNT(counts); i++) {
        int from = i % 3, to = i / 3 % 3;
        const struct convert_shape c = {types[from], types[to], counts[i / 9], i % 2 ? 3 : 0};
        struct pair_test t = {"convert", run_convert, &c, 0}; /* the same rounding: the same values */
        pair_add_random(p, &t, kinds[from], c.count + c.skip, 10);
        pair_add_output(&t, kinds[to], c.count + c.skip);
        pair_check(p, &t);
    }
}

static void run_segment_mean(struct samkv_stream *s, void *const *o, const void *shape)
{
    const struct rows_shape *r = shape;
    s->device->ops->segment_mean(s, o[0], r->ld, o[1], r->n, r->width, o[2]);
}

static void run_block_scores(struct samkv_stream *s, void *const *o, const void *shape)
{
    const struct rows_shape *r = shape;
    s->device->ops->block_scores(s, o[0], o[1], r->n, r->width, o[2]);
}

static void test_index(struct pair *p)
{
    static const struct rows_shape shapes[] = {
        {1, 3, .ld = 3}, {5, 30, .ld = 37}, {9, 192, .ld = 192}, {65, 1024, .ld = 6144}, {1, 4096, .ld = 4096}};
    for (int i = 0; i < COUNT(shapes); i++) {
        const struct rows_shape *r = &shapes[i];
        struct pair_test mean = {"segment_mean", run_segment_mean, r, 1e-5};
        struct pair_operand *x = pair_add(&mean, PAIR_ACTIVATION, 0);
        int32_t *offsets = integers(pair_add(&mean, PAIR_I32, (size_t)r->n + 1));
        for (int j = 0; j < r->n; j++)
            offsets[j + 1] = offsets[j] + (j % 4 == 3 ? 0 : (int32_t)pair_random(p, 30) + 1);
        free(x->contents);
        struct pair_test rows = {0};
        pair_add_random(p, &rows, PAIR_ACTIVATION, (size_t)offsets[r->n] * r->ld, 1);
        mean.operand[0] = rows.operand[0];
        pair_add_output(&mean, PAIR_F32, (size_t)r->n * (size_t)r->width);
        pair_check(p, &mean);
        struct pair_test scores = {"block_scores", run_block_scores, r, 2e-5};
        pair_add_random(p, &scores, PAIR_F32, (size_t)r->n * (size_t)r->width, 1);
        pair_add_random(p, &scores, PAIR_F32, (size_t)r->width, 1);
        pair_add_output(&scores, PAIR_F32, (size_t)r->n);
        pair_check(p, &scores);
    }
}

/* ------------------------------------------------------------------ scores */

#define MOST_RECORDS 128

/* Blocks of document i; some have none. */
static int blocks_of(int i)
{
    return i % 4 == 2 ? 0 : 1 + i * 5 % 9;
}

/* Elements of one record of document i: block means, then the local query; `odd` more, so that records lie oddly. */
static size_t record_elements(const struct samkv_score *a, int i, bool odd)
{
    return (size_t)(blocks_of(i) * a->kv_heads + a->heads) * (size_t)a->head_dim + odd;
}

struct score_shape {
    struct samkv_score a;
    bool odd;
};

static void run_score(struct samkv_stream *s, void *const *o, const void *shape)
{
    const struct score_shape *ss = shape;
    struct samkv_score a = ss->a;
    const float *index[MOST_RECORDS], *record = o[0];
    for (int r = 0; r < a.documents * a.layers; r++) {
        index[r] = record;
        record += record_elements(&a, r / a.layers, ss->odd);
    }
    void *there = pair_upload(s, index, (size_t)(a.documents * a.layers) * sizeof *index);
    a.index = there;
    a.q_query = o[1];
    a.first_block = o[2];
    a.rope = o[3];
    a.work = o[4];
    a.scores = o[5];
    s->device->ops->score(s, &a);
    s->device->ops->release(s->device, there);
}

static void check_score(struct pair *p, const struct samkv_score *shape, bool odd)
{
    struct score_shape ss = {*shape, odd};
    struct samkv_score *a = &ss.a;
    struct pair_test t = {"score", run_score, &ss, 2e-5};
    size_t stored = 0, q_width = (size_t)(a->heads * a->head_dim), width = (size_t)(a->kv_heads * a->head_dim);
    int32_t first_block[MOST_RECORDS] = {0};
    for (int i = 0; i < a->documents; i++) {
        first_block[i + 1] = first_block[i] + blocks_of(i);
        stored += (size_t)a->layers * record_elements(a, i, odd);
    }
    a->blocks = first_block[a->documents];
    float *records = pair_add_random(p, &t, PAIR_F32, stored, 1)->contents;
    if (odd) /* a local query that points nowhere */
        memset(records + (size_t)blocks_of(0) * width, 0, q_width * sizeof *records);
    pair_add_random(p, &t, PAIR_F32, (size_t)a->layers * q_width, 1);
    memcpy(pair_add(&t, PAIR_I32, (size_t)a->documents + 1)->contents, first_block,
           ((size_t)a->documents + 1) * sizeof *first_block);
    pair_add_table(p, &t, a->documents, a->head_dim / 2);
    pair_add_output(&t, PAIR_F32, (size_t)(a->documents * a->layers) * ((size_t)a->heads + width));
    pair_add_output(&t, PAIR_F32, (size_t)a->layers * (size_t)a->blocks);
    pair_check(p, &t);
}

static void test_score(struct pair *p)
{
    static const struct samkv_score shapes[] = {
        {.documents = 1, .layers = 1, .heads = 1, .kv_heads = 1, .head_dim = 2},
        {.documents = 1, .layers = 3, .heads = 6, .kv_heads = 2, .head_dim = 64},
        {.documents = 2, .layers = 2, .heads = 9, .kv_heads = 3, .head_dim = 22},
        {.documents = 5, .layers = 2, .heads = 14, .kv_heads = 2, .head_dim = 80},
        {.documents = 20, .layers = 5, .heads = 32, .kv_heads = 8, .head_dim = 128},
        {.documents = 101, .layers = 1, .heads = 5, .kv_heads = 1, .head_dim = 256},
        {.documents = 3, .layers = 2, .heads = 2, .kv_heads = 1, .head_dim = 1024},
    };
    for (int i = 0; i < 2 * COUNT(shapes); i++)
        check_score(p, &shapes[i / 2], i % 2);
}

/* ------------------------------------------------------------------ errors */

/* A failure sticks, later operations do nothing, sync reports it once and the stream goes on. */
static void test_sticky_failure(struct pair *p)
{
    if (p->gpu->dtype == SAMKV_F32)
        return;
    const struct samkv_ops *ops = p->gpu->ops;
    struct samkv_error err = {0};
    void *memory = NULL;
    const struct samkv_attention too_large = {
        .n = 1, .n_keys = 1, .heads = 1, .kv_heads = 1, .head_dim = 1024, .scale = 1, .ldq = 1024, .ldo = 1024};
    int failures = 0;
    failures += ops->alloc(p->gpu, 64, &memory) != SAMKV_OK;
    ops->zero(p->gpu_stream, memory, 64);
    ops->attention(p->gpu_stream, &too_large);
    ops->zero(p->gpu_stream, NULL, 64); /* would fail otherwise: must not hide the first failure */
    failures += ops->sync(p->gpu_stream, &err) != SAMKV_UNSUPPORTED || !strstr(err.text, "attention");
    failures += ops->sync(p->gpu_stream, &err) != SAMKV_OK;
    ops->release(p->gpu, memory);
    failures += ops->alloc(p->gpu, (size_t)1 << 46, &memory) != SAMKV_NO_MEMORY || memory;
    failures += ops->sync(p->gpu_stream, &err) != SAMKV_OK;
    p->checks++;
    p->failures += failures > 0;
    if (failures)
        printf("FAIL sticky failure: %s\n", err.text);
}

/* attention and the cache's rows are in a source of their own */
void test_cache_rows(struct pair *);
void test_runs(struct pair *);
void test_attention(struct pair *);

/* and so is what has to do with memory, order and other processes */
void test_events(struct pair *);
void test_host_memory(struct pair *);
void test_shared_memory(struct pair *);
void test_lost_device(struct pair *);
int child_main(int argc, char **argv);

static const struct {
    const char *name;
    void (*run)(struct pair *);
} tests[] = {
    {"gathers", test_gathers},       {"rmsnorm", test_rmsnorm},  {"heads", test_heads},
    {"rope_table", test_rope_table}, {"swiglu", test_swiglu},    {"matmul", test_matmul},
    {"convert", test_convert},       {"index", test_index},      {"score", test_score},
    {"cache_rows", test_cache_rows}, {"runs", test_runs},        {"attention", test_attention},
    {"events", test_events},         {"host", test_host_memory}, {"failure", test_sticky_failure},
    {"shared", test_shared_memory},  {"lost", test_lost_device},
};

static bool left_out(const char *name, char **without)
{
    while (*without && strcmp(*without, name) != 0)
        without++;
    return *without != NULL;
}

/* without: names, NULL at the end */
static int run_all(const char *module, const char *dtype, char **without)
{
    struct pair p;
    if (!pair_open(&p, module, dtype))
        return 2;
    for (int i = 0; i < COUNT(tests); i++) {
        if (!left_out(tests[i].name, without))
            tests[i].run(&p);
        fflush(stdout);
    }
    printf("%s %s against %s: %d checks, %d failures\n", p.gpu->name, dtype, p.cpu->name, p.checks, p.failures);
    int failures = p.failures;
    pair_close(&p);
    return failures ? 1 : 0;
}

int main(int argc, char **argv)
{
    static const char *const both[] = {"bf16", "f16"};
    int worst = 0;
    if (argc > 2 && !strcmp(argv[1], "child"))
        return child_main(argc - 2, argv + 2);
    if (argc < 2) {
        fprintf(stderr, "usage: test_cuda_ops MODULE [bf16|f16 [TEST-LEFT-OUT...]]\n");
        return 2;
    }
    for (int i = 0; i < (argc > 2 ? 1 : 2); i++) {
        int result = run_all(argv[1], argc > 2 ? argv[2] : both[i], argv + (argc > 3 ? 3 : argc));
        worst = result > worst ? result : worst;
    }
    return worst;
}
