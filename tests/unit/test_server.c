#include <check.h>
#include <ftw.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/net/message.h"
#include "daemon/net/request.h"
#include "daemon/net/server.h"

/* ------------------------------------------------------------------ a daemon without models, in a thread */

struct fixture {
    char directory[64], path[100], store_path[100];
    struct samkv_store *store;
    struct samkv_models models;
    struct samkv_service service;
    struct samkv_server *server;
    pthread_t thread;
    enum samkv_status outcome;
};

static void *serve(void *arg)
{
    struct fixture *f = arg;
    f->outcome = samkv_server_run(f->server);
    return NULL;
}

static void open_server(struct fixture *f)
{
    struct samkv_error err;
    memset(f, 0, sizeof *f);
    strcpy(f->directory, "/tmp/samkv-server-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(f->directory));
    snprintf(f->path, sizeof f->path, "%s/socket", f->directory);
    snprintf(f->store_path, sizeof f->store_path, "%s/store", f->directory);
    const struct samkv_store_options store = {.path = f->store_path};
    ck_assert_msg(samkv_store_open(&store, &f->store, &err) == SAMKV_OK, "%s", err.text);
    f->service.store = f->store;
    f->service.models = &f->models;
    f->service.store_path = f->store_path;
    f->service.started_ms = samkv_now_ms();
    struct samkv_server_options options = {.service = &f->service, .workers = 3};
    ck_assert_msg(samkv_listen(f->path, &options.listener, &err) == SAMKV_OK, "%s", err.text);
    ck_assert_int_eq(samkv_server_new(&options, &f->server, &err), SAMKV_OK);
    samkv_log_set_level(SAMKV_LOG_ERROR);
    ck_assert_int_eq(pthread_create(&f->thread, NULL, serve, f), 0);
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static void close_server(struct fixture *f)
{
    kill(getpid(), SIGTERM);
    pthread_join(f->thread, NULL);
    ck_assert_int_eq(f->outcome, SAMKV_OK);
    ck_assert_int_ne(access(f->path, F_OK), 0); /* the socket's file went */
    samkv_server_free(f->server);
    ck_assert_uint_eq(atomic_load(&f->service.connections), 0);
    ck_assert_uint_eq(atomic_load(&f->service.requests), 0);
    samkv_store_close(f->store);
    nftw(f->directory, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

/* ------------------------------------------------------------------ a client */

static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static void send_message(int fd, uint16_t type, uint64_t id, const ProtobufCMessage *message)
{
    const struct samkv_frame request = {.type = type, .request_id = id};
    struct samkv_outgoing *frame;
    ck_assert_int_eq(samkv_message_frame(&request, 0, message, NULL, &frame, NULL), SAMKV_OK);
    ck_assert_int_eq(send(fd, frame->bytes, frame->count, MSG_NOSIGNAL), (ssize_t)frame->count);
    samkv_outgoing_free(frame);
}

static void read_all(int fd, void *bytes, size_t count)
{
    for (size_t at = 0; at < count;) {
        ssize_t n = recv(fd, (char *)bytes + at, count - at, 0);
        ck_assert_int_gt(n, 0);
        at += (size_t)n;
    }
}

/* The next frame; the caller frees the payload. */
static struct samkv_frame read_frame(int fd, uint8_t **payload)
{
    uint8_t header[SAMKV_FRAME_HEADER_BYTES];
    struct samkv_frame frame;
    read_all(fd, header, sizeof header);
    ck_assert_int_eq(samkv_frame_decode(header, &frame), SAMKV_OK);
    *payload = malloc(frame.payload_bytes + 1u);
    read_all(fd, *payload, frame.payload_bytes);
    return frame;
}

static int greet(const char *path)
{
    Samkv__Hello hello = SAMKV__HELLO__INIT;
    uint8_t *payload;
    int fd = connect_to(path);
    hello.magic.data = (uint8_t *)SAMKV_MAGIC;
    hello.magic.len = strlen(SAMKV_MAGIC);
    hello.version_min = hello.version_max = SAMKV_PROTOCOL_VERSION;
    hello.agent = "test";
    send_message(fd, SAMKV_TYPE_HELLO, 1, &hello.base);
    struct samkv_frame frame = read_frame(fd, &payload);
    ck_assert_uint_eq(frame.flags, SAMKV_FLAG_REPLY);
    free(payload);
    return fd;
}

/* Sends and expects an error of this status whose message contains `words`. */
static void expect_error(int fd, uint16_t type, const ProtobufCMessage *message, enum samkv_status status,
                         const char *words)
{
    uint8_t *payload;
    send_message(fd, type, 77, message);
    struct samkv_frame frame = read_frame(fd, &payload);
    ck_assert_uint_eq(frame.request_id, 77);
    ck_assert_uint_eq(frame.type, type);
    ck_assert_uint_eq(frame.flags, SAMKV_FLAG_REPLY | SAMKV_FLAG_ERROR);
    Samkv__Error *error = samkv__error__unpack(NULL, frame.payload_bytes, payload);
    ck_assert_ptr_nonnull(error);
    ck_assert_msg(error->status == status && strstr(error->message, words), "status %u: %s", error->status,
                  error->message);
    samkv__error__free_unpacked(error, NULL);
    free(payload);
}

static Samkv__StatusReply *ask_status(int fd)
{
    const Samkv__StatusRequest request = SAMKV__STATUS_REQUEST__INIT;
    uint8_t *payload;
    send_message(fd, SAMKV_TYPE_STATUS, 5, &request.base);
    struct samkv_frame frame = read_frame(fd, &payload);
    ck_assert_uint_eq(frame.flags, SAMKV_FLAG_REPLY);
    Samkv__StatusReply *reply = samkv__status_reply__unpack(NULL, frame.payload_bytes, payload);
    ck_assert_ptr_nonnull(reply);
    free(payload);
    return reply;
}

static double counter(const Samkv__StatusReply *reply, const char *name)
{
    for (size_t i = 0; i < reply->n_counters; i++)
        if (strcmp(reply->counters[i]->name, name) == 0)
            return reply->counters[i]->value;
    ck_abort_msg("no counter %s", name);
    return -1;
}

/* ------------------------------------------------------------------ tests */

START_TEST(status_counts_what_happened)
{
    struct fixture f;
    open_server(&f);
    int fd = greet(f.path), other = greet(f.path);
    const Samkv__PingRequest ping = SAMKV__PING_REQUEST__INIT;
    for (int i = 0; i < 3; i++) {
        uint8_t *payload;
        send_message(fd, SAMKV_TYPE_PING, 9, &ping.base);
        read_frame(fd, &payload);
        free(payload);
    }
    Samkv__StatusReply *reply = ask_status(fd);
    ck_assert_str_eq(reply->version, SAMKV_VERSION);
    ck_assert_str_eq(reply->store, f.store_path);
    ck_assert_uint_eq(reply->connections, 2);
    ck_assert_uint_eq(reply->documents, 0);
    ck_assert_uint_gt(reply->resident_bytes, 100000);
    ck_assert(counter(reply, "requests_ping") == 3);
    ck_assert(counter(reply, "requests_status") == 1);
    ck_assert(counter(reply, "requests_running") == 1);
    ck_assert(counter(reply, "connections_total") == 2);
    samkv__status_reply__free_unpacked(reply, NULL);
    close(fd);
    close(other);
    close_server(&f);
}
END_TEST

START_TEST(errors_are_one_clear_line)
{
    struct fixture f;
    open_server(&f);
    int fd = greet(f.path);
    char *ids[] = {"a", "bad\x01id"};
    Samkv__FetchRequest fetch = SAMKV__FETCH_REQUEST__INIT;
    Samkv__ShowRequest show = SAMKV__SHOW_REQUEST__INIT;
    Samkv__ListRequest list = SAMKV__LIST_REQUEST__INIT;
    Samkv__VerifyRequest verify = SAMKV__VERIFY_REQUEST__INIT;
    expect_error(fd, SAMKV_TYPE_FETCH, &fetch.base, SAMKV_INVALID, "the query is empty");
    fetch.query_text.data = (uint8_t *)"q";
    fetch.query_text.len = 1;
    expect_error(fd, SAMKV_TYPE_FETCH, &fetch.base, SAMKV_INVALID, "no document ids");
    fetch.ids = ids;
    fetch.n_ids = 2;
    expect_error(fd, SAMKV_TYPE_FETCH, &fetch.base, SAMKV_INVALID, "control character");
    show.id = "nothing";
    expect_error(fd, SAMKV_TYPE_SHOW, &show.base, SAMKV_NOT_FOUND, "there is no document 'nothing'");
    list.collection = "none";
    expect_error(fd, SAMKV_TYPE_LIST, &list.base, SAMKV_NOT_FOUND, "there is no collection 'none'");
    verify.collection = "none";
    expect_error(fd, SAMKV_TYPE_VERIFY, &verify.base, SAMKV_NOT_FOUND, "there is no collection 'none'");
    expect_error(fd, 4321, &list.base, SAMKV_UNSUPPORTED, "type 4321");
    Samkv__StatusReply *reply = ask_status(fd); /* and it goes on */
    ck_assert(counter(reply, "requests_failed") == 7);
    samkv__status_reply__free_unpacked(reply, NULL);
    close(fd);
    close_server(&f);
}
END_TEST

START_TEST(an_empty_store_lists_and_verifies_nothing)
{
    struct fixture f;
    uint8_t *payload;
    open_server(&f);
    int fd = greet(f.path);
    Samkv__ListRequest list = SAMKV__LIST_REQUEST__INIT;
    for (int i = 0; i < 2; i++) {
        list.collections = i;
        send_message(fd, SAMKV_TYPE_LIST, 3, &list.base);
        struct samkv_frame frame = read_frame(fd, &payload);
        ck_assert_uint_eq(frame.flags, SAMKV_FLAG_REPLY);
        ck_assert_uint_eq(frame.payload_bytes, 0);
        free(payload);
    }
    const Samkv__VerifyRequest verify = SAMKV__VERIFY_REQUEST__INIT;
    send_message(fd, SAMKV_TYPE_VERIFY, 4, &verify.base);
    struct samkv_frame frame = read_frame(fd, &payload);
    ck_assert_uint_eq(frame.flags, SAMKV_FLAG_REPLY);
    free(payload);
    Samkv__RemoveRequest remove_request = SAMKV__REMOVE_REQUEST__INIT;
    char *ids[] = {"x", "y"};
    remove_request.ids = ids;
    remove_request.n_ids = 2;
    send_message(fd, SAMKV_TYPE_REMOVE, 5, &remove_request.base);
    frame = read_frame(fd, &payload);
    Samkv__RemoveReply *removed = samkv__remove_reply__unpack(NULL, frame.payload_bytes, payload);
    ck_assert_ptr_nonnull(removed);
    ck_assert_uint_eq(removed->removed, 0);
    ck_assert_uint_eq(removed->n_missing, 2);
    ck_assert_str_eq(removed->missing[1], "y");
    samkv__remove_reply__free_unpacked(removed, NULL);
    free(payload);
    close(fd);
    close_server(&f);
}
END_TEST

struct hammer {
    const char *path;
    bool vanish;
};

/* Requests in flight; half of the clients leave without reading a reply. */
static void *hammer(void *arg)
{
    const struct hammer *h = arg;
    for (int round = 0; round < 15; round++) {
        int fd = greet(h->path);
        const Samkv__StatusRequest status = SAMKV__STATUS_REQUEST__INIT;
        for (uint64_t id = 0; id < 20; id++)
            send_message(fd, SAMKV_TYPE_STATUS, id, &status.base);
        for (uint64_t id = 0; id < 20 && !h->vanish; id++) {
            uint8_t *payload;
            struct samkv_frame frame = read_frame(fd, &payload);
            ck_assert_uint_eq(frame.flags, SAMKV_FLAG_REPLY);
            free(payload);
        }
        close(fd);
    }
    return NULL;
}

START_TEST(many_clients_at_once)
{
    struct fixture f;
    pthread_t threads[6];
    struct hammer h[6];
    open_server(&f);
    for (int i = 0; i < 6; i++) {
        h[i] = (struct hammer){f.path, i % 2 == 1};
        pthread_create(&threads[i], NULL, hammer, &h[i]);
    }
    for (int i = 0; i < 6; i++)
        pthread_join(threads[i], NULL);
    close_server(&f);
}
END_TEST

START_TEST(stopping_with_clients_connected)
{
    struct fixture f;
    char byte;
    open_server(&f);
    int fd = greet(f.path), silent = connect_to(f.path);
    close_server(&f);
    ck_assert_int_eq(recv(fd, &byte, 1, 0), 0);
    ck_assert_int_le(recv(silent, &byte, 1, 0), 0);
    close(fd);
    close(silent);
}
END_TEST

START_TEST(clients_beyond_the_limit_are_told)
{
    struct fixture f;
    enum { CLIENTS = 256 + SAMKV_BOUNDS_ADMIN_CONNECTIONS }; /* who runs the test runs the daemon */
    int fds[CLIENTS];
    uint8_t *payload;
    open_server(&f);
    for (int i = 0; i < CLIENTS; i++)
        fds[i] = greet(f.path);
    int late = connect_to(f.path);
    struct samkv_frame frame = read_frame(late, &payload);
    ck_assert_uint_eq(frame.flags, SAMKV_FLAG_REPLY | SAMKV_FLAG_ERROR);
    Samkv__Error *error = samkv__error__unpack(NULL, frame.payload_bytes, payload);
    ck_assert_uint_eq(error->status, SAMKV_BUSY);
    samkv__error__free_unpacked(error, NULL);
    free(payload);
    close(late);
    for (int i = 0; i < CLIENTS; i++)
        close(fds[i]);
    close_server(&f);
}
END_TEST

/* An answer in pieces stops when its client is gone, or does not read: a worker never waits for it. */
START_TEST(a_slow_reader_stops_its_answer)
{
    struct samkv_request request = {.frame = {.type = SAMKV_TYPE_ASK, .request_id = 1}};
    const Samkv__AskReply piece = SAMKV__ASK_REPLY__INIT;
    struct samkv_error err;
    atomic_store(&request.backlog_bytes, 64u << 20);
    ck_assert_int_eq(samkv_request_more(&request, &piece.base, &err), SAMKV_BUSY);
    atomic_store(&request.backlog_bytes, 0);
    samkv_request_cancel(&request);
    ck_assert_int_eq(samkv_request_more(&request, &piece.base, &err), SAMKV_CANCELLED);
}
END_TEST

START_TEST(the_socket_is_ours_or_it_is_left_alone)
{
    char directory[] = "/tmp/samkv-listen-XXXXXX", path[64], long_path[200];
    struct samkv_listener first, second;
    struct samkv_error err;
    struct stat st;
    ck_assert_ptr_nonnull(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/s", directory);
    ck_assert_int_eq(samkv_listen(path, &first, &err), SAMKV_OK);
    ck_assert_int_eq(stat(path, &st), 0);
    ck_assert_uint_eq(st.st_mode & 0777, 0660);
    ck_assert_int_eq(samkv_listen(path, &second, &err), SAMKV_BUSY); /* somebody answers */
    close(first.fd);                                                 /* as if it had been killed */
    ck_assert_int_eq(samkv_listen(path, &second, &err), SAMKV_OK);
    ck_assert_int_eq(stat(path, &st), 0);
    /* The first one's late end does not take the second one's file away. */
    first.fd = dup(second.fd);
    if (first.inode != second.inode) /* a file system may give a number out again at once */
        samkv_listener_close(&first);
    ck_assert_int_eq(stat(path, &st), 0);
    samkv_listener_close(&second);
    samkv_listener_close(&second);
    ck_assert_int_ne(stat(path, &st), 0);
    FILE *plain = fopen(path, "w");
    fclose(plain);
    ck_assert_int_eq(samkv_listen(path, &first, &err), SAMKV_INVALID);
    ck_assert_int_eq(stat(path, &st), 0);
    unlink(path);
    memset(long_path, 'x', sizeof long_path);
    long_path[0] = '/';
    long_path[199] = 0;
    ck_assert_int_eq(samkv_listen(long_path, &first, &err), SAMKV_INVALID);
    rmdir(directory);
    ck_assert_int_ne(samkv_listen(path, &first, &err), SAMKV_OK); /* no directory */
    ck_assert_ptr_nonnull(strstr(err.text, path));
}
END_TEST

START_TEST(a_socket_that_systemd_passes)
{
    char directory[] = "/tmp/samkv-activation-XXXXXX", path[64], pid[20];
    struct samkv_listener made, passed;
    struct samkv_error err;
    ck_assert_ptr_nonnull(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/s", directory);
    ck_assert_int_eq(samkv_listen(path, &made, &err), SAMKV_OK);
    ck_assert_int_eq(dup2(made.fd, 3), 3);
    snprintf(pid, sizeof pid, "%d", (int)getpid());
    setenv("LISTEN_PID", pid, 1);
    setenv("LISTEN_FDS", "1", 1);
    ck_assert_int_eq(samkv_listen("/nowhere/at/all", &passed, &err), SAMKV_OK);
    ck_assert_int_eq(passed.fd, 3);
    ck_assert(passed.activated);
    ck_assert_ptr_null(getenv("LISTEN_PID"));
    samkv_listener_close(&passed);
    ck_assert_int_eq(access(path, F_OK), 0); /* systemd's file stays */
    setenv("LISTEN_PID", "1", 1);            /* meant for another process */
    setenv("LISTEN_FDS", "1", 1);
    ck_assert_int_ne(samkv_listen("/nowhere/at/all", &passed, &err), SAMKV_OK);
    samkv_listener_close(&made);
    rmdir(directory);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("server");
    TCase *tc = tcase_create("server");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, status_counts_what_happened);
    tcase_add_test(tc, errors_are_one_clear_line);
    tcase_add_test(tc, an_empty_store_lists_and_verifies_nothing);
    tcase_add_test(tc, many_clients_at_once);
    tcase_add_test(tc, stopping_with_clients_connected);
    tcase_add_test(tc, clients_beyond_the_limit_are_told);
    tcase_add_test(tc, a_slow_reader_stops_its_answer);
    tcase_add_test(tc, the_socket_is_ours_or_it_is_left_alone);
    tcase_add_test(tc, a_socket_that_systemd_passes);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
