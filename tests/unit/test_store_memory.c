/* The store with memory in front of its file: the same answers as without it, whatever happens to documents. */
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "daemon/base/pool.h"
#include "daemon/store/host_cache.h"
#include "tests/unit/store_fixture.h"

static const struct samkv_kv_shape shape = {3, 2, 16, SAMKV_BF16};
static struct fixture_directory dir;
static struct samkv_store *store;

static void setup(void)
{
    struct samkv_error err = {0};
    fixture_directory_make(&dir);
    const struct samkv_store_options o = {.path = dir.path, .codec = SAMKV_CODEC_RAW, .host_cache_bytes = 8 << 20};
    FIXTURE_OK(samkv_store_open(&o, &store, &err));
}

static void teardown(void)
{
    samkv_store_close(store);
    fixture_directory_remove(&dir);
}

static struct samkv_host_cache_stats memory(void)
{
    struct samkv_host_cache_stats out;
    samkv_host_cache_stats(samkv_store_host_cache(store), &out);
    return out;
}

/* The same tokens, so the same key; the version says which bytes, and the manifest tells the version. */
static struct fixture_document document(uint32_t tokens, uint32_t version)
{
    struct fixture_document d;
    fixture_document_make(&d, tokens, shape, tokens, 16);
    d.seed = 1000 * tokens + version;
    d.m.created_unix_s = version;
    d.m.codec = SAMKV_CODEC_RAW; /* so that damage() finds its bytes in the file */
    return d;
}

static struct samkv_snapshot *begin(void)
{
    struct samkv_snapshot *sn;
    struct samkv_error err = {0};
    FIXTURE_OK(samkv_snapshot_begin(store, &sn, &err));
    return sn;
}

static void ingest(const struct fixture_document *d)
{
    struct samkv_error err = {0};
    FIXTURE_OK(fixture_ingest(store, d, "name", &err));
}

static void remove_name(void)
{
    struct samkv_error err = {0};
    FIXTURE_OK(samkv_store_name_remove(store, "c", "name", &err));
}

/* Bytes that reading it all took from the file. */
static uint64_t read_all(const struct fixture_document *d)
{
    struct samkv_snapshot *sn = begin();
    ck_assert_int_eq(fixture_compare(sn, d), SAMKV_OK);
    uint64_t bytes = samkv_snapshot_bytes_read(sn);
    samkv_snapshot_end(sn);
    return bytes;
}

START_TEST(the_second_reading_takes_nothing_from_the_file)
{
    struct fixture_document d = document(100, 1);
    ingest(&d);
    ck_assert_uint_eq(memory().entries, 0); /* ingesting is no use */
    ck_assert_uint_gt(read_all(&d), 0);
    ck_assert_uint_eq(memory().entries, d.m.blocks + shape.layers);
    ck_assert_uint_eq(read_all(&d), 0);
    ck_assert_uint_eq(memory().hits, d.m.blocks + shape.layers);
    ck_assert_uint_eq(memory().misses, d.m.blocks + shape.layers);
    struct samkv_snapshot *sn = begin();
    samkv_snapshot_bypass_memory(sn);
    ck_assert_int_eq(fixture_compare(sn, &d), SAMKV_OK);
    ck_assert_uint_gt(samkv_snapshot_bytes_read(sn), 0);
    samkv_snapshot_end(sn);
    fixture_document_free(&d);
}
END_TEST

START_TEST(removed_and_ingested_again_with_other_bytes)
{
    struct fixture_document one = document(100, 1), two = document(100, 2), other = document(50, 1);
    ingest(&one);
    struct samkv_snapshot *old = begin();
    ck_assert_int_eq(fixture_compare(old, &one), SAMKV_OK);
    remove_name();
    ck_assert_uint_eq(memory().entries, 0);
    ingest(&two);
    ck_assert_int_eq(fixture_compare(old, &one), SAMKV_OK); /* its own version, from the file */
    ck_assert_uint_eq(memory().entries, 0);
    ck_assert_uint_gt(read_all(&two), 0);
    ck_assert_uint_eq(read_all(&two), 0);
    ck_assert_int_eq(fixture_compare(old, &one), SAMKV_OK); /* not what memory has now */
    samkv_snapshot_end(old);
    ingest(&other); /* another document takes the name, and this one goes */
    ck_assert_uint_eq(memory().entries, 0);
    read_all(&other);
    ck_assert_uint_eq(read_all(&other), 0);
    fixture_document_free(&one), fixture_document_free(&two), fixture_document_free(&other);
}
END_TEST

START_TEST(a_rewritten_record_is_read_as_it_is_now)
{
    struct fixture_document one = document(100, 1), two = document(100, 2);
    struct samkv_error err = {0};
    ingest(&one);
    read_all(&one);
    struct samkv_snapshot *old = begin();
    for (uint32_t b = 0; b < one.m.blocks; b++) {
        uint8_t *bytes;
        void **pieces = fixture_block(&two, b, true, &bytes);
        FIXTURE_OK(samkv_store_block_rewrite(store, &one.m, b, (const void *const *)pieces, &err));
        free(pieces), free(bytes);
    }
    size_t count = fixture_index_count(&one.m);
    float *index = malloc(count * sizeof *index);
    for (uint32_t l = 0; l < shape.layers; l++) {
        fixture_fill(SAMKV_F32, (uint64_t)two.seed << 32 | 0xffff0000u | l, count, index);
        FIXTURE_OK(samkv_store_index_rewrite(store, &one.m, l, index, count, &err));
    }
    free(index);
    ck_assert_int_eq(fixture_compare(old, &one), SAMKV_OK);
    ck_assert_uint_gt(read_all(&two), 0);
    ck_assert_uint_eq(read_all(&two), 0);
    ck_assert_int_eq(fixture_compare(old, &one), SAMKV_OK);
    samkv_snapshot_end(old);
    fixture_document_free(&one), fixture_document_free(&two);
}
END_TEST

/* Flips a byte of the data file in the middle of these bytes, which it must have. */
static void damage(const void *bytes, size_t count)
{
    char path[128];
    struct stat st;
    snprintf(path, sizeof path, "%s/data.mdb", dir.path);
    int fd = open(path, O_RDWR);
    ck_assert(fd >= 0 && fstat(fd, &st) == 0);
    uint8_t *all = malloc((size_t)st.st_size), *at;
    ck_assert_int_eq(pread(fd, all, (size_t)st.st_size, 0), st.st_size);
    at = memmem(all, (size_t)st.st_size, bytes, count);
    ck_assert_ptr_nonnull(at);
    at[count / 2] ^= 1;
    ck_assert_int_eq(pwrite(fd, at + count / 2, 1, at - all + (off_t)(count / 2)), 1);
    free(all);
    close(fd);
}

START_TEST(damage_is_looked_for_on_disk_and_memory_serves_on)
{
    struct fixture_document d = document(100, 1);
    struct samkv_verify_report report = {0};
    struct samkv_error err = {0};
    uint8_t *bytes;
    ingest(&d);
    read_all(&d);
    void **pieces = fixture_block(&d, 2, true, &bytes);
    damage(pieces[0], 64);
    ck_assert_uint_eq(read_all(&d), 0);
    struct samkv_snapshot *sn = begin();
    FIXTURE_OK(samkv_snapshot_verify(sn, &d.m.key, &report, &err));
    ck_assert_uint_eq(report.damaged, 1);
    samkv_snapshot_bypass_memory(sn);
    ck_assert_int_eq(samkv_snapshot_block(sn, &d.m, 2, pieces, &err), SAMKV_CORRUPT);
    samkv_snapshot_end(sn);
    free(pieces), free(bytes);
    fixture_document_free(&d);
}
END_TEST

START_TEST(what_is_damaged_is_not_kept)
{
    struct fixture_document d = document(100, 1);
    struct samkv_error err = {0};
    uint8_t *bytes;
    ingest(&d);
    void **pieces = fixture_block(&d, 2, true, &bytes);
    damage(pieces[0], 64);
    struct samkv_snapshot *sn = begin();
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(samkv_snapshot_block(sn, &d.m, 2, pieces, &err), SAMKV_CORRUPT);
    ck_assert_uint_eq(memory().entries, 0);
    samkv_snapshot_end(sn);
    free(pieces), free(bytes);
    fixture_document_free(&d);
}
END_TEST

/* ------------------------------------------------------------------ threads */

#define ROUNDS 60

static atomic_int failures, compared;
static atomic_bool over;

/* Whatever version a snapshot has, all of it is that one. */
static void read_versions(void)
{
    while (!atomic_load(&over)) {
        struct samkv_snapshot *sn = begin();
        struct samkv_name name;
        struct samkv_manifest m;
        if (samkv_snapshot_name(sn, "c", "name", &name, NULL) == SAMKV_OK) {
            failures += samkv_snapshot_manifest(sn, &name.key, &m, NULL) != SAMKV_OK;
            struct fixture_document d = document(m.tokens, (uint32_t)m.created_unix_s);
            for (int i = 0; i < 2; i++)
                failures += fixture_compare(sn, &d) != SAMKV_OK;
            compared++;
            fixture_document_free(&d);
            samkv_name_deinit(&name);
        }
        samkv_snapshot_end(sn);
    }
}

static void replace_versions(void)
{
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        struct fixture_document d = document(round % 3 ? 100 : 40, round);
        ingest(&d);
        while (compared < (int)round && failures == 0)
            usleep(100);
        if (round % 2)
            remove_name();
        fixture_document_free(&d);
    }
    atomic_store(&over, true);
}

static void replace_or_read(void *arg, int i)
{
    (void)arg;
    i == 0 ? replace_versions() : read_versions();
}

START_TEST(snapshots_are_of_one_version_while_documents_change)
{
    samkv_parallel_for(4, 4, replace_or_read, NULL);
    ck_assert_int_eq(failures, 0);
    ck_assert_int_ge(compared, ROUNDS);
    ck_assert_uint_gt(memory().hits, 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("store_memory");
    TCase *tc = tcase_create("memory");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, the_second_reading_takes_nothing_from_the_file);
    tcase_add_test(tc, removed_and_ingested_again_with_other_bytes);
    tcase_add_test(tc, a_rewritten_record_is_read_as_it_is_now);
    tcase_add_test(tc, damage_is_looked_for_on_disk_and_memory_serves_on);
    tcase_add_test(tc, what_is_damaged_is_not_kept);
    tcase_add_test(tc, snapshots_are_of_one_version_while_documents_change);
    tcase_set_timeout(tc, 120);
    suite_add_tcase(suite, tc);
    return fixture_run(suite);
}
