#include "daemon/net/descriptor.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/base/clock.h"

#define LOOK_MS    250               /* at most, until a client that is gone is noticed */
#define FILE_BYTES ((size_t)8 << 20) /* of one read or write: a slow disk, too, is left now and then */
#define PIPE_BYTES ((size_t)64 << 10)
#define PLACE_MAX  ((uint64_t)INT64_MAX)

static enum samkv_status find_kind(struct samkv_descriptor *d, struct samkv_error *err)
{
    struct stat s;
    int type = 0;
    socklen_t bytes = sizeof type;
    if (fstat(d->fd, &s))
        return samkv_fail_errno(err, errno, "the descriptor cannot be used");
    if (S_ISREG(s.st_mode))
        d->kind = SAMKV_DESCRIPTOR_FILE;
    else if (S_ISFIFO(s.st_mode))
        d->kind = SAMKV_DESCRIPTOR_PIPE;
    else if (S_ISSOCK(s.st_mode) && !getsockopt(d->fd, SOL_SOCKET, SO_TYPE, &type, &bytes) && type == SOCK_STREAM)
        d->kind = SAMKV_DESCRIPTOR_SOCKET;
    else
        return samkv_fail(err, SAMKV_INVALID, "bundles go to and come from files, pipes and stream sockets only");
    int flags = fcntl(d->fd, F_GETFL);
    if (flags < 0 || flags & O_PATH || (flags & O_ACCMODE) == (d->writes ? O_RDONLY : O_WRONLY))
        return samkv_fail(err, SAMKV_INVALID, "the descriptor is not open for %s", d->writes ? "writing" : "reading");
    return SAMKV_OK;
}

enum samkv_status samkv_descriptor_init(struct samkv_descriptor *d, int fd, bool writes,
                                        enum samkv_status (*still_wanted)(void *arg, struct samkv_error *), void *arg,
                                        struct samkv_error *err)
{
    *d = (struct samkv_descriptor){.fd = fd,
                                   .writes = writes,
                                   .staging = {-1, -1},
                                   .still_wanted = still_wanted,
                                   .arg = arg,
                                   .stall_ms = SAMKV_DESCRIPTOR_STALL_MS};
    enum samkv_status st = find_kind(d, err);
    if (st == SAMKV_OK && d->kind == SAMKV_DESCRIPTOR_PIPE && pipe2(d->staging, O_CLOEXEC | O_NONBLOCK))
        st = samkv_fail_errno(err, errno, "cannot make a pipe");
    if (st == SAMKV_OK && d->kind == SAMKV_DESCRIPTOR_FILE) {
        off_t at = lseek(fd, 0, SEEK_CUR);
        d->place = at < 0 ? 0 : (uint64_t)at;
    }
    if (st != SAMKV_OK)
        samkv_descriptor_deinit(d);
    return st;
}

void samkv_descriptor_deinit(struct samkv_descriptor *d)
{
    if (d->fd >= 0 && d->kind == SAMKV_DESCRIPTOR_FILE && d->place <= PLACE_MAX) {
        off_t ignored = lseek(d->fd, (off_t)d->place, SEEK_SET);
        (void)ignored;
    }
    for (int i = 0; i < 2; i++)
        if (d->staging[i] >= 0)
            close(d->staging[i]);
    if (d->fd >= 0)
        close(d->fd);
    d->fd = d->staging[0] = d->staging[1] = -1;
}

/* ------------------------------------------------------------------ waiting */

static enum samkv_status wait_for(struct samkv_descriptor *d, struct samkv_error *err)
{
    struct pollfd p = {.fd = d->fd, .events = d->writes ? POLLOUT : POLLIN};
    double began = samkv_now_ms();
    poll(&p, 1, LOOK_MS);
    d->waited_ms += samkv_now_ms() - began; /* what we do ourselves between two waits is not the other end's fault */
    if (d->waited_ms > d->stall_ms)
        return samkv_fail(err, SAMKV_IO, "nothing was %s the pipe for %.0f s: is its other end alive? start again",
                          d->writes ? "read from" : "written to", d->stall_ms / 1e3);
    return d->still_wanted(d->arg, err);
}

static void note_progress(struct samkv_descriptor *d, size_t bytes)
{
    d->moved += bytes;
    if (d->moved < SAMKV_DESCRIPTOR_STALL_BYTES)
        return;
    d->moved = 0;
    d->waited_ms = 0;
}

static enum samkv_status failed(const struct samkv_descriptor *d, int errnum, struct samkv_error *err)
{
    if (errnum == EPIPE || errnum == ECONNRESET)
        return samkv_fail(err, SAMKV_IO, "nobody reads the bundle any more");
    return samkv_fail_errno(err, errnum, d->writes ? "cannot write the bundle" : "cannot read the bundle");
}

/* ------------------------------------------------------------------ one step: bytes moved, or -errno */

static ssize_t step_write(struct samkv_descriptor *d, const uint8_t *bytes, size_t count)
{
    ssize_t n;
    if (d->kind == SAMKV_DESCRIPTOR_FILE) {
        count = count < FILE_BYTES ? count : FILE_BYTES;
        if (count > PLACE_MAX - d->place)
            return -EFBIG;
        n = pwrite(d->fd, bytes, count, (off_t)d->place);
        d->place += n > 0 ? (uint64_t)n : 0;
    } else {
        n = send(d->fd, bytes, count, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    return n < 0 ? -errno : n;
}

static ssize_t step_read(struct samkv_descriptor *d, uint8_t *bytes, size_t count)
{
    ssize_t n;
    if (d->kind == SAMKV_DESCRIPTOR_FILE) {
        count = count < FILE_BYTES ? count : FILE_BYTES;
        if (count > PLACE_MAX - d->place)
            return 0;
        n = pread(d->fd, bytes, count, (off_t)d->place);
        d->place += n > 0 ? (uint64_t)n : 0;
    } else if (d->kind == SAMKV_DESCRIPTOR_SOCKET) {
        n = recv(d->fd, bytes, count, MSG_DONTWAIT);
    } else {
        count = count < PIPE_BYTES ? count : PIPE_BYTES;
        n = splice(d->fd, NULL, d->staging[1], NULL, count, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
        if (n > 0)
            n = read(d->staging[0], bytes, (size_t)n);
    }
    return n < 0 ? -errno : n;
}

/* What lies in our own pipe, to the client's. */
static enum samkv_status drain(struct samkv_descriptor *d, size_t count, struct samkv_error *err)
{
    while (count) {
        ssize_t n = splice(d->staging[0], NULL, d->fd, NULL, count, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return failed(d, errno, err);
        if (n > 0) {
            count -= (size_t)n;
            note_progress(d, (size_t)n);
            continue;
        }
        enum samkv_status st = wait_for(d, err);
        if (st != SAMKV_OK)
            return st;
    }
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ all of it */

static enum samkv_status write_pipe(struct samkv_descriptor *d, const uint8_t *bytes, size_t count,
                                    struct samkv_error *err)
{
    enum samkv_status st = SAMKV_OK;
    while (st == SAMKV_OK && count) {
        ssize_t n = write(d->staging[1], bytes, count < PIPE_BYTES ? count : PIPE_BYTES); /* empty, so some fits */
        if (n < 0)
            return failed(d, errno, err);
        bytes += n, count -= (size_t)n;
        st = drain(d, (size_t)n, err);
    }
    return st;
}

enum samkv_status samkv_descriptor_write(void *arg, const void *bytes, size_t count, struct samkv_error *err)
{
    struct samkv_descriptor *d = arg;
    if (d->kind == SAMKV_DESCRIPTOR_PIPE)
        return write_pipe(d, bytes, count, err);
    for (const uint8_t *from = bytes; count;) {
        ssize_t n = step_write(d, from, count);
        enum samkv_status st = SAMKV_OK;
        if (n == -EAGAIN || n == 0)
            st = wait_for(d, err);
        else if (n < 0 && n != -EINTR)
            st = failed(d, (int)-n, err);
        if (st != SAMKV_OK)
            return st;
        if (n > 0) {
            from += n, count -= (size_t)n;
            note_progress(d, (size_t)n);
        }
    }
    return SAMKV_OK;
}

enum samkv_status samkv_descriptor_read(void *arg, void *bytes, size_t count, size_t *got, struct samkv_error *err)
{
    struct samkv_descriptor *d = arg;
    for (;;) {
        ssize_t n = step_read(d, bytes, count);
        if (n >= 0) {
            note_progress(d, (size_t)n);
            *got = (size_t)n;
            return SAMKV_OK;
        }
        enum samkv_status st = SAMKV_OK;
        if (n == -EAGAIN)
            st = wait_for(d, err);
        else if (n != -EINTR)
            st = failed(d, (int)-n, err);
        if (st != SAMKV_OK)
            return st;
    }
}

enum samkv_status samkv_descriptor_skip(void *arg, uint64_t count, struct samkv_error *err)
{
    struct samkv_descriptor *d = arg;
    (void)err;
    d->place = count > PLACE_MAX - d->place ? PLACE_MAX : d->place + count; /* where nothing is left to be read */
    return SAMKV_OK;
}

enum samkv_status samkv_descriptor_cut(struct samkv_descriptor *d, uint64_t place, struct samkv_error *err)
{
    if (d->kind != SAMKV_DESCRIPTOR_FILE)
        return samkv_fail(err, SAMKV_INVALID, "only a file can be resumed");
    if (ftruncate(d->fd, (off_t)place))
        return samkv_fail_errno(err, errno, "cannot cut the file to what is whole of it");
    d->place = place;
    return SAMKV_OK;
}
