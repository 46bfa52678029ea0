#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/net/handlers.h"
#include "daemon/net/quality.h"

/* Pins, limits of collections, the removal of whole ones, and garbage. */

#define PROGRESS_MS 250

/* ------------------------------------------------------------------ pin */

enum samkv_status samkv_handle_pin(struct samkv_request *r, const ProtobufCMessage *message,
                                   struct samkv_outgoing **reply, struct samkv_error *err)
{
    const Samkv__PinRequest *m = (const Samkv__PinRequest *)message;
    Samkv__PinReply answer = SAMKV__PIN_REPLY__INIT;
    char collection[SAMKV_ID_MAX_BYTES + 1];
    enum samkv_status found = samkv_access_find(r, m->collection, SAMKV_RIGHT_WRITE, collection, err);
    enum samkv_status st = found == SAMKV_NOT_FOUND ? SAMKV_OK : found;
    if (st == SAMKV_OK && !(answer.missing = calloc(m->n_ids + 1, sizeof *answer.missing)))
        st = SAMKV_NO_MEMORY;
    for (size_t i = 0; i < m->n_ids && st == SAMKV_OK; i++) {
        st = found == SAMKV_OK ? samkv_store_pin(r->service->store, collection, m->ids[i], !m->unpin, err) : found;
        if (st == SAMKV_NOT_FOUND) {
            answer.missing[answer.n_missing++] = m->ids[i];
            st = SAMKV_OK;
        } else if (st == SAMKV_OK) {
            answer.pinned++;
        }
    }
    if (st == SAMKV_OK)
        st = samkv_request_reply(r, &answer.base, NULL, reply, err);
    free(answer.missing);
    return st;
}

/* ------------------------------------------------------------------ configure */

static enum samkv_status read_collection(struct samkv_store *store, const char *name, struct samkv_collection_row *row,
                                         struct samkv_error *err)
{
    struct samkv_snapshot *snapshot;
    struct samkv_collection c;
    enum samkv_status st = samkv_snapshot_begin(store, &snapshot, err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_snapshot_collection(snapshot, name, &c, err);
    samkv_snapshot_end(snapshot);
    if (st != SAMKV_OK)
        return st;
    samkv_collection_row_fill(store, &c, row);
    samkv_collection_deinit(&c);
    return SAMKV_OK;
}

/* As with files: nobody gives what is his to a group that he is not in. */
static enum samkv_status check_group(const struct samkv_caller *caller, uint32_t group, struct samkv_error *err)
{
    gid_t gid = group == SAMKV_OWNER_DAEMON ? getegid() : group;
    return caller->admin || samkv_caller_is_in(caller, gid)
               ? SAMKV_OK
               : samkv_fail(err, SAMKV_DENIED, "you are not in group %u: name one of your own", gid);
}

static enum samkv_status set_quality(const struct samkv_service *service, const char *name,
                                     const Samkv__ConfigureRequest *m, struct samkv_error *err)
{
    struct samkv_gate_setting setting = {
        .set_target = m->quality_given_case == SAMKV__CONFIGURE_REQUEST__QUALITY_GIVEN_QUALITY,
        .set_share = m->gate_share_given_case == SAMKV__CONFIGURE_REQUEST__GATE_SHARE_GIVEN_GATE_SHARE,
        .share = m->gate_share,
    };
    enum samkv_status st = SAMKV_OK;
    if (setting.set_target)
        st = samkv_quality_parse(m->quality, &setting.target, err);
    if (st == SAMKV_OK && (setting.set_target || setting.set_share))
        st = samkv_gates_set(service->gates, name, &setting, err);
    return st;
}

enum samkv_status samkv_handle_configure(struct samkv_request *r, const ProtobufCMessage *message,
                                         struct samkv_outgoing **reply, struct samkv_error *err)
{
    const Samkv__ConfigureRequest *m = (const Samkv__ConfigureRequest *)message;
    char name[SAMKV_ID_MAX_BYTES + 1];
    const struct samkv_limits limits = {
        .set_quota = m->quota_given_case == SAMKV__CONFIGURE_REQUEST__QUOTA_GIVEN_QUOTA_BYTES,
        .set_ttl = m->ttl_given_case == SAMKV__CONFIGURE_REQUEST__TTL_GIVEN_TTL_S,
        .quota_bytes = m->quota_bytes,
        .ttl_s = m->ttl_s,
        .set_group = m->group_given_case == SAMKV__CONFIGURE_REQUEST__GROUP_GIVEN_GROUP,
        .set_mode = m->mode_given_case == SAMKV__CONFIGURE_REQUEST__MODE_GIVEN_MODE,
        .group = m->group,
        .mode = m->mode,
    };
    struct samkv_store *store = r->service->store;
    struct samkv_collection_row row;
    struct samkv_quality_row quality;
    struct samkv_collection_stats before, after;
    enum samkv_status st = samkv_access_find(r, m->collection, SAMKV_RIGHT_OWN, name, err);
    if (st == SAMKV_OK && limits.set_group)
        st = check_group(r->caller, limits.group, err);
    if (st != SAMKV_OK)
        return st;
    samkv_store_collection_stats(store, name, &before);
    if (limits.set_quota || limits.set_ttl || limits.set_group || limits.set_mode)
        st = samkv_store_configure(store, name, &limits, err);
    if (st == SAMKV_OK)
        st = set_quality(r->service, name, m, err);
    if (st == SAMKV_OK)
        st = read_collection(store, name, &row, err);
    if (st != SAMKV_OK)
        return st;
    samkv_store_collection_stats(store, name, &after);
    row.message.documents = after.names;
    Samkv__ConfigureReply answer = SAMKV__CONFIGURE_REPLY__INIT;
    answer.collection = &row.message;
    if (samkv_quality_row_fill(r->service, name, &quality))
        answer.quality = &quality.message;
    answer.evicted = before.documents > after.documents ? before.documents - after.documents : 0;
    return samkv_request_reply(r, &answer.base, NULL, reply, err);
}

/* ------------------------------------------------------------------ a whole collection */

/* Tells how far it is, now and then. CANCELLED when nobody waits any more. */
static enum samkv_status progress(struct samkv_request *r, const ProtobufCMessage *message, double *told_ms,
                                  struct samkv_error *err)
{
    if (samkv_request_cancelled(r))
        return SAMKV_CANCELLED;
    double now = samkv_now_ms();
    if (now - *told_ms < PROGRESS_MS)
        return SAMKV_OK;
    *told_ms = now;
    return samkv_request_more(r, message, err);
}

enum samkv_status samkv_handle_remove_all(struct samkv_request *r, const ProtobufCMessage *message,
                                          struct samkv_outgoing **reply, struct samkv_error *err)
{
    const Samkv__RemoveRequest *m = (const Samkv__RemoveRequest *)message;
    Samkv__RemoveReply answer = SAMKV__REMOVE_REPLY__INIT;
    double told_ms = samkv_now_ms();
    uint64_t removed = 0;
    char collection[SAMKV_ID_MAX_BYTES + 1];
    enum samkv_status st = samkv_access_find(r, m->collection, SAMKV_RIGHT_OWN, collection, err);
    for (bool more = true; st == SAMKV_OK && more;) {
        st = samkv_store_collection_remove(r->service->store, collection, &removed, &more, err);
        answer.removed = removed < UINT32_MAX ? (uint32_t)removed : UINT32_MAX;
        if (st == SAMKV_OK && more)
            st = progress(r, &answer.base, &told_ms, err);
    }
    if (st == SAMKV_OK)
        samkv_gates_forget(r->service->gates, collection);
    return st == SAMKV_OK ? samkv_request_reply(r, &answer.base, NULL, reply, err) : st;
}

/* ------------------------------------------------------------------ gc */

struct gc {
    struct samkv_request *request;
    double told_ms;
    enum samkv_status status; /* of telling */
    struct samkv_error *err;
};

static Samkv__GcReply message_of(const struct samkv_gc_report *report)
{
    Samkv__GcReply m = SAMKV__GC_REPLY__INIT;
    m.names_expired = report->names_expired;
    m.names_orphaned = report->names_orphaned;
    m.documents_unreferenced = report->documents_unreferenced;
    m.documents_unfinished = report->documents_unfinished;
    m.bytes_freed = report->bytes_freed;
    return m;
}

static bool on_step(void *arg, const struct samkv_gc_report *report)
{
    struct gc *gc = arg;
    Samkv__GcReply m = message_of(report);
    gc->status = progress(gc->request, &m.base, &gc->told_ms, gc->err);
    return gc->status == SAMKV_OK;
}

enum samkv_status samkv_handle_gc(struct samkv_request *r, const ProtobufCMessage *message,
                                  struct samkv_outgoing **reply, struct samkv_error *err)
{
    struct samkv_error why = {0};
    struct gc gc = {.request = r, .told_ms = samkv_now_ms(), .err = &why};
    struct samkv_gc_report report;
    (void)message;
    enum samkv_status st = samkv_access_check_admin(r, "collect garbage", err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_store_gc(r->service->store, &report, on_step, &gc, err);
    if (gc.status != SAMKV_OK)
        return samkv_fail(err, gc.status, "%s", why.text);
    if (st != SAMKV_OK)
        return st;
    Samkv__GcReply m = message_of(&report);
    return samkv_request_reply(r, &m.base, NULL, reply, err);
}
