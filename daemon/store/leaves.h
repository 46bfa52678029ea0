#pragma once
/*
 * Reading a data file whose trees may be damaged: every record that can still be found, those that are most surely
 * current first. LMDB is not asked; nothing is mapped, nothing written. For salvage alone.
 *
 * First come the leaves that the newest meta page leads to. When something is missing on the way (a page that is none,
 * a small record that does not check), then what the other meta page leads to, which is the state one transaction
 * before; and then all other leaves of the file: those that damage has cut off, and old ones, not overwritten yet, with
 * records that were replaced or removed. A record that comes later under the same key is to be left out.
 */
#include <stdbool.h>
#include <stdint.h>

#include "proto/status.h"
#include "daemon/store/record.h"

struct samkv_leaves;

/* A value that may be read with samkv_leaves_read. */
struct samkv_leaf_record {
    struct samkv_bytes key;
    uint8_t head[SAMKV_RECORD_HEADER_BYTES]; /* the value's first bytes; zeros when it has fewer */
    uint64_t offset;
    uint32_t bytes;
    bool alone; /* on pages of its own */
};

/* A status that ends the walk. *sound: false asks for the older leaves too. */
typedef enum samkv_status samkv_leaves_fn(void *arg, struct samkv_leaves *, const struct samkv_leaf_record *,
                                          bool *sound, struct samkv_error *);

/* CORRUPT when it is not even known what a page is. IO when the file cannot be opened. */
enum samkv_status samkv_leaves_open(const char *path, struct samkv_leaves **out, struct samkv_error *) SAMKV_MUST_USE;
void samkv_leaves_close(struct samkv_leaves *);

enum samkv_status samkv_leaves_each(struct samkv_leaves *, samkv_leaves_fn *fn, void *arg,
                                    struct samkv_error *) SAMKV_MUST_USE;

/* The whole value, until the next call. CORRUPT: it cannot be read. */
enum samkv_status samkv_leaves_read(struct samkv_leaves *, const struct samkv_leaf_record *,
                                    struct samkv_bytes *out) SAMKV_MUST_USE;
