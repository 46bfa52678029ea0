/* SamKV's index and scores: block means and the products with a query vector. */
#include "kernels/cpu/cpu.h"

#include <assert.h>

/* Columns that are summed together: their float64 sums stay in the nearest cache. */
#define COLUMNS 256

static void mean_of_rows(const float *x, size_t ldx, int32_t rows, int width, float *out)
{
    double sums[COLUMNS];
    for (int from = 0; from < width; from += COLUMNS) {
        int some = width - from < COLUMNS ? width - from : COLUMNS;
        for (int j = 0; j < some; j++)
            sums[j] = 0.0;
        for (int32_t i = 0; i < rows; i++) {
            const float *row = x + (size_t)i * ldx + from;
            for (int j = 0; j < some; j++)
                sums[j] += (double)row[j];
        }
        for (int j = 0; j < some; j++)
            out[from + j] = rows > 0 ? (float)(sums[j] / rows) : 0.0f;
    }
}

void samkv_cpu_segment_mean(struct samkv_stream *stream, const void *x, size_t ldx, const int32_t *offsets,
                            int segments, int width, float *out)
{
    assert(segments >= 0 && width > 0 && ldx >= (size_t)width);
    if (segments == 0 || samkv_cpu_stream_failed(stream))
        return;
    size_t rows = (size_t)(offsets[segments] - offsets[0]);
    int team = samkv_cpu_team(stream, rows * (size_t)width);
#pragma omp parallel for num_threads(team) schedule(dynamic, 4)
    for (int s = 0; s < segments; s++)
        mean_of_rows((const float *)x + (size_t)offsets[s] * ldx, ldx, offsets[s + 1] - offsets[s], width,
                     out + (size_t)s * (size_t)width);
}

void samkv_cpu_block_scores(struct samkv_stream *stream, const float *kmean, const float *query, int blocks, int width,
                            float *out)
{
    assert(blocks >= 0 && width > 0);
    if (samkv_cpu_stream_failed(stream))
        return;
    const struct samkv_cpu_simd *simd = samkv_cpu_of(stream)->simd;
    int team = samkv_cpu_team(stream, (size_t)blocks * (size_t)width);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int b = 0; b < blocks; b++)
        out[b] = simd->dot(kmean + (size_t)b * (size_t)width, query, width);
}
