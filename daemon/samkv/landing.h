#pragma once
/*
 * Where a pass over documents lands: what it leaves on the host for the store. The stored form of its rows, and the
 * means that become its documents' indexes. On a device that is not unified both are page-locked and filled by a stream
 * of copies of the landing's own, while the pass and the next ones go on.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>

#include "proto/status.h"
#include "daemon/samkv/blocks.h"
#include "daemon/samkv/models.h"
#include "daemon/samkv/stage.h"

/* What of one document is in a pass: tokens [first, first + count), from the start of a block to the document's end, or
 * to that of another block when a document takes several passes. */
struct samkv_part {
    const int32_t *ids; /* of the whole document */
    struct samkv_blocks blocks;
    uint32_t first, count;
    uint32_t row, block, number; /* in the pass: its first row and block, and which part it is */
};

struct samkv_landing {
    struct samkv_stage stage; /* rows of the pass, in order; its memory is the landing's */
    /* [layers][means_stride]: means of K of all blocks [blocks][kv_heads · head_dim], then mean Q of each part's local
     * rows [parts][heads · head_dim]; zeros for one without such rows. Rotated to document-relative positions. */
    float *means;
    size_t means_stride;
    uint32_t blocks, parts;
    struct samkv_stream *copies; /* NULL on a unified device */

    struct samkv_device *device;
    void *memory; /* of the stage */
    size_t memory_bytes, means_bytes;
};

/* Any thread. */
void samkv_landing_init(struct samkv_landing *, struct samkv_device *);
void samkv_landing_deinit(struct samkv_landing *);

/*
 * Makes room for a pass of so many rows, blocks and parts in the engine's stored type. Memory is kept from pass to pass
 * and grows up to what `most_rows` need, since page-locking takes time. Any thread, nobody else using it.
 */
enum samkv_status samkv_landing_reserve(struct samkv_landing *, const struct samkv_engine *, uint32_t rows,
                                        uint32_t blocks, uint32_t parts, uint32_t most_rows,
                                        struct samkv_error *) SAMKV_MUST_USE;

/* Waits for the copies. Any thread, once the pass has returned. */
enum samkv_status samkv_landing_wait(struct samkv_landing *, struct samkv_error *) SAMKV_MUST_USE;

/* Nobody reads it any more: memory that is quickly had again (unified devices) is given back. Any thread. */
void samkv_landing_empty(struct samkv_landing *);

/* Values of a document's index in one layer: block means, then the local query. */
size_t samkv_index_count(const struct samkv_engine *, const struct samkv_blocks *);

/*
 * The part's means into the index of its document, [layers][samkv_index_count]. A local query may span passes: each
 * adds its rows' share of the mean, so the index begins as zeros. Any thread; the landing is only read.
 */
void samkv_landing_read_index(const struct samkv_landing *, const struct samkv_engine *, const struct samkv_part *,
                              float *index);

/* Rows of the pass that count for the part's local query: [*first, *end), empty when there are none. */
void samkv_part_local_rows(const struct samkv_part *, uint32_t *first, uint32_t *end);

/* n rounded up to a power of two from 64 on, or to `most`: sizes of memory that grows. */
uint32_t samkv_round_rows(uint32_t n, uint32_t most);
