#pragma once
/*
 * A stage holds stored rows (K before RoPE, V; the store's element type) on the host between the store and a device:
 * where blocks are decoded to, and what a prefill hands to the store. K and V of layer l are (rows, kv_heads, head_dim)
 * contiguous, so a block's pieces are runs of rows. On a unified device of the same type a stage may be the KV cache
 * itself.
 */
#include <stdint.h>
#include <stddef.h>

#include "proto/status.h"
#include "proto/tensor.h"
#include "daemon/model/forward.h"
#include "daemon/samkv/models.h"

struct samkv_stage {
    uint8_t *k, *v;
    size_t layer_stride_bytes;
    size_t rows;
    struct samkv_kv_shape shape;
    struct samkv_device *device; /* of the allocation */
    void *allocation;            /* NULL when the memory is somebody else's */
};

/* Any thread. */
enum samkv_status samkv_stage_init(struct samkv_stage *, struct samkv_device *, const struct samkv_kv_shape *,
                                   size_t rows, struct samkv_error *) SAMKV_MUST_USE;
void samkv_stage_deinit(struct samkv_stage *);

static inline uint8_t *samkv_stage_row(const struct samkv_stage *s, uint32_t layer, bool value, size_t row)
{
    return (value ? s->v : s->k) + (size_t)layer * s->layer_stride_bytes +
           row * samkv_kv_width(&s->shape) * samkv_dtype_bytes(s->shape.dtype);
}

/* The 2 · layers pieces of a block whose rows begin at `row`, as the store wants them. pieces: [2 · layers] */
void samkv_stage_pieces(const struct samkv_stage *, size_t row, void **pieces);

/*
 * On the lane: all layers of the stage's rows [0, n) into the cache's rows [first_row, first_row + n), K rotated to
 * `positions` (host, [n]). Waits. The stage may be the cache (unified device, same type, first_row 0).
 */
enum samkv_status samkv_stage_place(const struct samkv_engine *, const struct samkv_stage *, struct samkv_kv_cache *,
                                    const int32_t *positions, int first_row, int n,
                                    struct samkv_error *) SAMKV_MUST_USE;
