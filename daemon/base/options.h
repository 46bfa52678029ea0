#pragma once
/*
 * Options from a table: one row says an option's name, its bounds, its default and where it goes. Values come from the
 * command line, the environment, an INI file (libinih) and the row's default; the first of these that names an option
 * wins, in whatever order the sources are read. A list is taken whole from the first source that has it.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "proto/status.h"

#define SAMKV_MAX_OPTIONS 64
#define SAMKV_MAX_LIST    64

struct samkv_list {
    char *items[SAMKV_MAX_LIST]; /* heap, owned by the settings */
    size_t count;
};

enum samkv_option_kind {
    SAMKV_OPTION_FLAG,    /* bool; no argument */
    SAMKV_OPTION_TEXT,    /* char *, heap; not empty; min and max bound its bytes when max > 0 */
    SAMKV_OPTION_INTEGER, /* int64_t in [min, max] */
    SAMKV_OPTION_BYTES,   /* int64_t in [min, max]; K, M, G, T (powers of 1024) may follow the number */
    SAMKV_OPTION_CHOICE,  /* int: the place in choices */
    SAMKV_OPTION_LIST,    /* struct samkv_list; each mention adds one */
};

struct samkv_option {
    const char *name;     /* --name on the command line, name in the file */
    const char *env;      /* environment variable, or NULL */
    const char *argument; /* what --help calls the value, NULL for a flag */
    const char *help;
    enum samkv_option_kind kind;
    size_t offset; /* of the field in the settings struct */
    int64_t min, max;
    const char *const *choices; /* NULL-terminated */
    const char *default_text;   /* parsed like any other value; NULL: the field stays zero */
    const char *section;        /* of the file, whose every "key = value" becomes a list item "key=value"; or NULL */
    bool reloads;               /* a running daemon takes a new value from the file */
};

/* State of one reading. settings must be zeroed and outlives it. */
struct samkv_options {
    const struct samkv_option *table;
    size_t count;
    void *settings;
    uint8_t source[SAMKV_MAX_OPTIONS]; /* which source a field's value is from */
};

void samkv_options_init(struct samkv_options *, const struct samkv_option *table, size_t count, void *settings);

/* argv[1..]: "--name value" or "--name=value". INVALID for what is not in the table, with the nearest name as a
 * suggestion. */
enum samkv_status samkv_options_arguments(struct samkv_options *, int argc, char *const *argv,
                                          struct samkv_error *) SAMKV_MUST_USE;
/* lookup: getenv, or a test's own. */
enum samkv_status samkv_options_environment(struct samkv_options *, char *(*lookup)(const char *name),
                                            struct samkv_error *) SAMKV_MUST_USE;
/* Keys stand in the section `section` or before any; errors name file and line. */
enum samkv_status samkv_options_file(struct samkv_options *, const char *path, const char *section,
                                     struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_options_defaults(struct samkv_options *, struct samkv_error *) SAMKV_MUST_USE;

/* The same, but goes on behind what is wrong and gives every mistake's text to `report`. INVALID when there was one. */
enum samkv_status samkv_options_file_check(struct samkv_options *, const char *path, const char *section,
                                           void (*report)(void *arg, const char *text), void *arg,
                                           struct samkv_error *) SAMKV_MUST_USE;

/* All values as a file that would give them, each with where it is from. Flags and rows without a value are left out.
 */
void samkv_options_dump(const struct samkv_options *, const char *section, FILE *out);

void samkv_options_help(const struct samkv_option *table, size_t count, FILE *out);

/* The rows as items of a man page: --name VALUE for samkvd(8), or name = VALUE for samkvd.conf(5), without flags. */
void samkv_options_roff(const struct samkv_option *table, size_t count, bool of_file, FILE *out);

/* A size as options have it: bytes, or a number with K, M, G or T. False: it is none. */
bool samkv_options_parse_bytes(const char *text, int64_t *out);

/* Frees texts and list items of the settings. */
void samkv_options_deinit(struct samkv_options *);
