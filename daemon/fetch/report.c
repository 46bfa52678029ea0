/* What a reply says besides its memory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/fetch/job.h"

static enum samkv_status allocate(struct samkv_fetch_result *r, uint32_t documents, uint32_t stable)
{
    r->documents = documents;
    r->top_p = calloc(documents, sizeof *r->top_p);
    r->document_tokens = calloc(documents, sizeof *r->document_tokens);
    r->keep = calloc(documents, sizeof *r->keep);
    r->keep_count = calloc(documents, sizeof *r->keep_count);
    r->stable_layers = calloc(stable, sizeof *r->stable_layers);
    return r->top_p && r->document_tokens && r->keep && r->keep_count && r->stable_layers ? SAMKV_OK : SAMKV_NO_MEMORY;
}

enum samkv_status samkv_fetch_job_report(const struct samkv_fetch_job *job, struct samkv_fetch_result *r,
                                         struct samkv_error *err)
{
    if (allocate(r, job->document_count, job->stable_count))
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (uint32_t i = 0; i < job->document_count; i++) {
        const struct samkv_selected *s = &job->selection.documents[i];
        r->top_p[i] = s->top_p;
        r->document_tokens[i] = job->documents[i].manifest.tokens;
        r->keep_count[i] = s->keep_count;
        r->keep[i] = malloc((s->keep_count + (size_t)1) * sizeof **r->keep);
        if (!r->keep[i])
            return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
        memcpy(r->keep[i], s->keep, s->keep_count * sizeof **r->keep);
    }
    memcpy(r->stable_layers, job->stable, job->stable_count * sizeof *r->stable_layers);
    r->stable_count = job->stable_count;
    r->block_tokens = job->collection.block_tokens;
    r->preamble_tokens = job->collection.preamble_tokens;
    r->kept_tokens = job->selection.kept_tokens;
    r->total_tokens = job->total_tokens;
    r->sequence_ratio = (double)r->kept_tokens / r->total_tokens;
    r->recompute_ratio = (double)job->recomputed / ((double)r->total_tokens * job->engine.model->config.layers);
    /* With the query along, its rows are the last; else it would begin where it was planned, or right behind them. */
    r->next_position = job->rows && (job->query_rows || job->request->compact)
                           ? (uint32_t)job->position[job->rows - 1] + 1
                           : job->query_position;
    r->bytes_read = samkv_snapshot_bytes_read(job->snapshot);
    r->bytes_stored = job->bytes_stored;
    r->anchors_exceed_budget = job->selection.anchors_exceed_budget;
    r->decision = job->decision;
    r->ratio = samkv_fetch_job_is_full(job) ? 1 : job->ratio;
    r->sparse_ms = job->sparse_ms;
    r->full_ms = job->full_ms;
    snprintf(r->backend, sizeof r->backend, "%s", job->engine.device->name);
    r->timing_ms = job->timing;
    r->timing_ms.total = samkv_now_ms() - job->started_ms;
    return SAMKV_OK;
}

void samkv_fetch_result_deinit(struct samkv_fetch_result *r)
{
    if (r->memfd >= 0)
        close(r->memfd);
    if (r->lease && r->device_fd >= 0)
        close(r->device_fd);
    samkv_lease_end(r->lease, true);
    for (uint32_t i = 0; r->keep && i < r->documents; i++)
        free(r->keep[i]);
    free(r->keep);
    free(r->keep_count);
    free(r->top_p);
    free(r->document_tokens);
    free(r->stable_layers);
    *r = (struct samkv_fetch_result){.memfd = -1, .device_fd = -1};
}
