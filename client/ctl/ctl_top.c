#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "client/ctl/ctl.h"
#include "client/ctl/ctl_text.h"
#include "client/ctl/ctl_top.h"

struct top_args {
    struct ctl_common common;
    double interval_s;
    bool once;
};

static const struct ctl_option options[] = {
    {"interval", "SECONDS", CTL_REAL, offsetof(struct top_args, interval_s), "between two readings [1]", .min = 0.1,
     .max = 3600},
    {"once", NULL, CTL_FLAG, offsetof(struct top_args, once), "two readings, then print and end"},
    {"json", NULL, CTL_FLAG, offsetof(struct ctl_common, json), "likewise, as one JSON object"},
    {0},
};

static void defaults(void *args)
{
    ((struct top_args *)args)->interval_s = 1;
}

/* ------------------------------------------------------------------ the terminal */

/* What handlers may touch. */
static volatile sig_atomic_t wants_end, was_resized;

static void on_signal(int signal)
{
    if (signal == SIGWINCH)
        was_resized = 1;
    else
        wants_end = signal;
}

struct screen {
    struct termios before;
    bool keys; /* the terminal gives single keys, and does not show them */
};

static void write_all(const char *text, size_t bytes)
{
    while (bytes) {
        ssize_t n = write(STDOUT_FILENO, text, bytes);
        if (n < 0 && errno != EINTR)
            return;
        text += n > 0 ? n : 0;
        bytes -= n > 0 ? (size_t)n : 0;
    }
}

static void say(const char *codes)
{
    write_all(codes, strlen(codes));
}

/* The other screen of the terminal, without cursor; all of it is undone by leave. */
static void enter(struct screen *s)
{
    struct sigaction action = {.sa_handler = on_signal};
    const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGWINCH};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        sigaction(signals[i], &action, NULL);
    s->keys = isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &s->before) == 0;
    if (s->keys) {
        struct termios raw = s->before;
        raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        raw.c_cc[VSUSP] = _POSIX_VDISABLE; /* stopped, it would leave the terminal like this */
        tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    }
    say("\033[?1049h\033[?25l");
}

static void leave(const struct screen *s)
{
    say("\033[?25h\033[?1049l");
    if (s->keys)
        tcsetattr(STDIN_FILENO, TCSANOW, &s->before);
}

static void draw(const struct top *top)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (!out)
        return;
    int rows = ctl_terminal_rows(stdout);
    fputs("\033[H", out);
    /* The last row stays empty: a line feed there would scroll. */
    top_draw(top, out, ctl_terminal_columns(stdout), rows - 1, "\033[K\n");
    fputs("\033[J", out);
    if (fclose(out) == 0)
        write_all(text, bytes);
    free(text);
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Until then, drawing again after a change of size. False when the user has seen enough. */
static bool wait_until(const struct top *top, const struct screen *s, double until_s)
{
    while (!wants_end) {
        double left = until_s - now_s();
        if (left <= 0)
            return true;
        struct pollfd key = {.fd = s->keys ? STDIN_FILENO : -1, .events = POLLIN};
        int n = poll(&key, 1, (int)(left * 1e3) + 1);
        char c = 0;
        if (n > 0 && (read(STDIN_FILENO, &c, 1) <= 0 || c == 'q' || c == 'Q' || c == 4))
            return false;
        if (was_resized) {
            was_resized = 0;
            draw(top);
        }
    }
    return false;
}

/* ------------------------------------------------------------------ the command */

static int watch(struct ctl *ctl, struct top *top)
{
    const struct top_args *args = ctl->args;
    struct samkv_error err;
    struct screen screen;
    bool more = true;
    enum samkv_status status = top_read(top, ctl->client, &err);
    if (status)
        return ctl_fail(&err);
    enter(&screen);
    for (double next = now_s(); more && !status;) {
        draw(top);
        next += args->interval_s;
        more = wait_until(top, &screen, next);
        if (more)
            status = top_read(top, ctl->client, &err);
        if (now_s() - next > args->interval_s) /* stopped, or a slow answer: not all of them at once now */
            next = now_s();
    }
    leave(&screen);
    return status ? ctl_fail(&err) : CTL_DONE;
}

static int once(struct ctl *ctl, struct top *top)
{
    const struct top_args *args = ctl->args;
    struct timespec pause = {.tv_sec = (time_t)args->interval_s};
    struct samkv_error err;
    pause.tv_nsec = (long)((args->interval_s - (double)pause.tv_sec) * 1e9);
    if (top_read(top, ctl->client, &err))
        return ctl_fail(&err);
    nanosleep(&pause, NULL);
    if (top_read(top, ctl->client, &err))
        return ctl_fail(&err);
    if (ctl->common->json)
        return ctl_json_print(top_json(top));
    top_draw(top, stdout, -1, 1000, "\n");
    return CTL_DONE;
}

static int run(struct ctl *ctl)
{
    const struct top_args *args = ctl->args;
    struct top top = {.count = 0};
    int code = ctl_connect(ctl);
    if (code)
        return code;
    code = args->once || ctl->common->json || !ctl_is_terminal(stdout) ? once(ctl, &top) : watch(ctl, &top);
    top_deinit(&top);
    return code;
}

const struct ctl_command ctl_command_top = {
    .name = "top",
    .arguments = "[--once]",
    .summary = "Shows what the daemon is doing, again and again",
    .details = "Rates and the left half of the phases are of the last ten readings, the right half is since the daemon "
               "began.\n"
               "q or Ctrl-C ends it. When the output is no terminal, it prints once.",
    .options = {options},
    .args_bytes = sizeof(struct top_args),
    .defaults = defaults,
    .run = run,
};
