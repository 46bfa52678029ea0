#pragma once
/*
 * How close a sparse answer is to that of full recomputation. A *reference* is what full recomputation says to a
 * question: its first tokens, greedily, with the whole distribution at each of them. Another way of making the cache is
 * then asked for the same tokens one by one (each behind the reference's own), so that both speak of the same places.
 *
 * For calibration and the quality gate: everything runs with the request's urgency, the full prefill in steps between
 * which fetches have their turn. Called on a worker or the gate's own thread; blocks.
 */
#include "daemon/fetch/fetch.h"
#include "daemon/samkv/gate.h"

#define SAMKV_REFERENCE_TOKENS 4 /* of an answer; it may end before */

struct samkv_reference {
    uint32_t vocab, count; /* places in the answer */
    int32_t *answer;       /* [count] the best token at each place */
    float *logits;         /* [count][vocab] */
    uint32_t prompt_tokens;
    double ms;
};

/* deinit in every case. `probe` (may be NULL) is called once the prompt is prefilled, with the job and the cache of its
 * rows; struct samkv_fetch_job is private to this room. */
struct samkv_fetch_job;
struct samkv_full_prefill;
struct samkv_reference_probe {
    /* Before the prefill: may set its tap. */
    enum samkv_status (*begin)(void *arg, struct samkv_fetch_job *, struct samkv_full_prefill *, struct samkv_error *);
    enum samkv_status (*end)(void *arg, struct samkv_fetch_job *, struct samkv_error *);
    void *arg;
};
enum samkv_status samkv_reference_make(struct samkv_models *, struct samkv_store *, const struct samkv_fetch_request *,
                                       const struct samkv_reference_probe *probe, struct samkv_reference *out,
                                       struct samkv_error *) SAMKV_MUST_USE;
void samkv_reference_deinit(struct samkv_reference *);

struct samkv_compared {
    struct samkv_closeness close;
    double sequence_ratio, recompute_ratio, ms;
    double ratio; /* that was used */
};

/* The sparse way, as the request says; its gate and deadline mean nothing here. */
enum samkv_status samkv_reference_compare(struct samkv_models *, struct samkv_store *,
                                          const struct samkv_fetch_request *, const struct samkv_reference *,
                                          struct samkv_compared *out, struct samkv_error *) SAMKV_MUST_USE;

/* KL(p || q) of two distributions given as logits [count], in nats; how far q is from p. Pure. */
double samkv_kl(const float *p, const float *q, uint32_t count);
