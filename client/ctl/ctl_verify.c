#include <stdio.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "client/ctl/ctl_progress.h"
#include "client/ctl/ctl_text.h"

struct verify_args {
    struct ctl_common common;
    const char *collection;
    bool repair;
};

static const struct ctl_option options[] = {
    {"collection", "NAME", CTL_TEXT, offsetof(struct verify_args, collection), "only this one [all of them]"},
    {"repair", NULL, CTL_FLAG, offsetof(struct verify_args, repair), "compute damaged blocks again from their tokens"},
    {"json", NULL, CTL_FLAG, offsetof(struct ctl_common, json), "print one JSON object"},
    {0},
};

static bool on_progress(void *arg, const struct samkv_verify_answer *v)
{
    struct ctl_buffer done, total, bytes;
    char text[128];
    snprintf(text, sizeof text, "%s/%s documents  %s read  %llu damaged", ctl_count(&done, v->documents),
             ctl_count(&total, v->documents_total), ctl_bytes(&bytes, v->bytes), (unsigned long long)v->damaged);
    ctl_progress_show(arg, v->documents_total ? (double)v->documents / (double)v->documents_total : -1, text);
    return true;
}

static int print_json(const struct samkv_verify_answer *v)
{
    json_t *o = json_object(), *ids = json_array();
    for (size_t i = 0; i < v->damaged_id_count; i++)
        json_array_append_new(ids, ctl_json_text(v->damaged_ids[i]));
    json_object_set_new(o, "documents", json_integer((json_int_t)v->documents));
    json_object_set_new(o, "blocks", json_integer((json_int_t)v->blocks));
    json_object_set_new(o, "bytes", json_integer((json_int_t)v->bytes));
    json_object_set_new(o, "damaged", json_integer((json_int_t)v->damaged));
    json_object_set_new(o, "repaired", json_integer((json_int_t)v->repaired));
    json_object_set_new(o, "damaged_ids", ids);
    return ctl_json_print(o);
}

static void print_result(const struct samkv_verify_answer *v)
{
    struct ctl_buffer documents, blocks, bytes;
    printf("verified %s documents, %s blocks, %s: %llu damaged, %llu repaired\n", ctl_count(&documents, v->documents),
           ctl_count(&blocks, v->blocks), ctl_bytes(&bytes, v->bytes), (unsigned long long)v->damaged,
           (unsigned long long)v->repaired);
    for (size_t i = 0; i < v->damaged_id_count; i++) {
        fputs("  ", stdout);
        ctl_put(stdout, v->damaged_ids[i], strlen(v->damaged_ids[i]), -1, false);
        putchar('\n');
    }
}

static int run(struct ctl *ctl)
{
    const struct verify_args *args = ctl->args;
    struct ctl_progress progress;
    struct samkv_reply reply;
    struct samkv_error err;
    int code = ctl_connect(ctl);
    if (code)
        return code;
    ctl_progress_init(&progress);
    enum samkv_status status =
        samkv_client_verify(ctl->client, args->collection, args->repair, on_progress, &progress, &reply, &err);
    ctl_progress_clear(&progress);
    if (status)
        return ctl_fail(&err);
    const struct samkv_verify_answer *v = &reply.answer.verify;
    if (ctl->common->json)
        code = print_json(v);
    else
        print_result(v);
    if (v->damaged > v->repaired) {
        if (!args->repair)
            ctl_error("%llu damaged: samkvctl verify --repair computes them again", (unsigned long long)v->damaged);
        else
            ctl_error("%llu could not be repaired: remove and ingest those documents again",
                      (unsigned long long)(v->damaged - v->repaired));
        code = CTL_FAILED;
    }
    samkv_reply_deinit(&reply);
    return code;
}

const struct ctl_command ctl_command_verify = {
    .name = "verify",
    .arguments = "[--repair]",
    .summary = "Reads everything that is stored and checks it",
    .options = {options},
    .args_bytes = sizeof(struct verify_args),
    .run = run,
};
