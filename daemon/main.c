/* samkvd: options → log → store → models → listen → serve. Every step that fails says in one line what to do. */
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/base/spin.h"
#include "daemon/fetch/gates.h"
#include "daemon/net/metrics_http.h"
#include "daemon/net/server.h"
#include "daemon/net/settings.h"
#include "daemon/samkv/models.h"
#include "daemon/store/salvage.h"
#include "daemon/store/store.h"

static enum samkv_status open_store(const struct samkv_settings *s, struct samkv_store **out, struct samkv_error *err)
{
    const struct samkv_store_options options = {.path = s->store,
                                                .max_bytes = (uint64_t)s->store_max_bytes,
                                                .codec = (enum samkv_codec)s->codec,
                                                .compact = (enum samkv_compact)s->compact,
                                                .direct = s->store_read == 1,
                                                .host_cache_bytes = (uint64_t)s->host_cache_bytes,
                                                .user_quota = samkv_settings_user_quota,
                                                .user_quota_arg = (void *)s,
                                                .evict = s->when_full == SAMKV_WHEN_FULL_EVICT ||
                                                         (s->when_full == SAMKV_WHEN_FULL_AUTO && s->store_max_bytes),
                                                .quota_refuses = s->when_full == SAMKV_WHEN_FULL_REFUSE};
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
    struct samkv_settings *settings;
    int argc; /* read again on a reload */
    char **argv;
    struct samkv_store *store;
    struct samkv_models *models;
    struct samkv_gates *gates;
    struct samkv_service service;
    struct samkv_server *server;
    struct samkv_metrics_http *metrics; /* NULL: nobody wants them */
};

static void warn(void *arg, const char *text)
{
    (void)arg;
    samkv_log(SAMKV_LOG_WARNING, "%s", text);
}

/* SIGHUP. A file with a mistake changes nothing. */
static void reload(void *arg)
{
    struct samkv_daemon *d = arg;
    struct samkv_settings fresh;
    struct samkv_error err;
    if (samkv_settings_read(&fresh, d->argc, d->argv, getenv, &err) != SAMKV_OK) {
        samkv_log(SAMKV_LOG_ERROR, "the configuration stays as it was: %s", err.text);
    } else {
        samkv_settings_take(d->settings, &fresh, warn, NULL);
        samkv_log_set_level((enum samkv_log_level)d->settings->log_level);
        samkv_log(SAMKV_LOG_INFO, "reloaded the configuration");
    }
    samkv_settings_deinit(&fresh);
}

/* Nobody waits for anything: the moment for what only the daemon wants to know. */
static bool is_idle(void *arg)
{
    const struct samkv_daemon *d = arg;
    bool idle = atomic_load(&d->service.requests) == 0;
    for (size_t i = 0; i < d->models->count; i++)
        idle = idle && samkv_lane_waiting(d->models->engines[i].lane) == 0;
    return idle;
}

static enum samkv_status open_gates(struct samkv_daemon *d, struct samkv_error *err)
{
    const struct samkv_gates_options options = {.models = d->models, .store = d->store, .idle = is_idle, .idle_arg = d};
    return samkv_gates_new(&options, &d->gates, err);
}

static enum samkv_status start(struct samkv_daemon *d, const struct samkv_settings *s, struct samkv_error *err)
{
    enum samkv_status st = samkv_settings_access(s, &d->service.access, err);
    d->service.bounds = &s->bounds;
    if (st == SAMKV_OK)
        st = open_store(s, &d->store, err);
    if (st == SAMKV_OK)
        st = open_models(s, &d->models, err);
    if (st == SAMKV_OK)
        st = open_gates(d, err);
    if (st != SAMKV_OK)
        return st;
    d->service.models = d->models;
    d->service.store = d->store;
    d->service.gates = d->gates;
    d->service.store_path = s->store;
    d->service.started_ms = samkv_now_ms();
    struct samkv_server_options options = {
        .service = &d->service, .workers = (int)s->workers, .reload = reload, .reload_arg = d};
    st = samkv_listen(s->socket, &options.listener, err);
    if (st != SAMKV_OK)
        return st;
    bool activated = options.listener.activated;
    st = samkv_server_new(&options, &d->server, err);
    if (st == SAMKV_OK && s->metrics)
        st = samkv_metrics_http_start(&d->service, s->metrics, &d->metrics, err);
    if (st == SAMKV_OK)
        samkv_log(SAMKV_LOG_INFO, "ready version=%s socket=%s store=%s models=%zu workers=%d", SAMKV_VERSION,
                  activated ? "(systemd)" : s->socket, s->store, d->models->count, options.workers);
    return st;
}

static void stop(struct samkv_daemon *d)
{
    samkv_metrics_http_stop(d->metrics);
    samkv_server_free(d->server);
    samkv_gates_free(d->gates);
    samkv_models_close(d->models);
    samkv_store_close(d->store);
}

static int serve(struct samkv_settings *s, int argc, char **argv)
{
    struct samkv_daemon d = {.settings = s, .argc = argc, .argv = argv};
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

/* What is left of a damaged store goes to a new one; the old one is only read. */
static int salvage(const struct samkv_settings *s)
{
    struct samkv_salvage_report r;
    struct samkv_error err;
    if (samkv_store_salvage(s->store, s->salvage, &r, &err) != SAMKV_OK) {
        fprintf(stderr, "samkvd: %s\n", err.text);
        return EXIT_FAILURE;
    }
    printf("%s: %llu documents under %llu names from %llu sound records; %llu records damaged\n", s->salvage,
           (unsigned long long)r.documents, (unsigned long long)r.names, (unsigned long long)r.records,
           (unsigned long long)r.damaged);
    if (r.renamed)
        printf("%llu documents had lost their names: see salvaged/... in samkvctl ls\n", (unsigned long long)r.renamed);
    if (r.names_lost)
        printf("%llu names had lost their documents: ingest them again\n", (unsigned long long)r.names_lost);
    printf("missing blocks are recomputed when they are asked for; samkvctl verify --repair does it now\n");
    return r.names_lost ? EXIT_FAILURE : EXIT_SUCCESS;
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

/* --check-config: exit code 0 when a daemon would start with it as far as files say. */
static int check_config(int argc, char **argv)
{
    struct samkv_settings settings;
    struct samkv_error err;
    enum samkv_status st = samkv_settings_check(&settings, argc, argv, getenv, stderr, &err);
    if (st != SAMKV_OK)
        fprintf(stderr, "samkvd: %s\n", err.text);
    else
        printf("%s: no mistakes\n", settings.config ? settings.config : "command line and environment");
    samkv_settings_deinit(&settings);
    return st == SAMKV_OK ? EXIT_SUCCESS : 2;
}

static bool asks_for_check(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--check-config") == 0)
            return true;
    return false;
}

int main(int argc, char **argv)
{
    struct samkv_settings settings;
    struct samkv_error err;
    int exit_code = EXIT_SUCCESS;
    samkv_spin_briefly(argv);
    samkv_log_find_journal();
    return_large_blocks();
    allow_descriptors();
    umask(0027);
    if (argc == 2 && strncmp(argv[1], "--roff=", 7) == 0) { /* for the build: parts of the man pages */
        samkv_settings_roff(strcmp(argv[1] + 7, "file") == 0, stdout);
        return EXIT_SUCCESS;
    }
    if (asks_for_check(argc, argv))
        return check_config(argc, argv);
    if (samkv_settings_read(&settings, argc, argv, getenv, &err) != SAMKV_OK) {
        fprintf(stderr, "samkvd: %s\n", err.text);
        exit_code = 2;
    } else if (settings.help) {
        samkv_settings_help(stdout);
    } else if (settings.version) {
        puts(samkv_metrics_http_is_built() ? "samkvd " SAMKV_VERSION : "samkvd " SAMKV_VERSION " (without --metrics)");
    } else if (settings.dump_config) {
        samkv_settings_dump(&settings, stdout);
    } else if (settings.salvage) {
        exit_code = salvage(&settings);
    } else {
        samkv_log_set_level((enum samkv_log_level)settings.log_level);
        exit_code = serve(&settings, argc, argv);
    }
    samkv_settings_deinit(&settings);
    return exit_code;
}
