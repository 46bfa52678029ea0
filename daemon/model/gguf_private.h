#pragma once
/* What gguf.c and gguf_values.c share: the validated directory of a GGUF file. */
#include "daemon/model/gguf.h"
#include "daemon/model/mapping.h"

/* GGUF value types, as the format numbers them. */
enum gguf_value {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_VALUE_TYPES,
};

struct gguf_pair {
    const char *key; /* in the mapping */
    uint64_t key_bytes;
    const uint8_t *value; /* of an array: its element type */
    const uint8_t *end;
    uint32_t type;
};

struct gguf_entry {
    const char *name; /* in the mapping */
    uint64_t name_bytes;
    uint32_t type;
    int dims;
    uint64_t shape[4];
    uint64_t offset, bytes; /* bytes is 0 for a type that cannot be read */
    size_t order;           /* place in the file's table */
    const uint8_t *data;    /* in the mapping of its file */
};

struct samkv_gguf {
    struct samkv_mapping mapping; /* zeros when the bytes are the caller's */
    struct samkv_gguf **parts;    /* of a split model the files behind the first, whose tensors are entries here, too */
    size_t part_count;
    const uint8_t *bytes;
    size_t count_bytes, data_at;
    struct gguf_pair *pairs; /* by key */
    size_t pair_count;
    struct gguf_entry *entries; /* by name */
    size_t entry_count;
    const struct gguf_entry **ordered; /* as in the file */
};

/* Bytes of a scalar value type; 0 for strings, arrays and unknown numbers. */
size_t samkv_gguf_value_bytes(uint32_t type);

/* The other files of a split model whose first file is g: opened and merged into it. OK at once for a whole model. */
enum samkv_status samkv_gguf_open_parts(struct samkv_gguf *, const char *path, struct samkv_error *) SAMKV_MUST_USE;

/* For qsort and bsearch: struct gguf_entry by name. */
int samkv_gguf_by_name(const void *, const void *);

/* Compares names that are not NUL-terminated, as memcmp and then by length. */
int samkv_gguf_compare(const char *a, uint64_t a_bytes, const char *b, uint64_t b_bytes);

static inline uint64_t gguf_load(const uint8_t *p, size_t bytes)
{
    uint64_t v = 0;
    for (size_t i = 0; i < bytes; i++)
        v |= (uint64_t)p[i] << 8 * i;
    return v;
}
