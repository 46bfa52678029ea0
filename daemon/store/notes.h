#pragma once
/*
 * Notes: small values under a name that others choose, kept beside the store's own facts. The store does not know what
 * they say. They are in the database "meta", in which a daemon that knows no notes looks for the schema alone: so they
 * need no schema of their own. A salvaged store has none.
 */
#include "daemon/store/store.h"

#define SAMKV_NOTE_NAME_BYTES 300 /* at most, and at least 1 */
#define SAMKV_NOTE_MAX_BYTES  1024

/* On disk when it returns OK. INVALID: a name or value that is too long; FULL, IO, DENIED as for every write. */
enum samkv_status samkv_store_note_put(struct samkv_store *, const void *name, size_t name_bytes, const void *value,
                                       size_t bytes, struct samkv_error *) SAMKV_MUST_USE;

/* NOT_FOUND without text when there is none. */
enum samkv_status samkv_store_note_remove(struct samkv_store *, const void *name, size_t name_bytes,
                                          struct samkv_error *) SAMKV_MUST_USE;

/* value: room for SAMKV_NOTE_MAX_BYTES. NOT_FOUND without text; CORRUPT when the record is damaged. */
enum samkv_status samkv_snapshot_note(struct samkv_snapshot *, const void *name, size_t name_bytes, void *value,
                                      size_t *bytes, struct samkv_error *) SAMKV_MUST_USE;
