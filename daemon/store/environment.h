#pragma once
/*
 * The store's inside, shared by the files of this folder only: LMDB environments with their databases, and the
 * translation of LMDB's codes.
 *
 *   meta        "schema"                  → version; "note" NUL name → a note (notes.h)
 *   collection  name                      → struct samkv_collection
 *   name        collection NUL id         → document key, title
 *   document    document key              → manifest and number of references; present = whole and visible
 *   tokens      document key              → its tokens
 *   index       document key, BE32 layer  → block means and local query
 *   block       document key, BE32 block  → K and V of all layers
 *   pending     document key              → nothing: records of this document are being written or removed
 *
 * A store has one data file (environment) or, while it is being compacted, two: the newest, which has everything but
 * those tokens, index and block records that have not been moved yet, and the old one, which has these (compact.h).
 */
#include <lmdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/status.h"
#include "daemon/store/extent.h"
#include "daemon/store/host_cache.h"
#include "daemon/store/ledger.h"
#include "daemon/store/queue.h"
#include "daemon/store/record.h"
#include "daemon/store/compact.h"
#include "daemon/store/scratch.h"
#include "daemon/store/space.h"
#include "daemon/store/store.h"

/* 2: collections have a codec, a quota and a TTL, names a time and a pin. 3: collections have an owner, a group and a
 * mode. Older records are read as they are. */
#define SAMKV_STORE_SCHEMA        3
#define SAMKV_STORE_SCHEMA_OLDEST 1
#define SAMKV_STORE_SCHEMA_MOVED  255 /* a data file that a newer one has taken the place of */

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

/* The databases whose records stay in the old environment until they are moved. */
static inline bool samkv_db_is_moved_later(enum samkv_db db)
{
    return db == SAMKV_DB_TOKENS || db == SAMKV_DB_INDEX || db == SAMKV_DB_BLOCK;
}

/* An open data file. It is closed when nobody refers to it any longer; the store refers to those it uses. */
struct samkv_environment {
    MDB_env *env;
    const uint8_t *map; /* where it begins; reading it may raise SIGBUS: only in guarded sections */
    uint64_t map_bytes;
    int fd;        /* LMDB's descriptor of the data file */
    int direct_fd; /* a second one that reads past the page cache, or -1 */
    uint64_t generation;
    char *path;                        /* of the data file */
    unsigned references;               /* under the store's environments_lock */
    bool drained;                      /* nothing of it is needed by new snapshots; under the same lock */
    struct samkv_punching punching;    /* the writer thread's */
    uint64_t advanced_at;              /* commits when a transaction was last made only to free pages; the same */
    atomic_uint_fast64_t bytes_in_use; /* as last counted by the writer thread */
};

struct samkv_store {
    struct samkv_environment *now, *old; /* the newest, and the one that is being emptied or NULL: the writer thread
                                            changes them under environments_lock, others take that to look */
    pthread_mutex_t environments_lock;
    pthread_mutex_t following;   /* a read-only store opens the newest file again: one thread at a time */
    MDB_dbi dbi[SAMKV_DB_COUNT]; /* the same in every environment */
    int lock_fd;                 /* flock'ed while a writing daemon has the directory; -1 when reading only */
    char *path;
    bool read_only;
    enum samkv_codec codec;
    int zstd_level;
    size_t page_bytes;      /* the same in every environment */
    uint64_t limit_bytes;   /* the map: what the data file cannot exceed */
    bool direct;            /* reads past the page cache, where that can be had */
    uint64_t reserve_bytes; /* of which new documents leave free, so that removing always has room to work in */
    struct samkv_scratch_pool scratch;
    struct samkv_held_pool rooms;
    struct samkv_host_cache *host_cache; /* NULL: none */
    struct samkv_queue queue;
    struct samkv_ledger ledger;
    enum samkv_compact compact;
    struct samkv_compaction compaction;
    atomic_uint_fast64_t commits, snapshots, bytes_punched, compactions;
    atomic_uint_fast64_t bytes_moved, bytes_moved_now, bytes_to_move; /* since the start; in this compaction */
    bool evict, quota_refuses;                                        /* as in the options */
    uint64_t (*user_quota)(void *arg, uint32_t owner);
    void *user_quota_arg;
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

/*
 * Before a value found in a write transaction is replaced or deleted: LMDB believes what the head of its first page
 * says, and would free or overwrite other pages with it. A head that was overwritten with garbage, or that cannot be
 * read, is written anew. False when it is not known which pages are the value's.
 */
bool samkv_db_value_is_sane(const struct samkv_store *, const MDB_val *);

/* Bytes of all pages that hold data in this transaction's view. */
enum samkv_status samkv_db_used_bytes(const struct samkv_store *, MDB_txn *, uint64_t *out,
                                      struct samkv_error *) SAMKV_MUST_USE;

/* Removes what an earlier process left behind. While opening, before the writer thread is started. */
enum samkv_status samkv_recover(struct samkv_store *, struct samkv_error *) SAMKV_MUST_USE;
