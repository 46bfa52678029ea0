#include "daemon/base/trace.h"

#include "daemon/base/clock.h"

const char *samkv_phase_name(enum samkv_phase phase)
{
    static const char *const names[] = {
#define PHASE_NAME(name, text) [SAMKV_PHASE_##name] = text,
        SAMKV_PHASE_MAP(PHASE_NAME)
#undef PHASE_NAME
    };
    return names[phase];
}

void samkv_trace_add(struct samkv_trace *t, enum samkv_phase phase, double start_ms, double end_ms)
{
    if (!t || !(end_ms > start_ms))
        return;
    uint32_t i = atomic_fetch_add_explicit(&t->taken, 1, memory_order_relaxed);
    if (i < SAMKV_TRACE_SPANS)
        t->spans[i] = (struct samkv_span){phase, start_ms, end_ms};
}

double samkv_trace_lap(struct samkv_trace *t, enum samkv_phase phase, double *since)
{
    double from = *since, ms = samkv_lap_ms(since);
    samkv_trace_add(t, phase, from, *since);
    return ms;
}

uint32_t samkv_trace_count(const struct samkv_trace *t)
{
    uint32_t taken = atomic_load_explicit(&t->taken, memory_order_relaxed);
    return taken < SAMKV_TRACE_SPANS ? taken : SAMKV_TRACE_SPANS;
}
