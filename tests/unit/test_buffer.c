#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/buffer.h"

START_TEST(grows_by_what_is_appended)
{
    struct samkv_buffer b;
    samkv_buffer_init(&b);
    for (int i = 0; i < 1000; i++) {
        uint8_t piece[3] = {(uint8_t)i, (uint8_t)(i >> 8), 0xaa};
        ck_assert_int_eq(samkv_buffer_append(&b, piece, sizeof piece), SAMKV_OK);
    }
    ck_assert_uint_eq(b.count, 3000);
    ck_assert_uint_le(b.capacity, 2 * b.count);
    for (int i = 0; i < 1000; i++) {
        ck_assert_uint_eq(b.data[3 * i], (uint8_t)i);
        ck_assert_uint_eq(b.data[3 * i + 1], (uint8_t)(i >> 8));
    }
    samkv_buffer_deinit(&b);
    ck_assert_uint_eq(b.capacity, 0);
}
END_TEST

START_TEST(resize_is_exact_and_keeps_the_bytes)
{
    struct samkv_buffer b = {0};
    ck_assert_int_eq(samkv_buffer_append(&b, "abcde", 5), SAMKV_OK);
    ck_assert_int_eq(samkv_buffer_resize(&b, 5), SAMKV_OK);
    ck_assert_uint_eq(b.capacity, 5);
    ck_assert_int_eq(samkv_buffer_resize(&b, 777), SAMKV_OK);
    ck_assert_uint_eq(b.capacity, 777);
    ck_assert_mem_eq(b.data, "abcde", 5);
    b.count = 0;
    ck_assert_int_eq(samkv_buffer_resize(&b, 0), SAMKV_OK);
    ck_assert_ptr_null(b.data);
    samkv_buffer_deinit(&b);
}
END_TEST

START_TEST(impossible_sizes_leave_it_as_it_was)
{
    struct samkv_buffer b = {0};
    ck_assert_int_eq(samkv_buffer_append(&b, "abc", 3), SAMKV_OK);
    ck_assert_int_eq(samkv_buffer_append(&b, "x", SIZE_MAX), SAMKV_NO_MEMORY);
    ck_assert_int_eq(samkv_buffer_append(&b, "x", SIZE_MAX - 2), SAMKV_NO_MEMORY);
    ck_assert_uint_eq(b.count, 3);
    ck_assert_mem_eq(b.data, "abc", 3);
    samkv_buffer_deinit(&b);
}
END_TEST

START_TEST(move_hands_over_and_frees_what_was_there)
{
    struct samkv_buffer from = {0}, to = {0};
    ck_assert_int_eq(samkv_buffer_append(&from, "new", 3), SAMKV_OK);
    ck_assert_int_eq(samkv_buffer_append(&to, "old", 3), SAMKV_OK);
    samkv_buffer_move(&from, &to);
    ck_assert_ptr_null(from.data);
    ck_assert_uint_eq(from.count + from.capacity, 0);
    ck_assert_mem_eq(to.data, "new", 3);
    samkv_buffer_move(&to, &to);
    ck_assert_mem_eq(to.data, "new", 3);
    samkv_buffer_deinit(&to);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("buffer");
    TCase *tc = tcase_create("buffer");
    tcase_add_test(tc, grows_by_what_is_appended);
    tcase_add_test(tc, resize_is_exact_and_keeps_the_bytes);
    tcase_add_test(tc, impossible_sizes_leave_it_as_it_was);
    tcase_add_test(tc, move_hands_over_and_frees_what_was_there);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
