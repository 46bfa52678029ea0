#include <check.h>
#include <stdlib.h>

#include "daemon/base/trace.h"

START_TEST(spans_are_noted_in_order)
{
    struct samkv_trace t = {.taken = 0};
    samkv_trace_add(&t, SAMKV_PHASE_INDEX, 1, 3);
    samkv_trace_add(&t, SAMKV_PHASE_READ, 2, 5);
    ck_assert_uint_eq(samkv_trace_count(&t), 2);
    ck_assert_str_eq(samkv_phase_name(t.spans[0].phase), "index");
    ck_assert_str_eq(samkv_phase_name(t.spans[1].phase), "read");
    ck_assert(t.spans[1].start_ms == 2 && t.spans[1].end_ms == 5);
}
END_TEST

START_TEST(what_did_not_run_is_not_noted)
{
    struct samkv_trace t = {.taken = 0};
    samkv_trace_add(&t, SAMKV_PHASE_QUERY, 4, 4);
    samkv_trace_add(&t, SAMKV_PHASE_QUERY, 4, 3);
    ck_assert_uint_eq(samkv_trace_count(&t), 0);
    samkv_trace_add(NULL, SAMKV_PHASE_QUERY, 1, 2); /* nobody wants to know */
}
END_TEST

START_TEST(a_lap_ends_now)
{
    struct samkv_trace t = {.taken = 0};
    double since = 0; /* when the machine began */
    double ms = samkv_trace_lap(&t, SAMKV_PHASE_COMMIT, &since);
    ck_assert(ms > 0 && since == ms);
    ck_assert(t.spans[0].start_ms == 0 && t.spans[0].end_ms == since);
}
END_TEST

START_TEST(more_than_there_is_room_for)
{
    struct samkv_trace t = {.taken = 0};
    for (int i = 0; i < 3 * SAMKV_TRACE_SPANS; i++)
        samkv_trace_add(&t, SAMKV_PHASE_PREFILL, i, i + 1);
    ck_assert_uint_eq(samkv_trace_count(&t), SAMKV_TRACE_SPANS);
    ck_assert(t.spans[SAMKV_TRACE_SPANS - 1].start_ms == SAMKV_TRACE_SPANS - 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("trace");
    TCase *tc = tcase_create("trace");
    tcase_add_test(tc, spans_are_noted_in_order);
    tcase_add_test(tc, what_did_not_run_is_not_noted);
    tcase_add_test(tc, a_lap_ends_now);
    tcase_add_test(tc, more_than_there_is_room_for);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
