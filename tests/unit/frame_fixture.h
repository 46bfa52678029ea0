#pragma once
/* Frames as a client would make them, for tests of what reads them. */
#include <check.h>
#include <string.h>

#include "daemon/net/message.h"

#define SHARED static __attribute__((unused))

SHARED size_t make_frame(uint8_t *out, uint16_t type, uint16_t flags, uint64_t id, const void *payload, uint32_t count)
{
    const struct samkv_frame frame = {count, type, flags, id};
    samkv_frame_encode(&frame, out);
    if (count)
        memcpy(out + SAMKV_FRAME_HEADER_BYTES, payload, count);
    return SAMKV_FRAME_HEADER_BYTES + count;
}
