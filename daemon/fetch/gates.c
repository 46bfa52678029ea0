#include "daemon/fetch/gates.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/base/thread.h"
#include "daemon/fetch/gate_note.h"
#include "daemon/fetch/reference.h"
#include "daemon/ingest/spec.h"

#define GATES_MAX     1024
#define WAITING_MAX   8
#define IDLE_POLL_MS  20
#define IDLE_LIMIT_MS 60e3

/* A gated collection. */
struct entry {
    char collection[SAMKV_GATE_NAME_SIZE];
    struct samkv_gate gate;
    double share;
    bool changed; /* since it was saved */
};

/* A fetch that is to be measured: a copy that owns what it points to. */
struct offer {
    struct samkv_fetch_request request;
    char *collection;
    char **ids;
    struct offer *next;
};

struct samkv_gates {
    struct samkv_gates_options options;
    pthread_mutex_t lock; /* of everything below */
    pthread_cond_t arrived;
    struct entry *entries; /* by name */
    size_t count;
    struct offer *first, **last;
    size_t waiting;
    uint64_t random, dropped;
    bool ending; /* also read by passes, atomically */
    pthread_t thread;
    bool started;
};

/* ------------------------------------------------------------------ entries; with the lock held */

static const char *name_of(const char *collection)
{
    return collection && *collection ? collection : SAMKV_DEFAULT_COLLECTION;
}

static struct entry *find(struct samkv_gates *g, const char *collection)
{
    for (size_t i = 0; i < g->count; i++)
        if (!strcmp(g->entries[i].collection, collection))
            return &g->entries[i];
    return NULL;
}

/* NULL without room. */
static struct entry *find_or_add(struct samkv_gates *g, const char *collection)
{
    struct entry *e = find(g, collection);
    if (e || g->count == GATES_MAX)
        return e;
    struct entry *more = realloc(g->entries, (g->count + 1) * sizeof *more);
    if (!more)
        return NULL;
    g->entries = more;
    size_t at = 0;
    while (at < g->count && strcmp(more[at].collection, collection) < 0)
        at++;
    memmove(more + at + 1, more + at, (g->count - at) * sizeof *more);
    more[at] = (struct entry){.share = SAMKV_GATE_SHARE};
    snprintf(more[at].collection, sizeof more[at].collection, "%s", collection);
    g->count++;
    return &more[at];
}

static void remove_entry(struct samkv_gates *g, struct entry *e)
{
    size_t at = (size_t)(e - g->entries);
    memmove(e, e + 1, (--g->count - at) * sizeof *e);
}

/* Saves a copy without the lock. A failure is told and leaves what is stored as it was. */
static void save(struct samkv_gates *g, const struct entry *e)
{
    struct samkv_error err;
    if (samkv_gate_save(g->options.store, e->collection, &e->gate, e->share, &err) != SAMKV_OK)
        samkv_log(SAMKV_LOG_WARNING, "quality: the gate of %s is not stored: %s", e->collection, err.text);
}

/* ------------------------------------------------------------------ offers */

static void offer_free(struct offer *o)
{
    if (!o)
        return;
    for (size_t i = 0; o->ids && i < o->request.id_count; i++)
        free(o->ids[i]);
    free(o->ids);
    free(o->collection);
    free((void *)o->request.query_text);
    free((void *)o->request.query_tokens);
    free((void *)o->request.stable_layers);
    free(o);
}

/* NULL for nothing, or without memory: *failed then. */
static void *copy_of(const void *data, size_t bytes, bool *failed)
{
    void *copy = data ? malloc(bytes + 1) : NULL;
    *failed = *failed || (data && !copy);
    if (copy)
        memcpy(copy, data, bytes);
    return copy;
}

static struct offer *offer_new(struct samkv_gates *g, const struct samkv_fetch_request *r)
{
    struct offer *o = calloc(1, sizeof *o);
    bool failed = !o;
    if (failed)
        return NULL;
    o->request = *r;
    o->request.trace = NULL;
    o->request.announce = NULL;
    o->request.placement = SAMKV_PLACE_HOST;
    o->request.deadline_at_ms = o->request.least_ratio = 0;
    o->request.full = false;
    o->request.with_query = o->request.unseen = true;
    o->request.urgency = SAMKV_RELAXED;
    o->request.cancelled = &g->ending;
    o->request.query_text = copy_of(r->query_text, r->query_bytes, &failed);
    o->request.query_tokens = copy_of(r->query_tokens, r->query_count * sizeof *r->query_tokens, &failed);
    o->request.stable_layers = copy_of(r->stable_layers, r->stable_count * sizeof *r->stable_layers, &failed);
    o->request.collection = o->collection = strdup(name_of(r->collection));
    o->ids = calloc(r->id_count + 1, sizeof *o->ids);
    failed = failed || !o->collection || !o->ids;
    for (size_t i = 0; i < r->id_count && !failed; i++)
        failed = !(o->ids[i] = strdup(r->ids[i]));
    o->request.ids = (const char *const *)o->ids;
    if (!failed)
        return o;
    offer_free(o);
    return NULL;
}

/* In [0, 1). */
static double next_share(struct samkv_gates *g)
{
    uint64_t z = (g->random += 0x9e3779b97f4a7c15u); /* splitmix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) / 9007199254740992.0;
}

void samkv_gates_offer(struct samkv_gates *g, const struct samkv_fetch_request *r)
{
    if (!g)
        return;
    pthread_mutex_lock(&g->lock);
    const struct entry *e = find(g, name_of(r->collection));
    bool chosen = e && e->gate.target.metric && next_share(g) < e->share;
    bool room = g->waiting < WAITING_MAX && !g->ending;
    g->dropped += chosen && !room;
    pthread_mutex_unlock(&g->lock);
    struct offer *o = chosen && room ? offer_new(g, r) : NULL;
    if (!o)
        return;
    pthread_mutex_lock(&g->lock);
    *g->last = o;
    g->last = &o->next;
    g->waiting++;
    pthread_cond_signal(&g->arrived);
    pthread_mutex_unlock(&g->lock);
}

void samkv_gates_apply(struct samkv_gates *g, struct samkv_fetch_request *r)
{
    if (!g)
        return;
    pthread_mutex_lock(&g->lock);
    const struct entry *e = find(g, name_of(r->collection));
    if (e && e->gate.target.metric) {
        r->least_ratio = samkv_gate_ratio(e->gate.level);
        r->full = samkv_gate_is_full(e->gate.level);
    }
    pthread_mutex_unlock(&g->lock);
}

/* ------------------------------------------------------------------ measuring, on the thread */

static bool is_ending(struct samkv_gates *g)
{
    return __atomic_load_n(&g->ending, __ATOMIC_RELAXED);
}

/* False: it is never idle, or the daemon ends. */
static bool wait_for_idle(struct samkv_gates *g)
{
    const struct timespec pause = {.tv_nsec = IDLE_POLL_MS * 1000000L};
    double until = samkv_now_ms() + IDLE_LIMIT_MS;
    while (!is_ending(g)) {
        if (g->options.idle(g->options.idle_arg))
            return true;
        if (samkv_now_ms() > until)
            return false;
        nanosleep(&pause, NULL);
    }
    return false;
}

/* What a measurement of `level` means for the gate, if it is still there and wants the same. */
static void observe(struct samkv_gates *g, const char *collection, uint32_t level, const struct samkv_closeness *close)
{
    struct entry copy;
    enum samkv_gate_move move = SAMKV_GATE_STAYS;
    pthread_mutex_lock(&g->lock);
    struct entry *e = find(g, collection);
    if (e) {
        move = samkv_gate_observe(&e->gate, level, close);
        e->changed = move == SAMKV_GATE_STAYS;
        copy = *e;
    }
    pthread_mutex_unlock(&g->lock);
    if (move == SAMKV_GATE_STAYS)
        return;
    save(g, &copy);
    samkv_log(SAMKV_LOG_INFO, "quality: collection=%s %s to level=%u ratio=%g%s", collection,
              move == SAMKV_GATE_RAISED ? "raised" : "lowered", copy.gate.level, samkv_gate_ratio(copy.gate.level),
              samkv_gate_is_full(copy.gate.level) ? " (everything is recomputed)" : "");
}

static enum samkv_status measure_level(struct samkv_gates *g, const struct offer *o,
                                       const struct samkv_reference *reference, uint32_t level)
{
    struct samkv_fetch_request request = o->request;
    struct samkv_compared compared;
    request.least_ratio = samkv_gate_ratio(level);
    if (!wait_for_idle(g))
        return SAMKV_BUSY;
    enum samkv_status status =
        samkv_reference_compare(g->options.models, g->options.store, &request, reference, &compared, NULL);
    if (!status)
        observe(g, o->collection, level, &compared.close);
    return status;
}

static enum samkv_status measure(struct samkv_gates *g, const struct offer *o)
{
    struct samkv_reference reference = {0};
    pthread_mutex_lock(&g->lock);
    const struct entry *e = find(g, o->collection);
    bool wanted = e && e->gate.target.metric;
    uint32_t level = wanted ? e->gate.level : 0;
    pthread_mutex_unlock(&g->lock);
    if (!wanted)
        return SAMKV_OK;
    if (!wait_for_idle(g))
        return SAMKV_BUSY;
    enum samkv_status status =
        samkv_reference_make(g->options.models, g->options.store, &o->request, NULL, &reference, NULL);
    /* The one below first: a move up because of the level in use would change which that is. */
    if (!status && level > 0)
        status = measure_level(g, o, &reference, level - 1);
    if (!status && !samkv_gate_is_full(level))
        status = measure_level(g, o, &reference, level);
    samkv_reference_deinit(&reference);
    return status;
}

static struct offer *take_offer(struct samkv_gates *g)
{
    pthread_mutex_lock(&g->lock);
    while (!g->first && !g->ending)
        pthread_cond_wait(&g->arrived, &g->lock);
    struct offer *o = g->ending ? NULL : g->first;
    if (o) {
        g->first = o->next;
        if (!g->first)
            g->last = &g->first;
        g->waiting--;
    }
    pthread_mutex_unlock(&g->lock);
    return o;
}

static void *gates_main(void *arg)
{
    struct samkv_gates *g = arg;
    struct offer *o;
    while ((o = take_offer(g))) {
        if (measure(g, o) != SAMKV_OK) {
            pthread_mutex_lock(&g->lock);
            g->dropped++;
            pthread_mutex_unlock(&g->lock);
        }
        offer_free(o);
    }
    return NULL;
}

/* ------------------------------------------------------------------ settings */

enum samkv_status samkv_gates_set(struct samkv_gates *g, const char *collection,
                                  const struct samkv_gate_setting *setting, struct samkv_error *err)
{
    struct entry copy;
    if (!g)
        return samkv_fail(err, SAMKV_UNSUPPORTED, "this daemon has no quality gates");
    pthread_mutex_lock(&g->lock);
    struct entry *e = find_or_add(g, name_of(collection));
    if (e) {
        if (setting->set_target)
            samkv_gate_set(&e->gate, &setting->target);
        if (setting->set_share)
            e->share = setting->share;
        e->changed = false;
        copy = *e;
    }
    pthread_mutex_unlock(&g->lock);
    if (!e)
        return samkv_fail(err, SAMKV_BUSY, "%d collections have a quality already, or memory is short", GATES_MAX);
    return samkv_gate_save(g->options.store, copy.collection, &copy.gate, copy.share, err);
}

void samkv_gates_seed(struct samkv_gates *g, const char *collection, const struct samkv_closeness *levels,
                      uint32_t samples)
{
    struct entry copy;
    if (!g)
        return;
    pthread_mutex_lock(&g->lock);
    struct entry *e = find(g, name_of(collection));
    if (e) {
        samkv_gate_seed(&e->gate, levels, samples);
        e->changed = false;
        copy = *e;
    }
    pthread_mutex_unlock(&g->lock);
    if (e)
        save(g, &copy);
}

void samkv_gates_forget(struct samkv_gates *g, const char *collection)
{
    struct samkv_error err;
    if (!g)
        return;
    pthread_mutex_lock(&g->lock);
    struct entry *e = find(g, collection);
    if (e)
        remove_entry(g, e);
    pthread_mutex_unlock(&g->lock);
    enum samkv_status status = e ? samkv_gate_remove(g->options.store, collection, &err) : SAMKV_OK;
    if (status && status != SAMKV_NOT_FOUND)
        samkv_log(SAMKV_LOG_WARNING, "quality: the gate of %s stays in the store: %s", collection, err.text);
}

/* ------------------------------------------------------------------ what is known */

static void describe(const struct entry *e, struct samkv_gate_info *out)
{
    *out = (struct samkv_gate_info){
        .target = e->gate.target,
        .share = e->share,
        .level = e->gate.level,
        .ratio = samkv_gate_ratio(e->gate.level),
        .full = samkv_gate_is_full(e->gate.level),
        .estimate = samkv_gate_estimate(&e->gate, e->gate.level),
        .measured = e->gate.measured,
        .raised = e->gate.raised,
        .lowered = e->gate.lowered,
    };
    memcpy(out->collection, e->collection, sizeof out->collection);
}

bool samkv_gates_get(struct samkv_gates *g, const char *collection, struct samkv_gate_info *out)
{
    if (!g)
        return false;
    pthread_mutex_lock(&g->lock);
    const struct entry *e = find(g, name_of(collection));
    bool there = e && e->gate.target.metric;
    if (there)
        describe(e, out);
    pthread_mutex_unlock(&g->lock);
    return there;
}

size_t samkv_gates_list(struct samkv_gates *g, struct samkv_gate_info *out, size_t room)
{
    size_t n = 0;
    if (!g)
        return 0;
    pthread_mutex_lock(&g->lock);
    for (size_t i = 0; i < g->count && n < room; i++)
        if (g->entries[i].gate.target.metric)
            describe(&g->entries[i], &out[n++]);
    pthread_mutex_unlock(&g->lock);
    return n;
}

void samkv_gates_stats(struct samkv_gates *g, struct samkv_gates_stats *out)
{
    *out = (struct samkv_gates_stats){0};
    if (!g)
        return;
    pthread_mutex_lock(&g->lock);
    for (size_t i = 0; i < g->count; i++) {
        out->gates += g->entries[i].gate.target.metric != SAMKV_QUALITY_NONE;
        out->measured += g->entries[i].gate.measured;
        out->raised += g->entries[i].gate.raised;
        out->lowered += g->entries[i].gate.lowered;
    }
    out->dropped = g->dropped;
    out->waiting = g->waiting;
    pthread_mutex_unlock(&g->lock);
}

/* ------------------------------------------------------------------ life */

/* Names of all collections: their gates are read behind the listing. */
struct names {
    char (*items)[SAMKV_GATE_NAME_SIZE];
    size_t count;
    bool failed;
};

static bool take_name(void *arg, const struct samkv_collection *c)
{
    struct names *n = arg;
    if (n->count % 64 == 0) {
        void *more = realloc(n->items, (n->count + 64) * sizeof *n->items);
        n->failed = !more;
        if (!more)
            return false;
        n->items = more;
    }
    memcpy(n->items[n->count++], c->name, sizeof c->name);
    return true;
}

/* A damaged gate is told and left out. */
static void load_one(struct samkv_gates *g, struct samkv_snapshot *snapshot, const char *collection)
{
    struct samkv_gate gate;
    struct samkv_error damage;
    double share;
    enum samkv_status found = samkv_gate_load(snapshot, collection, &gate, &share, &damage);
    struct entry *e = found == SAMKV_OK ? find_or_add(g, collection) : NULL;
    if (found == SAMKV_CORRUPT)
        samkv_log(SAMKV_LOG_WARNING, "quality: %s", damage.text);
    if (e) {
        e->gate = gate;
        e->share = share;
    }
}

static enum samkv_status load(struct samkv_gates *g, struct samkv_error *err)
{
    struct names names = {.count = 0};
    struct samkv_snapshot *snapshot;
    enum samkv_status status = samkv_snapshot_begin(g->options.store, &snapshot, err);
    if (status)
        return status;
    status = samkv_snapshot_each_collection(snapshot, take_name, &names, err);
    if (!status && names.failed)
        status = samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < names.count && !status; i++)
        load_one(g, snapshot, names.items[i]);
    samkv_snapshot_end(snapshot);
    free(names.items);
    return status;
}

enum samkv_status samkv_gates_new(const struct samkv_gates_options *options, struct samkv_gates **out,
                                  struct samkv_error *err)
{
    struct samkv_gates *g = calloc(1, sizeof *g);
    if (!g)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    g->options = *options;
    g->last = &g->first;
    g->random = (uint64_t)time(NULL);
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->arrived, NULL);
    enum samkv_status status = load(g, err);
    if (!status && samkv_thread_start(&g->thread, "quality", gates_main, g))
        status = samkv_fail(err, SAMKV_NO_MEMORY, "cannot start the thread of quality gates");
    g->started = !status;
    if (status)
        samkv_gates_free(g);
    else
        *out = g;
    return status;
}

void samkv_gates_free(struct samkv_gates *g)
{
    if (!g)
        return;
    pthread_mutex_lock(&g->lock);
    __atomic_store_n(&g->ending, true, __ATOMIC_RELAXED);
    pthread_cond_signal(&g->arrived);
    pthread_mutex_unlock(&g->lock);
    if (g->started)
        pthread_join(g->thread, NULL);
    for (size_t i = 0; i < g->count; i++)
        if (g->entries[i].changed)
            save(g, &g->entries[i]);
    while (g->first) {
        struct offer *o = g->first;
        g->first = o->next;
        offer_free(o);
    }
    pthread_cond_destroy(&g->arrived);
    pthread_mutex_destroy(&g->lock);
    free(g->entries);
    free(g);
}
