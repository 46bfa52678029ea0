/* The calls about limits: pins, quotas and times to live, whole collections, garbage. */
#include "tests/unit/exchange_fixture.h"

static void check_pin(const ProtobufCMessage *message)
{
    const Samkv__PinRequest *m = (const Samkv__PinRequest *)message;
    ck_assert_str_eq(m->collection, "c");
    ck_assert_uint_eq(m->n_ids, 2);
    ck_assert_str_eq(m->ids[1], "y");
    ck_assert(m->unpin);
}

static void answer_pin(struct fake_daemon *d, uint64_t id)
{
    char *missing[] = {(char *)"y"};
    Samkv__PinReply reply = SAMKV__PIN_REPLY__INIT;
    reply.pinned = 1;
    reply.missing = missing, reply.n_missing = 1;
    fake_reply(d, SAMKV_TYPE_PIN, id, &reply.base);
}

START_TEST(pin)
{
    static const struct exchange x = {SAMKV_TYPE_PIN, &samkv__pin_request__descriptor, check_pin, answer_pin};
    static const char *const ids[] = {"x", "y"};
    struct fake_daemon d;
    struct samkv_client *client = exchange_begin(&d, &x);
    struct samkv_reply reply;
    ck_assert_int_eq(samkv_client_pin(client, "c", ids, 2, false, &reply, NULL), SAMKV_OK);
    ck_assert_uint_eq(reply.answer.pin.pinned, 1);
    ck_assert_uint_eq(reply.answer.pin.missing_count, 1);
    ck_assert_str_eq(reply.answer.pin.missing[0], "y");
    samkv_reply_deinit(&reply);
    fake_end(&d, client);
}
END_TEST

static void check_configure(const ProtobufCMessage *message)
{
    const Samkv__ConfigureRequest *m = (const Samkv__ConfigureRequest *)message;
    ck_assert_int_eq(m->quota_given_case, SAMKV__CONFIGURE_REQUEST__QUOTA_GIVEN_QUOTA_BYTES);
    ck_assert_uint_eq(m->quota_bytes, 5ull << 40);
    ck_assert_int_eq(m->ttl_given_case, SAMKV__CONFIGURE_REQUEST__TTL_GIVEN__NOT_SET);
}

static void answer_configure(struct fake_daemon *d, uint64_t id)
{
    Samkv__Collection collection = SAMKV__COLLECTION__INIT;
    Samkv__ConfigureReply reply = SAMKV__CONFIGURE_REPLY__INIT;
    collection.quota_bytes = 5ull << 40;
    collection.ttl_s = 77;
    reply.collection = &collection;
    reply.evicted = 3;
    fake_reply(d, SAMKV_TYPE_CONFIGURE, id, &reply.base);
}

START_TEST(configure)
{
    static const struct exchange x = {SAMKV_TYPE_CONFIGURE, &samkv__configure_request__descriptor, check_configure,
                                      answer_configure};
    struct fake_daemon d;
    struct samkv_client *client = exchange_begin(&d, &x);
    struct samkv_reply reply;
    ck_assert_int_eq(samkv_client_configure(client, "c", 5ll << 40, -1, &reply, NULL), SAMKV_OK);
    ck_assert_uint_eq(reply.answer.configure.collection.quota_bytes, 5ull << 40);
    ck_assert_uint_eq(reply.answer.configure.collection.ttl_s, 77);
    ck_assert_uint_eq(reply.answer.configure.evicted, 3);
    samkv_reply_deinit(&reply);
    fake_end(&d, client);
}
END_TEST

static void answer_empty_configure(struct fake_daemon *d, uint64_t id)
{
    Samkv__ConfigureReply reply = SAMKV__CONFIGURE_REPLY__INIT;
    fake_reply(d, SAMKV_TYPE_CONFIGURE, id, &reply.base);
}

START_TEST(configure_without_collection)
{
    static const struct exchange x = {SAMKV_TYPE_CONFIGURE, &samkv__configure_request__descriptor, NULL,
                                      answer_empty_configure};
    struct fake_daemon d;
    struct samkv_client *client = exchange_begin(&d, &x);
    ck_assert_int_eq(samkv_client_configure(client, "c", 0, 0, NULL, NULL), SAMKV_PROTOCOL);
    fake_end(&d, client);
}
END_TEST

static void check_remove_all(const ProtobufCMessage *message)
{
    const Samkv__RemoveRequest *m = (const Samkv__RemoveRequest *)message;
    ck_assert(m->all);
    ck_assert_uint_eq(m->n_ids, 0);
    ck_assert_str_eq(m->collection, "c");
}

static void answer_remove_all(struct fake_daemon *d, uint64_t id)
{
    Samkv__RemoveReply reply = SAMKV__REMOVE_REPLY__INIT;
    for (reply.removed = 1; reply.removed < 3; reply.removed++)
        fake_send(d, SAMKV_TYPE_REMOVE, SAMKV_FLAG_REPLY | SAMKV_FLAG_MORE, id, &reply.base, -1);
    fake_reply(d, SAMKV_TYPE_REMOVE, id, &reply.base);
}

static bool count_removed(void *arg, const struct samkv_remove_answer *a)
{
    return a->removed == (uint32_t)++ * (int *)arg;
}

START_TEST(remove_collection)
{
    static const struct exchange x = {SAMKV_TYPE_REMOVE, &samkv__remove_request__descriptor, check_remove_all,
                                      answer_remove_all};
    struct fake_daemon d;
    struct samkv_client *client = exchange_begin(&d, &x);
    struct samkv_reply reply;
    int calls = 0;
    ck_assert_int_eq(samkv_client_remove_collection(client, "c", count_removed, &calls, &reply, NULL), SAMKV_OK);
    ck_assert_int_eq(calls, 2);
    ck_assert_uint_eq(reply.answer.remove.removed, 3);
    samkv_reply_deinit(&reply);
    fake_end(&d, client);
}
END_TEST

static void answer_gc(struct fake_daemon *d, uint64_t id)
{
    Samkv__GcReply reply = SAMKV__GC_REPLY__INIT;
    for (reply.names_expired = 1; reply.names_expired < 3; reply.names_expired++)
        fake_send(d, SAMKV_TYPE_GC, SAMKV_FLAG_REPLY | SAMKV_FLAG_MORE, id, &reply.base, -1);
    reply.bytes_freed = 7ull << 33;
    fake_reply(d, SAMKV_TYPE_GC, id, &reply.base);
}

static bool count_expired(void *arg, const struct samkv_gc_answer *g)
{
    return g->names_expired == (uint64_t)++ * (int *)arg && *(int *)arg < 100;
}

START_TEST(gc)
{
    static const struct exchange x = {SAMKV_TYPE_GC, &samkv__gc_request__descriptor, NULL, answer_gc};
    struct fake_daemon d;
    struct samkv_client *client = exchange_begin(&d, &x);
    struct samkv_reply reply;
    int calls = 0;
    ck_assert_int_eq(samkv_client_gc(client, count_expired, &calls, &reply, NULL), SAMKV_OK);
    ck_assert_int_eq(calls, 2);
    ck_assert_uint_eq(reply.answer.gc.names_expired, 3);
    ck_assert_uint_eq(reply.answer.gc.bytes_freed, 7ull << 33);
    samkv_reply_deinit(&reply);
    calls = 100; /* the caller has enough */
    fake_end(&d, client);
    client = exchange_begin(&d, &x);
    ck_assert_int_eq(samkv_client_gc(client, count_expired, &calls, NULL, NULL), SAMKV_CANCELLED);
    fake_end(&d, client);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("client_limits");
    TCase *calls = tcase_create("limits");
    tcase_add_test(calls, pin);
    tcase_add_test(calls, configure);
    tcase_add_test(calls, configure_without_collection);
    tcase_add_test(calls, remove_collection);
    tcase_add_test(calls, gc);
    suite_add_tcase(suite, calls);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
