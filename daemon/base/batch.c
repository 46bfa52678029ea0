#include "daemon/base/batch.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct samkv_batcher {
    struct samkv_batch_calls calls;
    void *arg;
    uint32_t limit;
    pthread_mutex_t lock;                   /* of everything below */
    struct samkv_batch_item *first, **last; /* what waits, in order of arrival; last: where the next is linked */
    bool running;
    bool taken[SAMKV_BATCH_SLOTS];
    int holders[SAMKV_BATCH_SLOTS]; /* items that have not left */
};

enum samkv_status samkv_batcher_new(uint32_t limit, const struct samkv_batch_calls *calls, void *arg,
                                    struct samkv_batcher **out)
{
    struct samkv_batcher *b = calloc(1, sizeof *b);
    if (!b)
        return SAMKV_NO_MEMORY;
    b->calls = *calls;
    b->arg = arg;
    b->limit = limit;
    b->last = &b->first;
    pthread_mutex_init(&b->lock, NULL);
    *out = b;
    return SAMKV_OK;
}

void samkv_batcher_free(struct samkv_batcher *b)
{
    if (!b)
        return;
    assert(!b->first && !b->running);
    pthread_mutex_destroy(&b->lock);
    free(b);
}

/* ------------------------------------------------------------------ under the lock */

static void push(struct samkv_batcher *b, struct samkv_batch_item *item)
{
    item->next = NULL;
    item->done = item->shared = false;
    *b->last = item;
    b->last = &item->next;
}

/* Takes the item at *at out of what waits. */
static struct samkv_batch_item *take(struct samkv_batcher *b, struct samkv_batch_item **at)
{
    struct samkv_batch_item *item = *at;
    *at = item->next;
    if (!*at)
        b->last = at;
    item->next = NULL;
    return item;
}

static void tell(struct samkv_batch_item *item, enum samkv_status status, const struct samkv_error *err)
{
    item->status = status;
    if (status && item->err)
        *item->err = *err;
    item->done = true;
    pthread_cond_signal(&item->changed);
}

static int free_slot(const struct samkv_batcher *b)
{
    for (int i = 0; i < SAMKV_BATCH_SLOTS; i++)
        if (!b->taken[i])
            return i;
    return -1;
}

static bool may_lead(const struct samkv_batcher *b, const struct samkv_batch_item *item)
{
    return b->first == item && !b->running && free_slot(b) >= 0;
}

/* Whoever is first now looks whether it may lead. */
static void wake_first(struct samkv_batcher *b)
{
    if (b->first)
        pthread_cond_signal(&b->first->changed);
}

static bool is_cancelled(const struct samkv_batch_item *item)
{
    return item->cancelled && __atomic_load_n(item->cancelled, __ATOMIC_RELAXED);
}

/* Tells those that nobody waits for any more. */
static void drop_cancelled(struct samkv_batcher *b)
{
    struct samkv_error err;
    enum samkv_status status = samkv_fail(&err, SAMKV_CANCELLED, "cancelled: the client is gone");
    for (struct samkv_batch_item **at = &b->first; *at;) {
        if (is_cancelled(*at))
            tell(take(b, at), status, &err);
        else
            at = &(*at)->next;
    }
}

/* The first that waits, and those behind it that may share its run. */
static struct samkv_batch_item *gather(struct samkv_batcher *b)
{
    struct samkv_batch_item *first = take(b, &b->first), **end = &first->next;
    uint64_t weight = first->weight;
    for (struct samkv_batch_item **at = &b->first; *at && !first->alone;) {
        bool fits = !(*at)->alone && weight + (*at)->weight <= b->limit;
        if (!fits || memcmp((*at)->kind, first->kind, sizeof first->kind) != 0) {
            at = &(*at)->next;
            continue;
        }
        weight += (*at)->weight;
        first->shared = (*at)->shared = true;
        *end = take(b, at);
        end = &(*end)->next;
    }
    return first;
}

/* ------------------------------------------------------------------ the run */

/* Runs what `first` leads; with the lock held, which it lets go in between. */
static void lead(struct samkv_batcher *b, struct samkv_batch_item *first, int slot)
{
    struct samkv_error err = {0};
    b->running = b->taken[slot] = true;
    pthread_mutex_unlock(&b->lock);
    enum samkv_status status = b->calls.run(b->arg, slot, first, &err);
    pthread_mutex_lock(&b->lock);
    b->running = false;
    wake_first(b);
    pthread_mutex_unlock(&b->lock);
    if (!status)
        status = b->calls.settle(b->arg, slot, first, &err);
    if (status)
        b->calls.empty(b->arg, slot);
    pthread_mutex_lock(&b->lock);
    for (struct samkv_batch_item *item = first, *next; item; item = next) {
        next = item->next;
        item->slot = slot;
        b->holders[slot] += status == SAMKV_OK;
        tell(item, status, &err);
    }
    if (status) {
        b->taken[slot] = false;
        wake_first(b);
    }
}

/* With the lock held: waits until a run has been through the item, leading it when that is its turn. */
static void wait_for_run(struct samkv_batcher *b, struct samkv_batch_item *item)
{
    push(b, item);
    while (!item->done) {
        if (!may_lead(b, item)) {
            pthread_cond_wait(&item->changed, &b->lock);
            continue;
        }
        drop_cancelled(b);
        if (b->first == item)
            lead(b, gather(b), free_slot(b));
        else
            wake_first(b);
    }
}

enum samkv_status samkv_batch_join(struct samkv_batcher *b, struct samkv_batch_item *item, struct samkv_error *err)
{
    item->err = err;
    pthread_cond_init(&item->changed, NULL);
    pthread_mutex_lock(&b->lock);
    wait_for_run(b, item);
    if (item->status == SAMKV_NO_MEMORY && item->shared) {
        bool alone = item->alone;
        item->alone = true;
        wait_for_run(b, item);
        item->alone = alone;
    }
    pthread_mutex_unlock(&b->lock);
    pthread_cond_destroy(&item->changed);
    return item->status;
}

void samkv_batch_leave(struct samkv_batcher *b, struct samkv_batch_item *item)
{
    int slot = item->slot;
    pthread_mutex_lock(&b->lock);
    assert(b->holders[slot] > 0);
    bool last = --b->holders[slot] == 0;
    pthread_mutex_unlock(&b->lock);
    if (!last)
        return;
    b->calls.empty(b->arg, slot);
    pthread_mutex_lock(&b->lock);
    b->taken[slot] = false;
    wake_first(b);
    pthread_mutex_unlock(&b->lock);
}

size_t samkv_batch_waiting(struct samkv_batcher *b)
{
    size_t count = 0;
    pthread_mutex_lock(&b->lock);
    for (const struct samkv_batch_item *item = b->first; item; item = item->next)
        count++;
    pthread_mutex_unlock(&b->lock);
    return count;
}
