#pragma once
/* What of the data file is in use, free, and free but still read by a snapshot that began before it was freed. */
#include "proto/status.h"
#include "daemon/store/environment.h"

struct samkv_room {
    uint64_t used_bytes; /* pages that hold data */
    uint64_t
        free_bytes; /* pages that the next transactions can write to, without those that the file does not have yet */
    uint64_t held_bytes; /* freed, but a reader may still look at them */
    uint64_t disk_bytes; /* what the file system has left for this user */
};

/* Any thread that has no transaction open. Time: one read of LMDB's list of free pages. */
enum samkv_status samkv_room_measure(struct samkv_store *, struct samkv_room *out, struct samkv_error *) SAMKV_MUST_USE;
