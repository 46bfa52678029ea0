/* The pool of device memory for replies, over a device whose shared memory is the heap and is counted. */
#include <check.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/samkv/lease.h"

#define MB          ((size_t)1 << 20)
#define GRANULARITY (2 * MB)

/* ------------------------------------------------------------------ a device that only shares */

struct fake_device {
    struct samkv_device base;
    _Atomic uint64_t allocations, live;
    bool empty; /* has no memory */
};

static enum samkv_status shared_alloc(struct samkv_device *device, size_t *bytes, void **out)
{
    struct fake_device *fake = (struct fake_device *)device;
    if (fake->empty)
        return SAMKV_NO_MEMORY;
    *bytes = (*bytes + GRANULARITY - 1) / GRANULARITY * GRANULARITY;
    *out = malloc(*bytes);
    atomic_fetch_add(&fake->allocations, 1);
    atomic_fetch_add(&fake->live, 1);
    return SAMKV_OK;
}

static enum samkv_status shared_export(struct samkv_device *device, void *memory, int *fd)
{
    (void)device;
    (void)memory;
    *fd = 123;
    return SAMKV_OK;
}

static void shared_release(struct samkv_device *device, void *memory)
{
    struct fake_device *fake = (struct fake_device *)device;
    free(memory);
    atomic_fetch_sub(&fake->live, 1);
}

static const struct samkv_ops ops = {
    .shared_alloc = shared_alloc, .shared_export = shared_export, .shared_release = shared_release};

static struct fake_device fake;
static struct samkv_leases *pool;
static struct samkv_error err;

static void set_up(void)
{
    memset(&fake, 0, sizeof fake);
    fake.base = (struct samkv_device){.ops = &ops, .shares = true, .name = "fake"};
    ck_assert_int_eq(samkv_leases_new(&fake.base, 20 * MB, &pool), SAMKV_OK);
}

static void tear_down(void)
{
    samkv_leases_free(pool);
    ck_assert_uint_eq(atomic_load(&fake.live), 0);
}

static struct samkv_lease *take(size_t bytes)
{
    struct samkv_lease *lease;
    ck_assert_msg(samkv_lease_take(pool, 0, bytes, &lease, &err) == SAMKV_OK, "%s", err.text);
    ck_assert_uint_ge(samkv_lease_bytes(lease), bytes);
    memset(samkv_lease_memory(lease), 1, bytes);
    return lease;
}

static void expect_refusal(size_t bytes, enum samkv_status status)
{
    struct samkv_lease *lease = (void *)&fake;
    ck_assert_int_eq(samkv_lease_take(pool, 0, bytes, &lease, &err), status);
    ck_assert_ptr_null(lease);
    ck_assert_uint_gt(strlen(err.text), 20);
}

static void expect_stats(uint64_t held, uint64_t held_mb, uint64_t kept_mb)
{
    struct samkv_leases_stats stats;
    samkv_leases_stats(pool, &stats);
    ck_assert_uint_eq(stats.held, held);
    ck_assert_uint_eq(stats.held_bytes, held_mb * MB);
    ck_assert_uint_eq(stats.kept_bytes, kept_mb * MB);
    ck_assert_uint_eq(stats.limit_bytes, 20 * MB);
}

/* Memory is given back by a thread of the pool. */
static void await_live(uint64_t live)
{
    while (atomic_load(&fake.live) != live)
        sched_yield();
}

/* ------------------------------------------------------------------ tests */

/* A client that keeps a mapping which it said was gone sees what the same user's others get, and nobody else's. */
START_TEST(kept_memory_stays_with_its_user)
{
    struct samkv_lease *lease, *other;
    ck_assert_int_eq(samkv_lease_take(pool, 5, 2 * MB, &lease, &err), SAMKV_OK);
    const void *memory = samkv_lease_memory(lease);
    samkv_lease_end(lease, true);
    ck_assert_int_eq(samkv_lease_take(pool, 6, 2 * MB, &other, &err), SAMKV_OK);
    ck_assert_ptr_ne(samkv_lease_memory(other), memory);
    ck_assert_int_eq(samkv_lease_take(pool, 5, 2 * MB, &lease, &err), SAMKV_OK);
    ck_assert_ptr_eq(samkv_lease_memory(lease), memory);
    samkv_lease_end(lease, true);
    samkv_lease_end(other, true);
}
END_TEST

START_TEST(clean_memory_is_used_again)
{
    struct samkv_lease *lease = take(3 * MB);
    void *memory = samkv_lease_memory(lease);
    expect_stats(1, 4, 0);
    samkv_lease_end(lease, true);
    expect_stats(0, 0, 4);
    lease = take(4 * MB);
    ck_assert_ptr_eq(samkv_lease_memory(lease), memory);
    ck_assert_uint_eq(atomic_load(&fake.allocations), 1);
    expect_stats(1, 4, 0);
    int fd;
    ck_assert_int_eq(samkv_lease_export(lease, &fd, &err), SAMKV_OK);
    ck_assert_int_eq(fd, 123);
    samkv_lease_end(lease, true);
    samkv_lease_end(NULL, true);
}
END_TEST

START_TEST(unclean_memory_is_never_used_again)
{
    samkv_lease_end(take(4 * MB), false);
    expect_stats(0, 0, 0);
    samkv_lease_end(take(4 * MB), true);
    ck_assert_uint_eq(atomic_load(&fake.allocations), 2);
    await_live(1);
}
END_TEST

/* The smallest that serves is taken, and a small reply may waste what comes in steps of megabytes. */
START_TEST(what_fits_best_is_taken)
{
    struct samkv_lease *large = take(8 * MB), *small = take(4 * MB);
    void *small_memory = samkv_lease_memory(small);
    samkv_lease_end(small, true);
    samkv_lease_end(large, true);
    expect_stats(0, 0, 12);
    struct samkv_lease *lease = take(4 * MB);
    ck_assert_ptr_eq(samkv_lease_memory(lease), small_memory);
    struct samkv_lease *tiny = take(1); /* of the 8 MB */
    ck_assert_uint_eq(atomic_load(&fake.allocations), 2);
    samkv_lease_end(lease, true);
    samkv_lease_end(tiny, true);
}
END_TEST

/* One after the other they need one piece of memory, however small they are beside its steps. */
START_TEST(small_replies_share)
{
    for (int i = 0; i < 50; i++)
        samkv_lease_end(take((size_t)i + 1), true);
    ck_assert_uint_eq(atomic_load(&fake.allocations), 1);
}
END_TEST

/* Much memory is not bound by a reply that needs half of it. */
START_TEST(much_memory_is_not_wasted)
{
    struct samkv_leases *large;
    struct samkv_lease *lease, *other;
    ck_assert_int_eq(samkv_leases_new(&fake.base, 400 * MB, &large), SAMKV_OK);
    ck_assert_int_eq(samkv_lease_take(large, 0, 100 * MB, &lease, &err), SAMKV_OK);
    void *memory = samkv_lease_memory(lease);
    samkv_lease_end(lease, true);
    ck_assert_int_eq(samkv_lease_take(large, 0, 40 * MB, &other, &err), SAMKV_OK);
    ck_assert_ptr_ne(samkv_lease_memory(other), memory);
    ck_assert_int_eq(samkv_lease_take(large, 0, 60 * MB, &lease, &err), SAMKV_OK);
    ck_assert_ptr_eq(samkv_lease_memory(lease), memory);
    samkv_lease_end(other, true);
    samkv_lease_end(lease, true);
    samkv_leases_free(large);
}
END_TEST

/* What was used lately is kept: older memory goes for it when both exceed the limit. */
START_TEST(the_oldest_goes_first)
{
    struct samkv_lease *old = take(12 * MB);
    samkv_lease_end(old, true);
    struct samkv_lease *lease = take(8 * MB);
    void *first = samkv_lease_memory(lease); /* the 12 MB: it may be wasted so far */
    struct samkv_lease *next = take(8 * MB);
    samkv_lease_end(lease, true);
    expect_stats(1, 8, 12);
    void *latest = samkv_lease_memory(next);
    samkv_lease_end(next, true);
    expect_stats(0, 0, 20);
    lease = take(8 * MB);
    ck_assert_ptr_eq(samkv_lease_memory(lease), latest); /* the better fit */
    ck_assert_ptr_ne(latest, first);
    samkv_lease_end(lease, true);
}
END_TEST

/* A job that computes and a client that maps: the memory is held until both have ended, whoever is first. */
START_TEST(two_holders)
{
    struct samkv_lease *lease = take(4 * MB), *client = samkv_lease_share(lease);
    void *memory = samkv_lease_memory(lease);
    ck_assert_ptr_eq(samkv_lease_memory(client), memory);
    expect_stats(1, 4, 0); /* one lease, whatever the number of its holders */
    samkv_lease_end(client, true);
    expect_stats(1, 4, 0);
    struct samkv_lease *other = take(4 * MB);
    ck_assert_ptr_ne(samkv_lease_memory(other), memory);
    expect_stats(2, 8, 0);
    samkv_lease_end(lease, true);
    expect_stats(1, 4, 4);
    samkv_lease_end(other, true);
    expect_stats(0, 0, 8);
    ck_assert_uint_eq(atomic_load(&fake.live), 2);
}
END_TEST

/* Of the ends, the first, the last, or both. */
START_TEST(one_unclean_end_is_enough)
{
    static const bool clean[][2] = {{false, true}, {true, false}, {false, false}};
    struct samkv_lease *lease = take(4 * MB), *client = samkv_lease_share(lease);
    samkv_lease_end(client, clean[_i][0]);
    expect_stats(1, 4, 0);
    ck_assert_uint_eq(atomic_load(&fake.live), 1); /* the other one still uses it */
    memset(samkv_lease_memory(lease), 2, 4 * MB);
    samkv_lease_end(lease, clean[_i][1]);
    expect_stats(0, 0, 0);
    await_live(0);
}
END_TEST

/* Memory that is used again has one holder, and what became of other memory is not held against it. */
START_TEST(kept_memory_begins_anew)
{
    struct samkv_lease *lease = take(4 * MB), *unclean = take(4 * MB);
    void *memory = samkv_lease_memory(lease);
    samkv_lease_share(lease);
    samkv_lease_end(unclean, false);
    samkv_lease_end(lease, true);
    samkv_lease_end(lease, true);
    for (int i = 0; i < 3; i++) {
        expect_stats(0, 0, 4);
        lease = take(4 * MB);
        ck_assert_ptr_eq(samkv_lease_memory(lease), memory);
        if (i == 1) {
            samkv_lease_share(lease);
            samkv_lease_end(lease, true);
        }
        expect_stats(1, 4, 0);
        samkv_lease_end(lease, true);
    }
    samkv_lease_end(take(4 * MB), false);
    expect_stats(0, 0, 0);
    lease = take(4 * MB); /* perhaps at the same address */
    samkv_lease_end(lease, true);
    expect_stats(0, 0, 4);
}
END_TEST

START_TEST(the_limit_is_kept)
{
    struct samkv_lease *a = take(10 * MB), *b = take(8 * MB);
    expect_refusal(4 * MB, SAMKV_BUSY);
    ck_assert_ptr_nonnull(strstr(err.text, "--device-reply-bytes"));
    expect_refusal(20 * MB + 1, SAMKV_TOO_LARGE);
    expect_refusal(SIZE_MAX, SAMKV_TOO_LARGE);
    expect_stats(2, 18, 0);
    samkv_lease_end(b, false);
    samkv_lease_end(take(10 * MB), true);
    samkv_lease_end(a, true);
    expect_stats(0, 0, 20);
}
END_TEST

START_TEST(kept_memory_makes_room_for_a_larger_reply)
{
    struct samkv_lease *lease = take(8 * MB), *small = take(2 * MB);
    samkv_lease_end(lease, true);
    samkv_lease_end(small, true);
    expect_stats(0, 0, 10);
    lease = take(16 * MB);
    expect_stats(1, 16, 0);
    await_live(1);
    samkv_lease_end(lease, true);
}
END_TEST

START_TEST(a_device_without_memory)
{
    fake.empty = true;
    expect_refusal(4 * MB, SAMKV_NO_MEMORY);
    ck_assert_ptr_nonnull(strstr(err.text, "fake has no memory"));
    expect_stats(0, 0, 0);
    fake.empty = false;
    samkv_lease_end(take(4 * MB), true);
}
END_TEST

/* tear_down finds none alive. */
START_TEST(kept_memory_goes_with_the_pool)
{
    samkv_lease_end(take(4 * MB), true);
    samkv_lease_end(take(6 * MB), false);
    samkv_leases_free(NULL);
}
END_TEST

static void *borrow(void *arg)
{
    (void)arg;
    for (int i = 0; i < 2000; i++) {
        struct samkv_lease *lease;
        struct samkv_error why;
        enum samkv_status st = samkv_lease_take(pool, 0, (size_t)(1 + i % 7) * MB, &lease, &why);
        ck_assert(st == SAMKV_OK || st == SAMKV_BUSY);
        if (lease && i % 2)
            samkv_lease_end(samkv_lease_share(lease), i % 5 != 0);
        samkv_lease_end(lease, i % 3 != 0);
    }
    return NULL;
}

START_TEST(many_threads)
{
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, borrow, NULL);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    struct samkv_leases_stats stats;
    samkv_leases_stats(pool, &stats);
    ck_assert_uint_eq(stats.held, 0);
    ck_assert_uint_eq(stats.held_bytes, 0);
    ck_assert_uint_le(stats.kept_bytes, 20 * MB);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("lease");
    TCase *tc = tcase_create("lease");
    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, set_up, tear_down);
    tcase_add_test(tc, kept_memory_stays_with_its_user);
    tcase_add_test(tc, clean_memory_is_used_again);
    tcase_add_test(tc, unclean_memory_is_never_used_again);
    tcase_add_test(tc, what_fits_best_is_taken);
    tcase_add_test(tc, two_holders);
    tcase_add_loop_test(tc, one_unclean_end_is_enough, 0, 3);
    tcase_add_test(tc, kept_memory_begins_anew);
    tcase_add_test(tc, small_replies_share);
    tcase_add_test(tc, much_memory_is_not_wasted);
    tcase_add_test(tc, the_oldest_goes_first);
    tcase_add_test(tc, the_limit_is_kept);
    tcase_add_test(tc, kept_memory_makes_room_for_a_larger_reply);
    tcase_add_test(tc, a_device_without_memory);
    tcase_add_test(tc, kept_memory_goes_with_the_pool);
    tcase_add_test(tc, many_threads);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
