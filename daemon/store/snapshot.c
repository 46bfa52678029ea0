#include "daemon/store/snapshot.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/store/generation.h"
#include "daemon/store/guard.h"

#define FOLLOW_TRIES 8

struct beginning {
    struct samkv_view *view;
    int rc;
};

static void begin(void *arg)
{
    struct beginning *b = arg;
    b->rc = mdb_txn_begin(b->view->env->env, NULL, MDB_RDONLY, &b->view->txn);
}

static enum samkv_status unreadable(const struct samkv_environment *e, struct samkv_error *err)
{
    return samkv_fail(err, SAMKV_CORRUPT,
                      "a page of %s cannot be read (was the file cut short? has the disk failed?): "
                      "restart the daemon to check it",
                      e->path);
}

static enum samkv_status begin_view(struct samkv_view *view, struct samkv_environment *e, struct samkv_error *err)
{
    struct beginning b = {.view = view};
    view->env = e;
    if (!e)
        return SAMKV_OK;
    enum samkv_status st = SAMKV_OK;
    if (!samkv_guard_run(e->map, e->map_bytes, begin, &b))
        st = unreadable(e, err);
    else if (b.rc)
        st = samkv_fail_lmdb(err, b.rc, "starting to read");
    if (st != SAMKV_OK)
        *view = (struct samkv_view){0};
    else
        e->references++;
    return st;
}

static void end_view(struct samkv_store *s, struct samkv_view *view)
{
    if (!view->env)
        return;
    mdb_txn_abort(view->txn);
    samkv_environment_release(s, view->env);
    *view = (struct samkv_view){0};
}

/*
 * Both views under the lock that publishing takes: they belong together. The old one first: a record that is moved
 * between the two is then in both, not in neither.
 */
static enum samkv_status begin_views(struct samkv_store *s, struct samkv_snapshot *snapshot, struct samkv_error *err)
{
    pthread_mutex_lock(&s->environments_lock);
    enum samkv_status st = begin_view(&snapshot->old, s->old && !s->old->drained ? s->old : NULL, err);
    if (st == SAMKV_OK)
        st = begin_view(&snapshot->now, s->now, err);
    pthread_mutex_unlock(&s->environments_lock);
    if (st != SAMKV_OK)
        end_view(s, &snapshot->old);
    return st;
}

static void enlist(struct samkv_reading *r, struct samkv_snapshot *snapshot)
{
    pthread_mutex_lock(&r->lock);
    snapshot->began_ms = samkv_now_ms();
    snapshot->before = r->last;
    *(r->last ? &r->last->after : &r->first) = snapshot;
    r->last = snapshot;
    pthread_mutex_unlock(&r->lock);
}

static void strike_off(struct samkv_reading *r, struct samkv_snapshot *snapshot)
{
    pthread_mutex_lock(&r->lock);
    *(snapshot->before ? &snapshot->before->after : &r->first) = snapshot->after;
    *(snapshot->after ? &snapshot->after->before : &r->last) = snapshot->before;
    pthread_mutex_unlock(&r->lock);
}

struct moved {
    const struct samkv_snapshot *snapshot;
    bool is;
};

static void look_whether_moved(void *arg)
{
    struct moved *m = arg;
    m->is = samkv_generation_is_moved(m->snapshot->store, m->snapshot->now.txn);
}

/* Another process has compacted the store since its file was opened here. */
static bool was_moved(struct samkv_snapshot *snapshot)
{
    struct moved m = {.snapshot = snapshot};
    return samkv_snapshot_run(snapshot, look_whether_moved, &m, NULL) == SAMKV_OK && m.is;
}

enum samkv_status samkv_snapshot_begin(struct samkv_store *s, struct samkv_snapshot **out, struct samkv_error *err)
{
    *out = NULL;
    struct samkv_snapshot *snapshot = calloc(1, sizeof *snapshot);
    if (!snapshot)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    snapshot->host_cache = s->host_cache;
    snapshot->epoch = s->host_cache ? samkv_host_cache_epoch(s->host_cache) : 0;
    snapshot->store = s;
    pthread_mutex_init(&snapshot->lock, NULL);
    enum samkv_status st = begin_views(s, snapshot, err);
    for (int i = 0; st == SAMKV_OK && s->read_only && was_moved(snapshot) && i < FOLLOW_TRIES; i++) {
        end_view(s, &snapshot->now);
        end_view(s, &snapshot->old);
        st = samkv_generations_follow(s, err);
        if (st == SAMKV_OK)
            st = begin_views(s, snapshot, err);
    }
    if (st != SAMKV_OK) {
        pthread_mutex_destroy(&snapshot->lock);
        free(snapshot);
        return st;
    }
    enlist(&s->reading, snapshot);
    atomic_fetch_add(&s->snapshots, 1);
    *out = snapshot;
    return SAMKV_OK;
}

void samkv_snapshot_end(struct samkv_snapshot *snapshot)
{
    if (!snapshot)
        return;
    end_view(snapshot->store, &snapshot->now);
    end_view(snapshot->store, &snapshot->old);
    strike_off(&snapshot->store->reading, snapshot);
    atomic_fetch_sub(&snapshot->store->snapshots, 1);
    pthread_mutex_destroy(&snapshot->lock);
    free(snapshot);
}

void samkv_snapshot_bypass_memory(struct samkv_snapshot *snapshot)
{
    snapshot->host_cache = NULL;
}

uint64_t samkv_snapshot_bytes_read(const struct samkv_snapshot *snapshot)
{
    return atomic_load(&snapshot->bytes_read);
}

static enum samkv_status run_in(struct samkv_snapshot *snapshot, const struct samkv_view *view, void (*fn)(void *arg),
                                void *arg, struct samkv_error *err)
{
    pthread_mutex_lock(&snapshot->lock);
    bool whole = samkv_guard_run(view->env->map, view->env->map_bytes, fn, arg);
    pthread_mutex_unlock(&snapshot->lock);
    return whole ? SAMKV_OK : unreadable(view->env, err);
}

enum samkv_status samkv_snapshot_run(struct samkv_snapshot *snapshot, void (*fn)(void *arg), void *arg,
                                     struct samkv_error *err)
{
    return run_in(snapshot, &snapshot->now, fn, arg, err);
}

bool samkv_snapshot_hold(struct samkv_snapshot *snapshot, const struct samkv_view *view, const MDB_val *v,
                         struct samkv_held *held, struct samkv_bytes *extent)
{
    const struct samkv_store *s = snapshot->store;
    struct samkv_bytes value = samkv_val_bytes(v);
    *extent = (struct samkv_bytes){0};
    if (samkv_extent_is(s, view->env, value)) {
        *extent = value;
        return true;
    }
    if (value.size > s->page_bytes)
        return false;
    memcpy(held->room->memory, value.data, value.size);
    held->bytes = (struct samkv_bytes){held->room->memory, value.size};
    return true;
}

struct look_up {
    struct samkv_snapshot *snapshot;
    const struct samkv_view *view;
    enum samkv_db db;
    struct samkv_bytes key;
    struct samkv_held *held;
    struct samkv_bytes extent;
    int rc;
};

static void look_up(void *arg)
{
    struct look_up *l = arg;
    MDB_val k = samkv_val(l->key), v;
    l->rc = mdb_get(l->view->txn, l->snapshot->store->dbi[l->db], &k, &v);
    if (l->rc == 0 && !samkv_snapshot_hold(l->snapshot, l->view, &v, l->held, &l->extent))
        l->rc = MDB_CORRUPTED;
}

static enum samkv_status get_from(struct samkv_snapshot *snapshot, const struct samkv_view *view, enum samkv_db db,
                                  struct samkv_bytes key, struct samkv_held *held, struct samkv_error *err)
{
    struct look_up l = {.snapshot = snapshot, .view = view, .db = db, .key = key, .held = held};
    enum samkv_status st = run_in(snapshot, view, look_up, &l, err);
    if (st == SAMKV_OK && l.rc)
        st = samkv_fail_lmdb(err, l.rc, "reading the store");
    return st == SAMKV_OK && l.extent.data ? samkv_extent_read(snapshot->store, view->env, l.extent, held, err) : st;
}

enum samkv_status samkv_snapshot_get(struct samkv_snapshot *snapshot, enum samkv_db db, struct samkv_bytes key,
                                     struct samkv_held *held, struct samkv_error *err)
{
    struct samkv_store *s = snapshot->store;
    enum samkv_status st = samkv_held_reserve(s, held, s->page_bytes, err);
    if (st == SAMKV_OK)
        st = get_from(snapshot, &snapshot->now, db, key, held, err);
    if (st == SAMKV_NOT_FOUND && snapshot->old.env && samkv_db_is_moved_later(db))
        st = get_from(snapshot, &snapshot->old, db, key, held, err);
    return st;
}

enum samkv_status samkv_snapshot_collection(struct samkv_snapshot *snapshot, const char *name,
                                            struct samkv_collection *out, struct samkv_error *err)
{
    *out = (struct samkv_collection){0};
    struct samkv_bytes key = {name, strnlen(name, SAMKV_ID_MAX_BYTES + 1)};
    struct samkv_held held = {0};
    if (key.size < 1 || key.size > SAMKV_ID_MAX_BYTES)
        return SAMKV_NOT_FOUND;
    enum samkv_status st = samkv_snapshot_get(snapshot, SAMKV_DB_COLLECTION, key, &held, err);
    if (st == SAMKV_OK) {
        st = samkv_collection_open(held.bytes, key, out);
        if (st != SAMKV_OK)
            samkv_fail(err, st, "the record of collection %s is damaged: restore the store", name);
    }
    samkv_held_release(snapshot->store, &held);
    return st;
}

enum samkv_status samkv_snapshot_name(struct samkv_snapshot *snapshot, const char *collection, const char *id,
                                      struct samkv_name *out, struct samkv_error *err)
{
    *out = (struct samkv_name){0};
    if (samkv_id_check("collection's name", collection, NULL) != SAMKV_OK || samkv_id_check("id", id, NULL) != SAMKV_OK)
        return SAMKV_NOT_FOUND;
    uint8_t buffer[SAMKV_NAME_KEY_MAX];
    struct samkv_bytes key = samkv_name_key(collection, id, buffer);
    struct samkv_held held = {0};
    enum samkv_status st = samkv_snapshot_get(snapshot, SAMKV_DB_NAME, key, &held, err);
    if (st == SAMKV_OK) {
        st = samkv_name_open(held.bytes, key, true, out);
        if (st != SAMKV_OK)
            samkv_fail(err, st, "the name %s is damaged: ingest it again", id);
    }
    samkv_held_release(snapshot->store, &held);
    if (st != SAMKV_OK)
        return st;
    uint64_t ttl_s = 0;
    st = samkv_snapshot_ttl(snapshot, collection, &ttl_s, err);
    bool seen = samkv_snapshot_sees(snapshot, ttl_s, out);
    if (st == SAMKV_OK && seen)
        return st;
    samkv_name_deinit(out);
    out->expired = !seen;
    return st == SAMKV_OK ? SAMKV_NOT_FOUND : st;
}

enum samkv_status samkv_snapshot_manifest(struct samkv_snapshot *snapshot, const struct samkv_key *key,
                                          struct samkv_manifest *out, struct samkv_error *err)
{
    struct samkv_held held = {0};
    struct samkv_document d;
    *out = (struct samkv_manifest){0};
    enum samkv_status st = samkv_snapshot_get(snapshot, SAMKV_DB_DOCUMENT, samkv_key_bytes(key), &held, err);
    if (st == SAMKV_OK) {
        st = samkv_document_open(held.bytes, key, &d);
        if (st == SAMKV_OK)
            *out = d.manifest;
        else
            samkv_fail(err, st, "a document's record is damaged: ingest the document again");
    }
    samkv_held_release(snapshot->store, &held);
    return st;
}

/* Reads and decodes one record of a document to `dst`. A record that is not there is damage, not a miss. */
static enum samkv_status read_part(struct samkv_snapshot *snapshot, enum samkv_db db, enum samkv_record_kind kind,
                                   struct samkv_bytes key, const struct samkv_layout *layout, void *const *dst,
                                   const struct samkv_decode_watch *watch, const char *what, struct samkv_error *err)
{
    struct samkv_store *s = snapshot->store;
    struct samkv_held held = {0};
    enum samkv_status st = samkv_snapshot_get(snapshot, db, key, &held, err);
    if (st == SAMKV_NOT_FOUND)
        samkv_fail(err, st = SAMKV_CORRUPT, "%s of a document is missing: run verify, then ingest it again", what);
    if (st == SAMKV_OK) {
        if (kind != SAMKV_RECORD_TOKENS)
            atomic_fetch_add_explicit(&snapshot->bytes_read, held.bytes.size, memory_order_relaxed);
        st = samkv_record_decode_watched(held.bytes, kind, key, layout, &s->scratch, dst, watch);
        if (st == SAMKV_CORRUPT)
            atomic_fetch_add(&s->damaged, 1);
        if (st == SAMKV_CORRUPT)
            samkv_fail(err, st, "%s of a document is damaged on disk: run verify, then ingest it again", what);
        else if (st != SAMKV_OK)
            samkv_fail(err, st, "out of memory while reading %s", what);
    }
    samkv_held_release(s, &held);
    return st;
}

/* read_part for a block or index record, from memory when it is there. */
static enum samkv_status read_kept_part(struct samkv_snapshot *snapshot, enum samkv_db db, enum samkv_record_kind kind,
                                        const struct samkv_key *document, uint32_t number,
                                        const struct samkv_layout *layout, void *const *dst,
                                        const struct samkv_decode_watch *watch, const char *what,
                                        struct samkv_error *err)
{
    struct samkv_host_cache *cache = snapshot->host_cache;
    const struct samkv_host_key key = {*document, kind, number};
    if (cache && samkv_host_cache_read(cache, snapshot->epoch, &key, layout, dst))
        return SAMKV_OK;
    uint8_t buffer[SAMKV_PART_KEY_BYTES];
    enum samkv_status st =
        read_part(snapshot, db, kind, samkv_part_key(document, number, buffer), layout, dst, watch, what, err);
    if (st == SAMKV_OK && cache)
        samkv_host_cache_add(cache, snapshot->epoch, &key, layout, dst);
    return st;
}

enum samkv_status samkv_snapshot_tokens(struct samkv_snapshot *snapshot, const struct samkv_key *key, int32_t *out,
                                        size_t count, struct samkv_error *err)
{
    struct samkv_manifest m;
    enum samkv_status st = samkv_snapshot_manifest(snapshot, key, &m, err);
    if (st != SAMKV_OK)
        return st;
    if (count != m.tokens)
        return samkv_fail(err, SAMKV_INVALID, "the document has %u tokens, not %zu", m.tokens, count);
    struct samkv_layout layout = samkv_tokens_layout(&m);
    void *dst[1] = {out};
    return read_part(snapshot, SAMKV_DB_TOKENS, SAMKV_RECORD_TOKENS, samkv_key_bytes(key), &layout, dst, NULL,
                     "the token list", err);
}

enum samkv_status samkv_snapshot_index(struct samkv_snapshot *snapshot, const struct samkv_manifest *m, uint32_t layer,
                                       float *out, size_t count, struct samkv_error *err)
{
    enum samkv_status st = samkv_manifest_check(m, err);
    if (st != SAMKV_OK)
        return st;
    struct samkv_layout layout = samkv_index_layout(m);
    if (layer >= m->shape.layers || count != layout.bytes / sizeof *out)
        return samkv_fail(err, SAMKV_INVALID, "layer %u of %u with %zu numbers is no index of this document", layer,
                          m->shape.layers, count);
    void *dst[1] = {out};
    return read_kept_part(snapshot, SAMKV_DB_INDEX, SAMKV_RECORD_INDEX, &m->key, layer, &layout, dst, NULL, "the index",
                          err);
}

enum samkv_status samkv_snapshot_block(struct samkv_snapshot *snapshot, const struct samkv_manifest *m, uint32_t block,
                                       void *const *dst, struct samkv_error *err)
{
    return samkv_snapshot_block_watched(snapshot, m, block, dst, NULL, err);
}

enum samkv_status samkv_snapshot_block_watched(struct samkv_snapshot *snapshot, const struct samkv_manifest *m,
                                               uint32_t block, void *const *dst, const struct samkv_decode_watch *watch,
                                               struct samkv_error *err)
{
    enum samkv_status st = samkv_manifest_check(m, err);
    if (st != SAMKV_OK)
        return st;
    if (block >= m->blocks)
        return samkv_fail(err, SAMKV_INVALID, "the document has %u blocks, no block %u", m->blocks, block);
    struct samkv_layout layout = samkv_block_layout(m, block);
    return read_kept_part(snapshot, SAMKV_DB_BLOCK, SAMKV_RECORD_BLOCK, &m->key, block, &layout, dst, watch, "a block",
                          err);
}
