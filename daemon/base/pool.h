#pragma once
/*
 * A bounded pool of worker threads for jobs that may block: whole fetches and ingests (each a readable
 * sequence of steps that waits for its device lane and for the store), and small parallel loops within them.
 * Three classes: urgent jobs (fetch, ask, ls) never wait behind others, since at most half of the workers run relaxed
 * jobs (ingest, verify) at a time, and at most a quarter durable ones (rm, pin, set), which go before relaxed ones:
 * they sleep until the disk has them, and many of them would else have all workers do so. Of two or three workers, one
 * is for urgent jobs only.
 */
#include <stdint.h>

#include "proto/status.h"
#include "daemon/base/lane.h"

struct samkv_pool;

/* workers >= 2; at most `queue` jobs of each class wait, more are refused with BUSY. */
enum samkv_status samkv_pool_new(int workers, int queue, struct samkv_pool **out) SAMKV_MUST_USE;

/* Waits for running jobs and drops queued ones by calling them with cancelled = true. NULL is allowed. */
void samkv_pool_free(struct samkv_pool *);

/* Calls what is queued now with cancelled = true, on the caller's thread; running jobs go on. Any thread. */
void samkv_pool_drop_queued(struct samkv_pool *);

/* Never blocks. OK, or BUSY when the queue is full (then fn is not called). For user 0. Any thread. */
enum samkv_status samkv_pool_submit(struct samkv_pool *, enum samkv_urgency, void (*fn)(void *arg, bool cancelled),
                                    void *arg) SAMKV_MUST_USE;

/* The same for a user: within a class, those who have jobs that wait take turns, so that nobody's many keep another's
 * few waiting. */
enum samkv_status samkv_pool_submit_for(struct samkv_pool *, uint32_t user, enum samkv_urgency,
                                        void (*fn)(void *arg, bool cancelled), void *arg) SAMKV_MUST_USE;

/* Jobs of this class that wait now. Any thread. */
int samkv_pool_waiting(struct samkv_pool *, enum samkv_urgency);

/* Calls fn(arg, i) for i in [0, n), on the caller and on up to `threads` - 1 short-lived helper threads; returns when
 * all are done. */
void samkv_parallel_for(int n, int threads, void (*fn)(void *arg, int i), void *arg);
