#include "daemon/fetch/score.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/pool.h"
#include "daemon/fetch/memory.h"

/* A thread is worth its start from about this many products on. */
#define PRODUCTS_PER_THREAD (4u << 20)
#define MAX_THREADS         8

struct work {
    struct samkv_fetch_job *job;
    const float *q_rows;
    uint32_t heads, kv_heads, head_dim;
    size_t width;             /* kv_heads * head_dim */
    size_t tokens, rows;      /* of the query that count; rows = tokens * heads */
    size_t blocks, columns;   /* of all documents; one column more for the preamble */
    float *lse;               /* [stable][rows][columns]: log Σ exp(q · key / √d) over a block's keys */
    float *keys;              /* [kv_heads][head_dim][count] of one document in one layer, at its own positions */
    size_t count;             /* keys */
    struct samkv_stage stage; /* one document's rows; its memory is below */
    uint8_t *stored;
    float *index;
};

/* What a row of the query sees now: the keys of one document (or the preamble) in one layer. */
struct look {
    struct work *w;
    uint32_t layer; /* its place in the list of stable layers */
    double start;   /* joint position of the first key's document */
    size_t column;  /* of the first block */
    uint32_t blocks, block_tokens, tokens;
    bool means; /* a key is a block's mean */
    const bool *no_memory;
};

size_t samkv_fetch_job_scored_tokens(const struct samkv_fetch_job *job)
{
    size_t most = job->request->scoring == SAMKV_SCORE_LAST ? 1 : SAMKV_SCORED_TOKENS;
    return job->query_count < most ? job->query_count : most;
}

float *samkv_fetch_job_rows_new(const struct samkv_fetch_job *job)
{
    size_t width = (size_t)job->collection.heads * job->collection.shape.head_dim;
    return malloc(job->stable_count * samkv_fetch_job_scored_tokens(job) * width * sizeof(float));
}

static bool is_exact(const struct samkv_fetch_job *job)
{
    return job->request->scoring != SAMKV_SCORE_TOKENS;
}

static size_t most_tokens(const struct samkv_fetch_job *job)
{
    size_t most = job->collection.preamble_tokens;
    for (uint32_t i = 0; i < job->document_count; i++)
        if (job->documents[i].manifest.tokens > most)
            most = job->documents[i].manifest.tokens;
    return most;
}

static void work_deinit(struct work *w)
{
    free(w->lse);
    free(w->keys);
    free(w->stored);
    free(w->index);
}

static enum samkv_status work_init(struct work *w, struct samkv_fetch_job *job, const float *q_rows,
                                   struct samkv_error *err)
{
    const struct samkv_kv_shape *shape = &job->collection.shape;
    size_t tokens = samkv_fetch_job_scored_tokens(job);
    *w = (struct work){.job = job,
                       .q_rows = q_rows,
                       .heads = job->collection.heads,
                       .kv_heads = shape->kv_heads,
                       .head_dim = shape->head_dim,
                       .width = samkv_kv_width(shape),
                       .tokens = tokens,
                       .rows = tokens * job->collection.heads};
    for (uint32_t i = 0; i < job->document_count; i++)
        w->blocks += job->documents[i].blocks.count;
    w->columns = w->blocks + 1;
    size_t most = most_tokens(job), stored = is_exact(job) ? most * samkv_kv_token_bytes(shape) : 0;
    size_t lse = job->stable_count * w->rows * w->columns * sizeof *w->lse, keys = most * w->width * sizeof *w->keys;
    enum samkv_status status = samkv_memory_check(lse + 2 * keys + stored, err);
    if (status)
        return status;
    w->lse = malloc(lse);
    w->keys = malloc(keys + 1);
    w->stored = malloc(stored + 1);
    w->index = malloc((most * w->width + (size_t)w->heads * w->head_dim) * sizeof *w->index);
    if (!w->lse || !w->keys || !w->stored || !w->index)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < job->stable_count * w->rows; i++) /* a preamble that is not looked at has no mass */
        w->lse[i * w->columns + w->blocks] = -INFINITY;
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ keys */

/* A key's place in w->keys; its elements lie w->count apart, so that a product runs over keys and not over elements. */
static float *key_of(const struct work *w, size_t head, size_t key)
{
    return w->keys + head * w->head_dim * w->count + key;
}

static float stored_value(const uint8_t *row, size_t j, enum samkv_dtype dtype)
{
    uint16_t half;
    float value;
    if (dtype == SAMKV_F32) {
        memcpy(&value, row + 4 * j, sizeof value);
        return value;
    }
    memcpy(&half, row + 2 * j, sizeof half);
    return dtype == SAMKV_F16 ? samkv_f16_to_f32(half) : samkv_bf16_to_f32(half);
}

/* The position that counts in a layer, which may have no RoPE. */
static double position_in(const struct work *w, uint32_t layer, double position)
{
    return w->job->engine.model->config.no_rope[layer] ? 0 : position;
}

/* Stored K of a layer, each rotated to its place in its document. */
static void take_stored(struct work *w, uint32_t layer, size_t tokens)
{
    const struct samkv_model_config *c = &w->job->engine.model->config;
    uint32_t half = w->head_dim / 2;
    float scale = c->no_rope[layer] ? 1.0f : c->rope_scale;
    w->count = tokens;
    for (size_t t = 0; t < tokens; t++) {
        const uint8_t *row = samkv_stage_row(&w->stage, layer, false, t);
        for (uint32_t j = 0; j < half; j++) {
            double angle = position_in(w, layer, (double)t) * c->inv_freq[j];
            float cosine = (float)cos(angle) * scale, sine = (float)sin(angle) * scale;
            for (uint32_t g = 0; g < w->kv_heads; g++) {
                float a = stored_value(row, (size_t)g * w->head_dim + j, w->stage.shape.dtype);
                float b = stored_value(row, (size_t)g * w->head_dim + half + j, w->stage.shape.dtype);
                key_of(w, g, t)[j * w->count] = a * cosine - b * sine;
                key_of(w, g, t)[(half + j) * w->count] = b * cosine + a * sine;
            }
        }
    }
}

static void take_means(struct work *w, size_t blocks)
{
    w->count = blocks;
    for (size_t b = 0; b < blocks; b++)
        for (uint32_t g = 0; g < w->kv_heads; g++)
            for (uint32_t j = 0; j < w->head_dim; j++)
                key_of(w, g, b)[j * w->count] = w->index[b * w->width + (size_t)g * w->head_dim + j];
}

/* ------------------------------------------------------------------ a row of the query */

/* R(−start) · q / √d: the keys stay where their document has them. */
static void turn_query(const struct work *w, const float *q, double start, float *out)
{
    const double *inv_freq = w->job->engine.model->config.inv_freq;
    uint32_t half = w->head_dim / 2;
    float scale = 1.0f / sqrtf((float)w->head_dim);
    for (uint32_t j = 0; j < half; j++) {
        double angle = -start * inv_freq[j];
        float cosine = (float)cos(angle) * scale, sine = (float)sin(angle) * scale;
        out[j] = q[j] * cosine - q[half + j] * sine;
        out[half + j] = q[half + j] * cosine + q[j] * sine;
    }
}

static float log_sum_exp(const float *x, size_t count)
{
    float highest = x[0], sum = 0;
    for (size_t i = 1; i < count; i++)
        highest = x[i] > highest ? x[i] : highest;
    for (size_t i = 0; i < count; i++)
        sum += expf(x[i] - highest);
    return highest + logf(sum);
}

static void attend(void *arg, int row)
{
    const struct look *look = arg;
    const struct work *w = look->w;
    size_t token = (size_t)row / w->heads, head = (size_t)row % w->heads;
    const float *q =
        w->q_rows + ((size_t)look->layer * w->tokens + token) * w->heads * w->head_dim + head * w->head_dim;
    float *out = w->lse + ((size_t)look->layer * w->rows + (size_t)row) * w->columns + look->column;
    float *logits = calloc(w->count, sizeof *logits), *turned = malloc(w->head_dim * sizeof *turned);
    if (!logits || !turned) {
        __atomic_store_n((bool *)look->no_memory, true, __ATOMIC_RELAXED);
        free(logits), free(turned);
        return;
    }
    turn_query(w, q, position_in(w, w->job->stable[look->layer], look->start), turned);
    for (uint32_t j = 0; j < w->head_dim; j++) {
        const float *keys = key_of(w, head / (w->heads / w->kv_heads), 0) + j * w->count;
        for (size_t n = 0; n < w->count; n++)
            logits[n] += turned[j] * keys[n];
    }
    for (uint32_t b = 0; b < look->blocks; b++) {
        uint32_t first = b * look->block_tokens, left = look->tokens - first;
        uint32_t size = left < look->block_tokens ? left : look->block_tokens;
        out[b] = look->means ? logits[b] + logf((float)size) : log_sum_exp(logits + first, size);
    }
    free(logits);
    free(turned);
}

static enum samkv_status look_at(struct look *look, struct samkv_error *err)
{
    const struct work *w = look->w;
    bool no_memory = false;
    size_t products = w->rows * w->count * w->head_dim, threads = products / PRODUCTS_PER_THREAD + 1;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (cores > 0 && threads > (size_t)cores)
        threads = (size_t)cores;
    look->no_memory = &no_memory;
    samkv_parallel_for((int)w->rows, (int)(threads > MAX_THREADS ? MAX_THREADS : threads), attend, look);
    return no_memory ? samkv_fail(err, SAMKV_NO_MEMORY, "out of memory") : SAMKV_OK;
}

/* ------------------------------------------------------------------ documents */

static enum samkv_status load_stored(struct work *w, const struct samkv_manifest *manifest, struct samkv_error *err)
{
    const struct samkv_kv_shape *shape = &manifest->shape;
    size_t layer = (size_t)manifest->tokens * w->width * samkv_dtype_bytes(shape->dtype);
    struct samkv_load *loads = calloc(manifest->blocks + (size_t)1, sizeof *loads);
    if (!loads)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    w->stage = (struct samkv_stage){.k = w->stored,
                                    .v = w->stored + layer * shape->layers,
                                    .layer_stride_bytes = layer,
                                    .rows = manifest->tokens,
                                    .shape = *shape};
    for (uint32_t b = 0; b < manifest->blocks; b++)
        loads[b] = (struct samkv_load){manifest, b, (size_t)b * manifest->block_tokens};
    enum samkv_status status = samkv_load_blocks(w->job->snapshot, loads, manifest->blocks, &w->stage, err);
    free(loads);
    return status;
}

/* All layers of what has this manifest. */
static enum samkv_status look_at_document(struct work *w, struct look *look, const struct samkv_manifest *manifest,
                                          struct samkv_error *err)
{
    struct samkv_fetch_job *job = w->job;
    enum samkv_status status = look->means ? SAMKV_OK : load_stored(w, manifest, err);
    for (uint32_t s = 0; s < job->stable_count && !status; s++) {
        look->layer = s;
        if (look->means) {
            size_t count = manifest->blocks * w->width + (size_t)w->heads * w->head_dim;
            status = samkv_snapshot_index(job->snapshot, manifest, job->stable[s], w->index, count, err);
            if (!status)
                take_means(w, manifest->blocks);
        } else {
            take_stored(w, job->stable[s], manifest->tokens);
        }
        if (!status)
            status = look_at(look, err);
    }
    return status;
}

static enum samkv_status look_at_preamble(struct work *w, struct samkv_error *err)
{
    struct samkv_manifest manifest;
    enum samkv_status status = samkv_load_manifest(w->job->snapshot, &w->job->collection.preamble_key, &manifest, err);
    struct look look = {.w = w, .column = w->blocks, .blocks = 1};
    if (status)
        return status;
    look.tokens = look.block_tokens = manifest.tokens;
    return look_at_document(w, &look, &manifest, err);
}

/* Masses from the logarithms: each row of the query has one to give. */
static void share_out(const struct work *w, float *scores)
{
    memset(scores, 0, w->job->stable_count * w->blocks * sizeof *scores);
    for (size_t s = 0; s < w->job->stable_count; s++) {
        for (size_t r = 0; r < w->rows; r++) {
            const float *lse = w->lse + (s * w->rows + r) * w->columns;
            float all = log_sum_exp(lse, w->columns);
            for (size_t b = 0; b < w->blocks; b++)
                scores[s * w->blocks + b] += expf(lse[b] - all) / (float)w->rows;
        }
    }
}

enum samkv_status samkv_fetch_job_score(struct samkv_fetch_job *job, const float *q_rows, float *scores,
                                        struct samkv_error *err)
{
    struct work w;
    size_t column = 0;
    enum samkv_status status = work_init(&w, job, q_rows, err);
    if (!status && is_exact(job) && job->collection.preamble_tokens)
        status = look_at_preamble(&w, err);
    for (uint32_t i = 0; i < job->document_count && !status; i++) {
        const struct samkv_fetch_document *d = &job->documents[i];
        struct look look = {.w = &w,
                            .start = d->start,
                            .column = column,
                            .blocks = d->blocks.count,
                            .block_tokens = job->collection.block_tokens,
                            .tokens = d->manifest.tokens,
                            .means = !is_exact(job)};
        status = look_at_document(&w, &look, &d->manifest, err);
        column += d->blocks.count;
    }
    if (!status)
        share_out(&w, scores);
    work_deinit(&w);
    return status;
}
