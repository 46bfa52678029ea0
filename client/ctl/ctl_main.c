#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "client/ctl/ctl_man.h"
#include "client/ctl/ctl_text.h"

static const struct ctl_command *const commands[] = {
    &ctl_command_ingest,  &ctl_command_fetch,  &ctl_command_ask,   &ctl_command_ls,     &ctl_command_show,
    &ctl_command_rm,      &ctl_command_status, &ctl_command_ping,  &ctl_command_verify, &ctl_command_export,
    &ctl_command_import,  &ctl_command_pin,    &ctl_command_unpin, &ctl_command_set,    &ctl_command_gc,
    &ctl_command_compact, &ctl_command_trace,  &ctl_command_top,   &ctl_command_eval,   &ctl_command_calibrate,
};
#define COMMAND_COUNT (sizeof commands / sizeof *commands)

const struct ctl_option ctl_common_options[] = {
    {"socket", "PATH", CTL_TEXT, offsetof(struct ctl_common, socket), "the daemon's socket"},
    {"timeout", "SECONDS", CTL_REAL, offsetof(struct ctl_common, timeout_s), "give up when nothing comes for so long",
     .min = 0, .max = 1e6},
    {"help", NULL, CTL_FLAG, offsetof(struct ctl_common, help), "this text"},
    {0},
};

struct main_args {
    struct ctl_common common;
    bool version;
};

static const struct ctl_option main_options[] = {
    {"version", NULL, CTL_FLAG, offsetof(struct main_args, version), "the version"},
    {0},
};

/* ------------------------------------------------------------------ errors */

void ctl_error(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("samkvctl: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
}

int ctl_fail(const struct samkv_error *err)
{
    ctl_error("%s", err->text);
    return err->status == SAMKV_NO_DAEMON || err->status == SAMKV_CLOSED ? CTL_NO_DAEMON : CTL_FAILED;
}

int ctl_connect(struct ctl *ctl)
{
    struct samkv_error err;
    enum samkv_status status = samkv_client_connect(ctl->common->socket, &ctl->client, &err);
    if (status) {
        ctl_error("%s", err.text);
        return status == SAMKV_INVALID ? CTL_USAGE : CTL_NO_DAEMON;
    }
    double timeout_s = ctl->common->timeout_s;
    samkv_client_set_timeout_ms(ctl->client, timeout_s > 0 && timeout_s < 0.001 ? 1 : (int)(timeout_s * 1000));
    return CTL_DONE;
}

/* ------------------------------------------------------------------ help */

static void print_options(const struct ctl_option *table, FILE *out)
{
    for (; table->name; table++) {
        char left[64];
        snprintf(left, sizeof left, "--%s%s%s", table->name, table->value ? " " : "", table->value ? table->value : "");
        /* A name that leaves no room gets a line of its own. */
        if (strlen(left) > 26)
            fprintf(out, "  %s\n  %-26s  %s\n", left, "", table->help);
        else
            fprintf(out, "  %-26s  %s\n", left, table->help);
    }
}

static void print_command_help(const struct ctl_command *command, FILE *out)
{
    fprintf(out, "usage: samkvctl %s%s%s\n%s.\n", command->name, *command->arguments ? " " : "", command->arguments,
            command->summary);
    if (command->details)
        fprintf(out, "\n%s\n", command->details);
    fputs("\noptions:\n", out);
    for (size_t i = 0; i < sizeof command->options / sizeof *command->options && command->options[i]; i++)
        print_options(command->options[i], out);
    print_options(ctl_common_options, out);
}

static void print_help(FILE *out)
{
    fputs("usage: samkvctl [--socket PATH] COMMAND ...\n"
          "Talks to samkvd: documents go in once, queries get small KV caches of them.\n\ncommands:\n",
          out);
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        fprintf(out, "  %-8s  %s\n", commands[i]->name, commands[i]->summary);
    fputs("\noptions:\n", out);
    print_options(ctl_common_options, out);
    print_options(main_options, out);
    fputs(
        "\nThe socket is $SAMKV_SOCKET, else $XDG_RUNTIME_DIR/samkv.sock if it is there, else /run/samkv/samkv.sock.\n"
        "Exit codes: 0 done, 1 some of it failed, 2 wrong usage, 3 no daemon. More: samkvctl help COMMAND\n",
        out);
}

/* ------------------------------------------------------------------ dispatch */

static const char *command_name(const void *of, size_t i)
{
    (void)of;
    return i < COMMAND_COUNT ? commands[i]->name : NULL;
}

static const struct ctl_command *find_command(const char *name)
{
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        if (!strcmp(commands[i]->name, name))
            return commands[i];
    const char *near = ctl_nearest(name, command_name, NULL);
    if (near)
        ctl_error("there is no command %s: did you mean %s?", name, near);
    else
        ctl_error("there is no command %s: see samkvctl help", name);
    return NULL;
}

static int help(const char *name)
{
    const struct ctl_command *command = name ? find_command(name) : NULL;
    if (command)
        print_command_help(command, stdout);
    else if (!name)
        print_help(stdout);
    return command || !name ? CTL_DONE : CTL_USAGE;
}

static int check_words(const struct ctl_command *command, int count)
{
    if (count >= command->min_words && (command->max_words < 0 || count <= command->max_words))
        return CTL_DONE;
    ctl_error("%s arguments: usage: samkvctl %s %s", count < command->min_words ? "missing" : "too many", command->name,
              command->arguments);
    return CTL_USAGE;
}

static int run_parsed(struct ctl *ctl)
{
    if (ctl->common->help)
        return help(ctl->command->name);
    int code = check_words(ctl->command, ctl->word_count);
    if (!code)
        code = ctl->command->run(ctl);
    samkv_client_close(ctl->client);
    return code;
}

static int run_command(const struct ctl_command *command, const struct ctl_common *common, int argc, char **argv)
{
    const struct ctl_option *tables[6] = {ctl_common_options};
    for (size_t i = 0; i < sizeof command->options / sizeof *command->options; i++)
        tables[i + 1] = command->options[i];
    void *args = calloc(1, command->args_bytes);
    if (!args) {
        ctl_error("no memory");
        return CTL_FAILED;
    }
    if (command->defaults)
        command->defaults(args);
    memcpy(args, common, sizeof *common);
    char hint[64];
    snprintf(hint, sizeof hint, "samkvctl help %s", command->name);
    struct ctl ctl = {.command = command, .args = args, .common = args, .words = argv};
    ctl.word_count = ctl_options_parse(tables, argc, argv, false, args, hint);
    int code = ctl.word_count < 0 ? CTL_USAGE : run_parsed(&ctl);
    ctl_options_free(tables, args);
    free(args);
    return code;
}

static int dispatch(int argc, char **argv)
{
    static const struct ctl_option *const tables[] = {ctl_common_options, main_options, NULL};
    struct main_args args = {0};
    int words = ctl_options_parse(tables, argc - 1, argv + 1, true, &args, "samkvctl help");
    if (words < 0)
        return CTL_USAGE;
    argv += argc - words;
    if (args.version)
        return printf("samkvctl %s (libsamkv %s)\n", SAMKV_VERSION, samkv_client_version()) < 0;
    if (args.common.help)
        return help(words ? argv[0] : NULL);
    if (!words) {
        print_help(stderr);
        return CTL_USAGE;
    }
    if (!strcmp(argv[0], "help") && words > 1 && !strcmp(argv[1], "--roff")) { /* for the build: samkvctl(1) */
        ctl_man_print(commands, COMMAND_COUNT, tables, stdout);
        return CTL_DONE;
    }
    if (!strcmp(argv[0], "help"))
        return help(words > 1 ? argv[1] : NULL);
    const struct ctl_command *command = find_command(argv[0]);
    return command ? run_command(command, &args.common, words - 1, argv + 1) : CTL_USAGE;
}

int main(int argc, char **argv)
{
    ctl_text_init();
    int code = dispatch(argc, argv);
    /* A result that did not reach its file is no result. */
    if (fflush(stdout) || ferror(stdout)) {
        ctl_error("cannot write the output: is the disk full?");
        return code ? code : CTL_FAILED;
    }
    return code;
}
