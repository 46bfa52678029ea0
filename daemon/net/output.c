#include "daemon/net/output.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "daemon/net/lease_watch.h"

enum samkv_status samkv_outgoing_new(const struct samkv_frame *frame, struct samkv_fds *fds,
                                     struct samkv_outgoing **out)
{
    size_t count = SAMKV_FRAME_HEADER_BYTES + (size_t)frame->payload_bytes;
    struct samkv_outgoing *o = malloc(sizeof *o + count);
    if (!o) {
        if (fds)
            samkv_fds_close(fds);
        return SAMKV_NO_MEMORY;
    }
    *o = (struct samkv_outgoing){.count = count};
    if (fds) {
        o->fds = *fds;
        fds->count = 0;
    }
    samkv_frame_encode(frame, o->bytes);
    *out = o;
    return SAMKV_OK;
}

void samkv_outgoing_free(struct samkv_outgoing *o)
{
    if (!o)
        return;
    samkv_fds_close(&o->fds);
    samkv_lease_watch_free(o->lease);
    free(o);
}

void samkv_output_init(struct samkv_output *out, void (*on_lease)(void *arg, struct samkv_lease_watch *), void *arg)
{
    *out = (struct samkv_output){.on_lease = on_lease, .arg = arg};
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
    out->bytes = out->held_bytes = 0;
}

void samkv_output_push(struct samkv_output *out, struct samkv_outgoing *o)
{
    o->next = NULL;
    *out->last = o;
    out->last = &o->next;
    out->bytes += o->count - o->sent;
    out->held_bytes += o->held_bytes;
}

enum samkv_status samkv_output_flush(struct samkv_output *out, int socket)
{
    while (out->first) {
        struct samkv_outgoing *o = out->first;
        ssize_t n = samkv_socket_send(socket, o->bytes + o->sent, o->count - o->sent, &o->fds);
        if (n == -EAGAIN || n == -EWOULDBLOCK)
            return SAMKV_BUSY;
        if (n <= 0)
            return SAMKV_CLOSED;
        samkv_fds_close(&o->fds); /* they went with the first byte */
        out->held_bytes -= o->held_bytes;
        o->held_bytes = 0;
        if (o->lease)
            out->on_lease(out->arg, o->lease);
        o->lease = NULL;
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
