/* Step "plan" of a fetch: index and anchors are read, the query runs over the anchors, and the blocks are chosen. */
#include <stdlib.h>
#include <string.h>

#include "daemon/fetch/device.h"
#include "daemon/fetch/job.h"
#include "daemon/fetch/score.h"

/* What planning holds besides the job. */
struct plan {
    struct samkv_fetch_job *job;
    float *index;         /* all documents' records of the stable layers, one after another */
    const float **kmean;  /* [document][stable] */
    const float **qlocal; /* [document][stable] */
    struct samkv_select_document *documents;
    float *q_query; /* [stable][heads * head_dim] */
    const float **q_query_layers;
    float *q_rows, *scores; /* for scores of the query's tokens: see score.h */
    int32_t *positions;     /* of the anchor rows, preamble first */
    size_t anchor_rows;     /* without the preamble */
    struct samkv_kv_cache cache;
    enum samkv_status status;
    struct samkv_error *err;
};

static void plan_deinit(struct plan *p)
{
    free(p->index);
    free(p->kmean);
    free(p->qlocal);
    free(p->documents);
    free(p->q_query);
    free(p->q_query_layers);
    free(p->q_rows);
    free(p->scores);
    free(p->positions);
}

static size_t q_width(const struct samkv_fetch_job *job)
{
    return (size_t)job->collection.heads * job->collection.shape.head_dim;
}

bool samkv_fetch_job_scores_tokens(const struct samkv_fetch_job *job)
{
    return job->request->scoring != SAMKV_SCORE_MEAN;
}

bool samkv_fetch_job_query_sees(const struct samkv_fetch_job *job, const struct samkv_blocks *blocks, uint32_t block)
{
    return job->request->scoring == SAMKV_SCORE_ATTEND || samkv_block_is_anchor(blocks, block);
}

static enum samkv_status plan_init(struct plan *p, struct samkv_fetch_job *job, struct samkv_error *err)
{
    size_t width = samkv_kv_width(&job->collection.shape), stable = job->stable_count, n = job->document_count;
    size_t blocks = 0;
    for (uint32_t i = 0; i < job->document_count; i++)
        blocks += job->documents[i].blocks.count;
    *p = (struct plan){.job = job, .err = err};
    p->index = malloc(stable * (blocks * width + n * q_width(job)) * sizeof(float));
    p->kmean = calloc(n * stable, sizeof *p->kmean);
    p->qlocal = calloc(n * stable, sizeof *p->qlocal);
    p->documents = calloc(n, sizeof *p->documents);
    p->q_query = malloc(stable * q_width(job) * sizeof(float));
    p->q_query_layers = calloc(stable, sizeof *p->q_query_layers);
    if (!p->index || !p->kmean || !p->qlocal || !p->documents || !p->q_query || !p->q_query_layers)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (uint32_t i = 0; i < job->document_count; i++)
        p->documents[i] =
            (struct samkv_select_document){.blocks = job->documents[i].blocks, .start = job->documents[i].start};
    if (!samkv_fetch_job_scores_tokens(job))
        return SAMKV_OK;
    p->q_rows = samkv_fetch_job_rows_new(job);
    p->scores = malloc(stable * blocks * sizeof(float));
    return p->q_rows && p->scores ? SAMKV_OK : samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
}

static enum samkv_status read_index(struct plan *p)
{
    struct samkv_fetch_job *job = p->job;
    size_t width = samkv_kv_width(&job->collection.shape);
    float *at = p->index;
    for (uint32_t i = 0; i < job->document_count; i++) {
        const struct samkv_fetch_document *d = &job->documents[i];
        const float **kmean = p->kmean + (size_t)i * job->stable_count,
                    **qlocal = p->qlocal + (size_t)i * job->stable_count;
        size_t means = d->blocks.count * width, count = means + q_width(job);
        for (uint32_t s = 0; s < job->stable_count; s++) {
            enum samkv_status status =
                samkv_snapshot_index(job->snapshot, &d->manifest, job->stable[s], at, count, p->err);
            if (status)
                return status;
            kmean[s] = at;
            qlocal[s] = at + means;
            at += count;
        }
        p->documents[i].kmean = kmean;
        p->documents[i].qlocal = qlocal;
    }
    return SAMKV_OK;
}

static size_t count_anchors(const struct samkv_fetch_job *job, size_t *rows)
{
    size_t blocks = 0;
    *rows = 0;
    for (uint32_t i = 0; i < job->document_count; i++) {
        const struct samkv_blocks *b = &job->documents[i].blocks;
        for (uint32_t k = 0; k < b->count; k++) {
            if (samkv_fetch_job_query_sees(job, b, k)) {
                blocks++;
                *rows += samkv_block_size(b, k);
            }
        }
    }
    return blocks;
}

/* All anchors into job->anchors, in order; their joint positions behind the preamble's. */
static enum samkv_status read_anchors(struct plan *p)
{
    struct samkv_fetch_job *job = p->job;
    size_t blocks = count_anchors(job, &p->anchor_rows), preamble = job->collection.preamble_tokens, n = 0, row = 0;
    struct samkv_load *loads = malloc((blocks + 1) * sizeof *loads);
    p->positions = malloc((preamble + p->anchor_rows + 1) * sizeof *p->positions);
    if (!loads || !p->positions) {
        free(loads);
        return samkv_fail(p->err, SAMKV_NO_MEMORY, "out of memory");
    }
    for (size_t i = 0; i < preamble; i++)
        p->positions[i] = (int32_t)i;
    for (uint32_t i = 0; i < job->document_count; i++) {
        const struct samkv_fetch_document *d = &job->documents[i];
        for (uint32_t b = 0; b < d->blocks.count; b++) {
            if (!samkv_fetch_job_query_sees(job, &d->blocks, b))
                continue;
            loads[n++] = (struct samkv_load){&d->manifest, b, row};
            for (uint32_t t = 0; t < samkv_block_size(&d->blocks, b); t++)
                p->positions[preamble + row++] = (int32_t)(d->start + samkv_block_first(&d->blocks, b) + t);
        }
    }
    enum samkv_status status =
        samkv_stage_init(&job->anchors, job->engine.device, &job->collection.shape, p->anchor_rows, p->err);
    if (!status)
        status = samkv_load_blocks(job->snapshot, loads, n, &job->anchors, p->err);
    free(loads);
    return status;
}

struct samkv_query_pass samkv_fetch_job_query_pass(const struct samkv_fetch_job *job, size_t anchor_rows)
{
    return (struct samkv_query_pass){
        .query = job->query,
        .query_count = (int)job->query_count,
        .first_position = (int32_t)job->query_position,
        .anchor_rows = (int)anchor_rows,
        .stable_layers = job->stable,
        .stable_count = job->stable_count,
        .cancelled = job->request->cancelled,
    };
}

/* Step 1, on the lane. */
static void query_on_lane(void *arg)
{
    struct plan *p = arg;
    struct samkv_fetch_job *job = p->job;
    int preamble = (int)job->collection.preamble_tokens, anchors = (int)p->anchor_rows;
    double since = samkv_now_ms();
    const struct samkv_query_pass query = samkv_fetch_job_query_pass(job, (size_t)(preamble + anchors));
    p->status =
        samkv_kv_cache_init(&p->cache, job->engine.model, (size_t)(preamble + anchors) + job->query_count, p->err);
    if (!p->status)
        p->status = samkv_stage_place(&job->engine, &job->preamble, &p->cache, p->positions, 0, preamble, p->err);
    if (!p->status)
        p->status = samkv_stage_place(&job->engine, &job->anchors, &p->cache, p->positions + preamble, preamble,
                                      anchors, p->err);
    if (!p->status && p->q_rows)
        p->status = samkv_query_rows(&job->engine, &p->cache, &query, (int)samkv_fetch_job_scored_tokens(job),
                                     p->q_rows, p->err);
    else if (!p->status)
        p->status = samkv_query_vector(&job->engine, &p->cache, &query, p->q_query, p->err);
    samkv_kv_cache_deinit(&p->cache, job->engine.device);
    job->query_lane_ms = samkv_now_ms() - since;
}

enum samkv_status samkv_fetch_job_select(struct samkv_fetch_job *job, const struct samkv_select_document *documents,
                                         const float *const *q_query, const float *scores, struct samkv_error *err)
{
    const struct samkv_select_input input = {
        .stable_count = job->stable_count,
        .stable_layers = job->stable,
        .heads = job->collection.heads,
        .kv_heads = job->collection.shape.kv_heads,
        .head_dim = job->collection.shape.head_dim,
        .inv_freq = job->engine.model->config.inv_freq,
        .no_rope = job->engine.model->config.no_rope,
        .q_query = q_query,
        .scores = scores,
        .documents = documents,
        .document_count = job->document_count,
        .ratio = job->ratio,
        .fixed = job->fixed,
        .neighbours = job->request->neighbours,
    };
    size_t blocks = 0;
    for (uint32_t i = 0; i < job->document_count; i++)
        blocks += documents[i].blocks.count;
    enum samkv_status status = SAMKV_OK;
    if (job->scores && scores)
        memcpy(job->scores, scores, job->stable_count * blocks * sizeof *scores);
    else if (job->scores)
        status = samkv_select_scores(&input, job->scores, err);
    return status ? status : samkv_select(&input, &job->selection, err);
}

static enum samkv_status choose(struct plan *p)
{
    struct samkv_fetch_job *job = p->job;
    if (p->scores) {
        enum samkv_status status = samkv_fetch_job_score(job, p->q_rows, p->scores, p->err);
        return status ? status : samkv_fetch_job_select(job, p->documents, NULL, p->scores, p->err);
    }
    for (uint32_t s = 0; s < job->stable_count; s++)
        p->q_query_layers[s] = p->q_query + s * q_width(job);
    return samkv_fetch_job_select(job, p->documents, p->q_query_layers, NULL, p->err);
}

enum samkv_status samkv_fetch_job_plan(struct samkv_fetch_job *job, struct samkv_error *err)
{
    struct plan p;
    double since = samkv_now_ms();
    if (!job->engine.device->unified)
        return samkv_fetch_device_plan(job, err);
    enum samkv_status status = plan_init(&p, job, err);
    if (!status && !samkv_fetch_job_scores_tokens(job))
        status = read_index(&p);
    if (!status)
        status = read_anchors(&p);
    job->timing.index = samkv_fetch_job_lap(job, SAMKV_PHASE_INDEX, &since);
    if (!status) {
        samkv_lane_call(job->engine.lane, job->request->urgency, query_on_lane, &p);
        status = p.status;
    }
    job->timing.query = samkv_fetch_job_lap(job, SAMKV_PHASE_QUERY, &since);
    if (job->request->scoring == SAMKV_SCORE_ATTEND) /* more than anchors: filling must not take it for them */
        samkv_stage_deinit(&job->anchors);
    if (!status)
        status = choose(&p);
    job->timing.select = samkv_fetch_job_lap(job, SAMKV_PHASE_SELECT, &since);
    plan_deinit(&p);
    return status;
}

enum samkv_status samkv_fetch_job_keep_all(struct samkv_fetch_job *job, struct samkv_error *err)
{
    struct samkv_blocks *blocks = malloc(job->document_count * sizeof *blocks);
    if (!blocks)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (uint32_t i = 0; i < job->document_count; i++)
        blocks[i] = job->documents[i].blocks;
    enum samkv_status status = samkv_select_all(blocks, job->document_count, 0, &job->selection, err);
    free(blocks);
    return status;
}
