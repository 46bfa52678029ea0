#pragma once
/*
 * The steps "plan" and "fill" of a fetch on a device with a memory of its own. Records go into the device's cache and
 * from there into place, so that hot documents cost neither disk nor copies; and while they come, the recomputation
 * runs through the layers that do not need them. Private to this room.
 */
#include "daemon/fetch/job.h"

/* Index, preamble and anchors to the device, the query's pass and the blocks' scores there, the selection here. */
enum samkv_status samkv_fetch_device_plan(struct samkv_fetch_job *, struct samkv_error *) SAMKV_MUST_USE;

/*
 * Kept blocks into job->cache, and the recomputation. `meanwhile` (may be NULL) is called once, when there is nothing
 * to do but wait for the device.
 */
enum samkv_status samkv_fetch_device_fill(struct samkv_fetch_job *, void (*meanwhile)(void *arg), void *arg,
                                          struct samkv_error *) SAMKV_MUST_USE;

/* Gives up what the device keeps of documents that no fetch uses. False when there was nothing. */
bool samkv_fetch_device_trim(const struct samkv_fetch_job *);

/* A KV cache on the device, documents that are kept there being given up for it if need be. */
enum samkv_status samkv_fetch_device_cache_init(const struct samkv_fetch_job *, struct samkv_kv_cache *, size_t rows,
                                                struct samkv_error *) SAMKV_MUST_USE;

void samkv_fetch_pins_deinit(struct samkv_fetch_pins *);
