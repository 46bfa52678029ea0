#include "daemon/ingest/run.h"

#include <stdlib.h>
#include <time.h>

#include "daemon/base/clock.h"
#include "daemon/ingest/load.h"

void samkv_piece_init(struct samkv_piece *p, const struct samkv_collection *c, const int32_t *tokens, uint32_t count,
                      bool is_preamble)
{
    *p = (struct samkv_piece){.tokens = tokens, .count = count};
    if (!is_preamble) {
        p->preamble = c->preamble;
        p->preamble_tokens = c->preamble_tokens;
        p->preamble_key = c->preamble_key;
    }
    p->blocks = samkv_blocks_make(count, c->block_tokens, c->init_tokens, c->local_tokens);
    p->manifest = (struct samkv_manifest){
        .shape = c->shape,
        .heads = c->heads,
        .tokens = count,
        .block_tokens = c->block_tokens,
        .blocks = p->blocks.count,
        .preamble_tokens = p->preamble_tokens,
        .local_tokens = c->local_tokens,
        .created_unix_s = (int64_t)time(NULL),
    };
    samkv_document_key(c->fingerprint, c->shape.dtype, p->preamble, p->preamble_tokens, c->block_tokens,
                       c->local_tokens, tokens, count, &p->manifest.key);
}

/* The part of a prefill that is done on the lane. */
struct lane_step {
    struct samkv_prefill prefill;
    const struct samkv_engine *engine;
    const struct samkv_stage *preamble;
    const struct samkv_piece *piece;
    enum samkv_status status;
    struct samkv_error *err;
    double ms;
};

static void begin_on_lane(void *arg)
{
    struct lane_step *s = arg;
    s->status = samkv_prefill_init(&s->prefill, s->engine, s->preamble, s->piece->tokens, &s->piece->blocks, s->err);
}

static void step_on_lane(void *arg)
{
    struct lane_step *s = arg;
    double start = samkv_now_ms();
    s->status = samkv_prefill_step(&s->prefill, s->err);
    s->ms += samkv_now_ms() - start;
}

static void end_on_lane(void *arg)
{
    struct lane_step *s = arg;
    samkv_prefill_deinit(&s->prefill);
}

/* The blocks of the chunk that the last step left in the stage: document tokens [first, done). */
static enum samkv_status feed_chunk(const struct samkv_prefill *p, uint32_t first, const struct samkv_sink *sink,
                                    struct samkv_error *err)
{
    void **pieces = malloc(2 * (size_t)p->stage.shape.layers * sizeof *pieces);
    enum samkv_status status = SAMKV_OK;
    if (!pieces)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (uint32_t at = first; at < p->done && !status; at += p->blocks.block_tokens) {
        samkv_stage_pieces(&p->stage, at - first, pieces);
        status = sink->on_block(sink->arg, at / p->blocks.block_tokens, (const void *const *)pieces, err);
    }
    free(pieces);
    return status;
}

static enum samkv_status run_steps(struct lane_step *s, const struct samkv_sink *sink, const bool *cancelled,
                                   struct samkv_error *err)
{
    enum samkv_status status = SAMKV_OK;
    while (!status && s->prefill.done < s->piece->count) {
        uint32_t first = s->prefill.done;
        if (cancelled && __atomic_load_n(cancelled, __ATOMIC_RELAXED))
            return samkv_fail(err, SAMKV_CANCELLED, "cancelled: the client is gone");
        samkv_lane_call(s->engine->lane, SAMKV_RELAXED, step_on_lane, s);
        status = s->status;
        if (!status)
            status = feed_chunk(&s->prefill, first, sink, err);
    }
    for (uint32_t l = 0; l < s->engine->model->config.layers && !status; l++)
        status = sink->on_index(sink->arg, l, samkv_prefill_index(&s->prefill, l), s->prefill.index_count, err);
    return status;
}

/* Stored rows of the piece's preamble; none (rows 0) when it has none. */
static enum samkv_status load_preamble(const struct samkv_engine *engine, struct samkv_store *store,
                                       const struct samkv_piece *piece, struct samkv_stage *out,
                                       struct samkv_error *err)
{
    struct samkv_snapshot *snapshot;
    *out = (struct samkv_stage){0};
    if (!piece->preamble_tokens)
        return SAMKV_OK;
    enum samkv_status status = samkv_snapshot_begin(store, &snapshot, err);
    if (status)
        return status;
    status = samkv_load_document(snapshot, &piece->preamble_key, engine->device, out, err);
    samkv_snapshot_end(snapshot);
    return status;
}

enum samkv_status samkv_run_prefill(const struct samkv_engine *engine, struct samkv_store *store,
                                    const struct samkv_piece *piece, const struct samkv_sink *sink,
                                    const bool *cancelled, double *prefill_ms, struct samkv_error *err)
{
    struct samkv_stage preamble;
    struct lane_step step = {.engine = engine, .piece = piece, .err = err};
    enum samkv_status status = load_preamble(engine, store, piece, &preamble, err);
    if (status)
        return status;
    step.preamble = piece->preamble_tokens ? &preamble : NULL;
    samkv_lane_call(engine->lane, SAMKV_RELAXED, begin_on_lane, &step);
    status = step.status;
    if (!status) {
        status = run_steps(&step, sink, cancelled, err);
        samkv_lane_call(engine->lane, SAMKV_RELAXED, end_on_lane, &step);
    }
    samkv_stage_deinit(&preamble);
    *prefill_ms += step.ms;
    return status;
}
