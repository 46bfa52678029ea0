#include "daemon/net/metrics_http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#ifdef SAMKV_HTTP
#include <microhttpd.h>
#endif

#include "daemon/base/log.h"
#include "daemon/base/thread.h"
#include "daemon/net/exposition.h"

#define BACKLOG        8
#define MAX_SCRAPERS   8
#define TIMEOUT_S      5
#define REQUEST_BYTES  (16u << 10) /* of a connection's memory */
#define SAMPLE_MS      5000        /* between two readings of the store's sums, at least */
#define SAMPLE_SHARE   50          /* and so many times what one takes */
#define LOOP_SILENT_MS 10000       /* it comes by every second */

/* ------------------------------------------------------------------ the address */

/* "HOST:PORT", "[HOST]:PORT" or "PORT" → a loopback address. False for what is none. */
static bool parse_address(const char *text, struct sockaddr_storage *out, socklen_t *size)
{
    char host[64] = "127.0.0.1", *end;
    const char *colon = strrchr(text, ':'), *port = colon ? colon + 1 : text;
    if (colon && (size_t)(colon - text) >= sizeof host)
        return false;
    if (colon) {
        bool brackets = text[0] == '[' && colon > text + 2 && colon[-1] == ']';
        size_t length = (size_t)(colon - text) - 2 * brackets;
        memcpy(host, text + brackets, length);
        host[length] = 0;
    }
    long number = strtol(port, &end, 10);
    if (end == port || *end || number < 1 || number > 65535)
        return false;
    memset(out, 0, sizeof *out);
    struct sockaddr_in *v4 = (struct sockaddr_in *)out;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;
    if (inet_pton(AF_INET, strcmp(host, "localhost") == 0 ? "127.0.0.1" : host, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons((uint16_t)number);
        *size = sizeof *v4;
        return ntohl(v4->sin_addr.s_addr) >> 24 == 127;
    }
    if (inet_pton(AF_INET6, host, &v6->sin6_addr) != 1 || !IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr))
        return false;
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons((uint16_t)number);
    *size = sizeof *v6;
    return true;
}

static enum samkv_status fail_address(const char *address, struct samkv_error *err)
{
    return samkv_fail(err, SAMKV_INVALID,
                      "--metrics: '%.100s' is neither 127.0.0.1:PORT, [::1]:PORT nor the path of a socket; nobody from "
                      "another machine is served, since nobody is asked who he is",
                      address);
}

static enum samkv_status fail_unbuilt(struct samkv_error *err)
{
    return samkv_fail(err, SAMKV_UNSUPPORTED,
                      "--metrics: this samkvd was built without libmicrohttpd; build it again with that");
}

enum samkv_status samkv_metrics_address_check(const char *address, struct samkv_error *err)
{
    struct sockaddr_storage at;
    socklen_t size;
    if (!samkv_metrics_http_is_built())
        return fail_unbuilt(err);
    return strchr(address, '/') || parse_address(address, &at, &size) ? SAMKV_OK : fail_address(address, err);
}

enum samkv_status samkv_metrics_listen(const char *address, struct samkv_listener *out, struct samkv_error *err)
{
    struct sockaddr_storage at;
    socklen_t size;
    int on = 1;
    *out = (struct samkv_listener){.fd = -1};
    if (strchr(address, '/'))
        return samkv_listen_path(address, out, err);
    if (!parse_address(address, &at, &size))
        return fail_address(address, err);
    int fd = socket(at.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        bind(fd, (const struct sockaddr *)&at, size) != 0 || listen(fd, BACKLOG) != 0) {
        enum samkv_status st = samkv_fail_errno(err, errno, "cannot serve metrics on %s", address);
        if (fd >= 0)
            close(fd);
        return st;
    }
    out->fd = fd;
    return SAMKV_OK;
}

#ifndef SAMKV_HTTP

bool samkv_metrics_http_is_built(void)
{
    return false;
}

enum samkv_status samkv_metrics_http_start(struct samkv_service *service, const char *address,
                                           struct samkv_metrics_http **out, struct samkv_error *err)
{
    (void)service;
    (void)address;
    *out = NULL;
    return fail_unbuilt(err);
}

void samkv_metrics_http_stop(struct samkv_metrics_http *http)
{
    (void)http;
}

#else

struct samkv_metrics_http {
    struct samkv_service *service;
    struct samkv_listener listener;
    struct MHD_Daemon *daemon;
    pthread_t sampler;
    bool sampling;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool ending;
};

bool samkv_metrics_http_is_built(void)
{
    return true;
}

/* ------------------------------------------------------------------ the store's sums */

static void *sampler_main(void *arg)
{
    struct samkv_metrics_http *http = arg;
    struct samkv_sample sample;
    struct samkv_error err;
    pthread_mutex_lock(&http->lock);
    while (!http->ending) {
        pthread_mutex_unlock(&http->lock);
        if (samkv_telemetry_sample(http->service, 0, &sample, &err) != SAMKV_OK) {
            samkv_log(SAMKV_LOG_WARNING, "the store's sums could not be read: %s", err.text);
            sample.took_ms = 0;
        }
        double pause_ms = SAMPLE_SHARE * sample.took_ms > SAMPLE_MS ? SAMPLE_SHARE * sample.took_ms : SAMPLE_MS;
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += (time_t)(pause_ms / 1e3) + 1;
        pthread_mutex_lock(&http->lock);
        while (!http->ending && pthread_cond_timedwait(&http->wake, &http->lock, &until) == 0)
            ;
    }
    pthread_mutex_unlock(&http->lock);
    return NULL;
}

/* ------------------------------------------------------------------ answers */

static enum MHD_Result answer(struct MHD_Connection *connection, unsigned code, const char *type, void *text,
                              size_t bytes, enum MHD_ResponseMemoryMode mode)
{
    struct MHD_Response *response = MHD_create_response_from_buffer(bytes, text, mode);
    if (!response) {
        if (mode == MHD_RESPMEM_MUST_FREE)
            free(text);
        return MHD_NO;
    }
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    enum MHD_Result result = MHD_queue_response(connection, code, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result say(struct MHD_Connection *connection, unsigned code, const char *text)
{
    return answer(connection, code, "text/plain; charset=utf-8", (void *)text, strlen(text), MHD_RESPMEM_PERSISTENT);
}

static enum MHD_Result metrics(struct samkv_metrics_http *http, struct MHD_Connection *connection)
{
    struct samkv_sample sample;
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (!out)
        return say(connection, MHD_HTTP_INTERNAL_SERVER_ERROR, "out of memory\n");
    samkv_telemetry_last_sample(&http->service->telemetry, &sample);
    samkv_exposition_write(http->service, &sample, out);
    bool whole = !ferror(out);
    if (fclose(out) != 0 || !whole) {
        free(text);
        return say(connection, MHD_HTTP_INTERNAL_SERVER_ERROR, "out of memory\n");
    }
    return answer(connection, MHD_HTTP_OK, SAMKV_EXPOSITION_TYPE, text, bytes, MHD_RESPMEM_MUST_FREE);
}

static enum MHD_Result health(struct samkv_metrics_http *http, struct MHD_Connection *connection)
{
    uint64_t now = (uint64_t)samkv_now_ms();
    if (atomic_load(&http->service->stopping))
        return say(connection, MHD_HTTP_SERVICE_UNAVAILABLE, "stopping\n");
    if (now - atomic_load(&http->service->telemetry.ticked_ms) > LOOP_SILENT_MS)
        return say(connection, MHD_HTTP_SERVICE_UNAVAILABLE, "the event loop does not come by\n");
    return say(connection, MHD_HTTP_OK, "ok\n");
}

static enum MHD_Result on_request(void *arg, struct MHD_Connection *connection, const char *url, const char *method,
                                  const char *version, const char *upload, size_t *upload_bytes, void **state)
{
    (void)version;
    (void)upload;
    (void)upload_bytes; /* answered before any of it is read */
    (void)state;
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
        return say(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "GET only\n");
    if (strcmp(url, "/metrics") == 0)
        return metrics(arg, connection);
    if (strcmp(url, "/healthz") == 0)
        return health(arg, connection);
    return say(connection, MHD_HTTP_NOT_FOUND, "/metrics and /healthz are here, nothing else\n");
}

/* ------------------------------------------------------------------ life */

static void ignore_log(void *arg, const char *format, va_list args)
{
    (void)arg;
    (void)format;
    (void)args;
}

static enum samkv_status start_threads(struct samkv_metrics_http *http, struct samkv_error *err)
{
    enum samkv_status st = samkv_thread_start(&http->sampler, "samkv-sampler", sampler_main, http);
    if (st != SAMKV_OK)
        return samkv_fail(err, st, "cannot start the thread that reads the store's sums");
    http->sampling = true;
    http->daemon = MHD_start_daemon(MHD_USE_AUTO_INTERNAL_THREAD | MHD_USE_ITC | MHD_USE_ERROR_LOG, 0, NULL, NULL,
                                    on_request, http, MHD_OPTION_EXTERNAL_LOGGER, ignore_log, NULL,
                                    MHD_OPTION_LISTEN_SOCKET, http->listener.fd, MHD_OPTION_CONNECTION_LIMIT,
                                    (unsigned)MAX_SCRAPERS, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)TIMEOUT_S,
                                    MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)REQUEST_BYTES, MHD_OPTION_END);
    return http->daemon ? SAMKV_OK : samkv_fail(err, SAMKV_IO, "cannot start the metrics' HTTP server");
}

enum samkv_status samkv_metrics_http_start(struct samkv_service *service, const char *address,
                                           struct samkv_metrics_http **out, struct samkv_error *err)
{
    struct samkv_metrics_http *http = calloc(1, sizeof *http);
    *out = NULL;
    if (!http)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    http->service = service;
    pthread_mutex_init(&http->lock, NULL);
    pthread_cond_init(&http->wake, NULL);
    enum samkv_status st = samkv_metrics_listen(address, &http->listener, err);
    if (st == SAMKV_OK)
        st = start_threads(http, err);
    if (st != SAMKV_OK) {
        samkv_metrics_http_stop(http);
        return st;
    }
    samkv_log(SAMKV_LOG_INFO, "metrics address=%s", address);
    *out = http;
    return SAMKV_OK;
}

void samkv_metrics_http_stop(struct samkv_metrics_http *http)
{
    if (!http)
        return;
    if (http->daemon)
        MHD_quiesce_daemon(http->daemon); /* the socket is ours to close */
    if (http->daemon)
        MHD_stop_daemon(http->daemon);
    if (http->sampling) {
        pthread_mutex_lock(&http->lock);
        http->ending = true;
        pthread_cond_signal(&http->wake);
        pthread_mutex_unlock(&http->lock);
        pthread_join(http->sampler, NULL);
    }
    samkv_listener_close(&http->listener);
    pthread_cond_destroy(&http->wake);
    pthread_mutex_destroy(&http->lock);
    free(http);
}

#endif
