#include "tests/unit/store_fixture.h"

static struct fixture_directory dir;

static void setup(void)
{
    fixture_directory_make(&dir);
}

static void teardown(void)
{
    fixture_directory_remove(&dir);
}

static const struct {
    struct samkv_kv_shape shape;
    uint32_t tokens, block_tokens;
} shapes[] = {
    {{1, 1, 1, SAMKV_F32}, 1, 1},    {{1, 1, 1, SAMKV_BF16}, 1, 16},    {{2, 3, 5, SAMKV_F16}, 17, 16},
    {{3, 2, 8, SAMKV_BF16}, 33, 8},  {{4, 2, 16, SAMKV_F32}, 64, 16},   {{30, 3, 64, SAMKV_F32}, 37, 16},
    {{2, 1, 7, SAMKV_F32}, 100, 64}, {{2, 8, 128, SAMKV_BF16}, 65, 64},
};

START_TEST(what_goes_in_comes_out)
{
    struct samkv_error err = {0};
    struct samkv_store *s = fixture_open(&dir, 0);
    struct fixture_document d;
    fixture_document_make(&d, 7, shapes[_i].shape, shapes[_i].tokens, shapes[_i].block_tokens);
    FIXTURE_OK(fixture_ingest(s, &d, "one", &err));
    ck_assert_int_eq(fixture_check_name(s, "one", &d), SAMKV_OK);
    struct samkv_store_stats before = fixture_stats(s);
    ck_assert_uint_eq(before.documents, 1);
    ck_assert_uint_eq(before.names, 1);
    ck_assert_uint_eq(before.bytes_raw, d.m.tokens * samkv_kv_token_bytes(&d.m.shape));
    samkv_store_close(s);

    s = fixture_open(&dir, 0);
    ck_assert_int_eq(fixture_check_name(s, "one", &d), SAMKV_OK);
    ck_assert_int_eq(fixture_check_name(s, "two", &d), SAMKV_NOT_FOUND);
    samkv_store_close(s);
    fixture_document_free(&d);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("store");
    TCase *tc = tcase_create("store");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, what_goes_in_comes_out, 0, (int)(sizeof shapes / sizeof *shapes));
    tcase_set_timeout(tc, 60);
    suite_add_tcase(suite, tc);
    return fixture_run(suite);
}
