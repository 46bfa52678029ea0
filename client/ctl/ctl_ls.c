#include <stdio.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "client/ctl/ctl_text.h"

struct ls_args {
    struct ctl_common common;
    const char *collection;
    bool collections;
};

static const struct ctl_option options[] = {
    {"collection", "NAME", CTL_TEXT, offsetof(struct ls_args, collection), "whose documents [default]"},
    {"collections", NULL, CTL_FLAG, offsetof(struct ls_args, collections), "list the collections instead"},
    {"json", NULL, CTL_FLAG, offsetof(struct ctl_common, json), "print one JSON object"},
    {0},
};

/* Numbers for programs stay plain; people get units. */
static const char *size_cell(struct ctl_buffer *out, uint64_t bytes)
{
    if (ctl_is_terminal(stdout))
        return ctl_bytes(out, bytes);
    snprintf(out->text, sizeof out->text, "%llu", (unsigned long long)bytes);
    return out->text;
}

static const char *count_cell(struct ctl_buffer *out, uint64_t count)
{
    if (ctl_is_terminal(stdout))
        return ctl_count(out, count);
    snprintf(out->text, sizeof out->text, "%llu", (unsigned long long)count);
    return out->text;
}

static const struct ctl_table document_table = {
    .columns = 6,
    .names = {"ID", "TOKENS", "BLOCKS", "STORED", "ADDED", "TITLE"},
    .right = {false, true, true, true, false, false},
};

static void print_documents(const struct samkv_list_answer *page)
{
    struct ctl_table table = document_table;
    for (size_t i = 0; i < page->document_count; i++) {
        const struct samkv_document_info *d = &page->documents[i];
        struct ctl_buffer tokens, blocks, stored, added;
        const char *cells[] = {d->id,
                               count_cell(&tokens, d->tokens),
                               count_cell(&blocks, d->blocks),
                               size_cell(&stored, d->bytes_stored),
                               ctl_time(&added, d->created_unix_s),
                               d->title};
        if (!ctl_table_add(&table, cells))
            break;
    }
    if (page->document_count)
        ctl_table_print(&table, stdout);
    ctl_table_free(&table);
}

static void print_collections(const struct samkv_list_answer *list)
{
    struct ctl_table table = {
        .columns = 10,
        .names = {"COLLECTION", "DOCUMENTS", "BLOCK", "INIT", "LOCAL", "PREAMBLE", "DTYPE", "CODEC", "MODE", "MODEL"},
        .right = {false, true, true, true, true, true, false, false, false, false},
    };
    for (size_t i = 0; i < list->collection_count; i++) {
        const struct samkv_collection_info *c = &list->collections[i];
        struct ctl_buffer documents, block, init, local, preamble, mode;
        snprintf(mode.text, sizeof mode.text, "%04o", c->mode);
        const char *cells[] = {c->name,
                               count_cell(&documents, c->documents),
                               count_cell(&block, c->block_tokens),
                               count_cell(&init, c->init_tokens),
                               count_cell(&local, c->local_tokens),
                               count_cell(&preamble, c->preamble_tokens),
                               c->dtype,
                               c->codec,
                               mode.text,
                               c->model};
        if (!ctl_table_add(&table, cells))
            break;
    }
    if (list->collection_count)
        ctl_table_print(&table, stdout);
    ctl_table_free(&table);
}

/* The last name of a page: where the next one goes on. NULL for an empty page. */
static const char *last_name(const struct samkv_list_answer *page, bool collections)
{
    if (collections)
        return page->collection_count ? page->collections[page->collection_count - 1].name : NULL;
    return page->document_count ? page->documents[page->document_count - 1].id : NULL;
}

static void take_page(const struct samkv_list_answer *page, bool collections, json_t *all)
{
    if (!all && collections)
        print_collections(page);
    else if (!all)
        print_documents(page);
    for (size_t i = 0; all && collections && i < page->collection_count; i++)
        json_array_append_new(all, ctl_json_collection(&page->collections[i]));
    if (all && !collections) {
        json_t *some = ctl_json_documents(page->documents, page->document_count);
        json_array_extend(all, some);
        json_decref(some);
    }
}

/* Page after page. all: NULL prints each as it comes. */
static enum samkv_status walk(struct ctl *ctl, json_t *all, struct samkv_error *err)
{
    const struct ls_args *args = ctl->args;
    char after[512] = "";
    for (bool more = true; more;) {
        struct samkv_reply reply;
        enum samkv_status status = args->collections
                                       ? samkv_client_list_collections(ctl->client, after, 0, &reply, err)
                                       : samkv_client_list(ctl->client, args->collection, after, 0, &reply, err);
        if (status)
            return status;
        const char *last = last_name(&reply.answer.list, args->collections);
        more = reply.answer.list.more && last;
        if (last)
            snprintf(after, sizeof after, "%s", last);
        take_page(&reply.answer.list, args->collections, all);
        samkv_reply_deinit(&reply);
    }
    return SAMKV_OK;
}

static int run(struct ctl *ctl)
{
    const struct ls_args *args = ctl->args;
    struct samkv_error err;
    int code = ctl_connect(ctl);
    if (code)
        return code;
    json_t *all = ctl->common->json ? json_array() : NULL;
    if (walk(ctl, all, &err)) {
        json_decref(all);
        return ctl_fail(&err);
    }
    if (!all)
        return CTL_DONE;
    json_t *o = json_object();
    if (!args->collections)
        json_object_set_new(o, "collection", ctl_json_text(args->collection ? args->collection : "default"));
    json_object_set_new(o, args->collections ? "collections" : "documents", all);
    return ctl_json_print(o);
}

const struct ctl_command ctl_command_ls = {
    .name = "ls",
    .arguments = "[--collection NAME | --collections]",
    .summary = "Lists documents, or collections",
    .details = "Elsewhere than on a terminal: lines of id, tokens, blocks, bytes stored, time and title, with tabs.",
    .options = {options},
    .args_bytes = sizeof(struct ls_args),
    .run = run,
};
