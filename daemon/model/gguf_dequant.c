/*
 * ggml's tensor encodings, back to float32. A block of 32 (or, for the K types, 256) elements shares scales:
 *   Q8_0                 x = d·q                    q int8
 *   Q4_0, Q5_0           x = d·(q − 8 or 16)        q of 4 or 5 bits
 *   Q4_1, Q5_1           x = d·q + m
 *   Q3_K, Q6_K           x = d·s·q                  s for each 16 elements, q centred on 0
 *   Q2_K, Q4_K, Q5_K     x = d·s·q − dmin·m         s and m for each 16 (Q2_K) or 32 elements
 * Each product is exact in float32 (11 bits of d, at most 8 of s, at most 6 of q), so that every element has at most
 * one rounding, and a compiler that fuses multiply and add changes nothing.
 */
#include <string.h>

#include "daemon/model/gguf.h"
#include "proto/tensor.h"

#define QK  32  /* elements of a small block */
#define QKK 256 /* elements of a K block */

static uint16_t load16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static float half(const uint8_t *p)
{
    return samkv_f16_to_f32(load16(p));
}

static void block_f32(const uint8_t *p, float *y)
{
    memcpy(y, p, sizeof *y * QK);
}

/* As samkv_f16_to_f32, written so that a compiler makes vectors of it: a half's bits, shifted, are the value · 2^-112.
 */
static void block_f16(const uint8_t *p, float *y)
{
    uint16_t h[QK];
    memcpy(h, p, sizeof h);
    for (int i = 0; i < QK; i++) {
        uint32_t bits = (uint32_t)(h[i] & 0x7fff) << 13;
        float f;
        memcpy(&f, &bits, sizeof f);
        f *= 0x1p112f;
        memcpy(&bits, &f, sizeof bits);
        bits |= (bits >= 0x47800000u ? 0x7f800000u : 0) | (uint32_t)(h[i] & 0x8000) << 16;
        memcpy(&y[i], &bits, sizeof bits);
    }
}

static void block_bf16(const uint8_t *p, float *y)
{
    uint16_t h[QK];
    memcpy(h, p, sizeof h);
    for (int i = 0; i < QK; i++)
        y[i] = samkv_bf16_to_f32(h[i]);
}

/* d, 32 int8 */
static void block_q8_0(const uint8_t *p, float *y)
{
    float d = half(p);
    for (int i = 0; i < QK; i++)
        y[i] = d * (float)(int8_t)p[2 + i];
}

/* d, 16 bytes: low nibbles are elements 0 to 15, high ones 16 to 31 */
static void block_q4_0(const uint8_t *p, float *y)
{
    float d = half(p);
    for (int i = 0; i < QK / 2; i++) {
        y[i] = d * (float)((p[2 + i] & 15) - 8);
        y[i + QK / 2] = d * (float)((p[2 + i] >> 4) - 8);
    }
}

/* d, m, 16 bytes as in Q4_0 */
static void block_q4_1(const uint8_t *p, float *y)
{
    float d = half(p), m = half(p + 2);
    for (int i = 0; i < QK / 2; i++) {
        y[i] = d * (float)(p[4 + i] & 15) + m;
        y[i + QK / 2] = d * (float)(p[4 + i] >> 4) + m;
    }
}

/* The 5-bit number of element i: its nibble, and bit i of the 32 fifth bits. */
static int five_bits(const uint8_t *nibbles, const uint8_t *fifth, int i)
{
    int low = i < QK / 2 ? nibbles[i] & 15 : nibbles[i - QK / 2] >> 4;
    return low | (fifth[i / 8] >> (i % 8) & 1) << 4;
}

/* d, 32 fifth bits, 16 bytes as in Q4_0 */
static void block_q5_0(const uint8_t *p, float *y)
{
    float d = half(p);
    for (int i = 0; i < QK; i++)
        y[i] = d * (float)(five_bits(p + 6, p + 2, i) - 16);
}

/* d, m, 32 fifth bits, 16 bytes as in Q4_0 */
static void block_q5_1(const uint8_t *p, float *y)
{
    float d = half(p), m = half(p + 2);
    for (int i = 0; i < QK; i++)
        y[i] = d * (float)five_bits(p + 8, p + 4, i) + m;
}

/* Two-bit numbers of the K types: element i of 256 is in byte 32·(i/128) + i%32, at bit 2·(i%128/32). */
static int two_bits(const uint8_t *q, int i)
{
    return q[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
}

/* 16 bytes of scale (low nibble) and minimum (high), 64 bytes of two-bit numbers, d, dmin */
static void block_q2_k(const uint8_t *p, float *y)
{
    float d = half(p + 80), dmin = half(p + 82);
    for (int i = 0; i < QKK; i++) {
        uint8_t s = p[i / 16];
        y[i] = d * (float)(s & 15) * (float)two_bits(p + 16, i) - dmin * (float)(s >> 4);
    }
}

/* Q3_K's 16 scales of 6 bits: four low bits in 8 bytes (nibbles), two high ones in 4 bytes. */
static int scale_q3_k(const uint8_t *s, int j)
{
    int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
    return (low | (s[8 + j % 4] >> (j / 4 * 2) & 3) << 4) - 32;
}

/* 32 bytes of third bits (set: nothing to subtract), 64 bytes of two-bit numbers, 12 of scales, d */
static void block_q3_k(const uint8_t *p, float *y)
{
    float d = half(p + 108);
    for (int i = 0; i < QKK; i++) {
        int third = p[i % 32] >> (i / 32) & 1;
        y[i] = d * (float)scale_q3_k(p + 96, i / 16) * (float)(two_bits(p + 32, i) - (third ? 0 : 4));
    }
}

/* Scale and minimum (6 bits each) of part j of 8, packed in 12 bytes. */
static void scale_q4_k(const uint8_t *s, int j, int *scale, int *min)
{
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
        *min = s[j + 4] >> 4 | s[j] >> 6 << 4;
    }
}

/* Q4_K: d, dmin, 12 bytes of scales, 128 of nibbles. Q5_K has 32 bytes of fifth bits before these. */
static void block_q45_k(const uint8_t *p, const uint8_t *fifth, const uint8_t *nibbles, float *y)
{
    float d = half(p), dmin = half(p + 2);
    for (int j = 0; j < 8; j++) {
        int scale, min;
        scale_q4_k(p + 4, j, &scale, &min);
        float s = d * (float)scale, m = dmin * (float)min;
        for (int i = 0; i < 32; i++) {
            int q = nibbles[j / 2 * 32 + i] >> (j % 2 * 4) & 15;
            if (fifth)
                q |= (fifth[i] >> j & 1) << 4;
            y[j * 32 + i] = s * (float)q - m;
        }
    }
}

static void block_q4_k(const uint8_t *p, float *y)
{
    block_q45_k(p, NULL, p + 16, y);
}

static void block_q5_k(const uint8_t *p, float *y)
{
    block_q45_k(p, p + 16, p + 48, y);
}

/* 128 bytes of low nibbles, 64 of high bit pairs, 16 int8 scales, d */
static void block_q6_k(const uint8_t *p, float *y)
{
    const uint8_t *high = p + 128, *scales = p + 192;
    float d = half(p + 208);
    for (int i = 0; i < QKK; i++) {
        int in = i % 128, low = p[i / 128 * 64 + in % 64] >> (in / 64 * 4) & 15;
        int q = (low | (high[i / 128 * 32 + in % 32] >> (in / 32 * 2) & 3) << 4) - 32;
        y[i] = d * (float)(int8_t)scales[i / 16] * (float)q;
    }
}

/* By type number. Plain floats are decoded in pieces of 32, their last few elements apart (elements is 1). */
static const struct encoding {
    const char *name;
    uint32_t elements, bytes; /* of a block; 0 when it cannot be read */
    void (*decode)(const uint8_t *, float *);
} encodings[] = {
    [SAMKV_GGML_F32] = {"F32", 1, 4, block_f32},
    [SAMKV_GGML_F16] = {"F16", 1, 2, block_f16},
    [SAMKV_GGML_Q4_0] = {"Q4_0", QK, 18, block_q4_0},
    [SAMKV_GGML_Q4_1] = {"Q4_1", QK, 20, block_q4_1},
    [SAMKV_GGML_Q5_0] = {"Q5_0", QK, 22, block_q5_0},
    [SAMKV_GGML_Q5_1] = {"Q5_1", QK, 24, block_q5_1},
    [SAMKV_GGML_Q8_0] = {"Q8_0", QK, 34, block_q8_0},
    [9] = {"Q8_1"},
    [SAMKV_GGML_Q2_K] = {"Q2_K", QKK, 84, block_q2_k},
    [SAMKV_GGML_Q3_K] = {"Q3_K", QKK, 110, block_q3_k},
    [SAMKV_GGML_Q4_K] = {"Q4_K", QKK, 144, block_q4_k},
    [SAMKV_GGML_Q5_K] = {"Q5_K", QKK, 176, block_q5_k},
    [SAMKV_GGML_Q6_K] = {"Q6_K", QKK, 210, block_q6_k},
    [15] = {"Q8_K"},
    [16] = {"IQ2_XXS"},
    [17] = {"IQ2_XS"},
    [18] = {"IQ3_XXS"},
    [19] = {"IQ1_S"},
    [20] = {"IQ4_NL"},
    [21] = {"IQ3_S"},
    [22] = {"IQ2_S"},
    [23] = {"IQ4_XS"},
    [24] = {"I8"},
    [25] = {"I16"},
    [26] = {"I32"},
    [27] = {"I64"},
    [28] = {"F64"},
    [29] = {"IQ1_M"},
    [SAMKV_GGML_BF16] = {"BF16", 1, 2, block_bf16},
    [34] = {"TQ1_0"},
    [35] = {"TQ2_0"},
    [39] = {"MXFP4"},
};

static const struct encoding *encoding(uint32_t type)
{
    return type < sizeof encodings / sizeof *encodings && encodings[type].name ? &encodings[type] : NULL;
}

const char *samkv_gguf_type_name(uint32_t type)
{
    const struct encoding *e = encoding(type);
    return e ? e->name : NULL;
}

bool samkv_gguf_type_block(uint32_t type, uint32_t *elements, uint32_t *bytes)
{
    const struct encoding *e = encoding(type);
    if (!e || !e->decode)
        return false;
    *elements = e->elements;
    *bytes = e->bytes;
    return true;
}

bool samkv_gguf_dequantise(uint32_t type, const void *src, uint64_t count, float *dst)
{
    const struct encoding *e = encoding(type);
    if (!e || !e->decode || count % e->elements)
        return false;
    const uint8_t *p = src;
    uint32_t step = e->elements == 1 ? QK : e->elements, step_bytes = step / e->elements * e->bytes;
    for (; count >= step; count -= step, p += step_bytes, dst += step)
        e->decode(p, dst);
    if (count) {
        uint8_t last[QK * 4] = {0};
        float y[QK];
        memcpy(last, p, count * e->bytes);
        e->decode(last, y);
        memcpy(dst, y, count * sizeof *y);
    }
    return true;
}
