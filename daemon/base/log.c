#include "daemon/base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const struct {
    const char *name;
    int syslog; /* the journal's number */
} levels[] = {
    [SAMKV_LOG_ERROR] = {"error", 3},
    [SAMKV_LOG_WARNING] = {"warning", 4},
    [SAMKV_LOG_INFO] = {"info", 6},
    [SAMKV_LOG_DEBUG] = {"debug", 7},
};

/* The one process-wide setting: a log is written from everywhere, to the process's own stderr. */
static _Atomic int threshold = SAMKV_LOG_INFO;

void samkv_log_set_level(enum samkv_log_level level)
{
    atomic_store_explicit(&threshold, (int)level, memory_order_relaxed);
}

int samkv_log_level_parse(const char *name)
{
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++)
        if (strcmp(levels[i].name, name) == 0)
            return (int)i;
    return -1;
}

/* systemd says which stream is the journal's; a service whose stderr was redirected is not fooled. */
static bool stderr_is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    unsigned long long device, inode;
    struct stat st;
    if (!stream || sscanf(stream, "%llu:%llu", &device, &inode) != 2 || fstat(STDERR_FILENO, &st) != 0)
        return false;
    return st.st_dev == device && st.st_ino == inode;
}

static int prefix(char *out, size_t size, enum samkv_log_level level)
{
    if (stderr_is_journal())
        return snprintf(out, size, "<%d>", levels[level].syslog);
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    char date[32];
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &utc);
    return snprintf(out, size, "%s.%03ldZ %s ", date, now.tv_nsec / 1000000, levels[level].name);
}

void samkv_log(enum samkv_log_level level, const char *format, ...)
{
    if ((int)level > atomic_load_explicit(&threshold, memory_order_relaxed))
        return;
    char line[2048];
    int used = prefix(line, sizeof line, level);
    va_list args;
    va_start(args, format);
    int text = vsnprintf(line + used, sizeof line - (size_t)used - 1, format, args);
    va_end(args);
    if (text < 0)
        return;
    size_t end = (size_t)used + (size_t)text;
    if (end > sizeof line - 2)
        end = sizeof line - 2;
    /* Text may hold what a client sent: one event stays one line, and no escape reaches a terminal. */
    for (size_t i = (size_t)used; i < end; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = '?';
    line[end++] = '\n';
    /* One write, so that threads do not mix their lines; nothing helps when stderr itself fails. */
    ssize_t ignored = write(STDERR_FILENO, line, end);
    (void)ignored;
}
