#include <stdio.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "client/ctl/ctl_quality.h"
#include "client/ctl/ctl_text.h"

struct show_args {
    struct ctl_common common;
    const char *collection;
};

static const struct ctl_option options[] = {
    {"collection", "NAME", CTL_TEXT, offsetof(struct show_args, collection), "of the document [default]"},
    {"json", NULL, CTL_FLAG, offsetof(struct ctl_common, json), "print one JSON object"},
    {0},
};

static void field(const char *name, const char *value)
{
    printf("%-12s", name);
    ctl_put(stdout, value, strlen(value), -1, false);
    putchar('\n');
}

static void print_document(const struct samkv_show_answer *a)
{
    const struct samkv_document_info *d = &a->document;
    const struct samkv_collection_info *c = &a->collection;
    struct ctl_buffer tokens, raw, stored, index, added, used, expires;
    field("id", d->id);
    if (*d->title)
        field("title", d->title);
    field("collection", c->name);
    field("model", c->model);
    field("codec", c->codec);
    printf("%-12s%s in %u blocks of %u, behind %u of the preamble\n", "tokens", ctl_count(&tokens, d->tokens),
           d->blocks, c->block_tokens, c->preamble_tokens);
    printf("%-12s%s for %s of KV, index included (%s)\n", "stored", ctl_bytes(&stored, d->bytes_stored),
           ctl_bytes(&raw, d->bytes_raw), ctl_bytes(&index, d->bytes_index));
    field("added", ctl_time(&added, d->created_unix_s));
    if (d->uses)
        printf("%-12s%llu time%s, last %s\n", "used", (unsigned long long)d->uses, d->uses == 1 ? "" : "s",
               ctl_time(&used, d->used_unix_s));
    else
        field("used", "never");
    if (d->pinned)
        field("pinned", "yes: neither evicted nor expiring");
    else if (d->expires_unix_s)
        field("expires", ctl_time(&expires, d->expires_unix_s));
    field("key", d->key);
    if (a->quality)
        ctl_print_quality(a->quality);
    if (a->calibration)
        ctl_print_calibration(a->calibration);
    if (!a->text_bytes)
        return;
    putchar('\n');
    ctl_put(stdout, a->text, a->text_bytes, -1, true);
    if (a->text[a->text_bytes - 1] != '\n')
        putchar('\n');
}

static int print_json(const struct samkv_show_answer *a)
{
    json_t *o = json_object(), *list = ctl_json_documents(&a->document, 1);
    json_t *text = json_stringn(a->text, a->text_bytes);
    json_object_set(o, "document", json_array_get(list, 0));
    json_decref(list);
    json_object_set_new(o, "collection", ctl_json_collection(&a->collection));
    json_object_set_new(o, "quality", a->quality ? ctl_json_quality(a->quality) : json_null());
    json_object_set_new(o, "calibration", a->calibration ? ctl_json_calibration(a->calibration) : json_null());
    json_object_set_new(o, "text", text ? text : ctl_json_text(a->text));
    return ctl_json_print(o);
}

static int run(struct ctl *ctl)
{
    const struct show_args *args = ctl->args;
    struct samkv_reply reply;
    struct samkv_error err;
    int code = ctl_connect(ctl);
    if (code)
        return code;
    if (samkv_client_show(ctl->client, args->collection, ctl->words[0], &reply, &err))
        return ctl_fail(&err);
    if (ctl->common->json)
        code = print_json(&reply.answer.show);
    else
        print_document(&reply.answer.show);
    samkv_reply_deinit(&reply);
    return code;
}

const struct ctl_command ctl_command_show = {
    .name = "show",
    .arguments = "ID",
    .summary = "Shows one document: its figures and its text",
    .options = {options},
    .args_bytes = sizeof(struct show_args),
    .min_words = 1,
    .max_words = 1,
    .run = run,
};
