/* From the public options to the messages of samkv.proto. Nothing is copied: messages point at the caller's memory. */
#include "client/client_internal.h"

#include <stdlib.h>
#include <string.h>

static char *text(const char *s)
{
    return (char *)(s ? s : "");
}

static ProtobufCBinaryData bytes_of(const char *s, size_t bytes)
{
    return (ProtobufCBinaryData){.len = s ? bytes : 0, .data = (uint8_t *)text(s)};
}

/* NULL means that no tokens are given; an empty list is not NULL. */
static Samkv__Tokens *tokens_of(Samkv__Tokens *message, const int32_t *ids, size_t count)
{
    if (!ids)
        return NULL;
    samkv__tokens__init(message);
    message->ids = (int32_t *)ids;
    message->n_ids = count;
    return message;
}

void samkv_document_init(struct samkv_document *document)
{
    *document = (struct samkv_document){
        .spec = {.block_tokens = -1, .init_tokens = -1, .local_tokens = -1, .quota_bytes = -1, .ttl_s = -1}};
}

void samkv_fetch_options_init(struct samkv_fetch_options *options)
{
    *options = (struct samkv_fetch_options){.ratio = -1, .init_tokens = -1, .local_tokens = -1};
}

void samkv_ask_options_init(struct samkv_ask_options *options)
{
    memset(options, 0, sizeof *options);
    samkv_fetch_options_init(&options->fetch);
}

/* -1 leaves a oneof unset; anything else goes out for the daemon to judge. */
#define SET_OPTIONAL(message, field, CASE, value)                                                                      \
    do {                                                                                                               \
        if ((value) >= 0) {                                                                                            \
            (message)->field##_given_case = CASE;                                                                      \
            (message)->field = (value) > UINT32_MAX ? UINT32_MAX : (uint32_t)(value);                                  \
        }                                                                                                              \
    } while (0)

static void fill_spec(Samkv__CollectionSpec *spec, Samkv__Tokens *preamble, const struct samkv_collection_options *from)
{
    samkv__collection_spec__init(spec);
    spec->model = text(from->model);
    spec->codec = text(from->codec);
    spec->has_preamble = from->has_preamble;
    if (from->has_preamble) {
        spec->preamble_text = bytes_of(from->preamble, from->preamble_bytes);
        spec->preamble_tokens = tokens_of(preamble, from->preamble_tokens, from->preamble_token_count);
    }
    SET_OPTIONAL(spec, block_size, SAMKV__COLLECTION_SPEC__BLOCK_SIZE_GIVEN_BLOCK_SIZE, from->block_tokens);
    SET_OPTIONAL(spec, init_tokens, SAMKV__COLLECTION_SPEC__INIT_TOKENS_GIVEN_INIT_TOKENS, from->init_tokens);
    SET_OPTIONAL(spec, local_tokens, SAMKV__COLLECTION_SPEC__LOCAL_TOKENS_GIVEN_LOCAL_TOKENS, from->local_tokens);
    if (from->quota_bytes >= 0) {
        spec->quota_given_case = SAMKV__COLLECTION_SPEC__QUOTA_GIVEN_QUOTA_BYTES;
        spec->quota_bytes = (uint64_t)from->quota_bytes;
    }
    if (from->ttl_s >= 0) {
        spec->ttl_given_case = SAMKV__COLLECTION_SPEC__TTL_GIVEN_TTL_S;
        spec->ttl_s = (uint64_t)from->ttl_s;
    }
    spec->mode = from->mode;
}

enum samkv_status samkv_client_submit_ingest(struct samkv_client *client, const struct samkv_document *document,
                                             uint64_t *request, struct samkv_error *err)
{
    Samkv__IngestRequest message = SAMKV__INGEST_REQUEST__INIT;
    Samkv__CollectionSpec spec;
    Samkv__Tokens tokens, preamble;
    message.collection = text(document->collection);
    message.id = text(document->id);
    message.title = text(document->title);
    message.text = bytes_of(document->text, document->text_bytes);
    message.tokens = tokens_of(&tokens, document->tokens, document->token_count);
    fill_spec(&spec, &preamble, &document->spec);
    message.spec = &spec;
    message.chunk_tokens = document->chunk_tokens;
    return samkv_client_submit(client, SAMKV_OPERATION_INGEST, &message.base, request, err);
}

static void fill_fetch(Samkv__FetchRequest *message, Samkv__Tokens *query, const struct samkv_fetch_options *from)
{
    samkv__fetch_request__init(message);
    message->collection = text(from->collection);
    message->ids = (char **)from->ids;
    message->n_ids = from->id_count;
    message->query_text = bytes_of(from->query, from->query_bytes);
    message->query_tokens = tokens_of(query, from->query_tokens, from->query_token_count);
    if (from->ratio != -1) { /* anything else goes out for the daemon to judge */
        message->ratio_given_case = SAMKV__FETCH_REQUEST__RATIO_GIVEN_RATIO;
        message->ratio = from->ratio;
    }
    message->selection = (Samkv__Selection)from->selection;
    message->stable_layers = (uint32_t *)from->stable_layers;
    message->n_stable_layers = from->stable_layers ? from->stable_layer_count : 0;
    SET_OPTIONAL(message, init_tokens, SAMKV__FETCH_REQUEST__INIT_TOKENS_GIVEN_INIT_TOKENS, from->init_tokens);
    SET_OPTIONAL(message, local_tokens, SAMKV__FETCH_REQUEST__LOCAL_TOKENS_GIVEN_LOCAL_TOKENS, from->local_tokens);
    message->update = (Samkv__Update)from->update;
    message->theta = from->theta;
    message->no_recompute = from->no_recompute;
    message->positions = (Samkv__Positions)from->positions;
    message->with_query = from->with_query;
    message->placement = (Samkv__Placement)from->placement;
    message->scoring = (Samkv__Scoring)from->scoring;
    message->neighbours = (Samkv__Neighbours)from->neighbours;
    message->deadline_ms = from->deadline_ms;
}

enum samkv_status samkv_client_submit_fetch(struct samkv_client *client, const struct samkv_fetch_options *options,
                                            uint64_t *request, struct samkv_error *err)
{
    Samkv__FetchRequest message;
    Samkv__Tokens query;
    fill_fetch(&message, &query, options);
    return samkv_client_submit(client, SAMKV_OPERATION_FETCH, &message.base, request, err);
}

enum samkv_status samkv_client_submit_ask(struct samkv_client *client, const struct samkv_ask_options *options,
                                          uint64_t *request, struct samkv_error *err)
{
    Samkv__AskRequest message = SAMKV__ASK_REQUEST__INIT;
    Samkv__FetchRequest fetch;
    Samkv__Tokens query;
    fill_fetch(&fetch, &query, &options->fetch);
    message.fetch = &fetch;
    message.deadline_ms = options->fetch.deadline_ms;
    message.question = bytes_of(options->question, options->question_bytes);
    message.method = (Samkv__Method)options->method;
    message.max_tokens = options->max_tokens;
    message.raw = options->raw;
    return samkv_client_submit(client, SAMKV_OPERATION_ASK, &message.base, request, err);
}

void samkv_evaluated_variant_init(struct samkv_evaluated_variant *variant)
{
    *variant = (struct samkv_evaluated_variant){.method = SAMKV_EVALUATED_SAMKV, .share = 0.15, .first_tokens = 16};
    samkv_fetch_options_init(&variant->fetch);
}

static void fill_variant(Samkv__EvaluateVariant *message, Samkv__FetchRequest *fetch, Samkv__Tokens *query,
                         const struct samkv_evaluated_variant *from)
{
    samkv__evaluate_variant__init(message);
    fill_fetch(fetch, query, &from->fetch);
    message->fetch = fetch;
    message->method = (Samkv__Evaluated)from->method;
    message->cut = (Samkv__Cut)from->cut;
    message->share = from->share;
    message->first_tokens = from->first_tokens;
}

/* A variant's messages while they are packed. */
struct variant_messages {
    Samkv__EvaluateVariant variant;
    Samkv__FetchRequest fetch;
    Samkv__Tokens query;
};

enum samkv_status samkv_client_submit_evaluate(struct samkv_client *client,
                                               const struct samkv_evaluate_options *options, uint64_t *request,
                                               struct samkv_error *err)
{
    Samkv__EvaluateRequest message = SAMKV__EVALUATE_REQUEST__INIT;
    Samkv__Tokens query, gold;
    size_t n = options->variant_count;
    struct variant_messages *messages = calloc(n + 1, sizeof *messages);
    Samkv__EvaluateVariant **variants = calloc(n + 1, sizeof *variants);
    enum samkv_status status;
    for (size_t i = 0; messages && variants && i < n; i++) {
        fill_variant(&messages[i].variant, &messages[i].fetch, &messages[i].query, &options->variants[i]);
        variants[i] = &messages[i].variant;
    }
    message.collection = text(options->collection);
    message.ids = (char **)options->ids;
    message.n_ids = options->id_count;
    message.question = bytes_of(options->question, options->question_bytes);
    message.raw = options->raw;
    message.query_tokens = tokens_of(&query, options->query_tokens, options->query_token_count);
    message.gold = bytes_of(options->gold, options->gold_bytes);
    message.gold_tokens = tokens_of(&gold, options->gold_tokens, options->gold_token_count);
    message.max_tokens = options->max_tokens;
    message.seed = options->seed;
    message.variants = variants;
    message.n_variants = n;
    if (messages && variants)
        status = samkv_client_submit(client, SAMKV_OPERATION_EVALUATE, &message.base, request, err);
    else
        status = samkv_fail(err, SAMKV_NO_MEMORY, "no memory for the request");
    free(messages);
    free(variants);
    return status;
}

enum samkv_status samkv_client_submit_ping(struct samkv_client *client, uint64_t *request, struct samkv_error *err)
{
    Samkv__PingRequest message = SAMKV__PING_REQUEST__INIT;
    return samkv_client_submit(client, SAMKV_OPERATION_PING, &message.base, request, err);
}

enum samkv_status samkv_client_submit_list(struct samkv_client *client, const char *collection, const char *after,
                                           uint32_t limit, uint64_t *request, struct samkv_error *err)
{
    Samkv__ListRequest message = SAMKV__LIST_REQUEST__INIT;
    message.collection = text(collection);
    message.after = text(after);
    message.limit = limit;
    return samkv_client_submit(client, SAMKV_OPERATION_LIST, &message.base, request, err);
}

enum samkv_status samkv_client_submit_list_collections(struct samkv_client *client, const char *after, uint32_t limit,
                                                       uint64_t *request, struct samkv_error *err)
{
    Samkv__ListRequest message = SAMKV__LIST_REQUEST__INIT;
    message.collections = true;
    message.after = text(after);
    message.limit = limit;
    return samkv_client_submit(client, SAMKV_OPERATION_LIST, &message.base, request, err);
}

enum samkv_status samkv_client_submit_show(struct samkv_client *client, const char *collection, const char *id,
                                           uint64_t *request, struct samkv_error *err)
{
    Samkv__ShowRequest message = SAMKV__SHOW_REQUEST__INIT;
    message.collection = text(collection);
    message.id = text(id);
    return samkv_client_submit(client, SAMKV_OPERATION_SHOW, &message.base, request, err);
}

enum samkv_status samkv_client_submit_remove(struct samkv_client *client, const char *collection,
                                             const char *const *ids, size_t count, uint64_t *request,
                                             struct samkv_error *err)
{
    Samkv__RemoveRequest message = SAMKV__REMOVE_REQUEST__INIT;
    message.collection = text(collection);
    message.ids = (char **)ids;
    message.n_ids = count;
    return samkv_client_submit(client, SAMKV_OPERATION_REMOVE, &message.base, request, err);
}

enum samkv_status samkv_client_submit_remove_collection(struct samkv_client *client, const char *collection,
                                                        uint64_t *request, struct samkv_error *err)
{
    Samkv__RemoveRequest message = SAMKV__REMOVE_REQUEST__INIT;
    message.collection = text(collection);
    message.all = true;
    return samkv_client_submit(client, SAMKV_OPERATION_REMOVE, &message.base, request, err);
}

enum samkv_status samkv_client_submit_pin(struct samkv_client *client, const char *collection, const char *const *ids,
                                          size_t count, bool pin, uint64_t *request, struct samkv_error *err)
{
    Samkv__PinRequest message = SAMKV__PIN_REQUEST__INIT;
    message.collection = text(collection);
    message.ids = (char **)ids;
    message.n_ids = count;
    message.unpin = !pin;
    return samkv_client_submit(client, SAMKV_OPERATION_PIN, &message.base, request, err);
}

enum samkv_status samkv_client_submit_configure(struct samkv_client *client, const char *collection,
                                                int64_t quota_bytes, int64_t ttl_s, uint64_t *request,
                                                struct samkv_error *err)
{
    Samkv__ConfigureRequest message = SAMKV__CONFIGURE_REQUEST__INIT;
    message.collection = text(collection);
    if (quota_bytes >= 0) {
        message.quota_given_case = SAMKV__CONFIGURE_REQUEST__QUOTA_GIVEN_QUOTA_BYTES;
        message.quota_bytes = (uint64_t)quota_bytes;
    }
    if (ttl_s >= 0) {
        message.ttl_given_case = SAMKV__CONFIGURE_REQUEST__TTL_GIVEN_TTL_S;
        message.ttl_s = (uint64_t)ttl_s;
    }
    return samkv_client_submit(client, SAMKV_OPERATION_CONFIGURE, &message.base, request, err);
}

enum samkv_status samkv_client_submit_share(struct samkv_client *client, const char *collection, int64_t group,
                                            int64_t mode, uint64_t *request, struct samkv_error *err)
{
    Samkv__ConfigureRequest message = SAMKV__CONFIGURE_REQUEST__INIT;
    message.collection = text(collection);
    SET_OPTIONAL(&message, group, SAMKV__CONFIGURE_REQUEST__GROUP_GIVEN_GROUP, group);
    SET_OPTIONAL(&message, mode, SAMKV__CONFIGURE_REQUEST__MODE_GIVEN_MODE, mode);
    return samkv_client_submit(client, SAMKV_OPERATION_CONFIGURE, &message.base, request, err);
}

enum samkv_status samkv_client_submit_gc(struct samkv_client *client, uint64_t *request, struct samkv_error *err)
{
    Samkv__GcRequest message = SAMKV__GC_REQUEST__INIT;
    return samkv_client_submit(client, SAMKV_OPERATION_GC, &message.base, request, err);
}

enum samkv_status samkv_client_submit_status(struct samkv_client *client, uint64_t *request, struct samkv_error *err)
{
    Samkv__StatusRequest message = SAMKV__STATUS_REQUEST__INIT;
    return samkv_client_submit(client, SAMKV_OPERATION_STATUS, &message.base, request, err);
}

enum samkv_status samkv_client_submit_status_quick(struct samkv_client *client, uint32_t max_age_ms, uint64_t *request,
                                                   struct samkv_error *err)
{
    Samkv__StatusRequest message = SAMKV__STATUS_REQUEST__INIT;
    message.max_age_ms = max_age_ms;
    message.histograms = true;
    return samkv_client_submit(client, SAMKV_OPERATION_STATUS, &message.base, request, err);
}

enum samkv_status samkv_client_submit_trace(struct samkv_client *client, uint64_t id, uint32_t limit, uint64_t *request,
                                            struct samkv_error *err)
{
    Samkv__TraceRequest message = SAMKV__TRACE_REQUEST__INIT;
    message.id = id;
    message.limit = limit;
    return samkv_client_submit(client, SAMKV_OPERATION_TRACE, &message.base, request, err);
}

enum samkv_status samkv_client_submit_verify(struct samkv_client *client, const char *collection, bool repair,
                                             uint64_t *request, struct samkv_error *err)
{
    Samkv__VerifyRequest message = SAMKV__VERIFY_REQUEST__INIT;
    message.collection = text(collection);
    message.repair = repair;
    return samkv_client_submit(client, SAMKV_OPERATION_VERIFY, &message.base, request, err);
}

static enum samkv_status submit_bundle(struct samkv_client *client, enum samkv_operation operation,
                                       const ProtobufCMessage *message, int fd, uint64_t *request,
                                       struct samkv_error *err)
{
    if (fd < 0)
        return samkv_fail(err, SAMKV_INVALID, "a bundle needs a descriptor to go to or come from: open one first");
    return samkv_client_submit_with(client, operation, message, fd, request, err);
}

enum samkv_status samkv_client_submit_export(struct samkv_client *client, const struct samkv_export_options *options,
                                             int fd, uint64_t *request, struct samkv_error *err)
{
    Samkv__ExportRequest message = SAMKV__EXPORT_REQUEST__INIT;
    message.collection = text(options->collection);
    message.after = text(options->after);
    message.resume = options->resume;
    return submit_bundle(client, SAMKV_OPERATION_EXPORT, &message.base, fd, request, err);
}

enum samkv_status samkv_client_submit_import(struct samkv_client *client, const struct samkv_import_options *options,
                                             int fd, uint64_t *request, struct samkv_error *err)
{
    Samkv__ImportRequest message = SAMKV__IMPORT_REQUEST__INIT;
    message.collection = text(options->collection);
    message.keep = options->keep;
    return submit_bundle(client, SAMKV_OPERATION_IMPORT, &message.base, fd, request, err);
}

enum samkv_status samkv_client_submit_compact(struct samkv_client *client, uint64_t *request, struct samkv_error *err)
{
    Samkv__CompactRequest message = SAMKV__COMPACT_REQUEST__INIT;
    return samkv_client_submit(client, SAMKV_OPERATION_COMPACT, &message.base, request, err);
}
