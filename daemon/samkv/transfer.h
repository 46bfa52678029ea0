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

/*
 * Brings what the device's cache lacks. fill writes record i's bytes to `host` (64-byte aligned); it is called on
 * several threads. When OK is returned, all bytes are there. The first failure ends it.
 */
enum samkv_status samkv_transfer_up(struct samkv_transfer *, struct samkv_record_want *, size_t count,
                                    enum samkv_status (*fill)(void *arg, size_t i, void *host, struct samkv_error *),
                                    void *arg, struct samkv_error *) SAMKV_MUST_USE;

/*
 * Runs of the wants into a KV cache: `runs` and `positions` are host arrays; runs[i].src is taken from wants[i].entry.
 * rows: of the cache; positions [rows]. Waits until they are in place. `place` is a template: shapes, types and the
 * cache's pointers; the rest is filled here.
 */
enum samkv_status samkv_transfer_place(struct samkv_transfer *, const struct samkv_record_want *,
                                       struct samkv_run *runs, size_t count, const int32_t *positions, size_t rows,
                                       const double *inv_freq_device, float rope_scale,
                                       const struct samkv_place_runs *place, struct samkv_error *) SAMKV_MUST_USE;

/* Device memory → ordinary host memory, through the ring, on several threads. */
enum samkv_status samkv_transfer_down(struct samkv_transfer *, const void *device_src, void *host_dst, size_t bytes,
                                      struct samkv_error *) SAMKV_MUST_USE;
