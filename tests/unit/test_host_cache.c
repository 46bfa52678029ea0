#include <check.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "daemon/base/pool.h"
#include "daemon/store/arena.h"
#include "daemon/store/host_cache.h"
#include "daemon/store/record.h"
#include "tests/bench/cache_policies.h"
#include "tests/bench/cache_trace.h"

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

#define MIB ((size_t)1 << 20)

static struct samkv_host_cache *cache;

static void open_cache(uint64_t budget_bytes)
{
    struct samkv_error err = {0};
    ck_assert_msg(samkv_host_cache_new(budget_bytes, &cache, &err) == SAMKV_OK, "%s", err.text);
}

static void setup(void)
{
    open_cache(MIB);
}

static void teardown(void)
{
    samkv_host_cache_free(cache);
    cache = NULL;
}

static struct samkv_host_cache_stats stats(void)
{
    struct samkv_host_cache_stats out;
    samkv_host_cache_stats(cache, &out);
    return out;
}

static uint64_t epoch(void)
{
    return samkv_host_cache_epoch(cache);
}

static struct samkv_host_key block_key(uint32_t document, uint32_t number)
{
    struct samkv_host_key key = {.kind = SAMKV_RECORD_BLOCK, .number = number};
    uint64_t state = document;
    for (int i = 0; i < 2; i++) {
        uint64_t r = trace_random(&state);
        memcpy(key.document.bytes + 8 * i, &r, 8);
    }
    return key;
}

static void fill(uint8_t *to, size_t bytes, uint64_t seed)
{
    for (size_t i = 0; i < bytes; i++)
        to[i] = (uint8_t)((seed + i) * 2654435761u >> 13);
}

/* `count` pieces of `bytes` that follow from the seed. */
static void add_at(uint64_t when, struct samkv_host_key key, size_t count, size_t bytes, uint64_t seed)
{
    uint8_t *all = malloc(count * bytes);
    void **pieces = malloc(count * sizeof *pieces);
    fill(all, count * bytes, seed);
    for (size_t i = 0; i < count; i++)
        pieces[i] = all + i * bytes;
    const struct samkv_layout layout = {SAMKV_BF16, count, bytes};
    samkv_host_cache_add(cache, when, &key, &layout, pieces);
    free(pieces), free(all);
}

enum outcome { ABSENT, RIGHT, WRONG };

static enum outcome read_at(uint64_t when, struct samkv_host_key key, size_t count, size_t bytes, uint64_t seed)
{
    uint8_t *got = calloc(count, bytes), *want = malloc(count * bytes);
    void **pieces = malloc(count * sizeof *pieces);
    for (size_t i = 0; i < count; i++)
        pieces[i] = got + i * bytes;
    const struct samkv_layout layout = {SAMKV_BF16, count, bytes};
    enum outcome outcome = ABSENT;
    fill(want, count * bytes, seed);
    if (samkv_host_cache_read(cache, when, &key, &layout, pieces))
        outcome = memcmp(got, want, count * bytes) ? WRONG : RIGHT;
    free(pieces), free(got), free(want);
    return outcome;
}

/* ------------------------------------------------------------------ bytes */

START_TEST(odd_sizes_come_back)
{
    static const size_t sizes[][2] = {{1, 1},    {1, 2},    {3, 7},     {1, 4000}, {1, 4095},  {1, 4096}, {5, 4097},
                                      {2, 8191}, {60, 321}, {1, 12289}, {7, 9999}, {1, 65537}, {60, 1536}};
    uint32_t n = sizeof sizes / sizeof *sizes;
    for (uint32_t i = 0; i < n; i++)
        add_at(epoch(), block_key(i, i), sizes[i][0], sizes[i][1], i);
    for (uint32_t i = 0; i < n; i++) {
        ck_assert_int_eq(read_at(epoch(), block_key(i, i), sizes[i][0], sizes[i][1], i), RIGHT);
        ck_assert_int_eq(read_at(epoch(), block_key(i, i), sizes[i][0], sizes[i][1] + 1, i), ABSENT);
        ck_assert_int_eq(read_at(epoch(), block_key(i, i + 1), sizes[i][0], sizes[i][1], i), ABSENT);
    }
    ck_assert_uint_eq(stats().entries, n);
}
END_TEST

/* Chains that were given back in another order than they were taken are scattered; the bytes must not care. */
START_TEST(bytes_survive_scattered_chunks)
{
    uint64_t state = 7;
    for (uint32_t i = 0; i < 5000; i++) {
        uint32_t number = (uint32_t)(trace_random(&state) % 97);
        size_t bytes = 1 + 517 * (size_t)number;
        ck_assert_int_ne(read_at(epoch(), block_key(1, number), 3, bytes, number), WRONG);
        add_at(epoch(), block_key(1, number), 3, bytes, number);
    }
    ck_assert_uint_gt(stats().hits, 100);
    ck_assert_uint_gt(stats().evictions, 1000);
}
END_TEST

START_TEST(a_record_larger_than_the_budget_is_not_kept)
{
    add_at(epoch(), block_key(1, 0), 1, 1000, 5);
    add_at(epoch(), block_key(1, 1), 2, MIB / 2, 6);
    ck_assert_int_eq(read_at(epoch(), block_key(1, 1), 2, MIB / 2, 6), ABSENT);
    ck_assert_int_eq(read_at(epoch(), block_key(1, 0), 1, 1000, 5), RIGHT); /* nothing left for it */
    const struct samkv_host_key key = block_key(1, 2);
    ck_assert_ptr_null(samkv_host_cache_make(cache, epoch(), &key, SIZE_MAX));
    ck_assert_ptr_null(samkv_host_cache_make(cache, epoch(), &key, SIZE_MAX - 4096));
}
END_TEST

START_TEST(budgets_that_cannot_be)
{
    struct samkv_host_cache *none;
    struct samkv_error err = {0};
    ck_assert_int_eq(samkv_host_cache_new(MIB - 1, &none, &err), SAMKV_INVALID);
    ck_assert_ptr_null(none);
    ck_assert_ptr_nonnull(strstr(err.text, "1 MiB"));
    samkv_host_cache_free(NULL);
#if !SANITIZED
    struct rlimit was, low;
    getrlimit(RLIMIT_AS, &was);
    low = was;
    low.rlim_cur = 64 * MIB;
    setrlimit(RLIMIT_AS, &low);
    enum samkv_status st = samkv_host_cache_new(1024 * MIB, &none, &err);
    setrlimit(RLIMIT_AS, &was);
    ck_assert_int_eq(st, SAMKV_NO_MEMORY);
    ck_assert_ptr_null(none);
    ck_assert_ptr_nonnull(strstr(err.text, "--host-cache-bytes"));
#endif
}
END_TEST

/* Any budget from the smallest on, to the byte: what is laid out fits into it. */
START_TEST(any_budget_is_used_and_kept)
{
    static const size_t budgets[] = {MIB, MIB + 1, MIB + 4096, 3 * MIB - 1, 7654321, 64 * MIB + 12345};
    for (size_t i = 0; i < sizeof budgets / sizeof *budgets; i++) {
        teardown();
        open_cache(budgets[i]);
        for (uint32_t n = 0; n < 2 * budgets[i] / 40000; n++) {
            add_at(epoch(), block_key(2, n), 1, 40000, n);
            ck_assert_uint_le(stats().bytes, budgets[i]);
        }
        ck_assert_uint_gt(stats().bytes, budgets[i] / 100 * 92);
    }
}
END_TEST

/* ------------------------------------------------------------------ what stays */

/* Of so many chunks, header included. */
static void add_chunks(uint32_t number, uint32_t chunks)
{
    add_at(epoch(), block_key(1, number), 1, chunks * SAMKV_CHUNK_BYTES - 512, number);
}

static bool is_here(uint32_t number)
{
    const struct samkv_host_key key = block_key(1, number);
    struct samkv_hosted *found = samkv_host_cache_find(cache, epoch(), &key);
    if (found)
        samkv_host_cache_unpin(cache, found);
    return found;
}

/* How many of [first, end). */
static uint64_t count_here(uint32_t first, uint32_t end)
{
    uint64_t here = 0;
    for (uint32_t n = first; n < end; n++)
        here += is_here(n);
    return here;
}

/* 1 MiB has some 250 chunks, the small queue's share is 25 of them. */
START_TEST(what_nobody_asks_for_leaves_in_order)
{
    for (uint32_t n = 0; n < 24; n++)
        add_chunks(n, 10);
    ck_assert_uint_eq(stats().evictions, 0);
    add_chunks(24, 10);
    add_chunks(25, 10);
    ck_assert_uint_ge(stats().evictions, 1);
    uint32_t gone = (uint32_t)stats().evictions;
    ck_assert_uint_eq(count_here(0, gone), 0);
    ck_assert_uint_eq(count_here(gone, 26), 26 - gone);
}
END_TEST

START_TEST(one_use_is_enough_to_outlive_a_scan)
{
    add_chunks(0, 10);
    add_chunks(1, 10);
    ck_assert(is_here(0));
    for (uint32_t n = 100; n < 400; n++)
        add_chunks(n, 10); /* each once */
    ck_assert(is_here(0));
    ck_assert(!is_here(1));
}
END_TEST

START_TEST(what_comes_back_soon_goes_to_the_main_queue)
{
    for (uint32_t n = 0; n < 30; n++)
        add_chunks(n, 10);
    ck_assert(!is_here(0));
    add_chunks(0, 10); /* a ghost: nobody has to ask a second time */
    for (uint32_t n = 100; n < 140; n++)
        add_chunks(n, 10);
    ck_assert(is_here(0));
    ck_assert(!is_here(100));
}
END_TEST

START_TEST(ghosts_are_forgotten_in_time)
{
    for (uint32_t n = 0; n < 6; n++)
        add_chunks(n, 60);
    ck_assert(!is_here(0));
    for (uint32_t n = 100; n < 110; n++)
        add_chunks(n,
                   60); /* 600 chunks evicted since, and the main queue holds 225; few keys, so none is crowded out */
    add_chunks(0, 60);
    for (uint32_t n = 200; n < 204; n++)
        add_chunks(n, 60);
    ck_assert(!is_here(0));
}
END_TEST

/* In the main queue each use is worth one round; without any it leaves. */
START_TEST(uses_are_used_up)
{
    add_chunks(0, 100);
    ck_assert(is_here(0));
    for (uint32_t n = 1; n < 4; n++) { /* each of them used: the main queue turns round */
        add_chunks(n, 100);
        ck_assert(is_here(n));
    }
    for (uint32_t n = 10; n < 14; n++) {
        add_chunks(n, 100);
        ck_assert(is_here(n));
    }
    ck_assert(!is_here(0));
}
END_TEST

START_TEST(what_is_pinned_keeps_its_bytes_after_it_left)
{
    const struct samkv_host_key key = block_key(1, 0);
    add_chunks(0, 100);
    struct samkv_hosted *pinned = samkv_host_cache_find(cache, epoch(), &key);
    ck_assert_ptr_nonnull(pinned);
    for (uint32_t n = 1; n < 200; n++)
        add_chunks(n, 50), (void)is_here(n);
    ck_assert(!is_here(0));
    size_t bytes = 100 * SAMKV_CHUNK_BYTES - 512;
    uint8_t *got = malloc(bytes), *want = malloc(bytes);
    void *dst[1] = {got};
    const struct samkv_layout layout = {SAMKV_BF16, 1, bytes};
    ck_assert(samkv_hosted_copy(cache, pinned, &layout, dst));
    fill(want, bytes, 0);
    ck_assert_mem_eq(got, want, bytes);
    add_chunks(500, 170); /* no room while its 100 chunks are in use */
    ck_assert(!is_here(500));
    samkv_host_cache_unpin(cache, pinned);
    add_chunks(500, 170);
    ck_assert(is_here(500));
    free(got), free(want);
}
END_TEST

START_TEST(with_everything_in_use_nothing_is_added)
{
    struct samkv_hosted *made[64];
    int n = 0;
    for (; n < 64; n++) {
        const struct samkv_host_key key = block_key(3, (uint32_t)n);
        made[n] = samkv_host_cache_make(cache, epoch(), &key, 10 * SAMKV_CHUNK_BYTES);
        if (!made[n])
            break;
    }
    ck_assert_int_gt(n, 15);
    ck_assert_int_lt(n, 26);
    ck_assert_uint_le(stats().bytes, MIB);
    ck_assert_uint_eq(stats().entries, 0);
    for (int i = 0; i < n; i++)
        samkv_host_cache_unpin(cache, made[i]); /* never published: their makers failed */
    add_chunks(0, 200);
    ck_assert(is_here(0));
}
END_TEST

START_TEST(the_second_copy_of_a_record_is_dropped)
{
    const struct samkv_host_key key = block_key(1, 0);
    struct samkv_hosted *a = samkv_host_cache_make(cache, epoch(), &key, 5000),
                        *b = samkv_host_cache_make(cache, epoch(), &key, 5000);
    uint64_t empty = stats().bytes - 4 * SAMKV_CHUNK_BYTES;
    samkv_host_cache_publish(cache, epoch(), a);
    samkv_host_cache_publish(cache, epoch(), b);
    ck_assert_uint_eq(stats().entries, 1);
    samkv_host_cache_unpin(cache, a);
    samkv_host_cache_unpin(cache, b);
    ck_assert_uint_eq(stats().bytes, empty + 2 * SAMKV_CHUNK_BYTES);
    ck_assert_ptr_null(samkv_host_cache_make(cache, epoch(), &key, 5000)); /* it is here */
}
END_TEST

/* ------------------------------------------------------------------ versions */

START_TEST(a_closed_document_loses_its_entries_and_others_do_not)
{
    for (uint32_t n = 0; n < 5; n++) {
        add_at(epoch(), block_key(1, n), 1, 5000, n);
        add_at(epoch(), block_key(2, n), 1, 5000, n);
    }
    uint64_t before = stats().bytes;
    const struct samkv_host_key key = block_key(1, 0);
    samkv_host_cache_close(cache, &key.document);
    ck_assert_uint_eq(stats().entries, 5);
    ck_assert_uint_eq(stats().bytes, before - 5 * 2 * SAMKV_CHUNK_BYTES);
    ck_assert_uint_eq(stats().evictions, 0);
    for (uint32_t n = 0; n < 5; n++) {
        ck_assert_int_eq(read_at(epoch(), block_key(1, n), 1, 5000, n), ABSENT);
        ck_assert_int_eq(read_at(epoch(), block_key(2, n), 1, 5000, n), RIGHT);
    }
    add_at(epoch(), key, 1, 5000, 0); /* not while it is closed */
    ck_assert_uint_eq(stats().entries, 5);
    samkv_host_cache_reopen(cache);
    add_at(epoch(), key, 1, 5000, 77);
    ck_assert_int_eq(read_at(epoch(), key, 1, 5000, 77), RIGHT);
}
END_TEST

START_TEST(an_old_snapshot_neither_adds_nor_finds)
{
    const struct samkv_host_key key = block_key(1, 0);
    uint64_t old = epoch();
    struct samkv_hosted *made = samkv_host_cache_make(cache, old, &key, 5000); /* decoding while it is removed */
    samkv_host_cache_close(cache, &key.document);
    samkv_host_cache_close(cache, &key.document); /* several records of it in one transaction */
    samkv_host_cache_reopen(cache);
    samkv_host_cache_publish(cache, old, made);
    samkv_host_cache_unpin(cache, made);
    ck_assert_uint_eq(stats().entries, 0);
    add_at(old, key, 1, 5000, 1);
    ck_assert_uint_eq(stats().entries, 0);
    uint64_t new = epoch();
    ck_assert_uint_gt(new, old);
    add_at(new, key, 1, 5000, 2);
    ck_assert_int_eq(read_at(old, key, 1, 5000, 1), ABSENT);
    ck_assert_int_eq(read_at(new, key, 1, 5000, 2), RIGHT);
    ck_assert_int_eq(read_at(old, block_key(2, 0), 1, 5000, 1), ABSENT);
    add_at(old, block_key(2, 0), 1, 5000, 3); /* another document is nobody's business */
    ck_assert_int_eq(read_at(old, block_key(2, 0), 1, 5000, 3), RIGHT);
}
END_TEST

START_TEST(without_a_cache_nothing_is_closed)
{
    const struct samkv_host_key key = block_key(1, 0);
    samkv_host_cache_close(NULL, &key.document);
    samkv_host_cache_reopen(NULL);
    uint64_t before = epoch();
    samkv_host_cache_reopen(cache); /* a transaction that changed no record */
    ck_assert_uint_eq(epoch(), before);
}
END_TEST

/* ------------------------------------------------------------------ threads */

#define DOCUMENTS 40
#define BLOCKS    6

static atomic_uint version[DOCUMENTS];
static atomic_int wrong, too_much;
static atomic_bool over;

static size_t size_of(uint32_t document, uint32_t block)
{
    return 1 + (document * 7919u + block * 104729u) % 30000u;
}

/* A snapshot is the epoch and then the version, as a transaction begins after the epoch was noted. */
static void read_documents(uint64_t seed)
{
    for (int i = 0; i < (SANITIZED ? 800 : 3000); i++) {
        uint32_t d = (uint32_t)(trace_random(&seed) % DOCUMENTS);
        uint64_t when = epoch();
        unsigned seen = atomic_load(&version[d]);
        if (i % 8 == 0)
            sched_yield(); /* a request takes its time: documents change meanwhile */
        for (uint32_t b = 0; b < BLOCKS; b++) {
            uint64_t content = (uint64_t)seen << 32 | d << 8 | b;
            enum outcome outcome = read_at(when, block_key(d, b), 1, size_of(d, b), content);
            wrong += outcome == WRONG;
            if (outcome == ABSENT)
                add_at(when, block_key(d, b), 1, size_of(d, b), content);
        }
    }
}

static void change_documents(uint64_t seed)
{
    while (!atomic_load(&over)) {
        uint32_t n = 1 + (uint32_t)(trace_random(&seed) % 3), changed[3];
        for (uint32_t i = 0; i < n; i++) {
            changed[i] = (uint32_t)(trace_random(&seed) % DOCUMENTS);
            const struct samkv_host_key key = block_key(changed[i], 0);
            samkv_host_cache_close(cache, &key.document);
        }
        if (trace_random(&seed) % 4) /* else the transaction fails */
            for (uint32_t i = 0; i < n; i++)
                atomic_fetch_add(&version[changed[i]], 1);
        samkv_host_cache_reopen(cache);
        usleep(50);
    }
}

static void watch_budget(void)
{
    while (!atomic_load(&over)) {
        too_much += stats().bytes > stats().budget_bytes;
        usleep(20);
    }
}

static void one_of_many(void *arg, int i)
{
    (void)arg;
    if (i == 0) {
        change_documents(99);
    } else if (i == 1) {
        watch_budget();
    } else {
        read_documents((uint64_t)i * 1000);
        if (i == 2)
            atomic_store(&over, true);
    }
}

START_TEST(no_thread_ever_sees_another_version)
{
    samkv_parallel_for(7, 7, one_of_many, NULL);
    ck_assert_int_eq(wrong, 0);
    ck_assert_int_eq(too_much, 0);
    struct samkv_host_cache_stats s = stats();
    ck_assert_uint_gt(s.hits, 100);
    ck_assert_uint_gt(s.evictions, 0);
    for (uint32_t d = 0; d < DOCUMENTS; d++) {
        const struct samkv_host_key key = block_key(d, 0);
        samkv_host_cache_close(cache, &key.document);
    }
    samkv_host_cache_reopen(cache);
    ck_assert_uint_eq(stats().entries, 0);
    uint64_t empty = stats().bytes; /* the tables alone: nothing was lost on the way */
    teardown();
    setup();
    ck_assert_uint_eq(stats().bytes, empty);
}
END_TEST

#if !SANITIZED
static long resident_kib(void)
{
    long kib = -1;
    char line[128];
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        sscanf(line, "RssAnon: %ld kB", &kib);
    if (f)
        fclose(f);
    return kib;
}

/* What the system counts, not we: ten times the budget goes through, in sizes that would leave holes in a heap. */
START_TEST(resident_memory_stays_below_the_budget)
{
    const size_t budget = 64 * MIB;
    teardown();
    long before = resident_kib(), most = 0;
    open_cache(budget);
    uint64_t state = 3;
    uint8_t *bytes = calloc(1, 2 * MIB);
    for (uint32_t n = 0; n < 1200; n++) {
        void *src[1] = {bytes};
        const struct samkv_layout layout = {SAMKV_BF16, 1, 100000 + trace_random(&state) % 1900000};
        const struct samkv_host_key key = block_key(n, 0);
        samkv_host_cache_add(cache, epoch(), &key, &layout, src);
        long now = resident_kib();
        most = now > most ? now : most;
    }
    free(bytes);
    ck_assert_int_le(most - before, (long)(budget >> 10) + 2048 + 256); /* and `bytes`, and what the test needs */
    ck_assert_int_ge(most - before, (long)(budget >> 10) / 100 * 90);
}
END_TEST
#endif

/* ------------------------------------------------------------------ replay */

/* The simulation that the policy was chosen by, and this code, on the same trace. */
START_TEST(hit_rates_are_those_of_the_simulation)
{
    static const double alphas[] = {0.6, 0.9, 1.2};
    for (int i = 0; i < 3; i++) {
        const struct trace_options o = {.documents = 200,
                                        .fetches = SANITIZED ? 400 : 2000,
                                        .alpha = alphas[i],
                                        .scans = 0.02,
                                        .drift = 0.2,
                                        .token_bytes = 46080,
                                        .index_bytes = 768,
                                        .seed = 11};
        struct trace t;
        struct policy p;
        trace_make(&t, &o);
        uint64_t budget = t.footprint_bytes / 10, hits = 0;
        policy_init(&p, POLICY_S3FIFO, budget, t.records, t.bytes);
        teardown();
        open_cache(budget);
        for (size_t r = 0; r < t.read_count; r++) {
            uint32_t record = t.reads[r];
            const struct samkv_host_key key = block_key(t.document[record], record - t.first[t.document[record]]);
            policy_read(&p, record);
            struct samkv_hosted *entry = samkv_host_cache_find(cache, epoch(), &key);
            hits += entry != NULL;
            if (!entry) {
                entry = samkv_host_cache_make(cache, epoch(), &key, t.bytes[record]);
                ck_assert_ptr_nonnull(entry);
                samkv_host_cache_publish(cache, epoch(), entry);
            }
            samkv_host_cache_unpin(cache, entry);
        }
        double real = (double)hits / (double)t.read_count, simulated = (double)p.hit_count / (double)t.read_count;
        ck_assert_double_gt(simulated, 0.3);
        ck_assert_msg(real - simulated < 0.01 && simulated - real < 0.01, "alpha %g: %.4f, simulated %.4f", alphas[i],
                      real, simulated);
        policy_free(&p);
        trace_free(&t);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("host_cache");
    TCase *tc = tcase_create("host_cache");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, odd_sizes_come_back);
    tcase_add_test(tc, bytes_survive_scattered_chunks);
    tcase_add_test(tc, a_record_larger_than_the_budget_is_not_kept);
    tcase_add_test(tc, budgets_that_cannot_be);
    tcase_add_test(tc, any_budget_is_used_and_kept);
    tcase_add_test(tc, what_nobody_asks_for_leaves_in_order);
    tcase_add_test(tc, one_use_is_enough_to_outlive_a_scan);
    tcase_add_test(tc, what_comes_back_soon_goes_to_the_main_queue);
    tcase_add_test(tc, ghosts_are_forgotten_in_time);
    tcase_add_test(tc, uses_are_used_up);
    tcase_add_test(tc, what_is_pinned_keeps_its_bytes_after_it_left);
    tcase_add_test(tc, with_everything_in_use_nothing_is_added);
    tcase_add_test(tc, the_second_copy_of_a_record_is_dropped);
    tcase_add_test(tc, a_closed_document_loses_its_entries_and_others_do_not);
    tcase_add_test(tc, an_old_snapshot_neither_adds_nor_finds);
    tcase_add_test(tc, without_a_cache_nothing_is_closed);
    tcase_add_test(tc, no_thread_ever_sees_another_version);
#if !SANITIZED
    tcase_add_test(tc, resident_memory_stays_below_the_budget);
#endif
    tcase_add_test(tc, hit_rates_are_those_of_the_simulation);
    tcase_set_timeout(tc, 120);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
