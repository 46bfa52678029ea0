#pragma once
/*
 * Frames: what carries a message over the socket. 16 bytes of header, little-endian, then the payload:
 *   u32 payload_bytes | u16 type | u16 flags | u64 request_id
 * File descriptors, when the FD flag is set, travel as SCM_RIGHTS with the frame's first byte; so does that of an
 * EXPORT or IMPORT request, without the flag. Pure functions over bytes, and two calls that move bytes and descriptors
 * over a socket. Normative text: PROTOCOL.md.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/status.h"

#define SAMKV_FRAME_HEADER_BYTES 16
#define SAMKV_PROTOCOL_VERSION   1
#define SAMKV_MAX_FRAME_BYTES    (64u << 20)
#define SAMKV_MAX_IN_FLIGHT      64
#define SAMKV_MAX_FDS            3 /* of one frame */
#define SAMKV_MAGIC              "samkv"

/* Types: a reply has its request's type. Values are pinned. */
/* clang-format off */
#define SAMKV_TYPE_MAP(X)                                                                          \
    X(HELLO, 1) X(PING, 2) X(INGEST, 3) X(FETCH, 4) X(ASK, 5) X(LIST, 6) X(SHOW, 7) X(REMOVE, 8)   \
    X(STATUS, 9) X(VERIFY, 10) X(CONFIGURE, 11) X(PIN, 12) X(GC, 13) X(EXPORT, 14) X(IMPORT, 15)   \
    X(COMPACT, 16) X(TRACE, 17) X(EVALUATE, 18) X(CALIBRATE, 19)
/* clang-format on */
enum samkv_frame_type {
#define SAMKV_TYPE_ENUM(name, value) SAMKV_TYPE_##name = value,
    SAMKV_TYPE_MAP(SAMKV_TYPE_ENUM)
#undef SAMKV_TYPE_ENUM
};

enum {
    SAMKV_FLAG_REPLY = 1,
    SAMKV_FLAG_ERROR = 2, /* payload is an Error */
    SAMKV_FLAG_MORE = 4,  /* further replies to this request follow */
    SAMKV_FLAG_FD = 8,    /* descriptors come with this frame */
    SAMKV_FLAGS_KNOWN = 15,
};

/* "FETCH"; "?" for a number that is none of them. */
const char *samkv_type_name(uint16_t type);

struct samkv_frame {
    uint32_t payload_bytes;
    uint16_t type;
    uint16_t flags;
    uint64_t request_id;
};

void samkv_frame_encode(const struct samkv_frame *, uint8_t out[SAMKV_FRAME_HEADER_BYTES]);
/* PROTOCOL for unknown flags; types and sizes are the caller's to judge. */
enum samkv_status samkv_frame_decode(const uint8_t in[SAMKV_FRAME_HEADER_BYTES],
                                     struct samkv_frame *out) SAMKV_MUST_USE;

/* Descriptors that travel together, in this order. Zeroed: none. */
struct samkv_fds {
    int fd[SAMKV_MAX_FDS];
    int count;
    bool surplus; /* more came than there is room for, and were closed */
};

/* Closes them all; none is left. */
void samkv_fds_close(struct samkv_fds *);

/*
 * One sendmsg/recvmsg, EINTR retried, MSG_NOSIGNAL and MSG_CMSG_CLOEXEC set. Bytes moved, 0 at end of stream (receive),
 * or -errno (-EAGAIN when it would block). fds NULL: none are sent; what comes is dropped. Received ones are the
 * caller's; those beyond the third are closed, never leaked. -EMFILE: this process has no numbers left for what came,
 * and got none of it.
 */
ssize_t samkv_socket_send(int socket, const void *bytes, size_t count, const struct samkv_fds *fds);
ssize_t samkv_socket_receive(int socket, void *bytes, size_t count, struct samkv_fds *fds);
