#pragma once
/*
 * Prefill of a document behind its preamble, for a worker: the KV cache's stored form (K before RoPE, V) and the index
 * that selection needs (block means of K, the local query).
 *
 * Documents that wait at the same time and stand behind the same preamble go through the model in one packed pass
 * (packed.h); what it leaves is read by their workers side by side while the next pass is computed. A document that is
 * longer than a pass goes alone, in steps of whole blocks, each of which sees the earlier ones.
 */
#include <stdbool.h>
#include <stdint.h>

#include "proto/status.h"
#include "daemon/base/batch.h"
#include "daemon/samkv/landing.h"
#include "daemon/samkv/models.h"

/* Of an engine: the queue of documents, device memory, and host memory of two passes. */
struct samkv_prefiller;

enum samkv_status samkv_prefiller_new(struct samkv_device *, const struct samkv_workspace *,
                                      struct samkv_prefiller **out) SAMKV_MUST_USE;
void samkv_prefiller_free(struct samkv_prefiller *); /* NULL is allowed; nobody prefills */

/* What stands in front of a document. tokens 0: nothing. */
struct samkv_preamble {
    uint32_t tokens;
    uint8_t key[16]; /* equal keys are equal preambles */
    /* Its stored rows, into a stage that the caller deinits. On the thread of some worker that stands behind this
     * preamble, when the device does not have it. */
    enum samkv_status (*load)(void *arg, struct samkv_stage *out, struct samkv_error *);
    void *arg;
};

struct samkv_prefill {
    const struct samkv_engine *engine;
    struct samkv_preamble preamble;
    uint32_t step_tokens;                /* of one step: all of them, or a multiple of the block size */
    uint32_t done;                       /* tokens that are through */
    struct samkv_part part;              /* the last step */
    const struct samkv_landing *landing; /* which holds it until samkv_prefill_release; NULL: none */
    float *index;                        /* host: [layers][index_count] */
    size_t index_count;
    double ms; /* device time, by its share of the rows */
    /* Of a document that is longer than a pass: its own cache, on the device. */
    bool is_long;
    struct samkv_kv_cache cache;
    struct samkv_batch_item item;
};

/* ids are borrowed until deinit; cancelled may be NULL, and is looked at before each step. Any thread. */
enum samkv_status samkv_prefill_init(struct samkv_prefill *, const struct samkv_engine *, const struct samkv_preamble *,
                                     const int32_t *ids, const struct samkv_blocks *, const bool *cancelled,
                                     struct samkv_error *) SAMKV_MUST_USE;
void samkv_prefill_deinit(struct samkv_prefill *);

/*
 * The next step, on the engine's lane with what else waits there; blocks. Afterwards the landing holds tokens
 * [part.first, done) until samkv_prefill_release, which must come before the next step and soon: other documents wait
 * for the memory. The index is complete when done == blocks.tokens. CANCELLED.
 */
enum samkv_status samkv_prefill_step(struct samkv_prefill *, struct samkv_error *) SAMKV_MUST_USE;
void samkv_prefill_release(struct samkv_prefill *);

/* The 2 · layers pieces of a block of the last step, as the store wants them. */
void samkv_prefill_pieces(const struct samkv_prefill *, uint32_t block, void **pieces);

/* Index of one layer, as the store wants it. */
static inline const float *samkv_prefill_index(const struct samkv_prefill *p, uint32_t layer)
{
    return p->index + (size_t)layer * p->index_count;
}
