/* libsamkv against a daemon that answers late, in disorder, nonsense, or not at all. */
#include <poll.h>
#include <stdio.h>
#include <sys/un.h>

#include "tests/unit/fake_daemon.h"

/* ------------------------------------------------------------------ hand-shake */

static void refuse_hello(struct fake_daemon *d)
{
    fake_await(d);
    fake_error(d, SAMKV_TYPE_HELLO, 0, SAMKV_UNSUPPORTED, "update the client");
}

static void speak_http(struct fake_daemon *d)
{
    static const char text[] = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
    fake_await(d);
    fake_send_bytes(d, text, sizeof text - 1, -1);
}

static void say_nothing(struct fake_daemon *d)
{
    fake_await(d);
}

static void say_half_a_hello(struct fake_daemon *d)
{
    static const uint8_t header[SAMKV_FRAME_HEADER_BYTES] = {9, 0, 0, 0, SAMKV_TYPE_HELLO, 0, SAMKV_FLAG_REPLY};
    fake_await(d);
    fake_send_bytes(d, header, sizeof header - 3, -1);
}

static void greet_from_the_future(struct fake_daemon *d)
{
    fake_greet_as(d, 7);
}

static void greet_unreadably(struct fake_daemon *d)
{
    static const uint8_t frame[] = {3, 0,   0,   0,  SAMKV_TYPE_HELLO, 0, SAMKV_FLAG_REPLY, 0, 0, 0, 0, 0, 0, 0, 0,
                                    0, 255, 255, 255};
    fake_await(d);
    fake_send_bytes(d, frame, sizeof frame, -1);
}

static void pong_first(struct fake_daemon *d)
{
    fake_await(d);
    fake_reply(d, SAMKV_TYPE_PING, 0, NULL);
}

static const struct {
    void (*script)(struct fake_daemon *);
    enum samkv_status status;
} handshakes[] = {
    {refuse_hello, SAMKV_UNSUPPORTED},          {speak_http, SAMKV_PROTOCOL}, {say_nothing, SAMKV_CLOSED},
    {say_half_a_hello, SAMKV_CLOSED},           {pong_first, SAMKV_PROTOCOL}, {greet_unreadably, SAMKV_PROTOCOL},
    {greet_from_the_future, SAMKV_UNSUPPORTED},
};

START_TEST(bad_handshake)
{
    struct fake_daemon d = {0};
    struct samkv_client *client;
    struct samkv_error err = {.text = ""};
    int before = fake_open_descriptors();
    enum samkv_status status = samkv_client_attach(fake_start(&d, handshakes[_i].script), &client, &err);
    ck_assert_msg(status == handshakes[_i].status, "%s: %s", samkv_status_name(status), err.text);
    ck_assert_int_eq(err.status, status);
    ck_assert(*err.text);
    ck_assert_ptr_null(client);
    fake_end(&d, NULL);
    ck_assert_int_eq(fake_open_descriptors(), before);
}
END_TEST

START_TEST(nobody_listens)
{
    struct samkv_client *client;
    struct samkv_error err;
    char path[300];
    ck_assert_int_eq(samkv_client_connect("/nonexistent/samkv.sock", &client, &err), SAMKV_NO_DAEMON);
    ck_assert_ptr_nonnull(strstr(err.text, "/nonexistent/samkv.sock"));
    setenv("SAMKV_SOCKET", "/nonexistent/from-environment", 1);
    ck_assert_int_eq(samkv_client_connect(NULL, &client, &err), SAMKV_NO_DAEMON);
    ck_assert_ptr_nonnull(strstr(err.text, "from-environment"));
    memset(path, 'x', sizeof path - 1);
    path[sizeof path - 1] = 0;
    ck_assert_int_eq(samkv_client_connect(path, &client, &err), SAMKV_INVALID);
    ck_assert_int_eq(samkv_client_connect("/dev/null", &client, &err), SAMKV_NO_DAEMON);
}
END_TEST

START_TEST(path_comes_from_the_environment)
{
    char out[108], directory[] = "/tmp/samkv-client-XXXXXX", expected[64];
    struct samkv_error err;
    ck_assert_ptr_nonnull(mkdtemp(directory));
    setenv("SAMKV_SOCKET", "", 1);
    setenv("XDG_RUNTIME_DIR", directory, 1);
    ck_assert_int_eq(samkv_client_path(NULL, out, sizeof out, &err), SAMKV_OK);
    ck_assert_str_eq(out, "/run/samkv/samkv.sock");
    snprintf(expected, sizeof expected, "%s/samkv.sock", directory);
    close(open(expected, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    ck_assert_int_eq(samkv_client_path(NULL, out, sizeof out, &err), SAMKV_OK);
    ck_assert_str_eq(out, expected);
    setenv("SAMKV_SOCKET", "/a/b", 1);
    ck_assert_int_eq(samkv_client_path(NULL, out, sizeof out, &err), SAMKV_OK);
    ck_assert_str_eq(out, "/a/b");
    ck_assert_int_eq(samkv_client_path("/c", out, sizeof out, &err), SAMKV_OK);
    ck_assert_str_eq(out, "/c");
    unlink(expected);
    rmdir(directory);
}
END_TEST

/* ------------------------------------------------------------------ order and time */

static void answer_third_first_second(struct fake_daemon *d)
{
    uint64_t ids[3];
    fake_greet(d);
    for (int i = 0; i < 3; i++)
        ids[i] = fake_await(d);
    fake_reply(d, SAMKV_TYPE_PING, ids[2], NULL);
    fake_reply(d, SAMKV_TYPE_PING, ids[0], NULL);
    fake_reply(d, SAMKV_TYPE_PING, ids[1], NULL);
    fake_serve_pings(d);
}

/* What an event loop does, until one answer is there. */
static void loop_until_next(struct samkv_client *client, struct samkv_reply *out)
{
    while (!samkv_client_next(client, out)) {
        struct pollfd p = {.fd = samkv_client_fd(client), .events = POLLIN};
        if (samkv_client_wants_write(client))
            p.events |= POLLOUT;
        poll(&p, 1, samkv_client_wait_ms(client));
        (void)!samkv_client_process(client, NULL); /* a broken connection shows in the answers */
    }
}

START_TEST(answers_out_of_order)
{
    struct fake_daemon d = {0};
    struct samkv_client *client = fake_connect(&d, answer_third_first_second);
    uint64_t ids[3];
    static const int order[] = {2, 0, 1};
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(samkv_client_submit_ping(client, &ids[i], NULL), SAMKV_OK);
    ck_assert_uint_ne(ids[0], ids[1]);
    for (int i = 0; i < 3; i++) {
        struct samkv_reply reply = {0};
        loop_until_next(client, &reply);
        ck_assert_uint_eq(reply.request, ids[order[i]]);
        ck_assert_int_eq(reply.operation, SAMKV_OPERATION_PING);
        ck_assert_int_eq(reply.status, SAMKV_OK);
        samkv_reply_deinit(&reply);
    }
    ck_assert_int_eq(samkv_client_ping(client, NULL), SAMKV_OK);
    fake_end(&d, client);
}
END_TEST

/* A blocking call waits for its own answer; others stay for their owner. */
START_TEST(blocking_call_among_submitted_ones)
{
    struct fake_daemon d = {0};
    struct samkv_client *client = fake_connect(&d, answer_third_first_second);
    struct samkv_reply reply;
    uint64_t first, second;
    ck_assert_int_eq(samkv_client_submit_ping(client, &first, NULL), SAMKV_OK);
    ck_assert_int_eq(samkv_client_submit_ping(client, &second, NULL), SAMKV_OK);
    ck_assert_int_eq(samkv_client_ping(client, NULL), SAMKV_OK);
    loop_until_next(client, &reply);
    ck_assert_uint_eq(reply.request, first);
    samkv_reply_deinit(&reply);
    loop_until_next(client, &reply);
    ck_assert_uint_eq(reply.request, second);
    samkv_reply_deinit(&reply);
    ck_assert(!samkv_client_next(client, &reply));
    fake_end(&d, client);
}
END_TEST

static void answer_first_with_second(struct fake_daemon *d)
{
    fake_greet(d);
    uint64_t first = fake_await(d), second = fake_await(d);
    fake_reply(d, SAMKV_TYPE_PING, first, NULL);
    fake_reply(d, SAMKV_TYPE_PING, second, NULL);
    fake_serve_pings(d);
}

START_TEST(late_answer_is_dropped)
{
    struct fake_daemon d = {.max_in_flight = 2};
    struct samkv_client *client = fake_connect(&d, answer_first_with_second);
    struct samkv_error err;
    struct samkv_reply reply;
    samkv_client_set_timeout_ms(client, 20);
    ck_assert_int_eq(samkv_client_ping(client, &err), SAMKV_TIMEOUT);
    samkv_client_set_timeout_ms(client, 0);
    ck_assert_int_eq(samkv_client_wait_ms(client), -1);
    for (int i = 0; i < 5; i++) /* more than are allowed in flight: the late one's place is free again */
        ck_assert_int_eq(samkv_client_ping(client, &err), SAMKV_OK);
    ck_assert(!samkv_client_next(client, &reply));
    fake_end(&d, client);
}
END_TEST

START_TEST(daemon_limits_what_is_in_flight)
{
    struct fake_daemon d = {.max_in_flight = 2};
    struct samkv_client *client = fake_connect(&d, answer_first_with_second);
    struct samkv_error err;
    struct samkv_reply reply;
    uint64_t id;
    ck_assert_int_eq(samkv_client_submit_ping(client, &id, &err), SAMKV_OK);
    ck_assert_int_eq(samkv_client_submit_ping(client, &id, &err), SAMKV_OK);
    ck_assert_int_eq(samkv_client_submit_ping(client, &id, &err), SAMKV_BUSY);
    for (int i = 0; i < 2; i++) {
        loop_until_next(client, &reply);
        samkv_reply_deinit(&reply);
    }
    ck_assert_int_eq(samkv_client_submit_ping(client, &id, &err), SAMKV_OK);
    fake_end(&d, client);
}
END_TEST

static void greet_and_serve_pings(struct fake_daemon *d)
{
    fake_greet(d);
    fake_serve_pings(d);
}

START_TEST(request_beyond_the_daemons_limit)
{
    struct fake_daemon d = {.max_frame_bytes = 200};
    struct samkv_client *client = fake_connect(&d, greet_and_serve_pings);
    struct samkv_document document;
    struct samkv_reply reply;
    struct samkv_error err;
    char text[200];
    memset(text, 'x', sizeof text);
    samkv_document_init(&document);
    document.id = "a";
    document.text = text;
    document.text_bytes = sizeof text;
    ck_assert_uint_eq(samkv_client_max_request_bytes(client), 200);
    ck_assert_int_eq(samkv_client_ingest(client, &document, &reply, &err), SAMKV_TOO_LARGE);
    ck_assert(*err.text);
    ck_assert_int_eq(samkv_client_ping(client, &err), SAMKV_OK);
    fake_end(&d, client);
}
END_TEST

#define BIG ((size_t)8 << 20)

static void read_slowly(struct fake_daemon *d)
{
    struct fake_request request;
    fake_greet(d);
    usleep(20000); /* the client has filled the socket by now, or waits in vain: both are right */
    fake_receive(d, &request);
    Samkv__IngestRequest *m = samkv__ingest_request__unpack(NULL, request.frame.payload_bytes, request.payload);
    bool good = m && m->text.len == BIG && m->text.data[0] == 'y' && m->text.data[BIG - 1] == 'y';
    Samkv__IngestReply reply = SAMKV__INGEST_REPLY__INIT;
    reply.prefill_ms = good;
    fake_reply(d, SAMKV_TYPE_INGEST, request.frame.request_id, &reply.base);
    samkv__ingest_request__free_unpacked(m, NULL);
    free(request.payload);
}

START_TEST(request_larger_than_the_socket)
{
    struct fake_daemon d = {0};
    struct samkv_client *client = fake_connect(&d, read_slowly);
    struct samkv_document document;
    struct samkv_reply reply;
    uint64_t id;
    char *text = malloc(BIG);
    memset(text, 'y', BIG);
    samkv_document_init(&document);
    document.id = "big";
    document.text = text;
    document.text_bytes = BIG;
    ck_assert_int_eq(samkv_client_submit_ingest(client, &document, &id, NULL), SAMKV_OK);
    free(text); /* borrowed until submit returned */
    ck_assert(samkv_client_wants_write(client));
    loop_until_next(client, &reply);
    ck_assert_int_eq(reply.status, SAMKV_OK);
    ck_assert(reply.answer.ingest.prefill_ms == 1);
    ck_assert(!samkv_client_wants_write(client));
    samkv_reply_deinit(&reply);
    fake_end(&d, client);
}
END_TEST

/* ------------------------------------------------------------------ faults of the other side */

/* One frame in answer to the first request, and what must come of it. */
struct fault {
    uint16_t type, flags;
    int64_t id; /* added to the request's */
    uint32_t announced;
    const char *payload;
    size_t payload_bytes; /* what is really sent */
    enum samkv_status status;
    bool survives; /* the connection is good for more */
};

#define REPLY SAMKV_FLAG_REPLY
#define PING  SAMKV_TYPE_PING
static const struct fault faults[] = {
    {PING, REPLY, 0, 0, "", 0, SAMKV_OK, true},
    {PING, REPLY, 1, 0, "", 0, SAMKV_PROTOCOL},                                      /* nobody asked */
    {PING, REPLY, -1, 0, "", 0, SAMKV_PROTOCOL},                                     /* id 0, and no error */
    {SAMKV_TYPE_STATUS, REPLY, 0, 0, "", 0, SAMKV_PROTOCOL},                         /* another type */
    {PING, 0, 0, 0, "", 0, SAMKV_PROTOCOL},                                          /* a request */
    {PING, REPLY | 16, 0, 0, "", 0, SAMKV_PROTOCOL},                                 /* unknown flag */
    {PING, REPLY | SAMKV_FLAG_MORE, 0, 0, "", 0, SAMKV_PROTOCOL},                    /* a stream of pings */
    {PING, REPLY | SAMKV_FLAG_FD, 0, 0, "", 0, SAMKV_PROTOCOL},                      /* memory for a ping */
    {PING, REPLY | SAMKV_FLAG_MORE | SAMKV_FLAG_ERROR, 0, 0, "", 0, SAMKV_PROTOCOL}, /* errors end */
    {PING, REPLY, 0, UINT32_MAX, "", 0, SAMKV_PROTOCOL},                             /* 4 GiB follow */
    {PING, REPLY, 0, SAMKV_MAX_FRAME_BYTES + 1, "", 0, SAMKV_PROTOCOL},
    {PING, REPLY, 0, 100, "0123456789", 10, SAMKV_CLOSED}, /* dies in the middle */
    {PING, REPLY, 0, 3, "\xff\xff\xff", 3, SAMKV_PROTOCOL, true},
    {PING, REPLY | SAMKV_FLAG_ERROR, 0, 3, "\xff\xff\xff", 3, SAMKV_PROTOCOL, true},
    {PING, REPLY | SAMKV_FLAG_ERROR, 0, 0, "", 0, SAMKV_INTERNAL, true}, /* an error called OK */
    {PING, REPLY | SAMKV_FLAG_ERROR, 0, 8,
     "\x08\x01\x12\x04"
     "a\x1b"
     "b\n",
     8, SAMKV_NOT_FOUND, true},
    {PING, REPLY | SAMKV_FLAG_ERROR, 0, 3, "\x08\xf0\x05", 3, (enum samkv_status)752, true}, /* from the future */
    {PING, REPLY | SAMKV_FLAG_ERROR, -1, 2, "\x08\x07", 2, SAMKV_BUSY},                      /* to the connection */
};

static void commit_fault(struct fake_daemon *d)
{
    const struct fault *fault = d->arg;
    uint8_t header[SAMKV_FRAME_HEADER_BYTES];
    fake_greet(d);
    struct samkv_frame frame = {.payload_bytes = fault->announced, .type = fault->type, .flags = fault->flags};
    frame.request_id = fake_await(d) + (uint64_t)fault->id;
    samkv_frame_encode(&frame, header);
    fake_send_bytes(d, header, sizeof header, -1);
    fake_send_bytes(d, fault->payload, fault->payload_bytes, -1);
    if (fault->survives)
        fake_serve_pings(d);
}

START_TEST(fault_of_the_daemon)
{
    const struct fault *fault = &faults[_i];
    struct fake_daemon d = {.arg = fault};
    struct samkv_client *client = fake_connect(&d, commit_fault);
    struct samkv_error err = {.text = "-"};
    enum samkv_status status = samkv_client_ping(client, &err);
    ck_assert_msg(status == fault->status, "%s: %s", samkv_status_name(status), err.text);
    if (status) {
        ck_assert_int_eq(err.status, status);
        ck_assert(*err.text);
        for (const char *c = err.text; *c; c++)
            ck_assert_int_ge((unsigned char)*c, 0x20); /* nothing that a terminal would obey */
    }
    enum samkv_status next = samkv_client_ping(client, &err);
    ck_assert_int_eq(next, fault->survives ? SAMKV_OK : fault->status);
    ck_assert_int_eq(samkv_client_fd(client) < 0, !fault->survives);
    fake_end(&d, client);
}
END_TEST

static void take_three_and_die(struct fake_daemon *d)
{
    fake_greet(d);
    uint64_t first = fake_await(d);
    fake_await(d);
    fake_await(d);
    fake_reply(d, SAMKV_TYPE_PING, first, NULL);
}

START_TEST(daemon_dies_with_requests_in_flight)
{
    struct fake_daemon d = {0};
    struct samkv_client *client = fake_connect(&d, take_three_and_die);
    static const enum samkv_status expected[] = {SAMKV_OK, SAMKV_CLOSED, SAMKV_CLOSED};
    struct samkv_reply reply;
    struct samkv_error err;
    uint64_t id;
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(samkv_client_submit_ping(client, &id, NULL), SAMKV_OK);
    pthread_join(d.thread, NULL);
    for (int i = 0; i < 3; i++) {
        loop_until_next(client, &reply);
        ck_assert_int_eq(reply.status, expected[i]);
        samkv_reply_deinit(&reply);
    }
    ck_assert(!samkv_client_next(client, &reply));
    ck_assert_int_eq(samkv_client_process(client, &err), SAMKV_CLOSED);
    ck_assert_int_eq(samkv_client_submit_ping(client, &id, &err), SAMKV_CLOSED);
    ck_assert_int_eq(samkv_client_ping(client, &err), SAMKV_CLOSED);
    samkv_client_close(client);
}
END_TEST

/* Every boundary of bytes may fall anywhere. */
static void answer_byte_by_byte(struct fake_daemon *d)
{
    static const uint8_t payload[] = {0x0a, 3, 0x0a, 1, 'x', 0x11, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f};
    uint8_t header[SAMKV_FRAME_HEADER_BYTES];
    fake_greet(d);
    struct samkv_frame frame = {sizeof payload, SAMKV_TYPE_INGEST, SAMKV_FLAG_REPLY, 0};
    frame.request_id = fake_await(d);
    samkv_frame_encode(&frame, header);
    for (size_t i = 0; i < sizeof header + sizeof payload; i++) {
        fake_send_bytes(d, i < sizeof header ? &header[i] : &payload[i - sizeof header], 1, -1);
        usleep(200);
    }
    fake_serve_pings(d);
}

START_TEST(answer_in_single_bytes)
{
    struct fake_daemon d = {0};
    struct samkv_client *client = fake_connect(&d, answer_byte_by_byte);
    struct samkv_document document;
    struct samkv_reply reply;
    samkv_document_init(&document);
    document.id = "x";
    document.text = "text";
    document.text_bytes = 4;
    ck_assert_int_eq(samkv_client_ingest(client, &document, &reply, NULL), SAMKV_OK);
    ck_assert_uint_eq(reply.answer.ingest.count, 1);
    ck_assert_str_eq(reply.answer.ingest.documents[0].id, "x");
    ck_assert(reply.answer.ingest.prefill_ms == 1.5);
    samkv_reply_deinit(&reply);
    samkv_reply_deinit(&reply); /* twice is allowed */
    fake_end(&d, client);
}
END_TEST

START_TEST(close_with_everything_in_flight)
{
    struct fake_daemon d = {0};
    int before = fake_open_descriptors();
    struct samkv_client *client = fake_connect(&d, take_three_and_die);
    uint64_t id;
    for (int i = 0; i < SAMKV_MAX_IN_FLIGHT; i++)
        ck_assert_int_eq(samkv_client_submit_ping(client, &id, NULL), SAMKV_OK);
    ck_assert_int_eq(samkv_client_submit_ping(client, &id, NULL), SAMKV_BUSY);
    fake_end(&d, client);
    samkv_client_close(NULL);
    ck_assert_int_eq(fake_open_descriptors(), before);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("client");
    TCase *handshake = tcase_create("handshake"), *order = tcase_create("order"), *hostile = tcase_create("hostile");
    tcase_add_loop_test(handshake, bad_handshake, 0, sizeof handshakes / sizeof *handshakes);
    tcase_add_test(handshake, nobody_listens);
    tcase_add_test(handshake, path_comes_from_the_environment);
    tcase_add_test(order, answers_out_of_order);
    tcase_add_test(order, blocking_call_among_submitted_ones);
    tcase_add_test(order, late_answer_is_dropped);
    tcase_add_test(order, daemon_limits_what_is_in_flight);
    tcase_add_test(order, request_beyond_the_daemons_limit);
    tcase_add_test(order, request_larger_than_the_socket);
    tcase_add_loop_test(hostile, fault_of_the_daemon, 0, sizeof faults / sizeof *faults);
    tcase_add_test(hostile, daemon_dies_with_requests_in_flight);
    tcase_add_test(hostile, answer_in_single_bytes);
    tcase_add_test(hostile, close_with_everything_in_flight);
    suite_add_tcase(suite, handshake);
    suite_add_tcase(suite, order);
    suite_add_tcase(suite, hostile);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
