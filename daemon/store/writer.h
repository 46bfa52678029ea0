#pragma once
/*
 * Writing what comes from another store: records that are sealed already, and names that are not new. Private to this
 * folder; otherwise as the writing functions of store.h.
 */
#include "daemon/store/change.h"
#include "daemon/store/record.h"
#include "daemon/store/store.h"

/* As samkv_writer_begin, for a document that is encoded as m->codec says. */
enum samkv_status samkv_writer_begin_sealed(struct samkv_store *, const struct samkv_manifest *m, const int32_t *tokens,
                                            struct samkv_writer **out, struct samkv_error *) SAMKV_MUST_USE;

/* A BLOCK or INDEX record, sealed under this document's key and number, and checked. On the heap; taken over in every
 * case. */
enum samkv_status samkv_writer_sealed(struct samkv_writer *, enum samkv_record_kind, uint32_t number, uint8_t *record,
                                      size_t record_bytes, struct samkv_error *) SAMKV_MUST_USE;

/* As samkv_writer_commit; the name keeps its time and its pin. */
enum samkv_status samkv_writer_commit_as(struct samkv_writer *, const char *collection, const struct samkv_name *,
                                         struct samkv_error *) SAMKV_MUST_USE;

/* As samkv_store_name_put, with the name's own time and pin. NOT_FOUND without text when its document is not there. */
enum samkv_status samkv_store_name_put_as(struct samkv_store *, const char *collection, const struct samkv_name *,
                                          struct samkv_error *) SAMKV_MUST_USE;

/* In a change: gives a name that was just set another one's time and pin. */
enum samkv_status samkv_change_dress_name(struct samkv_change *, const char *collection, const struct samkv_name *as,
                                          struct samkv_error *) SAMKV_MUST_USE;
