/* A variant's cache: which rows, and how they come into the arena. */
#include <math.h>
#include <stdlib.h>

#include "daemon/fetch/device.h"
#include "daemon/fetch/evaluate_work.h"
#include "daemon/fetch/memory.h"

/* Of the memory that is free, what one evaluation's caches may take. */
#define MEMORY_SHARE 4

struct samkv_fetch_request samkv_eval_fetch(const struct samkv_eval *e, const struct samkv_variant *variant)
{
    struct samkv_fetch_request fetch = variant->fetch;
    fetch.collection = e->request->collection;
    fetch.ids = e->request->ids;
    fetch.id_count = e->request->id_count;
    fetch.query_text = NULL;
    fetch.query_tokens = e->query.data;
    fetch.query_count = e->query.count;
    fetch.with_query = true;
    fetch.placement = SAMKV_PLACE_HOST; /* its cache goes nowhere */
    fetch.cancelled = e->request->cancelled;
    fetch.trace = e->request->trace;
    fetch.announce = NULL;
    if (variant->method == SAMKV_EVALUATE_SAMKV)
        return fetch;
    fetch.update = SAMKV_UPDATE_OVERWRITE;
    fetch.no_recompute = fetch.compact = false;
    return fetch;
}

/* ------------------------------------------------------------------ the arena */

/* Rows that all variants would like, about; the memory bounds them. */
static size_t wanted_rows(const struct samkv_eval *e, const struct samkv_fetch_job *job)
{
    size_t around = job->rows - job->total_tokens + samkv_eval_spare_rows(e), rows = around + job->total_tokens;
    for (size_t v = 0; v < e->request->variant_count; v++) {
        const struct samkv_variant *variant = &e->request->variants[v];
        if (variant->method == SAMKV_EVALUATE_FULL)
            continue;
        bool all = variant->method != SAMKV_EVALUATE_SAMKV && variant->cut == SAMKV_CUT_NONE;
        double ratio = all ? 1 : fmin(1, variant->fetch.ratio + 0.05);
        rows += around + (size_t)(ratio * job->total_tokens) + 1;
    }
    return rows;
}

struct clearing {
    struct samkv_eval *e;
    const struct samkv_fetch_job *job;
    enum samkv_status status;
    struct samkv_error *err;
};

/*
 * Slots are read together, and rows of one that are not written yet, or that nobody uses, lie between others'. On the
 * CPU what nobody looks at must be numbers too (0 times NaN is NaN), and memory that was used before may hold any bits.
 */
static void clear_on_lane(void *arg)
{
    struct clearing *c = arg;
    const struct samkv_engine *engine = &c->job->engine;
    const struct samkv_kv_cache *arena = &c->e->arena;
    for (uint32_t l = 0; l < engine->model->config.layers; l++) {
        engine->device->ops->zero(engine->stream, samkv_kv_cache_k(arena, l), arena->layer_stride_bytes);
        engine->device->ops->zero(engine->stream, samkv_kv_cache_v(arena, l), arena->layer_stride_bytes);
    }
    c->status = engine->device->ops->sync(engine->stream, c->err);
}

static enum samkv_status allocate_arena(struct samkv_eval *e, const struct samkv_fetch_job *job,
                                        struct samkv_error *err)
{
    const struct samkv_model_config *c = &job->engine.model->config;
    struct samkv_device *device = job->engine.device;
    size_t row_bytes = 2ull * c->layers * c->kv_heads * c->head_dim * samkv_dtype_bytes(device->dtype);
    size_t least = (size_t)job->rows + samkv_eval_spare_rows(e), rows = wanted_rows(e, job);
    uint64_t free_bytes = 0, total_bytes = 0;
    device->ops->memory(device, &free_bytes, &total_bytes);
    size_t most = (size_t)(free_bytes / MEMORY_SHARE / row_bytes);
    if (rows > most)
        rows = most > least ? most : least;
    enum samkv_status status = device->unified ? samkv_memory_check(rows * row_bytes, err) : SAMKV_OK;
    if (status && rows > least) {
        rows = least;
        status = samkv_memory_check(rows * row_bytes, err);
    }
    if (status)
        return status;
    status = device->unified ? samkv_kv_cache_init(&e->arena, job->engine.model, rows, err)
                             : samkv_fetch_device_cache_init(job, &e->arena, rows, err);
    if (status)
        return status;
    e->arena_rows = rows;
    struct clearing clearing = {.e = e, .job = job, .err = err};
    samkv_lane_call(job->engine.lane, SAMKV_URGENT, clear_on_lane, &clearing);
    return clearing.status;
}

/* The job's cache is a slice of the arena. */
static void take_rows(struct samkv_eval *e, struct samkv_fetch_job *job)
{
    const struct samkv_model_config *c = &job->engine.model->config;
    size_t at = e->used_rows * c->kv_heads * c->head_dim * samkv_dtype_bytes(job->engine.device->dtype);
    job->cache = (struct samkv_kv_cache){.k = e->arena.k + at,
                                         .v = e->arena.v + at,
                                         .layer_stride_bytes = e->arena.layer_stride_bytes,
                                         .rows = job->rows};
}

/* ------------------------------------------------------------------ methods */

struct lane_work {
    struct samkv_fetch_job *job;
    enum samkv_status status;
    struct samkv_error *err;
};

static void prefill_on_lane(void *arg)
{
    struct lane_work *w = arg;
    w->status = samkv_fetch_job_prefill_in_place(w->job, w->err);
}

static void mark_first_tokens(struct samkv_fetch_job *job, uint32_t first_tokens)
{
    uint32_t layers = job->engine.model->config.layers;
    for (uint32_t row = 0; row < job->rows; row++) {
        if (job->doc[row] < 1 || (uint32_t)job->index[row] >= first_tokens)
            continue;
        job->depth[row] = layers;
        job->recomputed += layers;
    }
}

static enum samkv_status choose(const struct samkv_eval *e, const struct samkv_variant *variant,
                                struct samkv_fetch_job *job, struct samkv_error *err)
{
    enum samkv_status status;
    if (variant->method == SAMKV_EVALUATE_SAMKV)
        status = samkv_fetch_job_plan(job, err);
    else if (variant->method == SAMKV_EVALUATE_FULL || variant->cut == SAMKV_CUT_NONE)
        status = samkv_fetch_job_keep_all(job, err);
    else
        status = samkv_eval_cut(job, variant->cut, e->request->seed, err);
    return status ? status : samkv_fetch_job_lay_out(job, true, err);
}

static enum samkv_status compute(const struct samkv_variant *variant, struct samkv_fetch_job *job,
                                 struct samkv_error *err)
{
    struct lane_work work = {.job = job, .err = err};
    if (variant->method == SAMKV_EVALUATE_FULL) {
        samkv_lane_call(job->engine.lane, SAMKV_URGENT, prefill_on_lane, &work);
        job->recomputed = (uint64_t)job->total_tokens * job->engine.model->config.layers;
        return work.status;
    }
    if (job->engine.device->unified) {
        enum samkv_status status =
            samkv_stage_init(&job->stage, job->engine.device, &job->collection.shape, job->rows - job->query_rows, err);
        if (status)
            return status;
    }
    if (variant->method == SAMKV_EVALUATE_CACHEBLEND)
        return samkv_eval_blend(job, variant->share, err);
    if (variant->method == SAMKV_EVALUATE_EPIC)
        mark_first_tokens(job, variant->first_tokens);
    return samkv_fetch_job_fill(job, NULL, NULL, err);
}

/* ------------------------------------------------------------------ a slot */

static enum samkv_status note(struct samkv_eval *e, struct samkv_fetch_job *job, struct samkv_eval_slot *slot,
                              struct samkv_error *err)
{
    slot->rows = job->rows;
    slot->position = job->position[job->rows - 1] + 1;
    slot->first_token_ms = samkv_now_ms() - job->started_ms;
    slot->logits = job->logits;
    job->logits = NULL;
    uint32_t vocab = job->engine.model->config.vocab;
    if (!e->full_logits) {
        e->full_logits = malloc(vocab * sizeof *e->full_logits);
        if (!e->full_logits)
            return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
        for (uint32_t i = 0; i < vocab; i++)
            e->full_logits[i] = slot->logits[i];
    }
    slot->kl = samkv_eval_kl(e->full_logits, slot->logits, vocab);
    return samkv_fetch_job_report(job, &slot->fetch, err);
}

static enum samkv_status run(struct samkv_eval *e, struct samkv_fetch_job *job, const struct samkv_variant *variant,
                             struct samkv_eval_slot *slot, bool *fits, struct samkv_error *err)
{
    enum samkv_status status = choose(e, variant, job, err);
    if (!status && !e->arena.allocation)
        status = allocate_arena(e, job, err);
    if (status)
        return status;
    size_t rows = (size_t)job->rows + samkv_eval_spare_rows(e);
    *fits = e->used_rows + rows <= e->arena_rows;
    if (!*fits)
        return SAMKV_OK;
    take_rows(e, job);
    slot->first_row = (uint32_t)e->used_rows;
    status = compute(variant, job, err);
    if (!status)
        status = note(e, job, slot, err);
    e->used_rows += rows;
    return status;
}

enum samkv_status samkv_eval_fill(struct samkv_eval *e, uint32_t number, const struct samkv_variant *variant,
                                  bool *fits, struct samkv_error *err)
{
    struct samkv_eval_slot *slot = &e->slots[e->slot_count];
    struct samkv_fetch_job job;
    const struct samkv_fetch_request fetch = samkv_eval_fetch(e, variant);
    size_t used_rows = e->used_rows;
    *slot = (struct samkv_eval_slot){.variant = number, .fetch = {.memfd = -1, .device_fd = -1}};
    *fits = true;
    samkv_ids_init(&slot->answer);
    enum samkv_status status = samkv_fetch_job_open(&job, e->models, e->store, &fetch, err);
    if (!status)
        status = run(e, &job, variant, slot, fits, err);
    samkv_fetch_job_close(&job);
    if (!status && *fits) {
        e->slot_count++;
        return SAMKV_OK;
    }
    free(slot->logits);
    slot->logits = NULL;
    samkv_fetch_result_deinit(&slot->fetch);
    e->used_rows = used_rows;
    return status;
}
