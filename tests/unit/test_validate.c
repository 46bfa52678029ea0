#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/fetch/fetch.h"
#include "daemon/fetch/evaluate.h"
#include "daemon/net/validate.h"
#include "daemon/store/store.h"

static struct samkv_error err;

/* INVALID, with one line that has these words. */
static void expect_invalid(enum samkv_status st, const char *words)
{
    ck_assert_int_eq(st, SAMKV_INVALID);
    ck_assert_msg(strstr(err.text, words) != NULL, "'%s' is not in: %s", words, err.text);
    ck_assert_ptr_null(strchr(err.text, '\n'));
}

START_TEST(names)
{
    char name[300];
    const char *const good[] = {"a", "docs/\xc3\xa4\xe2\x82\xac.txt", "with space", "\xf0\x9f\x98\x80", "a#1", "../x"};
    const char *const control[] = {"a\nb", "\x01", "tab\t", "\x7f", "\xc2\x85", "end\x1b"};
    const char *const broken[] = {"\xff", "\xc3", "\xc0\xaf", "\xed\xa0\x80", "\xf5\x80\x80\x80", "ok\xe2\x82"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        ck_assert_msg(samkv_check_name(good[i], "document id", &err) == SAMKV_OK, "%s", err.text);
    for (size_t i = 0; i < sizeof control / sizeof *control; i++)
        expect_invalid(samkv_check_name(control[i], "document id", &err), "document id has a control character");
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++)
        expect_invalid(samkv_check_name(broken[i], "document id", &err), "document id is not valid UTF-8");
    expect_invalid(samkv_check_name("", "document id", &err), "0 bytes");
    memset(name, 'x', sizeof name);
    name[SAMKV_ID_MAX_BYTES] = 0;
    ck_assert_int_eq(samkv_check_name(name, "document id", &err), SAMKV_OK);
    name[SAMKV_ID_MAX_BYTES] = 'x';
    name[SAMKV_ID_MAX_BYTES + 1] = 0;
    expect_invalid(samkv_check_name(name, "document id", &err), "256 bytes");
    ck_assert_int_eq(samkv_check_collection("", &err), SAMKV_OK);
    expect_invalid(samkv_check_collection("\n", &err), "collection name");
}
END_TEST

START_TEST(numbers_of_ids)
{
    static char *ids[10000];
    for (size_t i = 0; i < 10000; i++)
        ids[i] = "x";
    ck_assert_int_eq(samkv_check_ids(ids, SAMKV_MAX_DOCUMENTS, &err), SAMKV_OK);
    expect_invalid(samkv_check_ids(ids, SAMKV_MAX_DOCUMENTS + 1, &err), "4097 documents in one request are too many");
    expect_invalid(samkv_check_ids(ids, 10000, &err), "10000 documents");
    expect_invalid(samkv_check_ids(ids, 0, &err), "no document ids");
    ids[2000] = "\xff";
    expect_invalid(samkv_check_ids(ids, 3000, &err), "UTF-8");
}
END_TEST

static char *one_id[] = {"doc"};
static int32_t some_tokens[] = {1, 2, 3};

static Samkv__FetchRequest good_fetch(void)
{
    Samkv__FetchRequest m = SAMKV__FETCH_REQUEST__INIT;
    m.ids = one_id;
    m.n_ids = 1;
    m.query_text.data = (uint8_t *)"q";
    m.query_text.len = 1;
    return m;
}

START_TEST(ratio)
{
    Samkv__FetchRequest m = good_fetch();
    const double bad[] = {0, -0.0, -1, 1.0000001, 2, INFINITY, -INFINITY, NAN}, good[] = {1, 0.15, 1e-300};
    ck_assert_int_eq(samkv_check_fetch(&m.base, &err), SAMKV_OK); /* none: the default */
    m.ratio_given_case = SAMKV__FETCH_REQUEST__RATIO_GIVEN_RATIO;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        m.ratio = bad[i];
        expect_invalid(samkv_check_fetch(&m.base, &err), "ratio");
    }
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        m.ratio = good[i];
        ck_assert_int_eq(samkv_check_fetch(&m.base, &err), SAMKV_OK);
    }
}
END_TEST

START_TEST(theta_and_enums)
{
    Samkv__FetchRequest m = good_fetch();
    const double bad[] = {-0.1, 1.1, NAN, INFINITY};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        m.theta = bad[i];
        expect_invalid(samkv_check_fetch(&m.base, &err), "theta");
    }
    m = good_fetch();
    m.scoring = (Samkv__Scoring)5;
    expect_invalid(samkv_check_fetch(&m.base, &err), "score 5");
    m = good_fetch();
    m.neighbours = (Samkv__Neighbours)3;
    expect_invalid(samkv_check_fetch(&m.base, &err), "neighbours 3");
    m = good_fetch();
    m.selection = (Samkv__Selection)2;
    expect_invalid(samkv_check_fetch(&m.base, &err), "selection 2");
    m = good_fetch();
    m.update = (Samkv__Update)-1;
    expect_invalid(samkv_check_fetch(&m.base, &err), "update -1");
    m = good_fetch();
    m.positions = (Samkv__Positions)7;
    expect_invalid(samkv_check_fetch(&m.base, &err), "positions 7");
    m = good_fetch();
    m.placement = (Samkv__Placement)2;
    expect_invalid(samkv_check_fetch(&m.base, &err), "placement 2");
    m.placement = SAMKV__PLACEMENT__DEVICE;
    ck_assert_int_eq(samkv_check_fetch(&m.base, &err), SAMKV_OK);
}
END_TEST

START_TEST(query_layers_and_anchors)
{
    Samkv__FetchRequest m = good_fetch();
    Samkv__Tokens tokens = SAMKV__TOKENS__INIT;
    static uint32_t layers[SAMKV_MAX_LAYERS + 1];
    m.query_tokens = &tokens;
    expect_invalid(samkv_check_fetch(&m.base, &err), "as text and as tokens");
    m.query_text.len = 0;
    expect_invalid(samkv_check_fetch(&m.base, &err), "the query is empty");
    tokens.ids = some_tokens;
    tokens.n_ids = 3;
    ck_assert_int_eq(samkv_check_fetch(&m.base, &err), SAMKV_OK);
    m.stable_layers = layers;
    m.n_stable_layers = SAMKV_MAX_LAYERS + 1;
    expect_invalid(samkv_check_fetch(&m.base, &err), "stable layers are too many");
    m.n_stable_layers = 2;
    layers[1] = UINT32_MAX;
    expect_invalid(samkv_check_fetch(&m.base, &err), "stable layer 4294967295");
    m = good_fetch();
    m.init_tokens_given_case = SAMKV__FETCH_REQUEST__INIT_TOKENS_GIVEN_INIT_TOKENS;
    m.init_tokens = UINT32_MAX;
    expect_invalid(samkv_check_fetch(&m.base, &err), "init tokens");
}
END_TEST

static Samkv__IngestRequest good_ingest(void)
{
    Samkv__IngestRequest m = SAMKV__INGEST_REQUEST__INIT;
    m.id = "doc";
    m.text.data = (uint8_t *)"text";
    m.text.len = 4;
    return m;
}

START_TEST(ingest)
{
    Samkv__IngestRequest m = good_ingest();
    Samkv__Tokens tokens = SAMKV__TOKENS__INIT;
    char title[SAMKV_MAX_TITLE_BYTES + 2];
    ck_assert_int_eq(samkv_check_ingest(&m.base, &err), SAMKV_OK);
    m.tokens = &tokens;
    expect_invalid(samkv_check_ingest(&m.base, &err), "as text and as tokens");
    m.text.len = 0;
    expect_invalid(samkv_check_ingest(&m.base, &err), "the document is empty");
    tokens.ids = some_tokens;
    tokens.n_ids = 1;
    ck_assert_int_eq(samkv_check_ingest(&m.base, &err), SAMKV_OK);
    m = good_ingest();
    m.id = "";
    expect_invalid(samkv_check_ingest(&m.base, &err), "document id");
    m = good_ingest();
    memset(title, 't', sizeof title);
    title[SAMKV_MAX_TITLE_BYTES + 1] = 0;
    m.title = title;
    expect_invalid(samkv_check_ingest(&m.base, &err), "title has 1001 bytes");
    title[SAMKV_MAX_TITLE_BYTES] = 0;
    ck_assert_int_eq(samkv_check_ingest(&m.base, &err), SAMKV_OK);
    m = good_ingest();
    m.chunk_tokens = UINT32_MAX;
    expect_invalid(samkv_check_ingest(&m.base, &err), "chunk tokens");
}
END_TEST

START_TEST(collection_spec)
{
    Samkv__IngestRequest m = good_ingest();
    Samkv__CollectionSpec spec = SAMKV__COLLECTION_SPEC__INIT;
    Samkv__Tokens tokens = SAMKV__TOKENS__INIT;
    m.spec = &spec;
    ck_assert_int_eq(samkv_check_ingest(&m.base, &err), SAMKV_OK);
    spec.block_size_given_case = SAMKV__COLLECTION_SPEC__BLOCK_SIZE_GIVEN_BLOCK_SIZE;
    expect_invalid(samkv_check_ingest(&m.base, &err), "block size 0");
    spec.block_size = SAMKV_MAX_BLOCK_TOKENS + 1;
    expect_invalid(samkv_check_ingest(&m.base, &err), "block size");
    spec.block_size = 64;
    ck_assert_int_eq(samkv_check_ingest(&m.base, &err), SAMKV_OK);
    spec.preamble_text.data = (uint8_t *)"p";
    spec.preamble_text.len = 1;
    spec.preamble_tokens = &tokens;
    expect_invalid(samkv_check_ingest(&m.base, &err), "the preamble is given as text and as tokens");
    spec.preamble_tokens = NULL;
    spec.model = "bad\nmodel";
    expect_invalid(samkv_check_ingest(&m.base, &err), "model name");
}
END_TEST

START_TEST(ask)
{
    Samkv__AskRequest m = SAMKV__ASK_REQUEST__INIT;
    Samkv__FetchRequest fetch = good_fetch();
    fetch.query_text.len = 0; /* ask has a question instead */
    m.question.data = (uint8_t *)"why?";
    m.question.len = 4;
    expect_invalid(samkv_check_ask(&m.base, &err), "no documents");
    m.fetch = &fetch;
    ck_assert_int_eq(samkv_check_ask(&m.base, &err), SAMKV_OK);
    m.max_tokens = SAMKV_MAX_ANSWER_TOKENS + 1;
    expect_invalid(samkv_check_ask(&m.base, &err), "max tokens");
    m.max_tokens = 0;
    m.method = (Samkv__Method)3;
    expect_invalid(samkv_check_ask(&m.base, &err), "method 3");
    m.method = SAMKV__METHOD__FULL;
    fetch.n_ids = 0;
    expect_invalid(samkv_check_ask(&m.base, &err), "no document ids");
    fetch.n_ids = 1;
    m.question.len = 0;
    expect_invalid(samkv_check_ask(&m.base, &err), "the question is empty");
}
END_TEST

START_TEST(evaluate)
{
    static char *ids[] = {"a"};
    Samkv__EvaluateRequest m = SAMKV__EVALUATE_REQUEST__INIT;
    Samkv__EvaluateVariant variant = SAMKV__EVALUATE_VARIANT__INIT, *variants[] = {&variant};
    Samkv__FetchRequest way = SAMKV__FETCH_REQUEST__INIT;
    Samkv__Tokens none = SAMKV__TOKENS__INIT;
    expect_invalid(samkv_check_evaluate(&m.base, &err), "no document ids");
    m.ids = ids;
    m.n_ids = 1;
    expect_invalid(samkv_check_evaluate(&m.base, &err), "the question is empty");
    m.question.data = (uint8_t *)"why?";
    m.question.len = 4;
    expect_invalid(samkv_check_evaluate(&m.base, &err), "0 variants");
    m.variants = variants;
    m.n_variants = 1;
    ck_assert_int_eq(samkv_check_evaluate(&m.base, &err), SAMKV_OK); /* nothing said: the full cache */
    m.n_variants = SAMKV_MAX_VARIANTS + 1;
    expect_invalid(samkv_check_evaluate(&m.base, &err), "257 variants");
    m.n_variants = 1;
    variant.fetch = &way;
    way.ratio_given_case = SAMKV__FETCH_REQUEST__RATIO_GIVEN_RATIO;
    way.ratio = 1.5;
    expect_invalid(samkv_check_evaluate(&m.base, &err), "ratio");
    way.ratio = 0.5;
    variant.method = (Samkv__Evaluated)5;
    expect_invalid(samkv_check_evaluate(&m.base, &err), "method 5");
    variant.method = SAMKV__EVALUATED__EVALUATE_SAMKV;
    variant.cut = (Samkv__Cut)-1;
    expect_invalid(samkv_check_evaluate(&m.base, &err), "cut -1");
    variant.cut = SAMKV__CUT__CUT_NONE;
    variant.share = NAN;
    expect_invalid(samkv_check_evaluate(&m.base, &err), "share");
    variant.share = 0;
    m.query_tokens = &none;
    expect_invalid(samkv_check_evaluate(&m.base, &err), "as text and as tokens");
}
END_TEST

START_TEST(bundles)
{
    Samkv__ExportRequest e = SAMKV__EXPORT_REQUEST__INIT;
    Samkv__ImportRequest i = SAMKV__IMPORT_REQUEST__INIT;
    ck_assert_int_eq(samkv_check_export(&e.base, &err), SAMKV_OK);
    ck_assert_int_eq(samkv_check_import(&i.base, &err), SAMKV_OK);
    e.after = "a";
    ck_assert_int_eq(samkv_check_export(&e.base, &err), SAMKV_OK);
    e.resume = true;
    expect_invalid(samkv_check_export(&e.base, &err), "leave the id out");
    e.after = "\x01";
    expect_invalid(samkv_check_export(&e.base, &err), "place to go on after");
    e.after = "", e.collection = i.collection = "\n";
    expect_invalid(samkv_check_export(&e.base, &err), "collection name");
    expect_invalid(samkv_check_import(&i.base, &err), "collection name");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("validate");
    TCase *tc = tcase_create("validate");
    tcase_add_test(tc, names);
    tcase_add_test(tc, bundles);
    tcase_add_test(tc, numbers_of_ids);
    tcase_add_test(tc, ratio);
    tcase_add_test(tc, theta_and_enums);
    tcase_add_test(tc, query_layers_and_anchors);
    tcase_add_test(tc, ingest);
    tcase_add_test(tc, collection_spec);
    tcase_add_test(tc, ask);
    tcase_add_test(tc, evaluate);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
