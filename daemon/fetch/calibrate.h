#pragma once
/*
 * Calibration: which layers of a model rank blocks best, and what its sparse answers are worth. On a sample of
 * questions:
 *
 *   1. Every prompt is prefilled in full. Where its query's attention goes (mean over layers, heads and query tokens,
 * by block) is what a ranking ought to find; how the answer begins is what a sparse answer ought to be.
 *   2. *Recall* of a set of layers: of that attention, what the middle blocks that the set would keep got, beside the
 *      most that as many tokens could have got. Sets are built greedily, a layer at a time, by mean recall.
 *   3. These sets, each also with the last layer (which layers are stable decides how deep is recomputed as well), the
 *      last eighth and the last quarter are tried for real: the set with the least KL to full recomputation is chosen.
 *   4. With that set: the quality gate's levels, and anchors of other sizes.
 *   5. Blocks of two, four and eight times the size, by how much of the attention they would hold at the same ratio;
 *      the largest that holds nearly as much is recommended to new collections. (For smaller ones, calibrate with a
 *      collection that has them.)
 *
 * Called on a worker; blocks for minutes. Runs beside fetches, which go first.
 */
#include "daemon/fetch/fetch.h"
#include "daemon/fetch/questions.h"
#include "daemon/ingest/calibration.h"
#include "daemon/samkv/gate.h"

#define SAMKV_CALIBRATE_SAMPLE     16
#define SAMKV_CALIBRATE_MAX_SAMPLE 512
#define SAMKV_CALIBRATE_SETS       12
#define SAMKV_CALIBRATE_VARIANTS   (SAMKV_CALIBRATE_SETS + SAMKV_GATE_LEVELS + 8)

struct samkv_calibrate_progress {
    const char *phase; /* "prefill", "layers", "ratios", "anchors" */
    uint32_t done, total;
};

struct samkv_calibrate_request {
    const char *collection; /* NULL or "": "default" */
    const struct samkv_given_question *questions;
    size_t question_count; /* 0: they are drawn from the collection */
    uint32_t sample;       /* questions at most; 0: SAMKV_CALIBRATE_SAMPLE, or all that are given */
    uint64_t seed;
    double ratio; /* of level 0; 0: 0.15 */
    bool fixed;   /* it is filled */
    enum samkv_update update;
    struct samkv_quality_target target; /* what the ratio is to reach; NONE: no ratio is chosen */
    const bool *cancelled;
    /* May be NULL; false ends it with CANCELLED. */
    bool (*progress)(void *arg, const struct samkv_calibrate_progress *);
    void *progress_arg;
};

enum samkv_calibrate_kind { SAMKV_VARIANT_LAYERS, SAMKV_VARIANT_RATIO, SAMKV_VARIANT_ANCHORS, SAMKV_VARIANT_BLOCKS };

/* One way to fetch, and what it came to: means over the sample. */
struct samkv_calibrate_variant {
    enum samkv_calibrate_kind kind;
    char what[32]; /* "last eighth", "best 2", "best 2 and last", "at least 0.25", … */
    uint32_t layers[SAMKV_CALIBRATION_MAX_LAYERS], layer_count;
    double ratio;
    bool fixed;
    int64_t init_tokens, local_tokens; /* -1: the collection's */
    double recall;                     /* of blocks: the share they hold; negative: not measured */
    struct samkv_closeness close;
    double agreement_error, kl_error; /* standard errors of these means */
    double sequence_ratio, recompute_ratio, ms;
    bool chosen;
};

struct samkv_calibrate_result {
    uint32_t samples, layer_count;
    double *layer_recall; /* [layer_count] of each layer alone; heap */
    struct samkv_calibrate_variant variants[SAMKV_CALIBRATE_VARIANTS];
    uint32_t variant_count;
    struct samkv_calibration calibration;
    struct samkv_closeness *levels; /* [SAMKV_GATE_LEVELS][samples], for samkv_gate_seed; heap */
    char model[64];
    double full_ms; /* mean of a full prefill */
};

/* deinit in every case. Nothing is stored. INVALID, NOT_FOUND, TOO_LARGE, CANCELLED. */
enum samkv_status samkv_calibrate(struct samkv_models *, struct samkv_store *, const struct samkv_calibrate_request *,
                                  struct samkv_calibrate_result *, struct samkv_error *) SAMKV_MUST_USE;
void samkv_calibrate_result_deinit(struct samkv_calibrate_result *);
