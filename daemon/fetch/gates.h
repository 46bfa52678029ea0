#pragma once
/*
 * The quality gates of collections: which quality each one needs, how much its fetches keep for that, and the thread
 * that measures. A small share of what fetches ask is asked again in the background, recomputed in full and sparsely at
 * the level in use and the one below; gate.h decides what follows. Settings and what was measured are kept in the
 * store.
 *
 * The thread begins a measurement, and each part of it, only while `idle` says that nothing else is to be done (or
 * after waiting for that in vain, it drops it), and runs RELAXED: a fetch that comes meanwhile waits for a step of a
 * prefill at most. What finds no room in its short queue is not measured.
 *
 * All functions: any thread but the event loop's, unless said otherwise.
 */
#include "daemon/fetch/fetch.h"
#include "daemon/samkv/gate.h"

#define SAMKV_GATE_SHARE     0.01 /* of fetches that are measured, where nothing else is said */
#define SAMKV_GATE_NAME_SIZE (SAMKV_ID_MAX_BYTES + 1)

struct samkv_gates;

struct samkv_gates_options {
    struct samkv_models *models;
    struct samkv_store *store;
    bool (*idle)(void *arg); /* on the gates' thread */
    void *idle_arg;
};

/* Reads the store's gates and starts the thread. */
enum samkv_status samkv_gates_new(const struct samkv_gates_options *, struct samkv_gates **out,
                                  struct samkv_error *) SAMKV_MUST_USE;

/* Ends the thread, and what it measures, and keeps what is known. NULL is allowed. Before models and store are closed.
 */
void samkv_gates_free(struct samkv_gates *);

/* What the collection's gate wants of a fetch: least_ratio and full. NULL gates want nothing. */
void samkv_gates_apply(struct samkv_gates *, struct samkv_fetch_request *);

/* After a fetch has succeeded: it may be measured. Copies what it needs. NULL gates measure nothing. */
void samkv_gates_offer(struct samkv_gates *, const struct samkv_fetch_request *);

struct samkv_gate_setting {
    bool set_target, set_share; /* what is to be changed */
    struct samkv_quality_target target;
    double share; /* 0 to 1 */
};

/* On disk when it returns OK. The collection must be there: the caller has looked. BUSY: there are too many gates. */
enum samkv_status samkv_gates_set(struct samkv_gates *, const char *collection, const struct samkv_gate_setting *,
                                  struct samkv_error *) SAMKV_MUST_USE;

/* From a calibration: see samkv_gate_seed. Nothing for a collection without a gate. */
void samkv_gates_seed(struct samkv_gates *, const char *collection, const struct samkv_closeness *levels,
                      uint32_t samples);

/* The collection is gone. */
void samkv_gates_forget(struct samkv_gates *, const char *collection);

struct samkv_gate_info {
    char collection[SAMKV_GATE_NAME_SIZE];
    struct samkv_quality_target target;
    double share;
    uint32_t level;
    double ratio; /* that is kept at least; 0: as asked */
    bool full;
    struct samkv_gate_estimate estimate;
    uint64_t measured, raised, lowered;
};

/* False: the collection has no gate. */
bool samkv_gates_get(struct samkv_gates *, const char *collection, struct samkv_gate_info *out);

/* At most `room`, in order of name; returns how many. NULL gates: 0. */
size_t samkv_gates_list(struct samkv_gates *, struct samkv_gate_info *out, size_t room);

struct samkv_gates_stats {
    uint64_t gates, measured, raised, lowered;
    uint64_t dropped; /* measurements that found no room, no idle moment, or failed */
    uint64_t waiting;
};
void samkv_gates_stats(struct samkv_gates *, struct samkv_gates_stats *out);
