#include "daemon/base/metrics.h"

const char *samkv_metric_name(enum samkv_metric which)
{
    static const char *const names[] = {
#define SAMKV_METRIC_NAME(name, text) [SAMKV_METRIC_##name] = text,
        SAMKV_METRIC_MAP(SAMKV_METRIC_NAME)
#undef SAMKV_METRIC_NAME
    };
    return names[which];
}

const struct samkv_histogram_row *samkv_metric_histogram(enum samkv_histogram_id which)
{
    static const struct samkv_histogram_row rows[] = {
#define SAMKV_HISTOGRAM_ROW(name, scale, family, phase, help)                                                          \
    [SAMKV_HISTOGRAM_##name] = {SAMKV_SCALE_##scale, family, phase, help},
        SAMKV_HISTOGRAM_MAP(SAMKV_HISTOGRAM_ROW)
#undef SAMKV_HISTOGRAM_ROW
    };
    return &rows[which];
}

void samkv_metrics_observe(struct samkv_metrics *m, enum samkv_histogram_id which, double value)
{
    samkv_histogram_add(&m->histograms[which], samkv_metric_histogram(which)->scale, value);
}
