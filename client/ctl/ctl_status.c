#include <stdio.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "client/ctl/ctl_quality.h"
#include "client/ctl/ctl_text.h"

static const struct ctl_option options[] = {
    {"json", NULL, CTL_FLAG, offsetof(struct ctl_common, json), "print one JSON object"},
    {0},
};

static json_t *json_models(const struct samkv_status_answer *s)
{
    json_t *list = json_array();
    for (size_t i = 0; i < s->model_count; i++) {
        const struct samkv_model_info *m = &s->models[i];
        json_t *o = json_object();
        json_object_set_new(o, "name", ctl_json_text(m->name));
        json_object_set_new(o, "path", ctl_json_text(m->path));
        json_object_set_new(o, "device", ctl_json_text(m->device));
        json_object_set_new(o, "dtype", ctl_json_text(m->dtype));
        json_object_set_new(o, "layers", json_integer(m->layers));
        json_object_set_new(o, "context_tokens", json_integer(m->context_tokens));
        json_object_set_new(o, "weight_bytes", json_integer((json_int_t)m->weight_bytes));
        json_object_set_new(o, "fingerprint", ctl_json_text(m->fingerprint));
        json_array_append_new(list, o);
    }
    return list;
}

/* ------------------------------------------------------------------ tiers */

/* Where blocks are read from, the fastest first. */
struct tier {
    const char *name;
    double bytes, limit_bytes, hits, misses, evictions;
    bool there;
};

enum { DEVICE, HOST, DISK, TIERS };

/* Which tier a counter "device_cache_hits" belongs to, and which of its numbers it is; NULL: none. */
static double *tier_number(struct tier tiers[TIERS], const char *counter)
{
    static const char *const prefixes[TIERS] = {[DEVICE] = "device_cache_", [HOST] = "host_cache_"};
    for (int i = 0; i < DISK; i++) {
        size_t length = strlen(prefixes[i]);
        struct tier *t = &tiers[i];
        if (strncmp(counter, prefixes[i], length) != 0)
            continue;
        const struct {
            const char *name;
            double *value;
        } numbers[] = {{"bytes", &t->bytes},
                       {"limit_bytes", &t->limit_bytes},
                       {"hits", &t->hits},
                       {"misses", &t->misses},
                       {"evictions", &t->evictions}};
        t->there = true;
        for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++)
            if (!strcmp(counter + length, numbers[k].name))
                return numbers[k].value;
    }
    return NULL;
}

static void find_tiers(const struct samkv_status_answer *s, struct tier tiers[TIERS])
{
    memset(tiers, 0, TIERS * sizeof *tiers);
    tiers[DEVICE].name = "device";
    tiers[HOST].name = "host";
    tiers[DISK] = (struct tier){
        .name = "disk", .bytes = (double)s->bytes_used, .limit_bytes = (double)s->bytes_limit, .there = true};
    for (size_t i = 0; i < s->counter_count; i++) {
        double *number = tier_number(tiers, s->counters[i].name);
        if (number)
            *number = s->counters[i].value;
    }
}

static json_t *json_tiers(const struct samkv_status_answer *s)
{
    struct tier tiers[TIERS];
    json_t *list = json_array();
    find_tiers(s, tiers);
    for (int i = 0; i < TIERS; i++) {
        const struct tier *t = &tiers[i];
        if (!t->there)
            continue;
        json_t *o = json_object();
        json_object_set_new(o, "tier", json_string(t->name));
        json_object_set_new(o, "bytes_used", json_integer((json_int_t)t->bytes));
        json_object_set_new(o, "bytes_limit", json_integer((json_int_t)t->limit_bytes));
        if (i != DISK) {
            json_object_set_new(o, "hits", json_integer((json_int_t)t->hits));
            json_object_set_new(o, "misses", json_integer((json_int_t)t->misses));
            json_object_set_new(o, "evictions", json_integer((json_int_t)t->evictions));
            double asked = t->hits + t->misses;
            json_object_set_new(o, "hit_rate", asked > 0 ? json_real(t->hits / asked) : json_null());
        }
        json_array_append_new(list, o);
    }
    return list;
}

static void print_tiers(const struct samkv_status_answer *s)
{
    struct tier tiers[TIERS];
    find_tiers(s, tiers);
    printf("%-10s%-8s%10s%10s%10s%11s\n", "tiers", "", "used", "limit", "hit rate", "evictions");
    for (int i = 0; i < TIERS; i++) {
        const struct tier *t = &tiers[i];
        struct ctl_buffer used, limit, rate, evictions;
        if (!t->there)
            continue;
        double asked = t->hits + t->misses;
        printf("%-10s%-8s%10s%10s%10s%11s\n", "", t->name, ctl_bytes(&used, (uint64_t)t->bytes),
               ctl_bytes(&limit, (uint64_t)t->limit_bytes), asked > 0 ? ctl_percent(&rate, t->hits, asked) : "-",
               i != DISK ? ctl_count(&evictions, (uint64_t)t->evictions) : "-");
    }
}

static int print_json(const struct ctl *ctl, const struct samkv_status_answer *s)
{
    const struct {
        const char *name;
        uint64_t value;
    } numbers[] = {
        {"uptime_s", s->uptime_s},
        {"collections", s->collections},
        {"documents", s->documents},
        {"names", s->names},
        {"bytes_file", s->bytes_file},
        {"bytes_used", s->bytes_used},
        {"bytes_limit", s->bytes_limit},
        {"bytes_raw", s->bytes_raw},
        {"bytes_stored", s->bytes_stored},
        {"connections", s->connections},
        {"resident_bytes", s->resident_bytes},
        {"bytes_disk_free", s->bytes_disk_free},
        {"bytes_reclaimable", s->bytes_reclaimable},
        {"oldest_reader_s", s->oldest_reader_s},
        {"evictions", s->evictions},
        {"evicted_bytes", s->evicted_bytes},
        {"expirations", s->expirations},
        {"user", s->user},
        {"user_bytes", s->user_bytes},
        {"user_quota_bytes", s->user_quota_bytes},
    };
    json_t *o = json_object(), *counters = json_object();
    json_object_set_new(o, "server", ctl_json_text(samkv_client_server(ctl->client)));
    json_object_set_new(o, "version", ctl_json_text(s->version));
    json_object_set_new(o, "store", ctl_json_text(s->store));
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        json_object_set_new(o, numbers[i].name, json_integer((json_int_t)numbers[i].value));
    json_object_set_new(o, "partial", json_boolean(s->partial));
    json_object_set_new(o, "models", json_models(s));
    json_object_set_new(o, "tiers", json_tiers(s));
    json_t *list = json_array();
    for (size_t i = 0; i < s->collection_count; i++)
        json_array_append_new(list, ctl_json_collection(&s->collection_list[i]));
    json_object_set_new(o, "collection_list", list);
    json_t *qualities = json_array(), *calibrations = json_array();
    for (size_t i = 0; i < s->quality_count; i++)
        json_array_append_new(qualities, ctl_json_quality(&s->qualities[i]));
    for (size_t i = 0; i < s->calibration_count; i++)
        json_array_append_new(calibrations, ctl_json_calibration(&s->calibrations[i]));
    json_object_set_new(o, "qualities", qualities);
    json_object_set_new(o, "calibrations", calibrations);
    for (size_t i = 0; i < s->counter_count; i++)
        json_object_set_new(counters, s->counters[i].name, ctl_json_real(s->counters[i].value));
    json_object_set_new(o, "counters", counters);
    return ctl_json_print(o);
}

static void put(const char *text)
{
    ctl_put(stdout, text, strlen(text), -1, false);
}

static void print_store(const struct samkv_status_answer *s)
{
    struct ctl_buffer documents, raw, stored, file, limit, share;
    printf("%-10s", "store");
    put(s->store);
    printf(": %s in use%s%s\n", ctl_bytes(&file, s->bytes_used), s->bytes_limit ? " of " : "",
           s->bytes_limit ? ctl_bytes(&limit, s->bytes_limit) : "");
    printf("%-10s%s in %llu collections: KV of %s in %s (%s)\n", "documents", ctl_count(&documents, s->documents),
           (unsigned long long)s->collections, ctl_bytes(&raw, s->bytes_raw), ctl_bytes(&stored, s->bytes_stored),
           ctl_percent(&share, (double)s->bytes_stored, (double)s->bytes_raw));
}

static void print_limits(const struct samkv_status_answer *s)
{
    struct ctl_buffer file, reclaimable, disk, evicted, age;
    printf("%-10s%s, %s of it to be used again, %s left on the disk\n", "file", ctl_bytes(&file, s->bytes_file),
           ctl_bytes(&reclaimable, s->bytes_reclaimable), ctl_bytes(&disk, s->bytes_disk_free));
    if (s->oldest_reader_s)
        printf("%-10soldest %s: what is freed meanwhile waits for it\n", "readers",
               ctl_duration(&age, (double)s->oldest_reader_s));
    if (s->evictions || s->expirations)
        printf("%-10s%llu documents evicted (%s), %llu ids expired since the start\n", "gone",
               (unsigned long long)s->evictions, ctl_bytes(&evicted, s->evicted_bytes),
               (unsigned long long)s->expirations);
}

static void print_collections(const struct samkv_status_answer *s)
{
    for (size_t i = 0; i < s->collection_count; i++) {
        const struct samkv_collection_info *c = &s->collection_list[i];
        struct ctl_buffer documents, stored, quota, ttl;
        printf("%-10s", i ? "" : "holds");
        ctl_put(stdout, c->name, strlen(c->name), 24, false);
        printf(": %s ids, %s", ctl_count(&documents, c->documents), ctl_bytes(&stored, c->bytes_stored));
        if (c->quota_bytes)
            printf(" of %s", ctl_bytes(&quota, c->quota_bytes));
        if (c->bytes_stored)
            printf(" (%.2fx smaller)", (double)c->bytes_raw / (double)c->bytes_stored);
        if (c->ttl_s)
            printf(", TTL %s", ctl_span(&ttl, c->ttl_s));
        putchar('\n');
    }
    if (s->collections > s->collection_count)
        printf("%-10sand more: samkvctl ls --collections\n", "");
}

static void print_models(const struct samkv_status_answer *s)
{
    for (size_t i = 0; i < s->model_count; i++) {
        const struct samkv_model_info *m = &s->models[i];
        struct ctl_buffer weights, context;
        printf("%-10s", "model");
        put(m->name);
        printf(": %u layers, context %s tokens, weights %s, stored as ", m->layers,
               ctl_count(&context, m->context_tokens), ctl_bytes(&weights, m->weight_bytes));
        put(m->dtype);
        fputs(", on ", stdout);
        put(m->device);
        putchar('\n');
    }
}

/* What a user is told who is no administrator. */
static void print_own(const struct samkv_status_answer *s)
{
    struct ctl_buffer ids, stored, used, quota;
    printf("%-10suser %u: %s", "yours", s->user, ctl_bytes(&used, s->user_bytes));
    if (s->user_quota_bytes)
        printf(" of %s", ctl_bytes(&quota, s->user_quota_bytes));
    printf("\n%-10s%s ids in %llu collections, %s\n", "readable", ctl_count(&ids, s->names),
           (unsigned long long)s->collections, ctl_bytes(&stored, s->bytes_stored));
}

static void print_status(const struct ctl *ctl, const struct samkv_status_answer *s)
{
    struct ctl_buffer uptime, resident;
    printf("%-10s", "daemon");
    put(samkv_client_server(ctl->client));
    if (s->partial) {
        printf(", up %s\n", ctl_duration(&uptime, (double)s->uptime_s));
        print_own(s);
        print_collections(s);
        print_models(s);
        return;
    }
    printf(", up %s, %llu connections, memory %s\n", ctl_duration(&uptime, (double)s->uptime_s),
           (unsigned long long)s->connections, ctl_bytes(&resident, s->resident_bytes));
    print_store(s);
    print_limits(s);
    print_collections(s);
    print_models(s);
    for (size_t i = 0; i < s->calibration_count; i++)
        ctl_print_calibration(&s->calibrations[i]);
    for (size_t i = 0; i < s->quality_count; i++)
        ctl_print_quality(&s->qualities[i]);
    print_tiers(s);
    const char *title = "counters";
    for (size_t i = 0; i < s->counter_count; i++) {
        if (s->counters[i].value == 0)
            continue;
        printf("%-10s", title);
        put(s->counters[i].name);
        printf(" %.15g\n", s->counters[i].value);
        title = "";
    }
}

static int run(struct ctl *ctl)
{
    struct samkv_reply reply;
    struct samkv_error err;
    int code = ctl_connect(ctl);
    if (code)
        return code;
    if (samkv_client_status(ctl->client, &reply, &err))
        return ctl_fail(&err);
    if (ctl->common->json)
        code = print_json(ctl, &reply.answer.status);
    else
        print_status(ctl, &reply.answer.status);
    samkv_reply_deinit(&reply);
    return code;
}

const struct ctl_command ctl_command_status = {
    .name = "status",
    .arguments = "",
    .summary = "Shows what the daemon serves, holds and has done",
    .options = {options},
    .args_bytes = sizeof(struct ctl_common),
    .run = run,
};
