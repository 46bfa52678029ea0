#pragma once
/*
 * What the daemon counts about itself: a table of counters and one of histograms. Any thread; counters only grow.
 * These names are those of `samkvctl status`; daemon/net/exposition.c says what Prometheus calls them.
 */
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/base/histogram.h"

/* clang-format off */
#define SAMKV_METRIC_MAP(X)                                                         \
    X(CONNECTIONS,      "connections_total")      /* accepted */                    \
    X(REFUSED,          "connections_refused")    /* beyond the limit */            \
    X(PROTOCOL_ERRORS,  "protocol_errors")        /* connections closed for them */ \
    X(BYTES_RECEIVED,   "bytes_received")                                           \
    X(BYTES_SENT,       "bytes_sent")                                               \
    X(PINGS,            "requests_ping")                                            \
    X(INGESTS,          "requests_ingest")                                          \
    X(FETCHES,          "requests_fetch")                                           \
    X(ASKS,             "requests_ask")                                             \
    X(LISTS,            "requests_list")                                            \
    X(SHOWS,            "requests_show")                                            \
    X(REMOVES,          "requests_remove")                                          \
    X(STATUSES,         "requests_status")                                          \
    X(VERIFIES,         "requests_verify")                                          \
    X(EXPORTS,          "requests_export")                                          \
    X(IMPORTS,          "requests_import")                                          \
    X(CONFIGURES,       "requests_configure")                                       \
    X(PINS,             "requests_pin")                                             \
    X(GCS,              "requests_gc")                                              \
    X(COMPACTS,         "requests_compact")                                         \
    X(ERRORS,           "requests_failed")        /* answered with an Error */      \
    X(BUSY,             "requests_busy")          /* of which with BUSY */          \
    X(INGEST_DOCUMENTS, "ingest_documents")       /* newly stored */                \
    X(INGEST_SKIPPED,   "ingest_skipped")         /* were there already */          \
    X(INGEST_TOKENS,    "ingest_tokens")          /* of newly stored documents */   \
    X(INGEST_RAW,       "ingest_bytes_raw")                                         \
    X(INGEST_STORED,    "ingest_bytes_stored")                                      \
    X(FETCH_READ,       "fetch_bytes_read")       /* of the store */                \
    X(FETCH_STORED,     "fetch_bytes_stored")     /* what reading all would cost */ \
    X(FETCH_KEPT,       "fetch_tokens_kept")                                        \
    X(FETCH_TOKENS,     "fetch_tokens_total")                                       \
    X(ASK_TOKENS,       "ask_tokens")                                               \
    X(REPAIRED,         "repaired_records")       /* damage computed again */       \
    X(TRACES,           "requests_trace")                                           \
    X(EVALUATIONS,      "requests_evaluate")                                        \
    X(CALIBRATES,       "requests_calibrate")                                       \
    X(FETCH_RAISED,     "fetch_raised")           /* a gate asked for more */       \
    X(FETCH_FULL,       "fetch_full_quality")     /* or for everything */           \
    X(FETCH_CHEAPER,    "fetch_full_cheaper")     /* sooner than sparsely */        \
    X(FETCH_LATE,       "fetch_deadline_missed")  /* or refused for it */
/* clang-format on */

enum samkv_metric {
#define SAMKV_METRIC_ENUM(name, text) SAMKV_METRIC_##name,
    SAMKV_METRIC_MAP(SAMKV_METRIC_ENUM)
#undef SAMKV_METRIC_ENUM
        SAMKV_METRIC_COUNT
};

/* Rows of a family stand together; the first one has its help. Phase: the label, or NULL. */
/* clang-format off */
#define SAMKV_HISTOGRAM_MAP(X)                                                                                         \
    X(FETCH_QUEUE,     SECONDS, "fetch_phase_seconds", "queue", "Time of a fetch's phases; they may overlap.")         \
    X(FETCH_INDEX,     SECONDS, "fetch_phase_seconds", "index", NULL)                                                  \
    X(FETCH_QUERY,     SECONDS, "fetch_phase_seconds", "query", NULL)                                                  \
    X(FETCH_SELECT,    SECONDS, "fetch_phase_seconds", "select", NULL)                                                 \
    X(FETCH_READ,      SECONDS, "fetch_phase_seconds", "read", NULL)                                                   \
    X(FETCH_RECOMPUTE, SECONDS, "fetch_phase_seconds", "recompute", NULL)                                              \
    X(FETCH_REPLY,     SECONDS, "fetch_phase_seconds", "reply", NULL)                                                  \
    X(FETCH_TOTAL,     SECONDS, "fetch_phase_seconds", "total", NULL)                                                  \
    X(INGEST_QUEUE,    SECONDS, "ingest_phase_seconds", "queue", "Time of an ingest's phases.")                        \
    X(INGEST_PREFILL,  SECONDS, "ingest_phase_seconds", "prefill", NULL)           /* device time */                   \
    X(INGEST_COMMIT,   SECONDS, "ingest_phase_seconds", "commit", NULL)            /* until it is on disk */           \
    X(INGEST_TOTAL,    SECONDS, "ingest_phase_seconds", "total", NULL)                                                 \
    X(ASK_FIRST_TOKEN, SECONDS, "ask_first_token_seconds", NULL, "From the request to the answer's first token.")      \
    X(SEQUENCE_RATIO,  RATIO,   "fetch_sequence_ratio", NULL, "Document tokens kept, of all.")                         \
    X(RECOMPUTE_RATIO, RATIO,   "fetch_recompute_ratio", NULL, "Recomputed pairs of token and layer, of all.")
/* clang-format on */

enum samkv_histogram_id {
#define SAMKV_HISTOGRAM_ENUM(name, scale, family, phase, help) SAMKV_HISTOGRAM_##name,
    SAMKV_HISTOGRAM_MAP(SAMKV_HISTOGRAM_ENUM)
#undef SAMKV_HISTOGRAM_ENUM
        SAMKV_HISTOGRAM_COUNT
};

struct samkv_histogram_row {
    enum samkv_scale scale;
    const char *family, *phase, *help;
};

/* All zero at the start. */
struct samkv_metrics {
    _Atomic uint64_t values[SAMKV_METRIC_COUNT];
    struct samkv_histogram histograms[SAMKV_HISTOGRAM_COUNT];
};

const char *samkv_metric_name(enum samkv_metric);
const struct samkv_histogram_row *samkv_metric_histogram(enum samkv_histogram_id);

/* A value in the histogram's unit: seconds or a share. */
void samkv_metrics_observe(struct samkv_metrics *, enum samkv_histogram_id, double value);

static inline void samkv_metrics_add(struct samkv_metrics *m, enum samkv_metric which, uint64_t by)
{
    atomic_fetch_add_explicit(&m->values[which], by, memory_order_relaxed);
}

static inline uint64_t samkv_metrics_get(const struct samkv_metrics *m, enum samkv_metric which)
{
    return atomic_load_explicit(&m->values[which], memory_order_relaxed);
}
