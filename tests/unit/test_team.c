/* Loops on threads that stay: every index once, the threads' number bounded, one team for many loops. */
#include <check.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/team.h"

#define MOST 1000

struct count {
    atomic_int times[MOST];
    atomic_int inside, most_inside;
    int pause_us;
};

static void count_one(void *arg, int i)
{
    struct count *c = arg;
    int inside = atomic_fetch_add(&c->inside, 1) + 1, most = atomic_load(&c->most_inside);
    while (inside > most && !atomic_compare_exchange_weak(&c->most_inside, &most, inside))
        ;
    atomic_fetch_add(&c->times[i], 1);
    if (c->pause_us)
        usleep((useconds_t)c->pause_us);
    atomic_fetch_sub(&c->inside, 1);
}

static void run_and_check(struct samkv_team *team, int n, int threads, int pause_us)
{
    static struct count c;
    memset(&c, 0, sizeof c);
    c.pause_us = pause_us;
    samkv_team_run(team, n, threads, count_one, &c);
    for (int i = 0; i < n; i++)
        ck_assert_int_eq(c.times[i], 1);
    ck_assert_int_eq(c.inside, 0);
    ck_assert_int_le(c.most_inside, threads);
}

START_TEST(every_index_once)
{
    struct samkv_team *team;
    ck_assert_int_eq(samkv_team_new("team", 4, &team), SAMKV_OK);
    ck_assert_int_eq(samkv_team_threads(team), 4);
    for (int n = 0; n < 40; n++)
        run_and_check(team, n, 1 + n % 6, 0);
    for (int turn = 0; turn < 2000; turn++) /* helpers that wake late must not come into the next loop's */
        run_and_check(team, 3, 3, 0);
    run_and_check(team, MOST, 4, 0);
    samkv_team_free(team);
}
END_TEST

START_TEST(helpers_help)
{
    struct samkv_team *team;
    ck_assert_int_eq(samkv_team_new("team", 3, &team), SAMKV_OK);
    static struct count c;
    memset(&c, 0, sizeof c);
    c.pause_us = 2000;
    samkv_team_run(team, 30, 3, count_one, &c);
    ck_assert_int_ge(c.most_inside, 2);
    ck_assert_int_le(c.most_inside, 3);
    samkv_team_free(team);
}
END_TEST

START_TEST(a_team_of_one)
{
    struct samkv_team *team;
    ck_assert_int_eq(samkv_team_new("team", 1, &team), SAMKV_OK);
    run_and_check(team, 17, 8, 0);
    ck_assert_int_eq(samkv_team_threads(team), 1);
    samkv_team_free(team);
    samkv_team_free(NULL);
}
END_TEST

int main(void)
{
    TCase *c = tcase_create("team");
    tcase_add_test(c, every_index_once);
    tcase_add_test(c, helpers_help);
    tcase_add_test(c, a_team_of_one);
    Suite *s = suite_create("team");
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
