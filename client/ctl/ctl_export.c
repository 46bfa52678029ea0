#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/ctl/ctl_bundle.h"
#include "client/ctl/ctl_text.h"

struct export_args {
    struct ctl_common common;
    const char *out, *after;
    bool resume;
};

static const struct ctl_option options[] = {
    {"out", "FILE", CTL_TEXT, offsetof(struct export_args, out), "where to; - is standard output [-]"},
    {"resume", NULL, CTL_FLAG, offsetof(struct export_args, resume), "go on with an export to FILE that broke off"},
    {"after", "ID", CTL_TEXT, offsetof(struct export_args, after), "only documents whose id is above this one"},
    {"json", NULL, CTL_FLAG, offsetof(struct ctl_common, json), "print one JSON object (on stderr if - is the output)"},
    {0},
};

/* Where a bundle goes. A file is written beside its place and moved there when it is whole. */
struct place {
    int fd;
    const char *path; /* NULL: standard output, or something that is written to directly */
    char *part;       /* heap */
};

static int cannot_open(const char *path)
{
    ctl_error("cannot write %s: %s", path, strerror(errno));
    return CTL_FAILED;
}

static int open_part(struct place *place, const char *path, bool resume)
{
    if (asprintf(&place->part, "%s.part", path) < 0) {
        place->part = NULL;
        ctl_error("no memory");
        return CTL_FAILED;
    }
    place->path = path;
    place->fd = open(place->part, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (place->fd < 0)
        return cannot_open(place->part);
    /* The daemon shares the lock with the descriptor: also one that still works for a client that was killed. */
    if (flock(place->fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK) {
        ctl_error("another export writes %s: wait for it, or choose another file", place->part);
        return CTL_FAILED;
    }
    return !resume && ftruncate(place->fd, 0) ? cannot_open(place->part) : CTL_DONE;
}

static int open_place(struct place *place, const char *out, bool resume)
{
    struct stat s;
    *place = (struct place){.fd = STDOUT_FILENO};
    if (!out || !strcmp(out, "-")) {
        if (!isatty(STDOUT_FILENO) && !resume)
            return CTL_DONE;
        ctl_error(resume ? "only an export to a file can be resumed: give --out FILE, or --after the last id that came"
                         : "a bundle is nothing for a terminal: give --out FILE, or a pipe");
        return CTL_USAGE;
    }
    if (stat(out, &s) || S_ISREG(s.st_mode))
        return open_part(place, out, resume);
    place->fd = open(out, O_WRONLY | O_CLOEXEC);
    return place->fd < 0 ? cannot_open(out) : CTL_DONE;
}

static void close_place(struct place *place)
{
    if (place->fd > STDERR_FILENO)
        close(place->fd);
    free(place->part);
}

/* A whole bundle takes its place, durably. */
static enum samkv_status settle(const struct place *place, struct samkv_error *err)
{
    if (!place->path)
        return SAMKV_OK;
    if (fsync(place->fd) || rename(place->part, place->path))
        return samkv_fail_errno(err, errno, "cannot write %s", place->path);
    char *copy = strdup(place->path);
    int folder = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (folder >= 0) {
        fsync(folder);
        close(folder);
    }
    free(copy);
    return SAMKV_OK;
}

static int fail(const struct place *place, const struct samkv_error *err)
{
    struct stat s;
    if (place->path && !fstat(place->fd, &s) && s.st_size > 0 && err->status != SAMKV_MISMATCH) {
        struct samkv_error more;
        samkv_fail(&more, err->status, "%.300s; %.120s keeps what came: --resume goes on with it", err->text,
                   place->part);
        return ctl_fail(&more);
    }
    if (place->path && !fstat(place->fd, &s) && s.st_size == 0)
        unlink(place->part);
    return ctl_fail(err);
}

static int print_result(const struct ctl *ctl, const struct place *place, const struct samkv_bundle_answer *b,
                        double seconds)
{
    FILE *to = place->fd == STDOUT_FILENO ? stderr : stdout;
    struct ctl_buffer count, bytes, time;
    if (ctl->common->json) {
        json_t *o = json_object();
        ctl_bundle_json(o, b, seconds);
        if (to == stdout)
            return ctl_json_print(o);
        json_dumpf(o, to, JSON_PRESERVE_ORDER);
        fputc('\n', to);
        json_decref(o);
    } else if (to == stdout || ctl_is_terminal(stderr)) {
        fprintf(to, "exported %s documents, %s, in %s\n", ctl_count(&count, b->names), ctl_bytes(&bytes, b->bytes),
                ctl_duration(&time, seconds));
    }
    return CTL_DONE;
}

static int export(struct ctl *ctl, struct place *place)
{
    const struct export_args *args = ctl->args;
    const struct samkv_export_options request = {
        .collection = ctl->word_count ? ctl->words[0] : NULL, .after = args->after, .resume = args->resume};
    struct ctl_progress progress;
    struct samkv_reply reply;
    struct samkv_error err;
    double began = ctl_now_s();
    ctl_progress_init(&progress);
    enum samkv_status status =
        samkv_client_export(ctl->client, &request, place->fd, ctl_bundle_progress, &progress, &reply, &err);
    ctl_progress_clear(&progress);
    if (status)
        return fail(place, &err);
    status = settle(place, &err);
    int code = status ? fail(place, &err) : print_result(ctl, place, &reply.answer.bundle, ctl_now_s() - began);
    samkv_reply_deinit(&reply);
    return code;
}

static int run(struct ctl *ctl)
{
    const struct export_args *args = ctl->args;
    struct place place;
    if (args->resume && args->after) {
        ctl_error("--resume knows where to go on: leave --after out");
        return CTL_USAGE;
    }
    int code = ctl_connect(ctl);
    if (code)
        return code;
    code = open_place(&place, args->out, args->resume);
    if (!code)
        code = export(ctl, &place);
    close_place(&place);
    return code;
}

const struct ctl_command ctl_command_export = {
    .name = "export",
    .arguments = "[COLLECTION] [--out FILE|-]",
    .summary = "Writes a collection as one file or stream, to be imported elsewhere",
    .details = "The daemon writes it as the collection is at this moment, documents as they are stored, all of it "
               "checksummed.\n"
               "A file appears when it is whole; until then it is FILE.part, and --resume goes on with that.\n"
               "  samkvctl export wiki --out - | zstd | ssh host 'zstd -d | samkvctl import -'",
    .options = {options},
    .args_bytes = sizeof(struct export_args),
    .max_words = 1,
    .run = run,
};
