#include "daemon/net/settings.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/tensor.h"
#include "daemon/base/machine.h"
#include "daemon/store/host_cache.h"
#include "daemon/net/metrics_http.h"

static const char *const dtypes[] = {"auto", "f32", "bf16", "f16", NULL};
static const char *const codecs[] = {"raw", "zstd", "rans", "q8", "q4", NULL}; /* by enum samkv_codec */
static const char *const readings[] = {"cached", "direct", NULL};
static const char *const compacts[] = {"auto", "off", NULL};                     /* by enum samkv_compact */
static const char *const levels[] = {"error", "warning", "info", "debug", NULL}; /* by enum samkv_log_level */

static const char *const when_full[] = {"auto", "evict", "refuse", NULL}; /* by enum samkv_when_full */

#define AT(field) .offset = offsetof(struct samkv_settings, field)

/* clang-format off */
static const struct samkv_option table[] = {
    {.name = "config", .env = "SAMKV_CONFIG", .argument = "FILE", .kind = SAMKV_OPTION_TEXT, AT(config),
     .help = "read options from this INI file"},
    {.name = "store", .env = "SAMKV_STORE", .argument = "DIR", .kind = SAMKV_OPTION_TEXT, AT(store),
     .help = "where documents are kept; made when missing"},
    {.name = "socket", .env = "SAMKV_SOCKET", .argument = "PATH", .kind = SAMKV_OPTION_TEXT, AT(socket),
     .help = "Unix socket to listen on"},
    {.name = "model", .env = "SAMKV_MODEL", .argument = "NAME=PATH", .kind = SAMKV_OPTION_LIST, AT(models), .section = "model",
     .help = "a Hugging Face directory or a .gguf file; repeat for more"},
    {.name = "device", .env = "SAMKV_DEVICE", .argument = "DEVICE", .kind = SAMKV_OPTION_TEXT, AT(device),
     .help = "auto, cpu, cuda or cuda:N", .default_text = "auto"},
    {.name = "dtype", .env = "SAMKV_DTYPE", .argument = "TYPE", .kind = SAMKV_OPTION_CHOICE, AT(dtype_choice),
     .choices = dtypes, .help = "of stored numbers: auto, f32, bf16 or f16; with f32 and f16 no CPU multiplies in bf16",
     .default_text = "auto"},
    {.name = "threads", .env = "SAMKV_THREADS", .argument = "N", .kind = SAMKV_OPTION_INTEGER, AT(threads),
     .min = 0, .max = 1024, .help = "CPU threads that compute; 0: all", .default_text = "0"},
    {.name = "workers", .env = "SAMKV_WORKERS", .argument = "N", .kind = SAMKV_OPTION_INTEGER, AT(workers),
     .min = 0, .max = 256, .help = "requests worked on at a time, at least 2; 0: by the CPUs", .default_text = "0"},
    {.name = "store-max-bytes", .env = "SAMKV_STORE_MAX_BYTES", .argument = "SIZE", .kind = SAMKV_OPTION_BYTES,
     AT(store_max_bytes), .min = 0, .max = INT64_MAX, .help = "limit of the data file, like 10G; 0: the disk's",
     .default_text = "0"},
    {.name = "store-read", .env = "SAMKV_STORE_READ", .argument = "HOW", .kind = SAMKV_OPTION_CHOICE, AT(store_read),
     .choices = readings, .help = "cached, or direct: blocks past the page cache, for stores far larger than memory",
     .default_text = "cached"},
    {.name = "host-cache-bytes", .env = "SAMKV_HOST_CACHE_BYTES", .argument = "SIZE", .kind = SAMKV_OPTION_BYTES,
     AT(host_cache_bytes), .min = 0, .max = INT64_MAX,
     .help = "memory for decoded blocks of hot documents; 0: none (default: an eighth of the memory, at most 4G)"},
    {.name = "when-full", .env = "SAMKV_WHEN_FULL", .argument = "WHAT", .kind = SAMKV_OPTION_CHOICE, AT(when_full),
     .choices = when_full, .help = "evict or refuse; auto: evict at a limit that was set, refuse on a full disk without one",
     .default_text = "auto"},
    {.name = "device-cache-bytes", .env = "SAMKV_DEVICE_CACHE_BYTES", .argument = "SIZE", .kind = SAMKV_OPTION_BYTES,
     AT(device_cache_bytes), .min = 0, .max = INT64_MAX,
     .help = "GPU memory for hot documents; 0: a quarter of what the models leave free", .default_text = "0"},
    {.name = "device-reply-bytes", .env = "SAMKV_DEVICE_REPLY_BYTES", .argument = "SIZE", .kind = SAMKV_OPTION_BYTES,
     AT(device_reply_bytes), .min = 0, .max = INT64_MAX,
     .help = "GPU memory for caches that clients map; 0: a quarter, likewise", .default_text = "0"},
    {.name = "codec", .env = "SAMKV_CODEC", .argument = "CODEC", .kind = SAMKV_OPTION_CHOICE, AT(codec),
     .choices = codecs, .help = "of new collections that choose none: rans, zstd or raw (lossless), q8 or q4", .default_text = "rans"},
    {.name = "compact", .env = "SAMKV_COMPACT", .argument = "WHEN", .kind = SAMKV_OPTION_CHOICE, AT(compact),
     .choices = compacts, .help = "auto: when the data file is large beside what it holds; off: when asked",
     .default_text = "auto"},
    {.name = "admin-group", .env = "SAMKV_ADMIN_GROUP", .argument = "GROUP", .kind = SAMKV_OPTION_TEXT, AT(admin_group),
     .help = "whose members may do everything, as root and samkvd's user may"},
    {.name = "collection-mode", .env = "SAMKV_COLLECTION_MODE", .argument = "MODE", .kind = SAMKV_OPTION_TEXT,
     AT(collection_mode), .help = "of new collections: who reads and writes beside the owner", .default_text = "0640"},
    {.name = "user-quota-bytes", .env = "SAMKV_USER_QUOTA_BYTES", .argument = "SIZE", .kind = SAMKV_OPTION_BYTES,
     AT(user_quota_bytes), .min = 0, .max = INT64_MAX, .help = "what each user's collections may take; 0: no limit",
     .default_text = "0"},
    {.name = "user-quota", .env = "SAMKV_USER_QUOTA", .argument = "UID=SIZE", .kind = SAMKV_OPTION_LIST, AT(user_quotas),
     .section = "user-quota", .help = "another quota for one user; repeat for more"},
    {.name = "max-connections", .env = "SAMKV_MAX_CONNECTIONS", .argument = "N", .kind = SAMKV_OPTION_INTEGER,
     AT(max_connections), .min = 1, .max = 65536, .help = "clients at a time", .default_text = "256"},
    {.name = "max-user-connections", .env = "SAMKV_MAX_USER_CONNECTIONS", .argument = "N", .kind = SAMKV_OPTION_INTEGER,
     AT(max_user_connections), .min = 1, .max = 65536, .help = "of them, of one user", .default_text = "128"},
    {.name = "max-in-flight", .env = "SAMKV_MAX_IN_FLIGHT", .argument = "N", .kind = SAMKV_OPTION_INTEGER,
     AT(max_in_flight), .min = 1, .max = 4096, .help = "requests of a connection; beyond, it is not read", .default_text = "64"},
    {.name = "max-user-requests", .env = "SAMKV_MAX_USER_REQUESTS", .argument = "N", .kind = SAMKV_OPTION_INTEGER,
     AT(max_user_requests), .min = 1, .max = 65536, .help = "requests of a user; beyond, they are answered BUSY",
     .default_text = "512"},
    {.name = "max-queue", .env = "SAMKV_MAX_QUEUE", .argument = "N", .kind = SAMKV_OPTION_INTEGER, AT(max_queue), .min = 1,
     .max = 65536, .help = "fetches, and ingests, that wait for a worker; beyond, they are answered BUSY", .default_text = "4096"},
    {.name = "connection-bytes", .env = "SAMKV_CONNECTION_BYTES", .argument = "SIZE", .kind = SAMKV_OPTION_BYTES,
     AT(connection_bytes), .min = 65536, .max = (int64_t)1 << 40,
     .help = "of a connection's requests, and of its replies that are not read", .default_text = "64M"},
    {.name = "stall-timeout", .env = "SAMKV_STALL_TIMEOUT", .argument = "SECONDS", .kind = SAMKV_OPTION_INTEGER,
     AT(stall_timeout_s), .min = 1, .max = 3600,
     .help = "a client that neither goes on sending nor reads for so long is let go", .default_text = "30"},
    {.name = "request-timeout", .env = "SAMKV_REQUEST_TIMEOUT", .argument = "SECONDS", .kind = SAMKV_OPTION_INTEGER,
     AT(request_timeout_s), .min = 0, .max = 86400,
     .help = "what a request may take, but for those that tell their progress; 0: any", .default_text = "3600"},
    {.name = "metrics", .env = "SAMKV_METRICS", .argument = "ADDRESS", .kind = SAMKV_OPTION_TEXT, AT(metrics),
     .help = "metrics for Prometheus on 127.0.0.1:PORT or a Unix socket's path; off unless given"},
    {.name = "log-level", .env = "SAMKV_LOG_LEVEL", .argument = "LEVEL", .kind = SAMKV_OPTION_CHOICE, AT(log_level),
     .choices = levels, .help = "error, warning, info or debug", .default_text = "info", .reloads = true},
    {.name = "check-config", .kind = SAMKV_OPTION_FLAG, AT(check_config),
     .help = "tell every mistake of the configuration and exit"},
    {.name = "salvage", .argument = "NEWDIR", .kind = SAMKV_OPTION_TEXT, AT(salvage),
     .help = "copy what is left of a damaged store to a new one, and exit"},
    {.name = "dump-config", .kind = SAMKV_OPTION_FLAG, AT(dump_config),
     .help = "print the values that would be used, and where each is from, and exit"},
    {.name = "help", .kind = SAMKV_OPTION_FLAG, AT(help), .help = "print this and exit"},
    {.name = "version", .kind = SAMKV_OPTION_FLAG, AT(version), .help = "print the version and exit"},
};
/* clang-format on */
#define COUNT   (sizeof table / sizeof *table)
#define SECTION "samkvd" /* of the file */

#define HOST_CACHE_SHARE      8
#define HOST_CACHE_MOST_BYTES ((int64_t)4 << 30)
#define NOT_SAID              (-1)

/* "BASE" "REST" → *out, when BASE is there and nothing else was said. systemd gives several directories with ':'. */
static enum samkv_status fall_back(char **out, const char *base, const char *rest, struct samkv_error *err)
{
    if (*out || !base || !*base)
        return SAMKV_OK;
    int bytes = (int)strcspn(base, ":");
    return asprintf(out, "%.*s%s", bytes, base, rest) < 0 ? samkv_fail(err, SAMKV_NO_MEMORY, "out of memory")
                                                          : SAMKV_OK;
}

static enum samkv_status find_places(struct samkv_settings *s, char *(*lookup)(const char *), struct samkv_error *err)
{
    enum samkv_status st = fall_back(&s->store, lookup("STATE_DIRECTORY"), "", err);
    if (st == SAMKV_OK)
        st = fall_back(&s->store, lookup("XDG_DATA_HOME"), "/samkv", err);
    if (st == SAMKV_OK)
        st = geteuid() == 0 ? fall_back(&s->store, "/var/lib", "/samkv", err)
                            : fall_back(&s->store, lookup("HOME"), "/.local/share/samkv", err);
    if (st == SAMKV_OK)
        st = fall_back(&s->socket, lookup("RUNTIME_DIRECTORY"), "/samkv.sock", err);
    if (st == SAMKV_OK)
        st = fall_back(&s->socket, lookup("XDG_RUNTIME_DIR"), "/samkv.sock", err);
    if (st == SAMKV_OK)
        st = fall_back(&s->socket, "/run/samkv", "/samkv.sock", err);
    if (st == SAMKV_OK && !s->store)
        st = samkv_fail(err, SAMKV_INVALID, "no place for documents: say where with --store DIR");
    return st;
}

static enum samkv_status check(struct samkv_settings *s, struct samkv_error *err)
{
    s->dtype = s->dtype_choice == 0 ? -1 : samkv_dtype_parse(dtypes[s->dtype_choice]);
    if (s->workers == 1)
        return samkv_fail(err, SAMKV_INVALID,
                          "--workers: 1 is too few, since half of them may be ingesting; give 2 or more");
    if (s->host_cache_bytes == NOT_SAID) {
        int64_t share = (int64_t)(samkv_machine_memory_bytes() / HOST_CACHE_SHARE);
        s->host_cache_bytes = share > HOST_CACHE_MOST_BYTES ? HOST_CACHE_MOST_BYTES : share;
        if (s->host_cache_bytes < (int64_t)SAMKV_HOST_CACHE_MIN_BYTES)
            s->host_cache_bytes = 0;
    }
    if (s->host_cache_bytes && s->host_cache_bytes < (int64_t)SAMKV_HOST_CACHE_MIN_BYTES)
        return samkv_fail(err, SAMKV_INVALID, "--host-cache-bytes: give 1M or more, or 0 for none");
    if (s->workers == 0) {
        /* Workers mostly wait, for the device or for the disk; half of them ingest, and should fill two passes. */
        long wanted = 2 * sysconf(_SC_NPROCESSORS_ONLN);
        s->workers = wanted < 8 ? 8 : wanted > 64 ? 64 : wanted;
    }
    enum samkv_status st = samkv_settings_check_users(s, err);
    return st == SAMKV_OK && s->metrics ? samkv_metrics_address_check(s->metrics, err) : st;
}

/* How the file is read: to its first mistake, or to its end. */
struct reader {
    void (*report)(void *arg, const char *text); /* NULL: to the first */
    void *arg;
};

static enum samkv_status read_all(struct samkv_settings *s, int argc, char *const *argv, char *(*lookup)(const char *),
                                  const struct reader *reader, struct samkv_error *err)
{
    *s = (struct samkv_settings){.host_cache_bytes = NOT_SAID};
    samkv_options_init(&s->options, table, COUNT, s);
    enum samkv_status st = samkv_options_arguments(&s->options, argc, argv, err);
    if (st != SAMKV_OK || s->help || s->version)
        return st;
    st = samkv_options_environment(&s->options, lookup, err);
    if (st == SAMKV_OK && s->config)
        st = reader->report
                 ? samkv_options_file_check(&s->options, s->config, SECTION, reader->report, reader->arg, err)
                 : samkv_options_file(&s->options, s->config, SECTION, err);
    if (st == SAMKV_OK)
        st = samkv_options_defaults(&s->options, err);
    if (st == SAMKV_OK)
        st = find_places(s, lookup, err);
    return st == SAMKV_OK ? check(s, err) : st;
}

enum samkv_status samkv_settings_read(struct samkv_settings *s, int argc, char *const *argv,
                                      char *(*lookup)(const char *name), struct samkv_error *err)
{
    static const struct reader to_the_first = {0};
    return read_all(s, argc, argv, lookup, &to_the_first, err);
}

/* ------------------------------------------------------------------ looking at a configuration */

static void print_mistake(void *out, const char *text)
{
    fprintf(out, "%s\n", text);
}

enum samkv_status samkv_settings_check(struct samkv_settings *s, int argc, char *const *argv,
                                       char *(*lookup)(const char *name), FILE *out, struct samkv_error *err)
{
    const struct reader to_the_end = {print_mistake, out};
    enum samkv_status st = read_all(s, argc, argv, lookup, &to_the_end, err);
    if (st != SAMKV_OK)
        return st;
    int missing = 0;
    for (size_t i = 0; i < s->models.count; i++) {
        const char *item = s->models.items[i], *equals = strchr(item, '='), *path = equals ? equals + 1 : item;
        if (access(path, R_OK) != 0) {
            fprintf(out, "model %.*s: cannot read %s: %s\n", (int)(equals ? equals - item : 0), item, path,
                    strerror(errno));
            missing++;
        }
    }
    return missing ? samkv_fail(err, SAMKV_INVALID, "%d of %zu models cannot be read", missing, s->models.count)
                   : SAMKV_OK;
}

void samkv_settings_dump(const struct samkv_settings *s, FILE *out)
{
    samkv_options_dump(&s->options, SECTION, out);
}

static bool same_list(const struct samkv_list *a, const struct samkv_list *b)
{
    bool same = a->count == b->count;
    for (size_t i = 0; same && i < a->count; i++)
        same = strcmp(a->items[i], b->items[i]) == 0;
    return same;
}

static bool same_value(const struct samkv_option *option, const void *a, const void *b)
{
    switch (option->kind) {
    case SAMKV_OPTION_INTEGER:
    case SAMKV_OPTION_BYTES:
        return *(const int64_t *)a == *(const int64_t *)b;
    case SAMKV_OPTION_CHOICE:
        return *(const int *)a == *(const int *)b;
    case SAMKV_OPTION_TEXT:
        return strcmp(*(char *const *)a ? *(char *const *)a : "", *(char *const *)b ? *(char *const *)b : "") == 0;
    case SAMKV_OPTION_LIST:
        return same_list(a, b);
    case SAMKV_OPTION_FLAG:
        break;
    }
    return true;
}

void samkv_settings_take(struct samkv_settings *now, const struct samkv_settings *fresh,
                         void (*report)(void *arg, const char *text), void *arg)
{
    for (size_t i = 0; i < COUNT; i++) {
        const struct samkv_option *option = &table[i];
        char text[128];
        if (!option->reloads &&
            !same_value(option, (const char *)now + option->offset, (const char *)fresh + option->offset)) {
            snprintf(text, sizeof text, "%s differs; restart samkvd for the new value", option->name);
            report(arg, text);
        }
    }
    now->log_level = fresh->log_level;
}

void samkv_settings_deinit(struct samkv_settings *s)
{
    samkv_options_deinit(&s->options);
}

void samkv_settings_roff(bool of_file, FILE *out)
{
    samkv_options_roff(table, COUNT, of_file, out);
}

void samkv_settings_help(FILE *out)
{
    fputs("Usage: samkvd [OPTION]...\n"
          "Keeps documents' KV caches and serves, for a query, the few tokens that it needs.\n\n",
          out);
    samkv_options_help(table, COUNT, out);
    fputs("\nThe store is in $STATE_DIRECTORY, $XDG_DATA_HOME/samkv, ~/.local/share/samkv or (root) /var/lib/samkv;\n"
          "the socket is samkv.sock in $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR or /run/samkv.\n",
          out);
}
