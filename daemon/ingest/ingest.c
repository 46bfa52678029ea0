#include "daemon/ingest/ingest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/base/ids.h"
#include "daemon/ingest/spec.h"
#include "daemon/ingest/run.h"
#include "daemon/ingest/split.h"

#define NAMING_ATTEMPTS 3

/* One request on its way. */
struct job {
    struct samkv_models *models;
    struct samkv_store *store;
    const struct samkv_ingest_request *request;
    struct samkv_ingest_result *result;
    struct samkv_collection collection;
    struct samkv_engine engine; /* a copy, so that `stored` can be the collection's */
    struct samkv_ids ids;       /* of the whole document */
    double prefill_ms, commit_ms;
};

/* ------------------------------------------------------------------ records */

static enum samkv_status on_block(void *arg, uint32_t block, const void *const *pieces, struct samkv_error *err)
{
    return samkv_writer_block(arg, block, pieces, err);
}

static enum samkv_status on_index(void *arg, uint32_t layer, const float *index, size_t count, struct samkv_error *err)
{
    return samkv_writer_index(arg, layer, index, count, err);
}

static enum samkv_status write_document(struct job *job, const struct samkv_piece *piece, struct samkv_writer *writer,
                                        const char *collection, const char *id, struct samkv_error *err)
{
    const struct samkv_sink sink = {on_block, on_index, writer};
    double since = samkv_now_ms();
    enum samkv_status status = collection ? samkv_writer_admit(writer, collection, err) : SAMKV_OK;
    if (!status)
        status =
            samkv_run_prefill(&job->engine, job->store, piece, &sink, job->request->cancelled, &job->prefill_ms, err);
    samkv_trace_lap(job->request->trace, SAMKV_PHASE_PREFILL, &since);
    if (status) {
        samkv_writer_abort(writer);
        return status;
    }
    status = samkv_writer_commit(writer, collection, id, job->request->title, err);
    job->commit_ms += samkv_trace_lap(job->request->trace, SAMKV_PHASE_COMMIT, &since);
    return status;
}

/* Writes the piece unless a document of its key is there; collection NULL: without a name. */
static enum samkv_status write_piece(struct job *job, const struct samkv_piece *piece, const char *collection,
                                     const char *id, struct samkv_error *err)
{
    struct samkv_writer *writer;
    for (int attempt = 0;; attempt++) {
        enum samkv_status status = samkv_writer_begin(job->store, &piece->manifest, piece->tokens, &writer, err);
        if (status)
            return status;
        if (writer)
            return write_document(job, piece, writer, collection, id, err);
        if (!collection)
            return SAMKV_OK;
        status = samkv_store_name_put(job->store, collection, id, job->request->title, &piece->manifest.key, err);
        if (status != SAMKV_NOT_FOUND || attempt == NAMING_ATTEMPTS)
            return status; /* NOT_FOUND: it went between the two */
    }
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
    const struct samkv_model_config *config = &job->engine.model->config;
    size_t context = samkv_config_most_tokens(config), preamble = job->collection.preamble_tokens;
    const char *bound = context < config->context_tokens ? "sliding window" : "context";
    size_t longest = r->chunk_tokens ? r->chunk_tokens : job->ids.count;
    if (r->chunk_tokens && preamble + r->chunk_tokens > context)
        return samkv_fail(err, SAMKV_INVALID,
                          "chunks of %u tokens behind a preamble of %zu exceed the model's %s of %zu: say less",
                          r->chunk_tokens, preamble, bound, context);
    if (preamble + longest > context)
        return samkv_fail(
            err, SAMKV_TOO_LARGE,
            "document '%s' has %zu tokens, and with the preamble's %zu they exceed the model's %s of %zu: "
            "split it with --chunk-tokens N",
            r->id, job->ids.count, preamble, bound, context);
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
    struct samkv_piece piece;
    if (!grown)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    result->documents = grown;
    struct samkv_ingested *out = &grown[result->count];
    *out = (struct samkv_ingested){.tokens = (uint32_t)(end - first)};
    snprintf(out->id, sizeof out->id, "%s", id);

    samkv_piece_init(&piece, &job->collection, job->ids.data + first, (uint32_t)(end - first), false);
    enum samkv_status status = is_there(job, id, &piece.manifest.key, &out->skipped, err);
    /* Where names expire, one that is put again lives on. */
    if (!status && (!out->skipped || job->collection.ttl_s))
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

/* A preamble is nobody's until its collection is there: its user is asked for room before. */
static enum samkv_status admit_collection(const struct job *job, struct samkv_error *err)
{
    const struct samkv_collection *c = &job->collection;
    uint64_t bytes = c->preamble_tokens * samkv_kv_token_bytes(&c->shape);
    return samkv_store_admit_owner(job->store, c->ownership.owner, bytes, err);
}

/* A new collection: its preamble's KV cache first, then the collection itself. */
static enum samkv_status create_collection(struct job *job, struct samkv_error *err)
{
    struct samkv_collection *c = &job->collection;
    struct samkv_piece piece;
    enum samkv_status status = admit_collection(job, err);
    if (!status && c->preamble_tokens) {
        samkv_piece_init(&piece, c, c->preamble, c->preamble_tokens, true);
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
    samkv_collection_deinit(&job->collection);
    status = samkv_spec_resolve(job->models, snapshot, job->request, samkv_store_codec(job->store), &job->collection,
                                &engine, exists, err);
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
    if (!status && !exists) { /* another request may have made it meanwhile, with a mask of its own */
        status = open_collection(&job, &exists, err);
        if (!status && !exists)
            status = samkv_fail(err, SAMKV_BUSY, "the collection has just been removed: try again");
    }
    if (!status)
        status = ingest_all(&job, err);
    out->prefill_ms = job.prefill_ms;
    out->commit_ms = job.commit_ms;
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
