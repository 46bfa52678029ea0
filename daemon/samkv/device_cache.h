#pragma once
/*
 * What a device keeps of hot documents: blocks (K before RoPE, V) and index records as they are stored, in device
 * memory under a byte budget. It holds bytes under keys and knows neither store nor model.
 *
 *   entry   the bytes of one record on the device.
 *   pin     an entry in use: it is not evicted. Whoever finds or makes an entry holds a pin, and unpins it once.
 *
 * The least recently used entries go first. What is in use counts to the budget too; when everything is in use, an
 * entry beyond the budget is made all the same (or the device says that it has no memory), and goes with its last pin.
 * Any thread. Memory is given back in the device's own order, so an entry may be unpinned while work with it is
 * enqueued.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"
#include "kernels/kernels.h"

struct samkv_device_cache;
struct samkv_cached;

/* A document's content key, and which of its records. A document that is removed and prefilled again has the same key
 * and may round otherwise: `made` tells one from the other. */
struct samkv_cached_key {
    uint8_t document[16];
    uint64_t made; /* when, in seconds */
    uint32_t kind, number;
};

enum { SAMKV_CACHED_BLOCK = 0, SAMKV_CACHED_INDEX = 1 };

enum samkv_status samkv_device_cache_new(struct samkv_device *, uint64_t budget_bytes,
                                         struct samkv_device_cache **out) SAMKV_MUST_USE;
/* Nothing may be pinned. NULL is allowed. */
void samkv_device_cache_free(struct samkv_device_cache *);

/* Pinned; NULL when it is not there. */
struct samkv_cached *samkv_device_cache_find(struct samkv_device_cache *, const struct samkv_cached_key *);

/* Memory for an entry, pinned, that nobody finds before it is published. When the device has none, what nobody uses is
 * given up for it first; then NO_MEMORY. */
enum samkv_status samkv_device_cache_make(struct samkv_device_cache *, const struct samkv_cached_key *, size_t bytes,
                                          struct samkv_cached **out) SAMKV_MUST_USE;
/* Its bytes are there: others may find it. When they have one of that key already, it stays its maker's alone. */
void samkv_device_cache_publish(struct samkv_cached *);
void samkv_device_cache_unpin(struct samkv_cached *); /* NULL is allowed */

void *samkv_cached_memory(const struct samkv_cached *);

/* Gives up everything that nobody uses, because the device's memory is needed for something else. Whether there was
 * anything. */
bool samkv_device_cache_trim(struct samkv_device_cache *);

struct samkv_device_cache_stats {
    uint64_t entries, bytes, budget_bytes;
    uint64_t hits, misses, evictions;
};
void samkv_device_cache_stats(struct samkv_device_cache *, struct samkv_device_cache_stats *);
