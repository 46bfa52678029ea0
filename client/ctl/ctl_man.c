#include "client/ctl/ctl_man.h"

#include <string.h>

/* Text as roff takes it: hyphens that can be copied, no line that is taken for a request. */
static void put_text(const char *text, FILE *out)
{
    bool begins = true;
    for (; *text; text++) {
        if (begins && (*text == '.' || *text == '\''))
            fputs("\\&", out);
        if (*text == '-')
            fputs("\\-", out);
        else if (*text == '\\')
            fputs("\\e", out);
        else
            fputc(*text, out);
        begins = *text == '\n';
    }
}

static void put_options(const struct ctl_option *table, FILE *out)
{
    for (; table->name; table++) {
        fputs(".TP\n\\fB\\-\\-", out);
        put_text(table->name, out);
        fputs("\\fR", out);
        if (table->value) {
            fputs(" \\fI", out);
            put_text(table->value, out);
            fputs("\\fR", out);
        }
        fputc('\n', out);
        put_text(table->help, out);
        fputc('\n', out);
    }
}

static void put_command(const struct ctl_command *command, FILE *out)
{
    fprintf(out, ".SS \"%s", command->name);
    if (*command->arguments) {
        fputc(' ', out);
        put_text(command->arguments, out);
    }
    fputs("\"\n", out);
    put_text(command->summary, out);
    fputs(".\n", out);
    if (command->details) {
        fputs(".PP\n", out);
        put_text(command->details, out);
        fputc('\n', out);
    }
    for (size_t i = 0; i < sizeof command->options / sizeof *command->options && command->options[i]; i++)
        put_options(command->options[i], out);
}

void ctl_man_print(const struct ctl_command *const *commands, size_t count, const struct ctl_option *const *options,
                   FILE *out)
{
    fputs(".SH COMMANDS\n", out);
    for (size_t i = 0; i < count; i++)
        put_command(commands[i], out);
    fputs(".SH OPTIONS OF ALL COMMANDS\n", out);
    for (; *options; options++)
        put_options(*options, out);
}
