#pragma once
/* A growable list of token ids, and what little the rooms share to handle them. */
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"

struct samkv_ids {
    int32_t *data; /* heap; samkv_ids_deinit frees it */
    size_t count, capacity;
};

void samkv_ids_init(struct samkv_ids *);
void samkv_ids_deinit(struct samkv_ids *);
enum samkv_status samkv_ids_push(struct samkv_ids *, int32_t id) SAMKV_MUST_USE;
enum samkv_status samkv_ids_append(struct samkv_ids *, const int32_t *ids, size_t count) SAMKV_MUST_USE;
