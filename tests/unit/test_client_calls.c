/* Every blocking call: what the daemon gets to see, and what the caller gets back. */
#include "tests/unit/exchange_fixture.h"

/* ------------------------------------------------------------------ ingest */

static void check_ingest(const ProtobufCMessage *message)
{
    const Samkv__IngestRequest *m = (const Samkv__IngestRequest *)message;
    ck_assert_str_eq(m->collection, "");
    ck_assert_str_eq(m->id, "doc");
    ck_assert_str_eq(m->title, "A title");
    ck_assert_uint_eq(m->text.len, 0);
    ck_assert_uint_eq(m->tokens->n_ids, 3);
    ck_assert_int_eq(m->tokens->ids[2], INT32_MAX);
    ck_assert_uint_eq(m->chunk_tokens, 500);
    ck_assert(m->spec->has_preamble);
    ck_assert_uint_eq(m->spec->preamble_text.len, 4);
    ck_assert_ptr_null(m->spec->preamble_tokens);
    ck_assert_int_eq(m->spec->block_size_given_case, SAMKV__COLLECTION_SPEC__BLOCK_SIZE_GIVEN_BLOCK_SIZE);
    ck_assert_uint_eq(m->spec->block_size, 32);
    ck_assert_int_eq(m->spec->init_tokens_given_case, SAMKV__COLLECTION_SPEC__INIT_TOKENS_GIVEN_INIT_TOKENS);
    ck_assert_uint_eq(m->spec->init_tokens, 0);
    ck_assert_int_eq(m->spec->local_tokens_given_case, SAMKV__COLLECTION_SPEC__LOCAL_TOKENS_GIVEN__NOT_SET);
}

static void answer_ingest(struct fake_daemon *d, uint64_t id)
{
    Samkv__IngestedDocument one = SAMKV__INGESTED_DOCUMENT__INIT, two = SAMKV__INGESTED_DOCUMENT__INIT;
    Samkv__IngestedDocument *documents[] = {&one, &two};
    Samkv__IngestReply reply = SAMKV__INGEST_REPLY__INIT;
    one.id = (char *)"doc#1";
    one.tokens = 2;
    one.bytes_raw = 1ull << 40;
    one.bytes_stored = 7;
    two.id = (char *)"doc#2";
    two.skipped = true;
    reply.documents = documents;
    reply.n_documents = 2;
    reply.prefill_ms = 2.5;
    fake_reply(d, SAMKV_TYPE_INGEST, id, &reply.base);
}

START_TEST(ingest)
{
    static const struct exchange x = {SAMKV_TYPE_INGEST, &samkv__ingest_request__descriptor, check_ingest,
                                      answer_ingest};
    struct fake_daemon d;
    struct samkv_client *client = exchange_begin(&d, &x);
    const int32_t tokens[] = {0, 1, INT32_MAX};
    struct samkv_document document;
    struct samkv_reply reply;
    samkv_document_init(&document);
    document.id = "doc";
    document.title = "A title";
    document.tokens = tokens;
    document.token_count = 3;
    document.chunk_tokens = 500;
    document.spec.has_preamble = true;
    document.spec.preamble = "<s>\n";
    document.spec.preamble_bytes = 4;
    document.spec.block_tokens = 32;
    document.spec.init_tokens = 0;
    ck_assert_int_eq(samkv_client_ingest(client, &document, &reply, NULL), SAMKV_OK);
    const struct samkv_ingest_answer *a = &reply.answer.ingest;
    ck_assert_uint_eq(a->count, 2);
    ck_assert_str_eq(a->documents[0].id, "doc#1");
    ck_assert_uint_eq(a->documents[0].bytes_raw, 1ull << 40);
    ck_assert_uint_eq(a->documents[0].bytes_stored, 7);
    ck_assert(!a->documents[0].skipped && a->documents[1].skipped);
    ck_assert(a->prefill_ms == 2.5);
    samkv_reply_deinit(&reply);
    fake_end(&d, client);
}
END_TEST

/* ------------------------------------------------------------------ fetch: the request; its answer has its own test */

static void check_fetch(const ProtobufCMessage *message)
{
    const Samkv__FetchRequest *m = (const Samkv__FetchRequest *)message;
    ck_assert_str_eq(m->collection, "c");
    ck_assert_uint_eq(m->n_ids, 2);
    ck_assert_str_eq(m->ids[1], "b");
    ck_assert_uint_eq(m->query_text.len, 0);
    ck_assert_uint_eq(m->query_tokens->n_ids, 1);
    ck_assert_int_eq(m->ratio_given_case, SAMKV__FETCH_REQUEST__RATIO_GIVEN_RATIO);
    ck_assert(m->ratio == 0); /* a mistake, but the caller's: it must arrive as it is */
    ck_assert_int_eq(m->selection, SAMKV__SELECTION__FIXED);
    ck_assert_uint_eq(m->n_stable_layers, 2);
    ck_assert_uint_eq(m->stable_layers[1], 3);
    ck_assert_int_eq(m->init_tokens_given_case, SAMKV__FETCH_REQUEST__INIT_TOKENS_GIVEN__NOT_SET);
    ck_assert_int_eq(m->local_tokens_given_case, SAMKV__FETCH_REQUEST__LOCAL_TOKENS_GIVEN_LOCAL_TOKENS);
    ck_assert_uint_eq(m->local_tokens, UINT32_MAX); /* capped */
    ck_assert_int_eq(m->update, SAMKV__UPDATE__THETA);
    ck_assert(m->theta == 0.5);
    ck_assert(m->no_recompute && m->with_query);
    ck_assert_int_eq(m->positions, SAMKV__POSITIONS__COMPACT);
}

static void answer_not_found(struct fake_daemon *d, uint64_t id)
{
    fake_error(d, SAMKV_TYPE_FETCH, id, SAMKV_NOT_FOUND, "no document b in collection c");
}

START_TEST(fetch_request_and_error)
{
    static const struct exchange x = {SAMKV_TYPE_FETCH, &samkv__fetch_request__descriptor, check_fetch,
                                      answer_not_found};
    struct fake_daemon d;
    struct samkv_client *client = exchange_begin(&d, &x);
    static const char *const ids[] = {"a", "b"};
    const int32_t query[] = {5};
    const uint32_t layers[] = {2, 3};
    struct samkv_fetch_options o;
    struct samkv_cache *cache;
    struct samkv_error err;
    samkv_fetch_options_init(&o);
    ck_assert(o.ratio == -1);
    o.collection = "c";
    o.ids = ids, o.id_count = 2;
    o.query_tokens = query, o.query_token_count = 1;
    o.ratio = 0;
    o.selection = SAMKV_FETCH_FIXED;
    o.stable_layers = layers, o.stable_layer_count = 2;
    o.local_tokens = INT64_MAX;
    o.update = SAMKV_FETCH_THETA, o.theta = 0.5;
    o.no_recompute = o.with_query = true;
    o.positions = SAMKV_FETCH_COMPACT;
    ck_assert_int_eq(samkv_client_fetch(client, &o, &cache, &err), SAMKV_NOT_FOUND);
    ck_assert_ptr_null(cache);
    ck_assert_int_eq(err.status, SAMKV_NOT_FOUND);
    ck_assert_str_eq(err.text, "no document b in collection c");
    ck_assert_int_eq(samkv_client_ping(client, NULL), SAMKV_OK);
    fake_end(&d, client);
}
END_TEST

/* ------------------------------------------------------------------ ask */

static void send_text(struct fake_daemon *d, uint64_t id, const char *text)
{
    Samkv__AskReply piece = SAMKV__ASK_REPLY__INIT;
    piece.text.data = (uint8_t *)text;
    piece.text.len = strlen(text);
    fake_send(d, SAMKV_TYPE_ASK, SAMKV_FLAG_REPLY | SAMKV_FLAG_MORE, id, &piece.base, -1);
}

static void answer_ask(struct fake_daemon *d, uint64_t id)
{
    Samkv__AskReply last = SAMKV__ASK_REPLY__INIT;
    Samkv__FetchReply figures = SAMKV__FETCH_REPLY__INIT;
    double top_p[] = {0.5};
    uint32_t document_tokens[] = {9};
    Samkv__Kept kept = SAMKV__KEPT__INIT, *keep[] = {&kept};
    send_text(d, id, "Alan ");
    send_text(d, id, "Turing");
    last.text.data = (uint8_t *)".";
    last.text.len = 1;
    last.answer_tokens = 3;
    last.prompt_tokens = 40;
    last.first_token_ms = 1;
    last.total_ms = 2;
    last.fetch = &figures;
    figures.top_p = top_p, figures.n_top_p = 1;
    figures.document_tokens = document_tokens, figures.n_document_tokens = 1;
    figures.keep = keep, figures.n_keep = 1;
    figures.kept_tokens = 4;
    fake_reply(d, SAMKV_TYPE_ASK, id, &last.base);
}

static void check_ask(const ProtobufCMessage *message)
{
    const Samkv__AskRequest *m = (const Samkv__AskRequest *)message;
    ck_assert_uint_eq(m->question.len, 4);
    ck_assert_int_eq(m->method, SAMKV__METHOD__REUSE);
    ck_assert_uint_eq(m->max_tokens, 9);
    ck_assert(m->raw);
    ck_assert_int_eq(m->fetch->ratio_given_case, SAMKV__FETCH_REQUEST__RATIO_GIVEN__NOT_SET);
}

static const struct exchange ask_exchange = {SAMKV_TYPE_ASK, &samkv__ask_request__descriptor, check_ask, answer_ask};

static void fill_question(struct samkv_ask_options *o)
{
    samkv_ask_options_init(o);
    o->question = "Who?", o->question_bytes = 4;
    o->method = SAMKV_METHOD_REUSE;
    o->max_tokens = 9;
    o->raw = true;
}

struct collected {
    char text[64];
    int calls, stop_after;
};

static bool collect(void *arg, const char *text, size_t bytes)
{
    struct collected *c = arg;
    strncat(c->text, text, bytes);
    return ++c->calls != c->stop_after;
}

START_TEST(ask_streams)
{
    struct fake_daemon d;
    struct samkv_client *client = exchange_begin(&d, &ask_exchange);
    struct samkv_ask_options o;
    struct samkv_reply reply;
    struct collected c = {0};
    fill_question(&o);
    ck_assert_int_eq(samkv_client_ask(client, &o, collect, &c, &reply, NULL), SAMKV_OK);
    ck_assert_str_eq(c.text, "Alan Turing.");
    ck_assert_int_eq(c.calls, 3);
    ck_assert_uint_eq(reply.answer.ask.answer_tokens, 3);
    ck_assert_uint_eq(reply.answer.ask.prompt_tokens, 40);
    ck_assert_uint_eq(reply.answer.ask.figures->kept_tokens, 4);
    ck_assert_uint_eq(reply.answer.ask.figures->document_tokens[0], 9);
    samkv_reply_deinit(&reply);
    fake_end(&d, client);
}
END_TEST

START_TEST(ask_is_stopped_by_the_caller)
{
    struct fake_daemon d;
    struct samkv_client *client = exchange_begin(&d, &ask_exchange);
    struct samkv_ask_options o;
    struct samkv_reply reply;
    struct samkv_error err;
    struct collected c = {.stop_after = 1};
    fill_question(&o);
    ck_assert_int_eq(samkv_client_ask(client, &o, collect, &c, &reply, &err), SAMKV_CANCELLED);
    ck_assert_str_eq(c.text, "Alan ");
    ck_assert_int_eq(samkv_client_ping(client, NULL), SAMKV_OK); /* what still came was dropped */
    ck_assert(!samkv_client_next(client, &reply));
    fake_end(&d, client);
}
END_TEST

static void fail_in_the_middle(struct fake_daemon *d, uint64_t id)
{
    send_text(d, id, "Alan ");
    fake_error(d, SAMKV_TYPE_ASK, id, SAMKV_DEVICE, "the device failed");
}

START_TEST(ask_fails_in_the_middle)
{
    static const struct exchange x = {SAMKV_TYPE_ASK, &samkv__ask_request__descriptor, check_ask, fail_in_the_middle};
    struct fake_daemon d;
    struct samkv_client *client = exchange_begin(&d, &x);
    struct samkv_ask_options o;
    struct samkv_reply reply;
    struct samkv_error err;
    struct collected c = {0};
    fill_question(&o);
    ck_assert_int_eq(samkv_client_ask(client, &o, collect, &c, &reply, &err), SAMKV_DEVICE);
    ck_assert_str_eq(err.text, "the device failed");
    ck_assert_str_eq(c.text, "Alan ");
    samkv_reply_deinit(&reply); /* nothing to free, and no harm */
    fake_end(&d, client);
}
END_TEST

/* ------------------------------------------------------------------ list, show, remove */

static void check_list(const ProtobufCMessage *message)
{
    const Samkv__ListRequest *m = (const Samkv__ListRequest *)message;
    ck_assert_str_eq(m->collection, "c");
    ck_assert_str_eq(m->after, "m");
    ck_assert_uint_eq(m->limit, 5);
    ck_assert(!m->collections);
}

static void answer_list(struct fake_daemon *d, uint64_t id)
{
    Samkv__Document document = SAMKV__DOCUMENT__INIT, *documents[] = {&document};
    Samkv__Collection collection = SAMKV__COLLECTION__INIT, *collections[] = {&collection};
    Samkv__ListReply reply = SAMKV__LIST_REPLY__INIT;
    document.id = (char *)"n";
    document.created_unix_s = 1700000000;
    document.bytes_index = 3;
    collection.name = (char *)"c";
    collection.block_size = 16;
    reply.documents = documents, reply.n_documents = 1;
    reply.collections = collections, reply.n_collections = 1;
    reply.more = true;
    fake_reply(d, SAMKV_TYPE_LIST, id, &reply.base);
}

START_TEST(list)
{
    static const struct exchange x = {SAMKV_TYPE_LIST, &samkv__list_request__descriptor, check_list, answer_list};
    struct fake_daemon d;
    struct samkv_client *client = exchange_begin(&d, &x);
    struct samkv_reply reply;
    ck_assert_int_eq(samkv_client_list(client, "c", "m", 5, &reply, NULL), SAMKV_OK);
    const struct samkv_list_answer *a = &reply.answer.list;
    ck_assert_uint_eq(a->document_count, 1);
    ck_assert_str_eq(a->documents[0].id, "n");
    ck_assert_int_eq(a->documents[0].created_unix_s, 1700000000);
    ck_assert_uint_eq(a->documents[0].bytes_index, 3);
    ck_assert_uint_eq(a->collection_count, 1);
    ck_assert_uint_eq(a->collections[0].block_tokens, 16);
    ck_assert(a->more);
    samkv_reply_deinit(&reply);
    fake_end(&d, client);
}
END_TEST

static void answer_show(struct fake_daemon *d, uint64_t id)
{
    Samkv__Document document = SAMKV__DOCUMENT__INIT;
    Samkv__Collection collection = SAMKV__COLLECTION__INIT;
    Samkv__ShowReply reply = SAMKV__SHOW_REPLY__INIT;
    reply.document = &document;
    reply.collection = &collection;
    reply.text.data = (uint8_t *)"some text";
    reply.text.len = 4;
    fake_reply(d, SAMKV_TYPE_SHOW, id, &reply.base);
}

START_TEST(show)
{
    static const struct exchange x = {SAMKV_TYPE_SHOW, &samkv__show_request__descriptor, NULL, answer_show};
    struct fake_daemon d;
    struct samkv_client *client = exchange_begin(&d, &x);
    struct samkv_reply reply;
    ck_assert_int_eq(samkv_client_show(client, NULL, "n", &reply, NULL), SAMKV_OK);
    ck_assert_uint_eq(reply.answer.show.text_bytes, 4);
    ck_assert_str_eq(reply.answer.show.text, "some");
    ck_assert_str_eq(reply.answer.show.document.title, "");
    samkv_reply_deinit(&reply);
    fake_end(&d, client);
}
END_TEST

static void answer_show_without_document(struct fake_daemon *d, uint64_t id)
{
    fake_reply(d, SAMKV_TYPE_SHOW, id, NULL);
}

START_TEST(show_without_document)
{
    static const struct exchange x = {SAMKV_TYPE_SHOW, &samkv__show_request__descriptor, NULL,
                                      answer_show_without_document};
    struct fake_daemon d;
    struct samkv_client *client = exchange_begin(&d, &x);
    struct samkv_reply reply;
    ck_assert_int_eq(samkv_client_show(client, NULL, "n", &reply, NULL), SAMKV_PROTOCOL);
    fake_end(&d, client);
}
END_TEST

static void answer_remove(struct fake_daemon *d, uint64_t id)
{
    char *missing[] = {(char *)"y"};
    Samkv__RemoveReply reply = SAMKV__REMOVE_REPLY__INIT;
    reply.removed = 1;
    reply.missing = missing, reply.n_missing = 1;
    fake_reply(d, SAMKV_TYPE_REMOVE, id, &reply.base);
}

static void check_remove(const ProtobufCMessage *message)
{
    const Samkv__RemoveRequest *m = (const Samkv__RemoveRequest *)message;
    ck_assert_uint_eq(m->n_ids, 2);
    ck_assert_str_eq(m->ids[0], "x");
}

START_TEST(removal)
{
    static const struct exchange x = {SAMKV_TYPE_REMOVE, &samkv__remove_request__descriptor, check_remove,
                                      answer_remove};
    static const char *const ids[] = {"x", "y"};
    struct fake_daemon d;
    struct samkv_client *client = exchange_begin(&d, &x);
    struct samkv_reply reply;
    ck_assert_int_eq(samkv_client_remove(client, NULL, ids, 2, &reply, NULL), SAMKV_OK);
    ck_assert_uint_eq(reply.answer.remove.removed, 1);
    ck_assert_uint_eq(reply.answer.remove.missing_count, 1);
    ck_assert_str_eq(reply.answer.remove.missing[0], "y");
    samkv_reply_deinit(&reply);
    fake_end(&d, client);
}
END_TEST

/* ------------------------------------------------------------------ status, verify */

static void answer_status(struct fake_daemon *d, uint64_t id)
{
    Samkv__ModelStatus model = SAMKV__MODEL_STATUS__INIT, *models[] = {&model};
    Samkv__Counter counter = SAMKV__COUNTER__INIT, *counters[] = {&counter};
    Samkv__StatusReply reply = SAMKV__STATUS_REPLY__INIT;
    model.name = (char *)"m";
    model.weight_bytes = 5ull << 32;
    counter.name = (char *)"fetches";
    counter.value = 4.5;
    reply.models = models, reply.n_models = 1;
    reply.counters = counters, reply.n_counters = 1;
    reply.resident_bytes = 6ull << 32;
    fake_reply(d, SAMKV_TYPE_STATUS, id, &reply.base);
}

START_TEST(status_of_the_daemon)
{
    static const struct exchange x = {SAMKV_TYPE_STATUS, &samkv__status_request__descriptor, NULL, answer_status};
    struct fake_daemon d;
    struct samkv_client *client = exchange_begin(&d, &x);
    struct samkv_reply reply;
    ck_assert_str_eq(samkv_client_server(client), "fake/1");
    ck_assert_int_eq(samkv_client_status(client, &reply, NULL), SAMKV_OK);
    const struct samkv_status_answer *s = &reply.answer.status;
    ck_assert_uint_eq(s->model_count, 1);
    ck_assert_uint_eq(s->models[0].weight_bytes, 5ull << 32);
    ck_assert_uint_eq(s->counter_count, 1);
    ck_assert(s->counters[0].value == 4.5);
    ck_assert_uint_eq(s->resident_bytes, 6ull << 32);
    samkv_reply_deinit(&reply);
    fake_end(&d, client);
}
END_TEST

static void answer_verify(struct fake_daemon *d, uint64_t id)
{
    char *damaged[] = {(char *)"c/x"};
    Samkv__VerifyReply progress = SAMKV__VERIFY_REPLY__INIT, last = SAMKV__VERIFY_REPLY__INIT;
    progress.documents_total = 3;
    for (progress.documents = 1; progress.documents < 3; progress.documents++)
        fake_send(d, SAMKV_TYPE_VERIFY, SAMKV_FLAG_REPLY | SAMKV_FLAG_MORE, id, &progress.base, -1);
    last.documents = 3;
    last.damaged = 1;
    last.damaged_ids = damaged, last.n_damaged_ids = 1;
    fake_reply(d, SAMKV_TYPE_VERIFY, id, &last.base);
}

static bool count_progress(void *arg, const struct samkv_verify_answer *v)
{
    return v->documents == (uint64_t)++ * (int *)arg && v->documents_total == 3;
}

START_TEST(verify)
{
    static const struct exchange x = {SAMKV_TYPE_VERIFY, &samkv__verify_request__descriptor, NULL, answer_verify};
    struct fake_daemon d;
    struct samkv_client *client = exchange_begin(&d, &x);
    struct samkv_reply reply;
    int calls = 0;
    ck_assert_int_eq(samkv_client_verify(client, NULL, true, count_progress, &calls, &reply, NULL), SAMKV_OK);
    ck_assert_int_eq(calls, 2);
    ck_assert_uint_eq(reply.answer.verify.documents, 3);
    ck_assert_uint_eq(reply.answer.verify.damaged, 1);
    ck_assert_str_eq(reply.answer.verify.damaged_ids[0], "c/x");
    samkv_reply_deinit(&reply);
    fake_end(&d, client);
}
END_TEST

/* ------------------------------------------------------------------ bundles */

/* As exchange_one, but for the descriptor: it says through it that it came. */
static void exchange_descriptor(struct fake_daemon *d)
{
    struct samkv_frame frame;
    struct samkv_fds fds;
    uint8_t header[SAMKV_FRAME_HEADER_BYTES], payload[100];
    Samkv__BundleReply progress = SAMKV__BUNDLE_REPLY__INIT, last = SAMKV__BUNDLE_REPLY__INIT;
    fake_greet(d);
    ck_assert_int_eq(samkv_socket_receive(d->socket, header, sizeof header, &fds), (ssize_t)sizeof header);
    ck_assert_int_eq(fds.count, 1);
    ck_assert_int_eq(samkv_frame_decode(header, &frame), SAMKV_OK);
    ck_assert_uint_eq(frame.flags, 0);
    ck_assert(fake_read(d->socket, payload, frame.payload_bytes));
    if (frame.type == SAMKV_TYPE_EXPORT) {
        Samkv__ExportRequest *m = samkv__export_request__unpack(NULL, frame.payload_bytes, payload);
        ck_assert_str_eq(m->collection, "wiki");
        ck_assert_str_eq(m->after, "m");
        samkv__export_request__free_unpacked(m, NULL);
    } else {
        ck_assert_uint_eq(frame.type, SAMKV_TYPE_IMPORT);
        Samkv__ImportRequest *m = samkv__import_request__unpack(NULL, frame.payload_bytes, payload);
        ck_assert_str_eq(m->collection, "");
        ck_assert(m->keep);
        samkv__import_request__free_unpacked(m, NULL);
    }
    ck_assert_int_eq(write(fds.fd[0], "came", 4), 4);
    samkv_fds_close(&fds);
    progress.names_total = 3;
    for (progress.names = 1; progress.names < 3; progress.names++)
        fake_send(d, frame.type, SAMKV_FLAG_REPLY | SAMKV_FLAG_MORE, frame.request_id, &progress.base, -1);
    last.collection = "wiki", last.last_id = "z";
    last.names = 3, last.documents = 2, last.bytes = 1ull << 40, last.skipped = 1, last.kept = 4, last.replaced = 5;
    fake_reply(d, frame.type, frame.request_id, &last.base);
    fake_serve_pings(d);
}

static bool count_names(void *arg, const struct samkv_bundle_answer *b)
{
    return b->names == (uint64_t)++ * (int *)arg && b->names_total == 3;
}

START_TEST(bundles)
{
    struct fake_daemon d = {0};
    int before = fake_open_descriptors(), ends[2], calls = 0;
    struct samkv_client *client = fake_connect(&d, exchange_descriptor);
    struct samkv_reply reply;
    char text[8] = "";
    ck_assert_int_eq(pipe(ends), 0);
    const struct samkv_export_options export = {.collection = "wiki", .after = "m"};
    const struct samkv_import_options import = {.keep = true};
    ck_assert_int_eq(_i ? samkv_client_import(client, &import, ends[1], count_names, &calls, &reply, NULL)
                        : samkv_client_export(client, &export, ends[1], count_names, &calls, &reply, NULL),
                     SAMKV_OK);
    ck_assert_int_eq(calls, 2);
    const struct samkv_bundle_answer *b = &reply.answer.bundle;
    ck_assert_str_eq(b->collection, "wiki");
    ck_assert_str_eq(b->last_id, "z");
    ck_assert(b->names == 3 && b->documents == 2 && b->bytes == 1ull << 40);
    ck_assert(b->skipped == 1 && b->kept == 4 && b->replaced == 5);
    samkv_reply_deinit(&reply);
    ck_assert_int_ge(fcntl(ends[1], F_GETFD), 0); /* it stays the caller's */
    close(ends[1]);
    ck_assert_int_eq(read(ends[0], text, sizeof text), 4); /* and nobody else has it any more */
    ck_assert_int_eq(read(ends[0], text, sizeof text), 0);
    close(ends[0]);
    ck_assert_int_ne(samkv_client_export(client, &export, -1, NULL, NULL, NULL, NULL), SAMKV_OK);
    fake_end(&d, client);
    ck_assert_int_eq(fake_open_descriptors(), before);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("client_calls");
    TCase *calls = tcase_create("calls");
    tcase_add_test(calls, ingest);
    tcase_add_test(calls, fetch_request_and_error);
    tcase_add_test(calls, ask_streams);
    tcase_add_test(calls, ask_is_stopped_by_the_caller);
    tcase_add_test(calls, ask_fails_in_the_middle);
    tcase_add_test(calls, list);
    tcase_add_test(calls, show);
    tcase_add_test(calls, show_without_document);
    tcase_add_test(calls, removal);
    tcase_add_test(calls, status_of_the_daemon);
    tcase_add_test(calls, verify);
    tcase_add_loop_test(calls, bundles, 0, 2);
    suite_add_tcase(suite, calls);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
