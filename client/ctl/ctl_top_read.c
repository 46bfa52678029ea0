#include <math.h>
#include <string.h>
#include <time.h>

#include "client/ctl/ctl_top.h"

#define MAX_AGE_MS 5000 /* of the store's sums */

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void reading_deinit(struct top_reading *r)
{
    samkv_reply_deinit(&r->status);
    samkv_reply_deinit(&r->trace);
}

enum samkv_status top_read(struct top *top, struct samkv_client *client, struct samkv_error *err)
{
    struct top_reading r;
    memset(&r, 0, sizeof r);
    enum samkv_status status = samkv_client_status_quick(client, MAX_AGE_MS, &r.status, err);
    if (!status && r.status.answer.status.partial)
        status = samkv_fail(err, SAMKV_DENIED,
                            "only administrators see what the daemon is doing; samkvctl trace shows what "
                            "became of your own requests");
    if (!status)
        status = samkv_client_trace(client, 0, 0, &r.trace, err);
    if (status) {
        reading_deinit(&r);
        return status;
    }
    r.at_s = now_s();
    if (top->count == TOP_READINGS)
        reading_deinit(&top->readings[--top->count]);
    memmove(top->readings + 1, top->readings, top->count * sizeof *top->readings);
    top->readings[0] = r;
    top->count++;
    top->server = samkv_client_server(client);
    return SAMKV_OK;
}

void top_deinit(struct top *top)
{
    while (top->count)
        reading_deinit(&top->readings[--top->count]);
}

double top_counter(const struct samkv_status_answer *s, const char *name)
{
    for (size_t i = 0; i < s->counter_count; i++)
        if (strcmp(s->counters[i].name, name) == 0)
            return s->counters[i].value;
    return 0;
}

double top_rate(const struct top *top, const char *name)
{
    if (top->count < 2)
        return 0;
    const struct top_reading *now = &top->readings[0], *then = &top->readings[top->count - 1];
    double grown = top_counter(&now->status.answer.status, name) - top_counter(&then->status.answer.status, name);
    return now->at_s > then->at_s && grown > 0 ? grown / (now->at_s - then->at_s) : 0;
}

/* A daemon that began anew in between counts from 0 again. */
static uint64_t grown(const struct samkv_histogram_info *now, const struct samkv_histogram_info *then, size_t i)
{
    uint64_t before = then && i <= then->bound_count && then->counts[i] <= now->counts[i] ? then->counts[i] : 0;
    return now->counts[i] - before;
}

double top_quantile(const struct samkv_histogram_info *now, const struct samkv_histogram_info *then, double q,
                    uint64_t *count)
{
    *count = 0;
    for (size_t i = 0; i <= now->bound_count; i++)
        *count += grown(now, then, i);
    if (!*count)
        return NAN;
    double wanted = q * (double)*count, below = 0;
    for (size_t i = 0; i < now->bound_count; i++) {
        double here = (double)grown(now, then, i), from = i ? now->bounds[i - 1] : 0;
        if (here > 0 && below + here >= wanted)
            return from + (now->bounds[i] - from) * (wanted - below) / here;
        below += here;
    }
    /* Beyond all bounds: all that can be said. */
    return now->bound_count ? now->bounds[now->bound_count - 1] : NAN;
}
