#include "daemon/store/expire.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/store/change.h"
#include "daemon/store/snapshot.h"
#include "daemon/store/usage.h"

#define STEP_NAMES    256
#define POLL_S        5
#define SAVE_EVERY_MS 30e3

int64_t samkv_store_now_s(const struct samkv_store *s)
{
    return s->now_s ? s->now_s(s->now_arg) : (int64_t)time(NULL);
}

static int64_t expiry(int64_t put_unix_s, bool pinned, uint64_t ttl_s)
{
    if (!ttl_s || pinned || put_unix_s <= 0)
        return 0;
    return ttl_s < (uint64_t)(INT64_MAX - put_unix_s) ? put_unix_s + (int64_t)ttl_s : INT64_MAX;
}

int64_t samkv_expire_time(const struct samkv_name *name, uint64_t ttl_s)
{
    return expiry(name->put_unix_s, name->pinned, ttl_s);
}

/* ------------------------------------------------------------------ removing */

struct expired_name {
    const char *collection; /* the ledger's; it stays while its names do, of which this is one */
    char id[SAMKV_ID_MAX_BYTES + 1];
};

struct sweep {
    int64_t now, next; /* next: the earliest time at which something that is there now expires */
    struct expired_name *names;
    size_t count;
};

static void look_at(struct sweep *sweep, const struct samkv_ledger_collection *c, const struct samkv_ledger_name *n)
{
    int64_t when = expiry(n->put_unix_s, n->pinned, c->terms.ttl_s);
    if (!when)
        return;
    if (when > sweep->now || sweep->count == STEP_NAMES) {
        sweep->next = when < sweep->next ? when : sweep->next;
        return;
    }
    struct expired_name *out = &sweep->names[sweep->count++];
    out->collection = c->name;
    memcpy(out->id, n->id, strlen(n->id) + 1);
}

static void look(struct samkv_ledger *l, struct sweep *sweep)
{
    sweep->next = INT64_MAX;
    pthread_mutex_lock(&l->lock);
    for (const struct samkv_ledger_collection *c = NULL; (c = samkv_ledger_next_collection(l, c));) {
        if (!c->terms.ttl_s)
            continue;
        /* What is put from now on does not expire before this. */
        int64_t fresh = expiry(sweep->now > 0 ? sweep->now : 1, false, c->terms.ttl_s);
        sweep->next = fresh < sweep->next ? fresh : sweep->next;
        for (const struct samkv_ledger_holding *h = c->holdings; h; h = h->beside)
            for (const struct samkv_ledger_name *n = h->names; n; n = n->beside)
                look_at(sweep, c, n);
    }
    pthread_mutex_unlock(&l->lock);
}

enum samkv_status samkv_expire_some(struct samkv_change *c, uint64_t *removed, bool *more, struct samkv_error *err)
{
    struct samkv_store *s = c->store;
    struct sweep sweep = {.now = samkv_store_now_s(s), .names = malloc(STEP_NAMES * sizeof *sweep.names)};
    enum samkv_status st = SAMKV_OK;
    if (!sweep.names) {
        c->broken = true;
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory while removing what has expired");
    }
    look(&s->ledger, &sweep);
    for (size_t i = 0; st == SAMKV_OK && i < sweep.count; i++) {
        char collection[SAMKV_ID_MAX_BYTES + 1]; /* the last name takes the ledger's copy with it */
        memcpy(collection, sweep.names[i].collection, strlen(sweep.names[i].collection) + 1);
        st = samkv_change_remove_name(c, collection, sweep.names[i].id, err);
    }
    free(sweep.names);
    if (st != SAMKV_OK) {
        c->broken = true;
        return st == SAMKV_NOT_FOUND
                   ? samkv_fail(err, SAMKV_CORRUPT, "a name that has expired is not there: restart the daemon")
                   : st;
    }
    c->expired += sweep.count;
    *removed += sweep.count;
    *more = sweep.next <= sweep.now;
    s->expire_next_s = sweep.next;
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ the writer thread's upkeep */

static enum samkv_status apply_expire(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    uint64_t removed = 0;
    bool more;
    (void)job;
    return samkv_expire_some(c, &removed, &more, err);
}

static void expire(struct samkv_store *s)
{
    struct samkv_error err = {0};
    struct samkv_job job = {.apply = apply_expire};
    if (samkv_queue_run_step(s, &job, &err) == SAMKV_OK)
        return;
    s->expire_next_s = samkv_store_now_s(s) + 60;
    samkv_log(SAMKV_LOG_WARNING, "store: removing expired names failed and will be tried again: %s", err.text);
}

static void save(struct samkv_store *s, double now_ms)
{
    struct samkv_error err = {0};
    s->usage_saved_ms = now_ms;
    if (samkv_usage_save(s, &err) != SAMKV_OK)
        samkv_log(SAMKV_LOG_WARNING, "store: %s", err.text);
}

void samkv_upkeep(struct samkv_store *s)
{
    double now_ms = samkv_now_ms();
    struct samkv_error err = {0};
    if (s->ledger.lost && samkv_ledger_load(s, &err) != SAMKV_OK) {
        s->ledger.lost = true;
        samkv_log(SAMKV_LOG_ERROR, "store: %s", err.text);
    }
    if (s->expire_next_s != INT64_MAX && samkv_store_now_s(s) >= s->expire_next_s)
        expire(s);
    if (now_ms - s->usage_saved_ms >= SAVE_EVERY_MS)
        save(s, now_ms);
}

int samkv_upkeep_wait_s(struct samkv_store *s)
{
    pthread_mutex_lock(&s->ledger.lock);
    bool used = s->ledger.used_since_saved;
    pthread_mutex_unlock(&s->ledger.lock);
    return used || s->expire_next_s != INT64_MAX ? POLL_S : -1;
}

/* ------------------------------------------------------------------ what readers see */

enum samkv_status samkv_snapshot_ttl(struct samkv_snapshot *snapshot, const char *collection, uint64_t *ttl_s,
                                     struct samkv_error *err)
{
    struct samkv_bytes key = {collection, strlen(collection)};
    struct samkv_held held = {0};
    struct samkv_collection c;
    *ttl_s = 0;
    enum samkv_status st = samkv_snapshot_get(snapshot, SAMKV_DB_COLLECTION, key, &held, err);
    if (st == SAMKV_OK && samkv_collection_open_bare(held.bytes, key, &c) == SAMKV_OK)
        *ttl_s = c.ttl_s;
    samkv_held_release(snapshot->store, &held);
    return st == SAMKV_NOT_FOUND ? SAMKV_OK : st; /* a damaged record is for who reads the collection itself */
}

bool samkv_snapshot_sees(const struct samkv_snapshot *snapshot, uint64_t ttl_s, struct samkv_name *name)
{
    name->expires_unix_s = samkv_expire_time(name, ttl_s);
    return !name->expires_unix_s || samkv_store_now_s(snapshot->store) < name->expires_unix_s;
}
