#include "daemon/net/message.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

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

/* What is left to read of a message's bytes. */
struct wire {
    const uint8_t *at, *end;
};

static bool take_varint(struct wire *w, uint64_t *value)
{
    *value = 0;
    for (int shift = 0; shift < 64 && w->at < w->end; shift += 7) {
        *value |= (uint64_t)(*w->at & 0x7f) << shift;
        if (!(*w->at++ & 0x80))
            return true;
    }
    return false;
}

/* The next field's number and, for a text or a message, its bytes (NULL for numbers); false at the end. */
static bool take_field(struct wire *w, uint32_t *number, const uint8_t **bytes, uint64_t *count)
{
    uint64_t tag, value;
    *bytes = NULL;
    *count = 0;
    if (!take_varint(w, &tag))
        return false;
    *number = (uint32_t)(tag >> 3);
    switch (tag & 7) {
    case 0:
        return take_varint(w, &value);
    case 1:
        *count = 8;
        break;
    case 2:
        if (!take_varint(w, count))
            return false;
        *bytes = w->at;
        break;
    case 5:
        *count = 4;
        break;
    default:
        return false;
    }
    if (*count > (uint64_t)(w->end - w->at))
        return false;
    w->at += *count;
    return true;
}

/*
 * The name of the first text field that has a NUL byte, or NULL. A message's texts end at their first NUL once they are
 * unpacked: "a\0b" would pass for "a". Messages do not contain themselves, so the depth is the schema's.
 */
static const char *text_with_nul(const ProtobufCMessageDescriptor *descriptor, struct wire w)
{
    const uint8_t *bytes;
    uint64_t count;
    uint32_t number;
    while (take_field(&w, &number, &bytes, &count)) {
        const ProtobufCFieldDescriptor *field =
            bytes ? protobuf_c_message_descriptor_get_field(descriptor, number) : NULL;
        const char *name = NULL;
        if (field && field->type == PROTOBUF_C_TYPE_STRING && memchr(bytes, 0, count))
            name = field->name;
        else if (field && field->type == PROTOBUF_C_TYPE_MESSAGE)
            name = text_with_nul(field->descriptor, (struct wire){bytes, bytes + count});
        if (name)
            return name;
    }
    return NULL;
}

enum samkv_status samkv_message_unpack(const ProtobufCMessageDescriptor *descriptor, const struct samkv_buffer *payload,
                                       struct samkv_unpacked *out, struct samkv_error *err)
{
    size_t allowed = payload->count * UNPACK_FACTOR + UNPACK_SPARE_BYTES;
    const char *damaged =
        payload->count ? text_with_nul(descriptor, (struct wire){payload->data, payload->data + payload->count}) : NULL;
    if (damaged)
        return samkv_fail(err, SAMKV_INVALID, "the request's '%s' has a NUL byte; texts have no control characters",
                          damaged);
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
                                      const ProtobufCMessage *message, struct samkv_fds *fds,
                                      struct samkv_outgoing **out, struct samkv_error *err)
{
    size_t bytes = protobuf_c_message_get_packed_size(message);
    if (bytes > SAMKV_MAX_FRAME_BYTES) {
        if (fds)
            samkv_fds_close(fds);
        return samkv_fail(err, SAMKV_TOO_LARGE, "the reply would be %zu bytes; ask for less", bytes);
    }
    struct samkv_frame frame = {.payload_bytes = (uint32_t)bytes,
                                .type = request->type,
                                .flags = (uint16_t)(flags | (fds && fds->count ? SAMKV_FLAG_FD : 0)),
                                .request_id = request->request_id};
    if (samkv_outgoing_new(&frame, fds, out) != SAMKV_OK)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory for a reply of %zu bytes", bytes);
    protobuf_c_message_pack(message, (*out)->bytes + SAMKV_FRAME_HEADER_BYTES);
    return SAMKV_OK;
}
