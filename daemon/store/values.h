#pragma once
/*
 * The records of fields: what a document, a name and a collection look like on disk. Sealing allocates the record;
 * opening checks every length and bound, so that what comes out may be computed with. Pure; any thread.
 */
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"
#include "daemon/store/record.h"
#include "daemon/store/store.h"

/* A name's key is collection, NUL, id; and must not be longer than LMDB's limit of 511 bytes, which 255 + 1 + 255 is.
 */
#define SAMKV_NAME_KEY_MAX 511

/* A block's or layer's key is the document's and a big-endian number. */
#define SAMKV_PART_KEY_BYTES (SAMKV_KEY_BYTES + 4)

/* A manifest as stored, with the number of names and preambles that refer to it. */
struct samkv_document {
    struct samkv_manifest manifest;
    uint64_t references;
};

/* INVALID with a text that names what is wrong: zero or absurd sizes, products that overflow, wrong block count. */
enum samkv_status samkv_manifest_check(const struct samkv_manifest *, struct samkv_error *) SAMKV_MUST_USE;

/* INVALID unless 1 to SAMKV_ID_MAX_BYTES bytes; `what` for the text. */
enum samkv_status samkv_id_check(const char *what, const char *id, struct samkv_error *) SAMKV_MUST_USE;

/* The same for collection and id, and TOO_LARGE for a title (NULL is allowed) that cannot be stored. */
enum samkv_status samkv_name_check(const char *collection, const char *id, const char *title,
                                   struct samkv_error *) SAMKV_MUST_USE;

/* Layout of a block's pieces, of the index of one layer, of the tokens. The manifest was checked before. */
struct samkv_layout samkv_block_layout(const struct samkv_manifest *, uint32_t block);
struct samkv_layout samkv_index_layout(const struct samkv_manifest *);
struct samkv_layout samkv_tokens_layout(const struct samkv_manifest *);

/* Fill `to` (SAMKV_PART_KEY_BYTES, SAMKV_NAME_KEY_MAX) and return what of it is the key. */
struct samkv_bytes samkv_part_key(const struct samkv_key *, uint32_t number, uint8_t *to);
struct samkv_bytes samkv_name_key(const char *collection, const char *id, uint8_t *to);

static inline struct samkv_bytes samkv_key_bytes(const struct samkv_key *key)
{
    return (struct samkv_bytes){key->bytes, sizeof key->bytes};
}

/* A sealed record on the heap for the caller to free. */
enum samkv_status samkv_document_seal(const struct samkv_document *, uint8_t **out, size_t *out_bytes) SAMKV_MUST_USE;
/* Title, document, time and pin of `name`; its id is in the key. */
enum samkv_status samkv_name_seal(struct samkv_bytes key, const struct samkv_name *name, uint8_t **out,
                                  size_t *out_bytes) SAMKV_MUST_USE;
enum samkv_status samkv_collection_seal(const struct samkv_collection *, uint8_t **out,
                                        size_t *out_bytes) SAMKV_MUST_USE;

/* CORRUPT for anything but what the functions above made. */
enum samkv_status samkv_document_open(struct samkv_bytes value, const struct samkv_key *,
                                      struct samkv_document *out) SAMKV_MUST_USE;

/* out->id is taken from the key. The title is copied when `with_title`. */
enum samkv_status samkv_name_open(struct samkv_bytes value, struct samkv_bytes key, bool with_title,
                                  struct samkv_name *out) SAMKV_MUST_USE;
enum samkv_status samkv_collection_open(struct samkv_bytes value, struct samkv_bytes key,
                                        struct samkv_collection *out) SAMKV_MUST_USE;

/* All but the preamble's tokens, without allocation. */
enum samkv_status samkv_collection_open_bare(struct samkv_bytes value, struct samkv_bytes key,
                                             struct samkv_collection *out) SAMKV_MUST_USE;

/* The preamble's key only, without allocation. */
enum samkv_status samkv_collection_open_preamble(struct samkv_bytes value, struct samkv_bytes key,
                                                 struct samkv_key *out) SAMKV_MUST_USE;

/* INVALID: a collection that cannot be (sizes, missing preamble). MISMATCH: the first field that differs from `there`.
 */
enum samkv_status samkv_collection_check(const struct samkv_collection *, struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_collection_compare(const struct samkv_collection *there, const struct samkv_collection *asked,
                                           struct samkv_error *) SAMKV_MUST_USE;
