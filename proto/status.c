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

enum samkv_status samkv_fail(struct samkv_error *err, enum samkv_status status, const char *format, ...)
{
    if (err) {
        va_list args;
        va_start(args, format);
        err->status = status;
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
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
    }
    return status;
}
