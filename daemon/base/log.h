#pragma once
/*
 * One line an event: plain words and key=value fields, then perhaps ": " and a text. A value with spaces stands in
 * double quotes. Where it goes: to the journal by its own protocol, with the fields as fields (req=17 is SAMKV_REQ=17),
 * when stderr is the journal's; to stderr with the journal's <N> prefix when that cannot be reached; else to stderr as
 * "time level text". A place that says too much is cut short, and how much it did not say is told. Any thread.
 */
#include <stdbool.h>

enum samkv_log_level { SAMKV_LOG_ERROR, SAMKV_LOG_WARNING, SAMKV_LOG_INFO, SAMKV_LOG_DEBUG };

void samkv_log_set_level(enum samkv_log_level);

/* "error", "warning", "info", "debug" → level; -1 for another word. */
int samkv_log_level_parse(const char *name);

void samkv_log(enum samkv_log_level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Tells of what was suppressed. About once a second. */
void samkv_log_tick(void);

/* From here on to the journal that listens at this path. False when none does; then all stays as it was. */
bool samkv_log_to_journal(const char *path);

/* The same with the system's journal, if stderr is its. Once, before there are threads. */
void samkv_log_find_journal(void);
