#include "daemon/store/planes.h"

/*
 * Plain loops without branches: the compiler makes vector code of them. memcpy of one element is an unaligned load.
 * The bits are those of a little-endian machine's integers, the byte order of everything that is stored.
 */

static void split16(const uint8_t *restrict src, size_t n, uint8_t *restrict lo, uint8_t *restrict hi)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t v;
        memcpy(&v, src + 2 * i, 2);
        v = (uint16_t)(v << 1 | v >> 15);
        lo[i] = (uint8_t)v;
        hi[i] = (uint8_t)(v >> 8);
    }
}

static void join16(uint8_t *restrict dst, size_t n, const uint8_t *restrict lo, const uint8_t *restrict hi)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t v = (uint16_t)(lo[i] | hi[i] << 8);
        v = (uint16_t)(v >> 1 | v << 15);
        memcpy(dst + 2 * i, &v, 2);
    }
}

static inline __attribute__((always_inline)) void split32(const uint8_t *restrict src, size_t n, int turn,
                                                          uint8_t *restrict a, uint8_t *restrict b, uint8_t *restrict c,
                                                          uint8_t *restrict d)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t v;
        memcpy(&v, src + 4 * i, 4);
        v = v << turn | v >> (32 - turn) % 32;
        a[i] = (uint8_t)v;
        b[i] = (uint8_t)(v >> 8);
        c[i] = (uint8_t)(v >> 16);
        d[i] = (uint8_t)(v >> 24);
    }
}

static inline __attribute__((always_inline)) void join32(uint8_t *restrict dst, size_t n, int turn,
                                                         const uint8_t *restrict a, const uint8_t *restrict b,
                                                         const uint8_t *restrict c, const uint8_t *restrict d)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t v = (uint32_t)a[i] | (uint32_t)b[i] << 8 | (uint32_t)c[i] << 16 | (uint32_t)d[i] << 24;
        v = v >> turn | v << (32 - turn) % 32;
        memcpy(dst + 4 * i, &v, 4);
    }
}

void samkv_planes_split(enum samkv_dtype dtype, const void *src, size_t count, uint8_t *planes, size_t stride)
{
    uint8_t *a = planes, *b = a + stride;
    switch (dtype) {
    case SAMKV_F16:
    case SAMKV_BF16:
        split16(src, count, a, b);
        break;
    case SAMKV_F32:
        split32(src, count, 1, a, b, b + stride, b + 2 * stride);
        break;
    case SAMKV_I32: /* two's complement: nothing to gain from turning the sign */
        split32(src, count, 0, a, b, b + stride, b + 2 * stride);
        break;
    }
}

void samkv_planes_join(enum samkv_dtype dtype, const uint8_t *const planes[4], size_t count, void *dst)
{
    switch (dtype) {
    case SAMKV_F16:
    case SAMKV_BF16:
        join16(dst, count, planes[0], planes[1]);
        break;
    case SAMKV_F32:
        join32(dst, count, 1, planes[0], planes[1], planes[2], planes[3]);
        break;
    case SAMKV_I32:
        join32(dst, count, 0, planes[0], planes[1], planes[2], planes[3]);
        break;
    }
}
