/* samkvd: options → log → store → models → listen → serve. Every step that fails says in one line what to do. */
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/base/spin.h"
#include "daemon/net/server.h"
#include "daemon/net/settings.h"
#include "daemon/samkv/models.h"
#include "daemon/store/store.h"

static enum samkv_status open_store(const struct samkv_settings *s, struct samkv_store **out, struct samkv_error *err)
{
    const struct samkv_store_options options = {
        .path = s->store, .max_bytes = (uint64_t)s->store_max_bytes, .codec = (enum samkv_codec)s->codec};
    return samkv_store_open(&options, out, err);
}

static enum samkv_status open_models(const struct samkv_settings *s, struct samkv_models **out, struct samkv_error *err)
{
    const struct samkv_models_options options = {.specs = (const char *const *)s->models.items,
                                                 .spec_count = s->models.count,
                                                 .device = s->device,
                                                 .dtype = s->dtype,
                                                 .threads = (int)s->threads,
                                                 .device_cache_bytes = (uint64_t)s->device_cache_bytes,
                                                 .device_reply_bytes = (uint64_t)s->device_reply_bytes};
    if (s->models.count == 0)
        samkv_log(SAMKV_LOG_WARNING, "no model: only what needs none is served; name one with --model NAME=PATH");
    return samkv_models_open(&options, out, err);
}

/* What is opened, in the order of opening; closed in reverse. */
struct samkv_daemon {
    struct samkv_store *store;
    struct samkv_models *models;
    struct samkv_service service;
    struct samkv_server *server;
};

static enum samkv_status start(struct samkv_daemon *d, const struct samkv_settings *s, struct samkv_error *err)
{
    enum samkv_status st = open_store(s, &d->store, err);
    if (st == SAMKV_OK)
        st = open_models(s, &d->models, err);
    if (st != SAMKV_OK)
        return st;
    d->service.models = d->models;
    d->service.store = d->store;
    d->service.store_path = s->store;
    d->service.started_ms = samkv_now_ms();
    struct samkv_server_options options = {.service = &d->service, .workers = (int)s->workers};
    st = samkv_listen(s->socket, &options.listener, err);
    if (st != SAMKV_OK)
        return st;
    bool activated = options.listener.activated;
    st = samkv_server_new(&options, &d->server, err);
    if (st == SAMKV_OK)
        samkv_log(SAMKV_LOG_INFO, "ready version=%s socket=%s store=%s models=%zu workers=%d", SAMKV_VERSION,
                  activated ? "(systemd)" : s->socket, s->store, d->models->count, options.workers);
    return st;
}

static void stop(struct samkv_daemon *d)
{
    samkv_server_free(d->server);
    samkv_models_close(d->models);
    samkv_store_close(d->store);
}

static int serve(const struct samkv_settings *s)
{
    struct samkv_daemon d = {0};
    struct samkv_error err;
    int exit_code = EXIT_SUCCESS;
    if (start(&d, s, &err) != SAMKV_OK) {
        fprintf(stderr, "samkvd: %s\n", err.text);
        exit_code = EXIT_FAILURE;
    } else {
        samkv_notify("READY=1");
        if (samkv_server_run(d.server) != SAMKV_OK) {
            samkv_log(SAMKV_LOG_ERROR, "stopped with requests=%u still running", atomic_load(&d.service.requests));
            _exit(EXIT_FAILURE); /* their threads use what stop() would free */
        }
    }
    stop(&d);
    if (exit_code == EXIT_SUCCESS)
        samkv_log(SAMKV_LOG_INFO, "stopped");
    return exit_code;
}

/*
 * KV caches come and go in tens of megabytes. Given to the kernel directly they are gone when they are freed; by
 * default glibc learns to keep such blocks in its heaps, and a daemon that rests would hold what its busiest minute
 * needed.
 */
static void return_large_blocks(void)
{
    mallopt(M_MMAP_THRESHOLD, 1 << 20);
    mallopt(M_TRIM_THRESHOLD, 8 << 20);
    mallopt(M_ARENA_MAX, 4);
}

/* Connections, replies and leases take descriptors; shells often allow 1,024 where the system allows far more. */
static void allow_descriptors(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

int main(int argc, char **argv)
{
    struct samkv_settings settings;
    struct samkv_error err;
    int exit_code = EXIT_SUCCESS;
    samkv_spin_briefly(argv);
    return_large_blocks();
    allow_descriptors();
    umask(0027);
    if (samkv_settings_read(&settings, argc, argv, getenv, &err) != SAMKV_OK) {
        fprintf(stderr, "samkvd: %s\n", err.text);
        exit_code = 2;
    } else if (settings.help) {
        samkv_settings_help(stdout);
    } else if (settings.version) {
        puts("samkvd " SAMKV_VERSION);
    } else {
        samkv_log_set_level((enum samkv_log_level)settings.log_level);
        exit_code = serve(&settings);
    }
    samkv_settings_deinit(&settings);
    return exit_code;
}
