#include "daemon/store/space.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/store/generation.h"
#include "daemon/store/guard.h"
#include "daemon/store/txn.h"

#define STEP_RUNS       256
#define STEP_PAGES      ((uint64_t)1 << 18) /* ids looked at in a step */
#define SHORT_RUN_PAGES 4u                  /* runs below are left: they cost a call each and cut the file up */
#define REST_MS         1000
#define REST_MAX_MS     64000
#define SLACK_LEAST     ((uint64_t)1 << 20)
#define SLACK_SHARE     8
#define DISK_RESERVE    ((uint64_t)8 << 20)

struct run {
    uint64_t first, pages;
};

/* What one look at the free list gathers. */
struct look {
    struct samkv_environment *env;
    MDB_txn *txn;
    uint64_t below; /* LMDB may use records with smaller ids */
    uint64_t last_page, ids_left;
    uint32_t run_pages;
    struct run runs[STEP_RUNS];
    size_t count;
    bool end;
    int rc;
};

uint64_t samkv_space_allocated(const struct samkv_environment *e)
{
    struct stat file;
    return e && fstat(e->fd, &file) == 0 ? (uint64_t)file.st_blocks * 512 : 0;
}

uint64_t samkv_space_allocated_all(const struct samkv_store *s)
{
    return samkv_space_allocated(s->now) + samkv_space_allocated(s->old);
}

uint64_t samkv_space_slack(const struct samkv_store *s, uint64_t used_bytes)
{
    uint64_t share = used_bytes / SLACK_SHARE, least = s->limit_bytes / 64;
    least = least < SLACK_LEAST ? least : SLACK_LEAST;
    return share > least ? share : least;
}

bool samkv_space_fits(const struct samkv_store *s, uint64_t bytes)
{
    struct statvfs disk;
    if (samkv_space_allocated_all(s) + bytes > s->limit_bytes)
        return false;
    return statvfs(s->path, &disk) != 0 || (uint64_t)disk.f_bavail * disk.f_frsize >= bytes + DISK_RESERVE;
}

uint64_t samkv_space_left(const struct samkv_store *s, uint64_t used_bytes)
{
    struct statvfs disk;
    uint64_t allocated = samkv_space_allocated_all(s);
    if (statvfs(s->path, &disk) != 0)
        return UINT64_MAX;
    allocated += (uint64_t)disk.f_bavail * disk.f_frsize;
    return allocated > used_bytes ? allocated - used_bytes : 0;
}

/* ------------------------------------------------------------------ what may be punched */

/* A line of mdb_reader_list for each reader: process, thread and transaction, which is - for one at rest. */
static int on_reader(const char *line, void *arg)
{
    uint64_t *oldest = arg;
    unsigned long long transaction;
    if (sscanf(line, "%*d %*x %llu", &transaction) == 1 && transaction < *oldest)
        *oldest = transaction;
    return 0;
}

static void note_run(struct look *l, uint64_t first, uint64_t pages)
{
    if (pages >= l->run_pages)
        l->runs[l->count++] = (struct run){first, pages};
}

/* Ids of one record from `at` on, which descend. Where the next look goes on; 0 when all were seen. A record that makes
 * no sense, or names a page that is not there, is left alone. */
static uint64_t gather_ids(struct look *l, const MDB_val *v, uint64_t at)
{
    const uint8_t *ids = v->mv_data;
    uint64_t count = 0, first = 0, pages = 0, before = UINT64_MAX;
    if (v->mv_size >= sizeof count)
        memcpy(&count, ids, sizeof count);
    if (count > v->mv_size / sizeof count - 1)
        return 0;
    uint64_t i = at ? at : 1;
    for (; i <= count && l->count < STEP_RUNS && l->ids_left; i++, l->ids_left--) {
        uint64_t id;
        memcpy(&id, ids + i * sizeof id, sizeof id);
        if (id < 2 || id > l->last_page || id >= before)
            return 0;
        before = id;
        if (pages && id + 1 == first) {
            first = id, pages++;
            continue;
        }
        if (pages)
            note_run(l, first, pages);
        first = id, pages = 1;
    }
    /* One that was not begun is for the next look, which sees the whole of it unless it began in this one. */
    if (pages && l->count < STEP_RUNS)
        note_run(l, first, pages);
    return i <= count ? i : 0;
}

/* Guarded: reads the free list in the map, from the last record that may be used to the first. */
static void gather(void *arg)
{
    struct look *l = arg;
    struct samkv_punching *p = &l->env->punching;
    MDB_cursor *cursor;
    uint64_t from = p->next_record && p->next_record < l->below ? p->next_record : l->below;
    MDB_val k = {sizeof from, &from}, v;
    if (!p->next_record)
        p->pass_below = l->below;
    l->rc = mdb_cursor_open(l->txn, 0, &cursor);
    if (l->rc)
        return;
    l->rc = mdb_cursor_get(cursor, &k, &v, MDB_SET_RANGE); /* the first that is not below */
    l->rc = mdb_cursor_get(cursor, &k, &v, l->rc == MDB_NOTFOUND ? MDB_LAST : MDB_PREV);
    while (l->rc == 0 && l->count < STEP_RUNS && l->ids_left) {
        uint64_t id;
        memcpy(&id, k.mv_data, sizeof id);
        if (id < p->floor) {
            l->rc = MDB_NOTFOUND;
            break;
        }
        bool same = p->next_place && id + 1 == p->next_record; /* as where the last look ended */
        p->next_place = gather_ids(l, &v, same ? p->next_place : 0);
        p->next_record = p->next_place ? id + 1 : id;
        if (!p->next_place)
            l->rc = mdb_cursor_get(cursor, &k, &v, MDB_PREV);
    }
    l->end = l->rc == MDB_NOTFOUND;
    l->rc = l->end ? 0 : l->rc;
    mdb_cursor_close(cursor);
}

/* ------------------------------------------------------------------ punching */

/* False when the file system cannot. */
static bool punch_run(struct samkv_environment *e, off_t from, off_t bytes)
{
    off_t data = lseek(e->fd, from, SEEK_DATA);
    if (data >= from + bytes || (data < 0 && errno == ENXIO))
        return true; /* it is a hole */
    if (fallocate(e->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from, bytes) == 0)
        return true;
    if (errno == EOPNOTSUPP || errno == ENOSYS || errno == EPERM) {
        e->punching.unsupported = true;
        samkv_log(SAMKV_LOG_WARNING,
                  "store: the file system of %s cannot punch holes: free pages are given back by compaction only",
                  e->path);
    } else {
        samkv_log(SAMKV_LOG_WARNING, "store: giving back space of %s: %s", e->path, strerror(errno));
    }
    return false;
}

static void punch_runs(struct samkv_store *s, struct look *l, uint64_t keep_bytes)
{
    for (size_t i = 0; i < l->count; i++) {
        uint64_t before = samkv_space_allocated(l->env);
        if (before <= keep_bytes)
            return;
        if (!punch_run(l->env, (off_t)(l->runs[i].first * s->page_bytes), (off_t)(l->runs[i].pages * s->page_bytes)))
            return;
        uint64_t after = samkv_space_allocated(l->env);
        atomic_fetch_add(&s->bytes_punched, before > after ? before - after : 0);
    }
}

/* With the right to write: nothing is taken from the free list meanwhile. */
static enum samkv_status look_and_punch(struct samkv_store *s, struct look *l, uint64_t keep_bytes,
                                        struct samkv_error *err)
{
    MDB_envinfo info;
    int rc = mdb_env_info(l->env->env, &info);
    if (!rc)
        rc = mdb_txn_begin(l->env->env, NULL, MDB_RDONLY, &l->txn); /* a writing one may not look at the free list */
    if (rc)
        return samkv_fail_lmdb(err, rc, "looking for free pages");
    l->last_page = info.me_last_pgno;
    l->below = info.me_last_txnid;
    int listed = mdb_reader_list(l->env->env, on_reader, &l->below);
    bool whole = listed >= 0 && samkv_guard_run(l->env->map, l->env->map_bytes, gather, l);
    mdb_txn_abort(l->txn);
    if (!whole || l->rc)
        return samkv_fail(err, SAMKV_IO, "the free list of %s cannot be read: check the disk", l->env->path);
    punch_runs(s, l, keep_bytes);
    return SAMKV_OK;
}

enum samkv_status samkv_space_punch(struct samkv_store *s, struct samkv_environment *e, uint64_t keep_bytes,
                                    bool every_page, bool *more, struct samkv_error *err)
{
    *more = false;
    if (e->punching.unsupported || samkv_space_allocated(e) <= keep_bytes)
        return SAMKV_OK;
    struct samkv_change c;
    struct look l = {.env = e, .ids_left = STEP_PAGES, .run_pages = every_page ? 1 : SHORT_RUN_PAGES};
    enum samkv_status st = samkv_txn_begin_in(s, e, &c, err);
    if (st != SAMKV_OK)
        return st;
    st = look_and_punch(s, &l, keep_bytes, err);
    samkv_txn_abort(&c);
    if (l.end) {
        e->punching.floor = every_page ? e->punching.pass_below : 0;
        e->punching.next_record = e->punching.next_place = 0;
    }
    *more = st == SAMKV_OK && !l.end && !e->punching.unsupported && samkv_space_allocated(e) > keep_bytes;
    return st;
}

bool samkv_space_relieve(struct samkv_store *s)
{
    struct samkv_environment *e = s->now;
    struct samkv_error ignored;
    struct statvfs disk;
    uint64_t before = samkv_space_allocated(e), keep = before > s->reserve_bytes ? before - s->reserve_bytes : 0;
    bool more = true;
    if (statvfs(s->path, &disk) != 0 || (uint64_t)disk.f_bavail * disk.f_frsize >= s->reserve_bytes)
        return false;
    e->punching.next_record = e->punching.next_place = e->punching.floor = 0; /* what comes first, LMDB takes last */
    while (more && samkv_space_punch(s, e, keep, true, &more, &ignored) == SAMKV_OK)
        ;
    e->punching.floor = 0; /* not every page was looked at */
    return samkv_space_allocated(e) < before;
}

/* A transaction that changes nothing: what the last one freed may be used after it. */
static enum samkv_status advance(struct samkv_store *s, struct samkv_error *err)
{
    struct samkv_change c;
    enum samkv_status st = samkv_txn_begin(s, &c, err);
    return st == SAMKV_OK ? samkv_txn_mark(&c, SAMKV_STORE_SCHEMA, err) : st;
}

void samkv_space_count(struct samkv_store *s, struct samkv_environment *e)
{
    struct samkv_change c;
    uint64_t used;
    if (samkv_txn_begin_in(s, e, &c, NULL) != SAMKV_OK)
        return;
    if (samkv_txn_used_bytes(&c, &used, NULL) == SAMKV_OK)
        atomic_store(&e->bytes_in_use, used);
    samkv_txn_abort(&c);
}

bool samkv_space_is_waiting(const struct samkv_store *s)
{
    uint64_t used = atomic_load(&s->now->bytes_in_use);
    return used && !s->now->punching.unsupported && samkv_space_allocated(s->now) > used + samkv_space_slack(s, used);
}

/* What is still too much was freed by the last transaction, is seen by readers, or is short runs: passes without a
 * success come seldom. */
static void end_pass(struct samkv_environment *e)
{
    struct samkv_punching *p = &e->punching;
    uint64_t allocated = samkv_space_allocated(e);
    p->rest_ms = allocated != p->allocated ? REST_MS : p->rest_ms < REST_MAX_MS ? 2 * p->rest_ms : REST_MAX_MS;
    p->allocated = allocated;
    p->floor = 0;
    p->short_runs = false;
    p->rest_until_ms = (int64_t)samkv_now_ms() + p->rest_ms;
}

bool samkv_space_tend(struct samkv_store *s)
{
    struct samkv_environment *e = s->now;
    struct samkv_error err = {0};
    uint64_t used = atomic_load(&e->bytes_in_use), slack = samkv_space_slack(s, used);
    bool more = false, in_pass = e->punching.next_record != 0;
    if (!used || e->punching.unsupported || samkv_space_allocated(e) <= used + (in_pass ? slack / 2 : slack))
        return false;
    if (!in_pass && samkv_now_ms() < (double)e->punching.rest_until_ms)
        return false;
    enum samkv_status st = samkv_space_punch(s, e, used + slack / 2, e->punching.short_runs, &more, &err);
    if (st != SAMKV_OK || more)
        return st == SAMKV_OK;
    bool long_only = !e->punching.short_runs;
    end_pass(e);
    if (samkv_space_allocated(e) <= used + slack)
        return false;
    if (long_only) { /* long ones were not enough */
        e->punching.short_runs = true;
        e->punching.rest_until_ms = 0;
        return true;
    }
    if (atomic_load(&s->commits) == e->advanced_at)
        return false;
    st = advance(s, &err);
    e->advanced_at = atomic_load(&s->commits);
    e->punching.rest_until_ms = 0;
    return st == SAMKV_OK;
}
