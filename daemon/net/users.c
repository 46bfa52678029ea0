#include "daemon/net/users.h"

#include <stdlib.h>

#define USER_SHARE 2 /* of the bytes that all requests may take, one user gets half */

struct samkv_user *samkv_users_find(const struct samkv_users *users, uid_t uid)
{
    struct samkv_user *user = users->first;
    while (user && user->uid != uid)
        user = user->next;
    return user;
}

struct samkv_user *samkv_users_join(struct samkv_users *users, uid_t uid)
{
    struct samkv_user *user = samkv_users_find(users, uid);
    if (!user && !(user = calloc(1, sizeof *user)))
        return NULL;
    if (!user->connections++) {
        user->uid = uid;
        user->budget = (struct samkv_budget){.limit = users->budget->limit / USER_SHARE, .parent = users->budget};
        user->next = users->first;
        users->first = user;
    }
    return user;
}

void samkv_users_leave(struct samkv_users *users, struct samkv_user *user)
{
    if (--user->connections)
        return;
    struct samkv_user **at = &users->first;
    while (*at != user)
        at = &(*at)->next;
    *at = user->next;
    free(user);
}
