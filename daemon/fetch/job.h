#pragma once
/*
 * A fetch in its steps, shared by samkv_fetch (whose cache ends in a memfd) and samkv_ask (which goes on decoding).
 * Private to this room.
 *
 *   open → plan → load → place → recompute → (seal | decode) → close
 */
#include "daemon/base/clock.h"
#include "daemon/fetch/fetch.h"
#include "daemon/ingest/spec.h"
#include "daemon/ingest/load.h"
#include "daemon/samkv/recompute.h"
#include "daemon/samkv/select.h"
#include "daemon/samkv/stage.h"

struct samkv_fetch_document {
    struct samkv_manifest manifest;
    struct samkv_blocks blocks; /* with this request's anchor sizes */
    uint32_t start;             /* joint position of its first token */
    int32_t *tokens;            /* [manifest.tokens], heap; NULL until read */
    size_t first_kept_row;      /* of the kept rows */
};

struct samkv_record_want; /* transfer.h */

struct samkv_fetch_pins {
    struct samkv_record_want *wants; /* heap; their entries are pinned */
    size_t count;
};

struct samkv_fetch_job {
    const struct samkv_fetch_request *request;
    struct samkv_snapshot *snapshot;
    struct samkv_collection collection;
    struct samkv_engine engine; /* a copy, `stored` being the collection's */
    struct samkv_fetch_document *documents;
    uint32_t document_count;
    int32_t *query; /* heap */
    size_t query_count;
    uint32_t *stable; /* ascending, heap */
    uint32_t stable_count;
    double ratio; /* the request's, the calibration's or the default, raised by the gate */
    bool fixed;   /* the ratio is filled: the request wants it, or the ratio is a measured one, which was filled */
    enum samkv_decision decision;
    double sparse_ms, full_ms; /* see the result */
    float *scores;             /* [stable][all blocks], borrowed: planning leaves its scores there; else NULL */
    uint32_t total_tokens;
    uint32_t query_position; /* joint position of the query's first token */

    /* On a unified device: */
    struct samkv_stage preamble; /* stored rows of the preamble; rows 0 when there is none */
    struct samkv_stage anchors;  /* stored rows of all anchors, documents in order */
    /* On another one: */
    struct samkv_manifest preamble_manifest; /* blocks 0 when there is none */
    struct samkv_fetch_pins planned, kept;   /* what of the device's cache the job uses */

    struct samkv_selection selection;

    /* The rows of the reply: preamble, kept tokens, then the query (with_query). */
    uint32_t rows, query_rows;
    int32_t *tokens, *doc, *index, *position; /* [rows], one allocation */
    uint32_t *depth;                          /* [rows], of the same allocation */
    float *logits;                            /* [vocab], with_query */
    struct samkv_stage stage;                 /* stored rows of preamble and kept tokens; on a unified device */
    struct samkv_kv_cache cache;              /* the same after RoPE and recomputation, and the query's */
    uint64_t recomputed;                      /* (document token, layer) pairs */
    uint64_t bytes_stored;
    double started_ms;
    struct samkv_fetch_timing timing;
    double query_lane_ms, recompute_lane_ms; /* of timing's query and recompute: without waiting for the lane */
};

/* Milliseconds since *since, which becomes now; the trace gets them as this phase. */
static inline double samkv_fetch_job_lap(const struct samkv_fetch_job *job, enum samkv_phase phase, double *since)
{
    return samkv_trace_lap(job->request->trace, phase, since);
}

/* Validates the request and reads everything small: collection, manifests, the query's tokens. with_query of
 * the request may be forced (ask). The job is zeroed first; close it in every case. */
enum samkv_status samkv_fetch_job_open(struct samkv_fetch_job *, struct samkv_models *, struct samkv_store *,
                                       const struct samkv_fetch_request *, struct samkv_error *) SAMKV_MUST_USE;
void samkv_fetch_job_close(struct samkv_fetch_job *);

/* The documents' tokens, which laying out needs and reads if nobody did before: there may be a better moment. */
enum samkv_status samkv_fetch_job_read_tokens(struct samkv_fetch_job *, struct samkv_error *) SAMKV_MUST_USE;

/* Index and anchors, the query over them, the selection. */
enum samkv_status samkv_fetch_job_plan(struct samkv_fetch_job *, struct samkv_error *) SAMKV_MUST_USE;
/* What planning is made of on every device: step 1's pass over this many rows of preamble and anchors, and the choice
 * by the query's vectors or by scores that a device made of them. */
struct samkv_query_pass samkv_fetch_job_query_pass(const struct samkv_fetch_job *, size_t anchor_rows);
enum samkv_status samkv_fetch_job_select(struct samkv_fetch_job *, const struct samkv_select_document *,
                                         const float *const *q_query, const float *scores,
                                         struct samkv_error *) SAMKV_MUST_USE;
/* Whether the query's pass sees this block of a document: anchors, or with SAMKV_SCORE_ATTEND all. */
bool samkv_fetch_job_query_sees(const struct samkv_fetch_job *, const struct samkv_blocks *, uint32_t block);
/* Whether blocks are scored as score.h says, and not by the query's mean. */
bool samkv_fetch_job_scores_tokens(const struct samkv_fetch_job *);
/* Instead of plan: everything is kept and nothing recomputed (naive reuse). */
enum samkv_status samkv_fetch_job_keep_all(struct samkv_fetch_job *, struct samkv_error *) SAMKV_MUST_USE;

/* Whether everything is recomputed. */
static inline bool samkv_fetch_job_is_full(const struct samkv_fetch_job *job)
{
    return job->decision >= SAMKV_DECISION_FULL_QUALITY;
}

/* Once the job is open: the sparse way or a full recomputation, by the gate and the deadline. TIMEOUT when the deadline
 * is over, or neither way can keep it. */
enum samkv_status samkv_fetch_job_decide(struct samkv_fetch_job *, struct samkv_error *) SAMKV_MUST_USE;

/* TIMEOUT when the deadline is over. */
enum samkv_status samkv_fetch_job_check_deadline(const struct samkv_fetch_job *, struct samkv_error *) SAMKV_MUST_USE;

/* What the job's phases took, for later estimates. */
void samkv_fetch_job_learn(const struct samkv_fetch_job *);

/* Instead of plan: everything is kept and recomputed in all layers. Then laying out has the query along if wanted. */
enum samkv_status samkv_fetch_job_keep_full(struct samkv_fetch_job *, struct samkv_error *) SAMKV_MUST_USE;

/*
 * Instead of fill: the laid out rows, all of them, jointly prefilled into job->cache (given), where row, position and
 * visible rows are the same thing. step_rows 0: in one call on the lane; else in several, between which others' turn
 * comes. tap (may be NULL) sees each pass; *pass_first (may be NULL) is then the prompt's row that is the pass's first.
 */
struct samkv_full_prefill {
    int step_rows;
    void (*tap)(void *arg, struct samkv_stream *, const struct samkv_tap *);
    void *tap_arg;
    int *pass_first;
    void (*meanwhile)(void *arg); /* as of fill; may be NULL */
    void *meanwhile_arg;
};
enum samkv_status samkv_fetch_job_prefill(struct samkv_fetch_job *, const struct samkv_full_prefill *,
                                          struct samkv_error *) SAMKV_MUST_USE;

/* The rows of the reply, from the selection. */
enum samkv_status samkv_fetch_job_lay_out(struct samkv_fetch_job *, bool with_query,
                                          struct samkv_error *) SAMKV_MUST_USE;

/* The first layer in which a kept block's stored K and V are used: behind those that overwrite them. `layers` for none.
 */
uint32_t samkv_fetch_job_first_layer(const struct samkv_fetch_job *, uint32_t document, uint32_t block);

/* Step 5 over the rows that were laid out. */
struct samkv_recompute samkv_fetch_job_recomputation(const struct samkv_fetch_job *);

/* Kept blocks from the store (anchors from memory) into job->stage, then with RoPE into job->cache, which are given
 * (the stage on a unified device only), then the recomputation. meanwhile: see device.h; never called on a unified
 * device. */
enum samkv_status samkv_fetch_job_fill(struct samkv_fetch_job *, void (*meanwhile)(void *arg), void *arg,
                                       struct samkv_error *) SAMKV_MUST_USE;

/* What the reply says besides the memory. */
enum samkv_status samkv_fetch_job_report(const struct samkv_fetch_job *, struct samkv_fetch_result *,
                                         struct samkv_error *) SAMKV_MUST_USE;

/* On the lane: all rows in one joint pass, where every token is kept, so that row, position and visible keys are the
 * same thing. `index` is not needed any more and lends its memory to the limits. */
enum samkv_status samkv_fetch_job_prefill_in_place(struct samkv_fetch_job *, struct samkv_error *) SAMKV_MUST_USE;
