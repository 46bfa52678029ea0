/* Step "decide" of a fetch: the sparse way, or everything recomputed. */
#include "daemon/fetch/job.h"
#include "daemon/samkv/cost.h"

/* FLOPs of the passes of either way, and the bytes that the sparse one reads. */
struct work {
    double query, recompute, prefill; /* FLOPs */
    double bytes;
};

static double anchor_tokens(const struct samkv_fetch_job *job)
{
    double sum = 0;
    for (uint32_t i = 0; i < job->document_count; i++) {
        const struct samkv_blocks *b = &job->documents[i].blocks;
        for (uint32_t k = 0; k < b->count; k++)
            sum += samkv_block_is_anchor(b, k) ? samkv_block_size(b, k) : 0;
    }
    return sum;
}

static double index_bytes(const struct samkv_fetch_job *job)
{
    double blocks = 0, width = (double)samkv_kv_width(&job->collection.shape);
    for (uint32_t i = 0; i < job->document_count; i++)
        blocks += job->documents[i].blocks.count;
    double floats =
        blocks * width + (double)job->document_count * job->collection.heads * job->collection.shape.head_dim;
    return job->stable_count * floats * sizeof(float);
}

/* kept: document tokens that the sparse way keeps; before it has chosen, its budget. */
static struct work work_of(const struct samkv_fetch_job *job, double kept)
{
    const struct samkv_model_config *c = &job->engine.model->config;
    double preamble = job->collection.preamble_tokens, anchors = anchor_tokens(job), query = (double)job->query_count;
    double all = preamble + job->total_tokens, depth = job->stable[job->stable_count - 1] + 1.0;
    double along = job->request->with_query ? query : 0, rows = preamble + kept;
    bool overwrites = job->request->update == SAMKV_UPDATE_OVERWRITE && !job->request->no_recompute;
    struct work w = {
        .query = samkv_cost_flops(c, query, depth, preamble + anchors + query / 2),
        .prefill = samkv_cost_flops(c, all + along, c->layers, (all + along) / 2),
        .bytes = index_bytes(job) + (preamble + anchors) * (double)samkv_kv_token_bytes(&job->collection.shape),
    };
    if (!job->request->no_recompute)
        w.recompute = samkv_cost_flops(c, kept, depth, rows / 2);
    if (along > 0)
        w.recompute += samkv_cost_flops(c, along, c->layers, rows + along / 2);
    if (!overwrites || depth < c->layers)
        w.bytes += (kept > anchors ? kept - anchors : 0) * (double)samkv_kv_token_bytes(&job->collection.shape);
    return w;
}

/* Negative when a part of it is not known. */
static void estimate(struct samkv_fetch_job *job)
{
    double budget = job->ratio * job->total_tokens, anchors = anchor_tokens(job);
    const struct work w = work_of(job, budget > anchors ? budget : anchors);
    struct samkv_cost *cost = job->engine.cost;
    double query = samkv_cost_ms(cost, SAMKV_COST_QUERY, w.query);
    double recompute = samkv_cost_ms(cost, SAMKV_COST_RECOMPUTE, w.recompute);
    job->sparse_ms =
        query < 0 || recompute < 0 ? -1 : query + recompute + samkv_cost_ms(cost, SAMKV_COST_READ, w.bytes);
    job->full_ms = samkv_cost_ms(cost, SAMKV_COST_PREFILL, w.prefill);
}

void samkv_fetch_job_learn(const struct samkv_fetch_job *job)
{
    if (samkv_fetch_job_is_full(job)) /* its prefill was noted when it ran */
        return;
    const struct work w = work_of(job, job->selection.kept_tokens);
    samkv_cost_note(job->engine.cost, SAMKV_COST_QUERY, w.query, job->query_lane_ms);
    samkv_cost_note(job->engine.cost, SAMKV_COST_RECOMPUTE, w.recompute, job->recompute_lane_ms);
    samkv_cost_note(job->engine.cost, SAMKV_COST_READ, w.bytes, job->timing.index + job->timing.read);
}

enum samkv_status samkv_fetch_job_check_deadline(const struct samkv_fetch_job *job, struct samkv_error *err)
{
    double at = job->request->deadline_at_ms, now = samkv_now_ms();
    if (at <= 0 || now <= at)
        return SAMKV_OK;
    return samkv_fail(err, SAMKV_TIMEOUT, "the deadline was over %.0f ms ago: give more time, or ask for less",
                      now - at);
}

enum samkv_status samkv_fetch_job_decide(struct samkv_fetch_job *job, struct samkv_error *err)
{
    double left = job->request->deadline_at_ms - samkv_now_ms();
    if (job->request->full)
        job->decision = SAMKV_DECISION_FULL_QUALITY;
    if (job->request->deadline_at_ms <= 0)
        return SAMKV_OK;
    enum samkv_status status = samkv_fetch_job_check_deadline(job, err);
    if (status)
        return status;
    estimate(job);
    bool known = job->sparse_ms >= 0 && job->full_ms >= 0;
    if (known && !samkv_fetch_job_is_full(job) && job->full_ms <= job->sparse_ms)
        job->decision = SAMKV_DECISION_FULL_CHEAPER;
    double expected = samkv_fetch_job_is_full(job) ? job->full_ms : job->sparse_ms;
    if (expected <= left) /* also when it is not known: then it is tried */
        return SAMKV_OK;
    return samkv_fail(err, SAMKV_TIMEOUT,
                      "this would take about %.0f ms and %.0f ms are left of the deadline: give more time, name fewer "
                      "documents or a lower ratio, or prefill them yourself",
                      expected, left);
}
