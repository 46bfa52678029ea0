/* What the options of limits come to in a session, and the accounts of users. Time is passed in, nothing sleeps. */
#include "daemon/net/users.h"
#include "tests/unit/session_fixture.h"

#define SECOND 1000u

static void send_at(struct fixture *f, const void *bytes, size_t count, uint64_t now_ms)
{
    ck_assert_int_eq(send(f->client, bytes, count, MSG_NOSIGNAL), (ssize_t)count);
    samkv_session_on_readable(f->session, now_ms);
}

/* The head of a frame of so many bytes. */
static void begin_frame(struct fixture *f, uint32_t payload_bytes)
{
    uint8_t head[SAMKV_FRAME_HEADER_BYTES];
    const struct samkv_frame frame = {payload_bytes, SAMKV_TYPE_INGEST, 0, 1};
    samkv_frame_encode(&frame, head);
    send_at(f, head, sizeof head, 0);
}

/* One byte a second is no progress, 64 KiB in half a minute are. */
START_TEST(a_sender_that_trickles_is_let_go)
{
    struct fixture f;
    static const uint8_t some[SAMKV_BOUNDS_PROGRESS_BYTES / 25];
    size_t each = _i ? sizeof some : 1;
    open_session(&f);
    greet(&f);
    begin_frame(&f, 60u << 20);
    uint64_t now = 0;
    for (; now < 200 * SECOND && f.session->state == SAMKV_SESSION_READY; now += SECOND) {
        send_at(&f, some, each, now);
        samkv_session_on_tick(f.session, now);
    }
    ck_assert_int_eq(f.session->state, _i ? SAMKV_SESSION_READY : SAMKV_SESSION_CLOSED);
    if (!_i)
        ck_assert_uint_eq(now, samkv_bounds_default.stall_ms + SECOND);
    close_session(&f);
}
END_TEST

/* Small frames are whole before they reach 64 KiB: a client that sends them one by one goes on. */
START_TEST(whole_frames_are_progress)
{
    struct fixture f;
    uint8_t ping[SAMKV_FRAME_HEADER_BYTES], answer[SAMKV_FRAME_HEADER_BYTES];
    open_session(&f);
    greet(&f);
    for (uint64_t i = 1; i < 300; i++) {
        size_t count = make_frame(ping, SAMKV_TYPE_PING, 0, i, NULL, 0);
        send_at(&f, ping, count / 2, i * SECOND);
        samkv_session_on_tick(f.session, i * SECOND + SECOND / 2);
        send_at(&f, ping + count / 2, count - count / 2, i * SECOND + SECOND / 2);
        ck_assert_int_eq(recv(f.client, answer, sizeof answer, 0), (ssize_t)sizeof answer);
    }
    ck_assert_int_eq(f.session->state, SAMKV_SESSION_READY);
    close_session(&f);
}
END_TEST

START_TEST(a_reader_that_trickles_is_let_go)
{
    struct fixture f;
    uint8_t ping[SAMKV_FRAME_HEADER_BYTES * 64], sink[64];
    for (size_t i = 0; i < 64; i++)
        make_frame(ping + SAMKV_FRAME_HEADER_BYTES * i, SAMKV_TYPE_PING, 0, i, NULL, 0);
    open_session(&f);
    greet(&f);
    while (samkv_session_wants(f.session) & SAMKV_SESSION_READ)
        send_at(&f, ping, sizeof ping, 0);
    uint64_t now = 0;
    for (; now < 200 * SECOND && f.session->state == SAMKV_SESSION_READY; now += SECOND) {
        ck_assert_int_gt(recv(f.client, sink, sizeof sink, 0), 0);
        samkv_session_on_writable(f.session, now);
        samkv_session_on_tick(f.session, now);
    }
    ck_assert_int_eq(f.session->state, SAMKV_SESSION_CLOSED);
    ck_assert_uint_le(now, 2 * samkv_bounds_default.stall_ms + SECOND);
    close_session(&f);
}
END_TEST

/* The hand-shake tells what a session then keeps to. */
START_TEST(a_session_keeps_to_its_bounds)
{
    const struct samkv_bounds bounds = {
        .in_flight = 3, .connection_bytes = 100000, .stall_ms = 2 * SECOND, .queue = 1, .connections = 1};
    struct fixture f;
    uint8_t frame[200];
    open_session(&f);
    f.host.bounds = &bounds;
    samkv_session_deinit(f.session);
    close(f.client);
    int pair[2];
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    f.client = pair[1];
    struct samkv_budget own = {.limit = 50000, .parent = &f.budget};
    samkv_session_init(f.session, pair[0], &f.host, &own, 0);
    uint8_t reply[300];
    send_at(&f, frame, make_hello(frame, SAMKV_MAGIC, 1, 1), 0);
    ssize_t n = recv(f.client, reply, sizeof reply, 0);
    ck_assert_int_gt(n, SAMKV_FRAME_HEADER_BYTES);
    Samkv__HelloReply *hello =
        samkv__hello_reply__unpack(NULL, (size_t)n - SAMKV_FRAME_HEADER_BYTES, reply + SAMKV_FRAME_HEADER_BYTES);
    ck_assert_ptr_nonnull(hello);
    ck_assert_uint_eq(hello->max_frame_bytes, 100000);
    ck_assert_uint_eq(hello->max_in_flight, 3);
    samkv__hello_reply__free_unpacked(hello, NULL);
    for (uint64_t i = 1; i <= 5; i++)
        send_at(&f, frame, make_frame(frame, SAMKV_TYPE_FETCH, 0, i, "abc", 3), 0);
    ck_assert_uint_eq(f.seen_count, 3); /* the others wait */
    ck_assert_int_eq(samkv_session_wants(f.session), 0);
    ck_assert_uint_gt(own.used, 0);
    ck_assert_uint_eq(own.used, f.budget.used);
    close_session(&f);
    ck_assert_uint_eq(own.used, 0);
}
END_TEST

START_TEST(parts_of_a_budget)
{
    struct samkv_budget all = {.limit = 100}, a = {.limit = 50, .parent = &all}, b = {.limit = 80, .parent = &all};
    ck_assert(samkv_budget_take(&a, 50));
    ck_assert(!samkv_budget_take(&a, 1)); /* its own part is used up */
    ck_assert(samkv_budget_take(&b, 50));
    ck_assert(!samkv_budget_take(&b, 1)); /* the whole is, and nothing was taken */
    ck_assert_uint_eq(b.used, 50);
    samkv_budget_give(&a, 50);
    ck_assert(samkv_budget_take(&b, 30));
    ck_assert_uint_eq(all.used, 80);
    samkv_budget_give(&b, 80);
    ck_assert_uint_eq(all.used + a.used + b.used, 0);
}
END_TEST

START_TEST(users_come_and_go)
{
    struct samkv_budget all = {.limit = 1000};
    struct samkv_users users = {.budget = &all};
    struct samkv_user *a = samkv_users_join(&users, 1), *b = samkv_users_join(&users, 2);
    ck_assert_ptr_eq(samkv_users_join(&users, 1), a);
    ck_assert_uint_eq(a->connections, 2);
    ck_assert_uint_lt(a->budget.limit, all.limit); /* nobody can have all of it */
    samkv_users_leave(&users, a);
    ck_assert_ptr_eq(samkv_users_find(&users, 1), a);
    samkv_users_leave(&users, a);
    ck_assert_ptr_null(samkv_users_find(&users, 1));
    ck_assert_ptr_eq(samkv_users_find(&users, 2), b);
    samkv_users_leave(&users, b);
    ck_assert_ptr_null(users.first);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("bounds");
    TCase *tc = tcase_create("bounds");
    tcase_add_loop_test(tc, a_sender_that_trickles_is_let_go, 0, 2);
    tcase_add_test(tc, whole_frames_are_progress);
    tcase_add_test(tc, a_reader_that_trickles_is_let_go);
    tcase_add_test(tc, a_session_keeps_to_its_bounds);
    tcase_add_test(tc, parts_of_a_budget);
    tcase_add_test(tc, users_come_and_go);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
