#include "daemon/samkv/recompute_delta.h"

#include <stdlib.h>

/* ------------------------------------------------------------------ what the taps need */

/* Where the taps add to, K rotated to the joint positions of the rows. */
struct sum {
    const struct samkv_model *model;
    struct samkv_kv_cache *cache;
    float sign;
    float *joint; /* [rows][2][head_dim/2]: angles of the cache's rows, on the device */
    float *rope;  /* [rows][2][head_dim/2]: of those that a tap has */
};

/* Rows of an f32 table are copied as what they are to the device's gather: elements of its type. */
static void gather_angles(const struct sum *s, struct samkv_stream *stream, const struct samkv_tap *tap)
{
    size_t width = s->model->config.head_dim * sizeof(float) / samkv_dtype_bytes(stream->device->dtype);
    stream->device->ops->gather(stream, s->joint, tap->cache_rows, tap->n, (int)width, s->rope);
}

static void add(void *arg, struct samkv_stream *stream, const struct samkv_tap *tap)
{
    const struct sum *s = arg;
    const struct samkv_model_config *c = &s->model->config;
    if (!c->no_rope[tap->layer])
        gather_angles(s, stream, tap);
    const struct samkv_kv_write write = {
        .k = tap->k,
        .v = tap->v,
        .ld = tap->ld,
        .rope = c->no_rope[tap->layer] ? NULL : s->rope,
        .rows = tap->cache_rows,
        .k_cache = samkv_kv_cache_k(s->cache, tap->layer),
        .v_cache = samkv_kv_cache_v(s->cache, tap->layer),
        .n = tap->n,
        .kv_heads = (int)c->kv_heads,
        .head_dim = (int)c->head_dim,
        .update = SAMKV_UPDATE_DELTA,
        .theta = s->sign,
        .fresh_from = tap->n,
    };
    stream->device->ops->kv_write(stream, &write);
}

static enum samkv_status sum_init(struct sum *s, const struct samkv_engine *e, struct samkv_kv_cache *cache,
                                  const struct samkv_recompute *r)
{
    size_t bytes = (size_t)r->rows * e->model->config.head_dim * sizeof(float);
    int32_t *positions = NULL;
    *s = (struct sum){.model = e->model, .cache = cache};
    enum samkv_status status = e->device->ops->alloc(e->device, bytes + 1, (void **)&s->joint);
    if (!status)
        status = e->device->ops->alloc(e->device, bytes + 1, (void **)&s->rope);
    if (!status)
        status = e->device->ops->alloc(e->device, (size_t)r->rows * sizeof *positions, (void **)&positions);
    if (!status) {
        samkv_rope_rows(e->model, e->stream, samkv_workspace_inv_freq(e->workspace), r->positions, r->rows, positions,
                        s->joint);
        status = e->device->ops->sync(e->stream, NULL);
    }
    e->device->ops->release(e->device, positions);
    return status;
}

static void sum_deinit(struct sum *s, const struct samkv_engine *e)
{
    e->device->ops->release(e->device, s->joint);
    e->device->ops->release(e->device, s->rope);
}

/* ------------------------------------------------------------------ the passes */

/* The rows that are recomputed, as columns of both passes. */
struct columns {
    int n, preamble;
    int32_t *ids, *joint_positions, *own_positions, *cache_rows, *firsts, *limits;
    uint32_t *depths;
};

static enum samkv_status columns_init(struct columns *c, const struct samkv_recompute *r)
{
    size_t all = (size_t)r->rows;
    *c = (struct columns){.ids = malloc(7 * all * sizeof(int32_t) + 1)};
    if (!c->ids)
        return SAMKV_NO_MEMORY;
    c->joint_positions = c->ids + all;
    c->own_positions = c->joint_positions + all;
    c->cache_rows = c->own_positions + all;
    c->firsts = c->cache_rows + all;
    c->limits = c->firsts + all;
    c->depths = (uint32_t *)(c->limits + all);
    int first = 0;
    for (int i = 0; i < r->rows; i++) {
        if (i && r->documents[i] != r->documents[i - 1])
            first = i;
        c->preamble += r->documents[i] < 0;
        if (!r->depths[i])
            continue;
        c->ids[c->n] = r->ids[i];
        c->joint_positions[c->n] = r->positions[i];
        c->own_positions[c->n] = c->preamble + r->indices[i];
        c->cache_rows[c->n] = i;
        c->firsts[c->n] = first;
        c->limits[c->n] = i + 1;
        c->depths[c->n++] = r->depths[i];
    }
    return SAMKV_OK;
}

/* A cache for the passes themselves, with the preamble that both see. */
static enum samkv_status scratch_init(struct samkv_kv_cache *scratch, const struct samkv_engine *e,
                                      const struct samkv_kv_cache *from, const struct samkv_recompute *r, int preamble)
{
    const struct samkv_model_config *c = &e->model->config;
    size_t bytes = (size_t)preamble * c->kv_heads * c->head_dim * samkv_dtype_bytes(e->device->dtype);
    enum samkv_status status = samkv_kv_cache_init(scratch, e->model, (size_t)r->rows, NULL);
    for (uint32_t l = 0; l < c->layers && bytes && !status; l++) {
        e->device->ops->copy(e->stream, samkv_kv_cache_k(scratch, l), samkv_kv_cache_k(from, l), bytes);
        e->device->ops->copy(e->stream, samkv_kv_cache_v(scratch, l), samkv_kv_cache_v(from, l), bytes);
    }
    return status;
}

static enum samkv_status run_passes(const struct samkv_engine *e, const struct samkv_recompute *r,
                                    const struct columns *c, struct samkv_kv_cache *scratch, struct sum *sum,
                                    struct samkv_error *err)
{
    struct samkv_pass pass = {
        .n = c->n,
        .ids = c->ids,
        .positions = c->own_positions,
        .cache_rows = c->cache_rows,
        .prefix = c->preamble,
        .firsts = c->firsts,
        .limits = c->limits,
        .depths = c->depths,
        .update = SAMKV_UPDATE_OVERWRITE,
        .tap = add,
        .tap_arg = sum,
        .before_layer = r->before_layer,
        .before_layer_arg = r->before_layer_arg,
        .cancelled = r->cancelled,
    };
    sum->sign = -1;
    enum samkv_status status = samkv_forward(e->model, e->stream, e->workspace, &pass, scratch, err);
    if (status)
        return status;
    pass.positions = c->joint_positions;
    pass.prefix = 0;
    pass.firsts = NULL;
    sum->sign = 1;
    return samkv_forward(e->model, e->stream, e->workspace, &pass, scratch, err);
}

enum samkv_status samkv_recompute_delta(const struct samkv_engine *e, struct samkv_kv_cache *cache,
                                        const struct samkv_recompute *r, struct samkv_error *err)
{
    struct sum sum = {0};
    struct samkv_kv_cache scratch = {0};
    struct columns c;
    if (columns_init(&c, r))
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    enum samkv_status status = c.n ? sum_init(&sum, e, cache, r) : SAMKV_OK;
    if (c.n && !status)
        status = scratch_init(&scratch, e, cache, r, c.preamble);
    if (status)
        samkv_fail(err, status, "no memory on %s for the update 'delta': ask for fewer documents", e->device->name);
    else if (c.n)
        status = run_passes(e, r, &c, &scratch, &sum, err);
    samkv_kv_cache_deinit(&scratch, e->device);
    sum_deinit(&sum, e);
    free(c.ids);
    return status;
}
