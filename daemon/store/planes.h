#pragma once
/*
 * Byte planes of numbers: all lowest bytes, then all second bytes, and so on. Exponents of neighbours are alike and
 * compress once they stand side by side; mantissas are noise and do not get in their way.
 */
#include <stddef.h>
#include <stdint.h>

#include "proto/tensor.h"

/* src holds `count` elements at any alignment; byte p of element i (rotated, for floats) goes to planes[p * stride +
 * i]. */
void samkv_planes_split(enum samkv_dtype, const void *src, size_t count, uint8_t *planes, size_t stride);

/* The reverse, with one pointer for each plane. */
void samkv_planes_join(enum samkv_dtype, const uint8_t *const planes[4], size_t count, void *dst);
