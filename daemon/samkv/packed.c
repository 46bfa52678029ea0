#include "daemon/samkv/packed.h"

#include <stdlib.h>
#include <string.h>

#define MEANS_STEP_BYTES ((size_t)16 << 20)

/* Rows of K, then of V, on their way out: in the activation type, and in the stored one when that differs. */
struct staged {
    void *made, *converted;
    size_t made_bytes, converted_bytes;
    struct samkv_event *ready, *copied; /* devices that are not unified */
};

struct samkv_packer {
    struct samkv_device *device;
    struct samkv_kv_cache cache;
    uint8_t preamble_id[SAMKV_PREAMBLE_ID_BYTES]; /* of what the cache's first rows hold */
    uint32_t preamble_tokens;                     /* 0: nothing */
    struct staged staged[2];                      /* by layer, in turn; a unified device has the first alone */
    float *means;                                 /* as in a landing; NULL on a unified device */
    struct samkv_event *means_copied;
    /* Constant RoPE tables: no rotation (writes K as it is), and R(−P) for the means. */
    float *rope_none, *rope_back;
    int32_t *positions, *offsets; /* offsets: of blocks [blocks + 1], then [parts][2] of local rows */
    size_t means_bytes, none_bytes, back_bytes, positions_bytes, offsets_bytes;
    uint32_t none_rows, back_rows, back_tokens;
};

/* ------------------------------------------------------------------ memory */

enum samkv_status samkv_packer_new(struct samkv_device *device, struct samkv_packer **out)
{
    struct samkv_packer *pk = calloc(1, sizeof *pk);
    if (!pk)
        return SAMKV_NO_MEMORY;
    pk->device = device;
    *out = pk;
    return SAMKV_OK;
}

static void drop_cache(struct samkv_packer *pk)
{
    samkv_kv_cache_deinit(&pk->cache, pk->device);
    pk->preamble_tokens = 0;
}

void samkv_packer_free(struct samkv_packer *pk)
{
    if (!pk)
        return;
    const struct samkv_ops *ops = pk->device->ops;
    for (int i = 0; i < 2; i++) {
        ops->release(pk->device, pk->staged[i].made);
        ops->release(pk->device, pk->staged[i].converted);
        if (!pk->device->unified) {
            ops->event_free(pk->staged[i].ready);
            ops->event_free(pk->staged[i].copied);
        }
    }
    if (!pk->device->unified)
        ops->event_free(pk->means_copied);
    ops->release(pk->device, pk->means);
    ops->release(pk->device, pk->rope_none);
    ops->release(pk->device, pk->rope_back);
    ops->release(pk->device, pk->positions);
    ops->release(pk->device, pk->offsets);
    drop_cache(pk);
    free(pk);
}

/* Copies of the pass before may still read what is about to go. */
static bool wait_for_copies(struct samkv_packer *pk)
{
    struct samkv_event *events[] = {pk->staged[0].copied, pk->staged[1].copied, pk->means_copied};
    bool over = true;
    for (size_t i = 0; i < sizeof events / sizeof *events; i++)
        over = (!events[i] || pk->device->ops->event_sync(events[i], NULL) == SAMKV_OK) && over;
    return over;
}

static bool grow(struct samkv_packer *pk, void *memory, size_t *bytes, size_t wanted)
{
    void **to = memory;
    if (*bytes >= wanted)
        return true;
    if (!wait_for_copies(pk))
        return false;
    pk->device->ops->release(pk->device, *to);
    *to = NULL;
    *bytes = 0;
    if (pk->device->ops->alloc(pk->device, wanted, to))
        return false;
    *bytes = wanted;
    return true;
}

static bool make_event(struct samkv_packer *pk, struct samkv_event **event)
{
    return *event || pk->device->ops->event_new(pk->device, event) == SAMKV_OK;
}

/* Staging is not needed where kv_write can write what is stored. */
static bool reserve_staged(struct samkv_packer *pk, const struct samkv_stage *stage, size_t rows)
{
    size_t count = 2 * rows * samkv_kv_width(&stage->shape);
    bool same = pk->device->dtype == stage->shape.dtype, unified = pk->device->unified;
    if (unified && same)
        return true;
    for (int i = 0; i < (unified ? 1 : 2); i++) {
        struct staged *s = &pk->staged[i];
        if (!grow(pk, &s->made, &s->made_bytes, count * samkv_dtype_bytes(pk->device->dtype)))
            return false;
        if (unified)
            continue;
        if (!same && !grow(pk, &s->converted, &s->converted_bytes, count * samkv_dtype_bytes(stage->shape.dtype)))
            return false;
        if (!make_event(pk, &s->ready) || !make_event(pk, &s->copied))
            return false;
    }
    return true;
}

static bool reserve_means(struct samkv_packer *pk, const struct samkv_landing *to)
{
    size_t bytes = to->means_stride * to->stage.shape.layers * sizeof *pk->means;
    return pk->device->unified ||
           (make_event(pk, &pk->means_copied) &&
            grow(pk, &pk->means, &pk->means_bytes, (bytes / MEANS_STEP_BYTES + 1) * MEANS_STEP_BYTES));
}

static uint32_t rounded_rows(const struct samkv_packed *pass)
{
    return samkv_round_rows(pass->rows, (uint32_t)samkv_workspace_chunk_rows(pass->engine->workspace));
}

static enum samkv_status reserve_cache(struct samkv_packer *pk, const struct samkv_packed *pass,
                                       struct samkv_error *err)
{
    if (pass->cache || pk->cache.rows >= (size_t)pass->preamble_tokens + pass->rows)
        return SAMKV_OK;
    drop_cache(pk);
    return samkv_kv_cache_init(&pk->cache, pass->engine->model, pass->preamble_tokens + (size_t)rounded_rows(pass),
                               err);
}

static enum samkv_status reserve(struct samkv_packer *pk, const struct samkv_packed *pass,
                                 const struct samkv_landing *to, struct samkv_error *err)
{
    size_t rows = rounded_rows(pass), table = rows * pass->engine->model->config.head_dim * sizeof(float);
    if (pk->none_bytes < table)
        pk->none_rows = 0;
    if (pk->back_bytes < table)
        pk->back_rows = 0;
    if (!grow(pk, &pk->rope_none, &pk->none_bytes, table) || !grow(pk, &pk->rope_back, &pk->back_bytes, table) ||
        !grow(pk, &pk->positions, &pk->positions_bytes, rows * sizeof(int32_t)) ||
        !grow(pk, &pk->offsets, &pk->offsets_bytes, (3 * rows + 1) * sizeof(int32_t)) ||
        !reserve_staged(pk, &to->stage, rows) || !reserve_means(pk, to))
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory on %s to prefill %u tokens: split documents (chunk tokens)",
                          pk->device->name, pass->rows);
    return reserve_cache(pk, pass, err);
}

/* ------------------------------------------------------------------ before the pass */

void samkv_packed_place(struct samkv_packed *pass)
{
    pass->rows = pass->blocks = 0;
    for (uint32_t i = 0; i < pass->count; i++) {
        struct samkv_part *part = pass->parts[i];
        part->number = i;
        part->row = pass->rows;
        part->block = pass->blocks;
        pass->rows += part->count;
        pass->blocks += (part->count + part->blocks.block_tokens - 1) / part->blocks.block_tokens;
    }
}

bool samkv_packer_has_preamble(const struct samkv_packer *pk, const struct samkv_packed *pass)
{
    if (!pass->preamble_tokens)
        return true;
    if (pass->cache)
        return pass->parts[0]->first > 0; /* an earlier pass has placed it */
    return pk->preamble_tokens == pass->preamble_tokens &&
           pk->cache.rows >= (size_t)pass->preamble_tokens + pass->rows &&
           memcmp(pk->preamble_id, pass->preamble_id, sizeof pk->preamble_id) == 0;
}

static enum samkv_status make_table(struct samkv_packer *pk, const struct samkv_packed *pass, int32_t position,
                                    uint32_t rows, float *table, struct samkv_error *err)
{
    int32_t *positions = malloc(rows * sizeof *positions);
    if (!positions)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (uint32_t i = 0; i < rows; i++)
        positions[i] = position;
    samkv_rotation_rows(pass->engine->model, pass->engine->stream, samkv_workspace_inv_freq(pass->engine->workspace),
                        positions, (int)rows, pk->positions, table);
    enum samkv_status status = pk->device->ops->sync(pass->engine->stream, err);
    free(positions);
    return status;
}

static enum samkv_status make_tables(struct samkv_packer *pk, const struct samkv_packed *pass, struct samkv_error *err)
{
    uint32_t rows = rounded_rows(pass);
    enum samkv_status status = SAMKV_OK;
    if (pk->none_rows < rows) {
        status = make_table(pk, pass, 0, rows, pk->rope_none, err);
        pk->none_rows = status ? 0 : rows;
    }
    if (!status && (pk->back_rows < rows || pk->back_tokens != pass->preamble_tokens)) {
        status = make_table(pk, pass, -(int32_t)pass->preamble_tokens, rows, pk->rope_back, err);
        pk->back_rows = status ? 0 : rows;
        pk->back_tokens = pass->preamble_tokens;
    }
    return status;
}

static enum samkv_status place_preamble(struct samkv_packer *pk, const struct samkv_packed *pass,
                                        struct samkv_error *err)
{
    if (samkv_packer_has_preamble(pk, pass))
        return SAMKV_OK;
    int32_t *positions = malloc(pass->preamble_tokens * sizeof *positions);
    if (!positions)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (uint32_t i = 0; i < pass->preamble_tokens; i++)
        positions[i] = (int32_t)i;
    if (!pass->cache)
        pk->preamble_tokens = 0;
    enum samkv_status status = samkv_stage_place(pass->engine, pass->preamble, pass->cache ? pass->cache : &pk->cache,
                                                 positions, 0, (int)pass->preamble_tokens, err);
    free(positions);
    if (!status && !pass->cache) {
        pk->preamble_tokens = pass->preamble_tokens;
        memcpy(pk->preamble_id, pass->preamble_id, sizeof pk->preamble_id);
    }
    return status;
}

/* ------------------------------------------------------------------ the pass */

/* One run's view, for the tap. */
struct run {
    struct samkv_packer *pk;
    const struct samkv_packed *pass;
    struct samkv_landing *to;
    struct samkv_kv_cache *cache;
    uint32_t first_row; /* of the cache, where the pass's rows begin */
    float *means;       /* of all layers, on the device */
    int32_t *columns;   /* host: ids, positions, cache rows, firsts, limits [5][rows], then the offsets */
};

static struct samkv_kv_write stored_form(const struct run *r, const struct samkv_tap *tap, void *k, void *v)
{
    const struct samkv_model_config *c = &r->pass->engine->model->config;
    return (struct samkv_kv_write){
        .k = tap->k,
        .v = tap->v,
        .ld = tap->ld,
        .rope = r->pk->rope_none, /* makes the strided K contiguous and leaves it as it is */
        .k_cache = k,
        .v_cache = v,
        .n = tap->n,
        .kv_heads = (int)c->kv_heads,
        .head_dim = (int)c->head_dim,
        .update = SAMKV_UPDATE_OVERWRITE,
    };
}

/* A unified device writes the landing itself. */
static void land_unified(const struct run *r, struct samkv_stream *stream, const struct samkv_tap *tap)
{
    const struct samkv_stage *stage = &r->to->stage;
    size_t count = (size_t)tap->n * samkv_kv_width(&stage->shape);
    void *k = samkv_stage_row(stage, tap->layer, false, 0), *v = samkv_stage_row(stage, tap->layer, true, 0);
    bool same = stream->device->dtype == stage->shape.dtype;
    uint8_t *made = r->pk->staged[0].made;
    uint8_t *made_v = same ? NULL : made + count * samkv_dtype_bytes(stream->device->dtype);
    const struct samkv_kv_write write = stored_form(r, tap, same ? k : made, same ? v : made_v);
    stream->device->ops->kv_write(stream, &write);
    if (same)
        return;
    stream->device->ops->convert(stream, made, stream->device->dtype, k, stage->shape.dtype, count);
    stream->device->ops->convert(stream, made_v, stream->device->dtype, v, stage->shape.dtype, count);
}

/* Others make the stored form in one of two places, which their copies leave in time for the layer after the next. */
static void land_copied(const struct run *r, struct samkv_stream *stream, const struct samkv_tap *tap)
{
    const struct samkv_ops *ops = stream->device->ops;
    const struct samkv_stage *stage = &r->to->stage;
    const struct staged *s = &r->pk->staged[tap->layer % 2];
    size_t count = (size_t)tap->n * samkv_kv_width(&stage->shape);
    size_t bytes = count * samkv_dtype_bytes(stage->shape.dtype);
    bool same = stream->device->dtype == stage->shape.dtype;
    uint8_t *made = s->made, *out = same ? s->made : s->converted;
    const struct samkv_kv_write write =
        stored_form(r, tap, made, made + count * samkv_dtype_bytes(stream->device->dtype));

    ops->await(stream, s->copied);
    ops->kv_write(stream, &write);
    if (!same)
        ops->convert(stream, made, stream->device->dtype, out, stage->shape.dtype, 2 * count);
    ops->record(stream, s->ready);
    ops->await(r->to->copies, s->ready);
    ops->download(r->to->copies, samkv_stage_row(stage, tap->layer, false, 0), out, bytes);
    ops->download(r->to->copies, samkv_stage_row(stage, tap->layer, true, 0), out + bytes, bytes);
    ops->record(r->to->copies, s->copied);
}

static void take_means(const struct run *r, struct samkv_stream *stream, const struct samkv_tap *tap)
{
    const struct samkv_ops *ops = stream->device->ops;
    const struct samkv_model_config *c = &r->pass->engine->model->config;
    size_t width = (size_t)c->kv_heads * c->head_dim, q_width = (size_t)c->heads * c->head_dim;
    size_t row_bytes = width * samkv_dtype_bytes(stream->device->dtype);
    uint32_t blocks = r->pass->blocks, parts = r->pass->count;
    float *k_means = r->means + tap->layer * r->to->means_stride, *q_means = k_means + blocks * width;
    const uint8_t *keys = (const uint8_t *)samkv_kv_cache_k(r->cache, tap->layer) + r->first_row * row_bytes;

    ops->segment_mean(stream, keys, width, r->pk->offsets, (int)blocks, (int)width, k_means);
    if (!c->no_rope[tap->layer])
        ops->rope_f32(stream, k_means, r->pk->rope_back, (int)blocks, (int)c->kv_heads, (int)c->head_dim);
    for (uint32_t i = 0; i < parts; i++)
        ops->segment_mean(stream, tap->q, tap->ld, r->pk->offsets + blocks + 1 + 2 * (size_t)i, 1, (int)q_width,
                          q_means + i * q_width);
    if (!c->no_rope[tap->layer])
        ops->rope_f32(stream, q_means, r->pk->rope_back, (int)parts, (int)c->heads, (int)c->head_dim);
}

static void on_layer(void *arg, struct samkv_stream *stream, const struct samkv_tap *tap)
{
    const struct run *r = arg;
    if (stream->device->unified)
        land_unified(r, stream, tap);
    else
        land_copied(r, stream, tap);
    take_means(r, stream, tap);
}

static void fill_offsets(const struct samkv_packed *pass, int32_t *offsets)
{
    int32_t *local = offsets + pass->blocks + 1;
    for (uint32_t i = 0; i < pass->count; i++) {
        const struct samkv_part *part = pass->parts[i];
        uint32_t first, end;
        samkv_part_local_rows(part, &first, &end);
        local[2 * i] = (int32_t)first;
        local[2 * i + 1] = (int32_t)end;
        for (uint32_t at = 0; at < part->count; at += part->blocks.block_tokens)
            *offsets++ = (int32_t)(part->row + at);
    }
    *offsets = (int32_t)pass->rows;
}

static void fill_columns(const struct run *r)
{
    const struct samkv_packed *pass = r->pass;
    size_t n = pass->rows;
    for (uint32_t p = 0; p < pass->count; p++) {
        const struct samkv_part *part = pass->parts[p];
        for (uint32_t t = 0; t < part->count; t++) {
            int32_t *at = r->columns + part->row + t, row = (int32_t)(r->first_row + part->row + t);
            at[0] = part->ids[part->first + t];
            at[n] = (int32_t)(pass->preamble_tokens + part->first + t);
            at[2 * n] = row;
            at[3 * n] = (int32_t)(r->first_row + part->row);
            at[4 * n] = row + 1;
        }
    }
}

/* The forward pass with the tap. */
static enum samkv_status forward(struct run *r, struct samkv_error *err)
{
    const struct samkv_packed *pass = r->pass;
    const struct samkv_engine *e = pass->engine;
    size_t n = pass->rows, offsets = pass->blocks + 1 + 2 * (size_t)pass->count;
    bool many = pass->count > 1; /* a lone document's rows see all that is before them */
    fill_columns(r);
    fill_offsets(pass, r->columns + 5 * n);
    e->device->ops->upload(e->stream, r->pk->offsets, r->columns + 5 * n, offsets * sizeof(int32_t));
    const struct samkv_pass columns = {
        .n = (int)n,
        .ids = r->columns,
        .positions = r->columns + n,
        .cache_rows = r->columns + 2 * n,
        .prefix = many ? (int)pass->preamble_tokens : 0,
        .firsts = many ? r->columns + 3 * n : NULL,
        .limits = r->columns + 4 * n,
        .depth = e->model->config.layers,
        .tap = on_layer,
        .tap_arg = r,
    };
    if (!e->device->unified)
        e->device->ops->await(e->stream, r->pk->means_copied);
    return samkv_forward(e->model, e->stream, e->workspace, &columns, r->cache, err);
}

/* What the copies still have to take along. After a failure they are waited for: what they read may go. */
static void end_copies(const struct run *r, enum samkv_status status)
{
    const struct samkv_ops *ops = r->pk->device->ops;
    size_t bytes = r->to->means_stride * r->to->stage.shape.layers * sizeof *r->means;
    if (status) {
        (void)!ops->sync(r->to->copies, NULL); /* the pass's own failure is what is told */
        return;
    }
    ops->download(r->to->copies, r->to->means, r->means, bytes);
    ops->record(r->to->copies, r->pk->means_copied);
}

enum samkv_status samkv_packer_run(struct samkv_packer *pk, const struct samkv_packed *pass, struct samkv_landing *to,
                                   struct samkv_error *err)
{
    enum samkv_status status = reserve(pk, pass, to, err);
    if (!status)
        status = make_tables(pk, pass, err);
    if (!status)
        status = place_preamble(pk, pass, err);
    if (status)
        return status;
    struct run r = {
        .pk = pk,
        .pass = pass,
        .to = to,
        .cache = pass->cache ? pass->cache : &pk->cache,
        .first_row = pass->preamble_tokens + (pass->cache ? pass->parts[0]->first : 0),
        .means = pk->device->unified ? to->means : pk->means,
        .columns = malloc((5 * (size_t)pass->rows + pass->blocks + 1 + 2 * (size_t)pass->count) * sizeof(int32_t)),
    };
    if (!r.columns)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    status = forward(&r, err);
    if (to->copies)
        end_copies(&r, status);
    free(r.columns);
    return status;
}
