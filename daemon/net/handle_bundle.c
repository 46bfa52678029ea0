#include <string.h>

#include "daemon/net/descriptor.h"
#include "daemon/net/handlers.h"
#include "daemon/net/validate.h"
#include "daemon/store/bundle.h"

#define PROGRESS_MS 250
/* At a time, of a daemon: a client that reads slowly holds a worker, and half of those are for others. */
#define MAX_BUNDLES 2
/* What ingest/spec.h lets an ingest make. */
#define MAX_ANCHORS (1u << 20)

struct bundle_job {
    struct samkv_request *request;
    struct samkv_descriptor descriptor;
    struct samkv_bundle_stream stream;
    struct samkv_bundle_progress progress;
    double reported_ms;
};

/* ------------------------------------------------------------------ what both share */

static enum samkv_status still_wanted(void *arg, struct samkv_error *err)
{
    const struct samkv_request *r = ((struct bundle_job *)arg)->request;
    if (samkv_request_cancelled(r))
        return samkv_fail(err, SAMKV_CANCELLED, "the client is gone");
    if (atomic_load(&r->service->stopping))
        return samkv_fail(err, SAMKV_CANCELLED, "the daemon is stopping; go on when it is back");
    return SAMKV_OK;
}

static void fill_reply(const struct samkv_bundle_progress *p, Samkv__BundleReply *out)
{
    samkv__bundle_reply__init(out);
    out->collection = (char *)p->collection;
    out->last_id = (char *)p->last_id;
    out->names = p->names;
    out->names_total = p->names_total;
    out->documents = p->documents;
    out->bytes = p->bytes;
    out->skipped = p->skipped;
    out->replaced = p->replaced;
    out->kept = p->kept;
}

static enum samkv_status on_progress(void *arg, const struct samkv_bundle_progress *p, struct samkv_error *err)
{
    struct bundle_job *job = arg;
    double now = samkv_now_ms();
    enum samkv_status st = still_wanted(job, err);
    if (st != SAMKV_OK || now - job->reported_ms < PROGRESS_MS)
        return st;
    job->reported_ms = now;
    Samkv__BundleReply message;
    fill_reply(p, &message);
    return samkv_request_more(job->request, &message.base, err);
}

static enum samkv_status begin(struct bundle_job *job, struct samkv_request *r, bool writes, struct samkv_error *err)
{
    *job = (struct bundle_job){.request = r, .reported_ms = samkv_now_ms()};
    if (r->fds.count != 1 || r->fds.surplus)
        return samkv_fail(err, SAMKV_INVALID, "one descriptor must come with the request; see PROTOCOL.md");
    int fd = r->fds.fd[0];
    r->fds.count = 0;
    enum samkv_status st = samkv_descriptor_init(&job->descriptor, fd, writes, still_wanted, job, err);
    job->stream = (struct samkv_bundle_stream){
        .write = samkv_descriptor_write, .read = samkv_descriptor_read, .arg = &job->descriptor};
    if (st == SAMKV_OK && job->descriptor.kind == SAMKV_DESCRIPTOR_FILE)
        job->stream.skip = samkv_descriptor_skip;
    return st;
}

static enum samkv_status finish(struct bundle_job *job, enum samkv_status st, struct samkv_outgoing **reply,
                                struct samkv_error *err)
{
    Samkv__BundleReply message;
    samkv_descriptor_deinit(&job->descriptor); /* before the client hears that all is done */
    if (st != SAMKV_OK)
        return st;
    fill_reply(&job->progress, &message);
    return samkv_request_reply(job->request, &message.base, NULL, reply, err);
}

/* Runs one of them when there is room. */
static enum samkv_status in_turn(struct samkv_request *r, const ProtobufCMessage *message,
                                 struct samkv_outgoing **reply, struct samkv_error *err,
                                 enum samkv_status (*run)(struct samkv_request *, const ProtobufCMessage *,
                                                          struct samkv_outgoing **, struct samkv_error *))
{
    enum samkv_status st;
    if (atomic_fetch_add(&r->service->bundles, 1) < MAX_BUNDLES)
        st = run(r, message, reply, err);
    else
        st =
            samkv_fail(err, SAMKV_BUSY, "%d exports or imports run already; try again when one has ended", MAX_BUNDLES);
    atomic_fetch_sub(&r->service->bundles, 1);
    return st;
}

/* ------------------------------------------------------------------ export */

/* Finds what a file holds and cuts off what is not whole. */
static enum samkv_status find_part(struct bundle_job *job, struct samkv_bundle_state *state, struct samkv_error *err)
{
    struct samkv_descriptor *d = &job->descriptor;
    if (d->kind != SAMKV_DESCRIPTOR_FILE)
        return samkv_fail(err, SAMKV_INVALID, "only a file can be resumed");
    d->place = 0;
    enum samkv_status st = samkv_bundle_scan(&job->stream, on_progress, job, state, err);
    return st == SAMKV_OK && !state->complete ? samkv_descriptor_cut(d, state->bytes, err) : st;
}

static enum samkv_status run_export(struct samkv_request *r, const ProtobufCMessage *message,
                                    struct samkv_outgoing **reply, struct samkv_error *err)
{
    const Samkv__ExportRequest *m = (const Samkv__ExportRequest *)message;
    char collection[SAMKV_ID_MAX_BYTES + 1];
    struct bundle_job job;
    struct samkv_bundle_state state = {0};
    enum samkv_status st = samkv_access_find(r, m->collection, SAMKV_RIGHT_READ, collection, err);
    if (st == SAMKV_OK)
        st = begin(&job, r, true, err);
    if (st != SAMKV_OK)
        return st;
    if (m->resume)
        st = find_part(&job, &state, err);
    if (state.complete)
        job.progress = state.progress;
    else if (st == SAMKV_OK)
        st = samkv_bundle_export(r->service->store, collection, m->after, m->resume ? &state : NULL, &job.stream,
                                 on_progress, &job, &job.progress, err);
    return finish(&job, st, reply, err);
}

enum samkv_status samkv_handle_export(struct samkv_request *r, const ProtobufCMessage *message,
                                      struct samkv_outgoing **reply, struct samkv_error *err)
{
    return in_turn(r, message, reply, err, run_export);
}

/* ------------------------------------------------------------------ import */

static enum samkv_status check_shape(const struct samkv_collection *c, const struct samkv_engine *engine,
                                     struct samkv_error *err)
{
    struct samkv_kv_shape shape = samkv_model_kv_shape(engine->model, engine->stored);
    if (c->shape.dtype != shape.dtype)
        return samkv_fail(
            err, SAMKV_MISMATCH, "the bundle holds %s, this daemon stores %s: start samkvd with --dtype %s",
            samkv_dtype_name(c->shape.dtype), samkv_dtype_name(shape.dtype), samkv_dtype_name(c->shape.dtype));
    if (c->shape.layers != shape.layers || c->shape.kv_heads != shape.kv_heads || c->shape.head_dim != shape.head_dim ||
        c->heads != engine->model->config.heads)
        return samkv_fail(err, SAMKV_CORRUPT, "the bundle's shape is not that of its model '%s': export it again",
                          engine->model->name);
    return SAMKV_OK;
}

/* The bounds that an ingest sets. */
static enum samkv_status check_sizes(const struct samkv_collection *c, const struct samkv_engine *engine,
                                     struct samkv_error *err)
{
    const struct samkv_model_config *config = &engine->model->config;
    bool fits = c->block_tokens >= 1 && c->block_tokens <= SAMKV_MAX_BLOCK_TOKENS && c->init_tokens <= MAX_ANCHORS &&
                c->local_tokens >= 1 && c->local_tokens <= MAX_ANCHORS &&
                c->preamble_tokens < samkv_config_most_tokens(config);
    for (uint32_t i = 0; fits && i < c->preamble_tokens; i++)
        fits = c->preamble[i] >= 0 && (uint32_t)c->preamble[i] < config->vocab;
    return fits
               ? SAMKV_OK
               : samkv_fail(err, SAMKV_INVALID, "the bundle's collection has sizes or a preamble that no ingest makes");
}

static enum samkv_status on_collection(void *arg, const struct samkv_collection *c, uint32_t *max_tokens,
                                       uint32_t *vocab, struct samkv_error *err)
{
    struct bundle_job *job = arg;
    enum samkv_status st = samkv_check_name(c->name, "collection name", err);
    if (st != SAMKV_OK)
        return st;
    const struct samkv_engine *engine = samkv_models_match(job->request->service->models, c->fingerprint);
    if (!engine)
        return samkv_fail(err, SAMKV_MISMATCH,
                          "the bundle was made with model '%s', and no model with its fingerprint is loaded: start "
                          "samkvd with the same files, or ingest the texts instead",
                          samkv_check_name(c->model, "model", NULL) == SAMKV_OK ? c->model : "?");
    st = check_shape(c, engine, err);
    if (st == SAMKV_OK)
        st = check_sizes(c, engine, err);
    if (st == SAMKV_OK) {
        *max_tokens = samkv_config_most_tokens(&engine->model->config) - c->preamble_tokens;
        if (*max_tokens < c->preamble_tokens) /* the preamble is a document, too, behind nothing */
            *max_tokens = c->preamble_tokens;
        *vocab = engine->model->config.vocab;
    }
    return st;
}

/* Under which name, and whose it will be: what the bundle says of users is no matter. */
static enum samkv_status on_target(void *arg, struct samkv_collection *c, struct samkv_error *err)
{
    const struct bundle_job *job = arg;
    char name[sizeof c->name];
    enum samkv_status st = samkv_check_name(c->name, "collection name", err);
    if (st == SAMKV_OK)
        st = samkv_access_find_or_make(job->request, c->name, 0, name, &c->ownership, err);
    if (st == SAMKV_OK)
        memcpy(c->name, name, strlen(name) + 1);
    /* A preamble is nobody's until its collection is there: its user is asked for room before. */
    uint64_t preamble_bytes = st == SAMKV_OK ? c->preamble_tokens * samkv_kv_token_bytes(&c->shape) : 0;
    return st == SAMKV_OK
               ? samkv_store_admit_owner(job->request->service->store, c->ownership.owner, preamble_bytes, err)
               : st;
}

static enum samkv_status on_name(void *arg, const struct samkv_name *name, struct samkv_error *err)
{
    (void)arg;
    enum samkv_status st = samkv_check_name(name->id, "document id", err);
    return st == SAMKV_OK && name->title ? samkv_check_title(name->title, err) : st;
}

/* Says how far it got: doing it again goes on from there. */
static void add_place(const struct samkv_bundle_progress *p, struct samkv_error *err)
{
    if (err->status == SAMKV_MISMATCH || err->status == SAMKV_CANCELLED || !p->names)
        return;
    char text[sizeof err->text];
    memcpy(text, err->text, sizeof text);
    samkv_fail(err, err->status, "%.300s (%llu documents are in, up to '%.60s'; the same import goes on from there)",
               text, (unsigned long long)p->names, p->last_id);
}

static enum samkv_status run_import(struct samkv_request *r, const ProtobufCMessage *message,
                                    struct samkv_outgoing **reply, struct samkv_error *err)
{
    const Samkv__ImportRequest *m = (const Samkv__ImportRequest *)message;
    const struct samkv_bundle_options options = {.collection = m->collection, .keep = m->keep};
    struct bundle_job job;
    enum samkv_status st = begin(&job, r, false, err);
    if (st != SAMKV_OK)
        return st;
    const struct samkv_bundle_host host = {
        .on_target = on_target, .on_collection = on_collection, .on_name = on_name, .report = on_progress, .arg = &job};
    st = samkv_bundle_import(r->service->store, &options, &job.stream, &host, &job.progress, err);
    if (st != SAMKV_OK)
        add_place(&job.progress, err);
    return finish(&job, st, reply, err);
}

enum samkv_status samkv_handle_import(struct samkv_request *r, const ProtobufCMessage *message,
                                      struct samkv_outgoing **reply, struct samkv_error *err)
{
    return in_turn(r, message, reply, err, run_import);
}
