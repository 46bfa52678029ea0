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

const char *samkv_type_name(uint16_t type)
{
    static const char *const names[] = {
#define TYPE_NAME(name, value) [value] = #name,
        SAMKV_TYPE_MAP(TYPE_NAME)
#undef TYPE_NAME
    };
    return type < sizeof names / sizeof *names && names[type] ? names[type] : "?";
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

void samkv_fds_close(struct samkv_fds *fds)
{
    for (int i = 0; i < fds->count; i++)
        close(fds->fd[i]);
    *fds = (struct samkv_fds){.count = 0};
}

/* Room for the descriptors of one frame; alignment may leave some for more. */
union control {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(SAMKV_MAX_FDS * sizeof(int))];
};
#define CONTROL_ROOM ((sizeof(union control) - CMSG_LEN(0)) / sizeof(int))

ssize_t samkv_socket_send(int socket, const void *bytes, size_t count, const struct samkv_fds *fds)
{
    struct iovec piece = {.iov_base = (void *)bytes, .iov_len = count};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    union control control;
    if (fds && fds->count) {
        size_t fd_bytes = (size_t)fds->count * sizeof(int);
        memset(&control, 0, sizeof control);
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(fd_bytes);
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(fd_bytes);
        memcpy(CMSG_DATA(c), fds->fd, fd_bytes);
    }
    ssize_t n;
    do
        n = sendmsg(socket, &message, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

/* Keeps what fits, closes the others. Returns how many came. */
static size_t take_fds(struct msghdr *message, struct samkv_fds *fds)
{
    size_t came = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++, came++) {
            int got;
            memcpy(&got, CMSG_DATA(c) + i * sizeof got, sizeof got);
            if (fds->count < SAMKV_MAX_FDS)
                fds->fd[fds->count++] = got;
            else
                close(got);
        }
    }
    return came;
}

ssize_t samkv_socket_receive(int socket, void *bytes, size_t count, struct samkv_fds *fds)
{
    struct iovec piece = {.iov_base = bytes, .iov_len = count};
    union control control;
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    if (fds) {
        *fds = (struct samkv_fds){.count = 0};
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
    if (!fds)
        return n;
    size_t came = take_fds(&message, fds);
    bool truncated = message.msg_flags & MSG_CTRUNC;
    fds->surplus = came > SAMKV_MAX_FDS || (truncated && came >= CONTROL_ROOM);
    /* Cut short although there was room: this process has no number left. Some of them are of no use. */
    if (truncated && came < CONTROL_ROOM) {
        samkv_fds_close(fds);
        return -EMFILE;
    }
    return n;
}
