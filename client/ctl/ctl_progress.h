#pragma once
/* Progress on stderr: a bar that is drawn over itself on a terminal, a plain line now and then elsewhere. */
#include <stdbool.h>
#include <stdint.h>

struct ctl_progress {
    bool is_terminal, drawn;
    double next_s; /* of the monotonic clock: no sooner */
};

/* Seconds of the monotonic clock. */
double ctl_now_s(void);

void ctl_progress_init(struct ctl_progress *);

/* share: 0 to 1 of the work, negative when that is unknown. Calls that come too soon are dropped. */
void ctl_progress_show(struct ctl_progress *, double share, const char *text);

/* Takes the bar away, so that something else can be written. */
void ctl_progress_clear(struct ctl_progress *);
