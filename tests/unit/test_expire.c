#include "tests/unit/limits_fixture.h"

#include <fcntl.h>

static struct fixture_directory dir;
static struct samkv_store *store;
static struct samkv_error err;

static void setup(void)
{
    fixture_directory_make(&dir);
    atomic_store(&limits_clock, 1000000);
    store = limits_open(&dir, (struct samkv_store_options){0});
}

static void teardown(void)
{
    samkv_store_close(store);
    fixture_directory_remove(&dir);
}

static void reopen(void)
{
    samkv_store_close(store);
    store = limits_open(&dir, (struct samkv_store_options){0});
}

static void later(int64_t seconds)
{
    atomic_fetch_add(&limits_clock, seconds);
}

static bool count(void *arg, const struct samkv_name *name)
{
    (void)name;
    ++*(int *)arg;
    return true;
}

static int listed(const char *collection)
{
    struct samkv_snapshot *sn;
    int n = 0;
    FIXTURE_OK(samkv_snapshot_begin(store, &sn, &err));
    FIXTURE_OK(samkv_snapshot_each_name(sn, collection, "", count, &n, &err));
    samkv_snapshot_end(sn);
    return n;
}

static enum samkv_status look_up(const char *id, struct samkv_name *name)
{
    struct samkv_snapshot *sn;
    FIXTURE_OK(samkv_snapshot_begin(store, &sn, &err));
    enum samkv_status st = samkv_snapshot_name(sn, "c", id, name, &err);
    samkv_snapshot_end(sn);
    return st;
}

/* ------------------------------------------------------------------ times to live */

START_TEST(names_expire_to_the_second)
{
    struct samkv_name name;
    limits_collection(store, "c", 0, 100);
    for (uint32_t i = 0; i < 3; i++)
        FIXTURE_OK(limits_put(store, i, 20, &err));
    limits_pin(store, 1, true);
    FIXTURE_OK(look_up("0", &name));
    ck_assert_int_eq(name.expires_unix_s, limits_now(NULL) + 100);
    samkv_name_deinit(&name);
    later(50);
    FIXTURE_OK(limits_put(store, 2, 20, &err)); /* there already; its time begins anew */
    later(49);
    ck_assert_int_eq(listed("c"), 3);
    later(1);
    ck_assert_int_eq(listed("c"), 2);
    ck_assert_int_eq(look_up("0", &name), SAMKV_NOT_FOUND);
    ck_assert(name.expired);
    ck_assert_int_eq(look_up("nobody", &name), SAMKV_NOT_FOUND);
    ck_assert(!name.expired);
    ck_assert_int_eq(samkv_store_pin(store, "c", "0", true, &err), SAMKV_NOT_FOUND); /* too late */
    FIXTURE_OK(look_up("1", &name));
    ck_assert_int_eq(name.expires_unix_s, 0);
    samkv_name_deinit(&name);
    struct samkv_gc_report report;
    FIXTURE_OK(samkv_store_gc(store, &report, NULL, NULL, &err));
    ck_assert_uint_eq(fixture_stats(store).expirations, 1);
    ck_assert_uint_eq(fixture_stats(store).documents, 2);
    reopen();
    ck_assert_int_eq(listed("c"), 2);
    later(1000);
    ck_assert_int_eq(listed("c"), 1);
    limits_pin(store, 1, false);
    ck_assert_int_eq(listed("c"), 0);
}
END_TEST

START_TEST(a_ttl_can_be_set_and_lifted)
{
    limits_collection(store, "c", 0, 0);
    for (uint32_t i = 0; i < 700; i++)
        FIXTURE_OK(limits_put(store, i, 1, &err));
    later(1000);
    ck_assert_int_eq(listed("c"), 700);
    struct samkv_limits limits = {.set_ttl = true, .ttl_s = 1000};
    FIXTURE_OK(samkv_store_configure(store, "c", &limits, &err));
    ck_assert_int_eq(listed("c"), 0);
    limits.ttl_s = 1001;
    FIXTURE_OK(samkv_store_configure(store, "c", &limits, &err));
    struct samkv_gc_report report;
    later(1);
    FIXTURE_OK(samkv_store_gc(store, &report, NULL, NULL, &err)); /* in several steps */
    ck_assert_uint_eq(fixture_stats(store).expirations, 700);
    ck_assert_uint_eq(fixture_stats(store).names, 0);
    limits.ttl_s = UINT64_MAX; /* hostile, but no overflow */
    FIXTURE_OK(samkv_store_configure(store, "c", &limits, &err));
    FIXTURE_OK(limits_put(store, 1, 1, &err));
    ck_assert_int_eq(listed("c"), 1);
    limits.ttl_s = 0;
    FIXTURE_OK(samkv_store_configure(store, "c", &limits, &err));
    later(1 << 30);
    ck_assert_int_eq(listed("c"), 1);
}
END_TEST

/* ------------------------------------------------------------------ garbage */

START_TEST(garbage_goes_and_nothing_else)
{
    struct fixture_document lone = limits_document(500, 40), young = limits_document(501, 40);
    struct samkv_gc_report report;
    limits_collection(store, "c", 0, 0);
    FIXTURE_OK(limits_put(store, 1, 40, &err));
    FIXTURE_OK(fixture_ingest(store, &lone, NULL, &err)); /* a preamble whose collection does not come */
    struct fixture_document other = limits_document(502, 40);
    FIXTURE_OK(fixture_ingest(store, &other, NULL, &err));
    FIXTURE_OK(samkv_store_name_put(store, "gone", "o", NULL, &other.m.key, &err)); /* of no collection */
    later(61);
    FIXTURE_OK(fixture_ingest(store, &young, NULL, &err));
    uint64_t before = fixture_stats(store).bytes_stored;
    FIXTURE_OK(samkv_store_gc(store, &report, NULL, NULL, &err));
    ck_assert_uint_eq(report.documents_unreferenced, 1);
    ck_assert_uint_eq(report.names_orphaned, 1);
    ck_assert_uint_eq(report.names_expired + report.documents_unfinished, 0);
    ck_assert_uint_eq(report.bytes_freed, before - fixture_stats(store).bytes_stored);
    ck_assert_uint_eq(fixture_stats(store).documents, 2);
    FIXTURE_OK(limits_check(store, 1, 40));
    struct samkv_manifest m;
    struct samkv_snapshot *sn;
    FIXTURE_OK(samkv_snapshot_begin(store, &sn, &err));
    FIXTURE_OK(samkv_snapshot_manifest(sn, &young.m.key, &m, &err));
    samkv_snapshot_end(sn);
    FIXTURE_OK(samkv_store_gc(store, &report, NULL, NULL, &err));
    ck_assert_uint_eq(report.documents_unreferenced + report.bytes_freed, 0);
    fixture_document_free(&lone), fixture_document_free(&young), fixture_document_free(&other);
}
END_TEST

/* An ingest under way while garbage is collected is none of it. */
START_TEST(a_document_under_way_is_no_garbage)
{
    struct fixture_document d = limits_document(7, 100);
    struct samkv_writer *w;
    struct samkv_gc_report report;
    FIXTURE_OK(samkv_writer_begin(store, &d.m, d.tokens, &w, &err));
    for (uint32_t b = 0; b < d.m.blocks; b++) {
        FIXTURE_OK(fixture_write_block(w, &d, b, &err));
        later(100);
        FIXTURE_OK(samkv_store_gc(store, &report, NULL, NULL, &err));
        ck_assert_uint_eq(report.documents_unfinished, 0);
    }
    for (uint32_t l = 0; l < limits_shape.layers; l++)
        FIXTURE_OK(fixture_write_index(w, &d, l, &err));
    FIXTURE_OK(samkv_writer_commit(w, "c", "it", NULL, &err));
    FIXTURE_OK(fixture_check_name(store, "it", &d));
    fixture_document_free(&d);
}
END_TEST

/* ------------------------------------------------------------------ usage on disk */

static uint64_t uses_of(uint32_t seed)
{
    uint64_t uses;
    int64_t used;
    struct fixture_document d = limits_document(seed, 20);
    samkv_store_document_usage(store, &d.m.key, &uses, &used);
    ck_assert((uses == 0) == (used == 0));
    fixture_document_free(&d);
    return uses;
}

static size_t read_usage(uint8_t *out, size_t room)
{
    char path[128];
    snprintf(path, sizeof path, "%s/usage", dir.path);
    int fd = open(path, O_RDONLY);
    ck_assert_int_ge(fd, 0);
    ssize_t n = read(fd, out, room);
    close(fd);
    ck_assert_int_gt(n, 0);
    return (size_t)n;
}

static void write_usage(const uint8_t *bytes, size_t n)
{
    char path[128];
    snprintf(path, sizeof path, "%s/usage", dir.path);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, bytes, n), (ssize_t)n);
    close(fd);
}

START_TEST(usage_survives_a_restart_and_its_file_anything)
{
    uint8_t good[4096], bad[4096];
    uint64_t random = 99;
    for (uint32_t i = 0; i < 5; i++)
        FIXTURE_OK(limits_put(store, i, 20, &err));
    limits_use(store, 2, 20, 7);
    limits_use(store, 4, 20, 1);
    reopen();
    ck_assert_uint_eq(uses_of(2), 7);
    ck_assert_uint_eq(uses_of(4), 1);
    ck_assert_uint_eq(uses_of(0), 0);
    size_t n = read_usage(good, sizeof good);
    for (size_t at = 0; at < n; at++) { /* every byte, wrong in one bit */
        memcpy(bad, good, n);
        bad[at] ^= (uint8_t)(1 << (fixture_random(&random) % 8));
        samkv_store_close(store); /* nothing was used: it writes no file of its own */
        write_usage(bad, n);
        store = limits_open(&dir, (struct samkv_store_options){0});
        ck_assert_uint_eq(uses_of(2), 0);
    }
    for (size_t length = 0; length < n; length += 7) { /* cut */
        samkv_store_close(store);
        write_usage(good, length);
        store = limits_open(&dir, (struct samkv_store_options){0});
        ck_assert_uint_eq(uses_of(2), 0);
    }
    samkv_store_close(store);
    write_usage(good, n);
    store = limits_open(&dir, (struct samkv_store_options){0});
    ck_assert_uint_eq(uses_of(2), 7);
    FIXTURE_OK(samkv_store_name_remove(store, "c", "2", &err));
    limits_use(store, 2, 20, 3); /* not there: not noted */
    ck_assert_uint_eq(uses_of(2), 0);
    limits_use(store, 0, 20, 1);
    reopen();
    ck_assert_uint_eq(uses_of(0), 1);
    ck_assert_uint_eq(uses_of(4), 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("expire");
    TCase *tc = tcase_create("expire");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, names_expire_to_the_second);
    tcase_add_test(tc, a_ttl_can_be_set_and_lifted);
    tcase_add_test(tc, garbage_goes_and_nothing_else);
    tcase_add_test(tc, a_document_under_way_is_no_garbage);
    tcase_add_test(tc, usage_survives_a_restart_and_its_file_anything);
    tcase_set_timeout(tc, 120);
    suite_add_tcase(suite, tc);
    return fixture_run(suite);
}
