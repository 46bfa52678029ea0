#pragma once
/*
 * The codec "zstd": byte planes, those that gain something compressed.
 *
 *   One u32 for each byte plane (bit 31: left raw; the rest: stored bytes), then the planes. Plane p holds byte p of
 *   every element, pieces one after the other; floats are rotated left by one bit before, so that the exponent fills
 *   the highest plane alone and the random sign goes with the mantissa.
 *
 * Called by codec.c, which has checked the layout; see there for errors and threads.
 */
#include "daemon/store/codec.h"

/* zstd_level 0: 1. */
enum samkv_status samkv_planar_encode(int zstd_level, const struct samkv_layout *, const void *const *src,
                                      struct samkv_scratch *, uint8_t *out, size_t *used) SAMKV_MUST_USE;
enum samkv_status samkv_planar_decode(const struct samkv_layout *, const uint8_t *payload, size_t payload_bytes,
                                      struct samkv_scratch *, void *const *dst) SAMKV_MUST_USE;
