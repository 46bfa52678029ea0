#pragma once
/* A growable run of bytes on the heap. Not for several threads at once. */
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"

struct samkv_buffer {
    uint8_t *data; /* heap; samkv_buffer_deinit frees it. NULL while capacity is 0 */
    size_t count, capacity;
};

/* An all-zero struct is an empty buffer too. */
void samkv_buffer_init(struct samkv_buffer *);
void samkv_buffer_deinit(struct samkv_buffer *);

/* Makes the capacity exactly `capacity` bytes (at least count). NO_MEMORY leaves the buffer as it was. */
enum samkv_status samkv_buffer_resize(struct samkv_buffer *, size_t capacity) SAMKV_MUST_USE;

/* Adds bytes, growing by doubling. NO_MEMORY (also when sizes overflow) leaves the buffer as it was. */
enum samkv_status samkv_buffer_append(struct samkv_buffer *, const void *bytes, size_t count) SAMKV_MUST_USE;

/* Hands the bytes to *to (whose own are freed) and leaves *from empty. */
void samkv_buffer_move(struct samkv_buffer *from, struct samkv_buffer *to);
