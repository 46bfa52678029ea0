/* SamKV's index and scores: block means and the products with a query vector. */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <math.h>
#include <string.h>

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

/* ------------------------------------------------------------------ score */

/* Sums over documents and heads are taken in f64: they may be long, and one of their terms is subtracted again. */
struct sums {
    double all[SAMKV_CPU_MAX_HEAD_DIM]; /* mean over the group's heads of q_query + 1/(n−1) · Σ_j |cos_j| · q_j */
    double own[SAMKV_CPU_MAX_HEAD_DIM]; /* mean over the heads of |cos_i| · qlocal_i, before rotation */
};

static float *work_of(const struct samkv_score *a, int i, int s)
{
    size_t each = (size_t)a->heads + (size_t)a->kv_heads * (size_t)a->head_dim;
    return a->work + ((size_t)i * (size_t)a->layers + (size_t)s) * each;
}

/* Head h of document i's local query, at document-relative positions. */
static const float *local_query(const struct samkv_score *a, int i, int s, int h)
{
    size_t blocks = (size_t)(a->first_block[i + 1] - a->first_block[i]);
    return a->index[(size_t)i * (size_t)a->layers + (size_t)s] +
           (blocks * (size_t)a->kv_heads + (size_t)h) * (size_t)a->head_dim;
}

static const float *generic_query(const struct samkv_score *a, int s, int h)
{
    return a->q_query + ((size_t)s * (size_t)a->heads + (size_t)h) * (size_t)a->head_dim;
}

/* Angles of document i in a layer; NULL in one without RoPE. */
static const float *angles_of(const struct samkv_score *a, int i, int s)
{
    return a->no_rope && a->no_rope[s] ? NULL : a->rope + (size_t)i * (size_t)a->head_dim;
}

/* x := R(start) · x; backwards: R(−start). */
static void turn(double *x, const float *angles, int head_dim, bool backwards)
{
    int half = head_dim / 2;
    for (int j = 0; j < half && angles; j++) {
        double c = (double)angles[j], s = backwards ? -(double)angles[half + j] : (double)angles[half + j];
        double a = x[j], b = x[half + j];
        x[j] = a * c - b * s;
        x[half + j] = b * c + a * s;
    }
}

/* |cos(R(start_i) · qlocal_i, q_query)| of one head */
static float weight(const struct samkv_score *a, int i, int s, int h)
{
    const float *local = local_query(a, i, s, h), *query = generic_query(a, s, h);
    double at_start[SAMKV_CPU_MAX_HEAD_DIM], dot = 0, local_square = 0, query_square = 0;
    for (int j = 0; j < a->head_dim; j++)
        at_start[j] = (double)local[j];
    turn(at_start, angles_of(a, i, s), a->head_dim, false);
    for (int j = 0; j < a->head_dim; j++) {
        dot += at_start[j] * (double)query[j];
        local_square += at_start[j] * at_start[j];
        query_square += (double)query[j] * (double)query[j];
    }
    double norms = sqrt(local_square) * sqrt(query_square);
    return (float)fabs(dot / (norms < 1e-12 ? 1e-12 : norms));
}

/* own := the mean over the heads of group g of |cos_i| · qlocal_i */
static void weigh(const struct samkv_score *a, int i, int s, int g, double *own)
{
    int group = a->heads / a->kv_heads;
    for (int j = 0; j < a->head_dim; j++)
        own[j] = 0;
    for (int h = g * group; h < (g + 1) * group; h++) {
        const float *local = local_query(a, i, s, h);
        double c = (double)work_of(a, i, s)[h];
        for (int j = 0; j < a->head_dim; j++)
            own[j] += c * (double)local[j] / group;
    }
}

/*
 * The turned query vectors of one KV head in one layer. Rotation is linear and R(−s)·R(s) = 1, so
 * R(−s_i)·Q̂_i = R(−s_i)·all − 1/(n−1) · own_i.
 */
static void turned_queries(const struct samkv_score *a, int s, int g)
{
    int group = a->heads / a->kv_heads, n = a->documents, dim = a->head_dim;
    double others = n > 1 ? 1.0 / (n - 1) : 0.0;
    struct sums sums = {0};
    for (int i = 0; i < n; i++) {
        for (int h = g * group; h < (g + 1) * group; h++)
            work_of(a, i, s)[h] = weight(a, i, s, h);
        weigh(a, i, s, g, sums.own);
        turn(sums.own, angles_of(a, i, s), dim, false);
        for (int j = 0; j < dim; j++)
            sums.all[j] += others * sums.own[j];
    }
    for (int h = g * group; h < (g + 1) * group; h++)
        for (int j = 0; j < dim; j++)
            sums.all[j] += (double)generic_query(a, s, h)[j] / group;
    for (int i = 0; i < n; i++) {
        float *out = work_of(a, i, s) + a->heads + (size_t)g * (size_t)dim;
        double turned[SAMKV_CPU_MAX_HEAD_DIM];
        memcpy(turned, sums.all, sizeof turned);
        turn(turned, angles_of(a, i, s), dim, true);
        weigh(a, i, s, g, sums.own);
        for (int j = 0; j < dim; j++)
            out[j] = (float)(turned[j] - others * sums.own[j]);
    }
}

void samkv_cpu_score(struct samkv_stream *stream, const struct samkv_score *a)
{
    assert(a->documents >= 0 && a->layers >= 0 && a->kv_heads > 0 && a->heads % a->kv_heads == 0);
    assert(a->head_dim > 0 && a->head_dim % 2 == 0 && a->head_dim <= SAMKV_CPU_MAX_HEAD_DIM);
    if (samkv_cpu_stream_failed(stream))
        return;
    int heads = a->layers * a->kv_heads, pairs = a->layers * a->documents, width = a->kv_heads * a->head_dim;
    int team =
        samkv_cpu_team(stream, ((size_t)a->blocks * (size_t)a->kv_heads + (size_t)a->documents * (size_t)a->heads) *
                                   (size_t)a->layers * (size_t)a->head_dim);
    const struct samkv_cpu_simd *simd = samkv_cpu_of(stream)->simd;
#pragma omp parallel for num_threads(team) schedule(static)
    for (int i = 0; i < heads; i++)
        turned_queries(a, i / a->kv_heads, i % a->kv_heads);
#pragma omp parallel for num_threads(team) schedule(dynamic)
    for (int p = 0; p < pairs; p++) {
        int i = p / a->layers, s = p % a->layers, first = a->first_block[i];
        const float *means = a->index[(size_t)i * (size_t)a->layers + (size_t)s];
        float *scores = a->scores + (size_t)s * (size_t)a->blocks + first;
        for (int b = 0; b < a->first_block[i + 1] - first; b++)
            scores[b] = simd->dot(means + (size_t)b * (size_t)width, work_of(a, i, s) + a->heads, width);
    }
}
