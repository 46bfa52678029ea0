/*
 * A client's bytes as the daemon's loop sees them. The first byte says how they are cut and whether descriptors come
 * with them; the rest is the stream. What comes back are whole frames, errors in them have one line, and nothing is
 * owed at the end: no memory, no descriptor.
 */
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/net/message.h"
#include "daemon/net/session.h"
#include "tests/fuzz/fuzz.h"

#define ATTACH 0x80

struct client {
    int fd;
    struct samkv_budget budget;
    struct samkv_session *session;
    uint8_t received[1 << 16];
    size_t count; /* of received */
};

static void reply(struct samkv_session *session, const struct samkv_frame *frame, size_t charge)
{
    const Samkv__ListReply message = SAMKV__LIST_REPLY__INIT;
    struct samkv_outgoing *out;
    struct samkv_error err;
    FUZZ_REQUIRE(!samkv_message_frame(frame, SAMKV_FLAG_REPLY, &message.base, NULL, &out, &err), "%s", err.text);
    out->last = true;
    out->charge = charge;
    samkv_session_send(session, out, 0);
}

static void on_request(void *arg, struct samkv_session *session, const struct samkv_frame *frame,
                       struct samkv_buffer *payload, size_t charge)
{
    (void)arg;
    fuzz_touch(payload->data, payload->count);
    FUZZ_REQUIRE(payload->count == frame->payload_bytes, "%zu of %u bytes", payload->count, frame->payload_bytes);
    samkv_buffer_deinit(payload);
    if (frame->type == SAMKV_TYPE_EXPORT) {
        struct samkv_fds fds = samkv_session_take_fds(session);
        samkv_fds_close(&fds);
    }
    if (frame->type % 2) {
        struct samkv_error err;
        samkv_fail(&err, SAMKV_BUSY, "not now, try again");
        samkv_session_fail(session, frame, charge, &err, 0);
    } else {
        reply(session, frame, charge);
    }
}

static void check_frame(const struct samkv_frame *frame, const uint8_t *payload)
{
    FUZZ_REQUIRE(frame->flags & SAMKV_FLAG_REPLY && !(frame->flags & SAMKV_FLAG_FD), "flags %u", frame->flags);
    if (!(frame->flags & SAMKV_FLAG_ERROR))
        return;
    Samkv__Error *error = samkv__error__unpack(NULL, frame->payload_bytes, payload);
    FUZZ_REQUIRE(error && error->status, "no error");
    FUZZ_REQUIRE(strlen(error->message) > 8 && !strchr(error->message, '\n'), "'%s'", error->message);
    samkv__error__free_unpacked(error, NULL);
}

/* Reads what the session has sent. */
static void drain(struct client *c)
{
    for (;;) {
        ssize_t n = recv(c->fd, c->received + c->count, sizeof c->received - c->count, MSG_DONTWAIT);
        if (n <= 0)
            return;
        c->count += (size_t)n;
        size_t at = 0;
        while (c->count - at >= SAMKV_FRAME_HEADER_BYTES) {
            struct samkv_frame frame;
            FUZZ_REQUIRE(!samkv_frame_decode(c->received + at, &frame), "no frame");
            FUZZ_REQUIRE(frame.payload_bytes < sizeof c->received / 2, "%u bytes", frame.payload_bytes);
            if (c->count - at < SAMKV_FRAME_HEADER_BYTES + frame.payload_bytes)
                break;
            check_frame(&frame, c->received + at + SAMKV_FRAME_HEADER_BYTES);
            at += SAMKV_FRAME_HEADER_BYTES + frame.payload_bytes;
        }
        memmove(c->received, c->received + at, c->count - at);
        c->count -= at;
    }
}

static void converse(struct client *c, const uint8_t *data, size_t size, size_t piece, bool attach)
{
    for (size_t at = 0; at < size;) {
        struct samkv_fds fds = {.count = 0};
        if (attach) {
            fds.fd[0] = dup(c->fd);
            fds.count = fds.fd[0] >= 0;
        }
        ssize_t n = samkv_socket_send(c->fd, data + at, size - at < piece ? size - at : piece, attach ? &fds : NULL);
        samkv_fds_close(&fds);
        if (n > 0)
            at += (size_t)n;
        if (samkv_session_wants(c->session) & SAMKV_SESSION_READ)
            samkv_session_on_readable(c->session, at);
        if (samkv_session_wants(c->session) & SAMKV_SESSION_WRITE)
            samkv_session_on_writable(c->session, at);
        drain(c);
        if (c->session->state == SAMKV_SESSION_CLOSED || n <= 0)
            return;
    }
}

/* The number that the next descriptor will get: a leak moves it. */
static int next_fd(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    close(fd);
    return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct samkv_metrics metrics;
    if (!size)
        return 0;
    samkv_log_set_level(SAMKV_LOG_ERROR);
    int pair[2], free_fd = next_fd();
    heap_begin();
    struct client *c = calloc(1, sizeof *c);
    FUZZ_REQUIRE(c && !socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), "no socket");
    c->fd = pair[1];
    c->budget.limit = 100u << 20;
    c->session = malloc(sizeof *c->session);
    FUZZ_REQUIRE(c->session, "no memory");
    const struct samkv_session_host host = {
        .on_request = on_request, .arg = c, .metrics = &metrics, .budget = &c->budget};
    samkv_session_init(c->session, pair[0], &host, NULL, 0);
    converse(c, data + 1, size - 1, 1 + 37 * (size_t)(data[0] & 0x7f), data[0] & ATTACH);
    samkv_session_on_hangup(c->session, 1);
    samkv_session_on_tick(c->session, 100000);
    samkv_session_deinit(c->session);
    FUZZ_REQUIRE(c->budget.used == 0, "%zu bytes are owed", c->budget.used);
    FUZZ_REQUIRE(c->count < SAMKV_FRAME_HEADER_BYTES + 1000, "%zu bytes are no frame", c->count);
    close(c->fd);
    free(c->session);
    free(c);
    FUZZ_REQUIRE(next_fd() == free_fd, "descriptors are left open");
    fuzz_check_heap(size, 8, 1 << 20);
    return 0;
}
