#include "tests/unit/bundle_fixture.h"

#include "daemon/store/bundle_entry.h"
#include "daemon/store/snapshot.h"
#include "daemon/store/writer.h"

/* What goes in comes out elsewhere; see test_bundle_hostile.c for bundles that nobody exported. */

static struct fixture_directory from_dir, to_dir;
static struct samkv_store *from, *to;
static struct memory_stream bundle, again;
static struct samkv_bundle_progress done;
static struct samkv_error err;

static const struct samkv_kv_shape small = {2, 2, 8, SAMKV_BF16};

static void setup(void)
{
    fixture_directory_make(&from_dir);
    fixture_directory_make(&to_dir);
    from = fixture_open(&from_dir, 0);
    to = fixture_open(&to_dir, 0);
}

static void teardown(void)
{
    samkv_store_close(from);
    samkv_store_close(to);
    fixture_directory_remove(&from_dir);
    fixture_directory_remove(&to_dir);
    memory_free(&bundle);
    memory_free(&again);
}

static struct fixture_document document(uint32_t seed)
{
    struct fixture_document d;
    fixture_document_make(&d, seed, small, 40, 16);
    return d;
}

static void put_collection(struct samkv_store *s)
{
    struct samkv_collection c = bundle_collection(small, 16, SAMKV_CODEC_ZSTD);
    FIXTURE_OK(samkv_store_collection_put(s, &c, &err));
}

static void ingest(struct samkv_store *s, uint32_t seed, const char *id)
{
    struct fixture_document d = document(seed);
    FIXTURE_OK(fixture_ingest(s, &d, id, &err));
    fixture_document_free(&d);
}

static void assert_is(struct samkv_store *s, const char *id, uint32_t seed)
{
    struct fixture_document d = document(seed);
    ck_assert_int_eq(fixture_check_name(s, id, &d), SAMKV_OK);
    fixture_document_free(&d);
}

static struct samkv_name name_of(struct samkv_store *s, const char *id)
{
    struct samkv_snapshot *sn;
    struct samkv_name name;
    FIXTURE_OK(samkv_snapshot_begin(s, &sn, &err));
    FIXTURE_OK(samkv_snapshot_name(sn, "c", id, &name, &err));
    samkv_snapshot_end(sn);
    return name;
}

/* ------------------------------------------------------------------ round trips */

static const struct {
    struct samkv_kv_shape shape;
    uint32_t tokens, block_tokens;
} shapes[] = {
    {{1, 1, 1, SAMKV_F32}, 1, 1},   {{1, 1, 1, SAMKV_BF16}, 1, 16},   {{2, 3, 5, SAMKV_F16}, 17, 16},
    {{3, 2, 8, SAMKV_BF16}, 33, 8}, {{30, 3, 64, SAMKV_F32}, 37, 16}, {{2, 8, 128, SAMKV_BF16}, 265, 64},
};
#define SHAPE_COUNT (int)(sizeof shapes / sizeof *shapes)

START_TEST(what_goes_in_comes_out_elsewhere)
{
    enum samkv_codec codec = (enum samkv_codec)(_i / SHAPE_COUNT);
    const struct samkv_kv_shape shape = shapes[_i % SHAPE_COUNT].shape;
    uint32_t tokens = shapes[_i % SHAPE_COUNT].tokens, block_tokens = shapes[_i % SHAPE_COUNT].block_tokens;
    samkv_store_close(from);
    from = bundle_store(&from_dir, codec, 0);
    struct samkv_collection c = bundle_collection(shape, block_tokens, codec);
    FIXTURE_OK(samkv_store_collection_put(from, &c, &err));
    struct fixture_document one, two;
    fixture_document_make(&one, 1, shape, tokens, block_tokens);
    fixture_document_make(&two, 2, shape, tokens, block_tokens);
    one.m.codec = two.m.codec = codec;
    samkv_document_key_of_codec(&one.m.key, codec);
    samkv_document_key_of_codec(&two.m.key, codec);
    FIXTURE_OK(fixture_ingest(from, &one, "one", &err));
    FIXTURE_OK(fixture_ingest(from, &two, "two", &err));
    bundle_export(from, &bundle, &done);
    ck_assert_uint_eq(done.names, 2);
    ck_assert_uint_eq(done.documents, 2);
    struct samkv_bundle_progress checked;
    FIXTURE_OK(samkv_bundle_check(memory_rewind(&bundle, false), NULL, NULL, NULL, &checked, &err));
    ck_assert_uint_eq(checked.names, 2);
    bundle.piece = _i % 2 ? 7 : 0; /* a pipe gives what it has */
    FIXTURE_OK(bundle_import(to, &bundle, false, _i % 3 == 0, &done, &err));
    ck_assert_uint_eq(done.names, 2);
    ck_assert_uint_eq(done.bytes, bundle.count);
    if (codec == SAMKV_CODEC_RAW || codec == SAMKV_CODEC_ZSTD) {
        ck_assert_int_eq(fixture_check_name(to, "one", &one), SAMKV_OK);
        ck_assert_int_eq(fixture_check_name(to, "two", &two), SAMKV_OK);
    }
    /* Every record, time and title: the copy's bundle is the same to the byte. */
    bundle_export(to, &again, &done);
    ck_assert_uint_eq(again.count, bundle.count);
    ck_assert_mem_eq(again.data, bundle.data, bundle.count);
    ck_assert_uint_eq(fixture_stats(to).bytes_stored, fixture_stats(from).bytes_stored);
    fixture_document_free(&one);
    fixture_document_free(&two);
}
END_TEST

START_TEST(a_document_with_several_names_goes_once)
{
    put_collection(from);
    ingest(from, 1, "a");
    ingest(from, 2, "b");
    ingest(from, 1, "c");
    struct samkv_name pinned = name_of(from, "c");
    free(pinned.title);
    pinned.title = "another title";
    pinned.pinned = true;
    pinned.put_unix_s = 1234567890;
    FIXTURE_OK(samkv_store_name_put_as(from, "c", &pinned, &err));
    bundle_export(from, &bundle, &done);
    ck_assert_uint_eq(done.names, 3);
    ck_assert_uint_eq(done.documents, 2);
    FIXTURE_OK(bundle_import(to, &bundle, false, false, &done, &err));
    assert_is(to, "a", 1), assert_is(to, "b", 2), assert_is(to, "c", 1);
    ck_assert_uint_eq(fixture_stats(to).documents, 2);
    struct samkv_name there = name_of(to, "c");
    ck_assert_str_eq(there.title, "another title");
    ck_assert(there.pinned);
    ck_assert_int_eq(there.put_unix_s, 1234567890);
    samkv_name_deinit(&there);
    there = name_of(to, "a");
    ck_assert(!there.pinned);
    samkv_name_deinit(&there);
}
END_TEST

/* Documents behind a preamble; their keys say so. */
static void make_with_preamble(struct samkv_store *s, int32_t preamble[5])
{
    struct samkv_collection c = bundle_collection(small, 16, SAMKV_CODEC_ZSTD);
    struct fixture_document p, d = document(5);
    fixture_document_make(&p, 9, small, 5, 16);
    memcpy(preamble, p.tokens, 5 * sizeof *preamble);
    c.preamble = preamble;
    c.preamble_tokens = 5;
    c.preamble_key = p.m.key;
    struct samkv_writer *w;
    FIXTURE_OK(samkv_writer_begin(s, &p.m, p.tokens, &w, &err));
    FIXTURE_OK(fixture_write_block(w, &p, 0, &err));
    FIXTURE_OK(samkv_writer_commit(w, NULL, NULL, NULL, &err));
    FIXTURE_OK(samkv_store_collection_put(s, &c, &err));
    d.m.preamble_tokens = 5;
    samkv_document_key(c.fingerprint, small.dtype, preamble, 5, 16, 16, d.tokens, d.m.tokens, &d.m.key);
    FIXTURE_OK(fixture_ingest(s, &d, "d", &err));
    fixture_document_free(&p);
    fixture_document_free(&d);
}

START_TEST(the_preamble_goes_along)
{
    int32_t preamble[5];
    make_with_preamble(from, preamble);
    bundle_export(from, &bundle, &done);
    ck_assert_uint_eq(done.names, 1);
    ck_assert_uint_eq(done.documents, 2);
    FIXTURE_OK(bundle_import(to, &bundle, false, true, &done, &err));
    bundle_export(to, &again, &done);
    ck_assert_uint_eq(again.count, bundle.count);
    ck_assert_mem_eq(again.data, bundle.data, bundle.count);
    /* A second collection shares it all. */
    const struct samkv_bundle_options o = {.collection = "copy"};
    const struct samkv_bundle_host host = {0};
    FIXTURE_OK(samkv_bundle_import(to, &o, memory_rewind(&bundle, true), &host, &done, &err));
    ck_assert_str_eq(done.collection, "copy");
    ck_assert_uint_eq(fixture_stats(to).documents, 2);
    ck_assert_uint_eq(fixture_stats(to).names, 2);
}
END_TEST

START_TEST(an_empty_collection_goes_too)
{
    put_collection(from);
    bundle_export(from, &bundle, &done);
    FIXTURE_OK(bundle_import(to, &bundle, false, false, &done, &err));
    ck_assert_uint_eq(done.names, 0);
    ck_assert_uint_eq(fixture_stats(to).collections, 1);
    ck_assert_int_eq(
        samkv_bundle_export(from, "nobody", "", NULL, memory_rewind(&again, false), go_on, NULL, &done, &err),
        SAMKV_NOT_FOUND);
}
END_TEST

/* ------------------------------------------------------------------ what is there already */

START_TEST(a_second_import_writes_nothing)
{
    put_collection(from);
    ingest(from, 1, "a");
    ingest(from, 2, "b");
    bundle_export(from, &bundle, &done);
    FIXTURE_OK(bundle_import(to, &bundle, false, false, &done, &err));
    ck_assert_uint_eq(done.skipped, 0);
    uint64_t commits = fixture_stats(to).commits;
    FIXTURE_OK(bundle_import(to, &bundle, false, true, &done, &err));
    ck_assert_uint_eq(done.skipped, 2);
    ck_assert_uint_le(fixture_stats(to).commits, commits + 1); /* the collection is compared */
}
END_TEST

START_TEST(names_are_replaced_or_kept)
{
    bool keep = _i;
    put_collection(from);
    ingest(from, 1, "a");
    ingest(from, 1, "shared"); /* kept or not, "shared" needs what "a" would have brought */
    ingest(from, 2, "b");
    put_collection(to);
    ingest(to, 7, "a");
    bundle_export(from, &bundle, &done);
    FIXTURE_OK(bundle_import(to, &bundle, keep, false, &done, &err));
    ck_assert_uint_eq(done.names, 3);
    ck_assert_uint_eq(done.kept, keep);
    ck_assert_uint_eq(done.replaced, !keep);
    assert_is(to, "a", keep ? 7 : 1);
    assert_is(to, "shared", 1);
    assert_is(to, "b", 2);
    ck_assert_uint_eq(fixture_stats(to).names, 3);
}
END_TEST

START_TEST(another_collection_is_refused)
{
    put_collection(from);
    ingest(from, 1, "a");
    bundle_export(from, &bundle, &done);
    struct samkv_collection c = bundle_collection(small, 16, SAMKV_CODEC_ZSTD);
    if (_i == 0)
        c.fingerprint[0]++;
    else if (_i == 1)
        c.block_tokens = 8;
    else if (_i == 2)
        c.shape.dtype = SAMKV_F16;
    else
        c.codec = SAMKV_CODEC_RAW;
    FIXTURE_OK(samkv_store_collection_put(to, &c, &err));
    ck_assert_int_eq(bundle_import(to, &bundle, false, false, &done, &err), SAMKV_MISMATCH);
    ck_assert_uint_eq(fixture_stats(to).documents, 0);
}
END_TEST

START_TEST(a_full_store_keeps_what_came_and_goes_on_later)
{
    struct samkv_kv_shape shape = {4, 2, 64, SAMKV_F32};
    struct samkv_collection c = bundle_collection(shape, 16, SAMKV_CODEC_ZSTD);
    struct fixture_document d[8];
    FIXTURE_OK(samkv_store_collection_put(from, &c, &err));
    for (uint32_t i = 0; i < 8; i++) {
        char id[2] = {(char)('a' + i)};
        fixture_document_make(&d[i], 20 + i, shape, 100, 16);
        FIXTURE_OK(fixture_ingest(from, &d[i], id, &err));
    }
    bundle_export(from, &bundle, &done);
    samkv_store_close(to);
    to = fixture_open(&to_dir, 2 << 20);
    ck_assert_int_eq(bundle_import(to, &bundle, false, false, &done, &err), SAMKV_FULL);
    uint64_t first = done.names;
    ck_assert_uint_gt(first, 0);
    ck_assert_uint_lt(first, 8);
    ck_assert_uint_eq(fixture_stats(to).names, first);
    samkv_store_close(to);
    to = fixture_open(&to_dir, 0);
    FIXTURE_OK(bundle_import(to, &bundle, false, true, &done, &err));
    ck_assert_uint_eq(done.skipped, first);
    for (uint32_t i = 0; i < 8; i++) {
        char id[2] = {(char)('a' + i)};
        ck_assert_int_eq(fixture_check_name(to, id, &d[i]), SAMKV_OK);
        fixture_document_free(&d[i]);
    }
}
END_TEST

/* ------------------------------------------------------------------ exports that break off */

START_TEST(an_export_goes_on_behind_any_break)
{
    int32_t preamble[5];
    struct samkv_bundle_state state;
    if (_i)
        make_with_preamble(from, preamble);
    else
        put_collection(from);
    if (!_i)
        ingest(from, 1, "a"), ingest(from, 2, "b"), ingest(from, 1, "c");
    bundle_export(from, &bundle, &done);
    for (size_t cut = 0; cut <= bundle.count; cut++) {
        memory_free(&again);
        FIXTURE_OK(memory_write(&again, bundle.data, cut, &err));
        FIXTURE_OK(samkv_bundle_scan(memory_rewind(&again, true), NULL, NULL, &state, &err));
        ck_assert_uint_le(state.bytes, cut);
        ck_assert(state.complete == (cut == bundle.count));
        if (state.complete)
            continue;
        again.count = state.bytes;
        FIXTURE_OK(samkv_bundle_export(from, "c", "", &state, memory_rewind(&again, false), go_on, NULL, &done, &err));
        FIXTURE_OK(samkv_bundle_check(memory_rewind(&again, true), NULL, NULL, NULL, &done, &err));
        ck_assert_uint_eq(done.names, _i ? 1 : 3);
        if (_i) { /* a document with two names is carried twice by an export in two parts */
            ck_assert_uint_eq(again.count, bundle.count);
            ck_assert_mem_eq(again.data, bundle.data, bundle.count);
        }
    }
}
END_TEST

START_TEST(an_export_begins_behind_an_id)
{
    put_collection(from);
    ingest(from, 1, "a"), ingest(from, 2, "b"), ingest(from, 3, "c");
    FIXTURE_OK(samkv_bundle_export(from, "c", "a", NULL, memory_rewind(&bundle, false), go_on, NULL, &done, &err));
    ck_assert_uint_eq(done.names, 2);
    FIXTURE_OK(bundle_import(to, &bundle, false, false, &done, &err));
    assert_is(to, "b", 2), assert_is(to, "c", 3);
    ck_assert_uint_eq(fixture_stats(to).names, 2);
}
END_TEST

START_TEST(what_is_resumed_must_be_the_same_collection)
{
    struct samkv_bundle_state state;
    put_collection(from);
    ingest(from, 1, "a");
    bundle_export(from, &bundle, &done);
    bundle.count -= 10;
    FIXTURE_OK(samkv_bundle_scan(memory_rewind(&bundle, true), NULL, NULL, &state, &err));
    ck_assert_uint_gt(state.bytes, 0);
    struct samkv_bundle_state other = state;
    other.fingerprint[3] ^= 1;
    ck_assert_int_eq(samkv_bundle_export(from, "c", "", &other, memory_rewind(&again, false), go_on, NULL, &done, &err),
                     SAMKV_MISMATCH);
    strcpy(state.progress.collection, "d");
    ck_assert_int_eq(samkv_bundle_export(from, "c", "", &state, memory_rewind(&again, false), go_on, NULL, &done, &err),
                     SAMKV_MISMATCH);
    ck_assert_uint_eq(again.count, 0);
}
END_TEST

static enum samkv_status stop_after(void *arg, const struct samkv_bundle_progress *p, struct samkv_error *e)
{
    int *left = arg;
    (void)p;
    return (*left)-- > 0 ? SAMKV_OK : samkv_fail(e, SAMKV_CANCELLED, "enough");
}

START_TEST(a_report_ends_the_work)
{
    put_collection(from);
    ingest(from, 1, "a"), ingest(from, 2, "b");
    bundle_export(from, &bundle, &done);
    for (int entries = 0; entries < 12; entries++) {
        int left = entries;
        ck_assert_int_eq(
            samkv_bundle_export(from, "c", "", NULL, memory_rewind(&again, false), stop_after, &left, &done, &err),
            SAMKV_CANCELLED);
        left = entries;
        const struct samkv_bundle_options o = {0};
        const struct samkv_bundle_host host = {.report = stop_after, .arg = &left};
        ck_assert_int_eq(samkv_bundle_import(to, &o, memory_rewind(&bundle, false), &host, &done, &err),
                         SAMKV_CANCELLED);
        memory_free(&again);
    }
    FIXTURE_OK(bundle_import(to, &bundle, false, false, &done, &err));
    assert_is(to, "a", 1), assert_is(to, "b", 2);
}
END_TEST

START_TEST(damage_does_not_leave_the_store)
{
    put_collection(from);
    ingest(from, 1, "a"), ingest(from, 2, "b");
    struct fixture_document d = document(2);
    uint8_t buffer[SAMKV_PART_KEY_BYTES], copy[4096];
    MDB_txn *txn;
    MDB_val k = samkv_val(samkv_part_key(&d.m.key, 1, buffer)), v;
    ck_assert_int_eq(mdb_txn_begin(from->now->env, NULL, 0, &txn), 0);
    ck_assert_int_eq(mdb_get(txn, from->dbi[SAMKV_DB_BLOCK], &k, &v), 0);
    ck_assert_uint_le(v.mv_size, sizeof copy);
    memcpy(copy, v.mv_data, v.mv_size);
    copy[v.mv_size - 1] ^= 1;
    v.mv_data = copy;
    ck_assert_int_eq(mdb_put(txn, from->dbi[SAMKV_DB_BLOCK], &k, &v, 0), 0);
    ck_assert_int_eq(mdb_txn_commit(txn), 0);
    ck_assert_int_eq(samkv_bundle_export(from, "c", "", NULL, memory_rewind(&bundle, false), go_on, NULL, &done, &err),
                     SAMKV_CORRUPT);
    ck_assert_ptr_nonnull(strstr(err.text, "'b'"));
    /* What came before is of use. */
    struct samkv_bundle_state state;
    FIXTURE_OK(samkv_bundle_scan(memory_rewind(&bundle, true), NULL, NULL, &state, &err));
    ck_assert_str_eq(state.progress.last_id, "a");
    ck_assert_int_eq(bundle_import(to, &bundle, false, false, &done, &err), SAMKV_CORRUPT);
    ck_assert_uint_eq(done.names, 1);
    assert_is(to, "a", 1);
    fixture_document_free(&d);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("bundle");
    TCase *c = tcase_create("bundle");
    tcase_set_timeout(c, 120);
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_loop_test(c, what_goes_in_comes_out_elsewhere, 0, SAMKV_CODEC_COUNT * SHAPE_COUNT);
    tcase_add_test(c, a_document_with_several_names_goes_once);
    tcase_add_test(c, the_preamble_goes_along);
    tcase_add_test(c, an_empty_collection_goes_too);
    tcase_add_test(c, a_second_import_writes_nothing);
    tcase_add_loop_test(c, names_are_replaced_or_kept, 0, 2);
    tcase_add_loop_test(c, another_collection_is_refused, 0, 4);
    tcase_add_test(c, a_full_store_keeps_what_came_and_goes_on_later);
    tcase_add_loop_test(c, an_export_goes_on_behind_any_break, 0, 2);
    tcase_add_test(c, an_export_begins_behind_an_id);
    tcase_add_test(c, what_is_resumed_must_be_the_same_collection);
    tcase_add_test(c, a_report_ends_the_work);
    tcase_add_test(c, damage_does_not_leave_the_store);
    suite_add_tcase(suite, c);
    return fixture_run(suite);
}
