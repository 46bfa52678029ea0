#include "daemon/net/message.h"

#include <stdlib.h>
#include <unistd.h>

#define UNPACK_FACTOR      4
#define UNPACK_SPARE_BYTES (1u << 20)
#define BLOCK_BYTES        16 /* what malloc itself takes, about */

static void *bounded_alloc(void *data, size_t size)
{
    struct samkv_unpacked *u = data;
    if (size > u->left_bytes || size + BLOCK_BYTES > u->left_bytes)
        return NULL;
    u->left_bytes -= size + BLOCK_BYTES; /* never given back: few parts are freed before the whole is */
    return malloc(size ? size : 1);
}

static void bounded_free(void *data, void *pointer)
{
    (void)data;
    free(pointer);
}

enum samkv_status samkv_message_unpack(const ProtobufCMessageDescriptor *descriptor, const struct samkv_buffer *payload,
                                       struct samkv_unpacked *out, struct samkv_error *err)
{
    size_t allowed = payload->count * UNPACK_FACTOR + UNPACK_SPARE_BYTES;
    *out = (struct samkv_unpacked){.left_bytes = allowed};
    out->allocator = (ProtobufCAllocator){.alloc = bounded_alloc, .free = bounded_free, .allocator_data = out};
    out->message = protobuf_c_message_unpack(descriptor, &out->allocator, payload->count, payload->data);
    if (out->message)
        return SAMKV_OK;
    /* protobuf-c does not tell why: little room left means that it was the bound. */
    if (out->left_bytes < allowed / 2)
        return samkv_fail(err, SAMKV_TOO_LARGE, "the request has too many parts; send fewer at a time");
    return samkv_fail(err, SAMKV_INVALID, "the request's bytes are not a valid %s message", descriptor->short_name);
}

void samkv_message_free(struct samkv_unpacked *u)
{
    if (u->message)
        protobuf_c_message_free_unpacked(u->message, &u->allocator);
    u->message = NULL;
}

enum samkv_status samkv_message_frame(const struct samkv_frame *request, uint16_t flags,
                                      const ProtobufCMessage *message, int fd, struct samkv_outgoing **out,
                                      struct samkv_error *err)
{
    size_t bytes = protobuf_c_message_get_packed_size(message);
    if (bytes > SAMKV_MAX_FRAME_BYTES) {
        if (fd >= 0)
            close(fd);
        return samkv_fail(err, SAMKV_TOO_LARGE, "the reply would be %zu bytes; ask for less", bytes);
    }
    struct samkv_frame frame = {.payload_bytes = (uint32_t)bytes,
                                .type = request->type,
                                .flags = (uint16_t)(flags | (fd >= 0 ? SAMKV_FLAG_FD : 0)),
                                .request_id = request->request_id};
    if (samkv_outgoing_new(&frame, fd, out) != SAMKV_OK)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory for a reply of %zu bytes", bytes);
    protobuf_c_message_pack(message, (*out)->bytes + SAMKV_FRAME_HEADER_BYTES);
    return SAMKV_OK;
}
