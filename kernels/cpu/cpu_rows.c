/* Operations on rows: embedding, norms, rotary positions, SwiGLU. */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <math.h>
#include <string.h>

void samkv_cpu_embed(struct samkv_stream *stream, const void *table, const int32_t *ids, int n, int width, void *out)
{
    const struct samkv_cpu_device *cpu = samkv_cpu_of(stream);
    if (!cpu->base.bf16_matrices) {
        samkv_cpu_gather(stream, table, ids, n, width, out);
        return;
    }
    assert(n >= 0 && width > 0);
    if (samkv_cpu_stream_failed(stream))
        return;
    int team = samkv_cpu_team(stream, (size_t)n * (size_t)width);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int i = 0; i < n; i++)
        cpu->simd->from_bf16((const uint16_t *)table + (size_t)ids[i] * (size_t)width, (size_t)width,
                             (float *)out + (size_t)i * (size_t)width);
}

void samkv_cpu_rmsnorm(struct samkv_stream *stream, const void *x, size_t ldx, const void *gain, float eps, int n,
                       int width, void *out, size_t ldo)
{
    assert(n >= 0 && width > 0 && ldx >= (size_t)width && ldo >= (size_t)width);
    if (samkv_cpu_stream_failed(stream))
        return;
    const struct samkv_cpu_simd *simd = samkv_cpu_of(stream)->simd;
    int team = samkv_cpu_team(stream, (size_t)n * (size_t)width);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int i = 0; i < n; i++)
        simd->rmsnorm((const float *)x + (size_t)i * ldx, gain, eps, width, (float *)out + (size_t)i * ldo);
}

void samkv_cpu_head_norm(struct samkv_stream *stream, void *x, size_t ldx, const void *gain, float eps, int n,
                         int heads, int head_dim)
{
    assert(n >= 0 && heads > 0 && head_dim > 0 && ldx >= (size_t)heads * (size_t)head_dim);
    if (samkv_cpu_stream_failed(stream))
        return;
    const struct samkv_cpu_simd *simd = samkv_cpu_of(stream)->simd;
    int team = samkv_cpu_team(stream, (size_t)n * (size_t)heads * (size_t)head_dim);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int i = 0; i < n; i++) {
        float *row = (float *)x + (size_t)i * ldx;
        for (int h = 0; h < heads; h++, row += head_dim)
            simd->rmsnorm(row, gain, eps, head_dim, row);
    }
}

void samkv_cpu_rope_table(struct samkv_stream *stream, const double *inv_freq, int half, const int32_t *pos, int n,
                          float scale, float *table)
{
    assert(n >= 0 && half > 0);
    if (samkv_cpu_stream_failed(stream))
        return;
    int team = samkv_cpu_team(stream, (size_t)n * (size_t)half * 8); /* a sine costs more than a load */
#pragma omp parallel for num_threads(team) schedule(static)
    for (int i = 0; i < n; i++) {
        float *row = table + (size_t)i * 2 * (size_t)half;
        for (int j = 0; j < half; j++) {
            double sine, cosine;
            sincos(pos[i] * inv_freq[j], &sine, &cosine);
            row[j] = (float)(cosine * scale);
            row[half + j] = (float)(sine * scale);
        }
    }
}

void samkv_cpu_rope(struct samkv_stream *stream, void *x, size_t ldx, const float *table, int n, int heads,
                    int head_dim)
{
    assert(n >= 0 && heads > 0 && head_dim > 0 && head_dim % 2 == 0 && ldx >= (size_t)heads * (size_t)head_dim);
    if (samkv_cpu_stream_failed(stream))
        return;
    const struct samkv_cpu_simd *simd = samkv_cpu_of(stream)->simd;
    int team = samkv_cpu_team(stream, (size_t)n * (size_t)heads * (size_t)head_dim);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int i = 0; i < n; i++) {
        float *row = (float *)x + (size_t)i * ldx;
        for (int h = 0; h < heads; h++, row += head_dim)
            simd->rope(row, table + (size_t)i * (size_t)head_dim, head_dim / 2, row);
    }
}

void samkv_cpu_rope_f32(struct samkv_stream *stream, float *x, const float *table, int n, int heads, int head_dim)
{
    samkv_cpu_rope(stream, x, (size_t)heads * (size_t)head_dim, table, n, heads, head_dim);
}

void samkv_cpu_swiglu(struct samkv_stream *stream, const void *gate_up, int n, int ffn, void *out)
{
    assert(n >= 0 && ffn > 0);
    if (samkv_cpu_stream_failed(stream))
        return;
    const struct samkv_cpu_simd *simd = samkv_cpu_of(stream)->simd;
    size_t width = (size_t)ffn;
    int team = samkv_cpu_team(stream, (size_t)n * width);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int i = 0; i < n; i++) {
        const float *gate = (const float *)gate_up + (size_t)i * 2 * width;
        simd->swiglu(gate, gate + width, ffn, (float *)out + (size_t)i * width);
    }
}
