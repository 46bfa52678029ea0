#pragma once
/* A whole prefill from a pool worker: its steps wait for passes that they share with other workers' documents, and what
 * they leave goes to a sink in between. */
#include <stdbool.h>

#include "proto/status.h"
#include "daemon/samkv/prefill.h"
#include "daemon/store/store.h"

/* What is prefilled: a document (or piece of one, or a preamble) of a collection. */
struct samkv_piece {
    const int32_t *preamble; /* NULL and 0 for a preamble itself */
    uint32_t preamble_tokens;
    struct samkv_key preamble_key;
    const int32_t *tokens;
    uint32_t count;
    struct samkv_blocks blocks;
    struct samkv_manifest manifest; /* as it is to be stored */
};

void samkv_piece_init(struct samkv_piece *, const struct samkv_collection *, const int32_t *tokens, uint32_t count,
                      bool is_preamble);

/* Takes the records of a prefill as they become ready; on the worker. */
struct samkv_sink {
    enum samkv_status (*on_block)(void *arg, uint32_t block, const void *const *pieces, struct samkv_error *);
    enum samkv_status (*on_index)(void *arg, uint32_t layer, const float *index, size_t count, struct samkv_error *);
    void *arg;
};

/*
 * Prefills behind the piece's preamble, which is loaded from the store when the device does not have it, and feeds the
 * sink. Adds device time to *prefill_ms, shared passes by rows. CANCELLED.
 */
enum samkv_status samkv_run_prefill(const struct samkv_engine *, struct samkv_store *, const struct samkv_piece *,
                                    const struct samkv_sink *, const bool *cancelled, double *prefill_ms,
                                    struct samkv_error *) SAMKV_MUST_USE;
