#include "daemon/net/output.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

enum samkv_status samkv_outgoing_new(const struct samkv_frame *frame, int fd, struct samkv_outgoing **out)
{
    size_t count = SAMKV_FRAME_HEADER_BYTES + (size_t)frame->payload_bytes;
    struct samkv_outgoing *o = malloc(sizeof *o + count);
    if (!o) {
        if (fd >= 0)
            close(fd);
        return SAMKV_NO_MEMORY;
    }
    *o = (struct samkv_outgoing){.fd = fd, .count = count};
    samkv_frame_encode(frame, o->bytes);
    *out = o;
    return SAMKV_OK;
}

void samkv_outgoing_free(struct samkv_outgoing *o)
{
    if (!o)
        return;
    if (o->fd >= 0)
        close(o->fd);
    free(o);
}

void samkv_output_init(struct samkv_output *out)
{
    *out = (struct samkv_output){0};
    out->last = &out->first;
}

/* Unlinks the first frame. */
static struct samkv_outgoing *shift(struct samkv_output *out)
{
    struct samkv_outgoing *o = out->first;
    out->first = o->next;
    if (!out->first)
        out->last = &out->first;
    return o;
}

void samkv_output_deinit(struct samkv_output *out)
{
    while (out->first)
        samkv_outgoing_free(shift(out));
    out->bytes = 0;
}

void samkv_output_push(struct samkv_output *out, struct samkv_outgoing *o)
{
    o->next = NULL;
    *out->last = o;
    out->last = &o->next;
    out->bytes += o->count - o->sent;
}

enum samkv_status samkv_output_flush(struct samkv_output *out, int socket)
{
    while (out->first) {
        struct samkv_outgoing *o = out->first;
        ssize_t n = samkv_socket_send(socket, o->bytes + o->sent, o->count - o->sent, o->fd);
        if (n == -EAGAIN || n == -EWOULDBLOCK)
            return SAMKV_BUSY;
        if (n <= 0)
            return SAMKV_CLOSED;
        if (o->fd >= 0) { /* went with the first byte */
            close(o->fd);
            o->fd = -1;
        }
        o->sent += (size_t)n;
        out->bytes -= (size_t)n;
        out->bytes_sent += (uint64_t)n;
        if (o->sent < o->count)
            continue;
        out->answered += o->last;
        out->charge += o->charge;
        samkv_outgoing_free(shift(out));
    }
    return SAMKV_OK;
}
