#include "daemon/net/request.h"

#include <inttypes.h>

#include "daemon/base/log.h"
#include "daemon/net/session.h"

/* What may wait for a client that reads slower than its answer comes. */
#define BACKLOG_LIMIT_BYTES (4u << 20)

bool samkv_request_cancelled(const struct samkv_request *r)
{
    return __atomic_load_n(&r->cancelled, __ATOMIC_RELAXED);
}

void samkv_request_cancel(struct samkv_request *r)
{
    __atomic_store_n(&r->cancelled, true, __ATOMIC_RELAXED);
}

enum samkv_status samkv_request_reply(struct samkv_request *r, const ProtobufCMessage *message, struct samkv_fds *fds,
                                      struct samkv_outgoing **reply, struct samkv_error *err)
{
    return samkv_message_frame(&r->frame, SAMKV_FLAG_REPLY, message, fds, reply, err);
}

static enum samkv_status check_reader(const struct samkv_request *r, struct samkv_error *err)
{
    if (samkv_request_cancelled(r))
        return samkv_fail(err, SAMKV_CANCELLED, "the client is gone");
    if (atomic_load_explicit(&r->backlog_bytes, memory_order_relaxed) > BACKLOG_LIMIT_BYTES)
        return samkv_fail(err, SAMKV_BUSY, "the client does not read its answer; stopped");
    return SAMKV_OK;
}

enum samkv_status samkv_request_more_with(struct samkv_request *r, const ProtobufCMessage *message,
                                          struct samkv_fds *fds, struct samkv_lease_watch *lease,
                                          struct samkv_error *err)
{
    struct samkv_outgoing *frame;
    enum samkv_status st = check_reader(r, err);
    if (st != SAMKV_OK && fds)
        samkv_fds_close(fds);
    if (st == SAMKV_OK)
        st = samkv_message_frame(&r->frame, SAMKV_FLAG_REPLY | SAMKV_FLAG_MORE, message, fds, &frame, err);
    if (st != SAMKV_OK)
        return st;
    frame->request = r;
    frame->lease = lease;
    r->traced.reply_bytes += frame->count;
    samkv_outbox_post(r->outbox, frame);
    return SAMKV_OK;
}

enum samkv_status samkv_request_more(struct samkv_request *r, const ProtobufCMessage *message, struct samkv_error *err)
{
    return samkv_request_more_with(r, message, NULL, NULL, err);
}

/* Who looks at requests is none that anybody looks for: `samkvctl top` would soon fill the list with itself. */
static bool is_traced(const struct samkv_request *r)
{
    return r->frame.type != SAMKV_TYPE_STATUS && r->frame.type != SAMKV_TYPE_TRACE;
}

/* The time that the client or the daemon gives it, whichever is less; of the field `deadline_ms` of any message. */
static void set_deadline(struct samkv_request *r, const ProtobufCMessage *m)
{
    const ProtobufCFieldDescriptor *f = protobuf_c_message_descriptor_get_field_by_name(m->descriptor, "deadline_ms");
    uint32_t asked = f && f->type == PROTOBUF_C_TYPE_UINT32 ? *(const uint32_t *)((const char *)m + f->offset) : 0;
    uint32_t most = r->handler->unlimited ? 0 : r->service->bounds->request_ms;
    r->allowed_ms = !asked || (most && most < asked) ? most : asked;
    if (r->allowed_ms)
        atomic_store(&r->deadline_ms, (uint64_t)r->accepted_ms + r->allowed_ms);
}

static bool is_late(const struct samkv_request *r)
{
    uint64_t deadline = atomic_load(&r->deadline_ms);
    return deadline && (uint64_t)samkv_now_ms() >= deadline;
}

static enum samkv_status unpack_and_run(struct samkv_request *r, struct samkv_outgoing **reply, struct samkv_error *err)
{
    struct samkv_unpacked unpacked;
    enum samkv_status st = samkv_message_unpack(r->handler->descriptor, &r->payload, &unpacked, err);
    samkv_buffer_deinit(&r->payload);
    if (st != SAMKV_OK)
        return st;
    if (r->handler->validate)
        st = r->handler->validate(unpacked.message, err);
    if (st == SAMKV_OK)
        set_deadline(r, unpacked.message);
    if (st == SAMKV_OK && is_traced(r))
        samkv_traces_describe(r->service->telemetry.traces, &r->traced, unpacked.message);
    if (st == SAMKV_OK && is_late(r))
        st = SAMKV_CANCELLED;
    if (st == SAMKV_OK)
        st = r->handler->run(r, unpacked.message, reply, err);
    if (st == SAMKV_CANCELLED && is_late(r))
        st = samkv_fail(err, st,
                        "the time of %u ms that the request was given is over: give it more, or try again later",
                        r->allowed_ms);
    samkv_message_free(&unpacked);
    return st;
}

/* The last frame goes; nothing of the request may be touched after. */
static void finish(struct samkv_request *r, struct samkv_outgoing *reply, const struct samkv_error *err)
{
    struct samkv_outgoing *frame = reply, *spare = r->spare;
    if (!frame && samkv_error_frame(&r->frame, err, &frame) != SAMKV_OK) {
        frame = spare;
        spare = NULL;
    }
    samkv_outgoing_free(spare);
    frame->request = r;
    frame->last = true;
    frame->charge = r->charge;
    frame->held_bytes = frame->fds.count ? r->traced.cache_bytes : 0;
    samkv_outbox_post(r->outbox, frame);
}

static void log_end(const struct samkv_request *r, const struct samkv_error *err)
{
    const struct samkv_traced *t = &r->traced;
    const char *type = samkv_type_name(r->frame.type);
    double ms = samkv_now_ms() - r->accepted_ms;
    if (err->status == SAMKV_OK)
        samkv_log(SAMKV_LOG_DEBUG, "done req=%" PRIu64 " type=%s uid=%ld pid=%ld agent=%s wait_ms=%.1f ms=%.1f", t->id,
                  type, (long)t->peer.uid, (long)t->peer.pid, t->agent, r->waited_ms, ms);
    else
        samkv_log(err->status == SAMKV_CANCELLED ? SAMKV_LOG_DEBUG : SAMKV_LOG_WARNING,
                  "failed req=%" PRIu64 " type=%s uid=%ld pid=%ld agent=%s status=%s ms=%.1f: %s", t->id, type,
                  (long)t->peer.uid, (long)t->peer.pid, t->agent, samkv_status_name(err->status), ms, err->text);
}

void samkv_request_run(void *arg, bool cancelled)
{
    struct samkv_request *r = arg;
    struct samkv_outgoing *reply = NULL;
    struct samkv_error err = {0};
    enum samkv_status st;
    double now = samkv_now_ms();
    r->waited_ms = now - r->accepted_ms;
    samkv_trace_add(&r->traced.trace, SAMKV_PHASE_QUEUE, r->accepted_ms, now);
    if (is_traced(r))
        samkv_traces_begin(r->service->telemetry.traces, &r->traced);
    samkv_metrics_add(&r->service->metrics, r->handler->metric, 1);
    if (cancelled || atomic_load(&r->service->stopping))
        st = samkv_fail(&err, SAMKV_BUSY, "the daemon is stopping; try again when it is back");
    else if (samkv_request_cancelled(r))
        st = samkv_fail(&err, SAMKV_CANCELLED, "the client is gone");
    else
        st = unpack_and_run(r, &reply, &err);
    if (r->service->models)
        st = samkv_device_blame(r->service->models->device, st, &err);
    if (st != SAMKV_OK && (err.status != st || !err.text[0]))
        samkv_fail(&err, st, "%s", samkv_status_text(st));
    err.status = st;
    samkv_fds_close(&r->fds); /* here, not on the loop: closing may block */
    log_end(r, &err);
    if (st != SAMKV_OK) {
        samkv_metrics_add(&r->service->metrics, SAMKV_METRIC_ERRORS, 1);
        samkv_metrics_add(&r->service->metrics, SAMKV_METRIC_BUSY, st == SAMKV_BUSY);
    }
    r->traced.reply_bytes += st == SAMKV_OK ? reply->count : 0;
    if (is_traced(r))
        samkv_traces_end(r->service->telemetry.traces, &r->traced, st, st == SAMKV_OK ? "" : err.text);
    finish(r, st == SAMKV_OK ? reply : NULL, &err);
}
