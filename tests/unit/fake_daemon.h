#pragma once
/*
 * A daemon for tests of the client: a thread at the other end of a socket pair that says exactly what a test wants,
 * lies included. It speaks frames by the functions of proto/ and reads with blocking calls.
 */
#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/frame.h"
#include "proto/samkv.pb-c.h"
#include "samkv/samkv.h"

struct fake_daemon {
    pthread_t thread;
    int socket;
    void (*script)(struct fake_daemon *);
    const void *arg; /* for the script */
    uint32_t max_in_flight;
    uint64_t max_frame_bytes;
};

/* A request, its payload included; free(payload). */
struct fake_request {
    struct samkv_frame frame;
    uint8_t *payload;
};

static inline int fake_open_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int count = 0;
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

static inline bool fake_read(int socket, void *bytes, size_t count)
{
    for (size_t at = 0; at < count;) {
        ssize_t n = samkv_socket_receive(socket, (char *)bytes + at, count - at, NULL);
        if (n <= 0)
            return false;
        at += (size_t)n;
    }
    return true;
}

/* False when the client is gone. */
static inline bool fake_receive(struct fake_daemon *d, struct fake_request *out)
{
    uint8_t header[SAMKV_FRAME_HEADER_BYTES];
    out->payload = NULL;
    if (!fake_read(d->socket, header, sizeof header) || samkv_frame_decode(header, &out->frame) != SAMKV_OK)
        return false;
    out->payload = malloc((size_t)out->frame.payload_bytes + 1);
    return fake_read(d->socket, out->payload, out->frame.payload_bytes);
}

/* Waits for a request and forgets its payload. */
static inline uint64_t fake_await(struct fake_daemon *d)
{
    struct fake_request request;
    fake_receive(d, &request);
    free(request.payload);
    return request.frame.request_id;
}

static inline void fake_send_bytes_with(struct fake_daemon *d, const void *bytes, size_t count,
                                        const struct samkv_fds *fds)
{
    for (size_t at = 0; at < count;) {
        ssize_t n = samkv_socket_send(d->socket, (const char *)bytes + at, count - at, at ? NULL : fds);
        if (n <= 0)
            return;
        at += (size_t)n;
    }
}

/* fd -1: none. */
static inline void fake_send_bytes(struct fake_daemon *d, const void *bytes, size_t count, int fd)
{
    const struct samkv_fds fds = {.fd = {fd}, .count = fd >= 0};
    fake_send_bytes_with(d, bytes, count, &fds);
}

static inline void fake_send_with(struct fake_daemon *d, uint16_t type, uint16_t flags, uint64_t id,
                                  const ProtobufCMessage *message, const struct samkv_fds *fds)
{
    size_t bytes = message ? protobuf_c_message_get_packed_size(message) : 0;
    uint8_t *frame = malloc(SAMKV_FRAME_HEADER_BYTES + bytes);
    samkv_frame_encode(
        &(struct samkv_frame){.payload_bytes = (uint32_t)bytes, .type = type, .flags = flags, .request_id = id}, frame);
    if (message)
        protobuf_c_message_pack(message, frame + SAMKV_FRAME_HEADER_BYTES);
    fake_send_bytes_with(d, frame, SAMKV_FRAME_HEADER_BYTES + bytes, fds);
    free(frame);
}

/* fd -1: none. */
static inline void fake_send(struct fake_daemon *d, uint16_t type, uint16_t flags, uint64_t id,
                             const ProtobufCMessage *message, int fd)
{
    const struct samkv_fds fds = {.fd = {fd}, .count = fd >= 0};
    fake_send_with(d, type, flags, id, message, &fds);
}

static inline void fake_reply(struct fake_daemon *d, uint16_t type, uint64_t id, const ProtobufCMessage *message)
{
    fake_send(d, type, SAMKV_FLAG_REPLY, id, message, -1);
}

static inline void fake_error(struct fake_daemon *d, uint16_t type, uint64_t id, uint32_t status, const char *text)
{
    Samkv__Error message = SAMKV__ERROR__INIT;
    message.status = status;
    message.message = (char *)text;
    fake_send(d, type, SAMKV_FLAG_REPLY | SAMKV_FLAG_ERROR, id, &message.base, -1);
}

static inline void fake_greet_as(struct fake_daemon *d, uint32_t version)
{
    fake_await(d);
    Samkv__HelloReply hello = SAMKV__HELLO_REPLY__INIT;
    hello.version = version;
    hello.server = "fake/1";
    hello.max_in_flight = d->max_in_flight;
    hello.max_frame_bytes = d->max_frame_bytes;
    fake_reply(d, SAMKV_TYPE_HELLO, 0, &hello.base);
}

static inline void fake_greet(struct fake_daemon *d)
{
    fake_greet_as(d, SAMKV_PROTOCOL_VERSION);
}

/* Answers pings until the client leaves. */
static inline void fake_serve_pings(struct fake_daemon *d)
{
    struct fake_request request;
    while (fake_receive(d, &request)) {
        Samkv__PingReply pong = SAMKV__PING_REPLY__INIT;
        fake_reply(d, request.frame.type, request.frame.request_id, &pong.base);
        free(request.payload);
    }
    free(request.payload);
}

static inline void *fake_run(void *arg)
{
    struct fake_daemon *d = arg;
    d->script(d);
    close(d->socket);
    return NULL;
}

/* Starts the script; returns the client's end of the socket. */
static inline int fake_start(struct fake_daemon *d, void (*script)(struct fake_daemon *))
{
    int pair[2];
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    d->socket = pair[1];
    d->script = script;
    ck_assert_int_eq(pthread_create(&d->thread, NULL, fake_run, d), 0);
    return pair[0];
}

/* A connected client of the script, which is to begin with fake_greet. */
static inline struct samkv_client *fake_connect(struct fake_daemon *d, void (*script)(struct fake_daemon *))
{
    struct samkv_client *client;
    struct samkv_error err = {.text = ""};
    enum samkv_status status = samkv_client_attach(fake_start(d, script), &client, &err);
    ck_assert_msg(!status, "%s", err.text);
    return client;
}

/* Closes the client (NULL: there is none), then waits for the script's end. */
static inline void fake_end(struct fake_daemon *d, struct samkv_client *client)
{
    samkv_client_close(client);
    pthread_join(d->thread, NULL);
}
