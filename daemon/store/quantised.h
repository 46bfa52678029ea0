#pragma once
/*
 * The codecs "q8" and "q4": numbers as levels of a step that follows the spread of a small group, the levels entropy
 * coded (coder.h). Of K (pieces 0, 2, 4, …) a group is one channel over at most 16 tokens, about whose mean it spreads;
 * of V (pieces 1, 3, 5, …) it is 32 channels of one token. Both codecs differ in how fine the step is: what they are
 * named after is near what a number takes, steps included.
 *
 *   u8 form   3 zeros   then, form 0: all bytes of all pieces. Form 1: u32 bytes of the scales' stream, u32 bytes of
 *   exact numbers, the scales' stream, exact numbers, the levels' stream.
 *
 * Scales (lanes.h) come piece by piece, groups in order of token, then channel. A group that is not finite, or too
 * large or small to compute with, is stored exactly, one token's channels after the other. Decoding gives the same bits
 * everywhere. Called by codec.c, which has checked the layout; i32 is INVALID.
 */
#include "daemon/store/codec.h"

#define SAMKV_QUANTISED_HEAD_BYTES 12

enum samkv_status samkv_quantised_encode(enum samkv_codec, const struct samkv_layout *, const void *const *src,
                                         struct samkv_scratch *, uint8_t *out, size_t *used) SAMKV_MUST_USE;
enum samkv_status samkv_quantised_decode(const struct samkv_layout *, const uint8_t *payload, size_t payload_bytes,
                                         struct samkv_scratch *, void *const *dst) SAMKV_MUST_USE;
