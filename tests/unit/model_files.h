#pragma once
/* Model files made in memory, for the tests of what reads them. */
#include <check.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct bytes {
    uint8_t *data; /* heap */
    size_t count, capacity;
};

static inline void put(struct bytes *b, const void *src, size_t count)
{
    if (b->count + count > b->capacity) {
        b->capacity = 2 * (b->count + count) + 64;
        b->data = realloc(b->data, b->capacity);
        ck_assert_ptr_nonnull(b->data);
    }
    if (count)
        memcpy(b->data + b->count, src, count);
    b->count += count;
}

static inline void put_int(struct bytes *b, uint64_t v, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        put(b, &(uint8_t){(uint8_t)(v >> 8 * i)}, 1);
}

static inline void put_text(struct bytes *b, const char *s)
{
    put(b, s, strlen(s));
}

/* A GGUF string: length and bytes. */
static inline void put_string(struct bytes *b, const char *s)
{
    put_int(b, strlen(s), 8);
    put_text(b, s);
}

/* A GGUF file in the making: metadata, tensor table and data grow apart and are joined at the end. */
struct gguf_maker {
    struct bytes pairs, table, data;
    uint64_t pair_count, tensor_count;
    uint32_t version, alignment;
};

static inline void gguf_key(struct gguf_maker *g, const char *key, uint32_t type)
{
    put_string(&g->pairs, key);
    put_int(&g->pairs, type, 4);
    g->pair_count++;
}

static inline void gguf_u32(struct gguf_maker *g, const char *key, uint32_t v)
{
    gguf_key(g, key, 4);
    put_int(&g->pairs, v, 4);
}

static inline void gguf_f32(struct gguf_maker *g, const char *key, float v)
{
    gguf_key(g, key, 6);
    put(&g->pairs, &v, sizeof v);
}

static inline void gguf_string(struct gguf_maker *g, const char *key, const char *v)
{
    gguf_key(g, key, 8);
    put_string(&g->pairs, v);
}

/* shape in ggml's order: row length first; rows 0 for a vector */
static inline void gguf_tensor(struct gguf_maker *g, const char *name, uint32_t type, uint64_t cols, uint64_t rows,
                               const void *data, size_t count)
{
    while (g->data.count % (g->alignment ? g->alignment : 32))
        put_int(&g->data, 0, 1);
    put_string(&g->table, name);
    put_int(&g->table, rows ? 2 : 1, 4);
    put_int(&g->table, cols, 8);
    if (rows)
        put_int(&g->table, rows, 8);
    put_int(&g->table, type, 4);
    put_int(&g->table, g->data.count, 8);
    put(&g->data, data, count);
    g->tensor_count++;
}

/* The whole file; the maker is empty afterwards. The caller frees .data. */
static inline struct bytes gguf_finish(struct gguf_maker *g)
{
    struct bytes b = {0};
    put_int(&b, 0x46554747, 4);
    put_int(&b, g->version ? g->version : 3, 4);
    put_int(&b, g->tensor_count, 8);
    put_int(&b, g->pair_count, 8);
    put(&b, g->pairs.data, g->pairs.count);
    put(&b, g->table.data, g->table.count);
    while (g->tensor_count && b.count % (g->alignment ? g->alignment : 32))
        put_int(&b, 0, 1);
    put(&b, g->data.data, g->data.count);
    free(g->pairs.data);
    free(g->table.data);
    free(g->data.data);
    *g = (struct gguf_maker){0};
    return b;
}

/* Runs `visit` over a copy of exactly `count` bytes on the heap, so that a sanitizer sees every byte read past it. */
static inline void with_exact_copy(const uint8_t *data, size_t count, void (*visit)(const uint8_t *, size_t))
{
    uint8_t *copy = malloc(count ? count : 1);
    ck_assert_ptr_nonnull(copy);
    memcpy(copy, data, count);
    visit(copy, count);
    free(copy);
}

static inline int run_tests(Suite *suite)
{
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
