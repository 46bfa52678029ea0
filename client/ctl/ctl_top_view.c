#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "client/ctl/ctl_text.h"
#include "client/ctl/ctl_top.h"

#define SLOWEST 5

static const struct samkv_status_answer *newest(const struct top *top)
{
    return &top->readings[0].status.answer.status;
}

/* Of the oldest reading; NULL when there is one reading only. */
static const struct samkv_histogram_info *before(const struct top *top, size_t i)
{
    if (top->count < 2)
        return NULL;
    const struct samkv_status_answer *s = &top->readings[top->count - 1].status.answer.status;
    return i < s->histogram_count ? &s->histograms[i] : NULL;
}

static double seconds_seen(const struct top *top)
{
    return top->count < 2 ? 0 : top->readings[0].at_s - top->readings[top->count - 1].at_s;
}

static bool is_seconds(const struct samkv_histogram_info *h)
{
    size_t length = strlen(h->name);
    return length > 8 && strcmp(h->name + length - 8, "_seconds") == 0;
}

/* "fetch read": the family without what all of them have in common. */
static void phase_label(char *out, size_t size, const struct samkv_histogram_info *h)
{
    size_t kind = strcspn(h->name, "_");
    if (*h->phase)
        snprintf(out, size, "%.*s %s", (int)kind, h->name, h->phase);
    else
        snprintf(out, size, "%.*s", (int)(strlen(h->name) - 8), h->name);
    for (char *c = out; *c; c++)
        *c = *c == '_' ? ' ' : *c;
}

/* ------------------------------------------------------------------ tiers */

struct tier {
    const char *name;
    double used, limit, hits, misses, hits_before, misses_before;
    bool there;
};

#define TIERS 3

static void find_tiers(const struct top *top, struct tier tiers[TIERS])
{
    static const char *const names[TIERS] = {"device", "host", "disk"};
    const struct samkv_status_answer *s = newest(top);
    const struct samkv_status_answer *then = &top->readings[top->count - 1].status.answer.status;
    for (int i = 0; i < TIERS; i++) {
        char counter[48];
        struct tier *t = &tiers[i];
        *t = (struct tier){.name = names[i]};
        if (i == TIERS - 1) {
            t->used = (double)s->bytes_used, t->limit = (double)s->bytes_limit, t->there = true;
            continue;
        }
#define TIER_COUNTER(answer, what)                                                                                     \
    (snprintf(counter, sizeof counter, "%s_cache_" what, names[i]), top_counter(answer, counter))
        t->used = TIER_COUNTER(s, "bytes");
        t->limit = TIER_COUNTER(s, "limit_bytes");
        t->hits = TIER_COUNTER(s, "hits");
        t->misses = TIER_COUNTER(s, "misses");
        t->hits_before = TIER_COUNTER(then, "hits");
        t->misses_before = TIER_COUNTER(then, "misses");
#undef TIER_COUNTER
        t->there = t->limit > 0;
    }
}

/* Since the oldest reading if anybody asked, else in all; NaN when nobody ever did. */
static double hit_rate(const struct tier *t)
{
    double hits = t->hits - t->hits_before, asked = hits + t->misses - t->misses_before;
    return asked > 0 ? hits / asked : t->hits + t->misses > 0 ? t->hits / (t->hits + t->misses) : NAN;
}

/* ------------------------------------------------------------------ the slowest */

static int by_ms(const void *a, const void *b)
{
    const struct samkv_traced_request *x = *(const struct samkv_traced_request *const *)a;
    const struct samkv_traced_request *y = *(const struct samkv_traced_request *const *)b;
    return (x->ms < y->ms) - (x->ms > y->ms);
}

/* Of all that the daemon remembers. */
static size_t find_slowest(const struct top *top, const struct samkv_traced_request *out[SLOWEST])
{
    const struct samkv_trace_answer *t = &top->readings[0].trace.answer.trace;
    const struct samkv_traced_request **all = calloc(t->count + 1, sizeof *all);
    size_t n = 0;
    for (; all && n < t->count; n++)
        all[n] = &t->requests[n];
    qsort(all, n, sizeof *all, by_ms);
    n = n < SLOWEST ? n : SLOWEST;
    if (n)
        memcpy(out, all, n * sizeof *out);
    free(all);
    return n;
}

/* ------------------------------------------------------------------ lines */

struct lines {
    FILE *out;
    int columns, left;
    const char *end;
};

/* One line, cut to the width; false when there is room for no more. */
static bool line(struct lines *l, const char *text)
{
    if (l->left <= 0)
        return false;
    l->left--;
    ctl_put(l->out, text, strlen(text), l->columns, false);
    fputs(l->end, l->out);
    return true;
}

static void draw_head(const struct top *top, struct lines *l)
{
    const struct samkv_status_answer *s = newest(top);
    struct ctl_buffer up, memory, tokens;
    char text[400];
    snprintf(text, sizeof text, "%s  up %s  memory %s  connections %llu", top->server,
             ctl_duration(&up, (double)s->uptime_s), ctl_bytes(&memory, s->resident_bytes),
             (unsigned long long)s->connections);
    line(l, text);
    /* This command's own requests are among them. */
    snprintf(text, sizeof text, "requests  %.0f in flight, %.0f urgent and %.0f relaxed wait; %.0f wait for a device",
             top_counter(s, "requests_running"), top_counter(s, "queue_urgent"), top_counter(s, "queue_relaxed"),
             top_counter(s, "lane_waiting"));
    line(l, text);
    snprintf(text, sizeof text,
             "last %.0f s  %.1f fetches/s, %.1f asks/s, ingest %s tokens/s, %.1f errors/s, %.1f busy/s",
             seconds_seen(top), top_rate(top, "requests_fetch"), top_rate(top, "requests_ask"),
             ctl_count(&tokens, (uint64_t)(top_rate(top, "ingest_tokens") + 0.5)), top_rate(top, "requests_failed"),
             top_rate(top, "requests_busy"));
    line(l, text);
}

static void draw_tiers(const struct top *top, struct lines *l)
{
    struct tier tiers[TIERS];
    char text[200];
    find_tiers(top, tiers);
    snprintf(text, sizeof text, "%-18s%12s%12s%12s", "tier", "used", "limit", "hit rate");
    line(l, text);
    for (int i = 0; i < TIERS; i++) {
        struct ctl_buffer used, limit, rate;
        const struct tier *t = &tiers[i];
        if (!t->there)
            continue;
        double share = hit_rate(t);
        snprintf(text, sizeof text, "%-18s%12s%12s%12s", t->name, ctl_bytes(&used, (uint64_t)t->used),
                 ctl_bytes(&limit, (uint64_t)t->limit), isnan(share) ? "-" : ctl_percent(&rate, share, 1));
        line(l, text);
    }
}

static const char *time_text(struct ctl_buffer *out, double seconds)
{
    return isnan(seconds) ? "-" : ctl_duration(out, seconds);
}

static void draw_phase(const struct top *top, size_t i, struct lines *l)
{
    const struct samkv_histogram_info *h = &newest(top)->histograms[i];
    struct ctl_buffer b[6];
    char label[40], text[200];
    uint64_t all, recent = 0;
    double all50 = top_quantile(h, NULL, 0.5, &all), all99 = top_quantile(h, NULL, 0.99, &all);
    double recent50 = NAN, recent99 = NAN;
    if (!all)
        return;
    if (before(top, i)) {
        recent50 = top_quantile(h, before(top, i), 0.5, &recent);
        recent99 = top_quantile(h, before(top, i), 0.99, &recent);
    }
    phase_label(label, sizeof label, h);
    snprintf(text, sizeof text, "%-18s%8s%11s%11s%10s%11s%11s", label, ctl_count(&b[0], recent),
             time_text(&b[1], recent50), time_text(&b[2], recent99), ctl_count(&b[3], all), time_text(&b[4], all50),
             time_text(&b[5], all99));
    line(l, text);
}

static void draw_phases(const struct top *top, struct lines *l)
{
    char text[200];
    snprintf(text, sizeof text, "%-18s%8s%11s%11s%10s%11s%11s", "phase", "recent", "p50", "p99", "in all", "p50",
             "p99");
    line(l, text);
    for (size_t i = 0; i < newest(top)->histogram_count; i++)
        if (is_seconds(&newest(top)->histograms[i]))
            draw_phase(top, i, l);
}

static void draw_slowest(const struct top *top, struct lines *l)
{
    const struct samkv_traced_request *slowest[SLOWEST];
    size_t count = find_slowest(top, slowest);
    char text[600];
    for (size_t i = 0; i < count; i++) {
        const struct samkv_traced_request *r = slowest[i];
        struct ctl_buffer took, type;
        size_t n = 0;
        for (; r->type[n] && n + 1 < sizeof type.text; n++)
            type.text[n] = (char)tolower((unsigned char)r->type[n]);
        type.text[n] = 0;
        snprintf(text, sizeof text, "%-10sreq %llu %s %s%s, pid %u: %s%s%s%s%s", i ? "" : "slowest",
                 (unsigned long long)r->id, type.text, r->running ? "runs for " : "", ctl_duration(&took, r->ms / 1e3),
                 r->pid, r->status ? samkv_status_name(r->status) : "", r->status ? ", " : "",
                 *r->collection ? r->collection : "default", r->documents_named ? ": " : "",
                 r->documents_named ? r->documents[0] : "");
        if (r->document_count > 1) {
            n = strlen(text);
            snprintf(text + n, sizeof text - n, " and %zu more", r->document_count - 1);
        }
        if (!line(l, text))
            return;
    }
}

void top_draw(const struct top *top, FILE *out, int columns, int lines, const char *end)
{
    struct lines l = {.out = out, .columns = columns, .left = lines, .end = end};
    draw_head(top, &l);
    draw_tiers(top, &l);
    draw_phases(top, &l);
    draw_slowest(top, &l);
}

/* ------------------------------------------------------------------ JSON */

static json_t *json_quantiles(const struct samkv_histogram_info *now, const struct samkv_histogram_info *then)
{
    uint64_t count;
    json_t *o = json_object();
    json_object_set_new(o, "p50_ms", ctl_json_real(1e3 * top_quantile(now, then, 0.5, &count)));
    json_object_set_new(o, "p99_ms", ctl_json_real(1e3 * top_quantile(now, then, 0.99, &count)));
    json_object_set_new(o, "count", json_integer((json_int_t)count));
    return o;
}

static json_t *json_phases(const struct top *top)
{
    json_t *list = json_array();
    for (size_t i = 0; i < newest(top)->histogram_count; i++) {
        const struct samkv_histogram_info *h = &newest(top)->histograms[i];
        if (!is_seconds(h))
            continue;
        json_t *o = json_object();
        json_object_set_new(o, "name", ctl_json_text(h->name));
        json_object_set_new(o, "phase", ctl_json_text(h->phase));
        json_object_set_new(o, "recent", before(top, i) ? json_quantiles(h, before(top, i)) : json_null());
        json_object_set_new(o, "all", json_quantiles(h, NULL));
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *json_tiers(const struct top *top)
{
    struct tier tiers[TIERS];
    json_t *list = json_array();
    find_tiers(top, tiers);
    for (int i = 0; i < TIERS; i++) {
        if (!tiers[i].there)
            continue;
        json_t *o = json_object();
        json_object_set_new(o, "tier", json_string(tiers[i].name));
        json_object_set_new(o, "used_bytes", ctl_json_real(tiers[i].used));
        json_object_set_new(o, "limit_bytes", ctl_json_real(tiers[i].limit));
        json_object_set_new(o, "hit_rate", ctl_json_real(hit_rate(&tiers[i])));
        json_array_append_new(list, o);
    }
    return list;
}

json_t *top_json(const struct top *top)
{
    static const struct {
        const char *name, *counter;
    } rates[] = {{"fetches_per_s", "requests_fetch"},
                 {"asks_per_s", "requests_ask"},
                 {"ingest_tokens_per_s", "ingest_tokens"},
                 {"errors_per_s", "requests_failed"},
                 {"busy_per_s", "requests_busy"}},
      gauges[] = {{"requests_in_flight", "requests_running"},
                  {"queue_urgent", "queue_urgent"},
                  {"queue_relaxed", "queue_relaxed"},
                  {"lane_waiting", "lane_waiting"}};
    const struct samkv_traced_request *slowest[SLOWEST];
    json_t *o = json_object(), *list = json_array();
    json_object_set_new(o, "server", ctl_json_text(top->server));
    json_object_set_new(o, "seconds", ctl_json_real(seconds_seen(top)));
    json_object_set_new(o, "connections", json_integer((json_int_t)newest(top)->connections));
    for (size_t i = 0; i < sizeof rates / sizeof *rates; i++)
        json_object_set_new(o, rates[i].name, ctl_json_real(top_rate(top, rates[i].counter)));
    for (size_t i = 0; i < sizeof gauges / sizeof *gauges; i++)
        json_object_set_new(o, gauges[i].name, ctl_json_real(top_counter(newest(top), gauges[i].counter)));
    json_object_set_new(o, "tiers", json_tiers(top));
    json_object_set_new(o, "phases", json_phases(top));
    for (size_t i = 0, n = find_slowest(top, slowest); i < n; i++)
        json_array_append_new(list, ctl_json_traced(slowest[i]));
    json_object_set_new(o, "slowest", list);
    return o;
}
