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
