#include "client/client_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define HANDSHAKE_MS 10000

enum samkv_status samkv_client_path(const char *path, char *out, size_t bytes, struct samkv_error *err)
{
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    if (!path || !*path)
        path = getenv("SAMKV_SOCKET");
    int n = -1;
    if (path && *path) {
        n = snprintf(out, bytes, "%s", path);
    } else {
        if (runtime && *runtime)
            n = snprintf(out, bytes, "%s/samkv.sock", runtime);
        if (n < 0 || (size_t)n >= bytes || access(out, F_OK))
            n = snprintf(out, bytes, "/run/samkv/samkv.sock");
    }
    if (n < 0 || (size_t)n >= bytes || (size_t)n >= sizeof((struct sockaddr_un *)0)->sun_path)
        return samkv_fail(err, SAMKV_INVALID, "the socket's path is longer than %zu bytes: choose a shorter one",
                          sizeof((struct sockaddr_un *)0)->sun_path - 1);
    return SAMKV_OK;
}

static enum samkv_status connect_failed(int errnum, const char *path, struct samkv_error *err)
{
    switch (errnum) {
    case ENOENT:
    case ECONNREFUSED:
    case ENOTDIR:
        return samkv_fail(err, SAMKV_NO_DAEMON, "no daemon at %s: start samkvd, or name its socket (SAMKV_SOCKET)",
                          path);
    case EACCES:
    case EPERM:
        return samkv_fail(err, SAMKV_DENIED, "no permission for the daemon's socket %s: join its group", path);
    case EAGAIN:
    case EINPROGRESS:
        return samkv_fail(err, SAMKV_TIMEOUT, "the daemon at %s takes no connection: it hangs, or serves too many",
                          path);
    default:
        return samkv_fail_errno(err, errnum, "cannot connect to %s", path);
    }
}

/* Waits for one frame during the hand-shake, sending what is queued. */
static enum samkv_status await_frame(struct samkv_client *client, struct samkv_incoming *out, struct samkv_error *err)
{
    int64_t deadline = samkv_client_now_ms() + HANDSHAKE_MS;
    for (;;) {
        enum samkv_status status = samkv_wire_flush(&client->wire, err);
        if (!status)
            status = samkv_wire_receive(&client->wire, out, err);
        if (status != SAMKV_BUSY)
            return status;
        int64_t left = deadline - samkv_client_now_ms();
        if (left <= 0)
            return samkv_fail(err, SAMKV_TIMEOUT, "the daemon did not greet within %d s: it hangs, see its log",
                              HANDSHAKE_MS / 1000);
        samkv_client_poll(client, (int)left);
    }
}

static enum samkv_status on_greeting(struct samkv_client *client, const struct samkv_incoming *incoming,
                                     struct samkv_error *err)
{
    const struct samkv_frame *frame = &incoming->frame;
    if (frame->flags & SAMKV_FLAG_ERROR) {
        samkv_reply_error(incoming->payload, frame->payload_bytes, err);
        return err->status;
    }
    if (frame->type != SAMKV_TYPE_HELLO || frame->flags != SAMKV_FLAG_REPLY)
        return samkv_fail(err, SAMKV_PROTOCOL, "the peer did not greet as samkvd does: is this its socket?");
    Samkv__HelloReply *reply = samkv__hello_reply__unpack(NULL, frame->payload_bytes, incoming->payload);
    if (!reply)
        return samkv_fail(err, SAMKV_PROTOCOL, "the peer's greeting cannot be read: is this samkvd's socket?");
    enum samkv_status status = SAMKV_OK;
    if (reply->version != SAMKV_PROTOCOL_VERSION)
        status =
            samkv_fail(err, SAMKV_UNSUPPORTED, "the daemon speaks protocol %u, this library %u: update the older one",
                       reply->version, SAMKV_PROTOCOL_VERSION);
    snprintf(client->server, sizeof client->server, "%s", reply->server);
    client->max_frame_bytes = reply->max_frame_bytes ? reply->max_frame_bytes : SAMKV_MAX_FRAME_BYTES;
    client->max_in_flight =
        reply->max_in_flight && reply->max_in_flight < SAMKV_MAX_IN_FLIGHT ? reply->max_in_flight : SAMKV_MAX_IN_FLIGHT;
    samkv__hello_reply__free_unpacked(reply, NULL);
    return status;
}

static enum samkv_status shake_hands(struct samkv_client *client, struct samkv_error *err)
{
    char agent[96];
    snprintf(agent, sizeof agent, "%s libsamkv/%s", program_invocation_short_name, SAMKV_VERSION);
    Samkv__Hello hello = SAMKV__HELLO__INIT;
    hello.magic.data = (uint8_t *)SAMKV_MAGIC;
    hello.magic.len = strlen(SAMKV_MAGIC);
    hello.version_min = hello.version_max = SAMKV_PROTOCOL_VERSION;
    hello.agent = agent;
    enum samkv_status status = samkv_wire_queue(&client->wire, (struct samkv_frame){.type = SAMKV_TYPE_HELLO},
                                                &hello.base, -1, SAMKV_MAX_FRAME_BYTES, err);
    struct samkv_incoming incoming;
    if (status || (status = await_frame(client, &incoming, err)))
        return status;
    status = on_greeting(client, &incoming, err);
    samkv_incoming_deinit(&incoming);
    return status;
}

enum samkv_status samkv_client_attach(int fd, struct samkv_client **out, struct samkv_error *err)
{
    *out = NULL;
    struct samkv_client *client = calloc(1, sizeof *client);
    if (!client) {
        close(fd);
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for a connection");
    }
    samkv_wire_init(&client->wire, fd);
    client->done_tail = &client->done_head;
    enum samkv_status status = shake_hands(client, err);
    if (status)
        samkv_client_close(client);
    else
        *out = client;
    return status;
}

enum samkv_status samkv_client_connect(const char *path, struct samkv_client **out, struct samkv_error *err)
{
    *out = NULL;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    enum samkv_status status = samkv_client_path(path, address.sun_path, sizeof address.sun_path, err);
    if (status)
        return status;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return samkv_fail_errno(err, errno, "cannot make a socket");
    /* A full backlog makes connect wait; this bounds it. */
    struct timeval limit = {.tv_sec = HANDSHAKE_MS / 1000};
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    int rc;
    do
        rc = connect(fd, (const struct sockaddr *)&address, sizeof address);
    while (rc && errno == EINTR);
    if (rc) {
        int errnum = errno;
        close(fd);
        return connect_failed(errnum, address.sun_path, err);
    }
    return samkv_client_attach(fd, out, err);
}
