#pragma once
/*
 * Vocabulary of numbers and shapes that all rooms share.
 *
 * KV of a model has shape (layers, 2 [K then V], tokens, kv_heads, head_dim). "width" is always
 * kv_heads * head_dim, the elements of one token in one layer's K or V.
 */
#include <stdint.h>
#include <stddef.h>
#include <string.h>

#ifndef SAMKV_API /* as in status.h */
#define SAMKV_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Values are pinned: they stand in stored records and on the wire. */
enum samkv_dtype {
    SAMKV_F32 = 0,
    SAMKV_F16 = 1,
    SAMKV_BF16 = 2,
    SAMKV_I32 = 3,
};

/* Bytes of one element; 0 for a value that is none of the above. */
static inline size_t samkv_dtype_bytes(enum samkv_dtype dtype)
{
    switch (dtype) {
    case SAMKV_F32:
    case SAMKV_I32:
        return 4;
    case SAMKV_F16:
    case SAMKV_BF16:
        return 2;
    }
    return 0;
}

/* "f32", "f16", "bf16", "i32"; "?" for an unknown value. */
SAMKV_API const char *samkv_dtype_name(enum samkv_dtype dtype);

/* The reverse; -1 for an unknown name. */
SAMKV_API int samkv_dtype_parse(const char *name);

/* The geometry of one model's KV cache. */
struct samkv_kv_shape {
    uint32_t layers;
    uint32_t kv_heads;
    uint32_t head_dim;
    enum samkv_dtype dtype;
};

/* Elements of one token in one layer's K (or V). */
static inline size_t samkv_kv_width(const struct samkv_kv_shape *s)
{
    return (size_t)s->kv_heads * s->head_dim;
}

/* Bytes of one token over all layers, K and V. */
static inline size_t samkv_kv_token_bytes(const struct samkv_kv_shape *s)
{
    return 2 * (size_t)s->layers * samkv_kv_width(s) * samkv_dtype_bytes(s->dtype);
}

static inline float samkv_bf16_to_f32(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Round to nearest even; NaN stays NaN. */
static inline uint16_t samkv_f32_to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* IEEE half precision, denormals included, round to nearest even. */
SAMKV_API float samkv_f16_to_f32(uint16_t h);
SAMKV_API uint16_t samkv_f32_to_f16(float f);

#ifdef __cplusplus
}
#endif
