#include "daemon/net/connection.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "daemon/base/log.h"

static void sync_poll(struct samkv_connection *c);
static void free_when_unused(struct samkv_connection *c);

static uint64_t now_ms(const struct samkv_connection *c)
{
    return uv_now(&c->server->loop);
}

/* ------------------------------------------------------------------ requests */

static void request_free(struct samkv_request *r)
{
    *r->link = r->next;
    if (r->next)
        r->next->link = r->link;
    samkv_buffer_deinit(&r->payload);
    struct samkv_user *user = ((struct samkv_connection *)r->connection)->user;
    user->requests--;
    user->bundles -= r->handler->takes_descriptor;
    free(r);
}

static int64_t unix_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* NULL without memory; the payload stays the caller's then. */
static struct samkv_request *request_new(struct samkv_connection *c, const struct samkv_handler *handler,
                                         const struct samkv_frame *frame, struct samkv_buffer *payload, size_t charge)
{
    struct samkv_request *r = calloc(1, sizeof *r);
    struct samkv_error no_memory;
    samkv_fail(&no_memory, SAMKV_NO_MEMORY, "out of memory for the answer; try again");
    if (!r || samkv_error_frame(frame, &no_memory, &r->spare) != SAMKV_OK) {
        free(r);
        return NULL;
    }
    r->handler = handler;
    r->service = c->server->service;
    r->outbox = &c->server->outbox;
    r->frame = *frame;
    if (handler->takes_descriptor)
        r->fds = samkv_session_take_fds(&c->session);
    samkv_buffer_move(payload, &r->payload);
    r->charge = charge;
    r->accepted_ms = samkv_now_ms();
    r->traced = (struct samkv_traced){.id = atomic_fetch_add(&r->service->telemetry.last_request, 1) + 1,
                                      .client_id = frame->request_id,
                                      .type = frame->type,
                                      .peer = c->caller.peer,
                                      .accepted_ms = r->accepted_ms,
                                      .accepted_unix_ms = unix_ms(),
                                      .request_bytes = frame->payload_bytes};
    memcpy(r->traced.agent, c->session.agent, sizeof r->traced.agent);
    r->connection = c;
    r->caller = &c->caller;
    c->user->requests++;
    c->user->bundles += handler->takes_descriptor;
    r->next = c->requests;
    r->link = &c->requests;
    if (r->next)
        r->next->link = &r->next;
    c->requests = r;
    return r;
}

static enum samkv_status submit(struct samkv_connection *c, const struct samkv_frame *frame,
                                struct samkv_buffer *payload, size_t charge, struct samkv_error *err)
{
    struct samkv_server *server = c->server;
    const struct samkv_handler *handler = samkv_handler_find(frame->type);
    if (!handler)
        return samkv_fail(err, SAMKV_UNSUPPORTED, "requests of type %u are not known here; is the client newer?",
                          frame->type);
    if (server->stopping_since_ms)
        return samkv_fail(err, SAMKV_BUSY, "the daemon is stopping; try again when it is back");
    uint32_t most = server->service->bounds->user_requests;
    if (!c->caller.admin && c->user->requests >= most)
        return samkv_fail(err, SAMKV_BUSY,
                          "%u requests of this user are under way already; try again when some have ended", most);
    if (!c->caller.admin && c->user->bundles && handler->takes_descriptor)
        return samkv_fail(err, SAMKV_BUSY,
                          "an export or import of this user runs already; try again when it has ended");
    struct samkv_request *r = request_new(c, handler, frame, payload, charge);
    if (!r)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory for the request; try again");
    atomic_fetch_add(&server->service->requests, 1); /* before a worker can see it */
    enum samkv_status st =
        samkv_pool_submit_for(server->pool, c->caller.peer.uid, handler->urgency, samkv_request_run, r);
    if (st != SAMKV_OK) {
        atomic_fetch_sub(&server->service->requests, 1);
        samkv_outgoing_free(r->spare);
        samkv_fds_close(&r->fds);
        request_free(r);
        return samkv_fail(err, st, "too many requests wait already; try again");
    }
    return SAMKV_OK;
}

static void on_request(void *arg, struct samkv_session *session, const struct samkv_frame *frame,
                       struct samkv_buffer *payload, size_t charge)
{
    struct samkv_connection *c =
        (struct samkv_connection *)((char *)session - offsetof(struct samkv_connection, session));
    struct samkv_error err;
    (void)arg;
    if (submit(c, frame, payload, charge, &err) == SAMKV_OK)
        return;
    samkv_buffer_deinit(payload);
    samkv_log(SAMKV_LOG_WARNING, "refused type=%s uid=%ld pid=%ld agent=%s status=%s: %s", samkv_type_name(frame->type),
              (long)c->caller.peer.uid, (long)c->caller.peer.pid, session->agent, samkv_status_name(err.status),
              err.text);
    samkv_session_fail(session, frame, charge, &err, now_ms(c));
}

static void on_lease(void *arg, struct samkv_lease_watch *watch)
{
    struct samkv_server *server = arg;
    samkv_lease_watch_start(&server->leases, watch);
}

static void close_fds(void *arg, bool cancelled)
{
    struct samkv_fds *fds = arg;
    (void)cancelled;
    samkv_fds_close(fds);
    free(fds);
}

static void on_surplus(void *arg, struct samkv_fds *fds)
{
    struct samkv_server *server = arg;
    struct samkv_fds *ours = server->pool ? malloc(sizeof *ours) : NULL;
    if (!ours)
        return;
    *ours = *fds;
    if (samkv_pool_submit(server->pool, SAMKV_URGENT, close_fds, ours) == SAMKV_OK)
        *fds = (struct samkv_fds){.count = 0};
    else
        free(ours);
}

void samkv_connection_host_init(struct samkv_server *server)
{
    server->host = (struct samkv_session_host){.on_request = on_request,
                                               .arg = server,
                                               .metrics = &server->service->metrics,
                                               .budget = &server->budget,
                                               .bounds = server->service->bounds,
                                               .on_lease = on_lease,
                                               .on_surplus = on_surplus};
}

/* What a client has not read yet is bounded: a reply behind more than that becomes an error, and its memory goes. */
static struct samkv_outgoing *or_busy(struct samkv_connection *c, struct samkv_request *r, struct samkv_outgoing *frame)
{
    struct samkv_metrics *metrics = &c->server->service->metrics;
    const struct samkv_output *output = &c->session.output;
    struct samkv_outgoing *busy;
    struct samkv_error err;
    size_t waiting = output->bytes + output->held_bytes;
    if (!frame->last || waiting <= c->server->service->bounds->connection_bytes)
        return frame;
    samkv_fail(&err, SAMKV_BUSY, "%zu bytes of replies wait to be read; read them, then try again", waiting);
    if (samkv_error_frame(&r->frame, &err, &busy) != SAMKV_OK)
        return frame;
    busy->last = true;
    busy->charge = frame->charge;
    samkv_outgoing_free(frame);
    samkv_metrics_add(metrics, SAMKV_METRIC_ERRORS, 1);
    samkv_metrics_add(metrics, SAMKV_METRIC_BUSY, 1);
    return busy;
}

void samkv_connection_deliver(struct samkv_outgoing *frame)
{
    struct samkv_request *r = frame->request;
    struct samkv_connection *c = r->connection;
    bool last = frame->last;
    frame->request = NULL;
    if (c->gone)
        samkv_outgoing_free(frame);
    else
        samkv_session_send(&c->session, or_busy(c, r, frame), now_ms(c));
    atomic_store_explicit(&r->backlog_bytes, c->gone ? 0 : c->session.output.bytes, memory_order_relaxed);
    if (last) {
        atomic_fetch_sub(&c->server->service->requests, 1);
        request_free(r);
    }
    if (!c->gone)
        sync_poll(c);
    else
        free_when_unused(c);
}

void samkv_connection_cancel(struct samkv_connection *c)
{
    for (struct samkv_request *r = c->requests; r; r = r->next)
        samkv_request_cancel(r);
}

/* ------------------------------------------------------------------ life */

static void free_when_unused(struct samkv_connection *c)
{
    if (!c->handle_closed || c->requests)
        return;
    samkv_users_leave(&c->server->users, c->user);
    samkv_caller_deinit(&c->caller);
    free(c);
}

static void on_poll_closed(uv_handle_t *handle)
{
    struct samkv_connection *c = handle->data;
    c->server->open_handles--;
    c->handle_closed = true;
    free_when_unused(c);
}

void samkv_connection_close(struct samkv_connection *c)
{
    if (c->gone)
        return;
    c->gone = true;
    struct samkv_server *server = c->server;
    *c->link = c->next;
    if (c->next)
        c->next->link = c->link;
    atomic_fetch_sub(&server->service->connections, 1);
    samkv_log(SAMKV_LOG_DEBUG, "disconnected agent=%s", c->session.agent);
    samkv_connection_cancel(c);
    uv_poll_stop(&c->poll);
    samkv_session_deinit(&c->session);
    server->open_handles++;
    uv_close((uv_handle_t *)&c->poll, on_poll_closed);
}

static void on_ready(uv_poll_t *poll, int status, int events)
{
    struct samkv_connection *c = poll->data;
    uint64_t now = now_ms(c);
    if (status < 0)
        events = UV_DISCONNECT;
    if (events & UV_WRITABLE)
        samkv_session_on_writable(&c->session, now);
    if (events & UV_READABLE) {
        samkv_session_on_readable(&c->session, now);
        samkv_server_stay_awake(c->server);
    } else if (events & UV_DISCONNECT) {
        samkv_session_on_hangup(&c->session, now);
    }
    sync_poll(c);
    samkv_server_after_change(c->server); /* c itself lives until its close callback */
}

/* After anything happened to a session: waits for what it wants now, or ends it. */
static void sync_poll(struct samkv_connection *c)
{
    if (c->gone)
        return;
    if (c->session.state == SAMKV_SESSION_CLOSED) {
        samkv_connection_close(c);
        return;
    }
    int wants = samkv_session_wants(&c->session);
    int events = UV_DISCONNECT | (wants & SAMKV_SESSION_READ ? UV_READABLE : 0) |
                 (wants & SAMKV_SESSION_WRITE ? UV_WRITABLE : 0);
    if (events == c->polled)
        return;
    c->polled = events;
    uv_poll_start(&c->poll, events, on_ready);
}

/* Whoever it is may have one connection more. Those that are closed count until their requests have ended. */
static enum samkv_status admit(const struct samkv_server *server, const struct samkv_caller *caller,
                               struct samkv_error *err)
{
    const struct samkv_bounds *bounds = server->service->bounds;
    const struct samkv_user *user = samkv_users_find(&server->users, caller->peer.uid);
    uint32_t most = bounds->connections + (caller->admin ? SAMKV_BOUNDS_ADMIN_CONNECTIONS : 0);
    if (atomic_load(&server->service->connections) >= most)
        return samkv_fail(err, SAMKV_BUSY, "%u clients are connected already; try again", bounds->connections);
    if (user && !caller->admin && user->connections >= bounds->user_connections)
        return samkv_fail(err, SAMKV_BUSY, "%u clients of this user are connected already; try again",
                          bounds->user_connections);
    return SAMKV_OK;
}

static void begin(struct samkv_connection *c, struct samkv_server *server, int fd)
{
    c->server = server;
    c->requests = NULL;
    c->polled = 0;
    c->gone = c->handle_closed = false;
    c->poll.data = c;
    c->next = server->connections;
    c->link = &server->connections;
    if (c->next)
        c->next->link = &c->next;
    server->connections = c;
    samkv_session_init(&c->session, fd, &server->host, &c->user->budget, uv_now(&server->loop));
    atomic_fetch_add(&server->service->connections, 1);
    samkv_metrics_add(&server->service->metrics, SAMKV_METRIC_CONNECTIONS, 1);
    sync_poll(c);
}

enum samkv_status samkv_connection_open(struct samkv_server *server, int fd, struct samkv_error *err)
{
    struct samkv_caller caller;
    enum samkv_status st = samkv_caller_init(&caller, fd, &server->service->access, err);
    if (st != SAMKV_OK)
        return st;
    st = admit(server, &caller, err);
    struct samkv_connection *c = st == SAMKV_OK ? malloc(sizeof *c) : NULL;
    struct samkv_user *user = c ? samkv_users_join(&server->users, caller.peer.uid) : NULL;
    if (st == SAMKV_OK && (!user || uv_poll_init(&server->loop, &c->poll, fd) != 0))
        st = samkv_fail(err, SAMKV_NO_MEMORY, "out of memory for a connection; try again");
    if (st != SAMKV_OK) {
        if (user)
            samkv_users_leave(&server->users, user);
        free(c);
        samkv_caller_deinit(&caller);
        return st;
    }
    c->caller = caller;
    c->user = user;
    begin(c, server, fd);
    return SAMKV_OK;
}

/* Those whose time is over, to about a second. */
static void cancel_late(struct samkv_connection *c)
{
    uint64_t now = (uint64_t)samkv_now_ms();
    for (struct samkv_request *r = c->requests; r; r = r->next) {
        uint64_t deadline = atomic_load(&r->deadline_ms);
        if (deadline && now >= deadline)
            samkv_request_cancel(r);
    }
}

void samkv_connection_tick(struct samkv_connection *c)
{
    cancel_late(c);
    samkv_session_on_tick(&c->session, now_ms(c));
    sync_poll(c);
}

void samkv_connection_end(struct samkv_connection *c)
{
    samkv_session_close(&c->session, now_ms(c));
    sync_poll(c);
}
