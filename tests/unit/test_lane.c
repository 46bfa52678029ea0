#include <check.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/lane.h"

/* Letters of jobs in the order in which they ran; written by the lane's thread only. */
struct record {
    struct samkv_lane *lane;
    char order[32];
    size_t count;
    sem_t gate, entered;
};

static void write_letter(struct record *r, char letter)
{
    r->order[r->count++] = letter;
}

/* One call of the lane, from a thread of its own. */
struct caller {
    struct record *record;
    enum samkv_urgency urgency;
    char letter;
    void (*fn)(void *arg);
    pthread_t thread;
};

static void plain_job(void *arg)
{
    struct caller *c = arg;
    write_letter(c->record, c->letter);
}

/* Holds the lane until the test has queued what it wants. */
static void gate_job(void *arg)
{
    struct caller *c = arg;
    sem_post(&c->record->entered);
    sem_wait(&c->record->gate);
    write_letter(c->record, c->letter);
}

/* A long ingest: between two steps it lets urgent jobs pass. */
static void yielding_job(void *arg)
{
    struct caller *c = arg;
    gate_job(arg);
    samkv_lane_yield(c->record->lane);
    write_letter(c->record, '.');
}

static void *call(void *arg)
{
    struct caller *c = arg;
    samkv_lane_call(c->record->lane, c->urgency, c->fn, c);
    return NULL;
}

static void start(struct caller *c, struct record *r, enum samkv_urgency urgency, char letter, void (*fn)(void *arg))
{
    *c = (struct caller){.record = r, .urgency = urgency, .letter = letter, .fn = fn};
    ck_assert_int_eq(pthread_create(&c->thread, NULL, call, c), 0);
}

/* Callers queue one after the other: the next starts when this one waits. */
static void start_waiting(struct caller *c, struct record *r, enum samkv_urgency urgency, char letter)
{
    int before = samkv_lane_waiting(r->lane);
    start(c, r, urgency, letter, plain_job);
    while (samkv_lane_waiting(r->lane) == before)
        sched_yield();
}

static void record_init(struct record *r)
{
    memset(r, 0, sizeof *r);
    sem_init(&r->gate, 0, 0);
    sem_init(&r->entered, 0, 0);
    ck_assert_int_eq(samkv_lane_new("test", &r->lane), SAMKV_OK);
}

static void join(struct caller *c, int count)
{
    for (int i = 0; i < count; i++)
        pthread_join(c[i].thread, NULL);
}

START_TEST(urgent_jobs_go_first_and_classes_keep_their_order)
{
    struct record r;
    struct caller c[6];
    record_init(&r);
    start(&c[0], &r, SAMKV_RELAXED, '0', gate_job);
    sem_wait(&r.entered);
    start_waiting(&c[1], &r, SAMKV_RELAXED, 'a');
    start_waiting(&c[2], &r, SAMKV_RELAXED, 'b');
    start_waiting(&c[3], &r, SAMKV_URGENT, 'X');
    start_waiting(&c[4], &r, SAMKV_RELAXED, 'c');
    start_waiting(&c[5], &r, SAMKV_URGENT, 'Y');
    ck_assert_int_eq(samkv_lane_waiting(r.lane), 5);
    sem_post(&r.gate);
    join(c, 6);
    ck_assert_str_eq(r.order, "0XYabc");
    ck_assert_int_eq(samkv_lane_waiting(r.lane), 0);
    samkv_lane_free(r.lane);
}
END_TEST

START_TEST(yield_runs_urgent_jobs_and_only_these)
{
    struct record r;
    struct caller c[4];
    record_init(&r);
    start(&c[0], &r, SAMKV_RELAXED, '0', yielding_job);
    sem_wait(&r.entered);
    start_waiting(&c[1], &r, SAMKV_RELAXED, 'a');
    start_waiting(&c[2], &r, SAMKV_URGENT, 'X');
    start_waiting(&c[3], &r, SAMKV_URGENT, 'Y');
    sem_post(&r.gate);
    join(c, 4);
    ck_assert_str_eq(r.order, "0XY.a");
    samkv_lane_free(r.lane);
}
END_TEST

START_TEST(free_runs_what_is_queued)
{
    struct record r;
    struct caller c[3];
    record_init(&r);
    start(&c[0], &r, SAMKV_URGENT, '0', gate_job);
    sem_wait(&r.entered);
    start_waiting(&c[1], &r, SAMKV_RELAXED, 'a');
    start_waiting(&c[2], &r, SAMKV_RELAXED, 'b');
    sem_post(&r.gate);
    samkv_lane_free(r.lane);
    join(c, 3);
    ck_assert_str_eq(r.order, "0ab");
}
END_TEST

static void add_one(void *arg)
{
    ++*(int *)arg; /* without a lock: the lane is one thread */
}

struct hammer {
    struct samkv_lane *lane;
    int *sum;
    int number;
};

static void *hammer(void *arg)
{
    struct hammer *h = arg;
    for (int i = 0; i < 500; i++)
        samkv_lane_call(h->lane, (i + h->number) % 2 ? SAMKV_URGENT : SAMKV_RELAXED, add_one, h->sum);
    return NULL;
}

START_TEST(many_callers_one_thread)
{
    struct samkv_lane *lane;
    int sum = 0;
    pthread_t threads[7];
    struct hammer h[7];
    ck_assert_int_eq(samkv_lane_new("test", &lane), SAMKV_OK);
    for (int i = 0; i < 7; i++) {
        h[i] = (struct hammer){lane, &sum, i};
        pthread_create(&threads[i], NULL, hammer, &h[i]);
    }
    for (int i = 0; i < 7; i++)
        pthread_join(threads[i], NULL);
    samkv_lane_free(lane);
    ck_assert_int_eq(sum, 3500);
    samkv_lane_free(NULL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("lane");
    TCase *tc = tcase_create("lane");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, urgent_jobs_go_first_and_classes_keep_their_order);
    tcase_add_test(tc, yield_runs_urgent_jobs_and_only_these);
    tcase_add_test(tc, free_runs_what_is_queued);
    tcase_add_test(tc, many_callers_one_thread);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
