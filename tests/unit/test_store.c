#include "tests/unit/store_fixture.h"

static struct fixture_directory dir;
static struct samkv_store *store;
static struct samkv_error err;

static const struct samkv_kv_shape small = {2, 2, 8, SAMKV_BF16};

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

static void reopen(void)
{
    samkv_store_close(store);
    store = fixture_open(&dir, 0);
}

static struct fixture_document document(uint32_t seed)
{
    struct fixture_document d;
    fixture_document_make(&d, seed, small, 40, 16);
    return d;
}

/* Waits for the steps that remove what was hidden: opening finishes them. Then nothing but `documents` takes pages. */
static void assert_only_documents_are_left(uint64_t documents)
{
    reopen();
    struct samkv_store_stats stats = fixture_stats(store);
    ck_assert_uint_eq(stats.documents, documents);
    if (documents == 0) /* meta, schema, free list and the like */
        ck_assert_uint_le(stats.bytes_used, 64 << 10);
}

static const struct {
    struct samkv_kv_shape shape;
    uint32_t tokens, block_tokens;
} shapes[] = {
    {{1, 1, 1, SAMKV_F32}, 1, 1},    {{1, 1, 1, SAMKV_BF16}, 1, 16},    {{2, 3, 5, SAMKV_F16}, 17, 16},
    {{3, 2, 8, SAMKV_BF16}, 33, 8},  {{4, 2, 16, SAMKV_F32}, 64, 16},   {{30, 3, 64, SAMKV_F32}, 37, 16},
    {{2, 1, 7, SAMKV_F32}, 100, 64}, {{2, 8, 128, SAMKV_BF16}, 65, 64},
};

START_TEST(what_goes_in_comes_out)
{
    struct fixture_document d;
    fixture_document_make(&d, 7, shapes[_i].shape, shapes[_i].tokens, shapes[_i].block_tokens);
    FIXTURE_OK(fixture_ingest(store, &d, "one", &err));
    ck_assert_int_eq(fixture_check_name(store, "one", &d), SAMKV_OK);
    struct samkv_store_stats stats = fixture_stats(store);
    ck_assert_uint_eq(stats.documents, 1);
    ck_assert_uint_eq(stats.names, 1);
    ck_assert_uint_eq(stats.bytes_raw, d.m.tokens * samkv_kv_token_bytes(&d.m.shape));
    ck_assert_uint_ge(stats.bytes_used, stats.bytes_stored);
    ck_assert_uint_le(stats.bytes_used, stats.bytes_file);
    reopen();
    ck_assert_int_eq(fixture_check_name(store, "one", &d), SAMKV_OK);
    ck_assert_int_eq(fixture_check_name(store, "two", &d), SAMKV_NOT_FOUND);
    fixture_document_free(&d);
}
END_TEST

START_TEST(a_document_is_stored_once_and_lives_as_long_as_its_last_name)
{
    struct fixture_document d = document(1);
    FIXTURE_OK(fixture_ingest(store, &d, "one", &err));
    uint64_t used = fixture_stats(store).bytes_used;
    FIXTURE_OK(fixture_ingest(store, &d, "two", &err));
    FIXTURE_OK(fixture_ingest(store, &d, "two", &err)); /* the same again counts once */
    ck_assert_uint_eq(fixture_stats(store).documents, 1);
    ck_assert_uint_eq(fixture_stats(store).names, 2);
    ck_assert_uint_le(fixture_stats(store).bytes_used, used + 8192);
    FIXTURE_OK(samkv_store_name_remove(store, "c", "one", &err));
    ck_assert_int_eq(samkv_store_name_remove(store, "c", "one", &err), SAMKV_NOT_FOUND);
    ck_assert_int_eq(fixture_check_name(store, "one", &d), SAMKV_NOT_FOUND);
    ck_assert_int_eq(fixture_check_name(store, "two", &d), SAMKV_OK);
    FIXTURE_OK(samkv_store_name_remove(store, "c", "two", &err));
    ck_assert_uint_eq(fixture_stats(store).documents, 0);
    assert_only_documents_are_left(0);
    ck_assert_int_eq(samkv_store_name_put(store, "c", "three", NULL, &d.m.key, &err), SAMKV_NOT_FOUND);
    FIXTURE_OK(fixture_ingest(store, &d, "three", &err));
    ck_assert_int_eq(fixture_check_name(store, "three", &d), SAMKV_OK);
    fixture_document_free(&d);
}
END_TEST

START_TEST(a_removed_document_can_be_written_again_at_once)
{
    struct fixture_document d = document(1);
    for (int round = 0; round < 20; round++) {
        FIXTURE_OK(fixture_ingest(store, &d, "one", &err));
        ck_assert_int_eq(fixture_check_name(store, "one", &d), SAMKV_OK);
        FIXTURE_OK(samkv_store_name_remove(store, "c", "one", &err));
    }
    assert_only_documents_are_left(0);
    fixture_document_free(&d);
}
END_TEST

START_TEST(replacing_moves_the_name_and_snapshots_keep_what_they_had)
{
    struct fixture_document a = document(1), b = document(2);
    struct samkv_snapshot *before;
    struct samkv_name name;
    FIXTURE_OK(fixture_ingest(store, &a, "one", &err));
    FIXTURE_OK(samkv_snapshot_begin(store, &before, &err));
    FIXTURE_OK(fixture_ingest(store, &b, "one", &err));
    ck_assert_int_eq(fixture_check_name(store, "one", &b), SAMKV_OK);
    ck_assert_uint_eq(fixture_stats(store).documents, 1);
    for (uint32_t seed = 10; seed < 40; seed++) { /* pages of the old one would be used again */
        struct fixture_document other = document(seed);
        FIXTURE_OK(fixture_ingest(store, &other, "other", &err));
        fixture_document_free(&other);
    }
    FIXTURE_OK(samkv_snapshot_name(before, "c", "one", &name, &err));
    ck_assert_mem_eq(&name.key, &a.m.key, sizeof name.key);
    ck_assert_str_eq(name.title, "a title");
    samkv_name_deinit(&name);
    ck_assert_int_eq(fixture_compare(before, &a), SAMKV_OK);
    samkv_snapshot_end(before);
    ck_assert_int_eq(fixture_check_name(store, "one", &b), SAMKV_OK);
    assert_only_documents_are_left(2);
    fixture_document_free(&a);
    fixture_document_free(&b);
}
END_TEST

START_TEST(nothing_is_visible_before_commit_or_after_abort)
{
    struct fixture_document d = document(1);
    struct samkv_writer *w;
    struct samkv_snapshot *sn;
    struct samkv_manifest m;
    FIXTURE_OK(samkv_writer_begin(store, &d.m, d.tokens, &w, &err));
    FIXTURE_OK(fixture_write_block(w, &d, 1, &err));
    ck_assert_int_eq(fixture_write_block(w, &d, 1, &err), SAMKV_INVALID);
    ck_assert_int_eq(samkv_writer_block(w, d.m.blocks, NULL, &err), SAMKV_INVALID);
    ck_assert_int_eq(fixture_write_index(w, &d, d.m.shape.layers, &err), SAMKV_INVALID);
    FIXTURE_OK(samkv_snapshot_begin(store, &sn, &err));
    ck_assert_int_eq(samkv_snapshot_manifest(sn, &d.m.key, &m, &err), SAMKV_NOT_FOUND);
    samkv_snapshot_end(sn);
    ck_assert_int_eq(samkv_writer_commit(w, "c", "one", NULL, &err), SAMKV_INVALID); /* blocks are missing */
    ck_assert_int_eq(fixture_check_name(store, "one", &d), SAMKV_NOT_FOUND);
    FIXTURE_OK(samkv_writer_begin(store, &d.m, d.tokens, &w, &err));
    FIXTURE_OK(fixture_write_block(w, &d, 0, &err));
    samkv_writer_abort(w);
    samkv_writer_abort(NULL);
    assert_only_documents_are_left(0);
    FIXTURE_OK(fixture_ingest(store, &d, "one", &err));
    ck_assert_int_eq(fixture_check_name(store, "one", &d), SAMKV_OK);
    fixture_document_free(&d);
}
END_TEST

static struct samkv_collection collection(const char *name, const struct samkv_key *preamble)
{
    static int32_t ids[] = {1, 2, 3};
    struct samkv_collection c = {
        .model = "m", .shape = small, .heads = 4, .block_tokens = 16, .init_tokens = 16, .local_tokens = 16};
    snprintf(c.name, sizeof c.name, "%s", name);
    if (preamble) {
        c.preamble = ids;
        c.preamble_tokens = 3;
        c.preamble_key = *preamble;
    }
    return c;
}

START_TEST(a_collection_keeps_what_its_first_ingest_said)
{
    struct fixture_document preamble = document(5);
    struct samkv_collection c = collection("wiki", &preamble.m.key), there;
    struct samkv_snapshot *sn;
    ck_assert_int_eq(samkv_store_collection_put(store, &c, &err), SAMKV_INVALID); /* its preamble is not there */
    FIXTURE_OK(fixture_ingest(store, &preamble, NULL, &err));
    FIXTURE_OK(samkv_store_collection_put(store, &c, &err));
    FIXTURE_OK(samkv_store_collection_put(store, &c, &err));
    struct samkv_collection other = c;
    other.init_tokens = 8;
    ck_assert_int_eq(samkv_store_collection_put(store, &other, &err), SAMKV_MISMATCH);
    ck_assert_ptr_nonnull(strstr(err.text, "init tokens"));
    other = c;
    other.fingerprint[3] = 1;
    ck_assert_int_eq(samkv_store_collection_put(store, &other, &err), SAMKV_MISMATCH);
    other = collection("wiki", NULL);
    ck_assert_int_eq(samkv_store_collection_put(store, &other, &err), SAMKV_MISMATCH);
    reopen(); /* the collection's reference keeps the preamble */
    FIXTURE_OK(samkv_snapshot_begin(store, &sn, &err));
    FIXTURE_OK(samkv_snapshot_collection(sn, "wiki", &there, &err));
    ck_assert_uint_eq(there.preamble_tokens, 3);
    ck_assert_int_eq(there.preamble[2], 3);
    ck_assert_int_eq(fixture_compare(sn, &preamble), SAMKV_OK);
    samkv_collection_deinit(&there);
    ck_assert_int_eq(samkv_snapshot_collection(sn, "wik", &there, &err), SAMKV_NOT_FOUND);
    samkv_snapshot_end(sn);
    fixture_document_free(&preamble);
}
END_TEST

START_TEST(a_document_that_nothing_refers_to_goes_with_the_next_open)
{
    struct fixture_document d = document(5);
    FIXTURE_OK(fixture_ingest(store, &d, NULL, &err));
    ck_assert_uint_eq(fixture_stats(store).documents, 1);
    assert_only_documents_are_left(0);
    fixture_document_free(&d);
}
END_TEST

struct seen {
    int count, stop_at;
    char last[SAMKV_ID_MAX_BYTES + 1];
};

static bool see(void *arg, const struct samkv_name *name)
{
    struct seen *seen = arg;
    ck_assert_int_lt(strcmp(seen->last, name->id), 0);
    snprintf(seen->last, sizeof seen->last, "%s", name->id);
    return ++seen->count != seen->stop_at;
}

static bool see_collection(void *arg, const struct samkv_collection *c)
{
    ck_assert_uint_eq(c->block_tokens, 16);
    ++*(int *)arg;
    return true;
}

START_TEST(names_come_in_order_page_by_page)
{
    struct fixture_document d = document(5);
    struct samkv_snapshot *sn;
    char id[SAMKV_ID_MAX_BYTES + 1], longest[SAMKV_ID_MAX_BYTES + 2];
    FIXTURE_OK(fixture_ingest(store, &d, "n00", &err));
    for (int i = 1; i < 30; i++) {
        snprintf(id, sizeof id, "n%02d", i);
        FIXTURE_OK(samkv_store_name_put(store, "c", id, NULL, &d.m.key, &err));
        FIXTURE_OK(samkv_store_name_put(store, i % 2 ? "b" : "cc", id, NULL, &d.m.key, &err));
    }
    memset(longest, 'x', sizeof longest);
    longest[sizeof longest - 1] = 0;
    ck_assert_int_eq(samkv_store_name_put(store, "c", longest, NULL, &d.m.key, &err), SAMKV_INVALID);
    ck_assert_int_eq(samkv_store_name_put(store, "c", "", NULL, &d.m.key, &err), SAMKV_INVALID);
    longest[SAMKV_ID_MAX_BYTES] = 0;
    FIXTURE_OK(samkv_store_name_put(store, longest, longest, longest, &d.m.key, &err));
    FIXTURE_OK(samkv_snapshot_begin(store, &sn, &err));
    struct seen seen = {.stop_at = 7};
    int rounds = 0;
    for (int before = -1; before != seen.count; rounds++) {
        before = seen.count;
        seen.stop_at = seen.count + 7;
        FIXTURE_OK(samkv_snapshot_each_name(sn, "c", seen.last, see, &seen, &err));
    }
    ck_assert_int_eq(seen.count, 30);
    seen = (struct seen){0};
    FIXTURE_OK(samkv_snapshot_each_name(sn, longest, "", see, &seen, &err));
    ck_assert_int_eq(seen.count, 1);
    ck_assert_str_eq(seen.last, longest);
    FIXTURE_OK(samkv_snapshot_each_name(sn, "nothing", "", see, &seen, &err));
    ck_assert_int_eq(seen.count, 1);
    samkv_snapshot_end(sn);
    struct samkv_collection a = collection("a", NULL), b = collection("b", NULL);
    FIXTURE_OK(samkv_store_collection_put(store, &a, &err));
    FIXTURE_OK(samkv_store_collection_put(store, &b, &err));
    int collections = 0;
    FIXTURE_OK(samkv_snapshot_begin(store, &sn, &err));
    FIXTURE_OK(samkv_snapshot_each_collection(sn, see_collection, &collections, &err));
    samkv_snapshot_end(sn);
    ck_assert_int_eq(collections, 2);
    fixture_document_free(&d);
}
END_TEST

START_TEST(one_directory_one_daemon)
{
    struct samkv_store_options o = {.path = dir.path};
    struct samkv_store *second = (void *)1;
    ck_assert_int_eq(samkv_store_open(&o, &second, &err), SAMKV_BUSY);
    ck_assert_ptr_null(second);
    reopen();
}
END_TEST

START_TEST(a_reader_beside_changes_nothing)
{
    struct fixture_document d = document(5);
    FIXTURE_OK(fixture_ingest(store, &d, "one", &err));
    samkv_store_close(store); /* LMDB forbids a second opening within one process */
    struct samkv_store_options o = {.path = dir.path, .read_only = true};
    FIXTURE_OK(samkv_store_open(&o, &store, &err));
    ck_assert_int_eq(fixture_check_name(store, "one", &d), SAMKV_OK);
    ck_assert_int_eq(samkv_store_name_remove(store, "c", "one", &err), SAMKV_DENIED);
    struct samkv_writer *w;
    ck_assert_int_eq(samkv_writer_begin(store, &d.m, d.tokens, &w, &err), SAMKV_DENIED);
    fixture_document_free(&d);
}
END_TEST

START_TEST(bytes_read_are_counted_as_stored)
{
    struct fixture_document d = document(5);
    struct samkv_snapshot *sn;
    struct samkv_manifest m;
    FIXTURE_OK(fixture_ingest(store, &d, "one", &err));
    FIXTURE_OK(samkv_snapshot_begin(store, &sn, &err));
    FIXTURE_OK(samkv_snapshot_manifest(sn, &d.m.key, &m, &err));
    ck_assert_uint_eq(samkv_snapshot_bytes_read(sn), 0);
    ck_assert_int_eq(fixture_compare(sn, &d), SAMKV_OK); /* every record once, and the tokens, which do not count */
    ck_assert_uint_eq(samkv_snapshot_bytes_read(sn), m.bytes_stored);
    ck_assert_uint_gt(m.bytes_index, 0);
    ck_assert_uint_lt(m.bytes_index, m.bytes_stored);
    int32_t token;
    float number;
    void *dst[4] = {&number, &number, &number, &number};
    ck_assert_int_eq(samkv_snapshot_tokens(sn, &d.m.key, &token, 1, &err), SAMKV_INVALID);
    ck_assert_int_eq(samkv_snapshot_index(sn, &m, 0, &number, 1, &err), SAMKV_INVALID);
    ck_assert_int_eq(samkv_snapshot_index(sn, &m, 2, &number, fixture_index_count(&m), &err), SAMKV_INVALID);
    ck_assert_int_eq(samkv_snapshot_block(sn, &m, 3, dst, &err), SAMKV_INVALID);
    samkv_snapshot_end(sn);
    fixture_document_free(&d);
}
END_TEST

/* What a store gives back of a document that was written with `codec`: all blocks' bytes. Rewrites block 0 in between.
 */
static uint8_t *through_the_store(enum samkv_codec codec, size_t *bytes, uint64_t *stored)
{
    struct fixture_document d;
    fixture_document_make(&d, 8, (struct samkv_kv_shape){4, 2, 64, SAMKV_BF16}, 40, 16);
    d.m.codec = codec;
    samkv_document_key_of_codec(&d.m.key, codec);
    FIXTURE_OK(fixture_ingest(store, &d, "one", &err));
    uint8_t *room;
    void **pieces = fixture_block(&d, 0, true, &room);
    FIXTURE_OK(samkv_store_block_rewrite(store, &d.m, 0, (const void *const *)pieces, &err));
    free(pieces), free(room);
    struct samkv_snapshot *sn;
    struct samkv_manifest m;
    FIXTURE_OK(samkv_snapshot_begin(store, &sn, &err));
    FIXTURE_OK(samkv_snapshot_manifest(sn, &d.m.key, &m, &err));
    ck_assert_int_eq(m.codec, codec);
    *stored = m.bytes_stored - m.bytes_index;
    *bytes = 40 * 8 * 128 * 2;
    uint8_t *all = malloc(*bytes), *to = all;
    for (uint32_t b = 0; b < 3; b++) {
        size_t piece = fixture_block_tokens(&m, b) * 128 * 2;
        void *dst[8];
        for (int i = 0; i < 8; i++, to += piece)
            dst[i] = to;
        FIXTURE_OK(samkv_snapshot_block(sn, &m, b, dst, &err));
    }
    samkv_snapshot_end(sn);
    fixture_document_free(&d);
    return all;
}

START_TEST(a_document_keeps_the_codec_that_it_was_written_with)
{
    size_t bytes;
    uint64_t stored[SAMKV_CODEC_COUNT];
    uint8_t *exact = through_the_store(SAMKV_CODEC_RAW, &bytes, &stored[0]);
    FIXTURE_OK(samkv_store_name_remove(store, "c", "one", &err)); /* lossless codecs share a key */
    for (int codec = 1; codec < SAMKV_CODEC_COUNT; codec++) {
        uint8_t *back = through_the_store((enum samkv_codec)codec, &bytes, &stored[codec]);
        ck_assert_int_eq(memcmp(back, exact, bytes) == 0, codec <= SAMKV_CODEC_RANS);
        ck_assert_uint_le(stored[codec], stored[codec - 1] + 3 * 4); /* the block that was rewritten, too */
        FIXTURE_OK(samkv_store_name_remove(store, "c", "one", &err));
        free(back);
    }
    free(exact);
}
END_TEST

START_TEST(verify_and_rewrite)
{
    struct fixture_document d = document(5), other = document(6);
    struct samkv_snapshot *sn;
    struct samkv_manifest before, after;
    struct samkv_verify_report report = {0};
    FIXTURE_OK(fixture_ingest(store, &d, "one", &err));
    FIXTURE_OK(samkv_snapshot_begin(store, &sn, &err));
    FIXTURE_OK(samkv_snapshot_verify(sn, &d.m.key, &report, &err));
    ck_assert_int_eq(samkv_snapshot_verify(sn, &other.m.key, &report, &err), SAMKV_NOT_FOUND);
    FIXTURE_OK(samkv_snapshot_manifest(sn, &d.m.key, &before, &err));
    samkv_snapshot_end(sn);
    ck_assert_uint_eq(report.documents, 1);
    ck_assert_uint_eq(report.blocks, 3);
    ck_assert_uint_eq(report.damaged, 0);
    ck_assert_uint_gt(report.bytes, before.bytes_stored);

    uint8_t *bytes;
    void **pieces = fixture_block(&other, 2, true, &bytes);
    FIXTURE_OK(samkv_store_block_rewrite(store, &before, 2, (const void *const *)pieces, &err));
    ck_assert_int_eq(fixture_check_name(store, "one", &d), SAMKV_MISMATCH); /* it is the other's block now */
    free(pieces), free(bytes);
    pieces = fixture_block(&d, 2, true, &bytes);
    FIXTURE_OK(samkv_store_block_rewrite(store, &before, 2, (const void *const *)pieces, &err));
    ck_assert_int_eq(fixture_check_name(store, "one", &d), SAMKV_OK);
    ck_assert_int_eq(samkv_store_block_rewrite(store, &before, 3, (const void *const *)pieces, &err), SAMKV_INVALID);
    ck_assert_int_eq(samkv_store_block_rewrite(store, &other.m, 2, (const void *const *)pieces, &err), SAMKV_NOT_FOUND);
    free(pieces), free(bytes);
    size_t count = fixture_index_count(&d.m);
    float *index = calloc(count, sizeof *index);
    FIXTURE_OK(samkv_store_index_rewrite(store, &before, 1, index, count, &err));
    ck_assert_int_eq(fixture_check_name(store, "one", &d), SAMKV_MISMATCH);
    FIXTURE_OK(samkv_snapshot_begin(store, &sn, &err));
    FIXTURE_OK(samkv_snapshot_manifest(sn, &d.m.key, &after, &err));
    samkv_snapshot_end(sn);
    ck_assert_uint_lt(after.bytes_index, before.bytes_index); /* zeros compress */
    ck_assert_uint_eq(before.bytes_stored - after.bytes_stored, before.bytes_index - after.bytes_index);
    free(index);
    fixture_document_free(&d);
    fixture_document_free(&other);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("store");
    TCase *tc = tcase_create("store");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, what_goes_in_comes_out, 0, (int)(sizeof shapes / sizeof *shapes));
    tcase_add_test(tc, a_document_is_stored_once_and_lives_as_long_as_its_last_name);
    tcase_add_test(tc, a_removed_document_can_be_written_again_at_once);
    tcase_add_test(tc, replacing_moves_the_name_and_snapshots_keep_what_they_had);
    tcase_add_test(tc, nothing_is_visible_before_commit_or_after_abort);
    tcase_add_test(tc, a_collection_keeps_what_its_first_ingest_said);
    tcase_add_test(tc, a_document_that_nothing_refers_to_goes_with_the_next_open);
    tcase_add_test(tc, names_come_in_order_page_by_page);
    tcase_add_test(tc, one_directory_one_daemon);
    tcase_add_test(tc, a_reader_beside_changes_nothing);
    tcase_add_test(tc, bytes_read_are_counted_as_stored);
    tcase_add_test(tc, a_document_keeps_the_codec_that_it_was_written_with);
    tcase_add_test(tc, verify_and_rewrite);
    tcase_set_timeout(tc, 60);
    suite_add_tcase(suite, tc);
    return fixture_run(suite);
}
