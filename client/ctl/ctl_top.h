#pragma once
/*
 * `samkvctl top`: readings of the daemon's numbers, what two of them say about the time between, and how that looks.
 * Drawing writes whole lines to a stream and knows no terminal.
 */
#include <stdio.h>

#include <jansson.h>

#include "samkv/samkv.h"

#define TOP_READINGS 11 /* the last one, and those of the ten intervals before */

struct top_reading {
    struct samkv_reply status, trace; /* answers; zeroed: none */
    double at_s;                      /* of a clock that does not go back */
};

/* The newest first. */
struct top {
    struct top_reading readings[TOP_READINGS];
    size_t count;
    const char *server;
};

/* Takes another reading, the oldest making room. */
enum samkv_status top_read(struct top *, struct samkv_client *, struct samkv_error *) SAMKV_MUST_USE;
void top_deinit(struct top *);

/* Of a status answer; 0 when there is no counter of that name. */
double top_counter(const struct samkv_status_answer *, const char *name);
/* How much a counter grew a second between the oldest reading and the newest; 0 with one reading only. */
double top_rate(const struct top *, const char *name);

/* A quantile, linear within a bucket, of what came between two readings of a histogram (then NULL: since the daemon
 * began); count gets how many that are. NaN when none are. */
double top_quantile(const struct samkv_histogram_info *now, const struct samkv_histogram_info *then, double q,
                    uint64_t *count);

/* At most `lines` lines of `columns` columns (the last one without line feed left out: every line ends in end). */
void top_draw(const struct top *, FILE *out, int columns, int lines, const char *end);
json_t *top_json(const struct top *);
