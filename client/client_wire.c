#include "client/client_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct samkv_wire_item {
    struct samkv_wire_item *next;
    size_t bytes, sent;
    struct samkv_fds fds; /* owned; they go with the first byte */
    uint8_t data[];
};

void samkv_wire_init(struct samkv_wire *wire, int socket)
{
    *wire = (struct samkv_wire){.socket = socket};
    wire->tail = &wire->head;
    fcntl(socket, F_SETFL, fcntl(socket, F_GETFL) | O_NONBLOCK);
    fcntl(socket, F_SETFD, FD_CLOEXEC);
}

void samkv_incoming_deinit(struct samkv_incoming *incoming)
{
    free(incoming->payload);
    samkv_device_refuse(&incoming->fds);
    *incoming = (struct samkv_incoming){.payload = NULL};
}

static void drop_queue(struct samkv_wire *wire)
{
    while (wire->head) {
        struct samkv_wire_item *item = wire->head;
        wire->head = item->next;
        samkv_fds_close(&item->fds);
        free(item);
    }
    wire->tail = &wire->head;
}

void samkv_wire_deinit(struct samkv_wire *wire)
{
    drop_queue(wire);
    samkv_incoming_deinit(&wire->incoming);
    if (wire->socket >= 0)
        close(wire->socket);
    wire->socket = -1;
}

enum samkv_status samkv_wire_queue(struct samkv_wire *wire, struct samkv_frame frame, const ProtobufCMessage *message,
                                   int fd, uint64_t max_bytes, struct samkv_error *err)
{
    size_t bytes = protobuf_c_message_get_packed_size(message);
    if (bytes > max_bytes || bytes > UINT32_MAX)
        return samkv_fail(err, SAMKV_TOO_LARGE,
                          "the request has %zu bytes, the daemon takes at most %llu: send less at a time", bytes,
                          (unsigned long long)max_bytes);
    struct samkv_wire_item *item = malloc(sizeof *item + SAMKV_FRAME_HEADER_BYTES + bytes);
    if (!item)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for a request of %zu bytes", bytes);
    item->next = NULL;
    item->sent = 0;
    item->fds = (struct samkv_fds){.count = 0};
    if (fd >= 0) {
        item->fds.fd[0] = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        item->fds.count = item->fds.fd[0] >= 0;
        if (!item->fds.count) {
            int errnum = errno;
            free(item);
            return samkv_fail_errno(err, errnum, "cannot pass the descriptor on");
        }
    }
    item->bytes = SAMKV_FRAME_HEADER_BYTES + bytes;
    frame.payload_bytes = (uint32_t)bytes;
    samkv_frame_encode(&frame, item->data);
    protobuf_c_message_pack(message, item->data + SAMKV_FRAME_HEADER_BYTES);
    *wire->tail = item;
    wire->tail = &item->next;
    return SAMKV_OK;
}

bool samkv_wire_pending(const struct samkv_wire *wire)
{
    return wire->head != NULL;
}

enum samkv_status samkv_wire_flush(struct samkv_wire *wire, struct samkv_error *err)
{
    while (wire->head) {
        struct samkv_wire_item *item = wire->head;
        ssize_t n = samkv_socket_send(wire->socket, item->data + item->sent, item->bytes - item->sent,
                                      item->sent ? NULL : &item->fds);
        if (n == -EAGAIN)
            return SAMKV_OK;
        if (n == -EPIPE || n == -ECONNRESET) {
            /* Its last words (why it hung up) may still wait to be read: receive reports the end. */
            drop_queue(wire);
            return SAMKV_OK;
        }
        if (n < 0)
            return samkv_fail_errno(err, (int)-n, "cannot send to the daemon");
        item->sent += (size_t)n;
        samkv_fds_close(&item->fds);
        if (item->sent < item->bytes)
            continue;
        wire->head = item->next;
        if (!wire->head)
            wire->tail = &wire->head;
        free(item);
    }
    return SAMKV_OK;
}

static enum samkv_status end_of_stream(const struct samkv_wire *wire, struct samkv_error *err)
{
    if (wire->header_got)
        return samkv_fail(err, SAMKV_CLOSED, "the daemon died in the middle of an answer: see its log, then try again");
    return samkv_fail(err, SAMKV_CLOSED, "the daemon closed the connection: see its log, then try again");
}

/* Reads on until *got is count. OK, BUSY (would block), or the connection's end. */
static enum samkv_status fill(struct samkv_wire *wire, uint8_t *bytes, size_t count, size_t *got,
                              struct samkv_error *err)
{
    while (*got < count) {
        struct samkv_fds fds;
        ssize_t n = samkv_socket_receive(wire->socket, bytes + *got, count - *got, &fds);
        /* Never more than one frame is asked for, so descriptors that come are this frame's. */
        if (fds.count && wire->incoming.fds.count) {
            samkv_fds_close(&fds);
            return samkv_fail(err, SAMKV_PROTOCOL, "the daemon sent descriptors twice with one frame");
        }
        if (fds.count)
            wire->incoming.fds = fds;
        if (n == -EAGAIN)
            return SAMKV_BUSY;
        if (n == 0 || n == -ECONNRESET)
            return end_of_stream(wire, err);
        if (n == -EMFILE)
            return samkv_fail(err, SAMKV_IO,
                              "no descriptor left for the daemon's memory: raise ulimit -n or free caches");
        if (n < 0)
            return samkv_fail_errno(err, (int)-n, "cannot receive from the daemon");
        *got += (size_t)n;
    }
    return SAMKV_OK;
}

static enum samkv_status begin_frame(struct samkv_wire *wire, struct samkv_error *err)
{
    struct samkv_frame *frame = &wire->incoming.frame;
    if (samkv_frame_decode(wire->header, frame))
        return samkv_fail(err, SAMKV_PROTOCOL, "the peer does not speak the samkv protocol: is this samkvd's socket?");
    if (frame->payload_bytes > SAMKV_MAX_FRAME_BYTES)
        return samkv_fail(err, SAMKV_PROTOCOL, "the peer announced a frame of %u bytes: is this samkvd's socket?",
                          frame->payload_bytes);
    wire->incoming.payload = malloc(frame->payload_bytes ? frame->payload_bytes : 1);
    if (!wire->incoming.payload)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for an answer of %u bytes", frame->payload_bytes);
    wire->payload_got = 0;
    return SAMKV_OK;
}

enum samkv_status samkv_wire_receive(struct samkv_wire *wire, struct samkv_incoming *out, struct samkv_error *err)
{
    enum samkv_status status = fill(wire, wire->header, sizeof wire->header, &wire->header_got, err);
    if (status)
        return status;
    if (!wire->incoming.payload && (status = begin_frame(wire, err)))
        return status;
    status = fill(wire, wire->incoming.payload, wire->incoming.frame.payload_bytes, &wire->payload_got, err);
    if (status)
        return status;
    if (wire->incoming.fds.count && !(wire->incoming.frame.flags & SAMKV_FLAG_FD))
        return samkv_fail(err, SAMKV_PROTOCOL, "the daemon sent a descriptor that no frame announced");
    *out = wire->incoming;
    wire->incoming = (struct samkv_incoming){.payload = NULL};
    wire->header_got = 0;
    return SAMKV_OK;
}
