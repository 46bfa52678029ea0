#include "daemon/net/session.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/net/message.h"

#define RECEIVES_A_TURN 8 /* so that one busy client does not keep the loop */

static const struct samkv_bounds *bounds_of(const struct samkv_session *s)
{
    return s->host->bounds ? s->host->bounds : &samkv_bounds_default;
}

/* Of one frame: a connection's bytes are the most that it can have. */
static size_t max_frame_bytes(const struct samkv_session *s)
{
    size_t most = bounds_of(s)->connection_bytes;
    return most < SAMKV_MAX_FRAME_BYTES ? most : SAMKV_MAX_FRAME_BYTES;
}

void samkv_session_init(struct samkv_session *s, int fd, const struct samkv_session_host *host,
                        struct samkv_budget *budget, uint64_t now_ms)
{
    s->host = host;
    s->fd = fd;
    s->state = SAMKV_SESSION_HELLO;
    samkv_input_init(&s->input, budget ? budget : host->budget, max_frame_bytes(s));
    s->received_since = s->sent_since = 0;
    samkv_output_init(&s->output, host->on_lease, host->arg);
    s->in_flight = 0;
    s->in_flight_bytes = 0;
    s->since_ms = s->received_ms = s->sent_ms = now_ms;
    s->received_begin = s->received_end = 0;
    s->fds = (struct samkv_fds){.count = 0};
    s->agent[0] = 0;
}

/* Closing a client's descriptor may block: it is not done here when somebody else can. */
static void drop_fds(struct samkv_session *s)
{
    if (s->fds.count && s->host->on_surplus)
        s->host->on_surplus(s->host->arg, &s->fds);
    samkv_fds_close(&s->fds);
}

struct samkv_fds samkv_session_take_fds(struct samkv_session *s)
{
    struct samkv_fds fds = s->fds;
    s->fds = (struct samkv_fds){.count = 0};
    return fds;
}

void samkv_session_deinit(struct samkv_session *s)
{
    drop_fds(s);
    samkv_input_deinit(&s->input);
    samkv_budget_give(s->input.budget, s->in_flight_bytes);
    samkv_output_deinit(&s->output);
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
}

static void change_state(struct samkv_session *s, enum samkv_session_state state, uint64_t now_ms)
{
    s->state = state;
    s->since_ms = now_ms;
}

/* ------------------------------------------------------------------ sending */

static void flush(struct samkv_session *s, uint64_t now_ms)
{
    size_t before = s->output.bytes;
    enum samkv_status st = samkv_output_flush(&s->output, s->fd);
    s->sent_since += before - s->output.bytes;
    if (s->output.bytes == 0 || s->sent_since >= SAMKV_BOUNDS_PROGRESS_BYTES) {
        s->sent_ms = now_ms;
        s->sent_since = 0;
    }
    assert(s->output.answered <= s->in_flight && s->output.charge <= s->in_flight_bytes);
    s->in_flight -= s->output.answered;
    s->in_flight_bytes -= s->output.charge;
    samkv_budget_give(s->input.budget, s->output.charge);
    samkv_metrics_add(s->host->metrics, SAMKV_METRIC_BYTES_SENT, s->output.bytes_sent);
    s->output.answered = 0;
    s->output.charge = s->output.bytes_sent = 0;
    if (st == SAMKV_CLOSED || (st == SAMKV_OK && s->state == SAMKV_SESSION_CLOSING))
        change_state(s, SAMKV_SESSION_CLOSED, now_ms);
}

/* Queues a frame and sends what the socket takes. */
static void send_frame(struct samkv_session *s, struct samkv_outgoing *frame, uint64_t now_ms)
{
    if (s->state >= SAMKV_SESSION_CLOSING) {
        samkv_outgoing_free(frame);
        return;
    }
    samkv_output_push(&s->output, frame);
    flush(s, now_ms);
}

enum samkv_status samkv_error_frame(const struct samkv_frame *request, const struct samkv_error *err,
                                    struct samkv_outgoing **out)
{
    Samkv__Error message = SAMKV__ERROR__INIT;
    message.status = err->status;
    message.message = (char *)err->text;
    return samkv_message_frame(request, SAMKV_FLAG_REPLY | SAMKV_FLAG_ERROR, &message.base, NULL, out, NULL);
}

void samkv_session_fail(struct samkv_session *s, const struct samkv_frame *request, size_t charge,
                        const struct samkv_error *err, uint64_t now_ms)
{
    struct samkv_outgoing *frame;
    samkv_metrics_add(s->host->metrics, SAMKV_METRIC_ERRORS, 1);
    samkv_metrics_add(s->host->metrics, SAMKV_METRIC_BUSY, err->status == SAMKV_BUSY);
    if (samkv_error_frame(request, err, &frame) != SAMKV_OK) {
        change_state(s, SAMKV_SESSION_CLOSED, now_ms); /* an unanswered request would wait for ever */
        return;
    }
    frame->last = true;
    frame->charge = charge;
    send_frame(s, frame, now_ms);
}

/* A request that was refused before it counted as one in flight. */
static void refuse(struct samkv_session *s, const struct samkv_frame *request, const struct samkv_error *err,
                   uint64_t now_ms)
{
    samkv_log(SAMKV_LOG_WARNING, "refused request=%llu agent=%s: %s", (unsigned long long)request->request_id, s->agent,
              err->text);
    s->in_flight++;
    samkv_session_fail(s, request, 0, err, now_ms);
}

/* One Error, then the end. */
static void break_off(struct samkv_session *s, const struct samkv_frame *request, const struct samkv_error *err,
                      uint64_t now_ms)
{
    samkv_metrics_add(s->host->metrics, SAMKV_METRIC_PROTOCOL_ERRORS, 1);
    refuse(s, request, err, now_ms);
    samkv_session_close(s, now_ms);
}

void samkv_session_close(struct samkv_session *s, uint64_t now_ms)
{
    if (s->state >= SAMKV_SESSION_CLOSING)
        return;
    change_state(s, s->output.bytes ? SAMKV_SESSION_CLOSING : SAMKV_SESSION_CLOSED, now_ms);
}

/* ------------------------------------------------------------------ HELLO and PING */

static void reply(struct samkv_session *s, const struct samkv_frame *request, const ProtobufCMessage *message,
                  uint64_t now_ms)
{
    struct samkv_outgoing *frame;
    if (samkv_message_frame(request, SAMKV_FLAG_REPLY, message, NULL, &frame, NULL) != SAMKV_OK)
        change_state(s, SAMKV_SESSION_CLOSED, now_ms);
    else
        send_frame(s, frame, now_ms);
}

static enum samkv_status check_hello(const Samkv__Hello *hello, struct samkv_error *err)
{
    if (hello->magic.len != strlen(SAMKV_MAGIC) || memcmp(hello->magic.data, SAMKV_MAGIC, hello->magic.len) != 0)
        return samkv_fail(err, SAMKV_PROTOCOL, "HELLO does not carry samkv's magic; is this another program's socket?");
    if (hello->version_min > SAMKV_PROTOCOL_VERSION || hello->version_max < SAMKV_PROTOCOL_VERSION)
        return samkv_fail(err, SAMKV_UNSUPPORTED,
                          "protocol versions %u to %u are not known here, only %d is; update %s", hello->version_min,
                          hello->version_max, SAMKV_PROTOCOL_VERSION,
                          hello->version_min > SAMKV_PROTOCOL_VERSION ? "samkvd" : "the client");
    return SAMKV_OK;
}

/* One plain word, so that in a log it cannot pass for other fields. */
static void copy_agent(char *out, size_t size, const char *from)
{
    size_t n = 0;
    for (; n + 1 < size && from[n]; n++)
        out[n] = from[n] > ' ' && from[n] < 0x7f && !strchr("\"'=:;\\", from[n]) ? from[n] : '_';
    out[n] = 0;
}

static void on_hello(struct samkv_session *s, const struct samkv_frame *frame, const struct samkv_buffer *payload,
                     uint64_t now_ms)
{
    struct samkv_unpacked unpacked;
    struct samkv_error err;
    enum samkv_status st = s->state == SAMKV_SESSION_HELLO
                               ? samkv_message_unpack(&samkv__hello__descriptor, payload, &unpacked, &err)
                               : samkv_fail(&err, SAMKV_PROTOCOL, "HELLO was said already");
    if (st != SAMKV_OK) {
        err.status = SAMKV_PROTOCOL;
        break_off(s, frame, &err, now_ms);
        return;
    }
    const Samkv__Hello *hello = (const Samkv__Hello *)unpacked.message;
    st = check_hello(hello, &err);
    if (st == SAMKV_OK) {
        copy_agent(s->agent, sizeof s->agent, hello->agent);
    }
    samkv_message_free(&unpacked);
    if (st != SAMKV_OK) {
        break_off(s, frame, &err, now_ms);
        return;
    }
    samkv_log(SAMKV_LOG_DEBUG, "hello agent=%s", s->agent);
    change_state(s, SAMKV_SESSION_READY, now_ms);
    s->input.greeted = true;
    Samkv__HelloReply message = SAMKV__HELLO_REPLY__INIT;
    message.version = SAMKV_PROTOCOL_VERSION;
    message.server = "samkvd/" SAMKV_VERSION;
    message.max_frame_bytes = max_frame_bytes(s);
    message.max_in_flight = bounds_of(s)->in_flight;
    reply(s, frame, &message.base, now_ms);
}

static void on_ping(struct samkv_session *s, const struct samkv_frame *frame, uint64_t now_ms)
{
    const Samkv__PingReply message = SAMKV__PING_REPLY__INIT;
    samkv_metrics_add(s->host->metrics, SAMKV_METRIC_PINGS, 1);
    reply(s, frame, &message.base, now_ms);
}

static void on_frame(struct samkv_session *s, const struct samkv_frame *frame, struct samkv_buffer *payload,
                     uint64_t now_ms)
{
    size_t charge = payload->capacity;
    if (frame->type == SAMKV_TYPE_HELLO || frame->type == SAMKV_TYPE_PING) {
        if (frame->type == SAMKV_TYPE_HELLO)
            on_hello(s, frame, payload, now_ms);
        else
            on_ping(s, frame, now_ms);
        samkv_buffer_deinit(payload);
        samkv_budget_give(s->input.budget, charge);
        return;
    }
    s->in_flight++;
    s->in_flight_bytes += charge;
    s->host->on_request(s->host->arg, s, frame, payload, charge);
}

/* ------------------------------------------------------------------ receiving */

/* May take another frame: the limits that make a client wait. */
static bool may_read(const struct samkv_session *s)
{
    const struct samkv_bounds *bounds = bounds_of(s);
    return s->state <= SAMKV_SESSION_READY && s->in_flight < bounds->in_flight &&
           s->in_flight_bytes < bounds->connection_bytes && s->output.bytes < SAMKV_SESSION_OUTPUT_BYTES;
}

/* The client got on with what it sends. */
static void note_received(struct samkv_session *s, uint64_t now_ms)
{
    s->received_ms = now_ms;
    s->received_since = 0;
}

/* Works off the bytes that were received, as far as the limits allow. */
static void pump(struct samkv_session *s, uint64_t now_ms)
{
    while (s->received_begin < s->received_end && may_read(s)) {
        struct samkv_frame frame;
        struct samkv_buffer payload;
        struct samkv_error err;
        size_t used;
        enum samkv_input_event event =
            samkv_input_feed(&s->input, s->received + s->received_begin, s->received_end - s->received_begin, &used,
                             &frame, &payload, &err);
        s->received_begin += used;
        if (event != SAMKV_INPUT_MORE)
            note_received(s, now_ms);
        if (event == SAMKV_INPUT_FRAME) {
            on_frame(s, &frame, &payload, now_ms);
        } else if (event == SAMKV_INPUT_REFUSED) {
            refuse(s, &frame, &err, now_ms);
        } else if (event == SAMKV_INPUT_BROKEN) {
            const struct samkv_frame nobody = {.type = SAMKV_TYPE_HELLO};
            break_off(s, &nobody, &err, now_ms);
        }
    }
    if (!may_read(s))
        note_received(s, now_ms); /* the client is not to blame for what we do not read */
    /* They come with a request's first byte, and what was received ends with that request or within it. */
    if (s->received_begin == s->received_end && !samkv_input_midway(&s->input))
        drop_fds(s);
}

/* One receive; true when there may be more. */
static bool receive(struct samkv_session *s, uint64_t now_ms)
{
    struct samkv_fds fds;
    /* -EMFILE, when descriptors came and we have no numbers left, ends it: bytes were lost with them. */
    ssize_t n = samkv_socket_receive(s->fd, s->received, sizeof s->received, &fds);
    if (fds.count) {
        drop_fds(s);
        s->fds = fds;
    }
    if (n == -EAGAIN || n == -EWOULDBLOCK)
        return false;
    if (n <= 0) {
        change_state(s, SAMKV_SESSION_CLOSED, now_ms);
        return false;
    }
    samkv_metrics_add(s->host->metrics, SAMKV_METRIC_BYTES_RECEIVED, (uint64_t)n);
    s->received_since += (size_t)n;
    if (s->received_since >= SAMKV_BOUNDS_PROGRESS_BYTES || !samkv_input_midway(&s->input))
        note_received(s, now_ms);
    s->received_begin = 0;
    s->received_end = (size_t)n;
    /* A short read emptied the socket: asking again would cost a system call for every ping. */
    return (size_t)n == sizeof s->received;
}

void samkv_session_on_readable(struct samkv_session *s, uint64_t now_ms)
{
    bool more = true;
    for (int i = 0; i < RECEIVES_A_TURN && more && may_read(s); i++) {
        /* What waits from before goes first; nothing may overwrite it. */
        if (s->received_begin == s->received_end)
            more = receive(s, now_ms);
        pump(s, now_ms);
    }
}

void samkv_session_on_writable(struct samkv_session *s, uint64_t now_ms)
{
    if (s->state == SAMKV_SESSION_CLOSED)
        return;
    flush(s, now_ms);
    pump(s, now_ms);
}

void samkv_session_send(struct samkv_session *s, struct samkv_outgoing *frame, uint64_t now_ms)
{
    send_frame(s, frame, now_ms);
    pump(s, now_ms);
}

void samkv_session_on_hangup(struct samkv_session *s, uint64_t now_ms)
{
    if (may_read(s))
        samkv_session_on_readable(s, now_ms);
    else
        change_state(s, SAMKV_SESSION_CLOSED, now_ms);
}

void samkv_session_on_tick(struct samkv_session *s, uint64_t now_ms)
{
    const char *why = NULL;
    const uint64_t stall_ms = bounds_of(s)->stall_ms;
    if (!may_read(s) || !samkv_input_midway(&s->input))
        note_received(s, now_ms);
    if (s->output.bytes == 0)
        s->sent_ms = now_ms;
    if (s->state == SAMKV_SESSION_HELLO && now_ms - s->since_ms >= SAMKV_SESSION_HELLO_MS)
        why = "it did not say HELLO";
    else if (s->state == SAMKV_SESSION_CLOSING && now_ms - s->since_ms >= SAMKV_SESSION_FAREWELL_MS)
        why = "it did not read its last reply";
    else if (now_ms - s->sent_ms >= stall_ms)
        why = "it does not read its replies";
    else if (samkv_input_midway(&s->input) && now_ms - s->received_ms >= stall_ms)
        why = "it stopped in the middle of a frame";
    if (!why || s->state == SAMKV_SESSION_CLOSED)
        return;
    samkv_log(SAMKV_LOG_WARNING, "connection closed agent=%s: %s", s->agent, why);
    change_state(s, SAMKV_SESSION_CLOSED, now_ms);
}

int samkv_session_wants(const struct samkv_session *s)
{
    if (s->state == SAMKV_SESSION_CLOSED)
        return 0;
    return (may_read(s) ? SAMKV_SESSION_READ : 0) | (s->output.bytes ? SAMKV_SESSION_WRITE : 0);
}
