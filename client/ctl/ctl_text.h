#pragma once
/* How samkvctl writes: numbers with units, text that cannot harm a terminal, tables, JSON. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <jansson.h>

#include "samkv/samkv.h"

/* Makes the C library read UTF-8, whatever the locale; remembers nothing. Call once, first. */
void ctl_text_init(void);

bool ctl_is_terminal(FILE *);
/* Columns of the terminal behind it; 80 when it does not say. */
int ctl_terminal_columns(FILE *);

/* Lines likewise; 24 when it does not say. */
int ctl_terminal_rows(FILE *);

/* Room for any of the next ones. */
struct ctl_buffer {
    char text[32];
};
/* "999 B", "3.1 MB": decimal units. */
const char *ctl_bytes(struct ctl_buffer *, uint64_t bytes);
/* "1,234,567" */
const char *ctl_count(struct ctl_buffer *, uint64_t);
/* "0.8 ms", "210 ms", "3.2 s", "4:05", "2:04:05" */
const char *ctl_duration(struct ctl_buffer *, double seconds);
/* "15.2 %" */
const char *ctl_percent(struct ctl_buffer *, double part, double whole);
/* "2026-09-01 12:00", local time */
const char *ctl_time(struct ctl_buffer *, int64_t unix_s);

/* Columns that UTF-8 text takes. */
int ctl_width(const char *text);

/*
 * Text of others: control characters and what is not UTF-8 become "?" (newlines and tabs stay when multiline). At most
 * `columns` columns (-1: all), the last one "…" when it is cut. Returns the columns written.
 */
int ctl_put(FILE *, const char *text, size_t bytes, int columns, bool multiline);

/* A time to live as options take it: "7d", "12h", "90s". */
const char *ctl_span(struct ctl_buffer *, uint64_t seconds);

/* ------------------------------------------------------------------ tables */

#define CTL_MAX_COLUMNS 12

/* On a terminal aligned columns under a header, elsewhere tab-separated lines without one. */
struct ctl_table {
    int columns;
    const char *names[CTL_MAX_COLUMNS];
    bool right[CTL_MAX_COLUMNS]; /* numbers */
    char **cells;                /* heap */
    size_t cell_count, cell_capacity;
};
/* One row; the texts are copied. False without memory. */
bool ctl_table_add(struct ctl_table *, const char *const *cells);
void ctl_table_print(const struct ctl_table *, FILE *);
void ctl_table_free(struct ctl_table *);

/* ------------------------------------------------------------------ JSON */

/* Never NULL because of what the text or number is: bytes that are not UTF-8 become "?", NaN null. */
json_t *ctl_json_text(const char *);
json_t *ctl_json_real(double);
json_t *ctl_json_documents(const struct samkv_document_info *, size_t count);
/* What became of a request: as `trace` prints it. */
json_t *ctl_json_traced(const struct samkv_traced_request *);
json_t *ctl_json_collection(const struct samkv_collection_info *);
/* Adds what a fetch did, under the names of the manual. */
void ctl_json_figures(json_t *object, const struct samkv_figures *);

/* Prints the object and frees it. Returns an enum ctl_exit. */
int ctl_json_print(json_t *object);
