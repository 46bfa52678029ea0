#include <errno.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "client/ctl/ctl_quality.h"
#include "client/ctl/ctl_text.h"

struct set_args {
    struct ctl_common common;
    int64_t quota_bytes, ttl_s, group, mode; /* -1: not given */
    const char *quality;                     /* NULL: not given */
    double share;                            /* of fetches that are measured; -1: likewise */
};

static enum samkv_status apply_quota(void *args, const char *value, struct samkv_error *err)
{
    return ctl_parse_bytes(value, &((struct set_args *)args)->quota_bytes, err);
}

static enum samkv_status apply_ttl(void *args, const char *value, struct samkv_error *err)
{
    return ctl_parse_duration(value, &((struct set_args *)args)->ttl_s, err);
}

/* A name of this machine, or a number. */
static enum samkv_status apply_group(void *args, const char *value, struct samkv_error *err)
{
    char *end;
    const struct group *group = getgrnam(value);
    errno = 0;
    unsigned long long number = strtoull(value, &end, 10);
    bool is_number = *value >= '0' && *value <= '9' && !*end && !errno && number < UINT32_MAX;
    if (!group && !is_number)
        return samkv_fail(err, SAMKV_INVALID, "there is no such group on this machine");
    ((struct set_args *)args)->group = group ? (int64_t)group->gr_gid : (int64_t)number;
    return SAMKV_OK;
}

static enum samkv_status apply_mode(void *args, const char *value, struct samkv_error *err)
{
    return ctl_parse_mode(value, &((struct set_args *)args)->mode, err);
}

static const struct ctl_option options[] = {
    {.name = "quota",
     .value = "SIZE",
     .kind = CTL_CUSTOM,
     .apply = apply_quota,
     .help = "of its documents as stored, like 10G; none: no limit"},
    {.name = "ttl",
     .value = "TIME",
     .kind = CTL_CUSTOM,
     .apply = apply_ttl,
     .help = "ids go so long after they were ingested, like 7d; none: never"},
    {.name = "group",
     .value = "GROUP",
     .kind = CTL_CUSTOM,
     .apply = apply_group,
     .help = "that the mode's second digit is for: a name or a number, one of your own"},
    {.name = "mode",
     .value = "MODE",
     .kind = CTL_CUSTOM,
     .apply = apply_mode,
     .help = "as a file's: 0600 for you alone, 0640 lets the group read, 0660 write, 0644 all others read"},
    {"quality", "Q", CTL_TEXT, offsetof(struct set_args, quality),
     "that its sparse answers need: agreement=0.95, kl=0.05, or none"},
    {"gate-share", "S", CTL_REAL, offsetof(struct set_args, share), "of fetches that are measured for it [0.01]",
     .min = 0, .max = 1},
    {"json", NULL, CTL_FLAG, offsetof(struct ctl_common, json), "print one JSON object"},
    {0},
};

static void defaults(void *args)
{
    struct set_args *a = args;
    a->quota_bytes = a->ttl_s = a->group = a->mode = -1;
    a->share = -1;
}

static int print_json(const struct samkv_configure_answer *a, uint64_t evicted)
{
    json_t *o = json_object();
    json_object_set_new(o, "collection", ctl_json_collection(&a->collection));
    json_object_set_new(o, "quality", a->quality ? ctl_json_quality(a->quality) : json_null());
    json_object_set_new(o, "evicted", json_integer((json_int_t)evicted));
    return ctl_json_print(o);
}

static void print_text(const struct samkv_configure_answer *a, uint64_t evicted)
{
    const struct samkv_collection_info *c = &a->collection;
    struct ctl_buffer stored, quota, ttl, documents;
    ctl_put(stdout, c->name, strlen(c->name), -1, false);
    printf(": quota %s, TTL %s, mode %04o; %s documents, %s stored",
           c->quota_bytes ? ctl_bytes(&quota, c->quota_bytes) : "none", c->ttl_s ? ctl_span(&ttl, c->ttl_s) : "none",
           c->mode, ctl_count(&documents, c->documents), ctl_bytes(&stored, c->bytes_stored));
    if (evicted)
        printf(", %llu evicted", (unsigned long long)evicted);
    putchar('\n');
    if (a->quality)
        ctl_print_quality(a->quality);
}

/* Limits first, then who may use it, then its quality: one request each, of which only those are made that change
 * something. *evicted is of the first. */
static enum samkv_status change(struct ctl *ctl, struct samkv_reply *reply, uint64_t *evicted, struct samkv_error *err)
{
    const struct set_args *args = ctl->args;
    bool limits = args->quota_bytes >= 0 || args->ttl_s >= 0, share = args->group >= 0 || args->mode >= 0;
    enum samkv_status st = SAMKV_OK;
    if (limits)
        st = samkv_client_configure(ctl->client, ctl->words[0], args->quota_bytes, args->ttl_s, reply, err);
    *evicted = limits && st == SAMKV_OK ? reply->answer.configure.evicted : 0;
    if (st == SAMKV_OK && share) {
        if (limits)
            samkv_reply_deinit(reply);
        st = samkv_client_share(ctl->client, ctl->words[0], args->group, args->mode, reply, err);
    }
    if (st != SAMKV_OK || !(args->quality || args->share >= 0))
        return st;
    if (limits || share)
        samkv_reply_deinit(reply);
    return samkv_client_set_quality(ctl->client, ctl->words[0], args->quality, args->share, reply, err);
}

static int run(struct ctl *ctl)
{
    const struct set_args *args = ctl->args;
    struct samkv_reply reply;
    struct samkv_error err;
    uint64_t evicted;
    if (args->quota_bytes < 0 && args->ttl_s < 0 && args->group < 0 && args->mode < 0 && !args->quality &&
        args->share < 0) {
        ctl_error("nothing to set: give --quota, --ttl, --group, --mode, --quality or --gate-share");
        return CTL_USAGE;
    }
    int code = ctl_connect(ctl);
    if (code)
        return code;
    if (change(ctl, &reply, &evicted, &err))
        return ctl_fail(&err);
    const struct samkv_configure_answer *a = &reply.answer.configure;
    if (ctl->common->json)
        code = print_json(a, evicted);
    else
        print_text(a, evicted);
    if (a->collection.quota_bytes && a->collection.bytes_stored > a->collection.quota_bytes)
        ctl_error("it stays above its quota: what is left is pinned (or the daemon runs with --when-full refuse)");
    samkv_reply_deinit(&reply);
    return code;
}

const struct ctl_command ctl_command_set = {
    .name = "set",
    .arguments = "COLLECTION [--quota SIZE] [--ttl TIME] [--group GROUP] [--mode MODE] [--quality Q]",
    .summary = "Changes a collection's limits, who may use it, and the quality it needs",
    .details =
        "A lowered quota evicts what was used least; a TTL counts from when each id was last ingested. A collection "
        "is its owner's, like a file: others see it when its mode says so, as ~UID/NAME.\n"
        "A quality is measured on a share of fetches, in the background, against full recomputation: agreement\n"
        "of the first tokens at least, or KL of their distributions in nats at most. While it is not met, fetches\n"
        "keep more than they ask for, and at last recompute everything.",
    .options = {options},
    .args_bytes = sizeof(struct set_args),
    .defaults = defaults,
    .min_words = 1,
    .max_words = 1,
    .run = run,
};
