/* Metadata of an opened GGUF file by key. The directory was validated when it was opened. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/model/gguf_private.h"

size_t samkv_gguf_value_bytes(uint32_t type)
{
    static const uint8_t bytes[GGUF_VALUE_TYPES] = {
        [GGUF_U8] = 1,  [GGUF_I8] = 1,  [GGUF_U16] = 2,  [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
        [GGUF_F32] = 4, [GGUF_U64] = 8, [GGUF_BOOL] = 1, [GGUF_I64] = 8, [GGUF_F64] = 8,
    };
    return type < GGUF_VALUE_TYPES ? bytes[type] : 0;
}

static int by_key(const void *key, const void *pair)
{
    const struct gguf_pair *p = pair;
    return samkv_gguf_compare(key, strlen(key), p->key, p->key_bytes);
}

static const struct gguf_pair *find(const struct samkv_gguf *g, const char *key)
{
    return bsearch(key, g->pairs, g->pair_count, sizeof *g->pairs, by_key);
}

static bool is_float(uint32_t type)
{
    return type == GGUF_F32 || type == GGUF_F64;
}

static double load_float(uint32_t type, const uint8_t *p)
{
    if (type == GGUF_F32) {
        float f;
        memcpy(&f, p, sizeof f);
        return f;
    }
    double d;
    memcpy(&d, p, sizeof d);
    return d;
}

/* An integer or bool; *negative says that the value is the two's complement of a negative number. */
static bool load_integer(uint32_t type, const uint8_t *p, uint64_t *out, bool *negative)
{
    size_t bytes = samkv_gguf_value_bytes(type);
    if (!bytes || is_float(type))
        return false;
    *out = gguf_load(p, bytes);
    bool is_signed = type == GGUF_I8 || type == GGUF_I16 || type == GGUF_I32 || type == GGUF_I64;
    *negative = is_signed && *out >> (8 * bytes - 1);
    if (*negative && bytes < 8)
        *out |= UINT64_MAX << 8 * bytes;
    return true;
}

static bool load_double(uint32_t type, const uint8_t *p, double *out)
{
    uint64_t bits;
    bool negative;
    if (is_float(type))
        *out = load_float(type, p);
    else if (load_integer(type, p, &bits, &negative))
        *out = negative ? (double)(int64_t)bits : (double)bits;
    else
        return false;
    return true;
}

bool samkv_gguf_u64(const struct samkv_gguf *g, const char *key, uint64_t *out)
{
    const struct gguf_pair *p = find(g, key);
    uint64_t bits;
    bool negative;
    if (!p)
        return false;
    if (is_float(p->type)) {
        double d = load_float(p->type, p->value);
        if (!(d >= 0 && d < 0x1p64 && d == floor(d)))
            return false;
        *out = (uint64_t)d;
        return true;
    }
    if (!load_integer(p->type, p->value, &bits, &negative) || negative)
        return false;
    *out = bits;
    return true;
}

bool samkv_gguf_f64(const struct samkv_gguf *g, const char *key, double *out)
{
    const struct gguf_pair *p = find(g, key);
    return p && load_double(p->type, p->value, out);
}

bool samkv_gguf_bool(const struct samkv_gguf *g, const char *key, bool *out)
{
    uint64_t v;
    if (!samkv_gguf_u64(g, key, &v) || v > 1)
        return false;
    *out = v;
    return true;
}

bool samkv_gguf_string(const struct samkv_gguf *g, const char *key, const char **out, size_t *bytes)
{
    const struct gguf_pair *p = find(g, key);
    if (!p || p->type != GGUF_STRING)
        return false;
    *out = (const char *)p->value + 8;
    *bytes = (size_t)gguf_load(p->value, 8);
    return true;
}

bool samkv_gguf_array(const struct samkv_gguf *g, const char *key, struct samkv_gguf_array *out)
{
    const struct gguf_pair *p = find(g, key);
    if (!p || p->type != GGUF_ARRAY)
        return false;
    *out = (struct samkv_gguf_array){.type = (uint32_t)gguf_load(p->value, 4),
                                     .count = gguf_load(p->value + 4, 8),
                                     .next = p->value + 12,
                                     .end = p->end};
    return true;
}

/* The next element of a scalar array; NULL at its end or for strings. */
static const uint8_t *next_scalar(struct samkv_gguf_array *a)
{
    size_t bytes = samkv_gguf_value_bytes(a->type);
    if (!bytes || (size_t)(a->end - a->next) < bytes)
        return NULL;
    const uint8_t *p = a->next;
    a->next += bytes;
    return p;
}

bool samkv_gguf_array_next_string(struct samkv_gguf_array *a, const char **out, size_t *bytes)
{
    if (a->type != GGUF_STRING || a->end - a->next < 8)
        return false;
    uint64_t length = gguf_load(a->next, 8);
    if (length > (uint64_t)(a->end - a->next) - 8)
        return false;
    *out = (const char *)a->next + 8;
    *bytes = (size_t)length;
    a->next += 8 + length;
    return true;
}

bool samkv_gguf_array_next_i64(struct samkv_gguf_array *a, int64_t *out)
{
    if (is_float(a->type))
        return false;
    const uint8_t *p = next_scalar(a);
    uint64_t bits;
    bool negative;
    if (!p || !load_integer(a->type, p, &bits, &negative) || (!negative && bits > INT64_MAX))
        return false;
    *out = (int64_t)bits;
    return true;
}

bool samkv_gguf_array_next_f64(struct samkv_gguf_array *a, double *out)
{
    const uint8_t *p = next_scalar(a);
    return p && load_double(a->type, p, out);
}
