#include <stdio.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "client/ctl/ctl_text.h"

struct pin_args {
    struct ctl_common common;
    const char *collection;
};

static const struct ctl_option options[] = {
    {"collection", "NAME", CTL_TEXT, offsetof(struct pin_args, collection), "of the documents [default]"},
    {"json", NULL, CTL_FLAG, offsetof(struct ctl_common, json), "print one JSON object"},
    {0},
};

static int print_json(const struct samkv_pin_answer *a, bool pin)
{
    json_t *o = json_object(), *missing = json_array();
    for (size_t i = 0; i < a->missing_count; i++)
        json_array_append_new(missing, ctl_json_text(a->missing[i]));
    json_object_set_new(o, pin ? "pinned" : "unpinned", json_integer(a->pinned));
    json_object_set_new(o, "missing", missing);
    return ctl_json_print(o);
}

static int run(struct ctl *ctl, bool pin)
{
    const struct pin_args *args = ctl->args;
    struct samkv_reply reply;
    struct samkv_error err;
    int code = ctl_connect(ctl);
    if (code)
        return code;
    if (samkv_client_pin(ctl->client, args->collection, (const char *const *)ctl->words, (size_t)ctl->word_count, pin,
                         &reply, &err))
        return ctl_fail(&err);
    const struct samkv_pin_answer *a = &reply.answer.pin;
    if (ctl->common->json)
        code = print_json(a, pin);
    else
        printf("%s %u\n", pin ? "pinned" : "unpinned", a->pinned);
    for (size_t i = 0; i < a->missing_count; i++) {
        fputs("samkvctl: ", stderr);
        ctl_put(stderr, a->missing[i], strlen(a->missing[i]), -1, false);
        fputs(": not found: samkvctl ls lists what is there\n", stderr);
        code = CTL_FAILED;
    }
    samkv_reply_deinit(&reply);
    return code;
}

static int run_pin(struct ctl *ctl)
{
    return run(ctl, true);
}

static int run_unpin(struct ctl *ctl)
{
    return run(ctl, false);
}

const struct ctl_command ctl_command_pin = {
    .name = "pin",
    .arguments = "ID..",
    .summary = "Keeps documents from being evicted or expiring",
    .details = "A pin belongs to the id: it stays when the id is ingested again, and goes with rm.",
    .options = {options},
    .args_bytes = sizeof(struct pin_args),
    .min_words = 1,
    .max_words = -1,
    .run = run_pin,
};

const struct ctl_command ctl_command_unpin = {
    .name = "unpin",
    .arguments = "ID..",
    .summary = "Takes pins away",
    .options = {options},
    .args_bytes = sizeof(struct pin_args),
    .min_words = 1,
    .max_words = -1,
    .run = run_unpin,
};
