#include <stdio.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "client/ctl/ctl_text.h"

struct set_args {
    struct ctl_common common;
    int64_t quota_bytes, ttl_s; /* -1: not given */
};

static enum samkv_status apply_quota(void *args, const char *value, struct samkv_error *err)
{
    return ctl_parse_bytes(value, &((struct set_args *)args)->quota_bytes, err);
}

static enum samkv_status apply_ttl(void *args, const char *value, struct samkv_error *err)
{
    return ctl_parse_duration(value, &((struct set_args *)args)->ttl_s, err);
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
    {"json", NULL, CTL_FLAG, offsetof(struct ctl_common, json), "print one JSON object"},
    {0},
};

static void defaults(void *args)
{
    struct set_args *a = args;
    a->quota_bytes = a->ttl_s = -1;
}

static int print_json(const struct samkv_configure_answer *a)
{
    json_t *o = json_object();
    json_object_set_new(o, "collection", ctl_json_collection(&a->collection));
    json_object_set_new(o, "evicted", json_integer((json_int_t)a->evicted));
    return ctl_json_print(o);
}

static void print_text(const struct samkv_configure_answer *a)
{
    const struct samkv_collection_info *c = &a->collection;
    struct ctl_buffer stored, quota, ttl, documents;
    ctl_put(stdout, c->name, strlen(c->name), -1, false);
    printf(": quota %s, TTL %s; %s documents, %s stored", c->quota_bytes ? ctl_bytes(&quota, c->quota_bytes) : "none",
           c->ttl_s ? ctl_span(&ttl, c->ttl_s) : "none", ctl_count(&documents, c->documents),
           ctl_bytes(&stored, c->bytes_stored));
    if (a->evicted)
        printf(", %llu evicted", (unsigned long long)a->evicted);
    putchar('\n');
}

static int run(struct ctl *ctl)
{
    const struct set_args *args = ctl->args;
    struct samkv_reply reply;
    struct samkv_error err;
    if (args->quota_bytes < 0 && args->ttl_s < 0) {
        ctl_error("nothing to set: give --quota or --ttl");
        return CTL_USAGE;
    }
    int code = ctl_connect(ctl);
    if (code)
        return code;
    if (samkv_client_configure(ctl->client, ctl->words[0], args->quota_bytes, args->ttl_s, &reply, &err))
        return ctl_fail(&err);
    const struct samkv_configure_answer *a = &reply.answer.configure;
    if (ctl->common->json)
        code = print_json(a);
    else
        print_text(a);
    if (a->collection.quota_bytes && a->collection.bytes_stored > a->collection.quota_bytes)
        ctl_error("it stays above its quota: what is left is pinned (or the daemon runs with --when-full refuse)");
    samkv_reply_deinit(&reply);
    return code;
}

const struct ctl_command ctl_command_set = {
    .name = "set",
    .arguments = "COLLECTION [--quota SIZE] [--ttl TIME]",
    .summary = "Changes a collection's limits",
    .details = "A lowered quota evicts what was used least; a TTL counts from when each id was last ingested.",
    .options = {options},
    .args_bytes = sizeof(struct set_args),
    .defaults = defaults,
    .min_words = 1,
    .max_words = 1,
    .run = run,
};
