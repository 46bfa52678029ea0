#include <check.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "daemon/base/pool.h"

/* A job that says when it began and waits to be let go. */
struct job {
    sem_t began, go;
    atomic_int runs, cancelled;
};

static void job_init(struct job *j)
{
    sem_init(&j->began, 0, 0);
    sem_init(&j->go, 0, 0);
    atomic_init(&j->runs, 0);
    atomic_init(&j->cancelled, 0);
}

static void run_job(void *arg, bool cancelled)
{
    struct job *j = arg;
    if (cancelled) {
        atomic_fetch_add(&j->cancelled, 1);
        return;
    }
    sem_post(&j->began);
    sem_wait(&j->go);
    atomic_fetch_add(&j->runs, 1);
}

static void submit(struct samkv_pool *pool, enum samkv_urgency urgency, struct job *j)
{
    job_init(j);
    ck_assert_int_eq(samkv_pool_submit(pool, urgency, run_job, j), SAMKV_OK);
}

START_TEST(relaxed_jobs_leave_workers_to_urgent_ones)
{
    struct samkv_pool *pool;
    struct job relaxed[3], urgent[2];
    ck_assert_int_eq(samkv_pool_new(4, 10, &pool), SAMKV_OK);
    for (int i = 0; i < 3; i++)
        submit(pool, SAMKV_RELAXED, &relaxed[i]);
    sem_wait(&relaxed[0].began);
    sem_wait(&relaxed[1].began);
    for (int i = 0; i < 2; i++)
        submit(pool, SAMKV_URGENT, &urgent[i]);
    for (int i = 0; i < 2; i++) { /* would hang if relaxed jobs had all workers */
        sem_wait(&urgent[i].began);
        sem_post(&urgent[i].go);
    }
    while (atomic_load(&urgent[0].runs) + atomic_load(&urgent[1].runs) < 2)
        sched_yield();
    ck_assert_int_ne(sem_trywait(&relaxed[2].began),
                     0); /* two idle workers, but half of four already run relaxed jobs */
    sem_post(&relaxed[0].go);
    sem_wait(&relaxed[2].began);
    sem_post(&relaxed[1].go);
    sem_post(&relaxed[2].go);
    samkv_pool_free(pool);
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(atomic_load(&relaxed[i].runs), 1);
}
END_TEST

/* Durable jobs sleep for the disk: they have a few workers, go before relaxed ones, and keep no urgent one waiting. */
START_TEST(durable_jobs_leave_workers_too)
{
    struct samkv_pool *pool;
    struct job durable[3], relaxed[4], urgent;
    ck_assert_int_eq(samkv_pool_new(_i, 10, &pool), SAMKV_OK);
    int limit = _i < 8 ? 1 : _i / 4;
    for (int i = 0; i < 3; i++)
        submit(pool, SAMKV_DURABLE, &durable[i]);
    for (int i = 0; i < limit; i++)
        sem_wait(&durable[i].began);
    for (int i = 0; i < 4; i++)
        submit(pool, SAMKV_RELAXED, &relaxed[i]);
    if (_i >= 4)
        sem_wait(&relaxed[0].began); /* they have workers of their own */
    submit(pool, SAMKV_URGENT, &urgent);
    sem_wait(&urgent.began); /* would hang if the others had all of them */
    sem_post(&urgent.go);
    ck_assert_int_ne(sem_trywait(&durable[limit].began), 0);
    sem_post(&durable[0].go);
    sem_wait(&durable[limit].began); /* before the relaxed ones that wait */
    for (int i = 1; i < 3; i++)
        sem_post(&durable[i].go);
    for (int i = 0; i < 4; i++)
        sem_post(&relaxed[i].go);
    while (atomic_load(&relaxed[3].runs) + atomic_load(&durable[2].runs) < 2)
        sched_yield();
    samkv_pool_free(pool);
}
END_TEST

static int order[12];
static atomic_int ordered;

struct numbered {
    int number;
};

static void note_number(void *arg, bool cancelled)
{
    (void)cancelled;
    int at = atomic_load(&ordered); /* one worker calls this */
    order[at] = ((struct numbered *)arg)->number;
    atomic_store(&ordered, at + 1);
}

/* Of one user's six jobs, another's two and a third's one, none has to wait for all of another's. */
START_TEST(users_take_turns)
{
    static const struct {
        uint32_t user;
        int number;
    } jobs[] = {{1, 10}, {1, 11}, {1, 12}, {1, 13}, {2, 20}, {2, 21}, {1, 14}, {3, 30}, {1, 15}};
    static const int expected[] = {10, 20, 30, 11, 21, 12, 13, 14, 15};
    struct numbered numbers[9];
    struct samkv_pool *pool;
    struct job held[2];
    ck_assert_int_eq(samkv_pool_new(2, 20, &pool), SAMKV_OK);
    submit(pool, SAMKV_URGENT, &held[0]);
    submit(pool, SAMKV_URGENT, &held[1]);
    sem_wait(&held[0].began);
    sem_wait(&held[1].began);
    atomic_store(&ordered, 0);
    for (int i = 0; i < 9; i++) {
        numbers[i].number = jobs[i].number;
        ck_assert_int_eq(samkv_pool_submit_for(pool, jobs[i].user, SAMKV_URGENT, note_number, &numbers[i]), SAMKV_OK);
    }
    ck_assert_int_eq(samkv_pool_waiting(pool, SAMKV_URGENT), 9);
    sem_post(&held[0].go); /* one worker: in order */
    while (atomic_load(&ordered) < 9)
        sched_yield();
    ck_assert_mem_eq(order, expected, sizeof expected);
    ck_assert_int_eq(samkv_pool_waiting(pool, SAMKV_URGENT), 0);
    sem_post(&held[1].go);
    samkv_pool_free(pool);
}
END_TEST

START_TEST(a_full_queue_is_busy_for_its_class)
{
    struct samkv_pool *pool;
    struct job running, waiting, refused, urgent;
    ck_assert_int_eq(samkv_pool_new(2, 1, &pool), SAMKV_OK);
    submit(pool, SAMKV_RELAXED, &running);
    sem_wait(&running.began);
    submit(pool, SAMKV_RELAXED, &waiting);
    job_init(&refused);
    ck_assert_int_eq(samkv_pool_submit(pool, SAMKV_RELAXED, run_job, &refused), SAMKV_BUSY);
    submit(pool, SAMKV_URGENT, &urgent);
    sem_wait(&urgent.began);
    sem_post(&urgent.go);
    sem_post(&running.go);
    sem_wait(&waiting.began);
    sem_post(&waiting.go);
    samkv_pool_free(pool);
    ck_assert_int_eq(atomic_load(&waiting.runs), 1);
    ck_assert_int_eq(atomic_load(&refused.runs) + atomic_load(&refused.cancelled), 0);
}
END_TEST

static void *free_pool(void *arg)
{
    samkv_pool_free(arg);
    return NULL;
}

START_TEST(free_finishes_running_jobs_and_cancels_queued_ones)
{
    struct samkv_pool *pool;
    struct job running[2], queued[3];
    pthread_t thread;
    ck_assert_int_eq(samkv_pool_new(2, 5, &pool), SAMKV_OK);
    for (int i = 0; i < 2; i++) {
        submit(pool, SAMKV_URGENT, &running[i]);
        sem_wait(&running[i].began);
    }
    for (int i = 0; i < 3; i++)
        submit(pool, i % 2 ? SAMKV_URGENT : SAMKV_RELAXED, &queued[i]);
    pthread_create(&thread, NULL, free_pool, pool);
    for (int i = 0; i < 2; i++)
        sem_post(&running[i].go);
    for (int i = 0; i < 3; i++)
        sem_post(&queued[i].go); /* in case a worker was faster than free */
    pthread_join(thread, NULL);
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(atomic_load(&running[i].runs), 1);
    for (int i = 0; i < 3; i++) /* each exactly once, one way or the other */
        ck_assert_int_eq(atomic_load(&queued[i].runs) + atomic_load(&queued[i].cancelled), 1);
    samkv_pool_free(NULL);
}
END_TEST

static void cancelled_only(void *arg, bool cancelled)
{
    atomic_fetch_add((atomic_int *)arg, cancelled ? 100 : 1);
}

struct stop_job {
    struct samkv_pool *pool;
    sem_t began, go;
};

static void hold(void *arg, bool cancelled)
{
    struct stop_job *s = arg;
    (void)cancelled;
    sem_post(&s->began);
    sem_wait(&s->go);
}

/* With the only relaxed worker held, what waits behind it can only be cancelled: it never may run while free is going
 * on. */
START_TEST(what_waits_when_free_begins_does_not_run)
{
    struct samkv_pool *pool;
    struct stop_job held;
    atomic_int outcome;
    pthread_t thread;
    atomic_init(&outcome, 0);
    sem_init(&held.began, 0, 0);
    sem_init(&held.go, 0, 0);
    ck_assert_int_eq(samkv_pool_new(2, 1000000, &pool), SAMKV_OK); /* so that BUSY below means that free has begun */
    ck_assert_int_eq(samkv_pool_submit(pool, SAMKV_RELAXED, hold, &held), SAMKV_OK);
    sem_wait(&held.began);
    ck_assert_int_eq(samkv_pool_submit(pool, SAMKV_RELAXED, cancelled_only, &outcome), SAMKV_OK);
    pthread_create(&thread, NULL, free_pool, pool);
    struct job probe;
    job_init(&probe);
    sem_post(&probe.go);
    while (samkv_pool_submit(pool, SAMKV_URGENT, run_job, &probe) == SAMKV_OK) { /* until free has begun */
        sem_post(&probe.go);
        sched_yield();
    }
    sem_post(&held.go);
    pthread_join(thread, NULL);
    ck_assert_int_eq(atomic_load(&outcome), 100);
}
END_TEST

START_TEST(dropping_what_is_queued_leaves_what_runs)
{
    struct samkv_pool *pool;
    struct job running, queued[2], after;
    ck_assert_int_eq(samkv_pool_new(2, 5, &pool), SAMKV_OK);
    submit(pool, SAMKV_RELAXED, &running);
    sem_wait(&running.began);
    submit(pool, SAMKV_RELAXED, &queued[0]);
    submit(pool, SAMKV_RELAXED, &queued[1]);
    samkv_pool_drop_queued(pool);
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(atomic_load(&queued[i].cancelled), 1);
    ck_assert_int_eq(atomic_load(&running.cancelled), 0);
    sem_post(&running.go);
    submit(pool, SAMKV_RELAXED, &after); /* it takes new ones */
    sem_wait(&after.began);
    sem_post(&after.go);
    samkv_pool_free(pool);
    ck_assert_int_eq(atomic_load(&running.runs) + atomic_load(&after.runs), 2);
}
END_TEST

struct loop {
    atomic_int visits[101];
    pthread_t caller;
    atomic_int elsewhere;
};

static void visit(void *arg, int i)
{
    struct loop *l = arg;
    atomic_fetch_add(&l->visits[i], 1);
    if (!pthread_equal(pthread_self(), l->caller))
        atomic_fetch_add(&l->elsewhere, 1);
}

START_TEST(parallel_for_visits_each_index_once)
{
    const int sizes[] = {0, 1, 2, 37, 101}, threads[] = {1, 2, 3, 64};
    for (size_t s = 0; s < 5; s++)
        for (size_t t = 0; t < 4; t++) {
            struct loop *l = calloc(1, sizeof *l);
            l->caller = pthread_self();
            samkv_parallel_for(sizes[s], threads[t], visit, l);
            for (int i = 0; i < 101; i++)
                ck_assert_int_eq(atomic_load(&l->visits[i]), i < sizes[s]);
            if (threads[t] == 1)
                ck_assert_int_eq(atomic_load(&l->elsewhere), 0);
            free(l);
        }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("pool");
    TCase *tc = tcase_create("pool");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, relaxed_jobs_leave_workers_to_urgent_ones);
    tcase_add_test(tc, users_take_turns);
    tcase_add_loop_test(tc, durable_jobs_leave_workers_too, 2, 10);
    tcase_add_test(tc, a_full_queue_is_busy_for_its_class);
    tcase_add_test(tc, free_finishes_running_jobs_and_cancels_queued_ones);
    tcase_add_test(tc, what_waits_when_free_begins_does_not_run);
    tcase_add_test(tc, dropping_what_is_queued_leaves_what_runs);
    tcase_add_test(tc, parallel_for_visits_each_index_once);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
