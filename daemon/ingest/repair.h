#pragma once
/*
 * Repair: damaged or missing block records of a stored document are recomputed from its tokens and rewritten. What
 * cannot be repaired is a document whose tokens are damaged: it must be ingested again.
 */
#include <stdint.h>

#include "proto/status.h"
#include "daemon/samkv/models.h"
#include "daemon/store/store.h"

/*
 * Adds the records that were rewritten to *repaired. OK also when there was nothing to do. Called on a pool worker;
 * blocks; reads the whole document.
 */
enum samkv_status samkv_repair(struct samkv_models *, struct samkv_store *, const char *collection,
                               const struct samkv_key *, uint64_t *repaired, struct samkv_error *) SAMKV_MUST_USE;
