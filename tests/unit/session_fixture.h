#pragma once
/* A session over a socket pair with a host that records requests, and its client. */
#include <dirent.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/net/session.h"
#include "tests/unit/frame_fixture.h"

struct seen {
    struct samkv_frame frame;
    size_t charge, count;
    uint8_t first; /* byte of the payload */
};

struct fixture {
    struct samkv_session *session;
    struct samkv_session_host host;
    struct samkv_metrics metrics;
    struct samkv_budget budget;
    struct seen seen[200];
    size_t seen_count;
    bool refuse; /* the host answers BUSY at once */
    int taken;   /* descriptors that came with the last request of type EXPORT, closed */
    int client;
};

SHARED void on_request(void *arg, struct samkv_session *session, const struct samkv_frame *frame,
                       struct samkv_buffer *payload, size_t charge)
{
    struct fixture *f = arg;
    ck_assert_uint_lt(f->seen_count, 200);
    f->seen[f->seen_count++] = (struct seen){*frame, charge, payload->count, payload->count ? payload->data[0] : 0};
    samkv_buffer_deinit(payload);
    if (frame->type == SAMKV_TYPE_EXPORT) {
        struct samkv_fds fds = samkv_session_take_fds(session);
        f->taken = fds.count;
        samkv_fds_close(&fds);
    }
    if (f->refuse) {
        struct samkv_error err;
        samkv_fail(&err, SAMKV_BUSY, "not now, try again");
        samkv_session_fail(session, frame, charge, &err, 0);
    }
}

SHARED void open_session(struct fixture *f)
{
    int pair[2];
    memset(f, 0, sizeof *f);
    f->budget.limit = 100u << 20;
    f->host = (struct samkv_session_host){on_request, f, &f->metrics, &f->budget};
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    f->client = pair[1];
    f->session = malloc(sizeof *f->session);
    samkv_session_init(f->session, pair[0], &f->host, NULL, 0);
    samkv_log_set_level(SAMKV_LOG_ERROR);
}

SHARED void close_session(struct fixture *f)
{
    samkv_session_deinit(f->session);
    ck_assert_uint_eq(f->budget.used, 0); /* whatever happened, nothing is owed */
    free(f->session);
    if (f->client >= 0)
        close(f->client);
}

/* Like make_frame for a HELLO with these fields. */
SHARED size_t make_hello(uint8_t *out, const char *magic, uint32_t from, uint32_t to)
{
    uint8_t payload[200];
    Samkv__Hello hello = SAMKV__HELLO__INIT;
    hello.magic.data = (uint8_t *)magic;
    hello.magic.len = strlen(magic);
    hello.version_min = from;
    hello.version_max = to;
    hello.agent = "test/1\x1b[2J";
    return make_frame(out, SAMKV_TYPE_HELLO, 0, 1, payload, (uint32_t)samkv__hello__pack(&hello, payload));
}

SHARED void client_sends(struct fixture *f, const void *bytes, size_t count)
{
    if (send(f->client, bytes, count, MSG_NOSIGNAL) != (ssize_t)count) /* ck_assert is slow in long loops */
        ck_abort_msg("the session does not read");
    samkv_session_on_readable(f->session, 0);
}

SHARED void client_sends_frame(struct fixture *f, uint16_t type, uint64_t id, const void *payload, uint32_t count)
{
    uint8_t bytes[5000];
    client_sends(f, bytes, make_frame(bytes, type, 0, id, payload, count));
}

/* The next frame at the client; its payload in `payload`. False when there is none. */
SHARED bool client_reads(struct fixture *f, struct samkv_frame *frame, uint8_t payload[1000])
{
    uint8_t header[SAMKV_FRAME_HEADER_BYTES];
    if (recv(f->client, header, sizeof header, 0) != sizeof header)
        return false;
    ck_assert_int_eq(samkv_frame_decode(header, frame), SAMKV_OK);
    ck_assert_uint_le(frame->payload_bytes, 1000);
    if (frame->payload_bytes)
        ck_assert_int_eq(recv(f->client, payload, frame->payload_bytes, 0), (ssize_t)frame->payload_bytes);
    return true;
}

SHARED void expect_error(struct fixture *f, uint16_t type, uint64_t id, enum samkv_status status)
{
    struct samkv_frame frame;
    uint8_t payload[1000];
    ck_assert(client_reads(f, &frame, payload));
    ck_assert_uint_eq(frame.type, type);
    ck_assert_uint_eq(frame.request_id, id);
    ck_assert_uint_eq(frame.flags, SAMKV_FLAG_REPLY | SAMKV_FLAG_ERROR);
    Samkv__Error *error = samkv__error__unpack(NULL, frame.payload_bytes, payload);
    ck_assert_ptr_nonnull(error);
    ck_assert_uint_eq(error->status, status);
    ck_assert_uint_gt(strlen(error->message), 10);
    ck_assert_ptr_null(strchr(error->message, '\n'));
    samkv__error__free_unpacked(error, NULL);
}

/* The session is over and the client sees the end once its owner lets it go. */
SHARED void expect_end(struct fixture *f)
{
    char byte;
    ck_assert_int_eq(f->session->state, SAMKV_SESSION_CLOSED);
    ck_assert_int_eq(samkv_session_wants(f->session), 0);
    samkv_session_deinit(f->session);
    ck_assert_int_le(recv(f->client, &byte, 1, 0), 0);
}

SHARED void greet(struct fixture *f)
{
    uint8_t bytes[300], payload[1000];
    struct samkv_frame frame;
    client_sends(f, bytes, make_hello(bytes, "samkv", 1, 1));
    ck_assert_int_eq(f->session->state, SAMKV_SESSION_READY);
    ck_assert(client_reads(f, &frame, payload));
    ck_assert_uint_eq(frame.flags, SAMKV_FLAG_REPLY);
}

/* The host's last reply to a request that it saw. */
SHARED void answer(struct fixture *f, size_t which, int fd, uint64_t now_ms)
{
    struct samkv_outgoing *frame;
    const Samkv__IngestReply message = SAMKV__INGEST_REPLY__INIT;
    struct samkv_fds fds = {.fd = {fd}, .count = fd >= 0};
    ck_assert_int_eq(samkv_message_frame(&f->seen[which].frame, SAMKV_FLAG_REPLY, &message.base, &fds, &frame, NULL),
                     SAMKV_OK);
    frame->last = true;
    frame->charge = f->seen[which].charge;
    samkv_session_send(f->session, frame, now_ms);
}

SHARED int open_fds(void)
{
    int count = 0;
    DIR *dir = opendir("/proc/self/fd");
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}
