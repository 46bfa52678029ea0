#pragma once
/* The options that fetch and ask share: which documents, and how much of them. */
#include <stdio.h>

#include "client/ctl/ctl.h"

/* The beginning of both commands' arguments. */
struct ctl_fetch_args {
    struct ctl_common common;
    struct ctl_texts ids;
    const char *collection;
    double ratio, theta;
    int selection, update, positions, scoring, neighbours;
    struct ctl_numbers stable_layers;
    int64_t init_tokens, local_tokens, deadline_ms;
    bool no_recompute;
};

extern const struct ctl_option ctl_fetch_shared_options[];

void ctl_fetch_defaults(void *args);

/* Points into args. INVALID when no document is named. */
enum samkv_status ctl_fetch_fill(const struct ctl_fetch_args *args, struct samkv_fetch_options *out,
                                 struct samkv_error *) SAMKV_MUST_USE;

/* "312 of 2,048 tokens kept (15.2 %), 12.0 % recomputed; read 3.1 MB of 21.4 MB (14.5 %)": without a line's end. */
void ctl_print_ratios(const struct samkv_figures *, FILE *out);
