#pragma once
/*
 * Times to live. A name that is older than its collection's TTL is invisible from that second on, and is removed by the
 * writer thread when it next has time. Pinned names, and names whose time is not known, do not expire.
 */
#include "proto/status.h"
#include "daemon/store/environment.h"

/* By the clock of the store's options. Any thread. */
int64_t samkv_store_now_s(const struct samkv_store *);

/* When a name goes; 0: never. ttl_s 0: never. */
int64_t samkv_expire_time(const struct samkv_name *, uint64_t ttl_s);

/* Removes some of the names that have expired; *more: there are others. Within a writing transaction. */
enum samkv_status samkv_expire_some(struct samkv_change *, uint64_t *removed, bool *more,
                                    struct samkv_error *) SAMKV_MUST_USE;

/*
 * What the writer thread does beside its jobs: expired names, and usage to its file. Cheap when nothing is due.
 * Without a transaction. wait_s: within how many seconds it should be called again, -1: not before something changes.
 */
void samkv_upkeep(struct samkv_store *);
int samkv_upkeep_wait_s(struct samkv_store *);
