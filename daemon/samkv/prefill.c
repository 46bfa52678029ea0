#include "daemon/samkv/prefill.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/samkv/packed.h"

struct samkv_prefiller {
    struct samkv_batcher *batcher;
    struct samkv_packer *packer;
    struct samkv_landing landings[SAMKV_BATCH_SLOTS];
    uint32_t most_rows; /* of a pass */
};

/* ------------------------------------------------------------------ a batch */

/* A batch on its way to the lane and back. */
struct job {
    struct samkv_prefiller *prefiller;
    struct samkv_landing *landing;
    struct samkv_prefill *first; /* whose thread leads it */
    struct samkv_packed pass;
    enum samkv_status status;
    struct samkv_error *err;
    double ms;
};

static struct samkv_prefill *prefill_of(struct samkv_batch_item *item)
{
    return (struct samkv_prefill *)((char *)item - offsetof(struct samkv_prefill, item));
}

static void run_on_lane(void *arg)
{
    struct job *job = arg;
    struct samkv_prefill *p = job->first;
    double start = samkv_now_ms();
    if (p->is_long && !p->cache.allocation)
        job->status = samkv_kv_cache_init(&p->cache, p->engine->model,
                                          p->preamble.tokens + (size_t)p->part.blocks.tokens, job->err);
    if (!job->status)
        job->status = samkv_packer_run(job->prefiller->packer, &job->pass, job->landing, job->err);
    job->ms = samkv_now_ms() - start;
}

/* The pass with all that it needs on the host. */
static enum samkv_status run_pass(struct job *job)
{
    struct samkv_prefill *p = job->first;
    struct samkv_stage preamble = {0};
    enum samkv_status status = samkv_landing_reserve(job->landing, p->engine, job->pass.rows, job->pass.blocks,
                                                     job->pass.count, job->prefiller->most_rows, job->err);
    if (!status && !samkv_packer_has_preamble(job->prefiller->packer, &job->pass)) {
        status = p->preamble.load(p->preamble.arg, &preamble, job->err);
        job->pass.preamble = &preamble;
    }
    if (!status) {
        samkv_lane_call(p->engine->lane, SAMKV_RELAXED, run_on_lane, job);
        status = job->status;
    }
    samkv_stage_deinit(&preamble);
    return status;
}

static enum samkv_status run_batch(void *arg, int slot, struct samkv_batch_item *first, struct samkv_error *err)
{
    struct samkv_prefiller *prefiller = arg;
    struct samkv_prefill *p = prefill_of(first);
    size_t count = 0, i = 0;
    for (struct samkv_batch_item *item = first; item; item = item->next)
        count++;
    struct samkv_part **parts = malloc(count * sizeof(struct samkv_part *));
    if (!parts)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (struct samkv_batch_item *item = first; item; item = item->next)
        parts[i++] = &prefill_of(item)->part;
    struct job job = {
        .prefiller = prefiller,
        .landing = &prefiller->landings[slot],
        .first = p,
        .pass = {.engine = p->engine,
                 .parts = parts,
                 .count = (uint32_t)count,
                 .preamble_tokens = p->preamble.tokens,
                 .preamble_id = first->kind,
                 .cache = p->is_long ? &p->cache : NULL},
        .err = err,
    };
    samkv_packed_place(&job.pass);
    enum samkv_status status = run_pass(&job);
    for (struct samkv_batch_item *item = first; item; item = item->next)
        prefill_of(item)->ms += job.ms * prefill_of(item)->part.count / job.pass.rows;
    free(parts);
    return status;
}

static enum samkv_status settle_batch(void *arg, int slot, struct samkv_batch_item *first, struct samkv_error *err)
{
    struct samkv_prefiller *prefiller = arg;
    (void)first;
    return samkv_landing_wait(&prefiller->landings[slot], err);
}

static void empty_slot(void *arg, int slot)
{
    struct samkv_prefiller *prefiller = arg;
    samkv_landing_empty(&prefiller->landings[slot]);
}

/* ------------------------------------------------------------------ the prefiller */

enum samkv_status samkv_prefiller_new(struct samkv_device *device, const struct samkv_workspace *workspace,
                                      struct samkv_prefiller **out)
{
    static const struct samkv_batch_calls calls = {run_batch, settle_batch, empty_slot};
    struct samkv_prefiller *prefiller = calloc(1, sizeof *prefiller);
    if (!prefiller)
        return SAMKV_NO_MEMORY;
    for (int i = 0; i < SAMKV_BATCH_SLOTS; i++)
        samkv_landing_init(&prefiller->landings[i], device);
    prefiller->most_rows = (uint32_t)samkv_workspace_chunk_rows(workspace);
    enum samkv_status status = samkv_batcher_new(prefiller->most_rows, &calls, prefiller, &prefiller->batcher);
    if (!status)
        status = samkv_packer_new(device, &prefiller->packer);
    if (status) {
        samkv_prefiller_free(prefiller);
        return status;
    }
    *out = prefiller;
    return SAMKV_OK;
}

void samkv_prefiller_free(struct samkv_prefiller *prefiller)
{
    if (!prefiller)
        return;
    samkv_batcher_free(prefiller->batcher);
    samkv_packer_free(prefiller->packer);
    for (int i = 0; i < SAMKV_BATCH_SLOTS; i++)
        samkv_landing_deinit(&prefiller->landings[i]);
    free(prefiller);
}

/* ------------------------------------------------------------------ a document */

/* Documents with the same kind may share a pass: the same stored type behind the same preamble. */
static void set_kind(struct samkv_prefill *p)
{
    struct {
        uint32_t tokens, stored;
        uint8_t key[sizeof p->preamble.key];
    } kind = {.tokens = p->preamble.tokens, .stored = (uint32_t)p->engine->stored};
    _Static_assert(sizeof kind <= SAMKV_BATCH_KIND_BYTES && SAMKV_BATCH_KIND_BYTES == SAMKV_PREAMBLE_ID_BYTES,
                   "a kind is what tells preambles apart");
    if (kind.tokens)
        memcpy(kind.key, p->preamble.key, sizeof kind.key);
    memcpy(p->item.kind, &kind, sizeof kind);
}

enum samkv_status samkv_prefill_init(struct samkv_prefill *p, const struct samkv_engine *engine,
                                     const struct samkv_preamble *preamble, const int32_t *ids,
                                     const struct samkv_blocks *blocks, const bool *cancelled, struct samkv_error *err)
{
    uint32_t most = engine->prefiller->most_rows, whole = most / blocks->block_tokens * blocks->block_tokens;
    *p = (struct samkv_prefill){
        .engine = engine,
        .preamble = *preamble,
        .is_long = blocks->tokens > most,
        .part = {.ids = ids, .blocks = *blocks},
        .index_count = samkv_index_count(engine, blocks),
        .item = {.cancelled = cancelled},
    };
    p->step_tokens = !p->is_long ? blocks->tokens : whole ? whole : blocks->block_tokens;
    p->item.alone = p->is_long;
    set_kind(p);
    p->index = calloc(p->index_count * engine->model->config.layers, sizeof *p->index);
    return p->index ? SAMKV_OK : samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
}

static void drop_cache(void *arg)
{
    struct samkv_prefill *p = arg;
    samkv_kv_cache_deinit(&p->cache, p->engine->device);
}

void samkv_prefill_deinit(struct samkv_prefill *p)
{
    samkv_prefill_release(p);
    if (p->cache.allocation)
        samkv_lane_call(p->engine->lane, SAMKV_RELAXED, drop_cache, p);
    free(p->index);
    *p = (struct samkv_prefill){0};
}

enum samkv_status samkv_prefill_step(struct samkv_prefill *p, struct samkv_error *err)
{
    struct samkv_prefiller *prefiller = p->engine->prefiller;
    uint32_t left = p->part.blocks.tokens - p->done;
    p->part.first = p->done;
    p->part.count = left < p->step_tokens ? left : p->step_tokens;
    p->item.weight = p->part.count;
    enum samkv_status status = samkv_batch_join(prefiller->batcher, &p->item, err);
    if (status)
        return status;
    p->landing = &prefiller->landings[p->item.slot];
    p->done += p->part.count;
    samkv_landing_read_index(p->landing, p->engine, &p->part, p->index);
    return SAMKV_OK;
}

void samkv_prefill_release(struct samkv_prefill *p)
{
    if (p->landing)
        samkv_batch_leave(p->engine->prefiller->batcher, &p->item);
    p->landing = NULL;
}

void samkv_prefill_pieces(const struct samkv_prefill *p, uint32_t block, void **pieces)
{
    uint32_t row = samkv_block_first(&p->part.blocks, block) - p->part.first + p->part.row;
    samkv_stage_pieces(&p->landing->stage, row, pieces);
}
