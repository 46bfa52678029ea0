#pragma once
/*
 * The store's inside, shared by the files of this folder only: the LMDB environment with its databases, and the
 * translation of LMDB's codes.
 *
 *   meta        "schema"                  → version
 *   collection  name                      → struct samkv_collection
 *   name        collection NUL id         → document key, title
 *   document    document key              → manifest and number of references; present = whole and visible
 *   tokens      document key              → its tokens
 *   index       document key, BE32 layer  → block means and local query
 *   block       document key, BE32 block  → K and V of all layers
 *   pending     document key              → nothing: records of this document are being written or removed
 */
#include <lmdb.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/status.h"
#include "daemon/store/host_cache.h"
#include "daemon/store/ledger.h"
#include "daemon/store/queue.h"
#include "daemon/store/record.h"
#include "daemon/store/scratch.h"
#include "daemon/store/store.h"

/* 2: collections have a codec, a quota and a TTL, names a time and a pin. Records of schema 1 are read as they are. */
#define SAMKV_STORE_SCHEMA        2
#define SAMKV_STORE_SCHEMA_OLDEST 1

enum samkv_db {
    SAMKV_DB_META,
    SAMKV_DB_COLLECTION,
    SAMKV_DB_NAME,
    SAMKV_DB_DOCUMENT,
    SAMKV_DB_TOKENS,
    SAMKV_DB_INDEX,
    SAMKV_DB_BLOCK,
    SAMKV_DB_PENDING,
    SAMKV_DB_COUNT,
};

/* Snapshots that are open, the oldest first. */
struct samkv_reading {
    pthread_mutex_t lock;
    struct samkv_snapshot *first, *last;
};

struct samkv_store {
    MDB_env *env;
    MDB_dbi dbi[SAMKV_DB_COUNT];
    int lock_fd; /* flock'ed while a writing daemon has the directory; -1 when reading only */
    char *path;
    bool read_only;
    enum samkv_codec codec;
    int zstd_level;
    size_t page_bytes;
    uint64_t limit_bytes;   /* the map: what the data file cannot exceed */
    uint64_t reserve_bytes; /* of which new documents leave free, so that removing always has room to work in */
    struct samkv_scratch_pool scratch;
    struct samkv_host_cache *host_cache; /* NULL: none */
    struct samkv_queue queue;
    struct samkv_ledger ledger;
    atomic_uint_fast64_t commits, snapshots;
    bool evict, quota_refuses; /* as in the options */
    int64_t (*now_s)(void *arg);
    void *now_arg;
    atomic_uint_fast64_t used_bytes; /* after the last transaction */
    atomic_uint_fast64_t evictions, evicted_bytes, expirations;
    atomic_int_fast64_t expire_next_s;        /* when to look for expired names again; INT64_MAX: no TTL is set */
    double evictions_told_ms, usage_saved_ms; /* the writer thread's */
    struct samkv_reading reading;
    atomic_uint_fast64_t damaged; /* records that reading found to be so */
};

/* The one translation of LMDB's codes (and errno values that it passes on); what: "reading", "writing a block" .... */
enum samkv_status samkv_fail_lmdb(struct samkv_error *, int rc, const char *what);

/* LMDB says EIO when a full disk (or a limit on file sizes) took only part of a write: ENOSPC then, else rc. */
int samkv_db_write_code(const struct samkv_store *, int rc);

static inline MDB_val samkv_val(struct samkv_bytes b)
{
    return (MDB_val){b.size, (void *)b.data}; /* LMDB does not write to what it is given */
}

static inline struct samkv_bytes samkv_val_bytes(const MDB_val *v)
{
    return (struct samkv_bytes){v->mv_data, v->mv_size};
}

/* mdb_get with statuses; NOT_FOUND without text. */
enum samkv_status samkv_db_get(const struct samkv_store *, MDB_txn *, enum samkv_db, struct samkv_bytes key,
                               struct samkv_bytes *out, struct samkv_error *) SAMKV_MUST_USE;

/* False when the page that holds this (large) value was damaged so that LMDB would free or overwrite other pages with
 * it. */
bool samkv_db_value_is_sane(const struct samkv_store *, const MDB_val *);

/* Bytes of all pages that hold data in this transaction's view. */
enum samkv_status samkv_db_used_bytes(const struct samkv_store *, MDB_txn *, uint64_t *out,
                                      struct samkv_error *) SAMKV_MUST_USE;

/* Removes what an earlier process left behind. While opening, before the writer thread is started. */
enum samkv_status samkv_recover(struct samkv_store *, struct samkv_error *) SAMKV_MUST_USE;
