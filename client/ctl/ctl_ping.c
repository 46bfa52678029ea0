#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/ctl/ctl.h"
#include "client/ctl/ctl_text.h"

struct ping_args {
    struct ctl_common common;
    int64_t count;
};

static const struct ctl_option options[] = {
    {"count", "N", CTL_INTEGER, offsetof(struct ping_args, count), "round trips to measure [100]", .min = 1,
     .max = 1000000},
    {"json", NULL, CTL_FLAG, offsetof(struct ctl_common, json), "print one JSON object"},
    {0},
};

static void defaults(void *args)
{
    ((struct ping_args *)args)->count = 100;
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int report(const struct ctl *ctl, double *us, size_t count)
{
    qsort(us, count, sizeof *us, by_value);
    double median = count % 2 ? us[count / 2] : (us[count / 2 - 1] + us[count / 2]) / 2;
    const char *server = samkv_client_server(ctl->client);
    if (!ctl->common->json) {
        ctl_put(stdout, server, strlen(server), -1, false);
        printf(": %zu round trips, min %.1f µs, median %.1f µs, max %.1f µs\n", count, us[0], median, us[count - 1]);
        return CTL_DONE;
    }
    json_t *o = json_object();
    json_object_set_new(o, "server", ctl_json_text(server));
    json_object_set_new(o, "count", json_integer((json_int_t)count));
    json_object_set_new(o, "min_us", json_real(us[0]));
    json_object_set_new(o, "median_us", json_real(median));
    json_object_set_new(o, "max_us", json_real(us[count - 1]));
    return ctl_json_print(o);
}

static int run(struct ctl *ctl)
{
    size_t count = (size_t)((struct ping_args *)ctl->args)->count;
    struct samkv_error err;
    int code = ctl_connect(ctl);
    if (code)
        return code;
    double *us = malloc(count * sizeof *us);
    if (!us) {
        ctl_error("no memory");
        return CTL_FAILED;
    }
    for (size_t i = 0; i < count && !code; i++) {
        int64_t start = now_ns();
        if (samkv_client_ping(ctl->client, &err))
            code = ctl_fail(&err);
        us[i] = (double)(now_ns() - start) / 1e3;
    }
    if (!code)
        code = report(ctl, us, count);
    free(us);
    return code;
}

const struct ctl_command ctl_command_ping = {
    .name = "ping",
    .arguments = "[--count N]",
    .summary = "Measures round trips to the daemon",
    .options = {options},
    .args_bytes = sizeof(struct ping_args),
    .defaults = defaults,
    .run = run,
};
