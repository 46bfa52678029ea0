#include "daemon/store/turn.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "daemon/store/generation.h"
#include "daemon/store/txn.h"

#define BATCH_RECORDS 65536 /* of a transaction: what it changes is kept in memory */
#define MORE_PAGES    256   /* of trees and free pages, which two files have twice */

/* The copy of one database of small records. */
struct copy {
    struct samkv_store *store;
    MDB_env *env;
    MDB_txn *from, *to;
    enum samkv_db db;
    enum samkv_status status;
    struct samkv_error *err;
};

static int append(struct copy *c, MDB_val *k, MDB_val *v, uint64_t number)
{
    if (number && number % BATCH_RECORDS == 0) {
        int rc = mdb_txn_commit(c->to);
        c->to = NULL;
        if (rc || (rc = mdb_txn_begin(c->env, NULL, 0, &c->to)))
            return rc;
    }
    return mdb_put(c->to, c->store->dbi[c->db], k, v, MDB_APPEND);
}

static void copy_database(void *arg)
{
    struct copy *c = arg;
    MDB_cursor *cursor;
    MDB_val k, v;
    int rc = mdb_cursor_open(c->from, c->store->dbi[c->db], &cursor);
    if (rc) {
        c->status = samkv_fail_lmdb(c->err, rc, "compacting");
        return;
    }
    rc = mdb_cursor_get(cursor, &k, &v, MDB_FIRST);
    for (uint64_t i = 0; rc == 0 && (rc = append(c, &k, &v, i)) == 0; i++)
        rc = mdb_cursor_get(cursor, &k, &v, MDB_NEXT);
    mdb_cursor_close(cursor);
    if (rc != MDB_NOTFOUND)
        c->status = samkv_fail_lmdb(c->err, samkv_db_write_code(c->store, rc), "compacting");
}

/* All databases, empty or copied, in the order that gives them the handles they have elsewhere. */
static enum samkv_status copy_small(struct samkv_change *from, MDB_env *env, struct samkv_error *err)
{
    struct copy c = {.store = from->store, .env = env, .from = from->txn, .err = err};
    int rc = mdb_txn_begin(env, NULL, 0, &c.to);
    if (rc)
        return samkv_fail_lmdb(err, rc, "compacting");
    enum samkv_status st = samkv_generation_create_databases(c.store, c.to, err);
    for (int db = 0; db < SAMKV_DB_COUNT && st == SAMKV_OK; db++) {
        c.db = (enum samkv_db)db;
        if (samkv_db_is_moved_later(c.db))
            continue;
        st = samkv_txn_run(from, copy_database, &c, err);
        st = st == SAMKV_OK ? c.status : st;
    }
    if (st != SAMKV_OK) {
        if (c.to)
            mdb_txn_abort(c.to);
        return st;
    }
    rc = mdb_txn_commit(c.to);
    if (!rc)
        rc = mdb_env_sync(env, 1);
    return rc ? samkv_fail_lmdb(err, samkv_db_write_code(c.store, rc), "compacting") : SAMKV_OK;
}

/* About what the copy takes. */
struct count {
    struct samkv_change *change;
    uint64_t pages;
    int rc;
};

static void count_small(void *arg)
{
    struct count *c = arg;
    for (int db = 0; db < SAMKV_DB_COUNT && c->rc == 0; db++) {
        MDB_stat stat;
        if (samkv_db_is_moved_later((enum samkv_db)db))
            continue;
        c->rc = mdb_stat(c->change->txn, c->change->store->dbi[db], &stat);
        if (c->rc == 0)
            c->pages += 2 * (stat.ms_branch_pages + stat.ms_leaf_pages) + stat.ms_overflow_pages;
    }
}

static enum samkv_status check_room(struct samkv_change *change, uint64_t bytes, struct samkv_error *err)
{
    struct count c = {.change = change, .pages = MORE_PAGES};
    enum samkv_status st = samkv_txn_run(change, count_small, &c, err);
    if (st != SAMKV_OK || c.rc)
        return st != SAMKV_OK ? st : samkv_fail_lmdb(err, c.rc, "compacting");
    bytes += c.pages * change->store->page_bytes;
    if (samkv_space_fits(change->store, bytes))
        return SAMKV_OK;
    return samkv_fail(err, SAMKV_FULL,
                      "compaction needs %llu MiB beside the data file within the store's limit and on the disk, and "
                      "snapshots of readers may hold some: try again, raise the limit or remove documents",
                      (unsigned long long)(bytes >> 20) + 1);
}

/* Files of the next generation that an earlier try left: this one was not moved, so they are nothing. */
static enum samkv_status clear_way(const char *under_way, const char *path, struct samkv_error *err)
{
    char lock[SAMKV_PATH_BYTES + 8];
    snprintf(lock, sizeof lock, "%s-lock", path);
    const char *leftovers[] = {under_way, path, lock};
    for (int i = 0; i < 3; i++)
        if (unlink(leftovers[i]) != 0 && errno != ENOENT)
            return samkv_fail_errno(err, errno, "removing %s", leftovers[i]);
    return SAMKV_OK;
}

/* The next generation's file, whole and under its name. */
static enum samkv_status make_file(struct samkv_store *s, struct samkv_change *from, uint64_t generation,
                                   struct samkv_error *err)
{
    char under_way[SAMKV_PATH_BYTES], path[SAMKV_PATH_BYTES];
    MDB_env *env;
    enum samkv_status st = samkv_generation_path(s, generation, true, under_way, err);
    if (st == SAMKV_OK)
        st = samkv_generation_path(s, generation, false, path, err);
    if (st == SAMKV_OK)
        st = clear_way(under_way, path, err);
    if (st == SAMKV_OK)
        st = samkv_generation_create(s, under_way, &env, err);
    if (st != SAMKV_OK)
        return st;
    st = copy_small(from, env, err);
    mdb_env_close(env);
    if (st == SAMKV_OK && rename(under_way, path) != 0)
        st = samkv_fail_errno(err, errno, "naming %s", path);
    if (st == SAMKV_OK)
        st = samkv_generations_sync(s, err);
    if (st != SAMKV_OK)
        unlink(under_way);
    return st;
}

static enum samkv_status open_next(struct samkv_store *s, uint64_t generation, struct samkv_environment **out,
                                   struct samkv_error *err)
{
    bool moved;
    enum samkv_status st = samkv_generation_open(s, generation, false, out, err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_generation_databases(s, *out, &moved, err);
    if (st != SAMKV_OK)
        samkv_environment_release(s, *out);
    return st;
}

/*
 * The mark in the file of before is what makes the turn. While it is being written the right to write is held, so what
 * was copied is all there is. When LMDB fails to commit, what is on disk decides at the next opening: this file marked,
 * and the next one is the store; not marked, and the next one is a leftover. LMDB lets nobody write to a file whose
 * meta page it could not write, so both have the same documents then.
 */
enum samkv_status samkv_turn(struct samkv_store *s, uint64_t bytes, struct samkv_error *err)
{
    struct samkv_change from;
    struct samkv_environment *next = NULL;
    uint64_t generation = s->now->generation + 1;
    enum samkv_status st = samkv_txn_begin(s, &from, err);
    if (st != SAMKV_OK)
        return st;
    st = check_room(&from, bytes, err);
    if (st == SAMKV_OK)
        st = make_file(s, &from, generation, err);
    if (st == SAMKV_OK)
        st = open_next(s, generation, &next, err);
    if (st != SAMKV_OK) {
        samkv_txn_abort(&from);
        return st;
    }
    st = samkv_txn_mark(&from, SAMKV_STORE_SCHEMA_MOVED, err);
    if (st != SAMKV_OK) {
        samkv_environment_release(s, next);
        return st;
    }
    atomic_store(&next->bytes_in_use, samkv_space_allocated(next));
    samkv_generations_publish(s, next, s->now);
    return SAMKV_OK;
}
