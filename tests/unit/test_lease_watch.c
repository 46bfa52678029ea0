/* The daemon's end of leases: how each one ends tells whether its memory may be used again. */
#include <check.h>
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/net/lease_watch.h"
#include "daemon/net/output.h"
#include "daemon/net/request.h"
#include "tests/unit/session_fixture.h"

/* ------------------------------------------------------------------ a pool over the heap, and a loop */

static enum samkv_status shared_alloc(struct samkv_device *device, size_t *bytes, void **out)
{
    (void)device;
    *out = malloc(*bytes);
    return *out ? SAMKV_OK : SAMKV_NO_MEMORY;
}

static void shared_release(struct samkv_device *device, void *memory)
{
    (void)device;
    free(memory);
}

static const struct samkv_ops ops = {.shared_alloc = shared_alloc, .shared_release = shared_release};
static struct samkv_device device = {.ops = &ops, .shares = true, .name = "fake"};

#define BYTES 4096

static struct samkv_leases *pool;
static uv_loop_t loop;
static struct samkv_lease_watches watches;
static _Atomic uint32_t taken;
static struct samkv_error err;
static int descriptors;

static void set_up(void)
{
    ck_assert_int_eq(samkv_leases_new(&device, 100 * BYTES, &pool), SAMKV_OK);
    ck_assert_int_eq(uv_loop_init(&loop), 0);
    samkv_lease_watches_init(&watches, &loop);
    samkv_log_set_level(SAMKV_LOG_ERROR);
    uv_run(&loop, UV_RUN_NOWAIT);
    descriptors = open_fds();
}

/* Nothing is left, whatever happened. */
static void tear_down(void)
{
    samkv_lease_watches_drop(&watches);
    while (watches.closing)
        uv_run(&loop, UV_RUN_ONCE);
    ck_assert_uint_eq(atomic_load(&taken), 0);
    ck_assert_int_eq(open_fds(), descriptors);
    ck_assert_int_eq(uv_loop_close(&loop), 0);
    samkv_leases_free(pool);
}

static void expect_stats(uint64_t held, uint64_t kept)
{
    struct samkv_leases_stats stats;
    samkv_leases_stats(pool, &stats);
    ck_assert_uint_eq(stats.held, held);
    ck_assert_uint_eq(stats.kept_bytes, kept * BYTES);
}

/* A watch over a holder of a lease, and the client's end. */
static struct samkv_lease_watch *make_watch_over(struct samkv_lease *lease, int *client)
{
    struct samkv_lease_watch *watch;
    ck_assert_int_eq(samkv_lease_watch_new(&taken, &watch, &err), SAMKV_OK);
    ck_assert_int_eq(samkv_lease_watch_bind(watch, lease, client, &err), SAMKV_OK);
    return watch;
}

static struct samkv_lease *take_lease(void)
{
    struct samkv_lease *lease;
    ck_assert_int_eq(samkv_lease_take(pool, 0, BYTES, &lease, &err), SAMKV_OK);
    return lease;
}

/* The job is over already. */
static struct samkv_lease_watch *make_watch(int *client)
{
    return make_watch_over(take_lease(), client);
}

static int start_watch(void)
{
    int client;
    samkv_lease_watch_start(&watches, make_watch(&client));
    uv_run(&loop, UV_RUN_NOWAIT);
    return client;
}

static void run_until_none_is_watched(void)
{
    while (watches.first || watches.closing)
        uv_run(&loop, UV_RUN_ONCE);
}

/* ------------------------------------------------------------------ the client's ends */

START_TEST(returned)
{
    int client = start_watch();
    expect_stats(1, 0);
    ck_assert_int_eq(send(client, "R", 1, 0), 1);
    run_until_none_is_watched();
    expect_stats(0, 1);
    close(client);
}
END_TEST

START_TEST(returned_and_closed_at_once)
{
    int client = start_watch();
    ck_assert_int_eq(send(client, "R", 1, 0), 1);
    close(client);
    run_until_none_is_watched();
    expect_stats(0, 1);
}
END_TEST

START_TEST(hung_up)
{
    close(start_watch());
    run_until_none_is_watched();
    expect_stats(0, 0);
}
END_TEST

START_TEST(another_byte)
{
    int client = start_watch();
    ck_assert_int_eq(send(client, "rR", 2, 0), 2);
    run_until_none_is_watched();
    expect_stats(0, 0);
    close(client);
}
END_TEST

/* The kernel hangs up for a process that is killed. */
START_TEST(client_died)
{
    int client = start_watch();
    pid_t pid = fork();
    if (!pid) {
        for (;;)
            pause();
    }
    close(client);
    uv_run(&loop, UV_RUN_NOWAIT);
    expect_stats(1, 0);
    kill(pid, SIGKILL);
    ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
    run_until_none_is_watched();
    expect_stats(0, 0);
}
END_TEST

START_TEST(several_end_in_any_order)
{
    int clients[5];
    for (int i = 0; i < 5; i++)
        clients[i] = start_watch();
    expect_stats(5, 0);
    for (int i = 0; i < 5; i++) {
        int which = (i * 3 + 1) % 5;
        ck_assert_int_eq(send(clients[which], "R", 1, 0), 1);
        close(clients[which]);
        do
            uv_run(&loop, UV_RUN_ONCE);
        while (watches.closing);
        expect_stats((uint64_t)(4 - i), (uint64_t)(i + 1));
    }
}
END_TEST

/* ------------------------------------------------------------------ the daemon's */

/* The server stops: its handles go, what clients have stays theirs. tear_down does it. */
START_TEST(dropped_while_watched)
{
    int a = start_watch(), b = start_watch();
    samkv_lease_watches_drop(&watches);
    expect_stats(0, 0);
    char byte;
    ck_assert_int_eq(recv(a, &byte, 1, 0), 0); /* a hang-up, which clients ignore */
    ck_assert_int_eq(send(b, "R", 1, MSG_NOSIGNAL), -1);
    close(a);
    close(b);
}
END_TEST

START_TEST(never_started)
{
    int client;
    struct samkv_lease_watch *watch = make_watch(&client);
    expect_stats(1, 0);
    samkv_lease_watch_free(watch);
    expect_stats(0, 1); /* nobody saw it */
    close(client);
    ck_assert_int_eq(samkv_lease_watch_new(&taken, &watch, &err), SAMKV_OK);
    samkv_lease_watch_free(watch); /* a fetch that failed: no lease yet */
    samkv_lease_watch_free(NULL);
}
END_TEST

START_TEST(places_are_limited)
{
    struct samkv_lease_watch *all[SAMKV_MAX_LEASES], *more;
    for (int i = 0; i < SAMKV_MAX_LEASES; i++)
        ck_assert_int_eq(samkv_lease_watch_new(&taken, &all[i], &err), SAMKV_OK);
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(samkv_lease_watch_new(&taken, &more, &err), SAMKV_BUSY);
    ck_assert_ptr_nonnull(strstr(err.text, "free some caches"));
    samkv_lease_watch_free(all[0]);
    ck_assert_int_eq(samkv_lease_watch_new(&taken, &all[0], &err), SAMKV_OK);
    for (int i = 0; i < SAMKV_MAX_LEASES; i++)
        samkv_lease_watch_free(all[i]);
}
END_TEST

/* ------------------------------------------------------------------ with a frame */

static void start(void *arg, struct samkv_lease_watch *watch)
{
    samkv_lease_watch_start(arg, watch);
}

/* A reply with device memory; payload_bytes of nothing. */
static struct samkv_outgoing *make_reply(uint32_t payload_bytes)
{
    const struct samkv_frame header = {payload_bytes, SAMKV_TYPE_FETCH, SAMKV_FLAG_REPLY | SAMKV_FLAG_FD, 1};
    struct samkv_fds fds = {.fd = {dup(STDERR_FILENO), dup(STDERR_FILENO)}, .count = 3};
    struct samkv_outgoing *frame;
    struct samkv_lease_watch *watch = make_watch(&fds.fd[2]);
    ck_assert_int_eq(samkv_outgoing_new(&header, &fds, &frame), SAMKV_OK);
    memset(frame->bytes + SAMKV_FRAME_HEADER_BYTES, 0, payload_bytes);
    frame->lease = watch;
    return frame;
}

static void make_socket(int pair[2])
{
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
}

START_TEST(sent_and_returned)
{
    struct samkv_output output;
    struct samkv_fds fds;
    char bytes[100];
    int pair[2];
    make_socket(pair);
    samkv_output_init(&output, start, &watches);
    samkv_output_push(&output, make_reply(50));
    ck_assert_int_eq(samkv_output_flush(&output, pair[0]), SAMKV_OK);
    ck_assert_ptr_nonnull(watches.first);
    ck_assert_int_eq(samkv_socket_receive(pair[1], bytes, sizeof bytes, &fds), 66);
    ck_assert_int_eq(fds.count, 3);
    close(pair[0]); /* the connection does not matter */
    close(pair[1]);
    uv_run(&loop, UV_RUN_NOWAIT);
    expect_stats(1, 0);
    ck_assert_int_eq(send(fds.fd[2], "R", 1, 0), 1);
    samkv_fds_close(&fds);
    run_until_none_is_watched();
    expect_stats(0, 1);
}
END_TEST

/* A part was sent, so the descriptors may have been seen: only a hang-up tells. */
START_TEST(sent_partly)
{
    struct samkv_output output;
    int pair[2];
    make_socket(pair);
    samkv_output_init(&output, start, &watches);
    samkv_output_push(&output, make_reply(4u << 20));
    ck_assert_int_eq(samkv_output_flush(&output, pair[0]), SAMKV_BUSY);
    ck_assert_ptr_nonnull(watches.first);
    samkv_output_deinit(&output);
    uv_run(&loop, UV_RUN_NOWAIT);
    expect_stats(1, 0); /* in the socket's buffer */
    close(pair[0]);
    close(pair[1]);
    run_until_none_is_watched();
    expect_stats(0, 0);
}
END_TEST

START_TEST(dropped_unsent)
{
    struct samkv_output output;
    samkv_output_init(&output, start, &watches);
    samkv_output_push(&output, make_reply(50));
    samkv_output_deinit(&output);
    ck_assert_ptr_null(watches.first);
    expect_stats(0, 1);
}
END_TEST

START_TEST(the_socket_takes_nothing)
{
    struct samkv_output output;
    int pair[2];
    make_socket(pair);
    close(pair[1]);
    samkv_output_init(&output, start, &watches);
    samkv_output_push(&output, make_reply(50));
    ck_assert_int_eq(samkv_output_flush(&output, pair[0]), SAMKV_CLOSED);
    samkv_output_deinit(&output);
    ck_assert_ptr_null(watches.first);
    expect_stats(0, 1);
    close(pair[0]);
}
END_TEST

/* ------------------------------------------------------------------ announced: the job holds the lease too */

/* How a client may end its share. */
static const struct {
    const char *says;
    uint64_t kept;
} ends[] = {{"R", 1}, {"", 0}, {"x", 0}};

static int start_shared_watch(struct samkv_lease *job)
{
    int client;
    samkv_lease_watch_start(&watches, make_watch_over(samkv_lease_share(job), &client));
    uv_run(&loop, UV_RUN_NOWAIT);
    return client;
}

static void end_client(int client, const char *says)
{
    ck_assert_int_eq(send(client, says, strlen(says), 0), (ssize_t)strlen(says));
    close(client);
    run_until_none_is_watched();
}

/* The memory is neither given up nor another reply's while the device may still write to it. */
START_TEST(the_client_ends_before_the_job)
{
    struct samkv_lease *job = take_lease();
    void *memory = samkv_lease_memory(job);
    end_client(start_shared_watch(job), ends[_i].says);
    expect_stats(1, 0);
    ck_assert_uint_eq(atomic_load(&taken), 0); /* the place is free for the next */
    struct samkv_lease *other = take_lease();
    ck_assert_ptr_ne(samkv_lease_memory(other), memory);
    samkv_lease_end(other, false);
    memset(memory, 1, BYTES);
    samkv_lease_end(job, true);
    expect_stats(0, ends[_i].kept);
}
END_TEST

START_TEST(the_job_ends_before_the_client)
{
    struct samkv_lease *job = take_lease();
    int client = start_shared_watch(job);
    samkv_lease_end(job, true);
    uv_run(&loop, UV_RUN_NOWAIT);
    expect_stats(1, 0);
    end_client(client, ends[_i].says);
    expect_stats(0, ends[_i].kept);
}
END_TEST

/* A request of a worker, whose frames go nowhere but to its outbox. */
struct worker {
    struct samkv_outbox outbox;
    struct samkv_request request;
};

static void on_wake(uv_async_t *wake)
{
    (void)wake;
}

static void worker_init(struct worker *w)
{
    *w = (struct worker){.request = {.frame = {.type = SAMKV_TYPE_FETCH, .request_id = 7}, .outbox = &w->outbox}};
    ck_assert_int_eq(samkv_outbox_init(&w->outbox, &loop, on_wake, NULL), SAMKV_OK);
}

static void worker_deinit(struct worker *w)
{
    uv_close((uv_handle_t *)&w->outbox.wake, NULL);
    samkv_outbox_deinit(&w->outbox);
    uv_run(&loop, UV_RUN_NOWAIT);
}

/* The watch stays the caller's on failure. */
static enum samkv_status announce(struct worker *w, struct samkv_lease *job, struct samkv_lease_watch **watch)
{
    const Samkv__FetchReply message = SAMKV__FETCH_REPLY__INIT;
    struct samkv_fds fds = {.fd = {dup(STDERR_FILENO)}, .count = 2};
    *watch = make_watch_over(samkv_lease_share(job), &fds.fd[1]);
    enum samkv_status st = samkv_request_more_with(&w->request, &message.base, &fds, *watch, &err);
    ck_assert_int_eq(fds.count, 0);
    return st;
}

static int receive_announcement(int socket)
{
    uint8_t header[SAMKV_FRAME_HEADER_BYTES];
    struct samkv_frame frame;
    struct samkv_fds fds;
    ck_assert_int_eq(samkv_socket_receive(socket, header, sizeof header, &fds), sizeof header);
    ck_assert_int_eq(samkv_frame_decode(header, &frame), SAMKV_OK);
    ck_assert_uint_eq(frame.type, SAMKV_TYPE_FETCH);
    ck_assert_uint_eq(frame.request_id, 7);
    ck_assert_uint_eq(frame.flags, SAMKV_FLAG_REPLY | SAMKV_FLAG_MORE | SAMKV_FLAG_FD);
    ck_assert_uint_eq(frame.payload_bytes, 0);
    ck_assert_int_eq(fds.count, 2);
    close(fds.fd[0]);
    return fds.fd[1];
}

/* A fetch that is tried again: each attempt has its own lease, and the end of one is not the other's. */
START_TEST(announced_twice)
{
    struct worker w;
    struct samkv_output output;
    struct samkv_lease_watch *watch;
    struct samkv_lease *jobs[2];
    int pair[2], clients[2];
    make_socket(pair);
    worker_init(&w);
    samkv_output_init(&output, start, &watches);
    for (int i = 0; i < 2; i++) {
        jobs[i] = take_lease();
        ck_assert_int_eq(announce(&w, jobs[i], &watch), SAMKV_OK);
        struct samkv_outgoing *frame = samkv_outbox_take(&w.outbox);
        ck_assert(!frame->last && !frame->next);
        samkv_output_push(&output, frame);
        ck_assert_int_eq(samkv_output_flush(&output, pair[0]), SAMKV_OK);
        clients[i] = receive_announcement(pair[1]);
        samkv_lease_end(jobs[i], true);
    }
    ck_assert_uint_eq(output.answered, 0);
    expect_stats(2, 0);
    ck_assert_int_eq(send(clients[0], "R", 1, 0), 1);
    close(clients[0]);
    do
        uv_run(&loop, UV_RUN_ONCE);
    while (watches.closing);
    expect_stats(1, 1);
    end_client(clients[1], "");
    expect_stats(0, 1);
    worker_deinit(&w);
    close(pair[0]);
    close(pair[1]);
}
END_TEST

/* Posted, but its connection is gone: the client's share ends cleanly, and the job's goes on. */
START_TEST(announced_and_dropped_unsent)
{
    struct worker w;
    struct samkv_lease_watch *watch;
    struct samkv_lease *job = take_lease();
    worker_init(&w);
    ck_assert_int_eq(announce(&w, job, &watch), SAMKV_OK);
    worker_deinit(&w);
    ck_assert_uint_eq(atomic_load(&taken), 0);
    expect_stats(1, 0);
    samkv_lease_end(job, true);
    expect_stats(0, 1);
}
END_TEST

/* Nobody is told: tear_down finds no descriptor. */
START_TEST(an_announcement_that_nobody_would_read)
{
    static const enum samkv_status expected[] = {SAMKV_CANCELLED, SAMKV_BUSY};
    struct worker w;
    struct samkv_lease_watch *watch;
    struct samkv_lease *job = take_lease();
    worker_init(&w);
    if (_i)
        atomic_store(&w.request.backlog_bytes, 64u << 20);
    else
        samkv_request_cancel(&w.request);
    ck_assert_int_eq(announce(&w, job, &watch), expected[_i]);
    ck_assert_ptr_null(samkv_outbox_take(&w.outbox));
    samkv_lease_watch_free(watch);
    expect_stats(1, 0);
    samkv_lease_end(job, true);
    expect_stats(0, 1);
    worker_deinit(&w);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("lease_watch");
    TCase *tc = tcase_create("lease_watch");
    tcase_add_checked_fixture(tc, set_up, tear_down);
    tcase_add_test(tc, returned);
    tcase_add_test(tc, returned_and_closed_at_once);
    tcase_add_test(tc, hung_up);
    tcase_add_test(tc, another_byte);
    tcase_add_test(tc, client_died);
    tcase_add_test(tc, several_end_in_any_order);
    tcase_add_test(tc, dropped_while_watched);
    tcase_add_test(tc, never_started);
    tcase_add_test(tc, places_are_limited);
    tcase_add_test(tc, sent_and_returned);
    tcase_add_test(tc, sent_partly);
    tcase_add_test(tc, dropped_unsent);
    tcase_add_test(tc, the_socket_takes_nothing);
    tcase_add_loop_test(tc, the_client_ends_before_the_job, 0, sizeof ends / sizeof *ends);
    tcase_add_loop_test(tc, the_job_ends_before_the_client, 0, sizeof ends / sizeof *ends);
    tcase_add_test(tc, announced_twice);
    tcase_add_test(tc, announced_and_dropped_unsent);
    tcase_add_loop_test(tc, an_announcement_that_nobody_would_read, 0, 2);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
