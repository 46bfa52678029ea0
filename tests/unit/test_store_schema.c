#include "tests/unit/store_fixture.h"

#include <lmdb.h>

#include "daemon/store/snapshot.h"

/* A store that the first schema wrote is taken over as it is: its records, put back into their old form, stay good. */
#define OLD_TAIL_BYTES     40 /* of a collection, behind the preamble */
#define OLD_DOCUMENT_CODEC 80 /* where a document's record has its codec now, and had zeros */

static struct fixture_directory dir;
static struct samkv_error err;

static struct samkv_store *open_it(bool read_only)
{
    struct samkv_store *s;
    struct samkv_store_options o = {
        .path = dir.path, .max_bytes = 16 << 20, .codec = SAMKV_CODEC_ZSTD, .read_only = read_only};
    FIXTURE_OK(samkv_store_open(&o, &s, &err));
    return s;
}

/* Payloads of schema 1. Returns the new length. */
static size_t collection_of_schema_1(uint8_t *payload, size_t bytes)
{
    (void)payload;
    return bytes - OLD_TAIL_BYTES;
}

static size_t name_of_schema_1(uint8_t *payload, size_t bytes)
{
    payload[SAMKV_KEY_BYTES] &= 1; /* titled */
    memmove(payload + SAMKV_KEY_BYTES + 1, payload + SAMKV_KEY_BYTES + 9, bytes - SAMKV_KEY_BYTES - 9);
    return bytes - 8;
}

static size_t document_of_schema_1(uint8_t *payload, size_t bytes)
{
    memset(payload + OLD_DOCUMENT_CODEC, 0, 8);
    return bytes;
}

static size_t schema_1(uint8_t *payload, size_t bytes)
{
    payload[0] = 1;
    return bytes;
}

static void age(MDB_txn *txn, const char *database, enum samkv_record_kind kind, size_t (*back)(uint8_t *, size_t))
{
    MDB_dbi dbi;
    MDB_cursor *cursor;
    MDB_val k, v;
    ck_assert_int_eq(mdb_dbi_open(txn, database, 0, &dbi), 0);
    ck_assert_int_eq(mdb_cursor_open(txn, dbi, &cursor), 0);
    int count = 0;
    while (mdb_cursor_get(cursor, &k, &v, MDB_NEXT) == 0) {
        uint8_t record[4096];
        ck_assert_uint_le(v.mv_size, sizeof record);
        memcpy(record, v.mv_data, v.mv_size);
        size_t payload = back(record + SAMKV_RECORD_HEADER_BYTES, v.mv_size - SAMKV_RECORD_HEADER_BYTES);
        struct samkv_record head = {.pieces = 1, .raw_bytes = payload, .payload_bytes = payload};
        samkv_record_seal(record, kind, samkv_val_bytes(&k), &head);
        MDB_val to = {SAMKV_RECORD_HEADER_BYTES + payload, record};
        ck_assert_int_eq(mdb_cursor_put(cursor, &k, &to, MDB_CURRENT), 0);
        count++;
    }
    ck_assert_int_gt(count, 0);
    mdb_cursor_close(cursor);
}

static void age_store(void)
{
    MDB_env *env;
    MDB_txn *txn;
    ck_assert_int_eq(mdb_env_create(&env), 0);
    mdb_env_set_maxdbs(env, 10);
    ck_assert_int_eq(mdb_env_open(env, dir.path, 0, 0600), 0);
    ck_assert_int_eq(mdb_txn_begin(env, NULL, 0, &txn), 0);
    age(txn, "meta", SAMKV_RECORD_SCHEMA, schema_1);
    age(txn, "collection", SAMKV_RECORD_COLLECTION, collection_of_schema_1);
    age(txn, "name", SAMKV_RECORD_NAME, name_of_schema_1);
    age(txn, "document", SAMKV_RECORD_DOCUMENT, document_of_schema_1);
    ck_assert_int_eq(mdb_txn_commit(txn), 0);
    mdb_env_close(env);
}

static uint8_t schema_on_disk(struct samkv_store *s)
{
    struct samkv_snapshot *sn;
    struct samkv_held held = {0};
    FIXTURE_OK(samkv_snapshot_begin(s, &sn, &err));
    FIXTURE_OK(samkv_snapshot_get(sn, SAMKV_DB_META, (struct samkv_bytes){"schema", 6}, &held, &err));
    uint8_t schema = ((const uint8_t *)held.bytes.data)[SAMKV_RECORD_HEADER_BYTES];
    samkv_held_release(s, &held);
    samkv_snapshot_end(sn);
    return schema;
}

START_TEST(a_store_of_schema_1_is_taken_over)
{
    struct fixture_document doc;
    fixture_directory_make(&dir);
    fixture_document_make(&doc, 7, (struct samkv_kv_shape){2, 2, 16, SAMKV_BF16}, 50, 16);
    struct samkv_store *s = fixture_open(&dir, 16 << 20);
    struct samkv_collection c = {.name = "c",
                                 .shape = doc.m.shape,
                                 .heads = doc.m.heads,
                                 .block_tokens = 16,
                                 .preamble = (int32_t[]){5, 6},
                                 .preamble_tokens = 2,
                                 .codec = SAMKV_CODEC_ZSTD},
                            back;
    FIXTURE_OK(samkv_store_collection_put(s, &c, &err));
    FIXTURE_OK(fixture_ingest(s, &doc, "old", &err));
    samkv_store_close(s);
    age_store();

    for (int round = 0; round < 3; round++) { /* read-only, as it is; then taken over; then as any other */
        s = open_it(round == 0);
        ck_assert_uint_eq(schema_on_disk(s), round == 0 ? 1 : SAMKV_STORE_SCHEMA);
        FIXTURE_OK(fixture_check_name(s, "old", &doc));
        struct samkv_snapshot *sn;
        struct samkv_name name;
        FIXTURE_OK(samkv_snapshot_begin(s, &sn, &err));
        FIXTURE_OK(samkv_snapshot_name(sn, "c", "old", &name, &err));
        ck_assert_int_eq(name.put_unix_s == 0, round < 2);
        ck_assert(!name.pinned);
        samkv_name_deinit(&name);
        FIXTURE_OK(samkv_snapshot_collection(sn, "c", &back, &err));
        ck_assert_uint_eq(back.preamble_tokens, 2);
        ck_assert_int_eq(back.codec, SAMKV_CODEC_ZSTD);
        ck_assert_uint_eq(back.quota_bytes + back.ttl_s, 0);
        ck_assert_uint_eq(back.ownership.owner, SAMKV_OWNER_DAEMON);
        ck_assert_uint_eq(back.ownership.mode, SAMKV_MODE_DEFAULT);
        samkv_collection_deinit(&back);
        samkv_snapshot_end(sn);
        if (round == 1)
            FIXTURE_OK(samkv_store_name_put(s, "c", "old", NULL, &doc.m.key, &err));
        samkv_store_close(s);
    }
    fixture_document_free(&doc);
    fixture_directory_remove(&dir);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("store_schema");
    TCase *tc = tcase_create("store_schema");
    tcase_add_test(tc, a_store_of_schema_1_is_taken_over);
    suite_add_tcase(suite, tc);
    return fixture_run(suite);
}
