#include "client/client_internal.h"

#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <time.h>

/* The public header may not include the wire's: these must say the same. */
#define SAME_VALUE(name, value)                                                                                        \
    _Static_assert(SAMKV_TYPE_##name == SAMKV_TYPE_HELLO || (int)SAMKV_TYPE_##name == (int)SAMKV_OPERATION_##name,     \
                   "operation " #name);
#define SAMKV_OPERATION_HELLO 1
#define SPIN_US               100
SAMKV_TYPE_MAP(SAME_VALUE)

const char *samkv_client_version(void)
{
    return SAMKV_VERSION;
}

int64_t samkv_client_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ------------------------------------------------------------------ completions */

static void append_done(struct samkv_client *client, struct samkv_done *done)
{
    done->next = NULL;
    *client->done_tail = done;
    client->done_tail = &done->next;
}

static struct samkv_pending *find_pending(struct samkv_client *client, uint64_t id)
{
    for (size_t i = 0; i < client->pending_count; i++)
        if (client->pending[i].id == id)
            return &client->pending[i];
    return NULL;
}

static void forget(struct samkv_client *client, struct samkv_pending *pending)
{
    samkv_device_unmap(&pending->announced);
    free(pending->done);
    *pending = client->pending[--client->pending_count];
}

/* Nobody waits for the answer any more: what was announced goes back at once, since the answer may take long. */
static void abandon(struct samkv_pending *pending)
{
    pending->abandoned = true;
    samkv_device_unmap(&pending->announced);
}

/* Hands the request's failure over and stops waiting for it. */
static void give_up(struct samkv_client *client, struct samkv_pending *pending, const struct samkv_error *why)
{
    if (!pending->abandoned) {
        samkv_reply_fail(&pending->done->reply, why);
        append_done(client, pending->done);
        pending->done = NULL;
    }
    abandon(pending);
}

/* The connection is over: everything in flight ends with the same words. */
static void break_connection(struct samkv_client *client, const struct samkv_error *why)
{
    client->failure = *why;
    while (client->pending_count) {
        give_up(client, &client->pending[0], why);
        forget(client, &client->pending[0]);
    }
    samkv_wire_deinit(&client->wire);
}

static void rearm(struct samkv_pending *pending)
{
    pending->deadline_ms = samkv_client_now_ms() + pending->timeout_ms;
}

static void expire(struct samkv_client *client)
{
    int64_t now = samkv_client_now_ms();
    for (size_t i = 0; i < client->pending_count; i++) {
        struct samkv_pending *pending = &client->pending[i];
        if (pending->abandoned || !pending->timeout_ms || now < pending->deadline_ms)
            continue;
        struct samkv_error err;
        samkv_fail(&err, SAMKV_TIMEOUT, "no answer within %d ms: the daemon is busy, allow more time",
                   pending->timeout_ms);
        give_up(client, pending, &err);
    }
}

/* A piece of a stream needs a place of its own; the request's own one is kept for its end. */
static void deliver_piece(struct samkv_client *client, struct samkv_pending *pending, struct samkv_incoming *incoming)
{
    struct samkv_done *piece = calloc(1, sizeof *piece);
    if (!piece) {
        struct samkv_error err;
        samkv_fail(&err, SAMKV_NO_MEMORY, "no memory for a piece of the answer");
        give_up(client, pending, &err);
        samkv_incoming_deinit(incoming);
        return;
    }
    piece->reply = pending->done->reply;
    piece->reply.more = true;
    rearm(pending);
    samkv_reply_decode(&piece->reply, incoming);
    if (!piece->reply.status) {
        append_done(client, piece);
        return;
    }
    give_up(client, pending, &piece->reply.error);
    free(piece);
}

/*
 * Where K and V of a fetch will be: mapped while the daemon still computes. A later announcement takes an earlier one's
 * place. What fails here becomes the request's failure when its answer is complete.
 */
static void on_announcement(struct samkv_pending *pending, struct samkv_incoming *incoming)
{
    struct samkv_error *err = &pending->announce_failure;
    Samkv__FetchReply *m = samkv__fetch_reply__unpack(NULL, incoming->frame.payload_bytes, incoming->payload);
    samkv_device_unmap(&pending->announced);
    *err = (struct samkv_error){.status = SAMKV_OK};
    rearm(pending);
    if (pending->abandoned) {
        err->status = SAMKV_CANCELLED; /* nobody will read it */
    } else if (m) {
        if (!samkv_device_map_announced(m->device, &incoming->fds, &pending->announced, err))
            err->status = SAMKV_OK;
    } else {
        samkv_fail(err, SAMKV_PROTOCOL, "the daemon's announcement cannot be read: update the daemon or this library");
    }
    if (m)
        samkv__fetch_reply__free_unpacked(m, NULL);
    samkv_incoming_deinit(incoming);
}

static bool may_stream(const struct samkv_pending *pending)
{
    switch (pending->operation) {
    case SAMKV_OPERATION_FETCH:
        return pending->device_asked;
    case SAMKV_OPERATION_ASK:
    case SAMKV_OPERATION_EVALUATE:
    case SAMKV_OPERATION_VERIFY:
    case SAMKV_OPERATION_REMOVE:
    case SAMKV_OPERATION_GC:
    case SAMKV_OPERATION_COMPACT:
    case SAMKV_OPERATION_CALIBRATE:
    case SAMKV_OPERATION_EXPORT:
    case SAMKV_OPERATION_IMPORT:
        return true;
    default:
        return false;
    }
}

/* What a frame must be to be believed; NULL, or what is wrong with it. */
static const char *frame_fault(const struct samkv_frame *frame, const struct samkv_pending *pending)
{
    if (!(frame->flags & SAMKV_FLAG_REPLY))
        return "the daemon sent a request";
    if (!pending)
        return "the daemon answered a request that was not made";
    if (frame->type != (uint16_t)pending->operation)
        return "the daemon answered with another type";
    if (frame->flags & SAMKV_FLAG_MORE && (!may_stream(pending) || frame->flags & SAMKV_FLAG_ERROR))
        return "the daemon announced more of an answer that has one piece";
    if (frame->flags & SAMKV_FLAG_FD &&
        (pending->operation != SAMKV_OPERATION_FETCH || frame->flags & SAMKV_FLAG_ERROR))
        return "the daemon sent descriptors that nobody asked for";
    return NULL;
}

static enum samkv_status on_frame(struct samkv_client *client, struct samkv_incoming *incoming, struct samkv_error *err)
{
    const struct samkv_frame *frame = &incoming->frame;
    if (!frame->request_id && frame->flags & SAMKV_FLAG_ERROR) {
        samkv_reply_error(incoming->payload, frame->payload_bytes, err);
        samkv_incoming_deinit(incoming);
        return err->status;
    }
    struct samkv_pending *pending = find_pending(client, frame->request_id);
    const char *fault = frame_fault(frame, pending);
    if (fault) {
        samkv_incoming_deinit(incoming);
        return samkv_fail(err, SAMKV_PROTOCOL, "%s: update the daemon or this library", fault);
    }
    bool more = frame->flags & SAMKV_FLAG_MORE;
    incoming->device_asked = pending->device_asked;
    incoming->announced = &pending->announced;
    if (more && pending->operation == SAMKV_OPERATION_FETCH) {
        on_announcement(pending, incoming);
    } else if (pending->abandoned) {
        samkv_incoming_deinit(incoming);
    } else if (more) {
        deliver_piece(client, pending, incoming);
    } else {
        struct samkv_error failure = pending->announce_failure;
        if (failure.status && !(frame->flags & SAMKV_FLAG_ERROR)) {
            samkv_incoming_deinit(incoming);
            samkv_reply_fail(&pending->done->reply, &failure);
        } else {
            samkv_reply_decode(&pending->done->reply, incoming);
        }
        append_done(client, pending->done);
        pending->done = NULL;
    }
    if (!more)
        forget(client, pending);
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ public: the event loop's side */

enum samkv_status samkv_client_submit(struct samkv_client *client, enum samkv_operation operation,
                                      const ProtobufCMessage *message, uint64_t *request, struct samkv_error *err)
{
    return samkv_client_submit_with(client, operation, message, -1, request, err);
}

enum samkv_status samkv_client_submit_with(struct samkv_client *client, enum samkv_operation operation,
                                           const ProtobufCMessage *message, int fd, uint64_t *request,
                                           struct samkv_error *err)
{
    if (client->failure.status)
        return samkv_fail(err, client->failure.status, "%s", client->failure.text);
    if (client->pending_count >= client->max_in_flight)
        return samkv_fail(err, SAMKV_BUSY, "%u requests are in flight already: process answers first",
                          client->max_in_flight);
    struct samkv_done *done = calloc(1, sizeof *done);
    if (!done)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for a request");
    struct samkv_frame frame = {.type = (uint16_t)operation, .request_id = client->last_id + 1};
    enum samkv_status status = samkv_wire_queue(&client->wire, frame, message, fd, client->max_frame_bytes, err);
    if (status) {
        free(done);
        return status;
    }
    done->reply.request = *request = ++client->last_id;
    done->reply.operation = operation;
    struct samkv_pending *pending = &client->pending[client->pending_count++];
    *pending =
        (struct samkv_pending){.id = *request, .operation = operation, .timeout_ms = client->timeout_ms, .done = done};
    pending->device_asked = operation == SAMKV_OPERATION_FETCH &&
                            ((const Samkv__FetchRequest *)message)->placement != SAMKV__PLACEMENT__HOST;
    rearm(pending);
    /* Most requests fit the socket at once. When the connection breaks here, the request's answer says so. */
    struct samkv_error why;
    if (samkv_wire_flush(&client->wire, &why))
        break_connection(client, &why);
    return SAMKV_OK;
}

/* Takes all frames that are here. BUSY, or the connection's end with its reason. */
static bool drain(struct samkv_client *client, struct samkv_error *why)
{
    for (;;) {
        struct samkv_incoming incoming;
        enum samkv_status status = samkv_wire_receive(&client->wire, &incoming, why);
        if (status == SAMKV_BUSY)
            return true;
        if (status || on_frame(client, &incoming, why))
            return false;
    }
}

enum samkv_status samkv_client_process(struct samkv_client *client, struct samkv_error *err)
{
    struct samkv_error why;
    if (!client->failure.status) {
        if (!samkv_wire_flush(&client->wire, &why) && drain(client, &why)) {
            expire(client);
            return SAMKV_OK;
        }
        break_connection(client, &why);
    }
    return samkv_fail(err, client->failure.status, "%s", client->failure.text);
}

bool samkv_client_next(struct samkv_client *client, struct samkv_reply *out)
{
    struct samkv_done *done = client->done_head;
    if (!done)
        return false;
    client->done_head = done->next;
    if (!client->done_head)
        client->done_tail = &client->done_head;
    *out = done->reply;
    free(done);
    return true;
}

static bool take(struct samkv_client *client, uint64_t request, struct samkv_reply *out)
{
    for (struct samkv_done **at = &client->done_head; *at; at = &(*at)->next) {
        struct samkv_done *done = *at;
        if (done->reply.request != request)
            continue;
        *at = done->next;
        if (client->done_tail == &done->next)
            client->done_tail = at;
        *out = done->reply;
        free(done);
        return true;
    }
    return false;
}

void samkv_client_abandon(struct samkv_client *client, uint64_t request)
{
    struct samkv_pending *pending = find_pending(client, request);
    if (pending)
        abandon(pending);
    struct samkv_reply reply;
    while (take(client, request, &reply))
        samkv_reply_deinit(&reply);
}

int samkv_client_fd(const struct samkv_client *client)
{
    return client->wire.socket;
}

bool samkv_client_wants_write(const struct samkv_client *client)
{
    return samkv_wire_pending(&client->wire);
}

int samkv_client_wait_ms(const struct samkv_client *client)
{
    int64_t least = INT64_MAX, now = samkv_client_now_ms();
    for (size_t i = 0; i < client->pending_count; i++) {
        const struct samkv_pending *pending = &client->pending[i];
        if (!pending->abandoned && pending->timeout_ms && pending->deadline_ms < least)
            least = pending->deadline_ms;
    }
    if (least == INT64_MAX)
        return -1;
    return least <= now ? 0 : least - now > INT_MAX ? INT_MAX : (int)(least - now);
}

static int64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

void samkv_client_poll(struct samkv_client *client, int timeout_ms)
{
    struct pollfd p = {.fd = client->wire.socket, .events = POLLIN};
    if (samkv_wire_pending(&client->wire))
        p.events |= POLLOUT;
    /* Small answers come sooner than a sleeping processor wakes. */
    int64_t until = now_us() + SPIN_US;
    while (timeout_ms != 0 && now_us() < until)
        if (poll(&p, 1, 0) != 0)
            return;
    poll(&p, 1, timeout_ms);
}

void samkv_client_wait(struct samkv_client *client, uint64_t request, struct samkv_reply *out)
{
    for (;;) {
        enum samkv_status status = samkv_client_process(client, NULL);
        /* When the connection ends, process has completed all requests, this one too. */
        if (take(client, request, out))
            return;
        if (status) {
            *out = (struct samkv_reply){.request = request};
            samkv_reply_fail(out, &client->failure);
            return;
        }
        samkv_client_poll(client, samkv_client_wait_ms(client));
    }
}

void samkv_client_set_timeout_ms(struct samkv_client *client, int timeout_ms)
{
    client->timeout_ms = timeout_ms > 0 ? timeout_ms : 0;
}

const char *samkv_client_server(const struct samkv_client *client)
{
    return client->server;
}

uint64_t samkv_client_max_request_bytes(const struct samkv_client *client)
{
    return client->max_frame_bytes;
}

void samkv_client_close(struct samkv_client *client)
{
    if (!client)
        return;
    while (client->pending_count)
        forget(client, &client->pending[0]);
    struct samkv_reply reply;
    while (samkv_client_next(client, &reply))
        samkv_reply_deinit(&reply);
    samkv_wire_deinit(&client->wire);
    free(client);
}
