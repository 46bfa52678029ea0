#pragma once
/*
 * The codecs' inner loops, once in portable C and once for each instruction set that is worth it; the best that the
 * processor has is found at run time. All give the same bytes.
 *
 * A piece is (tokens, channels) numbers. What is coded of a number is a symbol of nine bits: a sign (the highest) and a
 * level. Channels keep their habits from token to token: the mean of a channel's levels so far, in half levels, is the
 * context of the next one, and a sign that came more often than not is turned to plus. Nothing of it is stored: the
 * decoder sees the same tokens before.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "proto/tensor.h"
#include "daemon/store/entropy.h"

/* What is known of the channels of the piece at hand, and of the whole record. */
struct samkv_lanes_model {
    uint8_t base;  /* half levels (shifted) of the lowest context */
    uint8_t shift; /* of half levels, where levels are finer than octaves */
    uint16_t *sum; /* (channels) of levels, with the piece's mean in front */
    int16_t *sign; /* (channels) pluses less minuses */
    uint8_t *context;
};

/* Where the encoder writes, from the end of its memory to the front, and the decoder reads. */
struct samkv_lanes_writer {
    uint32_t state[SAMKV_ENTROPY_LANES];
    const struct samkv_entropy_code *codes;
    uint8_t *at;
};

struct samkv_lanes_reader {
    uint32_t state[SAMKV_ENTROPY_LANES];
    const uint32_t *slots;
    const uint8_t *at, *end;
    bool bad; /* the stream ended too early */
};

struct samkv_lanes {
    const char *name;

    /* Floats of 16 and 32 bits to their nine highest bits, the seven below, and (f32) the lowest 16; and back. */
    void (*split16)(const void *src, size_t count, uint16_t *symbols, uint8_t *seven);
    void (*join16)(const uint16_t *symbols, const uint8_t *seven, size_t count, void *dst);
    void (*split32)(const void *src, size_t count, uint16_t *symbols, uint8_t *seven, uint8_t *low);
    void (*join32)(const uint16_t *symbols, const uint8_t *seven, const uint8_t *low, size_t count, void *dst);

    /* `count` numbers of seven bits in bytes to samkv_seven_bytes(count) bytes, and back. */
    void (*pack)(const uint8_t *seven, size_t count, uint8_t *packed);
    void (*unpack)(const uint8_t *packed, size_t count, uint8_t *seven);

    /* The mean of `count` symbols' levels. */
    uint8_t (*mean)(const uint16_t *symbols, size_t count);

    /* In place: symbols of one piece, signs turned, with their contexts above (<< 9). `mean`: the piece's. */
    void (*model)(const struct samkv_lanes_model *, uint8_t mean, size_t tokens, size_t channels, uint16_t *symbols);

    /* What model() made of one piece, to words in front of writer->at. Pieces come last first. */
    void (*encode)(struct samkv_lanes_writer *, size_t tokens, size_t channels, const uint16_t *modelled);

    /* The reverse of both, pieces in their order. */
    void (*decode)(struct samkv_lanes_reader *, const struct samkv_lanes_model *, uint8_t mean, size_t tokens,
                   size_t channels, uint16_t *symbols);

    /* Numbers as floats, and the nearest of a dtype. f16's infinities and NaNs come out as numbers above 65535. */
    void (*widen)(enum samkv_dtype, const void *src, size_t count, float *out);
    void (*narrow)(enum samkv_dtype, const float *src, size_t count, void *out);

    /*
     * Quantises a group of `tokens` rows of `channels` numbers, `stride` apart: one scale a channel (each), or one for
     * all of them. Scales are SAMKV_SCALE_… or a step (lanes' own floats of nine bits); symbols are sign and |x /
     * step|, rounded to even; those of a group that must stay exact are zero. The step is the group's spread (each:
     * about its mean) by `fineness`, but so that no level exceeds 255.
     */
    void (*quantise_each)(const float *x, size_t tokens, size_t channels, size_t stride, float fineness, float largest,
                          uint16_t *scales, uint16_t *symbols);
    void (*quantise_all)(const float *x, size_t channels, float fineness, float largest, uint16_t *scale,
                         uint16_t *symbols);

    /* Levels by steps, a step for each. */
    void (*dequantise)(const uint16_t *symbols, const float *steps, size_t count, float *out);
};

/* Scales that are no step. */
#define SAMKV_SCALE_ZERO  0   /* all zero */
#define SAMKV_SCALE_EXACT 511 /* not finite, or too large or small to compute with */

/* The step that a scale says: half octaves; 0 for those that are none. */
static inline float samkv_scale_step(uint16_t scale)
{
    uint32_t bits = (uint32_t)scale << 22;
    float step;
    memcpy(&step, &bits, sizeof step);
    return scale == SAMKV_SCALE_EXACT ? 0 : step;
}

static inline size_t samkv_seven_bytes(size_t count)
{
    return 7 * (count / 8) + count % 8;
}

extern const struct samkv_lanes samkv_lanes_portable;
#if defined __x86_64__
#define SAMKV_LANES_X86 1
extern const struct samkv_lanes samkv_lanes_avx2, samkv_lanes_avx512;
#else
#define SAMKV_LANES_X86 0
#endif

/* The n-th best that this processor can run, NULL behind the last; 0 is the one to use. */
const struct samkv_lanes *samkv_lanes_choice(size_t n);
