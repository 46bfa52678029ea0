#pragma once
/*
 * Prefill of several documents in one pass, *packed*: their rows behind each other in one cache, without padding. Rows
 * [0, P) of the cache are the preamble, which all share; a document's row sees these and its own document's earlier
 * rows, at positions P + t as if it were alone. K before RoPE, V and the means for the index leave for a landing, layer
 * by layer. Step 1 to 3 of "Ingest" in the algorithm.
 *
 * RoPE is linear, so means can be taken of rotated keys: they are taken over the cache (rotated to P + t) and turned
 * back by R(−P), which makes them relative to the document's start.
 */
#include <stdbool.h>
#include <stdint.h>

#include "proto/status.h"
#include "daemon/model/forward.h"
#include "daemon/samkv/landing.h"
#include "daemon/samkv/models.h"

/* Device memory of an engine's packed passes; grows up to a pass of chunk_rows and is kept. One user at a time. */
struct samkv_packer;

struct samkv_packed {
    const struct samkv_engine *engine;
    struct samkv_part *const *parts; /* placed: see samkv_packed_place */
    uint32_t count, rows, blocks;
    uint32_t preamble_tokens;
    const void *preamble_id;            /* SAMKV_PREAMBLE_ID_BYTES; NULL when there are no preamble tokens */
    const struct samkv_stage *preamble; /* its stored rows; may be NULL when the cache has it */
    /* The one part's own cache, preamble_tokens and the document long: a document that takes several passes. NULL: the
     * packer's. */
    struct samkv_kv_cache *cache;
};

#define SAMKV_PREAMBLE_ID_BYTES 32

enum samkv_status samkv_packer_new(struct samkv_device *, struct samkv_packer **out) SAMKV_MUST_USE;
void samkv_packer_free(struct samkv_packer *); /* NULL is allowed; nothing is under way */

/* Puts the parts behind each other: their row, block and number, and the pass's rows and blocks. */
void samkv_packed_place(struct samkv_packed *);

/* Whether the next pass needs no preamble rows: there are none, or its cache has them. */
bool samkv_packer_has_preamble(const struct samkv_packer *, const struct samkv_packed *);

/*
 * On the lane: the pass, of chunk_rows at most, into a landing with room for it. Returns when it is computed; the
 * landing is complete after samkv_landing_wait.
 */
enum samkv_status samkv_packer_run(struct samkv_packer *, const struct samkv_packed *, struct samkv_landing *,
                                   struct samkv_error *) SAMKV_MUST_USE;
