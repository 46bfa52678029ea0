#pragma once
/*
 * One request on its way through a worker: unpack, validate, run, pack. The event loop makes it and frees it once the
 * last frame of its answer has come back through the outbox; in between it belongs to the worker, but for `cancelled`
 * and `backlog_bytes`, which the loop sets.
 */
#include <stdatomic.h>
#include <stdbool.h>

#include "proto/frame.h"
#include "daemon/base/buffer.h"
#include "daemon/base/lane.h"
#include "daemon/net/message.h"
#include "daemon/net/outbox.h"
#include "daemon/net/service.h"

struct samkv_request;

/* A row of the table of request types. */
struct samkv_handler {
    uint16_t type;
    enum samkv_metric metric;
    enum samkv_urgency urgency;
    const ProtobufCMessageDescriptor *descriptor;
    /* Pure: one clear line for the first thing that is wrong. NULL: nothing can be. */
    enum samkv_status (*validate)(const ProtobufCMessage *, struct samkv_error *);
    /* Does the work, on a worker, and makes the last frame of the answer with samkv_request_reply. */
    enum samkv_status (*run)(struct samkv_request *, const ProtobufCMessage *, struct samkv_outgoing **reply,
                             struct samkv_error *);
    bool takes_descriptor; /* one that the client sends along */
    bool unlimited;        /* may take as long as it takes: it tells its progress */
};

/* NULL for a type that is not a request for workers. */
const struct samkv_handler *samkv_handler_find(uint16_t type);

struct samkv_request {
    const struct samkv_handler *handler;
    struct samkv_service *service;
    struct samkv_outbox *outbox;
    struct samkv_frame frame;
    struct samkv_buffer payload; /* freed once unpacked */
    struct samkv_fds fds; /* that came with it, where the handler takes them; what is left is closed at the end */
    size_t charge;        /* what the payload costs its session until the answer is sent */
    bool cancelled;       /* nobody waits for it; written by the loop (atomically), read by the jobs */
    _Atomic uint64_t deadline_ms; /* of samkv_now_ms; when the loop cancels it. 0: none */
    uint32_t allowed_ms;          /* the time that it was given, for the text */
    _Atomic size_t backlog_bytes; /* that the client has not read, when the loop last looked */
    double accepted_ms, waited_ms;
    const struct samkv_caller *caller; /* the connection's, which outlives its requests */
    struct samkv_traced traced;        /* its number, and what is noted of it */
    struct samkv_outgoing *spare;      /* an answer that needs no memory any more */
    /* The loop's own: */
    void *connection;
    struct samkv_request *next, **link;
};

/* For the pool; arg is the request. Posts exactly one last frame to the outbox, and touches nothing after it. */
void samkv_request_run(void *arg, bool cancelled);

/* The last frame; fds (NULL: none) are taken over in every case. */
enum samkv_status samkv_request_reply(struct samkv_request *, const ProtobufCMessage *, struct samkv_fds *fds,
                                      struct samkv_outgoing **reply, struct samkv_error *) SAMKV_MUST_USE;

/* Sends a frame that others will follow. BUSY when the client does not read what it was sent, CANCELLED when it is
 * gone. */
enum samkv_status samkv_request_more(struct samkv_request *, const ProtobufCMessage *,
                                     struct samkv_error *) SAMKV_MUST_USE;

/* The same with descriptors, which are taken over in every case, and the lease that is among them, which is not on
 * failure. */
enum samkv_status samkv_request_more_with(struct samkv_request *, const ProtobufCMessage *, struct samkv_fds *,
                                          struct samkv_lease_watch *, struct samkv_error *) SAMKV_MUST_USE;

bool samkv_request_cancelled(const struct samkv_request *);
void samkv_request_cancel(struct samkv_request *); /* the loop's */
