/* Step "open" of a fetch: the request is checked and everything small is read. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/ids.h"
#include "daemon/fetch/device.h"
#include "daemon/fetch/job.h"
#include "daemon/ingest/calibration.h"

/* Rows are counted in int32 on devices. */
#define MAX_ROWS (1u << 30)

void samkv_fetch_request_init(struct samkv_fetch_request *r)
{
    *r = (struct samkv_fetch_request){.init_tokens = -1, .local_tokens = -1};
}

static enum samkv_status check_request(const struct samkv_fetch_request *r, struct samkv_error *err)
{
    if (!(r->ratio >= 0 && r->ratio <= 1)) /* 0 is none */
        return samkv_fail(err, SAMKV_INVALID, "ratio %g is out of range: say more than 0 and at most 1", r->ratio);
    if (r->update == SAMKV_UPDATE_THETA && !(r->theta >= 0 && r->theta <= 1))
        return samkv_fail(err, SAMKV_INVALID, "theta %g is out of range: say 0 to 1", r->theta);
    if (!r->id_count)
        return samkv_fail(err, SAMKV_INVALID, "no documents are named: say at least one id");
    if (r->id_count > SAMKV_MAX_DOCUMENTS)
        return samkv_fail(err, SAMKV_INVALID, "%zu documents are too many: name at most %d", r->id_count,
                          SAMKV_MAX_DOCUMENTS);
    if (r->init_tokens > INT32_MAX || r->local_tokens > INT32_MAX)
        return samkv_fail(err, SAMKV_INVALID, "anchor sizes are out of range: say at most %d tokens", INT32_MAX);
    return SAMKV_OK;
}

static int compare_layers(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* The request's stable layers, sorted and without repetitions; else the calibrated ones, else the last max(1, L/8). */
static enum samkv_status read_stable_layers(struct samkv_fetch_job *job, const struct samkv_calibration *calibrated,
                                            struct samkv_error *err)
{
    const struct samkv_fetch_request *r = job->request;
    uint32_t layers = job->engine.model->config.layers;
    uint32_t standard = layers / 8 > 1 ? layers / 8 : 1;
    const uint32_t *named = r->stable_count ? r->stable_layers : calibrated ? calibrated->layers : NULL;
    size_t count = r->stable_count ? r->stable_count : calibrated ? calibrated->layer_count : standard;
    if (count > layers)
        return samkv_fail(err, SAMKV_INVALID, "%zu stable layers are more than the model's %u", count, layers);
    job->stable = malloc(count * sizeof *job->stable);
    if (!job->stable)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < count; i++) {
        job->stable[i] = named ? named[i] : layers - standard + (uint32_t)i;
        if (job->stable[i] >= layers)
            return samkv_fail(err, SAMKV_INVALID, "stable layer %u does not exist: the model has layers 0 to %u",
                              job->stable[i], layers - 1);
    }
    qsort(job->stable, count, sizeof *job->stable, compare_layers);
    for (size_t i = 0; i < count; i++)
        if (i == 0 || job->stable[i] != job->stable[job->stable_count - 1])
            job->stable[job->stable_count++] = job->stable[i];
    return SAMKV_OK;
}

/* What the model's calibration says where the request does not, and what the collection's gate wants at least. */
static enum samkv_status read_calibrated(struct samkv_fetch_job *job, struct samkv_error *err)
{
    const struct samkv_fetch_request *r = job->request;
    struct samkv_calibration calibration;
    enum samkv_status found = SAMKV_NOT_FOUND;
    if (!r->uncalibrated && (!r->stable_count || r->ratio <= 0))
        found = samkv_calibration_load(job->snapshot, job->engine.model->fingerprint, job->engine.model->config.layers,
                                       &calibration, err);
    if (found != SAMKV_OK && found != SAMKV_NOT_FOUND && found != SAMKV_CORRUPT)
        return found;
    /* A damaged one makes no fetch fail: the defaults were good enough before there was any. */
    const struct samkv_calibration *c = found == SAMKV_OK ? &calibration : NULL;
    job->ratio = r->ratio > 0 ? r->ratio : c && c->ratio > 0 ? c->ratio : SAMKV_FETCH_RATIO;
    job->fixed = r->fixed || (r->ratio <= 0 && c && c->ratio > 0);
    if (r->least_ratio > job->ratio) {
        job->ratio = r->least_ratio;
        job->fixed = true;
        job->decision = SAMKV_DECISION_RAISED;
    }
    return read_stable_layers(job, c, err);
}

static enum samkv_status read_query(struct samkv_fetch_job *job, struct samkv_error *err)
{
    const struct samkv_fetch_request *r = job->request;
    const struct samkv_model *model = job->engine.model;
    struct samkv_ids ids;
    enum samkv_status status = SAMKV_OK;
    samkv_ids_init(&ids);
    if (r->query_text) {
        if (!model->tokenizer)
            return samkv_fail(err, SAMKV_UNSUPPORTED, "model '%s' has no tokenizer: give the query as token ids",
                              model->name);
        status =
            samkv_tokenizer_encode(model->tokenizer, r->query_text, r->query_bytes, SAMKV_ENCODE_SPECIAL, &ids, err);
    } else if (samkv_ids_append(&ids, r->query_tokens, r->query_count)) {
        status = samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    }
    if (!status && !ids.count)
        status = samkv_fail(err, SAMKV_INVALID, "the query is empty: say what is asked");
    if (!status && ids.count > model->config.context_tokens)
        status = samkv_fail(err, SAMKV_TOO_LARGE, "a query of %zu tokens exceeds the model's context of %u: shorten it",
                            ids.count, model->config.context_tokens);
    for (size_t i = 0; i < ids.count && !status; i++)
        if (ids.data[i] < 0 || (uint32_t)ids.data[i] >= model->config.vocab)
            status = samkv_fail(err, SAMKV_INVALID, "query token %zu is %d: the model's vocabulary is 0 to %u", i,
                                ids.data[i], model->config.vocab - 1);
    job->query = ids.data;
    job->query_count = ids.count;
    return status;
}

static enum samkv_status open_document(struct samkv_fetch_job *job, const char *id, struct samkv_fetch_document *d,
                                       struct samkv_error *err)
{
    const struct samkv_fetch_request *r = job->request;
    const struct samkv_collection *c = &job->collection;
    struct samkv_name name;
    enum samkv_status status = samkv_snapshot_name(job->snapshot, c->name, id, &name, err);
    if (status == SAMKV_NOT_FOUND && name.expired)
        return samkv_fail(err, status,
                          "document '%s' of collection '%s' has expired by the collection's TTL: ingest it again", id,
                          c->name);
    if (status == SAMKV_NOT_FOUND)
        return samkv_fail(err, status, "there is no document '%s' in collection '%s': see samkvctl ls", id, c->name);
    if (status)
        return status;
    struct samkv_key key = name.key;
    samkv_name_deinit(&name);
    status = samkv_snapshot_manifest(job->snapshot, &key, &d->manifest, err);
    if (status == SAMKV_NOT_FOUND)
        return samkv_fail(err, SAMKV_CORRUPT, "document '%s' is named but not stored: ingest it again", id);
    if (status)
        return status;
    d->blocks = samkv_blocks_make(d->manifest.tokens, c->block_tokens,
                                  r->init_tokens >= 0 ? (uint32_t)r->init_tokens : c->init_tokens,
                                  r->local_tokens >= 0 ? (uint32_t)r->local_tokens : c->local_tokens);
    d->start = c->preamble_tokens + job->total_tokens;
    if (d->manifest.tokens > MAX_ROWS - d->start)
        return samkv_fail(err, SAMKV_TOO_LARGE, "these documents are more than %u tokens together: name fewer",
                          MAX_ROWS);
    job->total_tokens += d->manifest.tokens;
    job->bytes_stored += d->manifest.bytes_stored;
    return SAMKV_OK;
}

enum samkv_status samkv_fetch_job_read_tokens(struct samkv_fetch_job *job, struct samkv_error *err)
{
    enum samkv_status status = SAMKV_OK;
    for (uint32_t i = 0; i < job->document_count && !status; i++) {
        struct samkv_fetch_document *d = &job->documents[i];
        if (d->tokens)
            continue;
        d->tokens = malloc(d->manifest.tokens * sizeof *d->tokens);
        if (!d->tokens)
            return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
        status = samkv_snapshot_tokens(job->snapshot, &d->manifest.key, d->tokens, d->manifest.tokens, err);
    }
    return status;
}

static enum samkv_status open_documents(struct samkv_fetch_job *job, struct samkv_error *err)
{
    const struct samkv_fetch_request *r = job->request;
    job->documents = calloc(r->id_count, sizeof *job->documents);
    if (!job->documents)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    enum samkv_status status = SAMKV_OK;
    for (size_t i = 0; i < r->id_count && !status; i++) {
        job->document_count++;
        status = open_document(job, r->ids[i], &job->documents[i], err);
    }
    job->query_position = job->collection.preamble_tokens + job->total_tokens;
    uint32_t window = job->engine.model->config.window_tokens;
    uint64_t all = (uint64_t)job->query_position + job->query_count;
    if (!status && window && all > window)
        return samkv_fail(err, SAMKV_UNSUPPORTED,
                          "preamble, documents and query are %llu tokens, and model '%s' attends over a sliding window "
                          "of %u, which is not supported beyond it: name fewer documents",
                          (unsigned long long)all, job->engine.model->name, window);
    return status;
}

static enum samkv_status open_preamble(struct samkv_fetch_job *job, struct samkv_error *err)
{
    const struct samkv_key *key = &job->collection.preamble_key;
    if (job->engine.device->unified)
        return samkv_load_document(job->snapshot, key, job->engine.device, &job->preamble, err);
    return samkv_load_manifest(job->snapshot, key, &job->preamble_manifest, err);
}

enum samkv_status samkv_fetch_job_open(struct samkv_fetch_job *job, struct samkv_models *models,
                                       struct samkv_store *store, const struct samkv_fetch_request *request,
                                       struct samkv_error *err)
{
    struct samkv_engine *engine;
    *job = (struct samkv_fetch_job){.request = request, .started_ms = samkv_now_ms()};
    enum samkv_status status = check_request(request, err);
    if (!status)
        status = samkv_snapshot_begin(store, &job->snapshot, err);
    if (!status)
        status = samkv_spec_open(models, job->snapshot, request->collection, &job->collection, &engine, err);
    if (status)
        return status;
    job->engine = *engine;
    job->engine.stored = job->collection.shape.dtype;
    status = read_calibrated(job, err);
    if (!status)
        status = read_query(job, err);
    if (!status)
        status = open_documents(job, err);
    if (!status && job->collection.preamble_tokens)
        status = open_preamble(job, err);
    for (uint32_t i = 0; i < job->document_count && !status && !request->unseen; i++)
        samkv_store_use(store, &job->documents[i].manifest.key);
    return status;
}

void samkv_fetch_job_close(struct samkv_fetch_job *job)
{
    samkv_kv_cache_deinit(&job->cache, job->engine.device);
    samkv_fetch_pins_deinit(&job->planned);
    samkv_fetch_pins_deinit(&job->kept);
    samkv_stage_deinit(&job->stage);
    samkv_stage_deinit(&job->anchors);
    samkv_stage_deinit(&job->preamble);
    samkv_selection_deinit(&job->selection);
    for (uint32_t i = 0; i < job->document_count; i++)
        free(job->documents[i].tokens);
    free(job->documents);
    free(job->query);
    free(job->stable);
    free(job->tokens);
    free(job->logits);
    samkv_collection_deinit(&job->collection);
    if (job->snapshot)
        samkv_snapshot_end(job->snapshot);
    *job = (struct samkv_fetch_job){0};
}
