#pragma once
/* The update DELTA. Private to this room. */
#include "daemon/samkv/recompute.h"

/*
 * Adds to the cached K and V of every row, in the layers that it is recomputed in, what the other documents change:
 *
 *   K = K_cached + K(recomputed among all that is kept) − K(recomputed among what is kept of its own document)
 *
 * and V likewise. Both passes see the preamble, and nothing but what they compute themselves; the second one has each
 * document where ingest had it, right behind the preamble. So what the document's dropped tokens gave stays. With
 * nothing dropped, K is that of a joint prefill; with one document, K stays what it was. The query's rows come after.
 * On the lane.
 */
enum samkv_status samkv_recompute_delta(const struct samkv_engine *, struct samkv_kv_cache *,
                                        const struct samkv_recompute *, struct samkv_error *) SAMKV_MUST_USE;
