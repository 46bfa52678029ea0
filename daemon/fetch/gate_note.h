#pragma once
/* How a collection's gate is kept in the store. Private to this room. */
#include "daemon/samkv/gate.h"
#include "daemon/store/store.h"

/* NOT_FOUND without text when the collection has none; CORRUPT when it is damaged. */
enum samkv_status samkv_gate_load(struct samkv_snapshot *, const char *collection, struct samkv_gate *, double *share,
                                  struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_gate_save(struct samkv_store *, const char *collection, const struct samkv_gate *, double share,
                                  struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_gate_remove(struct samkv_store *, const char *collection, struct samkv_error *) SAMKV_MUST_USE;
