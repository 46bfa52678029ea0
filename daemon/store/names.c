#include "daemon/store/store.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/store/account.h"
#include "daemon/store/change.h"
#include "daemon/store/environment.h"
#include "daemon/store/evict.h"

/* Small changes that their callers wait for. Each job lives on its caller's stack. */

static enum samkv_status call(struct samkv_store *s, struct samkv_job *job, struct samkv_error *err)
{
    if (s->read_only)
        return samkv_fail(err, SAMKV_DENIED, "the store was opened for reading only");
    return samkv_queue_call(s, job, err);
}

struct name_job {
    struct samkv_job job; /* first: a pointer to it is one to this */
    const char *collection, *id, *title;
    const struct samkv_key *key;
};

static enum samkv_status apply_name_put(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    struct name_job *name = (struct name_job *)job;
    struct samkv_document d;
    enum samkv_status st = samkv_change_get_document(c, name->key, &d, err);
    if (st != SAMKV_OK)
        return st;
    c->grows = true;
    st = samkv_change_set_name(c, name->collection, name->id, name->title, name->key, err);
    return st == SAMKV_OK ? samkv_evict_for_quota(c, name->collection, name->key, err) : st;
}

enum samkv_status samkv_store_name_put(struct samkv_store *s, const char *collection, const char *id, const char *title,
                                       const struct samkv_key *key, struct samkv_error *err)
{
    enum samkv_status st = samkv_name_check(collection, id, title, err);
    if (st != SAMKV_OK)
        return st;
    struct name_job name = {.job = {.apply = apply_name_put}, collection, id, title, key};
    return call(s, &name.job, err);
}

static enum samkv_status apply_name_remove(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    struct name_job *name = (struct name_job *)job;
    return samkv_change_remove_name(c, name->collection, name->id, err);
}

enum samkv_status samkv_store_name_remove(struct samkv_store *s, const char *collection, const char *id,
                                          struct samkv_error *err)
{
    if (samkv_name_check(collection, id, NULL, NULL) != SAMKV_OK)
        return SAMKV_NOT_FOUND;
    struct name_job name = {.job = {.apply = apply_name_remove}, collection, id};
    return call(s, &name.job, err);
}

struct damaged_job {
    struct samkv_job job;
    uint64_t removed;
};

static enum samkv_status apply_remove_damaged(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    struct damaged_job *damaged = (struct damaged_job *)job;
    MDB_cursor *cursor;
    MDB_val k, v;
    int rc = mdb_cursor_open(c->txn, c->store->dbi[SAMKV_DB_NAME], &cursor);
    if (rc)
        return samkv_fail_lmdb(err, rc, "looking for damaged names");
    damaged->removed = 0;
    while ((rc = mdb_cursor_get(cursor, &k, &v, MDB_NEXT)) == 0) {
        struct samkv_name name;
        if (samkv_name_open(samkv_val_bytes(&v), samkv_val_bytes(&k), false, &name) == SAMKV_OK ||
            !samkv_db_value_is_sane(c->store, &v))
            continue;
        rc = mdb_cursor_del(cursor, 0);
        if (rc)
            break;
        damaged->removed++;
    }
    mdb_cursor_close(cursor);
    c->broken |= rc != MDB_NOTFOUND;
    return rc == MDB_NOTFOUND ? SAMKV_OK : samkv_fail_lmdb(err, rc, "removing damaged names");
}

enum samkv_status samkv_store_damaged_names_remove(struct samkv_store *s, uint64_t *removed, struct samkv_error *err)
{
    struct damaged_job damaged = {.job = {.apply = apply_remove_damaged}};
    enum samkv_status st = call(s, &damaged.job, err);
    *removed = damaged.removed;
    return st;
}

/* ------------------------------------------------------------------ collections */

struct collection_job {
    struct samkv_job job;
    const struct samkv_collection *asked;
};

static enum samkv_status compare_with(struct samkv_bytes value, struct samkv_bytes key,
                                      const struct samkv_collection *asked, struct samkv_error *err)
{
    struct samkv_collection there;
    enum samkv_status st = samkv_collection_open(value, key, &there);
    if (st != SAMKV_OK)
        return samkv_fail(err, st, "the record of collection %s is damaged: restore the store", asked->name);
    st = samkv_collection_compare(&there, asked, err);
    samkv_collection_deinit(&there);
    return st;
}

static enum samkv_status apply_collection_put(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    static const struct samkv_key none = {0};
    struct collection_job *put = (struct collection_job *)job;
    const struct samkv_collection *asked = put->asked;
    struct samkv_bytes key = {asked->name, strnlen(asked->name, SAMKV_ID_MAX_BYTES)}, value;
    enum samkv_status st = samkv_db_get(c->store, c->txn, SAMKV_DB_COLLECTION, key, &value, err);
    if (st == SAMKV_OK)
        return compare_with(value, key, asked, err);
    if (st != SAMKV_NOT_FOUND)
        return st;
    c->grows = true;
    if (memcmp(&asked->preamble_key, &none, sizeof none) != 0) {
        st = samkv_change_add_reference(c, &asked->preamble_key, err);
        if (st == SAMKV_NOT_FOUND)
            return samkv_fail(err, SAMKV_INVALID,
                              "the preamble of collection %s is not stored: write its document first", asked->name);
        if (st != SAMKV_OK)
            return st;
    }
    st = samkv_change_put_collection(c, asked, err);
    return st == SAMKV_OK ? samkv_account_check(c, asked->name, err) : st;
}

enum samkv_status samkv_store_collection_put(struct samkv_store *s, const struct samkv_collection *asked,
                                             struct samkv_error *err)
{
    struct collection_job put = {.job = {.apply = apply_collection_put}, .asked = asked};
    enum samkv_status st = samkv_collection_check(asked, err);
    if (st != SAMKV_OK)
        return st;
    return call(s, &put.job, err);
}

/* ------------------------------------------------------------------ repair */

struct rewrite_job {
    struct samkv_job job;
    const struct samkv_manifest *manifest;
    enum samkv_db db;
    struct samkv_bytes key, record;
};

/* The manifest's sums follow the record's new size. */
static void account(struct samkv_manifest *m, enum samkv_db db, uint64_t before, uint64_t after)
{
    m->bytes_stored += after - (before < m->bytes_stored ? before : m->bytes_stored);
    if (db == SAMKV_DB_INDEX)
        m->bytes_index += after - (before < m->bytes_index ? before : m->bytes_index);
}

static enum samkv_status apply_rewrite(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    struct rewrite_job *rewrite = (struct rewrite_job *)job;
    const struct samkv_manifest *asked = rewrite->manifest;
    struct samkv_document d;
    struct samkv_bytes old = {0};
    enum samkv_status st = samkv_change_get_document(c, &asked->key, &d, err);
    if (st != SAMKV_OK)
        return st;
    struct samkv_manifest *there = &d.manifest;
    if (memcmp(&there->shape, &asked->shape, sizeof there->shape) != 0 || there->heads != asked->heads ||
        there->tokens != asked->tokens || there->block_tokens != asked->block_tokens)
        return samkv_fail(err, SAMKV_MISMATCH, "the document has another shape than the record to repair it with");
    st = samkv_db_get(c->store, c->txn, rewrite->db, rewrite->key, &old, err);
    if (st != SAMKV_OK && st != SAMKV_NOT_FOUND)
        return st;
    if (st == SAMKV_NOT_FOUND)
        old.size = samkv_compact_record_bytes(c->store, rewrite->db, rewrite->key.data, rewrite->key.size);
    account(there, rewrite->db, old.size, rewrite->record.size);
    st = samkv_change_put(c, rewrite->db, rewrite->key, rewrite->record, err);
    return st == SAMKV_OK ? samkv_change_put_document(c, &d, err) : st;
}

static enum samkv_status rewrite_part(struct samkv_store *s, const struct samkv_manifest *m, enum samkv_db db,
                                      enum samkv_record_kind kind, uint32_t number, enum samkv_codec codec,
                                      const struct samkv_layout *layout, const void *const *src,
                                      struct samkv_error *err)
{
    uint8_t key[SAMKV_PART_KEY_BYTES], *record;
    size_t record_bytes;
    struct rewrite_job rewrite = {
        .job = {.apply = apply_rewrite}, .manifest = m, .db = db, .key = samkv_part_key(&m->key, number, key)};
    enum samkv_status st =
        samkv_record_encode(kind, rewrite.key, codec, s->zstd_level, layout, src, &s->scratch, &record, &record_bytes);
    if (st != SAMKV_OK)
        return samkv_fail(err, st, "a record could not be encoded: %s", samkv_status_text(st));
    rewrite.record = (struct samkv_bytes){record, record_bytes};
    st = call(s, &rewrite.job, err);
    free(record);
    return st;
}

enum samkv_status samkv_store_block_rewrite(struct samkv_store *s, const struct samkv_manifest *m, uint32_t block,
                                            const void *const *src, struct samkv_error *err)
{
    enum samkv_status st = samkv_manifest_check(m, err);
    if (st != SAMKV_OK)
        return st;
    if (block >= m->blocks)
        return samkv_fail(err, SAMKV_INVALID, "the document has %u blocks, no block %u", m->blocks, block);
    struct samkv_layout layout = samkv_block_layout(m, block);
    return rewrite_part(s, m, SAMKV_DB_BLOCK, SAMKV_RECORD_BLOCK, block, m->codec, &layout, src, err);
}

enum samkv_status samkv_store_index_rewrite(struct samkv_store *s, const struct samkv_manifest *m, uint32_t layer,
                                            const float *index, size_t count, struct samkv_error *err)
{
    enum samkv_status st = samkv_manifest_check(m, err);
    if (st != SAMKV_OK)
        return st;
    struct samkv_layout layout = samkv_index_layout(m);
    if (layer >= m->shape.layers || count != layout.bytes / sizeof *index)
        return samkv_fail(err, SAMKV_INVALID, "layer %u of %u with %zu numbers is no index of this document", layer,
                          m->shape.layers, count);
    const void *src[1] = {index};
    return rewrite_part(s, m, SAMKV_DB_INDEX, SAMKV_RECORD_INDEX, layer, samkv_codec_lossless(m->codec), &layout, src,
                        err);
}
