#pragma once
/*
 * The quality gate's decision: from how close sparse answers were to those of full recomputation, how much a
 * collection's fetches must keep. Pure: no clock, no store, no thread of its own.
 *
 * Glossary
 *   target   what a collection needs: AGREEMENT, the share of next tokens that are those of full recomputation, at
 *            least; or KL, the divergence of the next token's distribution from full recomputation's in nats, at most.
 *   level    a step of the ladder: 0 keeps what each request asks for, the middle ones at least a ratio, the last one
 *            recomputes everything.
 *   trial    the level below is measured along with the one in use, so that going down rests on measurements too.
 *
 * Up: the recent measurements of the level in use are surely worse than the target (one-sided 95 % bound, 8 of them at
 * least), or 64 of them are on average. Down: the trial's bound is within the target, with 32 measurements at least,
 * and its recent mean is too. Between the two bounds nothing moves: that is the hysteresis.
 */
#include <stdbool.h>
#include <stdint.h>

#include "proto/status.h"

enum samkv_quality_metric {
    SAMKV_QUALITY_NONE = 0, /* pinned: stored */
    SAMKV_QUALITY_AGREEMENT = 1,
    SAMKV_QUALITY_KL = 2,
};

struct samkv_quality_target {
    enum samkv_quality_metric metric;
    double value;
};

/* "agreement=0.95", "kl=0.05", "none". INVALID with a text that says so. */
enum samkv_status samkv_quality_parse(const char *text, struct samkv_quality_target *out,
                                      struct samkv_error *) SAMKV_MUST_USE;

/* The reverse; bytes of at least 32. */
void samkv_quality_format(const struct samkv_quality_target *, char *out, size_t bytes);

/* One comparison with full recomputation. */
struct samkv_closeness {
    double agreement; /* 0 to 1 */
    double kl;        /* nats */
};

#define SAMKV_GATE_LEVELS 7

/* What fetches at this level keep at least, as a share of the documents' tokens; 0: nothing is asked. */
double samkv_gate_ratio(uint32_t level);
bool samkv_gate_is_full(uint32_t level);

/* Sums of what was measured; once `most` are in it, all sums are halved, so that old ones fade. */
struct samkv_gate_window {
    double count, sum, squares; /* of how bad each was: 1 - agreement, or KL */
};

struct samkv_gate {
    struct samkv_quality_target target;
    uint32_t level;
    struct samkv_gate_window recent[SAMKV_GATE_LEVELS], lasting[SAMKV_GATE_LEVELS];
    uint64_t measured, raised, lowered;
};

enum samkv_gate_move { SAMKV_GATE_STAYS = 0, SAMKV_GATE_RAISED = 1, SAMKV_GATE_LOWERED = 2 };

/* A new target forgets what was measured against another metric, and keeps the level. */
void samkv_gate_set(struct samkv_gate *, const struct samkv_quality_target *);

/* A measurement of a level, and what follows from it. Of `close` only the target's metric counts; not a number or out
 * of its range: nothing happens. */
enum samkv_gate_move samkv_gate_observe(struct samkv_gate *, uint32_t level, const struct samkv_closeness *close);

/* From a sample that measured all levels at once (of the full one nothing is needed): the lowest one whose mean is
 * within the target. samples: [SAMKV_GATE_LEVELS][count] */
void samkv_gate_seed(struct samkv_gate *, const struct samkv_closeness *samples, uint32_t count);

/* What is known of the level in use: the mean in the target's own metric and the bound that it is surely not worse
 * than; count 0: nothing. The full level is exact. */
struct samkv_gate_estimate {
    double count, mean, bound;
    bool met; /* by the mean */
};
struct samkv_gate_estimate samkv_gate_estimate(const struct samkv_gate *, uint32_t level);
