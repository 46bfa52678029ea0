#include <stdlib.h>
#include <string.h>

#include "daemon/base/buffer.h"
#include "daemon/base/log.h"
#include "daemon/ingest/repair.h"
#include "daemon/net/handlers.h"

#define PROGRESS_MS     250
#define MAX_DAMAGED_IDS 100

/* One name to check. Names are walked first, in a snapshot of their own, and each document is then read in another: a
 * snapshot held over a whole store would keep the file from reusing any page. */
struct verify_item {
    struct samkv_key key;
    size_t collection; /* where its name starts in texts */
    size_t id;
};

struct verify_job {
    struct samkv_request *request;
    struct samkv_buffer items, texts; /* struct verify_item; NUL-terminated names */
    size_t collection;                /* the one being walked */
    enum samkv_status status;
    Samkv__VerifyReply reply;
    double reported_ms;
};

static enum samkv_status add_text(struct verify_job *job, const char *text, size_t *place)
{
    *place = job->texts.count;
    return samkv_buffer_append(&job->texts, text, strlen(text) + 1);
}

static enum samkv_status add_item(struct verify_job *job, const struct samkv_key *key, const char *id)
{
    struct verify_item item = {.key = *key, .collection = job->collection};
    enum samkv_status st = add_text(job, id, &item.id);
    return st == SAMKV_OK ? samkv_buffer_append(&job->items, &item, sizeof item) : st;
}

static bool on_name(void *arg, const struct samkv_name *name)
{
    struct verify_job *job = arg;
    job->status = samkv_request_cancelled(job->request) ? SAMKV_CANCELLED : add_item(job, &name->key, name->id);
    return job->status == SAMKV_OK;
}

static bool on_collection(void *arg, const struct samkv_collection *c)
{
    static const struct samkv_key none;
    struct verify_job *job = arg;
    job->status = add_text(job, c->name, &job->collection);
    if (job->status == SAMKV_OK && memcmp(&c->preamble_key, &none, sizeof none) != 0)
        job->status = add_item(job, &c->preamble_key, "(preamble)");
    return job->status == SAMKV_OK;
}

/* Names of one collection; its own row was taken just before. */
static enum samkv_status walk_names(struct verify_job *job, struct samkv_snapshot *snapshot, const char *name,
                                    struct samkv_error *err)
{
    enum samkv_status st = samkv_snapshot_each_name(snapshot, name, "", on_name, job, err);
    return st == SAMKV_OK ? job->status : st;
}

static enum samkv_status walk_one(struct verify_job *job, struct samkv_snapshot *snapshot, const char *name,
                                  struct samkv_error *err)
{
    struct samkv_collection c;
    enum samkv_status st = samkv_snapshot_collection(snapshot, name, &c, err);
    if (st == SAMKV_NOT_FOUND)
        return samkv_fail(err, st, "there is no collection '%s'; see samkvctl ls", name);
    if (st != SAMKV_OK)
        return st;
    on_collection(job, &c);
    samkv_collection_deinit(&c);
    return job->status == SAMKV_OK ? walk_names(job, snapshot, name, err) : job->status;
}

static bool on_collection_name(void *arg, const struct samkv_collection *c)
{
    struct samkv_buffer *names = arg;
    return samkv_buffer_append(names, c->name, strlen(c->name) + 1) == SAMKV_OK;
}

static enum samkv_status walk_all(struct verify_job *job, struct samkv_snapshot *snapshot, struct samkv_error *err)
{
    struct samkv_buffer names = {0};
    enum samkv_status st = samkv_snapshot_each_collection(snapshot, on_collection_name, &names, err);
    for (size_t at = 0; at < names.count && st == SAMKV_OK; at += strlen((char *)names.data + at) + 1)
        st = walk_one(job, snapshot, (char *)names.data + at, err);
    samkv_buffer_deinit(&names);
    return st;
}

static int by_key(const void *a, const void *b)
{
    return memcmp(&((const struct verify_item *)a)->key, &((const struct verify_item *)b)->key,
                  sizeof(struct samkv_key));
}

/* All names, those of one document side by side. */
static enum samkv_status walk(struct verify_job *job, const char *collection, struct samkv_error *err)
{
    struct samkv_snapshot *snapshot;
    enum samkv_status st = samkv_snapshot_begin(job->request->service->store, &snapshot, err);
    if (st != SAMKV_OK)
        return st;
    st = *collection ? walk_one(job, snapshot, collection, err) : walk_all(job, snapshot, err);
    samkv_snapshot_end(snapshot);
    if (st == SAMKV_OK && job->items.count)
        qsort(job->items.data, job->items.count / sizeof(struct verify_item), sizeof(struct verify_item), by_key);
    return st;
}

static enum samkv_status note_damaged(struct verify_job *job, const struct verify_item *item)
{
    if (job->reply.n_damaged_ids == MAX_DAMAGED_IDS)
        return SAMKV_OK;
    const char *collection = (char *)job->texts.data + item->collection, *id = (char *)job->texts.data + item->id;
    size_t bytes = strlen(collection) + strlen(id) + 2;
    char *both = malloc(bytes);
    if (!both)
        return SAMKV_NO_MEMORY;
    snprintf(both, bytes, "%s/%s", collection, id);
    job->reply.damaged_ids[job->reply.n_damaged_ids++] = both;
    return SAMKV_OK;
}

/* In this snapshot, does the name still lead to the document that the walk saw there? */
static bool still_named(const struct verify_job *job, struct samkv_snapshot *snapshot, const struct verify_item *item)
{
    const char *texts = (const char *)job->texts.data;
    struct samkv_name name;
    if (samkv_snapshot_name(snapshot, texts + item->collection, texts + item->id, &name, NULL) != SAMKV_OK)
        return false;
    bool same = memcmp(&name.key, &item->key, sizeof name.key) == 0;
    samkv_name_deinit(&name);
    return same;
}

/* One document; *damaged says whether its names are to be told. */
static enum samkv_status check_document(struct verify_job *job, const struct verify_item *item, bool *damaged,
                                        struct samkv_error *err)
{
    struct samkv_snapshot *snapshot;
    struct samkv_verify_report report = {0};
    enum samkv_status st = samkv_snapshot_begin(job->request->service->store, &snapshot, err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_snapshot_verify(snapshot, &item->key, &report, err);
    bool lost = st == SAMKV_CORRUPT || (st == SAMKV_NOT_FOUND && still_named(job, snapshot, item));
    samkv_snapshot_end(snapshot);
    if (lost && report.damaged == 0)
        report.damaged = 1;
    *damaged = report.damaged > 0;
    job->reply.documents++;
    job->reply.blocks += report.blocks;
    job->reply.bytes += report.bytes;
    job->reply.damaged += report.damaged;
    /* NOT_FOUND and not lost: it was removed since the walk. */
    return st == SAMKV_NOT_FOUND || st == SAMKV_CORRUPT ? SAMKV_OK : st;
}

/* Computes what is damaged of one document again. What cannot be is told by damaged > repaired, and why in the log. */
static enum samkv_status repair_document(struct verify_job *job, const struct verify_item *item,
                                         struct samkv_error *err)
{
    const struct samkv_service *service = job->request->service;
    const char *texts = (const char *)job->texts.data;
    struct samkv_error why = {0};
    enum samkv_status st =
        samkv_repair(service->models, service->store, texts + item->collection, &item->key, &job->reply.repaired, &why);
    switch (st) {
    case SAMKV_OK:
        return SAMKV_OK;
    case SAMKV_CORRUPT:
    case SAMKV_NOT_FOUND:
    case SAMKV_UNSUPPORTED:
    case SAMKV_MISMATCH:
        samkv_log(SAMKV_LOG_WARNING, "cannot repair %s/%s: %s", texts + item->collection, texts + item->id,
                  why.text[0] ? why.text : samkv_status_text(st));
        return SAMKV_OK;
    default: /* the disk, the device or memory: the next document would fail too */
        return samkv_fail(err, st, "%s", why.text[0] ? why.text : samkv_status_text(st));
    }
}

/* A key as text that may be sent: what is no letter of ASCII may be what the damage did. */
static bool on_damaged_name(void *arg, const void *key, size_t bytes)
{
    struct verify_job *job = arg;
    job->reply.damaged++;
    if (job->reply.n_damaged_ids == MAX_DAMAGED_IDS)
        return true;
    char *text = malloc(bytes + 1);
    if (!text) {
        job->status = SAMKV_NO_MEMORY;
        return false;
    }
    for (size_t i = 0; i < bytes; i++) {
        uint8_t c = ((const uint8_t *)key)[i];
        text[i] = c ? (char)(c > 0x20 && c < 0x7f ? c : '?') : '/';
    }
    text[bytes] = 0;
    job->reply.damaged_ids[job->reply.n_damaged_ids++] = text;
    return true;
}

/* Names that cannot be believed: told, and with repair removed, so that they can be given again. */
static enum samkv_status check_names(struct verify_job *job, bool repair, struct samkv_error *err)
{
    struct samkv_store *store = job->request->service->store;
    struct samkv_snapshot *snapshot;
    uint64_t before = job->reply.damaged, removed = 0;
    enum samkv_status st = samkv_snapshot_begin(store, &snapshot, err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_snapshot_each_damaged_name(snapshot, on_damaged_name, job, err);
    samkv_snapshot_end(snapshot);
    if (st == SAMKV_OK)
        st = job->status;
    if (st != SAMKV_OK || !repair || job->reply.damaged == before)
        return st;
    st = samkv_store_damaged_names_remove(store, &removed, err);
    samkv_log(SAMKV_LOG_WARNING, "verify: %llu damaged names removed: ingest their documents again",
              (unsigned long long)removed);
    return st;
}

static enum samkv_status report_progress(struct verify_job *job, struct samkv_error *err)
{
    double now = samkv_now_ms();
    if (now - job->reported_ms < PROGRESS_MS)
        return samkv_request_cancelled(job->request) ? SAMKV_CANCELLED : SAMKV_OK;
    job->reported_ms = now;
    Samkv__VerifyReply progress = job->reply;
    progress.damaged_ids = NULL;
    progress.n_damaged_ids = 0;
    return samkv_request_more(job->request, &progress.base, err);
}

static enum samkv_status check_all(struct verify_job *job, bool repair, struct samkv_error *err)
{
    const struct verify_item *items = (const struct verify_item *)job->items.data;
    size_t count = job->items.count / sizeof *items;
    for (size_t i = 0; i < count; i++)
        job->reply.documents_total += i == 0 || by_key(&items[i - 1], &items[i]) != 0;
    bool damaged = false;
    for (size_t i = 0; i < count; i++) {
        enum samkv_status st = report_progress(job, err);
        bool first = i == 0 || by_key(&items[i - 1], &items[i]) != 0; /* of the names of this document */
        if (st == SAMKV_OK && first)
            st = check_document(job, &items[i], &damaged, err);
        if (st == SAMKV_OK && first && damaged && repair)
            st = repair_document(job, &items[i], err);
        if (st == SAMKV_OK && damaged)
            st = note_damaged(job, &items[i]);
        if (st != SAMKV_OK)
            return st;
    }
    return SAMKV_OK;
}

enum samkv_status samkv_handle_verify(struct samkv_request *r, const ProtobufCMessage *message,
                                      struct samkv_outgoing **reply, struct samkv_error *err)
{
    const Samkv__VerifyRequest *m = (const Samkv__VerifyRequest *)message;
    char *damaged_ids[MAX_DAMAGED_IDS];
    char collection[SAMKV_ID_MAX_BYTES + 1] = "";
    struct verify_job job = {.request = r, .reply = SAMKV__VERIFY_REPLY__INIT, .reported_ms = samkv_now_ms()};
    job.reply.damaged_ids = damaged_ids;
    enum samkv_status st = *m->collection ? samkv_access_find(r, m->collection, SAMKV_RIGHT_OWN, collection, err)
                                          : samkv_access_check_admin(r, "verify all collections", err);
    if (st == SAMKV_OK)
        st = walk(&job, collection, err);
    if (st == SAMKV_OK)
        st = check_all(&job, m->repair, err);
    if (st == SAMKV_OK && !*m->collection)
        st = check_names(&job, m->repair, err);
    samkv_metrics_add(&r->service->metrics, SAMKV_METRIC_REPAIRED, job.reply.repaired);
    if (st == SAMKV_OK)
        st = samkv_request_reply(r, &job.reply.base, NULL, reply, err);
    for (size_t i = 0; i < job.reply.n_damaged_ids; i++)
        free(damaged_ids[i]);
    samkv_buffer_deinit(&job.items);
    samkv_buffer_deinit(&job.texts);
    return st;
}
