#pragma once
/*
 * One client's conversation, over a non-blocking socket but without an event loop: the owner calls the on_ functions
 * when the socket is ready, asks what to wait for, and passes the time. hello → ready → (closing) → closed.
 * HELLO and PING are answered here; any other request goes to the host, which answers with samkv_session_send.
 * Limits (bounds.h): a number of requests and of bytes, then it reads no further until replies are sent; a client that
 * does not read what it asked for, or does not go on in the middle of a frame, is let go after a while.
 * Event loop's thread only. Times are milliseconds of any clock that does not go back.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/frame.h"
#include "proto/status.h"
#include "daemon/base/buffer.h"
#include "daemon/base/metrics.h"
#include "daemon/net/bounds.h"
#include "daemon/net/input.h"
#include "daemon/net/output.h"

#define SAMKV_SESSION_RECEIVE_BYTES (32u << 10)
#define SAMKV_SESSION_OUTPUT_BYTES  (1u << 20) /* of what waits to be sent, beyond which it reads no further */
#define SAMKV_SESSION_HELLO_MS      10000      /* to say HELLO */
#define SAMKV_SESSION_FAREWELL_MS   2000       /* to read the last frame before the end */

enum samkv_session_state {
    SAMKV_SESSION_HELLO,
    SAMKV_SESSION_READY,
    SAMKV_SESSION_CLOSING, /* reads nothing more, sends what waits */
    SAMKV_SESSION_CLOSED,  /* the owner may deinit it */
};

enum { SAMKV_SESSION_READ = 1, SAMKV_SESSION_WRITE = 2 };

struct samkv_session;
struct samkv_lease_watch;

/* What a session needs of its owner. */
struct samkv_session_host {
    /* A request of a type other than HELLO and PING. Takes payload and charge over: the frame that ends its answer
     * carries the charge. May refuse at once, with samkv_session_fail. */
    void (*on_request)(void *arg, struct samkv_session *, const struct samkv_frame *, struct samkv_buffer *payload,
                       size_t charge);
    void *arg;
    struct samkv_metrics *metrics;
    struct samkv_budget *budget;       /* unless samkv_session_init is given another */
    const struct samkv_bounds *bounds; /* NULL: the defaults */
    /* The client has a lease now: takes its watch over. */
    void (*on_lease)(void *arg, struct samkv_lease_watch *);
    /* Descriptors that no request took, to be closed where that may block: takes them over. NULL: closed at once. */
    void (*on_surplus)(void *arg, struct samkv_fds *);
};

struct samkv_session {
    const struct samkv_session_host *host;
    int fd; /* owned */
    enum samkv_session_state state;
    struct samkv_input input;
    struct samkv_output output;
    uint32_t in_flight; /* requests whose last reply was not sent yet */
    size_t in_flight_bytes;
    uint64_t since_ms;                   /* of the state */
    uint64_t received_ms;                /* last progress, or last time it did not want any */
    uint64_t sent_ms;                    /* last progress, or last time there was nothing to send */
    size_t received_since, sent_since;   /* bytes since then: some make a progress (bounds.h) */
    size_t received_begin, received_end; /* bytes that wait in received */
    struct samkv_fds fds;                /* that came with what waits in received, for the request that it brings */
    char agent[64];
    uint8_t received[SAMKV_SESSION_RECEIVE_BYTES];
};

/* fd is non-blocking and taken over. budget: that pays for its requests; NULL: the host's. */
void samkv_session_init(struct samkv_session *, int fd, const struct samkv_session_host *, struct samkv_budget *budget,
                        uint64_t now_ms);
/* Closes the fd and frees what waits. */
void samkv_session_deinit(struct samkv_session *);

void samkv_session_on_readable(struct samkv_session *, uint64_t now_ms);
void samkv_session_on_writable(struct samkv_session *, uint64_t now_ms);
/* The peer hung up: what it sent before still counts while the session wants to read. */
void samkv_session_on_hangup(struct samkv_session *, uint64_t now_ms);
/* About once a second. */
void samkv_session_on_tick(struct samkv_session *, uint64_t now_ms);

/* What to wait for: a mask; 0 when only a hang-up matters. */
int samkv_session_wants(const struct samkv_session *);

/* Sends a frame, which is taken over, or drops it when the session is about to end. Goes on with requests that waited.
 */
void samkv_session_send(struct samkv_session *, struct samkv_outgoing *, uint64_t now_ms);

/* Answers a request (its last frame) with an Error. */
void samkv_session_fail(struct samkv_session *, const struct samkv_frame *request, size_t charge,
                        const struct samkv_error *, uint64_t now_ms);

/* Within on_request: the descriptors that came with the request. */
struct samkv_fds samkv_session_take_fds(struct samkv_session *);

/* Ends it: what waits is sent first. */
void samkv_session_close(struct samkv_session *, uint64_t now_ms);

/* An Error frame for this request; NO_MEMORY when there is none. Any thread. */
enum samkv_status samkv_error_frame(const struct samkv_frame *request, const struct samkv_error *,
                                    struct samkv_outgoing **out) SAMKV_MUST_USE;
