#pragma once
/*
 * Changes of the database within a write transaction: the steps that jobs are made of. On the writer thread (or while
 * opening, before it exists). LMDB's failures set change->broken.
 */
#include "daemon/store/environment.h"
#include "daemon/store/queue.h"
#include "daemon/store/values.h"

/* Puts a sealed record; replaces the one there. */
enum samkv_status samkv_change_put(struct samkv_change *, enum samkv_db, struct samkv_bytes key,
                                   struct samkv_bytes record, struct samkv_error *) SAMKV_MUST_USE;

/* Deletes a record; OK also when there is none. */
enum samkv_status samkv_change_remove(struct samkv_change *, enum samkv_db, struct samkv_bytes key,
                                      struct samkv_error *) SAMKV_MUST_USE;

/* Marks a document as not at rest: whatever is there of it goes at the next open. */
enum samkv_status samkv_change_mark_pending(struct samkv_change *, const struct samkv_key *,
                                            struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_change_unmark_pending(struct samkv_change *, const struct samkv_key *,
                                              struct samkv_error *) SAMKV_MUST_USE;

/* NOT_FOUND without text; CORRUPT. */
enum samkv_status samkv_change_get_document(struct samkv_change *, const struct samkv_key *, struct samkv_document *out,
                                            struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_change_put_document(struct samkv_change *, const struct samkv_document *,
                                            struct samkv_error *) SAMKV_MUST_USE;

/* Points a name at `document`, which the caller has made sure is there, and moves the references. */
enum samkv_status samkv_change_set_name(struct samkv_change *, const char *collection, const char *id,
                                        const char *title, const struct samkv_key *document,
                                        struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_change_remove_name(struct samkv_change *, const char *collection, const char *id,
                                           struct samkv_error *) SAMKV_MUST_USE;

/* Writes a name's record as it is, for a document that it refers to already. */
enum samkv_status samkv_change_put_name(struct samkv_change *, const char *collection, const struct samkv_name *,
                                        struct samkv_error *) SAMKV_MUST_USE;

/* A collection's record; its preamble's reference is not touched. */
enum samkv_status samkv_change_put_collection(struct samkv_change *, const struct samkv_collection *,
                                              struct samkv_error *) SAMKV_MUST_USE;

/* The record of a collection without names, and its reference to its preamble. */
enum samkv_status samkv_change_remove_collection(struct samkv_change *, const char *name,
                                                 struct samkv_error *) SAMKV_MUST_USE;

/* Changes nothing, but makes this a transaction that is written. */
enum samkv_status samkv_change_touch(struct samkv_change *, struct samkv_error *) SAMKV_MUST_USE;

/* One reference more; a document that nothing refers to any longer stops being visible. */
enum samkv_status samkv_change_add_reference(struct samkv_change *, const struct samkv_key *,
                                             struct samkv_error *) SAMKV_MUST_USE;

/* The document is not visible from this transaction on; its records go later. */
enum samkv_status samkv_change_hide(struct samkv_change *, const struct samkv_key *,
                                    struct samkv_error *) SAMKV_MUST_USE;

/* Names and preambles that refer to a document, counted one by one (its own count was lost). */
enum samkv_status samkv_change_count_references(struct samkv_change *, const struct samkv_key *, uint64_t *out,
                                                struct samkv_error *) SAMKV_MUST_USE;

/* Removes a bounded number of a hidden document's records; *more says whether some are left. The last step unmarks. */
enum samkv_status samkv_change_remove_some(struct samkv_change *, const struct samkv_key *, bool *more,
                                           struct samkv_error *) SAMKV_MUST_USE;
