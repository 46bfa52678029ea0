#include "daemon/store/ledger.h"

#include <string.h>

#include "daemon/store/environment.h"
#include "daemon/store/values.h"

/*
 * From the database to the ledger. Damaged records are passed over: verify tells of them, and what is not known to be
 * there is neither counted nor evicted.
 */

static enum samkv_status take_document(struct samkv_store *s, struct samkv_bytes k, struct samkv_bytes v)
{
    struct samkv_document d;
    struct samkv_key key;
    if (k.size != sizeof key.bytes)
        return SAMKV_OK;
    memcpy(key.bytes, k.data, sizeof key.bytes);
    if (samkv_document_open(v, &key, &d) != SAMKV_OK)
        return SAMKV_OK;
    return samkv_ledger_put_document(&s->ledger, NULL, &d.manifest, s->page_bytes);
}

static enum samkv_status take_name(struct samkv_store *s, struct samkv_bytes k, struct samkv_bytes v)
{
    struct samkv_name name;
    char collection[SAMKV_ID_MAX_BYTES + 1] = {0};
    if (samkv_name_open(v, k, false, &name) != SAMKV_OK)
        return SAMKV_OK;
    size_t length = strnlen(k.data, k.size); /* a name's key has its NUL, or it would not have opened */
    if (length < 1 || length > SAMKV_ID_MAX_BYTES)
        return SAMKV_OK;
    memcpy(collection, k.data, length);
    return samkv_ledger_put_name(&s->ledger, NULL, collection, &name);
}

static enum samkv_status take_collection(struct samkv_store *s, struct samkv_bytes k, struct samkv_bytes v)
{
    struct samkv_collection c;
    char name[SAMKV_ID_MAX_BYTES + 1] = {0};
    struct samkv_ledger_terms terms = {.exists = true};
    if (k.size < 1 || k.size > SAMKV_ID_MAX_BYTES || memchr(k.data, 0, k.size))
        return SAMKV_OK;
    memcpy(name, k.data, k.size);
    if (samkv_collection_open_bare(v, k, &c) == SAMKV_OK) {
        terms.quota_bytes = c.quota_bytes;
        terms.ttl_s = c.ttl_s;
        terms.preamble = c.preamble_key;
        terms.ownership = c.ownership;
    }
    return samkv_ledger_put_collection(&s->ledger, NULL, name, &terms);
}

static enum samkv_status take_each(struct samkv_store *s, MDB_txn *txn, enum samkv_db db,
                                   enum samkv_status (*take)(struct samkv_store *, struct samkv_bytes,
                                                             struct samkv_bytes),
                                   struct samkv_error *err)
{
    MDB_cursor *cursor;
    MDB_val k, v;
    int rc = mdb_cursor_open(txn, s->dbi[db], &cursor);
    if (rc)
        return samkv_fail_lmdb(err, rc, s->path);
    enum samkv_status st = SAMKV_OK;
    while (st == SAMKV_OK && (rc = mdb_cursor_get(cursor, &k, &v, MDB_NEXT)) == 0)
        st = take(s, samkv_val_bytes(&k), samkv_val_bytes(&v));
    mdb_cursor_close(cursor);
    if (st != SAMKV_OK)
        return samkv_fail(err, st, "out of memory while reading the store's lists");
    return rc == MDB_NOTFOUND ? SAMKV_OK : samkv_fail_lmdb(err, rc, s->path);
}

enum samkv_status samkv_ledger_load(struct samkv_store *s, struct samkv_error *err)
{
    MDB_txn *txn;
    samkv_ledger_clear(&s->ledger);
    s->ledger.lost = false;
    int rc = mdb_txn_begin(s->now->env, NULL, MDB_RDONLY, &txn);
    if (rc)
        return samkv_fail_lmdb(err, rc, s->path);
    /* In this order: a collection's preamble is charged with what its document takes. */
    enum samkv_status st = take_each(s, txn, SAMKV_DB_DOCUMENT, take_document, err);
    if (st == SAMKV_OK)
        st = take_each(s, txn, SAMKV_DB_COLLECTION, take_collection, err);
    if (st == SAMKV_OK)
        st = take_each(s, txn, SAMKV_DB_NAME, take_name, err);
    uint64_t used = 0;
    if (st == SAMKV_OK)
        st = samkv_db_used_bytes(s, txn, &used, err);
    atomic_store(&s->used_bytes, used);
    mdb_txn_abort(txn);
    return st;
}
