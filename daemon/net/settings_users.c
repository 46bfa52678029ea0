#include <errno.h>
#include <grp.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/net/settings.h"

static enum samkv_status parse_mode(const char *text, uint32_t *out, struct samkv_error *err)
{
    char *end;
    errno = 0;
    unsigned long mode = strtoul(text, &end, 8);
    if (errno || end == text || *end || mode > 07777)
        return samkv_fail(err, SAMKV_INVALID, "--collection-mode: '%.50s' is no mode; write one like 0640 or 0600",
                          text);
    *out = (uint32_t)mode;
    return samkv_mode_check(*out, err);
}

/* "UID=SIZE" */
static enum samkv_status parse_quota(const char *item, struct samkv_user_quota *out, struct samkv_error *err)
{
    char *end;
    errno = 0;
    unsigned long long uid = strtoull(item, &end, 10);
    if (errno || end == item || *end != '=' || uid >= UINT32_MAX || !samkv_options_parse_bytes(end + 1, &out->bytes))
        return samkv_fail(
            err, SAMKV_INVALID,
            "--user-quota: '%.50s' is not of the form UID=SIZE; write one like 1000=20G, or 1000=0 for none", item);
    out->uid = (uint32_t)uid;
    return SAMKV_OK;
}

enum samkv_status samkv_settings_check_users(struct samkv_settings *s, struct samkv_error *err)
{
    enum samkv_status st = parse_mode(s->collection_mode, &s->mode, err);
    for (size_t i = 0; i < s->user_quotas.count && st == SAMKV_OK; i++)
        st = parse_quota(s->user_quotas.items[i], &s->quotas[i], err);
    s->bounds = (struct samkv_bounds){
        .connections = (uint32_t)s->max_connections,
        .user_connections = (uint32_t)s->max_user_connections,
        .in_flight = (uint32_t)s->max_in_flight,
        .user_requests = (uint32_t)s->max_user_requests,
        .queue = (uint32_t)s->max_queue,
        .connection_bytes = (size_t)s->connection_bytes,
        .stall_ms = (uint32_t)s->stall_timeout_s * 1000,
        .request_ms = (uint32_t)s->request_timeout_s * 1000,
    };
    return st;
}

uint64_t samkv_settings_user_quota(void *arg, uint32_t uid)
{
    const struct samkv_settings *s = arg;
    for (size_t i = 0; i < s->user_quotas.count; i++)
        if (s->quotas[i].uid == uid)
            return (uint64_t)s->quotas[i].bytes;
    return (uint64_t)s->user_quota_bytes;
}

enum samkv_status samkv_settings_access(const struct samkv_settings *s, struct samkv_access *out,
                                        struct samkv_error *err)
{
    *out = (struct samkv_access){.mode = s->mode};
    if (!s->admin_group)
        return SAMKV_OK;
    char *end;
    const struct group *group = getgrnam(s->admin_group); /* before any thread */
    unsigned long long gid = strtoull(s->admin_group, &end, 10);
    if (!group && (end == s->admin_group || *end || gid >= UINT32_MAX))
        return samkv_fail(err, SAMKV_INVALID, "--admin-group: there is no group '%.50s' on this machine",
                          s->admin_group);
    out->has_admin_group = true;
    out->admin_group = group ? group->gr_gid : (gid_t)gid;
    return SAMKV_OK;
}
