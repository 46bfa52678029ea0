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
