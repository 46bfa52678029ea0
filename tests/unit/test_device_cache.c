/* What a device keeps of hot documents, over a CPU that plays a GPU. Sizes are chosen so that rounding hides nothing.
 */
#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/samkv/device_cache.h"

#define MB    ((size_t)1 << 20)
#define FITS  4 /* entries of 1 MB that the budget has room for */
#define ROOMY (64 * MB)

static struct samkv_device *device;
static struct samkv_stream *stream;
static struct samkv_device_cache *cache;

static void open_cache(uint64_t budget_bytes)
{
    ck_assert_int_eq(samkv_cpu_discrete_new(1, &device, NULL), SAMKV_OK);
    ck_assert_int_eq(device->ops->stream_new(device, &stream), SAMKV_OK);
    ck_assert_int_eq(samkv_device_cache_new(device, budget_bytes, &cache), SAMKV_OK);
}

static void set_up(void)
{
    open_cache(FITS * MB);
}

/* The device asserts that all of its memory came back. */
static void tear_down(void)
{
    samkv_device_cache_free(cache);
    device->ops->stream_free(stream);
    device->ops->device_free(device);
}

static void start_again(uint64_t budget_bytes)
{
    tear_down();
    open_cache(budget_bytes);
}

/* As content keys are: hashes, of which any byte may be the one that differs. */
static struct samkv_cached_key key_of(uint32_t number)
{
    struct samkv_cached_key key = {.kind = SAMKV_CACHED_BLOCK, .number = number % 7};
    memset(key.document, 0x5a, sizeof key.document);
    key.document[15] = (uint8_t)number;
    key.document[8] = (uint8_t)(number >> 8);
    return key;
}

static struct samkv_cached *make(uint32_t number, size_t bytes)
{
    struct samkv_cached_key key = key_of(number);
    struct samkv_cached *entry;
    ck_assert_int_eq(samkv_device_cache_make(cache, &key, bytes, &entry), SAMKV_OK);
    ck_assert_ptr_nonnull(samkv_cached_memory(entry));
    ck_assert_uint_eq((uintptr_t)samkv_cached_memory(entry) % 16, 0);
    return entry;
}

/* Bytes that tell whose they are. */
static void write_entry(struct samkv_cached *entry, uint32_t number, size_t bytes)
{
    uint8_t *host = malloc(bytes);
    memset(host, (int)(number * 31 + 7), bytes);
    device->ops->upload(stream, samkv_cached_memory(entry), host, bytes);
    ck_assert_int_eq(device->ops->sync(stream, NULL), SAMKV_OK);
    free(host);
}

static bool entry_is(struct samkv_cached *entry, uint32_t number, size_t bytes)
{
    uint8_t *host = malloc(bytes);
    bool right = true;
    device->ops->download(stream, host, samkv_cached_memory(entry), bytes);
    ck_assert_int_eq(device->ops->sync(stream, NULL), SAMKV_OK);
    for (size_t i = 0; i < bytes; i++)
        right = right && host[i] == (uint8_t)(number * 31 + 7);
    free(host);
    return right;
}

/* Pinned. */
static struct samkv_cached *publish(uint32_t number, size_t bytes)
{
    struct samkv_cached *entry = make(number, bytes);
    write_entry(entry, number, bytes);
    samkv_device_cache_publish(entry);
    return entry;
}

static void put(uint32_t number, size_t bytes)
{
    samkv_device_cache_unpin(publish(number, bytes));
}

static struct samkv_cached *find(uint32_t number)
{
    struct samkv_cached_key key = key_of(number);
    return samkv_device_cache_find(cache, &key);
}

/* Finding counts as use. */
static bool has(uint32_t number)
{
    struct samkv_cached *entry = find(number);
    samkv_device_cache_unpin(entry);
    return entry != NULL;
}

static struct samkv_device_cache_stats stats(void)
{
    struct samkv_device_cache_stats out;
    samkv_device_cache_stats(cache, &out);
    return out;
}

/* ------------------------------------------------------------------ tests */

START_TEST(what_is_published_is_found)
{
    ck_assert_ptr_null(find(1));
    struct samkv_cached *made = publish(1, MB), *found = find(1);
    ck_assert_ptr_eq(found, made);
    samkv_device_cache_unpin(made);
    samkv_device_cache_unpin(found);
    found = find(1);
    ck_assert_ptr_nonnull(found);
    ck_assert(entry_is(found, 1, MB));
    samkv_device_cache_unpin(found);
    samkv_device_cache_unpin(NULL);
}
END_TEST

START_TEST(every_part_of_a_key_counts)
{
    struct samkv_cached_key key = key_of(1), other;
    put(1, 100);
    for (size_t i = 0; i < sizeof key.document; i++) {
        other = key;
        other.document[i] ^= 1;
        ck_assert_ptr_null(samkv_device_cache_find(cache, &other));
    }
    other = key;
    other.kind = SAMKV_CACHED_INDEX;
    ck_assert_ptr_null(samkv_device_cache_find(cache, &other));
    other = key;
    other.number++;
    ck_assert_ptr_null(samkv_device_cache_find(cache, &other));
    ck_assert(has(1));
}
END_TEST

/* So many of one document that a look-up meets others on its way. */
START_TEST(records_of_one_document_are_told_apart)
{
    struct samkv_cached_key key = key_of(1);
    for (key.number = 0; key.number < 2000; key.number++) {
        struct samkv_cached *entry;
        ck_assert_int_eq(samkv_device_cache_make(cache, &key, 64, &entry), SAMKV_OK);
        samkv_device_cache_publish(entry);
        samkv_device_cache_unpin(entry);
    }
    key.kind = SAMKV_CACHED_INDEX;
    for (key.number = 0; key.number < 2000; key.number++)
        ck_assert_ptr_null(samkv_device_cache_find(cache, &key));
    key.kind = SAMKV_CACHED_BLOCK;
    for (key.number = 2000; key.number < 4000; key.number++)
        ck_assert_ptr_null(samkv_device_cache_find(cache, &key));
}
END_TEST

START_TEST(nobody_finds_what_is_not_published)
{
    struct samkv_cached *entry = make(1, MB);
    ck_assert_ptr_null(find(1));
    samkv_device_cache_unpin(entry); /* its maker failed */
    ck_assert_ptr_null(find(1));
    ck_assert_uint_eq(stats().entries, 0);
    ck_assert_uint_eq(stats().bytes, 0);
}
END_TEST

START_TEST(the_least_recently_used_goes_first)
{
    for (uint32_t i = 0; i < FITS; i++)
        put(i, MB);
    ck_assert(has(0)); /* 1 is the oldest now, then 2, 3, 0 */
    put(10, MB);
    ck_assert(!has(1));
    ck_assert(has(2));
    put(11, MB);
    ck_assert(!has(3));
    ck_assert(has(0) && has(2) && has(10) && has(11));
    ck_assert_uint_eq(stats().evictions, 2);
}
END_TEST

/* Use begins with the last unpin, however long ago it was made. */
START_TEST(a_pin_makes_it_recent)
{
    struct samkv_cached *first = publish(0, MB);
    for (uint32_t i = 1; i < FITS; i++)
        put(i, MB);
    samkv_device_cache_unpin(first);
    put(10, MB);
    ck_assert(has(0));
    ck_assert(!has(1));
}
END_TEST

START_TEST(the_budget_is_kept)
{
    for (uint32_t i = 0; i < 50; i++) {
        put(i, (i % 3 + 1) * MB / 2);
        ck_assert_uint_le(stats().bytes, FITS * MB);
    }
    ck_assert_uint_ge(stats().bytes, FITS * MB / 2); /* and is made use of */
    ck_assert_uint_gt(stats().evictions, 0);
    put(100, FITS * MB); /* all others go for it */
    ck_assert_uint_eq(stats().entries, 1);
    ck_assert(has(100));
}
END_TEST

START_TEST(what_is_pinned_stays)
{
    struct samkv_cached *pinned = publish(0, MB), *again = find(0);
    samkv_device_cache_unpin(again); /* one of two pins */
    for (uint32_t i = 1; i < 20; i++)
        put(i, MB);
    again = find(0);
    ck_assert_ptr_eq(again, pinned);
    ck_assert(entry_is(pinned, 0, MB));
    samkv_device_cache_unpin(again);
    samkv_device_cache_unpin(pinned);
    ck_assert(has(0));
}
END_TEST

/* A fetch larger than the budget works, and leaves no more than the budget. */
START_TEST(beyond_the_budget_while_all_is_in_use)
{
    struct samkv_cached *entries[3 * FITS];
    for (uint32_t i = 0; i < 3 * FITS; i++)
        entries[i] = publish(i, MB);
    ck_assert_uint_eq(stats().entries, 3 * FITS);
    ck_assert_uint_ge(stats().bytes, 3 * FITS * MB);
    for (uint32_t i = 0; i < 3 * FITS; i++)
        ck_assert(entry_is(entries[i], i, MB));
    struct samkv_cached *found = find(3 * FITS - 1); /* shared, though beyond the budget */
    ck_assert_ptr_eq(found, entries[3 * FITS - 1]);
    samkv_device_cache_unpin(found);
    for (uint32_t i = 0; i < 3 * FITS; i++)
        samkv_device_cache_unpin(entries[i]);
    ck_assert_uint_le(stats().bytes, FITS * MB);
    ck_assert_uint_gt(stats().entries, 0);
    put(100, MB);
    ck_assert(has(100));
}
END_TEST

START_TEST(larger_than_the_budget)
{
    struct samkv_cached *entry = publish(0, 2 * FITS * MB);
    ck_assert(entry_is(entry, 0, 2 * FITS * MB));
    samkv_device_cache_unpin(entry);
    ck_assert(!has(0));
    ck_assert_uint_eq(stats().entries, 0);
    ck_assert_uint_eq(stats().bytes, 0);
}
END_TEST

START_TEST(no_budget_at_all)
{
    start_again(0);
    struct samkv_cached *a = publish(0, 100), *b = publish(1, 100), *found = find(0);
    ck_assert_ptr_eq(found, a);
    samkv_device_cache_unpin(found);
    ck_assert(entry_is(a, 0, 100) && entry_is(b, 1, 100));
    samkv_device_cache_unpin(a);
    samkv_device_cache_unpin(b);
    ck_assert(!has(0) && !has(1));
}
END_TEST

/* Two fetches brought the same record: the first to publish is found, the other serves its maker and goes with it. */
START_TEST(published_twice)
{
    struct samkv_cached *first = make(0, MB), *second = make(0, MB);
    ck_assert_ptr_ne(samkv_cached_memory(first), samkv_cached_memory(second));
    write_entry(first, 0, MB);
    write_entry(second, 0, MB);
    samkv_device_cache_publish(first);
    samkv_device_cache_publish(second);
    struct samkv_cached *found = find(0);
    ck_assert_ptr_eq(found, first);
    samkv_device_cache_unpin(found);
    samkv_device_cache_unpin(first);
    ck_assert(entry_is(second, 0, MB));
    samkv_device_cache_unpin(second);
    ck_assert_uint_eq(stats().entries, 1);
    ck_assert(has(0));
}
END_TEST

START_TEST(a_device_without_memory)
{
    struct samkv_cached_key key = key_of(1);
    struct samkv_cached *entry = (void *)&key;
    put(0, MB);
    ck_assert_int_eq(samkv_device_cache_make(cache, &key, SIZE_MAX / 2, &entry), SAMKV_NO_MEMORY);
    ck_assert_ptr_null(entry);
    ck_assert_uint_le(stats().bytes, MB + MB / 2);
    put(2, MB);
    ck_assert(has(2));
}
END_TEST

START_TEST(figures)
{
    struct samkv_device_cache_stats s = stats();
    ck_assert_uint_eq(s.budget_bytes, FITS * MB);
    ck_assert_uint_eq(s.entries + s.bytes + s.hits + s.misses + s.evictions, 0);
    ck_assert(!has(0));
    put(0, MB);
    put(1, MB);
    ck_assert(has(0) && has(0) && has(1));
    ck_assert(!has(2));
    s = stats();
    ck_assert_uint_eq(s.entries, 2);
    ck_assert_uint_eq(s.bytes, 2 * MB);
    ck_assert_uint_eq(s.hits, 3);
    ck_assert_uint_eq(s.misses, 2);
    ck_assert_uint_eq(s.evictions, 0);
}
END_TEST

/* More than the table begins with. */
START_TEST(many_entries)
{
    start_again(ROOMY);
    for (uint32_t i = 0; i < 6000; i++)
        put(i, 64);
    ck_assert_uint_eq(stats().entries, 6000);
    for (uint32_t i = 0; i < 6000; i += 7) {
        struct samkv_cached *entry = find(i);
        ck_assert_ptr_nonnull(entry);
        ck_assert(entry_is(entry, i, 64));
        samkv_device_cache_unpin(entry);
    }
}
END_TEST

/* ------------------------------------------------------------------ threads */

#define THREADS 4
#define KEYS    24
#define TURNS   3000
#define SMALL   (MB / 4)

static atomic_int wrong;

/* On the CPU an upload is a copy, so threads may write their own entries without a stream of their own. */
static void use_one(uint32_t number)
{
    struct samkv_cached *entry = find(number);
    uint8_t value = (uint8_t)(number * 31 + 7), *bytes;
    if (!entry) {
        entry = make(number, SMALL);
        bytes = samkv_cached_memory(entry);
        bytes[0] = bytes[SMALL - 1] = value;
        samkv_device_cache_publish(entry);
    }
    bytes = samkv_cached_memory(entry);
    if (bytes[0] != value || bytes[SMALL - 1] != value)
        atomic_fetch_add(&wrong, 1);
    samkv_device_cache_unpin(entry);
}

static void *use_many(void *arg)
{
    unsigned seed = (unsigned)(uintptr_t)arg;
    for (int i = 0; i < TURNS; i++)
        use_one((uint32_t)rand_r(&seed) % KEYS);
    return NULL;
}

START_TEST(many_threads)
{
    pthread_t threads[THREADS];
    for (size_t i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, use_many, (void *)(i + 1)), 0);
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    struct samkv_device_cache_stats s = stats();
    ck_assert_int_eq(atomic_load(&wrong), 0);
    ck_assert_uint_eq(s.hits + s.misses, THREADS * TURNS);
    ck_assert_uint_gt(s.evictions, 0);
    ck_assert_uint_le(s.bytes, FITS * MB);
}
END_TEST

/* ------------------------------------------------------------------ a device that is full */

static struct samkv_ops scarce;
static const struct samkv_ops *plenty;
static int pieces; /* that the device still has */

static enum samkv_status scarce_alloc(struct samkv_device *d, size_t bytes, void **out)
{
    *out = NULL;
    if (pieces == 0)
        return SAMKV_NO_MEMORY;
    pieces--;
    return plenty->alloc(d, bytes, out);
}

static void scarce_release(struct samkv_device *d, void *memory)
{
    pieces += memory != NULL;
    plenty->release(d, memory);
}

/* Another process may have taken memory that the budget counts on. */
START_TEST(what_nobody_uses_is_given_up_when_the_device_is_full)
{
    start_again(ROOMY);
    plenty = device->ops;
    scarce = *plenty;
    scarce.alloc = scarce_alloc;
    scarce.release = scarce_release;
    device->ops = &scarce;
    pieces = 3;
    struct samkv_cached *used = publish(1, MB);
    samkv_device_cache_unpin(publish(2, MB));
    samkv_device_cache_unpin(publish(3, MB));
    struct samkv_cached *more = make(4, MB);
    ck_assert(entry_is(used, 1, MB));
    struct samkv_cached_key two = key_of(2), five = key_of(5);
    ck_assert_ptr_null(samkv_device_cache_find(cache, &two));
    struct samkv_cached *last = make(6, MB), *none;
    ck_assert_int_eq(samkv_device_cache_make(cache, &five, MB, &none), SAMKV_NO_MEMORY); /* all is in use */
    ck_assert(!samkv_device_cache_trim(cache));
    samkv_device_cache_unpin(last);
    samkv_device_cache_unpin(more);
    samkv_device_cache_unpin(used);
    ck_assert(samkv_device_cache_trim(cache)); /* the published one */
    ck_assert_int_eq(pieces, 3);
    device->ops = plenty;
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("device_cache");
    TCase *tc = tcase_create("device_cache");
    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, set_up, tear_down);
    tcase_add_test(tc, what_is_published_is_found);
    tcase_add_test(tc, what_nobody_uses_is_given_up_when_the_device_is_full);
    tcase_add_test(tc, every_part_of_a_key_counts);
    tcase_add_test(tc, records_of_one_document_are_told_apart);
    tcase_add_test(tc, nobody_finds_what_is_not_published);
    tcase_add_test(tc, the_least_recently_used_goes_first);
    tcase_add_test(tc, a_pin_makes_it_recent);
    tcase_add_test(tc, the_budget_is_kept);
    tcase_add_test(tc, what_is_pinned_stays);
    tcase_add_test(tc, beyond_the_budget_while_all_is_in_use);
    tcase_add_test(tc, larger_than_the_budget);
    tcase_add_test(tc, no_budget_at_all);
    tcase_add_test(tc, published_twice);
    tcase_add_test(tc, a_device_without_memory);
    tcase_add_test(tc, figures);
    tcase_add_test(tc, many_entries);
    tcase_add_test(tc, many_threads);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
