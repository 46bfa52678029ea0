#include "daemon/store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/store/change.h"
#include "daemon/store/datafile.h"
#include "daemon/store/environment.h"
#include "daemon/store/guard.h"
#include "daemon/store/usage.h"

#define MAX_READERS     1024
#define LIMIT_MIN_BYTES ((uint64_t)1 << 20)
#define PATH_BYTES      4096

/* Sanitizers leave little address space; elsewhere a map costs nothing but addresses. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define MAP_MAX_BYTES ((uint64_t)64 << 30)
#else
#define MAP_MAX_BYTES ((uint64_t)16 << 40)
#endif

static const char *const db_names[SAMKV_DB_COUNT] = {
    [SAMKV_DB_META] = "meta",         [SAMKV_DB_COLLECTION] = "collection", [SAMKV_DB_NAME] = "name",
    [SAMKV_DB_DOCUMENT] = "document", [SAMKV_DB_TOKENS] = "tokens",         [SAMKV_DB_INDEX] = "index",
    [SAMKV_DB_BLOCK] = "block",       [SAMKV_DB_PENDING] = "pending",
};

static const struct samkv_bytes schema_key = {"schema", 6};

static enum samkv_status path_in(const struct samkv_store *s, const char *name, char out[PATH_BYTES],
                                 struct samkv_error *err)
{
    int n = snprintf(out, PATH_BYTES, "%s/%s", s->path, name);
    if (n < 0 || n >= PATH_BYTES)
        return samkv_fail(err, SAMKV_INVALID, "the store's path is too long: choose a shorter one");
    return SAMKV_OK;
}

/* Takes the directory for this process. The lock file also says that the store was made once: it is not empty then. */
static enum samkv_status take_directory(struct samkv_store *s, bool *made_before, struct samkv_error *err)
{
    char path[PATH_BYTES];
    enum samkv_status st = path_in(s, "samkv.lock", path, err);
    if (st != SAMKV_OK)
        return st;
    if (mkdir(s->path, 0700) != 0 && errno != EEXIST)
        return samkv_fail_errno(err, errno, "cannot create the store's directory %s", s->path);
    s->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (s->lock_fd < 0)
        return samkv_fail_errno(err, errno, "cannot open %s", path);
    if (flock(s->lock_fd, LOCK_EX | LOCK_NB) != 0)
        return errno == EWOULDBLOCK
                   ? samkv_fail(err, SAMKV_BUSY, "another samkvd uses the store %s: stop it or name another directory",
                                s->path)
                   : samkv_fail_errno(err, errno, "cannot lock %s", path);
    struct stat st_lock;
    *made_before = fstat(s->lock_fd, &st_lock) == 0 && st_lock.st_size > 0;
    return SAMKV_OK;
}

static enum samkv_status note_made(struct samkv_store *s, struct samkv_error *err)
{
    static const char text[] = "samkvd store; locked while a daemon uses it\n";
    if (pwrite(s->lock_fd, text, sizeof text - 1, 0) != (ssize_t)(sizeof text - 1) || fsync(s->lock_fd) != 0)
        return samkv_fail_errno(err, errno, "cannot write %s/samkv.lock", s->path);
    return SAMKV_OK;
}

/* The data file as it is, before LMDB touches it; and the size of the map. */
static enum samkv_status choose_map(struct samkv_store *s, uint64_t max_bytes, bool made_before,
                                    struct samkv_error *err)
{
    char path[PATH_BYTES];
    struct samkv_datafile file;
    enum samkv_status st = path_in(s, "data.mdb", path, err);
    if (st == SAMKV_OK)
        st = samkv_datafile_check(path, !s->read_only, &file, err);
    /* A start that was cut short before anything was stored: the meta pages, or a part of them. */
    if (st == SAMKV_CORRUPT && !made_before && file.exists && file.file_bytes <= 2 * (uint64_t)sysconf(_SC_PAGESIZE))
        st = truncate(path, 0) == 0 ? SAMKV_OK : samkv_fail_errno(err, errno, "cannot begin %s anew", path);
    if (st != SAMKV_OK)
        return st;
    if (!file.exists && s->read_only)
        return samkv_fail(err, SAMKV_NOT_FOUND, "there is no store in %s: name the directory of one", s->path);
    if (!file.exists && made_before)
        return samkv_fail(err, SAMKV_CORRUPT, "%s is gone: restore it, or remove %s/samkv.lock to start a new store",
                          path, s->path);
    uint64_t bytes = max_bytes;
    if (!bytes) {
        /* Never full before the disk is; sparse, so only addresses are spent. */
        struct statvfs disk;
        if (statvfs(s->path, &disk) != 0)
            return samkv_fail_errno(err, errno, "%s", s->path);
        bytes = (uint64_t)disk.f_blocks * disk.f_frsize;
    }
    if (bytes > MAP_MAX_BYTES)
        bytes = MAP_MAX_BYTES;
    if (bytes < LIMIT_MIN_BYTES)
        bytes = LIMIT_MIN_BYTES;
    if (bytes < file.used_bytes) /* a limit that was lowered: nothing new fits, all that is there stays */
        bytes = file.used_bytes;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    s->limit_bytes = bytes / page * page;
    return SAMKV_OK;
}

/* LMDB's assertions are about what it reads from the file; outside a guarded section it aborts. */
static void on_lmdb_assertion(MDB_env *env, const char *text)
{
    (void)env, (void)text;
    samkv_guard_leave();
}

/* One try with the chosen map. The environment is closed again on failure: LMDB wants it so. */
static int open_mapped(struct samkv_store *s)
{
    int rc = mdb_env_create(&s->env);
    if (rc)
        return rc;
    mdb_env_set_assert(s->env, on_lmdb_assertion);
    rc = mdb_env_set_maxdbs(s->env, SAMKV_DB_COUNT);
    if (!rc)
        rc = mdb_env_set_maxreaders(s->env, MAX_READERS);
    if (!rc)
        rc = mdb_env_set_mapsize(s->env, s->limit_bytes);
    unsigned flags = MDB_NOTLS | MDB_NORDAHEAD | (s->read_only ? MDB_RDONLY : 0u);
    if (!rc)
        rc = mdb_env_open(s->env, s->path, flags, 0600);
    if (rc) {
        mdb_env_close(s->env);
        s->env = NULL;
    }
    return rc;
}

static enum samkv_status open_environment(struct samkv_store *s, bool may_shrink, struct samkv_error *err)
{
    int rc = open_mapped(s);
    /* Where addresses are limited (ulimit -v, small machines) a smaller map does too. */
    while (rc == ENOMEM && may_shrink && s->limit_bytes > 256 * LIMIT_MIN_BYTES) {
        s->limit_bytes = s->limit_bytes / 2 / 65536 * 65536;
        rc = open_mapped(s);
    }
    if (rc)
        return samkv_fail_lmdb(err, rc, s->path);
    int cleared;
    rc = mdb_reader_check(s->env, &cleared);
    if (rc)
        return samkv_fail_lmdb(err, rc, "clearing stale readers");
    MDB_stat stat;
    MDB_envinfo info;
    mdb_env_stat(s->env, &stat);
    mdb_env_info(s->env, &info);
    s->page_bytes = stat.ms_psize;
    s->limit_bytes = info.me_mapsize;
    /* A deletion touches a handful of pages of each tree; a step of removal a thousand leaves at most. */
    s->reserve_bytes = s->limit_bytes / 16;
    uint64_t least = 32 * s->page_bytes, most = 4096 * s->page_bytes;
    s->reserve_bytes = s->reserve_bytes < least ? least : s->reserve_bytes > most ? most : s->reserve_bytes;
    return SAMKV_OK;
}

static enum samkv_status write_schema(struct samkv_store *s, MDB_txn *txn, struct samkv_error *err)
{
    uint8_t record[SAMKV_RECORD_HEADER_BYTES + 1];
    struct samkv_record head = {.pieces = 1, .raw_bytes = 1, .payload_bytes = 1};
    record[SAMKV_RECORD_HEADER_BYTES] = SAMKV_STORE_SCHEMA;
    samkv_record_seal(record, SAMKV_RECORD_SCHEMA, schema_key, &head);
    MDB_val k = samkv_val(schema_key), v = {sizeof record, record};
    int rc = mdb_put(txn, s->dbi[SAMKV_DB_META], &k, &v, 0);
    return rc ? samkv_fail_lmdb(err, rc, "writing the schema") : SAMKV_OK;
}

/*
 * Writes the schema into an empty file, or checks the one that is there. An older one becomes today's with this note
 * alone: its records say by themselves which form they have, and are written anew when they change. A daemon of before
 * then refuses the store instead of taking new forms for damage.
 */
static enum samkv_status check_schema(struct samkv_store *s, MDB_txn *txn, bool empty, struct samkv_error *err)
{
    struct samkv_bytes value;
    if (empty)
        return write_schema(s, txn, err);
    struct samkv_record r;
    enum samkv_status st = samkv_db_get(s, txn, SAMKV_DB_META, schema_key, &value, err);
    if (st == SAMKV_NOT_FOUND)
        return samkv_fail(err, SAMKV_MISMATCH, "%s holds no store of samkvd: name another directory", s->path);
    if (st != SAMKV_OK)
        return st;
    if (samkv_record_open(value, SAMKV_RECORD_SCHEMA, schema_key, &r) != SAMKV_OK || r.payload_bytes != 1)
        return samkv_fail(err, SAMKV_CORRUPT, "the store in %s is damaged (schema): restore it or start a new one",
                          s->path);
    if (r.payload[0] >= SAMKV_STORE_SCHEMA_OLDEST && r.payload[0] < SAMKV_STORE_SCHEMA)
        return s->read_only ? SAMKV_OK : write_schema(s, txn, err);
    if (r.payload[0] != SAMKV_STORE_SCHEMA)
        return samkv_fail(err, SAMKV_MISMATCH,
                          "the store in %s has schema %u, this samkvd knows %u: use the samkvd that made it, or ingest "
                          "into a new directory",
                          s->path, r.payload[0], SAMKV_STORE_SCHEMA);
    return SAMKV_OK;
}

static enum samkv_status open_databases(struct samkv_store *s, struct samkv_error *err)
{
    MDB_txn *txn;
    int rc = mdb_txn_begin(s->env, NULL, s->read_only ? MDB_RDONLY : 0, &txn);
    if (rc)
        return samkv_fail_lmdb(err, rc, s->path);
    MDB_stat stat = {0};
    enum samkv_status st = SAMKV_OK;
    rc = mdb_stat(txn, 1, &stat);
    bool empty = rc == 0 && stat.ms_entries == 0 && !s->read_only;
    for (int i = 0; i < SAMKV_DB_COUNT && rc == 0 && st == SAMKV_OK; i++) {
        rc = mdb_dbi_open(txn, db_names[i], empty ? MDB_CREATE : 0, &s->dbi[i]);
        if (rc == 0 && i == SAMKV_DB_META)
            st = check_schema(s, txn, empty, err);
    }
    if (st == SAMKV_OK && rc == MDB_NOTFOUND)
        st = samkv_fail(err, SAMKV_MISMATCH, "%s holds no store of samkvd: name another directory", s->path);
    else if (st == SAMKV_OK && rc)
        st = samkv_fail_lmdb(err, rc, s->path);
    if (st != SAMKV_OK) {
        mdb_txn_abort(txn);
        return st;
    }
    rc = mdb_txn_commit(txn);
    return rc ? samkv_fail_lmdb(err, samkv_db_write_code(s, rc), s->path) : SAMKV_OK;
}

static enum samkv_status prepare(struct samkv_store *s, const struct samkv_store_options *o, struct samkv_error *err)
{
    bool made_before = false;
    enum samkv_status st = s->read_only ? SAMKV_OK : take_directory(s, &made_before, err);
    if (st == SAMKV_OK)
        st = choose_map(s, o->max_bytes, made_before, err);
    if (st == SAMKV_OK)
        st = open_environment(s, o->max_bytes == 0, err);
    if (st == SAMKV_OK)
        st = open_databases(s, err);
    if (st == SAMKV_OK)
        st = samkv_extent_locate(s, err);
    if (st != SAMKV_OK || s->read_only)
        return st;
    if (!made_before)
        st = note_made(s, err);
    if (st == SAMKV_OK)
        st = samkv_recover(s, err);
    if (st == SAMKV_OK)
        st = samkv_ledger_load(s, err);
    if (st == SAMKV_OK) {
        samkv_usage_load(s);
        s->usage_saved_ms = samkv_now_ms();
        st = samkv_queue_start(s, err);
    }
    return st;
}

enum samkv_status samkv_store_open(const struct samkv_store_options *o, struct samkv_store **out,
                                   struct samkv_error *err)
{
    *out = NULL;
    if (!o->path || !*o->path || !samkv_codec_is_known(o->codec) || o->zstd_level < 0 || o->zstd_level > 22)
        return samkv_fail(err, SAMKV_INVALID,
                          "a store needs a path, a codec that is known and a zstd level of 0 to 22");
    struct samkv_store *s = calloc(1, sizeof *s);
    if (!s || !(s->path = strdup(o->path))) {
        free(s);
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory while opening the store");
    }
    s->lock_fd = -1;
    s->direct_fd = -1;
    s->direct = o->direct;
    s->read_only = o->read_only;
    s->codec = o->codec;
    s->zstd_level = o->zstd_level;
    samkv_guard_install();
    s->evict = o->evict;
    s->quota_refuses = o->quota_refuses;
    s->now_s = o->now_s;
    s->now_arg = o->now_arg;
    samkv_scratch_pool_init(&s->scratch);
    samkv_ledger_init(&s->ledger);
    pthread_mutex_init(&s->reading.lock, NULL);
    samkv_held_pool_init(&s->rooms);
    samkv_queue_init(&s->queue);
    enum samkv_status st = SAMKV_OK;
    if (o->host_cache_bytes)
        st = samkv_host_cache_new(o->host_cache_bytes, &s->host_cache, err);
    if (st == SAMKV_OK)
        st = prepare(s, o, err);
    if (st != SAMKV_OK) {
        samkv_store_close(s);
        return st;
    }
    *out = s;
    return SAMKV_OK;
}

void samkv_store_close(struct samkv_store *s)
{
    if (!s)
        return;
    bool wrote = s->queue.started;
    struct samkv_error err = {0};
    samkv_queue_deinit(s);
    if (wrote && samkv_usage_save(s, &err) != SAMKV_OK)
        samkv_log(SAMKV_LOG_WARNING, "store: %s", err.text);
    if (s->env)
        mdb_env_close(s->env);
    if (s->direct_fd >= 0)
        close(s->direct_fd);
    if (s->lock_fd >= 0)
        close(s->lock_fd); /* the lock goes with it */
    samkv_scratch_pool_deinit(&s->scratch);
    samkv_held_pool_deinit(&s->rooms);
    samkv_host_cache_free(s->host_cache);
    samkv_ledger_deinit(&s->ledger);
    pthread_mutex_destroy(&s->reading.lock);
    free(s->path);
    free(s);
}

struct samkv_host_cache *samkv_store_host_cache(struct samkv_store *s)
{
    return s->host_cache;
}
