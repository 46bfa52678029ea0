#pragma once
/*
 * Little-endian fields one after the other. Writing or reading past the end does not happen: it sets `bad`, numbers
 * read from there on are 0, and one check at the end says whether all was there.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct samkv_fields {
    uint8_t *to; /* when writing */
    const uint8_t *from;
    size_t left;
    bool bad;
};

static inline void samkv_fields_write(struct samkv_fields *f, void *to, size_t size)
{
    *f = (struct samkv_fields){.to = to, .left = size};
}

static inline void samkv_fields_read(struct samkv_fields *f, const void *from, size_t size)
{
    *f = (struct samkv_fields){.from = from, .left = size};
}

/* All was read, and nothing is left over. */
static inline bool samkv_fields_complete(const struct samkv_fields *f)
{
    return !f->bad && f->left == 0;
}

static inline void samkv_put_bytes(struct samkv_fields *f, const void *data, size_t size)
{
    if (f->bad || size > f->left) {
        f->bad = true;
        return;
    }
    if (size)
        memcpy(f->to, data, size);
    f->to += size;
    f->left -= size;
}

/* NULL past the end. */
static inline const uint8_t *samkv_get_bytes(struct samkv_fields *f, size_t size)
{
    if (f->bad || size > f->left) {
        f->bad = true;
        return NULL;
    }
    const uint8_t *at = f->from;
    f->from += size;
    f->left -= size;
    return at;
}

static inline void samkv_put_u64n(struct samkv_fields *f, uint64_t v, size_t bytes)
{
    uint8_t b[8];
    for (size_t i = 0; i < bytes; i++)
        b[i] = (uint8_t)(v >> 8 * i);
    samkv_put_bytes(f, b, bytes);
}

static inline uint64_t samkv_get_u64n(struct samkv_fields *f, size_t bytes)
{
    const uint8_t *b = samkv_get_bytes(f, bytes);
    uint64_t v = 0;
    for (size_t i = 0; b && i < bytes; i++)
        v |= (uint64_t)b[i] << 8 * i;
    return v;
}

/* clang-format off */
static inline void samkv_put_u8(struct samkv_fields *f, uint8_t v) { samkv_put_u64n(f, v, 1); }
static inline void samkv_put_u32(struct samkv_fields *f, uint32_t v) { samkv_put_u64n(f, v, 4); }
static inline void samkv_put_u64(struct samkv_fields *f, uint64_t v) { samkv_put_u64n(f, v, 8); }
static inline uint8_t samkv_get_u8(struct samkv_fields *f) { return (uint8_t)samkv_get_u64n(f, 1); }
static inline uint32_t samkv_get_u32(struct samkv_fields *f) { return (uint32_t)samkv_get_u64n(f, 4); }
static inline uint64_t samkv_get_u64(struct samkv_fields *f) { return samkv_get_u64n(f, 8); }
/* clang-format on */

/* Doubles as their bits. */
static inline void samkv_put_real(struct samkv_fields *f, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    samkv_put_u64(f, bits);
}

static inline double samkv_get_real(struct samkv_fields *f)
{
    uint64_t bits = samkv_get_u64(f);
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
