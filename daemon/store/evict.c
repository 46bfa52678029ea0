#include "daemon/store/evict.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/store/account.h"
#include "daemon/store/change.h"
#include "daemon/store/room.h"

#define STEP_DOCUMENTS 64
#define STEP_NAMES     1024
#define MAX_ROUNDS     256
#define MAX_COMPACTED  MAX_WAITS
#define MAX_BLIND      16 /* what else may be wrong is not cured by giving up documents */
#define WAIT_MS        10
#define MAX_WAITS      300
#define LOG_EVERY_MS   10e3
#define MIB(bytes)     ((double)(bytes) / (1 << 20))

/* ------------------------------------------------------------------ choosing */

/* What is to go; of the whole store, or (collection) of one collection's holdings. */
struct choice {
    const char *collection;       /* NULL: of the store */
    const struct samkv_key *keep; /* NULL: none */
    struct victim {
        struct samkv_key key;
        uint64_t bytes;
    } victims[STEP_DOCUMENTS];
    size_t count;
    uint64_t loose; /* bytes of all that could go */
};

static bool goes_before(const struct samkv_ledger_pick *a, const struct samkv_ledger_pick *b)
{
    return a->value != b->value ? a->value < b->value : a->recent_unix_s < b->recent_unix_s;
}

struct search {
    const struct samkv_ledger *ledger;
    struct samkv_ledger_pool *pool;
};

/* Keeps the pool's places for the least valuable. */
static void consider(struct search *search, const struct samkv_ledger_document *d)
{
    struct samkv_ledger_pool *pool = search->pool;
    const struct samkv_ledger_facts *f = &d->facts;
    struct samkv_ledger_pick pick = {.key = d->key,
                                     .value = samkv_ledger_value(search->ledger, f),
                                     .recent_unix_s =
                                         f->usage.used_unix_s > f->put_unix_s ? f->usage.used_unix_s : f->put_unix_s,
                                     .tick = f->usage.tick};
    size_t at = pool->count;
    if (at == SAMKV_LEDGER_POOL && !goes_before(&pick, &pool->picks[--at]))
        return;
    for (; at > 0 && goes_before(&pick, &pool->picks[at - 1]); at--)
        pool->picks[at] = pool->picks[at - 1];
    pool->picks[at] = pick;
    pool->count += pool->count < SAMKV_LEDGER_POOL;
}

static void consider_whole(void *arg, struct samkv_ledger_document *d)
{
    if (d->loose)
        consider(arg, d);
}

/* Looks at everything: what a pool is there to save. False: no memory. */
static bool fill_pool(struct samkv_ledger *l, const struct samkv_ledger_collection *c, struct samkv_ledger_pool **pool)
{
    if (!*pool && !(*pool = malloc(sizeof **pool)))
        return false;
    struct search search = {.ledger = l, .pool = *pool};
    (*pool)->count = (*pool)->next = 0;
    if (!c)
        samkv_ledger_each(l, consider_whole, &search);
    for (const struct samkv_ledger_holding *h = c ? c->holdings : NULL; h; h = h->beside)
        if (h->loose)
            consider(&search, h->document);
    return true;
}

/* What would be gained; 0: it must stay, or was used since it was picked. */
static uint64_t gain(const struct samkv_ledger *l, const struct choice *choice, const struct samkv_ledger_pick *pick)
{
    const struct samkv_ledger_document *d = samkv_ledger_find_document(l, &pick->key);
    if (!d || d->facts.usage.tick != pick->tick || (choice->keep && memcmp(&d->key, choice->keep, sizeof d->key) == 0))
        return 0;
    const struct samkv_ledger_holding *h = d->holdings;
    while (h && choice->collection && strcmp(h->collection->name, choice->collection) != 0)
        h = h->next;
    return choice->collection ? (h ? h->loose : 0) : d->loose;
}

/*
 * Takes from the pool until `want` bytes are chosen. False: it cannot say before. What came since it was filled is not
 * in it, and began with a weight of one: who was worth more than that then may be worth more than what has come.
 */
static bool take(const struct samkv_ledger *l, struct samkv_ledger_pool *pool, bool fresh, struct choice *choice,
                 uint64_t want, uint64_t *bytes)
{
    while (pool && *bytes < want && choice->count < STEP_DOCUMENTS && pool->next < pool->count) {
        const struct samkv_ledger_pick *pick = &pool->picks[pool->next];
        if (!fresh && pick->value > 1)
            break;
        pool->next++;
        uint64_t gains = gain(l, choice, pick);
        if (gains)
            choice->victims[choice->count++] = (struct victim){pick->key, gains};
        *bytes += gains;
    }
    return *bytes >= want || choice->count == STEP_DOCUMENTS;
}

static uint64_t loose_of(const struct samkv_ledger *l, const struct samkv_ledger_collection *c,
                         const struct samkv_key *keep)
{
    const struct samkv_ledger_document *kept = keep ? samkv_ledger_find_document(l, keep) : NULL;
    const struct samkv_ledger_holding *h = kept ? kept->holdings : NULL;
    if (!c)
        return l->loose - (kept ? kept->loose : 0);
    while (h && h->collection != c)
        h = h->next;
    return c->loose - (h ? h->loose : 0);
}

/* The least valuable documents of `want` bytes, or as many as one step takes. */
static void choose(struct samkv_ledger *l, uint64_t want, struct choice *choice)
{
    uint64_t bytes = 0;
    pthread_mutex_lock(&l->lock);
    struct samkv_ledger_collection *c = choice->collection ? samkv_ledger_find_collection(l, choice->collection) : NULL;
    choice->count = 0;
    choice->loose = choice->collection && !c ? 0 : loose_of(l, c, choice->keep);
    struct samkv_ledger_pool **pool = c ? &c->pool : &l->pool;
    if (choice->loose && want && !take(l, *pool, false, choice, want, &bytes) && fill_pool(l, c, pool)) {
        choice->count = 0; /* what was taken is in the new one again */
        bytes = 0;
        take(l, *pool, true, choice, want, &bytes);
    }
    pthread_mutex_unlock(&l->lock);
}

/* ------------------------------------------------------------------ removing */

struct name_copy {
    char collection[SAMKV_ID_MAX_BYTES + 1], id[SAMKV_ID_MAX_BYTES + 1];
};

/* Some name of a document, in that collection if it is not NULL. */
static bool find_name(struct samkv_ledger *l, const struct samkv_key *key, const char *collection,
                      struct name_copy *out)
{
    pthread_mutex_lock(&l->lock);
    const struct samkv_ledger_document *d = samkv_ledger_find_document(l, key);
    const struct samkv_ledger_holding *h = d ? d->holdings : NULL;
    while (h && collection && strcmp(h->collection->name, collection) != 0)
        h = h->next;
    if (h) {
        memcpy(out->collection, h->collection->name, strlen(h->collection->name) + 1);
        memcpy(out->id, h->names->id, strlen(h->names->id) + 1);
    }
    pthread_mutex_unlock(&l->lock);
    return h != NULL;
}

static void tell(struct samkv_change *c, const struct name_copy *last)
{
    struct samkv_store *s = c->store;
    double now = samkv_now_ms();
    if (now - s->evictions_told_ms < LOG_EVERY_MS)
        return;
    s->evictions_told_ms = now;
    samkv_log(SAMKV_LOG_INFO, "store: evicted documents=%llu bytes=%llu since start, last %s/%s",
              (unsigned long long)(atomic_load(&s->evictions) + c->evicted),
              (unsigned long long)(atomic_load(&s->evicted_bytes) + c->evicted_bytes), last->collection, last->id);
}

/* Takes the names of what was chosen, and with the last of them the document. *left: names that may still go. */
static enum samkv_status evict_chosen(struct samkv_change *c, const struct choice *choice, size_t *left,
                                      struct samkv_error *err)
{
    struct name_copy name = {0};
    for (size_t i = 0; i < choice->count && *left; i++) {
        const struct victim *v = &choice->victims[i];
        while (*left && find_name(&c->store->ledger, &v->key, choice->collection, &name)) {
            enum samkv_status st = samkv_change_remove_name(c, name.collection, name.id, err);
            if (st != SAMKV_OK) {
                c->broken = true;
                return st == SAMKV_NOT_FOUND
                           ? samkv_fail(err, SAMKV_CORRUPT, "a name that should go is not there: restart the daemon")
                           : st;
            }
            --*left;
        }
        c->evicted++;
        c->evicted_bytes += v->bytes;
    }
    if (choice->count)
        tell(c, &name);
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ the file's limit */

struct evict_job {
    struct samkv_job job; /* first: a pointer to it is one to this */
    const struct choice *choice;
};

static enum samkv_status apply_evict(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    size_t left = STEP_NAMES;
    return evict_chosen(c, ((struct evict_job *)job)->choice, &left, err);
}

static enum samkv_status apply_turn(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    (void)job;
    return samkv_change_touch(c, err);
}

/* LMDB writes to pages that the last transaction but one freed: once nothing is left to remove, one more has to pass.
 */
static void finish_removals(struct samkv_store *s)
{
    struct samkv_error ignored; /* it is in the log */
    struct samkv_job turn = {.apply = apply_turn};
    bool idle = false;
    while (!idle && samkv_queue_remove_next(s, &idle, &ignored) == SAMKV_OK)
        continue;
    enum samkv_status st = samkv_queue_run_step(s, &turn, &ignored);
    (void)st;
}

enum outcome { EVICTED, NOTHING_TO_EVICT, EVICTING_FAILED };

static enum outcome evict_some(struct samkv_store *s, uint64_t want)
{
    struct samkv_error err = {0};
    struct choice choice = {0};
    choose(&s->ledger, want, &choice);
    struct evict_job job = {.job = {.apply = apply_evict}, .choice = &choice};
    if (choice.count == 0 || choice.loose < want)
        return NOTHING_TO_EVICT; /* or all of it would not be enough: then nothing goes */
    enum samkv_status st = samkv_queue_run_step(s, &job.job, &err);
    if (st != SAMKV_OK)
        samkv_log(SAMKV_LOG_WARNING, "store: evicting failed: %s", err.text);
    finish_removals(s);
    return st == SAMKV_OK ? EVICTED : EVICTING_FAILED;
}

static uint64_t room_wanted(const struct samkv_store *s, size_t bytes)
{
    return bytes + bytes / 16 + 4 * s->page_bytes; /* the reserve pays for branches */
}

/* Bytes by which `used` is too much for that many more. */
static uint64_t lacking(const struct samkv_store *s, uint64_t used, uint64_t want)
{
    uint64_t needed = used + s->reserve_bytes + want;
    return needed > s->limit_bytes ? needed - s->limit_bytes : 0;
}

/* False: it was waited for long enough. */
static bool wait_for_readers(struct samkv_hunt *hunt)
{
    struct timespec pause = {.tv_nsec = WAIT_MS * 1000000};
    hunt->held = true;
    if (hunt->waits++ >= MAX_WAITS)
        return false;
    nanosleep(&pause, NULL);
    return true;
}

bool samkv_evict_find_room(struct samkv_store *s, size_t bytes, struct samkv_hunt *hunt)
{
    struct samkv_error ignored;
    struct samkv_room room;
    bool idle = true;
    if (hunt->rounds++ >= MAX_ROUNDS + MAX_WAITS)
        return false;
    if (samkv_queue_remove_next(s, &idle, &ignored) == SAMKV_OK && !idle)
        return true;
    if (hunt->compacted < (s->old ? MAX_COMPACTED : 1u) && samkv_compact_for_room(s, bytes)) {
        hunt->compacted++;
        return true;
    }
    if (!s->evict || samkv_room_measure(s, &room, &ignored) != SAMKV_OK)
        return false;
    uint64_t want = room_wanted(s, bytes),
             lacks = lacking(s, room.used_bytes + (s->old ? atomic_load(&s->old->bytes_in_use) : 0), want);
    bool held = room.held_bytes >= want / 2 && room.free_bytes < want;
    if (!lacks) {
        /* There is room by the count, so its pages are read by a snapshot, lie too scattered, or the disk is full. */
        if (held)
            return wait_for_readers(hunt);
        /* Of two files' free pages, some are not given back to the disk yet. */
        if (s->old && !samkv_space_fits(s, want) && hunt->waits < MAX_WAITS / 3)
            return wait_for_readers(hunt);
        if (hunt->blind++ >= MAX_BLIND)
            return false;
        lacks = want;
    }
    hunt->held = false;
    enum outcome outcome = evict_some(s, lacks);
    if (outcome == EVICTED && s->old) /* what two files have of it is room only once the disk has it back */
        hunt->compacted = false;
    return outcome == EVICTED || (outcome == EVICTING_FAILED && held && wait_for_readers(hunt));
}

void samkv_evict_ahead(struct samkv_store *s, size_t bytes)
{
    uint64_t want = room_wanted(s, bytes), lacks;
    for (int i = 0; s->evict && bytes && i < MAX_ROUNDS; i++) {
        lacks = lacking(s, atomic_load(&s->used_bytes), want);
        if (!lacks || evict_some(s, lacks) != EVICTED)
            return;
    }
}

/* ------------------------------------------------------------------ before a document is written */

/* The manifest as it may turn out, in percent of what is expected. */
static struct samkv_manifest foresee(struct samkv_store *s, const struct samkv_manifest *m, uint64_t percent)
{
    struct samkv_manifest likely = *m;
    uint64_t raw = (uint64_t)m->tokens * samkv_kv_token_bytes(&m->shape);
    likely.bytes_index = samkv_index_layout(m).bytes * (uint64_t)m->shape.layers;
    likely.bytes_stored = samkv_ledger_expect(&s->ledger, m->codec, raw) / 100 * percent;
    if (likely.bytes_stored < likely.bytes_index)
        likely.bytes_index = likely.bytes_stored;
    return likely;
}

#define AT_LEAST 90  /* what does not fit then is refused */
#define AT_MOST  110 /* what others are to leave room for */

void samkv_evict_give_back(struct samkv_store *s, uint64_t reserved)
{
    pthread_mutex_lock(&s->ledger.lock);
    s->ledger.writing -= reserved;
    pthread_mutex_unlock(&s->ledger.lock);
}

enum samkv_status samkv_evict_admit(struct samkv_store *s, const struct samkv_manifest *m, uint64_t *reserved,
                                    struct samkv_error *err)
{
    *reserved = 0;
    if (!s->evict)
        return SAMKV_OK;
    struct samkv_manifest least = foresee(s, m, AT_LEAST), largest = foresee(s, m, AT_MOST);
    uint64_t needs = samkv_ledger_footprint(&least, s->page_bytes), most = s->limit_bytes - s->reserve_bytes;
    uint64_t takes = samkv_ledger_footprint(&largest, s->page_bytes);
    pthread_mutex_lock(&s->ledger.lock);
    uint64_t fixed = s->ledger.footprint - s->ledger.loose, writing = s->ledger.writing;
    bool fits = fixed + needs <= most && (!writing || fixed + writing + takes <= most);
    if (fits)
        s->ledger.writing += *reserved = takes;
    pthread_mutex_unlock(&s->ledger.lock);
    if (fits)
        return SAMKV_OK;
    if (fixed + needs <= most)
        return samkv_fail(err, SAMKV_BUSY,
                          "documents that are being written take what the store has room for: try again");
    return samkv_fail(err, SAMKV_TOO_LARGE,
                      "the document needs some %.1f MiB of the store, whose limit leaves %.1f MiB beside pinned "
                      "documents and preambles: raise --store-max-bytes, unpin some, or split it",
                      MIB(needs), MIB(fixed < most ? most - fixed : 0));
}

enum samkv_status samkv_evict_admit_to(struct samkv_store *s, const char *collection, const struct samkv_manifest *m,
                                       struct samkv_error *err)
{
    struct samkv_ledger *l = &s->ledger;
    pthread_mutex_lock(&l->lock);
    const struct samkv_ledger_collection *c = samkv_ledger_find_collection(l, collection);
    uint64_t quota = c ? c->terms.quota_bytes : 0, fixed = c ? c->stored - (s->quota_refuses ? 0 : c->loose) : 0;
    pthread_mutex_unlock(&l->lock);
    uint64_t needs = foresee(s, m, AT_LEAST).bytes_stored;
    enum samkv_status st = samkv_account_admit(s, collection, needs, err);
    if (st != SAMKV_OK)
        return st;
    if (!quota || fixed + needs <= quota)
        return SAMKV_OK;
    return samkv_fail(err, s->quota_refuses ? SAMKV_FULL : SAMKV_TOO_LARGE,
                      "the document takes some %.1f MiB, and the quota of collection %s leaves %.1f MiB: raise it with "
                      "samkvctl set, or %s",
                      MIB(needs), collection, MIB(fixed < quota ? quota - fixed : 0),
                      s->quota_refuses ? "remove documents" : "unpin some");
}

/* ------------------------------------------------------------------ quotas */

/* Bytes above the quota. */
static uint64_t excess(struct samkv_ledger *l, const char *collection, uint64_t *quota)
{
    pthread_mutex_lock(&l->lock);
    const struct samkv_ledger_collection *c = samkv_ledger_find_collection(l, collection);
    *quota = c ? c->terms.quota_bytes : 0;
    uint64_t over = c && *quota && c->stored > *quota ? c->stored - *quota : 0;
    pthread_mutex_unlock(&l->lock);
    return over;
}

enum samkv_status samkv_evict_quota_step(struct samkv_change *c, const char *collection, const struct samkv_key *keep,
                                         bool *more, struct samkv_error *err)
{
    struct samkv_ledger *l = &c->store->ledger;
    struct choice choice = {.collection = collection, .keep = keep};
    size_t left = STEP_NAMES;
    uint64_t quota, over = excess(l, collection, &quota);
    *more = false;
    if (!over)
        return SAMKV_OK;
    choose(l, over, &choice);
    enum samkv_status st = evict_chosen(c, &choice, &left, err);
    *more = st == SAMKV_OK && choice.count && excess(l, collection, &quota);
    return st;
}

enum samkv_status samkv_evict_for_quota(struct samkv_change *c, const char *collection, const struct samkv_key *keep,
                                        struct samkv_error *err)
{
    struct samkv_ledger *l = &c->store->ledger;
    struct choice choice = {.collection = collection, .keep = keep};
    uint64_t quota, over = excess(l, collection, &quota);
    if (!over)
        return samkv_account_check(c, collection, err);
    if (c->store->quota_refuses) {
        c->broken = true;
        return samkv_fail(
            err, SAMKV_FULL,
            "collection %s has reached its quota of %.1f MiB: remove documents, or raise it with samkvctl "
            "set",
            collection, MIB(quota));
    }
    choose(l, 0, &choice);
    if (choice.loose < over) {
        c->broken = true;
        return samkv_fail(
            err, SAMKV_TOO_LARGE,
            "the document does not fit the quota of collection %s (%.1f MiB) beside what is pinned: raise "
            "it with samkvctl set, or unpin some",
            collection, MIB(quota));
    }
    enum samkv_status st = SAMKV_OK;
    for (bool more = true; st == SAMKV_OK && more;)
        st = samkv_evict_quota_step(c, collection, keep, &more, err);
    return st == SAMKV_OK ? samkv_account_check(c, collection, err) : st;
}
