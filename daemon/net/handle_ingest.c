#include <stdlib.h>

#include "daemon/ingest/ingest.h"
#include "daemon/net/handlers.h"

static void fill_spec(const Samkv__CollectionSpec *m, struct samkv_collection_spec *out)
{
    *out = (struct samkv_collection_spec){
        .block_tokens = -1, .init_tokens = -1, .local_tokens = -1, .quota_bytes = -1, .ttl_s = -1};
    if (!m)
        return;
    out->model = m->model;
    out->codec = m->codec;
    out->preamble_text = (const char *)m->preamble_text.data;
    out->preamble_bytes = m->preamble_text.len;
    out->preamble_is_text = !m->preamble_tokens;
    if (m->preamble_tokens) {
        out->preamble_tokens = m->preamble_tokens->ids;
        out->preamble_count = m->preamble_tokens->n_ids;
    }
    out->has_preamble = m->has_preamble || m->preamble_text.len || m->preamble_tokens;
    if (m->block_size_given_case == SAMKV__COLLECTION_SPEC__BLOCK_SIZE_GIVEN_BLOCK_SIZE)
        out->block_tokens = m->block_size;
    if (m->init_tokens_given_case == SAMKV__COLLECTION_SPEC__INIT_TOKENS_GIVEN_INIT_TOKENS)
        out->init_tokens = m->init_tokens;
    if (m->local_tokens_given_case == SAMKV__COLLECTION_SPEC__LOCAL_TOKENS_GIVEN_LOCAL_TOKENS)
        out->local_tokens = m->local_tokens;
    if (m->quota_given_case == SAMKV__COLLECTION_SPEC__QUOTA_GIVEN_QUOTA_BYTES)
        out->quota_bytes = m->quota_bytes < INT64_MAX ? (int64_t)m->quota_bytes : INT64_MAX;
    if (m->ttl_given_case == SAMKV__COLLECTION_SPEC__TTL_GIVEN_TTL_S)
        out->ttl_s = m->ttl_s < INT64_MAX ? (int64_t)m->ttl_s : INT64_MAX;
}

static void count(struct samkv_metrics *metrics, const struct samkv_ingested *d)
{
    samkv_metrics_add(metrics, d->skipped ? SAMKV_METRIC_INGEST_SKIPPED : SAMKV_METRIC_INGEST_DOCUMENTS, 1);
    if (d->skipped)
        return;
    samkv_metrics_add(metrics, SAMKV_METRIC_INGEST_TOKENS, d->tokens);
    samkv_metrics_add(metrics, SAMKV_METRIC_INGEST_RAW, d->bytes_raw);
    samkv_metrics_add(metrics, SAMKV_METRIC_INGEST_STORED, d->bytes_stored);
}

/* Once a request: documents that were there already took no time worth a place in the histograms. */
static void observe(struct samkv_request *r, const struct samkv_ingest_result *result)
{
    struct samkv_metrics *metrics = &r->service->metrics;
    bool stored = false;
    for (size_t i = 0; i < result->count; i++) {
        r->traced.tokens += result->documents[i].tokens;
        stored |= !result->documents[i].skipped;
    }
    if (!stored)
        return;
    samkv_metrics_observe(metrics, SAMKV_HISTOGRAM_INGEST_QUEUE, r->waited_ms / 1e3);
    samkv_metrics_observe(metrics, SAMKV_HISTOGRAM_INGEST_PREFILL, result->prefill_ms / 1e3);
    samkv_metrics_observe(metrics, SAMKV_HISTOGRAM_INGEST_COMMIT, result->commit_ms / 1e3);
    samkv_metrics_observe(metrics, SAMKV_HISTOGRAM_INGEST_TOTAL, (samkv_now_ms() - r->accepted_ms) / 1e3);
}

static enum samkv_status reply_with(struct samkv_request *r, const struct samkv_ingest_result *result,
                                    struct samkv_outgoing **reply, struct samkv_error *err)
{
    Samkv__IngestReply message = SAMKV__INGEST_REPLY__INIT;
    Samkv__IngestedDocument *rows = calloc(result->count + 1, sizeof *rows);
    message.documents = calloc(result->count + 1, sizeof *message.documents);
    enum samkv_status st = SAMKV_NO_MEMORY;
    if (rows && message.documents) {
        for (size_t i = 0; i < result->count; i++) {
            struct samkv_ingested *d = &result->documents[i];
            samkv__ingested_document__init(&rows[i]);
            rows[i].id = d->id;
            rows[i].skipped = d->skipped;
            rows[i].tokens = d->tokens;
            rows[i].bytes_raw = d->bytes_raw;
            rows[i].bytes_stored = d->bytes_stored;
            message.documents[i] = &rows[i];
            count(&r->service->metrics, d);
        }
        message.n_documents = result->count;
        message.prefill_ms = result->prefill_ms;
        message.request = r->traced.id;
        observe(r, result);
        st = samkv_request_reply(r, &message.base, NULL, reply, err);
    }
    free(message.documents);
    free(rows);
    return st;
}

enum samkv_status samkv_handle_ingest(struct samkv_request *r, const ProtobufCMessage *message,
                                      struct samkv_outgoing **reply, struct samkv_error *err)
{
    const Samkv__IngestRequest *m = (const Samkv__IngestRequest *)message;
    char collection[SAMKV_ID_MAX_BYTES + 1];
    struct samkv_ingest_request request = {.collection = collection,
                                           .id = m->id,
                                           .title = *m->title ? m->title : NULL,
                                           .chunk_tokens = m->chunk_tokens,
                                           .cancelled = &r->cancelled,
                                           .trace = &r->traced.trace};
    if (m->tokens) {
        request.tokens = m->tokens->ids;
        request.token_count = m->tokens->n_ids;
    } else {
        request.text = (const char *)m->text.data;
        request.text_bytes = m->text.len;
    }
    fill_spec(m->spec, &request.spec);
    struct samkv_ingest_result result = {0};
    enum samkv_status st = samkv_access_find_or_make(r, m->collection, m->spec ? m->spec->mode : 0, collection,
                                                     &request.spec.ownership, err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_ingest(r->service->models, r->service->store, &request, &result, err);
    if (st == SAMKV_OK)
        st = reply_with(r, &result, reply, err);
    samkv_ingest_result_deinit(&result);
    return st;
}
