/* Q of each of a query's last tokens in the stable layers, for scores that a mean over the query does not give. */
#include <stdlib.h>

#include "daemon/samkv/recompute.h"

struct rows {
    const struct samkv_query_pass *query;
    size_t width;
    int count;        /* tokens, the last ones */
    float *device;    /* [stable_count][count][width] */
    int32_t *offsets; /* [count + 1]: a segment a row, so that its mean is the row in f32 */
};

static void on_layer(void *arg, struct samkv_stream *stream, const struct samkv_tap *tap)
{
    struct rows *r = arg;
    int before = r->query->query_count - r->count, skip = before > tap->first ? before - tap->first : 0;
    if (skip >= tap->n)
        return;
    const void *q = (const uint8_t *)tap->q + (size_t)skip * tap->ld * samkv_dtype_bytes(stream->device->dtype);
    for (uint32_t s = 0; s < r->query->stable_count; s++) {
        if (r->query->stable_layers[s] != tap->layer)
            continue;
        float *out = r->device + ((size_t)s * (size_t)r->count + (size_t)(tap->first + skip - before)) * r->width;
        stream->device->ops->segment_mean(stream, q, tap->ld, r->offsets, tap->n - skip, (int)r->width, out);
    }
}

static enum samkv_status upload_offsets(struct rows *r, const struct samkv_engine *e)
{
    size_t n = (size_t)r->count + 1;
    int32_t *host = malloc(n * sizeof *host);
    if (!host)
        return SAMKV_NO_MEMORY;
    for (size_t i = 0; i < n; i++)
        host[i] = (int32_t)i;
    e->device->ops->upload(e->stream, r->offsets, host, n * sizeof *host);
    enum samkv_status status = e->device->ops->sync(e->stream, NULL);
    free(host);
    return status;
}

enum samkv_status samkv_query_rows(const struct samkv_engine *e, struct samkv_kv_cache *cache,
                                   const struct samkv_query_pass *query, int rows, float *out, struct samkv_error *err)
{
    const struct samkv_model_config *c = &e->model->config;
    struct rows r = {.query = query, .count = rows, .width = (size_t)c->heads * c->head_dim};
    size_t count = (size_t)query->stable_count * (size_t)rows * r.width;
    enum samkv_status status = e->device->ops->alloc(e->device, count * sizeof(float), (void **)&r.device);
    if (!status)
        status = e->device->ops->alloc(e->device, ((size_t)rows + 1) * sizeof(int32_t), (void **)&r.offsets);
    if (!status)
        status = upload_offsets(&r, e);
    if (status)
        samkv_fail(err, status, "no memory on %s for the query's rows", e->device->name);
    if (!status)
        status = samkv_query_run(e, cache, query, on_layer, &r, err);
    if (!status) {
        e->device->ops->download(e->stream, out, r.device, count * sizeof(float));
        status = e->device->ops->sync(e->stream, err);
    }
    e->device->ops->release(e->device, r.device);
    e->device->ops->release(e->device, r.offsets);
    return status;
}
