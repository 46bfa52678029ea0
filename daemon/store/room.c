#include "daemon/store/room.h"

#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

#include "daemon/store/snapshot.h"

#define FREE_DBI 0 /* LMDB's own: transaction → pages that it freed */

/* LMDB tells of readers in lines "pid thread transaction" (or "-" for one that rests). */
static int on_reader(const char *line, void *arg)
{
    int pid;
    size_t thread, transaction, *oldest = arg;
    if (sscanf(line, "%d %zx %zu", &pid, &thread, &transaction) == 3 && transaction < *oldest)
        *oldest = transaction;
    return 0;
}

static int sum_free(const struct samkv_store *s, MDB_txn *txn, size_t oldest, struct samkv_room *out)
{
    MDB_cursor *cursor;
    MDB_val k, v;
    int rc = mdb_cursor_open(txn, FREE_DBI, &cursor);
    if (rc)
        return rc;
    while ((rc = mdb_cursor_get(cursor, &k, &v, MDB_NEXT)) == 0) {
        size_t freed_by, pages;
        if (k.mv_size != sizeof freed_by || v.mv_size < sizeof pages)
            continue;
        memcpy(&freed_by, k.mv_data, sizeof freed_by);
        memcpy(&pages, v.mv_data, sizeof pages);
        *(freed_by >= oldest ? &out->held_bytes : &out->free_bytes) += pages * s->page_bytes;
    }
    mdb_cursor_close(cursor);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

struct measuring {
    struct samkv_snapshot *snapshot;
    struct samkv_room *out;
    struct samkv_error *err;
    enum samkv_status status;
};

static void measure(void *arg)
{
    struct measuring *m = arg;
    struct samkv_store *s = m->snapshot->store;
    MDB_txn *txn = m->snapshot->now.txn;
    size_t oldest = SIZE_MAX;
    mdb_reader_list(m->snapshot->now.env->env, on_reader, &oldest);
    if (oldest >= mdb_txn_id(txn)) /* only those who see what we see: nobody holds anything */
        oldest = SIZE_MAX;
    int rc = sum_free(s, txn, oldest, m->out);
    m->status = rc ? samkv_fail_lmdb(m->err, rc, "measuring the store")
                   : samkv_db_used_bytes(s, txn, &m->out->used_bytes, m->err);
}

enum samkv_status samkv_room_measure(struct samkv_store *s, struct samkv_room *out, struct samkv_error *err)
{
    struct statvfs disk;
    struct measuring m = {.out = out, .err = err};
    *out = (struct samkv_room){0};
    if (statvfs(s->path, &disk) == 0)
        out->disk_bytes = (uint64_t)disk.f_bavail * disk.f_frsize;
    enum samkv_status st = samkv_snapshot_begin(s, &m.snapshot, err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_snapshot_run(m.snapshot, measure, &m, err);
    samkv_snapshot_end(m.snapshot);
    return st == SAMKV_OK ? m.status : st;
}
