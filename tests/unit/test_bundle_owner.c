/* Bundles of users' collections: nothing of whose they are travels, and the importer says whose they will be. */
#include "daemon/store/bundle_entry.h"
#include "daemon/store/fields.h"
#include "daemon/store/values.h"
#include "tests/unit/bundle_fixture.h"

static const struct samkv_kv_shape small = {2, 2, 8, SAMKV_F32};
static struct fixture_directory from_dir, to_dir;
static struct samkv_store *from, *to;
static struct samkv_error err;

static void setup(void)
{
    fixture_directory_make(&from_dir);
    fixture_directory_make(&to_dir);
    from = bundle_store(&from_dir, SAMKV_CODEC_ZSTD, 0);
    to = bundle_store(&to_dir, SAMKV_CODEC_ZSTD, 0);
}

static void teardown(void)
{
    samkv_store_close(from);
    samkv_store_close(to);
    fixture_directory_remove(&from_dir);
    fixture_directory_remove(&to_dir);
}

static struct samkv_collection collection_of(const char *name, uint32_t owner)
{
    struct samkv_collection c = bundle_collection(small, 16, SAMKV_CODEC_ZSTD);
    memset(c.name, 0, sizeof c.name);
    memcpy(c.name, name, strlen(name));
    c.ownership = (struct samkv_ownership){.owner = owner, .group = 77, .mode = 0600};
    FIXTURE_OK(samkv_collection_mask(&c, &err));
    return c;
}

static struct samkv_collection read_collection(struct samkv_store *s, const char *name)
{
    struct samkv_snapshot *sn;
    struct samkv_collection c;
    FIXTURE_OK(samkv_snapshot_begin(s, &sn, &err));
    FIXTURE_OK(samkv_snapshot_collection(sn, name, &c, &err));
    samkv_snapshot_end(sn);
    return c;
}

/* The document under its masked key and a name. */
static void ingest(struct samkv_store *s, const struct samkv_collection *c, struct fixture_document *d, const char *id)
{
    struct samkv_writer *w;
    samkv_document_key_mask(&d->m.key, &c->mask);
    FIXTURE_OK(samkv_writer_begin(s, &d->m, d->tokens, &w, &err));
    for (uint32_t b = 0; b < d->m.blocks; b++)
        FIXTURE_OK(fixture_write_block(w, d, b, &err));
    for (uint32_t l = 0; l < d->m.shape.layers; l++)
        FIXTURE_OK(fixture_write_index(w, d, l, &err));
    FIXTURE_OK(samkv_writer_commit(w, c->name, id, NULL, &err));
}

static bool holds(const struct memory_stream *m, const void *bytes, size_t count)
{
    return memmem(m->data, m->count, bytes, count) != NULL;
}

static enum samkv_status give_to_9(void *arg, struct samkv_collection *c, struct samkv_error *e)
{
    (void)arg, (void)e;
    ck_assert_str_eq(c->name, "x"); /* without the user that it had */
    memcpy(c->name, "~9/x", 5);
    c->ownership = (struct samkv_ownership){.owner = 9, .group = 9, .mode = 0600};
    return SAMKV_OK;
}

START_TEST(from_one_user_to_another)
{
    struct memory_stream bundle = {0};
    struct samkv_bundle_progress p;
    struct fixture_document d;
    struct samkv_collection mine = collection_of("~7/x", 7);
    FIXTURE_OK(samkv_store_collection_put(from, &mine, &err));
    fixture_document_make(&d, 1, small, 40, 16);
    struct samkv_key neutral = d.m.key;
    ingest(from, &mine, &d, "doc");
    ck_assert_mem_ne(&d.m.key, &neutral, sizeof neutral);
    FIXTURE_OK(samkv_bundle_export(from, "~7/x", "", NULL, memory_rewind(&bundle, false), go_on, NULL, &p, &err));
    ck_assert(holds(&bundle, &neutral, sizeof neutral));
    ck_assert(!holds(&bundle, &d.m.key, sizeof d.m.key));
    ck_assert(!holds(&bundle, &mine.mask, sizeof mine.mask));
    ck_assert(!holds(&bundle, "~7", 2));
    FIXTURE_OK(samkv_bundle_check(memory_rewind(&bundle, false), NULL, NULL, NULL, &p, &err));

    const struct samkv_bundle_options options = {.keep = false};
    const struct samkv_bundle_host host = {.on_target = give_to_9};
    for (int round = 0; round < 2; round++) {
        FIXTURE_OK(samkv_bundle_import(to, &options, memory_rewind(&bundle, false), &host, &p, &err));
        ck_assert_str_eq(p.collection, "~9/x");
        ck_assert_uint_eq(p.names, 1);
        ck_assert_uint_eq(p.skipped, round); /* the second time it is there */
    }
    struct samkv_collection theirs = read_collection(to, "~9/x");
    ck_assert_uint_eq(theirs.ownership.owner, 9);
    ck_assert_mem_ne(&theirs.mask, &mine.mask, sizeof mine.mask);
    struct samkv_key key = neutral;
    samkv_document_key_mask(&key, &theirs.mask);
    d.m.key = key;
    struct samkv_snapshot *sn;
    struct samkv_name name;
    FIXTURE_OK(samkv_snapshot_begin(to, &sn, &err));
    FIXTURE_OK(samkv_snapshot_name(sn, "~9/x", "doc", &name, &err));
    ck_assert_mem_eq(&name.key, &key, sizeof key);
    ck_assert_int_eq(fixture_compare(sn, &d), SAMKV_OK); /* every record, to the byte */
    samkv_name_deinit(&name);
    samkv_snapshot_end(sn);
    samkv_collection_deinit(&theirs);
    fixture_document_free(&d);
    memory_free(&bundle);
}
END_TEST

/* What a bundle says of owners is no matter; keys with a mask are refused. */
START_TEST(a_bundle_that_says_whose_it_is)
{
    struct samkv_collection c = collection_of("~7/x", 7);
    static const struct samkv_key none;
    uint8_t start[SAMKV_BUNDLE_START_BYTES], head[SAMKV_BUNDLE_HEAD_BYTES], payload[1024], *record;
    struct memory_stream m = {0};
    struct samkv_fields f;
    struct samkv_bundle_progress p;
    size_t record_bytes;
    if (_i)
        c.mask = none;
    FIXTURE_OK(samkv_collection_seal(&c, &record, &record_bytes));
    samkv_fields_write(&f, payload, sizeof payload);
    samkv_put_u32(&f, (uint32_t)strlen(c.name));
    samkv_put_u32(&f, 0);
    samkv_put_u64(&f, 0);
    samkv_put_bytes(&f, c.name, strlen(c.name));
    samkv_put_bytes(&f, record, record_bytes);
    ck_assert(!f.bad);
    size_t bytes = sizeof payload - f.left;
    const struct samkv_bundle_head h = {SAMKV_BUNDLE_COLLECTION, 0, bytes, samkv_bundle_sum(payload, bytes)};
    samkv_bundle_start_encode(start);
    samkv_bundle_head_encode(&h, head);
    FIXTURE_OK(memory_write(&m, start, sizeof start, &err));
    FIXTURE_OK(memory_write(&m, head, sizeof head, &err));
    FIXTURE_OK(memory_write(&m, payload, bytes, &err));
    struct samkv_collection read = {0};
    ck_assert_int_eq(samkv_bundle_check(memory_rewind(&m, false), NULL, NULL, &read, &p, &err), SAMKV_CORRUPT);
    bool refused = strstr(err.text, "belong to somebody") != NULL; /* else it is cut off behind the collection */
    ck_assert_msg(refused == !_i, "%s", err.text);
    ck_assert_uint_eq(read.ownership.owner, _i ? SAMKV_OWNER_DAEMON : read.ownership.owner);
    samkv_collection_deinit(&read);
    free(record);
    memory_free(&m);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("bundle_owner");
    TCase *tc = tcase_create("bundle_owner");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, from_one_user_to_another);
    tcase_add_loop_test(tc, a_bundle_that_says_whose_it_is, 0, 2);
    suite_add_tcase(suite, tc);
    return fixture_run(suite);
}
