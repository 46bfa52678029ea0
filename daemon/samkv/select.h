#pragma once
/*
 * SamKV's decision: which blocks of which document are kept, from the index and one query vector alone.
 * Steps 2 to 4 of the algorithm (Cao et al., "Sparse Attention across Multiple-context KV Cache", AAAI 2026): the
 * personalised query vector, dynamic top-P, and the filter across documents. Pure: no device, no store, no clock.
 *
 * Shapes: S stable layers, H query heads, G KV heads, d = head_dim, width = G · d. Floats are the index's f32; sums are
 * taken in f64.
 */
#include <stdbool.h>
#include <stdint.h>

#include "proto/status.h"
#include "daemon/samkv/blocks.h"

/* What a chosen block brings along, within the same budget: the one on its left, or those on both sides. */
enum samkv_neighbours { SAMKV_NEIGHBOURS_NONE = 0, SAMKV_NEIGHBOURS_LEFT = 1, SAMKV_NEIGHBOURS_BOTH = 2 };

struct samkv_select_document {
    struct samkv_blocks blocks;
    uint32_t start;             /* joint position of its first token, s_i */
    const float *const *kmean;  /* [S] → [blocks][width], rotated to document-relative positions */
    const float *const *qlocal; /* [S] → [H][d], likewise. Both NULL when the scores are given */
};

struct samkv_select_input {
    uint32_t stable_count;
    const uint32_t *stable_layers; /* ascending */
    uint32_t heads, kv_heads, head_dim;
    const double *inv_freq;      /* [d/2] */
    const bool *no_rope;         /* by layer: its vectors are not rotated. NULL: all layers' are */
    const float *const *q_query; /* [S] → [H][d]: the generic query vector, after RoPE at joint positions */
    const float *scores;         /* [S][all blocks], documents in order: steps 2 and 3 were a device's; else NULL */
    const struct samkv_select_document *documents;
    uint32_t document_count;
    double ratio;
    bool fixed; /* every middle block competes, not only the proposed ones */
    enum samkv_neighbours neighbours;
};

/* One per document; heap, freed by samkv_selection_deinit. */
struct samkv_selected {
    uint32_t *keep; /* block numbers, ascending, anchors included */
    uint32_t keep_count;
    double top_p; /* P_i */
    /* [blocks]: layers in which the block is recomputed, counted from layer 0: an anchor (or any block when fixed) up
     * to the last stable layer, another one up to the last stable layer that proposed it. */
    uint32_t *depth;
};

struct samkv_selection {
    struct samkv_selected *documents;
    uint32_t document_count;
    uint32_t kept_tokens;
    uint64_t budget_tokens;
    bool anchors_exceed_budget;
};

/* Steps 2 and 3 up to the scores alone; in->scores is not used. out: [stable_count][all blocks], documents in order. */
enum samkv_status samkv_select_scores(const struct samkv_select_input *, float *out,
                                      struct samkv_error *) SAMKV_MUST_USE;

enum samkv_status samkv_select(const struct samkv_select_input *, struct samkv_selection *out,
                               struct samkv_error *) SAMKV_MUST_USE;

/* The selection that keeps every block and recomputes each through `depth` layers (naive reuse: 0). */
enum samkv_status samkv_select_all(const struct samkv_blocks *documents, uint32_t document_count, uint32_t depth,
                                   struct samkv_selection *out, struct samkv_error *) SAMKV_MUST_USE;

void samkv_selection_deinit(struct samkv_selection *);
