#pragma once
/* samkvd's options: one table, read from the command line, SAMKV_* variables and an INI file. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "proto/status.h"
#include "daemon/base/options.h"

struct samkv_settings {
    char *config, *store, *socket, *device;
    struct samkv_list models; /* "NAME=PATH" or "PATH" */
    int dtype;                /* enum samkv_dtype, or -1: as the device has it */
    int codec;                /* enum samkv_codec */
    int log_level;            /* enum samkv_log_level */
    int64_t threads, workers; /* 0: by the number of CPUs */
    int64_t store_max_bytes;
    int64_t device_cache_bytes, device_reply_bytes; /* 0: a quarter of what the models leave free */
    bool help, version;
    struct samkv_options options; /* how they were read */
};

/*
 * Fills everything; --help and --version only set their flags. lookup: getenv. INVALID with one line for the first
 * thing that is wrong. samkv_settings_deinit in every case.
 */
enum samkv_status samkv_settings_read(struct samkv_settings *, int argc, char *const *argv,
                                      char *(*lookup)(const char *name), struct samkv_error *) SAMKV_MUST_USE;
void samkv_settings_deinit(struct samkv_settings *);
void samkv_settings_help(FILE *out);
