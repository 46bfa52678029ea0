#include "proto/status.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

const char *samkv_status_text(enum samkv_status status)
{
    switch (status) {
#define SAMKV_STATUS_TEXT(name, value, text)                                                                           \
    case SAMKV_##name:                                                                                                 \
        return text;
        SAMKV_STATUS_MAP(SAMKV_STATUS_TEXT)
#undef SAMKV_STATUS_TEXT
    }
    return "unknown status";
}

const char *samkv_status_name(enum samkv_status status)
{
    switch (status) {
#define SAMKV_STATUS_NAME(name, value, text)                                                                           \
    case SAMKV_##name:                                                                                                 \
        return #name;
        SAMKV_STATUS_MAP(SAMKV_STATUS_NAME)
#undef SAMKV_STATUS_NAME
    }
    return "UNKNOWN";
}

/* Bytes of the well-formed UTF-8 character at text, which a NUL ends; 0 when there is none. */
static size_t character(const unsigned char *text)
{
    static const struct {
        unsigned char first, last, low, high; /* of the first byte, and of the second */
        size_t bytes;
    } forms[] = {{0x20, 0x7e, 0, 0, 1},       {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3},
                 {0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3},
                 {0xf0, 0xf0, 0x90, 0xbf, 4}, {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4}};
    for (size_t f = 0; f < sizeof forms / sizeof *forms; f++) {
        if (text[0] < forms[f].first || text[0] > forms[f].last)
            continue;
        if (forms[f].bytes > 1 && (text[1] < forms[f].low || text[1] > forms[f].high))
            return 0;
        for (size_t i = 2; i < forms[f].bytes; i++)
            if ((text[i] & 0xc0) != 0x80)
                return 0;
        return forms[f].bytes;
    }
    return 0;
}

/*
 * Errors quote what files and clients say, and go to logs, terminals and into messages: control characters and what is
 * no UTF-8, a character that was cut short among it, become '?'.
 */
static void make_printable(char *text)
{
    for (size_t at = 0, n; text[at]; at += n) {
        n = character((const unsigned char *)text + at);
        if (n == 0)
            text[at] = '?', n = 1;
    }
}

enum samkv_status samkv_fail(struct samkv_error *err, enum samkv_status status, const char *format, ...)
{
    if (err) {
        va_list args;
        va_start(args, format);
        err->status = status;
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
        make_printable(err->text);
    }
    return status;
}

static enum samkv_status status_of_errno(int errnum)
{
    switch (errnum) {
    case ENOSPC:
    case EDQUOT:
        return SAMKV_FULL;
    case ENOMEM:
        return SAMKV_NO_MEMORY;
    case ENOENT:
        return SAMKV_NOT_FOUND;
    case EACCES:
    case EPERM:
        return SAMKV_DENIED;
    default:
        return SAMKV_IO;
    }
}

enum samkv_status samkv_fail_errno(struct samkv_error *err, int errnum, const char *format, ...)
{
    enum samkv_status status = status_of_errno(errnum);
    if (err) {
        va_list args;
        va_start(args, format);
        err->status = status;
        int n = vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
        if (n >= 0 && (size_t)n < sizeof err->text)
            snprintf(err->text + n, sizeof err->text - (size_t)n, ": %s", strerror(errnum));
        make_printable(err->text);
    }
    return status;
}
