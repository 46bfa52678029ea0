#pragma once
/*
 * Reading GGUF v2 and v3 by mapping the file. The whole directory (metadata, tensor table) is validated against the
 * file's size at open; nothing in it is trusted. Values are found by key; arrays are read element by element.
 * Memory besides the mapping: at most about five times the directory's bytes. A file that another process shortens
 * after open is out of scope (reading the mapping then raises SIGBUS): replace model files by rename. An open file is
 * immutable: any thread may read it.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"

struct samkv_gguf;

/* ggml's type numbers that can be read. They also name the encoding of safetensors' weights while loading. */
enum samkv_ggml_type {
    SAMKV_GGML_F32 = 0,
    SAMKV_GGML_F16 = 1,
    SAMKV_GGML_Q4_0 = 2,
    SAMKV_GGML_Q4_1 = 3,
    SAMKV_GGML_Q5_0 = 6,
    SAMKV_GGML_Q5_1 = 7,
    SAMKV_GGML_Q8_0 = 8,
    SAMKV_GGML_Q2_K = 10,
    SAMKV_GGML_Q3_K = 11,
    SAMKV_GGML_Q4_K = 12,
    SAMKV_GGML_Q5_K = 13,
    SAMKV_GGML_Q6_K = 14,
    SAMKV_GGML_BF16 = 30,
};

/*
 * A model that is split over several files (metadata split.no, split.count) is opened by its first one; the others
 * stand beside it under the names that gguf-split gives: NAME-00001-of-00003.gguf. Their tensors are found as if they
 * were one file's; metadata is the first file's.
 */
enum samkv_status samkv_gguf_open(const char *path, struct samkv_gguf **out, struct samkv_error *) SAMKV_MUST_USE;
/* One file's bytes that the caller keeps until close (tests, fuzzers), of a split model or not. */
enum samkv_status samkv_gguf_from_bytes(const void *bytes, size_t count, struct samkv_gguf **out,
                                        struct samkv_error *) SAMKV_MUST_USE;
void samkv_gguf_close(struct samkv_gguf *); /* NULL is allowed */

/* Scalars of any integer, float or bool type, converted; false when the key is missing or not such a scalar or does not
 * fit. */
bool samkv_gguf_u64(const struct samkv_gguf *, const char *key, uint64_t *out);
bool samkv_gguf_f64(const struct samkv_gguf *, const char *key, double *out);
bool samkv_gguf_bool(const struct samkv_gguf *, const char *key, bool *out);
/* Not NUL-terminated; points into the mapping. */
bool samkv_gguf_string(const struct samkv_gguf *, const char *key, const char **out, size_t *bytes);

/* Arrays: their length, then elements in ascending order through a cursor (strings have no index in the file). */
struct samkv_gguf_array {
    uint32_t type; /* GGUF value type of the elements */
    uint64_t count;
    const uint8_t *next, *end; /* private cursor */
};
bool samkv_gguf_array(const struct samkv_gguf *, const char *key, struct samkv_gguf_array *out);
bool samkv_gguf_array_next_string(struct samkv_gguf_array *, const char **out, size_t *bytes);
bool samkv_gguf_array_next_i64(struct samkv_gguf_array *, int64_t *out);
bool samkv_gguf_array_next_f64(struct samkv_gguf_array *, double *out);

struct samkv_gguf_tensor {
    uint32_t type; /* ggml type number */
    int dims;
    uint64_t shape[4]; /* shape[0] is the row length (in), shape[1] the number of rows (out): ggml's order */
    const void *data;
    uint64_t bytes; /* checked against type, shape and file */
};
/* NOT_FOUND without text when there is none; UNSUPPORTED names a tensor type that cannot be read. */
enum samkv_status samkv_gguf_tensor(const struct samkv_gguf *, const char *name, struct samkv_gguf_tensor *out,
                                    struct samkv_error *) SAMKV_MUST_USE;

/* The tensors in the file's order: how many, and the i-th one's name (not NUL-terminated, in the mapping). */
size_t samkv_gguf_tensor_count(const struct samkv_gguf *);
const char *samkv_gguf_tensor_name(const struct samkv_gguf *, size_t i, size_t *bytes);

/* ggml's name of a tensor type ("Q4_1"), also of those that cannot be read; NULL for an unknown number. */
const char *samkv_gguf_type_name(uint32_t type);

/* How a readable type is laid out: `elements` in `bytes`. False for a type that cannot be read. */
bool samkv_gguf_type_block(uint32_t type, uint32_t *elements, uint32_t *bytes);

/* Dequantises `count` elements (a multiple of the type's block) from src. False for an unknown type. */
bool samkv_gguf_dequantise(uint32_t type, const void *src, uint64_t count, float *dst);

/* The whole mapping of each file, for fingerprints. */
size_t samkv_gguf_file_count(const struct samkv_gguf *);
const void *samkv_gguf_bytes(const struct samkv_gguf *, size_t file, size_t *bytes);
