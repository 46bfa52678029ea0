#include "daemon/samkv/landing.h"

#include <string.h>

/* Means are reserved in steps, since their number differs a little from pass to pass. */
#define MEANS_STEP_BYTES ((size_t)16 << 20)

void samkv_landing_init(struct samkv_landing *l, struct samkv_device *device)
{
    *l = (struct samkv_landing){.device = device};
}

static void release(struct samkv_landing *l)
{
    l->device->ops->host_release(l->device, l->memory);
    l->device->ops->host_release(l->device, l->means);
    l->memory = NULL;
    l->means = NULL;
    l->memory_bytes = l->means_bytes = 0;
}

void samkv_landing_deinit(struct samkv_landing *l)
{
    release(l);
    if (l->copies)
        l->device->ops->stream_free(l->copies);
    samkv_landing_init(l, l->device);
}

void samkv_landing_empty(struct samkv_landing *l)
{
    if (l->device->unified)
        release(l);
}

static enum samkv_status grow(struct samkv_landing *l, void **memory, size_t *bytes, size_t wanted, size_t reserved,
                              struct samkv_error *err)
{
    if (*bytes >= wanted)
        return SAMKV_OK;
    l->device->ops->host_release(l->device, *memory);
    *memory = NULL;
    *bytes = 0;
    if (l->device->ops->host_alloc(l->device, reserved, memory))
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for what a prefill leaves (%zu MB): ingest less at a time",
                          reserved >> 20);
    *bytes = reserved;
    return SAMKV_OK;
}

static size_t widths(const struct samkv_engine *engine, size_t *q_width)
{
    const struct samkv_model_config *c = &engine->model->config;
    *q_width = (size_t)c->heads * c->head_dim;
    return (size_t)c->kv_heads * c->head_dim;
}

enum samkv_status samkv_landing_reserve(struct samkv_landing *l, const struct samkv_engine *engine, uint32_t rows,
                                        uint32_t blocks, uint32_t parts, uint32_t most_rows, struct samkv_error *err)
{
    struct samkv_kv_shape shape = samkv_model_kv_shape(engine->model, engine->stored);
    size_t q_width, width = widths(engine, &q_width), token_bytes = samkv_kv_token_bytes(&shape);
    size_t stage_bytes = rows * token_bytes;
    size_t means_bytes = (blocks * width + parts * q_width) * shape.layers * sizeof *l->means;
    bool exact = l->device->unified;
    size_t stage_reserved = exact ? stage_bytes : samkv_round_rows(rows, most_rows) * token_bytes;
    size_t means_reserved = exact ? means_bytes : (means_bytes / MEANS_STEP_BYTES + 1) * MEANS_STEP_BYTES;

    if (!l->copies && !l->device->unified && l->device->ops->stream_new(l->device, &l->copies))
        return samkv_fail(err, SAMKV_NO_MEMORY, "no stream for copies on %s", l->device->name);
    enum samkv_status status = grow(l, &l->memory, &l->memory_bytes, stage_bytes, stage_reserved, err);
    if (!status)
        status = grow(l, (void **)&l->means, &l->means_bytes, means_bytes, means_reserved, err);
    if (status)
        return status;
    l->stage = (struct samkv_stage){.k = l->memory, .rows = rows, .shape = shape, .device = l->device};
    l->stage.layer_stride_bytes = stage_bytes / (2 * (size_t)shape.layers);
    l->stage.v = l->stage.k + stage_bytes / 2;
    l->means_stride = blocks * width + parts * q_width;
    l->blocks = blocks;
    l->parts = parts;
    return SAMKV_OK;
}

enum samkv_status samkv_landing_wait(struct samkv_landing *l, struct samkv_error *err)
{
    return l->copies ? l->device->ops->sync(l->copies, err) : SAMKV_OK;
}

size_t samkv_index_count(const struct samkv_engine *engine, const struct samkv_blocks *blocks)
{
    size_t q_width, width = widths(engine, &q_width);
    return blocks->count * width + q_width;
}

void samkv_part_local_rows(const struct samkv_part *part, uint32_t *first, uint32_t *end)
{
    const struct samkv_blocks *b = &part->blocks;
    uint32_t local = b->local < b->count ? samkv_block_first(b, b->local) : b->tokens;
    uint32_t from = local > part->first ? local - part->first : 0;
    *end = part->row + part->count;
    *first = from < part->count ? part->row + from : *end;
}

void samkv_landing_read_index(const struct samkv_landing *l, const struct samkv_engine *engine,
                              const struct samkv_part *part, float *index)
{
    const struct samkv_blocks *b = &part->blocks;
    size_t q_width, width = widths(engine, &q_width), count = samkv_index_count(engine, b);
    uint32_t blocks = (part->count + b->block_tokens - 1) / b->block_tokens;
    uint32_t first, end;
    samkv_part_local_rows(part, &first, &end);
    uint32_t all = b->local < b->count ? b->tokens - samkv_block_first(b, b->local) : 1;
    float share = (float)(end - first) / (float)all;
    for (uint32_t layer = 0; layer < l->stage.shape.layers; layer++) {
        const float *k = l->means + layer * l->means_stride + part->block * width;
        const float *q = l->means + layer * l->means_stride + l->blocks * width + part->number * q_width;
        float *to = index + layer * count;
        memcpy(to + part->first / b->block_tokens * width, k, blocks * width * sizeof *to);
        to += b->count * width;
        for (size_t j = 0; j < q_width; j++)
            to[j] += share * q[j];
    }
}

uint32_t samkv_round_rows(uint32_t n, uint32_t most)
{
    uint32_t rounded = 64;
    while (rounded < n && rounded < most)
        rounded *= 2;
    if (rounded > most)
        rounded = most;
    return rounded > n ? rounded : n;
}
