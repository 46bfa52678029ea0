#include "daemon/base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/base/log_journal.h"
#include "daemon/base/log_limit.h"

#define JOURNAL_SOCKET "/run/systemd/journal/socket"

static const struct {
    const char *name;
    int syslog; /* the journal's number */
} levels[] = {
    [SAMKV_LOG_ERROR] = {"error", 3},
    [SAMKV_LOG_WARNING] = {"warning", 4},
    [SAMKV_LOG_INFO] = {"info", 6},
    [SAMKV_LOG_DEBUG] = {"debug", 7},
};

/* The process-wide state: a log is written from everywhere, to the process's own stderr or to its journal. */
static _Atomic int threshold = SAMKV_LOG_INFO;
static _Atomic int journal = -1; /* a connected socket */
static struct samkv_log_limit limit = SAMKV_LOG_LIMIT_INIT;

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

bool samkv_log_to_journal(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return false;
    strcpy(address.sun_path, path);
    /* A journal that does not keep up costs lines, never time. */
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof address) != 0) {
        if (fd >= 0)
            close(fd);
        return false;
    }
    int before = atomic_exchange(&journal, fd);
    if (before >= 0)
        close(before);
    return true;
}

void samkv_log_find_journal(void)
{
    if (stderr_is_journal())
        samkv_log_to_journal(JOURNAL_SOCKET);
}

static bool send_to_journal(enum samkv_log_level level, const char *text, size_t count)
{
    char entry[SAMKV_JOURNAL_BYTES];
    int fd = atomic_load(&journal);
    if (fd < 0)
        return false;
    size_t bytes = samkv_journal_entry(levels[level].syslog, text, count, entry);
    return send(fd, entry, bytes, MSG_NOSIGNAL) >= 0;
}

static void write_line(enum samkv_log_level level, const char *format, va_list args)
{
    char line[2048];
    int used = prefix(line, sizeof line, level);
    int text = vsnprintf(line + used, sizeof line - (size_t)used - 1, format, args);
    if (text < 0)
        return;
    size_t end = (size_t)used + (size_t)text;
    if (end > sizeof line - 2)
        end = sizeof line - 2;
    /* Text may hold what a client sent: one event stays one line, and no escape reaches a terminal. */
    for (size_t i = (size_t)used; i < end; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = '?';
    if (send_to_journal(level, line + used, end - (size_t)used))
        return;
    line[end++] = '\n';
    /* One write, so that threads do not mix their lines; nothing helps when stderr itself fails. */
    ssize_t ignored = write(STDERR_FILENO, line, end);
    (void)ignored;
}

__attribute__((format(printf, 2, 3))) static void write_unlimited(enum samkv_log_level level, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    write_line(level, format, args);
    va_end(args);
}

void samkv_log(enum samkv_log_level level, const char *format, ...)
{
    if ((int)level > atomic_load_explicit(&threshold, memory_order_relaxed))
        return;
    /* Who asks for every detail gets it. */
    if (level != SAMKV_LOG_DEBUG && !samkv_log_limit_pass(&limit, format, (int)level, (uint64_t)samkv_now_ms()))
        return;
    va_list args;
    va_start(args, format);
    write_line(level, format, args);
    va_end(args);
}

void samkv_log_tick(void)
{
    struct samkv_log_site site;
    while (samkv_log_limit_next(&limit, (uint64_t)samkv_now_ms(), &site))
        write_unlimited((enum samkv_log_level)site.level, "suppressed=%u within %d s: more lines like \"%.*s\"",
                        site.suppressed, SAMKV_LOG_WINDOW_MS / 1000, (int)strcspn(site.format, "%"), site.format);
}
