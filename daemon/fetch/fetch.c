#include "daemon/fetch/fetch.h"

#include <string.h>

#include "daemon/fetch/heal.h"
#include "daemon/fetch/job.h"
#include "daemon/fetch/memory.h"

/* Whether the cache can lie in the reply itself: then blocks are decoded, rotated and recomputed where the client
 * reads. */
static bool works_in_place(const struct samkv_fetch_job *job)
{
    return job->engine.device->unified && job->engine.device->dtype == job->engine.stored;
}

static void use_reply_memory(struct samkv_fetch_job *job, const struct samkv_reply_memory *m)
{
    job->cache = (struct samkv_kv_cache){
        .k = m->map + m->layout.k_offset,
        .v = m->map + m->layout.v_offset,
        .layer_stride_bytes = m->layout.layer_stride,
        .rows = job->rows,
    };
    job->stage = (struct samkv_stage){
        .k = job->cache.k,
        .v = job->cache.v,
        .layer_stride_bytes = job->cache.layer_stride_bytes,
        .rows = job->rows - job->query_rows,
        .shape = job->collection.shape,
        .device = job->engine.device,
    };
}

struct lane_copy {
    struct samkv_fetch_job *job;
    const struct samkv_reply_memory *memory;
    enum samkv_status status;
    struct samkv_error *err;
};

static void allocate_cache_on_lane(void *arg)
{
    struct lane_copy *c = arg;
    c->status = samkv_kv_cache_init(&c->job->cache, c->job->engine.model, c->job->rows, c->err);
}

/* The finished cache, in the stored type, into the reply. */
static void copy_out_on_lane(void *arg)
{
    struct lane_copy *c = arg;
    struct samkv_fetch_job *job = c->job;
    struct samkv_device *device = job->engine.device;
    const struct samkv_fetch_layout *layout = &c->memory->layout;
    size_t count = (size_t)job->rows * samkv_kv_width(&job->collection.shape), bytes = layout->layer_stride;
    void *converted = NULL;
    if (!device->unified && device->ops->alloc(device, bytes ? bytes : 1, &converted)) {
        c->status = samkv_fail(c->err, SAMKV_NO_MEMORY, "no memory on %s for the reply", device->name);
        return;
    }
    for (uint32_t l = 0; l < 2 * layout->layers; l++) {
        bool value = l >= layout->layers;
        uint32_t layer = value ? l - layout->layers : l;
        const void *from = value ? samkv_kv_cache_v(&job->cache, layer) : samkv_kv_cache_k(&job->cache, layer);
        uint8_t *to = c->memory->map + (value ? layout->v_offset : layout->k_offset) + layer * layout->layer_stride;
        device->ops->convert(job->engine.stream, from, device->dtype, converted ? converted : to, layout->dtype, count);
        if (converted)
            device->ops->download(job->engine.stream, to, converted, bytes);
    }
    c->status = device->ops->sync(job->engine.stream, c->err);
    device->ops->release(device, converted);
}

static enum samkv_status prepare_buffers(struct samkv_fetch_job *job, struct samkv_reply_memory *m,
                                         struct samkv_error *err)
{
    uint32_t vocab = job->query_rows ? job->engine.model->config.vocab : 0;
    enum samkv_status status = samkv_reply_memory_new(m, &job->collection.shape, job->rows, vocab, err);
    if (status)
        return status;
    if (works_in_place(job)) {
        use_reply_memory(job, m);
        return SAMKV_OK;
    }
    struct lane_copy c = {.job = job, .err = err};
    status = samkv_memory_check(2 * m->layout.memory_bytes, err);
    if (!status)
        status =
            samkv_stage_init(&job->stage, job->engine.device, &job->collection.shape, job->rows - job->query_rows, err);
    if (status)
        return status;
    samkv_lane_call(job->engine.lane, SAMKV_URGENT, allocate_cache_on_lane, &c);
    return c.status;
}

static enum samkv_status finish(struct samkv_fetch_job *job, struct samkv_reply_memory *m, struct samkv_error *err)
{
    const struct samkv_fetch_layout *l = &m->layout;
    size_t column = (size_t)job->rows * sizeof(int32_t);
    double since = samkv_now_ms();
    if (!works_in_place(job)) {
        struct lane_copy c = {.job = job, .memory = m, .err = err};
        samkv_lane_call(job->engine.lane, SAMKV_URGENT, copy_out_on_lane, &c);
        if (c.status)
            return c.status;
    }
    memcpy(m->map + l->tokens_offset, job->tokens, column);
    memcpy(m->map + l->doc_offset, job->doc, column);
    memcpy(m->map + l->index_offset, job->index, column);
    memcpy(m->map + l->position_offset, job->position, column);
    if (l->vocab)
        memcpy(m->map + l->logits_offset, job->logits, l->vocab * sizeof(float));
    enum samkv_status status = samkv_reply_memory_seal(m, err);
    job->timing.reply += samkv_now_ms() - since;
    return status;
}

static enum samkv_status run(struct samkv_fetch_job *job, struct samkv_reply_memory *m, struct samkv_error *err)
{
    enum samkv_status status = samkv_fetch_job_plan(job, err);
    if (!status)
        status = samkv_fetch_job_lay_out(job, job->request->with_query, err);
    if (status)
        return status;
    double since = samkv_now_ms();
    status = prepare_buffers(job, m, err);
    job->timing.reply = samkv_now_ms() - since;
    if (!status)
        status = samkv_fetch_job_load(job, err);
    if (!status)
        status = samkv_fetch_job_recompute(job, err);
    return status ? status : finish(job, m, err);
}

static enum samkv_status attempt(struct samkv_models *models, struct samkv_store *store,
                                 const struct samkv_fetch_request *request, struct samkv_fetch_result *out,
                                 struct samkv_error *err)
{
    struct samkv_fetch_job job;
    struct samkv_reply_memory memory = {.fd = -1};
    *out = (struct samkv_fetch_result){.memfd = -1};
    enum samkv_status status = samkv_fetch_job_open(&job, models, store, request, err);
    if (!status)
        status = run(&job, &memory, err);
    if (!status)
        status = samkv_fetch_job_report(&job, out, err);
    if (!status) {
        out->memfd = memory.fd;
        out->layout = memory.layout;
        memory.fd = -1;
    }
    samkv_fetch_job_close(&job);
    samkv_reply_memory_free(&memory);
    if (status)
        samkv_fetch_result_deinit(out);
    return status;
}

enum samkv_status samkv_fetch(struct samkv_models *models, struct samkv_store *store,
                              const struct samkv_fetch_request *request, struct samkv_fetch_result *out,
                              struct samkv_error *err)
{
    enum samkv_status status = attempt(models, store, request, out, err);
    /* Damage makes an answer slower, not wrong and not missing, as long as the tokens can be read. */
    if (status == SAMKV_CORRUPT && samkv_fetch_heal(models, store, request, NULL) == SAMKV_OK)
        status = attempt(models, store, request, out, err);
    return status;
}
