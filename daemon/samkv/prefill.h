#pragma once
/*
 * Prefill of one document behind its preamble, chunk by chunk: the KV cache's stored form (K before RoPE, V) and the
 * index that selection needs (block means of K, the local query). Step 1 to 3 of "Ingest" in the algorithm.
 *
 * RoPE is linear, so means can be taken of rotated keys: they are taken over the cache (rotated to P + t) and turned
 * back by R(−P), which makes them relative to the document's start.
 */
#include <stdint.h>

#include "proto/status.h"
#include "daemon/samkv/blocks.h"
#include "daemon/samkv/models.h"
#include "daemon/samkv/stage.h"

struct samkv_prefill {
    const struct samkv_engine *engine;
    const int32_t *ids;
    struct samkv_blocks blocks; /* made with the collection's anchor sizes */
    uint32_t preamble_tokens;
    uint32_t chunk_tokens;       /* rows of one step: a multiple of the block size */
    uint32_t done;               /* tokens that are through */
    struct samkv_kv_cache cache; /* preamble and document, K after RoPE */
    struct samkv_stage stage;    /* stored form of the last step's chunk */
    float *index;                /* host: [layers][index_count] */
    size_t index_count;          /* blocks * width + heads * head_dim: block means, then the local query */
    /* Device scratch. */
    void *staged_k, *staged_v, *converted; /* a chunk's rows on a device that is not unified */
    float *means, *rope_zero, *rope_back;
    int32_t *offsets, *positions;
    float *means_host;
};

/*
 * preamble: stored rows of the preamble, or NULL when there is none. ids are borrowed until deinit. Any thread may init
 * and deinit on a unified device; others want the lane: call both there.
 */
enum samkv_status samkv_prefill_init(struct samkv_prefill *, const struct samkv_engine *,
                                     const struct samkv_stage *preamble, const int32_t *ids,
                                     const struct samkv_blocks *, struct samkv_error *) SAMKV_MUST_USE;
void samkv_prefill_deinit(struct samkv_prefill *);

/*
 * On the lane: the next chunk, document tokens [done, done + chunk). Afterwards stage holds its rows from row 0 and
 * done is advanced; the index is complete when done == blocks.tokens.
 */
enum samkv_status samkv_prefill_step(struct samkv_prefill *, struct samkv_error *) SAMKV_MUST_USE;

/* Index of one layer, as the store wants it. */
static inline const float *samkv_prefill_index(const struct samkv_prefill *p, uint32_t layer)
{
    return p->index + (size_t)layer * p->index_count;
}
