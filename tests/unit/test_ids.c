#include <check.h>
#include <stdlib.h>

#include "daemon/base/ids.h"

START_TEST(pushes_and_appends_in_order)
{
    struct samkv_ids ids;
    samkv_ids_init(&ids);
    int32_t block[37];
    for (int i = 0; i < 37; i++)
        block[i] = 1000 + i;
    for (int32_t i = 0; i < 101; i++)
        ck_assert_int_eq(samkv_ids_push(&ids, i), SAMKV_OK);
    ck_assert_int_eq(samkv_ids_append(&ids, block, 37), SAMKV_OK);
    ck_assert_uint_eq(ids.count, 138);
    ck_assert_uint_ge(ids.capacity, ids.count);
    for (int32_t i = 0; i < 101; i++)
        ck_assert_int_eq(ids.data[i], i);
    for (int32_t i = 0; i < 37; i++)
        ck_assert_int_eq(ids.data[101 + i], 1000 + i);
    samkv_ids_deinit(&ids);
    ck_assert_ptr_null(ids.data);
    ck_assert_uint_eq(ids.count, 0);
}
END_TEST

START_TEST(appending_nothing_is_fine)
{
    struct samkv_ids ids;
    samkv_ids_init(&ids);
    ck_assert_int_eq(samkv_ids_append(&ids, NULL, 0), SAMKV_OK);
    ck_assert_uint_eq(ids.count, 0);
    samkv_ids_deinit(&ids);
    samkv_ids_deinit(&ids);
}
END_TEST

/* A count from a hostile header must not wrap around into a small allocation. */
START_TEST(an_impossible_count_is_refused)
{
    struct samkv_ids ids;
    const int32_t one = 7;
    samkv_ids_init(&ids);
    ck_assert_int_eq(samkv_ids_push(&ids, one), SAMKV_OK);
    ck_assert_int_eq(samkv_ids_append(&ids, &one, SIZE_MAX), SAMKV_NO_MEMORY);
    ck_assert_int_eq(samkv_ids_append(&ids, &one, SIZE_MAX / 4), SAMKV_NO_MEMORY);
    ck_assert_uint_eq(ids.count, 1);
    ck_assert_int_eq(ids.data[0], 7);
    samkv_ids_deinit(&ids);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("ids");
    TCase *tc = tcase_create("ids");
    tcase_add_test(tc, pushes_and_appends_in_order);
    tcase_add_test(tc, appending_nothing_is_fine);
    tcase_add_test(tc, an_impossible_count_is_refused);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
