#include "daemon/net/input.h"

#include <assert.h>
#include <string.h>

#define FIRST_PAYLOAD_BYTES 4096

void samkv_input_init(struct samkv_input *in, struct samkv_budget *budget, size_t max_payload_bytes)
{
    *in = (struct samkv_input){.budget = budget, .max_payload_bytes = max_payload_bytes};
}

void samkv_input_deinit(struct samkv_input *in)
{
    samkv_budget_give(in->budget, in->payload.capacity);
    samkv_buffer_deinit(&in->payload);
}

bool samkv_budget_take(struct samkv_budget *budget, size_t bytes)
{
    for (const struct samkv_budget *b = budget; b; b = b->parent)
        if (bytes > b->limit - b->used)
            return false;
    for (struct samkv_budget *b = budget; b; b = b->parent)
        b->used += bytes;
    return true;
}

void samkv_budget_give(struct samkv_budget *budget, size_t bytes)
{
    for (struct samkv_budget *b = budget; b; b = b->parent) {
        assert(bytes <= b->used);
        b->used -= bytes;
    }
}

bool samkv_input_midway(const struct samkv_input *in)
{
    return in->header_count > 0 || in->discard > 0;
}

/* A buffer for `count` bytes, paid from the budget. */
static enum samkv_status grow(struct samkv_input *in, size_t count, struct samkv_error *err)
{
    size_t before = in->payload.capacity, capacity = before < FIRST_PAYLOAD_BYTES ? FIRST_PAYLOAD_BYTES : before;
    while (capacity < count)
        capacity *= 2;
    if (capacity > in->frame.payload_bytes)
        capacity = in->frame.payload_bytes;
    if (!samkv_budget_take(in->budget, capacity - before))
        return samkv_fail(err, SAMKV_BUSY, "too many bytes of requests are in memory; try again");
    if (samkv_buffer_resize(&in->payload, capacity) == SAMKV_OK)
        return SAMKV_OK;
    samkv_budget_give(in->budget, capacity - before);
    return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory for a request of %u bytes", in->frame.payload_bytes);
}

/* Drops the rest of the current frame's payload as it comes. */
static enum samkv_input_event refuse(struct samkv_input *in, struct samkv_frame *frame)
{
    in->discard = in->frame.payload_bytes - in->payload.count;
    samkv_budget_give(in->budget, in->payload.capacity);
    samkv_buffer_deinit(&in->payload);
    in->header_count = 0;
    *frame = in->frame;
    return SAMKV_INPUT_REFUSED;
}

static enum samkv_input_event take_header(struct samkv_input *in, struct samkv_frame *frame, struct samkv_error *err)
{
    if (samkv_frame_decode(in->header, &in->frame) != SAMKV_OK || in->frame.flags != 0) {
        samkv_fail(err, SAMKV_PROTOCOL, "this is not a samkv request frame; see PROTOCOL.md");
        return SAMKV_INPUT_BROKEN;
    }
    if (!in->greeted && (in->frame.type != SAMKV_TYPE_HELLO || in->frame.payload_bytes > SAMKV_MAX_HELLO_BYTES)) {
        samkv_fail(err, SAMKV_PROTOCOL, "the first frame must be a HELLO of at most %d bytes", SAMKV_MAX_HELLO_BYTES);
        return SAMKV_INPUT_BROKEN;
    }
    if (in->frame.payload_bytes > in->max_payload_bytes) {
        samkv_fail(err, SAMKV_TOO_LARGE, "a request of %u bytes is too large; at most %zu are taken",
                   in->frame.payload_bytes, in->max_payload_bytes);
        return refuse(in, frame);
    }
    return SAMKV_INPUT_MORE;
}

static size_t least(size_t a, uint64_t b)
{
    return a < b ? a : (size_t)b;
}

enum samkv_input_event samkv_input_feed(struct samkv_input *in, const uint8_t *bytes, size_t count, size_t *used,
                                        struct samkv_frame *frame, struct samkv_buffer *payload,
                                        struct samkv_error *err)
{
    size_t n = least(count, in->discard);
    in->discard -= n;
    *used = n;
    if (in->discard > 0)
        return SAMKV_INPUT_MORE;
    if (in->header_count < sizeof in->header) {
        n = least(count - *used, sizeof in->header - in->header_count);
        if (n)
            memcpy(in->header + in->header_count, bytes + *used, n);
        in->header_count += n;
        *used += n;
        if (in->header_count < sizeof in->header)
            return SAMKV_INPUT_MORE;
        enum samkv_input_event event = take_header(in, frame, err);
        if (event != SAMKV_INPUT_MORE)
            return event;
    }
    n = least(count - *used, in->frame.payload_bytes - in->payload.count);
    if (n) {
        if (in->payload.count + n > in->payload.capacity && grow(in, in->payload.count + n, err) != SAMKV_OK)
            return refuse(in, frame);
        memcpy(in->payload.data + in->payload.count, bytes + *used, n);
        in->payload.count += n;
        *used += n;
    }
    if (in->payload.count < in->frame.payload_bytes)
        return SAMKV_INPUT_MORE;
    *frame = in->frame;
    *payload = in->payload;
    samkv_buffer_init(&in->payload);
    in->header_count = 0;
    return SAMKV_INPUT_FRAME;
}
