#pragma once
/* samkvd's options: one table, read from the command line, SAMKV_* variables and an INI file. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "proto/status.h"
#include "daemon/base/options.h"
#include "daemon/net/access.h"
#include "daemon/net/bounds.h"

enum samkv_when_full { SAMKV_WHEN_FULL_AUTO, SAMKV_WHEN_FULL_EVICT, SAMKV_WHEN_FULL_REFUSE };

struct samkv_settings {
    char *config, *store, *socket, *metrics, *device, *salvage;
    struct samkv_list models; /* "NAME=PATH" or "PATH" */
    int dtype;                /* enum samkv_dtype, or -1: as the device has it; from: */
    int dtype_choice;
    int codec;                /* enum samkv_codec */
    int compact;              /* enum samkv_compact */
    int log_level;            /* enum samkv_log_level */
    int64_t threads, workers; /* 0: by the number of CPUs */
    int store_read;           /* 0: cached, 1: direct */
    int64_t store_max_bytes;
    int64_t host_cache_bytes;                       /* 0: none */
    int when_full;                                  /* enum samkv_when_full */
    int64_t device_cache_bytes, device_reply_bytes; /* 0: a quarter of what the models leave free */
    char *admin_group;                              /* a name or a number; NULL: none */
    char *collection_mode;                          /* octal; from: */
    uint32_t mode;
    int64_t user_quota_bytes;      /* 0: none */
    struct samkv_list user_quotas; /* "UID=SIZE"; from: */
    struct samkv_user_quota {
        uint32_t uid;
        int64_t bytes;
    } quotas[SAMKV_MAX_LIST];
    int64_t max_connections, max_user_connections, max_in_flight, max_user_requests, max_queue, connection_bytes;
    int64_t stall_timeout_s, request_timeout_s; /* 0: any */
    struct samkv_bounds bounds;                 /* from these */
    bool help, version, check_config, dump_config;
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

/* Options as parts of samkvd(8) or samkvd.conf(5). */
void samkv_settings_roff(bool of_file, FILE *out);

/*
 * --check-config: as samkv_settings_read, but tells every mistake of the file on `out`, and also models that are not
 * there. The text of the error counts them.
 */
enum samkv_status samkv_settings_check(struct samkv_settings *, int argc, char *const *argv,
                                       char *(*lookup)(const char *name), FILE *out,
                                       struct samkv_error *) SAMKV_MUST_USE;

/* Of options about users (settings_users.c): checks them and fills what is made from them. */
enum samkv_status samkv_settings_check_users(struct samkv_settings *, struct samkv_error *) SAMKV_MUST_USE;

/* For the store: a user's quota. arg: the settings. */
uint64_t samkv_settings_user_quota(void *arg, uint32_t uid);

/* Looks the group up, when the daemon starts. INVALID when there is none of that name. */
enum samkv_status samkv_settings_access(const struct samkv_settings *, struct samkv_access *out,
                                        struct samkv_error *) SAMKV_MUST_USE;

/* --dump-config: what samkv_settings_read came to, as a file. */
void samkv_settings_dump(const struct samkv_settings *, FILE *out);

/*
 * After a reload: takes from `fresh` what a running daemon can take, and gives `report` a line for each other option
 * that differs and so waits for a restart.
 */
void samkv_settings_take(struct samkv_settings *now, const struct samkv_settings *fresh,
                         void (*report)(void *arg, const char *text), void *arg);
