#include <assert.h>
#include <stdlib.h>

#include "daemon/fetch/ask.h"
#include "daemon/fetch/fetch.h"
#include "daemon/net/handle_fetch.h"
#include "daemon/net/handlers.h"
#include "daemon/net/lease_watch.h"

void samkv_fetch_message_read(struct samkv_request *r, const Samkv__FetchRequest *m, const char *collection,
                              struct samkv_fetch_request *out)
{
    samkv_fetch_request_init(out);
    out->collection = collection;
    out->ids = (const char *const *)m->ids;
    out->id_count = m->n_ids;
    if (m->query_tokens) {
        out->query_tokens = m->query_tokens->ids;
        out->query_count = m->query_tokens->n_ids;
    } else {
        out->query_text = (const char *)m->query_text.data;
        out->query_bytes = m->query_text.len;
    }
    out->ratio = m->ratio_given_case == SAMKV__FETCH_REQUEST__RATIO_GIVEN_RATIO ? m->ratio : 0;
    out->fixed = m->selection == SAMKV__SELECTION__FIXED;
    out->stable_layers = m->n_stable_layers ? m->stable_layers : NULL;
    out->stable_count = m->n_stable_layers;
    if (m->init_tokens_given_case == SAMKV__FETCH_REQUEST__INIT_TOKENS_GIVEN_INIT_TOKENS)
        out->init_tokens = m->init_tokens;
    if (m->local_tokens_given_case == SAMKV__FETCH_REQUEST__LOCAL_TOKENS_GIVEN_LOCAL_TOKENS)
        out->local_tokens = m->local_tokens;
    static const enum samkv_update updates[] = {[SAMKV__UPDATE__OVERWRITE] = SAMKV_UPDATE_OVERWRITE,
                                                [SAMKV__UPDATE__COSINE] = SAMKV_UPDATE_COSINE,
                                                [SAMKV__UPDATE__THETA] = SAMKV_UPDATE_THETA,
                                                [SAMKV__UPDATE__DELTA] = SAMKV_UPDATE_DELTA};
    static const enum samkv_neighbours neighbours[] = {[SAMKV__NEIGHBOURS__NONE] = SAMKV_NEIGHBOURS_NONE,
                                                       [SAMKV__NEIGHBOURS__LEFT] = SAMKV_NEIGHBOURS_LEFT,
                                                       [SAMKV__NEIGHBOURS__BOTH] = SAMKV_NEIGHBOURS_BOTH};
    static const enum samkv_scoring scorings[] = {[SAMKV__SCORING__MEAN] = SAMKV_SCORE_MEAN,
                                                  [SAMKV__SCORING__TOKENS] = SAMKV_SCORE_TOKENS,
                                                  [SAMKV__SCORING__EXACT] = SAMKV_SCORE_EXACT,
                                                  [SAMKV__SCORING__LAST] = SAMKV_SCORE_LAST,
                                                  [SAMKV__SCORING__ATTEND] = SAMKV_SCORE_ATTEND};
    out->update = updates[m->update];
    out->theta = m->theta;
    out->scoring = scorings[m->scoring];
    out->neighbours = neighbours[m->neighbours];
    out->no_recompute = m->no_recompute;
    out->compact = m->positions == SAMKV__POSITIONS__COMPACT;
    out->with_query = m->with_query;
    out->placement = m->placement == SAMKV__PLACEMENT__DEVICE ? SAMKV_PLACE_DEVICE : SAMKV_PLACE_HOST;
    out->user = r->caller->peer.uid;
    out->deadline_at_ms = m->deadline_ms > 0 ? r->accepted_ms + m->deadline_ms : 0;
    out->cancelled = &r->cancelled;
    out->trace = &r->traced.trace;
}

static void fill_layout(const struct samkv_fetch_layout *l, Samkv__FetchReply *m)
{
    m->memory_bytes = l->memory_bytes;
    m->dtype = l->dtype;
    m->layers = l->layers;
    m->rows = l->rows;
    m->kv_heads = l->kv_heads;
    m->head_dim = l->head_dim;
    m->k_offset = l->k_offset;
    m->v_offset = l->v_offset;
    m->layer_stride = l->layer_stride;
    m->tokens_offset = l->tokens_offset;
    m->doc_offset = l->doc_offset;
    m->index_offset = l->index_offset;
    m->position_offset = l->position_offset;
    m->logits_offset = l->logits_offset;
    m->vocab = l->vocab;
}

static void fill_timing(const struct samkv_request *r, const struct samkv_fetch_timing *t, Samkv__Timing *m)
{
    m->total = t->total + r->waited_ms;
    m->index = t->index;
    m->query = t->query;
    m->select = t->select;
    m->read = t->read;
    m->recompute = t->recompute;
    m->reply = t->reply;
    m->queue = t->queue + r->waited_ms;
}

void samkv_fetch_message_deinit(struct samkv_fetch_message *reply)
{
    free(reply->kept);
    free(reply->kept_pointers);
}

static void fill_figures(const struct samkv_fetch_result *result, Samkv__FetchReply *m)
{
    m->block_tokens = result->block_tokens;
    m->preamble_tokens = result->preamble_tokens;
    m->kept_tokens = result->kept_tokens;
    m->total_tokens = result->total_tokens;
    m->next_position = result->next_position;
    m->sequence_ratio = result->sequence_ratio;
    m->recompute_ratio = result->recompute_ratio;
    m->n_top_p = result->top_p ? result->documents : 0;
    m->top_p = result->top_p;
    m->n_document_tokens = result->document_tokens ? result->documents : 0;
    m->document_tokens = result->document_tokens;
    m->n_stable_layers = result->stable_count;
    m->stable_layers = result->stable_layers;
    m->bytes_read = result->bytes_read;
    m->bytes_stored = result->bytes_stored;
    m->anchors_exceed_budget = result->anchors_exceed_budget;
    m->decision = (Samkv__Decision)result->decision;
    m->ratio = result->ratio;
    m->sparse_ms = result->sparse_ms;
    m->full_ms = result->full_ms;
    m->backend = (char *)result->backend;
}

static void fill_device(const struct samkv_fetch_result *result, Samkv__DeviceMemory *m)
{
    samkv__device_memory__init(m);
    m->kind = result->device_is_cuda ? SAMKV__MEMORY_KIND__CUDA : SAMKV__MEMORY_KIND__SHARED;
    m->bytes = result->device_bytes;
    if (result->device_is_cuda) {
        m->uuid.data = (uint8_t *)result->device_uuid;
        m->uuid.len = sizeof result->device_uuid;
    }
}

enum samkv_status samkv_fetch_message_init(struct samkv_fetch_message *reply, const struct samkv_request *r,
                                           const struct samkv_fetch_result *result)
{
    *reply = (struct samkv_fetch_message){.message = SAMKV__FETCH_REPLY__INIT, .timing = SAMKV__TIMING__INIT};
    fill_layout(&result->layout, &reply->message);
    fill_figures(result, &reply->message);
    fill_timing(r, &result->timing_ms, &reply->timing);
    reply->message.timing_ms = &reply->timing;
    reply->message.request = r->traced.id;
    if (result->device_bytes) {
        fill_device(result, &reply->device);
        reply->message.device = &reply->device;
    }
    if (!result->keep || !result->keep_count)
        return SAMKV_OK;
    reply->kept = calloc((size_t)result->documents + 1, sizeof *reply->kept);
    reply->kept_pointers = calloc((size_t)result->documents + 1, sizeof *reply->kept_pointers);
    if (!reply->kept || !reply->kept_pointers)
        return SAMKV_NO_MEMORY;
    for (uint32_t i = 0; i < result->documents; i++) {
        samkv__kept__init(&reply->kept[i]);
        reply->kept[i].blocks = result->keep[i];
        reply->kept[i].n_blocks = result->keep_count[i];
        reply->kept_pointers[i] = &reply->kept[i];
    }
    reply->message.keep = reply->kept_pointers;
    reply->message.n_keep = result->documents;
    return SAMKV_OK;
}

static void observe_ms(struct samkv_metrics *metrics, enum samkv_histogram_id which, double ms)
{
    samkv_metrics_observe(metrics, which, ms / 1e3);
}

static void observe_phases(const struct samkv_request *r, const struct samkv_fetch_timing *t)
{
    struct samkv_metrics *metrics = &r->service->metrics;
    observe_ms(metrics, SAMKV_HISTOGRAM_FETCH_QUEUE, t->queue + r->waited_ms);
    observe_ms(metrics, SAMKV_HISTOGRAM_FETCH_INDEX, t->index);
    observe_ms(metrics, SAMKV_HISTOGRAM_FETCH_QUERY, t->query);
    observe_ms(metrics, SAMKV_HISTOGRAM_FETCH_SELECT, t->select);
    observe_ms(metrics, SAMKV_HISTOGRAM_FETCH_READ, t->read);
    observe_ms(metrics, SAMKV_HISTOGRAM_FETCH_RECOMPUTE, t->recompute);
    observe_ms(metrics, SAMKV_HISTOGRAM_FETCH_REPLY, t->reply);
    observe_ms(metrics, SAMKV_HISTOGRAM_FETCH_TOTAL, t->total + r->waited_ms);
}

/* Of a fetch that succeeded, or of an ask's. */
static void count(struct samkv_request *r, const struct samkv_fetch_result *result)
{
    struct samkv_metrics *metrics = &r->service->metrics;
    r->traced.read_bytes = result->bytes_read;
    r->traced.tokens = result->total_tokens;
    r->traced.kept_tokens = result->kept_tokens;
    r->traced.cache_bytes = result->layout.memory_bytes + result->device_bytes;
    samkv_metrics_observe(metrics, SAMKV_HISTOGRAM_SEQUENCE_RATIO, result->sequence_ratio);
    samkv_metrics_observe(metrics, SAMKV_HISTOGRAM_RECOMPUTE_RATIO, result->recompute_ratio);
    samkv_metrics_add(metrics, SAMKV_METRIC_FETCH_READ, result->bytes_read);
    samkv_metrics_add(metrics, SAMKV_METRIC_FETCH_STORED, result->bytes_stored);
    samkv_metrics_add(metrics, SAMKV_METRIC_FETCH_KEPT, result->kept_tokens);
    samkv_metrics_add(metrics, SAMKV_METRIC_FETCH_TOKENS, result->total_tokens);
}

/* What was decided for or against the client. */
static void count_decision(struct samkv_metrics *metrics, enum samkv_status st, enum samkv_decision decision)
{
    static const enum samkv_metric decisions[] = {[SAMKV_DECISION_RAISED] = SAMKV_METRIC_FETCH_RAISED,
                                                  [SAMKV_DECISION_FULL_QUALITY] = SAMKV_METRIC_FETCH_FULL,
                                                  [SAMKV_DECISION_FULL_CHEAPER] = SAMKV_METRIC_FETCH_CHEAPER};
    if (st == SAMKV_TIMEOUT)
        samkv_metrics_add(metrics, SAMKV_METRIC_FETCH_LATE, 1);
    else if (st == SAMKV_OK && decision != SAMKV_DECISION_SPARSE)
        samkv_metrics_add(metrics, decisions[decision], 1);
}

/* What the fetch's announcement needs. */
struct announcer {
    struct samkv_request *request;
    struct samkv_lease_watch *watch; /* of the next announcement; NULL once it is used */
};

/* The memory of K and V to the client while it is computed: the first frame of the answer. */
static enum samkv_status announce(void *arg, struct samkv_fetch_result *memory, struct samkv_error *err)
{
    struct announcer *a = arg;
    struct samkv_fetch_message packed = {.kept = NULL};
    struct samkv_fds fds = {.count = 0};
    enum samkv_status st = SAMKV_OK;
    if (!a->watch)
        st = samkv_lease_watch_new(&a->request->service->leases, &a->watch, err);
    if (st == SAMKV_OK)
        st = samkv_fetch_message_init(&packed, a->request, memory);
    if (st == SAMKV_OK)
        st = samkv_lease_watch_bind(a->watch, memory->lease, &fds.fd[1], err);
    if (st == SAMKV_OK) {
        memory->lease = NULL;
        fds.fd[0] = memory->device_fd;
        fds.count = 2;
        st = samkv_request_more_with(a->request, &packed.message.base, &fds, a->watch, err);
    } else if (memory->device_fd >= 0) {
        close(memory->device_fd);
    }
    memory->device_fd = -1;
    if (st == SAMKV_OK)
        a->watch = NULL;
    samkv_lease_end(memory->lease, true);
    memory->lease = NULL;
    samkv_fetch_message_deinit(&packed);
    return st;
}

static enum samkv_status reply_to_fetch(struct samkv_request *r, struct samkv_fetch_result *result,
                                        struct samkv_outgoing **reply, struct samkv_error *err)
{
    struct samkv_fetch_message packed;
    assert(!result->lease); /* it was announced */
    enum samkv_status st = samkv_fetch_message_init(&packed, r, result);
    if (st == SAMKV_OK) {
        struct samkv_fds fds = {.fd = {result->memfd}, .count = 1};
        result->memfd = -1; /* the frame's now, also when it fails */
        st = samkv_request_reply(r, &packed.message.base, &fds, reply, err);
    }
    samkv_fetch_message_deinit(&packed);
    return st;
}

enum samkv_status samkv_handle_fetch(struct samkv_request *r, const ProtobufCMessage *message,
                                     struct samkv_outgoing **reply, struct samkv_error *err)
{
    struct samkv_fetch_request request;
    struct samkv_fetch_result result = {.memfd = -1, .device_fd = -1};
    struct announcer announcer = {.request = r};
    const Samkv__FetchRequest *m = (const Samkv__FetchRequest *)message;
    char collection[SAMKV_ID_MAX_BYTES + 1];
    enum samkv_status st = samkv_access_find(r, m->collection, SAMKV_RIGHT_READ, collection, err);
    samkv_fetch_message_read(r, m, collection, &request);
    samkv_gates_apply(r->service->gates, &request);
    request.announce = announce;
    request.announce_arg = &announcer;
    if (st == SAMKV_OK && request.placement == SAMKV_PLACE_DEVICE)
        st = samkv_lease_watch_new(&r->service->leases, &announcer.watch, err);
    if (st == SAMKV_OK)
        st = samkv_fetch(r->service->models, r->service->store, &request, &result, err);
    samkv_metrics_add(&r->service->metrics, SAMKV_METRIC_REPAIRED, r->traced.trace.repaired);
    count_decision(&r->service->metrics, st, result.decision);
    if (st == SAMKV_OK) {
        samkv_gates_offer(r->service->gates, &request);
        count(r, &result);
        observe_phases(r, &result.timing_ms);
        st = reply_to_fetch(r, &result, reply, err);
        samkv_fetch_result_deinit(&result);
    }
    samkv_lease_watch_free(announcer.watch); /* when there was nothing to announce */
    return st;
}

/* ------------------------------------------------------------------ ask */

struct ask_stream {
    struct samkv_request *request;
    enum samkv_status status;
    struct samkv_error err;
};

static bool on_text(void *arg, const char *text, size_t bytes)
{
    struct ask_stream *stream = arg;
    Samkv__AskReply piece = SAMKV__ASK_REPLY__INIT;
    piece.text.data = (uint8_t *)text;
    piece.text.len = bytes;
    stream->status = samkv_request_more(stream->request, &piece.base, &stream->err);
    return stream->status == SAMKV_OK;
}

static enum samkv_status reply_to_ask(struct samkv_request *r, const struct samkv_ask_result *result,
                                      struct samkv_outgoing **reply, struct samkv_error *err)
{
    Samkv__AskReply message = SAMKV__ASK_REPLY__INIT;
    message.answer_tokens = result->answer_tokens;
    message.prompt_tokens = result->prompt_tokens;
    message.first_token_ms = result->first_token_ms + r->waited_ms;
    message.total_ms = result->total_ms + r->waited_ms;
    message.request = r->traced.id;
    samkv_metrics_add(&r->service->metrics, SAMKV_METRIC_ASK_TOKENS, result->answer_tokens);
    if (result->answer_tokens)
        observe_ms(&r->service->metrics, SAMKV_HISTOGRAM_ASK_FIRST_TOKEN, message.first_token_ms);
    if (!result->fetch.documents) /* nothing sparse was made */
        return samkv_request_reply(r, &message.base, NULL, reply, err);
    struct samkv_fetch_message packed;
    count(r, &result->fetch);
    enum samkv_status st = samkv_fetch_message_init(&packed, r, &result->fetch);
    message.fetch = &packed.message;
    if (st == SAMKV_OK)
        st = samkv_request_reply(r, &message.base, NULL, reply, err);
    samkv_fetch_message_deinit(&packed);
    return st;
}

enum samkv_status samkv_handle_ask(struct samkv_request *r, const ProtobufCMessage *message,
                                   struct samkv_outgoing **reply, struct samkv_error *err)
{
    const Samkv__AskRequest *m = (const Samkv__AskRequest *)message;
    static const enum samkv_ask_method methods[] = {[SAMKV__METHOD__SAMKV] = SAMKV_ASK_SAMKV,
                                                    [SAMKV__METHOD__FULL] = SAMKV_ASK_FULL,
                                                    [SAMKV__METHOD__REUSE] = SAMKV_ASK_REUSE};
    struct samkv_ask_request request = {.question = (const char *)m->question.data,
                                        .question_bytes = m->question.len,
                                        .raw = m->raw,
                                        .method = methods[m->method],
                                        .max_tokens = m->max_tokens};
    char collection[SAMKV_ID_MAX_BYTES + 1];
    enum samkv_status st = samkv_access_find(r, m->fetch->collection, SAMKV_RIGHT_READ, collection, err);
    if (st != SAMKV_OK)
        return st;
    samkv_fetch_message_read(r, m->fetch, collection, &request.fetch);
    request.fetch.placement = SAMKV_PLACE_HOST; /* its cache goes nowhere */
    samkv_gates_apply(r->service->gates, &request.fetch);
    if (request.fetch.full && request.method == SAMKV_ASK_SAMKV) /* the collection's quality needs it */
        request.method = SAMKV_ASK_FULL;
    struct ask_stream stream = {.request = r};
    struct samkv_ask_result result = {.fetch = {.memfd = -1, .device_fd = -1}};
    st = samkv_ask(r->service->models, r->service->store, &request, on_text, &stream, &result, err);
    samkv_metrics_add(&r->service->metrics, SAMKV_METRIC_REPAIRED, r->traced.trace.repaired);
    if (st != SAMKV_OK && stream.status == SAMKV_OK)
        return st;
    if (stream.status != SAMKV_OK) /* it stopped because we said so */
        st = samkv_fail(err, stream.status, "%s", stream.err.text);
    else
        st = reply_to_ask(r, &result, reply, err);
    samkv_ask_result_deinit(&result);
    return st;
}
