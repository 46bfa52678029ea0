#pragma once
/*
 * What each user has of the server just now: connections, requests and bytes of requests. A user is here while one of
 * its connections is. Event loop's thread only.
 */
#include <stdint.h>
#include <sys/types.h>

#include "daemon/net/input.h"

struct samkv_user {
    struct samkv_user *next;
    uid_t uid;
    uint32_t connections, requests;
    uint32_t bundles;           /* of its requests: exports and imports */
    struct samkv_budget budget; /* its part of the server's, which it takes from */
};

struct samkv_users {
    struct samkv_user *first;
    struct samkv_budget *budget; /* of all users */
};

/* One connection more; NULL without memory. */
struct samkv_user *samkv_users_join(struct samkv_users *, uid_t uid);
/* One connection less. */
void samkv_users_leave(struct samkv_users *, struct samkv_user *);

/* NULL: has no connection. */
struct samkv_user *samkv_users_find(const struct samkv_users *, uid_t uid);
