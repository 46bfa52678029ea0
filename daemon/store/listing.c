#include "daemon/store/snapshot.h"

#include <string.h>

/*
 * Walking through names and collections. The callback runs without the snapshot's lock held, and may read with the
 * same snapshot: the cursor is only touched under the lock, and what it finds is copied out of the map.
 */
struct walk {
    struct samkv_snapshot *snapshot;
    enum samkv_db db;
    MDB_cursor *cursor;
    MDB_cursor_op op;
    uint8_t key_bytes[SAMKV_NAME_KEY_MAX];
    struct samkv_bytes key; /* where to start (SET_RANGE); then the record's, in key_bytes */
    struct samkv_held held; /* its value */
    struct samkv_bytes extent;
    int rc;
};

static void open_cursor(void *arg)
{
    struct walk *w = arg;
    w->rc = mdb_cursor_open(w->snapshot->now.txn, w->snapshot->store->dbi[w->db], &w->cursor);
}

static void touch(void *arg)
{
    struct walk *w = arg;
    MDB_val k = samkv_val(w->key), v;
    w->rc = mdb_cursor_get(w->cursor, &k, &v, w->op);
    if (w->rc)
        return;
    if (k.mv_size > sizeof w->key_bytes ||
        !samkv_snapshot_hold(w->snapshot, &w->snapshot->now, &v, &w->held, &w->extent)) {
        w->rc = MDB_CORRUPTED;
        return;
    }
    memcpy(w->key_bytes, k.mv_data, k.mv_size);
    w->key = (struct samkv_bytes){w->key_bytes, k.mv_size};
}

/* The next record. NOT_FOUND at the end. */
static enum samkv_status step(struct walk *w, MDB_cursor_op op, struct samkv_error *err)
{
    struct samkv_store *s = w->snapshot->store;
    w->op = op;
    enum samkv_status st = samkv_held_reserve(s, &w->held, s->page_bytes, err);
    if (st == SAMKV_OK)
        st = samkv_snapshot_run(w->snapshot, touch, w, err);
    if (st == SAMKV_OK && w->rc)
        st = samkv_fail_lmdb(err, w->rc, "listing");
    return st == SAMKV_OK && w->extent.data ? samkv_extent_read(s, w->snapshot->now.env, w->extent, &w->held, err) : st;
}

static enum samkv_status begin(struct walk *w, struct samkv_snapshot *snapshot, enum samkv_db db,
                               struct samkv_error *err)
{
    *w = (struct walk){.snapshot = snapshot, .db = db};
    enum samkv_status st = samkv_snapshot_run(snapshot, open_cursor, w, err);
    return st == SAMKV_OK && w->rc ? samkv_fail_lmdb(err, w->rc, "listing") : st;
}

static void end(struct walk *w)
{
    if (w->cursor)
        mdb_cursor_close(w->cursor);
    samkv_held_release(w->snapshot->store, &w->held);
}

/* The names under `prefix` (a collection and its NUL), after `start`. */
static enum samkv_status walk_names(struct walk *w, struct samkv_bytes prefix, struct samkv_bytes start,
                                    bool (*fn)(void *arg, const struct samkv_name *), void *arg,
                                    struct samkv_error *err)
{
    uint64_t ttl_s;
    enum samkv_status st = samkv_snapshot_ttl(w->snapshot, prefix.data, &ttl_s, err);
    w->key = start;
    if (st == SAMKV_OK)
        st = step(w, MDB_SET_RANGE, err);
    if (st == SAMKV_OK && w->key.size == start.size && memcmp(w->key.data, start.data, start.size) == 0)
        st = step(w, MDB_NEXT, err);
    for (; st == SAMKV_OK; st = step(w, MDB_NEXT, err)) {
        if (w->key.size <= prefix.size || memcmp(w->key.data, prefix.data, prefix.size) != 0)
            return SAMKV_OK;
        struct samkv_name name;
        st = samkv_name_open(w->held.bytes, w->key, true, &name);
        if (st == SAMKV_CORRUPT) /* verify tells of it; the others are not to suffer */
            continue;
        if (st != SAMKV_OK)
            return samkv_fail(err, st, "out of memory while listing names");
        bool go_on = !samkv_snapshot_sees(w->snapshot, ttl_s, &name) || fn(arg, &name);
        samkv_name_deinit(&name);
        if (!go_on)
            return SAMKV_OK;
    }
    return st == SAMKV_NOT_FOUND ? SAMKV_OK : st;
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
    struct walk w;
    enum samkv_status st = begin(&w, snapshot, SAMKV_DB_NAME, err);
    if (st == SAMKV_OK)
        st = walk_names(&w, prefix, start, fn, arg, err);
    end(&w);
    return st;
}

enum samkv_status samkv_snapshot_each_collection(struct samkv_snapshot *snapshot,
                                                 bool (*fn)(void *arg, const struct samkv_collection *), void *arg,
                                                 struct samkv_error *err)
{
    struct walk w;
    enum samkv_status st = begin(&w, snapshot, SAMKV_DB_COLLECTION, err);
    bool go_on = true;
    while (st == SAMKV_OK && go_on && (st = step(&w, MDB_NEXT, err)) == SAMKV_OK) {
        struct samkv_collection c;
        st = samkv_collection_open(w.held.bytes, w.key, &c);
        if (st != SAMKV_OK) {
            samkv_fail(err, st, "a collection's record is damaged: restore the store");
            break;
        }
        go_on = fn(arg, &c);
        samkv_collection_deinit(&c);
    }
    end(&w);
    return st == SAMKV_NOT_FOUND ? SAMKV_OK : st;
}

enum samkv_status samkv_snapshot_each_damaged_name(struct samkv_snapshot *snapshot,
                                                   bool (*fn)(void *arg, const void *key, size_t bytes), void *arg,
                                                   struct samkv_error *err)
{
    struct walk w;
    enum samkv_status st = begin(&w, snapshot, SAMKV_DB_NAME, err);
    bool go_on = true;
    while (st == SAMKV_OK && go_on && (st = step(&w, MDB_NEXT, err)) == SAMKV_OK) {
        struct samkv_name name;
        st = samkv_name_open(w.held.bytes, w.key, false, &name);
        if (st == SAMKV_CORRUPT) {
            go_on = fn(arg, w.key.data, w.key.size);
            st = SAMKV_OK;
        }
    }
    end(&w);
    return st == SAMKV_NOT_FOUND ? SAMKV_OK : st;
}
