#include "tests/unit/store_fixture.h"

#include <pthread.h>
#include <stdatomic.h>

#include "daemon/base/pool.h"

static struct fixture_directory dir;
static struct samkv_store *store;

static const struct samkv_kv_shape shape = {3, 2, 16, SAMKV_BF16};

static void setup(void)
{
    fixture_directory_make(&dir);
    store = fixture_open(&dir, 0);
}

static void teardown(void)
{
    samkv_store_close(store);
    fixture_directory_remove(&dir);
}

static struct fixture_document document(uint32_t seed)
{
    struct fixture_document d;
    fixture_document_make(&d, seed, shape, 50, 16);
    return d;
}

/* Writers replace and remove names 0..3 with documents 0..7; readers check that a name's document is whole. */
#define WRITERS 4
#define READERS 4

static atomic_int failures, writing, found;

static void write_some(uint64_t seed)
{
    struct samkv_error err;
    for (int i = 0; i < 60; i++) {
        uint64_t r = fixture_random(&seed);
        char id[16];
        snprintf(id, sizeof id, "n%u", (unsigned)(r % 4));
        struct fixture_document d = document((uint32_t)(r >> 8) % 8);
        enum samkv_status st =
            r >> 16 & 3 ? fixture_ingest(store, &d, id, &err) : samkv_store_name_remove(store, "c", id, &err);
        /* NOT_FOUND: the name was not there, or the document went between begin and name_put. */
        failures += st != SAMKV_OK && st != SAMKV_NOT_FOUND;
        fixture_document_free(&d);
    }
}

static void read_some(uint64_t seed)
{
    do {
        char id[16];
        struct samkv_snapshot *sn;
        struct samkv_name name;
        snprintf(id, sizeof id, "n%u", (unsigned)(fixture_random(&seed) % 4));
        if (samkv_snapshot_begin(store, &sn, NULL) != SAMKV_OK) {
            failures++;
            continue;
        }
        if (samkv_snapshot_name(sn, "c", id, &name, NULL) == SAMKV_OK) {
            bool whole = false;
            for (uint32_t i = 0; i < 8 && !whole; i++) {
                struct fixture_document d = document(i);
                whole = memcmp(&d.m.key, &name.key, sizeof name.key) == 0 && fixture_compare(sn, &d) == SAMKV_OK;
                fixture_document_free(&d);
            }
            failures += !whole;
            found++;
            samkv_name_deinit(&name);
        }
        samkv_snapshot_end(sn);
    } while (writing);
}

static void work(void *arg, int i)
{
    (void)arg;
    if (i < WRITERS) {
        write_some((uint64_t)i + 1);
        writing--;
    } else {
        read_some((uint64_t)i + 1);
    }
}

START_TEST(readers_see_whole_documents_while_writers_write)
{
    writing = WRITERS;
    samkv_parallel_for(WRITERS + READERS, WRITERS + READERS, work, NULL);
    ck_assert_int_eq(failures, 0);
    ck_assert_int_gt(found, 0);
    /* All references are accounted for: without names nothing stays. */
    for (uint32_t n = 0; n < 4; n++) {
        char id[16];
        snprintf(id, sizeof id, "n%u", n);
        enum samkv_status st = samkv_store_name_remove(store, "c", id, NULL);
        ck_assert(st == SAMKV_OK || st == SAMKV_NOT_FOUND);
    }
    ck_assert_uint_eq(fixture_stats(store).documents, 0);
    samkv_store_close(store);
    store = fixture_open(&dir, 0);
    ck_assert_uint_eq(fixture_stats(store).documents, 0);
    ck_assert_uint_le(fixture_stats(store).bytes_used, 64 << 10);
}
END_TEST

static void ingest_same(void *arg, int i)
{
    struct fixture_document *d = arg;
    struct samkv_error err;
    char id[16];
    snprintf(id, sizeof id, "n%d", i);
    failures += fixture_ingest(store, d, id, &err) != SAMKV_OK;
}

START_TEST(the_same_document_from_many_threads)
{
    struct fixture_document d = document(3);
    samkv_parallel_for(8, 8, ingest_same, &d);
    ck_assert_int_eq(failures, 0);
    ck_assert_uint_eq(fixture_stats(store).documents, 1);
    ck_assert_uint_eq(fixture_stats(store).names, 8);
    for (int i = 0; i < 8; i++) {
        char id[16];
        snprintf(id, sizeof id, "n%d", i);
        ck_assert_int_eq(fixture_check_name(store, id, &d), SAMKV_OK);
        ck_assert_int_eq(samkv_store_name_remove(store, "c", id, NULL), SAMKV_OK);
    }
    ck_assert_uint_eq(fixture_stats(store).documents, 0); /* eight references, not more */
    fixture_document_free(&d);
}
END_TEST

/* One writer gives up, another waits for it: the first one's removal must not take the second one's records. */
static void ingest_or_abort(void *arg, int i)
{
    struct fixture_document *d = arg;
    struct samkv_error err;
    for (int round = 0; round < 30; round++) {
        struct samkv_writer *w;
        if (i == 0) {
            failures += fixture_ingest(store, d, "kept", &err) != SAMKV_OK;
            failures += fixture_check_name(store, "kept", d) != SAMKV_OK;
            failures += samkv_store_name_remove(store, "c", "kept", &err) != SAMKV_OK;
        } else if (samkv_writer_begin(store, &d->m, d->tokens, &w, &err) != SAMKV_OK) {
            failures++;
        } else if (w) {
            failures += fixture_write_block(w, d, (uint32_t)round % d->m.blocks, &err) != SAMKV_OK;
            samkv_writer_abort(w);
        }
    }
}

START_TEST(an_abort_beside_an_ingest_of_the_same)
{
    struct fixture_document d = document(3);
    samkv_parallel_for(3, 3, ingest_or_abort, &d);
    ck_assert_int_eq(failures, 0);
    fixture_document_free(&d);
}
END_TEST

struct shared {
    struct samkv_snapshot *sn;
    struct fixture_document *d;
};

static void read_block(void *arg, int i)
{
    struct shared *s = arg;
    struct samkv_manifest m;
    uint32_t block = (uint32_t)i % s->d->m.blocks;
    uint8_t *want, *got;
    void **a = fixture_block(s->d, block, true, &want), **b = fixture_block(s->d, block, false, &got);
    size_t bytes = fixture_block_tokens(&s->d->m, block) * samkv_kv_token_bytes(&s->d->m.shape);
    failures += samkv_snapshot_manifest(s->sn, &s->d->m.key, &m, NULL) != SAMKV_OK ||
                samkv_snapshot_block(s->sn, &m, block, b, NULL) != SAMKV_OK || memcmp(want, got, bytes) != 0;
    free(a), free(b), free(want), free(got);
}

START_TEST(blocks_of_one_snapshot_from_many_threads)
{
    struct fixture_document d;
    struct samkv_error err;
    fixture_document_make(&d, 9, (struct samkv_kv_shape){4, 4, 32, SAMKV_F32}, 200, 16);
    FIXTURE_OK(fixture_ingest(store, &d, "one", &err));
    struct shared s = {.d = &d};
    FIXTURE_OK(samkv_snapshot_begin(store, &s.sn, &err));
    samkv_parallel_for(100, 6, read_block, &s);
    ck_assert_int_eq(failures, 0);
    samkv_snapshot_end(s.sn);
    fixture_document_free(&d);
}
END_TEST

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

/* 512 MiB through the queue: what is not written yet must stay within its bound. */
START_TEST(memory_is_bounded_while_a_large_document_is_written)
{
    struct fixture_document d;
    struct samkv_writer *w;
    struct samkv_error err;
    uint8_t *bytes;
    samkv_store_close(store);
    struct samkv_store_options o = {.path = dir.path, .codec = SAMKV_CODEC_RAW};
    FIXTURE_OK(samkv_store_open(&o, &store, &err));
    fixture_document_make(&d, 3, (struct samkv_kv_shape){8, 8, 128, SAMKV_F32}, 64 * 128, 64);
    FIXTURE_OK(samkv_writer_begin(store, &d.m, d.tokens, &w, &err));
    void **pieces = fixture_block(&d, 0, true, &bytes);
    long before = resident_kib(), most = 0;
    for (uint32_t b = 0; b < d.m.blocks; b++) {
        FIXTURE_OK(samkv_writer_block(w, b, (const void *const *)pieces, &err));
        long now = resident_kib();
        most = now > most ? now : most;
    }
    samkv_writer_abort(w);
    /* The queue's 64 MiB, LMDB's dirty pages of one group (32 MiB), and what malloc keeps; a sanitizer hoards more. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
    ck_assert_int_gt(most, before);
#else
    ck_assert_int_lt(most - before, 160 << 10);
#endif
    free(pieces), free(bytes);
    fixture_document_free(&d);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("store_threads");
    TCase *tc = tcase_create("threads");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, readers_see_whole_documents_while_writers_write);
    tcase_add_test(tc, the_same_document_from_many_threads);
    tcase_add_test(tc, an_abort_beside_an_ingest_of_the_same);
    tcase_add_test(tc, blocks_of_one_snapshot_from_many_threads);
    tcase_add_test(tc, memory_is_bounded_while_a_large_document_is_written);
    tcase_set_timeout(tc, 120);
    suite_add_tcase(suite, tc);
    return fixture_run(suite);
}
