#pragma once
/*
 * Fetch: from document ids and a query to a sparse, recomputed KV cache in a sealed memfd.
 *   manifests → index (stable layers) and anchors → query over the anchors (lane) → select → kept blocks
 *   → recompute (lane) → seal. Steps and words: samkv-algorithm in the README.
 * Called on a pool worker; blocks. The store is read in one snapshot.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"
#include "daemon/base/lane.h"
#include "daemon/base/trace.h"
#include "daemon/samkv/lease.h"
#include "daemon/samkv/models.h"
#include "daemon/samkv/select.h"
#include "daemon/store/store.h"

#define SAMKV_MAX_DOCUMENTS 4096 /* of one request */
#define SAMKV_FETCH_RATIO   0.15 /* where neither the request nor a calibration names one */

struct samkv_fetch_result;

enum samkv_placement {
    SAMKV_PLACE_HOST = 0,   /* everything in one sealed memfd */
    SAMKV_PLACE_DEVICE = 1, /* K and V in device memory that the client maps; UNSUPPORTED on a device without */
};

/* What a fetch did, and why. */
enum samkv_decision {
    SAMKV_DECISION_SPARSE = 0,       /* as it was asked */
    SAMKV_DECISION_RAISED = 1,       /* sparse, but kept more: the collection's quality gate wants a higher ratio */
    SAMKV_DECISION_FULL_QUALITY = 2, /* everything recomputed: the gate wants that */
    SAMKV_DECISION_FULL_CHEAPER = 3, /* likewise: with the deadline in view it is done sooner than the sparse way */
};

/* How blocks are scored: the paper's way, with the query's mean against the blocks' means, or as score.h says. */
enum samkv_scoring {
    SAMKV_SCORE_MEAN = 0,
    SAMKV_SCORE_TOKENS = 1,
    SAMKV_SCORE_EXACT = 2,
    SAMKV_SCORE_LAST = 3,
    SAMKV_SCORE_ATTEND = 4,
};

struct samkv_fetch_request {
    const char *collection; /* NULL or "": "default" */
    const char *const *ids;
    size_t id_count;
    const char *query_text; /* or NULL when tokens are given */
    size_t query_bytes;
    const int32_t *query_tokens;
    size_t query_count;
    double ratio;                  /* (0, 1]; 0: the model's calibrated one, else 0.15 */
    double least_ratio;            /* the collection's quality gate keeps this much at least; 0: it does not ask */
    bool uncalibrated;             /* the model's calibration is not used */
    bool full;                     /* nor does it trust that: everything is recomputed */
    double deadline_at_ms;         /* of samkv_now_ms: after it the reply is of no use; 0: no deadline */
    enum samkv_urgency urgency;    /* of what runs on the lane; 0 is URGENT */
    bool unseen;                   /* it is no use of the documents: eviction does not hear of it */
    bool fixed;                    /* selection=fixed, else dynamic */
    const uint32_t *stable_layers; /* NULL: the model's calibrated ones, else the default */
    enum samkv_scoring scoring;
    enum samkv_neighbours neighbours;
    size_t stable_count;
    int64_t init_tokens, local_tokens; /* -1: the collection's */
    enum samkv_update update;
    double theta;
    bool no_recompute;
    bool compact; /* positions=compact, else original */
    bool with_query;
    enum samkv_placement placement;
    uint32_t user;             /* who gets the memory of SAMKV_PLACE_DEVICE: others never get the same */
    const bool *cancelled;     /* the client is gone; may be NULL */
    struct samkv_trace *trace; /* what a fetch that fails did is noted as well; may be NULL */
    /*
     * SAMKV_PLACE_DEVICE: called while the device computes, once the memory of K and V is known, so that the client
     * maps it meanwhile. Of *memory, layout and the device's fields are filled; its lease (a share of it) and
     * descriptor are taken over in every case. A failure ends the fetch. It is called again when a fetch is tried
     * again: the later memory counts. NULL: lease and descriptor come with the result.
     */
    enum samkv_status (*announce)(void *arg, struct samkv_fetch_result *memory, struct samkv_error *);
    void *announce_arg;
};

struct samkv_fetch_timing {
    double total, index, query, select, read, recompute, reply, queue; /* milliseconds */
};

/* Offsets are from the start of the memory (k and v: of the device memory, when they are there); see FetchReply in
 * samkv.proto. */
struct samkv_fetch_layout {
    uint64_t memory_bytes, k_offset, v_offset, layer_stride;
    uint64_t tokens_offset, doc_offset, index_offset, position_offset, logits_offset;
    enum samkv_dtype dtype;
    uint32_t layers, rows, kv_heads, head_dim, vocab;
};

struct samkv_fetch_result {
    int memfd; /* sealed, a valid safetensors file; owned by the result; -1 when ask keeps the cache */
    /* SAMKV_PLACE_DEVICE: K and V are here, and not in the memfd; device_bytes is 0 otherwise. Lease and descriptor are
     * NULL and -1 when they were announced. */
    struct samkv_lease *lease; /* owned: samkv_fetch_result_deinit ends it cleanly, nobody having seen it */
    int device_fd;             /* owned; for the client */
    uint64_t device_bytes;
    bool device_is_cuda; /* else plain shared memory (a CPU that plays a GPU in tests) */
    uint8_t device_uuid[16];
    struct samkv_fetch_layout layout;
    uint32_t documents;
    uint32_t block_tokens; /* block b of a document begins at its token b * block_tokens */
    uint32_t preamble_tokens, kept_tokens, total_tokens, next_position;
    double sequence_ratio, recompute_ratio;
    double *top_p;             /* [documents] */
    uint32_t *document_tokens; /* [documents] */
    uint32_t **keep;           /* [documents][keep_count[i]] block numbers, ascending */
    uint32_t *keep_count;      /* [documents] */
    uint32_t *stable_layers;
    uint32_t stable_count;
    uint64_t bytes_read, bytes_stored;
    bool anchors_exceed_budget;
    enum samkv_decision decision;
    double ratio;              /* that was used */
    double sparse_ms, full_ms; /* with a deadline: what either way was expected to take; negative: not known */
    char backend[64];
    struct samkv_fetch_timing timing_ms;
};

/* Values that mean "as the collection or the model has it". */
void samkv_fetch_request_init(struct samkv_fetch_request *);

enum samkv_status samkv_fetch(struct samkv_models *, struct samkv_store *, const struct samkv_fetch_request *,
                              struct samkv_fetch_result *out, struct samkv_error *) SAMKV_MUST_USE;
void samkv_fetch_result_deinit(struct samkv_fetch_result *);
