#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/ctl/ctl_source.h"

#define READ_BYTES ((size_t)64 << 10)

void ctl_lines_init(struct ctl_lines *lines, int fd, size_t max_bytes)
{
    *lines = (struct ctl_lines){.fd = fd, .max_bytes = max_bytes};
}

void ctl_lines_deinit(struct ctl_lines *lines)
{
    if (lines->fd > STDIN_FILENO)
        close(lines->fd);
    free(lines->buffer);
    *lines = (struct ctl_lines){.fd = -1};
}

/* Room for READ_BYTES more behind what is there. */
static enum samkv_status make_room(struct ctl_lines *lines, struct samkv_error *err)
{
    size_t have = lines->end - lines->begin;
    if (lines->begin) {
        memmove(lines->buffer, lines->buffer + lines->begin, have);
        lines->begin = 0;
        lines->end = have;
    }
    if (lines->capacity - have >= READ_BYTES)
        return SAMKV_OK;
    size_t capacity = lines->capacity ? 2 * lines->capacity : 2 * READ_BYTES;
    char *grown = realloc(lines->buffer, capacity);
    if (!grown)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for a line");
    lines->buffer = grown;
    lines->capacity = capacity;
    return SAMKV_OK;
}

static enum samkv_status read_more(struct ctl_lines *lines, const volatile sig_atomic_t *stop, struct samkv_error *err)
{
    enum samkv_status status = make_room(lines, err);
    if (status)
        return status;
    for (;;) {
        if (*stop)
            return samkv_fail(err, SAMKV_CANCELLED, "stopped");
        ssize_t n = read(lines->fd, lines->buffer + lines->end, READ_BYTES);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return samkv_fail_errno(err, errno, "cannot read");
        lines->end += (size_t)n;
        lines->at_end = n == 0;
        return SAMKV_OK;
    }
}

/* The line [begin, begin + bytes) is done with, its newline (if any) too. */
static void pass(struct ctl_lines *lines, size_t bytes, bool newline, uint64_t *used)
{
    lines->begin += bytes + newline;
    *used += bytes + newline;
}

enum samkv_status ctl_lines_next(struct ctl_lines *lines, const volatile sig_atomic_t *stop, char **line, size_t *bytes,
                                 uint64_t *used, struct samkv_error *err)
{
    size_t searched = 0;
    *used = 0;
    for (;;) {
        size_t have = lines->end - lines->begin;
        char *start = lines->buffer ? lines->buffer + lines->begin : NULL;
        char *newline = have > searched ? memchr(start + searched, '\n', have - searched) : NULL;
        size_t length = newline ? (size_t)(newline - start) : have;
        bool whole = newline || (lines->at_end && (have || lines->skipping));
        if (whole && !lines->skipping && length <= lines->max_bytes) {
            *line = start;
            *bytes = length;
            lines->number++;
            pass(lines, length, newline, used);
            return SAMKV_OK;
        }
        if (whole) {
            lines->skipping = false;
            lines->number++;
            pass(lines, length, newline, used);
            return samkv_fail(err, SAMKV_TOO_LARGE, "the line is longer than %zu MB: split the document",
                              lines->max_bytes / 1000000);
        }
        if (lines->at_end)
            return SAMKV_NOT_FOUND;
        searched = have;
        if (have > lines->max_bytes || lines->skipping) {
            lines->skipping = true;
            pass(lines, have, false, used);
            searched = 0;
        }
        enum samkv_status status = read_more(lines, stop, err);
        if (status)
            return status;
    }
}
