#include "daemon/ingest/load.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "daemon/base/pool.h"

/* A thread is worth its start from about this many bytes of KV on. */
#define BYTES_PER_THREAD (1u << 20)
#define MAX_THREADS      16

struct load_job {
    struct samkv_snapshot *snapshot;
    const struct samkv_load *loads;
    const struct samkv_stage *stage;
    pthread_mutex_t lock; /* of the two below */
    enum samkv_status status;
    struct samkv_error *err;
};

static void record_failure(struct load_job *job, enum samkv_status status, const struct samkv_error *err)
{
    pthread_mutex_lock(&job->lock);
    if (!job->status) {
        job->status = status;
        if (job->err)
            *job->err = *err;
    }
    pthread_mutex_unlock(&job->lock);
}

static bool has_failed(struct load_job *job)
{
    pthread_mutex_lock(&job->lock);
    bool failed = job->status != SAMKV_OK;
    pthread_mutex_unlock(&job->lock);
    return failed;
}

static void load_one(void *arg, int i)
{
    struct load_job *job = arg;
    const struct samkv_load *load = &job->loads[i];
    struct samkv_error err = {0};
    if (has_failed(job))
        return;
    void **pieces = malloc(2 * (size_t)job->stage->shape.layers * sizeof *pieces);
    enum samkv_status status;
    if (pieces) {
        samkv_stage_pieces(job->stage, load->row, pieces);
        status = samkv_snapshot_block(job->snapshot, load->manifest, load->block, pieces, &err);
    } else {
        status = samkv_fail(&err, SAMKV_NO_MEMORY, "out of memory");
    }
    free(pieces);
    if (status)
        record_failure(job, status, &err);
}

static int thread_count(const struct samkv_load *loads, size_t count, const struct samkv_stage *stage)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    size_t bytes = 0;
    for (size_t i = 0; i < count; i++)
        bytes += (size_t)loads[i].manifest->block_tokens * samkv_kv_token_bytes(&stage->shape);
    size_t threads = bytes / BYTES_PER_THREAD + 1;
    if (cores > 0 && threads > (size_t)cores)
        threads = (size_t)cores;
    return threads > MAX_THREADS ? MAX_THREADS : (int)threads;
}

enum samkv_status samkv_load_blocks(struct samkv_snapshot *snapshot, const struct samkv_load *loads, size_t count,
                                    const struct samkv_stage *stage, struct samkv_error *err)
{
    struct load_job job = {.snapshot = snapshot, .loads = loads, .stage = stage, .err = err};
    if (!count)
        return SAMKV_OK;
    pthread_mutex_init(&job.lock, NULL);
    samkv_parallel_for((int)count, thread_count(loads, count, stage), load_one, &job);
    pthread_mutex_destroy(&job.lock);
    return job.status;
}

enum samkv_status samkv_load_manifest(struct samkv_snapshot *snapshot, const struct samkv_key *key,
                                      struct samkv_manifest *out, struct samkv_error *err)
{
    enum samkv_status status = samkv_snapshot_manifest(snapshot, key, out, err);
    if (status == SAMKV_NOT_FOUND)
        return samkv_fail(err, SAMKV_CORRUPT, "a preamble's KV cache is missing from the store: run samkvctl verify");
    return status;
}

enum samkv_status samkv_load_document(struct samkv_snapshot *snapshot, const struct samkv_key *key,
                                      struct samkv_device *device, struct samkv_stage *out, struct samkv_error *err)
{
    struct samkv_manifest manifest;
    *out = (struct samkv_stage){0};
    enum samkv_status status = samkv_load_manifest(snapshot, key, &manifest, err);
    if (status)
        return status;
    struct samkv_load *loads = calloc(manifest.blocks, sizeof *loads);
    if (!loads)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (uint32_t b = 0; b < manifest.blocks; b++)
        loads[b] = (struct samkv_load){.manifest = &manifest, .block = b, .row = (size_t)b * manifest.block_tokens};
    status = samkv_stage_init(out, device, &manifest.shape, manifest.tokens, err);
    if (!status)
        status = samkv_load_blocks(snapshot, loads, manifest.blocks, out, err);
    free(loads);
    if (status)
        samkv_stage_deinit(out);
    return status;
}
