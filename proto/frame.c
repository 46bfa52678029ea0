#include "proto/frame.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

static void put_le(uint8_t *out, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        out[i] = (uint8_t)(value >> 8 * i);
}

static uint64_t get_le(const uint8_t *in, int bytes)
{
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++)
        value |= (uint64_t)in[i] << 8 * i;
    return value;
}

void samkv_frame_encode(const struct samkv_frame *frame, uint8_t out[SAMKV_FRAME_HEADER_BYTES])
{
    put_le(out, frame->payload_bytes, 4);
    put_le(out + 4, frame->type, 2);
    put_le(out + 6, frame->flags, 2);
    put_le(out + 8, frame->request_id, 8);
}

enum samkv_status samkv_frame_decode(const uint8_t in[SAMKV_FRAME_HEADER_BYTES], struct samkv_frame *out)
{
    out->payload_bytes = (uint32_t)get_le(in, 4);
    out->type = (uint16_t)get_le(in + 4, 2);
    out->flags = (uint16_t)get_le(in + 6, 2);
    out->request_id = get_le(in + 8, 8);
    return out->flags & ~SAMKV_FLAGS_KNOWN ? SAMKV_PROTOCOL : SAMKV_OK;
}

ssize_t samkv_socket_send(int socket, const void *bytes, size_t count, int fd)
{
    struct iovec piece = {.iov_base = (void *)bytes, .iov_len = count};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    if (fd >= 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    ssize_t n;
    do
        n = sendmsg(socket, &message, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

/* Keeps the first descriptor, closes the others: alignment leaves room for more than the one that was asked for. */
static void take_fds(struct msghdr *message, int *fd)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int got;
            memcpy(&got, CMSG_DATA(c) + i * sizeof got, sizeof got);
            if (*fd < 0)
                *fd = got;
            else
                close(got);
        }
    }
}

ssize_t samkv_socket_receive(int socket, void *bytes, size_t count, int *fd)
{
    struct iovec piece = {.iov_base = bytes, .iov_len = count};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    if (fd) {
        *fd = -1;
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
    }
    /* Without a control buffer the kernel itself drops what comes along. */
    ssize_t n;
    do
        n = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    if (fd) {
        take_fds(&message, fd);
        /* A descriptor was sent, but this process has no number left for it. */
        if (*fd < 0 && message.msg_flags & MSG_CTRUNC)
            return -EMFILE;
    }
    return n;
}
