#pragma once
/*
 * The writer's steps, each in a guarded section (guard.h): LMDB reads its trees in the map also when it writes. A page
 * that cannot be had ends the step with IO. Nothing of the transaction has reached the file then (or its caller is told
 * that it may not have), so the store on disk is as it was; but the transaction in memory is in no state to be ended.
 * It stays as it is, and with it the right to write: from then on every step fails, and what is stored can be read on.
 *
 * On the writer thread, or while opening, before it exists; or (salvage) while nothing is queued.
 */
#include "daemon/store/change.h"

enum samkv_status samkv_txn_begin(struct samkv_store *, struct samkv_change *out, struct samkv_error *) SAMKV_MUST_USE;

/* In another environment than the newest. */
enum samkv_status samkv_txn_begin_in(struct samkv_store *, struct samkv_environment *, struct samkv_change *out,
                                     struct samkv_error *) SAMKV_MUST_USE;

/* Aborts; the claims of the change are not touched. */
void samkv_txn_abort(struct samkv_change *);

/* Aborts on failure. */
enum samkv_status samkv_txn_commit(struct samkv_change *, struct samkv_error *) SAMKV_MUST_USE;

/* job->apply; sets change->broken when it was left in the middle. */
enum samkv_status samkv_txn_apply(struct samkv_change *, struct samkv_job *, struct samkv_error *) SAMKV_MUST_USE;

/* samkv_db_used_bytes and samkv_change_remove_some. */
enum samkv_status samkv_txn_used_bytes(struct samkv_change *, uint64_t *out, struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_txn_remove_some(struct samkv_change *, const struct samkv_key *, bool *more,
                                        struct samkv_error *) SAMKV_MUST_USE;

/* fn(arg), which uses the transaction. OK: it was not left in the middle. */
enum samkv_status samkv_txn_run(struct samkv_change *, void (*fn)(void *arg), void *arg,
                                struct samkv_error *) SAMKV_MUST_USE;

/* Writes the schema and commits; aborts on failure. */
enum samkv_status samkv_txn_mark(struct samkv_change *, uint8_t schema, struct samkv_error *) SAMKV_MUST_USE;
