#pragma once
/*
 * Scores of blocks that look at every token of the query instead of at their mean: for one stable layer, each token t
 * and query head h of the query attend to the documents,
 *
 *   score_b = mean over t, h of Σ_{keys of b} softmax(q_th · key / √d)
 *
 * TOKENS: a block is one key, its mean as the index has it, counted as often as it has tokens; so it costs what the
 * paper's score reads. EXACT: the keys are all stored ones, the preamble's among them, so that a head that attends to
 * no document says little; reads every block of every document. LAST: likewise, by the query's last token alone.
 * ATTEND: as EXACT, and the query's own pass runs over all stored tokens instead of the anchors, as over a naively
 * reused cache: what it looks for in the stable layers then depends on what it found below. Private to this room.
 */
#include "daemon/fetch/job.h"

/* Tokens of the query that count: of a long one, its last ones. */
#define SAMKV_SCORED_TOKENS 256
size_t samkv_fetch_job_scored_tokens(const struct samkv_fetch_job *);

/* Room for Q of these tokens, [stable_count][scored tokens][heads * head_dim]; heap, NULL without memory. */
float *samkv_fetch_job_rows_new(const struct samkv_fetch_job *);

/*
 * q_rows: [stable_count][scored tokens][heads * head_dim], after RoPE at joint positions. scores: [stable_count][blocks
 * of all documents], as samkv_select takes them. On several threads; not for the lane. NO_MEMORY, TOO_LARGE, CORRUPT.
 */
enum samkv_status samkv_fetch_job_score(struct samkv_fetch_job *, const float *q_rows, float *scores,
                                        struct samkv_error *) SAMKV_MUST_USE;
