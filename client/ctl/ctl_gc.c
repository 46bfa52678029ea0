#include <stdio.h>

#include "client/ctl/ctl.h"
#include "client/ctl/ctl_progress.h"
#include "client/ctl/ctl_text.h"

static const struct ctl_option options[] = {
    {"json", NULL, CTL_FLAG, offsetof(struct ctl_common, json), "print one JSON object"},
    {0},
};

static bool on_progress(void *arg, const struct samkv_gc_answer *g)
{
    struct ctl_buffer freed;
    char text[128];
    snprintf(text, sizeof text, "%llu ids expired  %s freed", (unsigned long long)g->names_expired,
             ctl_bytes(&freed, g->bytes_freed));
    ctl_progress_show(arg, -1, text);
    return true;
}

static int print_json(const struct samkv_gc_answer *g)
{
    const struct {
        const char *name;
        uint64_t value;
    } numbers[] = {
        {"names_expired", g->names_expired},
        {"names_orphaned", g->names_orphaned},
        {"documents_unreferenced", g->documents_unreferenced},
        {"documents_unfinished", g->documents_unfinished},
        {"bytes_freed", g->bytes_freed},
    };
    json_t *o = json_object();
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        json_object_set_new(o, numbers[i].name, json_integer((json_int_t)numbers[i].value));
    return ctl_json_print(o);
}

static void print_text(const struct samkv_gc_answer *g)
{
    struct ctl_buffer freed;
    if (!g->names_expired && !g->names_orphaned && !g->documents_unreferenced && !g->documents_unfinished) {
        puts("there is nothing to remove");
        return;
    }
    printf("removed %llu expired ids, %llu ids of collections that are gone, %llu documents without ids,\n"
           "%llu unfinished documents: %s are free for new ones\n",
           (unsigned long long)g->names_expired, (unsigned long long)g->names_orphaned,
           (unsigned long long)g->documents_unreferenced, (unsigned long long)g->documents_unfinished,
           ctl_bytes(&freed, g->bytes_freed));
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
    enum samkv_status status = samkv_client_gc(ctl->client, on_progress, &progress, &reply, &err);
    ctl_progress_clear(&progress);
    if (status)
        return ctl_fail(&err);
    if (ctl->common->json)
        code = print_json(&reply.answer.gc);
    else
        print_text(&reply.answer.gc);
    samkv_reply_deinit(&reply);
    return code;
}

const struct ctl_command ctl_command_gc = {
    .name = "gc",
    .arguments = "",
    .summary = "Removes what nobody needs any more",
    .details = "Expired ids go by themselves in time; this does it now, and looks for what is left of anything else.",
    .options = {options},
    .args_bytes = sizeof(struct ctl_common),
    .run = run,
};
