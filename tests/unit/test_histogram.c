#include <check.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/metrics.h"

START_TEST(bounds_ascend)
{
    for (int scale = SAMKV_SCALE_SECONDS; scale <= SAMKV_SCALE_RATIO; scale++) {
        size_t count;
        const double *bounds = samkv_scale_bounds(scale, &count);
        ck_assert_uint_ge(count, 10);
        ck_assert_uint_le(count, SAMKV_HISTOGRAM_BOUNDS);
        ck_assert(bounds[0] > 0);
        for (size_t i = 1; i < count; i++)
            ck_assert(bounds[i] > bounds[i - 1]);
    }
}
END_TEST

START_TEST(a_bound_belongs_to_its_bucket)
{
    size_t count;
    const double *bounds = samkv_scale_bounds(SAMKV_SCALE_SECONDS, &count);
    for (size_t i = 0; i < count; i++) {
        struct samkv_histogram h = {0};
        struct samkv_histogram_state s;
        samkv_histogram_add(&h, SAMKV_SCALE_SECONDS, bounds[i]);
        samkv_histogram_add(&h, SAMKV_SCALE_SECONDS, nextafter(bounds[i], 1e9));
        samkv_histogram_read(&h, SAMKV_SCALE_SECONDS, &s);
        ck_assert_uint_eq(s.buckets[i], 1);
        ck_assert_uint_eq(s.buckets[i + 1], 1);
        ck_assert_uint_eq(s.count, 2);
        ck_assert(fabs(s.sum - 2 * bounds[i]) <= 1e-8);
    }
}
END_TEST

START_TEST(what_is_no_time_counts_as_none)
{
    struct samkv_histogram h = {0};
    struct samkv_histogram_state s;
    size_t count;
    samkv_scale_bounds(SAMKV_SCALE_SECONDS, &count);
    samkv_histogram_add(&h, SAMKV_SCALE_SECONDS, NAN);
    samkv_histogram_add(&h, SAMKV_SCALE_SECONDS, -1);
    samkv_histogram_add(&h, SAMKV_SCALE_SECONDS, 0);
    samkv_histogram_add(&h, SAMKV_SCALE_SECONDS, INFINITY);
    samkv_histogram_read(&h, SAMKV_SCALE_SECONDS, &s);
    ck_assert_uint_eq(s.buckets[0], 3);
    ck_assert_uint_eq(s.buckets[count], 1);
    ck_assert_uint_eq(s.count, 4);
    ck_assert(s.sum == 1e6);
}
END_TEST

#define THREADS 4
#define ADDS    20000

static void *add_many(void *arg)
{
    for (int i = 0; i < ADDS; i++)
        samkv_metrics_observe(arg, SAMKV_HISTOGRAM_SEQUENCE_RATIO, (i % 100) / 100.0);
    return NULL;
}

START_TEST(no_value_is_lost_between_threads)
{
    static struct samkv_metrics metrics;
    struct samkv_histogram_state s;
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, add_many, &metrics), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    samkv_histogram_read(&metrics.histograms[SAMKV_HISTOGRAM_SEQUENCE_RATIO], SAMKV_SCALE_RATIO, &s);
    ck_assert_uint_eq(s.count, THREADS * ADDS);
    ck_assert(fabs(s.sum - THREADS * ADDS * 0.495) < 1e-3);
}
END_TEST

/* The exposition writes a head where a row has a help: one a family, before its other rows. */
START_TEST(families_stand_together)
{
    const char *family = "";
    for (int i = 0; i < SAMKV_HISTOGRAM_COUNT; i++) {
        const struct samkv_histogram_row *row = samkv_metric_histogram(i);
        ck_assert_int_eq(row->help != NULL, strcmp(row->family, family) != 0);
        for (int k = 0; row->help && k < i; k++)
            ck_assert_str_ne(samkv_metric_histogram(k)->family, row->family);
        family = row->family;
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("histogram");
    TCase *tc = tcase_create("histogram");
    tcase_add_test(tc, bounds_ascend);
    tcase_add_test(tc, a_bound_belongs_to_its_bucket);
    tcase_add_test(tc, what_is_no_time_counts_as_none);
    tcase_add_test(tc, no_value_is_lost_between_threads);
    tcase_add_test(tc, families_stand_together);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
