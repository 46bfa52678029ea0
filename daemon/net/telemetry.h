#pragma once
/*
 * What requests leave besides their answers, and a reading of the store's sums that may be a few seconds old: those
 * cost a walk over all documents, so whoever only looks on shares one.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "daemon/base/pool.h"
#include "daemon/net/traces.h"
#include "daemon/store/store.h"

struct samkv_sample {
    struct samkv_store_stats stats;
    double taken_ms, took_ms; /* when, of samkv_now_ms, and how long it took; taken 0: never */
};

struct samkv_telemetry {
    struct samkv_traces *traces;
    struct samkv_pool *pool;       /* borrowed; the server's */
    _Atomic uint64_t last_request; /* the number that was given last */
    _Atomic uint64_t ticked_ms;    /* when the loop last came by, of samkv_now_ms */
    pthread_mutex_t lock;          /* of the sample */
    struct samkv_sample sample;
};

struct samkv_service;

/* Zeroed. NO_MEMORY. */
enum samkv_status samkv_telemetry_init(struct samkv_telemetry *) SAMKV_MUST_USE;
void samkv_telemetry_deinit(struct samkv_telemetry *);

/* The last sample, or a new one when that is older than max_age_ms. Not on the loop's thread. */
enum samkv_status samkv_telemetry_sample(struct samkv_service *, double max_age_ms, struct samkv_sample *out,
                                         struct samkv_error *) SAMKV_MUST_USE;

/* The last one, of whatever age; never slow. */
void samkv_telemetry_last_sample(struct samkv_telemetry *, struct samkv_sample *out);
