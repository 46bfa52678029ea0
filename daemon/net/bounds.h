#pragma once
/* How much of everything clients get: samkvd's options, read-only once the server runs. Any thread. */
#include <stddef.h>
#include <stdint.h>

struct samkv_bounds {
    uint32_t connections;      /* at a time; some more for administrators, who should get in to look */
    uint32_t user_connections; /* of these, of one user; not for administrators */
    uint32_t in_flight;        /* requests of a connection; beyond it nothing more is read */
    uint32_t user_requests;    /* of a user, over all connections; BUSY beyond. Not for administrators */
    uint32_t queue;            /* requests that wait for a worker, of each class; BUSY beyond */
    size_t connection_bytes;   /* of a connection's requests; likewise of its replies that are not read */
    uint32_t stall_ms;         /* in which a client must get on with what it sends or reads */
    uint32_t request_ms;       /* that a request may take, waiting included; 0: any. Not for those with progress */
};

#define SAMKV_BOUNDS_ADMIN_CONNECTIONS 8

/* Fewer bytes in stall_ms are no progress: a client that trickles is as good as dead. */
#define SAMKV_BOUNDS_PROGRESS_BYTES ((size_t)64 << 10)

extern const struct samkv_bounds samkv_bounds_default;
