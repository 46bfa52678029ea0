/*
 * What the kernels reach on this machine, as one table: products and attention as a share of the largest square
 * product, memory-bound operations beside a copy.
 *
 *     bench_kernels [DEVICE [SECONDS]]      DEVICE: cpu (default) or cpu with THREADS: cpu:1
 *
 * Shapes are SmolLM2-135M's: hidden 576, 9 heads, 3 KV heads of 64, MLP 1536, vocabulary 49152. A figure is the best
 * of as many runs as fit SECONDS (0.15), since another program on the machine can only make one slower.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/kernels.h"

#define HIDDEN   576
#define FFN      1536
#define VOCAB    49152
#define HEADS    9
#define KV_HEADS 3
#define HEAD_DIM 64

struct bench {
    struct samkv_device *device;
    struct samkv_stream *stream;
    double seconds; /* a figure */
    double peak;    /* FLOP/s of the square product */
    double copy;    /* bytes/s of a copy, read and written */
};

typedef void (*operation)(struct bench *, void *args);

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double best_time(struct bench *b, operation run, void *args)
{
    struct samkv_error err;
    double best = INFINITY, end = now() + b->seconds;
    for (int i = 0; i < 3 || now() < end; i++) {
        double start = now();
        run(b, args);
        if (b->device->ops->sync(b->stream, &err) != SAMKV_OK) {
            fprintf(stderr, "bench_kernels: %s\n", err.text);
            exit(1);
        }
        double took = now() - start;
        best = took < best ? took : best;
    }
    return best;
}

/* `count` floats on the device, uniform in [-1, 1). */
static float *fill(struct bench *b, size_t count)
{
    void *memory;
    if (b->device->ops->alloc(b->device, count * sizeof(float), &memory) != SAMKV_OK) {
        fprintf(stderr, "bench_kernels: no memory\n");
        exit(1);
    }
    float *x = memory;
    uint32_t s = 1;
    for (size_t i = 0; i < count; i++) {
        s = s * 1664525u + 1013904223u;
        x[i] = (float)(int32_t)s / 2147483648.0f;
    }
    return x;
}

static void drop(struct bench *b, const void *memory)
{
    b->device->ops->release(b->device, (void *)memory);
}

static void print_flops(const struct bench *b, const char *what, double flops, double seconds)
{
    printf("%-44s %10.3f ms %9.1f GFLOP/s %6.0f %% of peak\n", what, seconds * 1e3, flops / seconds * 1e-9,
           100.0 * flops / seconds / b->peak);
}

static void print_bytes(const struct bench *b, const char *what, double bytes, double seconds)
{
    printf("%-44s %10.3f ms %9.1f GB/s    %6.0f %% of copy\n", what, seconds * 1e3, bytes / seconds * 1e-9,
           100.0 * bytes / seconds / b->copy);
}

/* --- products --- */

static void run_matmul(struct bench *b, void *args)
{
    b->device->ops->matmul(b->stream, args);
}

static double time_product(struct bench *b, int n, int out, int in)
{
    size_t rows = (size_t)n;
    struct samkv_matmul m = {.x = fill(b, rows * (size_t)in),
                             .ldx = (size_t)in,
                             .w = fill(b, (size_t)out * (size_t)in),
                             .y = fill(b, rows * (size_t)out),
                             .ldy = (size_t)out,
                             .n = n,
                             .in = in,
                             .out = out};
    double seconds = best_time(b, run_matmul, &m);
    drop(b, m.x), drop(b, m.w), drop(b, m.y);
    return seconds;
}

static void bench_products(struct bench *b)
{
    static const struct {
        const char *name;
        int out, in;
    } weights[] = {{"qkv", (HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN},
                   {"attention out", HIDDEN, HIDDEN},
                   {"gate and up", 2 * FFN, HIDDEN},
                   {"down", HIDDEN, FFN}};
    static const int rows[] = {32, 64, 128, 512, 1024};
    char what[80];
    for (size_t w = 0; w < sizeof weights / sizeof *weights; w++)
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
            double flops = 2.0 * rows[r] * weights[w].out * weights[w].in;
            snprintf(what, sizeof what, "%s: %d x %d x %d", weights[w].name, rows[r], weights[w].out, weights[w].in);
            print_flops(b, what, flops, time_product(b, rows[r], weights[w].out, weights[w].in));
        }
}

/* Few rows read the weights once: bytes are what counts. */
static void bench_decoding(struct bench *b)
{
    static const int rows[] = {1, 2, 4, 8, 16};
    char what[80];
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        snprintf(what, sizeof what, "vocabulary: %d x %d x %d", rows[r], VOCAB, HIDDEN);
        print_bytes(b, what, 4.0 * VOCAB * HIDDEN, time_product(b, rows[r], VOCAB, HIDDEN));
    }
}

/* --- attention --- */

static void run_attention(struct bench *b, void *args)
{
    b->device->ops->attention(b->stream, args);
}

/* The last n of n_keys tokens, causal. */
static void bench_attention(struct bench *b, int n, int n_keys, int heads, int kv_heads, int head_dim)
{
    size_t width = (size_t)heads * (size_t)head_dim, kv = (size_t)n_keys * (size_t)kv_heads * (size_t)head_dim;
    int32_t *limit = (int32_t *)(void *)fill(b, (size_t)n);
    double pairs = 0.0;
    char what[80];
    for (int i = 0; i < n; i++)
        pairs += limit[i] = n_keys - n + i + 1;
    struct samkv_attention a = {.q = fill(b, (size_t)n * width),
                                .ldq = width,
                                .k = fill(b, kv),
                                .v = fill(b, kv),
                                .out = fill(b, (size_t)n * width),
                                .ldo = width,
                                .n = n,
                                .n_keys = n_keys,
                                .heads = heads,
                                .kv_heads = kv_heads,
                                .head_dim = head_dim,
                                .scale = 1.0f / sqrtf((float)head_dim),
                                .limit = limit};
    snprintf(what, sizeof what, "attention: %d of %d tokens, heads %d/%d x %d", n, n_keys, heads, kv_heads, head_dim);
    print_flops(b, what, 4.0 * pairs * (double)width, best_time(b, run_attention, &a));
    drop(b, a.q), drop(b, a.k), drop(b, a.v), drop(b, a.out), drop(b, limit);
}

/* --- bound by memory --- */

struct rows {
    float *x, *y, *gain, *table;
    uint16_t *half;
    int32_t *ids;
    int n;
};

static void run_copy(struct bench *b, void *args)
{
    struct rows *r = args;
    b->device->ops->copy(b->stream, r->y, r->x, (size_t)r->n * FFN * sizeof(float));
}

static void run_rmsnorm(struct bench *b, void *args)
{
    struct rows *r = args;
    b->device->ops->rmsnorm(b->stream, r->x, FFN, r->gain, 1e-5f, r->n, FFN, r->y, FFN);
}

static void run_swiglu(struct bench *b, void *args)
{
    struct rows *r = args;
    b->device->ops->swiglu(b->stream, r->x, r->n / 2, FFN, r->y);
}

static void run_rope(struct bench *b, void *args)
{
    struct rows *r = args;
    b->device->ops->rope(b->stream, r->x, FFN, r->table, r->n, FFN / HEAD_DIM, HEAD_DIM);
}

static void run_gather(struct bench *b, void *args)
{
    struct rows *r = args;
    b->device->ops->gather(b->stream, r->x, r->ids, r->n, FFN, r->y);
}

static void run_from_bf16(struct bench *b, void *args)
{
    struct rows *r = args;
    b->device->ops->convert(b->stream, r->half, SAMKV_BF16, r->y, SAMKV_F32, (size_t)r->n * FFN);
}

static void run_to_bf16(struct bench *b, void *args)
{
    struct rows *r = args;
    b->device->ops->convert(b->stream, r->x, SAMKV_F32, r->half, SAMKV_BF16, (size_t)r->n * FFN);
}

static void run_place(struct bench *b, void *args)
{
    struct rows *r = args;
    struct samkv_place p = {.k_src = r->half,
                            .v_src = r->half,
                            .src_dtype = SAMKV_BF16,
                            .rope = r->table,
                            .k_cache = r->x,
                            .v_cache = r->y,
                            .n = r->n,
                            .kv_heads = FFN / HEAD_DIM,
                            .head_dim = HEAD_DIM};
    b->device->ops->place(b->stream, &p);
}

static void bench_memory(struct bench *b)
{
    static const struct {
        const char *name;
        operation run;
        double bytes; /* an element */
    } list[] = {{"RMSNorm", run_rmsnorm, 8},          {"SwiGLU", run_swiglu, 6},
                {"RoPE in place", run_rope, 8},       {"gather rows", run_gather, 8},
                {"bf16 to f32", run_from_bf16, 6},    {"f32 to bf16", run_to_bf16, 6},
                {"place bf16 K and V", run_place, 12}};
    size_t n = 8192, count = n * FFN;
    struct rows r = {.x = fill(b, count),
                     .y = fill(b, count),
                     .gain = fill(b, FFN),
                     .table = fill(b, n * HEAD_DIM),
                     .half = (uint16_t *)(void *)fill(b, count / 2),
                     .ids = (int32_t *)(void *)fill(b, n),
                     .n = (int)n};
    for (size_t i = 0; i < n; i++)
        r.ids[i] = (int32_t)(i * 37 % n);
    double seconds = best_time(b, run_copy, &r);
    b->copy = 8.0 * (double)count / seconds;
    print_bytes(b, "copy, one thread (the floor)", 8.0 * (double)count, seconds);
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        print_bytes(b, list[i].name, list[i].bytes * (double)count, best_time(b, list[i].run, &r));
    drop(b, r.x), drop(b, r.y), drop(b, r.gain), drop(b, r.table), drop(b, r.half), drop(b, r.ids);
}

int main(int argc, char **argv)
{
    struct samkv_error err;
    struct bench b = {.seconds = argc > 2 ? atof(argv[2]) : 0.15};
    int threads = argc > 1 && !strncmp(argv[1], "cpu:", 4) ? atoi(argv[1] + 4) : 0;
    if (argc > 3 || (argc > 1 && strncmp(argv[1], "cpu", 3) != 0)) {
        fprintf(stderr, "usage: bench_kernels [cpu[:THREADS] [SECONDS]]\n");
        return 2;
    }
    if (samkv_cpu_device_new(threads, &b.device, &err) != SAMKV_OK ||
        b.device->ops->stream_new(b.device, &b.stream) != SAMKV_OK) {
        fprintf(stderr, "bench_kernels: the device cannot be opened\n");
        return 1;
    }
    printf("%s\n", b.device->name);
    double seconds = time_product(&b, 2048, 2048, 2048), flops = 2.0 * 2048 * 2048 * 2048;
    b.peak = flops / seconds;
    print_flops(&b, "sgemm peak: 2048 x 2048 x 2048", flops, seconds);
    bench_products(&b);
    bench_attention(&b, 256, 256, HEADS, KV_HEADS, HEAD_DIM);
    bench_attention(&b, 512, 512, HEADS, KV_HEADS, HEAD_DIM);
    bench_attention(&b, 2048, 2048, HEADS, KV_HEADS, HEAD_DIM);
    bench_attention(&b, 4096, 4096, HEADS, KV_HEADS, HEAD_DIM);
    bench_attention(&b, 2048, 2048, 8, 8, 128);
    bench_attention(&b, 64, 4096, HEADS, KV_HEADS, HEAD_DIM);
    bench_attention(&b, 1, 4096, HEADS, KV_HEADS, HEAD_DIM);
    bench_memory(&b);
    bench_decoding(&b);
    b.device->ops->stream_free(b.stream);
    b.device->ops->device_free(b.device);
    return 0;
}
