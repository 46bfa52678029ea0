#include "client/ctl/ctl_text.h"

#include <inttypes.h>
#include <langinfo.h>
#include <locale.h>
#include <math.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include <wchar.h>
#include <wctype.h>

void ctl_text_init(void)
{
    /* Numbers stay in the C locale: what is printed is read by programs too. */
    setlocale(LC_CTYPE, "");
    if (strcmp(nl_langinfo(CODESET), "UTF-8"))
        setlocale(LC_CTYPE, "C.UTF-8");
}

bool ctl_is_terminal(FILE *file)
{
    return isatty(fileno(file));
}

int ctl_terminal_columns(FILE *file)
{
    struct winsize size;
    if (ioctl(fileno(file), TIOCGWINSZ, &size) || !size.ws_col)
        return 80;
    return size.ws_col;
}

int ctl_terminal_rows(FILE *file)
{
    struct winsize size;
    if (ioctl(fileno(file), TIOCGWINSZ, &size) || !size.ws_row)
        return 24;
    return size.ws_row;
}

/* ------------------------------------------------------------------ numbers */

const char *ctl_bytes(struct ctl_buffer *out, uint64_t bytes)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
    double value = (double)bytes;
    size_t unit = 0;
    /* 999.95 would be printed as 1000.0. */
    while (value >= (unit ? 999.95 : 1000) && unit + 1 < sizeof units / sizeof *units) {
        value /= 1000;
        unit++;
    }
    snprintf(out->text, sizeof out->text, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return out->text;
}

const char *ctl_count(struct ctl_buffer *out, uint64_t value)
{
    char digits[24];
    size_t n = (size_t)snprintf(digits, sizeof digits, "%" PRIu64, value), at = 0;
    for (size_t i = 0; i < n; i++) {
        if (i && (n - i) % 3 == 0)
            out->text[at++] = ',';
        out->text[at++] = digits[i];
    }
    out->text[at] = 0;
    return out->text;
}

const char *ctl_duration(struct ctl_buffer *out, double seconds)
{
    if (!isfinite(seconds) || seconds < 0 || seconds > 1e9)
        snprintf(out->text, sizeof out->text, "?");
    else if (seconds < 0.0995)
        snprintf(out->text, sizeof out->text, "%.1f ms", seconds * 1e3);
    else if (seconds < 0.9995)
        snprintf(out->text, sizeof out->text, "%.0f ms", seconds * 1e3);
    else if (seconds < 59.95)
        snprintf(out->text, sizeof out->text, "%.1f s", seconds);
    else {
        long s = lround(seconds);
        if (s < 3600)
            snprintf(out->text, sizeof out->text, "%ld:%02ld", s / 60, s % 60);
        else
            snprintf(out->text, sizeof out->text, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    }
    return out->text;
}

const char *ctl_percent(struct ctl_buffer *out, double part, double whole)
{
    snprintf(out->text, sizeof out->text, "%.1f %%", whole > 0 ? 100 * part / whole : 0.0);
    return out->text;
}

const char *ctl_time(struct ctl_buffer *out, int64_t unix_s)
{
    time_t t = (time_t)unix_s;
    struct tm parts;
    if (!unix_s || !localtime_r(&t, &parts) || !strftime(out->text, sizeof out->text, "%Y-%m-%d %H:%M", &parts))
        snprintf(out->text, sizeof out->text, "?");
    return out->text;
}

/* ------------------------------------------------------------------ text */

/* The next character of UTF-8 text: its bytes, its columns, and whether it may be shown. bytes > 0. */
static size_t next_character(const char *text, size_t bytes, int *columns, bool *shown)
{
    wchar_t c;
    mbstate_t state = {0};
    size_t n = mbrtowc(&c, text, bytes, &state);
    *columns = 1;
    *shown = false;
    if (!n || n == (size_t)-1 || n == (size_t)-2)
        return 1;
    int width = wcwidth(c);
    *shown = width >= 0;
    if (*shown)
        *columns = width;
    return n;
}

int ctl_width(const char *text)
{
    int sum = 0, columns;
    bool shown;
    for (size_t at = 0, bytes = strlen(text); at < bytes; sum += columns)
        at += next_character(text + at, bytes - at, &columns, &shown);
    return sum;
}

/* Columns of the text up to `limit` of them. */
static int measure(const char *text, size_t bytes, int limit)
{
    int sum = 0, columns;
    bool shown;
    for (size_t at = 0; at < bytes && sum <= limit; sum += columns)
        at += next_character(text + at, bytes - at, &columns, &shown);
    return sum;
}

int ctl_put(FILE *file, const char *text, size_t bytes, int columns, bool multiline)
{
    bool cut = columns >= 0 && measure(text, bytes, columns) > columns;
    int room = cut ? columns - 1 : columns, written = 0, width;
    for (size_t at = 0; at < bytes;) {
        bool shown;
        size_t n = next_character(text + at, bytes - at, &width, &shown);
        if (columns >= 0 && written + width > room)
            break;
        if (shown || (multiline && (text[at] == '\n' || text[at] == '\t')))
            fwrite(text + at, 1, n, file);
        else
            fputc('?', file);
        written += width;
        at += n;
    }
    if (cut && columns > 0) {
        fputs("…", file);
        written++;
    }
    return written;
}
