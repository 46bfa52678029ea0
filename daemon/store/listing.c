#include "daemon/store/snapshot.h"

#include <string.h>

/*
 * Walking through names and collections. The callback runs without the snapshot's lock held, and may read with the
 * same snapshot: the cursor is only touched under the lock.
 */

static int step(struct samkv_snapshot *snapshot, MDB_cursor *cursor, MDB_val *k, MDB_val *v, MDB_cursor_op op)
{
    pthread_mutex_lock(&snapshot->lock);
    int rc = mdb_cursor_get(cursor, k, v, op);
    pthread_mutex_unlock(&snapshot->lock);
    return rc;
}

static int open_cursor(struct samkv_snapshot *snapshot, enum samkv_db db, MDB_cursor **out)
{
    pthread_mutex_lock(&snapshot->lock);
    int rc = mdb_cursor_open(snapshot->txn, snapshot->store->dbi[db], out);
    pthread_mutex_unlock(&snapshot->lock);
    return rc;
}

static void close_cursor(struct samkv_snapshot *snapshot, MDB_cursor *cursor)
{
    pthread_mutex_lock(&snapshot->lock);
    mdb_cursor_close(cursor);
    pthread_mutex_unlock(&snapshot->lock);
}

/* The names under `prefix` (a collection and its NUL), from the cursor's place on. */
static enum samkv_status walk_names(struct samkv_snapshot *snapshot, MDB_cursor *cursor, struct samkv_bytes prefix,
                                    struct samkv_bytes start, bool (*fn)(void *arg, const struct samkv_name *),
                                    void *arg, struct samkv_error *err)
{
    MDB_val k = samkv_val(start), v;
    int rc = step(snapshot, cursor, &k, &v, MDB_SET_RANGE);
    uint64_t ttl_s;
    enum samkv_status read = samkv_snapshot_ttl(snapshot, prefix.data, &ttl_s, err);
    if (read != SAMKV_OK)
        return read;
    if (rc == 0 && k.mv_size == start.size && memcmp(k.mv_data, start.data, start.size) == 0)
        rc = step(snapshot, cursor, &k, &v, MDB_NEXT); /* after, not from */
    for (; rc == 0; rc = step(snapshot, cursor, &k, &v, MDB_NEXT)) {
        if (k.mv_size <= prefix.size || memcmp(k.mv_data, prefix.data, prefix.size) != 0)
            return SAMKV_OK;
        struct samkv_name name;
        enum samkv_status st = samkv_name_open(samkv_val_bytes(&v), samkv_val_bytes(&k), true, &name);
        if (st != SAMKV_OK)
            return samkv_fail(err, st, "a name's record is damaged: ingest that document again");
        bool go_on = !samkv_snapshot_sees(snapshot, ttl_s, &name) || fn(arg, &name);
        samkv_name_deinit(&name);
        if (!go_on)
            return SAMKV_OK;
    }
    return rc == MDB_NOTFOUND ? SAMKV_OK : samkv_fail_lmdb(err, rc, "listing names");
}

enum samkv_status samkv_snapshot_each_name(struct samkv_snapshot *snapshot, const char *collection, const char *after,
                                           bool (*fn)(void *arg, const struct samkv_name *), void *arg,
                                           struct samkv_error *err)
{
    if (samkv_id_check("collection's name", collection, NULL) != SAMKV_OK)
        return SAMKV_OK; /* holds nothing */
    if (*after && samkv_id_check("id", after, err) != SAMKV_OK)
        return SAMKV_INVALID;
    uint8_t buffer[SAMKV_NAME_KEY_MAX];
    struct samkv_bytes start = samkv_name_key(collection, after, buffer), prefix = {buffer, strlen(collection) + 1};
    MDB_cursor *cursor;
    int rc = open_cursor(snapshot, SAMKV_DB_NAME, &cursor);
    if (rc)
        return samkv_fail_lmdb(err, rc, "listing names");
    enum samkv_status st = walk_names(snapshot, cursor, prefix, start, fn, arg, err);
    close_cursor(snapshot, cursor);
    return st;
}

enum samkv_status samkv_snapshot_each_collection(struct samkv_snapshot *snapshot,
                                                 bool (*fn)(void *arg, const struct samkv_collection *), void *arg,
                                                 struct samkv_error *err)
{
    MDB_cursor *cursor;
    int rc = open_cursor(snapshot, SAMKV_DB_COLLECTION, &cursor);
    if (rc)
        return samkv_fail_lmdb(err, rc, "listing collections");
    MDB_val k, v;
    enum samkv_status st = SAMKV_OK;
    bool go_on = true;
    while (st == SAMKV_OK && go_on && (rc = step(snapshot, cursor, &k, &v, MDB_NEXT)) == 0) {
        struct samkv_collection c;
        st = samkv_collection_open(samkv_val_bytes(&v), samkv_val_bytes(&k), &c);
        if (st != SAMKV_OK) {
            samkv_fail(err, st, "a collection's record is damaged: restore the store");
            break;
        }
        go_on = fn(arg, &c);
        samkv_collection_deinit(&c);
    }
    close_cursor(snapshot, cursor);
    return st == SAMKV_OK && rc && rc != MDB_NOTFOUND ? samkv_fail_lmdb(err, rc, "listing collections") : st;
}
