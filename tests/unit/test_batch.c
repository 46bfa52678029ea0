/* Items are joined by threads of their own; a run that a test holds shut lets the next ones gather. */
#include <check.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/batch.h"

#define MAX_ITEMS 24
#define LIMIT     10

struct fixture {
    struct samkv_batcher *batcher;
    pthread_mutex_t lock; /* of what the calls below write */
    char order[128];      /* letters of items, runs behind each other as "ab|c|" */
    int runs, running, most_running, full, most_full, emptied;
    bool hold; /* a run tells `entered` and waits at `gate` */
    sem_t entered, gate;
    enum samkv_status fail_shared, fail_alone, fail_settle;
};

struct member {
    struct samkv_batch_item item;
    struct fixture *f;
    char letter;
    pthread_t thread;
    enum samkv_status status;
    struct samkv_error err;
    sem_t joined, may_leave;
};

static struct member *member_of(struct samkv_batch_item *item)
{
    return (struct member *)item; /* its first field */
}

static enum samkv_status run(void *arg, int slot, struct samkv_batch_item *first, struct samkv_error *err)
{
    struct fixture *f = arg;
    ck_assert(slot >= 0 && slot < SAMKV_BATCH_SLOTS);
    pthread_mutex_lock(&f->lock);
    f->runs++;
    f->most_running = ++f->running > f->most_running ? f->running : f->most_running;
    f->most_full = ++f->full > f->most_full ? f->full : f->most_full;
    for (struct samkv_batch_item *item = first; item; item = item->next)
        strncat(f->order, &member_of(item)->letter, 1);
    strcat(f->order, "|");
    bool hold = f->hold;
    pthread_mutex_unlock(&f->lock);
    if (hold) {
        sem_post(&f->entered);
        sem_wait(&f->gate);
    }
    pthread_mutex_lock(&f->lock);
    f->running--;
    pthread_mutex_unlock(&f->lock);
    enum samkv_status status = first->next ? f->fail_shared : f->fail_alone;
    return status ? samkv_fail(err, status, "run %s", first->next ? "shared" : "alone") : SAMKV_OK;
}

static enum samkv_status settle(void *arg, int slot, struct samkv_batch_item *first, struct samkv_error *err)
{
    struct fixture *f = arg;
    (void)slot, (void)first;
    return f->fail_settle ? samkv_fail(err, f->fail_settle, "settle") : SAMKV_OK;
}

static void empty(void *arg, int slot)
{
    struct fixture *f = arg;
    (void)slot;
    pthread_mutex_lock(&f->lock);
    f->full--;
    f->emptied++;
    pthread_mutex_unlock(&f->lock);
}

static void fixture_init(struct fixture *f)
{
    static const struct samkv_batch_calls calls = {run, settle, empty};
    memset(f, 0, sizeof *f);
    pthread_mutex_init(&f->lock, NULL);
    sem_init(&f->entered, 0, 0);
    sem_init(&f->gate, 0, 0);
    ck_assert_int_eq(samkv_batcher_new(LIMIT, &calls, f, &f->batcher), SAMKV_OK);
}

/* Everybody has left: every slot that was filled is empty. */
static void fixture_deinit(struct fixture *f)
{
    ck_assert_int_eq(f->full, 0);
    ck_assert_int_eq(f->emptied, f->runs);
    ck_assert_int_eq(f->most_running, 1);
    ck_assert_int_le(f->most_full, SAMKV_BATCH_SLOTS);
    samkv_batcher_free(f->batcher);
    pthread_mutex_destroy(&f->lock);
}

static void *member_main(void *arg)
{
    struct member *m = arg;
    m->status = samkv_batch_join(m->f->batcher, &m->item, &m->err);
    sem_post(&m->joined);
    if (m->status)
        return NULL;
    sem_wait(&m->may_leave);
    samkv_batch_leave(m->f->batcher, &m->item);
    return NULL;
}

static void start(struct fixture *f, struct member *m, char letter, char kind, uint32_t weight)
{
    *m = (struct member){.f = f, .letter = letter, .item = m->item};
    m->item.kind[3] = (uint8_t)kind;
    m->item.weight = weight;
    sem_init(&m->joined, 0, 0);
    sem_init(&m->may_leave, 0, 0);
    ck_assert_int_eq(pthread_create(&m->thread, NULL, member_main, m), 0);
}

/* Behind all that wait: returns when it is among them. */
static void start_waiting(struct fixture *f, struct member *m, char letter, char kind, uint32_t weight)
{
    size_t before = samkv_batch_waiting(f->batcher);
    start(f, m, letter, kind, weight);
    while (samkv_batch_waiting(f->batcher) != before + 1)
        sched_yield();
}

/* A run that stands still until `open`. */
static void start_held(struct fixture *f, struct member *m, char letter)
{
    f->hold = true;
    start(f, m, letter, 0, 1);
    sem_wait(&f->entered);
}

static void open_gate(struct fixture *f, bool hold_next)
{
    pthread_mutex_lock(&f->lock);
    f->hold = hold_next;
    pthread_mutex_unlock(&f->lock);
    sem_post(&f->gate);
}

static void finish(struct member *m, enum samkv_status status)
{
    sem_wait(&m->joined);
    sem_post(&m->may_leave);
    pthread_join(m->thread, NULL);
    ck_assert_msg(m->status == status, "%c: %s: %s", m->letter, samkv_status_name(m->status), m->err.text);
}

START_TEST(test_alone)
{
    struct fixture f;
    struct member m[2] = {0};
    fixture_init(&f);
    start(&f, &m[0], 'a', 1, 3);
    finish(&m[0], SAMKV_OK);
    start(&f, &m[1], 'b', 1, 2 * LIMIT); /* more than a run takes: it goes all the same */
    finish(&m[1], SAMKV_OK);
    ck_assert_str_eq(f.order, "a|b|");
    fixture_deinit(&f);
}
END_TEST

/* Of one kind, in order of arrival, as many as fit; what does not fit or is of another kind keeps its place. */
START_TEST(test_gathers)
{
    struct fixture f;
    struct member m[7] = {0};
    fixture_init(&f);
    start_held(&f, &m[0], 'x');
    start_waiting(&f, &m[1], 'a', 1, 4);
    start_waiting(&f, &m[2], 'b', 2, 4);
    start_waiting(&f, &m[3], 'c', 1, 4);
    start_waiting(&f, &m[4], 'd', 1, 4);
    start_waiting(&f, &m[5], 'e', 1, 2);
    m[6].item.alone = true;
    start_waiting(&f, &m[6], 'f', 2, 1);
    open_gate(&f, false);
    for (int i = 0; i < 7; i++)
        finish(&m[(const int[]){0, 1, 3, 5, 2, 4, 6}[i]], SAMKV_OK);
    ck_assert_str_eq(f.order, "x|ace|b|d|f|");
    fixture_deinit(&f);
}
END_TEST

/* However many of another kind keep coming, the one that has waited longest is next. */
START_TEST(test_odd_one_is_not_starved)
{
    struct fixture f;
    struct member m[6] = {0};
    fixture_init(&f);
    start_held(&f, &m[0], 'x');
    start_waiting(&f, &m[1], 'a', 1, 1);
    start_waiting(&f, &m[2], 'o', 2, 1);
    start_waiting(&f, &m[3], 'b', 1, 1);
    open_gate(&f, true);
    finish(&m[0], SAMKV_OK);
    sem_wait(&f.entered);
    start_waiting(&f, &m[4], 'c', 1, 1);
    start_waiting(&f, &m[5], 'd', 1, 1);
    open_gate(&f, false);
    for (int i = 1; i < 6; i++)
        finish(&m[(const int[]){0, 1, 3, 2, 4, 5}[i]], SAMKV_OK);
    ck_assert_str_eq(f.order, "x|ab|o|cd|");
    fixture_deinit(&f);
}
END_TEST

/* A third run waits until all items of another have left its slot; then it goes. */
START_TEST(test_two_slots)
{
    struct fixture f;
    struct member m[5] = {0};
    fixture_init(&f);
    start_held(&f, &m[0], 'x');
    start_waiting(&f, &m[1], 'a', 1, 1);
    start_waiting(&f, &m[2], 'b', 1, 1);
    open_gate(&f, false);
    for (int i = 0; i < 3; i++)
        sem_wait(&m[i].joined);
    ck_assert_int_ne(m[0].item.slot, m[1].item.slot);
    ck_assert_int_eq(m[1].item.slot, m[2].item.slot);
    start_waiting(&f, &m[3], 'c', 1, 1);
    start_waiting(&f, &m[4], 'd', 2, 1);
    for (int i = 0; i < 3; i++)
        sem_post(&m[i].joined);
    finish(&m[1], SAMKV_OK);
    ck_assert_uint_eq(samkv_batch_waiting(f.batcher), 2); /* b is still there */
    finish(&m[2], SAMKV_OK);
    sem_wait(&m[3].joined);
    ck_assert_uint_eq(samkv_batch_waiting(f.batcher), 1);
    sem_post(&m[3].joined);
    finish(&m[0], SAMKV_OK);
    finish(&m[3], SAMKV_OK);
    finish(&m[4], SAMKV_OK);
    ck_assert_str_eq(f.order, "x|ab|c|d|");
    ck_assert_int_eq(f.most_full, SAMKV_BATCH_SLOTS);
    fixture_deinit(&f);
}
END_TEST

START_TEST(test_failure_reaches_all)
{
    struct fixture f;
    struct member m[4] = {0};
    fixture_init(&f);
    f.fail_shared = SAMKV_DEVICE;
    start_held(&f, &m[0], 'x');
    for (int i = 1; i < 4; i++)
        start_waiting(&f, &m[i], (char)('a' + i), 1, 1);
    open_gate(&f, false);
    finish(&m[0], SAMKV_OK);
    for (int i = 1; i < 4; i++) {
        finish(&m[i], SAMKV_DEVICE);
        ck_assert_str_eq(m[i].err.text, "run shared");
    }
    ck_assert_str_eq(f.order, "x|bcd|");
    fixture_deinit(&f);
}
END_TEST

START_TEST(test_settle_fails)
{
    struct fixture f;
    struct member m = {0};
    fixture_init(&f);
    f.fail_settle = SAMKV_DEVICE;
    start(&f, &m, 'a', 1, 1);
    finish(&m, SAMKV_DEVICE);
    ck_assert_str_eq(m.err.text, "settle");
    fixture_deinit(&f);
}
END_TEST

/* What is too much together may be possible alone; once. */
START_TEST(test_no_memory)
{
    struct fixture f;
    struct member m[3] = {0};
    fixture_init(&f);
    f.fail_shared = SAMKV_NO_MEMORY;
    f.fail_alone = _i ? SAMKV_NO_MEMORY : SAMKV_OK;
    start_held(&f, &m[0], 'x');
    start_waiting(&f, &m[1], 'a', 1, 1);
    start_waiting(&f, &m[2], 'b', 1, 1);
    open_gate(&f, false);
    for (int i = 0; i < 3; i++) {
        finish(&m[i], f.fail_alone);
        ck_assert_str_eq(m[i].err.text, _i ? "run alone" : i ? "run shared" : "");
    }
    ck_assert(!strcmp(f.order, "x|ab|a|b|") || !strcmp(f.order, "x|ab|b|a|"));
    fixture_deinit(&f);
}
END_TEST

/* Those whose clients are gone are told so and take no room, be they first or not. */
START_TEST(test_cancelled)
{
    struct fixture f;
    struct member m[4] = {0};
    bool gone = false;
    fixture_init(&f);
    start_held(&f, &m[0], 'x');
    m[_i ? 2 : 1].item.cancelled = &gone;
    m[3].item.cancelled = &gone;
    start_waiting(&f, &m[1], 'a', 1, 4);
    start_waiting(&f, &m[2], 'b', 1, 4);
    start_waiting(&f, &m[3], 'c', 1, 4);
    __atomic_store_n(&gone, true, __ATOMIC_RELAXED);
    open_gate(&f, false);
    finish(&m[0], SAMKV_OK);
    finish(&m[1], _i ? SAMKV_OK : SAMKV_CANCELLED);
    finish(&m[2], _i ? SAMKV_CANCELLED : SAMKV_OK);
    finish(&m[3], SAMKV_CANCELLED);
    ck_assert_str_eq(f.order, _i ? "x|a|" : "x|b|");
    ck_assert(strstr(m[3].err.text, "client is gone"));
    fixture_deinit(&f);
}
END_TEST

/* ------------------------------------------------------------------ many threads */

#define STRESS_THREADS 12
#define STRESS_JOINS   300

struct stress {
    struct samkv_batcher *batcher;
    int running, worked;
    int full[SAMKV_BATCH_SLOTS];
};

struct stress_item {
    struct samkv_batch_item item; /* first */
    int result;
};

static enum samkv_status stress_run(void *arg, int slot, struct samkv_batch_item *first, struct samkv_error *err)
{
    struct stress *s = arg;
    uint32_t weight = 0;
    ck_assert_int_eq(__atomic_add_fetch(&s->running, 1, __ATOMIC_RELAXED), 1);
    ck_assert_int_eq(s->full[slot]++, 0); /* not atomic: the batcher orders them */
    for (struct samkv_batch_item *item = first; item; item = item->next) {
        ck_assert_int_eq(item->kind[0], first->kind[0]);
        weight += item->weight;
        ((struct stress_item *)item)->result = ++s->worked;
    }
    ck_assert(weight <= LIMIT || !first->next);
    __atomic_sub_fetch(&s->running, 1, __ATOMIC_RELAXED);
    return s->worked % 7 ? SAMKV_OK : samkv_fail(err, SAMKV_NO_MEMORY, "seven");
}

static enum samkv_status stress_settle(void *arg, int slot, struct samkv_batch_item *first, struct samkv_error *err)
{
    (void)arg, (void)slot, (void)first, (void)err;
    return SAMKV_OK;
}

static void stress_empty(void *arg, int slot)
{
    struct stress *s = arg;
    s->full[slot]--;
}

static void *stress_main(void *arg)
{
    struct stress *s = arg;
    unsigned seed = (unsigned)(uintptr_t)&seed;
    for (int i = 0; i < STRESS_JOINS; i++) {
        struct stress_item mine = {.item = {.kind = {(uint8_t)(rand_r(&seed) % 3)}}};
        struct samkv_error err;
        mine.item.weight = 1 + (uint32_t)rand_r(&seed) % (LIMIT + 2);
        mine.item.alone = rand_r(&seed) % 8 == 0;
        if (samkv_batch_join(s->batcher, &mine.item, &err) == SAMKV_OK) {
            ck_assert_int_gt(mine.result, 0);
            samkv_batch_leave(s->batcher, &mine.item);
        }
    }
    return NULL;
}

START_TEST(test_many_threads)
{
    static const struct samkv_batch_calls calls = {stress_run, stress_settle, stress_empty};
    struct stress s = {0};
    pthread_t threads[STRESS_THREADS];
    ck_assert_int_eq(samkv_batcher_new(LIMIT, &calls, &s, &s.batcher), SAMKV_OK);
    for (int i = 0; i < STRESS_THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, stress_main, &s), 0);
    for (int i = 0; i < STRESS_THREADS; i++)
        pthread_join(threads[i], NULL);
    ck_assert_int_ge(s.worked, STRESS_THREADS * STRESS_JOINS);
    ck_assert_int_eq(s.full[0] + s.full[1], 0);
    samkv_batcher_free(s.batcher);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("batch");
    TCase *tc = tcase_create("batch");
    tcase_add_test(tc, test_alone);
    tcase_add_test(tc, test_gathers);
    tcase_add_test(tc, test_odd_one_is_not_starved);
    tcase_add_test(tc, test_two_slots);
    tcase_add_test(tc, test_failure_reaches_all);
    tcase_add_test(tc, test_settle_fails);
    tcase_add_loop_test(tc, test_no_memory, 0, 2);
    tcase_add_loop_test(tc, test_cancelled, 0, 2);
    tcase_add_test(tc, test_many_threads);
    tcase_set_timeout(tc, 60);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
