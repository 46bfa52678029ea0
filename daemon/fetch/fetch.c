#include "daemon/fetch/fetch.h"

#include <string.h>
#include <unistd.h>

#include "daemon/fetch/device.h"
#include "daemon/fetch/heal.h"
#include "daemon/fetch/job.h"
#include "daemon/fetch/memory.h"
#include "daemon/samkv/transfer.h"

/* What a fetch leaves: one memfd with everything, or the small columns in it and K and V in a lease. */
struct reply {
    struct samkv_fetch_job *job;
    struct samkv_reply_memory memory;
    struct samkv_lease *lease;
    int device_fd;            /* until it is announced or handed over */
    void *converted;          /* device memory of K and V in the stored type, when that is not the device's */
    enum samkv_status status; /* of the last step on a lane or in meanwhile */
    struct samkv_error *err;
};

static void reply_deinit(struct reply *r)
{
    struct samkv_device *device = r->job->engine.device;
    if (r->converted)
        device->ops->release(device, r->converted);
    if (r->device_fd >= 0)
        close(r->device_fd);
    samkv_lease_end(r->lease, true); /* of the job: the device is done with it */
    samkv_reply_memory_free(&r->memory);
}

static bool is_stored_type(const struct samkv_fetch_job *job)
{
    return job->engine.device->dtype == job->engine.stored;
}

static size_t layer_bytes(const struct samkv_fetch_job *job)
{
    return job->rows * samkv_kv_width(&job->collection.shape) * samkv_dtype_bytes(job->collection.shape.dtype);
}

static size_t kv_bytes(const struct samkv_fetch_job *job)
{
    return 2 * (size_t)job->collection.shape.layers * layer_bytes(job);
}

static enum samkv_status new_memory(struct reply *r, bool with_kv, struct samkv_error *err)
{
    const struct samkv_fetch_job *job = r->job;
    uint32_t vocab = job->query_rows ? job->engine.model->config.vocab : 0;
    return samkv_reply_memory_new(&r->memory, &job->collection.shape, job->rows, vocab, with_kv, err);
}

struct lane_convert {
    struct samkv_fetch_job *job;
    uint8_t *to;
    size_t v_offset;
    enum samkv_status status;
    struct samkv_error *err;
};

static void convert_on_lane(void *arg)
{
    struct lane_convert *c = arg;
    struct samkv_fetch_job *job = c->job;
    const struct samkv_kv_shape *shape = &job->collection.shape;
    struct samkv_device *device = job->engine.device;
    size_t count = job->rows * samkv_kv_width(shape);
    for (uint32_t l = 0; l < shape->layers; l++) {
        uint8_t *k = c->to + l * layer_bytes(job), *v = k + c->v_offset;
        device->ops->convert(job->engine.stream, samkv_kv_cache_k(&job->cache, l), device->dtype, k, shape->dtype,
                             count);
        device->ops->convert(job->engine.stream, samkv_kv_cache_v(&job->cache, l), device->dtype, v, shape->dtype,
                             count);
    }
    c->status = device->ops->sync(job->engine.stream, c->err);
}

/* The finished cache in the stored type: K at `to`, V v_offset further. */
static enum samkv_status convert_cache(struct samkv_fetch_job *job, void *to, size_t v_offset, struct samkv_error *err)
{
    struct lane_convert c = {.job = job, .to = to, .v_offset = v_offset, .err = err};
    samkv_lane_call(job->engine.lane, SAMKV_URGENT, convert_on_lane, &c);
    return c.status;
}

static enum samkv_status seal(struct reply *r, struct samkv_error *err)
{
    const struct samkv_fetch_job *job = r->job;
    const struct samkv_fetch_layout *l = &r->memory.layout;
    uint8_t *map = r->memory.map;
    size_t column = (size_t)job->rows * sizeof(int32_t);
    memcpy(map + l->tokens_offset, job->tokens, column);
    memcpy(map + l->doc_offset, job->doc, column);
    memcpy(map + l->index_offset, job->index, column);
    memcpy(map + l->position_offset, job->position, column);
    if (l->vocab)
        memcpy(map + l->logits_offset, job->logits, l->vocab * sizeof(float));
    return samkv_reply_memory_seal(&r->memory, err);
}

/* ------------------------------------------------------------------ on a unified device */

/* The cache lies in the reply itself: blocks are decoded, rotated and recomputed where the client reads. */
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

static enum samkv_status prepare_buffers(struct reply *r, struct samkv_error *err)
{
    struct samkv_fetch_job *job = r->job;
    enum samkv_status status = new_memory(r, true, err);
    if (status)
        return status;
    if (is_stored_type(job)) {
        use_reply_memory(job, &r->memory);
        return SAMKV_OK;
    }
    status = samkv_memory_check(2 * r->memory.layout.memory_bytes, err);
    if (!status && !samkv_fetch_job_is_full(job))
        status =
            samkv_stage_init(&job->stage, job->engine.device, &job->collection.shape, job->rows - job->query_rows, err);
    return status ? status : samkv_kv_cache_init(&job->cache, job->engine.model, job->rows, err);
}

static enum samkv_status run_unified(struct reply *r, struct samkv_error *err)
{
    struct samkv_fetch_job *job = r->job;
    double since = samkv_now_ms();
    enum samkv_status status = prepare_buffers(r, err);
    job->timing.reply = samkv_fetch_job_lap(job, SAMKV_PHASE_REPLY, &since);
    if (!status)
        status = samkv_fetch_job_fill(job, NULL, NULL, err);
    samkv_lap_ms(&since);
    if (!status && !is_stored_type(job))
        status = convert_cache(job, r->memory.map + r->memory.layout.k_offset,
                               r->memory.layout.v_offset - r->memory.layout.k_offset, err);
    if (!status)
        status = seal(r, err);
    job->timing.reply += samkv_fetch_job_lap(job, SAMKV_PHASE_REPLY, &since);
    return status;
}

/* ------------------------------------------------------------------ on a device with a memory of its own */

/* K and V are computed in the lease itself when their type is the stored one. */
static enum samkv_status allocate_cache(struct reply *r, struct samkv_error *err)
{
    struct samkv_fetch_job *job = r->job;
    struct samkv_device *device = job->engine.device;
    bool leased = job->request->placement == SAMKV_PLACE_DEVICE;
    enum samkv_status status = SAMKV_OK;
    if (leased)
        status = samkv_lease_take(job->engine.leases, job->request->user, kv_bytes(job), &r->lease, err);
    if (status == SAMKV_NO_MEMORY && samkv_fetch_device_trim(job))
        status = samkv_lease_take(job->engine.leases, job->request->user, kv_bytes(job), &r->lease, err);
    if (status)
        return status;
    if (leased && is_stored_type(job)) {
        uint8_t *memory = samkv_lease_memory(r->lease);
        job->cache = (struct samkv_kv_cache){
            .k = memory,
            .v = memory + kv_bytes(job) / 2,
            .layer_stride_bytes = layer_bytes(job),
            .rows = job->rows,
        };
        return SAMKV_OK;
    }
    if (!leased && !is_stored_type(job) && device->ops->alloc(device, kv_bytes(job), &r->converted))
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory on %s for the reply: ask for fewer documents", device->name);
    return samkv_fetch_device_cache_init(job, &job->cache, job->rows, err);
}

/* What says where K and V are. */
static void describe_device(const struct reply *r, struct samkv_fetch_result *out)
{
    const struct samkv_device *device = r->job->engine.device;
    out->layout = r->memory.layout;
    out->device_bytes = samkv_lease_bytes(r->lease);
    memcpy(out->device_uuid, device->uuid, sizeof out->device_uuid);
    for (size_t i = 0; i < sizeof device->uuid; i++)
        out->device_is_cuda |= device->uuid[i] != 0;
}

static enum samkv_status announce(struct reply *r, struct samkv_error *err)
{
    const struct samkv_fetch_request *request = r->job->request;
    struct samkv_fetch_result memory = {.memfd = -1, .device_fd = r->device_fd};
    describe_device(r, &memory);
    memory.lease = samkv_lease_share(r->lease);
    r->device_fd = -1;
    return request->announce(request->announce_arg, &memory, err);
}

/* While the device computes: the lease's descriptor, which the client maps meanwhile, and the reply's host memory,
 * whose pages take their time. */
static void make_hand_off(void *arg)
{
    struct reply *r = arg;
    r->status = new_memory(r, !r->lease, r->err);
    if (!r->status && r->lease)
        r->status = samkv_lease_export(r->lease, &r->device_fd, r->err);
    if (!r->status && r->lease && r->job->request->announce)
        r->status = announce(r, r->err);
}

/* K and V down to the reply; both lie in one piece on both sides. */
static enum samkv_status download_cache(struct reply *r, struct samkv_error *err)
{
    struct samkv_fetch_job *job = r->job;
    const struct samkv_fetch_layout *l = &r->memory.layout;
    size_t half = kv_bytes(job) / 2;
    const uint8_t *k = r->converted ? r->converted : job->cache.k;
    const uint8_t *v = r->converted ? k + half : job->cache.v;
    enum samkv_status status = samkv_transfer_down(job->engine.transfer, k, r->memory.map + l->k_offset, half, err);
    return status ? status : samkv_transfer_down(job->engine.transfer, v, r->memory.map + l->v_offset, half, err);
}

static enum samkv_status finish_on_device(struct reply *r, struct samkv_error *err)
{
    struct samkv_fetch_job *job = r->job;
    enum samkv_status status = SAMKV_OK;
    if (!is_stored_type(job))
        status = convert_cache(job, r->lease ? samkv_lease_memory(r->lease) : r->converted, kv_bytes(job) / 2, err);
    if (!status && !r->lease)
        status = download_cache(r, err);
    return status ? status : seal(r, err);
}

static enum samkv_status run_discrete(struct reply *r, struct samkv_error *err)
{
    struct samkv_fetch_job *job = r->job;
    struct samkv_error meanwhile_err = {0};
    double since = samkv_now_ms();
    enum samkv_status status = allocate_cache(r, err);
    job->timing.reply = samkv_fetch_job_lap(job, SAMKV_PHASE_REPLY, &since);
    r->err = &meanwhile_err;
    if (!status)
        status = samkv_fetch_job_fill(job, make_hand_off, r, err);
    samkv_lap_ms(&since);
    if (!status && r->status) {
        status = r->status;
        if (err)
            *err = meanwhile_err;
    }
    if (!status)
        status = finish_on_device(r, err);
    job->timing.reply += samkv_fetch_job_lap(job, SAMKV_PHASE_REPLY, &since);
    return status;
}

/* ------------------------------------------------------------------ the whole */

static enum samkv_status run(struct reply *r, struct samkv_error *err)
{
    struct samkv_fetch_job *job = r->job;
    if (job->request->placement == SAMKV_PLACE_DEVICE && !job->engine.leases)
        return samkv_fail(err, SAMKV_UNSUPPORTED,
                          "%s has no memory to share: ask for the reply in host memory (placement host)",
                          job->engine.device->name);
    enum samkv_status status = samkv_fetch_job_decide(job, err);
    if (!status)
        status = samkv_fetch_job_is_full(job) ? samkv_fetch_job_keep_full(job, err) : samkv_fetch_job_plan(job, err);
    if (!status)
        status = samkv_fetch_job_check_deadline(job, err);
    if (!status)
        status = samkv_fetch_job_lay_out(job, job->request->with_query, err);
    if (status)
        return status;
    return job->engine.device->unified ? run_unified(r, err) : run_discrete(r, err);
}

/* What the reply owns becomes the result's. */
static void hand_over(struct reply *r, struct samkv_fetch_result *out)
{
    out->memfd = r->memory.fd;
    out->layout = r->memory.layout;
    r->memory.fd = -1;
    if (!r->lease)
        return;
    describe_device(r, out);
    if (r->device_fd < 0) /* announced: the client's share of the lease goes on */
        return;
    out->lease = r->lease;
    out->device_fd = r->device_fd;
    r->lease = NULL;
    r->device_fd = -1;
}

static enum samkv_status attempt(struct samkv_models *models, struct samkv_store *store,
                                 const struct samkv_fetch_request *request, struct samkv_fetch_result *out,
                                 struct samkv_error *err)
{
    struct samkv_fetch_job job;
    struct reply reply = {.job = &job, .memory.fd = -1, .device_fd = -1};
    *out = (struct samkv_fetch_result){.memfd = -1, .device_fd = -1};
    double since = samkv_now_ms();
    enum samkv_status status = samkv_fetch_job_open(&job, models, store, request, err);
    samkv_trace_lap(request->trace, SAMKV_PHASE_OPEN, &since);
    if (!status)
        status = run(&reply, err);
    if (!status)
        status = samkv_fetch_job_check_deadline(&job, err);
    if (!status) {
        samkv_fetch_job_learn(&job);
        status = samkv_fetch_job_report(&job, out, err);
    }
    if (!status)
        hand_over(&reply, out);
    if (job.engine.device)
        reply_deinit(&reply);
    samkv_fetch_job_close(&job);
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
