#pragma once
/*
 * The one list of outcomes of this project. Values are pinned: they cross the wire and appear in
 * clients that were built long ago. Functions return a status; details for a person go through
 * struct samkv_error, which every layer may pass as NULL when it does not care.
 *
 * A miss (NOT_FOUND) is a status like any other, not an exception. Foreign error codes (errno,
 * LMDB, zstd, CUDA) are translated in exactly one function for each library.
 */
#include <stdarg.h>
#include <stddef.h>

/* clang-format off */
#define SAMKV_STATUS_MAP(X)                                                                   \
    X(OK,           0, "done")                                                                \
    X(NOT_FOUND,    1, "not found")                                                           \
    X(INVALID,      2, "invalid argument")                                                    \
    X(NO_MEMORY,    3, "out of memory")                                                       \
    X(CORRUPT,      4, "stored bytes are damaged")                                            \
    X(IO,           5, "input or output failed")                                              \
    X(FULL,         6, "no space left")                                                       \
    X(BUSY,         7, "busy, try again")                                                     \
    X(CANCELLED,    8, "cancelled")                                                           \
    X(UNSUPPORTED,  9, "not supported")                                                       \
    X(MISMATCH,    10, "does not match what is stored")                                       \
    X(TOO_LARGE,   11, "too large")                                                           \
    X(PROTOCOL,    12, "protocol violated")                                                   \
    X(CLOSED,      13, "connection closed")                                                   \
    X(NO_DAEMON,   14, "no daemon")                                                           \
    X(TIMEOUT,     15, "timed out")                                                           \
    X(DEVICE,      16, "device failed")                                                       \
    X(INTERNAL,    17, "internal error")                                                      \
    X(DENIED,      18, "permission denied")
/* clang-format on */

enum samkv_status {
#define SAMKV_STATUS_ENUM(name, value, text) SAMKV_##name = value,
    SAMKV_STATUS_MAP(SAMKV_STATUS_ENUM)
#undef SAMKV_STATUS_ENUM
};

#define SAMKV_MUST_USE __attribute__((warn_unused_result))
/* Exported from libsamkv, which is built with hidden visibility. */
#define SAMKV_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* What went wrong, in one line that says what to do about it. Lives on the caller's stack. */
struct samkv_error {
    enum samkv_status status;
    char text[512];
};

/* Short English text of a status; never NULL, also for values from a newer peer. */
SAMKV_API const char *samkv_status_text(enum samkv_status status);

/* Its constant's name without the prefix ("NOT_FOUND"); "UNKNOWN" for values from a newer peer. */
SAMKV_API const char *samkv_status_name(enum samkv_status status);

/* Fills err (NULL is allowed) with one printable line of UTF-8 and returns status: `return samkv_fail(err, ...)`. */
SAMKV_API enum samkv_status samkv_fail(struct samkv_error *err, enum samkv_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* samkv_fail for an errno value; ENOSPC becomes FULL, ENOMEM NO_MEMORY, ENOENT NOT_FOUND, the rest IO. */
SAMKV_API enum samkv_status samkv_fail_errno(struct samkv_error *err, int errnum, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#ifdef __cplusplus
}
#endif
