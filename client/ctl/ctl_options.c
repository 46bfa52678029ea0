#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/ctl.h"

/* ------------------------------------------------------------------ numbers */

enum samkv_status ctl_parse_integer(const char *text, int64_t min, int64_t max, int64_t *out, struct samkv_error *err)
{
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    /* strtoll would also take leading space. */
    bool is_number = end != text && !*end && (*text == '-' || *text == '+' || (*text >= '0' && *text <= '9'));
    if (!is_number)
        return samkv_fail(err, SAMKV_INVALID, "this is not a whole number");
    if (errno == ERANGE || value < min || value > max)
        return samkv_fail(err, SAMKV_INVALID, "must be from %lld to %lld", (long long)min, (long long)max);
    *out = value;
    return SAMKV_OK;
}

enum samkv_status ctl_parse_real(const char *text, double min, double max, double *out, struct samkv_error *err)
{
    char *end;
    double value = strtod(text, &end);
    /* Digits only: strtod would also take "nan", "inf", "0x1p3" and leading space. */
    if (end == text || *end || strspn(text, "+-.0123456789eE") != strlen(text))
        return samkv_fail(err, SAMKV_INVALID, "this is not a number");
    if (!isfinite(value) || value < min || value > max)
        return samkv_fail(err, SAMKV_INVALID, "must be from %g to %g", min, max);
    *out = value;
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ lists */

static void *grow(void *items, size_t count, size_t bytes)
{
    /* Doubling at powers of two keeps no capacity beside the count. */
    return count & (count - 1) ? items : realloc(items, (count ? 2 * count : 1) * bytes);
}

static enum samkv_status no_memory(struct samkv_error *err)
{
    return samkv_fail(err, SAMKV_NO_MEMORY, "no memory");
}

static enum samkv_status push_text(void *list, const char *item, struct samkv_error *err)
{
    struct ctl_texts *texts = list;
    if (!*item)
        return samkv_fail(err, SAMKV_INVALID, "one of the names is empty");
    char **items = grow(texts->items, texts->count, sizeof *items);
    if (!items)
        return no_memory(err);
    texts->items = items;
    texts->items[texts->count] = strdup(item);
    return texts->items[texts->count++] ? SAMKV_OK : no_memory(err);
}

static enum samkv_status push_number(void *list, const char *item, struct samkv_error *err)
{
    struct ctl_numbers *numbers = list;
    int64_t value = 0;
    enum samkv_status status = ctl_parse_integer(item, 0, UINT32_MAX, &value, err);
    if (status)
        return status;
    uint32_t *items = grow(numbers->items, numbers->count, sizeof *items);
    if (!items)
        return no_memory(err);
    numbers->items = items;
    numbers->items[numbers->count++] = (uint32_t)value;
    return SAMKV_OK;
}

static enum samkv_status push_token(void *list, const char *item, struct samkv_error *err)
{
    struct ctl_tokens *tokens = list;
    int64_t value = 0;
    enum samkv_status status = ctl_parse_integer(item, INT32_MIN, INT32_MAX, &value, err);
    if (status)
        return status;
    int32_t *ids = grow(tokens->ids, tokens->count, sizeof *ids);
    if (!ids)
        return no_memory(err);
    tokens->ids = ids;
    tokens->ids[tokens->count++] = (int32_t)value;
    return SAMKV_OK;
}

static enum samkv_status push_each(void *list, const char *value,
                                   enum samkv_status (*push)(void *, const char *, struct samkv_error *),
                                   struct samkv_error *err)
{
    char *copy = strdup(value), *rest = copy;
    if (!copy)
        return no_memory(err);
    enum samkv_status status = SAMKV_OK;
    for (char *item; !status && (item = strsep(&rest, ","));)
        status = push(list, item, err);
    free(copy);
    return status;
}

/* ------------------------------------------------------------------ one option */

static enum samkv_status apply_choice(const struct ctl_option *option, const char *value, int *out,
                                      struct samkv_error *err)
{
    char known[128] = "";
    for (int i = 0; option->choices[i]; i++) {
        if (!strcmp(option->choices[i], value)) {
            *out = i;
            return SAMKV_OK;
        }
        size_t n = strlen(known);
        snprintf(known + n, sizeof known - n, "%s%s", i ? ", " : "", option->choices[i]);
    }
    return samkv_fail(err, SAMKV_INVALID, "must be one of %s", known);
}

static enum samkv_status apply(const struct ctl_option *option, const char *value, void *args, struct samkv_error *err)
{
    void *at = (char *)args + option->offset;
    switch (option->kind) {
    case CTL_FLAG:
        *(bool *)at = true;
        return SAMKV_OK;
    case CTL_TEXT:
        *(const char **)at = value;
        return SAMKV_OK;
    case CTL_INTEGER:
        return ctl_parse_integer(value, (int64_t)option->min, (int64_t)option->max, at, err);
    case CTL_REAL:
        return ctl_parse_real(value, option->min, option->max, at, err);
    case CTL_CHOICE:
        return apply_choice(option, value, at, err);
    case CTL_TEXTS:
        return push_each(at, value, push_text, err);
    case CTL_NUMBERS:
        return push_each(at, value, push_number, err);
    case CTL_TOKENS:
        ((struct ctl_tokens *)at)->given = true;
        return *value ? push_each(at, value, push_token, err) : SAMKV_OK;
    case CTL_CUSTOM:
        return option->apply(args, value, err);
    }
    return samkv_fail(err, SAMKV_INTERNAL, "this option is broken");
}

void ctl_options_free(const struct ctl_option *const *tables, void *args)
{
    for (; *tables; tables++)
        for (const struct ctl_option *option = *tables; option->name; option++) {
            void *at = (char *)args + option->offset;
            if (option->kind == CTL_TEXTS) {
                struct ctl_texts *texts = at;
                while (texts->count)
                    free(texts->items[--texts->count]);
                free(texts->items);
                texts->items = NULL;
            } else if (option->kind == CTL_NUMBERS) {
                free(((struct ctl_numbers *)at)->items);
                *(struct ctl_numbers *)at = (struct ctl_numbers){0};
            } else if (option->kind == CTL_TOKENS) {
                free(((struct ctl_tokens *)at)->ids);
                *(struct ctl_tokens *)at = (struct ctl_tokens){0};
            }
        }
}

/* ------------------------------------------------------------------ suggestions */

/* Levenshtein distance, capped: names are short. */
static size_t distance(const char *a, const char *b)
{
    size_t row[64], n = strlen(b);
    if (n >= sizeof row / sizeof *row)
        return SIZE_MAX;
    for (size_t j = 0; j <= n; j++)
        row[j] = j;
    for (size_t i = 0; a[i]; i++) {
        size_t diagonal = row[0];
        row[0] = i + 1;
        for (size_t j = 0; j < n; j++) {
            size_t best = diagonal + (a[i] != b[j]);
            diagonal = row[j + 1];
            best = best < row[j] + 1 ? best : row[j] + 1;
            row[j + 1] = best < diagonal + 1 ? best : diagonal + 1;
        }
    }
    return row[n];
}

const char *ctl_nearest(const char *word, const char *(*next)(const void *of, size_t i), const void *of)
{
    const char *best = NULL, *name;
    size_t least = strlen(word) / 3 + 2;
    for (size_t i = 0; (name = next(of, i)); i++) {
        /* A beginning of the name is meant more often than its distance says. */
        size_t d = strlen(word) >= 2 && !strncmp(name, word, strlen(word)) ? 0 : distance(word, name);
        if (d < least) {
            least = d;
            best = name;
        }
    }
    return best;
}

static const char *option_name(const void *of, size_t i)
{
    for (const struct ctl_option *const *tables = of; *tables; tables++)
        for (const struct ctl_option *option = *tables; option->name; option++)
            if (!i--)
                return option->name;
    return NULL;
}

/* ------------------------------------------------------------------ the command line */

static const struct ctl_option *find(const struct ctl_option *const *tables, const char *name, size_t length)
{
    for (; *tables; tables++)
        for (const struct ctl_option *option = *tables; option->name; option++)
            if (strlen(option->name) == length && !memcmp(option->name, name, length))
                return option;
    return NULL;
}

static void unknown(const struct ctl_option *const *tables, const char *name, size_t length, const char *hint)
{
    char copy[64];
    snprintf(copy, sizeof copy, "%.*s", (int)(length < 60 ? length : 60), name);
    const char *near = ctl_nearest(copy, option_name, tables);
    if (near)
        ctl_error("unknown option --%s: did you mean --%s?", copy, near);
    else
        ctl_error("unknown option --%s: see %s", copy, hint);
}

/* argv[0] is an option; returns how many words it took, 0 after saying what is wrong. */
static int take_option(const struct ctl_option *const *tables, int argc, char **argv, void *args, const char *hint)
{
    if (!strcmp(argv[0], "-h"))
        argv[0] = "--help";
    const char *name = argv[0] + (argv[0][1] == '-' ? 2 : 1), *value = strchr(name, '=');
    size_t length = value ? (size_t)(value - name) : strlen(name);
    const struct ctl_option *option = find(tables, name, length);
    if (!option) {
        unknown(tables, name, length, hint);
        return 0;
    }
    int used = 1;
    if (value)
        value++;
    else if (option->kind != CTL_FLAG && argc > 1)
        value = argv[used++];
    if (!value != (option->kind == CTL_FLAG)) {
        ctl_error(value ? "--%s takes no value: see %s" : "--%s needs a value: see %s", option->name, hint);
        return 0;
    }
    struct samkv_error err;
    if (apply(option, value, args, &err)) {
        ctl_error("--%s %.60s: %s", option->name, value ? value : "", err.text);
        return 0;
    }
    return used;
}

int ctl_options_parse(const struct ctl_option *const *tables, int argc, char **argv, bool stop_at_word, void *args,
                      const char *hint)
{
    int words = 0;
    for (int i = 0; i < argc;) {
        bool is_option = argv[i][0] == '-' && argv[i][1];
        if (!is_option && stop_at_word)
            return argc - i;
        if (is_option && !strcmp(argv[i], "--")) {
            for (i++; i < argc; i++)
                argv[words++] = argv[i];
            break;
        }
        if (!is_option) {
            argv[words++] = argv[i++];
            continue;
        }
        int used = take_option(tables, argc - i, argv + i, args, hint);
        if (!used)
            return -1;
        i += used;
    }
    return stop_at_word ? 0 : words;
}
