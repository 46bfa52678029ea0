#pragma once
/* The inside of a snapshot, for the files of this folder that read. */
#include <lmdb.h>
#include <pthread.h>
#include <stdatomic.h>

#include "daemon/store/environment.h"
#include "daemon/store/values.h"

struct samkv_snapshot {
    struct samkv_store *store;
    MDB_txn *txn;
    pthread_mutex_t lock; /* LMDB allows one call at a time on a transaction; what mdb_get found stays until its end */
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

/* The record under a key, still unchecked. Valid as long as the snapshot. NOT_FOUND without text. */
enum samkv_status samkv_snapshot_get(struct samkv_snapshot *, enum samkv_db, struct samkv_bytes key,
                                     struct samkv_bytes *out, struct samkv_error *) SAMKV_MUST_USE;

/* Asks the kernel to read a large value ahead in one go: the map as a whole is told not to. */
void samkv_snapshot_will_need(const struct samkv_snapshot *, struct samkv_bytes value);
