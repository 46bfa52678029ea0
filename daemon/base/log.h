#pragma once
/*
 * One line an event on stderr (the journal's <N> prefix when stderr is the journal, else "time level text").
 * Text is made of plain words and key=value fields. Any thread.
 */
enum samkv_log_level { SAMKV_LOG_ERROR, SAMKV_LOG_WARNING, SAMKV_LOG_INFO, SAMKV_LOG_DEBUG };

void samkv_log_set_level(enum samkv_log_level);

/* "error", "warning", "info", "debug" → level; -1 for another word. */
int samkv_log_level_parse(const char *name);

void samkv_log(enum samkv_log_level, const char *format, ...) __attribute__((format(printf, 2, 3)));
