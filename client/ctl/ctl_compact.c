#include <stdio.h>

#include "client/ctl/ctl.h"
#include "client/ctl/ctl_progress.h"
#include "client/ctl/ctl_text.h"

struct compact_args {
    struct ctl_common common;
};

static const struct ctl_option options[] = {
    {"json", NULL, CTL_FLAG, offsetof(struct ctl_common, json), "print one JSON object"},
    {0},
};

static bool on_progress(void *arg, const struct samkv_compact_answer *a)
{
    struct ctl_buffer moved, total;
    char text[96];
    snprintf(text, sizeof text, "%s of about %s moved", ctl_bytes(&moved, a->bytes_moved),
             ctl_bytes(&total, a->bytes_total));
    double share = a->bytes_total ? (double)a->bytes_moved / (double)a->bytes_total : -1;
    ctl_progress_show(arg, share > 1 ? 1 : share, text);
    return true;
}

static int print_json(const struct samkv_compact_answer *a)
{
    json_t *o = json_object();
    json_object_set_new(o, "bytes_moved", json_integer((json_int_t)a->bytes_moved));
    json_object_set_new(o, "bytes_file_before", json_integer((json_int_t)a->bytes_file_before));
    json_object_set_new(o, "bytes_file", json_integer((json_int_t)a->bytes_file));
    json_object_set_new(o, "bytes_allocated_before", json_integer((json_int_t)a->bytes_allocated_before));
    json_object_set_new(o, "bytes_allocated", json_integer((json_int_t)a->bytes_allocated));
    json_object_set_new(o, "bytes_used", json_integer((json_int_t)a->bytes_used));
    return ctl_json_print(o);
}

static void print_result(const struct samkv_compact_answer *a)
{
    struct ctl_buffer before, after, used, moved;
    printf("data file: %s before, %s now, of which %s in use; %s moved\n", ctl_bytes(&before, a->bytes_file_before),
           ctl_bytes(&after, a->bytes_file), ctl_bytes(&used, a->bytes_used), ctl_bytes(&moved, a->bytes_moved));
}

static int run(struct ctl *ctl)
{
    struct ctl_progress progress;
    struct samkv_reply reply;
    struct samkv_error err;
    int code = ctl_connect(ctl);
    if (code)
        return code;
    ctl_progress_init(&progress);
    enum samkv_status status = samkv_client_compact(ctl->client, on_progress, &progress, &reply, &err);
    ctl_progress_clear(&progress);
    if (status)
        return ctl_fail(&err);
    if (ctl->common->json)
        code = print_json(&reply.answer.compact);
    else
        print_result(&reply.answer.compact);
    samkv_reply_deinit(&reply);
    return code;
}

const struct ctl_command ctl_command_compact = {
    .name = "compact",
    .arguments = "",
    .summary = "Makes the data file as small as what it holds",
    .options = {options},
    .args_bytes = sizeof(struct compact_args),
    .run = run,
};
