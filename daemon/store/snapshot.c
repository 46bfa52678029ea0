#include "daemon/store/snapshot.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/base/clock.h"

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

enum samkv_status samkv_snapshot_begin(struct samkv_store *s, struct samkv_snapshot **out, struct samkv_error *err)
{
    *out = NULL;
    struct samkv_snapshot *snapshot = calloc(1, sizeof *snapshot);
    if (!snapshot)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    snapshot->host_cache = s->host_cache;
    snapshot->epoch = s->host_cache ? samkv_host_cache_epoch(s->host_cache) : 0;
    int rc = mdb_txn_begin(s->env, NULL, MDB_RDONLY, &snapshot->txn);
    if (rc) {
        free(snapshot);
        return samkv_fail_lmdb(err, rc, "starting to read");
    }
    snapshot->store = s;
    pthread_mutex_init(&snapshot->lock, NULL);
    enlist(&s->reading, snapshot);
    atomic_fetch_add(&s->snapshots, 1);
    *out = snapshot;
    return SAMKV_OK;
}

void samkv_snapshot_end(struct samkv_snapshot *snapshot)
{
    if (!snapshot)
        return;
    mdb_txn_abort(snapshot->txn);
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

enum samkv_status samkv_snapshot_get(struct samkv_snapshot *snapshot, enum samkv_db db, struct samkv_bytes key,
                                     struct samkv_bytes *out, struct samkv_error *err)
{
    pthread_mutex_lock(&snapshot->lock);
    enum samkv_status st = samkv_db_get(snapshot->store, snapshot->txn, db, key, out, err);
    pthread_mutex_unlock(&snapshot->lock);
    return st;
}

void samkv_snapshot_will_need(const struct samkv_snapshot *snapshot, struct samkv_bytes value)
{
    size_t page = snapshot->store->page_bytes;
    if (value.size < 2 * page)
        return;
    uintptr_t from = (uintptr_t)value.data / page * page, to = (uintptr_t)value.data + value.size;
    madvise((void *)from, to - from, MADV_WILLNEED); /* only a hint */
}

enum samkv_status samkv_snapshot_collection(struct samkv_snapshot *snapshot, const char *name,
                                            struct samkv_collection *out, struct samkv_error *err)
{
    *out = (struct samkv_collection){0};
    struct samkv_bytes key = {name, strnlen(name, SAMKV_ID_MAX_BYTES + 1)}, value;
    if (key.size < 1 || key.size > SAMKV_ID_MAX_BYTES)
        return SAMKV_NOT_FOUND;
    enum samkv_status st = samkv_snapshot_get(snapshot, SAMKV_DB_COLLECTION, key, &value, err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_collection_open(value, key, out);
    return st == SAMKV_OK ? st : samkv_fail(err, st, "the record of collection %s is damaged: restore the store", name);
}

enum samkv_status samkv_snapshot_name(struct samkv_snapshot *snapshot, const char *collection, const char *id,
                                      struct samkv_name *out, struct samkv_error *err)
{
    *out = (struct samkv_name){0};
    if (samkv_id_check("collection's name", collection, NULL) != SAMKV_OK || samkv_id_check("id", id, NULL) != SAMKV_OK)
        return SAMKV_NOT_FOUND;
    uint8_t buffer[SAMKV_NAME_KEY_MAX];
    struct samkv_bytes key = samkv_name_key(collection, id, buffer), value;
    enum samkv_status st = samkv_snapshot_get(snapshot, SAMKV_DB_NAME, key, &value, err);
    if (st != SAMKV_OK)
        return st;
    uint64_t ttl_s = 0;
    st = samkv_name_open(value, key, true, out);
    if (st != SAMKV_OK)
        return samkv_fail(err, st, "the name %s is damaged: ingest it again", id);
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
    struct samkv_bytes value;
    struct samkv_document d;
    *out = (struct samkv_manifest){0};
    enum samkv_status st = samkv_snapshot_get(snapshot, SAMKV_DB_DOCUMENT, samkv_key_bytes(key), &value, err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_document_open(value, key, &d);
    if (st != SAMKV_OK)
        return samkv_fail(err, st, "a document's record is damaged: ingest the document again");
    *out = d.manifest;
    return SAMKV_OK;
}

/* Reads and decodes one record of a document to `dst`. A record that is not there is damage, not a miss. */
static enum samkv_status read_part(struct samkv_snapshot *snapshot, enum samkv_db db, enum samkv_record_kind kind,
                                   struct samkv_bytes key, const struct samkv_layout *layout, void *const *dst,
                                   const char *what, struct samkv_error *err)
{
    struct samkv_bytes value;
    enum samkv_status st = samkv_snapshot_get(snapshot, db, key, &value, err);
    if (st == SAMKV_NOT_FOUND)
        return samkv_fail(err, SAMKV_CORRUPT, "%s of a document is missing: run verify, then ingest it again", what);
    if (st != SAMKV_OK)
        return st;
    if (kind != SAMKV_RECORD_TOKENS)
        atomic_fetch_add_explicit(&snapshot->bytes_read, value.size, memory_order_relaxed);
    samkv_snapshot_will_need(snapshot, value);
    st = samkv_record_decode(value, kind, key, layout, &snapshot->store->scratch, dst);
    if (st == SAMKV_CORRUPT)
        atomic_fetch_add(&snapshot->store->damaged, 1);
    if (st == SAMKV_CORRUPT)
        return samkv_fail(err, st, "%s of a document is damaged on disk: run verify, then ingest it again", what);
    return st == SAMKV_OK ? st : samkv_fail(err, st, "out of memory while reading %s", what);
}

/* read_part for a block or index record, from memory when it is there. */
static enum samkv_status read_kept_part(struct samkv_snapshot *snapshot, enum samkv_db db, enum samkv_record_kind kind,
                                        const struct samkv_key *document, uint32_t number,
                                        const struct samkv_layout *layout, void *const *dst, const char *what,
                                        struct samkv_error *err)
{
    struct samkv_host_cache *cache = snapshot->host_cache;
    const struct samkv_host_key key = {*document, kind, number};
    if (cache && samkv_host_cache_read(cache, snapshot->epoch, &key, layout, dst))
        return SAMKV_OK;
    uint8_t buffer[SAMKV_PART_KEY_BYTES];
    enum samkv_status st =
        read_part(snapshot, db, kind, samkv_part_key(document, number, buffer), layout, dst, what, err);
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
    return read_part(snapshot, SAMKV_DB_TOKENS, SAMKV_RECORD_TOKENS, samkv_key_bytes(key), &layout, dst,
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
    return read_kept_part(snapshot, SAMKV_DB_INDEX, SAMKV_RECORD_INDEX, &m->key, layer, &layout, dst, "the index", err);
}

enum samkv_status samkv_snapshot_block(struct samkv_snapshot *snapshot, const struct samkv_manifest *m, uint32_t block,
                                       void *const *dst, struct samkv_error *err)
{
    enum samkv_status st = samkv_manifest_check(m, err);
    if (st != SAMKV_OK)
        return st;
    if (block >= m->blocks)
        return samkv_fail(err, SAMKV_INVALID, "the document has %u blocks, no block %u", m->blocks, block);
    struct samkv_layout layout = samkv_block_layout(m, block);
    return read_kept_part(snapshot, SAMKV_DB_BLOCK, SAMKV_RECORD_BLOCK, &m->key, block, &layout, dst, "a block", err);
}
