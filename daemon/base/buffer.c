#include "daemon/base/buffer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void samkv_buffer_init(struct samkv_buffer *b)
{
    *b = (struct samkv_buffer){0};
}

void samkv_buffer_deinit(struct samkv_buffer *b)
{
    free(b->data);
    *b = (struct samkv_buffer){0};
}

enum samkv_status samkv_buffer_resize(struct samkv_buffer *b, size_t capacity)
{
    assert(capacity >= b->count);
    if (capacity == b->capacity)
        return SAMKV_OK;
    if (capacity == 0) {
        samkv_buffer_deinit(b);
        return SAMKV_OK;
    }
    uint8_t *data = realloc(b->data, capacity);
    if (!data)
        return SAMKV_NO_MEMORY;
    b->data = data;
    b->capacity = capacity;
    return SAMKV_OK;
}

enum samkv_status samkv_buffer_append(struct samkv_buffer *b, const void *bytes, size_t count)
{
    if (count > SIZE_MAX / 2 - b->count)
        return SAMKV_NO_MEMORY;
    if (b->count + count > b->capacity) {
        size_t capacity = b->capacity < 64 ? 64 : b->capacity;
        while (capacity < b->count + count)
            capacity *= 2;
        enum samkv_status st = samkv_buffer_resize(b, capacity);
        if (st != SAMKV_OK)
            return st;
    }
    if (count)
        memcpy(b->data + b->count, bytes, count);
    b->count += count;
    return SAMKV_OK;
}

void samkv_buffer_move(struct samkv_buffer *from, struct samkv_buffer *to)
{
    if (from == to)
        return;
    free(to->data);
    *to = *from;
    *from = (struct samkv_buffer){0};
}
