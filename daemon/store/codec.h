#pragma once
/*
 * Codecs: from the pieces of a block (each layer's K and V) to one payload and back. What payloads look like stands in
 * planar.h (zstd), lossless.h (rans) and quantised.h (q8, q4); raw is the pieces one after the other. Nothing that
 * clients or disks say is trusted: a payload that does not decode to exactly the bytes asked for is CORRUPT. Any
 * thread.
 */
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"
#include "proto/tensor.h"
#include "daemon/store/scratch.h"
#include "daemon/store/store.h"

/* `count` pieces of `bytes` each, a multiple of the element's size. */
struct samkv_layout {
    enum samkv_dtype dtype;
    size_t count;
    size_t bytes;
    size_t channels; /* of a token: a piece is (tokens, channels); 0: no such order is known */
};

/* Of all pieces. The caller has checked that the product fits. */
static inline size_t samkv_layout_bytes(const struct samkv_layout *l)
{
    return l->count * l->bytes;
}

/* A number from disk or from a client. */
static inline bool samkv_codec_is_known(enum samkv_codec codec)
{
    return (unsigned)codec < SAMKV_CODEC_COUNT;
}

/* The most that a payload takes, for any codec. */
size_t samkv_codec_bound(const struct samkv_layout *);

/* Writes at most samkv_codec_bound bytes to out, *used of them. NO_MEMORY, or INVALID for a layout or codec that is
 * none. */
enum samkv_status samkv_codec_encode(enum samkv_codec, int zstd_level, const struct samkv_layout *,
                                     const void *const *src, struct samkv_scratch *, uint8_t *out,
                                     size_t *used) SAMKV_MUST_USE;

/* CORRUPT, NO_MEMORY, or INVALID for a layout that is none. dst may be half written then. */
enum samkv_status samkv_codec_decode(enum samkv_codec, const struct samkv_layout *, const uint8_t *payload,
                                     size_t payload_bytes, struct samkv_scratch *, void *const *dst) SAMKV_MUST_USE;
