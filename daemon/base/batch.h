#pragma once
/*
 * A batcher brings together what waits at the same time: each thread comes with an *item*, and one *run* works on the
 * items of many threads. It has no thread of its own and never waits for more to come: the item that has waited longest
 * leads as soon as it may, with those behind it that are of its *kind* and fit, in order of arrival. So a lone item
 * goes at once, others gather while a run is under way, and none is overtaken for ever.
 *
 * A run leaves its results in a *slot*, which stays taken until the last of its items has left. One run is under way at
 * a time, and it begins when a slot is free: with two slots, one run's results are worked on by their threads while the
 * next is under way, and more never exist.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>

#include "proto/status.h"

#define SAMKV_BATCH_KIND_BYTES 32
#define SAMKV_BATCH_SLOTS      2

/* Lives with its caller from join to leave. */
struct samkv_batch_item {
    uint8_t kind[SAMKV_BATCH_KIND_BYTES]; /* only equal kinds share a run */
    uint32_t weight;                      /* a run takes items up to the batcher's limit, one item in any case */
    bool alone;                           /* shares no run */
    const bool *cancelled;                /* looked at before the run that would take it; may be NULL */

    /* The batcher's. next: the following item of a run, for `run` and `settle` to walk along. */
    struct samkv_batch_item *next;
    int slot;
    bool done, shared;
    enum samkv_status status;
    struct samkv_error *err;
    pthread_cond_t changed;
};

/* All three are called on the thread of the first item, which may be any of the threads that joined, with no lock. */
struct samkv_batch_calls {
    /* Works on the items from `first` on. Alone at a time. */
    enum samkv_status (*run)(void *arg, int slot, struct samkv_batch_item *first, struct samkv_error *);
    /* The rest of a run that went well, which may overlap with the next one. */
    enum samkv_status (*settle)(void *arg, int slot, struct samkv_batch_item *first, struct samkv_error *);
    /* The slot's results are not needed any more; also after a failure. */
    void (*empty)(void *arg, int slot);
};

struct samkv_batcher;

/* limit: of the sum of weights in a run. calls are copied. NO_MEMORY. */
enum samkv_status samkv_batcher_new(uint32_t limit, const struct samkv_batch_calls *calls, void *arg,
                                    struct samkv_batcher **out) SAMKV_MUST_USE;
/* When nobody is inside. NULL is allowed. */
void samkv_batcher_free(struct samkv_batcher *);

/*
 * Waits for the run that takes the item, or is it. OK: item->slot has its results until samkv_batch_leave, which must
 * follow, before the thread joins again. Otherwise what failed, and there is nothing to leave: CANCELLED when
 * *cancelled was true before a run took it. An item that shared a run for which the memory did not suffice (NO_MEMORY)
 * has been tried once more alone. Any thread.
 */
enum samkv_status samkv_batch_join(struct samkv_batcher *, struct samkv_batch_item *,
                                   struct samkv_error *) SAMKV_MUST_USE;
void samkv_batch_leave(struct samkv_batcher *, struct samkv_batch_item *);

/* Items that no run has taken yet. Any thread. */
size_t samkv_batch_waiting(struct samkv_batcher *);
