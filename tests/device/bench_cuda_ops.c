/*
 * Time of every operation at the shapes of Llama-3.1-8B, beside its floor: bytes over the copy bandwidth and
 * operations over the rate of a large matrix product, both measured in the same run.
 *   bench_cuda_ops MODULE [bf16|f16 [WORD]]      one JSON object a line; only operations whose name has WORD
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/device/pair.h"

enum { HIDDEN = 4096, HEADS = 32, KV_HEADS = 8, HEAD_DIM = 128, FFN = 14336, KV = KV_HEADS * HEAD_DIM };
enum { QKV = HIDDEN + 2 * KV, BLOCK = 16 };

#define POOL_BYTES  ((size_t)2 << 30)
#define FRESH_BYTES ((size_t)200 << 20) /* rotating through so much keeps the L2 cache from answering */

struct bench {
    struct samkv_device *device;
    struct samkv_stream *stream;
    const struct samkv_ops *ops;
    uint8_t *in, *out, *weights; /* POOL_BYTES each, random activations */
    float *floats, *table;       /* random f32; a RoPE table */
    int32_t *ids, *limits, *offsets;
    double *inv_freq;
    double bytes_a_second, operations_a_second;
    const char *only;
};

/* One operation at one size. `at` is the byte offset of this turn's operands in the pools. */
struct job {
    const char *name;
    int n, keys;
    double bytes, operations; /* what it must move and compute */
    size_t stride;            /* bytes of a turn's largest operand */
    void (*run)(struct bench *, const struct job *, size_t at);
    int in_dim, out_dim;
    bool accumulate;
    enum samkv_update update;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void wait(struct bench *b)
{
    struct samkv_error err;
    if (b->ops->sync(b->stream, &err)) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
}

static double time_turns(struct bench *b, const struct job *j, int turns)
{
    size_t sets = j->stride ? POOL_BYTES / j->stride : 1, wanted = j->stride ? FRESH_BYTES / j->stride + 1 : 1;
    sets = sets < wanted ? sets : wanted;
    wait(b);
    double start = now();
    for (int i = 0; i < turns; i++)
        j->run(b, j, sets ? (size_t)i % sets * j->stride : 0);
    wait(b);
    return (now() - start) / turns;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Seconds of one turn: the median of seven measurements of 20 ms or more. */
static double measure(struct bench *b, const struct job *j)
{
    double times[7];
    (void)time_turns(b, j, 3);
    double once = time_turns(b, j, 3);
    int turns = (int)(0.02 / once) + 1;
    turns = turns < 3000 ? turns : 3000;
    for (int i = 0; i < 7; i++)
        times[i] = time_turns(b, j, turns);
    qsort(times, 7, sizeof *times, ascending);
    return times[3];
}

static void report(struct bench *b, const struct job *j)
{
    if (!strstr(j->name, b->only))
        return;
    double seconds = measure(b, j);
    double memory = j->bytes / b->bytes_a_second, compute = j->operations / b->operations_a_second;
    double floor = memory > compute ? memory : compute;
    printf("{\"op\": \"%s\", \"n\": %d, \"keys\": %d, \"us\": %.2f, \"floor_us\": %.2f, \"bound\": \"%s\", "
           "\"share\": %.3f, \"gb_s\": %.0f, \"tflop_s\": %.1f}\n",
           j->name, j->n, j->keys, seconds * 1e6, floor * 1e6, memory > compute ? "memory" : "compute", floor / seconds,
           j->bytes / seconds * 1e-9, j->operations / seconds * 1e-12);
    fflush(stdout);
}

/* ------------------------------------------------------------------ the operations */

static void run_copy(struct bench *b, const struct job *j, size_t at)
{
    (void)at;
    b->ops->copy(b->stream, b->out, b->in, (size_t)j->n);
}

static void run_matmul(struct bench *b, const struct job *j, size_t at)
{
    const struct samkv_matmul m = {.x = b->in + at,
                                   .ldx = (size_t)j->in_dim,
                                   .w = b->weights,
                                   .y = b->out + at,
                                   .ldy = (size_t)j->out_dim,
                                   .n = j->n,
                                   .in = j->in_dim,
                                   .out = j->out_dim,
                                   .accumulate = j->accumulate};
    b->ops->matmul(b->stream, &m);
}

static void run_embed(struct bench *b, const struct job *j, size_t at)
{
    b->ops->embed(b->stream, b->weights, b->ids, j->n, HIDDEN, b->out + at);
}

static void run_gather(struct bench *b, const struct job *j, size_t at)
{
    b->ops->gather(b->stream, b->in + at, b->ids, j->n, HIDDEN, b->out + at);
}

static void run_rmsnorm(struct bench *b, const struct job *j, size_t at)
{
    b->ops->rmsnorm(b->stream, b->in + at, HIDDEN, b->weights, 1e-5f, j->n, HIDDEN, b->out + at, HIDDEN);
}

static void run_head_norm(struct bench *b, const struct job *j, size_t at)
{
    b->ops->head_norm(b->stream, b->out + at, QKV, b->weights, 1e-5f, j->n, HEADS, HEAD_DIM);
}

static void run_rope_table(struct bench *b, const struct job *j, size_t at)
{
    b->ops->rope_table(b->stream, b->inv_freq, HEAD_DIM / 2, b->limits, j->n, 1, (float *)(void *)(b->out + at));
}

static void run_rope(struct bench *b, const struct job *j, size_t at)
{
    b->ops->rope(b->stream, b->out + at, QKV, b->table, j->n, HEADS, HEAD_DIM);
}

static void run_swiglu(struct bench *b, const struct job *j, size_t at)
{
    b->ops->swiglu(b->stream, b->in + at, j->n, FFN, b->out + at / 2);
}

static void run_kv_write(struct bench *b, const struct job *j, size_t at)
{
    const struct samkv_kv_write w = {.k = b->in + at,
                                     .v = b->in + at + KV * 2,
                                     .ld = QKV,
                                     .rope = b->table,
                                     .k_cache = b->out + at,
                                     .v_cache = b->out + at + j->stride / 2,
                                     .n = j->n,
                                     .kv_heads = KV_HEADS,
                                     .head_dim = HEAD_DIM,
                                     .update = j->update,
                                     .theta = 0.5f,
                                     .fresh_from = j->n};
    b->ops->kv_write(b->stream, &w);
}

static void run_place(struct bench *b, const struct job *j, size_t at)
{
    const struct samkv_place w = {.k_src = b->in + at,
                                  .v_src = b->in + at + j->stride / 2,
                                  .src_dtype = j->accumulate ? SAMKV_F16 : b->device->dtype,
                                  .rope = b->table,
                                  .k_cache = b->out + at,
                                  .v_cache = b->out + at + j->stride / 2,
                                  .n = j->n,
                                  .kv_heads = KV_HEADS,
                                  .head_dim = HEAD_DIM};
    b->ops->place(b->stream, &w);
}

static void run_convert(struct bench *b, const struct job *j, size_t at)
{
    b->ops->convert(b->stream, b->in + at, b->device->dtype, b->out + at, SAMKV_F32, (size_t)j->n * HIDDEN);
}

static void run_segment_mean(struct bench *b, const struct job *j, size_t at)
{
    b->ops->segment_mean(b->stream, b->in + at, KV, b->offsets, j->n / BLOCK, KV, (float *)(void *)(b->out + at));
}

static void run_rope_f32(struct bench *b, const struct job *j, size_t at)
{
    (void)at;
    b->ops->rope_f32(b->stream, b->floats, b->table, j->n, KV_HEADS, HEAD_DIM);
}

static void run_scores(struct bench *b, const struct job *j, size_t at)
{
    (void)at;
    b->ops->block_scores(b->stream, b->floats, b->floats + KV, j->n, KV, (float *)(void *)b->out);
}

/* The last n of `keys` tokens, each sees what is before it and itself. */
static void run_attention(struct bench *b, const struct job *j, size_t at)
{
    const struct samkv_attention a = {.q = b->in + at,
                                      .ldq = QKV,
                                      .k = b->weights,
                                      .v = b->weights + (size_t)j->keys * KV * 2,
                                      .out = b->out + at,
                                      .ldo = HIDDEN,
                                      .n = j->n,
                                      .n_keys = j->keys,
                                      .heads = HEADS,
                                      .kv_heads = KV_HEADS,
                                      .head_dim = HEAD_DIM,
                                      .scale = 0.08838834764f,
                                      .limit = b->limits + (j->keys - j->n)};
    b->ops->attention(b->stream, &a);
}

/* ------------------------------------------------------------------ set-up */

static void *take(struct bench *b, size_t bytes)
{
    void *memory;
    if (b->ops->alloc(b->device, bytes, &memory)) {
        fprintf(stderr, "no memory on the device\n");
        exit(1);
    }
    return memory;
}

/* Random activations of deviation 1 over a whole pool: 16 MB made here, then copied on. */
static uint8_t *random_pool(struct bench *b, struct pair *p)
{
    size_t seed_bytes = (size_t)16 << 20;
    uint16_t *seed = malloc(seed_bytes);
    uint8_t *pool = take(b, POOL_BYTES);
    for (size_t i = 0; i < seed_bytes / 2; i++) {
        float f = ((float)pair_random(p, 1u << 16) + (float)pair_random(p, 1u << 16)) * 0x1p-15f * 1.2f - 2.4f;
        seed[i] = b->device->dtype == SAMKV_BF16 ? samkv_f32_to_bf16(f) : samkv_f32_to_f16(f);
    }
    b->ops->upload(b->stream, pool, seed, seed_bytes);
    for (size_t done = seed_bytes; done < POOL_BYTES; done *= 2)
        b->ops->copy(b->stream, pool + done, pool, done);
    wait(b);
    free(seed);
    return pool;
}

static void set_up(struct bench *b, struct pair *p)
{
    enum { ROWS = 32768 };
    int32_t *numbers = malloc(3 * ROWS * sizeof *numbers);
    double inv_freq[HEAD_DIM / 2];
    b->in = random_pool(b, p);
    b->out = random_pool(b, p);
    b->weights = random_pool(b, p);
    b->ids = take(b, ROWS * 4);
    b->limits = take(b, ROWS * 4);
    b->offsets = take(b, ROWS * 4);
    b->inv_freq = take(b, sizeof inv_freq);
    b->table = take(b, (size_t)ROWS * HEAD_DIM * 4);
    b->floats = take(b, (size_t)ROWS * KV * 4);
    for (int i = 0; i < ROWS; i++) {
        numbers[i] = (int32_t)pair_random(p, 16384);
        numbers[ROWS + i] = i + 1;
        numbers[2 * ROWS + i] = i * BLOCK;
    }
    for (int i = 0; i < HEAD_DIM / 2; i++)
        inv_freq[i] = pow(500000.0, -(double)i / (HEAD_DIM / 2));
    b->ops->upload(b->stream, b->ids, numbers, ROWS * 4);
    b->ops->upload(b->stream, b->limits, numbers + ROWS, ROWS * 4);
    b->ops->upload(b->stream, b->offsets, numbers + 2 * ROWS, ROWS * 4);
    b->ops->upload(b->stream, b->inv_freq, inv_freq, sizeof inv_freq);
    b->ops->rope_table(b->stream, b->inv_freq, HEAD_DIM / 2, b->limits, ROWS, 1, b->table);
    b->ops->convert(b->stream, b->in, b->device->dtype, b->floats, SAMKV_F32, (size_t)ROWS * KV);
    wait(b);
    free(numbers);
}

static void measure_ceilings(struct bench *b)
{
    struct job copy = {.name = "ceiling: copy", .n = 1 << 30, .bytes = 2.0 * (1 << 30), .run = run_copy};
    struct job product = {.name = "ceiling: matmul",
                          .n = 8192,
                          .operations = 2.0 * 8192 * 8192 * 8192,
                          .run = run_matmul,
                          .in_dim = 8192,
                          .out_dim = 8192};
    b->bytes_a_second = copy.bytes / measure(b, &copy);
    b->operations_a_second = product.operations / measure(b, &product);
    report(b, &copy);
    report(b, &product);
}

/* ------------------------------------------------------------------ the list */

static void bench_products(struct bench *b, int n)
{
    const struct {
        const char *name;
        int in, out;
        bool accumulate;
    } all[] = {{"matmul qkv", HIDDEN, QKV, false},
               {"matmul o", HIDDEN, HIDDEN, true},
               {"matmul gate_up", HIDDEN, 2 * FFN, false},
               {"matmul down", FFN, HIDDEN, true}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        double rows = n, in = all[i].in, out = all[i].out;
        struct job j = {.name = all[i].name,
                        .n = n,
                        .bytes = 2 * (rows * in + in * out + rows * out * (all[i].accumulate ? 2 : 1)),
                        .operations = 2 * rows * in * out,
                        .stride = (size_t)n * (size_t)(in > out ? in : out) * 2,
                        .run = run_matmul,
                        .in_dim = all[i].in,
                        .out_dim = all[i].out,
                        .accumulate = all[i].accumulate};
        report(b, &j);
    }
}

static void bench_rows(struct bench *b, int n)
{
    size_t rows = (size_t)n;
    double r = n;
    const struct job all[] = {
        {"embed", n, .bytes = r * HIDDEN * 4, .stride = rows * HIDDEN * 2, .run = run_embed},
        {"gather", n, .bytes = r * HIDDEN * 4, .stride = rows * HIDDEN * 2, .run = run_gather},
        {"rmsnorm", n, .bytes = r * HIDDEN * 4, .stride = rows * HIDDEN * 2, .run = run_rmsnorm},
        {"head_norm", n, .bytes = r * HIDDEN * 4, .stride = rows * QKV * 2, .run = run_head_norm},
        {"rope_table", n, .bytes = r * HEAD_DIM * 4, .stride = rows * HEAD_DIM * 4, .run = run_rope_table},
        {"rope", n, .bytes = r * (HIDDEN * 4 + HEAD_DIM * 4), .stride = rows * QKV * 2, .run = run_rope},
        {"swiglu", n, .bytes = r * FFN * 6, .stride = rows * FFN * 4, .run = run_swiglu},
        {"kv_write", n, .bytes = r * (KV * 8 + HEAD_DIM * 4), .stride = rows * QKV * 2, .run = run_kv_write},
        {"kv_write cosine", n, .bytes = r * (KV * 12 + HEAD_DIM * 4), .stride = rows * QKV * 2, .run = run_kv_write,
         .update = SAMKV_UPDATE_COSINE},
        {"place", n, .bytes = r * (KV * 8 + HEAD_DIM * 4), .stride = rows * KV * 4, .run = run_place},
        {"place f16", n, .bytes = r * (KV * 8 + HEAD_DIM * 4), .stride = rows * KV * 4, .run = run_place,
         .accumulate = true},
        {"convert", n, .bytes = r * HIDDEN * 6, .stride = rows * HIDDEN * 4, .run = run_convert},
        {"segment_mean", n, .bytes = r * KV * 2 + r / BLOCK * KV * 4, .stride = rows * KV * 2, .run = run_segment_mean},
        {"rope_f32", n, .bytes = r * (KV * 8 + HEAD_DIM * 4), .run = run_rope_f32},
        {"block_scores", n, .bytes = r * KV * 4, .run = run_scores},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        report(b, &all[i]);
}

static void bench_attention(struct bench *b, const char *name, int n, int keys)
{
    double pairs = (double)n * (keys - n) + (double)n * (n + 1) / 2;
    struct job j = {.name = name,
                    .n = n,
                    .keys = keys,
                    .bytes = 4.0 * n * HIDDEN + 4.0 * keys * KV,
                    .operations = 4 * pairs * HEAD_DIM * HEADS,
                    .stride = (size_t)n * QKV * 2,
                    .run = run_attention};
    report(b, &j);
}

int main(int argc, char **argv)
{
    struct pair p;
    struct bench b = {0};
    if (argc < 2 || !pair_open(&p, argv[1], argc > 2 ? argv[2] : "bf16"))
        return 2;
    b.device = p.gpu;
    b.stream = p.gpu_stream;
    b.ops = p.gpu->ops;
    b.only = argc > 3 ? argv[3] : "";
    set_up(&b, &p);
    measure_ceilings(&b);
    for (int n = 2458; n <= 16384; n += 16384 - 2458) {
        bench_products(&b, n);
        bench_rows(&b, n);
        bench_attention(&b, "attention", n, n);
    }
    bench_attention(&b, "attention query", 64, 2458);
    bench_attention(&b, "attention decode", 1, 16384);
    bench_attention(&b, "attention", 1024, 1024);
    bench_attention(&b, "attention", 8192, 16384);
    pair_close(&p);
    return 0;
}
