#include "daemon/store/environment.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/store/pages.h"

enum samkv_status samkv_fail_lmdb(struct samkv_error *err, int rc, const char *what)
{
    switch (rc) {
    case MDB_NOTFOUND:
        return SAMKV_NOT_FOUND;
    case MDB_MAP_FULL:
    case MDB_TXN_FULL:
    case MDB_CURSOR_FULL:
        return samkv_fail(err, SAMKV_FULL, "%s: the store has reached its limit: remove documents or raise the limit",
                          what);
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return samkv_fail(err, SAMKV_FULL, "%s: the disk is full: make room, or remove documents", what);
    case MDB_CORRUPTED:
    case MDB_PAGE_NOTFOUND:
    case MDB_INVALID:
        return samkv_fail(err, SAMKV_CORRUPT, "%s: the store's data file is damaged: restore it or start a new store",
                          what);
    case MDB_VERSION_MISMATCH:
    case MDB_INCOMPATIBLE:
        return samkv_fail(err, SAMKV_MISMATCH, "%s: the data file is of another version or not a store of samkvd",
                          what);
    case MDB_READERS_FULL:
        return samkv_fail(err, SAMKV_BUSY, "%s: too many readers at once: try again", what);
    case MDB_PANIC:
        return samkv_fail(err, SAMKV_IO, "%s: an earlier write failed half way: restart the daemon", what);
    case ENOMEM:
        return samkv_fail(err, SAMKV_NO_MEMORY, "%s: out of memory", what);
    case EACCES:
    case EPERM:
    case EROFS:
        return samkv_fail(err, SAMKV_DENIED, "%s: %s: check who owns the store's directory", what, strerror(rc));
    default:
        return samkv_fail(err, SAMKV_IO, "%s: %s", what, mdb_strerror(rc));
    }
}

int samkv_db_write_code(const struct samkv_store *s, int rc)
{
    struct statvfs disk;
    struct rlimit largest;
    struct stat file;
    if (rc != EIO || !s->now)
        return rc;
    if (statvfs(s->path, &disk) == 0 && (uint64_t)disk.f_bavail * disk.f_frsize < SAMKV_GROUP_MAX_BYTES)
        return ENOSPC;
    if (getrlimit(RLIMIT_FSIZE, &largest) == 0 && largest.rlim_cur != RLIM_INFINITY && fstat(s->now->fd, &file) == 0 &&
        (uint64_t)file.st_size + SAMKV_GROUP_MAX_BYTES >= largest.rlim_cur)
        return EFBIG;
    return rc;
}

enum samkv_status samkv_db_get(const struct samkv_store *s, MDB_txn *txn, enum samkv_db db, struct samkv_bytes key,
                               struct samkv_bytes *out, struct samkv_error *err)
{
    MDB_val k = samkv_val(key), v;
    int rc = mdb_get(txn, s->dbi[db], &k, &v);
    if (rc)
        return samkv_fail_lmdb(err, rc, "reading the store");
    *out = samkv_val_bytes(&v);
    return SAMKV_OK;
}

/* Whose map the address is in; NULL: in none. On the writer thread. */
static const struct samkv_environment *holder(const struct samkv_store *s, const void *at)
{
    const struct samkv_environment *environments[] = {s->now, s->old};
    for (int i = 0; i < 2; i++)
        if (environments[i] && (uintptr_t)at - (uintptr_t)environments[i]->map < environments[i]->map_bytes)
            return environments[i];
    return NULL;
}

/* Writes the head of a value's first page anew: all of it follows from where the value lies and how long its node says
 * it is. A page that cannot be read is written whole, so that nothing of it need be read. */
static bool mend_head(const struct samkv_store *s, const struct samkv_environment *e,
                      const struct samkv_page_header *head, bool readable)
{
    uint8_t *page = calloc(1, s->page_bytes);
    if (!page)
        return false;
    memcpy(page, head, sizeof *head);
    size_t bytes = readable ? sizeof *head : s->page_bytes;
    bool done = pwrite(e->fd, page, bytes, (off_t)(head->number * s->page_bytes)) == (ssize_t)bytes;
    free(page);
    samkv_log(SAMKV_LOG_WARNING, "store: page %llu of %s is damaged, its head was %s", (unsigned long long)head->number,
              e->path, done ? "written anew" : "not written anew");
    return done;
}

static uint32_t pages_of(const struct samkv_page_header *h)
{
    return (uint32_t)h->lower | (uint32_t)h->upper << 16;
}

bool samkv_db_value_is_sane(const struct samkv_store *s, const MDB_val *v)
{
    struct samkv_page_header h, right = {.flags = SAMKV_PAGE_IS_OVERFLOW};
    struct samkv_bytes value = samkv_val_bytes(v);
    uint64_t pages = (SAMKV_PAGE_HEADER_BYTES + v->mv_size - 1) / s->page_bytes + 1;
    const struct samkv_environment *e = holder(s, v->mv_data);
    if (!e) /* written in this transaction, and still in memory */
        return true;
    if (!samkv_extent_is(s, e, value))
        return v->mv_size < s->page_bytes;
    right.number = ((uintptr_t)v->mv_data - (uintptr_t)e->map) / s->page_bytes;
    right.lower = (uint16_t)pages;
    right.upper = (uint16_t)(pages >> 16);
    bool readable = samkv_extent_read_at(e, right.number * s->page_bytes, &h, sizeof h, NULL) == SAMKV_OK;
    if (readable &&
        h.number == right.number) /* a page that knows its place, and says otherwise: who lies is not known */
        return (h.flags & SAMKV_PAGE_IS_OVERFLOW) && pages_of(&h) == pages;
    return mend_head(s, e, &right, readable);
}

enum samkv_status samkv_db_used_bytes(const struct samkv_store *s, MDB_txn *txn, uint64_t *out, struct samkv_error *err)
{
    uint64_t pages = 2; /* the meta pages */
    /* LMDB numbers the free list 0 and the database of databases 1; ours follow. */
    for (int i = 0; i < SAMKV_DB_COUNT + 2; i++) {
        MDB_stat stat;
        int rc = mdb_stat(txn, i < 2 ? (MDB_dbi)i : s->dbi[i - 2], &stat);
        if (rc)
            return samkv_fail_lmdb(err, rc, "counting pages");
        pages += stat.ms_branch_pages + stat.ms_leaf_pages + stat.ms_overflow_pages;
    }
    *out = pages * s->page_bytes;
    return SAMKV_OK;
}
