/* Frames as bytes, and descriptors over a socket: none may be lost or leaked, whatever the peer sends. */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/frame.h"

static int open_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int count = 0;
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

static void make_pair(int pair[2])
{
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
}

/* Sends `count` descriptors of /dev/null with the bytes, as a hostile peer may. */
static void send_descriptors(int socket, const void *bytes, size_t size, int count)
{
    int fds[8];
    char control[CMSG_SPACE(sizeof fds)] = {0};
    struct iovec piece = {.iov_base = (void *)bytes, .iov_len = size};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control};
    message.msg_controllen = CMSG_SPACE((size_t)count * sizeof *fds);
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN((size_t)count * sizeof *fds);
    for (int i = 0; i < count; i++)
        fds[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    memcpy(CMSG_DATA(c), fds, (size_t)count * sizeof *fds);
    ck_assert_int_eq(sendmsg(socket, &message, 0), (ssize_t)size);
    for (int i = 0; i < count; i++)
        close(fds[i]);
}

START_TEST(encode_is_little_endian)
{
    const struct samkv_frame frame = {
        .payload_bytes = 0x04030201, .type = 0x0605, .flags = 0x0807, .request_id = 0x100f0e0d0c0b0a09};
    uint8_t out[SAMKV_FRAME_HEADER_BYTES];
    samkv_frame_encode(&frame, out);
    for (int i = 0; i < SAMKV_FRAME_HEADER_BYTES; i++)
        ck_assert_uint_eq(out[i], i + 1);
}
END_TEST

START_TEST(decode_reverses_encode)
{
    static const struct samkv_frame frames[] = {
        {0, SAMKV_TYPE_HELLO, 0, 0},
        {UINT32_MAX, UINT16_MAX, SAMKV_FLAGS_KNOWN, UINT64_MAX},
        {1, SAMKV_TYPE_VERIFY, SAMKV_FLAG_REPLY | SAMKV_FLAG_MORE, 1ull << 63},
    };
    for (size_t i = 0; i < sizeof frames / sizeof *frames; i++) {
        uint8_t bytes[SAMKV_FRAME_HEADER_BYTES];
        struct samkv_frame back;
        samkv_frame_encode(&frames[i], bytes);
        ck_assert_int_eq(samkv_frame_decode(bytes, &back), SAMKV_OK);
        ck_assert_uint_eq(back.payload_bytes, frames[i].payload_bytes);
        ck_assert_uint_eq(back.type, frames[i].type);
        ck_assert_uint_eq(back.flags, frames[i].flags);
        ck_assert_uint_eq(back.request_id, frames[i].request_id);
    }
}
END_TEST

START_TEST(decode_refuses_each_unknown_flag)
{
    for (int bit = 0; bit < 16; bit++) {
        const struct samkv_frame frame = {.type = SAMKV_TYPE_PING, .flags = (uint16_t)(1u << bit)};
        uint8_t bytes[SAMKV_FRAME_HEADER_BYTES];
        struct samkv_frame back;
        samkv_frame_encode(&frame, bytes);
        ck_assert_int_eq(samkv_frame_decode(bytes, &back), bit < 4 ? SAMKV_OK : SAMKV_PROTOCOL);
    }
}
END_TEST

START_TEST(bytes_and_descriptors_arrive)
{
    int pair[2], before, zero = open("/dev/zero", O_RDONLY), null = open("/dev/null", O_RDONLY);
    const struct samkv_fds all = {.fd = {zero, null, zero}};
    char bytes[16];
    struct stat sent, got;
    make_pair(pair);
    for (int count = 0; count <= SAMKV_MAX_FDS; count++) {
        struct samkv_fds fds = all, in;
        fds.count = count;
        before = open_descriptors();
        ck_assert_int_eq(samkv_socket_send(pair[0], "frame", 5, &fds), 5);
        ck_assert_int_eq(samkv_socket_receive(pair[1], bytes, sizeof bytes, &in), 5);
        ck_assert_mem_eq(bytes, "frame", 5);
        ck_assert_int_eq(in.count, count);
        ck_assert(!in.surplus);
        for (int i = 0; i < count; i++) { /* in their order */
            ck_assert_int_eq(fstat(all.fd[i], &sent), 0);
            ck_assert_int_eq(fstat(in.fd[i], &got), 0);
            ck_assert_uint_eq(sent.st_rdev, got.st_rdev);
            ck_assert_int_eq(fcntl(in.fd[i], F_GETFD), FD_CLOEXEC);
        }
        samkv_fds_close(&in);
        ck_assert_int_eq(in.count, 0);
        ck_assert_int_eq(open_descriptors(), before);
    }
}
END_TEST

START_TEST(no_descriptor_is_none)
{
    int pair[2];
    struct samkv_fds fds = {.count = 2, .surplus = true};
    char bytes[4];
    make_pair(pair);
    ck_assert_int_eq(samkv_socket_receive(pair[1], bytes, sizeof bytes, &fds), -EAGAIN);
    ck_assert_int_eq(fds.count, 0);
    ck_assert(!fds.surplus);
    ck_assert_int_eq(samkv_socket_send(pair[0], "abc", 3, NULL), 3);
    fds.count = 2;
    ck_assert_int_eq(samkv_socket_receive(pair[1], bytes, sizeof bytes, &fds), 3);
    ck_assert_int_eq(fds.count, 0);
}
END_TEST

/* Descriptors belong to the first byte they were sent with: reads never cross into the next sender's bytes. */
START_TEST(descriptors_come_with_their_own_bytes)
{
    int pair[2];
    struct samkv_fds fds;
    char bytes[16];
    make_pair(pair);
    ck_assert_int_eq(samkv_socket_send(pair[0], "one", 3, NULL), 3);
    send_descriptors(pair[0], "two", 3, 3);
    ck_assert_int_eq(samkv_socket_receive(pair[1], bytes, 3, &fds), 3);
    ck_assert_int_eq(fds.count, 0);
    ck_assert_int_eq(samkv_socket_receive(pair[1], bytes, 1, &fds), 1);
    ck_assert_int_eq(fds.count, 3);
    samkv_fds_close(&fds);
    ck_assert_int_eq(samkv_socket_receive(pair[1], bytes, sizeof bytes, &fds), 2);
    ck_assert_int_eq(fds.count, 0);
}
END_TEST

START_TEST(surplus_descriptors_are_closed)
{
    for (int count = 1; count <= 8; count++) {
        int pair[2];
        struct samkv_fds fds;
        char bytes[4];
        make_pair(pair);
        int before = open_descriptors();
        send_descriptors(pair[0], "x", 1, count);
        ck_assert_int_eq(samkv_socket_receive(pair[1], bytes, sizeof bytes, &fds), 1);
        ck_assert_int_eq(fds.count, count < SAMKV_MAX_FDS ? count : SAMKV_MAX_FDS);
        ck_assert_int_eq(fds.surplus, count > SAMKV_MAX_FDS);
        samkv_fds_close(&fds);
        ck_assert_int_eq(open_descriptors(), before);
        close(pair[0]);
        close(pair[1]);
    }
}
END_TEST

START_TEST(unwanted_descriptors_are_dropped)
{
    int pair[2];
    char bytes[4];
    make_pair(pair);
    int before = open_descriptors();
    send_descriptors(pair[0], "x", 1, 3);
    ck_assert_int_eq(samkv_socket_receive(pair[1], bytes, sizeof bytes, NULL), 1);
    ck_assert_int_eq(open_descriptors(), before);
}
END_TEST

/* Numbers for some of three descriptors, or for none. */
START_TEST(no_number_left_for_descriptors)
{
    int pair[2];
    struct samkv_fds fds;
    char bytes[4];
    struct rlimit limit, few;
    make_pair(pair);
    for (int left = 0; left < SAMKV_MAX_FDS; left++) {
        int before = open_descriptors();
        send_descriptors(pair[0], "x", 1, SAMKV_MAX_FDS);
        int next = dup(pair[0]); /* numbers are given from below: those beneath this one are taken */
        close(next);
        ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
        few = limit;
        few.rlim_cur = (rlim_t)(next + left);
        ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &few), 0);
        ssize_t n = samkv_socket_receive(pair[1], bytes, sizeof bytes, &fds);
        ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &limit), 0); /* tools of the test run need descriptors at the end */
        ck_assert_int_eq(n, -EMFILE);
        ck_assert_int_eq(fds.count, 0);
        ck_assert_int_eq(open_descriptors(), before);
    }
}
END_TEST

/* The peer being gone is a result, not a SIGPIPE. */
START_TEST(peer_that_left)
{
    int pair[2];
    struct samkv_fds fds;
    char bytes[4];
    make_pair(pair);
    ck_assert_int_eq(samkv_socket_send(pair[0], "bye", 3, NULL), 3);
    close(pair[0]);
    ck_assert_int_eq(samkv_socket_receive(pair[1], bytes, sizeof bytes, &fds), 3);
    ck_assert_int_eq(samkv_socket_receive(pair[1], bytes, sizeof bytes, &fds), 0);
    ck_assert_int_eq(samkv_socket_send(pair[1], "x", 1, NULL), -EPIPE);
}
END_TEST

START_TEST(full_socket_would_block)
{
    int pair[2];
    static char bytes[1 << 16];
    ssize_t n;
    make_pair(pair);
    do
        n = samkv_socket_send(pair[0], bytes, sizeof bytes, NULL);
    while (n > 0);
    ck_assert_int_eq(n, -EAGAIN);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("frame");
    TCase *bytes = tcase_create("bytes"), *sockets = tcase_create("sockets");
    tcase_add_test(bytes, encode_is_little_endian);
    tcase_add_test(bytes, decode_reverses_encode);
    tcase_add_test(bytes, decode_refuses_each_unknown_flag);
    tcase_add_test(sockets, bytes_and_descriptors_arrive);
    tcase_add_test(sockets, no_descriptor_is_none);
    tcase_add_test(sockets, descriptors_come_with_their_own_bytes);
    tcase_add_test(sockets, surplus_descriptors_are_closed);
    tcase_add_test(sockets, unwanted_descriptors_are_dropped);
    tcase_add_test(sockets, no_number_left_for_descriptors);
    tcase_add_test(sockets, peer_that_left);
    tcase_add_test(sockets, full_socket_would_block);
    suite_add_tcase(suite, bytes);
    suite_add_tcase(suite, sockets);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
