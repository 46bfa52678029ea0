#pragma once
/*
 * Usage on disk: which documents were used, how often and when, in the file "usage" beside the data file. It is
 * written as a whole now and then and at the end, never within LMDB, so that reading documents writes nothing there.
 * A file that is gone, cut or damaged costs nothing but this knowledge: all documents count as unused then.
 *
 *   "SKU1"  u32 zero  u64 tick  u64 count  count * {key, u32 weight (float's bits), u32 uses, u64 tick, i64 used}
 *   u64 xxh3-64 of all before; little-endian
 */
#include "proto/status.h"
#include "daemon/store/environment.h"

/* Books what the file says of documents that are there. False: there is no good file. While opening. */
bool samkv_usage_load(struct samkv_store *);

/* Writes the file if something was used since; an old one stays when that fails. The writer thread's, or while
 * closing. */
enum samkv_status samkv_usage_save(struct samkv_store *, struct samkv_error *) SAMKV_MUST_USE;
