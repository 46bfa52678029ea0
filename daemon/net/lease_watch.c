#include "daemon/net/lease_watch.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/base/log.h"

#define RETURNED 'R'

struct samkv_lease_watch {
    struct samkv_lease *lease;
    int fd; /* the daemon's end; -1 until it is bound */
    _Atomic uint32_t *taken;
    struct samkv_lease_watches *home; /* once it is started: */
    struct samkv_lease_watch *next, **link;
    uv_poll_t poll;
};

enum samkv_status samkv_lease_watch_new(_Atomic uint32_t *taken, struct samkv_lease_watch **out,
                                        struct samkv_error *err)
{
    if (atomic_fetch_add(taken, 1) >= SAMKV_MAX_LEASES) {
        atomic_fetch_sub(taken, 1);
        return samkv_fail(
            err, SAMKV_BUSY,
            "clients hold %d caches in device memory, which is as many as there may be: free some caches, "
            "or ask for host memory",
            SAMKV_MAX_LEASES);
    }
    struct samkv_lease_watch *w = calloc(1, sizeof *w);
    if (!w) {
        atomic_fetch_sub(taken, 1);
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    }
    w->fd = -1;
    w->taken = taken;
    *out = w;
    return SAMKV_OK;
}

enum samkv_status samkv_lease_watch_bind(struct samkv_lease_watch *w, struct samkv_lease *lease, int *client_fd,
                                         struct samkv_error *err)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0)
        return samkv_fail_errno(err, errno,
                                "cannot make the lease of a cache in device memory: free some caches, "
                                "or allow samkvd more open files (ulimit -n)");
    w->lease = lease;
    w->fd = pair[0];
    *client_fd = pair[1];
    return SAMKV_OK;
}

/* Ends the lease and gives the place back; the watch itself stays. */
static void end(struct samkv_lease_watch *w, bool clean)
{
    if (w->fd >= 0)
        close(w->fd);
    w->fd = -1;
    samkv_lease_end(w->lease, clean);
    w->lease = NULL;
    atomic_fetch_sub(w->taken, 1);
}

void samkv_lease_watch_free(struct samkv_lease_watch *w)
{
    if (!w)
        return;
    end(w, true);
    free(w);
}

/* ------------------------------------------------------------------ on the loop */

void samkv_lease_watches_init(struct samkv_lease_watches *watches, uv_loop_t *loop)
{
    *watches = (struct samkv_lease_watches){.loop = loop};
}

static void on_watch_closed(uv_handle_t *handle)
{
    struct samkv_lease_watch *w = handle->data;
    w->home->closing--;
    free(w);
}

/* The handle goes before the descriptor that it polls. */
static void stop(struct samkv_lease_watch *w, bool clean)
{
    *w->link = w->next;
    if (w->next)
        w->next->link = w->link;
    w->home->closing++;
    uv_close((uv_handle_t *)&w->poll, on_watch_closed);
    end(w, clean);
}

static void on_lease_readable(uv_poll_t *poll, int status, int events)
{
    struct samkv_lease_watch *w = poll->data;
    char byte = 0;
    (void)events;
    ssize_t n = status < 0 ? -1 : recv(w->fd, &byte, 1, MSG_DONTWAIT);
    if (n < 0 && status >= 0 && (errno == EAGAIN || errno == EINTR))
        return;
    bool clean = n == 1 && byte == RETURNED;
    samkv_log(SAMKV_LOG_DEBUG, clean ? "lease returned" : "lease given up: its client is gone");
    stop(w, clean);
}

void samkv_lease_watch_start(struct samkv_lease_watches *watches, struct samkv_lease_watch *w)
{
    if (uv_poll_init(watches->loop, &w->poll, w->fd) != 0) {
        samkv_log(SAMKV_LOG_ERROR, "cannot watch a lease: its memory is not used again");
        end(w, false);
        free(w);
        return;
    }
    w->home = watches;
    w->poll.data = w;
    w->next = watches->first;
    w->link = &watches->first;
    if (w->next)
        w->next->link = &w->next;
    watches->first = w;
    if (uv_poll_start(&w->poll, UV_READABLE, on_lease_readable) != 0)
        stop(w, false);
}

void samkv_lease_watches_drop(struct samkv_lease_watches *watches)
{
    while (watches->first)
        stop(watches->first, false);
}
