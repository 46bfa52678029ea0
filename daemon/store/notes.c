#include "daemon/store/notes.h"

#include <string.h>

#include "daemon/store/change.h"
#include "daemon/store/snapshot.h"

/* In front of every note's name, so that none can be the schema's. */
static const char prefix[] = "note";

struct note_key {
    uint8_t bytes[sizeof prefix + SAMKV_NOTE_NAME_BYTES];
};

/* No bytes for a name that cannot be one. */
static struct samkv_bytes key_of(const void *name, size_t name_bytes, struct note_key *key)
{
    if (name_bytes == 0 || name_bytes > SAMKV_NOTE_NAME_BYTES)
        return (struct samkv_bytes){0};
    memcpy(key->bytes, prefix, sizeof prefix); /* its NUL too */
    memcpy(key->bytes + sizeof prefix, name, name_bytes);
    return (struct samkv_bytes){key->bytes, sizeof prefix + name_bytes};
}

struct note_job {
    struct samkv_job job; /* first: a pointer to it is one to this */
    struct samkv_bytes key, record;
};

static enum samkv_status call(struct samkv_store *s, struct samkv_job *job, struct samkv_error *err)
{
    if (s->read_only)
        return samkv_fail(err, SAMKV_DENIED, "the store was opened for reading only");
    return samkv_queue_call(s, job, err);
}

static enum samkv_status apply_put(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    const struct note_job *note = (struct note_job *)job;
    return samkv_change_put(c, SAMKV_DB_META, note->key, note->record, err);
}

static enum samkv_status apply_remove(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    const struct note_job *note = (struct note_job *)job;
    struct samkv_bytes there;
    enum samkv_status st = samkv_db_get(c->store, c->txn, SAMKV_DB_META, note->key, &there, err);
    return st == SAMKV_OK ? samkv_change_remove(c, SAMKV_DB_META, note->key, err) : st;
}

enum samkv_status samkv_store_note_put(struct samkv_store *s, const void *name, size_t name_bytes, const void *value,
                                       size_t bytes, struct samkv_error *err)
{
    struct note_key room;
    uint8_t record[SAMKV_RECORD_HEADER_BYTES + SAMKV_NOTE_MAX_BYTES];
    struct note_job put = {.job = {.apply = apply_put}, .key = key_of(name, name_bytes, &room)};
    if (!put.key.size || bytes > SAMKV_NOTE_MAX_BYTES)
        return samkv_fail(err, SAMKV_INVALID, "a note of %zu bytes under a name of %zu cannot be stored", bytes,
                          name_bytes);
    if (bytes)
        memcpy(record + SAMKV_RECORD_HEADER_BYTES, value, bytes);
    const struct samkv_record head = {.pieces = 1, .raw_bytes = bytes, .payload_bytes = bytes};
    samkv_record_seal(record, SAMKV_RECORD_NOTE, put.key, &head);
    put.record = (struct samkv_bytes){record, SAMKV_RECORD_HEADER_BYTES + bytes};
    return call(s, &put.job, err);
}

enum samkv_status samkv_store_note_remove(struct samkv_store *s, const void *name, size_t name_bytes,
                                          struct samkv_error *err)
{
    struct note_key room;
    struct note_job gone = {.job = {.apply = apply_remove}, .key = key_of(name, name_bytes, &room)};
    return gone.key.size ? call(s, &gone.job, err) : SAMKV_NOT_FOUND;
}

enum samkv_status samkv_snapshot_note(struct samkv_snapshot *snapshot, const void *name, size_t name_bytes, void *value,
                                      size_t *bytes, struct samkv_error *err)
{
    struct note_key room;
    struct samkv_record r;
    struct samkv_held held = {0};
    struct samkv_bytes key = key_of(name, name_bytes, &room);
    *bytes = 0;
    if (!key.size)
        return SAMKV_NOT_FOUND;
    enum samkv_status st = samkv_snapshot_get(snapshot, SAMKV_DB_META, key, &held, err);
    if (st == SAMKV_OK && (samkv_record_open(held.bytes, SAMKV_RECORD_NOTE, key, &r) != SAMKV_OK ||
                           r.payload_bytes > SAMKV_NOTE_MAX_BYTES))
        st = samkv_fail(err, SAMKV_CORRUPT, "a note in the store is damaged: set anew what it held");
    if (st == SAMKV_OK) {
        memcpy(value, r.payload, r.payload_bytes);
        *bytes = r.payload_bytes;
    }
    samkv_held_release(snapshot->store, &held);
    return st;
}
