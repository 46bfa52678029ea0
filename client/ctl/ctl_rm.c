#include <stdio.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "client/ctl/ctl_progress.h"
#include "client/ctl/ctl_text.h"

struct rm_args {
    struct ctl_common common;
    const char *collection;
    bool all;
};

static const struct ctl_option options[] = {
    {"collection", "NAME", CTL_TEXT, offsetof(struct rm_args, collection), "of the documents [default]"},
    {"all", NULL, CTL_FLAG, offsetof(struct rm_args, all), "the whole collection, which has to be named"},
    {"json", NULL, CTL_FLAG, offsetof(struct ctl_common, json), "print one JSON object"},
    {0},
};

static int print_json(const struct samkv_remove_answer *a)
{
    json_t *o = json_object(), *missing = json_array();
    for (size_t i = 0; i < a->missing_count; i++)
        json_array_append_new(missing, ctl_json_text(a->missing[i]));
    json_object_set_new(o, "removed", json_integer(a->removed));
    json_object_set_new(o, "missing", missing);
    return ctl_json_print(o);
}

static bool on_progress(void *arg, const struct samkv_remove_answer *a)
{
    struct ctl_buffer removed;
    char text[64];
    snprintf(text, sizeof text, "%s documents removed", ctl_count(&removed, a->removed));
    ctl_progress_show(arg, -1, text);
    return true;
}

static int run_all(struct ctl *ctl)
{
    const struct rm_args *args = ctl->args;
    struct ctl_progress progress;
    struct samkv_reply reply;
    struct samkv_error err;
    if (!args->collection || ctl->word_count) {
        ctl_error(ctl->word_count ? "give ids or --all, not both" : "--all needs --collection NAME");
        return CTL_USAGE;
    }
    int code = ctl_connect(ctl);
    if (code)
        return code;
    ctl_progress_init(&progress);
    enum samkv_status status =
        samkv_client_remove_collection(ctl->client, args->collection, on_progress, &progress, &reply, &err);
    ctl_progress_clear(&progress);
    if (status)
        return ctl_fail(&err);
    if (ctl->common->json)
        code = print_json(&reply.answer.remove);
    else
        printf("removed %u and the collection\n", reply.answer.remove.removed);
    samkv_reply_deinit(&reply);
    return code;
}

static int run(struct ctl *ctl)
{
    const struct rm_args *args = ctl->args;
    struct samkv_reply reply;
    struct samkv_error err;
    if (args->all)
        return run_all(ctl);
    if (!ctl->word_count) {
        ctl_error("missing arguments: usage: samkvctl rm %s", ctl->command->arguments);
        return CTL_USAGE;
    }
    int code = ctl_connect(ctl);
    if (code)
        return code;
    if (samkv_client_remove(ctl->client, args->collection, (const char *const *)ctl->words, (size_t)ctl->word_count,
                            &reply, &err))
        return ctl_fail(&err);
    const struct samkv_remove_answer *a = &reply.answer.remove;
    if (ctl->common->json)
        code = print_json(a);
    else
        printf("removed %u\n", a->removed);
    for (size_t i = 0; i < a->missing_count; i++) {
        fputs("samkvctl: ", stderr);
        ctl_put(stderr, a->missing[i], strlen(a->missing[i]), -1, false);
        fputs(": not found: samkvctl ls lists what is there\n", stderr);
        code = CTL_FAILED;
    }
    samkv_reply_deinit(&reply);
    return code;
}

const struct ctl_command ctl_command_rm = {
    .name = "rm",
    .arguments = "ID.. | --collection NAME --all",
    .summary = "Removes documents, or a whole collection",
    .details = "Fetches in flight keep what they began with.",
    .options = {options},
    .args_bytes = sizeof(struct rm_args),
    .min_words = 0,
    .max_words = -1,
    .run = run,
};
