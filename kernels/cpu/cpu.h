#pragma once
/*
 * The CPU backend's own vocabulary. Private to kernels/cpu.
 *
 * Three layers:
 *   operations  cpu_*.c: the entries of struct samkv_ops. They cut the work into rows or tiles, one OpenMP thread
 *               each. A row or tile is always computed by one thread in one order, so results do not depend on timing.
 *   row kernels struct samkv_cpu_simd: what one thread does to one row or tile, vectorised. The same source
 *               (cpu_simd_*.h) is compiled once for each instruction set, and the best one is chosen at run time.
 *   oneDNN      large matrix products (cpu_matmul.c, cpu_matmul_bf16.c), and nothing else.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

/* Sets beyond the base one need GCC's `#pragma GCC target`; clang (fuzzing) does with the portable kernels. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SAMKV_CPU_X86 1
#else
#define SAMKV_CPU_X86 0
#endif

/* One query tile of attention: row kernels compute at most this many (query row, head) pairs against one KV head at
 * once. */
#define SAMKV_CPU_ATTENTION_ROWS 96
/* Keys that are scored before the running maximum is updated. */
#define SAMKV_CPU_ATTENTION_KEYS 64

/* The largest head that operations have room for on the stack; models have at most half of it. */
#define SAMKV_CPU_MAX_HEAD_DIM 1024

/* Up to so many rows, a product reads the weights once from memory and oneDNN's packing does not pay. */
#define SAMKV_CPU_SMALL_ROWS 12

/*
 * Rows [row0, row0 + rows) of one KV head's tile. Row r is query row r / group and query head
 * kv_head * group + r % group.
 */
struct samkv_cpu_tile {
    const struct samkv_attention *args;
    int kv_head;
    int row0, rows;
    float *scratch; /* attention_scratch(head_dim) bytes, 64-byte aligned, of this thread */
};

/* Vectorised work of one thread. Pointers need no alignment; all lengths may be odd. */
struct samkv_cpu_simd {
    const char *name;
    void (*attention_tile)(const struct samkv_cpu_tile *);
    /* The same with products of bf16; NULL where the set multiplies none. */
    void (*attention_tile_bf16)(const struct samkv_cpu_tile *);
    size_t (*attention_scratch)(int head_dim); /* bytes, a multiple of 64 */
    /* y[i][o] (+)= x_i · w_o + bias[o] for i < n and o in [from, to) */
    void (*matmul_rows)(const struct samkv_matmul *, int from, int to);
    /* The same over weights in bf16, x staying f32; NULL where the set multiplies no bf16. */
    void (*matmul_rows_bf16)(const struct samkv_matmul *, int from, int to);
    void (*rmsnorm)(const float *x, const float *gain, float eps, int width, float *out); /* out may be x */
    /* dst = src rotated by table [2][half]; dst may be src */
    void (*rope)(const float *src, const float *table, int half, float *dst);
    void (*swiglu)(const float *gate, const float *up, int count, float *out);
    void (*add)(const float *x, size_t count, float *inout);
    float (*dot)(const float *a, const float *b, int count);
    /* dst = (1−θ)·dst + θ·src */
    void (*mix)(const float *src, float theta, int count, float *dst);
    void (*from_f16)(const uint16_t *src, size_t count, float *dst);
    void (*from_bf16)(const uint16_t *src, size_t count, float *dst);
    void (*to_f16)(const float *src, size_t count, uint16_t *dst);
    void (*to_bf16)(const float *src, size_t count, uint16_t *dst);
};

extern const struct samkv_cpu_simd samkv_cpu_simd_portable;
#if SAMKV_CPU_X86
extern const struct samkv_cpu_simd samkv_cpu_simd_avx2;        /* with FMA and F16C */
extern const struct samkv_cpu_simd samkv_cpu_simd_avx512;      /* F, BW, DQ and VL */
extern const struct samkv_cpu_simd samkv_cpu_simd_avx512_bf16; /* with BF16 */
#endif

struct samkv_cpu_device {
    struct samkv_device base;
    int threads;
    const struct samkv_cpu_simd *simd;
};

struct samkv_cpu_stream {
    struct samkv_stream base;
    enum samkv_status failed; /* sticky until sync */
    char why[160];
    void *scratch; /* grows, kept between operations */
    size_t scratch_bytes;
};

static inline const struct samkv_cpu_device *samkv_cpu_of(const struct samkv_stream *stream)
{
    return (const struct samkv_cpu_device *)stream->device;
}

/*
 * Threads for an operation that touches `items` elements: waking the team costs some microseconds, which a small
 * operation does not win back.
 */
static inline int samkv_cpu_team(const struct samkv_stream *stream, size_t items)
{
    return items < 32768 ? 1 : samkv_cpu_of(stream)->threads;
}

/* Makes the failure stick, if none does already. */
void samkv_cpu_stream_fail(struct samkv_stream *, enum samkv_status, const char *why);
/* True when an earlier failure makes this operation a no-op. */
bool samkv_cpu_stream_failed(const struct samkv_stream *);
/* `bytes` of 64-byte aligned memory until the stream's next operation; NULL (and a sticky failure) without memory. */
void *samkv_cpu_stream_scratch(struct samkv_stream *, size_t bytes);

/* What devices of the CPU have in common: threads, instruction set, f32, `ops`. `kind` begins the name. */
enum samkv_status samkv_cpu_device_init(struct samkv_cpu_device *, const struct samkv_ops *ops, const char *kind,
                                        int threads, struct samkv_error *err) SAMKV_MUST_USE;
extern const struct samkv_ops samkv_cpu_ops;

/* The table's entries, one file a group. See kernels.h. */
void samkv_cpu_embed(struct samkv_stream *, const void *table, const int32_t *ids, int n, int width, void *out);
void samkv_cpu_rmsnorm(struct samkv_stream *, const void *x, size_t ldx, const void *gain, float eps, int n, int width,
                       void *out, size_t ldo);
void samkv_cpu_head_norm(struct samkv_stream *, void *x, size_t ldx, const void *gain, float eps, int n, int heads,
                         int head_dim);
void samkv_cpu_matmul(struct samkv_stream *, const struct samkv_matmul *);
/* Of many rows, over weights in bf16. */
void samkv_cpu_matmul_bf16(struct samkv_stream *, const struct samkv_matmul *);
void samkv_cpu_rope_table(struct samkv_stream *, const double *inv_freq, int half, const int32_t *pos, int n,
                          float scale, float *table);
void samkv_cpu_rope(struct samkv_stream *, void *x, size_t ldx, const float *table, int n, int heads, int head_dim);
void samkv_cpu_attention(struct samkv_stream *, const struct samkv_attention *);
void samkv_cpu_swiglu(struct samkv_stream *, const void *gate_up, int n, int ffn, void *out);
void samkv_cpu_kv_write(struct samkv_stream *, const struct samkv_kv_write *);
void samkv_cpu_place(struct samkv_stream *, const struct samkv_place *);
void samkv_cpu_place_runs(struct samkv_stream *, const struct samkv_place_runs *);
void samkv_cpu_gather(struct samkv_stream *, const void *x, const int32_t *rows, int n, int width, void *out);
void samkv_cpu_convert(struct samkv_stream *, const void *src, enum samkv_dtype src_dtype, void *dst,
                       enum samkv_dtype dst_dtype, size_t count);
void samkv_cpu_segment_mean(struct samkv_stream *, const void *x, size_t ldx, const int32_t *offsets, int segments,
                            int width, float *out);
void samkv_cpu_rope_f32(struct samkv_stream *, float *x, const float *table, int n, int heads, int head_dim);
void samkv_cpu_block_scores(struct samkv_stream *, const float *kmean, const float *query, int blocks, int width,
                            float *out);
void samkv_cpu_score(struct samkv_stream *, const struct samkv_score *);
