#pragma once
/*
 * samkvctl: what its commands share. main finds the command in a table, reads its options from tables into its own
 * arguments and runs it; a command then connects, works and prints.
 *   stdout  results: text for people on a terminal, tab-separated lines elsewhere, one JSON object with --json
 *   stderr  errors ("samkvctl: …", one line that says what to do), notes, progress
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "samkv/samkv.h"

enum ctl_exit { CTL_DONE = 0, CTL_FAILED = 1, CTL_USAGE = 2, CTL_NO_DAEMON = 3 };

/* ------------------------------------------------------------------ options */

enum ctl_kind {
    CTL_FLAG,    /* bool */
    CTL_TEXT,    /* const char * into argv */
    CTL_INTEGER, /* int64_t within [min, max] */
    CTL_REAL,    /* double within [min, max] */
    CTL_CHOICE,  /* int: place in choices */
    CTL_TEXTS,   /* struct ctl_texts: repeated or separated by commas */
    CTL_NUMBERS, /* struct ctl_numbers: likewise; uint32 */
    CTL_TOKENS,  /* struct ctl_tokens: likewise; int32 */
    CTL_CUSTOM,  /* whatever apply makes of it */
};

/* One row of a command's table. Tables end with a row without a name. */
struct ctl_option {
    const char *name;  /* without the dashes */
    const char *value; /* its name in the help; NULL for flags */
    enum ctl_kind kind;
    size_t offset; /* in the command's arguments */
    const char *help;
    double min, max;
    const char *const *choices; /* ends with NULL */
    /* INVALID with a reason that goes behind "--name value: ". args: the command's arguments. */
    enum samkv_status (*apply)(void *args, const char *value, struct samkv_error *);
};

/* Lists are heap memory, freed by ctl_options_free. */
struct ctl_texts {
    char **items;
    size_t count;
};
struct ctl_numbers {
    uint32_t *items;
    size_t count;
};
struct ctl_tokens {
    int32_t *ids;
    size_t count;
    bool given;
};

/* The beginning of every command's arguments. */
struct ctl_common {
    const char *socket;
    double timeout_s; /* 0: none */
    bool json, help;
};

struct ctl;

struct ctl_command {
    const char *name;
    const char *arguments; /* for the usage line */
    const char *summary;
    const char *details; /* or NULL */
    const struct ctl_option *options[4];
    size_t args_bytes;
    void (*defaults)(void *args); /* or NULL: all zero */
    int min_words, max_words;     /* -1: any number */
    int (*run)(struct ctl *);     /* an enum ctl_exit */
};

/* One run of one command. */
struct ctl {
    const struct ctl_command *command;
    void *args; /* the command's own, beginning with struct ctl_common */
    const struct ctl_common *common;
    char **words; /* what is no option */
    int word_count;
    struct samkv_client *client;
};

extern const struct ctl_option ctl_common_options[];

/*
 * Reads options into args and moves the other words to the front of argv; "--" ends options. stop_at_word: leaves
 * everything from the first word on alone. Returns the number of words, or -1 after saying what is wrong. hint: where
 * to read more.
 */
int ctl_options_parse(const struct ctl_option *const *tables, int argc, char **argv, bool stop_at_word, void *args,
                      const char *hint);
void ctl_options_free(const struct ctl_option *const *tables, void *args);

/* The name nearest to word that is near enough to be meant; NULL when none is. next gives the i-th name, NULL at the
 * end. */
const char *ctl_nearest(const char *word, const char *(*next)(const void *of, size_t i), const void *of);

/* Strict: all of the text is the number. INVALID with a reason. Infinity and NaN are no numbers. */
enum samkv_status ctl_parse_integer(const char *text, int64_t min, int64_t max, int64_t *out,
                                    struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status ctl_parse_real(const char *text, double min, double max, double *out,
                                 struct samkv_error *) SAMKV_MUST_USE;

/* "10G" (K, M, G, T: powers of 1024), "7d" (s, m, h, d, w); plain numbers are bytes and seconds. "none" is 0. */
enum samkv_status ctl_parse_bytes(const char *text, int64_t *out, struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status ctl_parse_duration(const char *text, int64_t *out, struct samkv_error *) SAMKV_MUST_USE;
/* Who may use a collection, octal like 0640. */
enum samkv_status ctl_parse_mode(const char *value, int64_t *out, struct samkv_error *) SAMKV_MUST_USE;

/* ------------------------------------------------------------------ commands */

extern const struct ctl_command ctl_command_ingest, ctl_command_fetch, ctl_command_ask, ctl_command_ls,
    ctl_command_show, ctl_command_rm, ctl_command_status, ctl_command_ping, ctl_command_verify, ctl_command_export,
    ctl_command_import, ctl_command_pin, ctl_command_unpin, ctl_command_set, ctl_command_gc, ctl_command_compact,
    ctl_command_trace, ctl_command_top, ctl_command_eval, ctl_command_calibrate;

/* ctl->client; CTL_DONE, or what to exit with after saying why. */
int ctl_connect(struct ctl *);

/* "samkvctl: …" on stderr. */
void ctl_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Says what went wrong and returns what to exit with. */
int ctl_fail(const struct samkv_error *);
