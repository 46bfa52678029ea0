#pragma once
/* A regular file, mapped read-only. What a file's reader points into. */
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"

struct samkv_mapping {
    const uint8_t *data;
    size_t bytes;
};

/*
 * Maps the whole file. Anything but a regular file (a directory, a pipe) gives INVALID, an empty one CORRUPT, one above
 * max_bytes TOO_LARGE; errno's reasons otherwise (NOT_FOUND when there is none). Any thread.
 */
enum samkv_status samkv_mapping_open(const char *path, size_t max_bytes, struct samkv_mapping *out,
                                     struct samkv_error *) SAMKV_MUST_USE;

/* Unmaps; a mapping of zeros is allowed, and what it becomes. */
void samkv_mapping_close(struct samkv_mapping *);
