#include "daemon/store/bundle.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/bundle_entry.h"
#include "daemon/store/fields.h"
#include "daemon/store/snapshot.h"

#define OUT_BYTES ((size_t)256 << 10) /* small entries are gathered; a large record goes out from where it lies */

struct export
{
    struct samkv_snapshot *snapshot;
    const struct samkv_bundle_stream *stream;
    struct samkv_collection collection; /* as stored */
    struct samkv_collection told;       /* as the bundle has it: nobody's. Borrows its preamble */
    samkv_bundle_report report;
    void *arg;
    struct samkv_bundle_progress progress;
    uint8_t *out;
    size_t out_count;
    uint64_t digest, part_digest;
    /* Documents with several names that went out already: an open hash table, keys are hashes. */
    struct samkv_key *sent;
    size_t sent_count, sent_room;
    enum samkv_status status;
    struct samkv_error *err;
};

/* ------------------------------------------------------------------ bytes and entries */

static enum samkv_status flush(struct export *e)
{
    size_t count = e->out_count;
    e->out_count = 0;
    return count ? e->stream->write(e->stream->arg, e->out, count, e->err) : SAMKV_OK;
}

static enum samkv_status put(struct export *e, const void *bytes, size_t count)
{
    if (count > OUT_BYTES - e->out_count) {
        enum samkv_status st = flush(e);
        if (st != SAMKV_OK)
            return st;
    }
    e->progress.bytes += count;
    if (count > OUT_BYTES)
        return e->stream->write(e->stream->arg, bytes, count, e->err);
    memcpy(e->out + e->out_count, bytes, count);
    e->out_count += count;
    return SAMKV_OK;
}

static enum samkv_status put_entry(struct export *e, enum samkv_bundle_kind kind, uint32_t number, const void *payload,
                                   size_t bytes)
{
    uint8_t head[SAMKV_BUNDLE_HEAD_BYTES];
    const struct samkv_bundle_head h = {kind, number, bytes, samkv_bundle_sum(payload, bytes)};
    samkv_bundle_head_encode(&h, head);
    uint64_t *digest = samkv_bundle_is_part(kind) ? &e->part_digest : &e->digest;
    if (kind != SAMKV_BUNDLE_TRAILER)
        *digest = samkv_bundle_digest(*digest, head);
    enum samkv_status st = put(e, head, sizeof head);
    if (st == SAMKV_OK)
        st = put(e, payload, bytes);
    return st == SAMKV_OK ? e->report(e->arg, &e->progress, e->err) : st;
}

/* Two numbers, maybe a third, a text and a record: what COLLECTION and NAME are. */
static enum samkv_status put_described(struct export *e, enum samkv_bundle_kind kind, const char *text, uint32_t flags,
                                       const uint64_t *count, const uint8_t *record, size_t record_bytes)
{
    size_t length = strlen(text), bytes = 8 + (count ? 8 : 0) + length + record_bytes;
    uint8_t *payload = malloc(bytes);
    if (!payload)
        return samkv_fail(e->err, SAMKV_NO_MEMORY, "out of memory for an export");
    struct samkv_fields f;
    samkv_fields_write(&f, payload, bytes);
    samkv_put_u32(&f, (uint32_t)length);
    samkv_put_u32(&f, flags);
    if (count)
        samkv_put_u64(&f, *count);
    samkv_put_bytes(&f, text, length);
    samkv_put_bytes(&f, record, record_bytes);
    enum samkv_status st = put_entry(e, kind, 0, payload, bytes);
    free(payload);
    return st;
}

/* ------------------------------------------------------------------ records */

static enum samkv_status damaged(struct export *e, const char *id, const char *what)
{
    return samkv_fail(e->err, SAMKV_CORRUPT,
                      "%s of '%s' is damaged: run samkvctl verify --repair --collection %s, then export again", what,
                      id, e->collection.name);
}

/* A record that was checked, sealed under the key that it has without the collection's mask. */
static enum samkv_status put_unmasked(struct export *e, enum samkv_bundle_kind entry, uint32_t number,
                                      enum samkv_record_kind kind, struct samkv_bytes key, struct samkv_bytes value,
                                      const struct samkv_record *record)
{
    static const struct samkv_key none;
    uint8_t bare[SAMKV_PART_KEY_BYTES];
    struct samkv_key document;
    if (memcmp(&e->collection.mask, &none, sizeof none) == 0)
        return put_entry(e, entry, number, value.data, value.size);
    uint8_t *copy = malloc(value.size);
    if (!copy)
        return samkv_fail(e->err, SAMKV_NO_MEMORY, "out of memory for an export");
    memcpy(copy, value.data, value.size);
    memcpy(bare, key.data, key.size);
    memcpy(document.bytes, bare, sizeof document.bytes);
    samkv_document_key_mask(&document, &e->collection.mask);
    memcpy(bare, document.bytes, sizeof document.bytes);
    samkv_record_seal(copy, kind, (struct samkv_bytes){bare, key.size}, record);
    enum samkv_status st = put_entry(e, entry, number, copy, value.size);
    free(copy);
    return st;
}

/* Nothing damaged leaves the store. */
static enum samkv_status put_part(struct export *e, enum samkv_bundle_kind entry, uint32_t number, enum samkv_db db,
                                  enum samkv_record_kind kind, struct samkv_bytes key, const char *id)
{
    struct samkv_held held = {0};
    struct samkv_record record;
    enum samkv_status st = samkv_snapshot_get(e->snapshot, db, key, &held, e->err);
    if (st == SAMKV_OK)
        st = samkv_record_open(held.bytes, kind, key, &record);
    if (st == SAMKV_OK)
        st = put_unmasked(e, entry, number, kind, key, held.bytes, &record);
    else if (st == SAMKV_NOT_FOUND || st == SAMKV_CORRUPT)
        st = damaged(e, id,
                     kind == SAMKV_RECORD_BLOCK   ? "a block"
                     : kind == SAMKV_RECORD_INDEX ? "the index"
                                                  : "the token list");
    samkv_held_release(e->snapshot->store, &held);
    return st;
}

static enum samkv_status put_parts(struct export *e, const struct samkv_manifest *m, const char *id)
{
    uint8_t buffer[SAMKV_PART_KEY_BYTES];
    uint32_t layers = m->bytes_index ? m->shape.layers : 0;
    e->part_digest = 0;
    enum samkv_status st =
        put_part(e, SAMKV_BUNDLE_TOKENS, 0, SAMKV_DB_TOKENS, SAMKV_RECORD_TOKENS, samkv_key_bytes(&m->key), id);
    for (uint32_t i = 0; st == SAMKV_OK && i < layers; i++)
        st = put_part(e, SAMKV_BUNDLE_INDEX, i, SAMKV_DB_INDEX, SAMKV_RECORD_INDEX, samkv_part_key(&m->key, i, buffer),
                      id);
    for (uint32_t i = 0; st == SAMKV_OK && i < m->blocks; i++)
        st = put_part(e, SAMKV_BUNDLE_BLOCK, i, SAMKV_DB_BLOCK, SAMKV_RECORD_BLOCK, samkv_part_key(&m->key, i, buffer),
                      id);
    return st;
}

static enum samkv_status put_document(struct export *e, const struct samkv_document *d, const char *id)
{
    struct samkv_document bare = *d;
    struct samkv_key *key = &bare.manifest.key;
    uint8_t payload[512], end[SAMKV_BUNDLE_END_BYTES], *record;
    size_t bytes;
    struct samkv_fields f;
    samkv_document_key_mask(key, &e->collection.mask);
    if (samkv_document_seal(&bare, &record, &bytes) != SAMKV_OK)
        return samkv_fail(e->err, SAMKV_NO_MEMORY, "out of memory for an export");
    samkv_fields_write(&f, payload, sizeof payload);
    samkv_put_bytes(&f, key->bytes, sizeof key->bytes);
    samkv_put_bytes(&f, record, bytes);
    free(record);
    assert(!f.bad);
    enum samkv_status st = put_entry(e, SAMKV_BUNDLE_DOCUMENT, 0, payload, sizeof payload - f.left);
    if (st == SAMKV_OK)
        st = put_parts(e, &d->manifest, id);
    if (st != SAMKV_OK)
        return st;
    samkv_fields_write(&f, end, sizeof end);
    samkv_put_bytes(&f, key->bytes, sizeof key->bytes);
    samkv_put_u64(&f, e->part_digest);
    e->progress.documents++;
    return put_entry(e, SAMKV_BUNDLE_END, 0, end, sizeof end);
}

static enum samkv_status open_document(struct export *e, const struct samkv_key *key, const char *id,
                                       struct samkv_document *out)
{
    struct samkv_held held = {0};
    enum samkv_status st = samkv_snapshot_get(e->snapshot, SAMKV_DB_DOCUMENT, samkv_key_bytes(key), &held, e->err);
    if (st == SAMKV_OK)
        st = samkv_document_open(held.bytes, key, out);
    samkv_held_release(e->snapshot->store, &held);
    return st == SAMKV_NOT_FOUND || st == SAMKV_CORRUPT ? damaged(e, id, "the record") : st;
}

/* ------------------------------------------------------------------ documents with several names */

static struct samkv_key *sent_place(const struct export *e, const struct samkv_key *key)
{
    static const struct samkv_key none = {0};
    uint64_t hash;
    memcpy(&hash, key->bytes, sizeof hash);
    size_t at = hash % e->sent_room;
    while (memcmp(&e->sent[at], key, sizeof *key) != 0 && memcmp(&e->sent[at], &none, sizeof none) != 0)
        at = (at + 1) % e->sent_room;
    return &e->sent[at];
}

static enum samkv_status sent_grow(struct export *e)
{
    struct export bigger = {.sent_room = e->sent_room ? 2 * e->sent_room : 1024};
    bigger.sent = calloc(bigger.sent_room, sizeof *bigger.sent);
    if (!bigger.sent)
        return samkv_fail(e->err, SAMKV_NO_MEMORY, "out of memory for an export");
    static const struct samkv_key none = {0};
    for (size_t i = 0; i < e->sent_room; i++)
        if (memcmp(&e->sent[i], &none, sizeof none) != 0)
            *sent_place(&bigger, &e->sent[i]) = e->sent[i];
    free(e->sent);
    e->sent = bigger.sent;
    e->sent_room = bigger.sent_room;
    return SAMKV_OK;
}

/* Whether this document went out already; it has from now on. */
static enum samkv_status sent_before(struct export *e, const struct samkv_document *d, bool *out)
{
    *out = false;
    if (d->references < 2)
        return SAMKV_OK;
    if (2 * (e->sent_count + 1) > e->sent_room) {
        enum samkv_status st = sent_grow(e);
        if (st != SAMKV_OK)
            return st;
    }
    struct samkv_key *place = sent_place(e, &d->manifest.key);
    *out = memcmp(place, &d->manifest.key, sizeof *place) == 0;
    e->sent_count += !*out;
    *place = d->manifest.key;
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ the whole */

static enum samkv_status export_name(struct export *e, const struct samkv_name *name)
{
    struct samkv_document d;
    bool before;
    enum samkv_status st = open_document(e, &name->key, name->id, &d);
    if (st == SAMKV_OK)
        st = sent_before(e, &d, &before);
    if (st != SAMKV_OK)
        return st;
    uint8_t buffer[SAMKV_NAME_KEY_MAX], *sealed;
    size_t bytes;
    struct samkv_name bare = *name; /* borrows its title */
    samkv_document_key_mask(&bare.key, &e->collection.mask);
    if (samkv_name_seal(samkv_name_key(e->told.name, name->id, buffer), &bare, &sealed, &bytes) != SAMKV_OK)
        return samkv_fail(e->err, SAMKV_NO_MEMORY, "out of memory for an export");
    st = put_described(e, SAMKV_BUNDLE_NAME, name->id, before ? 0 : SAMKV_BUNDLE_CARRIES, NULL, sealed, bytes);
    free(sealed);
    if (st == SAMKV_OK && !before)
        st = put_document(e, &d, name->id);
    if (st == SAMKV_OK) {
        e->progress.names++;
        memcpy(e->progress.last_id, name->id, sizeof name->id);
    }
    return st;
}

static bool on_name(void *arg, const struct samkv_name *name)
{
    struct export *e = arg;
    e->status = export_name(e, name);
    return e->status == SAMKV_OK;
}

static bool count_name(void *arg, const struct samkv_name *name)
{
    (void)name;
    ++*(uint64_t *)arg;
    return true;
}

/* Start, COLLECTION and its preamble's document. */
static enum samkv_status export_beginning(struct export *e)
{
    static const struct samkv_key none = {0};
    uint8_t start[SAMKV_BUNDLE_START_BYTES], *sealed;
    size_t bytes;
    struct samkv_document d;
    samkv_bundle_start_encode(start);
    enum samkv_status st = put(e, start, sizeof start);
    if (st != SAMKV_OK)
        return st;
    if (samkv_collection_seal(&e->told, &sealed, &bytes) != SAMKV_OK)
        return samkv_fail(e->err, SAMKV_NO_MEMORY, "out of memory for an export");
    st = put_described(e, SAMKV_BUNDLE_COLLECTION, e->told.name, 0, &e->progress.names_total, sealed, bytes);
    free(sealed);
    if (st != SAMKV_OK || memcmp(&e->collection.preamble_key, &none, sizeof none) == 0)
        return st;
    st = open_document(e, &e->collection.preamble_key, "(preamble)", &d);
    return st == SAMKV_OK ? put_document(e, &d, "(preamble)") : st;
}

static enum samkv_status export_trailer(struct export *e)
{
    uint8_t trailer[SAMKV_BUNDLE_TRAILER_BYTES];
    struct samkv_fields f;
    samkv_fields_write(&f, trailer, sizeof trailer);
    samkv_put_u64(&f, e->progress.names);
    samkv_put_u64(&f, e->progress.documents);
    samkv_put_u64(&f, e->progress.bytes);
    samkv_put_u64(&f, e->digest);
    enum samkv_status st = put_entry(e, SAMKV_BUNDLE_TRAILER, 0, trailer, sizeof trailer);
    return st == SAMKV_OK ? flush(e) : st;
}

/* The collection as it may be anybody's. */
static void tell(struct export *e)
{
    static const struct samkv_key none;
    const struct samkv_collection *c = &e->collection;
    const char *name = samkv_collection_bare_name(c);
    e->told = *c;
    memset(e->told.name, 0, sizeof e->told.name);
    memcpy(e->told.name, name, strlen(name));
    e->told.ownership = (struct samkv_ownership){0};
    e->told.mask = none;
    if (memcmp(&c->preamble_key, &none, sizeof none) != 0)
        samkv_document_key_mask(&e->told.preamble_key, &c->mask);
}

static enum samkv_status export_all(struct export *e, const char *after, const struct samkv_bundle_state *resume)
{
    const char *name = e->collection.name;
    uint64_t left = 0;
    if (resume && resume->bytes) {
        if (strcmp(resume->progress.collection, e->told.name) != 0 ||
            memcmp(resume->fingerprint, e->collection.fingerprint, sizeof resume->fingerprint) != 0)
            return samkv_fail(e->err, SAMKV_MISMATCH,
                              "the part that is to be resumed is of collection '%s', or was made with another model: "
                              "export without --resume",
                              resume->progress.collection);
        e->progress = resume->progress;
        e->progress.bytes = resume->bytes;
        e->digest = resume->digest;
        after = resume->progress.last_id;
    }
    enum samkv_status st = samkv_snapshot_each_name(e->snapshot, name, after, count_name, &left, e->err);
    e->progress.names_total = e->progress.names + left;
    memcpy(e->progress.collection, name, sizeof e->collection.name);
    if (st == SAMKV_OK && e->progress.bytes == 0)
        st = export_beginning(e);
    if (st == SAMKV_OK)
        st = samkv_snapshot_each_name(e->snapshot, name, after, on_name, e, e->err);
    if (st == SAMKV_OK)
        st = e->status;
    if (st == SAMKV_OK)
        return export_trailer(e);
    /* What is whole up to a damaged document shall be of use. A stream that failed is left alone. */
    struct export rest = *e;
    rest.err = NULL;
    return st == SAMKV_CORRUPT && flush(&rest) != SAMKV_OK ? SAMKV_CORRUPT : st;
}

enum samkv_status samkv_bundle_export(struct samkv_store *s, const char *collection, const char *after,
                                      const struct samkv_bundle_state *resume, const struct samkv_bundle_stream *stream,
                                      samkv_bundle_report report, void *arg, struct samkv_bundle_progress *out,
                                      struct samkv_error *err)
{
    struct export e = {.stream = stream, .report = report, .arg = arg, .err = err};
    *out = (struct samkv_bundle_progress){0};
    enum samkv_status st = samkv_snapshot_begin(s, &e.snapshot, err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_snapshot_collection(e.snapshot, collection, &e.collection, err);
    if (st == SAMKV_NOT_FOUND)
        st = samkv_fail(err, st, "there is no collection '%s': see samkvctl ls --collections", collection);
    if (st == SAMKV_OK && !(e.out = malloc(OUT_BYTES)))
        st = samkv_fail(err, SAMKV_NO_MEMORY, "out of memory for an export");
    if (st == SAMKV_OK) {
        tell(&e);
        st = export_all(&e, after, resume);
    }
    *out = e.progress;
    samkv_collection_deinit(&e.collection);
    samkv_snapshot_end(e.snapshot);
    free(e.sent);
    free(e.out);
    return st;
}
