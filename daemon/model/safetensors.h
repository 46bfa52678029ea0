#pragma once
/*
 * Reading safetensors files by mapping them (format: 8-byte little-endian header size, a JSON header, data).
 * A lying header (sizes, offsets, overlaps, holes, beyond the file) is refused with CORRUPT; nothing is trusted.
 * Headers above 4 MiB are TOO_LARGE, which bounds what the JSON parser can be made to allocate. A file that another
 * process shortens after open is out of scope (reading the mapping then raises SIGBUS): replace model files by rename.
 * An open file is immutable: any thread may read it.
 */
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"
#include "proto/tensor.h"

struct samkv_safetensors;

struct samkv_tensor_view {
    const void *data; /* in the mapping; valid until close */
    enum samkv_dtype dtype;
    int dims;
    uint64_t shape[4];
    uint64_t bytes;
};

enum samkv_status samkv_safetensors_open(const char *path, struct samkv_safetensors **out,
                                         struct samkv_error *) SAMKV_MUST_USE;
/* The same over bytes that the caller keeps until close (tests, fuzzers). */
enum samkv_status samkv_safetensors_from_bytes(const void *bytes, size_t count, struct samkv_safetensors **out,
                                               struct samkv_error *) SAMKV_MUST_USE;
void samkv_safetensors_close(struct samkv_safetensors *); /* NULL is allowed */

/* NOT_FOUND without text when there is none of this name; UNSUPPORTED for an element type that is not F32, F16 or BF16.
 */
enum samkv_status samkv_safetensors_find(const struct samkv_safetensors *, const char *name,
                                         struct samkv_tensor_view *out, struct samkv_error *) SAMKV_MUST_USE;

/* The whole mapping, for fingerprints. */
const void *samkv_safetensors_bytes(const struct samkv_safetensors *, size_t *bytes);
