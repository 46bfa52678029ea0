#include "daemon/ingest/run.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

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
        .codec = is_preamble ? samkv_codec_lossless(c->codec) : c->codec,
    };
    samkv_collection_document_key(c, is_preamble, tokens, count, &p->manifest.key);
}

/* The blocks that the last step left: document tokens [part.first, done). */
static enum samkv_status feed_blocks(const struct samkv_prefill *p, const struct samkv_sink *sink,
                                     struct samkv_error *err)
{
    const struct samkv_blocks *blocks = &p->part.blocks;
    void **pieces = malloc(2 * (size_t)p->engine->model->config.layers * sizeof *pieces);
    enum samkv_status status = SAMKV_OK;
    if (!pieces)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (uint32_t b = p->part.first / blocks->block_tokens;
         b < blocks->count && samkv_block_first(blocks, b) < p->done && !status; b++) {
        samkv_prefill_pieces(p, b, pieces);
        status = sink->on_block(sink->arg, b, (const void *const *)pieces, err);
    }
    free(pieces);
    return status;
}

static enum samkv_status run_steps(struct samkv_prefill *p, const struct samkv_sink *sink, struct samkv_error *err)
{
    enum samkv_status status = SAMKV_OK;
    while (!status && p->done < p->part.blocks.tokens) {
        status = samkv_prefill_step(p, err);
        if (!status)
            status = feed_blocks(p, sink, err);
        samkv_prefill_release(p);
    }
    for (uint32_t l = 0; l < p->engine->model->config.layers && !status; l++)
        status = sink->on_index(sink->arg, l, samkv_prefill_index(p, l), p->index_count, err);
    return status;
}

/* Where a piece's preamble is. */
struct source {
    struct samkv_store *store;
    struct samkv_device *device;
    const struct samkv_key *key;
};

static enum samkv_status load_preamble(void *arg, struct samkv_stage *out, struct samkv_error *err)
{
    const struct source *source = arg;
    struct samkv_snapshot *snapshot;
    enum samkv_status status = samkv_snapshot_begin(source->store, &snapshot, err);
    if (status)
        return status;
    status = samkv_load_document(snapshot, source->key, source->device, out, err);
    samkv_snapshot_end(snapshot);
    return status;
}

enum samkv_status samkv_run_prefill(const struct samkv_engine *engine, struct samkv_store *store,
                                    const struct samkv_piece *piece, const struct samkv_sink *sink,
                                    const bool *cancelled, double *prefill_ms, struct samkv_error *err)
{
    struct source source = {store, engine->device, &piece->preamble_key};
    struct samkv_preamble preamble = {.tokens = piece->preamble_tokens, .load = load_preamble, .arg = &source};
    struct samkv_prefill prefill;
    _Static_assert(sizeof preamble.key == sizeof piece->preamble_key, "a preamble is told by its key");
    memcpy(preamble.key, &piece->preamble_key, sizeof preamble.key);
    enum samkv_status status =
        samkv_prefill_init(&prefill, engine, &preamble, piece->tokens, &piece->blocks, cancelled, err);
    if (!status)
        status = run_steps(&prefill, sink, err);
    *prefill_ms += prefill.ms;
    samkv_prefill_deinit(&prefill);
    return status;
}
