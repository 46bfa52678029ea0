#include "daemon/ingest/ingest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/base/ids.h"
#include "daemon/ingest/collection.h"
#include "daemon/ingest/load.h"
#include "daemon/ingest/split.h"
#include "daemon/samkv/prefill.h"

/* One request on its way. */
struct job {
    struct samkv_models *models;
    struct samkv_store *store;
    const struct samkv_ingest_request *request;
    struct samkv_ingest_result *result;
    struct samkv_collection collection;
    struct samkv_engine engine; /* a copy, so that `stored` can be the collection's */
    struct samkv_ids ids;       /* of the whole document */
    double prefill_ms;
};

/* One document (or piece of one, or preamble) to be written. */
struct piece {
    const int32_t *preamble;
    uint32_t preamble_tokens;
    struct samkv_key preamble_key;
    const int32_t *tokens;
    uint32_t count;
    struct samkv_blocks blocks;
    struct samkv_manifest manifest;
};

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static bool is_cancelled(const struct job *job)
{
    return job->request->cancelled && __atomic_load_n(job->request->cancelled, __ATOMIC_RELAXED);
}

/* ------------------------------------------------------------------ prefill and records */

struct lane_step {
    struct samkv_prefill *prefill;
    const struct samkv_engine *engine;
    const struct samkv_stage *preamble;
    const struct piece *piece;
    enum samkv_status status;
    struct samkv_error *err;
    double ms;
};

static void begin_on_lane(void *arg)
{
    struct lane_step *s = arg;
    s->status = samkv_prefill_init(s->prefill, s->engine, s->preamble, s->piece->tokens, &s->piece->blocks, s->err);
}

static void step_on_lane(void *arg)
{
    struct lane_step *s = arg;
    double start = now_ms();
    s->status = samkv_prefill_step(s->prefill, s->err);
    s->ms += now_ms() - start;
}

static void end_on_lane(void *arg)
{
    samkv_prefill_deinit(arg);
}

/* The blocks of the chunk that the last step left in the stage: document tokens [first, done). */
static enum samkv_status write_chunk(struct samkv_writer *writer, const struct samkv_prefill *p, uint32_t first,
                                     struct samkv_error *err)
{
    void **pieces = malloc(2 * (size_t)p->stage.shape.layers * sizeof *pieces);
    enum samkv_status status = SAMKV_OK;
    if (!pieces)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (uint32_t at = first; at < p->done && !status; at += p->blocks.block_tokens) {
        samkv_stage_pieces(&p->stage, at - first, pieces);
        status = samkv_writer_block(writer, at / p->blocks.block_tokens, (const void *const *)pieces, err);
    }
    free(pieces);
    return status;
}

static enum samkv_status prefill_and_write(struct job *job, const struct piece *piece,
                                           const struct samkv_stage *preamble, struct samkv_writer *writer,
                                           struct samkv_error *err)
{
    struct samkv_prefill prefill;
    struct lane_step step = {
        .prefill = &prefill, .engine = &job->engine, .preamble = preamble, .piece = piece, .err = err};
    samkv_lane_call(job->engine.lane, SAMKV_RELAXED, begin_on_lane, &step);
    if (step.status)
        return step.status;
    enum samkv_status status = SAMKV_OK;
    while (!status && prefill.done < piece->count) {
        uint32_t first = prefill.done;
        if (is_cancelled(job)) {
            status = samkv_fail(err, SAMKV_CANCELLED, "cancelled: the client is gone");
            break;
        }
        samkv_lane_call(job->engine.lane, SAMKV_RELAXED, step_on_lane, &step);
        status = step.status;
        if (!status)
            status = write_chunk(writer, &prefill, first, err);
    }
    for (uint32_t l = 0; l < job->engine.model->config.layers && !status; l++)
        status = samkv_writer_index(writer, l, samkv_prefill_index(&prefill, l), prefill.index_count, err);
    samkv_lane_call(job->engine.lane, SAMKV_RELAXED, end_on_lane, &prefill);
    job->prefill_ms += step.ms;
    return status;
}

/* Stored rows of the piece's preamble; nothing (and rows 0) when there is none. */
static enum samkv_status load_preamble(struct job *job, const struct piece *piece, struct samkv_stage *out,
                                       struct samkv_error *err)
{
    struct samkv_snapshot *snapshot;
    *out = (struct samkv_stage){0};
    if (!piece->preamble_tokens)
        return SAMKV_OK;
    enum samkv_status status = samkv_snapshot_begin(job->store, &snapshot, err);
    if (status)
        return status;
    status = samkv_load_document(snapshot, &piece->preamble_key, job->engine.device, out, err);
    samkv_snapshot_end(snapshot);
    return status;
}

static void piece_init(struct piece *p, const struct job *job, const int32_t *tokens, uint32_t count, bool is_preamble)
{
    const struct samkv_collection *c = &job->collection;
    *p = (struct piece){.tokens = tokens, .count = count};
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

/* Writes the piece unless a document of its key is there; collection NULL: without a name. */
static enum samkv_status write_piece(struct job *job, const struct piece *piece, const char *collection, const char *id,
                                     struct samkv_error *err)
{
    const char *title = job->request->title;
    struct samkv_writer *writer;
    struct samkv_stage preamble;
    enum samkv_status status = samkv_writer_begin(job->store, &piece->manifest, piece->tokens, &writer, err);
    if (status)
        return status;
    if (!writer)
        return collection ? samkv_store_name_put(job->store, collection, id, title, &piece->manifest.key, err)
                          : SAMKV_OK;
    status = load_preamble(job, piece, &preamble, err);
    if (!status)
        status = prefill_and_write(job, piece, piece->preamble_tokens ? &preamble : NULL, writer, err);
    samkv_stage_deinit(&preamble);
    if (status) {
        samkv_writer_abort(writer);
        return status;
    }
    return samkv_writer_commit(writer, collection, id, title, err);
}

/* ------------------------------------------------------------------ the request */

static enum samkv_status read_tokens(struct job *job, struct samkv_error *err)
{
    const struct samkv_ingest_request *r = job->request;
    uint32_t vocab = job->engine.model->config.vocab;
    enum samkv_status status = SAMKV_OK;
    if (r->text) {
        if (!job->engine.model->tokenizer)
            return samkv_fail(err, SAMKV_UNSUPPORTED, "model '%s' has no tokenizer: ingest token ids instead of text",
                              job->engine.model->name);
        /* Special tokens in a document are text: a document cannot end the system prompt. */
        status = samkv_tokenizer_encode(job->engine.model->tokenizer, r->text, r->text_bytes, 0, &job->ids, err);
    } else if (samkv_ids_append(&job->ids, r->tokens, r->token_count)) {
        status = samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    }
    for (size_t i = 0; i < job->ids.count && !status; i++)
        if (job->ids.data[i] < 0 || (uint32_t)job->ids.data[i] >= vocab)
            status = samkv_fail(err, SAMKV_INVALID, "document '%s': token %zu is %d: the model's vocabulary is 0 to %u",
                                r->id, i, job->ids.data[i], vocab - 1);
    if (!status && !job->ids.count)
        status = samkv_fail(err, SAMKV_INVALID, "document '%s' is empty: there is nothing to keep", r->id);
    return status;
}

static enum samkv_status check_length(const struct job *job, struct samkv_error *err)
{
    const struct samkv_ingest_request *r = job->request;
    size_t context = job->engine.model->config.context_tokens, preamble = job->collection.preamble_tokens;
    size_t longest = r->chunk_tokens ? r->chunk_tokens : job->ids.count;
    if (r->chunk_tokens && preamble + r->chunk_tokens > context)
        return samkv_fail(err, SAMKV_INVALID,
                          "chunks of %u tokens behind a preamble of %zu exceed the model's context of %zu: say less",
                          r->chunk_tokens, preamble, context);
    if (preamble + longest > context)
        return samkv_fail(
            err, SAMKV_TOO_LARGE,
            "document '%s' has %zu tokens, and with the preamble's %zu they exceed the model's context of %zu: "
            "split it with --chunk-tokens N",
            r->id, job->ids.count, preamble, context);
    return SAMKV_OK;
}

/* True when (collection, id) is that document with that title already. */
static enum samkv_status is_there(struct job *job, const char *id, const struct samkv_key *key, bool *there,
                                  struct samkv_error *err)
{
    struct samkv_snapshot *snapshot;
    struct samkv_name name;
    *there = false;
    enum samkv_status status = samkv_snapshot_begin(job->store, &snapshot, err);
    if (status)
        return status;
    status = samkv_snapshot_name(snapshot, job->collection.name, id, &name, err);
    if (!status) {
        const char *title = job->request->title ? job->request->title : "", *stored = name.title ? name.title : "";
        *there = !memcmp(&name.key, key, sizeof *key) && !strcmp(title, stored);
        samkv_name_deinit(&name);
    }
    samkv_snapshot_end(snapshot);
    return status == SAMKV_NOT_FOUND ? SAMKV_OK : status;
}

static enum samkv_status read_sizes(struct job *job, const struct samkv_key *key, struct samkv_ingested *out,
                                    struct samkv_error *err)
{
    struct samkv_snapshot *snapshot;
    struct samkv_manifest manifest;
    enum samkv_status status = samkv_snapshot_begin(job->store, &snapshot, err);
    if (status)
        return status;
    status = samkv_snapshot_manifest(snapshot, key, &manifest, err);
    samkv_snapshot_end(snapshot);
    if (!status) {
        out->tokens = manifest.tokens;
        out->bytes_raw = manifest.bytes_raw;
        out->bytes_stored = manifest.bytes_stored;
    }
    /* Removed again in the meantime: it was stored all the same. */
    return status == SAMKV_NOT_FOUND ? SAMKV_OK : status;
}

static enum samkv_status ingest_piece(struct job *job, const char *id, size_t first, size_t end,
                                      struct samkv_error *err)
{
    struct samkv_ingest_result *result = job->result;
    struct samkv_ingested *grown = realloc(result->documents, (result->count + 1) * sizeof *grown);
    struct piece piece;
    if (!grown)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    result->documents = grown;
    struct samkv_ingested *out = &grown[result->count];
    *out = (struct samkv_ingested){.tokens = (uint32_t)(end - first)};
    snprintf(out->id, sizeof out->id, "%s", id);

    piece_init(&piece, job, job->ids.data + first, (uint32_t)(end - first), false);
    enum samkv_status status = is_there(job, id, &piece.manifest.key, &out->skipped, err);
    if (!status && !out->skipped)
        status = write_piece(job, &piece, job->collection.name, id, err);
    if (!status)
        status = read_sizes(job, &piece.manifest.key, out, err);
    if (!status)
        result->count++;
    return status;
}

/* A document that is cut otherwise now leaves pieces of its earlier form behind: id, or id#N beyond the last. */
static enum samkv_status remove_stale_pieces(struct job *job, size_t pieces, struct samkv_error *err)
{
    char id[SAMKV_ID_MAX_BYTES + 32];
    enum samkv_status status = SAMKV_OK;
    if (pieces > 1) {
        status = samkv_store_name_remove(job->store, job->collection.name, job->request->id, err);
        if (status && status != SAMKV_NOT_FOUND)
            return status;
        status = SAMKV_OK;
    }
    for (size_t i = pieces > 1 ? pieces + 1 : 1; !status; i++) {
        snprintf(id, sizeof id, "%s#%zu", job->request->id, i);
        status = samkv_store_name_remove(job->store, job->collection.name, id, err);
    }
    return status == SAMKV_NOT_FOUND ? SAMKV_OK : status;
}

static enum samkv_status ingest_pieces(struct job *job, struct samkv_error *err)
{
    const struct samkv_ingest_request *r = job->request;
    enum samkv_status status = SAMKV_OK;
    for (size_t first = 0, end, number = 1; first < job->ids.count && !status; first = end, number++) {
        char id[SAMKV_ID_MAX_BYTES + 32];
        end = samkv_split_next(job->engine.model->tokenizer, job->ids.data, job->ids.count, first, r->chunk_tokens);
        if (snprintf(id, sizeof id, "%s#%zu", r->id, number) > SAMKV_ID_MAX_BYTES)
            return samkv_fail(err, SAMKV_INVALID, "id '%s' is too long to be split: '#%zu' does not fit", r->id,
                              number);
        status = ingest_piece(job, id, first, end, err);
    }
    return status;
}

static enum samkv_status ingest_all(struct job *job, struct samkv_error *err)
{
    const struct samkv_ingest_request *r = job->request;
    bool split = r->chunk_tokens && job->ids.count > r->chunk_tokens;
    enum samkv_status status = split ? ingest_pieces(job, err) : ingest_piece(job, r->id, 0, job->ids.count, err);
    if (status || !r->chunk_tokens)
        return status;
    return remove_stale_pieces(job, job->result->count, err);
}

/* A new collection: its preamble's KV cache first, then the collection itself. */
static enum samkv_status create_collection(struct job *job, struct samkv_error *err)
{
    struct samkv_collection *c = &job->collection;
    struct piece piece;
    enum samkv_status status = SAMKV_OK;
    if (c->preamble_tokens) {
        piece_init(&piece, job, c->preamble, c->preamble_tokens, true);
        status = write_piece(job, &piece, NULL, NULL, err);
    }
    return status ? status : samkv_store_collection_put(job->store, c, err);
}

static enum samkv_status open_collection(struct job *job, bool *exists, struct samkv_error *err)
{
    struct samkv_snapshot *snapshot;
    struct samkv_engine *engine;
    enum samkv_status status = samkv_snapshot_begin(job->store, &snapshot, err);
    if (status)
        return status;
    status = samkv_collection_resolve(job->models, snapshot, job->request, &job->collection, &engine, exists, err);
    samkv_snapshot_end(snapshot);
    if (!status) {
        job->engine = *engine;
        job->engine.stored = job->collection.shape.dtype;
    }
    return status;
}

enum samkv_status samkv_ingest(struct samkv_models *models, struct samkv_store *store,
                               const struct samkv_ingest_request *request, struct samkv_ingest_result *out,
                               struct samkv_error *err)
{
    struct job job = {.models = models, .store = store, .request = request, .result = out};
    bool exists;
    *out = (struct samkv_ingest_result){0};
    samkv_ids_init(&job.ids);
    enum samkv_status status = open_collection(&job, &exists, err);
    if (status)
        return status;
    status = read_tokens(&job, err);
    if (!status)
        status = check_length(&job, err);
    if (!status && !exists)
        status = create_collection(&job, err);
    if (!status)
        status = ingest_all(&job, err);
    out->prefill_ms = job.prefill_ms;
    samkv_ids_deinit(&job.ids);
    samkv_collection_deinit(&job.collection);
    if (status)
        samkv_ingest_result_deinit(out);
    return status;
}

void samkv_ingest_result_deinit(struct samkv_ingest_result *r)
{
    free(r->documents);
    *r = (struct samkv_ingest_result){0};
}
