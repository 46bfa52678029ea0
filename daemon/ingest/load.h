#pragma once
/* Blocks of documents from the store into a stage, on several threads. */
#include <stdint.h>

#include "proto/status.h"
#include "daemon/samkv/stage.h"
#include "daemon/store/store.h"

struct samkv_load {
    const struct samkv_manifest *manifest;
    uint32_t block;
    size_t row; /* of the stage, where the block's first token goes */
};

/* Reads and decodes every block; the first failure ends it (blocks already under way finish). Blocks; not for the lane.
 */
enum samkv_status samkv_load_blocks(struct samkv_snapshot *, const struct samkv_load *, size_t count,
                                    const struct samkv_stage *, struct samkv_error *) SAMKV_MUST_USE;

/* A preamble's manifest; CORRUPT when it is missing. */
enum samkv_status samkv_load_manifest(struct samkv_snapshot *, const struct samkv_key *, struct samkv_manifest *out,
                                      struct samkv_error *) SAMKV_MUST_USE;

/* A whole document (a preamble) into a stage that is made here and deinited by the caller. */
enum samkv_status samkv_load_document(struct samkv_snapshot *, const struct samkv_key *, struct samkv_device *,
                                      struct samkv_stage *out, struct samkv_error *) SAMKV_MUST_USE;
