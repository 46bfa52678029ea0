#pragma once
/*
 * Frames on their way to a client: a queue that is sent as the socket takes it, each frame with the descriptors that
 * belong to it. Event loop's thread only.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/frame.h"
#include "proto/status.h"
#include "daemon/base/buffer.h"

struct samkv_request;
struct samkv_lease_watch;

/* One frame. Made by any thread, then handed over. */
struct samkv_outgoing {
    struct samkv_outgoing *next;
    struct samkv_request *request;   /* that it answers, while it is on its way from a worker to the loop */
    struct samkv_fds fds;            /* owned: closed once sent */
    struct samkv_lease_watch *lease; /* whose other end is among them; owned until they are sent; NULL: none is */
    bool last;                       /* the request is answered with this frame */
    size_t charge;                   /* bytes of the request's payload, given back with the last frame */
    size_t held_bytes;               /* of the memory that the descriptors keep while they are here */
    size_t count, sent;
    uint8_t bytes[]; /* header and payload */
};

/* Room for a frame with `payload_bytes` of payload behind its header, which is filled in; fds (NULL: none) are taken
 * over also on failure. */
enum samkv_status samkv_outgoing_new(const struct samkv_frame *, struct samkv_fds *fds,
                                     struct samkv_outgoing **out) SAMKV_MUST_USE;
/* Closes what was not sent, a lease cleanly. NULL is allowed. */
void samkv_outgoing_free(struct samkv_outgoing *);

struct samkv_output {
    struct samkv_outgoing *first, **last;
    size_t bytes;        /* not yet sent */
    size_t held_bytes;   /* of their descriptors */
    uint32_t answered;   /* last frames that were sent since the caller looked (and reset it) */
    size_t charge;       /* their charges, likewise */
    uint64_t bytes_sent; /* likewise */
    /* Takes over a lease whose descriptors have just been sent. */
    void (*on_lease)(void *arg, struct samkv_lease_watch *);
    void *arg;
};

void samkv_output_init(struct samkv_output *, void (*on_lease)(void *arg, struct samkv_lease_watch *), void *arg);
void samkv_output_deinit(struct samkv_output *); /* frees what was not sent */
void samkv_output_push(struct samkv_output *, struct samkv_outgoing *);

/* Sends until all is sent (OK), the socket is full (BUSY) or the peer is gone (CLOSED). */
enum samkv_status samkv_output_flush(struct samkv_output *, int socket) SAMKV_MUST_USE;
