#pragma once
/*
 * Device memory that replies lie in and that clients map: a bounded pool.
 *
 *   lease   one reply's memory, from the moment it is made until its client has unmapped it or is gone.
 *   clean   the client said that it no longer maps the memory: the next lease of the same user may have it (another
 *           user's may not: a client that lies would see it). Otherwise the memory is given up here and never written
 * to again, so that a mapping that is still there stays what it was.
 *
 * Making such memory takes milliseconds and taking it from the pool none, so clean memory is kept for the next reply
 * while the pool's limit allows.
 */
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"
#include "kernels/kernels.h"

struct samkv_leases;
struct samkv_lease;

/* limit_bytes: of leases and kept memory together. The device must be one that shares. */
enum samkv_status samkv_leases_new(struct samkv_device *, uint64_t limit_bytes,
                                   struct samkv_leases **out) SAMKV_MUST_USE;
/* Leases that have not ended are given up; their holders must not touch them afterwards. NULL is allowed. */
void samkv_leases_free(struct samkv_leases *);

/*
 * At least `bytes` of memory for a reply to `user`. BUSY when the limit is used up by leases that clients hold;
 * TOO_LARGE when it could never be; NO_MEMORY when the device has none. Any thread but the event loop's.
 */
enum samkv_status samkv_lease_take(struct samkv_leases *, uint32_t user, size_t bytes, struct samkv_lease **out,
                                   struct samkv_error *) SAMKV_MUST_USE;
void *samkv_lease_memory(const struct samkv_lease *);
size_t samkv_lease_bytes(const struct samkv_lease *); /* of the whole mapping */
/* A new descriptor for the whole memory; the caller closes it. */
enum samkv_status samkv_lease_export(const struct samkv_lease *, int *fd, struct samkv_error *) SAMKV_MUST_USE;

/* One more holder, who ends it too: the job that still computes and the client that has the memory already. Any thread.
 */
struct samkv_lease *samkv_lease_share(struct samkv_lease *);

/*
 * One holder's end; the last one's ends the lease, cleanly if all ends were clean. Never blocks; any thread, the event
 * loop's too. NULL is allowed. No work on the device that this holder is responsible for may use the memory any more.
 */
void samkv_lease_end(struct samkv_lease *, bool clean);

struct samkv_leases_stats {
    uint64_t held, held_bytes; /* by clients and by replies that are being made */
    uint64_t kept_bytes;       /* for the next replies */
    uint64_t limit_bytes;
};
void samkv_leases_stats(struct samkv_leases *, struct samkv_leases_stats *);
