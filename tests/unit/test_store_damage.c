#include "tests/unit/store_fixture.h"

#include <fcntl.h>
#include <lmdb.h>
#include <sys/stat.h>

#include "daemon/store/pages.h"
#include "daemon/store/snapshot.h"

/*
 * What a bad disk, a copy cut short or somebody's editor does to data.mdb. Whatever it is: no crash, and never bytes
 * that nobody stored.
 */
#define DOCUMENTS 3

static struct fixture_directory dir;
static struct fixture_document documents[DOCUMENTS];
static struct samkv_error err;
static uint8_t *healthy; /* the data file with all documents */
static size_t healthy_bytes;

static const char *data_path(void)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/data.mdb", dir.path);
    return path;
}

static void put_file(const uint8_t *bytes, size_t count)
{
    int fd = open(data_path(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, bytes, count), (ssize_t)count);
    close(fd);
}

static const char *document_id(uint32_t i)
{
    static const char *const ids[DOCUMENTS] = {"one", "two", "three"};
    return ids[i];
}

static void setup(void)
{
    fixture_directory_make(&dir);
    struct samkv_store *s = fixture_open(&dir, 16 << 20);
    struct fixture_document gone;
    fixture_document_make(&gone, 99, (struct samkv_kv_shape){2, 2, 16, SAMKV_F32}, 100, 16);
    FIXTURE_OK(fixture_ingest(s, &gone, "gone", &err));
    for (uint32_t i = 0; i < DOCUMENTS; i++) {
        fixture_document_make(&documents[i], i, (struct samkv_kv_shape){2, 2, 16, SAMKV_F32}, 50 + 60 * i, 16);
        FIXTURE_OK(fixture_ingest(s, &documents[i], document_id(i), &err));
    }
    FIXTURE_OK(samkv_store_name_remove(s, "c", "gone", &err)); /* leaves a free list */
    fixture_document_free(&gone);
    samkv_store_close(s);
    struct stat st;
    int fd = open(data_path(), O_RDONLY);
    ck_assert(fd >= 0 && fstat(fd, &st) == 0);
    healthy_bytes = (size_t)st.st_size;
    healthy = malloc(healthy_bytes);
    ck_assert_int_eq(read(fd, healthy, healthy_bytes), (ssize_t)healthy_bytes);
    close(fd);
}

static void teardown(void)
{
    for (uint32_t i = 0; i < DOCUMENTS; i++)
        fixture_document_free(&documents[i]);
    free(healthy);
    fixture_directory_remove(&dir);
}

static enum samkv_status try_open(struct samkv_store **out)
{
    struct samkv_store_options o = {.path = dir.path, .max_bytes = 16 << 20, .codec = SAMKV_CODEC_ZSTD};
    err.text[0] = 0;
    return samkv_store_open(&o, out, &err);
}

static enum samkv_status status_of(const uint8_t *bytes, size_t count)
{
    struct samkv_store *s;
    put_file(bytes, count);
    enum samkv_status st = try_open(&s);
    if (st == SAMKV_OK)
        samkv_store_close(s);
    else
        ck_assert_msg(strstr(err.text, dir.path) != NULL, "'%s' does not name the store", err.text);
    return st;
}

START_TEST(truncated_files_are_refused)
{
    static const size_t few[] = {1, 100, 4095, 4096, 4097, 8191, 8192, 8193, 12288};
    ck_assert_int_eq(status_of(healthy, 0), SAMKV_CORRUPT);
    for (size_t i = 0; i < sizeof few / sizeof *few; i++)
        ck_assert_int_eq(status_of(healthy, few[i]), SAMKV_CORRUPT);
    ck_assert_int_eq(status_of(healthy, healthy_bytes / 2), SAMKV_CORRUPT);
    ck_assert_int_eq(status_of(healthy, healthy_bytes), SAMKV_OK);
}
END_TEST

START_TEST(a_file_that_is_gone_is_not_made_anew_in_silence)
{
    struct samkv_store *s;
    unlink(data_path());
    ck_assert_int_eq(try_open(&s), SAMKV_CORRUPT);
    char lock[128];
    snprintf(lock, sizeof lock, "%s/samkv.lock", dir.path);
    unlink(lock); /* as the text says */
    ck_assert_int_eq(try_open(&s), SAMKV_OK);
    samkv_store_close(s);
}
END_TEST

START_TEST(garbage_is_refused)
{
    uint8_t *bytes = malloc(healthy_bytes);
    uint64_t state = 5;
    for (size_t i = 0; i < healthy_bytes; i++)
        bytes[i] = (uint8_t)fixture_random(&state);
    ck_assert_int_eq(status_of(bytes, healthy_bytes), SAMKV_CORRUPT);
    memset(bytes, 0, healthy_bytes);
    ck_assert_int_eq(status_of(bytes, healthy_bytes), SAMKV_CORRUPT);
    memcpy(bytes, healthy, 8192); /* good meta pages, nothing behind */
    ck_assert_int_eq(status_of(bytes, healthy_bytes), SAMKV_CORRUPT);
    memcpy(bytes, healthy, healthy_bytes);
    bytes[20] = bytes[4096 + 20] = 2; /* LMDB's format version */
    ck_assert_int_eq(status_of(bytes, healthy_bytes), SAMKV_MISMATCH);
    free(bytes);
}
END_TEST

/* Other people's LMDB files, and a store of a later schema. */
START_TEST(other_databases_are_refused)
{
    MDB_env *env;
    MDB_txn *txn;
    MDB_dbi dbi;
    MDB_val k = {1, "k"}, v = {1, "v"};
    put_file(healthy, healthy_bytes);
    for (int round = 0; round < 2; round++) {
        if (round == 0)
            unlink(data_path());
        ck_assert_int_eq(mdb_env_create(&env), 0);
        mdb_env_set_maxdbs(env, 10);
        ck_assert_int_eq(mdb_env_open(env, dir.path, 0, 0600), 0);
        ck_assert_int_eq(mdb_txn_begin(env, NULL, 0, &txn), 0);
        if (round == 0) {
            ck_assert_int_eq(mdb_dbi_open(txn, NULL, 0, &dbi), 0);
            ck_assert_int_eq(mdb_put(txn, dbi, &k, &v, 0), 0);
        } else {
            uint8_t record[SAMKV_RECORD_HEADER_BYTES + 1];
            struct samkv_record head = {.pieces = 1, .raw_bytes = 1, .payload_bytes = 1};
            record[SAMKV_RECORD_HEADER_BYTES] = SAMKV_STORE_SCHEMA + 1;
            samkv_record_seal(record, SAMKV_RECORD_SCHEMA, (struct samkv_bytes){"schema", 6}, &head);
            k = (MDB_val){6, "schema"};
            v = (MDB_val){sizeof record, record};
            ck_assert_int_eq(mdb_dbi_open(txn, "meta", 0, &dbi), 0);
            ck_assert_int_eq(mdb_put(txn, dbi, &k, &v, 0), 0);
        }
        ck_assert_int_eq(mdb_txn_commit(txn), 0);
        mdb_env_close(env);
        struct samkv_store *s;
        ck_assert_int_eq(try_open(&s), SAMKV_MISMATCH);
        ck_assert_ptr_nonnull(strstr(err.text, round ? "has schema" : "no store of samkvd"));
        put_file(healthy, healthy_bytes);
    }
}
END_TEST

/* Where block 2 of document 1 lies in the file: more than a page, so on pages of its own. */
static size_t place_of_a_block(size_t *value_bytes)
{
    struct samkv_snapshot *sn;
    struct samkv_store *s;
    struct samkv_held held = {0};
    uint8_t part[SAMKV_PART_KEY_BYTES];
    put_file(healthy, healthy_bytes);
    ck_assert_int_eq(try_open(&s), SAMKV_OK);
    FIXTURE_OK(samkv_snapshot_begin(s, &sn, &err));
    FIXTURE_OK(samkv_snapshot_get(sn, SAMKV_DB_BLOCK, samkv_part_key(&documents[1].m.key, 2, part), &held, &err));
    ck_assert_uint_gt(held.bytes.size, 4096);
    uint8_t *at = memmem(healthy, healthy_bytes, held.bytes.data, held.bytes.size);
    ck_assert_ptr_nonnull(at);
    *value_bytes = held.bytes.size;
    samkv_held_release(s, &held);
    samkv_snapshot_end(sn);
    samkv_store_close(s);
    return (size_t)(at - healthy);
}

/* Flips bytes of block and index records only: the pages stay good, the checksums must notice. */
START_TEST(a_flipped_byte_in_a_record_is_corrupt_and_can_be_repaired)
{
    uint8_t *bytes = malloc(healthy_bytes);
    struct samkv_snapshot *sn;
    struct samkv_manifest m;
    struct samkv_store *s;
    const struct fixture_document *d = &documents[1];
    size_t value_bytes, at = place_of_a_block(&value_bytes);
    for (int round = 0; round < 40; round++) {
        size_t where = round == 0 ? value_bytes - 1 : (size_t)round * 97 % value_bytes;
        memcpy(bytes, healthy, healthy_bytes);
        bytes[at + where] ^= (uint8_t)(1 << round % 8);
        put_file(bytes, healthy_bytes);
        ck_assert_int_eq(try_open(&s), SAMKV_OK);
        ck_assert_int_eq(fixture_check_name(s, "one", &documents[0]), SAMKV_OK);
        ck_assert_int_eq(fixture_check_name(s, "two", d), SAMKV_CORRUPT);
        struct samkv_verify_report report = {0};
        FIXTURE_OK(samkv_snapshot_begin(s, &sn, &err));
        FIXTURE_OK(samkv_snapshot_verify(sn, &d->m.key, &report, &err));
        FIXTURE_OK(samkv_snapshot_manifest(sn, &d->m.key, &m, &err));
        samkv_snapshot_end(sn);
        ck_assert_uint_eq(report.damaged, 1);
        uint8_t *room;
        void **pieces = fixture_block(d, 2, true, &room);
        FIXTURE_OK(samkv_store_block_rewrite(s, &m, 2, (const void *const *)pieces, &err));
        ck_assert_int_eq(fixture_check_name(s, "two", d), SAMKV_OK);
        free(pieces), free(room);
        samkv_store_close(s);
    }
    free(bytes);
}
END_TEST

/* LMDB frees as many pages as the head of a value's first page says; other documents' among them if it lies. */
START_TEST(a_lying_page_does_not_take_others_with_it)
{
    size_t value_bytes, at = place_of_a_block(&value_bytes);
    uint32_t lie = 60;
    struct samkv_store *s;
    memcpy(healthy + at - 4, &lie, sizeof lie); /* the page's head ends where the value begins */
    put_file(healthy, healthy_bytes);
    ck_assert_int_eq(try_open(&s), SAMKV_OK);
    ck_assert_int_eq(fixture_check_name(s, "two", &documents[1]), SAMKV_OK); /* the value itself is whole */
    uint8_t *room;
    void **pieces = fixture_block(&documents[1], 2, true, &room);
    ck_assert_int_eq(samkv_store_block_rewrite(s, &documents[1].m, 2, (const void *const *)pieces, &err),
                     SAMKV_CORRUPT);
    free(pieces), free(room);
    FIXTURE_OK(samkv_store_name_remove(s, "c", "two", &err));
    for (uint32_t i = 0; i < 20; i++) { /* what was freed is used again */
        struct fixture_document d;
        char id[16];
        snprintf(id, sizeof id, "n%u", i);
        fixture_document_make(&d, 100 + i, (struct samkv_kv_shape){2, 2, 16, SAMKV_F32}, 90, 16);
        FIXTURE_OK(fixture_ingest(s, &d, id, &err));
        fixture_document_free(&d);
    }
    ck_assert_int_eq(fixture_check_name(s, "one", &documents[0]), SAMKV_OK);
    ck_assert_int_eq(fixture_check_name(s, "three", &documents[2]), SAMKV_OK);
    samkv_store_close(s);
    ck_assert_int_eq(try_open(&s), SAMKV_OK);
    ck_assert_int_eq(fixture_check_name(s, "three", &documents[2]), SAMKV_OK);
    samkv_store_close(s);
}
END_TEST

static bool count_name(void *arg, const struct samkv_name *name)
{
    (void)name;
    ++*(int *)arg;
    return true;
}

static bool count_damaged(void *arg, const void *key, size_t bytes)
{
    ck_assert_uint_eq(bytes, 5);
    ck_assert_int_eq(memcmp(key, "c\0two", 5), 0);
    ++*(int *)arg;
    return true;
}

static void assert_names(struct samkv_store *s, int whole, int damaged)
{
    struct samkv_snapshot *sn;
    int count = 0, bad = 0;
    FIXTURE_OK(samkv_snapshot_begin(s, &sn, &err));
    FIXTURE_OK(samkv_snapshot_each_name(sn, "c", "", count_name, &count, &err));
    FIXTURE_OK(samkv_snapshot_each_damaged_name(sn, count_damaged, &bad, &err));
    samkv_snapshot_end(sn);
    ck_assert_int_eq(count, whole);
    ck_assert_int_eq(bad, damaged);
}

START_TEST(a_damaged_name_does_not_hide_the_others)
{
    struct samkv_store *s;
    uint64_t removed;
    for (uint8_t *at = healthy; (at = memmem(at, healthy_bytes - (size_t)(at - healthy), "c\0two", 5)); at += 5)
        at[5 + 40] ^= 1; /* of the record behind it, old copies too: the document's key */
    put_file(healthy, healthy_bytes);
    ck_assert_int_eq(try_open(&s), SAMKV_OK);
    assert_names(s, 2, 1);
    ck_assert_int_eq(fixture_check_name(s, "two", &documents[1]), SAMKV_CORRUPT);
    FIXTURE_OK(samkv_store_damaged_names_remove(s, &removed, &err));
    ck_assert_uint_eq(removed, 1);
    assert_names(s, 2, 0);
    FIXTURE_OK(fixture_ingest(s, &documents[1], "two", &err));
    assert_names(s, 3, 0);
    samkv_store_close(s);
}
END_TEST

/* A page or more of garbage or zeros, the head of the record's first page included: what recomputes it can write it. */
START_TEST(a_record_whose_first_page_is_garbage_can_be_rewritten_and_removed)
{
    size_t value_bytes, at = place_of_a_block(&value_bytes), from = at - SAMKV_PAGE_HEADER_BYTES;
    uint64_t state = (uint64_t)_i;
    struct samkv_store *s;
    for (size_t i = 0; i < 4096; i++)
        healthy[from + i] = _i ? (uint8_t)fixture_random(&state) : 0;
    put_file(healthy, healthy_bytes);
    ck_assert_int_eq(try_open(&s), SAMKV_OK);
    ck_assert_int_eq(fixture_check_name(s, "two", &documents[1]), SAMKV_CORRUPT);
    if (_i < 2) {
        uint8_t *room;
        void **pieces = fixture_block(&documents[1], 2, true, &room);
        FIXTURE_OK(samkv_store_block_rewrite(s, &documents[1].m, 2, (const void *const *)pieces, &err));
        free(pieces), free(room);
        ck_assert_int_eq(fixture_check_name(s, "two", &documents[1]), SAMKV_OK);
    }
    FIXTURE_OK(samkv_store_name_remove(s, "c", "two", &err));
    FIXTURE_OK(fixture_ingest(s, &documents[1], "two", &err));
    for (uint32_t i = 0; i < DOCUMENTS; i++)
        ck_assert_int_eq(fixture_check_name(s, document_id(i), &documents[i]), SAMKV_OK);
    samkv_store_close(s);
    ck_assert_int_eq(try_open(&s), SAMKV_OK); /* the pages fit together */
    for (uint32_t i = 0; i < DOCUMENTS; i++)
        ck_assert_int_eq(fixture_check_name(s, document_id(i), &documents[i]), SAMKV_OK);
    samkv_store_close(s);
}
END_TEST

/* Everything a daemon may do with a store that opened, whatever state it is in. */
static void use_in_every_way(struct samkv_store *s)
{
    struct samkv_snapshot *sn;
    struct samkv_store_stats stats;
    for (uint32_t i = 0; i < DOCUMENTS; i++) {
        struct samkv_verify_report report = {0};
        enum samkv_status st = fixture_check_name(s, document_id(i), &documents[i]);
        ck_assert_msg(st != SAMKV_MISMATCH, "wrong bytes were given out");
        if (samkv_snapshot_begin(s, &sn, NULL) == SAMKV_OK) {
            st = samkv_snapshot_verify(sn, &documents[i].m.key, &report, NULL);
            samkv_snapshot_end(sn);
        }
    }
    enum samkv_status st = samkv_store_stats(s, &stats, NULL);
    for (uint32_t i = 0; i < DOCUMENTS; i++) {
        st = i == 1 ? samkv_store_name_remove(s, "c", document_id(i), NULL) : SAMKV_OK;
        st = fixture_ingest(s, &documents[i], i == 2 ? "new" : document_id(i), NULL);
        if (st == SAMKV_OK) {
            st = fixture_check_name(s, i == 2 ? "new" : document_id(i), &documents[i]);
            ck_assert_msg(st == SAMKV_OK || st == SAMKV_CORRUPT, "document %u after ingest: %s", i,
                          samkv_status_name(st));
        }
    }
}

/* A random place; half of them where it hurts: meta, branch and leaf pages, with the numbers that LMDB follows. */
static size_t random_place(uint64_t *state)
{
    size_t page;
    uint16_t flags;
    if (fixture_random(state) % 2)
        return fixture_random(state) % healthy_bytes;
    do {
        page = fixture_random(state) % (healthy_bytes / 4096);
        memcpy(&flags, healthy + page * 4096 + 10, sizeof flags);
    } while (flags != 1 && flags != 2 && flags != 8); /* LMDB's branch, leaf, meta */
    return page * 4096 + fixture_random(state) % (fixture_random(state) % 2 ? 200 : 4096);
}

/* Flips anywhere, LMDB's pages included. */
START_TEST(flipped_bytes_anywhere_neither_crash_nor_lie)
{
    uint8_t *bytes = malloc(healthy_bytes);
    uint64_t state = 77 + (uint64_t)_i;
    int opened = 0, refused = 0;
    for (int round = 0; round < 100; round++) {
        memcpy(bytes, healthy, healthy_bytes);
        for (uint64_t flips = 1 + fixture_random(&state) % 3; flips; flips--) {
            bytes[random_place(&state)] ^= (uint8_t)(1 + fixture_random(&state) % 255);
        }
        put_file(bytes, healthy_bytes);
        struct samkv_store *s;
        enum samkv_status st = try_open(&s);
        if (st == SAMKV_OK) {
            opened++;
            use_in_every_way(s);
            samkv_store_close(s);
            st = try_open(&s);
            if (st == SAMKV_OK)
                samkv_store_close(s);
        } else {
            refused++;
            ck_assert_msg(st == SAMKV_CORRUPT || st == SAMKV_MISMATCH, "%s: %s", samkv_status_name(st), err.text);
        }
    }
    ck_assert_int_gt(opened, 0);
    ck_assert_int_gt(refused, 0);
    free(bytes);
}
END_TEST

/* The writer's turn: it fails, says so, and nothing that it had acknowledged is lost when the file is whole again. */
START_TEST(a_file_cut_short_under_the_writer_fails_its_writes_only)
{
    struct fixture_document d;
    fixture_document_make(&d, 50, (struct samkv_kv_shape){2, 2, 16, SAMKV_F32}, 90, 16);
    for (size_t i = 0; i < 12; i++) {
        struct samkv_store *s;
        uint64_t state = i;
        put_file(healthy, healthy_bytes);
        ck_assert_int_eq(try_open(&s), SAMKV_OK);
        size_t cut = i == 0 ? 0 : fixture_random(&state) % healthy_bytes;
        ck_assert_int_eq(truncate(data_path(), (off_t)cut), 0);
        enum samkv_status st = fixture_ingest(s, &d, "new", &err), removed;
        ck_assert(i || st == SAMKV_IO || st == SAMKV_CORRUPT);
        removed = samkv_store_name_remove(s, "c", "one", &err);
        ck_assert(i || removed == SAMKV_IO);
        for (uint32_t n = 0; n < DOCUMENTS; n++) {
            st = fixture_check_name(s, document_id(n), &documents[n]);
            ck_assert_int_ne(st, SAMKV_MISMATCH);
        }
        samkv_store_close(s);
    }
    fixture_document_free(&d);
}
END_TEST

/* Somebody truncates the file of a store that is in use: LMDB's tree is read in the map, the rest with pread. */
START_TEST(a_file_cut_short_under_a_reader_fails_its_requests_only)
{
    static const size_t cuts[] = {0, 1, 4096, 8192, 12288};
    int lost = 0;
    for (size_t i = 0; i < 40; i++) {
        size_t cut = i < sizeof cuts / sizeof *cuts ? cuts[i] : healthy_bytes * (i - 4) / 40 / (i % 2 ? 1 : 4096);
        if (i % 2 == 0 && i >= sizeof cuts / sizeof *cuts)
            cut *= 4096;
        struct samkv_snapshot *old, *sn;
        struct samkv_store *s;
        struct samkv_store_stats stats;
        put_file(healthy, healthy_bytes);
        ck_assert_int_eq(try_open(&s), SAMKV_OK);
        FIXTURE_OK(samkv_snapshot_begin(s, &old, &err));
        ck_assert_int_eq(truncate(data_path(), (off_t)cut), 0);
        for (uint32_t d = 0; d < DOCUMENTS; d++) {
            enum samkv_status st = fixture_compare(old, &documents[d]);
            ck_assert_int_ne(st, SAMKV_MISMATCH);
            lost += st != SAMKV_OK;
            if (cut % 4096 == 0) /* the kernel fills the rest of a page with zeros, in which a tree may lack names */
                ck_assert_msg(st == SAMKV_OK || st == SAMKV_CORRUPT, "%s", samkv_status_name(st));
            st = fixture_check_name(s, document_id(d), &documents[d]);
            ck_assert_int_ne(st, SAMKV_MISMATCH);
        }
        enum samkv_status st = samkv_store_stats(s, &stats, NULL);
        st = samkv_snapshot_begin(s, &sn, NULL);
        if (st == SAMKV_OK) {
            st = samkv_snapshot_each_name(sn, "c", "", count_name, &(int){0}, NULL);
            ck_assert(cut || st != SAMKV_OK);
            samkv_snapshot_end(sn);
        }
        samkv_snapshot_end(old);
        put_file(healthy, healthy_bytes); /* the writer thread's part is tested elsewhere */
        samkv_store_close(s);
    }
    ck_assert_int_gt(lost, 40);
}
END_TEST

START_TEST(a_broken_lock_file_does_not_matter)
{
    char path[128];
    struct samkv_store *s;
    snprintf(path, sizeof path, "%s/lock.mdb", dir.path);
    FILE *f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    for (int i = 0; i < 5000; i++)
        fputc(i * 37 % 251, f);
    fclose(f);
    ck_assert_int_eq(try_open(&s), SAMKV_OK);
    ck_assert_int_eq(fixture_check_name(s, "one", &documents[0]), SAMKV_OK);
    samkv_store_close(s);
}
END_TEST

/* What a guarded section had allocated when it was left is lost: known, and bounded by one transaction. */
__attribute__((visibility("default"))) const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:samkv_guard_run\nleak:liblmdb\n"; /* whose frames the unwinder often stops at */
}

/* A flipped bit in its key: the name stays, and the document comes back under it to stay. */
START_TEST(a_document_that_is_gone_under_its_name_comes_back_for_good)
{
    MDB_env *env;
    MDB_txn *txn;
    MDB_dbi dbi;
    MDB_val k = {SAMKV_KEY_BYTES, documents[1].m.key.bytes};
    struct samkv_store *s;
    put_file(healthy, healthy_bytes);
    ck_assert_int_eq(mdb_env_create(&env), 0);
    mdb_env_set_maxdbs(env, 10);
    ck_assert_int_eq(mdb_env_open(env, dir.path, 0, 0600), 0);
    ck_assert_int_eq(mdb_txn_begin(env, NULL, 0, &txn), 0);
    ck_assert_int_eq(mdb_dbi_open(txn, "document", 0, &dbi), 0);
    ck_assert_int_eq(mdb_del(txn, dbi, &k, NULL), 0);
    ck_assert_int_eq(mdb_txn_commit(txn), 0);
    mdb_env_close(env);
    ck_assert_int_eq(try_open(&s), SAMKV_OK);
    FIXTURE_OK(fixture_ingest(s, &documents[1], "two", &err));
    samkv_store_close(s);
    ck_assert_int_eq(try_open(&s), SAMKV_OK);
    ck_assert_int_eq(fixture_check_name(s, "two", &documents[1]), SAMKV_OK);
    FIXTURE_OK(samkv_store_name_remove(s, "c", "two", &err));
    ck_assert_uint_eq(fixture_stats(s).documents, DOCUMENTS - 1);
    samkv_store_close(s);
}
END_TEST

/* On a disk's file system, where there is O_DIRECT; elsewhere the store falls back, with the same result. */
START_TEST(reading_past_the_page_cache_gives_the_same)
{
    struct fixture_directory disk = {.path = "/var/tmp/samkv-store-XXXXXX"};
    struct samkv_store_options o = {.codec = SAMKV_CODEC_ZSTD, .direct = true};
    struct samkv_store *s;
    ck_assert_ptr_nonnull(mkdtemp(disk.path));
    o.path = disk.path;
    FIXTURE_OK(samkv_store_open(&o, &s, &err));
    for (int round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < DOCUMENTS; i++) { /* just written, and then out of the cache */
            FIXTURE_OK(fixture_ingest(s, &documents[i], document_id(i), &err));
            ck_assert_int_eq(fixture_check_name(s, document_id(i), &documents[i]), SAMKV_OK);
            posix_fadvise(s->now->fd, 0, 0, POSIX_FADV_DONTNEED);
            ck_assert_int_eq(fixture_check_name(s, document_id(i), &documents[i]), SAMKV_OK);
        }
        FIXTURE_OK(samkv_store_name_remove(s, "c", document_id(1), &err));
    }
    off_t end = lseek(s->now->fd, 0, SEEK_END);
    ck_assert_int_eq(ftruncate(s->now->fd, end / 2), 0);
    for (uint32_t i = 0; i < DOCUMENTS; i++)
        ck_assert_int_ne(fixture_check_name(s, document_id(i), &documents[i]), SAMKV_MISMATCH);
    ck_assert_int_eq(ftruncate(s->now->fd, end), 0);
    samkv_store_close(s);
    fixture_directory_remove(&disk);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("store_damage");
    TCase *tc = tcase_create("damage");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, truncated_files_are_refused);
    tcase_add_test(tc, a_file_that_is_gone_is_not_made_anew_in_silence);
    tcase_add_test(tc, garbage_is_refused);
    tcase_add_test(tc, other_databases_are_refused);
    tcase_add_test(tc, a_flipped_byte_in_a_record_is_corrupt_and_can_be_repaired);
    tcase_add_test(tc, a_lying_page_does_not_take_others_with_it);
    tcase_add_loop_test(tc, flipped_bytes_anywhere_neither_crash_nor_lie, 0, 8);
    tcase_add_test(tc, a_damaged_name_does_not_hide_the_others);
    tcase_add_loop_test(tc, a_record_whose_first_page_is_garbage_can_be_rewritten_and_removed, 0, 4);
    tcase_add_test(tc, a_file_cut_short_under_the_writer_fails_its_writes_only);
    tcase_add_test(tc, a_file_cut_short_under_a_reader_fails_its_requests_only);
    tcase_add_test(tc, a_document_that_is_gone_under_its_name_comes_back_for_good);
    tcase_add_test(tc, reading_past_the_page_cache_gives_the_same);
    tcase_add_test(tc, a_broken_lock_file_does_not_matter);
    tcase_set_timeout(tc, 120);
    suite_add_tcase(suite, tc);
    return fixture_run(suite);
}
