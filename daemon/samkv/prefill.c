#include "daemon/samkv/prefill.h"

#include <stdlib.h>
#include <string.h>

static uint32_t chunk_tokens_for(const struct samkv_engine *engine, const struct samkv_blocks *blocks)
{
    uint32_t rows = (uint32_t)samkv_workspace_chunk_rows(engine->workspace), block = blocks->block_tokens;
    uint32_t chunk = block < rows ? rows / block * block : block;
    return chunk < blocks->tokens ? chunk : blocks->tokens;
}

static enum samkv_status allocate(struct samkv_prefill *p, struct samkv_error *err)
{
    struct samkv_device *device = p->engine->device;
    const struct samkv_model_config *c = &p->engine->model->config;
    struct samkv_kv_shape shape = samkv_model_kv_shape(p->engine->model, p->engine->stored);
    size_t width = samkv_kv_width(&shape), q_width = (size_t)c->heads * c->head_dim;
    size_t chunk_blocks = p->chunk_tokens / p->blocks.block_tokens + 1;
    size_t means = (chunk_blocks * width + q_width) * c->layers,
           rows = p->chunk_tokens > chunk_blocks ? p->chunk_tokens : chunk_blocks;

    p->index_count = (size_t)p->blocks.count * width + q_width;
    p->index = calloc(p->index_count * c->layers, sizeof *p->index);
    p->means_host = malloc(means * sizeof(float));
    if (!p->index || !p->means_host || device->ops->alloc(device, means * sizeof(float), (void **)&p->means) ||
        device->ops->alloc(device, rows * c->head_dim * sizeof(float), (void **)&p->rope_zero) ||
        device->ops->alloc(device, rows * c->head_dim * sizeof(float), (void **)&p->rope_back) ||
        device->ops->alloc(device, (rows + 1) * sizeof(int32_t), (void **)&p->positions) ||
        device->ops->alloc(device, (chunk_blocks + 4) * sizeof(int32_t), (void **)&p->offsets) ||
        device->ops->alloc(device, p->chunk_tokens * width * samkv_dtype_bytes(device->dtype), &p->staged_k) ||
        device->ops->alloc(device, p->chunk_tokens * width * samkv_dtype_bytes(device->dtype), &p->staged_v) ||
        device->ops->alloc(device, p->chunk_tokens * width * samkv_dtype_bytes(shape.dtype), &p->converted))
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory to prefill a document of %u tokens: split it (chunk tokens)",
                          p->blocks.tokens);
    enum samkv_status status = samkv_stage_init(&p->stage, device, &shape, p->chunk_tokens, err);
    if (status)
        return status;
    return samkv_kv_cache_init(&p->cache, p->engine->model, p->preamble_tokens + (size_t)p->blocks.tokens, err);
}

/* Constant RoPE tables: no rotation (writes K as it is), and R(−P) for the means. */
static enum samkv_status make_tables(struct samkv_prefill *p, struct samkv_error *err)
{
    size_t chunk_blocks = p->chunk_tokens / p->blocks.block_tokens + 1;
    size_t rows = p->chunk_tokens > chunk_blocks ? p->chunk_tokens : chunk_blocks;
    int32_t *positions = calloc(rows, sizeof *positions);
    if (!positions)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    const double *inv_freq = samkv_workspace_inv_freq(p->engine->workspace);
    samkv_rope_rows(p->engine->model, p->engine->stream, inv_freq, positions, (int)rows, p->positions, p->rope_zero);
    enum samkv_status status = p->engine->device->ops->sync(p->engine->stream, err);
    for (size_t i = 0; i < rows; i++)
        positions[i] = -(int32_t)p->preamble_tokens;
    samkv_rope_rows(p->engine->model, p->engine->stream, inv_freq, positions, (int)rows, p->positions, p->rope_back);
    if (!status)
        status = p->engine->device->ops->sync(p->engine->stream, err);
    free(positions);
    return status;
}

static enum samkv_status place_preamble(struct samkv_prefill *p, const struct samkv_stage *preamble,
                                        struct samkv_error *err)
{
    if (!p->preamble_tokens)
        return SAMKV_OK;
    int32_t *positions = malloc(p->preamble_tokens * sizeof *positions);
    if (!positions)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (uint32_t i = 0; i < p->preamble_tokens; i++)
        positions[i] = (int32_t)i;
    enum samkv_status status =
        samkv_stage_place(p->engine, preamble, &p->cache, positions, 0, (int)p->preamble_tokens, err);
    free(positions);
    return status;
}

enum samkv_status samkv_prefill_init(struct samkv_prefill *p, const struct samkv_engine *engine,
                                     const struct samkv_stage *preamble, const int32_t *ids,
                                     const struct samkv_blocks *blocks, struct samkv_error *err)
{
    *p = (struct samkv_prefill){.engine = engine, .ids = ids, .blocks = *blocks};
    p->preamble_tokens = preamble ? (uint32_t)preamble->rows : 0;
    p->chunk_tokens = chunk_tokens_for(engine, blocks);
    enum samkv_status status = allocate(p, err);
    if (!status)
        status = make_tables(p, err);
    if (!status)
        status = place_preamble(p, preamble, err);
    if (status)
        samkv_prefill_deinit(p);
    return status;
}

void samkv_prefill_deinit(struct samkv_prefill *p)
{
    struct samkv_device *device = p->engine->device;
    void *buffers[] = {p->staged_k,  p->staged_v,  p->converted, p->means,
                       p->rope_zero, p->rope_back, p->offsets,   p->positions};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        device->ops->release(device, buffers[i]);
    samkv_kv_cache_deinit(&p->cache, device);
    samkv_stage_deinit(&p->stage);
    free(p->index);
    free(p->means_host);
    *p = (struct samkv_prefill){.engine = p->engine};
}

/* One step's view, for the tap. */
struct step {
    struct samkv_prefill *p;
    uint32_t n;           /* rows of the chunk */
    uint32_t blocks;      /* blocks of the chunk */
    uint32_t local_first; /* row of the chunk at which the local query's rows begin; n when they are not in it */
};

static float *means_of(const struct step *s, float *base, uint32_t layer)
{
    const struct samkv_model_config *c = &s->p->engine->model->config;
    size_t width = (size_t)c->kv_heads * c->head_dim, q_width = (size_t)c->heads * c->head_dim;
    return base + layer * (s->blocks * width + q_width);
}

/* Stored form of the chunk in this layer: RoPE by angle 0 makes the strided K contiguous and leaves it as it is. */
static void stage_layer(const struct step *s, struct samkv_stream *stream, const struct samkv_tap *tap)
{
    struct samkv_prefill *p = s->p;
    const struct samkv_ops *ops = stream->device->ops;
    const struct samkv_model_config *c = &p->engine->model->config;
    size_t count = s->n * samkv_kv_width(&p->stage.shape);
    size_t bytes = count * samkv_dtype_bytes(p->stage.shape.dtype);
    bool direct = stream->device->unified && stream->device->dtype == p->stage.shape.dtype;
    uint8_t *k = samkv_stage_row(&p->stage, tap->layer, false, 0), *v = samkv_stage_row(&p->stage, tap->layer, true, 0);
    const struct samkv_kv_write write = {
        .k = tap->k,
        .v = tap->v,
        .ld = tap->ld,
        .rope = p->rope_zero,
        .k_cache = direct ? (void *)k : p->staged_k,
        .v_cache = direct ? (void *)v : p->staged_v,
        .n = tap->n,
        .kv_heads = (int)c->kv_heads,
        .head_dim = (int)c->head_dim,
        .update = SAMKV_UPDATE_OVERWRITE,
        .fresh_from = 0,
    };
    ops->kv_write(stream, &write);
    if (direct)
        return;
    ops->convert(stream, p->staged_k, stream->device->dtype, p->converted, p->stage.shape.dtype, count);
    ops->download(stream, k, p->converted, bytes);
    ops->convert(stream, p->staged_v, stream->device->dtype, p->converted, p->stage.shape.dtype, count);
    ops->download(stream, v, p->converted, bytes);
}

static void on_layer(void *arg, struct samkv_stream *stream, const struct samkv_tap *tap)
{
    const struct step *s = arg;
    struct samkv_prefill *p = s->p;
    const struct samkv_ops *ops = stream->device->ops;
    const struct samkv_model_config *c = &p->engine->model->config;
    size_t width = (size_t)c->kv_heads * c->head_dim;
    size_t row_bytes = width * samkv_dtype_bytes(stream->device->dtype);
    float *means = means_of(s, p->means, tap->layer);
    const uint8_t *cached =
        (const uint8_t *)samkv_kv_cache_k(&p->cache, tap->layer) + (p->preamble_tokens + (size_t)p->done) * row_bytes;

    stage_layer(s, stream, tap);
    ops->segment_mean(stream, cached, width, p->offsets, (int)s->blocks, (int)width, means);
    ops->rope_f32(stream, means, p->rope_back, (int)s->blocks, (int)c->kv_heads, (int)c->head_dim);
    if (s->local_first < s->n) {
        float *q = means + s->blocks * width;
        ops->segment_mean(stream, tap->q, tap->ld, p->offsets + s->blocks + 1, 1, (int)(c->heads * c->head_dim), q);
        ops->rope_f32(stream, q, p->rope_back, 1, (int)c->heads, (int)c->head_dim);
    }
}

/* The step's means into the index. A local query may span steps: each adds its rows' share of the mean. */
static void collect(const struct step *s)
{
    struct samkv_prefill *p = s->p;
    const struct samkv_model_config *c = &p->engine->model->config;
    size_t width = (size_t)c->kv_heads * c->head_dim, q_width = (size_t)c->heads * c->head_dim;
    uint32_t first_block = p->done / p->blocks.block_tokens;
    uint32_t local_first = p->blocks.local * p->blocks.block_tokens;
    uint32_t local_rows = p->blocks.local < p->blocks.count ? p->blocks.tokens - local_first : 0;
    for (uint32_t l = 0; l < c->layers; l++) {
        const float *means = means_of(s, p->means_host, l);
        float *index = p->index + l * p->index_count;
        memcpy(index + first_block * width, means, s->blocks * width * sizeof *index);
        if (s->local_first >= s->n)
            continue;
        float share = (float)(s->n - s->local_first) / (float)local_rows;
        for (size_t j = 0; j < q_width; j++)
            index[p->blocks.count * width + j] += share * means[s->blocks * width + j];
    }
}

static enum samkv_status upload_offsets(const struct step *s, struct samkv_error *err)
{
    struct samkv_prefill *p = s->p;
    int32_t *offsets = malloc((s->blocks + 4) * sizeof *offsets);
    if (!offsets)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (uint32_t b = 0; b <= s->blocks; b++) {
        uint32_t at = b * p->blocks.block_tokens;
        offsets[b] = (int32_t)(at < s->n ? at : s->n);
    }
    offsets[s->blocks + 1] = (int32_t)s->local_first;
    offsets[s->blocks + 2] = (int32_t)s->n;
    p->engine->device->ops->upload(p->engine->stream, p->offsets, offsets, (s->blocks + 3) * sizeof *offsets);
    enum samkv_status status = p->engine->device->ops->sync(p->engine->stream, err);
    free(offsets);
    return status;
}

/* The forward pass of the chunk, with the tap. */
static enum samkv_status run_pass(struct step *s, struct samkv_error *err)
{
    struct samkv_prefill *p = s->p;
    int32_t *columns = malloc(3 * (size_t)s->n * sizeof *columns);
    if (!columns)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    int32_t *positions = columns, *limits = columns + s->n;
    for (uint32_t i = 0; i < s->n; i++) {
        positions[i] = (int32_t)(p->preamble_tokens + p->done + i);
        limits[i] = positions[i] + 1;
    }
    const struct samkv_pass pass = {
        .n = (int)s->n,
        .ids = p->ids + p->done,
        .positions = positions,
        .cache_rows = positions, /* nothing is left out: a token's row is its position */
        .limits = limits,
        .depth = p->engine->model->config.layers,
        .tap = on_layer,
        .tap_arg = s,
    };
    enum samkv_status status =
        samkv_forward(p->engine->model, p->engine->stream, p->engine->workspace, &pass, &p->cache, err);
    free(columns);
    return status;
}

enum samkv_status samkv_prefill_step(struct samkv_prefill *p, struct samkv_error *err)
{
    const struct samkv_model_config *c = &p->engine->model->config;
    uint32_t left = p->blocks.tokens - p->done, n = left < p->chunk_tokens ? left : p->chunk_tokens;
    uint32_t local = p->blocks.local < p->blocks.count ? p->blocks.local * p->blocks.block_tokens : p->blocks.tokens;
    struct step s = {
        .p = p,
        .n = n,
        .blocks = (n + p->blocks.block_tokens - 1) / p->blocks.block_tokens,
        .local_first = local <= p->done      ? 0
                       : local - p->done < n ? local - p->done
                                             : n,
    };
    enum samkv_status status = upload_offsets(&s, err);
    if (!status)
        status = run_pass(&s, err);
    if (status)
        return status;
    size_t width = (size_t)c->kv_heads * c->head_dim, q_width = (size_t)c->heads * c->head_dim;
    p->engine->device->ops->download(p->engine->stream, p->means_host, p->means,
                                     c->layers * (s.blocks * width + q_width) * sizeof(float));
    status = p->engine->device->ops->sync(p->engine->stream, err);
    if (status)
        return status;
    collect(&s);
    p->done += n;
    return SAMKV_OK;
}
