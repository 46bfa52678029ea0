#pragma once
/* Messages in and out of frames: unpacking with bounded memory, packing with bounded size. Any thread. */
#include <stddef.h>

#include "proto/frame.h"
#include "proto/samkv.pb-c.h"
#include "proto/status.h"
#include "daemon/base/buffer.h"
#include "daemon/net/output.h"

/* A message and the allocator that it came from: must stay where it is until freed. */
struct samkv_unpacked {
    ProtobufCMessage *message;
    ProtobufCAllocator allocator;
    size_t left_bytes; /* that unpacking may still take */
};

/*
 * INVALID for bytes that are no such message and for texts with a NUL byte, TOO_LARGE for one that would take more than
 * four times its bytes and a MiB: a frame of empty parts would otherwise grow twentyfold in memory. samkv_message_free
 * after OK.
 */
enum samkv_status samkv_message_unpack(const ProtobufCMessageDescriptor *, const struct samkv_buffer *payload,
                                       struct samkv_unpacked *out, struct samkv_error *) SAMKV_MUST_USE;
void samkv_message_free(struct samkv_unpacked *);

/* The frame that carries a message in answer to `request`; fds (NULL: none) are taken over in every case. TOO_LARGE
 * beyond SAMKV_MAX_FRAME_BYTES. */
enum samkv_status samkv_message_frame(const struct samkv_frame *request, uint16_t flags,
                                      const ProtobufCMessage *message, struct samkv_fds *fds,
                                      struct samkv_outgoing **out, struct samkv_error *) SAMKV_MUST_USE;
