#pragma once
/*
 * What tells one model from another: XXH3-128 over the kind of model and each part's length and bytes, in order.
 * Not cryptographic: it tells models apart that nobody forged to look alike.
 */
#include <stddef.h>
#include <stdint.h>

struct samkv_fingerprint;

/* NULL without memory. */
struct samkv_fingerprint *samkv_fingerprint_new(const char *kind);
void samkv_fingerprint_add(struct samkv_fingerprint *, const void *bytes, size_t count);
/* The same for a mapped file, read ahead in order. */
void samkv_fingerprint_add_file(struct samkv_fingerprint *, const void *mapping, size_t count);
/* Big-endian digest; frees. NULL is allowed and leaves out alone. */
void samkv_fingerprint_finish(struct samkv_fingerprint *, uint8_t out[16]);
