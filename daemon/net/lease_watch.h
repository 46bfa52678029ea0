#pragma once
/*
 * The daemon's side of leases that clients have. A lease's socket pair has one end here and one with the client (see
 * PROTOCOL.md, section 5): 'R' says that the client no longer maps the memory, anything else, above all a hang-up, that
 * nobody knows. A watch is that end, from the worker that makes the reply until the lease is over:
 *   new (a place is taken) → bind (there is a lease) → with its frame → sent: start, on the event loop → the end
 *                                                                     → never sent: free
 */
#include <stdatomic.h>
#include <stdint.h>
#include <uv.h>

#include "proto/status.h"
#include "daemon/samkv/lease.h"

#define SAMKV_MAX_LEASES 512 /* of a daemon: each takes one of its descriptors */

struct samkv_lease_watch;

/* Those that the event loop waits for. */
struct samkv_lease_watches {
    uv_loop_t *loop;
    struct samkv_lease_watch *first;
    int closing; /* handles whose close callback has not come */
};

/* Takes a place among the daemon's SAMKV_MAX_LEASES, of which `taken` counts; BUSY when there is none. Any thread. */
enum samkv_status samkv_lease_watch_new(_Atomic uint32_t *taken, struct samkv_lease_watch **out,
                                        struct samkv_error *) SAMKV_MUST_USE;

/* Takes the lease over (not on failure) and makes the socket pair; *client_fd is the caller's to send. Any thread. */
enum samkv_status samkv_lease_watch_bind(struct samkv_lease_watch *, struct samkv_lease *, int *client_fd,
                                         struct samkv_error *) SAMKV_MUST_USE;

/* For one that was not started: nobody saw the memory, so its lease ends cleanly. Any thread. NULL is allowed. */
void samkv_lease_watch_free(struct samkv_lease_watch *);

void samkv_lease_watches_init(struct samkv_lease_watches *, uv_loop_t *);

/* Takes over one whose client has the memory: ends the lease when the client says so or hangs up. The loop's thread. */
void samkv_lease_watch_start(struct samkv_lease_watches *, struct samkv_lease_watch *);

/* Gives up all leases that are watched. Their handles close in the loop: run it until `closing` is 0. */
void samkv_lease_watches_drop(struct samkv_lease_watches *);
