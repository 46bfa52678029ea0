#pragma once
/*
 * The models that a daemon serves, each with the device and lane that run it. Filled at start, then read-only.
 */
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"
#include "proto/tensor.h"
#include "daemon/base/lane.h"
#include "daemon/model/model.h"

#define SAMKV_MAX_MODELS 16

/* What a lane's jobs work in; private to samkv and the jobs. See forward.h. */
struct samkv_workspace;
struct samkv_leases;    /* lease.h */
struct samkv_transfer;  /* transfer.h */
struct samkv_prefiller; /* prefill.h */
struct samkv_cost;      /* cost.h */

struct samkv_engine {
    struct samkv_model *model;
    struct samkv_device *device;
    struct samkv_lane *lane;
    struct samkv_stream *stream;
    struct samkv_workspace *workspace;
    /* On a device that is not unified, a lane of their own for the passes of queries: few rows, bound by the weights'
     * bytes, they run beside another fetch's recomputation, which is bound by arithmetic, and do not wait for it. */
    struct samkv_lane *query_lane;
    struct samkv_stream *query_stream;
    struct samkv_workspace *query_workspace;
    struct samkv_prefiller *prefiller; /* of documents that wait at the same time */
    struct samkv_leases *leases;       /* of the device, as in samkv_models */
    struct samkv_transfer *transfer;   /* likewise */
    struct samkv_cost *cost;           /* what requests took, for those that have little time */
    enum samkv_dtype stored;           /* element type of what is kept on disk and handed out */
};

struct samkv_models {
    struct samkv_device *device;
    struct samkv_leases *leases;     /* of replies on the device; NULL when it does not share */
    struct samkv_transfer *transfer; /* of a device that is not unified; else NULL */
    struct samkv_engine engines[SAMKV_MAX_MODELS];
    size_t count;
};

struct samkv_models_options {
    const char *const *specs; /* "NAME=PATH" or "PATH" (named after its last component) */
    size_t spec_count;
    const char *device; /* see samkv_device_open */
    int dtype;          /* enum samkv_dtype of the store, -1: f32 on the CPU, bf16 on a GPU. With -1 and BF16 a CPU
                         * that multiplies bf16 has its matrices in it (samkv_cpu_use_bf16) */
    int threads;        /* of the CPU; 0: all */
    /* Of a GPU: blocks and indexes of hot documents, and replies. 0: a quarter of what the models leave free, each. */
    uint64_t device_cache_bytes, device_reply_bytes;
};

/* Opens the device and loads every model; logs one line each. */
enum samkv_status samkv_models_open(const struct samkv_models_options *, struct samkv_models **out,
                                    struct samkv_error *) SAMKV_MUST_USE;
void samkv_models_close(struct samkv_models *); /* NULL is allowed */

/*
 * A lost device has no memory either: what failed with NO_MEMORY is DEVICE when the device gives none at all any more,
 * and the text says so. Any other status stays.
 */
enum samkv_status samkv_device_blame(struct samkv_device *, enum samkv_status, struct samkv_error *);

/* The engine as queries' passes use it: lane, stream and workspace are those of queries, where there are any. */
struct samkv_engine samkv_engine_for_queries(const struct samkv_engine *);

/* By name; NULL or "" is the first. NULL when there is none. */
struct samkv_engine *samkv_models_find(struct samkv_models *, const char *name);
/* By fingerprint: what a collection was made with. */
struct samkv_engine *samkv_models_match(struct samkv_models *, const uint8_t fingerprint[16]);
