#pragma once
/*
 * Users' quotas: hard ones, that refuse rather than evict. What a user's collections are charged with is judged before
 * a document is computed, by the size that is to be expected, and again in the transaction that would name it.
 */
#include "proto/status.h"
#include "daemon/store/change.h"

/* Of a user; 0: none. */
uint64_t samkv_user_quota(const struct samkv_store *, uint32_t owner);

/* FULL when `bytes` more would not fit the quota of a collection's owner. Any thread. */
enum samkv_status samkv_account_admit(struct samkv_store *, const char *collection, uint64_t bytes,
                                      struct samkv_error *) SAMKV_MUST_USE;

/* After what a transaction booked for a collection: FULL when its owner is above the quota; it must not be committed
 * then. */
enum samkv_status samkv_account_check(struct samkv_change *, const char *collection,
                                      struct samkv_error *) SAMKV_MUST_USE;
