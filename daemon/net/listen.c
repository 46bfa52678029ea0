#include "daemon/net/listen.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define FIRST_PASSED_FD 3 /* SD_LISTEN_FDS_START */
#define BACKLOG         128

static bool is_listening(int fd)
{
    int listening = 0, domain = 0;
    socklen_t a = sizeof listening, b = sizeof domain;
    return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &a) == 0 && listening &&
           getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &b) == 0 && domain == AF_UNIX;
}

/* -1 when none was passed to this process. */
static int passed_fd(void)
{
    const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
    bool ours = pid && count && strtol(pid, NULL, 10) == (long)getpid() && strtol(count, NULL, 10) >= 1;
    unsetenv("LISTEN_PID"); /* not for our children */
    unsetenv("LISTEN_FDS");
    return ours ? FIRST_PASSED_FD : -1;
}

static enum samkv_status adopt(int fd, struct samkv_listener *out, struct samkv_error *err)
{
    if (!is_listening(fd))
        return samkv_fail(
            err, SAMKV_INVALID,
            "fd %d from socket activation is not a listening Unix socket; see ListenStream in samkvd.socket", fd);
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) != 0 || fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) != 0)
        return samkv_fail_errno(err, errno, "cannot set up the socket from socket activation");
    out->fd = fd;
    out->activated = true;
    return SAMKV_OK;
}

/* OK when the path is free now. */
static enum samkv_status remove_stale(const struct sockaddr_un *address, struct samkv_error *err)
{
    struct stat st;
    if (lstat(address->sun_path, &st) != 0)
        return errno == ENOENT ? SAMKV_OK : samkv_fail_errno(err, errno, "cannot look at %s", address->sun_path);
    if (!S_ISSOCK(st.st_mode))
        return samkv_fail(err, SAMKV_INVALID, "%s is there and not a socket; remove it or name another with --socket",
                          address->sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return samkv_fail_errno(err, errno, "cannot make a socket");
    /* EAGAIN is a full backlog: somebody listens. Only a refusal says that nobody does. */
    bool refused = connect(fd, (const struct sockaddr *)address, sizeof *address) != 0 && errno == ECONNREFUSED;
    close(fd);
    if (!refused)
        return samkv_fail(err, SAMKV_BUSY, "another daemon answers on %s; stop it or name another socket with --socket",
                          address->sun_path);
    if (unlink(address->sun_path) != 0 && errno != ENOENT)
        return samkv_fail_errno(err, errno, "cannot remove the stale socket %s", address->sun_path);
    return SAMKV_OK;
}

static enum samkv_status bind_and_listen(int fd, const struct sockaddr_un *address, struct samkv_listener *out,
                                         struct samkv_error *err)
{
    struct stat st;
    if (bind(fd, (const struct sockaddr *)address, sizeof *address) != 0)
        return samkv_fail_errno(err, errno, "cannot make the socket %s; is its directory there and writable?",
                                address->sun_path);
    /* Nobody can connect before listen, so the mode is never wider than this. */
    if (chmod(address->sun_path, 0660) != 0 || stat(address->sun_path, &st) != 0 || listen(fd, BACKLOG) != 0) {
        enum samkv_status status = samkv_fail_errno(err, errno, "cannot listen on %s", address->sun_path);
        unlink(address->sun_path);
        return status;
    }
    out->device = st.st_dev;
    out->inode = st.st_ino;
    return SAMKV_OK;
}

enum samkv_status samkv_listen(const char *path, struct samkv_listener *out, struct samkv_error *err)
{
    *out = (struct samkv_listener){.fd = -1};
    int passed = passed_fd();
    return passed >= 0 ? adopt(passed, out, err) : samkv_listen_path(path, out, err);
}

enum samkv_status samkv_listen_path(const char *path, struct samkv_listener *out, struct samkv_error *err)
{
    *out = (struct samkv_listener){.fd = -1};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return samkv_fail(err, SAMKV_INVALID, "the socket's path has %zu bytes; the system takes at most %zu",
                          strlen(path), sizeof address.sun_path - 1);
    strcpy(address.sun_path, path);
    enum samkv_status st = remove_stale(&address, err);
    if (st != SAMKV_OK)
        return st;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return samkv_fail_errno(err, errno, "cannot make a socket");
    st = bind_and_listen(fd, &address, out, err);
    if (st != SAMKV_OK) {
        close(fd);
        return st;
    }
    out->fd = fd;
    strcpy(out->path, path);
    return SAMKV_OK;
}

void samkv_listener_close(struct samkv_listener *l)
{
    struct stat st;
    if (l->fd < 0)
        return;
    close(l->fd);
    l->fd = -1;
    if (!l->activated && stat(l->path, &st) == 0 && st.st_dev == l->device && st.st_ino == l->inode)
        unlink(l->path);
}

bool samkv_is_watched(void)
{
    const char *pid = getenv("WATCHDOG_PID"), *usec = getenv("WATCHDOG_USEC");
    return usec && strtoull(usec, NULL, 10) > 0 && (!pid || strtoull(pid, NULL, 10) == (unsigned long long)getpid());
}

void samkv_notify(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (!path || (path[0] != '/' && path[0] != '@') || strlen(path) >= sizeof address.sun_path)
        return;
    strcpy(address.sun_path, path);
    if (address.sun_path[0] == '@')
        address.sun_path[0] = 0; /* the abstract namespace */
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
    /* Nothing helps when it is lost: systemd then waits and says so. */
    ssize_t ignored = sendto(fd, state, strlen(state), MSG_NOSIGNAL, (const struct sockaddr *)&address, length);
    (void)ignored;
    close(fd);
}
