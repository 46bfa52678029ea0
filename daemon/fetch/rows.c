/* Steps "lay out" and "fill" of a fetch: from the selection to a KV cache on the device. */
#include <stdlib.h>
#include <string.h>

#include "daemon/fetch/device.h"
#include "daemon/fetch/job.h"

/* ------------------------------------------------------------------ lay out */

static enum samkv_status allocate_rows(struct samkv_fetch_job *job, bool with_query, struct samkv_error *err)
{
    job->query_rows = with_query ? (uint32_t)job->query_count : 0;
    job->rows = job->collection.preamble_tokens + job->selection.kept_tokens + job->query_rows;
    job->tokens = malloc(5 * (size_t)job->rows * sizeof(int32_t) + 1);
    job->logits = with_query ? malloc(job->engine.model->config.vocab * sizeof(float)) : NULL;
    if (!job->tokens || (with_query && !job->logits))
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    job->doc = job->tokens + job->rows;
    job->index = job->doc + job->rows;
    job->position = job->index + job->rows;
    job->depth = (uint32_t *)(job->position + job->rows);
    return SAMKV_OK;
}

static void set_row(struct samkv_fetch_job *job, uint32_t row, int32_t token, int32_t doc, uint32_t index,
                    uint32_t position, uint32_t depth)
{
    job->tokens[row] = token;
    job->doc[row] = doc;
    job->index[row] = (int32_t)index;
    job->position[row] = (int32_t)(job->request->compact ? row : position);
    job->depth[row] = depth;
}

/* What is added by DELTA is a difference of two passes that all rows go through alike. */
static uint32_t depth_of(const struct samkv_fetch_job *job, uint32_t depth)
{
    if (samkv_fetch_job_is_full(job))
        return depth;
    if (job->request->no_recompute || !depth)
        return 0;
    return job->request->update == SAMKV_UPDATE_DELTA ? job->stable[job->stable_count - 1] + 1 : depth;
}

static uint32_t lay_out_document(struct samkv_fetch_job *job, uint32_t i, uint32_t row)
{
    struct samkv_fetch_document *d = &job->documents[i];
    const struct samkv_selected *s = &job->selection.documents[i];
    uint32_t passes = !samkv_fetch_job_is_full(job) && job->request->update == SAMKV_UPDATE_DELTA ? 2 : 1;
    d->first_kept_row = row;
    for (uint32_t k = 0; k < s->keep_count; k++) {
        uint32_t first = samkv_block_first(&d->blocks, s->keep[k]);
        uint32_t depth = depth_of(job, s->depth[s->keep[k]]);
        for (uint32_t t = first; t < first + samkv_block_size(&d->blocks, s->keep[k]); t++) {
            set_row(job, row++, d->tokens[t], (int32_t)i, t, d->start + t, depth);
            job->recomputed += passes * depth;
        }
    }
    return row;
}

enum samkv_status samkv_fetch_job_lay_out(struct samkv_fetch_job *job, bool with_query, struct samkv_error *err)
{
    enum samkv_status status = samkv_fetch_job_read_tokens(job, err);
    if (!status)
        status = allocate_rows(job, with_query, err);
    uint32_t row = 0;
    if (status)
        return status;
    for (; row < job->collection.preamble_tokens; row++)
        set_row(job, row, job->collection.preamble[row], -1, row, row, 0);
    for (uint32_t i = 0; i < job->document_count; i++)
        row = lay_out_document(job, i, row);
    for (uint32_t t = 0; t < job->query_rows; t++)
        set_row(job, row++, job->query[t], -2, t, job->query_position + t, job->engine.model->config.layers);
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ load */

uint32_t samkv_fetch_job_first_layer(const struct samkv_fetch_job *job, uint32_t document, uint32_t block)
{
    bool overwritten = job->request->update == SAMKV_UPDATE_OVERWRITE && !job->request->no_recompute;
    return overwritten ? job->selection.documents[document].depth[block] : 0;
}

static void copy_rows(const struct samkv_stage *to, size_t to_row, const struct samkv_stage *from, size_t from_row,
                      size_t rows)
{
    size_t bytes = rows * samkv_kv_width(&to->shape) * samkv_dtype_bytes(to->shape.dtype);
    if (!bytes) /* no preamble: there is no stage to copy from */
        return;
    for (uint32_t l = 0; l < to->shape.layers; l++) {
        memcpy(samkv_stage_row(to, l, false, to_row), samkv_stage_row(from, l, false, from_row), bytes);
        memcpy(samkv_stage_row(to, l, true, to_row), samkv_stage_row(from, l, true, from_row), bytes);
    }
}

/* Anchors were read for the query; the rest of the kept blocks is listed, but for those that the recomputation writes
 * in all layers. Returns how many. */
static size_t list_blocks(struct samkv_fetch_job *job, struct samkv_load *loads)
{
    size_t n = 0, anchor_row = 0;
    for (uint32_t i = 0; i < job->document_count; i++) {
        const struct samkv_fetch_document *d = &job->documents[i];
        const struct samkv_selected *s = &job->selection.documents[i];
        size_t row = d->first_kept_row;
        for (uint32_t k = 0; k < s->keep_count; k++) {
            uint32_t size = samkv_block_size(&d->blocks, s->keep[k]);
            bool unused = samkv_fetch_job_first_layer(job, i, s->keep[k]) >= job->collection.shape.layers;
            if (unused) {
                anchor_row += samkv_block_is_anchor(&d->blocks, s->keep[k]) ? size : 0;
            } else if (job->anchors.rows && samkv_block_is_anchor(&d->blocks, s->keep[k])) {
                copy_rows(&job->stage, row, &job->anchors, anchor_row, size);
                anchor_row += size;
            } else {
                loads[n++] = (struct samkv_load){&d->manifest, s->keep[k], row};
            }
            row += size;
        }
    }
    return n;
}

static enum samkv_status load(struct samkv_fetch_job *job, struct samkv_error *err)
{
    double since = samkv_now_ms();
    size_t blocks = 0;
    for (uint32_t i = 0; i < job->document_count; i++)
        blocks += job->selection.documents[i].keep_count;
    struct samkv_load *loads = malloc((blocks + 1) * sizeof *loads);
    if (!loads)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    copy_rows(&job->stage, 0, &job->preamble, 0, job->preamble.rows);
    size_t n = list_blocks(job, loads);
    enum samkv_status status = samkv_load_blocks(job->snapshot, loads, n, &job->stage, err);
    free(loads);
    job->timing.read = samkv_fetch_job_lap(job, SAMKV_PHASE_READ, &since);
    return status;
}

/* ------------------------------------------------------------------ recompute */

struct samkv_recompute samkv_fetch_job_recomputation(const struct samkv_fetch_job *job)
{
    return (struct samkv_recompute){
        .rows = (int)(job->rows - job->query_rows),
        .query_count = (int)job->query_rows,
        .ids = job->tokens,
        .positions = job->position,
        .depths = job->depth,
        .update = job->request->update,
        .theta = (float)job->request->theta,
        .documents = job->doc,
        .indices = job->index,
        .logits = job->logits,
        .cancelled = job->request->cancelled,
    };
}

struct lane_work {
    struct samkv_fetch_job *job;
    enum samkv_status status;
    struct samkv_error *err;
};

static void recompute_on_lane(void *arg)
{
    struct lane_work *w = arg;
    struct samkv_fetch_job *job = w->job;
    double since = samkv_now_ms();
    const struct samkv_recompute recompute = samkv_fetch_job_recomputation(job);
    w->status = samkv_stage_place(&job->engine, &job->stage, &job->cache, job->position, 0, recompute.rows, w->err);
    if (!w->status)
        w->status = samkv_recompute(&job->engine, &job->cache, &recompute, w->err);
    job->recompute_lane_ms = samkv_now_ms() - since;
}

enum samkv_status samkv_fetch_job_fill(struct samkv_fetch_job *job, void (*meanwhile)(void *arg), void *arg,
                                       struct samkv_error *err)
{
    struct lane_work work = {.job = job, .err = err};
    if (samkv_fetch_job_is_full(job)) {
        const struct samkv_full_prefill whole = {.meanwhile = meanwhile, .meanwhile_arg = arg};
        return samkv_fetch_job_prefill(job, &whole, err);
    }
    if (!job->engine.device->unified)
        return samkv_fetch_device_fill(job, meanwhile, arg, err);
    enum samkv_status status = load(job, err);
    double since = samkv_now_ms();
    if (status)
        return status;
    samkv_lane_call(job->engine.lane, job->request->urgency, recompute_on_lane, &work);
    job->timing.recompute = samkv_fetch_job_lap(job, SAMKV_PHASE_RECOMPUTE, &since);
    return work.status;
}
