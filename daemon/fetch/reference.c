#include "daemon/fetch/reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/fetch/device.h"
#include "daemon/fetch/job.h"
#include "daemon/fetch/memory.h"
#include "daemon/model/chat.h"

/* Rows of a step of a prefill that others may overtake: on the CPU a fraction of a second. */
#define STEP_ROWS_UNIFIED  256
#define STEP_ROWS_DISCRETE 4096

/* A prompt's cache on its way: it grows by a row a token. */
struct continuation {
    struct samkv_fetch_job *job;
    int32_t token, row, position; /* the next one */
    enum samkv_status status;     /* of the last lane call */
    struct samkv_error *err;
};

/* ------------------------------------------------------------------ numbers */

double samkv_kl(const float *p, const float *q, uint32_t count)
{
    double p_most = -INFINITY, q_most = -INFINITY, p_sum = 0, q_sum = 0, kl = 0;
    for (uint32_t i = 0; i < count; i++) {
        p_most = fmax(p_most, p[i]);
        q_most = fmax(q_most, q[i]);
    }
    for (uint32_t i = 0; i < count; i++) {
        p_sum += exp(p[i] - p_most);
        q_sum += exp(q[i] - q_most);
    }
    double shift = (q_most + log(q_sum)) - (p_most + log(p_sum));
    for (uint32_t i = 0; i < count; i++)
        kl += exp(p[i] - p_most) / p_sum * ((double)p[i] - q[i] + shift);
    return kl > 0 ? kl : 0; /* rounding */
}

static int32_t best(const float *logits, uint32_t vocab)
{
    int32_t best = 0;
    for (uint32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = (int32_t)i;
    return best;
}

/* ------------------------------------------------------------------ caches */

static enum samkv_status allocate_cache(struct samkv_fetch_job *job, struct samkv_error *err)
{
    const struct samkv_model_config *c = &job->engine.model->config;
    size_t rows = (size_t)job->rows + SAMKV_REFERENCE_TOKENS;
    uint64_t row_bytes = 2ull * c->layers * c->kv_heads * c->head_dim * samkv_dtype_bytes(job->engine.device->dtype);
    if (!job->engine.device->unified)
        return samkv_fetch_device_cache_init(job, &job->cache, rows, err);
    enum samkv_status status = samkv_memory_check(rows * row_bytes, err);
    return status ? status : samkv_kv_cache_init(&job->cache, job->engine.model, rows, err);
}

static enum samkv_status full_prompt(struct samkv_fetch_job *job, const struct samkv_reference_probe *probe,
                                     struct samkv_error *err)
{
    struct samkv_full_prefill how = {.step_rows = job->engine.device->unified ? STEP_ROWS_UNIFIED : STEP_ROWS_DISCRETE};
    job->decision = SAMKV_DECISION_FULL_QUALITY;
    enum samkv_status status = samkv_fetch_job_keep_full(job, err);
    if (!status)
        status = samkv_fetch_job_lay_out(job, true, err);
    if (!status)
        status = allocate_cache(job, err);
    if (!status && probe)
        status = probe->begin(probe->arg, job, &how, err);
    if (!status)
        status = samkv_fetch_job_prefill(job, &how, err);
    return !status && probe ? probe->end(probe->arg, job, err) : status;
}

static enum samkv_status sparse_prompt(struct samkv_fetch_job *job, struct samkv_error *err)
{
    enum samkv_status status = samkv_fetch_job_plan(job, err);
    if (!status)
        status = samkv_fetch_job_lay_out(job, true, err);
    if (!status && job->engine.device->unified)
        status =
            samkv_stage_init(&job->stage, job->engine.device, &job->collection.shape, job->rows - job->query_rows, err);
    if (!status)
        status = allocate_cache(job, err);
    return status ? status : samkv_fetch_job_fill(job, NULL, NULL, err);
}

static void continuation_init(struct continuation *c, struct samkv_fetch_job *job, struct samkv_error *err)
{
    *c = (struct continuation){
        .job = job, .row = (int32_t)job->rows, .position = job->position[job->rows - 1] + 1, .err = err};
}

static void step_on_lane(void *arg)
{
    struct continuation *c = arg;
    const struct samkv_engine *e = &c->job->engine;
    int32_t limit = c->row + 1;
    const struct samkv_pass pass = {
        .n = 1,
        .ids = &c->token,
        .positions = &c->position,
        .cache_rows = &c->row,
        .limits = &limit,
        .depth = e->model->config.layers,
        .logits = c->job->logits,
        .cancelled = c->job->request->cancelled,
    };
    c->status = samkv_forward(e->model, e->stream, e->workspace, &pass, &c->job->cache, c->err);
}

/* One token more; job->logits are then those of the next. */
static enum samkv_status advance(struct continuation *c, int32_t token)
{
    c->token = token;
    samkv_lane_call(c->job->engine.lane, c->job->request->urgency, step_on_lane, c);
    c->row++;
    c->position++;
    return c->status;
}

/* ------------------------------------------------------------------ the reference */

static enum samkv_status read_answer(struct samkv_fetch_job *job, struct samkv_reference *out, struct samkv_error *err)
{
    const struct samkv_model *model = job->engine.model;
    struct continuation c;
    enum samkv_status status = SAMKV_OK;
    out->vocab = model->config.vocab;
    out->prompt_tokens = job->rows;
    out->answer = malloc(SAMKV_REFERENCE_TOKENS * sizeof *out->answer);
    out->logits = malloc(SAMKV_REFERENCE_TOKENS * (size_t)out->vocab * sizeof *out->logits);
    if (!out->answer || !out->logits)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    continuation_init(&c, job, err);
    while (!status) {
        int32_t token = best(job->logits, out->vocab);
        memcpy(out->logits + (size_t)out->count * out->vocab, job->logits, out->vocab * sizeof *out->logits);
        out->answer[out->count++] = token;
        if (out->count == SAMKV_REFERENCE_TOKENS || samkv_chat_is_end(model, token))
            break;
        status = advance(&c, token);
    }
    return status;
}

enum samkv_status samkv_reference_make(struct samkv_models *models, struct samkv_store *store,
                                       const struct samkv_fetch_request *request,
                                       const struct samkv_reference_probe *probe, struct samkv_reference *out,
                                       struct samkv_error *err)
{
    struct samkv_fetch_job job;
    *out = (struct samkv_reference){0};
    double since = samkv_now_ms();
    enum samkv_status status = samkv_fetch_job_open(&job, models, store, request, err);
    if (!status)
        status = full_prompt(&job, probe, err);
    if (!status)
        status = read_answer(&job, out, err);
    samkv_fetch_job_close(&job);
    out->ms = samkv_now_ms() - since;
    return status;
}

void samkv_reference_deinit(struct samkv_reference *r)
{
    free(r->answer);
    free(r->logits);
    *r = (struct samkv_reference){0};
}

/* ------------------------------------------------------------------ beside it */

static enum samkv_status read_closeness(struct samkv_fetch_job *job, const struct samkv_reference *reference,
                                        struct samkv_closeness *out, struct samkv_error *err)
{
    struct continuation c;
    enum samkv_status status = SAMKV_OK;
    *out = (struct samkv_closeness){0};
    if (job->engine.model->config.vocab != reference->vocab ||
        job->query_position + job->query_count != reference->prompt_tokens)
        return samkv_fail(err, SAMKV_MISMATCH, "the documents were replaced meanwhile");
    continuation_init(&c, job, err);
    for (uint32_t i = 0; i < reference->count && !status; i++) {
        out->agreement += best(job->logits, reference->vocab) == reference->answer[i];
        out->kl += samkv_kl(reference->logits + (size_t)i * reference->vocab, job->logits, reference->vocab);
        if (i + 1 < reference->count)
            status = advance(&c, reference->answer[i]);
    }
    out->agreement /= reference->count;
    out->kl /= reference->count;
    return status;
}

enum samkv_status samkv_reference_compare(struct samkv_models *models, struct samkv_store *store,
                                          const struct samkv_fetch_request *request,
                                          const struct samkv_reference *reference, struct samkv_compared *out,
                                          struct samkv_error *err)
{
    struct samkv_fetch_job job;
    *out = (struct samkv_compared){0};
    double since = samkv_now_ms();
    enum samkv_status status = samkv_fetch_job_open(&job, models, store, request, err);
    if (!status)
        status = sparse_prompt(&job, err);
    if (!status)
        status = read_closeness(&job, reference, &out->close, err);
    if (!status) {
        out->ratio = job.ratio;
        out->sequence_ratio = (double)job.selection.kept_tokens / job.total_tokens;
        out->recompute_ratio = (double)job.recomputed / ((double)job.total_tokens * job.engine.model->config.layers);
    }
    samkv_fetch_job_close(&job);
    out->ms = samkv_now_ms() - since;
    return status;
}
