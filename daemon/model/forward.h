#pragma once
/*
 * The transformer's forward pass, written once over the operation table.
 *
 * A *pass* sends rows (tokens) through the layers. Each row writes its K and V into a KV cache and attends to every
 * cached row whose position is not larger than its own. The same pass serves prefill (rows are new; several documents
 * may lie behind each other, each seeing the shared preamble and itself), the query over the anchors, SamKV's
 * recomputation (rows overwrite or blend with what is cached) and decoding (one row).
 *
 * Rows come in ascending order of position and are worked off in chunks, each chunk through all its layers: later
 * rows see what earlier ones wrote, exactly as in one large pass, and the scratch memory stays bounded.
 *
 * Everything here runs on the device's lane.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>

#include "proto/status.h"
#include "kernels/kernels.h"
#include "daemon/model/model.h"

/* K (after RoPE) and V of all layers: (rows, kv_heads, head_dim) each, in the device's activation type. */
struct samkv_kv_cache {
    uint8_t *k, *v; /* layer 0; layer l lies l * layer_stride_bytes further */
    size_t layer_stride_bytes;
    size_t rows;      /* capacity */
    void *allocation; /* what samkv_kv_cache_deinit releases; NULL when the memory is somebody else's */
};

enum samkv_status samkv_kv_cache_init(struct samkv_kv_cache *, const struct samkv_model *, size_t rows,
                                      struct samkv_error *) SAMKV_MUST_USE;
void samkv_kv_cache_deinit(struct samkv_kv_cache *, struct samkv_device *);

static inline void *samkv_kv_cache_k(const struct samkv_kv_cache *c, uint32_t layer)
{
    return c->k + (size_t)layer * c->layer_stride_bytes;
}

static inline void *samkv_kv_cache_v(const struct samkv_kv_cache *c, uint32_t layer)
{
    return c->v + (size_t)layer * c->layer_stride_bytes;
}

/* Scratch memory of a lane's passes; grows to what is asked, up to one chunk of rows. */
struct samkv_workspace;

enum samkv_status samkv_workspace_new(const struct samkv_model *, struct samkv_workspace **out,
                                      struct samkv_error *) SAMKV_MUST_USE;
void samkv_workspace_free(struct samkv_workspace *); /* NULL is allowed */

/* What a tap sees of one chunk in one layer, on the device, valid during the call. */
struct samkv_tap {
    uint32_t layer;
    int first, n;  /* rows of the pass: [first, first + n) when all rows go through all layers */
    const void *q; /* [n, heads, head_dim] after RoPE, rows at distance ld */
    const void *k; /* [n, kv_heads, head_dim] before RoPE, likewise */
    const void *v;
    size_t ld;
    const float *rope;         /* [n] angles of the rows */
    const int32_t *cache_rows; /* [n] rows of the cache that they are */
};

struct samkv_pass {
    /* On the host, [n]. */
    int n;
    const int32_t *ids;
    const int32_t *positions;  /* ascending within what sees each other */
    const int32_t *cache_rows; /* the row of the cache that each row is */
    /* Each row sees the cache's rows [0, prefix) and [first, limit), its own included. firsts NULL: [0, limit). Both
     * rise from row to row, but a limit may fall where a new first begins. */
    int prefix;
    const int32_t *firsts;
    const int32_t *limits;
    /* Layers that each row goes through; NULL: all go through `depth`. Nobody reads a row's hidden state behind its
     * last layer: it leaves that layer after the tap, its K and V being in the cache, unless its logits are wanted. */
    const uint32_t *depths;
    uint32_t depth;

    enum samkv_update update;
    float theta;
    int fresh_from; /* rows from here on were not cached before and always overwrite */

    /* Called in each layer once Q has its RoPE and the chunk's K and V are in the cache. May be NULL. */
    void (*tap)(void *arg, struct samkv_stream *, const struct samkv_tap *);
    void *tap_arg;

    /* Called before each layer; may wait until the cache's rows are there that the layer needs. May be NULL. What is
     * enqueued goes on meanwhile; a failure ends the pass. */
    enum samkv_status (*before_layer)(void *arg, uint32_t layer, struct samkv_error *);
    void *before_layer_arg;

    /* host, [logits_rows][vocab]: what follows each of the last rows, which go through all layers; NULL: not wanted.
     * More than one (0 is one): in a pass of one chunk only. */
    float *logits;
    int logits_rows;
    const bool *cancelled; /* looked at between chunks; may be NULL */
};

/* Runs the pass and waits for it. CANCELLED when *cancelled became true; UNSUPPORTED for a position that the model's
 * sliding window does not reach back from. */
enum samkv_status samkv_forward(const struct samkv_model *, struct samkv_stream *, struct samkv_workspace *,
                                const struct samkv_pass *, struct samkv_kv_cache *,
                                struct samkv_error *) SAMKV_MUST_USE;

/*
 * Rows of one layer in one stored form into the cache, rows [first_row, first_row + n): K gets its RoPE from
 * `rope` (see samkv_rope_rows), unless the layer has none.
 */
void samkv_cache_place(const struct samkv_model *, struct samkv_stream *, struct samkv_kv_cache *, uint32_t layer,
                       const void *k_src, const void *v_src, enum samkv_dtype src_dtype, const float *rope,
                       int first_row, int n);

/* A RoPE table for n host positions in a buffer of the caller's ([n][2][head_dim/2] floats on the device);
 * `positions_device` is scratch for n int32 on the device. */
void samkv_rope_rows(const struct samkv_model *, struct samkv_stream *, const double *inv_freq_device,
                     const int32_t *positions, int n, int32_t *positions_device, float *table);

/* The same without the model's RoPE scale (YaRN's): moves what has its RoPE already to other positions. */
void samkv_rotation_rows(const struct samkv_model *, struct samkv_stream *, const double *inv_freq_device,
                         const int32_t *positions, int n, int32_t *positions_device, float *table);

/* The model's inverse frequencies on the device. */
const double *samkv_workspace_inv_freq(const struct samkv_workspace *);

/* On the device, [layers]: 1 for a layer without RoPE. NULL when all have it. */
const uint8_t *samkv_workspace_no_rope(const struct samkv_workspace *);

/* Rows of one chunk on this device. */
int samkv_workspace_chunk_rows(const struct samkv_workspace *);
