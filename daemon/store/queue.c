#include "daemon/store/queue.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/base/thread.h"
#include "daemon/store/change.h"
#include "daemon/store/environment.h"
#include "daemon/store/evict.h"
#include "daemon/store/expire.h"
#include "daemon/store/space.h"
#include "daemon/store/txn.h"

#define RETRY_REMOVAL_S 2
#define TEND_NS         50000000 /* between looks at space that cannot be given back yet */

void samkv_queue_init(struct samkv_queue *q)
{
    *q = (struct samkv_queue){0};
    q->last = &q->first;
    pthread_mutex_init(&q->lock, NULL);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&q->work, &clock);
    pthread_condattr_destroy(&clock);
    pthread_cond_init(&q->changed, NULL);
}

/* ------------------------------------------------------------------ claims */

static void unlink_claim(struct samkv_queue *q, struct samkv_claim *claim)
{
    struct samkv_claim **at = &q->claims;
    while (*at && *at != claim)
        at = &(*at)->next;
    assert(*at == claim);
    *at = claim->next;
}

static struct samkv_claim *find_claim(struct samkv_queue *q, const struct samkv_key *key, const struct samkv_claim *but)
{
    for (struct samkv_claim *c = q->claims; c; c = c->next)
        if (c != but && memcmp(&c->key, key, sizeof *key) == 0)
            return c;
    return NULL;
}

enum samkv_status samkv_claim_begin(struct samkv_store *s, const struct samkv_key *key, struct samkv_claim **out,
                                    struct samkv_error *err)
{
    struct samkv_queue *q = &s->queue;
    struct samkv_claim *mine = calloc(1, sizeof *mine), *other;
    if (!mine)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    mine->key = *key;
    pthread_mutex_lock(&q->lock);
    while ((other = find_claim(q, key, NULL)) && !other->stuck)
        pthread_cond_wait(&q->changed, &q->lock);
    if (!other) {
        mine->next = q->claims;
        q->claims = mine;
    }
    pthread_mutex_unlock(&q->lock);
    if (other) {
        free(mine);
        return samkv_fail(err, SAMKV_BUSY,
                          "an earlier copy of this document could not be removed yet (is the disk full?): "
                          "make room and try again");
    }
    *out = mine;
    return SAMKV_OK;
}

bool samkv_claim_is_contested(struct samkv_store *s, const struct samkv_claim *claim)
{
    pthread_mutex_lock(&s->queue.lock);
    bool found = find_claim(&s->queue, &claim->key, claim) != NULL;
    pthread_mutex_unlock(&s->queue.lock);
    return found;
}

void samkv_claim_end(struct samkv_store *s, struct samkv_claim *claim)
{
    pthread_mutex_lock(&s->queue.lock);
    unlink_claim(&s->queue, claim);
    pthread_cond_broadcast(&s->queue.changed);
    pthread_mutex_unlock(&s->queue.lock);
    free(claim);
}

void samkv_claim_remove(struct samkv_store *s, struct samkv_claim *claim)
{
    pthread_mutex_lock(&s->queue.lock);
    claim->removing = true;
    pthread_cond_signal(&s->queue.work);
    pthread_mutex_unlock(&s->queue.lock);
}

/* The claim that is to be removed next, NULL when there is none. With the lock held. */
static struct samkv_claim *next_removal(struct samkv_queue *q, bool stuck_too)
{
    struct samkv_claim *stuck = NULL;
    for (struct samkv_claim *c = q->claims; c; c = c->next) {
        if (c->removing && !c->stuck)
            return c;
        if (c->removing)
            stuck = c;
    }
    return stuck_too ? stuck : NULL;
}

bool samkv_claim_abandoned(struct samkv_store *s, const struct samkv_key *key)
{
    struct samkv_claim *claim = calloc(1, sizeof *claim);
    if (!claim)
        return false;
    pthread_mutex_lock(&s->queue.lock);
    bool taken = find_claim(&s->queue, key, NULL) != NULL;
    if (!taken) {
        *claim = (struct samkv_claim){.key = *key, .removing = true, .next = s->queue.claims};
        s->queue.claims = claim;
    }
    pthread_mutex_unlock(&s->queue.lock);
    if (taken)
        free(claim);
    return !taken;
}

void samkv_queue_wait_removals(struct samkv_store *s)
{
    struct samkv_queue *q = &s->queue;
    pthread_mutex_lock(&q->lock);
    while (next_removal(q, false))
        pthread_cond_wait(&q->changed, &q->lock);
    pthread_mutex_unlock(&q->lock);
}

/* ------------------------------------------------------------------ transactions (writer thread) */

static void undo_change(struct samkv_change *c)
{
    samkv_txn_abort(c);
    samkv_host_cache_reopen(c->store->host_cache);
    samkv_ledger_undo(&c->store->ledger, &c->journal);
    while (c->removing) {
        struct samkv_claim *claim = c->removing;
        c->removing = claim->next;
        free(claim);
    }
}

static uint64_t bytes_in_old(const struct samkv_store *s)
{
    return s->old ? atomic_load(&s->old->bytes_in_use) : 0;
}

/* New documents leave a reserve free: without any room nothing could be removed either. */
static enum samkv_status check_room(struct samkv_change *c, struct samkv_error *err)
{
    struct samkv_store *s = c->store;
    uint64_t used = 0, elsewhere = bytes_in_old(s);
    enum samkv_status st = samkv_txn_used_bytes(c, &used, err);
    if (st != SAMKV_OK)
        return st;
    atomic_store(&s->now->bytes_in_use, used); /* should the commit fail, the next one mends it */
    if (!c->grows)
        return SAMKV_OK;
    /* While the store is compacted the size of one map does not bound what two files take. */
    if (used + elsewhere + s->reserve_bytes > s->limit_bytes || (s->old && !samkv_space_fits(s, c->put_bytes)))
        st = samkv_fail(err, SAMKV_FULL,
                        "the store %s has reached its limit of %llu MiB: remove documents or raise the limit", s->path,
                        (unsigned long long)(s->limit_bytes >> 20));
    else if (samkv_space_left(s, used + elsewhere) < s->reserve_bytes)
        st = samkv_fail(err, SAMKV_FULL, "the disk of %s is full: make room on it, or remove documents", s->path);
    return st;
}

/* What commit_change handed over stays for removal, or is taken back. */
static void settle(struct samkv_queue *q, bool committed)
{
    pthread_mutex_lock(&q->lock);
    for (struct samkv_claim **at = &q->claims; *at;) {
        struct samkv_claim *claim = *at;
        if (claim->undecided && !committed) {
            *at = claim->next;
            free(claim);
            continue;
        }
        claim->undecided = false;
        at = &claim->next;
    }
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->lock);
}

/* Hands the documents that became invisible over to removal before anyone can see that they are; takes them back
 * when the transaction fails. */
static enum samkv_status commit_change(struct samkv_change *c, struct samkv_error *err)
{
    struct samkv_queue *q = &c->store->queue;
    enum samkv_status st = check_room(c, err);
    if (st != SAMKV_OK) {
        undo_change(c);
        return st;
    }
    uint64_t used = 0;
    bool measured = samkv_txn_used_bytes(c, &used, NULL) == SAMKV_OK;
    struct samkv_claim *hidden = c->removing;
    c->removing = NULL;
    pthread_mutex_lock(&q->lock);
    for (struct samkv_claim *claim = hidden, *next; claim; claim = next) {
        next = claim->next;
        claim->undecided = true;
        claim->next = q->claims;
        q->claims = claim;
    }
    pthread_mutex_unlock(&q->lock);
    st = samkv_txn_commit(c, err);
    samkv_host_cache_reopen(c->store->host_cache);
    settle(q, st == SAMKV_OK);
    if (st == SAMKV_OK) {
        samkv_ledger_keep(&c->journal);
        if (measured)
            atomic_store(&c->store->used_bytes, used + bytes_in_old(c->store));
        atomic_fetch_add(&c->store->evictions, c->evicted);
        atomic_fetch_add(&c->store->evicted_bytes, c->evicted_bytes);
        atomic_fetch_add(&c->store->expirations, c->expired);
        atomic_fetch_add(&c->store->commits, 1);
        return SAMKV_OK;
    }
    samkv_ledger_undo(&c->store->ledger, &c->journal);
    return st;
}

/* One bounded step of removing a document, in a transaction of its own. *done: nothing of it is left. */
static enum samkv_status remove_step(struct samkv_store *s, const struct samkv_key *key, bool *done,
                                     struct samkv_error *err)
{
    struct samkv_change c;
    bool more = true;
    enum samkv_status st = samkv_compact_remove_some(s, key, &more, err);
    if (st != SAMKV_OK || more) /* the mark that says so goes with the last of the newest file's records */
        return st;
    st = samkv_txn_begin(s, &c, err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_txn_remove_some(&c, key, &more, err);
    if (st != SAMKV_OK) {
        undo_change(&c);
        return st;
    }
    st = commit_change(&c, err);
    *done = st == SAMKV_OK && !more;
    return st;
}

/* OK also when there is nothing to do (*idle). */
static enum samkv_status remove_next(struct samkv_store *s, bool stuck_too, bool *idle, struct samkv_error *err)
{
    struct samkv_queue *q = &s->queue;
    pthread_mutex_lock(&q->lock);
    struct samkv_claim *claim = next_removal(q, stuck_too);
    pthread_mutex_unlock(&q->lock);
    *idle = !claim;
    if (!claim)
        return SAMKV_OK;
    bool done = false;
    enum samkv_status st = remove_step(s, &claim->key, &done, err);
    if (st == SAMKV_FULL && samkv_space_relieve(s))
        st = remove_step(s, &claim->key, &done, err);
    if (done) {
        samkv_claim_end(s, claim);
        return st;
    }
    if (st != SAMKV_OK && !claim->stuck)
        samkv_log(SAMKV_LOG_WARNING, "store: removing a document failed and will be tried again: %s", err->text);
    pthread_mutex_lock(&q->lock);
    claim->stuck = st != SAMKV_OK;
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->lock);
    return st;
}

bool samkv_queue_is_removing(struct samkv_store *s)
{
    pthread_mutex_lock(&s->queue.lock);
    bool removing = next_removal(&s->queue, true) != NULL;
    pthread_mutex_unlock(&s->queue.lock);
    return removing;
}

enum samkv_status samkv_queue_drain_removals(struct samkv_store *s, struct samkv_error *err)
{
    bool idle = false;
    enum samkv_status st = SAMKV_OK;
    while (!idle && st == SAMKV_OK)
        st = remove_next(s, true, &idle, err);
    return st;
}

/* ------------------------------------------------------------------ jobs (writer thread) */

static enum samkv_status run_alone(struct samkv_store *s, struct samkv_job *job, struct samkv_error *err)
{
    struct samkv_change c;
    enum samkv_status st = samkv_txn_begin(s, &c, err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_txn_apply(&c, job, err);
    if (st == SAMKV_OK)
        return commit_change(&c, err);
    undo_change(&c);
    return st;
}

static void tell_failed(struct samkv_job *job)
{
    if (job->failed)
        job->failed(job, job->status, &job->error);
}

enum samkv_status samkv_queue_run_step(struct samkv_store *s, struct samkv_job *job, struct samkv_error *err)
{
    return run_alone(s, job, err);
}

enum samkv_status samkv_queue_remove_next(struct samkv_store *s, bool *idle, struct samkv_error *err)
{
    return remove_next(s, false, idle, err);
}

/* One by one; when there is no room, what is waiting to be removed may be it, or what is evicted. */
static void run_each(struct samkv_store *s, struct samkv_job *first)
{
    for (struct samkv_job *job = first; job; job = job->next) {
        struct samkv_hunt hunt = {0};
        job->status = run_alone(s, job, &job->error);
        if (job->status == SAMKV_FULL && samkv_space_relieve(s))
            job->status = run_alone(s, job, &job->error);
        while (job->status == SAMKV_FULL && samkv_evict_find_room(s, job->bytes, &hunt))
            job->status = run_alone(s, job, &job->error);
        if (job->status == SAMKV_FULL && hunt.held)
            job->status =
                samkv_fail(&job->error, SAMKV_BUSY,
                           "the store %s is full, and what was evicted is still being read: try again", s->path);
        if (job->status != SAMKV_OK)
            tell_failed(job);
    }
}

static void run_group(struct samkv_store *s, struct samkv_job *first)
{
    struct samkv_change c;
    struct samkv_error err = {0};
    enum samkv_status st = samkv_txn_begin(s, &c, &err);
    if (st != SAMKV_OK) {
        for (struct samkv_job *job = first; job; job = job->next) {
            job->status = st;
            job->error = err;
            tell_failed(job);
        }
        return;
    }
    for (struct samkv_job *job = first; job && !c.broken; job = job->next)
        job->status = samkv_txn_apply(&c, job, &job->error);
    if (c.broken)
        undo_change(&c);
    else if (commit_change(&c, &err) == SAMKV_OK)
        return;
    run_each(s, first);
}

/* Tells the waiting, and frees the jobs that nobody waits for. */
static void finish_group(struct samkv_store *s, struct samkv_job *first)
{
    struct samkv_queue *q = &s->queue;
    size_t bytes = 0;
    for (struct samkv_job *job = first, *next; job; job = next) {
        next = job->next;
        bytes += job->bytes;
        if (!job->waits) {
            job->release(s, job);
            continue;
        }
        pthread_mutex_lock(&q->lock);
        job->done = true; /* its memory goes as soon as the lock is free */
        pthread_mutex_unlock(&q->lock);
    }
    pthread_mutex_lock(&q->lock);
    q->bytes -= bytes;
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->lock);
}

/* Takes as many jobs as one transaction should hold. With the lock held. */
static struct samkv_job *take_group(struct samkv_queue *q)
{
    struct samkv_job *first = q->first, **at = &q->first;
    size_t bytes = 0;
    while (*at && (bytes == 0 || bytes + (*at)->bytes <= SAMKV_GROUP_MAX_BYTES)) {
        bytes += (*at)->bytes;
        q->pressing -= (*at)->waits || (*at)->wakes;
        at = &(*at)->next;
    }
    q->first = *at;
    *at = NULL;
    if (!q->first)
        q->last = &q->first;
    return first;
}

static bool has_group(const struct samkv_queue *q)
{
    return q->first && (q->pressing > 0 || q->bytes >= SAMKV_GROUP_MAX_BYTES || q->ending);
}

static size_t group_bytes(const struct samkv_job *first)
{
    size_t bytes = 0;
    for (; first; first = first->next)
        bytes += first->bytes;
    return bytes;
}

/* Waits for something to do; with a removal that failed or upkeep ahead, not for long. True: look whether that is due.
 */
static bool wait_for_work(struct samkv_store *s)
{
    struct samkv_queue *q = &s->queue;
    bool stuck = next_removal(q, true) != NULL;
    int wait_s = samkv_upkeep_wait_s(s);
    bool tending = samkv_compact_is_waiting(s) || samkv_space_is_waiting(s);
    if (!stuck && wait_s < 0 && !tending) {
        pthread_cond_wait(&q->work, &q->lock);
        return false;
    }
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += tending ? TEND_NS : 0;
    until.tv_sec += tending ? until.tv_nsec / 1000000000 : stuck ? RETRY_REMOVAL_S : wait_s;
    until.tv_nsec %= 1000000000;
    if (pthread_cond_timedwait(&q->work, &q->lock, &until) == 0)
        return false;
    double now_ms = samkv_now_ms();
    if (stuck && now_ms >= q->retry_ms) {
        q->retry_ms = now_ms + RETRY_REMOVAL_S * 1e3;
        for (struct samkv_claim *c = q->claims; c; c = c->next)
            c->stuck = false;
    }
    return true;
}

/* A step of giving space back, and one of compaction. True: there is more to do at once. Lock held, but not within. */
static bool tend(struct samkv_store *s)
{
    pthread_mutex_unlock(&s->queue.lock);
    bool space = samkv_space_tend(s), compaction = samkv_compact_tend(s);
    pthread_mutex_lock(&s->queue.lock);
    return space || compaction;
}

static void *writer_main(void *arg)
{
    struct samkv_store *s = arg;
    struct samkv_queue *q = &s->queue;
    pthread_mutex_lock(&q->lock);
    for (;;) {
        struct samkv_job *group = has_group(q) ? take_group(q) : NULL;
        if (!group && q->ending)
            break;
        if (!group && !next_removal(q, false)) {
            uint64_t asked = s->compaction.asked;
            if (tend(s) || has_group(q) || q->ending || next_removal(q, false) || s->compaction.asked != asked)
                continue;
            if (!wait_for_work(s))
                continue;
        }
        pthread_mutex_unlock(&q->lock);
        if (group) {
            samkv_evict_ahead(s, group_bytes(group));
            run_group(s, group);
            finish_group(s, group);
        }
        struct samkv_error ignored; /* it is in the log */
        bool idle;
        enum samkv_status st = remove_next(s, false, &idle, &ignored);
        (void)st;
        samkv_upkeep(s);
        pthread_mutex_lock(&q->lock);
        if (group)
            tend(s);
    }
    pthread_mutex_unlock(&q->lock);
    return NULL;
}

/* ------------------------------------------------------------------ callers' side */

static void link_job(struct samkv_queue *q, struct samkv_job *job)
{
    job->next = NULL;
    job->done = false;
    *q->last = job;
    q->last = &job->next;
    q->bytes += job->bytes;
    q->pressing += job->waits || job->wakes;
    if (has_group(q))
        pthread_cond_signal(&q->work);
}

enum samkv_status samkv_queue_call(struct samkv_store *s, struct samkv_job *job, struct samkv_error *err)
{
    struct samkv_queue *q = &s->queue;
    job->waits = true;
    pthread_mutex_lock(&q->lock);
    link_job(q, job);
    while (!job->done)
        pthread_cond_wait(&q->changed, &q->lock);
    pthread_mutex_unlock(&q->lock);
    if (job->status != SAMKV_OK && job->status != SAMKV_NOT_FOUND && err)
        *err = job->error;
    return job->status;
}

void samkv_queue_push(struct samkv_store *s, struct samkv_job *job)
{
    struct samkv_queue *q = &s->queue;
    job->waits = false;
    pthread_mutex_lock(&q->lock);
    /* One that is larger than the whole queue goes alone. */
    while (q->bytes && q->bytes + job->bytes > SAMKV_QUEUE_MAX_BYTES) {
        q->pressing++;
        pthread_cond_signal(&q->work);
        pthread_cond_wait(&q->changed, &q->lock);
        q->pressing--;
    }
    link_job(q, job);
    pthread_mutex_unlock(&q->lock);
}

enum samkv_status samkv_queue_run_now(struct samkv_store *s, struct samkv_job *job, struct samkv_error *err)
{
    assert(!s->queue.started);
    return run_alone(s, job, err);
}

enum samkv_status samkv_queue_start(struct samkv_store *s, struct samkv_error *err)
{
    enum samkv_status st = samkv_thread_start(&s->queue.thread, "samkv-store", writer_main, s);
    if (st != SAMKV_OK)
        return samkv_fail(err, st, "no thread for the store's writer: raise the limit on threads");
    s->queue.started = true;
    return SAMKV_OK;
}

void samkv_queue_deinit(struct samkv_store *s)
{
    struct samkv_queue *q = &s->queue;
    if (q->started) {
        pthread_mutex_lock(&q->lock);
        q->ending = true;
        pthread_cond_signal(&q->work);
        pthread_mutex_unlock(&q->lock);
        pthread_join(q->thread, NULL);
    }
    while (q->claims) {
        struct samkv_claim *claim = q->claims;
        q->claims = claim->next;
        free(claim);
    }
    pthread_cond_destroy(&q->work);
    pthread_cond_destroy(&q->changed);
    pthread_mutex_destroy(&q->lock);
}
