#include "daemon/samkv/stage.h"

enum samkv_status samkv_stage_init(struct samkv_stage *stage, struct samkv_device *device,
                                   const struct samkv_kv_shape *shape, size_t rows, struct samkv_error *err)
{
    size_t layer, total;
    *stage = (struct samkv_stage){.rows = rows, .shape = *shape, .device = device};
    if (__builtin_mul_overflow(rows, samkv_kv_width(shape) * samkv_dtype_bytes(shape->dtype), &layer) ||
        __builtin_mul_overflow(layer, 2 * (size_t)shape->layers, &total))
        return samkv_fail(err, SAMKV_TOO_LARGE, "%zu tokens of KV cache are too large: ask for fewer", rows);
    if (device->ops->host_alloc(device, total ? total : 1, &stage->allocation))
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for the KV cache of %zu tokens (%zu MB): ask for fewer",
                          rows, total >> 20);
    stage->k = stage->allocation;
    stage->v = stage->k + layer * shape->layers;
    stage->layer_stride_bytes = layer;
    return SAMKV_OK;
}

void samkv_stage_deinit(struct samkv_stage *stage)
{
    if (stage->allocation)
        stage->device->ops->host_release(stage->device, stage->allocation);
    *stage = (struct samkv_stage){0};
}

void samkv_stage_pieces(const struct samkv_stage *stage, size_t row, void **pieces)
{
    for (uint32_t l = 0; l < stage->shape.layers; l++) {
        pieces[2 * l] = samkv_stage_row(stage, l, false, row);
        pieces[2 * l + 1] = samkv_stage_row(stage, l, true, row);
    }
}

/* Device memory of one placement. On a unified device the stage is read where it lies. */
struct scratch {
    float *rope;
    int32_t *positions;
    uint8_t *k, *v;
};

static void scratch_deinit(struct scratch *s, struct samkv_device *device)
{
    device->ops->release(device, s->rope);
    device->ops->release(device, s->positions);
    device->ops->release(device, s->k);
    device->ops->release(device, s->v);
}

static enum samkv_status scratch_init(struct scratch *s, const struct samkv_engine *e, size_t n, size_t layer_bytes)
{
    struct samkv_device *device = e->device;
    *s = (struct scratch){0};
    if (device->ops->alloc(device, n * e->model->config.head_dim * sizeof(float), (void **)&s->rope) ||
        device->ops->alloc(device, n * sizeof(int32_t), (void **)&s->positions))
        return SAMKV_NO_MEMORY;
    if (device->unified)
        return SAMKV_OK;
    if (device->ops->alloc(device, layer_bytes, (void **)&s->k) ||
        device->ops->alloc(device, layer_bytes, (void **)&s->v))
        return SAMKV_NO_MEMORY;
    return SAMKV_OK;
}

enum samkv_status samkv_stage_place(const struct samkv_engine *engine, const struct samkv_stage *stage,
                                    struct samkv_kv_cache *cache, const int32_t *positions, int first_row, int n,
                                    struct samkv_error *err)
{
    struct samkv_device *device = engine->device;
    struct samkv_stream *stream = engine->stream;
    size_t bytes = (size_t)n * samkv_kv_width(&stage->shape) * samkv_dtype_bytes(stage->shape.dtype);
    struct scratch s;
    if (n == 0)
        return SAMKV_OK;
    enum samkv_status status = scratch_init(&s, engine, (size_t)n, bytes);
    if (status) {
        scratch_deinit(&s, device);
        return samkv_fail(err, status, "no memory on %s to place %d tokens", device->name, n);
    }
    samkv_rope_rows(engine->model, stream, samkv_workspace_inv_freq(engine->workspace), positions, n, s.positions,
                    s.rope);
    for (uint32_t l = 0; l < stage->shape.layers; l++) {
        const uint8_t *k = samkv_stage_row(stage, l, false, 0), *v = samkv_stage_row(stage, l, true, 0);
        if (!device->unified) {
            device->ops->upload(stream, s.k, k, bytes);
            device->ops->upload(stream, s.v, v, bytes);
            k = s.k;
            v = s.v;
        }
        samkv_cache_place(engine->model, stream, cache, l, k, v, stage->shape.dtype, s.rope, first_row, n);
    }
    status = device->ops->sync(stream, err);
    scratch_deinit(&s, device);
    return status;
}
