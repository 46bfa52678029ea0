#pragma once
/*
 * From bytes to frames, without a socket: whatever a client sends goes through here first. Memory is bounded: a
 * payload's buffer grows with the bytes that really came, never by what the header claims, and what is refused is
 * dropped as it streams in while the connection lives on. Event loop's thread only.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/frame.h"
#include "proto/status.h"
#include "daemon/base/buffer.h"

#define SAMKV_MAX_HELLO_BYTES 4096

/* Bytes that payloads of all connections may take together. */
struct samkv_budget {
    size_t used, limit;
    struct samkv_budget *parent; /* of which this is a part; or NULL */
};

enum samkv_input_event {
    SAMKV_INPUT_MORE,    /* all bytes were used, no frame is complete */
    SAMKV_INPUT_FRAME,   /* *frame and *payload are filled */
    SAMKV_INPUT_REFUSED, /* *frame is filled, err says why; its payload is dropped as it comes. Go on feeding */
    SAMKV_INPUT_BROKEN,  /* err says why; nothing that follows can be understood */
};

struct samkv_input {
    uint8_t header[SAMKV_FRAME_HEADER_BYTES];
    size_t header_count;
    struct samkv_frame frame; /* valid once the header is whole */
    struct samkv_buffer payload;
    uint64_t discard;            /* bytes of a refused payload still to come */
    bool greeted;                /* HELLO was accepted: before it, nothing but a small HELLO is */
    struct samkv_budget *budget; /* shared */
    size_t max_payload_bytes;    /* larger frames are refused */
};

void samkv_input_init(struct samkv_input *, struct samkv_budget *, size_t max_payload_bytes);
void samkv_input_deinit(struct samkv_input *);

/*
 * Takes bytes; *used says how many. With a frame the caller owns *payload and its capacity's share of the budget:
 * give it back with samkv_budget_give when the request is done.
 */
enum samkv_input_event samkv_input_feed(struct samkv_input *, const uint8_t *bytes, size_t count, size_t *used,
                                        struct samkv_frame *frame, struct samkv_buffer *payload,
                                        struct samkv_error *err);

/* A frame has begun and is not whole yet. */
bool samkv_input_midway(const struct samkv_input *);

/* False: that is more than there is. */
bool samkv_budget_take(struct samkv_budget *, size_t bytes);
void samkv_budget_give(struct samkv_budget *, size_t bytes);
