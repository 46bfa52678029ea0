#include "daemon/net/handlers.h"

struct compact_job {
    struct samkv_request *request;
    Samkv__CompactReply reply;
    enum samkv_status status; /* of telling the client */
    struct samkv_error error;
};

static bool on_progress(void *arg, const struct samkv_compact_report *report)
{
    struct compact_job *job = arg;
    job->reply.bytes_moved = report->moved_bytes;
    job->reply.bytes_total = report->total_bytes;
    job->status = samkv_request_cancelled(job->request)
                      ? SAMKV_CANCELLED
                      : samkv_request_more(job->request, &job->reply.base, &job->error);
    return job->status == SAMKV_OK;
}

enum samkv_status samkv_handle_compact(struct samkv_request *r, const ProtobufCMessage *message,
                                       struct samkv_outgoing **reply, struct samkv_error *err)
{
    (void)message;
    struct samkv_store *store = r->service->store;
    struct compact_job job = {.request = r, .reply = SAMKV__COMPACT_REPLY__INIT};
    struct samkv_store_stats before, after;
    enum samkv_status st = samkv_access_check_admin(r, "compact the store", err);
    if (st == SAMKV_OK)
        st = samkv_store_stats(store, &before, err);
    if (st != SAMKV_OK)
        return st;
    job.reply.bytes_file_before = before.bytes_file;
    job.reply.bytes_allocated_before = before.bytes_allocated;
    st = samkv_store_compact(store, on_progress, &job, err);
    if (st == SAMKV_CANCELLED && job.status != SAMKV_OK && job.status != SAMKV_CANCELLED)
        return samkv_fail(err, job.status, "%s", job.error.text);
    if (st == SAMKV_OK)
        st = samkv_store_stats(store, &after, err);
    if (st != SAMKV_OK)
        return st;
    job.reply.bytes_moved = after.bytes_moved - before.bytes_moved;
    job.reply.bytes_total = job.reply.bytes_moved;
    job.reply.bytes_file = after.bytes_file;
    job.reply.bytes_allocated = after.bytes_allocated;
    job.reply.bytes_used = after.bytes_used;
    return samkv_request_reply(r, &job.reply.base, NULL, reply, err);
}
