#pragma once
/*
 * The two passes of a fetch over the model: the query over the anchors (step 1) and the local recomputation of what
 * was kept (step 5). Both run on the lane and wait.
 */
#include <stdint.h>

#include "proto/status.h"
#include "daemon/model/forward.h"
#include "daemon/samkv/models.h"

/*
 * Q_que[l] for each stable layer: the mean over the query's tokens of Q after RoPE. `cache` holds the preamble and all
 * anchors in rows [0, anchor_rows) and has room for `query_count` more. out: [stable_count][heads * head_dim], host.
 */
struct samkv_query_pass {
    const int32_t *query; /* [query_count] */
    int query_count;
    int32_t first_position; /* joint position of the query's first token */
    int anchor_rows;
    const uint32_t *stable_layers; /* ascending */
    uint32_t stable_count;
    /* See struct samkv_pass: rows of the cache may come while the query's pass runs. May be NULL. */
    enum samkv_status (*before_layer)(void *arg, uint32_t layer, struct samkv_error *);
    void *before_layer_arg;
    const bool *cancelled;
};

/*
 * The pass itself, with a tap of the caller's (may be NULL) behind each layer's Q. `samkv_query_rows` has Q of the
 * query's last `count` tokens in each stable layer, after RoPE: out [stable_count][count][heads * head_dim], host.
 */
enum samkv_status samkv_query_run(const struct samkv_engine *, struct samkv_kv_cache *, const struct samkv_query_pass *,
                                  void (*tap)(void *, struct samkv_stream *, const struct samkv_tap *), void *tap_arg,
                                  struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_query_rows(const struct samkv_engine *, struct samkv_kv_cache *,
                                   const struct samkv_query_pass *, int count, float *out,
                                   struct samkv_error *) SAMKV_MUST_USE;

/*
 * Steps 2 and 3 up to the scores, on the device and right behind the query's pass. Host arrays but for what `index`
 * points to, which are the documents' index records as stored (see struct samkv_score).
 */
struct samkv_query_scoring {
    uint32_t documents;
    const float *const *index;  /* [documents][stable_count] device pointers */
    const int32_t *first_block; /* [documents + 1] */
    const int32_t *starts;      /* [documents]: joint positions of the documents' first tokens */
    float *scores;              /* out: [stable_count][first_block[documents]] */
    /* Called behind the query's pass; may wait until the index records are there, and `index` filled. May be NULL. */
    enum samkv_status (*ready)(void *arg, struct samkv_error *);
    void *ready_arg;
};
enum samkv_status samkv_query_scores(const struct samkv_engine *, struct samkv_kv_cache *,
                                     const struct samkv_query_pass *, const struct samkv_query_scoring *,
                                     struct samkv_error *) SAMKV_MUST_USE;

enum samkv_status samkv_query_vector(const struct samkv_engine *, struct samkv_kv_cache *,
                                     const struct samkv_query_pass *, float *out, struct samkv_error *) SAMKV_MUST_USE;

/* Rows [0, rows) of the cache are the preamble and what was kept; the query's tokens (if any) follow as new rows. */
struct samkv_recompute {
    int rows, query_count;
    const int32_t *ids;       /* [rows + query_count] */
    const int32_t *positions; /* likewise, ascending */
    const uint32_t *depths;   /* likewise: layers that a row is recomputed in; 0 for the preamble, all for the query */
    enum samkv_update update; /* DELTA: see recompute_delta.c */
    float theta;
    /* For DELTA only, [rows]: whose each row is, ascending, -1: the preamble's; and its place there. All rows of
     * documents then have the same depth. */
    const int32_t *documents, *indices;
    float *logits; /* host, [vocab], of what follows the query; NULL: not wanted */
    /* See struct samkv_pass: rows of the cache may come while the recomputation runs. May be NULL. */
    enum samkv_status (*before_layer)(void *arg, uint32_t layer, struct samkv_error *);
    void *before_layer_arg;
    const bool *cancelled;
};

enum samkv_status samkv_recompute(const struct samkv_engine *, struct samkv_kv_cache *, const struct samkv_recompute *,
                                  struct samkv_error *) SAMKV_MUST_USE;
