#include "daemon/base/clock.h"

#include <time.h>

double samkv_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

double samkv_lap_ms(double *since)
{
    double now = samkv_now_ms(), elapsed = now - *since;
    *since = now;
    return elapsed;
}
