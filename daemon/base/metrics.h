#pragma once
/*
 * What the daemon counts about itself: one table of names, one array of counters. Any thread; counters only grow.
 */
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

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
    X(ASK_TOKENS,       "ask_tokens")
/* clang-format on */

enum samkv_metric {
#define SAMKV_METRIC_ENUM(name, text) SAMKV_METRIC_##name,
    SAMKV_METRIC_MAP(SAMKV_METRIC_ENUM)
#undef SAMKV_METRIC_ENUM
        SAMKV_METRIC_COUNT
};

/* All zero at the start. */
struct samkv_metrics {
    _Atomic uint64_t values[SAMKV_METRIC_COUNT];
};

const char *samkv_metric_name(enum samkv_metric);

static inline void samkv_metrics_add(struct samkv_metrics *m, enum samkv_metric which, uint64_t by)
{
    atomic_fetch_add_explicit(&m->values[which], by, memory_order_relaxed);
}

static inline uint64_t samkv_metrics_get(const struct samkv_metrics *m, enum samkv_metric which)
{
    return atomic_load_explicit(&m->values[which], memory_order_relaxed);
}
