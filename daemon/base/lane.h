#pragma once
/*
 * A lane is the one thread that owns a device: all streams and operations of a device are used on its lane.
 * Jobs are closures run in order of class, then of arrival: fetches go before ingests. A long ingest offers
 * to be overtaken between its chunks by calling samkv_lane_yield, which runs waiting jobs of a more urgent
 * class right there; so nothing that such a job may touch (workspace) may be live across a yield.
 */
#include <pthread.h>
#include <stdbool.h>

#include "proto/status.h"

enum samkv_urgency {
    SAMKV_URGENT = 0,  /* fetch and ask */
    SAMKV_RELAXED = 1, /* ingest */
    SAMKV_DURABLE = 2, /* a pool's only: short, but waits for the disk */
};

struct samkv_lane;

enum samkv_status samkv_lane_new(const char *name, struct samkv_lane **out) SAMKV_MUST_USE;

/* Runs what is queued, then ends the thread. NULL is allowed. */
void samkv_lane_free(struct samkv_lane *);

/* Runs fn(arg) on the lane and waits for it. Any thread but the lane's own and the event loop's. */
void samkv_lane_call(struct samkv_lane *, enum samkv_urgency, void (*fn)(void *arg), void *arg);

/* A job on its way; lives with its caller until samkv_lane_wait returns. */
struct samkv_lane_job {
    void (*fn)(void *arg);
    void *arg;
    struct samkv_lane_job *next;
    pthread_cond_t finished;
    bool done;
};

/* The same in two steps: what started must be waited for, once, by any thread that may wait. */
void samkv_lane_start(struct samkv_lane *, enum samkv_urgency, void (*fn)(void *arg), void *arg,
                      struct samkv_lane_job *);
void samkv_lane_wait(struct samkv_lane *, struct samkv_lane_job *);

/* On the lane only, from within a RELAXED job: runs all urgent jobs that wait. */
void samkv_lane_yield(struct samkv_lane *);

/* Jobs waiting now. Any thread. */
int samkv_lane_waiting(const struct samkv_lane *);
