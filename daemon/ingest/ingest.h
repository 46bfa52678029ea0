#pragma once
/*
 * Ingest: one document from text or tokens to records on disk.
 *   tokens → (chunks) → key → there already? → prefill on the lane → index → records → commit with its name.
 * Called on a pool worker; blocks. When it returns OK the document is on disk.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"
#include "daemon/base/trace.h"
#include "daemon/samkv/models.h"
#include "daemon/store/store.h"

/* What a request says of its collection; unset fields take the stored collection's values, or the defaults. */
struct samkv_collection_spec {
    const char *model; /* NULL or "": what is stored, else the first model */
    const char *preamble_text;
    size_t preamble_bytes;
    const int32_t *preamble_tokens;
    size_t preamble_count;
    bool has_preamble; /* a preamble is meant (it may be empty) */
    bool preamble_is_text;
    int64_t block_tokens, init_tokens, local_tokens; /* -1: unset. Defaults 16, 16, 16 */
    int64_t quota_bytes, ttl_s;                      /* -1: unset. Defaults 0, 0: none */
    const char *codec;                               /* NULL or "": unset. Default: the store's */
    struct samkv_ownership ownership;                /* of a new collection */
};

struct samkv_ingest_request {
    const char *collection; /* NULL or "": "default" */
    const char *id;
    const char *title; /* or NULL */
    const char *text;  /* or NULL when tokens are given */
    size_t text_bytes;
    const int32_t *tokens;
    size_t token_count;
    struct samkv_collection_spec spec;
    uint32_t chunk_tokens;     /* 0: do not split */
    const bool *cancelled;     /* set when the client is gone; looked at between chunks. May be NULL */
    struct samkv_trace *trace; /* may be NULL */
};

struct samkv_ingested {
    char id[SAMKV_ID_MAX_BYTES + 1];
    bool skipped;
    uint32_t tokens;
    uint64_t bytes_raw, bytes_stored;
};

struct samkv_ingest_result {
    struct samkv_ingested *documents; /* heap; samkv_ingest_result_deinit */
    size_t count;
    double prefill_ms; /* device time */
    double commit_ms;  /* from the last record to the disk */
};

enum samkv_status samkv_ingest(struct samkv_models *, struct samkv_store *, const struct samkv_ingest_request *,
                               struct samkv_ingest_result *out, struct samkv_error *) SAMKV_MUST_USE;
void samkv_ingest_result_deinit(struct samkv_ingest_result *);
