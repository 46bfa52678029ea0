#include "client/ctl/ctl_progress.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "client/ctl/ctl_text.h"

#define BAR_SECONDS  0.1
#define LINE_SECONDS 5.0
#define BAR_COLUMNS  24

double ctl_now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void ctl_progress_init(struct ctl_progress *progress)
{
    *progress = (struct ctl_progress){.is_terminal = ctl_is_terminal(stderr)};
    /* The first plain line waits its turn: short work needs none. */
    progress->next_s = progress->is_terminal ? 0 : ctl_now_s() + LINE_SECONDS;
}

static void draw_bar(double share)
{
    int full = (int)(share * BAR_COLUMNS + 0.5);
    for (int i = 0; i < BAR_COLUMNS; i++)
        fputs(i < full ? "█" : "░", stderr);
    fprintf(stderr, " %3d %%  ", (int)(share * 100));
}

static void draw(struct ctl_progress *progress, double share, const char *text)
{
    int room = ctl_terminal_columns(stderr) - 1, used = 0;
    fputc('\r', stderr);
    /* On a narrow terminal the text matters more than the bar. */
    if (share >= 0 && room >= BAR_COLUMNS + 8 + ctl_width(text)) {
        draw_bar(share > 1 ? 1 : share);
        used = BAR_COLUMNS + 8;
    }
    ctl_put(stderr, text, strlen(text), room - used, false);
    fputs("\033[K", stderr);
    fflush(stderr);
    progress->drawn = true;
}

void ctl_progress_show(struct ctl_progress *progress, double share, const char *text)
{
    double now = ctl_now_s();
    if (now < progress->next_s)
        return;
    progress->next_s = now + (progress->is_terminal ? BAR_SECONDS : LINE_SECONDS);
    if (progress->is_terminal)
        draw(progress, share, text);
    else
        fprintf(stderr, "%s\n", text);
}

void ctl_progress_clear(struct ctl_progress *progress)
{
    if (!progress->drawn)
        return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    progress->drawn = false;
    progress->next_s = 0;
}
