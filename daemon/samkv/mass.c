#include "daemon/samkv/mass.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/pool.h"

static size_t q_width(const struct samkv_mass *m)
{
    return (size_t)m->engine->model->config.heads * m->engine->model->config.head_dim;
}

static size_t q_row_bytes(const struct samkv_mass *m)
{
    return q_width(m) * samkv_dtype_bytes(m->engine->device->dtype);
}

enum samkv_status samkv_mass_init(struct samkv_mass *m, const struct samkv_engine *engine, int first_row, int rows,
                                  struct samkv_error *err)
{
    if (rows - first_row > SAMKV_MASS_MAX_QUERIES)
        first_row = rows - SAMKV_MASS_MAX_QUERIES;
    *m = (struct samkv_mass){.engine = engine, .first_row = first_row, .count = rows - first_row};
    m->q = calloc(engine->model->config.layers * (size_t)m->count, q_row_bytes(m));
    return m->q ? SAMKV_OK : samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
}

void samkv_mass_deinit(struct samkv_mass *m)
{
    free(m->q);
    m->q = NULL;
}

void samkv_mass_tap(void *arg, struct samkv_stream *stream, const struct samkv_tap *tap)
{
    struct samkv_mass *m = arg;
    size_t e = samkv_dtype_bytes(m->engine->device->dtype), bytes = q_row_bytes(m);
    for (int i = 0; i < tap->n; i++) {
        int row = m->pass_first + tap->first + i - m->first_row;
        if (row < 0 || row >= m->count)
            continue;
        stream->device->ops->download(stream, m->q + ((size_t)tap->layer * (size_t)m->count + (size_t)row) * bytes,
                                      (const uint8_t *)tap->q + (size_t)i * tap->ld * e, bytes);
    }
}

static void to_f32(const void *from, enum samkv_dtype dtype, float *to, size_t count)
{
    const uint16_t *half = from;
    if (dtype == SAMKV_F32)
        memcpy(to, from, count * sizeof *to);
    for (size_t i = 0; i < count && dtype == SAMKV_BF16; i++)
        to[i] = samkv_bf16_to_f32(half[i]);
    for (size_t i = 0; i < count && dtype == SAMKV_F16; i++)
        to[i] = samkv_f16_to_f32(half[i]);
}

struct sums {
    const struct samkv_mass *mass;
    const float *q, *k;
    const int32_t *block_of;
    uint32_t blocks;
    float *weights; /* [heads][rows] scratch */
    double *out;    /* [heads][blocks] */
};

/* Sums side by side, which the compiler turns into vectors: one sum it must not reorder. */
#define SIDE 8
static float dot(const float *a, const float *b, uint32_t d)
{
    float side[SIDE] = {0}, sum = 0;
    uint32_t j = 0;
    for (; j + SIDE <= d; j += SIDE)
        for (uint32_t i = 0; i < SIDE; i++)
            side[i] += a[j + i] * b[j + i];
    for (uint32_t i = 0; i < SIDE; i++)
        sum += side[i];
    for (; j < d; j++)
        sum += a[j] * b[j];
    return sum;
}

/* One query head: every query token's softmax over the rows that it sees. */
static void sum_head(void *arg, int head)
{
    const struct sums *s = arg;
    const struct samkv_model_config *c = &s->mass->engine->model->config;
    uint32_t d = c->head_dim, h = (uint32_t)head, g = h / (c->heads / c->kv_heads);
    size_t k_width = (size_t)c->kv_heads * d, rows = (size_t)(s->mass->first_row + s->mass->count);
    float *w = s->weights + h * rows, scale = 1.0f / sqrtf((float)d);
    double *out = s->out + (size_t)h * s->blocks;
    for (int t = 0; t < s->mass->count; t++) {
        const float *q = s->q + (size_t)t * q_width(s->mass) + (size_t)h * d;
        size_t seen = (size_t)(s->mass->first_row + t) + 1;
        float highest = -INFINITY;
        double sum = 0;
        for (size_t i = 0; i < seen; i++) {
            w[i] = scale * dot(q, s->k + i * k_width + (size_t)g * d, d);
            highest = fmaxf(highest, w[i]);
        }
        for (size_t i = 0; i < seen; i++)
            sum += w[i] = expf(w[i] - highest);
        for (size_t i = 0; i < seen; i++)
            if (s->block_of[i] >= 0)
                out[s->block_of[i]] += w[i] / sum;
    }
}

enum samkv_status samkv_mass_layer(const struct samkv_mass *m, uint32_t layer, const void *keys,
                                   const int32_t *block_of, uint32_t blocks, float *out)
{
    const struct samkv_model_config *c = &m->engine->model->config;
    enum samkv_dtype dtype = m->engine->device->dtype;
    size_t rows = (size_t)(m->first_row + m->count), k_count = rows * c->kv_heads * c->head_dim;
    size_t q_count = (size_t)m->count * q_width(m);
    float *q = malloc((q_count + 1) * sizeof *q), *k = malloc((k_count + 1) * sizeof *k);
    float *weights = malloc((c->heads * rows + 1) * sizeof *weights);
    double *sums = calloc(c->heads * (size_t)blocks + 1, sizeof *sums);
    enum samkv_status status = q && k && weights && sums ? SAMKV_OK : SAMKV_NO_MEMORY;
    if (!status) {
        struct sums s = {
            .mass = m, .q = q, .k = k, .block_of = block_of, .blocks = blocks, .weights = weights, .out = sums};
        to_f32(m->q + (size_t)layer * (size_t)m->count * q_row_bytes(m), dtype, q, q_count);
        to_f32(keys, dtype, k, k_count);
        long cores = sysconf(_SC_NPROCESSORS_ONLN);
        samkv_parallel_for((int)c->heads, cores > 0 ? (int)cores : 1, sum_head, &s);
        for (uint32_t b = 0; b < blocks; b++) {
            double sum = 0;
            for (uint32_t h = 0; h < c->heads; h++)
                sum += sums[(size_t)h * blocks + b];
            out[b] = (float)(sum / c->heads / m->count);
        }
    }
    free(q);
    free(k);
    free(weights);
    free(sums);
    return status;
}
