#include "daemon/samkv/recompute.h"

#include "daemon/samkv/recompute_delta.h"

#include <stdlib.h>

/* ------------------------------------------------------------------ step 1 */

/* Means of Q that the tap leaves on the device: one [heads * head_dim] for each chunk and stable layer. */
struct means {
    const struct samkv_query_pass *query;
    size_t width;
    int chunk_rows, chunks;
    float *device;    /* [chunks][stable_count][width] */
    int32_t *offsets; /* [chunks][2]: rows [0, n) of a chunk */
};

static void on_layer(void *arg, struct samkv_stream *stream, const struct samkv_tap *tap)
{
    struct means *m = arg;
    for (uint32_t s = 0; s < m->query->stable_count; s++) {
        if (m->query->stable_layers[s] != tap->layer)
            continue;
        int chunk = tap->first / m->chunk_rows;
        float *out = m->device + ((size_t)chunk * m->query->stable_count + s) * m->width;
        stream->device->ops->segment_mean(stream, tap->q, tap->ld, m->offsets + 2 * chunk, 1, (int)m->width, out);
    }
}

static int rows_of(const struct means *m, int chunk)
{
    int left = m->query->query_count - chunk * m->chunk_rows;
    return left < m->chunk_rows ? left : m->chunk_rows;
}

static enum samkv_status means_init(struct means *m, const struct samkv_engine *e, const struct samkv_query_pass *query)
{
    const struct samkv_model_config *c = &e->model->config;
    int chunk_rows = samkv_workspace_chunk_rows(e->workspace);
    *m = (struct means){
        .query = query,
        .width = (size_t)c->heads * c->head_dim,
        .chunk_rows = chunk_rows,
        .chunks = (query->query_count + chunk_rows - 1) / chunk_rows,
    };
    size_t count = (size_t)m->chunks * query->stable_count * m->width;
    int32_t *host = malloc((size_t)m->chunks * 2 * sizeof *host);
    if (!host)
        return SAMKV_NO_MEMORY;
    enum samkv_status status = e->device->ops->alloc(e->device, count * sizeof(float), (void **)&m->device);
    if (!status)
        status = e->device->ops->alloc(e->device, (size_t)m->chunks * 2 * sizeof *host, (void **)&m->offsets);
    if (!status) {
        for (int i = 0; i < m->chunks; i++) {
            host[2 * i] = 0;
            host[2 * i + 1] = rows_of(m, i);
        }
        e->device->ops->upload(e->stream, m->offsets, host, (size_t)m->chunks * 2 * sizeof *host);
        status = e->device->ops->sync(e->stream, NULL);
    }
    free(host);
    return status;
}

static void means_deinit(struct means *m, const struct samkv_engine *e)
{
    e->device->ops->release(e->device, m->device);
    e->device->ops->release(e->device, m->offsets);
}

/* The chunks' means, weighted by their rows. */
static enum samkv_status combine(const struct means *m, const struct samkv_engine *e, float *out,
                                 struct samkv_error *err)
{
    size_t one = m->query->stable_count * m->width;
    float *host = malloc((size_t)m->chunks * one * sizeof *host);
    if (!host)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    e->device->ops->download(e->stream, host, m->device, (size_t)m->chunks * one * sizeof *host);
    enum samkv_status status = e->device->ops->sync(e->stream, err);
    for (size_t j = 0; j < one && !status; j++) {
        double sum = 0;
        for (int i = 0; i < m->chunks; i++)
            sum += (double)host[(size_t)i * one + j] * rows_of(m, i);
        out[j] = (float)(sum / m->query->query_count);
    }
    free(host);
    return status;
}

enum samkv_status samkv_query_run(const struct samkv_engine *e, struct samkv_kv_cache *cache,
                                  const struct samkv_query_pass *q,
                                  void (*tap)(void *, struct samkv_stream *, const struct samkv_tap *), void *tap_arg,
                                  struct samkv_error *err)
{
    size_t n = (size_t)q->query_count;
    int32_t *columns = malloc(3 * n * sizeof *columns);
    if (!columns)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < n; i++) {
        columns[i] = q->first_position + (int32_t)i;
        columns[n + i] = q->anchor_rows + (int32_t)i;
        columns[2 * n + i] = q->anchor_rows + (int32_t)i + 1;
    }
    const struct samkv_pass pass = {
        .n = q->query_count,
        .ids = q->query,
        .positions = columns,
        .cache_rows = columns + n,
        .limits = columns + 2 * n,
        .depth = q->stable_layers[q->stable_count - 1] + 1,
        .tap = tap,
        .tap_arg = tap_arg,
        .before_layer = q->before_layer,
        .before_layer_arg = q->before_layer_arg,
        .cancelled = q->cancelled,
    };
    enum samkv_status status = samkv_forward(e->model, e->stream, e->workspace, &pass, cache, err);
    free(columns);
    return status;
}

enum samkv_status samkv_query_vector(const struct samkv_engine *engine, struct samkv_kv_cache *cache,
                                     const struct samkv_query_pass *query, float *out, struct samkv_error *err)
{
    struct means m;
    enum samkv_status status = means_init(&m, engine, query);
    if (status) {
        samkv_fail(err, status, "no memory on %s for the query's vector", engine->device->name);
    } else {
        status = samkv_query_run(engine, cache, query, on_layer, &m, err);
        if (!status)
            status = combine(&m, engine, out, err);
    }
    means_deinit(&m, engine);
    return status;
}

/* ------------------------------------------------------------------ steps 2 and 3 */

/* Device memory of one scoring, cut from one allocation. */
struct scoring_memory {
    uint8_t *base;
    const float **index;
    int32_t *first_block, *starts;
    float *rope, *work, *scores;
    uint8_t *no_rope; /* NULL when all layers have RoPE */
};

static size_t cut(size_t *at, size_t bytes)
{
    size_t first = *at;
    *at += (bytes + 63) / 64 * 64;
    return first;
}

static enum samkv_status scoring_memory_init(struct scoring_memory *m, const struct samkv_engine *e,
                                             const struct samkv_query_pass *q, const struct samkv_query_scoring *s)
{
    const struct samkv_model_config *c = &e->model->config;
    size_t n = s->documents, layers = q->stable_count, at = 0;
    size_t index = cut(&at, n * layers * sizeof *m->index), first_block = cut(&at, (n + 1) * sizeof(int32_t));
    size_t starts = cut(&at, n * sizeof(int32_t)), rope = cut(&at, n * c->head_dim * sizeof(float));
    size_t work = cut(&at, n * layers * (c->heads + (size_t)c->kv_heads * c->head_dim) * sizeof(float));
    size_t scores = cut(&at, layers * (size_t)s->first_block[n] * sizeof(float)), no_rope = cut(&at, layers);
    enum samkv_status status = e->device->ops->alloc(e->device, at, (void **)&m->base);
    if (status)
        return status;
    m->index = (const float **)(m->base + index);
    m->first_block = (int32_t *)(m->base + first_block);
    m->starts = (int32_t *)(m->base + starts);
    m->rope = (float *)(m->base + rope);
    m->work = (float *)(m->base + work);
    m->scores = (float *)(m->base + scores);
    m->no_rope = c->any_no_rope ? m->base + no_rope : NULL;
    return SAMKV_OK;
}

static enum samkv_status run_scores(const struct samkv_engine *e, const struct samkv_query_pass *q,
                                    const struct samkv_query_scoring *s, const float *q_query,
                                    const struct scoring_memory *m, struct samkv_error *err)
{
    const struct samkv_model_config *c = &e->model->config;
    const struct samkv_ops *ops = e->device->ops;
    size_t n = s->documents, layers = q->stable_count;
    uint8_t no_rope[SAMKV_MAX_LAYERS];
    for (size_t i = 0; i < layers; i++)
        no_rope[i] = c->no_rope[q->stable_layers[i]];
    const struct samkv_score score = {
        .documents = (int)n,
        .layers = (int)layers,
        .heads = (int)c->heads,
        .kv_heads = (int)c->kv_heads,
        .head_dim = (int)c->head_dim,
        .q_query = q_query,
        .index = m->index,
        .first_block = m->first_block,
        .blocks = s->first_block[n],
        .rope = m->rope,
        .no_rope = m->no_rope,
        .work = m->work,
        .scores = m->scores,
    };
    ops->upload(e->stream, m->index, s->index, n * layers * sizeof *s->index);
    ops->upload(e->stream, m->first_block, s->first_block, (n + 1) * sizeof *s->first_block);
    samkv_rotation_rows(e->model, e->stream, samkv_workspace_inv_freq(e->workspace), s->starts, (int)n, m->starts,
                        m->rope);
    if (m->no_rope)
        ops->upload(e->stream, m->no_rope, no_rope, layers);
    ops->score(e->stream, &score);
    ops->download(e->stream, s->scores, m->scores, layers * (size_t)s->first_block[n] * sizeof(float));
    return ops->sync(e->stream, err);
}

/* The whole query's mean as the first of the chunks' on the device. */
static enum samkv_status gather_means(const struct means *m, const struct samkv_engine *e, struct samkv_error *err)
{
    size_t one = m->query->stable_count * m->width;
    if (m->chunks == 1)
        return SAMKV_OK;
    float *host = malloc(one * sizeof *host);
    if (!host)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    enum samkv_status status = combine(m, e, host, err);
    if (!status) {
        e->device->ops->upload(e->stream, m->device, host, one * sizeof *host);
        status = e->device->ops->sync(e->stream, err);
    }
    free(host);
    return status;
}

enum samkv_status samkv_query_scores(const struct samkv_engine *engine, struct samkv_kv_cache *cache,
                                     const struct samkv_query_pass *query, const struct samkv_query_scoring *scoring,
                                     struct samkv_error *err)
{
    struct means m;
    struct scoring_memory memory = {0};
    enum samkv_status status = means_init(&m, engine, query);
    if (!status)
        status = scoring_memory_init(&memory, engine, query, scoring);
    if (status)
        samkv_fail(err, status, "no memory on %s to score the documents' blocks", engine->device->name);
    if (!status)
        status = samkv_query_run(engine, cache, query, on_layer, &m, err);
    if (!status)
        status = gather_means(&m, engine, err);
    if (!status && scoring->ready)
        status = scoring->ready(scoring->ready_arg, err);
    if (!status)
        status = run_scores(engine, query, scoring, m.device, &memory, err);
    means_deinit(&m, engine);
    engine->device->ops->release(engine->device, memory.base);
    return status;
}

/* ------------------------------------------------------------------ step 5 */

/* The rows that are recomputed at all, as columns of a pass. */
struct active {
    int n, fresh_from;
    int32_t *ids, *positions, *cache_rows, *limits;
    uint32_t *depths;
    void *memory;
};

/* Of the rows from `first` on. */
static enum samkv_status active_init(struct active *a, const struct samkv_recompute *r, int first)
{
    size_t all = (size_t)r->rows + (size_t)r->query_count;
    *a = (struct active){.memory = malloc(5 * all * sizeof(int32_t) + 1)};
    if (!a->memory)
        return SAMKV_NO_MEMORY;
    a->ids = a->memory;
    a->positions = a->ids + all;
    a->cache_rows = a->positions + all;
    a->limits = a->cache_rows + all;
    a->depths = (uint32_t *)(a->limits + all);
    for (size_t i = 0; i < all; i++) {
        if (i == (size_t)r->rows)
            a->fresh_from = a->n;
        if (i < (size_t)first || !r->depths[i])
            continue;
        a->ids[a->n] = r->ids[i];
        a->positions[a->n] = r->positions[i];
        a->cache_rows[a->n] = (int32_t)i;
        a->limits[a->n] = (int32_t)i + 1;
        a->depths[a->n] = r->depths[i];
        a->n++;
    }
    if (!r->query_count)
        a->fresh_from = a->n;
    return SAMKV_OK;
}

enum samkv_status samkv_recompute(const struct samkv_engine *engine, struct samkv_kv_cache *cache,
                                  const struct samkv_recompute *r, struct samkv_error *err)
{
    struct active a;
    bool delta = r->update == SAMKV_UPDATE_DELTA;
    enum samkv_status status = delta ? samkv_recompute_delta(engine, cache, r, err) : SAMKV_OK;
    if (status)
        return status;
    status = active_init(&a, r, delta ? r->rows : 0);
    if (status)
        return samkv_fail(err, status, "out of memory");
    const struct samkv_pass pass = {
        .n = a.n,
        .ids = a.ids,
        .positions = a.positions,
        .cache_rows = a.cache_rows,
        .limits = a.limits,
        .depths = a.depths,
        .update = delta ? SAMKV_UPDATE_OVERWRITE : r->update, /* what is left then is the query's */
        .theta = r->theta,
        .fresh_from = a.fresh_from,
        .before_layer = r->before_layer,
        .before_layer_arg = r->before_layer_arg,
        .logits = r->logits,
        .cancelled = r->cancelled,
    };
    if (a.n)
        status = samkv_forward(engine->model, engine->stream, engine->workspace, &pass, cache, err);
    free(a.memory);
    return status;
}
