#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "client/ctl/ctl.h"
#include "client/ctl/ctl_text.h"

struct trace_args {
    struct ctl_common common;
    int64_t limit;
};

static const struct ctl_option options[] = {
    {"limit", "N", CTL_INTEGER, offsetof(struct trace_args, limit), "requests to list, the newest [20]", .min = 1,
     .max = 256},
    {"json", NULL, CTL_FLAG, offsetof(struct ctl_common, json), "print one JSON object"},
    {0},
};

static void defaults(void *args)
{
    ((struct trace_args *)args)->limit = 20;
}

/* ------------------------------------------------------------------ JSON */

static json_t *whole(uint64_t value)
{
    return json_integer((json_int_t)value);
}

static json_t *json_spans(const struct samkv_traced_request *r)
{
    json_t *list = json_array();
    for (size_t i = 0; i < r->span_count; i++) {
        json_t *o = json_object();
        json_object_set_new(o, "phase", ctl_json_text(r->spans[i].phase));
        json_object_set_new(o, "start_ms", ctl_json_real(r->spans[i].start_ms));
        json_object_set_new(o, "ms", ctl_json_real(r->spans[i].ms));
        json_array_append_new(list, o);
    }
    return list;
}

json_t *ctl_json_traced(const struct samkv_traced_request *r)
{
    const struct {
        const char *name;
        uint64_t value;
    } numbers[] = {
        {"request_bytes", r->request_bytes}, {"reply_bytes", r->reply_bytes}, {"cache_bytes", r->cache_bytes},
        {"read_bytes", r->read_bytes},       {"tokens", r->tokens},           {"kept_tokens", r->kept_tokens}};
    json_t *o = json_object(), *documents = json_array();
    json_object_set_new(o, "request", whole(r->id));
    json_object_set_new(o, "client_request", whole(r->client_id));
    json_object_set_new(o, "type", ctl_json_text(r->type));
    json_object_set_new(o, "agent", ctl_json_text(r->agent));
    json_object_set_new(o, "pid", whole(r->pid));
    json_object_set_new(o, "uid", whole(r->uid));
    json_object_set_new(o, "gid", whole(r->gid));
    json_object_set_new(o, "accepted_unix_ms", json_integer(r->accepted_unix_ms));
    json_object_set_new(o, "collection", ctl_json_text(r->collection));
    for (size_t i = 0; i < r->documents_named; i++)
        json_array_append_new(documents, ctl_json_text(r->documents[i]));
    json_object_set_new(o, "documents", documents);
    json_object_set_new(o, "document_count", whole(r->document_count));
    json_object_set_new(o, "running", json_boolean(r->running));
    json_object_set_new(o, "ms", ctl_json_real(r->ms));
    json_object_set_new(o, "status", r->running ? json_null() : json_string(samkv_status_name(r->status)));
    json_object_set_new(o, "error", ctl_json_text(r->error));
    json_object_set_new(o, "spans", json_spans(r));
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        json_object_set_new(o, numbers[i].name, whole(numbers[i].value));
    return o;
}

static int print_json(const struct samkv_trace_answer *t)
{
    json_t *o = json_object(), *list = json_array();
    for (size_t i = 0; i < t->count; i++)
        json_array_append_new(list, ctl_json_traced(&t->requests[i]));
    json_object_set_new(o, "requests", list);
    return ctl_json_print(o);
}

/* ------------------------------------------------------------------ the list */

static const char *clock_text(struct ctl_buffer *out, int64_t unix_ms, bool with_date)
{
    time_t s = (time_t)(unix_ms / 1000);
    struct tm local;
    char text[24];
    localtime_r(&s, &local);
    if (with_date)
        strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &local);
    else
        strftime(text, sizeof text, "%H:%M:%S", &local);
    snprintf(out->text, sizeof out->text, "%s.%03d", text, (int)(unix_ms % 1000));
    return out->text;
}

static const char *type_text(struct ctl_buffer *out, const char *type)
{
    size_t i = 0;
    for (; type[i] && i + 1 < sizeof out->text; i++)
        out->text[i] = (char)tolower((unsigned char)type[i]);
    out->text[i] = 0;
    return out->text;
}

/* "default: a.txt, b.txt and 3 more", or why it failed. */
static void what_text(char *out, size_t size, const struct samkv_traced_request *r, bool with_error)
{
    size_t used = 0;
    out[0] = 0;
    if (with_error && r->status) {
        snprintf(out, size, "%s", r->error);
        return;
    }
    if (*r->collection || r->document_count)
        used = (size_t)snprintf(out, size, "%s%s", *r->collection ? r->collection : "default",
                                r->document_count ? ": " : "");
    for (size_t i = 0; i < r->documents_named && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%s", i ? ", " : "", r->documents[i]);
    if (r->document_count > r->documents_named && used < size)
        snprintf(out + used, size - used, " and %zu more", r->document_count - r->documents_named);
}

static void print_list(const struct samkv_trace_answer *t)
{
    struct ctl_table table = {.columns = 7,
                              .names = {"req", "when", "type", "pid", "took", "status", "what"},
                              .right = {[0] = true, [3] = true, [4] = true}};
    for (size_t i = 0; i < t->count; i++) {
        const struct samkv_traced_request *r = &t->requests[i];
        struct ctl_buffer id, when, type, pid, took;
        char what[800];
        snprintf(id.text, sizeof id.text, "%llu", (unsigned long long)r->id);
        snprintf(pid.text, sizeof pid.text, "%u", r->pid);
        what_text(what, sizeof what, r, true);
        const char *cells[] = {id.text,
                               clock_text(&when, r->accepted_unix_ms, false),
                               type_text(&type, r->type),
                               pid.text,
                               ctl_duration(&took, r->ms / 1e3),
                               r->running ? "runs" : samkv_status_name(r->status),
                               what};
        if (!ctl_table_add(&table, cells))
            break;
    }
    ctl_table_print(&table, stdout);
    ctl_table_free(&table);
}

/* ------------------------------------------------------------------ one request */

static void put(const char *text)
{
    ctl_put(stdout, text, strlen(text), -1, false);
}

static void print_bytes(const char *what, uint64_t bytes)
{
    struct ctl_buffer b;
    if (bytes)
        printf(", %s %s", what, ctl_bytes(&b, bytes));
}

static void print_facts(const struct samkv_traced_request *r)
{
    struct ctl_buffer type, when, took, in, out, kept, tokens;
    char what[800];
    printf("req %llu: %s, %s%s, began %s\n", (unsigned long long)r->id, type_text(&type, r->type),
           r->running ? "runs for " : "took ", ctl_duration(&took, r->ms / 1e3),
           clock_text(&when, r->accepted_unix_ms, true));
    if (!r->running) {
        printf("%-11s%s%s", "status", samkv_status_name(r->status), r->status ? ": " : "\n");
        if (r->status)
            put(r->error), putchar('\n');
    }
    printf("%-11suid %u, pid %u, ", "client", r->uid, r->pid);
    put(*r->agent ? r->agent : "without a name");
    printf(", its request %llu\n", (unsigned long long)r->client_id);
    what_text(what, sizeof what, r, false);
    if (*what)
        printf("%-11s", "documents"), put(what), putchar('\n');
    printf("%-11srequest %s, reply %s", "bytes", ctl_bytes(&in, r->request_bytes), ctl_bytes(&out, r->reply_bytes));
    print_bytes("cache", r->cache_bytes);
    print_bytes("read of the store", r->read_bytes);
    putchar('\n');
    if (r->kept_tokens)
        printf("%-11s%s of %s kept\n", "tokens", ctl_count(&kept, r->kept_tokens), ctl_count(&tokens, r->tokens));
    else if (r->tokens)
        printf("%-11s%s\n", "tokens", ctl_count(&tokens, r->tokens));
}

#define LEFT 33 /* columns before the bars */

/* Where a moment lies on a line of so many columns. */
static int column_of(double ms, double all_ms, int columns)
{
    double share = all_ms > 0 ? ms / all_ms : 0;
    return (int)((share < 0 ? 0 : share > 1 ? 1 : share) * columns + 0.5);
}

static void print_bars(const struct samkv_traced_request *r)
{
    int columns = ctl_terminal_columns(stdout) - LEFT - 2;
    columns = columns < 10 ? 10 : columns > 150 ? 150 : columns;
    if (!r->span_count)
        return;
    printf("%-11s%10s%10s\n", "phase", "start ms", "took ms");
    for (size_t i = 0; i < r->span_count; i++) {
        const struct samkv_span_info *s = &r->spans[i];
        int from = column_of(s->start_ms, r->ms, columns), to = column_of(s->start_ms + s->ms, r->ms, columns);
        from = from == columns ? columns - 1 : from;
        to = to == from ? from + 1 : to;
        int width = ctl_put(stdout, s->phase, strlen(s->phase), 10, false);
        printf("%*s%10.2f%10.2f  |", 11 - width, "", s->start_ms, s->ms);
        for (int c = 0; c < columns; c++)
            fputs(c >= from && c < to ? "█" : " ", stdout);
        puts("|");
    }
}

/* ------------------------------------------------------------------ the command */

static int run(struct ctl *ctl)
{
    const struct trace_args *args = ctl->args;
    struct samkv_reply reply;
    struct samkv_error err;
    int64_t id = 0;
    if (ctl->word_count && ctl_parse_integer(ctl->words[0], 1, INT64_MAX, &id, &err)) {
        ctl_error("trace %.100s: %s; see `samkvctl trace` for numbers", ctl->words[0], err.text);
        return CTL_USAGE;
    }
    int code = ctl_connect(ctl);
    if (code)
        return code;
    if (samkv_client_trace(ctl->client, (uint64_t)id, (uint32_t)args->limit, &reply, &err))
        return ctl_fail(&err);
    const struct samkv_trace_answer *t = &reply.answer.trace;
    if (ctl->common->json) {
        code = print_json(t);
    } else if (!id) {
        print_list(t);
    } else {
        for (size_t i = 0; i < t->count; i++) {
            print_facts(&t->requests[i]);
            print_bars(&t->requests[i]);
        }
    }
    samkv_reply_deinit(&reply);
    return code;
}

const struct ctl_command ctl_command_trace = {
    .name = "trace",
    .arguments = "[ID]",
    .summary = "Lists the last requests, or shows the timeline of one",
    .details = "ID is the daemon's number of a request: \"request\" in the JSON of fetch, req= in the daemon's log.\n"
               "Administrators (root, samkvd's user, its --admin-group) see all requests, others their own.",
    .options = {options},
    .args_bytes = sizeof(struct trace_args),
    .defaults = defaults,
    .max_words = 1,
    .run = run,
};
