#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/ctl/ctl_bundle.h"
#include "client/ctl/ctl_text.h"
#include "daemon/store/bundle.h"

struct import_args {
    struct ctl_common common;
    const char *collection;
    bool keep, check;
};

static const struct ctl_option options[] = {
    {"collection", "NAME", CTL_TEXT, offsetof(struct import_args, collection), "into this one [as the bundle says]"},
    {"keep", NULL, CTL_FLAG, offsetof(struct import_args, keep),
     "leave ids alone that stand for something else [replace them]"},
    {"check", NULL, CTL_FLAG, offsetof(struct import_args, check),
     "only read and check the bundle; needs no daemon and changes nothing"},
    {"json", NULL, CTL_FLAG, offsetof(struct ctl_common, json), "print one JSON object"},
    {0},
};

static int open_source(const char *path)
{
    if (!strcmp(path, "-")) {
        if (!isatty(STDIN_FILENO))
            return STDIN_FILENO;
        ctl_error("a bundle does not come from a terminal: name a file, or a pipe");
        return -1;
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        ctl_error("cannot read %s: %s", path, strerror(errno));
    return fd;
}

/* ------------------------------------------------------------------ check */

static enum samkv_status read_some(void *arg, void *bytes, size_t count, size_t *got, struct samkv_error *err)
{
    ssize_t n;
    do
        n = read(*(int *)arg, bytes, count);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return samkv_fail_errno(err, errno, "cannot read the bundle");
    *got = (size_t)n;
    return SAMKV_OK;
}

static enum samkv_status on_checked(void *arg, const struct samkv_bundle_progress *p, struct samkv_error *err)
{
    (void)err;
    const struct samkv_bundle_answer b = {.names = p->names, .names_total = p->names_total, .bytes = p->bytes};
    ctl_bundle_progress(arg, &b);
    return SAMKV_OK;
}

static int print_checked(const struct ctl *ctl, const struct samkv_collection *c, const struct samkv_bundle_answer *b,
                         double seconds)
{
    char fingerprint[2 * sizeof c->fingerprint + 1];
    for (size_t i = 0; i < sizeof c->fingerprint; i++)
        snprintf(fingerprint + 2 * i, 3, "%02x", c->fingerprint[i]);
    if (ctl->common->json) {
        json_t *o = json_object();
        ctl_bundle_json(o, b, seconds);
        json_object_set_new(o, "model", ctl_json_text(c->model));
        json_object_set_new(o, "fingerprint", ctl_json_text(fingerprint));
        json_object_set_new(o, "dtype", ctl_json_text(samkv_dtype_name(c->shape.dtype)));
        json_object_set_new(o, "block_size", json_integer(c->block_tokens));
        json_object_set_new(o, "preamble_tokens", json_integer(c->preamble_tokens));
        return ctl_json_print(o);
    }
    struct ctl_buffer count, bytes;
    printf("the bundle is whole: %s documents, %s\ncollection ", ctl_count(&count, b->names),
           ctl_bytes(&bytes, b->bytes));
    ctl_put(stdout, c->name, strlen(c->name), -1, false);
    printf(", model ");
    ctl_put(stdout, c->model, strlen(c->model), -1, false);
    printf(" (%s), %s, blocks of %u tokens\n", fingerprint, samkv_dtype_name(c->shape.dtype), c->block_tokens);
    return CTL_DONE;
}

static int check(struct ctl *ctl, int fd)
{
    const struct samkv_bundle_stream stream = {.read = read_some, .arg = &fd};
    struct samkv_collection collection;
    struct samkv_bundle_progress p;
    struct ctl_progress progress;
    struct samkv_error err;
    double began = ctl_now_s();
    ctl_progress_init(&progress);
    enum samkv_status status = samkv_bundle_check(&stream, on_checked, &progress, &collection, &p, &err);
    ctl_progress_clear(&progress);
    const struct samkv_bundle_answer b = {
        .collection = p.collection, .last_id = p.last_id, .names = p.names, .bytes = p.bytes};
    int code = status ? ctl_fail(&err) : print_checked(ctl, &collection, &b, ctl_now_s() - began);
    samkv_collection_deinit(&collection);
    return code;
}

/* ------------------------------------------------------------------ import */

static int print_result(const struct ctl *ctl, const struct samkv_bundle_answer *b, double seconds)
{
    if (ctl->common->json) {
        json_t *o = json_object();
        ctl_bundle_json(o, b, seconds);
        json_object_set_new(o, "imported", json_integer((json_int_t)(b->names - b->skipped - b->kept)));
        json_object_set_new(o, "skipped", json_integer((json_int_t)b->skipped));
        json_object_set_new(o, "replaced", json_integer((json_int_t)b->replaced));
        json_object_set_new(o, "kept", json_integer((json_int_t)b->kept));
        return ctl_json_print(o);
    }
    struct ctl_buffer count, bytes, time;
    printf("imported %s documents", ctl_count(&count, b->names - b->skipped - b->kept));
    if (b->skipped)
        printf(", %s were there", ctl_count(&count, b->skipped));
    if (b->replaced)
        printf(", %s of them replaced", ctl_count(&count, b->replaced));
    if (b->kept)
        printf(", %s kept as they were", ctl_count(&count, b->kept));
    printf("; %s read in %s\n", ctl_bytes(&bytes, b->bytes), ctl_duration(&time, seconds));
    return CTL_DONE;
}

static int import(struct ctl *ctl, int fd)
{
    const struct import_args *args = ctl->args;
    const struct samkv_import_options request = {.collection = args->collection, .keep = args->keep};
    struct ctl_progress progress;
    struct samkv_reply reply;
    struct samkv_error err;
    double began = ctl_now_s();
    int code = ctl_connect(ctl);
    if (code)
        return code;
    ctl_progress_init(&progress);
    enum samkv_status status =
        samkv_client_import(ctl->client, &request, fd, ctl_bundle_progress, &progress, &reply, &err);
    ctl_progress_clear(&progress);
    if (status)
        return ctl_fail(&err);
    code = print_result(ctl, &reply.answer.bundle, ctl_now_s() - began);
    samkv_reply_deinit(&reply);
    return code;
}

static int run(struct ctl *ctl)
{
    const struct import_args *args = ctl->args;
    int fd = open_source(ctl->words[0]);
    if (fd < 0)
        return CTL_FAILED;
    int code = args->check ? check(ctl, fd) : import(ctl, fd);
    if (fd != STDIN_FILENO)
        close(fd);
    return code;
}

const struct ctl_command ctl_command_import = {
    .name = "import",
    .arguments = "FILE|-",
    .summary = "Reads what export wrote into the store, or only checks it",
    .details =
        "Documents that are there already are passed over: an import that broke off goes on when it is simply run\n"
        "again. A bundle that was made with another model is refused.",
    .options = {options},
    .args_bytes = sizeof(struct import_args),
    .min_words = 1,
    .max_words = 1,
    .run = run,
};
