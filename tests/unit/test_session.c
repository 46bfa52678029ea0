#include <sys/mman.h>

#include "tests/unit/session_fixture.h"

/* ------------------------------------------------------------------ conversations */

START_TEST(hello_then_ping)
{
    struct fixture f;
    struct samkv_frame frame;
    uint8_t bytes[300], payload[1000];
    open_session(&f);
    client_sends(&f, bytes, make_hello(bytes, "samkv", 0, 9));
    ck_assert(client_reads(&f, &frame, payload));
    Samkv__HelloReply *reply = samkv__hello_reply__unpack(NULL, frame.payload_bytes, payload);
    ck_assert_ptr_nonnull(reply);
    ck_assert_uint_eq(reply->version, SAMKV_PROTOCOL_VERSION);
    ck_assert_uint_eq(reply->max_frame_bytes, SAMKV_MAX_FRAME_BYTES);
    ck_assert_uint_eq(reply->max_in_flight, SAMKV_MAX_IN_FLIGHT);
    samkv__hello_reply__free_unpacked(reply, NULL);
    client_sends_frame(&f, SAMKV_TYPE_PING, 0xfedcba9876543210, NULL, 0);
    ck_assert(client_reads(&f, &frame, payload));
    ck_assert_uint_eq(frame.type, SAMKV_TYPE_PING);
    ck_assert_uint_eq(frame.flags, SAMKV_FLAG_REPLY);
    ck_assert_uint_eq(frame.request_id, 0xfedcba9876543210);
    ck_assert_uint_eq(f.session->in_flight, 0);
    ck_assert_int_eq(samkv_session_wants(f.session), SAMKV_SESSION_READ);
    close_session(&f);
}
END_TEST

static void expect_farewell(struct fixture *f, uint64_t id, enum samkv_status status)
{
    expect_error(f, SAMKV_TYPE_HELLO, id, status);
    expect_end(f);
    ck_assert_uint_eq(f->seen_count, 0);
    ck_assert_uint_eq(f->budget.used, 0);
    free(f->session);
    close(f->client);
}

START_TEST(garbage_before_hello_gets_one_error_and_the_end)
{
    static const char http[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    struct fixture f;
    uint8_t bytes[9000];
    open_session(&f);
    client_sends(&f, http, sizeof http);
    expect_farewell(&f, 0, SAMKV_PROTOCOL);
    open_session(&f); /* a request before HELLO */
    client_sends(&f, bytes, make_frame(bytes, SAMKV_TYPE_PING, 0, 5, NULL, 0));
    expect_farewell(&f, 0, SAMKV_PROTOCOL);
    open_session(&f); /* a HELLO that claims too much */
    const struct samkv_frame claim = {SAMKV_MAX_HELLO_BYTES + 1, SAMKV_TYPE_HELLO, 0, 5};
    samkv_frame_encode(&claim, bytes);
    client_sends(&f, bytes, SAMKV_FRAME_HEADER_BYTES);
    expect_farewell(&f, 0, SAMKV_PROTOCOL);
    open_session(&f); /* a HELLO that is no message */
    client_sends(&f, bytes, make_frame(bytes, SAMKV_TYPE_HELLO, 0, 6, "\xff\xff\xff", 3));
    expect_farewell(&f, 6, SAMKV_PROTOCOL);
    open_session(&f); /* a HELLO to somebody else */
    client_sends(&f, bytes, make_hello(bytes, "redis", 1, 1));
    expect_farewell(&f, 1, SAMKV_PROTOCOL);
}
END_TEST

START_TEST(other_versions_are_told)
{
    struct fixture f;
    uint8_t bytes[300];
    open_session(&f);
    client_sends(&f, bytes, make_hello(bytes, "samkv", 2, 3));
    expect_farewell(&f, 1, SAMKV_UNSUPPORTED);
    open_session(&f);
    client_sends(&f, bytes, make_hello(bytes, "samkv", 0, 0));
    expect_farewell(&f, 1, SAMKV_UNSUPPORTED);
}
END_TEST

START_TEST(hello_is_said_once)
{
    struct fixture f;
    uint8_t bytes[300];
    open_session(&f);
    greet(&f);
    client_sends(&f, bytes, make_hello(bytes, "samkv", 1, 1));
    expect_farewell(&f, 1, SAMKV_PROTOCOL);
}
END_TEST

START_TEST(garbage_after_hello_ends_it_too)
{
    struct fixture f;
    uint8_t bytes[300];
    memset(bytes, 0xee, sizeof bytes);
    open_session(&f);
    greet(&f);
    client_sends(&f, bytes, sizeof bytes);
    expect_farewell(&f, 0, SAMKV_PROTOCOL);
}
END_TEST

START_TEST(requests_reach_the_host_and_answers_the_client)
{
    struct fixture f;
    struct samkv_frame frame;
    uint8_t payload[1000];
    open_session(&f);
    greet(&f);
    client_sends_frame(&f, SAMKV_TYPE_INGEST, 21, "abc", 3);
    client_sends_frame(&f, 777, 22, "", 0); /* types are the host's to judge */
    ck_assert_uint_eq(f.seen_count, 2);
    ck_assert_uint_eq(f.seen[0].frame.type, SAMKV_TYPE_INGEST);
    ck_assert_uint_eq(f.seen[0].count, 3);
    ck_assert_uint_eq(f.seen[0].first, 'a');
    ck_assert_uint_eq(f.seen[1].frame.type, 777);
    ck_assert_uint_eq(f.session->in_flight, 2);
    ck_assert_uint_eq(f.budget.used, 3);
    answer(&f, 0, -1, 0);
    ck_assert(client_reads(&f, &frame, payload));
    ck_assert_uint_eq(frame.request_id, 21);
    ck_assert_uint_eq(f.session->in_flight, 1);
    ck_assert_uint_eq(f.budget.used, 0);
    close_session(&f);
}
END_TEST

START_TEST(a_refusal_answers_that_request_only)
{
    struct fixture f;
    struct samkv_frame frame;
    uint8_t payload[1000];
    open_session(&f);
    greet(&f);
    f.refuse = true;
    for (uint64_t id = 0; id < 150; id++) { /* more than may be in flight: each was answered */
        client_sends_frame(&f, SAMKV_TYPE_FETCH, id, "q", 1);
        expect_error(&f, SAMKV_TYPE_FETCH, id, SAMKV_BUSY);
    }
    ck_assert_uint_eq(f.session->in_flight, 0);
    client_sends_frame(&f, SAMKV_TYPE_PING, 1, NULL, 0);
    ck_assert(client_reads(&f, &frame, payload));
    close_session(&f);
}
END_TEST

START_TEST(a_frame_too_large_is_answered_and_the_next_served)
{
    struct fixture f;
    struct samkv_frame frame;
    uint8_t payload[1000], *bytes = calloc(1, 1u << 16);
    const struct samkv_frame claim = {SAMKV_MAX_FRAME_BYTES + 3, SAMKV_TYPE_FETCH, 0, 31};
    open_session(&f);
    greet(&f);
    samkv_frame_encode(&claim, bytes);
    client_sends(&f, bytes, SAMKV_FRAME_HEADER_BYTES);
    expect_error(&f, SAMKV_TYPE_FETCH, 31, SAMKV_TOO_LARGE);
    memset(bytes, 0, SAMKV_FRAME_HEADER_BYTES);
    for (size_t left = claim.payload_bytes; left;) {
        size_t n = left < (1u << 16) ? left : 1u << 16;
        client_sends(&f, bytes, n);
        left -= n;
    }
    client_sends_frame(&f, SAMKV_TYPE_PING, 32, NULL, 0);
    ck_assert(client_reads(&f, &frame, payload));
    ck_assert_uint_eq(frame.request_id, 32);
    ck_assert_uint_eq(f.seen_count, 0);
    close_session(&f);
    free(bytes);
}
END_TEST

START_TEST(no_more_than_the_agreed_requests_are_in_flight)
{
    struct fixture f;
    uint8_t *bytes = malloc(150 * 17), *at = bytes;
    for (uint64_t id = 0; id < 150; id++)
        at += make_frame(at, SAMKV_TYPE_FETCH, 0, id, "q", 1);
    open_session(&f);
    greet(&f);
    client_sends(&f, bytes, 150 * 17); /* all in one receive */
    ck_assert_uint_eq(f.seen_count, SAMKV_MAX_IN_FLIGHT);
    ck_assert_int_eq(samkv_session_wants(f.session), 0);
    samkv_session_on_readable(f.session, 0);
    ck_assert_uint_eq(f.seen_count, SAMKV_MAX_IN_FLIGHT);
    for (size_t i = 0; i < 150; i++) { /* each answer lets one more in, in order */
        answer(&f, i, -1, 0);
        size_t expected = SAMKV_MAX_IN_FLIGHT + i + 1;
        ck_assert_uint_eq(f.seen_count, expected < 150 ? expected : 150);
        ck_assert_uint_eq(f.seen[i].frame.request_id, i);
    }
    ck_assert_uint_eq(f.session->in_flight, 0);
    ck_assert_int_eq(samkv_session_wants(f.session), SAMKV_SESSION_READ);
    close_session(&f);
    free(bytes);
}
END_TEST

START_TEST(bytes_of_requests_hold_back_reading)
{
    struct fixture f;
    const size_t each = 33u << 20;
    uint8_t *bytes = calloc(1, each + SAMKV_FRAME_HEADER_BYTES);
    const struct samkv_frame claim = {(uint32_t)each, SAMKV_TYPE_INGEST, 0, 1};
    open_session(&f);
    greet(&f);
    for (int i = 0; i < 2; i++) {
        samkv_frame_encode(&claim, bytes);
        for (size_t at = 0; at < each + SAMKV_FRAME_HEADER_BYTES; at += 1u << 16) {
            size_t left = each + SAMKV_FRAME_HEADER_BYTES - at;
            client_sends(&f, bytes + at, left < (1u << 16) ? left : 1u << 16);
        }
    }
    ck_assert_uint_eq(f.seen_count, 2);
    ck_assert_uint_ge(f.session->in_flight_bytes, samkv_bounds_default.connection_bytes);
    ck_assert_int_eq(samkv_session_wants(f.session), 0);
    client_sends_frame(&f, SAMKV_TYPE_PING, 5, NULL, 0);
    answer(&f, 0, -1, 0);
    ck_assert_int_eq(samkv_session_wants(f.session), SAMKV_SESSION_READ);
    close_session(&f);
    free(bytes);
}
END_TEST

/* ------------------------------------------------------------------ clients that behave badly */

START_TEST(a_client_that_stops_reading_is_let_go)
{
    struct fixture f;
    uint8_t ping[16 * 64];
    for (int i = 0; i < 64; i++)
        make_frame(ping + 16 * i, SAMKV_TYPE_PING, 0, (uint64_t)i, NULL, 0);
    open_session(&f);
    greet(&f);
    /* It pings and never reads: until the socket is full, then until our queue is. */
    while (samkv_session_wants(f.session) & SAMKV_SESSION_READ) {
        if (send(f.client, ping, sizeof ping, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
            ck_abort_msg("the session does not read although it wants to");
        samkv_session_on_readable(f.session, 1000);
    }
    ck_assert_int_eq(samkv_session_wants(f.session), SAMKV_SESSION_WRITE);
    ck_assert_uint_le(f.session->output.bytes, SAMKV_SESSION_OUTPUT_BYTES + SAMKV_SESSION_RECEIVE_BYTES);
    samkv_session_on_tick(f.session, 1000 + samkv_bounds_default.stall_ms - 1);
    ck_assert_int_eq(f.session->state, SAMKV_SESSION_READY);
    samkv_session_on_tick(f.session, 1000 + samkv_bounds_default.stall_ms);
    ck_assert_int_eq(f.session->state, SAMKV_SESSION_CLOSED);
    close_session(&f);
}
END_TEST

START_TEST(a_client_that_reads_again_is_served_on)
{
    struct fixture f;
    uint8_t ping[16], sink[4096];
    size_t sent = 0, received = 0;
    open_session(&f);
    greet(&f);
    while (samkv_session_wants(f.session) & SAMKV_SESSION_READ) {
        client_sends(&f, ping, make_frame(ping, SAMKV_TYPE_PING, 0, sent++, NULL, 0));
    }
    for (ssize_t n; received < sent * 16; received += (size_t)n) {
        n = recv(f.client, sink, sizeof sink, 0);
        if (n < 0) {
            n = 0;
            samkv_session_on_writable(f.session, 5);
        }
    }
    ck_assert_int_eq(samkv_session_wants(f.session), SAMKV_SESSION_READ);
    samkv_session_on_tick(f.session, 5 + 10 * samkv_bounds_default.stall_ms); /* silence alone is no fault */
    ck_assert_int_eq(f.session->state, SAMKV_SESSION_READY);
    close_session(&f);
}
END_TEST

START_TEST(a_client_that_stops_half_way_is_let_go)
{
    struct fixture f;
    uint8_t bytes[100];
    open_session(&f);
    greet(&f);
    size_t count = make_frame(bytes, SAMKV_TYPE_FETCH, 0, 3, "abcdefgh", 8);
    client_sends(&f, bytes, count - 3);
    samkv_session_on_tick(f.session, samkv_bounds_default.stall_ms - 1);
    ck_assert_int_eq(f.session->state, SAMKV_SESSION_READY);
    samkv_session_on_tick(f.session, samkv_bounds_default.stall_ms);
    ck_assert_int_eq(f.session->state, SAMKV_SESSION_CLOSED);
    close_session(&f);
}
END_TEST

START_TEST(a_client_that_says_nothing_is_let_go)
{
    struct fixture f;
    open_session(&f);
    samkv_session_on_tick(f.session, SAMKV_SESSION_HELLO_MS - 1);
    ck_assert_int_eq(f.session->state, SAMKV_SESSION_HELLO);
    samkv_session_on_tick(f.session, SAMKV_SESSION_HELLO_MS);
    ck_assert_int_eq(f.session->state, SAMKV_SESSION_CLOSED);
    close_session(&f);
}
END_TEST

START_TEST(a_client_that_vanishes_ends_its_session)
{
    struct fixture f;
    uint8_t bytes[100];
    open_session(&f);
    greet(&f);
    client_sends(&f, bytes, make_frame(bytes, SAMKV_TYPE_FETCH, 0, 3, "abcdefgh", 8));
    client_sends(&f, bytes, make_frame(bytes, SAMKV_TYPE_FETCH, 0, 3, "abcdefgh", 8) - 3);
    close(f.client);
    f.client = -1;
    samkv_session_on_hangup(f.session, 0);
    ck_assert_int_eq(f.session->state, SAMKV_SESSION_CLOSED);
    answer(&f, 0, -1, 0); /* too late: dropped */
    close_session(&f);
}
END_TEST

START_TEST(a_hangup_ends_it_also_while_nothing_is_read)
{
    struct fixture f;
    open_session(&f);
    greet(&f);
    for (uint64_t id = 0; id < SAMKV_MAX_IN_FLIGHT; id++)
        client_sends_frame(&f, SAMKV_TYPE_FETCH, id, "q", 1);
    ck_assert_int_eq(samkv_session_wants(f.session), 0);
    close(f.client);
    f.client = -1;
    samkv_session_on_hangup(f.session, 0);
    ck_assert_int_eq(f.session->state, SAMKV_SESSION_CLOSED);
    close_session(&f);
}
END_TEST

START_TEST(the_last_frames_go_out_before_the_end)
{
    struct fixture f;
    uint8_t ping[16], sink[4096];
    ssize_t n;
    size_t received = 0, sent = 0;
    open_session(&f);
    greet(&f);
    while (f.session->output.bytes < 1000) {
        client_sends(&f, ping, make_frame(ping, SAMKV_TYPE_PING, 0, sent++, NULL, 0));
    }
    samkv_session_close(f.session, 10);
    ck_assert_int_eq(f.session->state, SAMKV_SESSION_CLOSING);
    ck_assert_int_eq(samkv_session_wants(f.session), SAMKV_SESSION_WRITE);
    while ((n = recv(f.client, sink, sizeof sink, 0)) > 0) {
        received += (size_t)n;
        samkv_session_on_writable(f.session, 11);
    }
    ck_assert_uint_eq(received, 16 * sent);
    ck_assert_int_eq(f.session->state, SAMKV_SESSION_CLOSED);
    close_session(&f);
}
END_TEST

/* ------------------------------------------------------------------ fds and memory */

START_TEST(an_fd_goes_with_its_frame_and_not_twice)
{
    struct fixture f;
    int before = open_fds();
    open_session(&f);
    greet(&f);
    client_sends_frame(&f, SAMKV_TYPE_FETCH, 3, "q", 1);
    int memory = memfd_create("test", MFD_CLOEXEC);
    struct samkv_fds fds;
    ck_assert_int_eq(write(memory, "kept", 4), 4);
    answer(&f, 0, memory, 0);
    uint8_t header[SAMKV_FRAME_HEADER_BYTES];
    char text[5] = "";
    struct samkv_frame frame;
    ck_assert_int_eq(samkv_socket_receive(f.client, header, sizeof header, &fds), (ssize_t)sizeof header);
    ck_assert_int_eq(fds.count, 1);
    ck_assert_int_eq(samkv_frame_decode(header, &frame), SAMKV_OK);
    ck_assert_uint_eq(frame.flags, SAMKV_FLAG_REPLY | SAMKV_FLAG_FD);
    ck_assert_int_eq(pread(fds.fd[0], text, 4, 0), 4);
    ck_assert_str_eq(text, "kept");
    samkv_fds_close(&fds);
    /* One that is never sent is closed with its session. */
    client_sends_frame(&f, SAMKV_TYPE_FETCH, 4, "q", 1);
    samkv_session_close(f.session, 0);
    answer(&f, 1, memfd_create("test", MFD_CLOEXEC), 0);
    close_session(&f);
    ck_assert_int_eq(open_fds(), before);
}
END_TEST

START_TEST(an_fd_goes_with_the_first_part_of_a_long_frame)
{
    struct fixture f;
    struct samkv_outgoing *frame;
    uint8_t *sink = malloc(2u << 20);
    int before = open_fds(), came = 0;
    open_session(&f);
    greet(&f);
    client_sends_frame(&f, SAMKV_TYPE_FETCH, 3, "q", 1);
    const struct samkv_frame header = {2u << 20, SAMKV_TYPE_FETCH, SAMKV_FLAG_REPLY | SAMKV_FLAG_FD, 3};
    struct samkv_fds fds = {.fd = {memfd_create("test", MFD_CLOEXEC)}, .count = 1};
    ck_assert_int_eq(samkv_outgoing_new(&header, &fds, &frame), SAMKV_OK);
    memset(frame->bytes + SAMKV_FRAME_HEADER_BYTES, 7, 2u << 20);
    frame->last = true;
    frame->charge = f.seen[0].charge;
    samkv_session_send(f.session, frame, 0);
    ck_assert_int_eq(samkv_session_wants(f.session), SAMKV_SESSION_WRITE); /* it did not fit at once */
    ck_assert_uint_eq(f.session->in_flight, 1);
    for (size_t received = 0; received < (2u << 20) + SAMKV_FRAME_HEADER_BYTES;) {
        ssize_t n = samkv_socket_receive(f.client, sink, 2u << 20, &fds);
        came += fds.count;
        samkv_fds_close(&fds);
        received += n > 0 ? (size_t)n : 0;
        samkv_session_on_writable(f.session, 0);
        ck_assert_int_eq(f.session->state, SAMKV_SESSION_READY);
    }
    ck_assert_int_eq(came, 1);
    ck_assert_uint_eq(f.session->in_flight, 0);
    close_session(&f);
    ck_assert_int_eq(open_fds(), before);
    free(sink);
}
END_TEST

START_TEST(fds_of_clients_are_dropped)
{
    struct fixture f;
    uint8_t bytes[16];
    struct samkv_frame frame;
    uint8_t payload[1000];
    open_session(&f);
    greet(&f);
    int before = open_fds();
    const struct samkv_fds fds = {.fd = {STDERR_FILENO, STDERR_FILENO}, .count = 2};
    for (int i = 0; i < 20; i++) {
        size_t count = make_frame(bytes, SAMKV_TYPE_PING, 0, 1, NULL, 0);
        ck_assert_int_eq(samkv_socket_send(f.client, bytes, count, &fds), (ssize_t)count);
        samkv_session_on_readable(f.session, 0);
        ck_assert(client_reads(&f, &frame, payload));
    }
    ck_assert_int_eq(open_fds(), before);
    close_session(&f);
}
END_TEST

static int send_export(struct fixture *f, uint64_t id, size_t from, size_t count, const struct samkv_fds *fds)
{
    uint8_t bytes[64];
    size_t all = make_frame(bytes, SAMKV_TYPE_EXPORT, 0, id, "payload", 7);
    count = count < all - from ? count : all - from;
    ck_assert_int_eq(samkv_socket_send(f->client, bytes + from, count, fds), (ssize_t)count);
    return (int)all;
}

START_TEST(an_fd_of_a_client_comes_with_its_request)
{
    struct fixture f;
    open_session(&f);
    greet(&f);
    int before = open_fds();
    const struct samkv_fds one = {.fd = {STDERR_FILENO}, .count = 1}, two = {.fd = {1, 2}, .count = 2};
    /* Two at once, each with its own. */
    send_export(&f, 1, 0, 1000, &one);
    send_export(&f, 2, 0, 1000, &two);
    samkv_session_on_readable(f.session, 0);
    ck_assert_uint_eq(f.seen_count, 1);
    ck_assert_int_eq(f.taken, 1);
    samkv_session_on_readable(f.session, 0);
    ck_assert_uint_eq(f.seen_count, 2);
    ck_assert_int_eq(f.taken, 2);
    /* One that comes long before the rest of its request. */
    int all = send_export(&f, 3, 0, 1, &one);
    for (int at = 1; at < all; at++) {
        samkv_session_on_readable(f.session, 0);
        ck_assert_int_eq(open_fds(), before + 1);
        send_export(&f, 3, (size_t)at, 1, NULL);
    }
    samkv_session_on_readable(f.session, 0);
    ck_assert_uint_eq(f.seen_count, 3);
    ck_assert_int_eq(f.taken, 1);
    /* One that came with another request is gone before the next. */
    uint8_t ping[16];
    size_t count = make_frame(ping, SAMKV_TYPE_PING, 0, 9, NULL, 0);
    ck_assert_int_eq(samkv_socket_send(f.client, ping, count, &one), (ssize_t)count);
    samkv_session_on_readable(f.session, 0);
    send_export(&f, 4, 0, 1000, NULL);
    samkv_session_on_readable(f.session, 0);
    ck_assert_int_eq(f.taken, 0);
    ck_assert_int_eq(open_fds(), before);
    /* One whose request never comes. */
    send_export(&f, 5, 0, 5, &two);
    samkv_session_on_readable(f.session, 0);
    ck_assert_int_eq(open_fds(), before + 2);
    close_session(&f);
    ck_assert_int_eq(open_fds(), before - 2);
}
END_TEST

/* Random bytes, often behind a good start: nothing but errors may come of it, and nothing may be left. */
START_TEST(random_bytes)
{
    unsigned seed = (unsigned)_i * 7919 + 1;
    struct fixture f;
    uint8_t bytes[600];
    open_session(&f);
    f.refuse = true;
    if (_i % 4)
        greet(&f);
    for (int round = 0; round < 40 && f.session->state < SAMKV_SESSION_CLOSED && f.seen_count < 150; round++) {
        size_t count = (size_t)(rand_r(&seed) % 500) + 1;
        for (size_t i = 0; i < count; i++)
            bytes[i] = (uint8_t)rand_r(&seed);
        if (_i % 2 && count > 16) { /* a header that may pass */
            const struct samkv_frame frame = {(uint32_t)rand_r(&seed) % 700, (uint16_t)(rand_r(&seed) % 12),
                                              rand_r(&seed) % 16 ? 0 : (uint16_t)rand_r(&seed), 4};
            samkv_frame_encode(&frame, bytes);
        }
        if (send(f.client, bytes, count, MSG_NOSIGNAL) < 0)
            break;
        samkv_session_on_readable(f.session, 0);
        ck_assert_uint_le(f.session->in_flight, SAMKV_MAX_IN_FLIGHT);
        while (recv(f.client, bytes, sizeof bytes, 0) > 0)
            ;
    }
    close_session(&f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("session");
    TCase *tc = tcase_create("session");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, hello_then_ping);
    tcase_add_test(tc, garbage_before_hello_gets_one_error_and_the_end);
    tcase_add_test(tc, other_versions_are_told);
    tcase_add_test(tc, hello_is_said_once);
    tcase_add_test(tc, garbage_after_hello_ends_it_too);
    tcase_add_test(tc, requests_reach_the_host_and_answers_the_client);
    tcase_add_test(tc, a_refusal_answers_that_request_only);
    tcase_add_test(tc, a_frame_too_large_is_answered_and_the_next_served);
    tcase_add_test(tc, no_more_than_the_agreed_requests_are_in_flight);
    tcase_add_test(tc, bytes_of_requests_hold_back_reading);
    tcase_add_test(tc, a_client_that_stops_reading_is_let_go);
    tcase_add_test(tc, a_client_that_reads_again_is_served_on);
    tcase_add_test(tc, a_client_that_stops_half_way_is_let_go);
    tcase_add_test(tc, a_client_that_says_nothing_is_let_go);
    tcase_add_test(tc, a_client_that_vanishes_ends_its_session);
    tcase_add_test(tc, a_hangup_ends_it_also_while_nothing_is_read);
    tcase_add_test(tc, the_last_frames_go_out_before_the_end);
    tcase_add_test(tc, an_fd_goes_with_its_frame_and_not_twice);
    tcase_add_test(tc, an_fd_goes_with_the_first_part_of_a_long_frame);
    tcase_add_test(tc, fds_of_clients_are_dropped);
    tcase_add_test(tc, an_fd_of_a_client_comes_with_its_request);
    tcase_add_loop_test(tc, random_bytes, 0, 200);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
