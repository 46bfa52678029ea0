#include "daemon/base/options.h"

#include <assert.h>
#include <errno.h>
#include <ini.h>
#include <stdlib.h>
#include <string.h>

/* Where a value is from; the higher one wins. */
enum source { SOURCE_NONE, SOURCE_DEFAULT, SOURCE_FILE, SOURCE_ENVIRONMENT, SOURCE_ARGUMENTS };

#define FIELD(options, option, type) ((type *)((char *)(options)->settings + (option)->offset))

void samkv_options_init(struct samkv_options *o, const struct samkv_option *table, size_t count, void *settings)
{
    assert(count <= SAMKV_MAX_OPTIONS);
    *o = (struct samkv_options){.table = table, .count = count, .settings = settings};
}

static void list_clear(struct samkv_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->items[i]);
    list->count = 0;
}

void samkv_options_deinit(struct samkv_options *o)
{
    for (size_t i = 0; i < o->count; i++) {
        const struct samkv_option *option = &o->table[i];
        if (option->kind == SAMKV_OPTION_TEXT) {
            free(*FIELD(o, option, char *));
            *FIELD(o, option, char *) = NULL;
        } else if (option->kind == SAMKV_OPTION_LIST) {
            list_clear(FIELD(o, option, struct samkv_list));
        }
    }
}

/* ------------------------------------------------------------------ values */

/* A whole number; with `units`, one that K, M, G or T may follow. */
static bool parse_number(const char *text, bool units, int64_t *out)
{
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    bool good = end != text && errno == 0;
    if (good && units && *end) {
        static const char letters[] = "KMGT";
        const char *unit = strchr(letters, *end >= 'a' ? *end - 'a' + 'A' : *end);
        int shift = unit ? 10 * (int)(unit - letters + 1) : 0;
        good = unit && value >= 0 && value <= INT64_MAX >> shift;
        value = good ? value << shift : 0;
        end++;
    }
    *out = value;
    return good && !*end;
}

bool samkv_options_parse_bytes(const char *text, int64_t *out)
{
    return parse_number(text, true, out) && *out >= 0;
}

static enum samkv_status set_integer(const struct samkv_option *option, const char *text, const char *label,
                                     int64_t *out, struct samkv_error *err)
{
    int64_t value;
    if (!parse_number(text, option->kind == SAMKV_OPTION_BYTES, &value))
        return samkv_fail(err, SAMKV_INVALID, "%s: '%.100s' is not a %s", label, text,
                          option->kind == SAMKV_OPTION_BYTES ? "size; write a number, or one like 512M or 10G"
                                                             : "whole number");
    if (value < option->min || value > option->max)
        return samkv_fail(err, SAMKV_INVALID, "%s: %lld is out of range; give %lld to %lld", label, (long long)value,
                          (long long)option->min, (long long)option->max);
    *out = value;
    return SAMKV_OK;
}

static enum samkv_status set_choice(const struct samkv_option *option, const char *text, const char *label, int *out,
                                    struct samkv_error *err)
{
    char all[200] = "";
    for (int i = 0; option->choices[i]; i++) {
        if (strcmp(option->choices[i], text) == 0) {
            *out = i;
            return SAMKV_OK;
        }
        size_t used = strlen(all);
        snprintf(all + used, sizeof all - used, "%s%s", i ? ", " : "", option->choices[i]);
    }
    return samkv_fail(err, SAMKV_INVALID, "%s: '%.100s' is none of %s", label, text, all);
}

static enum samkv_status check_text(const struct samkv_option *option, const char *text, const char *label,
                                    struct samkv_error *err)
{
    if (!*text)
        return samkv_fail(err, SAMKV_INVALID, "%s: empty; give %s", label, option->argument);
    if (option->max > 0 && ((int64_t)strlen(text) < option->min || (int64_t)strlen(text) > option->max))
        return samkv_fail(err, SAMKV_INVALID, "%s: %zu bytes are too many or too few; give %lld to %lld", label,
                          strlen(text), (long long)option->min, (long long)option->max);
    return SAMKV_OK;
}

static enum samkv_status set_text(const char *text, char **field, struct samkv_error *err)
{
    char *copy = strdup(text);
    if (!copy)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory while reading options");
    free(*field);
    *field = copy;
    return SAMKV_OK;
}

static enum samkv_status add_item(const char *text, const char *label, struct samkv_list *list, struct samkv_error *err)
{
    if (list->count == SAMKV_MAX_LIST)
        return samkv_fail(err, SAMKV_INVALID, "%s: more than %d of them", label, SAMKV_MAX_LIST);
    list->items[list->count] = NULL;
    enum samkv_status st = set_text(text, &list->items[list->count], err);
    list->count += st == SAMKV_OK;
    return st;
}

/* One value from one source. It is checked also when a better source has spoken: a wrong file is wrong in any case. */
static enum samkv_status set(struct samkv_options *o, const struct samkv_option *option, enum source source,
                             const char *text, const char *label, struct samkv_error *err)
{
    uint8_t *current = &o->source[option - o->table];
    bool wins = source >= *current;
    int64_t number = 0;
    int choice = 0;
    enum samkv_status st = SAMKV_OK;
    switch (option->kind) {
    case SAMKV_OPTION_FLAG:
        if (wins)
            *FIELD(o, option, bool) = true;
        break;
    case SAMKV_OPTION_INTEGER:
    case SAMKV_OPTION_BYTES:
        st = set_integer(option, text, label, &number, err);
        if (st == SAMKV_OK && wins)
            *FIELD(o, option, int64_t) = number;
        break;
    case SAMKV_OPTION_CHOICE:
        st = set_choice(option, text, label, &choice, err);
        if (st == SAMKV_OK && wins)
            *FIELD(o, option, int) = choice;
        break;
    case SAMKV_OPTION_TEXT:
        st = check_text(option, text, label, err);
        if (st == SAMKV_OK && wins)
            st = set_text(text, FIELD(o, option, char *), err);
        break;
    case SAMKV_OPTION_LIST:
        st = check_text(option, text, label, err);
        if (st == SAMKV_OK && source > *current)
            list_clear(FIELD(o, option, struct samkv_list));
        if (st == SAMKV_OK && wins)
            st = add_item(text, label, FIELD(o, option, struct samkv_list), err);
        break;
    }
    if (st == SAMKV_OK && wins)
        *current = (uint8_t)source;
    return st;
}

/* ------------------------------------------------------------------ names */

static const struct samkv_option *find(const struct samkv_options *o, const char *name, size_t bytes)
{
    for (size_t i = 0; i < o->count; i++)
        if (strlen(o->table[i].name) == bytes && memcmp(o->table[i].name, name, bytes) == 0)
            return &o->table[i];
    return NULL;
}

/* Edits (insert, delete, replace) that turn a into b; names longer than 31 bytes are cut. */
static int edit_distance(const char *a, size_t a_bytes, const char *b)
{
    int row[32];
    int b_bytes = (int)(strlen(b) < 31 ? strlen(b) : 31);
    for (int j = 0; j <= b_bytes; j++)
        row[j] = j;
    for (size_t i = 0; i < a_bytes && i < 31; i++) {
        int diagonal = row[0];
        row[0] = (int)i + 1;
        for (int j = 1; j <= b_bytes; j++) {
            int replace = diagonal + (a[i] != b[j - 1]);
            int other = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            diagonal = row[j];
            row[j] = replace < other ? replace : other;
        }
    }
    return row[b_bytes];
}

static const char *nearest(const struct samkv_options *o, const char *name, size_t bytes)
{
    const char *best = o->table[0].name;
    int best_distance = 1000;
    for (size_t i = 0; i < o->count; i++) {
        int d = edit_distance(name, bytes, o->table[i].name);
        if (d < best_distance) {
            best_distance = d;
            best = o->table[i].name;
        }
    }
    return best;
}

/* ------------------------------------------------------------------ sources */

static enum samkv_status argument(struct samkv_options *o, int argc, char *const *argv, int *i, struct samkv_error *err)
{
    const char *arg = argv[*i];
    if (strncmp(arg, "--", 2) != 0 || !arg[2])
        return samkv_fail(err, SAMKV_INVALID, "'%.100s' is not an option; see --help", arg);
    size_t bytes = strcspn(arg + 2, "=");
    const char *value = arg[2 + bytes] ? arg + 2 + bytes + 1 : NULL;
    const struct samkv_option *option = find(o, arg + 2, bytes);
    if (!option)
        return samkv_fail(err, SAMKV_INVALID, "unknown option '--%.*s'; did you mean --%s?",
                          (int)(bytes < 100 ? bytes : 100), arg + 2, nearest(o, arg + 2, bytes));
    bool flag = option->kind == SAMKV_OPTION_FLAG;
    if (flag && value)
        return samkv_fail(err, SAMKV_INVALID, "--%s takes no value", option->name);
    if (!flag && !value && ++*i < argc)
        value = argv[*i];
    if (!flag && !value)
        return samkv_fail(err, SAMKV_INVALID, "--%s needs a value: --%s %s", option->name, option->name,
                          option->argument);
    char label[64];
    snprintf(label, sizeof label, "--%s", option->name);
    return set(o, option, SOURCE_ARGUMENTS, flag ? "" : value, label, err);
}

enum samkv_status samkv_options_arguments(struct samkv_options *o, int argc, char *const *argv, struct samkv_error *err)
{
    enum samkv_status st = SAMKV_OK;
    for (int i = 1; i < argc && st == SAMKV_OK; i++)
        st = argument(o, argc, argv, &i, err);
    return st;
}

enum samkv_status samkv_options_environment(struct samkv_options *o, char *(*lookup)(const char *name),
                                            struct samkv_error *err)
{
    enum samkv_status st = SAMKV_OK;
    for (size_t i = 0; i < o->count && st == SAMKV_OK; i++) {
        const char *value = o->table[i].env ? lookup(o->table[i].env) : NULL;
        if (value && *value)
            st = set(o, &o->table[i], SOURCE_ENVIRONMENT, value, o->table[i].env, err);
    }
    return st;
}

enum samkv_status samkv_options_defaults(struct samkv_options *o, struct samkv_error *err)
{
    enum samkv_status st = SAMKV_OK;
    for (size_t i = 0; i < o->count && st == SAMKV_OK; i++)
        if (o->table[i].default_text)
            st = set(o, &o->table[i], SOURCE_DEFAULT, o->table[i].default_text, o->table[i].name, err);
    return st;
}

struct ini_reading {
    struct samkv_options *options;
    const char *path, *section;
    FILE *file;
    int line;
    enum samkv_status status; /* of the first failure */
    struct samkv_error *err;
    void (*report)(void *arg, const char *text); /* NULL: the first failure ends the reading */
    void *report_arg;
    int reported;
};

/* False: stop here. */
static bool go_on(struct ini_reading *r)
{
    if (r->status != SAMKV_INVALID || !r->report)
        return r->status == SAMKV_OK;
    r->report(r->report_arg, r->err->text);
    r->reported++;
    r->status = SAMKV_OK;
    return true;
}

/*
 * Refuses what would not fit libinih's line buffer: it would take the rest for a line of its own. Drops what stands
 * before the first word: libinih would take an indented option for more of the value above it.
 */
static char *read_line(char *out, int size, void *arg)
{
    struct ini_reading *r = arg;
    if (r->status != SAMKV_OK || !fgets(out, size, r->file))
        return NULL;
    r->line++;
    if (!strchr(out, '\n') && !feof(r->file)) {
        r->status =
            samkv_fail(r->err, SAMKV_INVALID, "%s:%d: line is longer than %d bytes", r->path, r->line, size - 2);
        return NULL;
    }
    size_t blank = strspn(out, " \t\v\f\r");
    memmove(out, out + blank, strlen(out + blank) + 1);
    return out;
}

static int on_pair(void *arg, const char *section, const char *key, const char *value)
{
    struct ini_reading *r = arg;
    struct samkv_options *o = r->options;
    char label[400], item[INI_MAX_LINE * 2];
    snprintf(label, sizeof label, "%.200s:%d: %.100s", r->path, r->line, key);
    for (size_t i = 0; i < o->count; i++) {
        const struct samkv_option *option = &o->table[i];
        if (!option->section || strcmp(option->section, section) != 0)
            continue;
        snprintf(item, sizeof item, "%s=%s", key, value);
        r->status =
            *key ? set(o, option, SOURCE_FILE, item, label, r->err)
                 : samkv_fail(r->err, SAMKV_INVALID, "%s:%d: no name stands before '%.100s'", r->path, r->line, value);
        return go_on(r);
    }
    const struct samkv_option *option = find(o, key, strlen(key));
    if (*section && strcmp(section, r->section) != 0)
        r->status = samkv_fail(r->err, SAMKV_INVALID, "%s:%d: unknown section [%.50s]; options stand in [%s]", r->path,
                               r->line, section, r->section);
    else if (!option || option->kind == SAMKV_OPTION_FLAG)
        r->status = samkv_fail(r->err, SAMKV_INVALID, "%s:%d: unknown option '%.100s'; did you mean %s?", r->path,
                               r->line, key, nearest(o, key, strlen(key)));
    else
        r->status = set(o, option, SOURCE_FILE, value, label, r->err);
    return go_on(r);
}

static enum samkv_status read_file(struct ini_reading *r, struct samkv_error *err)
{
    struct samkv_error own;
    r->err = err ? err : &own;
    r->file = fopen(r->path, "re");
    if (!r->file)
        return samkv_fail_errno(err, errno, "cannot read the configuration file %s", r->path);
    int line = ini_parse_stream(read_line, r, on_pair, r);
    fclose(r->file);
    if (r->status != SAMKV_OK)
        return r->status;
    if (line > 0)
        r->status =
            samkv_fail(r->err, SAMKV_INVALID, "%s:%d: not of the form 'option = value' or '[section]'", r->path, line);
    else if (line < 0)
        r->status = samkv_fail(r->err, SAMKV_IO, "cannot read the configuration file %s", r->path);
    if (!go_on(r))
        return r->status;
    return r->reported ? samkv_fail(err, SAMKV_INVALID, "%s: %d mistake%s; mend them and try again", r->path,
                                    r->reported, r->reported == 1 ? "" : "s")
                       : SAMKV_OK;
}

enum samkv_status samkv_options_file(struct samkv_options *o, const char *path, const char *section,
                                     struct samkv_error *err)
{
    struct ini_reading reading = {.options = o, .path = path, .section = section};
    return read_file(&reading, err);
}

enum samkv_status samkv_options_file_check(struct samkv_options *o, const char *path, const char *section,
                                           void (*report)(void *arg, const char *text), void *arg,
                                           struct samkv_error *err)
{
    struct ini_reading reading = {.options = o, .path = path, .section = section, .report = report, .report_arg = arg};
    return read_file(&reading, err);
}

/* Behind the equals sign. A value that begins with ';' stands right at it: behind a space it would be a comment. */
static void dump_text(const char *value, FILE *out)
{
    fprintf(out, "%s%s", *value == ';' ? "" : " ", value);
}

static void dump_value(const struct samkv_options *o, const struct samkv_option *option, FILE *out)
{
    switch (option->kind) {
    case SAMKV_OPTION_INTEGER:
    case SAMKV_OPTION_BYTES:
        fprintf(out, " %lld", (long long)*FIELD(o, option, int64_t));
        break;
    case SAMKV_OPTION_CHOICE:
        dump_text(option->choices[*FIELD(o, option, int)], out);
        break;
    case SAMKV_OPTION_TEXT:
        dump_text(*FIELD(o, option, char *), out);
        break;
    case SAMKV_OPTION_LIST:
    case SAMKV_OPTION_FLAG:
        break;
    }
}

/* Whether a line of a file can give this name: a colon ends it there, and some begin something else. */
static bool can_stand_in_file(const char *name, size_t bytes)
{
    return bytes > 0 && !memchr(name, ':', bytes) && !strchr("[;#", *name);
}

/* A list item "key=value" as the line that gives it; without a key, its place in the list is one. */
static void dump_list(const struct samkv_list *list, FILE *out)
{
    for (size_t i = 0; i < list->count; i++) {
        const char *item = list->items[i], *equals = strchr(item, '=');
        if (equals && equals > item && !can_stand_in_file(item, (size_t)(equals - item))) {
            fprintf(out, "; (only on the command line, for its name) %s\n", item);
        } else if (equals && equals > item) {
            fprintf(out, "%.*s =", (int)(equals - item), item);
            dump_text(equals + 1, out);
            fputc('\n', out);
        } else {
            fprintf(out, "; (no name) %s\n", item);
        }
    }
}

void samkv_options_dump(const struct samkv_options *o, const char *section, FILE *out)
{
    static const char *const sources[] = {
        [SOURCE_NONE] = "where it stands by itself", [SOURCE_DEFAULT] = "default",        [SOURCE_FILE] = "file",
        [SOURCE_ENVIRONMENT] = "environment",        [SOURCE_ARGUMENTS] = "command line",
    };
    fprintf(out, "[%s]\n", section);
    for (size_t i = 0; i < o->count; i++) {
        const struct samkv_option *option = &o->table[i];
        if (option->kind == SAMKV_OPTION_FLAG || option->kind == SAMKV_OPTION_LIST ||
            (option->kind == SAMKV_OPTION_TEXT && !*FIELD(o, option, char *)))
            continue;
        fprintf(out, "; from: %s%s\n%s =", sources[o->source[i]], option->reloads ? "; a reload takes a new value" : "",
                option->name);
        dump_value(o, option, out);
        fputc('\n', out);
    }
    for (size_t i = 0; i < o->count; i++) {
        const struct samkv_option *option = &o->table[i];
        const struct samkv_list *list = FIELD(o, option, struct samkv_list);
        if (option->kind != SAMKV_OPTION_LIST || !option->section || !list->count)
            continue;
        fprintf(out, "\n[%s]\n", option->section);
        dump_list(list, out);
    }
}

void samkv_options_help(const struct samkv_option *table, size_t count, FILE *out)
{
    for (size_t i = 0; i < count; i++) {
        char left[64];
        snprintf(left, sizeof left, "--%s%s%s", table[i].name, table[i].argument ? " " : "",
                 table[i].argument ? table[i].argument : "");
        fprintf(out, "  %-26s %s", left, table[i].help);
        if (table[i].default_text)
            fprintf(out, " (default %s)", table[i].default_text);
        if (table[i].env)
            fprintf(out, " [%s]", table[i].env);
        fputc('\n', out);
    }
}

/* Text as roff takes it, with hyphens that can be copied. */
static void put_roff(const char *text, FILE *out)
{
    for (; *text; text++)
        if (*text == '-')
            fputs("\\-", out);
        else if (*text == '\\')
            fputs("\\e", out);
        else
            fputc(*text, out);
}

void samkv_options_roff(const struct samkv_option *table, size_t count, bool of_file, FILE *out)
{
    for (size_t i = 0; i < count; i++) {
        const struct samkv_option *o = &table[i];
        if (of_file && (o->kind == SAMKV_OPTION_FLAG || o->kind == SAMKV_OPTION_LIST))
            continue;
        fprintf(out, ".TP\n\\fB%s", of_file ? "" : "\\-\\-");
        put_roff(o->name, out);
        fputs("\\fR", out);
        if (o->argument)
            fprintf(out, "%s\\fI%s\\fR", of_file ? " = " : " ", o->argument);
        fputc('\n', out);
        put_roff(o->help, out);
        fputs(".\n", out);
        if (o->default_text)
            fprintf(out, "Default: %s.\n", o->default_text);
        if (o->env && !of_file)
            fprintf(out, "Environment: \\fB%s\\fR.\n", o->env);
        if (o->reloads)
            fputs("A reload takes a new value from the file.\n", out);
    }
}
