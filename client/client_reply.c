/* From payloads to public answers. Strings and number lists are not copied: the answer keeps its message. */
#include "client/client_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void samkv_reply_fail(struct samkv_reply *reply, const struct samkv_error *error)
{
    reply->status = error->status ? error->status : SAMKV_INTERNAL;
    reply->error = *error;
    reply->error.status = reply->status;
    reply->more = false;
}

/* The daemon's words go to terminals and logs: one line, no control characters. */
static void copy_printable(char *out, size_t size, const char *from)
{
    size_t n = strnlen(from, size - 1);
    for (size_t i = 0; i < n; i++)
        out[i] = (unsigned char)from[i] < 0x20 || from[i] == 0x7f ? ' ' : from[i];
    out[n] = 0;
}

void samkv_reply_error(const uint8_t *payload, size_t bytes, struct samkv_error *out)
{
    Samkv__Error *message = samkv__error__unpack(NULL, bytes, payload);
    if (!message) {
        samkv_fail(out, SAMKV_PROTOCOL, "the daemon failed, and its reason cannot be read");
        return;
    }
    out->status = message->status ? (enum samkv_status)message->status : SAMKV_INTERNAL;
    copy_printable(out->text, sizeof out->text, *message->message ? message->message : samkv_status_text(out->status));
    samkv__error__free_unpacked(message, NULL);
}

enum samkv_status samkv_figures_fill(struct samkv_figures *out, const Samkv__FetchReply *m,
                                     struct samkv_blocks_kept *keep, struct samkv_error *err)
{
    if (m->n_top_p != m->n_keep || m->n_document_tokens != m->n_keep || m->n_keep > UINT32_MAX)
        return samkv_fail(err, SAMKV_PROTOCOL, "the daemon's lists disagree about the number of documents");
    for (size_t i = 0; i < m->n_keep; i++)
        keep[i] = (struct samkv_blocks_kept){.blocks = m->keep[i]->blocks, .count = m->keep[i]->n_blocks};
    *out = (struct samkv_figures){
        .documents = (uint32_t)m->n_keep,
        .preamble_tokens = m->preamble_tokens,
        .kept_tokens = m->kept_tokens,
        .total_tokens = m->total_tokens,
        .next_position = m->next_position,
        .block_tokens = m->block_tokens,
        .sequence_ratio = m->sequence_ratio,
        .recompute_ratio = m->recompute_ratio,
        .top_p = m->top_p,
        .document_tokens = m->document_tokens,
        .keep = keep,
        .stable_layers = m->stable_layers,
        .stable_layer_count = m->n_stable_layers,
        .bytes_read = m->bytes_read,
        .bytes_stored = m->bytes_stored,
        .anchors_exceed_budget = m->anchors_exceed_budget,
        .backend = m->backend,
        .request = m->request,
        .decision = (enum samkv_fetch_decision)m->decision,
        .ratio = m->ratio,
        .sparse_ms = m->sparse_ms,
        .full_ms = m->full_ms,
    };
    const Samkv__Timing *t = m->timing_ms;
    if (t)
        out->timing_ms = (struct samkv_timing){.total = t->total,
                                               .index = t->index,
                                               .query = t->query,
                                               .select = t->select,
                                               .read = t->read,
                                               .recompute = t->recompute,
                                               .reply = t->reply,
                                               .queue = t->queue};
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ one filler an operation */

/* An array of the answer, freed with it. NULL for no elements too, so callers must look at the count. */
static void *array(struct samkv_reply *reply, int slot, size_t count, size_t bytes)
{
    return reply->owner->arrays[slot] = calloc(count ? count : 1, bytes);
}

static enum samkv_status no_memory(struct samkv_error *err)
{
    return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for the answer");
}

static enum samkv_status fill_ingest(struct samkv_reply *reply, const ProtobufCMessage *message,
                                     struct samkv_error *err)
{
    const Samkv__IngestReply *m = (const Samkv__IngestReply *)message;
    struct samkv_ingested_document *documents = array(reply, 0, m->n_documents, sizeof *documents);
    if (!documents)
        return no_memory(err);
    for (size_t i = 0; i < m->n_documents; i++) {
        const Samkv__IngestedDocument *d = m->documents[i];
        documents[i] = (struct samkv_ingested_document){.id = d->id,
                                                        .skipped = d->skipped,
                                                        .tokens = d->tokens,
                                                        .bytes_raw = d->bytes_raw,
                                                        .bytes_stored = d->bytes_stored};
    }
    reply->answer.ingest = (struct samkv_ingest_answer){documents, m->n_documents, m->prefill_ms, m->request};
    return SAMKV_OK;
}

static enum samkv_status fill_ask(struct samkv_reply *reply, const ProtobufCMessage *message, struct samkv_error *err)
{
    const Samkv__AskReply *m = (const Samkv__AskReply *)message;
    reply->answer.ask = (struct samkv_ask_answer){
        .text = (const char *)m->text.data,
        .text_bytes = m->text.len,
        .answer_tokens = m->answer_tokens,
        .prompt_tokens = m->prompt_tokens,
        .first_token_ms = m->first_token_ms,
        .total_ms = m->total_ms,
    };
    if (!m->fetch)
        return SAMKV_OK;
    struct samkv_figures *figures = array(reply, 0, 1, sizeof *figures);
    struct samkv_blocks_kept *keep = array(reply, 1, m->fetch->n_keep, sizeof *keep);
    if (!figures || !keep)
        return no_memory(err);
    reply->answer.ask.figures = figures;
    return samkv_figures_fill(figures, m->fetch, keep, err);
}

static enum samkv_status fill_evaluate(struct samkv_reply *reply, const ProtobufCMessage *message,
                                       struct samkv_error *err)
{
    const Samkv__EvaluateReply *m = (const Samkv__EvaluateReply *)message;
    bool has_variant = m->variant_given_case == SAMKV__EVALUATE_REPLY__VARIANT_GIVEN_VARIANT;
    reply->answer.evaluate = (struct samkv_evaluate_answer){
        .variant = has_variant ? (int64_t)m->variant : -1,
        .text = (const char *)m->text.data,
        .text_bytes = m->text.len,
        .tokens = m->tokens ? m->tokens->ids : NULL,
        .token_count = m->tokens ? m->tokens->n_ids : 0,
        .log_likelihood = m->log_likelihood,
        .gold_tokens = m->gold_tokens,
        .kl = m->kl,
        .agrees = m->agrees,
        .first_token_ms = m->first_token_ms,
        .total_ms = m->total_ms,
    };
    if (!has_variant)
        return SAMKV_OK;
    if (!m->fetch)
        return samkv_fail(err, SAMKV_PROTOCOL, "the daemon's answer lacks what a variant kept");
    struct samkv_figures *figures = array(reply, 0, 1, sizeof *figures);
    struct samkv_blocks_kept *keep = array(reply, 1, m->fetch->n_keep, sizeof *keep);
    if (!figures || !keep)
        return no_memory(err);
    reply->answer.evaluate.figures = figures;
    return samkv_figures_fill(figures, m->fetch, keep, err);
}

static struct samkv_document_info document_info(const Samkv__Document *d)
{
    return (struct samkv_document_info){.collection = d->collection,
                                        .id = d->id,
                                        .title = d->title,
                                        .key = d->key,
                                        .tokens = d->tokens,
                                        .blocks = d->blocks,
                                        .bytes_raw = d->bytes_raw,
                                        .bytes_stored = d->bytes_stored,
                                        .bytes_index = d->bytes_index,
                                        .created_unix_s = d->created_unix_s,
                                        .pinned = d->pinned,
                                        .put_unix_s = d->put_unix_s,
                                        .expires_unix_s = d->expires_unix_s,
                                        .used_unix_s = d->used_unix_s,
                                        .uses = d->uses};
}

static struct samkv_collection_info collection_info(const Samkv__Collection *c)
{
    return (struct samkv_collection_info){.name = c->name,
                                          .model = c->model,
                                          .dtype = c->dtype,
                                          .fingerprint = c->fingerprint,
                                          .block_tokens = c->block_size,
                                          .init_tokens = c->init_tokens,
                                          .local_tokens = c->local_tokens,
                                          .preamble_tokens = c->preamble_tokens,
                                          .documents = c->documents,
                                          .quota_bytes = c->quota_bytes,
                                          .ttl_s = c->ttl_s,
                                          .bytes_raw = c->bytes_raw,
                                          .bytes_stored = c->bytes_stored,
                                          .codec = c->codec,
                                          .owner = c->owner,
                                          .group = c->group,
                                          .mode = c->mode};
}

static enum samkv_status fill_list(struct samkv_reply *reply, const ProtobufCMessage *message, struct samkv_error *err)
{
    const Samkv__ListReply *m = (const Samkv__ListReply *)message;
    struct samkv_document_info *documents = array(reply, 0, m->n_documents, sizeof *documents);
    struct samkv_collection_info *collections = array(reply, 1, m->n_collections, sizeof *collections);
    if (!documents || !collections)
        return no_memory(err);
    for (size_t i = 0; i < m->n_documents; i++)
        documents[i] = document_info(m->documents[i]);
    for (size_t i = 0; i < m->n_collections; i++)
        collections[i] = collection_info(m->collections[i]);
    reply->answer.list = (struct samkv_list_answer){documents, m->n_documents, collections, m->n_collections, m->more};
    return SAMKV_OK;
}

static enum samkv_status fill_show(struct samkv_reply *reply, const ProtobufCMessage *message, struct samkv_error *err)
{
    const Samkv__ShowReply *m = (const Samkv__ShowReply *)message;
    if (!m->document || !m->collection)
        return samkv_fail(err, SAMKV_PROTOCOL, "the daemon's answer lacks the document");
    /* protobuf-c does not end bytes with a zero. */
    char *text = array(reply, 0, m->text.len + 1, 1);
    if (!text)
        return no_memory(err);
    if (m->text.len)
        memcpy(text, m->text.data, m->text.len);
    struct samkv_quality_info *quality = array(reply, 1, 1, sizeof *quality);
    struct samkv_calibration_info *calibration = array(reply, 2, 1, sizeof *calibration);
    if (!quality || !calibration)
        return no_memory(err);
    if (m->quality)
        *quality = samkv_quality_info(m->quality);
    if (m->calibration)
        *calibration = samkv_calibration_info(m->calibration);
    reply->answer.show = (struct samkv_show_answer){.document = document_info(m->document),
                                                    .collection = collection_info(m->collection),
                                                    .text = text,
                                                    .text_bytes = m->text.len,
                                                    .quality = m->quality ? quality : NULL,
                                                    .calibration = m->calibration ? calibration : NULL};
    return SAMKV_OK;
}

static enum samkv_status fill_remove(struct samkv_reply *reply, const ProtobufCMessage *message,
                                     struct samkv_error *err)
{
    (void)err;
    const Samkv__RemoveReply *m = (const Samkv__RemoveReply *)message;
    reply->answer.remove = (struct samkv_remove_answer){
        .removed = m->removed, .missing = (const char *const *)m->missing, .missing_count = m->n_missing};
    return SAMKV_OK;
}

static enum samkv_status fill_status(struct samkv_reply *reply, const ProtobufCMessage *message,
                                     struct samkv_error *err)
{
    const Samkv__StatusReply *m = (const Samkv__StatusReply *)message;
    struct samkv_model_info *models = array(reply, 0, m->n_models, sizeof *models);
    struct samkv_counter *counters = array(reply, 1, m->n_counters, sizeof *counters);
    struct samkv_collection_info *collections = array(reply, 2, m->n_collection_list, sizeof *collections);
    struct samkv_histogram_info *histograms = array(reply, 3, m->n_histograms, sizeof *histograms);
    struct samkv_quality_info *qualities = array(reply, 4, m->n_qualities, sizeof *qualities);
    struct samkv_calibration_info *calibrations = array(reply, 5, m->n_calibrations, sizeof *calibrations);
    if (!models || !counters || !collections || !histograms || !qualities || !calibrations)
        return no_memory(err);
    for (size_t i = 0; i < m->n_qualities; i++)
        qualities[i] = samkv_quality_info(m->qualities[i]);
    for (size_t i = 0; i < m->n_calibrations; i++)
        calibrations[i] = samkv_calibration_info(m->calibrations[i]);
    for (size_t i = 0; i < m->n_collection_list; i++)
        collections[i] = collection_info(m->collection_list[i]);
    for (size_t i = 0; i < m->n_histograms; i++) {
        const Samkv__Histogram *h = m->histograms[i];
        if (h->n_counts != h->n_bounds + 1)
            return samkv_fail(err, SAMKV_PROTOCOL, "the daemon's histogram %.40s has not one count more than bounds",
                              h->name);
        histograms[i] = (struct samkv_histogram_info){h->name, h->phase, h->bounds, h->counts, h->n_bounds, h->sum};
    }
    for (size_t i = 0; i < m->n_models; i++) {
        const Samkv__ModelStatus *s = m->models[i];
        models[i] = (struct samkv_model_info){.name = s->name,
                                              .path = s->path,
                                              .device = s->device,
                                              .fingerprint = s->fingerprint,
                                              .dtype = s->dtype,
                                              .layers = s->layers,
                                              .context_tokens = s->context_tokens,
                                              .weight_bytes = s->weight_bytes,
                                              .chat = s->chat};
    }
    for (size_t i = 0; i < m->n_counters; i++)
        counters[i] = (struct samkv_counter){.name = m->counters[i]->name, .value = m->counters[i]->value};
    reply->answer.status = (struct samkv_status_answer){.version = m->version,
                                                        .store = m->store,
                                                        .uptime_s = m->uptime_s,
                                                        .collections = m->collections,
                                                        .documents = m->documents,
                                                        .names = m->names,
                                                        .connections = m->connections,
                                                        .bytes_file = m->bytes_file,
                                                        .bytes_used = m->bytes_used,
                                                        .bytes_limit = m->bytes_limit,
                                                        .bytes_raw = m->bytes_raw,
                                                        .bytes_stored = m->bytes_stored,
                                                        .resident_bytes = m->resident_bytes,
                                                        .models = models,
                                                        .model_count = m->n_models,
                                                        .counters = counters,
                                                        .counter_count = m->n_counters,
                                                        .bytes_disk_free = m->bytes_disk_free,
                                                        .bytes_reclaimable = m->bytes_reclaimable,
                                                        .oldest_reader_s = m->oldest_reader_s,
                                                        .evictions = m->evictions,
                                                        .evicted_bytes = m->evicted_bytes,
                                                        .expirations = m->expirations,
                                                        .collection_list = collections,
                                                        .collection_count = m->n_collection_list,
                                                        .histograms = histograms,
                                                        .histogram_count = m->n_histograms,
                                                        .user = m->user,
                                                        .user_bytes = m->user_bytes,
                                                        .user_quota_bytes = m->user_quota_bytes,
                                                        .partial = m->partial,
                                                        .qualities = qualities,
                                                        .quality_count = m->n_qualities,
                                                        .calibrations = calibrations,
                                                        .calibration_count = m->n_calibrations};
    return SAMKV_OK;
}

static enum samkv_status fill_verify(struct samkv_reply *reply, const ProtobufCMessage *message,
                                     struct samkv_error *err)
{
    (void)err;
    const Samkv__VerifyReply *m = (const Samkv__VerifyReply *)message;
    reply->answer.verify = (struct samkv_verify_answer){.documents = m->documents,
                                                        .documents_total = m->documents_total,
                                                        .blocks = m->blocks,
                                                        .bytes = m->bytes,
                                                        .damaged = m->damaged,
                                                        .repaired = m->repaired,
                                                        .damaged_ids = (const char *const *)m->damaged_ids,
                                                        .damaged_id_count = m->n_damaged_ids};
    return SAMKV_OK;
}

static enum samkv_status fill_bundle(struct samkv_reply *reply, const ProtobufCMessage *message,
                                     struct samkv_error *err)
{
    (void)err;
    const Samkv__BundleReply *m = (const Samkv__BundleReply *)message;
    reply->answer.bundle = (struct samkv_bundle_answer){.collection = m->collection,
                                                        .last_id = m->last_id,
                                                        .names = m->names,
                                                        .names_total = m->names_total,
                                                        .documents = m->documents,
                                                        .bytes = m->bytes,
                                                        .skipped = m->skipped,
                                                        .replaced = m->replaced,
                                                        .kept = m->kept};
    return SAMKV_OK;
}

static enum samkv_status fill_configure(struct samkv_reply *reply, const ProtobufCMessage *message,
                                        struct samkv_error *err)
{
    const Samkv__ConfigureReply *m = (const Samkv__ConfigureReply *)message;
    if (!m->collection)
        return samkv_fail(err, SAMKV_PROTOCOL, "the daemon's answer lacks the collection");
    struct samkv_quality_info *quality = array(reply, 0, 1, sizeof *quality);
    if (!quality)
        return no_memory(err);
    if (m->quality)
        *quality = samkv_quality_info(m->quality);
    reply->answer.configure = (struct samkv_configure_answer){
        .collection = collection_info(m->collection), .evicted = m->evicted, .quality = m->quality ? quality : NULL};
    return SAMKV_OK;
}

static enum samkv_status fill_pin(struct samkv_reply *reply, const ProtobufCMessage *message, struct samkv_error *err)
{
    (void)err;
    const Samkv__PinReply *m = (const Samkv__PinReply *)message;
    reply->answer.pin = (struct samkv_pin_answer){
        .pinned = m->pinned, .missing = (const char *const *)m->missing, .missing_count = m->n_missing};
    return SAMKV_OK;
}

static enum samkv_status fill_gc(struct samkv_reply *reply, const ProtobufCMessage *message, struct samkv_error *err)
{
    (void)err;
    const Samkv__GcReply *m = (const Samkv__GcReply *)message;
    reply->answer.gc = (struct samkv_gc_answer){.names_expired = m->names_expired,
                                                .names_orphaned = m->names_orphaned,
                                                .documents_unreferenced = m->documents_unreferenced,
                                                .documents_unfinished = m->documents_unfinished,
                                                .bytes_freed = m->bytes_freed};
    return SAMKV_OK;
}

static enum samkv_status fill_compact(struct samkv_reply *reply, const ProtobufCMessage *message,
                                      struct samkv_error *err)
{
    (void)err;
    const Samkv__CompactReply *m = (const Samkv__CompactReply *)message;
    reply->answer.compact = (struct samkv_compact_answer){.bytes_moved = m->bytes_moved,
                                                          .bytes_total = m->bytes_total,
                                                          .bytes_file_before = m->bytes_file_before,
                                                          .bytes_file = m->bytes_file,
                                                          .bytes_allocated_before = m->bytes_allocated_before,
                                                          .bytes_allocated = m->bytes_allocated,
                                                          .bytes_used = m->bytes_used};
    return SAMKV_OK;
}

static void fill_traced(struct samkv_traced_request *out, const Samkv__TracedRequest *m, struct samkv_span_info *spans)
{
    for (size_t i = 0; i < m->n_spans; i++)
        spans[i] = (struct samkv_span_info){m->spans[i]->phase, m->spans[i]->start_ms, m->spans[i]->ms};
    *out = (struct samkv_traced_request){.id = m->id,
                                         .client_id = m->client_id,
                                         .type = m->type,
                                         .agent = m->agent,
                                         .pid = m->pid,
                                         .uid = m->uid,
                                         .gid = m->gid,
                                         .accepted_unix_ms = m->accepted_unix_ms,
                                         .collection = m->collection,
                                         .documents = (const char *const *)m->documents,
                                         .documents_named = m->n_documents,
                                         .document_count = m->document_count,
                                         .running = m->running,
                                         .ms = m->ms,
                                         .status = (enum samkv_status)m->status,
                                         .error = m->error,
                                         .spans = spans,
                                         .span_count = m->n_spans,
                                         .request_bytes = m->request_bytes,
                                         .reply_bytes = m->reply_bytes,
                                         .cache_bytes = m->cache_bytes,
                                         .read_bytes = m->read_bytes,
                                         .tokens = m->tokens,
                                         .kept_tokens = m->kept_tokens};
}

static enum samkv_status fill_trace(struct samkv_reply *reply, const ProtobufCMessage *message, struct samkv_error *err)
{
    const Samkv__TraceReply *m = (const Samkv__TraceReply *)message;
    size_t spans = 0, at = 0;
    for (size_t i = 0; i < m->n_requests; i++)
        spans += m->requests[i]->n_spans;
    struct samkv_traced_request *requests = array(reply, 0, m->n_requests, sizeof *requests);
    struct samkv_span_info *all = array(reply, 1, spans, sizeof *all);
    if (!requests || !all)
        return no_memory(err);
    for (size_t i = 0; i < m->n_requests; i++) {
        fill_traced(&requests[i], m->requests[i], all + at);
        at += m->requests[i]->n_spans;
    }
    reply->answer.trace = (struct samkv_trace_answer){.requests = requests, .count = m->n_requests};
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ decoding */

static const struct operation {
    const ProtobufCMessageDescriptor *descriptor;
    enum samkv_status (*fill)(struct samkv_reply *, const ProtobufCMessage *, struct samkv_error *); /* NULL: nothing */
} operations[] = {
    [SAMKV_OPERATION_PING] = {&samkv__ping_reply__descriptor},
    [SAMKV_OPERATION_INGEST] = {&samkv__ingest_reply__descriptor, fill_ingest},
    [SAMKV_OPERATION_FETCH] = {&samkv__fetch_reply__descriptor},
    [SAMKV_OPERATION_ASK] = {&samkv__ask_reply__descriptor, fill_ask},
    [SAMKV_OPERATION_LIST] = {&samkv__list_reply__descriptor, fill_list},
    [SAMKV_OPERATION_SHOW] = {&samkv__show_reply__descriptor, fill_show},
    [SAMKV_OPERATION_REMOVE] = {&samkv__remove_reply__descriptor, fill_remove},
    [SAMKV_OPERATION_STATUS] = {&samkv__status_reply__descriptor, fill_status},
    [SAMKV_OPERATION_VERIFY] = {&samkv__verify_reply__descriptor, fill_verify},
    [SAMKV_OPERATION_EXPORT] = {&samkv__bundle_reply__descriptor, fill_bundle},
    [SAMKV_OPERATION_IMPORT] = {&samkv__bundle_reply__descriptor, fill_bundle},
    [SAMKV_OPERATION_CONFIGURE] = {&samkv__configure_reply__descriptor, fill_configure},
    [SAMKV_OPERATION_PIN] = {&samkv__pin_reply__descriptor, fill_pin},
    [SAMKV_OPERATION_GC] = {&samkv__gc_reply__descriptor, fill_gc},
    [SAMKV_OPERATION_COMPACT] = {&samkv__compact_reply__descriptor, fill_compact},
    [SAMKV_OPERATION_CALIBRATE] = {&samkv__calibrate_reply__descriptor, samkv_fill_calibrate},
    [SAMKV_OPERATION_TRACE] = {&samkv__trace_reply__descriptor, fill_trace},
    [SAMKV_OPERATION_EVALUATE] = {&samkv__evaluate_reply__descriptor, fill_evaluate},
};

static enum samkv_status decode(struct samkv_reply *out, struct samkv_incoming *incoming, struct samkv_error *err)
{
    const struct operation *operation = &operations[out->operation];
    ProtobufCMessage *message =
        protobuf_c_message_unpack(operation->descriptor, NULL, incoming->frame.payload_bytes, incoming->payload);
    if (!message)
        return samkv_fail(err, SAMKV_PROTOCOL, "the daemon's answer cannot be read: update the daemon or this library");
    if (out->operation == SAMKV_OPERATION_FETCH) {
        return samkv_cache_new((Samkv__FetchReply *)message, &incoming->fds, incoming->device_asked,
                               incoming->announced, &out->cache, err);
    }
    out->owner = calloc(1, sizeof *out->owner);
    if (!out->owner) {
        protobuf_c_message_free_unpacked(message, NULL);
        return no_memory(err);
    }
    out->owner->message = message;
    return operation->fill ? operation->fill(out, message, err) : SAMKV_OK;
}

static void release(struct samkv_reply *reply)
{
    samkv_cache_free(reply->cache);
    reply->cache = NULL;
    if (!reply->owner)
        return;
    protobuf_c_message_free_unpacked(reply->owner->message, NULL);
    for (size_t i = 0; i < sizeof reply->owner->arrays / sizeof *reply->owner->arrays; i++)
        free(reply->owner->arrays[i]);
    free(reply->owner);
    reply->owner = NULL;
}

void samkv_reply_decode(struct samkv_reply *out, struct samkv_incoming *incoming)
{
    struct samkv_error err = {.status = SAMKV_OK};
    if (incoming->frame.flags & SAMKV_FLAG_ERROR)
        samkv_reply_error(incoming->payload, incoming->frame.payload_bytes, &err);
    else if (!decode(out, incoming, &err))
        err.status = SAMKV_OK;
    if (err.status) {
        release(out);
        memset(&out->answer, 0, sizeof out->answer);
        samkv_reply_fail(out, &err);
    }
    samkv_incoming_deinit(incoming);
}

void samkv_reply_deinit(struct samkv_reply *reply)
{
    release(reply);
    memset(reply, 0, sizeof *reply);
}
