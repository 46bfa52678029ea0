#include "daemon/net/server.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/net/connection.h"

#define TICK_MS        1000
#define FINISH_MS      30000 /* for running jobs at the end */
#define CANCEL_MS      10000 /* and then, told to stop */
#define ACCEPTS_A_TURN 16
#define AWAKE_NS       100000       /* waking an idle processor of a virtual machine takes 20 to 60 µs each way */
#define PAYLOADS_BYTES (512u << 20) /* of all connections together */

/* ------------------------------------------------------------------ stopping */

static void on_closed_handle(uv_handle_t *handle)
{
    struct samkv_server *server = handle->data;
    server->open_handles--;
}

static void close_handle(struct samkv_server *server, uv_handle_t *handle)
{
    if (uv_is_closing(handle))
        return;
    server->open_handles++;
    handle->data = server;
    uv_close(handle, on_closed_handle);
}

static void stop_listening(struct samkv_server *server)
{
    if (server->poll.loop) /* it was initialised */
        close_handle(server, (uv_handle_t *)&server->poll);
    samkv_listener_close(&server->listener);
}

/* With no request left, farewell to the clients; with no client left, the loop ends. */
void samkv_server_after_change(struct samkv_server *server)
{
    if (!server->stopping_since_ms || atomic_load(&server->service->requests) > 0)
        return;
    for (struct samkv_connection *c = server->connections, *next; c; c = next) {
        next = c->next;
        samkv_connection_end(c);
    }
    if (!server->connections)
        uv_stop(&server->loop);
}

static void begin_stop(struct samkv_server *server, int signal)
{
    samkv_log(SAMKV_LOG_INFO, "stopping on %s requests=%u connections=%u", strsignal(signal),
              atomic_load(&server->service->requests), atomic_load(&server->service->connections));
    samkv_notify("STOPPING=1");
    atomic_store(&server->service->stopping, true);
    server->stopping_since_ms = uv_now(&server->loop) + 1;
    stop_listening(server);
    samkv_pool_drop_queued(server->pool); /* they are refused now, not when a worker comes to them */
    samkv_server_after_change(server);
}

static void on_signal(uv_signal_t *handle, int signal)
{
    struct samkv_server *server = handle->data;
    if (!server->stopping_since_ms) {
        begin_stop(server, signal);
        return;
    }
    samkv_log(SAMKV_LOG_WARNING, "second signal: leaving at once");
    _exit(1);
}

/* One reload at a time; those asked for meanwhile make one more. */
static void reload_job(void *arg, bool cancelled)
{
    struct samkv_server *server = arg;
    int asked = 0;
    do {
        asked = atomic_load(&server->reloads);
        if (cancelled)
            continue;
        char text[64];
        snprintf(text, sizeof text, "RELOADING=1\nMONOTONIC_USEC=%llu", (unsigned long long)(uv_hrtime() / 1000));
        samkv_notify(text);
        server->reload(server->reload_arg);
        samkv_notify("READY=1");
    } while (atomic_fetch_sub(&server->reloads, asked) != asked);
}

static void on_hangup(uv_signal_t *handle, int signal)
{
    struct samkv_server *server = handle->data;
    (void)signal;
    if (!server->reload || server->stopping_since_ms || atomic_fetch_add(&server->reloads, 1) > 0)
        return;
    if (samkv_pool_submit(server->pool, SAMKV_URGENT, reload_job, server) != SAMKV_OK) {
        atomic_store(&server->reloads, 0);
        samkv_log(SAMKV_LOG_WARNING, "too busy to reload the configuration; send SIGHUP again");
    }
}

static void watch_stop(struct samkv_server *server, uint64_t now)
{
    uint64_t since = now + 1 - server->stopping_since_ms;
    if (since >= FINISH_MS && !server->cancelled) {
        samkv_log(SAMKV_LOG_WARNING, "requests=%u still run after %d s; cancelling them",
                  atomic_load(&server->service->requests), FINISH_MS / 1000);
        server->cancelled = true;
        for (struct samkv_connection *c = server->connections; c; c = c->next)
            samkv_connection_cancel(c);
    }
    if (since >= FINISH_MS + CANCEL_MS) {
        server->timed_out = true;
        uv_stop(&server->loop);
    }
}

/* ------------------------------------------------------------------ events */

/* A client that is not let in learns why. */
static void turn_away(int fd, struct samkv_server *server, const struct samkv_error *err)
{
    const struct samkv_frame nobody = {.type = SAMKV_TYPE_HELLO};
    struct samkv_outgoing *frame;
    if (samkv_error_frame(&nobody, err, &frame) == SAMKV_OK) {
        ssize_t ignored = samkv_socket_send(fd, frame->bytes, frame->count, NULL);
        (void)ignored;
        samkv_outgoing_free(frame);
    }
    close(fd);
    samkv_metrics_add(&server->service->metrics, SAMKV_METRIC_REFUSED, 1);
    samkv_log(SAMKV_LOG_WARNING, "refused a connection: %s", err->text);
}

/* False when there is nothing more to accept for now. */
static bool accept_one(struct samkv_server *server)
{
    int fd = accept4(server->listener.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return false;
    if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
        return true;
    if (fd < 0) {
        /* Out of fds or memory: the client stays in the backlog, and asking again at once would only spin. */
        samkv_log(SAMKV_LOG_ERROR, "cannot accept a connection: %s; trying again in a second", strerror(errno));
        uv_poll_stop(&server->poll);
        server->accept_paused = true;
        return false;
    }
    struct samkv_error err;
    if (samkv_connection_open(server, fd, &err) != SAMKV_OK)
        turn_away(fd, server, &err);
    return true;
}

static void on_connectable(uv_poll_t *poll, int status, int events)
{
    (void)status;
    (void)events;
    for (int i = 0; i < ACCEPTS_A_TURN && accept_one(poll->data); i++)
        ;
}

static void on_tick(uv_timer_t *timer)
{
    struct samkv_server *server = timer->data;
    uint64_t now = uv_now(&server->loop);
    atomic_store(&server->service->telemetry.ticked_ms, (uint64_t)samkv_now_ms());
    samkv_log_tick();
    if (server->accept_paused && !server->stopping_since_ms) {
        server->accept_paused = false;
        uv_poll_start(&server->poll, UV_READABLE, on_connectable);
    }
    for (struct samkv_connection *c = server->connections, *next; c; c = next) {
        next = c->next;
        samkv_connection_tick(c);
    }
    if (server->stopping_since_ms)
        watch_stop(server, now);
    if (server->watched)
        samkv_notify("WATCHDOG=1");
    samkv_server_after_change(server);
}

static void on_awake(uv_idle_t *idle)
{
    struct samkv_server *server = idle->data;
    if (uv_hrtime() >= server->awake_until_ns)
        uv_idle_stop(idle);
}

void samkv_server_stay_awake(struct samkv_server *server)
{
    server->awake_until_ns = uv_hrtime() + AWAKE_NS;
    uv_idle_start(&server->awake, on_awake);
}

static void deliver_all(struct samkv_server *server)
{
    struct samkv_outgoing *frame = samkv_outbox_take(&server->outbox);
    while (frame) {
        struct samkv_outgoing *next = frame->next;
        samkv_connection_deliver(frame);
        frame = next;
    }
}

static void on_outbox(uv_async_t *wake)
{
    deliver_all(wake->data);
    samkv_server_after_change(wake->data);
}

/* ------------------------------------------------------------------ life */

static enum samkv_status start_handles(struct samkv_server *server)
{
    const int signals[] = {SIGTERM, SIGINT};
    server->poll.data = server->timer.data = server;
    if (samkv_outbox_init(&server->outbox, &server->loop, on_outbox, server) != SAMKV_OK)
        return SAMKV_IO;
    server->outbox_open = true;
    for (int i = 0; i < 2; i++) {
        uv_signal_init(&server->loop, &server->signals[i]); /* 1.x cannot fail once the loop is */
        server->signals[i].data = server;
        if (uv_signal_start(&server->signals[i], on_signal, signals[i]) != 0)
            return SAMKV_IO;
    }
    uv_signal_init(&server->loop, &server->hangup);
    server->hangup.data = server;
    if (uv_signal_start(&server->hangup, on_hangup, SIGHUP) != 0)
        return SAMKV_IO;
    uv_idle_init(&server->loop, &server->awake);
    server->awake.data = server;
    uv_timer_init(&server->loop, &server->timer);
    uv_timer_start(&server->timer, on_tick, TICK_MS, TICK_MS);
    if (uv_poll_init(&server->loop, &server->poll, server->listener.fd) != 0 ||
        uv_poll_start(&server->poll, UV_READABLE, on_connectable) != 0)
        return SAMKV_IO;
    return SAMKV_OK;
}

static void close_one(uv_handle_t *handle, void *server)
{
    close_handle(server, handle);
}

enum samkv_status samkv_server_new(const struct samkv_server_options *options, struct samkv_server **out,
                                   struct samkv_error *err)
{
    struct samkv_listener listener = options->listener;
    struct samkv_server *server = calloc(1, sizeof *server);
    if (!server || uv_loop_init(&server->loop) != 0) {
        free(server);
        samkv_listener_close(&listener);
        return samkv_fail(err, SAMKV_NO_MEMORY, "cannot make the event loop");
    }
    server->service = options->service;
    if (!server->service->bounds)
        server->service->bounds = &samkv_bounds_default;
    server->users.budget = &server->budget;
    server->listener = listener;
    server->budget.limit = PAYLOADS_BYTES;
    server->reload = options->reload;
    server->reload_arg = options->reload_arg;
    server->watched = samkv_is_watched();
    samkv_lease_watches_init(&server->leases, &server->loop);
    samkv_connection_host_init(server);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file of a client's that may not grow is that client's failure */
    enum samkv_status st = samkv_telemetry_init(&server->service->telemetry);
    if (st == SAMKV_OK)
        st = start_handles(server);
    if (st == SAMKV_OK)
        st = samkv_pool_new(options->workers, (int)server->service->bounds->queue, &server->pool);
    server->service->telemetry.pool = server->pool;
    atomic_store(&server->service->telemetry.ticked_ms, (uint64_t)samkv_now_ms());
    if (st != SAMKV_OK) {
        samkv_server_free(server);
        return samkv_fail(err, st, "cannot start the event loop and %d workers", options->workers);
    }
    *out = server;
    return SAMKV_OK;
}

enum samkv_status samkv_server_run(struct samkv_server *server)
{
    uv_run(&server->loop, UV_RUN_DEFAULT);
    return server->timed_out ? SAMKV_TIMEOUT : SAMKV_OK;
}

void samkv_server_free(struct samkv_server *server)
{
    if (!server)
        return;
    samkv_pool_free(server->pool);
    server->pool = NULL;
    if (server->outbox_open)
        deliver_all(server); /* every request has ended now, and goes */
    stop_listening(server);
    while (server->connections)
        samkv_connection_close(server->connections);
    samkv_lease_watches_drop(&server->leases); /* before the models, and their pool, are closed */
    uv_walk(&server->loop, close_one, server);
    while (server->open_handles > 0 || server->leases.closing > 0)
        uv_run(&server->loop, UV_RUN_ONCE);
    if (server->outbox_open)
        samkv_outbox_deinit(&server->outbox);
    uv_loop_close(&server->loop);
    samkv_telemetry_deinit(&server->service->telemetry);
    free(server);
}
