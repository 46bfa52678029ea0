/* Where long documents are cut: at paragraph ends, else at line ends, else hard; never longer than asked. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/ingest/split.h"

/* Byte-level BPE without merges: one token a byte, so token numbers are places in the text. */
static const char tokenizer_json[] =
    "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"\\u010a\":2,\"\\u0120\":3},\"merges\":[]},"
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":false},"
    "\"decoder\":{\"type\":\"ByteLevel\"}}";

static struct samkv_tokenizer *tokenizer;

static void setup(void)
{
    struct samkv_error err = {0};
    ck_assert_msg(samkv_tokenizer_from_json(tokenizer_json, sizeof tokenizer_json - 1, &tokenizer, &err) == SAMKV_OK,
                  "%s", err.text);
}

static void teardown(void)
{
    samkv_tokenizer_free(tokenizer);
}

static struct samkv_ids encode(const char *text)
{
    struct samkv_ids ids;
    samkv_ids_init(&ids);
    ck_assert(samkv_tokenizer_encode(tokenizer, text, strlen(text), 0, &ids, NULL) == SAMKV_OK);
    ck_assert_uint_eq(ids.count, strlen(text));
    return ids;
}

START_TEST(test_paragraph_end)
{
    struct samkv_ids ids = encode("aaaa\naaaaaa\n\naab\naaaaaaaaaaa");
    /* Within 18 tokens: a line end at 17, but the paragraph ends at 13. */
    ck_assert_uint_eq(samkv_split_next(tokenizer, ids.data, ids.count, 0, 18), 13);
    samkv_ids_deinit(&ids);
}
END_TEST

START_TEST(test_line_end)
{
    struct samkv_ids ids = encode("a\n\naaaaaaaaaaa\naaaaaaaaaaaaaaa");
    /* The paragraph ends in the first half, where a cut would leave a crumb. */
    ck_assert_uint_eq(samkv_split_next(tokenizer, ids.data, ids.count, 0, 20), 15);
    samkv_ids_deinit(&ids);
}
END_TEST

START_TEST(test_hard)
{
    struct samkv_ids ids = encode("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
    ck_assert_uint_eq(samkv_split_next(tokenizer, ids.data, ids.count, 0, 7), 7);
    ck_assert_uint_eq(samkv_split_next(NULL, ids.data, ids.count, 7, 7), 14);
    ck_assert_uint_eq(samkv_split_next(tokenizer, ids.data, ids.count, 25, 7), ids.count);
    samkv_ids_deinit(&ids);
}
END_TEST

/* Every piece makes progress and fits, whatever the text and the size: one token included. */
START_TEST(test_always_ends)
{
    struct samkv_ids ids = encode("a\n\n\n\nb a\na\n\n\nab ab\n");
    for (size_t chunk = 1; chunk <= ids.count + 1; chunk++) {
        size_t first = 0;
        while (first < ids.count) {
            size_t end = samkv_split_next(tokenizer, ids.data, ids.count, first, chunk);
            ck_assert(end > first && end - first <= chunk && end <= ids.count);
            first = end;
        }
    }
    samkv_ids_deinit(&ids);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("split");
    TCase *tc = tcase_create("split");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_paragraph_end);
    tcase_add_test(tc, test_line_end);
    tcase_add_test(tc, test_hard);
    tcase_add_test(tc, test_always_ends);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
