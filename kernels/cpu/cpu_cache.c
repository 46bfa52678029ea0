/* Rows in and out of a layer's KV cache: write with update, place from the store, gather, conversion. */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* cos(a, b), never dividing by zero: the floor is the algorithm's. */
static float cosine(const struct samkv_cpu_simd *simd, const float *a, const float *b, int count)
{
    float floor = 1e-12f;
    float norms = sqrtf(simd->dot(a, a, count)) * sqrtf(simd->dot(b, b, count));
    return simd->dot(a, b, count) / (norms > floor || norms != norms ? norms : floor);
}

/* θ of one token and KV head, both keys rotated. NaN stays NaN: a broken input must show. */
static float update_theta(const struct samkv_cpu_simd *simd, const struct samkv_kv_write *w, const float *k_old,
                          const float *k_new)
{
    if (w->update == SAMKV_UPDATE_THETA)
        return w->theta;
    float c = cosine(simd, k_old, k_new, w->head_dim);
    return c < 0.0f ? 0.0f : c > 1.0f ? 1.0f : c;
}

static void add(const float *src, float theta, int count, float *dst)
{
    for (int j = 0; j < count; j++)
        dst[j] += theta * src[j];
}

/* dst = src with its RoPE, or as it is without a table; dst may be src. */
static void rotate(const struct samkv_cpu_simd *simd, const float *src, const float *table, int head_dim, float *dst)
{
    if (table)
        simd->rope(src, table, head_dim / 2, dst);
    else if (dst != src)
        memcpy(dst, src, (size_t)head_dim * sizeof *dst);
}

/* What kernels.h says of one row. */
static void write_row(const struct samkv_cpu_simd *simd, const struct samkv_kv_write *w, int i)
{
    size_t dim = (size_t)w->head_dim, width = (size_t)w->kv_heads * dim;
    size_t row = (size_t)(w->rows ? w->rows[i] : w->first_row + i);
    const float *k = (const float *)w->k + (size_t)i * w->ld, *v = (const float *)w->v + (size_t)i * w->ld;
    const float *table = w->rope ? w->rope + (size_t)i * dim : NULL;
    float *k_cache = (float *)w->k_cache + row * width, *v_cache = (float *)w->v_cache + row * width;
    bool overwrite = w->update == SAMKV_UPDATE_OVERWRITE || i >= w->fresh_from;
    float rotated[SAMKV_CPU_MAX_HEAD_DIM];

    for (int g = 0; g < w->kv_heads; g++, k += dim, v += dim, k_cache += dim, v_cache += dim) {
        if (overwrite) {
            rotate(simd, k, table, w->head_dim, k_cache);
            memcpy(v_cache, v, dim * sizeof *v);
            continue;
        }
        rotate(simd, k, table, w->head_dim, rotated);
        if (w->update == SAMKV_UPDATE_DELTA) {
            add(rotated, w->theta, w->head_dim, k_cache);
            add(v, w->theta, w->head_dim, v_cache);
            continue;
        }
        float theta = update_theta(simd, w, k_cache, rotated);
        simd->mix(rotated, theta, w->head_dim, k_cache);
        simd->mix(v, theta, w->head_dim, v_cache);
    }
}

void samkv_cpu_kv_write(struct samkv_stream *stream, const struct samkv_kv_write *w)
{
    assert(w->n >= 0 && w->kv_heads > 0 && w->head_dim > 0 && w->head_dim % 2 == 0);
    assert(w->head_dim <= SAMKV_CPU_MAX_HEAD_DIM && w->ld >= (size_t)w->kv_heads * (size_t)w->head_dim);
    if (samkv_cpu_stream_failed(stream))
        return;
    const struct samkv_cpu_simd *simd = samkv_cpu_of(stream)->simd;
    int team = samkv_cpu_team(stream, 2 * (size_t)w->n * (size_t)w->kv_heads * (size_t)w->head_dim);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int i = 0; i < w->n; i++)
        write_row(simd, w, i);
}

/* `count` elements of any floating type to f32; dst may be src when it is f32 already. */
static void to_f32(const struct samkv_cpu_simd *simd, const void *src, enum samkv_dtype type, size_t count, float *dst)
{
    if (type == SAMKV_F16)
        simd->from_f16(src, count, dst);
    else if (type == SAMKV_BF16)
        simd->from_bf16(src, count, dst);
    else if (src != dst)
        memcpy(dst, src, count * sizeof *dst);
}

static void place_row(const struct samkv_cpu_simd *simd, const struct samkv_place *p, int i)
{
    size_t dim = (size_t)p->head_dim, width = (size_t)p->kv_heads * dim;
    size_t from = (size_t)i * width * samkv_dtype_bytes(p->src_dtype);
    size_t to = ((size_t)p->first_row + (size_t)i) * width;
    float *k = (float *)p->k_cache + to;

    to_f32(simd, (const char *)p->v_src + from, p->src_dtype, width, (float *)p->v_cache + to);
    to_f32(simd, (const char *)p->k_src + from, p->src_dtype, width, k);
    for (int g = 0; g < p->kv_heads && p->rope; g++)
        simd->rope(k + (size_t)g * dim, p->rope + (size_t)i * dim, p->head_dim / 2, k + (size_t)g * dim);
}

void samkv_cpu_place(struct samkv_stream *stream, const struct samkv_place *p)
{
    assert(p->n >= 0 && p->kv_heads > 0 && p->head_dim > 0 && p->head_dim % 2 == 0);
    assert(p->src_dtype == SAMKV_F32 || p->src_dtype == SAMKV_F16 || p->src_dtype == SAMKV_BF16);
    if (samkv_cpu_stream_failed(stream))
        return;
    const struct samkv_cpu_simd *simd = samkv_cpu_of(stream)->simd;
    int team = samkv_cpu_team(stream, 2 * (size_t)p->n * (size_t)p->kv_heads * (size_t)p->head_dim);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int i = 0; i < p->n; i++)
        place_row(simd, p, i);
}

/* One layer of one run: rows that lie together, as `place` has them. */
static void place_run(const struct samkv_cpu_simd *simd, const struct samkv_place_runs *p, const struct samkv_run *run,
                      int layer)
{
    size_t width = (size_t)p->kv_heads * (size_t)p->head_dim;
    size_t bytes = (size_t)run->tokens * width * samkv_dtype_bytes(p->src_dtype);
    const char *src = (const char *)run->src + 2 * (size_t)layer * bytes;
    const struct samkv_place rows = {
        .k_src = src,
        .v_src = src + bytes,
        .src_dtype = p->src_dtype,
        .rope = p->no_rope && p->no_rope[layer] ? NULL : p->rope + (size_t)run->first_row * (size_t)p->head_dim,
        .k_cache = (char *)p->k_cache + (size_t)layer * p->layer_stride_bytes,
        .v_cache = (char *)p->v_cache + (size_t)layer * p->layer_stride_bytes,
        .first_row = run->first_row,
        .n = run->tokens,
        .kv_heads = p->kv_heads,
        .head_dim = p->head_dim,
    };
    for (int i = 0; i < run->tokens; i++)
        place_row(simd, &rows, i);
}

void samkv_cpu_place_runs(struct samkv_stream *stream, const struct samkv_place_runs *p)
{
    assert(p->count >= 0 && p->layers >= 0 && p->kv_heads > 0 && p->head_dim > 0 && p->head_dim % 2 == 0);
    assert(p->src_dtype == SAMKV_F32 || p->src_dtype == SAMKV_F16 || p->src_dtype == SAMKV_BF16);
    if (samkv_cpu_stream_failed(stream))
        return;
    const struct samkv_cpu_simd *simd = samkv_cpu_of(stream)->simd;
    size_t items = (size_t)p->count * (size_t)p->layers;
    int team = samkv_cpu_team(stream, 2 * items * (size_t)p->max_tokens * (size_t)p->kv_heads * (size_t)p->head_dim);
#pragma omp parallel for num_threads(team) schedule(dynamic, 4)
    for (size_t i = 0; i < items; i++) {
        const struct samkv_run *run = &p->runs[i / (size_t)p->layers];
        int layer = (int)(i % (size_t)p->layers);
        assert(run->tokens <= p->max_tokens && run->first_row >= 0);
        if (layer >= run->first_layer)
            place_run(simd, p, run, layer);
    }
}

void samkv_cpu_gather(struct samkv_stream *stream, const void *x, const int32_t *rows, int n, int width, void *out)
{
    assert(n >= 0 && width > 0);
    if (samkv_cpu_stream_failed(stream))
        return;
    size_t row = (size_t)width * sizeof(float);
    int team = samkv_cpu_team(stream, (size_t)n * (size_t)width);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int i = 0; i < n; i++)
        memcpy((char *)out + (size_t)i * row, (const char *)x + (size_t)rows[i] * row, row);
}

/* A run small enough that the f32 values between two half types stay on the stack. */
#define CONVERT_RUN 1024

static void convert_run(const struct samkv_cpu_simd *simd, const void *src, enum samkv_dtype from, void *dst,
                        enum samkv_dtype to, size_t count)
{
    float buffer[CONVERT_RUN];
    const float *middle = buffer;
    if (to == SAMKV_F32) {
        to_f32(simd, src, from, count, dst);
        return;
    }
    if (from == SAMKV_F32)
        middle = src;
    else
        to_f32(simd, src, from, count, buffer);
    if (to == SAMKV_F16)
        simd->to_f16(middle, count, dst);
    else
        simd->to_bf16(middle, count, dst);
}

void samkv_cpu_convert(struct samkv_stream *stream, const void *src, enum samkv_dtype src_dtype, void *dst,
                       enum samkv_dtype dst_dtype, size_t count)
{
    assert(src_dtype == dst_dtype || (src_dtype != SAMKV_I32 && dst_dtype != SAMKV_I32));
    if (samkv_cpu_stream_failed(stream) || (src_dtype == dst_dtype && src == dst))
        return;
    const struct samkv_cpu_simd *simd = samkv_cpu_of(stream)->simd;
    size_t from = samkv_dtype_bytes(src_dtype), to = samkv_dtype_bytes(dst_dtype);
    size_t runs = (count + CONVERT_RUN - 1) / CONVERT_RUN;
    int team = samkv_cpu_team(stream, count);
#pragma omp parallel for num_threads(team) schedule(static)
    for (size_t r = 0; r < runs; r++) {
        size_t start = r * CONVERT_RUN, some = count - start < CONVERT_RUN ? count - start : CONVERT_RUN;
        const char *s = (const char *)src + start * from;
        char *d = (char *)dst + start * to;
        if (src_dtype == dst_dtype)
            memcpy(d, s, some * from);
        else
            convert_run(simd, s, src_dtype, d, dst_dtype, some);
    }
}
