#include "daemon/store/change.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/store/expire.h"

#define STEP_MAX_RECORDS 1024
#define STEP_MAX_BYTES   ((size_t)256 << 20)

/* LMDB's failure: this transaction must not be committed. */
static enum samkv_status broke(struct samkv_change *c, struct samkv_error *err, int rc, const char *what)
{
    c->broken = true;
    return samkv_fail_lmdb(err, rc, what);
}

/* As broke, for a status that is not LMDB's own. */
static enum samkv_status refuse(struct samkv_change *c, enum samkv_status st, struct samkv_error *err)
{
    c->broken = true;
    if (st == SAMKV_NO_MEMORY)
        samkv_fail(err, st, "out of memory while writing: give the daemon more or stop other programs");
    return st;
}

static enum samkv_status book(struct samkv_change *c, enum samkv_status st, struct samkv_error *err)
{
    return st == SAMKV_OK ? st : refuse(c, st, err);
}

/* Before a record is replaced or deleted: LMDB believes what the old record's page says about its length. */
static enum samkv_status check_old(struct samkv_change *c, enum samkv_db db, struct samkv_bytes key,
                                   struct samkv_error *err)
{
    MDB_val k = samkv_val(key), old;
    int rc = mdb_get(c->txn, c->store->dbi[db], &k, &old);
    if (rc == MDB_NOTFOUND || (rc == 0 && samkv_db_value_is_sane(c->store, &old)))
        return SAMKV_OK;
    if (rc)
        return broke(c, err, rc, "looking up a record");
    c->broken = true;
    return samkv_fail(err, SAMKV_CORRUPT,
                      "a page of the data file in %s is damaged: run verify, and restore the store or start "
                      "a new one",
                      c->store->path);
}

/* The key of a document or of one of its parts: what memory keeps of the document is another version from now on. */
static void forget_kept(struct samkv_change *c, struct samkv_bytes key)
{
    struct samkv_key document;
    memcpy(document.bytes, key.data, sizeof document.bytes);
    samkv_host_cache_close(c->store->host_cache, &document);
}

enum samkv_status samkv_change_put(struct samkv_change *c, enum samkv_db db, struct samkv_bytes key,
                                   struct samkv_bytes record, struct samkv_error *err)
{
    enum samkv_status st = check_old(c, db, key, err);
    if (st != SAMKV_OK)
        return st;
    if (db == SAMKV_DB_BLOCK || db == SAMKV_DB_INDEX)
        forget_kept(c, key);
    MDB_val k = samkv_val(key), v = samkv_val(record);
    int rc = mdb_put(c->txn, c->store->dbi[db], &k, &v, 0);
    c->put_bytes += samkv_compact_cost(c->store, record.size);
    return rc ? broke(c, err, rc, "writing a record") : SAMKV_OK;
}

static enum samkv_status delete (struct samkv_change *c, enum samkv_db db, struct samkv_bytes key,
                                 struct samkv_error *err) {
    enum samkv_status st = check_old(c, db, key, err); if (st != SAMKV_OK) return st; MDB_val k = samkv_val(key);
    int rc = mdb_del(c->txn, c->store->dbi[db], &k, NULL);
    return rc && rc != MDB_NOTFOUND ? broke(c, err, rc, "deleting a record") : SAMKV_OK;
}

enum samkv_status samkv_change_remove(struct samkv_change *c, enum samkv_db db, struct samkv_bytes key,
                                      struct samkv_error *err)
{
    return delete (c, db, key, err);
}

enum samkv_status samkv_change_mark_pending(struct samkv_change *c, const struct samkv_key *key,
                                            struct samkv_error *err)
{
    uint8_t record[SAMKV_RECORD_HEADER_BYTES];
    struct samkv_record head = {.pieces = 1};
    samkv_record_seal(record, SAMKV_RECORD_PENDING, samkv_key_bytes(key), &head);
    struct samkv_bytes value = {record, sizeof record};
    return samkv_change_put(c, SAMKV_DB_PENDING, samkv_key_bytes(key), value, err);
}

enum samkv_status samkv_change_unmark_pending(struct samkv_change *c, const struct samkv_key *key,
                                              struct samkv_error *err)
{
    return delete (c, SAMKV_DB_PENDING, samkv_key_bytes(key), err);
}

enum samkv_status samkv_change_get_document(struct samkv_change *c, const struct samkv_key *key,
                                            struct samkv_document *out, struct samkv_error *err)
{
    struct samkv_bytes value;
    enum samkv_status st = samkv_db_get(c->store, c->txn, SAMKV_DB_DOCUMENT, samkv_key_bytes(key), &value, err);
    if (st == SAMKV_OK && samkv_document_open(value, key, out) != SAMKV_OK)
        st = samkv_fail(err, SAMKV_CORRUPT, "a document's record is damaged: ingest the document again");
    return st;
}

enum samkv_status samkv_change_put_document(struct samkv_change *c, const struct samkv_document *d,
                                            struct samkv_error *err)
{
    uint8_t *record;
    size_t bytes;
    enum samkv_status st = samkv_document_seal(d, &record, &bytes);
    if (st != SAMKV_OK)
        return refuse(c, st, err);
    st = samkv_change_put(c, SAMKV_DB_DOCUMENT, samkv_key_bytes(&d->manifest.key), (struct samkv_bytes){record, bytes},
                          err);
    free(record);
    if (st == SAMKV_OK)
        st =
            book(c, samkv_ledger_put_document(&c->store->ledger, &c->journal, &d->manifest, c->store->page_bytes), err);
    return st;
}

enum samkv_status samkv_change_hide(struct samkv_change *c, const struct samkv_key *key, struct samkv_error *err)
{
    struct samkv_claim *claim = calloc(1, sizeof *claim);
    if (!claim)
        return refuse(c, SAMKV_NO_MEMORY, err);
    enum samkv_status st = samkv_change_mark_pending(c, key, err);
    if (st == SAMKV_OK)
        st = delete (c, SAMKV_DB_DOCUMENT, samkv_key_bytes(key), err);
    if (st == SAMKV_OK)
        st = book(c, samkv_ledger_remove_document(&c->store->ledger, &c->journal, key), err);
    if (st != SAMKV_OK) {
        free(claim);
        return st;
    }
    forget_kept(c, samkv_key_bytes(key));
    *claim = (struct samkv_claim){.key = *key, .removing = true, .next = c->removing};
    c->removing = claim;
    return SAMKV_OK;
}

enum samkv_status samkv_change_add_reference(struct samkv_change *c, const struct samkv_key *key,
                                             struct samkv_error *err)
{
    struct samkv_document d;
    enum samkv_status st = samkv_change_get_document(c, key, &d, err);
    if (st != SAMKV_OK)
        return st;
    d.references++;
    return samkv_change_put_document(c, &d, err);
}

/* After the reference itself was taken out of the database. */
static enum samkv_status drop_reference(struct samkv_change *c, const struct samkv_key *key, struct samkv_error *err)
{
    struct samkv_document d;
    enum samkv_status st = samkv_change_get_document(c, key, &d, err);
    if (st == SAMKV_NOT_FOUND) /* a dangling name: its document was lost to damage */
        return SAMKV_OK;
    if (st == SAMKV_CORRUPT) {
        uint64_t left;
        st = samkv_change_count_references(c, key, &left, err);
        return st == SAMKV_OK && left == 0 ? samkv_change_hide(c, key, err) : st;
    }
    if (st != SAMKV_OK)
        return refuse(c, st, err);
    if (d.references <= 1)
        return samkv_change_hide(c, key, err);
    d.references--;
    return samkv_change_put_document(c, &d, err);
}

enum samkv_status samkv_change_set_name(struct samkv_change *c, const char *collection, const char *id,
                                        const char *title, const struct samkv_key *document, struct samkv_error *err)
{
    uint8_t buffer[SAMKV_NAME_KEY_MAX], *record;
    struct samkv_bytes key = samkv_name_key(collection, id, buffer), value;
    struct samkv_name old = {0};
    enum samkv_status st = samkv_db_get(c->store, c->txn, SAMKV_DB_NAME, key, &value, err);
    if (st != SAMKV_OK && st != SAMKV_NOT_FOUND)
        return refuse(c, st, err);
    /* A damaged name is as good as none: which document loses its reference is not known. */
    bool replaces = st == SAMKV_OK && samkv_name_open(value, key, false, &old) == SAMKV_OK;
    size_t bytes;
    struct samkv_name name = {.title = (char *)title, /* only read */
                              .key = *document,
                              .put_unix_s = samkv_store_now_s(c->store),
                              .pinned = replaces && old.pinned};
    memcpy(name.id, id, strnlen(id, SAMKV_ID_MAX_BYTES));
    st = samkv_name_seal(key, &name, &record, &bytes);
    if (st == SAMKV_TOO_LARGE)
        return samkv_fail(err, st, "the title of %s has more than 65535 bytes: shorten it", id);
    if (st != SAMKV_OK)
        return refuse(c, st, err);
    bool moves = !replaces || memcmp(&old.key, document, sizeof old.key) != 0;
    if (moves)
        st = samkv_change_add_reference(c, document, err);
    if (st == SAMKV_OK)
        st = samkv_change_put(c, SAMKV_DB_NAME, key, (struct samkv_bytes){record, bytes}, err);
    free(record);
    if (st == SAMKV_OK)
        st = book(c, samkv_ledger_put_name(&c->store->ledger, &c->journal, collection, &name), err);
    if (st == SAMKV_OK && moves && replaces)
        st = drop_reference(c, &old.key, err);
    return st;
}

enum samkv_status samkv_change_remove_name(struct samkv_change *c, const char *collection, const char *id,
                                           struct samkv_error *err)
{
    uint8_t buffer[SAMKV_NAME_KEY_MAX];
    struct samkv_bytes key = samkv_name_key(collection, id, buffer), value;
    enum samkv_status st = samkv_db_get(c->store, c->txn, SAMKV_DB_NAME, key, &value, err);
    if (st != SAMKV_OK)
        return st;
    struct samkv_name old;
    bool readable = samkv_name_open(value, key, false, &old) == SAMKV_OK;
    st = delete (c, SAMKV_DB_NAME, key, err);
    if (st == SAMKV_OK)
        st = book(c, samkv_ledger_remove_name(&c->store->ledger, &c->journal, collection, id), err);
    return st == SAMKV_OK && readable ? drop_reference(c, &old.key, err) : st;
}

enum samkv_status samkv_change_put_name(struct samkv_change *c, const char *collection, const struct samkv_name *name,
                                        struct samkv_error *err)
{
    uint8_t buffer[SAMKV_NAME_KEY_MAX], *record;
    struct samkv_bytes key = samkv_name_key(collection, name->id, buffer);
    size_t bytes;
    enum samkv_status st = samkv_name_seal(key, name, &record, &bytes);
    if (st != SAMKV_OK)
        return refuse(c, st, err);
    st = samkv_change_put(c, SAMKV_DB_NAME, key, (struct samkv_bytes){record, bytes}, err);
    free(record);
    return st == SAMKV_OK ? book(c, samkv_ledger_put_name(&c->store->ledger, &c->journal, collection, name), err) : st;
}

enum samkv_status samkv_change_put_collection(struct samkv_change *c, const struct samkv_collection *collection,
                                              struct samkv_error *err)
{
    struct samkv_bytes key = {collection->name, strnlen(collection->name, SAMKV_ID_MAX_BYTES)};
    struct samkv_ledger_terms terms = {.exists = true,
                                       .quota_bytes = collection->quota_bytes,
                                       .ttl_s = collection->ttl_s,
                                       .preamble = collection->preamble_key,
                                       .ownership = collection->ownership};
    uint8_t *record;
    size_t bytes;
    enum samkv_status st = samkv_collection_seal(collection, &record, &bytes);
    if (st != SAMKV_OK)
        return refuse(c, st, err);
    st = samkv_change_put(c, SAMKV_DB_COLLECTION, key, (struct samkv_bytes){record, bytes}, err);
    free(record);
    if (st == SAMKV_OK)
        st = book(c, samkv_ledger_put_collection(&c->store->ledger, &c->journal, collection->name, &terms), err);
    c->store->expire_next_s = 0; /* look again */
    return st;
}

enum samkv_status samkv_change_remove_collection(struct samkv_change *c, const char *name, struct samkv_error *err)
{
    static const struct samkv_ledger_terms gone;
    static const struct samkv_key none;
    struct samkv_bytes key = {name, strlen(name)}, value;
    struct samkv_key preamble = none;
    enum samkv_status st = samkv_db_get(c->store, c->txn, SAMKV_DB_COLLECTION, key, &value, err);
    if (st != SAMKV_OK)
        return st;
    if (samkv_collection_open_preamble(value, key, &preamble) != SAMKV_OK)
        preamble = none; /* which document loses its reference is not known */
    st = delete (c, SAMKV_DB_COLLECTION, key, err);
    if (st == SAMKV_OK)
        st = book(c, samkv_ledger_put_collection(&c->store->ledger, &c->journal, name, &gone), err);
    if (st == SAMKV_OK && memcmp(&preamble, &none, sizeof none) != 0)
        st = drop_reference(c, &preamble, err);
    return st;
}

enum samkv_status samkv_change_touch(struct samkv_change *c, struct samkv_error *err)
{
    static const struct samkv_bytes key = {"schema", 6};
    struct samkv_bytes value;
    uint8_t record[2 * SAMKV_RECORD_HEADER_BYTES];
    enum samkv_status st = samkv_db_get(c->store, c->txn, SAMKV_DB_META, key, &value, err);
    if (st != SAMKV_OK || value.size > sizeof record)
        return st;
    memcpy(record, value.data, value.size);
    return samkv_change_put(c, SAMKV_DB_META, key, (struct samkv_bytes){record, value.size}, err);
}

/* Adds to *count the records of one database that refer to `key`. */
static enum samkv_status count_in(struct samkv_change *c, enum samkv_db db, const struct samkv_key *key,
                                  uint64_t *count, struct samkv_error *err)
{
    MDB_cursor *cursor;
    int rc = mdb_cursor_open(c->txn, c->store->dbi[db], &cursor);
    if (rc)
        return broke(c, err, rc, "counting references");
    MDB_val k, v;
    while ((rc = mdb_cursor_get(cursor, &k, &v, MDB_NEXT)) == 0) {
        struct samkv_name name;
        struct samkv_key preamble;
        if (db == SAMKV_DB_NAME)
            *count += samkv_name_open(samkv_val_bytes(&v), samkv_val_bytes(&k), false, &name) == SAMKV_OK &&
                      memcmp(&name.key, key, sizeof *key) == 0;
        else
            *count += samkv_collection_open_preamble(samkv_val_bytes(&v), samkv_val_bytes(&k), &preamble) == SAMKV_OK &&
                      memcmp(&preamble, key, sizeof *key) == 0;
    }
    mdb_cursor_close(cursor);
    return rc == MDB_NOTFOUND ? SAMKV_OK : broke(c, err, rc, "counting references");
}

enum samkv_status samkv_change_count_references(struct samkv_change *c, const struct samkv_key *key, uint64_t *out,
                                                struct samkv_error *err)
{
    *out = 0;
    enum samkv_status st = count_in(c, SAMKV_DB_NAME, key, out, err);
    return st == SAMKV_OK ? count_in(c, SAMKV_DB_COLLECTION, key, out, err) : st;
}

/* Deletes this document's records in one database while the budget lasts. */
static enum samkv_status remove_parts(struct samkv_change *c, enum samkv_db db, const struct samkv_key *key,
                                      size_t *records, size_t *bytes, struct samkv_error *err)
{
    MDB_cursor *cursor;
    int rc = mdb_cursor_open(c->txn, c->store->dbi[db], &cursor);
    if (rc)
        return broke(c, err, rc, "deleting a document");
    MDB_val k = samkv_val(samkv_key_bytes(key)), v;
    rc = mdb_cursor_get(cursor, &k, &v, MDB_SET_RANGE);
    while (rc == 0 && *records && *bytes && k.mv_size >= SAMKV_KEY_BYTES &&
           memcmp(k.mv_data, key->bytes, SAMKV_KEY_BYTES) == 0) {
        /* A record on a damaged page stays behind: wasted space, rather than other documents' pages freed. */
        bool sane = samkv_db_value_is_sane(c->store, &v);
        *records -= 1;
        *bytes -= v.mv_size < *bytes ? v.mv_size : *bytes;
        rc = sane ? mdb_cursor_del(cursor, 0) : 0;
        if (rc == 0) /* after a deletion MDB_NEXT goes to the record that took its place */
            rc = mdb_cursor_get(cursor, &k, &v, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    return rc == 0 || rc == MDB_NOTFOUND ? SAMKV_OK : broke(c, err, rc, "deleting a document");
}

enum samkv_status samkv_change_remove_some(struct samkv_change *c, const struct samkv_key *key, bool *more,
                                           struct samkv_error *err)
{
    static const enum samkv_db parts[] = {SAMKV_DB_BLOCK, SAMKV_DB_INDEX, SAMKV_DB_TOKENS};
    size_t records = STEP_MAX_RECORDS, bytes = STEP_MAX_BYTES;
    enum samkv_status st = SAMKV_OK;
    for (size_t i = 0; st == SAMKV_OK && i < sizeof parts / sizeof *parts; i++)
        st = remove_parts(c, parts[i], key, &records, &bytes, err);
    *more = st == SAMKV_OK && (records == 0 || bytes == 0);
    if (st == SAMKV_OK && !*more)
        st = samkv_change_unmark_pending(c, key, err);
    return st;
}
