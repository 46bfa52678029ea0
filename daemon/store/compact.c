#include "daemon/store/compact.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/store/generation.h"
#include "daemon/store/guard.h"
#include "daemon/store/turn.h"
#include "daemon/store/txn.h"

#define STEP_BYTES   ((uint64_t)16 << 20) /* or a sixteenth of the limit */
#define GIVE_UP      3 /* failures in a row, after which who asked is told; the compaction tries on */
#define STEP_RECORDS 2048
#define RETRY_MS     1000
#define RETRY_MAX_MS 8000
#define SETTLE_MS    1000
#define PAUSE_MAX_MS 250
#define ROOM_STEPS   8
/* Begin when the file is a quarter larger than what is in use (and a little more: an empty store has pages too). */
#define BEGIN_SHARE       4
#define BEGIN_LEAST       ((uint64_t)2 << 20)
#define RECORD_PAGES      3 /* of the tree, that one record more may take */
#define TRANSACTION_PAGES 16

static const enum samkv_db bulk[] = {SAMKV_DB_TOKENS, SAMKV_DB_INDEX, SAMKV_DB_BLOCK};
#define BULK_COUNT ((int)(sizeof bulk / sizeof *bulk))

/* ------------------------------------------------------------------ moving */

struct move {
    struct samkv_store *store;
    MDB_txn *from, *to;
    enum samkv_db db;
    uint64_t skip; /* records at the beginning that stay */
    uint64_t room_bytes, step_bytes;
    uint64_t records, bytes, unreadable;
    bool end;
    int rc;
};

uint64_t samkv_compact_cost(const struct samkv_store *s, uint64_t value_bytes)
{
    return (value_bytes / s->page_bytes + 2 + RECORD_PAGES) * s->page_bytes;
}

/* Copies a value into the place that LMDB gives for it. One that cannot be read is then garbage, which its checksum
 * tells: damage as before. */
static int put_value(struct move *m, MDB_val *k, const MDB_val *v)
{
    struct samkv_bytes value = samkv_val_bytes(v);
    MDB_val to = {v->mv_size, NULL};
    int rc = mdb_put(m->to, m->store->dbi[m->db], k, &to, MDB_NOOVERWRITE | MDB_RESERVE);
    if (rc == MDB_KEYEXIST)
        return 0; /* written anew since, or moved before a crash */
    if (rc)
        return rc;
    const struct samkv_environment *e = m->store->old;
    if (!samkv_extent_is(m->store, e, value))
        memcpy(to.mv_data, value.data, value.size);
    else if (samkv_extent_read_at(e, (uint64_t)((const uint8_t *)value.data - e->map), to.mv_data, value.size, NULL) !=
             SAMKV_OK)
        m->unreadable++;
    return 0;
}

static int to_beginning(const struct move *m, MDB_cursor *cursor, MDB_val *k, MDB_val *v)
{
    int rc = mdb_cursor_get(cursor, k, v, MDB_FIRST);
    for (uint64_t i = 0; rc == 0 && i < m->skip; i++)
        rc = mdb_cursor_get(cursor, k, v, MDB_NEXT);
    return rc;
}

/* Puts records into the new file, as many as a step takes; counts them. */
static void put_some(void *arg)
{
    struct move *m = arg;
    MDB_cursor *cursor;
    MDB_val k, v;
    m->rc = mdb_cursor_open(m->from, m->store->dbi[m->db], &cursor);
    if (m->rc)
        return;
    m->rc = to_beginning(m, cursor, &k, &v);
    while (m->rc == 0 && m->records < STEP_RECORDS && m->bytes < m->step_bytes) {
        if (!samkv_db_value_is_sane(m->store, &v)) { /* which pages are the record's is not known */
            if (m->records)
                break;
            m->skip++;
        } else if (m->bytes + samkv_compact_cost(m->store, v.mv_size) > m->room_bytes) {
            break;
        } else {
            if ((m->rc = put_value(m, &k, &v)))
                break;
            m->records++;
            m->bytes += samkv_compact_cost(m->store, v.mv_size);
        }
        m->rc = mdb_cursor_get(cursor, &k, &v, MDB_NEXT);
    }
    m->end = m->rc == MDB_NOTFOUND;
    m->rc = m->end ? 0 : m->rc;
    mdb_cursor_close(cursor);
}

static void delete_some(void *arg)
{
    struct move *m = arg;
    MDB_cursor *cursor;
    MDB_val k, v;
    m->rc = mdb_cursor_open(m->from, m->store->dbi[m->db], &cursor);
    if (m->rc)
        return;
    m->rc = to_beginning(m, cursor, &k, &v);
    for (uint64_t i = 0; m->rc == 0 && i < m->records; i++) {
        m->rc = mdb_cursor_del(cursor, 0);
        if (m->rc == 0 && i + 1 < m->records) /* after a deletion MDB_NEXT goes to the record that took its place */
            m->rc = mdb_cursor_get(cursor, &k, &v, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
}

/* In both transactions; the one of the new file ends. */
static enum samkv_status put_step(struct move *m, struct samkv_change *to, struct samkv_error *err)
{
    enum samkv_status st = samkv_txn_run(to, put_some, m, err);
    if (st == SAMKV_OK && m->rc)
        st = samkv_fail_lmdb(err, samkv_db_write_code(m->store, m->rc), "compacting");
    if (st != SAMKV_OK || !m->records) {
        samkv_txn_abort(to);
        return st;
    }
    uint64_t used;
    if (samkv_txn_used_bytes(to, &used, NULL) == SAMKV_OK)
        atomic_store(&m->store->now->bytes_in_use, used);
    return samkv_txn_commit(to, err);
}

/* Some of one database. m->end: there is no more of it. */
static enum samkv_status move_step(struct samkv_store *s, struct move *m, struct samkv_error *err)
{
    struct samkv_change from, to;
    enum samkv_status st = samkv_txn_begin_in(s, s->old, &from, err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_txn_begin(s, &to, err);
    if (st == SAMKV_OK) {
        m->from = from.txn;
        m->to = to.txn;
        st = put_step(m, &to, err);
    }
    if (st == SAMKV_OK && m->records) {
        st = samkv_txn_run(&from, delete_some, m, err);
        if (st == SAMKV_OK && m->rc)
            st = samkv_fail_lmdb(err, m->rc, "compacting");
        if (st == SAMKV_OK)
            return samkv_txn_commit(&from, err);
    }
    samkv_txn_abort(&from);
    return st;
}

/* ------------------------------------------------------------------ the drain */

static void tell(struct samkv_store *s, enum samkv_status st, const struct samkv_error *err)
{
    pthread_mutex_lock(&s->queue.lock);
    s->compaction.done = s->compaction.asked;
    s->compaction.status = st;
    if (err)
        s->compaction.error = *err;
    pthread_cond_broadcast(&s->queue.changed);
    pthread_mutex_unlock(&s->queue.lock);
}

/* Tries again later; the log has it once. */
static void wait_over(struct samkv_store *s, const struct samkv_error *err)
{
    struct samkv_compaction *c = &s->compaction;
    c->retry_ms = !c->complained ? RETRY_MS : c->retry_ms < RETRY_MAX_MS ? 2 * c->retry_ms : RETRY_MAX_MS;
    c->pause_until_ms = samkv_now_ms() + c->retry_ms;
    if (!c->complained)
        samkv_log(SAMKV_LOG_WARNING, "store: compaction waits: %s", err->text);
    c->complained = true;
}

/* All that can be had from a file. */
static enum samkv_status punch_all(struct samkv_store *s, struct samkv_environment *e, struct samkv_error *err)
{
    bool more = true;
    enum samkv_status st = SAMKV_OK;
    while (st == SAMKV_OK && more)
        st = samkv_space_punch(s, e, atomic_load(&e->bytes_in_use), true, &more, err);
    return st;
}

/* The same; what the last transaction freed may be given back after one more, which changes nothing. */
static enum samkv_status advance_and_punch(struct samkv_store *s, struct samkv_environment *e, struct samkv_error *err)
{
    struct samkv_change c;
    enum samkv_status st = samkv_txn_begin_in(s, e, &c, err);
    if (st == SAMKV_OK)
        st = samkv_txn_mark(&c, e == s->old ? SAMKV_STORE_SCHEMA_MOVED : SAMKV_STORE_SCHEMA, err);
    samkv_space_count(s, e);
    return st == SAMKV_OK ? punch_all(s, e, err) : st;
}

static uint64_t step_bytes(const struct samkv_store *s)
{
    return s->limit_bytes / 16 < STEP_BYTES ? s->limit_bytes / 16 : STEP_BYTES;
}

static uint64_t room_left(const struct samkv_store *s)
{
    /* Removing needs some too. */
    uint64_t taken = samkv_space_allocated_all(s) + TRANSACTION_PAGES * s->page_bytes + s->reserve_bytes / 4;
    return taken < s->limit_bytes ? s->limit_bytes - taken : 0;
}

/* What a step has freed; what stays allocated counts, so failures need no look. With little room, all there is. */
static void give_back(struct samkv_store *s)
{
    struct samkv_error ignored;
    bool tight = room_left(s) < 2 * step_bytes(s);
    samkv_space_count(s, s->old);
    enum samkv_status st = tight ? advance_and_punch(s, s->old, &ignored) : punch_all(s, s->old, &ignored);
    if (tight && st == SAMKV_OK)
        st = advance_and_punch(s, s->now, &ignored);
    (void)st;
}

static enum samkv_status drain_step(struct samkv_store *s, struct samkv_error *err)
{
    struct samkv_compaction *c = &s->compaction;
    struct move m = {.store = s,
                     .db = bulk[c->database],
                     .skip = c->left_behind,
                     .room_bytes = room_left(s),
                     .step_bytes = step_bytes(s)};
    enum samkv_status st = samkv_space_fits(s, TRANSACTION_PAGES * s->page_bytes)
                               ? move_step(s, &m, err)
                               : samkv_fail(err, SAMKV_FULL, "there is no room to move anything");
    if (st == SAMKV_OK && !m.records && !m.end)
        st = samkv_fail(err, SAMKV_FULL, "the limit leaves no room to move a record (readers may hold what was freed)");
    if (st == SAMKV_OK || st == SAMKV_FULL)
        give_back(s);
    if (st != SAMKV_OK)
        return st;
    if (m.unreadable || m.skip > c->left_behind)
        samkv_log(SAMKV_LOG_WARNING, "store: %llu records of %s could not be read and are not moved",
                  (unsigned long long)(m.unreadable + m.skip - c->left_behind), s->old->path);
    c->left_behind = m.skip;
    atomic_fetch_add(&s->bytes_moved, m.bytes);
    atomic_fetch_add(&s->bytes_moved_now, m.bytes);
    c->complained = false;
    c->failures = 0;
    if (m.end) {
        c->left_behind = 0;
        c->database++;
    }
    return SAMKV_OK;
}

/* The name goes now, the file when nobody reads it any longer. */
static void finish_drain(struct samkv_store *s)
{
    samkv_generation_mark_drained(s);
    samkv_generation_unlink(s, s->old);
    s->compaction.database = -1;
}

static void release_old(struct samkv_store *s)
{
    samkv_generations_publish(s, s->now, NULL);
    atomic_fetch_add(&s->compactions, 1);
    samkv_log(SAMKV_LOG_INFO, "store: compacted: %s has %llu MiB", s->now->path,
              (unsigned long long)(samkv_space_allocated(s->now) >> 20));
    tell(s, SAMKV_OK, NULL);
}

/* ------------------------------------------------------------------ when */

static uint64_t file_bytes(const struct samkv_environment *e)
{
    struct stat file;
    return fstat(e->fd, &file) == 0 ? (uint64_t)file.st_size : 0;
}

static bool is_asked(struct samkv_store *s)
{
    pthread_mutex_lock(&s->queue.lock);
    bool asked = s->compaction.done != s->compaction.asked;
    pthread_mutex_unlock(&s->queue.lock);
    return asked;
}

static bool is_time(struct samkv_store *s)
{
    uint64_t used = atomic_load(&s->now->bytes_in_use);
    double now_ms = samkv_now_ms();
    if (is_asked(s))
        return true;
    if (s->compact != SAMKV_COMPACT_AUTO || !used || samkv_queue_is_removing(s) ||
        file_bytes(s->now) <= used + used / BEGIN_SHARE + BEGIN_LEAST) {
        s->compaction.large_since_ms = 0;
        return false;
    }
    /* Who has just removed much may be about to remove the rest, or to write as much again. */
    if (s->compaction.large_since_ms == 0)
        s->compaction.large_since_ms = now_ms;
    return now_ms - s->compaction.large_since_ms >= SETTLE_MS;
}

/* What is free in the file goes to the disk first: the copy needs it. */
static enum samkv_status begin(struct samkv_store *s, uint64_t bytes, struct samkv_error *err)
{
    enum samkv_status st = advance_and_punch(s, s->now, err);
    if (st == SAMKV_OK)
        st = samkv_turn(s, bytes, err);
    if (st != SAMKV_OK)
        return st;
    samkv_space_count(s, s->old);
    s->compaction.database = 0;
    s->compaction.large_since_ms = 0;
    s->compaction.left_behind = 0;
    atomic_store(&s->bytes_moved_now, 0);
    atomic_store(&s->bytes_to_move, atomic_load(&s->old->bytes_in_use));
    s->compaction.complained = false;
    return SAMKV_OK;
}

/* A step, and the pause after it. */
static void drain(struct samkv_store *s)
{
    struct samkv_error err = {0};
    double began_ms = samkv_now_ms();
    enum samkv_status st = drain_step(s, &err);
    if (st != SAMKV_OK) {
        wait_over(s, &err);
        if (++s->compaction.failures == GIVE_UP && is_asked(s))
            tell(s, st, &err);
        return;
    }
    if (s->compaction.database == BULK_COUNT) {
        finish_drain(s);
    } else if (atomic_load(&s->snapshots)) {
        double now_ms = samkv_now_ms(), took_ms = now_ms - began_ms;
        s->compaction.pause_until_ms = now_ms + (took_ms < PAUSE_MAX_MS ? took_ms : PAUSE_MAX_MS);
    }
}

/* While two files share the limit: what is free in both, and a few steps more of the old one's end. */
static bool make_room(struct samkv_store *s, uint64_t bytes)
{
    struct samkv_error ignored;
    for (int i = 0; i < ROOM_STEPS && !samkv_space_fits(s, bytes); i++) {
        if (s->compaction.database < 0) {
            if (samkv_generation_is_unused(s))
                release_old(s);
            break;
        }
        give_back(s);
        if (!samkv_space_fits(s, bytes) && drain_step(s, &ignored) == SAMKV_OK && s->compaction.database == BULK_COUNT)
            finish_drain(s);
    }
    return samkv_space_fits(s, bytes);
}

bool samkv_compact_for_room(struct samkv_store *s, uint64_t bytes)
{
    struct samkv_error err;
    uint64_t used = atomic_load(&s->now->bytes_in_use), need = samkv_compact_cost(s, bytes);
    if (s->old) /* unless something else was in the way */
        return !samkv_space_fits(s, 2 * need + TRANSACTION_PAGES * s->page_bytes) &&
               make_room(s, 2 * need + TRANSACTION_PAGES * s->page_bytes);
    if (s->compact == SAMKV_COMPACT_OFF || !used || used + bytes + s->reserve_bytes > s->limit_bytes)
        return false;
    enum samkv_status st = begin(s, need, &err);
    if (st != SAMKV_OK)
        samkv_log(SAMKV_LOG_DEBUG, "store: no compaction for room: %s", err.text);
    return st == SAMKV_OK;
}

bool samkv_compact_tend(struct samkv_store *s)
{
    struct samkv_compaction *c = &s->compaction;
    struct samkv_error err = {0};
    if (atomic_load(&s->queue.lost_page)) {
        if (is_asked(s))
            tell(s, SAMKV_IO,
                 &(struct samkv_error){.text = "a page of the store could not be read: restart the daemon"});
        return false;
    }
    if (s->old && c->database < 0) {
        if (samkv_generation_is_unused(s))
            release_old(s);
        return false;
    }
    if (samkv_now_ms() < c->pause_until_ms)
        return false;
    if (s->old) {
        drain(s);
        return true;
    }
    if (!is_time(s))
        return false;
    enum samkv_status st = begin(s, 0, &err);
    if (st == SAMKV_OK)
        return true;
    wait_over(s, &err);
    if (is_asked(s))
        tell(s, st, &err);
    return false;
}

bool samkv_compact_is_waiting(const struct samkv_store *s)
{
    return s->old || s->compaction.large_since_ms > 0 || s->compaction.pause_until_ms > samkv_now_ms();
}

/* ------------------------------------------------------------------ what jobs need of the old file */

enum samkv_status samkv_compact_remove_some(struct samkv_store *s, const struct samkv_key *key, bool *more,
                                            struct samkv_error *err)
{
    struct samkv_change c;
    *more = false;
    if (!s->old || s->compaction.database < 0)
        return SAMKV_OK;
    enum samkv_status st = samkv_txn_begin_in(s, s->old, &c, err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_txn_remove_some(&c, key, more, err);
    if (st == SAMKV_OK)
        return samkv_txn_commit(&c, err);
    samkv_txn_abort(&c);
    return st;
}

uint64_t samkv_compact_record_bytes(struct samkv_store *s, int database, const void *key, size_t key_bytes)
{
    MDB_txn *txn;
    MDB_val k = {key_bytes, (void *)key}, v; /* only read */
    if (!s->old || s->compaction.database < 0 || mdb_txn_begin(s->old->env, NULL, MDB_RDONLY, &txn) != 0)
        return 0;
    uint64_t bytes = mdb_get(txn, s->dbi[database], &k, &v) == 0 ? v.mv_size : 0;
    mdb_txn_abort(txn);
    return bytes;
}

/* ------------------------------------------------------------------ callers' side */

enum samkv_status samkv_store_compact(struct samkv_store *s,
                                      bool (*progress)(void *, const struct samkv_compact_report *), void *arg,
                                      struct samkv_error *err)
{
    if (s->read_only)
        return samkv_fail(err, SAMKV_DENIED, "the store was opened for reading only");
    pthread_mutex_lock(&s->queue.lock);
    uint64_t mine = ++s->compaction.asked;
    pthread_cond_signal(&s->queue.work);
    enum samkv_status st = SAMKV_OK;
    while (s->compaction.done < mine && st == SAMKV_OK) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 200000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&s->queue.changed, &s->queue.lock, &until);
        struct samkv_compact_report r = {.moved_bytes = atomic_load(&s->bytes_moved_now),
                                         .total_bytes = atomic_load(&s->bytes_to_move)};
        pthread_mutex_unlock(&s->queue.lock);
        if (progress && !progress(arg, &r))
            st = samkv_fail(err, SAMKV_CANCELLED, "stopped waiting: the compaction goes on");
        pthread_mutex_lock(&s->queue.lock);
    }
    if (st == SAMKV_OK && (st = s->compaction.status) != SAMKV_OK && err)
        *err = s->compaction.error;
    pthread_mutex_unlock(&s->queue.lock);
    return st;
}
