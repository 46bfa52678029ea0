#include "daemon/model/forward.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

/* Large enough that the matrix products run at full rate, small enough that a chunk's activations stay near the cores.
 */
#define CHUNK_ROWS_CPU 512
#define CHUNK_ROWS_GPU 8192

/* Rows whose logits are in memory at a time: a vocabulary may have 150,000 entries. */
#define LOGITS_ROWS 16

struct samkv_workspace {
    struct samkv_device *device;
    int chunk_rows;
    int rows; /* what the buffers below hold */
    void *hidden, *hidden_next, *norm, *qkv, *attended, *activated;
    void *gate_up; /* also Q, K and V of the rows that stay when others leave a layer */
    float *rope;
    int32_t *ids, *positions, *cache_rows, *firsts, *limits, *keep;
    double *inv_freq;
    uint8_t *no_rope; /* [layers]; NULL when all layers have RoPE */
    void *logits;     /* [LOGITS_ROWS][vocab] in the activation type */
    float *logits_f32;
};

/* ------------------------------------------------------------------ KV cache */

enum samkv_status samkv_kv_cache_init(struct samkv_kv_cache *cache, const struct samkv_model *model, size_t rows,
                                      struct samkv_error *err)
{
    const struct samkv_model_config *c = &model->config;
    size_t row_bytes = (size_t)c->kv_heads * c->head_dim * samkv_dtype_bytes(model->device->dtype);
    size_t layer, total;
    *cache = (struct samkv_kv_cache){0};
    if (__builtin_mul_overflow(rows, row_bytes, &layer) || __builtin_mul_overflow(layer, 2 * (size_t)c->layers, &total))
        return samkv_fail(err, SAMKV_TOO_LARGE, "a KV cache of %zu tokens is too large: ask for fewer documents", rows);
    if (model->device->ops->alloc(model->device, total ? total : 1, &cache->allocation))
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for a KV cache of %zu tokens (%zu MB): ask for less", rows,
                          total >> 20);
    cache->k = cache->allocation;
    cache->v = cache->k + layer * c->layers;
    cache->layer_stride_bytes = layer;
    cache->rows = rows;
    return SAMKV_OK;
}

void samkv_kv_cache_deinit(struct samkv_kv_cache *cache, struct samkv_device *device)
{
    if (cache->allocation)
        device->ops->release(device, cache->allocation);
    *cache = (struct samkv_kv_cache){0};
}

/* ------------------------------------------------------------------ workspace */

static void release_rows(struct samkv_workspace *ws)
{
    void **buffers[] = {&ws->hidden,
                        &ws->hidden_next,
                        &ws->norm,
                        &ws->qkv,
                        &ws->attended,
                        &ws->gate_up,
                        &ws->activated,
                        (void **)&ws->rope,
                        (void **)&ws->ids,
                        (void **)&ws->positions,
                        (void **)&ws->cache_rows,
                        (void **)&ws->firsts,
                        (void **)&ws->limits,
                        (void **)&ws->keep};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        ws->device->ops->release(ws->device, *buffers[i]);
        *buffers[i] = NULL;
    }
    ws->rows = 0;
}

/* Makes room for a chunk of `rows`. Grows by doubling, so a lane settles after a few requests. */
static enum samkv_status reserve_rows(struct samkv_workspace *ws, const struct samkv_model_config *c, int rows)
{
    if (rows <= ws->rows)
        return SAMKV_OK;
    int target = ws->rows ? ws->rows : 64;
    while (target < rows)
        target *= 2;
    if (target > ws->chunk_rows)
        target = ws->chunk_rows;
    release_rows(ws);

    size_t n = (size_t)target, e = samkv_dtype_bytes(ws->device->dtype);
    size_t q_width = (size_t)c->heads * c->head_dim, qkv_width = q_width + 2 * (size_t)c->kv_heads * c->head_dim;
    size_t gate_up = 2 * (size_t)c->ffn > qkv_width ? 2 * (size_t)c->ffn : qkv_width;
    const struct {
        void **to;
        size_t bytes;
    } wanted[] = {
        {&ws->hidden, n * c->hidden * e},
        {&ws->hidden_next, n * c->hidden * e},
        {&ws->norm, n * c->hidden * e},
        {&ws->qkv, n * qkv_width * e},
        {&ws->attended, n * q_width * e},
        {&ws->gate_up, n * gate_up * e},
        {&ws->activated, n * c->ffn * e},
        {(void **)&ws->rope, n * c->head_dim * sizeof(float)},
        {(void **)&ws->ids, n * sizeof(int32_t)},
        {(void **)&ws->positions, n * sizeof(int32_t)},
        {(void **)&ws->cache_rows, n * sizeof(int32_t)},
        {(void **)&ws->firsts, n * sizeof(int32_t)},
        {(void **)&ws->limits, n * sizeof(int32_t)},
        {(void **)&ws->keep, n * sizeof(int32_t)},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        if (ws->device->ops->alloc(ws->device, wanted[i].bytes, wanted[i].to)) {
            release_rows(ws);
            return SAMKV_NO_MEMORY;
        }
    }
    ws->rows = target;
    return SAMKV_OK;
}

enum samkv_status samkv_workspace_new(const struct samkv_model *model, struct samkv_workspace **out,
                                      struct samkv_error *err)
{
    struct samkv_device *device = model->device;
    const struct samkv_model_config *c = &model->config;
    struct samkv_stream *stream = NULL;
    uint8_t no_rope[SAMKV_MAX_LAYERS];
    struct samkv_workspace *ws = calloc(1, sizeof *ws);
    if (!ws)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    ws->device = device;
    ws->chunk_rows = device->unified ? CHUNK_ROWS_CPU : CHUNK_ROWS_GPU;
    size_t half = c->head_dim / 2;
    if (device->ops->alloc(device, half * sizeof(double), (void **)&ws->inv_freq) ||
        device->ops->alloc(device, LOGITS_ROWS * (size_t)c->vocab * samkv_dtype_bytes(device->dtype), &ws->logits) ||
        device->ops->alloc(device, LOGITS_ROWS * (size_t)c->vocab * sizeof(float), (void **)&ws->logits_f32) ||
        device->ops->stream_new(device, &stream))
        goto fail;
    if (c->any_no_rope && device->ops->alloc(device, c->layers, (void **)&ws->no_rope))
        goto fail;
    device->ops->upload(stream, ws->inv_freq, c->inv_freq, half * sizeof(double));
    for (uint32_t l = 0; l < c->layers && ws->no_rope; l++)
        no_rope[l] = c->no_rope[l];
    if (ws->no_rope)
        device->ops->upload(stream, ws->no_rope, no_rope, c->layers);
    if (device->ops->sync(stream, err))
        goto fail;
    device->ops->stream_free(stream);
    *out = ws;
    return SAMKV_OK;
fail:
    if (stream)
        device->ops->stream_free(stream);
    samkv_workspace_free(ws);
    return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for the forward pass on %s: use a smaller model", device->name);
}

void samkv_workspace_free(struct samkv_workspace *ws)
{
    if (!ws)
        return;
    release_rows(ws);
    ws->device->ops->release(ws->device, ws->inv_freq);
    ws->device->ops->release(ws->device, ws->no_rope);
    ws->device->ops->release(ws->device, ws->logits);
    ws->device->ops->release(ws->device, ws->logits_f32);
    free(ws);
}

const double *samkv_workspace_inv_freq(const struct samkv_workspace *ws)
{
    return ws->inv_freq;
}

const uint8_t *samkv_workspace_no_rope(const struct samkv_workspace *ws)
{
    return ws->no_rope;
}

int samkv_workspace_chunk_rows(const struct samkv_workspace *ws)
{
    return ws->chunk_rows;
}

/* ------------------------------------------------------------------ placing stored rows */

static void make_table(const struct samkv_model *model, struct samkv_stream *stream, const double *inv_freq_device,
                       const int32_t *positions, int n, int32_t *positions_device, float scale, float *table)
{
    const struct samkv_ops *ops = stream->device->ops;
    ops->upload(stream, positions_device, positions, (size_t)n * sizeof *positions);
    ops->rope_table(stream, inv_freq_device, (int)model->config.head_dim / 2, positions_device, n, scale, table);
}

void samkv_rope_rows(const struct samkv_model *model, struct samkv_stream *stream, const double *inv_freq_device,
                     const int32_t *positions, int n, int32_t *positions_device, float *table)
{
    make_table(model, stream, inv_freq_device, positions, n, positions_device, model->config.rope_scale, table);
}

void samkv_rotation_rows(const struct samkv_model *model, struct samkv_stream *stream, const double *inv_freq_device,
                         const int32_t *positions, int n, int32_t *positions_device, float *table)
{
    make_table(model, stream, inv_freq_device, positions, n, positions_device, 1, table);
}

void samkv_cache_place(const struct samkv_model *model, struct samkv_stream *stream, struct samkv_kv_cache *cache,
                       uint32_t layer, const void *k_src, const void *v_src, enum samkv_dtype src_dtype,
                       const float *rope, int first_row, int n)
{
    const struct samkv_place place = {
        .k_src = k_src,
        .v_src = v_src,
        .src_dtype = src_dtype,
        .rope = model->config.no_rope[layer] ? NULL : rope,
        .k_cache = samkv_kv_cache_k(cache, layer),
        .v_cache = samkv_kv_cache_v(cache, layer),
        .first_row = first_row,
        .n = n,
        .kv_heads = (int)model->config.kv_heads,
        .head_dim = (int)model->config.head_dim,
    };
    stream->device->ops->place(stream, &place);
}

/* ------------------------------------------------------------------ the pass */

/* A chunk of a pass on its way through the layers. Rows drop out as their depth is reached. */
struct chunk {
    const struct samkv_model *model;
    struct samkv_stream *stream;
    const struct samkv_ops *ops;
    struct samkv_workspace *ws;
    const struct samkv_pass *pass;
    struct samkv_kv_cache *cache;
    int first, end; /* rows of the pass */
    int n;          /* of them that are still in */
    int n_keys;     /* of the cache, that rows which are in see */
    void *q;        /* of the layer: [n] rows of Q, K and V */
    int32_t *rows;  /* host: which rows of the pass are still in, [n] */
    int32_t *host;  /* host scratch, [n] */
};

static size_t qkv_width(const struct samkv_model_config *c)
{
    return ((size_t)c->heads + 2 * (size_t)c->kv_heads) * c->head_dim;
}

static void upload_column(struct chunk *ck, int32_t *device, const int32_t *column)
{
    for (int i = 0; i < ck->n; i++)
        ck->host[i] = column[ck->rows[i]];
    ck->ops->upload(ck->stream, device, ck->host, (size_t)ck->n * sizeof(int32_t));
}

/* Positions, cache rows, what they see and the RoPE table of the rows that are in. */
static void upload_rows(struct chunk *ck)
{
    ck->n_keys = ck->pass->prefix;
    for (int i = 0; i < ck->n; i++)
        if (ck->pass->limits[ck->rows[i]] > ck->n_keys)
            ck->n_keys = ck->pass->limits[ck->rows[i]];
    if (ck->pass->firsts)
        upload_column(ck, ck->ws->firsts, ck->pass->firsts);
    upload_column(ck, ck->ws->positions, ck->pass->positions);
    upload_column(ck, ck->ws->cache_rows, ck->pass->cache_rows);
    upload_column(ck, ck->ws->limits, ck->pass->limits);
    ck->ops->rope_table(ck->stream, ck->ws->inv_freq, (int)ck->model->config.head_dim / 2, ck->ws->positions, ck->n,
                        ck->model->config.rope_scale, ck->ws->rope);
}

static void project(struct chunk *ck, const void *x, int in, const void *w, const void *bias, void *y, size_t ldy,
                    int out, bool accumulate)
{
    const struct samkv_matmul m = {
        .x = x,
        .ldx = (size_t)in,
        .w = w,
        .bias = bias,
        .y = y,
        .ldy = ldy,
        .n = ck->n,
        .in = in,
        .out = out,
        .accumulate = accumulate,
    };
    ck->ops->matmul(ck->stream, &m);
}

static void *element(void *base, size_t index, size_t element_bytes)
{
    return (uint8_t *)base + index * element_bytes;
}

/* Q, K and V of the chunk into ws->qkv, norms of heads and Q's RoPE applied; K is still before RoPE. */
static void project_qkv(struct chunk *ck, const struct samkv_layer *layer, uint32_t l)
{
    const struct samkv_model_config *c = &ck->model->config;
    struct samkv_workspace *ws = ck->ws;
    size_t e = samkv_dtype_bytes(ws->device->dtype), ld = qkv_width(c);
    int d = (int)c->head_dim, hidden = (int)c->hidden, q = (int)c->heads * d, kv = (int)c->kv_heads * d;
    void *k_part = element(ws->qkv, (size_t)q, e), *v_part = element(ws->qkv, (size_t)(q + kv), e);

    if (layer->qkv_fused) {
        project(ck, ws->norm, hidden, layer->wq, layer->bq, ws->qkv, ld, q + 2 * kv, false);
    } else {
        project(ck, ws->norm, hidden, layer->wq, layer->bq, ws->qkv, ld, q, false);
        project(ck, ws->norm, hidden, layer->wk, layer->bk, k_part, ld, kv, false);
        project(ck, ws->norm, hidden, layer->wv, layer->bv, v_part, ld, kv, false);
    }
    if (layer->q_norm)
        ck->ops->head_norm(ck->stream, ws->qkv, ld, layer->q_norm, c->rms_eps, ck->n, (int)c->heads, d);
    if (layer->k_norm)
        ck->ops->head_norm(ck->stream, k_part, ld, layer->k_norm, c->rms_eps, ck->n, (int)c->kv_heads, d);
    if (!c->no_rope[l])
        ck->ops->rope(ck->stream, ws->qkv, ld, ws->rope, ck->n, (int)c->heads, d);
    ck->q = ws->qkv;
}

static void write_cache(struct chunk *ck, uint32_t l)
{
    const struct samkv_model_config *c = &ck->model->config;
    size_t e = samkv_dtype_bytes(ck->ws->device->dtype);
    size_t q = (size_t)c->heads * c->head_dim, kv = (size_t)c->kv_heads * c->head_dim;
    int fresh = 0;
    while (fresh < ck->n && ck->rows[fresh] < ck->pass->fresh_from)
        fresh++;
    const struct samkv_kv_write write = {
        .k = element(ck->ws->qkv, q, e),
        .v = element(ck->ws->qkv, q + kv, e),
        .ld = qkv_width(c),
        .rope = c->no_rope[l] ? NULL : ck->ws->rope,
        .rows = ck->ws->cache_rows,
        .k_cache = samkv_kv_cache_k(ck->cache, l),
        .v_cache = samkv_kv_cache_v(ck->cache, l),
        .n = ck->n,
        .kv_heads = (int)c->kv_heads,
        .head_dim = (int)c->head_dim,
        .update = ck->pass->update,
        .theta = ck->pass->theta,
        .fresh_from = fresh,
    };
    ck->ops->kv_write(ck->stream, &write);
}

static void attend(struct chunk *ck, const struct samkv_layer *layer, uint32_t l)
{
    const struct samkv_model_config *c = &ck->model->config;
    size_t q = (size_t)c->heads * c->head_dim;
    const struct samkv_attention attention = {
        .q = ck->q,
        .ldq = qkv_width(c),
        .k = samkv_kv_cache_k(ck->cache, l),
        .v = samkv_kv_cache_v(ck->cache, l),
        .out = ck->ws->attended,
        .ldo = q,
        .n = ck->n,
        .n_keys = ck->n_keys,
        .heads = (int)c->heads,
        .kv_heads = (int)c->kv_heads,
        .head_dim = (int)c->head_dim,
        .scale = 1.0f / sqrtf((float)c->head_dim),
        .prefix = ck->pass->prefix,
        .first = ck->pass->firsts ? ck->ws->firsts : NULL,
        .limit = ck->ws->limits,
    };
    ck->ops->attention(ck->stream, &attention);
    project(ck, ck->ws->attended, (int)q, layer->wo, NULL, ck->ws->hidden, c->hidden, (int)c->hidden, true);
}

static void feed_forward(struct chunk *ck, const struct samkv_layer *layer)
{
    const struct samkv_model_config *c = &ck->model->config;
    struct samkv_workspace *ws = ck->ws;
    size_t e = samkv_dtype_bytes(ws->device->dtype), ld = 2 * (size_t)c->ffn;
    int hidden = (int)c->hidden, ffn = (int)c->ffn;

    ck->ops->rmsnorm(ck->stream, ws->hidden, c->hidden, layer->ffn_norm, c->rms_eps, ck->n, hidden, ws->norm,
                     c->hidden);
    if (layer->gate_up_fused) {
        project(ck, ws->norm, hidden, layer->w_gate, NULL, ws->gate_up, ld, 2 * ffn, false);
    } else {
        project(ck, ws->norm, hidden, layer->w_gate, NULL, ws->gate_up, ld, ffn, false);
        project(ck, ws->norm, hidden, layer->w_up, NULL, element(ws->gate_up, c->ffn, e), ld, ffn, false);
    }
    ck->ops->swiglu(ck->stream, ws->gate_up, ck->n, ffn, ws->activated);
    project(ck, ws->activated, ffn, layer->w_down, NULL, ws->hidden, c->hidden, hidden, true);
}

static void run_tap(struct chunk *ck, uint32_t l)
{
    const struct samkv_model_config *c = &ck->model->config;
    size_t e = samkv_dtype_bytes(ck->ws->device->dtype);
    size_t q = (size_t)c->heads * c->head_dim, kv = (size_t)c->kv_heads * c->head_dim;
    const struct samkv_tap tap = {
        .layer = l,
        .first = ck->first,
        .n = ck->n,
        .q = ck->ws->qkv,
        .k = element(ck->ws->qkv, q, e),
        .v = element(ck->ws->qkv, q + kv, e),
        .ld = qkv_width(c),
        .rope = ck->ws->rope,
        .cache_rows = ck->ws->cache_rows,
    };
    ck->pass->tap(ck->pass->tap_arg, ck->stream, &tap);
}

static uint32_t depth_of(const struct samkv_pass *pass, int row)
{
    return pass->depths ? pass->depths[row] : pass->depth;
}

static int logits_rows(const struct samkv_pass *pass)
{
    return pass->logits_rows ? pass->logits_rows : 1;
}

/* The first row of the chunk whose logits are wanted behind the last layer; ck->n before that layer or when there is
 * none. */
static int first_logits_row(const struct chunk *ck, uint32_t l)
{
    bool wanted = ck->pass->logits && ck->end == ck->pass->n && l + 1 == ck->model->config.layers;
    return wanted ? ck->n - logits_rows(ck->pass) : ck->n;
}

static void gather_rows(struct chunk *ck, const void *from, int width, void *to)
{
    ck->ops->gather(ck->stream, from, ck->ws->keep, ck->n, width, to);
}

/* Drops the rows for which layer l is the last, once their K and V are written; true when some are left. */
static bool shrink(struct chunk *ck, uint32_t l)
{
    struct samkv_workspace *ws = ck->ws;
    int kept = 0, before = ck->n, wanted = first_logits_row(ck, l);
    for (int i = 0; i < before; i++) {
        if (depth_of(ck->pass, ck->rows[i]) > l + 1 || i >= wanted) {
            ck->host[kept] = i;
            ck->rows[kept++] = ck->rows[i];
        }
    }
    ck->n = kept;
    if (kept == before || kept == 0)
        return kept > 0;
    ck->ops->upload(ck->stream, ws->keep, ck->host, (size_t)kept * sizeof(int32_t));
    gather_rows(ck, ws->qkv, (int)qkv_width(&ck->model->config), ws->gate_up);
    gather_rows(ck, ws->hidden, (int)ck->model->config.hidden, ws->hidden_next);
    void *swap = ws->hidden;
    ws->hidden = ws->hidden_next;
    ws->hidden_next = swap;
    ck->q = ws->gate_up;
    upload_rows(ck);
    return true;
}

static enum samkv_status run_layers(struct chunk *ck, struct samkv_error *err)
{
    const struct samkv_model_config *c = &ck->model->config;
    for (uint32_t l = 0; l < c->layers; l++) {
        const struct samkv_layer *layer = &ck->model->layers[l];
        enum samkv_status status =
            ck->pass->before_layer ? ck->pass->before_layer(ck->pass->before_layer_arg, l, err) : SAMKV_OK;
        if (status)
            return status;
        ck->ops->rmsnorm(ck->stream, ck->ws->hidden, c->hidden, layer->attn_norm, c->rms_eps, ck->n, (int)c->hidden,
                         ck->ws->norm, c->hidden);
        project_qkv(ck, layer, l);
        write_cache(ck, l);
        if (ck->pass->tap)
            run_tap(ck, l);
        if (!shrink(ck, l))
            break;
        attend(ck, layer, l);
        feed_forward(ck, layer);
    }
    return SAMKV_OK;
}

/* Logits of what follows the rows that are left, into pass->logits, LOGITS_ROWS at a time. */
static void read_logits(struct chunk *ck)
{
    const struct samkv_model_config *c = &ck->model->config;
    struct samkv_workspace *ws = ck->ws;
    int rows = ck->n;
    ck->ops->rmsnorm(ck->stream, ws->hidden, c->hidden, ck->model->final_norm, c->rms_eps, rows, (int)c->hidden,
                     ws->norm, c->hidden);
    for (int first = 0; first < rows; first += LOGITS_ROWS) {
        size_t at = (size_t)first * c->hidden * samkv_dtype_bytes(ws->device->dtype);
        ck->n = rows - first < LOGITS_ROWS ? rows - first : LOGITS_ROWS;
        size_t count = (size_t)ck->n * c->vocab;
        project(ck, (const uint8_t *)ws->norm + at, (int)c->hidden, ck->model->lm_head, NULL, ws->logits, c->vocab,
                (int)c->vocab, false);
        ck->ops->convert(ck->stream, ws->logits, ws->device->dtype, ws->logits_f32, SAMKV_F32, count);
        ck->ops->download(ck->stream, ck->pass->logits + (size_t)first * c->vocab, ws->logits_f32,
                          count * sizeof(float));
    }
}

static enum samkv_status run_chunk(struct chunk *ck, struct samkv_error *err)
{
    for (int row = ck->first; row < ck->end; row++)
        if (depth_of(ck->pass, row) > 0)
            ck->rows[ck->n++] = row;
    if (!ck->n)
        return SAMKV_OK;
    upload_column(ck, ck->ws->ids, ck->pass->ids);
    upload_rows(ck);
    ck->ops->embed(ck->stream, ck->model->embedding, ck->ws->ids, ck->n, (int)ck->model->config.hidden, ck->ws->hidden);
    enum samkv_status status = run_layers(ck, err);
    if (!status && ck->n)
        read_logits(ck);
    return status;
}

/* Attention is computed without a window, which is the model's own only as long as no row is farther away than it. */
static enum samkv_status check_window(const struct samkv_model *model, const struct samkv_pass *pass,
                                      struct samkv_error *err)
{
    uint32_t window = model->config.window_tokens;
    for (int i = 0; window && i < pass->n; i++)
        if (pass->positions[i] >= (int64_t)window)
            return samkv_fail(err, SAMKV_UNSUPPORTED,
                              "position %d is beyond the %u tokens of model '%s's sliding window, whose attention over "
                              "more is not supported: ask for fewer or shorter documents",
                              pass->positions[i], window, model->name);
    return SAMKV_OK;
}

enum samkv_status samkv_forward(const struct samkv_model *model, struct samkv_stream *stream,
                                struct samkv_workspace *ws, const struct samkv_pass *pass, struct samkv_kv_cache *cache,
                                struct samkv_error *err)
{
    enum samkv_status fits = check_window(model, pass, err);
    if (fits)
        return fits;
    int rows = pass->n < ws->chunk_rows ? pass->n : ws->chunk_rows;
    int32_t *host = malloc(2 * (size_t)rows * sizeof *host + 1);
    enum samkv_status status = SAMKV_OK;
    assert(logits_rows(pass) == 1 || (pass->n <= ws->chunk_rows && logits_rows(pass) <= pass->n));
    if (!host || reserve_rows(ws, &model->config, rows)) {
        free(host);
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for a pass of %d rows on %s", rows, model->device->name);
    }
    for (int first = 0; first < pass->n && !status; first += rows) {
        struct chunk ck = {
            .model = model,
            .stream = stream,
            .ops = stream->device->ops,
            .ws = ws,
            .pass = pass,
            .cache = cache,
            .first = first,
            .end = pass->n - first < rows ? pass->n : first + rows,
            .rows = host,
            .host = host + rows,
        };
        if (pass->cancelled && __atomic_load_n(pass->cancelled, __ATOMIC_RELAXED)) {
            status = samkv_fail(err, SAMKV_CANCELLED, "cancelled: the client is gone");
            break;
        }
        status = run_chunk(&ck, err);
    }
    enum samkv_status synced = stream->device->ops->sync(stream, status ? NULL : err);
    free(host);
    return status ? status : synced;
}
