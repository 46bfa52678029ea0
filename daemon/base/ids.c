#include "daemon/base/ids.h"

#include <stdlib.h>
#include <string.h>

void samkv_ids_init(struct samkv_ids *ids)
{
    *ids = (struct samkv_ids){0};
}

void samkv_ids_deinit(struct samkv_ids *ids)
{
    free(ids->data);
    *ids = (struct samkv_ids){0};
}

/* Room for `more` further ids; doubles, so that pushing one by one stays linear. */
static enum samkv_status grow(struct samkv_ids *ids, size_t more)
{
    const size_t limit = SIZE_MAX / sizeof *ids->data / 2;
    if (more > limit || ids->count > limit - more)
        return SAMKV_NO_MEMORY;
    size_t needed = ids->count + more;
    if (needed <= ids->capacity)
        return SAMKV_OK;
    size_t capacity = ids->capacity < 32 ? 64 : ids->capacity * 2;
    if (capacity < needed)
        capacity = needed;
    int32_t *data = realloc(ids->data, capacity * sizeof *data);
    if (!data)
        return SAMKV_NO_MEMORY;
    ids->data = data;
    ids->capacity = capacity;
    return SAMKV_OK;
}

enum samkv_status samkv_ids_push(struct samkv_ids *ids, int32_t id)
{
    return samkv_ids_append(ids, &id, 1);
}

enum samkv_status samkv_ids_append(struct samkv_ids *ids, const int32_t *more, size_t count)
{
    enum samkv_status st = grow(ids, count);
    if (st != SAMKV_OK)
        return st;
    if (count) /* memcpy from NULL is undefined even for nothing */
        memcpy(ids->data + ids->count, more, count * sizeof *more);
    ids->count += count;
    return SAMKV_OK;
}
