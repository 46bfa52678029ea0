#pragma once
/*
 * A team: threads that stay, for loops that must begin at once. Starting a thread takes up to a quarter of a
 * millisecond on a virtual machine, waking one a tenth of that. One loop at a time; the caller takes part in it.
 */
#include "proto/status.h"

struct samkv_team;

/* threads: the caller's included, at least 1. With fewer than wanted (the system has none left) it works too. */
enum samkv_status samkv_team_new(const char *name, int threads, struct samkv_team **out) SAMKV_MUST_USE;
void samkv_team_free(struct samkv_team *); /* NULL is allowed */

/* Calls fn(arg, i) for i in [0, n), in order of beginning, on at most `threads` threads; returns when all are done. One
 * caller at a time. */
void samkv_team_run(struct samkv_team *, int n, int threads, void (*fn)(void *arg, int i), void *arg);

int samkv_team_threads(const struct samkv_team *);
