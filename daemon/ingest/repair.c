#include "daemon/ingest/repair.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/ingest/spec.h"
#include "daemon/ingest/run.h"

/* One document under repair. */
struct repair {
    struct samkv_store *store;
    struct samkv_snapshot *snapshot;
    struct samkv_collection collection;
    struct samkv_engine engine;
    struct samkv_manifest manifest;
    int32_t *tokens;
    bool *damaged_block; /* [blocks] */
    bool *damaged_index; /* [layers] */
    uint64_t damaged, repaired;
};

static bool is_damage(enum samkv_status status)
{
    return status == SAMKV_CORRUPT || status == SAMKV_NOT_FOUND;
}

static enum samkv_status find_damaged_blocks(struct repair *r, struct samkv_error *err)
{
    struct samkv_stage scratch;
    void **pieces = malloc(2 * (size_t)r->manifest.shape.layers * sizeof *pieces);
    enum samkv_status status =
        samkv_stage_init(&scratch, r->engine.device, &r->manifest.shape, r->manifest.block_tokens, err);
    if (!pieces || status) {
        free(pieces);
        samkv_stage_deinit(&scratch);
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    }
    samkv_stage_pieces(&scratch, 0, pieces);
    for (uint32_t b = 0; b < r->manifest.blocks && !status; b++) {
        status = samkv_snapshot_block(r->snapshot, &r->manifest, b, pieces, err);
        r->damaged_block[b] = is_damage(status);
        r->damaged += r->damaged_block[b];
        if (r->damaged_block[b])
            status = SAMKV_OK;
    }
    free(pieces);
    samkv_stage_deinit(&scratch);
    return status;
}

static enum samkv_status find_damaged_index(struct repair *r, struct samkv_error *err)
{
    size_t count = (size_t)r->manifest.blocks * samkv_kv_width(&r->manifest.shape) +
                   (size_t)r->manifest.heads * r->manifest.shape.head_dim;
    float *scratch = malloc(count * sizeof *scratch);
    enum samkv_status status = SAMKV_OK;
    if (!scratch)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (uint32_t l = 0; l < r->manifest.shape.layers && !status; l++) {
        status = samkv_snapshot_index(r->snapshot, &r->manifest, l, scratch, count, err);
        r->damaged_index[l] = is_damage(status);
        r->damaged += r->damaged_index[l];
        if (r->damaged_index[l])
            status = SAMKV_OK;
    }
    free(scratch);
    return status;
}

static enum samkv_status on_block(void *arg, uint32_t block, const void *const *pieces, struct samkv_error *err)
{
    struct repair *r = arg;
    if (!r->damaged_block[block])
        return SAMKV_OK;
    enum samkv_status status = samkv_store_block_rewrite(r->store, &r->manifest, block, pieces, err);
    r->repaired += status == SAMKV_OK;
    return status;
}

static enum samkv_status on_index(void *arg, uint32_t layer, const float *index, size_t count, struct samkv_error *err)
{
    struct repair *r = arg;
    if (!r->damaged_index[layer])
        return SAMKV_OK;
    enum samkv_status status = samkv_store_index_rewrite(r->store, &r->manifest, layer, index, count, err);
    r->repaired += status == SAMKV_OK;
    return status;
}

static enum samkv_status recompute(struct repair *r, const struct samkv_key *key, struct samkv_error *err)
{
    bool is_preamble = !memcmp(key, &r->collection.preamble_key, sizeof *key);
    const struct samkv_sink sink = {on_block, on_index, r};
    struct samkv_piece piece;
    double ms = 0;
    samkv_piece_init(&piece, &r->collection, r->tokens, r->manifest.tokens, is_preamble);
    /* A key that its own content does not give belongs to another collection, or its tokens are wrong. */
    if (memcmp(&piece.manifest.key, key, sizeof *key))
        return samkv_fail(err, SAMKV_CORRUPT, "a document's tokens do not give its key: ingest it again");
    return samkv_run_prefill(&r->engine, r->store, &piece, &sink, NULL, &ms, err);
}

static enum samkv_status open_document(struct repair *r, struct samkv_models *models, const char *collection,
                                       const struct samkv_key *key, struct samkv_error *err)
{
    struct samkv_engine *engine;
    enum samkv_status status = samkv_spec_open(models, r->snapshot, collection, &r->collection, &engine, err);
    if (status)
        return status;
    r->engine = *engine;
    r->engine.stored = r->collection.shape.dtype;
    status = samkv_snapshot_manifest(r->snapshot, key, &r->manifest, err);
    if (status)
        return status;
    r->tokens = malloc(r->manifest.tokens * sizeof *r->tokens);
    r->damaged_block = calloc(r->manifest.blocks, sizeof *r->damaged_block);
    r->damaged_index = calloc(r->manifest.shape.layers, sizeof *r->damaged_index);
    if (!r->tokens || !r->damaged_block || !r->damaged_index)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    return samkv_snapshot_tokens(r->snapshot, key, r->tokens, r->manifest.tokens, err);
}

enum samkv_status samkv_repair(struct samkv_models *models, struct samkv_store *store, const char *collection,
                               const struct samkv_key *key, uint64_t *repaired, struct samkv_error *err)
{
    struct repair r = {.store = store};
    enum samkv_status status = samkv_snapshot_begin(store, &r.snapshot, err);
    if (status)
        return status;
    samkv_snapshot_bypass_memory(r.snapshot); /* the records on disk are what may be damaged */
    status = open_document(&r, models, collection, key, err);
    if (!status)
        status = find_damaged_blocks(&r, err);
    if (!status)
        status = find_damaged_index(&r, err);
    if (!status && r.damaged)
        status = recompute(&r, key, err);
    *repaired += r.repaired;
    free(r.tokens);
    free(r.damaged_block);
    free(r.damaged_index);
    samkv_collection_deinit(&r.collection);
    samkv_snapshot_end(r.snapshot);
    return status;
}
