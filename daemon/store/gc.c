#include "daemon/store/store.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/store/change.h"
#include "daemon/store/expire.h"
#include "daemon/store/usage.h"

/*
 * Collecting garbage while the store serves: in steps of a transaction each, so that others' jobs go in between. What
 * an ingest has just written and not named yet is none: leftovers have to be a minute old.
 */

#define STEP_KEYS       64
#define GRACE_S         60
#define PENDING_AT_ONCE 4096

struct gc_job {
    struct samkv_job job; /* first: a pointer to it is one to this */
    struct samkv_gc_report *report;
    uint64_t count; /* of this step */
    bool more;
};

static enum samkv_status run_step(struct samkv_store *s, struct gc_job *gc,
                                  enum samkv_status (*apply)(struct samkv_change *, struct samkv_job *,
                                                             struct samkv_error *),
                                  struct samkv_error *err)
{
    gc->job = (struct samkv_job){.apply = apply};
    return samkv_queue_call(s, &gc->job, err);
}

static uint64_t stored_now(struct samkv_ledger *l)
{
    uint64_t sum = 0;
    pthread_mutex_lock(&l->lock);
    for (int i = 0; i < SAMKV_CODEC_COUNT; i++)
        sum += l->stored[i];
    pthread_mutex_unlock(&l->lock);
    return sum;
}

/* ------------------------------------------------------------------ the kinds of garbage */

static enum samkv_status apply_expire(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    struct gc_job *gc = (struct gc_job *)job;
    gc->count = 0;
    return samkv_expire_some(c, &gc->count, &gc->more, err);
}

/* Documents that no name and no preamble that can be read refers to. */
struct leftovers {
    int64_t before_unix_s;
    struct samkv_key keys[STEP_KEYS];
    size_t count;
};

static void look_at(void *arg, struct samkv_ledger_document *d)
{
    struct leftovers *left = arg;
    if (d->facts.present && !d->holdings && !d->preambles && d->facts.put_unix_s <= left->before_unix_s &&
        left->count < STEP_KEYS)
        left->keys[left->count++] = d->key;
}

static enum samkv_status apply_unreferenced(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    struct gc_job *gc = (struct gc_job *)job;
    struct samkv_ledger *l = &c->store->ledger;
    struct leftovers left = {.before_unix_s = samkv_store_now_s(c->store) - GRACE_S};
    enum samkv_status st = SAMKV_OK;
    pthread_mutex_lock(&l->lock);
    samkv_ledger_each(l, look_at, &left);
    pthread_mutex_unlock(&l->lock);
    gc->count = 0;
    for (size_t i = 0; st == SAMKV_OK && i < left.count; i++) {
        struct samkv_document d;
        st = samkv_change_get_document(c, &left.keys[i], &d, err);
        /* One that counts references which are not seen may have damaged ones: verify tells of those. */
        if (st == SAMKV_OK && d.references == 0) {
            st = samkv_change_hide(c, &left.keys[i], err);
            gc->count++;
        }
    }
    gc->more = st == SAMKV_OK && left.count == STEP_KEYS && gc->count > 0;
    c->broken = c->broken || st != SAMKV_OK;
    return st;
}

/* An id of a collection whose record is gone. */
static bool find_orphan(struct samkv_ledger *l, int64_t before_unix_s, char *collection, char *id)
{
    bool found = false;
    pthread_mutex_lock(&l->lock);
    for (const struct samkv_ledger_collection *c = NULL; !found && (c = samkv_ledger_next_collection(l, c));)
        for (const struct samkv_ledger_holding *h = c->terms.exists ? NULL : c->holdings; h && !found; h = h->beside)
            if (h->names->put_unix_s <= before_unix_s) {
                found = true;
                memcpy(collection, c->name, strlen(c->name) + 1);
                memcpy(id, h->names->id, strlen(h->names->id) + 1);
            }
    pthread_mutex_unlock(&l->lock);
    return found;
}

static enum samkv_status apply_orphans(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    struct gc_job *gc = (struct gc_job *)job;
    char collection[SAMKV_ID_MAX_BYTES + 1], id[SAMKV_ID_MAX_BYTES + 1];
    int64_t before = samkv_store_now_s(c->store) - GRACE_S;
    enum samkv_status st = SAMKV_OK;
    for (gc->count = 0;
         st == SAMKV_OK && gc->count < STEP_KEYS && find_orphan(&c->store->ledger, before, collection, id); gc->count++)
        st = samkv_change_remove_name(c, collection, id, err);
    gc->more = st == SAMKV_OK && gc->count == STEP_KEYS;
    c->broken = c->broken || st != SAMKV_OK;
    return st;
}

/* Records of documents that no writer and no removal is at. */
static enum samkv_status apply_pending(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    struct gc_job *gc = (struct gc_job *)job;
    MDB_cursor *cursor;
    MDB_val k, v;
    int rc = mdb_cursor_open(c->txn, c->store->dbi[SAMKV_DB_PENDING], &cursor);
    if (rc)
        return samkv_fail_lmdb(err, rc, "looking for unfinished documents");
    gc->count = 0;
    for (int i = 0; i < PENDING_AT_ONCE && (rc = mdb_cursor_get(cursor, &k, &v, MDB_NEXT)) == 0; i++) {
        struct samkv_key key;
        struct samkv_document d;
        if (k.mv_size != sizeof key.bytes)
            continue;
        memcpy(key.bytes, k.mv_data, sizeof key.bytes);
        if (samkv_change_get_document(c, &key, &d, NULL) == SAMKV_NOT_FOUND)
            gc->count += samkv_claim_abandoned(c->store, &key);
    }
    mdb_cursor_close(cursor);
    gc->more = false;
    return rc == 0 || rc == MDB_NOTFOUND ? SAMKV_OK : samkv_fail_lmdb(err, rc, "looking for unfinished documents");
}

/* ------------------------------------------------------------------ all of it */

static const struct {
    enum samkv_status (*apply)(struct samkv_change *, struct samkv_job *, struct samkv_error *);
    size_t count; /* of the report: what the steps' counts are added to */
} kinds[] = {
    {apply_expire, offsetof(struct samkv_gc_report, names_expired)},
    {apply_orphans, offsetof(struct samkv_gc_report, names_orphaned)},
    {apply_unreferenced, offsetof(struct samkv_gc_report, documents_unreferenced)},
    {apply_pending, offsetof(struct samkv_gc_report, documents_unfinished)},
};

enum samkv_status samkv_store_gc(struct samkv_store *s, struct samkv_gc_report *report,
                                 bool (*go_on)(void *arg, const struct samkv_gc_report *), void *arg,
                                 struct samkv_error *err)
{
    struct gc_job gc = {.report = report};
    *report = (struct samkv_gc_report){0};
    if (s->read_only)
        return samkv_fail(err, SAMKV_DENIED, "the store was opened for reading only");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        gc.more = true;
        while (gc.more) {
            uint64_t before = stored_now(&s->ledger);
            enum samkv_status st = run_step(s, &gc, kinds[i].apply, err);
            if (st != SAMKV_OK)
                return st;
            uint64_t after = stored_now(&s->ledger);
            *(uint64_t *)((char *)report + kinds[i].count) += gc.count;
            report->bytes_freed += gc.count && after < before ? before - after : 0;
            if (go_on && !go_on(arg, report))
                return samkv_fail(err, SAMKV_CANCELLED, "stopped by the caller");
        }
    }
    samkv_queue_wait_removals(s);
    return SAMKV_OK;
}
