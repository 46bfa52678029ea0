/* Full recomputation instead of the sparse way: nothing that is stored is used but the tokens. */
#include <stdlib.h>

#include "daemon/fetch/job.h"
#include "daemon/samkv/cost.h"

enum samkv_status samkv_fetch_job_keep_full(struct samkv_fetch_job *job, struct samkv_error *err)
{
    struct samkv_blocks *blocks = malloc(job->document_count * sizeof *blocks);
    if (!blocks)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (uint32_t i = 0; i < job->document_count; i++)
        blocks[i] = job->documents[i].blocks;
    enum samkv_status status =
        samkv_select_all(blocks, job->document_count, job->engine.model->config.layers, &job->selection, err);
    free(blocks);
    return status;
}

enum samkv_status samkv_fetch_job_prefill_in_place(struct samkv_fetch_job *job, struct samkv_error *err)
{
    for (uint32_t i = 0; i < job->rows; i++)
        job->index[i] = (int32_t)i + 1;
    const struct samkv_pass pass = {
        .n = (int)job->rows,
        .ids = job->tokens,
        .positions = job->position,
        .cache_rows = job->position,
        .limits = job->index,
        .depth = job->engine.model->config.layers,
        .logits = job->logits,
        .cancelled = job->request->cancelled,
    };
    return samkv_forward(job->engine.model, job->engine.stream, job->engine.workspace, &pass, &job->cache, err);
}

/* A step on its way to the lane. */
struct step {
    struct samkv_fetch_job *job;
    const struct samkv_full_prefill *how;
    const int32_t *numbers; /* 0, 1, 2, … of [rows + 1] */
    int first, count;
    double ms;
    enum samkv_status status;
    struct samkv_error *err;
};

static void run_step(void *arg)
{
    struct step *s = arg;
    const struct samkv_fetch_job *job = s->job;
    bool last = s->first + s->count == (int)job->rows;
    double since = samkv_now_ms();
    const struct samkv_pass pass = {
        .n = s->count,
        .ids = job->tokens + s->first,
        .positions = s->numbers + s->first,
        .cache_rows = s->numbers + s->first,
        .limits = s->numbers + s->first + 1,
        .depth = job->engine.model->config.layers,
        .tap = s->how->tap,
        .tap_arg = s->how->tap_arg,
        .logits = last ? job->logits : NULL,
        .cancelled = job->request->cancelled,
    };
    if (s->how->pass_first)
        *s->how->pass_first = s->first;
    s->status =
        samkv_forward(job->engine.model, job->engine.stream, job->engine.workspace, &pass, &s->job->cache, s->err);
    s->ms += samkv_now_ms() - since;
}

enum samkv_status samkv_fetch_job_prefill(struct samkv_fetch_job *job, const struct samkv_full_prefill *how,
                                          struct samkv_error *err)
{
    int32_t *numbers = malloc((job->rows + (size_t)1) * sizeof *numbers);
    int step_rows = how->step_rows ? how->step_rows : (int)job->rows;
    double since = samkv_now_ms();
    if (!numbers)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (uint32_t i = 0; i <= job->rows; i++)
        numbers[i] = (int32_t)i;
    struct step s = {.job = job, .how = how, .numbers = numbers, .err = err};
    for (; s.first < (int)job->rows && !s.status; s.first += s.count) {
        struct samkv_lane_job lane_job;
        s.count = (int)job->rows - s.first < step_rows ? (int)job->rows - s.first : step_rows;
        samkv_lane_start(job->engine.lane, job->request->urgency, run_step, &s, &lane_job);
        if (how->meanwhile && s.first == 0)
            how->meanwhile(how->meanwhile_arg);
        samkv_lane_wait(job->engine.lane, &lane_job);
    }
    free(numbers);
    job->timing.recompute = samkv_fetch_job_lap(job, SAMKV_PHASE_PREFILL, &since);
    if (!s.status)
        samkv_cost_note(
            job->engine.cost, SAMKV_COST_PREFILL,
            samkv_cost_flops(&job->engine.model->config, job->rows, job->engine.model->config.layers, job->rows / 2.0),
            s.ms);
    return s.status;
}
