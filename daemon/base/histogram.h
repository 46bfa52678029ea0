#pragma once
/*
 * Histograms with fixed bounds, to be read as Prometheus reads them. Adding takes no lock. Any thread.
 * A bucket holds what is at most its bound and above the one before; the last bucket has no bound.
 */
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define SAMKV_HISTOGRAM_BOUNDS 21 /* at most; buckets are one more */

enum samkv_scale {
    SAMKV_SCALE_SECONDS, /* 0.1 ms, and twice as much each time, to 105 s */
    SAMKV_SCALE_RATIO,   /* shares from 0 to 1 */
};

/* All zero at the start. */
struct samkv_histogram {
    _Atomic uint64_t buckets[SAMKV_HISTOGRAM_BOUNDS + 1];
    _Atomic uint64_t sum_nano; /* 1e-9 of the unit */
};

/* What one was at a moment. The number of values is the sum of the buckets, so that both always fit together; `sum` is
 * read a little later and may be ahead by values that come meanwhile. */
struct samkv_histogram_state {
    uint64_t buckets[SAMKV_HISTOGRAM_BOUNDS + 1], count;
    double sum;
};

/* [*count], ascending. */
const double *samkv_scale_bounds(enum samkv_scale, size_t *count);

/* A value that is no number, or below 0, counts as 0. */
void samkv_histogram_add(struct samkv_histogram *, enum samkv_scale, double value);

void samkv_histogram_read(const struct samkv_histogram *, enum samkv_scale, struct samkv_histogram_state *out);
