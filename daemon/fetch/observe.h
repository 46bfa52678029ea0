#pragma once
/*
 * What calibration sees of one question: where a full prefill's attention went, and how each layer ranked the blocks.
 * Private to this room.
 */
#include "daemon/fetch/reference.h"
#include "daemon/samkv/blocks.h"

struct samkv_observation {
    uint32_t layers, document_count, blocks; /* blocks of all documents */
    struct samkv_blocks *documents;          /* heap */
    float *mass;   /* [blocks] of the query's attention: mean over layers, heads and its tokens */
    float *scores; /* [layers][blocks] SamKV's scores by each layer alone */
};

/* deinit both in every case. The full prefill is made once, for the observation and the reference. */
enum samkv_status samkv_observe(struct samkv_models *, struct samkv_store *, const struct samkv_fetch_request *,
                                struct samkv_observation *, struct samkv_reference *,
                                struct samkv_error *) SAMKV_MUST_USE;
void samkv_observation_deinit(struct samkv_observation *);

/* samkv_mass_recall of the selection that these layers make of `share` of the middle blocks' tokens. Negative: there is
 * nothing to choose, or no memory. layers: ascending. */
double samkv_observation_recall(const struct samkv_observation *, const uint32_t *layers, uint32_t count, double share);

/*
 * What blocks of `factor` times the size would hold: of the attention that the middle blocks got (those of today's
 * size), the share of what a fixed selection of such larger blocks keeps at `ratio`, anchors included. A larger block's
 * score follows from those of the blocks that it is made of, since its mean of K is theirs. Negative: as above, or the
 * anchors alone would exceed the ratio.
 */
struct samkv_larger_blocks {
    uint32_t factor, init_tokens, local_tokens;
    double ratio;
};
double samkv_observation_held(const struct samkv_observation *, const uint32_t *layers, uint32_t count,
                              const struct samkv_larger_blocks *);
