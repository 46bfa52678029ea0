#include "daemon/base/histogram.h"

/* clang-format off */
static const double seconds[] = {0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.0032, 0.0064, 0.0128, 0.0256, 0.0512, 0.1024,
                                 0.2048, 0.4096, 0.8192, 1.6384, 3.2768, 6.5536, 13.1072, 26.2144, 52.4288, 104.8576};
static const double ratios[] = {0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1};
/* clang-format on */

static const struct {
    const double *bounds;
    size_t count;
} scales[] = {
    [SAMKV_SCALE_SECONDS] = {seconds, sizeof seconds / sizeof *seconds},
    [SAMKV_SCALE_RATIO] = {ratios, sizeof ratios / sizeof *ratios},
};
_Static_assert(sizeof seconds / sizeof *seconds <= SAMKV_HISTOGRAM_BOUNDS, "more bounds than buckets");
_Static_assert(sizeof ratios / sizeof *ratios <= SAMKV_HISTOGRAM_BOUNDS, "more bounds than buckets");

#define LARGEST 1e6 /* of one value: what is beyond adds no more than this to the sum, which so never wraps */

const double *samkv_scale_bounds(enum samkv_scale scale, size_t *count)
{
    *count = scales[scale].count;
    return scales[scale].bounds;
}

void samkv_histogram_add(struct samkv_histogram *h, enum samkv_scale scale, double value)
{
    size_t bucket = 0;
    if (!(value > 0))
        value = 0;
    while (bucket < scales[scale].count && value > scales[scale].bounds[bucket])
        bucket++;
    atomic_fetch_add_explicit(&h->buckets[bucket], 1, memory_order_relaxed);
    double bounded = value < LARGEST ? value : LARGEST;
    atomic_fetch_add_explicit(&h->sum_nano, (uint64_t)(bounded * 1e9 + 0.5), memory_order_relaxed);
}

void samkv_histogram_read(const struct samkv_histogram *h, enum samkv_scale scale, struct samkv_histogram_state *out)
{
    *out = (struct samkv_histogram_state){.count = 0};
    for (size_t i = 0; i <= scales[scale].count; i++) {
        out->buckets[i] = atomic_load_explicit(&h->buckets[i], memory_order_relaxed);
        out->count += out->buckets[i];
    }
    out->sum = (double)atomic_load_explicit(&h->sum_nano, memory_order_relaxed) / 1e9;
}
