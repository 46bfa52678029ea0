#include "daemon/store/generation.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/store/guard.h"

#define MAX_READERS    1024
#define MAP_LEAST      ((uint64_t)256 << 20) /* a map is not halved below */
#define UNDER_WAY      ".new"
#define LOCK_SUFFIX    ".mdb-lock"
#define DATA_SUFFIX    ".mdb"
#define GENERATION_MAX ((uint64_t)1 << 53)

static const char *const db_names[SAMKV_DB_COUNT] = {
    [SAMKV_DB_META] = "meta",         [SAMKV_DB_COLLECTION] = "collection", [SAMKV_DB_NAME] = "name",
    [SAMKV_DB_DOCUMENT] = "document", [SAMKV_DB_TOKENS] = "tokens",         [SAMKV_DB_INDEX] = "index",
    [SAMKV_DB_BLOCK] = "block",       [SAMKV_DB_PENDING] = "pending",
};

static const struct samkv_bytes schema_key = {"schema", 6};

/* ------------------------------------------------------------------ names of files */

/* data.mdb, data.N.mdb and with other suffixes data.N.new, data.N.mdb-lock. */
static bool parse_name(const char *name, const char *suffix, uint64_t *generation)
{
    char *end;
    if (strcmp(name, "data.mdb") == 0 && strcmp(suffix, DATA_SUFFIX) == 0) {
        *generation = 0;
        return true;
    }
    if (strncmp(name, "data.", 5) != 0 || name[5] < '1' || name[5] > '9')
        return false;
    errno = 0;
    *generation = strtoull(name + 5, &end, 10);
    return errno == 0 && *generation <= GENERATION_MAX && strcmp(end, suffix) == 0;
}

static enum samkv_status note_generation(struct samkv_generations *g, uint64_t generation, const char *path,
                                         struct samkv_error *err)
{
    if (g->count == 2)
        return samkv_fail(err, SAMKV_CORRUPT,
                          "%s has more than two data files (data.mdb, data.N.mdb): keep the newest and the one before",
                          path);
    if (g->count++ == 0)
        g->newest = generation;
    else if (generation > g->newest)
        g->old = g->newest, g->newest = generation;
    else
        g->old = generation;
    return SAMKV_OK;
}

enum samkv_status samkv_generations_find(const struct samkv_store *s, struct samkv_generations *out,
                                         struct samkv_error *err)
{
    *out = (struct samkv_generations){0};
    DIR *dir = opendir(s->path);
    if (!dir)
        return errno == ENOENT ? SAMKV_OK : samkv_fail_errno(err, errno, "%s", s->path);
    enum samkv_status st = SAMKV_OK;
    uint64_t generation;
    for (struct dirent *e; st == SAMKV_OK && (e = readdir(dir));)
        if (parse_name(e->d_name, DATA_SUFFIX, &generation))
            st = note_generation(out, generation, s->path, err);
    closedir(dir);
    return st;
}

void samkv_generations_tidy(const struct samkv_store *s)
{
    DIR *dir = opendir(s->path);
    if (!dir)
        return;
    for (struct dirent *e; (e = readdir(dir));) {
        uint64_t generation;
        char data[64];
        bool leftover = parse_name(e->d_name, UNDER_WAY, &generation);
        if (parse_name(e->d_name, LOCK_SUFFIX, &generation)) {
            snprintf(data, sizeof data, "data.%llu" DATA_SUFFIX, (unsigned long long)generation);
            leftover = faccessat(dirfd(dir), data, F_OK, 0) != 0 && errno == ENOENT;
        }
        if (leftover && unlinkat(dirfd(dir), e->d_name, 0) != 0)
            samkv_log(SAMKV_LOG_WARNING, "store: cannot remove %s/%s: %s", s->path, e->d_name, strerror(errno));
    }
    closedir(dir);
}

enum samkv_status samkv_generation_path(const struct samkv_store *s, uint64_t generation, bool under_way,
                                        char out[SAMKV_PATH_BYTES], struct samkv_error *err)
{
    char number[32] = "";
    if (generation)
        snprintf(number, sizeof number, ".%llu", (unsigned long long)generation);
    int n = snprintf(out, SAMKV_PATH_BYTES, "%s/data%s%s", s->path, number, under_way ? UNDER_WAY : DATA_SUFFIX);
    if (n < 0 || n + (int)sizeof LOCK_SUFFIX >= SAMKV_PATH_BYTES)
        return samkv_fail(err, SAMKV_INVALID, "the store's path is too long: choose a shorter one");
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ opening */

/* LMDB's assertions are about what it reads from the file; outside a guarded section it aborts. */
static void on_lmdb_assertion(MDB_env *env, const char *text)
{
    (void)env, (void)text;
    samkv_guard_leave();
}

/* One try. The environment is closed again on failure: LMDB wants it so. */
static int open_mapped(const char *path, unsigned flags, uint64_t map_bytes, MDB_env **out)
{
    int rc = mdb_env_create(out);
    if (rc)
        return rc;
    mdb_env_set_assert(*out, on_lmdb_assertion);
    rc = mdb_env_set_maxdbs(*out, SAMKV_DB_COUNT);
    if (!rc)
        rc = mdb_env_set_maxreaders(*out, MAX_READERS);
    if (!rc)
        rc = mdb_env_set_mapsize(*out, map_bytes);
    if (!rc)
        rc = mdb_env_open(*out, path, flags | MDB_NOTLS | MDB_NORDAHEAD, 0600);
    if (rc) {
        mdb_env_close(*out);
        *out = NULL;
    }
    return rc;
}

static void environment_free(struct samkv_environment *e)
{
    if (e->env)
        mdb_env_close(e->env);
    if (e->direct_fd >= 0)
        close(e->direct_fd);
    free(e->path);
    free(e);
}

/* What is known without a transaction. */
static enum samkv_status describe(struct samkv_store *s, struct samkv_environment *e, struct samkv_error *err)
{
    MDB_stat stat;
    MDB_envinfo info;
    int cleared, rc = mdb_reader_check(e->env, &cleared);
    if (!rc)
        rc = mdb_env_get_fd(e->env, &e->fd);
    if (!rc)
        rc = mdb_env_stat(e->env, &stat);
    if (!rc)
        rc = mdb_env_info(e->env, &info);
    if (rc)
        return samkv_fail_lmdb(err, rc, e->path);
    if (s->page_bytes && s->page_bytes != stat.ms_psize)
        return samkv_fail(err, SAMKV_UNSUPPORTED,
                          "%s has pages of %u bytes, which this machine does not make: ingest into a new store",
                          e->path, stat.ms_psize);
    if (!s->page_bytes) /* once: others read it */
        s->page_bytes = stat.ms_psize;
    e->map_bytes = info.me_mapsize;
    return SAMKV_OK;
}

enum samkv_status samkv_generation_open(struct samkv_store *s, uint64_t generation, bool may_shrink,
                                        struct samkv_environment **out, struct samkv_error *err)
{
    char path[SAMKV_PATH_BYTES];
    enum samkv_status st = samkv_generation_path(s, generation, false, path, err);
    if (st != SAMKV_OK)
        return st;
    struct samkv_environment *e = calloc(1, sizeof *e);
    if (!e || !(e->path = strdup(path))) {
        free(e);
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory while opening the store");
    }
    e->references = 1;
    e->direct_fd = -1;
    e->generation = generation;
    unsigned flags = (s->read_only ? MDB_RDONLY : 0u) | (generation ? MDB_NOSUBDIR : 0u);
    uint64_t map_bytes = s->limit_bytes;
    int rc = open_mapped(generation ? path : s->path, flags, map_bytes, &e->env);
    /* Where addresses are limited (ulimit -v, small machines) a smaller map does too. */
    while (rc == ENOMEM && may_shrink && map_bytes > MAP_LEAST) {
        map_bytes = map_bytes / 2 / 65536 * 65536;
        rc = open_mapped(generation ? path : s->path, flags, map_bytes, &e->env);
    }
    st = rc ? samkv_fail_lmdb(err, rc, s->path) : describe(s, e, err);
    if (st != SAMKV_OK) {
        environment_free(e);
        return st;
    }
    *out = e;
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ databases */

enum samkv_status samkv_generation_write_schema(struct samkv_store *s, MDB_txn *txn, uint8_t schema,
                                                struct samkv_error *err)
{
    uint8_t record[SAMKV_RECORD_HEADER_BYTES + 1];
    struct samkv_record head = {.pieces = 1, .raw_bytes = 1, .payload_bytes = 1};
    record[SAMKV_RECORD_HEADER_BYTES] = schema;
    samkv_record_seal(record, SAMKV_RECORD_SCHEMA, schema_key, &head);
    MDB_val k = samkv_val(schema_key), v = {sizeof record, record};
    int rc = mdb_put(txn, s->dbi[SAMKV_DB_META], &k, &v, 0);
    return rc ? samkv_fail_lmdb(err, rc, "writing the schema") : SAMKV_OK;
}

static enum samkv_status read_schema(const struct samkv_store *s, MDB_txn *txn, uint8_t *out, struct samkv_error *err)
{
    struct samkv_bytes value;
    struct samkv_record r;
    enum samkv_status st = samkv_db_get(s, txn, SAMKV_DB_META, schema_key, &value, err);
    if (st == SAMKV_NOT_FOUND)
        return samkv_fail(err, SAMKV_MISMATCH, "%s holds no store of samkvd: name another directory", s->path);
    if (st != SAMKV_OK)
        return st;
    if (samkv_record_open(value, SAMKV_RECORD_SCHEMA, schema_key, &r) != SAMKV_OK || r.payload_bytes != 1)
        return samkv_fail(err, SAMKV_CORRUPT, "the store in %s is damaged (schema): restore it or start a new one",
                          s->path);
    *out = r.payload[0];
    return SAMKV_OK;
}

bool samkv_generation_is_moved(const struct samkv_store *s, MDB_txn *txn)
{
    uint8_t schema = 0;
    return read_schema(s, txn, &schema, NULL) == SAMKV_OK && schema == SAMKV_STORE_SCHEMA_MOVED;
}

/*
 * Writes the schema into an empty file, or checks the one that is there. An older one becomes today's with this note
 * alone: its records say by themselves which form they have, and are written anew when they change. A daemon of before
 * then refuses the store instead of taking new forms for damage.
 */
static enum samkv_status check_schema(struct samkv_store *s, MDB_txn *txn, bool empty, bool *moved,
                                      struct samkv_error *err)
{
    uint8_t schema = 0;
    if (empty)
        return samkv_generation_write_schema(s, txn, SAMKV_STORE_SCHEMA, err);
    enum samkv_status st = read_schema(s, txn, &schema, err);
    if (st != SAMKV_OK)
        return st;
    *moved = schema == SAMKV_STORE_SCHEMA_MOVED;
    if (*moved || schema == SAMKV_STORE_SCHEMA)
        return SAMKV_OK;
    if (schema >= SAMKV_STORE_SCHEMA_OLDEST && schema < SAMKV_STORE_SCHEMA)
        return s->read_only ? SAMKV_OK : samkv_generation_write_schema(s, txn, SAMKV_STORE_SCHEMA, err);
    return samkv_fail(err, SAMKV_MISMATCH,
                      "the store in %s has schema %u, this samkvd knows %u: use the samkvd that made it, or ingest "
                      "into a new directory",
                      s->path, schema, SAMKV_STORE_SCHEMA);
}

/* Handles are given out in order of opening, so they are the same in every environment. */
static enum samkv_status open_handles(struct samkv_store *s, MDB_txn *txn, bool create, struct samkv_error *err)
{
    for (int i = 0; i < SAMKV_DB_COUNT; i++) {
        MDB_dbi dbi;
        int rc = mdb_dbi_open(txn, db_names[i], create ? MDB_CREATE : 0, &dbi);
        if (rc == MDB_NOTFOUND)
            return samkv_fail(err, SAMKV_MISMATCH, "%s holds no store of samkvd: name another directory", s->path);
        if (rc)
            return samkv_fail_lmdb(err, rc, s->path);
        if (s->dbi[i] && s->dbi[i] != dbi)
            return samkv_fail(err, SAMKV_INTERNAL, "the databases of %s have other handles", s->path);
        if (!s->dbi[i]) /* once: others read it */
            s->dbi[i] = dbi;
    }
    return SAMKV_OK;
}

static enum samkv_status open_databases(struct samkv_store *s, MDB_txn *txn, bool *moved, struct samkv_error *err)
{
    MDB_stat stat;
    int rc = mdb_stat(txn, 1, &stat);
    if (rc)
        return samkv_fail_lmdb(err, rc, s->path);
    bool empty = stat.ms_entries == 0 && !s->read_only;
    enum samkv_status st = open_handles(s, txn, empty, err);
    return st == SAMKV_OK ? check_schema(s, txn, empty, moved, err) : st;
}

enum samkv_status samkv_generation_databases(struct samkv_store *s, struct samkv_environment *e, bool *moved,
                                             struct samkv_error *err)
{
    MDB_txn *txn;
    *moved = false;
    int rc = mdb_txn_begin(e->env, NULL, s->read_only ? MDB_RDONLY : 0, &txn);
    if (rc)
        return samkv_fail_lmdb(err, rc, s->path);
    enum samkv_status st = open_databases(s, txn, moved, err);
    if (st != SAMKV_OK) {
        mdb_txn_abort(txn);
        return st;
    }
    rc = mdb_txn_commit(txn);
    if (rc)
        return samkv_fail_lmdb(err, samkv_db_write_code(s, rc), s->path);
    return samkv_extent_locate(s, e, err);
}

enum samkv_status samkv_generation_create(struct samkv_store *s, const char *path, MDB_env **out,
                                          struct samkv_error *err)
{
    int rc = open_mapped(path, MDB_NOSUBDIR | MDB_NOLOCK | MDB_NOSYNC, s->limit_bytes, out);
    MDB_stat stat;
    if (!rc && (rc = mdb_env_stat(*out, &stat)) == 0 && stat.ms_psize == s->page_bytes)
        return SAMKV_OK;
    if (*out)
        mdb_env_close(*out);
    unlink(path);
    return rc ? samkv_fail_lmdb(err, rc, path)
              : samkv_fail(err, SAMKV_UNSUPPORTED,
                           "the data file of %s has pages of %zu bytes, which this machine does not make: it cannot be "
                           "compacted here",
                           s->path, s->page_bytes);
}

enum samkv_status samkv_generation_create_databases(struct samkv_store *s, MDB_txn *txn, struct samkv_error *err)
{
    return open_handles(s, txn, true, err);
}

enum samkv_status samkv_generations_sync(const struct samkv_store *s, struct samkv_error *err)
{
    int fd = open(s->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int failed = fd < 0 || fsync(fd) != 0 ? errno : 0;
    if (fd >= 0)
        close(fd);
    return failed ? samkv_fail_errno(err, failed, "writing the directory %s", s->path) : SAMKV_OK;
}

void samkv_generation_unlink(const struct samkv_store *s, const struct samkv_environment *e)
{
    char lock[SAMKV_PATH_BYTES + 16];
    struct samkv_error err = {0};
    snprintf(lock, sizeof lock, e->generation ? "%s-lock" : "%s/lock.mdb", e->generation ? e->path : s->path);
    const char *names[] = {e->path, lock};
    for (int i = 0; i < 2; i++)
        if (unlink(names[i]) != 0 && errno != ENOENT)
            samkv_log(SAMKV_LOG_WARNING, "store: cannot remove %s: %s", names[i], strerror(errno));
    if (samkv_generations_sync(s, &err) != SAMKV_OK)
        samkv_log(SAMKV_LOG_WARNING, "store: %s", err.text);
}

/* ------------------------------------------------------------------ references */

void samkv_environment_release(struct samkv_store *s, struct samkv_environment *e)
{
    if (!e)
        return;
    pthread_mutex_lock(&s->environments_lock);
    bool last = --e->references == 0;
    pthread_mutex_unlock(&s->environments_lock);
    if (last)
        environment_free(e);
}

void samkv_generations_publish(struct samkv_store *s, struct samkv_environment *now, struct samkv_environment *old)
{
    pthread_mutex_lock(&s->environments_lock);
    struct samkv_environment *was[2] = {s->now, s->old};
    if (now)
        now->references += now == was[0] || now == was[1];
    if (old)
        old->references += old == was[0] || old == was[1];
    s->now = now;
    s->old = old;
    pthread_mutex_unlock(&s->environments_lock);
    samkv_environment_release(s, was[0]);
    samkv_environment_release(s, was[1]);
}

void samkv_generation_mark_drained(struct samkv_store *s)
{
    pthread_mutex_lock(&s->environments_lock);
    s->old->drained = true;
    pthread_mutex_unlock(&s->environments_lock);
}

bool samkv_generation_is_unused(struct samkv_store *s)
{
    pthread_mutex_lock(&s->environments_lock);
    bool unused = s->old && s->old->references == 1;
    pthread_mutex_unlock(&s->environments_lock);
    return unused;
}
