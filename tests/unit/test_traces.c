#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/net/traces.h"

static struct samkv_traces *traces;
static struct samkv_traced out[SAMKV_TRACES];

static void set_up(void)
{
    traces = samkv_traces_new();
    ck_assert_ptr_nonnull(traces);
}

static void tear_down(void)
{
    samkv_traces_free(traces);
}

static struct samkv_traced request(uint64_t id, uid_t uid)
{
    return (struct samkv_traced){.id = id, .client_id = 1, .type = 4, .peer = {.uid = uid}};
}

static void pass(uint64_t id, uid_t uid)
{
    struct samkv_traced r = request(id, uid);
    samkv_traces_begin(traces, &r);
    samkv_traces_end(traces, &r, SAMKV_OK, "");
}

START_TEST(the_newest_comes_first)
{
    ck_assert_uint_eq(samkv_traces_copy(traces, 0, -1, out, SAMKV_TRACES), 0);
    for (uint64_t id = 1; id <= 5; id++)
        pass(id, 0);
    ck_assert_uint_eq(samkv_traces_copy(traces, 0, -1, out, SAMKV_TRACES), 5);
    for (uint64_t i = 0; i < 5; i++)
        ck_assert_uint_eq(out[i].id, 5 - i);
    ck_assert_uint_eq(samkv_traces_copy(traces, 0, -1, out, 2), 2);
    ck_assert_uint_eq(out[1].id, 4);
    ck_assert_uint_eq(samkv_traces_copy(traces, 3, -1, out, SAMKV_TRACES), 1);
    ck_assert_uint_eq(out[0].id, 3);
    ck_assert_uint_eq(samkv_traces_copy(traces, 6, -1, out, SAMKV_TRACES), 0);
}
END_TEST

START_TEST(the_oldest_makes_room)
{
    for (uint64_t id = 1; id <= 3 * SAMKV_TRACES + 7; id++)
        pass(id, 0);
    ck_assert_uint_eq(samkv_traces_copy(traces, 0, -1, out, SAMKV_TRACES), SAMKV_TRACES);
    ck_assert_uint_eq(out[0].id, 3 * SAMKV_TRACES + 7);
    ck_assert_uint_eq(out[SAMKV_TRACES - 1].id, 2 * SAMKV_TRACES + 8);
    ck_assert_uint_eq(samkv_traces_copy(traces, 2 * SAMKV_TRACES + 7, -1, out, 1), 0);
}
END_TEST

START_TEST(what_runs_stays_listed)
{
    struct samkv_traced a = request(1, 0), b = request(2, 0);
    samkv_traces_begin(traces, &a);
    samkv_traces_begin(traces, &b);
    for (uint64_t id = 3; id <= SAMKV_TRACES + 10; id++)
        pass(id, 0);
    ck_assert_uint_eq(samkv_traces_copy(traces, 0, -1, out, SAMKV_TRACES), SAMKV_TRACES);
    ck_assert_uint_eq(out[0].id, 2);
    ck_assert_uint_eq(out[1].id, 1);
    ck_assert(out[1].running && out[1].ended_ms > 0);
    samkv_traces_end(traces, &a, SAMKV_BUSY, "too much");
    ck_assert_uint_eq(samkv_traces_copy(traces, 1, -1, out, 1), 1);
    ck_assert(!out[0].running);
    ck_assert_int_eq(out[0].status, SAMKV_BUSY);
    ck_assert_str_eq(out[0].error, "too much");
    samkv_traces_end(traces, &b, SAMKV_OK, "");
}
END_TEST

START_TEST(others_see_their_own)
{
    struct samkv_traced running = request(9, 1000);
    samkv_traces_begin(traces, &running);
    pass(1, 1000);
    pass(2, 1001);
    ck_assert_uint_eq(samkv_traces_copy(traces, 0, 1001, out, SAMKV_TRACES), 1);
    ck_assert_uint_eq(out[0].id, 2);
    ck_assert_uint_eq(samkv_traces_copy(traces, 2, 1000, out, SAMKV_TRACES), 0);
    ck_assert_uint_eq(samkv_traces_copy(traces, 0, 1000, out, SAMKV_TRACES), 2);
    samkv_traces_end(traces, &running, SAMKV_OK, "");
}
END_TEST

/* ------------------------------------------------------------------ what a message is about */

START_TEST(documents_of_a_fetch_and_of_an_ask)
{
    char *ids[SAMKV_TRACED_DOCUMENTS + 3];
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
        ids[i] = (char *)(i ? "later" : "first");
    Samkv__FetchRequest fetch = SAMKV__FETCH_REQUEST__INIT;
    Samkv__AskRequest ask = SAMKV__ASK_REQUEST__INIT;
    fetch.collection = (char *)"c";
    fetch.ids = ids;
    fetch.n_ids = sizeof ids / sizeof *ids;
    ask.fetch = &fetch;
    const ProtobufCMessage *messages[] = {&fetch.base, &ask.base};
    for (int i = 0; i < 2; i++) {
        struct samkv_traced r = request(1, 0);
        samkv_traces_describe(traces, &r, messages[i]);
        ck_assert_str_eq(r.collection, "c");
        ck_assert_uint_eq(r.document_count, SAMKV_TRACED_DOCUMENTS + 3);
        ck_assert_str_eq(r.documents[0], "first");
        ck_assert_str_eq(r.documents[SAMKV_TRACED_DOCUMENTS - 1], "later");
    }
}
END_TEST

START_TEST(a_document_of_an_ingest_and_none_of_a_status)
{
    Samkv__IngestRequest ingest = SAMKV__INGEST_REQUEST__INIT;
    Samkv__StatusRequest status = SAMKV__STATUS_REQUEST__INIT;
    Samkv__AskRequest empty = SAMKV__ASK_REQUEST__INIT;
    struct samkv_traced r = request(1, 0);
    ingest.id = (char *)"only";
    samkv_traces_describe(traces, &r, &ingest.base);
    ck_assert_uint_eq(r.document_count, 1);
    ck_assert_str_eq(r.documents[0], "only");
    samkv_traces_describe(traces, &r, &status.base);
    samkv_traces_describe(traces, &r, &empty.base);
    ck_assert_uint_eq(r.document_count, 0);
}
END_TEST

/* Names are cut between characters: what goes out is UTF-8. */
START_TEST(long_names_are_cut)
{
    char name[2 * SAMKV_TRACED_TEXT];
    Samkv__IngestRequest ingest = SAMKV__INGEST_REQUEST__INIT;
    ingest.id = name;
    for (size_t bytes = SAMKV_TRACED_TEXT - 4; bytes < SAMKV_TRACED_TEXT + 4; bytes++) {
        struct samkv_traced r = request(1, 0);
        memset(name, 'a', sizeof name);
        for (size_t i = bytes % 3; i + 3 < sizeof name; i += 3)
            memcpy(name + i, "€", 3);
        name[bytes - (bytes - bytes % 3) % 3] = 0;
        samkv_traces_describe(traces, &r, &ingest.base);
        size_t n = strlen(r.documents[0]);
        ck_assert_uint_lt(n, SAMKV_TRACED_TEXT);
        if (strlen(name) < SAMKV_TRACED_TEXT) {
            ck_assert_str_eq(r.documents[0], name);
        } else {
            ck_assert_str_eq(r.documents[0] + n - 3, "...");
            ck_assert_uint_eq((n - 3 - bytes % 3) % 3, 0);
        }
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("traces");
    TCase *tc = tcase_create("traces");
    tcase_add_checked_fixture(tc, set_up, tear_down);
    tcase_add_test(tc, the_newest_comes_first);
    tcase_add_test(tc, the_oldest_makes_room);
    tcase_add_test(tc, what_runs_stays_listed);
    tcase_add_test(tc, others_see_their_own);
    tcase_add_test(tc, documents_of_a_fetch_and_of_an_ask);
    tcase_add_test(tc, a_document_of_an_ingest_and_none_of_a_status);
    tcase_add_test(tc, long_names_are_cut);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
