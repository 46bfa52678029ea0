#include "daemon/net/descriptor.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Clients' descriptors as streams: whatever is at their other end, a worker comes back from them. */

static struct samkv_error err;
static int looks; /* how often somebody asked whether it is still wanted; from `enough` on it is not */
static int enough;

static enum samkv_status wanted(void *arg, struct samkv_error *e)
{
    (void)arg;
    return ++looks < enough ? SAMKV_OK : samkv_fail(e, SAMKV_CANCELLED, "nobody wants it");
}

static void setup(void)
{
    signal(SIGPIPE, SIG_IGN);
    looks = 0;
    enough = 1 << 30;
}

static enum samkv_status open_descriptor(struct samkv_descriptor *d, int fd, bool writes)
{
    return samkv_descriptor_init(d, fd, writes, wanted, NULL, &err);
}

#define OK(call)                                                                                                       \
    do {                                                                                                               \
        enum samkv_status ok_status = (call);                                                                          \
        ck_assert_msg(ok_status == SAMKV_OK, "%s: %s: %s", #call, samkv_status_name(ok_status), err.text);             \
    } while (0)

/* Both ends of a pipe, a socket pair, or the same file twice. */
enum { PIPE, SOCKETS, FILES, KINDS };

static void open_ends(int kind, int *from, int *to)
{
    int ends[2];
    char path[] = "/tmp/samkv-descriptor-XXXXXX";
    if (kind == PIPE)
        ck_assert_int_eq(pipe(ends), 0);
    else if (kind == SOCKETS)
        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    else {
        ends[1] = mkstemp(path);
        ends[0] = open(path, O_RDONLY);
        unlink(path);
    }
    *from = ends[0], *to = ends[1];
}

#define BYTES ((size_t)1234567)

static uint8_t *pattern(void)
{
    uint8_t *bytes = malloc(BYTES);
    for (size_t i = 0; i < BYTES; i++)
        bytes[i] = (uint8_t)(i * 2654435761u >> 13);
    return bytes;
}

static void *write_all(void *arg)
{
    struct samkv_error e;
    uint8_t *bytes = pattern();
    for (size_t at = 0, n; at < BYTES; at += n) {
        n = at % 3 ? 77777 : 5; /* odd pieces */
        n = n < BYTES - at ? n : BYTES - at;
        if (samkv_descriptor_write(arg, bytes + at, n, &e) != SAMKV_OK)
            break;
    }
    free(bytes);
    samkv_descriptor_deinit(arg); /* a reader sees the end */
    return NULL;
}

START_TEST(what_is_written_is_read)
{
    int from, to;
    pthread_t thread;
    struct samkv_descriptor reader, writer;
    open_ends(_i, &from, &to);
    OK(open_descriptor(&writer, to, true));
    OK(open_descriptor(&reader, from, false));
    if (_i == FILES)
        write_all(&writer);
    else
        ck_assert_int_eq(pthread_create(&thread, NULL, write_all, &writer), 0);
    uint8_t *want = pattern(), *got = malloc(BYTES + 1);
    size_t at = 0, n = 1;
    while (n) {
        OK(samkv_descriptor_read(&reader, got + at, at % 2 ? BYTES + 1 - at : 1, &n, &err));
        at += n;
        if (at == BYTES)
            OK(samkv_descriptor_read(&reader, got + at, 1, &n, &err));
    }
    ck_assert_uint_eq(at, BYTES);
    ck_assert_mem_eq(got, want, BYTES);
    if (_i != FILES)
        pthread_join(thread, NULL);
    samkv_descriptor_deinit(&reader);
    free(want), free(got);
}
END_TEST

START_TEST(a_writer_does_not_wait_for_ever)
{
    int from, to;
    struct samkv_descriptor d;
    uint8_t *bytes = pattern();
    open_ends(_i % 2, &from, &to);
    OK(open_descriptor(&d, to, true));
    if (_i < 2) { /* the client goes */
        enough = 2;
        ck_assert_int_eq(samkv_descriptor_write(&d, bytes, BYTES, &err), SAMKV_CANCELLED);
    } else if (_i < 4) { /* nothing moves */
        d.stall_ms = 1;
        ck_assert_int_eq(samkv_descriptor_write(&d, bytes, BYTES, &err), SAMKV_IO);
    } else { /* the reader goes */
        close(from);
        ck_assert_int_eq(samkv_descriptor_write(&d, bytes, BYTES, &err), SAMKV_IO);
        ck_assert_int_eq(looks, 0);
        from = -1;
    }
    /* Its flags are the client's. */
    ck_assert_int_eq(fcntl(to, F_GETFL) & O_NONBLOCK, 0);
    samkv_descriptor_deinit(&d);
    close(from);
    free(bytes);
}
END_TEST

START_TEST(a_reader_does_not_wait_for_ever)
{
    int from, to;
    uint8_t byte;
    size_t got;
    struct samkv_descriptor d;
    open_ends(_i % 2, &from, &to);
    OK(open_descriptor(&d, from, false));
    if (_i < 2) {
        enough = 2;
        ck_assert_int_eq(samkv_descriptor_read(&d, &byte, 1, &got, &err), SAMKV_CANCELLED);
    } else {
        d.stall_ms = 1;
        ck_assert_int_eq(samkv_descriptor_read(&d, &byte, 1, &got, &err), SAMKV_IO);
    }
    /* A byte now and then is no progress. */
    enough = 1 << 30;
    d.stall_ms = 600;
    enum samkv_status st = SAMKV_OK;
    for (int i = 0; st == SAMKV_OK && i < 1000; i++) {
        if (i % 2)
            ck_assert_int_eq(write(to, "x", 1), 1);
        st = i % 2 ? samkv_descriptor_read(&d, &byte, 1, &got, &err) : SAMKV_OK;
        d.waited_ms += 10; /* as if it had waited between them */
    }
    while (st == SAMKV_OK)
        st = samkv_descriptor_read(&d, &byte, 1, &got, &err);
    ck_assert_int_eq(st, SAMKV_IO);
    samkv_descriptor_deinit(&d);
    close(to);
}
END_TEST

START_TEST(a_file_begins_where_it_stands_and_is_left_behind_what_was_written)
{
    int from, to;
    char text[32] = {0};
    struct samkv_descriptor d;
    open_ends(FILES, &from, &to);
    ck_assert_int_eq(write(to, "before|", 7), 7);
    OK(open_descriptor(&d, dup(to), true));
    OK(samkv_descriptor_write(&d, "bundle", 6, &err));
    ck_assert_int_eq(samkv_descriptor_cut(&d, 10, &err), SAMKV_OK);
    OK(samkv_descriptor_write(&d, "n", 1, &err));
    samkv_descriptor_deinit(&d);
    ck_assert_int_eq(write(to, "|after", 6), 6);
    ck_assert_int_eq(read(from, text, sizeof text), 17);
    ck_assert_str_eq(text, "before|bunn|after");
    OK(open_descriptor(&d, dup(from), false));
    d.place = 0;
    size_t got;
    OK(samkv_descriptor_skip(&d, 7, &err));
    OK(samkv_descriptor_read(&d, text, 3, &got, &err));
    ck_assert_mem_eq(text, "bun", 3);
    OK(samkv_descriptor_skip(&d, UINT64_MAX, &err)); /* nowhere: nothing is left to be read */
    OK(samkv_descriptor_read(&d, text, 3, &got, &err));
    ck_assert_uint_eq(got, 0);
    samkv_descriptor_deinit(&d);
    close(from), close(to);
}
END_TEST

START_TEST(what_is_none_of_them_is_refused)
{
    int from, to, pair[2];
    struct samkv_descriptor d;
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair), 0);
    ck_assert_int_eq(open_descriptor(&d, pair[0], true), SAMKV_INVALID);
    close(pair[1]);
    ck_assert_int_eq(open_descriptor(&d, open("/tmp", O_RDONLY), false), SAMKV_INVALID);
    ck_assert_int_eq(open_descriptor(&d, open("/dev/zero", O_RDWR), false), SAMKV_INVALID);
    open_ends(PIPE, &from, &to);
    ck_assert_int_eq(open_descriptor(&d, from, true), SAMKV_INVALID);
    ck_assert_int_eq(open_descriptor(&d, to, false), SAMKV_INVALID);
    ck_assert_int_eq(fcntl(from, F_GETFD), -1); /* they were taken over all the same */
    open_ends(FILES, &from, &to);
    ck_assert_int_eq(open_descriptor(&d, from, true), SAMKV_INVALID);
    close(to);
    ck_assert_int_ne(open_descriptor(&d, -1, true), SAMKV_OK);
    open_ends(PIPE, &from, &to);
    OK(open_descriptor(&d, to, true));
    ck_assert_int_eq(samkv_descriptor_cut(&d, 0, &err), SAMKV_INVALID);
    samkv_descriptor_deinit(&d);
    close(from);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("descriptor");
    TCase *c = tcase_create("descriptor");
    tcase_set_timeout(c, 60);
    tcase_add_checked_fixture(c, setup, NULL);
    tcase_add_loop_test(c, what_is_written_is_read, 0, KINDS);
    tcase_add_loop_test(c, a_writer_does_not_wait_for_ever, 0, 6);
    tcase_add_loop_test(c, a_reader_does_not_wait_for_ever, 0, 4);
    tcase_add_test(c, a_file_begins_where_it_stands_and_is_left_behind_what_was_written);
    tcase_add_test(c, what_is_none_of_them_is_refused);
    suite_add_tcase(suite, c);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
