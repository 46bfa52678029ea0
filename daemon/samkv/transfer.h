#pragma once
/*
 * Between the host and a device with a memory of its own: records up (into the device's cache) and replies down,
 * through a bounded ring of page-locked memory and on a stream besides the one that computes.
 *
 * One transfer runs at a time: its records are decoded on all processors anyway, and so the ring is all the page-locked
 * memory that fetches ever take. A transfer waits for nobody's computing.
 *
 * Threads: any but the event loop's and a lane's.
 */
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"
#include "kernels/kernels.h"
#include "daemon/samkv/bands.h"
#include "daemon/samkv/device_cache.h"

struct samkv_transfer;

/* The ring is allocated here. cache_bytes: budget of the device's cache. */
enum samkv_status samkv_transfer_new(struct samkv_device *, uint64_t cache_bytes, struct samkv_transfer **out,
                                     struct samkv_error *) SAMKV_MUST_USE;
void samkv_transfer_free(struct samkv_transfer *); /* NULL is allowed */

struct samkv_device_cache *samkv_transfer_cache(struct samkv_transfer *);

/* A record that is wanted on the device. */
struct samkv_record_want {
    struct samkv_cached_key key;
    size_t bytes;
    struct samkv_cached *entry; /* out, pinned: the caller unpins it, after a failure too (NULL is possible then) */
};

/* Where a filler says that the first `bytes` of its record are written, and will not change. fn may be NULL. */
struct samkv_fill_watch {
    void (*fn)(void *arg, size_t bytes);
    void *arg;
};

/* Writes record i's bytes to `host` (64-byte aligned); called on several threads. It may tell of its progress. */
typedef enum samkv_status samkv_fill(void *arg, size_t i, void *host, const struct samkv_fill_watch *,
                                     struct samkv_error *);

/* Brings what the device's cache lacks. When OK is returned, all bytes are there. The first failure ends it. */
enum samkv_status samkv_transfer_up(struct samkv_transfer *, struct samkv_record_want *, size_t count, samkv_fill *,
                                    void *arg, struct samkv_error *) SAMKV_MUST_USE;

/* Where wants that are blocks go in a KV cache. */
struct samkv_placing {
    struct samkv_run *runs;   /* host, one a want; src is taken from the want's entry */
    const int32_t *positions; /* host, [rows] */
    size_t rows;              /* of the cache */
    const double *inv_freq;   /* on the device */
    float rope_scale;
    const struct samkv_place_runs *place; /* shapes, types and the cache's pointers; the rest is filled here */
};

/* Wants that were brought into the cache. Waits until they are in place. */
enum samkv_status samkv_transfer_place(struct samkv_transfer *, const struct samkv_record_want *, size_t count,
                                       const struct samkv_placing *, struct samkv_error *) SAMKV_MUST_USE;

/*
 * Both at once, band by band: each band of layers goes into the cache when all records have so much of it. Ends the
 * bands in every case, and waits as the two do.
 */
enum samkv_status samkv_transfer_stream(struct samkv_transfer *, struct samkv_record_want *, size_t count, samkv_fill *,
                                        void *arg, const struct samkv_placing *, struct samkv_bands *,
                                        struct samkv_error *) SAMKV_MUST_USE;

/* Device memory → ordinary host memory, through the ring, on several threads. */
enum samkv_status samkv_transfer_down(struct samkv_transfer *, const void *device_src, void *host_dst, size_t bytes,
                                      struct samkv_error *) SAMKV_MUST_USE;
