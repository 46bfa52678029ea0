#include "daemon/store/store.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/change.h"
#include "daemon/store/environment.h"
#include "daemon/store/evict.h"
#include "daemon/store/expire.h"
#include "daemon/store/writer.h"

/*
 * The caller's thread encodes and queues; the writer thread puts. The writer's own thread and the store's meet only
 * in `failed`, `error` and `abandoned`.
 */
struct samkv_writer {
    struct samkv_job abort; /* first: a pointer to it is one to this */
    struct samkv_store *store;
    struct samkv_claim *claim;
    struct samkv_manifest manifest;
    uint8_t *have; /* a byte for each block, then one for each layer */
    uint32_t blocks_left, layers_left;
    uint64_t bytes_stored, bytes_index;
    uint64_t reserved; /* room that was set aside for it */
    atomic_bool abandoned;
    atomic_int failed; /* status of the first record that could not be written; error is set before */
    struct samkv_error error;
};

/* One record on its way to the writer thread; the first of a document also marks it as pending. */
struct part_job {
    struct samkv_job job; /* first: a pointer to it is one to this */
    struct samkv_writer *writer;
    enum samkv_db db;
    uint8_t key[SAMKV_PART_KEY_BYTES];
    size_t key_bytes;
    uint8_t *record;
    size_t record_bytes;
};

static enum samkv_status writer_failure(struct samkv_writer *w, struct samkv_error *err)
{
    enum samkv_status st = (enum samkv_status)atomic_load(&w->failed);
    if (st != SAMKV_OK && err)
        *err = w->error;
    return st;
}

/* ------------------------------------------------------------------ on the writer thread */

static enum samkv_status apply_part(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    struct part_job *part = (struct part_job *)job;
    enum samkv_status st = writer_failure(part->writer, err);
    if (st != SAMKV_OK || atomic_load(&part->writer->abandoned))
        return st;
    c->grows = true;
    if (part->db == SAMKV_DB_TOKENS)
        st = samkv_change_mark_pending(c, &part->writer->manifest.key, err);
    if (st == SAMKV_OK)
        st = samkv_change_put(c, part->db, (struct samkv_bytes){part->key, part->key_bytes},
                              (struct samkv_bytes){part->record, part->record_bytes}, err);
    return st;
}

static void part_failed(struct samkv_job *job, enum samkv_status st, const struct samkv_error *err)
{
    struct samkv_writer *w = ((struct part_job *)job)->writer;
    if (atomic_load(&w->failed) != SAMKV_OK)
        return;
    w->error = *err;
    atomic_store(&w->failed, (int)st);
}

static void release_part(struct samkv_store *s, struct samkv_job *job)
{
    (void)s;
    free(((struct part_job *)job)->record);
    free(job);
}

struct commit_job {
    struct samkv_job job;
    struct samkv_writer *writer;
    const char *collection, *id, *title;
    const struct samkv_name *as; /* whose time and pin the name gets; NULL: those of a new one */
};

/* Whether the name that the document is to get leads to it already. */
static bool name_dangles(struct samkv_change *c, const struct commit_job *commit)
{
    uint8_t buffer[SAMKV_NAME_KEY_MAX];
    struct samkv_name name;
    struct samkv_bytes value;
    if (!commit->collection)
        return false;
    struct samkv_bytes key = samkv_name_key(commit->collection, commit->id, buffer);
    return samkv_db_get(c->store, c->txn, SAMKV_DB_NAME, key, &value, NULL) == SAMKV_OK &&
           samkv_name_open(value, key, false, &name) == SAMKV_OK &&
           memcmp(&name.key, &commit->writer->manifest.key, sizeof name.key) == 0;
}

static enum samkv_status apply_commit(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    struct commit_job *commit = (struct commit_job *)job;
    struct samkv_writer *w = commit->writer;
    enum samkv_status st = writer_failure(w, err);
    if (st != SAMKV_OK)
        return st;
    /* A record that is there was damaged, or it is gone and the name is not: names refer to it, their count is lost. */
    struct samkv_document d = {0}, old;
    st = samkv_change_get_document(c, &w->manifest.key, &old, NULL);
    if (st == SAMKV_OK)
        d.references = old.references;
    else if (st == SAMKV_CORRUPT || (st == SAMKV_NOT_FOUND && name_dangles(c, commit)))
        st = samkv_change_count_references(c, &w->manifest.key, &d.references, err);
    if (st != SAMKV_OK && st != SAMKV_NOT_FOUND)
        return st;
    c->grows = true;
    d.manifest = w->manifest;
    st = samkv_change_put_document(c, &d, err);
    if (st == SAMKV_OK)
        st = samkv_change_unmark_pending(c, &w->manifest.key, err);
    if (st == SAMKV_OK && commit->collection)
        st = samkv_change_set_name(c, commit->collection, commit->id, commit->title, &w->manifest.key, err);
    if (st == SAMKV_OK && commit->as)
        st = samkv_change_dress_name(c, commit->collection, commit->as, err);
    if (st == SAMKV_OK && commit->collection)
        st = samkv_evict_for_quota(c, commit->collection, &w->manifest.key, err);
    if (st != SAMKV_OK)
        c->broken = true; /* something was written */
    return st;
}

static enum samkv_status apply_abort(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    (void)c, (void)job, (void)err;
    return SAMKV_OK; /* it only stands behind the writer's records in the queue */
}

static void writer_free(struct samkv_writer *w)
{
    samkv_evict_give_back(w->store, w->reserved);
    free(w->have);
    free(w);
}

static void release_abort(struct samkv_store *s, struct samkv_job *job)
{
    struct samkv_writer *w = (struct samkv_writer *)job;
    samkv_claim_remove(s, w->claim);
    writer_free(w);
}

/* ------------------------------------------------------------------ on the caller's thread */

/* Queues a sealed record, which is taken over in every case. */
static enum samkv_status queue_part(struct samkv_writer *w, enum samkv_db db, struct samkv_bytes key, uint8_t *record,
                                    size_t record_bytes, struct samkv_error *err)
{
    struct part_job *part = calloc(1, sizeof *part);
    if (!part) {
        free(record);
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    }
    part->job = (struct samkv_job){
        .apply = apply_part, .failed = part_failed, .release = release_part, .bytes = sizeof *part + record_bytes};
    part->writer = w;
    part->db = db;
    memcpy(part->key, key.data, key.size);
    part->key_bytes = key.size;
    part->record = record;
    part->record_bytes = record_bytes;
    if (db != SAMKV_DB_TOKENS)
        w->bytes_stored += record_bytes;
    if (db == SAMKV_DB_INDEX)
        w->bytes_index += record_bytes;
    samkv_queue_push(w->store, &part->job);
    return SAMKV_OK;
}

/* Encodes one record and queues it. */
static enum samkv_status push_part(struct samkv_writer *w, enum samkv_db db, enum samkv_record_kind kind,
                                   struct samkv_bytes key, enum samkv_codec codec, const struct samkv_layout *layout,
                                   const void *const *src, struct samkv_error *err)
{
    enum samkv_status st = writer_failure(w, err);
    if (st != SAMKV_OK)
        return st;
    uint8_t *record;
    size_t record_bytes;
    st = samkv_record_encode(kind, key, codec, w->store->zstd_level, layout, src, &w->store->scratch, &record,
                             &record_bytes);
    if (st != SAMKV_OK)
        return samkv_fail(err, st, "a record of %zu bytes could not be encoded: %s", samkv_layout_bytes(layout),
                          samkv_status_text(st));
    return queue_part(w, db, key, record, record_bytes, err);
}

/* OK: nobody else has the document, and it is not there. *whole: it is, and the claim was given back. */
static enum samkv_status claim_document(struct samkv_store *s, const struct samkv_key *key, struct samkv_claim **out,
                                        bool *whole, struct samkv_error *err)
{
    *whole = false;
    for (;;) {
        enum samkv_status st = samkv_claim_begin(s, key, out, err);
        if (st != SAMKV_OK)
            return st;
        struct samkv_snapshot *snapshot;
        struct samkv_manifest there;
        st = samkv_snapshot_begin(s, &snapshot, err);
        if (st == SAMKV_OK) {
            st = samkv_snapshot_manifest(snapshot, key, &there, err);
            samkv_snapshot_end(snapshot);
        }
        *whole = st == SAMKV_OK;
        bool absent = st == SAMKV_NOT_FOUND || st == SAMKV_CORRUPT; /* a damaged one is written anew */
        if (absent && !samkv_claim_is_contested(s, *out))
            return SAMKV_OK;
        samkv_claim_end(s, *out);
        *out = NULL;
        if (!absent)
            return st;
    }
}

static struct samkv_writer *new_writer(struct samkv_store *s, const struct samkv_manifest *m)
{
    struct samkv_writer *w = calloc(1, sizeof *w);
    if (!w || !(w->have = calloc((size_t)m->blocks + m->shape.layers, 1))) {
        free(w);
        return NULL;
    }
    w->store = s;
    w->manifest = *m;
    w->blocks_left = m->blocks;
    w->layers_left = m->shape.layers;
    return w;
}

enum samkv_status samkv_writer_begin(struct samkv_store *s, const struct samkv_manifest *m, const int32_t *tokens,
                                     struct samkv_writer **out, struct samkv_error *err)
{
    *out = NULL;
    if (s->read_only)
        return samkv_fail(err, SAMKV_DENIED, "the store was opened for reading only");
    enum samkv_status st = samkv_manifest_check(m, err);
    if (st != SAMKV_OK)
        return st;
    struct samkv_writer *w = new_writer(s, m);
    if (!w)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    bool whole;
    st = claim_document(s, &m->key, &w->claim, &whole, err);
    if (st == SAMKV_OK && !whole) {
        st = samkv_evict_admit(s, &w->manifest, &w->reserved, err);
        if (st != SAMKV_OK)
            samkv_claim_end(s, w->claim);
    }
    if (st != SAMKV_OK || whole) {
        writer_free(w);
        return st;
    }
    struct samkv_layout layout = samkv_tokens_layout(m);
    const void *src[1] = {tokens};
    st = push_part(w, SAMKV_DB_TOKENS, SAMKV_RECORD_TOKENS, samkv_key_bytes(&m->key), SAMKV_CODEC_ZSTD, &layout, src,
                   err);
    if (st != SAMKV_OK) {
        samkv_writer_abort(w);
        return st;
    }
    *out = w;
    return SAMKV_OK;
}

enum samkv_status samkv_writer_block(struct samkv_writer *w, uint32_t block, const void *const *src,
                                     struct samkv_error *err)
{
    if (block >= w->manifest.blocks || w->have[block])
        return samkv_fail(err, SAMKV_INVALID, "block %u of %u is out of range or was written already", block,
                          w->manifest.blocks);
    uint8_t key[SAMKV_PART_KEY_BYTES];
    struct samkv_layout layout = samkv_block_layout(&w->manifest, block);
    enum samkv_status st =
        push_part(w, SAMKV_DB_BLOCK, SAMKV_RECORD_BLOCK, samkv_part_key(&w->manifest.key, block, key),
                  w->manifest.codec, &layout, src, err);
    if (st == SAMKV_OK) {
        w->have[block] = 1;
        w->blocks_left--;
    }
    return st;
}

enum samkv_status samkv_writer_index(struct samkv_writer *w, uint32_t layer, const float *index, size_t count,
                                     struct samkv_error *err)
{
    struct samkv_layout layout = samkv_index_layout(&w->manifest);
    if (layer >= w->manifest.shape.layers || w->have[w->manifest.blocks + layer] ||
        count != layout.bytes / sizeof *index)
        return samkv_fail(err, SAMKV_INVALID,
                          "index of layer %u of %u: out of range, written already, or not %zu numbers", layer,
                          w->manifest.shape.layers, layout.bytes / sizeof *index);
    uint8_t key[SAMKV_PART_KEY_BYTES];
    const void *src[1] = {index};
    enum samkv_status st =
        push_part(w, SAMKV_DB_INDEX, SAMKV_RECORD_INDEX, samkv_part_key(&w->manifest.key, layer, key),
                  samkv_codec_lossless(w->manifest.codec), &layout, src, err);
    if (st == SAMKV_OK) {
        w->have[w->manifest.blocks + layer] = 1;
        w->layers_left--;
    }
    return st;
}

/* ------------------------------------------------------------------ sealed records (writer.h) */

enum samkv_status samkv_writer_begin_sealed(struct samkv_store *s, const struct samkv_manifest *m,
                                            const int32_t *tokens, struct samkv_writer **out, struct samkv_error *err)
{
    return samkv_writer_begin(s, m, tokens, out, err);
}

enum samkv_status samkv_writer_sealed(struct samkv_writer *w, enum samkv_record_kind kind, uint32_t number,
                                      uint8_t *record, size_t record_bytes, struct samkv_error *err)
{
    bool is_block = kind == SAMKV_RECORD_BLOCK;
    uint32_t count = is_block ? w->manifest.blocks : w->manifest.shape.layers;
    size_t place = is_block ? number : (size_t)w->manifest.blocks + number;
    enum samkv_status st = writer_failure(w, err);
    if (st == SAMKV_OK && (number >= count || w->have[place]))
        st = samkv_fail(err, SAMKV_INVALID, "record %u of %u is out of range or was written already", number, count);
    if (st != SAMKV_OK) {
        free(record);
        return st;
    }
    uint8_t key[SAMKV_PART_KEY_BYTES];
    st = queue_part(w, is_block ? SAMKV_DB_BLOCK : SAMKV_DB_INDEX, samkv_part_key(&w->manifest.key, number, key),
                    record, record_bytes, err);
    if (st == SAMKV_OK) {
        w->have[place] = 1;
        --*(is_block ? &w->blocks_left : &w->layers_left);
    }
    return st;
}

enum samkv_status samkv_writer_admit(struct samkv_writer *w, const char *collection, struct samkv_error *err)
{
    return samkv_evict_admit_to(w->store, collection, &w->manifest, err);
}

static enum samkv_status check_commit(const struct samkv_writer *w, const char *collection, const char *id,
                                      const char *title, struct samkv_error *err)
{
    /* A preamble's document needs no index; half of one is a mistake. */
    if (w->blocks_left || (w->layers_left && w->layers_left != w->manifest.shape.layers))
        return samkv_fail(err, SAMKV_INVALID, "the document lacks %u blocks and the index of %u layers", w->blocks_left,
                          w->layers_left);
    return collection ? samkv_name_check(collection, id, title, err) : SAMKV_OK;
}

static enum samkv_status commit_with(struct samkv_writer *w, const char *collection, const char *id, const char *title,
                                     const struct samkv_name *as, struct samkv_error *err)
{
    enum samkv_status st = check_commit(w, collection, id, title, err);
    if (st != SAMKV_OK) {
        samkv_writer_abort(w);
        return st;
    }
    struct samkv_manifest *m = &w->manifest;
    m->bytes_raw = (uint64_t)m->tokens * samkv_kv_token_bytes(&m->shape);
    m->bytes_stored = w->bytes_stored;
    m->bytes_index = w->bytes_index;
    if (!m->created_unix_s)
        m->created_unix_s = samkv_store_now_s(w->store);
    struct commit_job commit = {
        .job = {.apply = apply_commit}, .writer = w, .collection = collection, .id = id, .title = title, .as = as};
    struct samkv_store *s = w->store;
    st = samkv_queue_call(s, &commit.job, err);
    if (st == SAMKV_OK)
        samkv_claim_end(s, w->claim);
    else
        samkv_claim_remove(s, w->claim); /* its records went through the queue before */
    writer_free(w);
    return st;
}

enum samkv_status samkv_writer_commit(struct samkv_writer *w, const char *collection, const char *id, const char *title,
                                      struct samkv_error *err)
{
    return commit_with(w, collection, id, title, NULL, err);
}

enum samkv_status samkv_writer_commit_as(struct samkv_writer *w, const char *collection, const struct samkv_name *name,
                                         struct samkv_error *err)
{
    return commit_with(w, collection, name->id, name->title, name, err);
}

enum samkv_codec samkv_store_codec(const struct samkv_store *s)
{
    return s->codec;
}

void samkv_writer_abort(struct samkv_writer *w)
{
    if (!w)
        return;
    atomic_store(&w->abandoned, true);
    w->abort = (struct samkv_job){.apply = apply_abort, .release = release_abort, .wakes = true};
    samkv_queue_push(w->store, &w->abort);
}
