#pragma once
/* What an evaluation's steps share. Private to this room. */
#include "daemon/base/ids.h"
#include "daemon/fetch/evaluate.h"
#include "daemon/fetch/job.h"

#define SAMKV_EVALUATED_GOLD_TOKENS 64 /* of the right answer that count */

/* A variant's cache in the arena, and what became of it. */
struct samkv_eval_slot {
    uint32_t variant;   /* its number in the request; of FULL: any */
    uint32_t first_row; /* of the arena */
    uint32_t rows;      /* of the prompt */
    int32_t position;   /* of what follows it */
    float *logits;      /* [vocab] of what follows the prompt, then of what follows the answer so far; heap */
    double log_likelihood, kl, first_token_ms;
    struct samkv_ids answer;
    bool ended;
    struct samkv_fetch_result fetch;
};

struct samkv_eval {
    struct samkv_models *models;
    struct samkv_store *store;
    const struct samkv_evaluate_request *request;
    struct samkv_engine *engine;
    struct samkv_ids query, gold;
    uint32_t max_tokens;
    struct samkv_kv_cache arena;
    size_t arena_rows, used_rows;
    struct samkv_eval_slot *slots; /* [variant_count + 1], of which the first slot_count are in use */
    size_t slot_count;
    float *full_logits; /* [vocab], heap; NULL before the full cache is there */
    struct samkv_ids full_answer;
};

/* Rows behind a prompt that an answer, or the gold answer, may need. */
static inline uint32_t samkv_eval_spare_rows(const struct samkv_eval *e)
{
    uint32_t gold = (uint32_t)e->gold.count;
    return e->max_tokens > gold ? e->max_tokens : gold;
}

/* The fetch that stands behind a variant. */
struct samkv_fetch_request samkv_eval_fetch(const struct samkv_eval *, const struct samkv_variant *);

/*
 * The next slot's cache with the query's rows, and the logits behind them. *fits false: the arena has no room for it
 * any more, and nothing was done. FULL, when it comes first, allocates the arena.
 */
enum samkv_status samkv_eval_fill(struct samkv_eval *, uint32_t variant, const struct samkv_variant *, bool *fits,
                                  struct samkv_error *) SAMKV_MUST_USE;

/* Steps of CACHEBLEND on a job that is laid out, with its cache: load, compare, recompute. */
enum samkv_status samkv_eval_blend(struct samkv_fetch_job *, double share, struct samkv_error *) SAMKV_MUST_USE;

/* Instead of a plan: what a cut keeps, none of it recomputed. */
enum samkv_status samkv_eval_cut(struct samkv_fetch_job *, enum samkv_cut, uint64_t seed,
                                 struct samkv_error *) SAMKV_MUST_USE;

/* Likelihood of the gold answer and greedy answer of all slots, side by side. */
enum samkv_status samkv_eval_decode(struct samkv_eval *, struct samkv_error *) SAMKV_MUST_USE;

/* KL(p ‖ q) of two rows of logits, in nats; the log-likelihood of one token. */
double samkv_eval_kl(const float *p, const float *q, uint32_t vocab);
double samkv_eval_log_likelihood(const float *logits, uint32_t vocab, int32_t token);
