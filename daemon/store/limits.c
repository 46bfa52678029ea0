#include "daemon/store/store.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/store/account.h"
#include "daemon/store/change.h"
#include "daemon/store/evict.h"
#include "daemon/store/expire.h"

/* Pins, quotas and times to live, and the removal of whole collections. Each job lives on its caller's stack. */

#define STEP_NAMES 256

static enum samkv_status call(struct samkv_store *s, struct samkv_job *job, struct samkv_error *err)
{
    if (s->read_only)
        return samkv_fail(err, SAMKV_DENIED, "the store was opened for reading only");
    return samkv_queue_call(s, job, err);
}

/* Statuses after which the transaction may go on; all others may have changed something. */
static enum samkv_status settle(struct samkv_change *c, enum samkv_status st)
{
    c->broken = c->broken || (st != SAMKV_OK && st != SAMKV_NOT_FOUND);
    return st;
}

/* ------------------------------------------------------------------ pins */

struct pin_job {
    struct samkv_job job; /* first: a pointer to it is one to this */
    const char *collection, *id;
    bool pinned;
};

static uint64_t ttl_of(struct samkv_store *s, const char *collection)
{
    pthread_mutex_lock(&s->ledger.lock);
    const struct samkv_ledger_collection *c = samkv_ledger_find_collection(&s->ledger, collection);
    uint64_t ttl_s = c ? c->terms.ttl_s : 0;
    pthread_mutex_unlock(&s->ledger.lock);
    return ttl_s;
}

static enum samkv_status apply_pin(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    const struct pin_job *pin = (struct pin_job *)job;
    uint8_t buffer[SAMKV_NAME_KEY_MAX];
    struct samkv_bytes key = samkv_name_key(pin->collection, pin->id, buffer), value;
    struct samkv_name name;
    enum samkv_status st = samkv_db_get(c->store, c->txn, SAMKV_DB_NAME, key, &value, err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_name_open(value, key, true, &name);
    if (st != SAMKV_OK)
        return samkv_fail(err, st, "the name %s is damaged: ingest it again", pin->id);
    int64_t expires = samkv_expire_time(&name, ttl_of(c->store, pin->collection));
    if (expires && expires <= samkv_store_now_s(c->store))
        st = SAMKV_NOT_FOUND;
    else if (name.pinned != pin->pinned) {
        name.pinned = pin->pinned;
        st = settle(c, samkv_change_put_name(c, pin->collection, &name, err));
    }
    samkv_name_deinit(&name);
    return st;
}

enum samkv_status samkv_store_pin(struct samkv_store *s, const char *collection, const char *id, bool pinned,
                                  struct samkv_error *err)
{
    if (samkv_name_check(collection, id, NULL, NULL) != SAMKV_OK)
        return SAMKV_NOT_FOUND;
    struct pin_job pin = {.job = {.apply = apply_pin}, collection, id, pinned};
    return call(s, &pin.job, err);
}

/* ------------------------------------------------------------------ quotas and times to live */

struct configure_job {
    struct samkv_job job;
    const char *collection;
    const struct samkv_limits *limits;
    bool more;
};

static enum samkv_status apply_configure(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    const struct configure_job *set = (struct configure_job *)job;
    struct samkv_bytes key = {set->collection, strlen(set->collection)}, value;
    struct samkv_collection there;
    enum samkv_status st = samkv_db_get(c->store, c->txn, SAMKV_DB_COLLECTION, key, &value, err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_collection_open(value, key, &there);
    if (st != SAMKV_OK)
        return samkv_fail(err, st, "the record of collection %s is damaged: restore the store", set->collection);
    if (set->limits->set_quota)
        there.quota_bytes = set->limits->quota_bytes;
    if (set->limits->set_ttl)
        there.ttl_s = set->limits->ttl_s;
    if (set->limits->set_group)
        there.ownership.group = set->limits->group;
    if (set->limits->set_mode)
        there.ownership.mode = set->limits->mode;
    st = settle(c, samkv_change_put_collection(c, &there, err));
    samkv_collection_deinit(&there);
    return st;
}

static enum samkv_status apply_quota_step(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    struct configure_job *set = (struct configure_job *)job;
    set->more = false;
    return c->store->quota_refuses ? SAMKV_OK : samkv_evict_quota_step(c, set->collection, NULL, &set->more, err);
}

enum samkv_status samkv_store_configure(struct samkv_store *s, const char *collection,
                                        const struct samkv_limits *limits, struct samkv_error *err)
{
    if (samkv_id_check("collection's name", collection, NULL) != SAMKV_OK)
        return SAMKV_NOT_FOUND;
    struct configure_job set = {.job = {.apply = apply_configure}, collection, limits, true};
    enum samkv_status st = call(s, &set.job, err);
    while (st == SAMKV_OK && set.more) {
        set.job = (struct samkv_job){.apply = apply_quota_step};
        st = call(s, &set.job, err);
    }
    return st;
}

/* ------------------------------------------------------------------ a whole collection */

struct drop_job {
    struct samkv_job job;
    const char *collection;
    uint64_t *removed;
    bool *more;
};

/* Ids of the collection's first names, damaged ones too. */
static enum samkv_status first_ids(struct samkv_change *c, const char *collection, char (*ids)[SAMKV_ID_MAX_BYTES + 1],
                                   size_t *count, struct samkv_error *err)
{
    MDB_cursor *cursor;
    size_t prefix = strlen(collection) + 1;
    MDB_val k = {prefix, (void *)collection}, v;
    int rc = mdb_cursor_open(c->txn, c->store->dbi[SAMKV_DB_NAME], &cursor);
    if (rc)
        return samkv_fail_lmdb(err, rc, "listing names");
    rc = mdb_cursor_get(cursor, &k, &v, MDB_SET_RANGE);
    for (*count = 0; rc == 0 && *count < STEP_NAMES && k.mv_size > prefix && k.mv_size <= prefix + SAMKV_ID_MAX_BYTES &&
                     memcmp(k.mv_data, collection, prefix) == 0;
         rc = mdb_cursor_get(cursor, &k, &v, MDB_NEXT)) {
        size_t length = k.mv_size - prefix;
        memcpy(ids[*count], (const char *)k.mv_data + prefix, length);
        ids[(*count)++][length] = 0;
    }
    mdb_cursor_close(cursor);
    return rc == 0 || rc == MDB_NOTFOUND ? SAMKV_OK : samkv_fail_lmdb(err, rc, "listing names");
}

static enum samkv_status apply_drop(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    const struct drop_job *drop = (struct drop_job *)job;
    struct samkv_bytes key = {drop->collection, strlen(drop->collection)}, value;
    size_t count = 0;
    enum samkv_status st = samkv_db_get(c->store, c->txn, SAMKV_DB_COLLECTION, key, &value, err);
    if (st != SAMKV_OK)
        return st;
    char(*ids)[SAMKV_ID_MAX_BYTES + 1] = malloc(STEP_NAMES * sizeof *ids);
    st = ids ? first_ids(c, drop->collection, ids, &count, err) : samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (size_t i = 0; st == SAMKV_OK && i < count; i++)
        st = samkv_change_remove_name(c, drop->collection, ids[i], err);
    free(ids);
    *drop->more = count == STEP_NAMES;
    *drop->removed = count;
    if (st == SAMKV_OK && !*drop->more)
        st = samkv_change_remove_collection(c, drop->collection, err);
    return settle(c, st);
}

enum samkv_status samkv_store_collection_remove(struct samkv_store *s, const char *collection, uint64_t *removed,
                                                bool *more, struct samkv_error *err)
{
    uint64_t step = 0;
    *more = false;
    if (samkv_id_check("collection's name", collection, NULL) != SAMKV_OK)
        return SAMKV_NOT_FOUND;
    struct drop_job drop = {.job = {.apply = apply_drop}, collection, &step, more};
    enum samkv_status st = call(s, &drop.job, err);
    if (st == SAMKV_OK)
        *removed += step;
    return st;
}

/* ------------------------------------------------------------------ usage and figures */

void samkv_store_use(struct samkv_store *s, const struct samkv_key *key)
{
    if (s->read_only || !samkv_ledger_use(&s->ledger, key, samkv_store_now_s(s)))
        return;
    pthread_mutex_lock(&s->queue.lock); /* the writer thread may sleep without end: there is something to save now */
    pthread_cond_signal(&s->queue.work);
    pthread_mutex_unlock(&s->queue.lock);
}

void samkv_store_document_usage(struct samkv_store *s, const struct samkv_key *key, uint64_t *uses,
                                int64_t *used_unix_s)
{
    pthread_mutex_lock(&s->ledger.lock);
    const struct samkv_ledger_document *d = samkv_ledger_find_document(&s->ledger, key);
    *uses = d ? d->facts.usage.uses : 0;
    *used_unix_s = d ? d->facts.usage.used_unix_s : 0;
    pthread_mutex_unlock(&s->ledger.lock);
}

bool samkv_store_ownership(struct samkv_store *s, const char *collection, struct samkv_ownership *out)
{
    *out = (struct samkv_ownership){0};
    pthread_mutex_lock(&s->ledger.lock);
    const struct samkv_ledger_collection *c = samkv_ledger_find_collection(&s->ledger, collection);
    bool there = c && c->terms.exists;
    if (there)
        *out = c->terms.ownership;
    pthread_mutex_unlock(&s->ledger.lock);
    return there;
}

void samkv_store_account(struct samkv_store *s, uint32_t owner, struct samkv_account *out)
{
    *out = (struct samkv_account){.quota_bytes = samkv_user_quota(s, owner)};
    pthread_mutex_lock(&s->ledger.lock);
    const struct samkv_ledger_owner *o = samkv_ledger_find_owner(&s->ledger, owner);
    if (o) {
        out->collections = o->collections;
        out->names = o->names;
        out->bytes_stored = o->stored;
        out->bytes_charged = samkv_ledger_charge(o);
    }
    pthread_mutex_unlock(&s->ledger.lock);
}

void samkv_store_collection_stats(struct samkv_store *s, const char *collection, struct samkv_collection_stats *out)
{
    *out = (struct samkv_collection_stats){0};
    pthread_mutex_lock(&s->ledger.lock);
    const struct samkv_ledger_collection *c = samkv_ledger_find_collection(&s->ledger, collection);
    if (c)
        *out = (struct samkv_collection_stats){
            .documents = c->documents, .names = c->names, .bytes_raw = c->raw, .bytes_stored = c->stored};
    pthread_mutex_unlock(&s->ledger.lock);
}
