#pragma once
/*
 * The codec "rans": floats' signs and exponents entropy coded (coder.h), the bits below, which are noise, stored as
 * they are.
 *
 *   u8 form   3 zeros   then, form 0: what the codec zstd makes of it. Form 1: of each piece the numbers' seven bits
 * below the highest nine, packed, and (elements of four bytes) its lowest 16 bits; then one stream of the highest nine.
 *
 * Of f16 the nine bits hold three of the mantissa, of i32 whatever is there: every element comes back bit by bit. What
 * does not shrink has form 0, and what is small the shorter one. Called by codec.c, which has checked the layout; see
 * there for errors and threads.
 */
#include "daemon/store/codec.h"

#define SAMKV_LOSSLESS_HEAD_BYTES 4

enum samkv_status samkv_lossless_encode(int zstd_level, const struct samkv_layout *, const void *const *src,
                                        struct samkv_scratch *, uint8_t *out, size_t *used) SAMKV_MUST_USE;
enum samkv_status samkv_lossless_decode(const struct samkv_layout *, const uint8_t *payload, size_t payload_bytes,
                                        struct samkv_scratch *, void *const *dst) SAMKV_MUST_USE;
