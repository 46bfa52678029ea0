#include "daemon/store/salvage.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "daemon/store/generation.h"
#include "daemon/store/leaves.h"
#include "daemon/store/mend.h"

#define PATH_BYTES   4096
#define COMMIT_BYTES ((size_t)32 << 20)
#define NAME_PREFIX  "salvaged/"

/* By kind of record; what is not here is not copied: the new store has a schema, and nothing pending. */
static bool db_of(uint8_t kind, enum samkv_db *out)
{
    static const enum samkv_db dbs[] = {
        [SAMKV_RECORD_COLLECTION] = SAMKV_DB_COLLECTION, [SAMKV_RECORD_NAME] = SAMKV_DB_NAME,
        [SAMKV_RECORD_DOCUMENT] = SAMKV_DB_DOCUMENT,     [SAMKV_RECORD_TOKENS] = SAMKV_DB_TOKENS,
        [SAMKV_RECORD_INDEX] = SAMKV_DB_INDEX,           [SAMKV_RECORD_BLOCK] = SAMKV_DB_BLOCK,
    };
    if (kind >= sizeof dbs / sizeof *dbs || dbs[kind] == SAMKV_DB_META)
        return false;
    *out = dbs[kind];
    return true;
}

enum samkv_status samkv_salvage_put(struct samkv_salvage *v, enum samkv_db db, struct samkv_bytes key,
                                    struct samkv_bytes record, struct samkv_error *err)
{
    enum samkv_status st = samkv_change_put(&v->change, db, key, record, err);
    v->uncommitted_bytes += record.size + 256;
    if (st != SAMKV_OK || v->uncommitted_bytes < COMMIT_BYTES)
        return st;
    v->uncommitted_bytes = 0;
    st = samkv_txn_commit(&v->change, err);
    return st == SAMKV_OK ? samkv_txn_begin(v->to, &v->change, err) : st;
}

/* ------------------------------------------------------------------ copying what is found */

static enum samkv_status on_record(void *arg, struct samkv_leaves *leaves, const struct samkv_leaf_record *r,
                                   bool *sound, struct samkv_error *err)
{
    struct samkv_salvage *v = arg;
    struct samkv_bytes value, there;
    struct samkv_record record;
    enum samkv_db db;
    uint8_t kind = r->head[5];
    if (memcmp(r->head, "SKR1", 4) != 0 || kind > SAMKV_RECORD_NOTE) {
        v->report->damaged++;
        *sound = r->alone;
        return SAMKV_OK;
    }
    if (!db_of(kind, &db))
        return SAMKV_OK;
    enum samkv_status st = samkv_db_get(v->to, v->change.txn, db, r->key, &there, err);
    if (st != SAMKV_NOT_FOUND) /* a newer one was found before */
        return st;
    st = samkv_leaves_read(leaves, r, &value);
    if (st == SAMKV_OK)
        st = samkv_record_open(value, (enum samkv_record_kind)kind, r->key, &record);
    if (st == SAMKV_CORRUPT) {
        /* An older copy of a small record is worth looking for; a block or an index is recomputed. */
        v->report->damaged++;
        *sound = db == SAMKV_DB_BLOCK || db == SAMKV_DB_INDEX;
        return SAMKV_OK;
    }
    if (st != SAMKV_OK)
        return samkv_fail(err, st, "out of memory while salvaging");
    v->report->records++;
    return samkv_salvage_put(v, db, r->key, value, err);
}

/* ------------------------------------------------------------------ the whole */

static enum samkv_status check_empty(const char *path, struct samkv_error *err)
{
    DIR *dir = opendir(path);
    if (!dir)
        return errno == ENOENT ? SAMKV_OK : samkv_fail_errno(err, errno, "%s", path);
    bool empty = true;
    for (struct dirent *e; empty && (e = readdir(dir));)
        empty = !strcmp(e->d_name, ".") || !strcmp(e->d_name, "..");
    closedir(dir);
    return empty ? SAMKV_OK
                 : samkv_fail(err, SAMKV_INVALID, "%s is not empty: name a directory to make the new store in", path);
}

/* The old store's lock, so that no daemon begins to write to it; -1 when it has none. */
static enum samkv_status take_lock(const char *from, int *fd, struct samkv_error *err)
{
    char path[PATH_BYTES];
    if (snprintf(path, sizeof path, "%s/samkv.lock", from) >= (int)sizeof path)
        return samkv_fail(err, SAMKV_INVALID, "the store's path is too long: choose a shorter one");
    *fd = open(path, O_RDONLY | O_CLOEXEC);
    if (*fd >= 0 && flock(*fd, LOCK_EX | LOCK_NB) != 0) {
        close(*fd);
        *fd = -1;
        return samkv_fail(err, SAMKV_BUSY, "a samkvd uses the store %s: stop it first", from);
    }
    return SAMKV_OK;
}

/* The data files of a store, the newest first: what both have is taken from that. */
static enum samkv_status open_leaves(const char *from, struct samkv_leaves *out[2], struct samkv_error *err)
{
    char path[SAMKV_PATH_BYTES];
    const struct samkv_store names = {.path = (char *)from}; /* only read */
    struct samkv_generations g;
    enum samkv_status st = samkv_generations_find(&names, &g, err);
    for (unsigned i = 0; st == SAMKV_OK && i < (g.count == 2 ? 2u : 1u); i++) {
        st = samkv_generation_path(&names, i ? g.old : g.newest, false, path, err);
        if (st == SAMKV_OK)
            st = samkv_leaves_open(path, &out[i], err);
    }
    return st;
}

static enum samkv_status copy(struct samkv_salvage *v, struct samkv_leaves *leaves[2], struct samkv_error *err)
{
    enum samkv_status st = samkv_txn_begin(v->to, &v->change, err);
    for (int i = 0; st == SAMKV_OK && i < 2 && leaves[i]; i++)
        st = samkv_leaves_each(leaves[i], on_record, v, err);
    if (st == SAMKV_OK)
        st = samkv_salvage_mend(v, err);
    if (st == SAMKV_OK)
        return samkv_txn_commit(&v->change, err);
    samkv_txn_abort(&v->change);
    return st;
}

enum samkv_status samkv_store_salvage(const char *from, const char *to, struct samkv_salvage_report *report,
                                      struct samkv_error *err)
{
    *report = (struct samkv_salvage_report){0};
    struct samkv_salvage v = {.report = report};
    struct samkv_store_options options = {.path = to, .codec = SAMKV_CODEC_ZSTD, .compact = SAMKV_COMPACT_OFF};
    struct samkv_leaves *leaves[2] = {NULL, NULL};
    int lock = -1;
    enum samkv_status st = check_empty(to, err);
    if (st == SAMKV_OK)
        st = take_lock(from, &lock, err);
    if (st == SAMKV_OK)
        st = open_leaves(from, leaves, err);
    if (st == SAMKV_OK)
        st = samkv_store_open(&options, &v.to, err);
    if (st == SAMKV_OK)
        st = copy(&v, leaves, err);
    samkv_store_close(v.to);
    samkv_leaves_close(leaves[0]);
    samkv_leaves_close(leaves[1]);
    if (lock >= 0)
        close(lock);
    return st;
}
