#pragma once
/*
 * The last requests, for `samkvctl trace`: each has a number of the daemon's own, which also stands in the log (req=)
 * and in replies. Those that run are listed; those that are over lie in a ring, the oldest making room.
 * Any thread, but for the event loop's: copying takes the lock for a moment.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/samkv.pb-c.h"
#include "proto/status.h"
#include "daemon/base/trace.h"

#define SAMKV_TRACES           256
#define SAMKV_TRACED_DOCUMENTS 6  /* by name; more are only counted */
#define SAMKV_TRACED_TEXT      96 /* of a name, whole characters */

/* Who is at the other end of a connection, as the kernel says. */
struct samkv_peer {
    pid_t pid;
    uid_t uid;
    gid_t gid;
};

struct samkv_traced {
    uint64_t id, client_id; /* the daemon's number, and that of the frame */
    uint16_t type;
    struct samkv_peer peer;
    char agent[64];
    double accepted_ms; /* of samkv_now_ms */
    int64_t accepted_unix_ms;
    char collection[SAMKV_TRACED_TEXT], documents[SAMKV_TRACED_DOCUMENTS][SAMKV_TRACED_TEXT];
    size_t document_count;
    uint64_t request_bytes, reply_bytes; /* of frames' payloads and frames */
    uint64_t cache_bytes;                /* of the memory that was handed out */
    uint64_t read_bytes;                 /* of the store */
    uint64_t tokens, kept_tokens;        /* of the documents; of which the reply has */
    struct samkv_trace trace;
    bool running;
    double ended_ms;
    enum samkv_status status;
    char error[200];
    struct samkv_traced *next, **link; /* those that run */
};

struct samkv_traces;

struct samkv_traces *samkv_traces_new(void);   /* NULL without memory */
void samkv_traces_free(struct samkv_traces *); /* NULL is allowed. Nothing may run any more */

/* From here to end it is listed as running, and stays where it is. */
void samkv_traces_begin(struct samkv_traces *, struct samkv_traced *);

/* Notes collection and documents of a message that was validated: its fields `collection`, `id` and `ids`, or those of
 * its field `fetch`. So a new type of request needs nothing here. */
void samkv_traces_describe(struct samkv_traces *, struct samkv_traced *, const ProtobufCMessage *);

/* Takes a copy. */
void samkv_traces_end(struct samkv_traces *, struct samkv_traced *, enum samkv_status, const char *error);

/* The newest first, those that run before all others (without spans); id 0: any. uid: who may be told of; -1: all.
 * Returns how many were copied, at most `room`. */
size_t samkv_traces_copy(struct samkv_traces *, uint64_t id, int64_t uid, struct samkv_traced *out, size_t room);
