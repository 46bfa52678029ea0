#include "daemon/store/environment.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/store/change.h"

/*
 * What an earlier process left: documents under way or half removed (pending), and whole documents that nothing
 * refers to (a preamble whose collection never came). All of it goes, in the same bounded steps as any removal.
 */

static enum samkv_status claim_for_removal(struct samkv_store *s, const struct samkv_key *key)
{
    struct samkv_claim *claim = calloc(1, sizeof *claim);
    if (!claim)
        return SAMKV_NO_MEMORY;
    /* No lock: the writer thread is not there yet. */
    *claim = (struct samkv_claim){.key = *key, .removing = true, .next = s->queue.claims};
    s->queue.claims = claim;
    return SAMKV_OK;
}

static enum samkv_status each_pending(struct samkv_change *c, MDB_cursor *cursor, struct samkv_error *err)
{
    MDB_val k, v;
    int rc;
    while ((rc = mdb_cursor_get(cursor, &k, &v, MDB_NEXT)) == 0) {
        struct samkv_key key;
        if (k.mv_size != sizeof key.bytes)
            return samkv_fail(err, SAMKV_CORRUPT, "the store in %s is damaged (pending): restore it or start a new one",
                              c->store->path);
        memcpy(key.bytes, k.mv_data, sizeof key.bytes);
        if (claim_for_removal(c->store, &key) != SAMKV_OK)
            return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory while opening the store");
    }
    return rc == MDB_NOTFOUND ? SAMKV_OK : samkv_fail_lmdb(err, rc, "looking for unfinished documents");
}

/* Keys of documents without references, in *out (heap). Damaged records are left for verify to tell of. */
static enum samkv_status find_unreferenced(struct samkv_change *c, MDB_cursor *cursor, struct samkv_key **out,
                                           size_t *count, struct samkv_error *err)
{
    MDB_val k, v;
    int rc;
    size_t capacity = 0;
    while ((rc = mdb_cursor_get(cursor, &k, &v, MDB_NEXT)) == 0) {
        struct samkv_key key;
        struct samkv_document d;
        if (k.mv_size != sizeof key.bytes)
            continue;
        memcpy(key.bytes, k.mv_data, sizeof key.bytes);
        if (samkv_document_open(samkv_val_bytes(&v), &key, &d) != SAMKV_OK || d.references)
            continue;
        if (*count == capacity) {
            struct samkv_key *more = realloc(*out, (capacity = 2 * capacity + 16) * sizeof *more);
            if (!more)
                return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory while opening the store");
            *out = more;
        }
        (*out)[(*count)++] = key;
    }
    return rc == MDB_NOTFOUND ? SAMKV_OK : samkv_fail_lmdb(err, rc, c->store->path);
}

static enum samkv_status read_leftovers(struct samkv_store *s, struct samkv_key **keys, size_t *count,
                                        struct samkv_error *err)
{
    struct samkv_change c = {.store = s};
    MDB_cursor *pending = NULL, *documents = NULL;
    int rc = mdb_txn_begin(s->now->env, NULL, MDB_RDONLY, &c.txn);
    if (rc)
        return samkv_fail_lmdb(err, rc, s->path);
    rc = mdb_cursor_open(c.txn, s->dbi[SAMKV_DB_PENDING], &pending);
    if (!rc)
        rc = mdb_cursor_open(c.txn, s->dbi[SAMKV_DB_DOCUMENT], &documents);
    enum samkv_status st = rc ? samkv_fail_lmdb(err, rc, s->path) : each_pending(&c, pending, err);
    if (st == SAMKV_OK)
        st = find_unreferenced(&c, documents, keys, count, err);
    if (pending)
        mdb_cursor_close(pending);
    if (documents)
        mdb_cursor_close(documents);
    mdb_txn_abort(c.txn);
    return st;
}

struct hide_job {
    struct samkv_job job; /* first: a pointer to it is one to this */
    struct samkv_key key;
};

static enum samkv_status apply_hide(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    return samkv_change_hide(c, &((struct hide_job *)job)->key, err);
}

enum samkv_status samkv_recover(struct samkv_store *s, struct samkv_error *err)
{
    struct samkv_key *keys = NULL;
    size_t count = 0;
    enum samkv_status st = read_leftovers(s, &keys, &count, err);
    for (size_t i = 0; st == SAMKV_OK && i < count; i++) {
        struct hide_job hide = {.job = {.apply = apply_hide}, .key = keys[i]};
        st = samkv_queue_run_now(s, &hide.job, err);
    }
    free(keys);
    if (st == SAMKV_OK)
        st = samkv_queue_drain_removals(s, err);
    if (st == SAMKV_FULL) {
        /* The store can be read; the writer thread tries again. */
        samkv_log(SAMKV_LOG_WARNING, "store: leftovers could not be removed yet: %s", err ? err->text : "full");
        st = SAMKV_OK;
    }
    return st;
}
