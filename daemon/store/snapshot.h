#pragma once
/* The inside of a snapshot, for the files of this folder that read. */
#include <lmdb.h>
#include <pthread.h>
#include <stdatomic.h>

#include "daemon/store/environment.h"
#include "daemon/store/extent.h"
#include "daemon/store/values.h"

/* A transaction on one environment. */
struct samkv_view {
    struct samkv_environment *env; /* NULL: none */
    MDB_txn *txn;
};

struct samkv_snapshot {
    struct samkv_store *store;
    struct samkv_view now;
    struct samkv_view old; /* what has not been moved yet, while the store is compacted; begun before `now` */
    pthread_mutex_t lock;  /* LMDB allows one call at a time on a transaction; what mdb_get found stays until its end */
    atomic_uint_fast64_t bytes_read;
    struct samkv_host_cache *host_cache;   /* NULL: everything is read from the file */
    uint64_t epoch;                        /* of the host cache, from before the transaction */
    struct samkv_snapshot *before, *after; /* of those that are open */
    double began_ms;
};

/* The TTL of a collection's names, 0 for one that has none or is not there. */
enum samkv_status samkv_snapshot_ttl(struct samkv_snapshot *, const char *collection, uint64_t *ttl_s,
                                     struct samkv_error *) SAMKV_MUST_USE;

/* Fills name->expires_unix_s. False: it has expired. */
bool samkv_snapshot_sees(const struct samkv_snapshot *, uint64_t ttl_s, struct samkv_name *);

/*
 * The record under a key, still unchecked, out of the store into *held, which begins empty (zeros) and which the caller
 * releases in every case. NOT_FOUND without text. CORRUPT when a part of the file that holds it cannot be read.
 */
enum samkv_status samkv_snapshot_get(struct samkv_snapshot *, enum samkv_db, struct samkv_bytes key,
                                     struct samkv_held *held, struct samkv_error *err) SAMKV_MUST_USE;

/* Runs fn(arg), which reads with the snapshot's transaction `now`, in a guarded section (guard.h) with the lock held.
 * CORRUPT with a text when it was left because the file could not be read. */
enum samkv_status samkv_snapshot_run(struct samkv_snapshot *, void (*fn)(void *arg), void *arg,
                                     struct samkv_error *) SAMKV_MUST_USE;

/* A value that LMDB has just found in a view, into held->bytes or, an extent, only its place into *extent. Within fn;
 * held has a room of a page. False when it is neither. */
bool samkv_snapshot_hold(struct samkv_snapshot *, const struct samkv_view *, const MDB_val *, struct samkv_held *,
                         struct samkv_bytes *extent);
