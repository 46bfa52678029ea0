/* The blocking calls: submit, wait for one's own answer, hand it over. */
#include "client/client_internal.h"

#include <string.h>

/* Moves a finished answer to the caller. reply may be NULL. */
static enum samkv_status finish(struct samkv_reply *from, struct samkv_reply *reply, struct samkv_error *err)
{
    enum samkv_status status = from->status;
    if (status && err)
        *err = from->error;
    if (status || !reply)
        samkv_reply_deinit(from);
    if (reply)
        *reply = *from;
    return status;
}

static enum samkv_status wait_for(struct samkv_client *client, uint64_t request, struct samkv_reply *reply,
                                  struct samkv_error *err)
{
    struct samkv_reply got;
    samkv_client_wait(client, request, &got);
    return finish(&got, reply, err);
}

/* A failed submit leaves nothing to free. */
static void clear(struct samkv_reply *reply)
{
    if (reply)
        memset(reply, 0, sizeof *reply);
}

enum samkv_status samkv_client_ping(struct samkv_client *client, struct samkv_error *err)
{
    uint64_t request;
    enum samkv_status status = samkv_client_submit_ping(client, &request, err);
    return status ? status : wait_for(client, request, NULL, err);
}

enum samkv_status samkv_client_ingest(struct samkv_client *client, const struct samkv_document *document,
                                      struct samkv_reply *reply, struct samkv_error *err)
{
    uint64_t request;
    clear(reply);
    enum samkv_status status = samkv_client_submit_ingest(client, document, &request, err);
    return status ? status : wait_for(client, request, reply, err);
}

enum samkv_status samkv_client_fetch(struct samkv_client *client, const struct samkv_fetch_options *options,
                                     struct samkv_cache **out, struct samkv_error *err)
{
    uint64_t request;
    struct samkv_reply reply;
    *out = NULL;
    enum samkv_status status = samkv_client_submit_fetch(client, options, &request, err);
    if (status || (status = wait_for(client, request, &reply, err)))
        return status;
    *out = reply.cache;
    reply.cache = NULL;
    samkv_reply_deinit(&reply);
    return SAMKV_OK;
}

/*
 * Waits for all pieces of a streamed answer. on_piece sees each of them, the last one too; when it returns false
 * nothing more is waited for.
 */
static enum samkv_status wait_for_stream(struct samkv_client *client, uint64_t request,
                                         bool (*on_piece)(void *arg, const struct samkv_reply *), void *arg,
                                         struct samkv_reply *reply, struct samkv_error *err)
{
    for (;;) {
        struct samkv_reply piece;
        samkv_client_wait(client, request, &piece);
        if (!piece.status && !on_piece(arg, &piece)) {
            samkv_reply_deinit(&piece);
            samkv_client_abandon(client, request);
            return samkv_fail(err, SAMKV_CANCELLED, "stopped by the caller");
        }
        if (!piece.more)
            return finish(&piece, reply, err);
        samkv_reply_deinit(&piece);
    }
}

struct text_sink {
    bool (*on_text)(void *arg, const char *text, size_t bytes);
    void *arg;
};

static bool on_ask_piece(void *arg, const struct samkv_reply *piece)
{
    const struct text_sink *sink = arg;
    const struct samkv_ask_answer *answer = &piece->answer.ask;
    return !sink->on_text || !answer->text_bytes || sink->on_text(sink->arg, answer->text, answer->text_bytes);
}

enum samkv_status samkv_client_ask(struct samkv_client *client, const struct samkv_ask_options *options,
                                   bool (*on_text)(void *arg, const char *text, size_t bytes), void *arg,
                                   struct samkv_reply *reply, struct samkv_error *err)
{
    uint64_t request;
    struct text_sink sink = {on_text, arg};
    clear(reply);
    enum samkv_status status = samkv_client_submit_ask(client, options, &request, err);
    return status ? status : wait_for_stream(client, request, on_ask_piece, &sink, reply, err);
}

struct variant_sink {
    bool (*on_variant)(void *arg, const struct samkv_evaluate_answer *);
    void *arg;
};

static bool on_evaluate_piece(void *arg, const struct samkv_reply *piece)
{
    const struct variant_sink *sink = arg;
    return !piece->more || !sink->on_variant || sink->on_variant(sink->arg, &piece->answer.evaluate);
}

enum samkv_status samkv_client_evaluate(struct samkv_client *client, const struct samkv_evaluate_options *options,
                                        bool (*on_variant)(void *arg, const struct samkv_evaluate_answer *), void *arg,
                                        struct samkv_reply *reply, struct samkv_error *err)
{
    uint64_t request;
    struct variant_sink sink = {on_variant, arg};
    clear(reply);
    enum samkv_status status = samkv_client_submit_evaluate(client, options, &request, err);
    return status ? status : wait_for_stream(client, request, on_evaluate_piece, &sink, reply, err);
}

struct progress_sink {
    bool (*on_progress)(void *arg, const struct samkv_verify_answer *);
    void *arg;
};

static bool on_verify_piece(void *arg, const struct samkv_reply *piece)
{
    const struct progress_sink *sink = arg;
    return !piece->more || !sink->on_progress || sink->on_progress(sink->arg, &piece->answer.verify);
}

enum samkv_status samkv_client_verify(struct samkv_client *client, const char *collection, bool repair,
                                      bool (*on_progress)(void *arg, const struct samkv_verify_answer *), void *arg,
                                      struct samkv_reply *reply, struct samkv_error *err)
{
    uint64_t request;
    struct progress_sink sink = {on_progress, arg};
    clear(reply);
    enum samkv_status status = samkv_client_submit_verify(client, collection, repair, &request, err);
    return status ? status : wait_for_stream(client, request, on_verify_piece, &sink, reply, err);
}

struct bundle_sink {
    bool (*on_progress)(void *arg, const struct samkv_bundle_answer *);
    void *arg;
};

static bool on_bundle_piece(void *arg, const struct samkv_reply *piece)
{
    const struct bundle_sink *sink = arg;
    return !piece->more || !sink->on_progress || sink->on_progress(sink->arg, &piece->answer.bundle);
}

enum samkv_status samkv_client_export(struct samkv_client *client, const struct samkv_export_options *options, int fd,
                                      bool (*on_progress)(void *arg, const struct samkv_bundle_answer *), void *arg,
                                      struct samkv_reply *reply, struct samkv_error *err)
{
    uint64_t request;
    struct bundle_sink sink = {on_progress, arg};
    clear(reply);
    enum samkv_status status = samkv_client_submit_export(client, options, fd, &request, err);
    return status ? status : wait_for_stream(client, request, on_bundle_piece, &sink, reply, err);
}

enum samkv_status samkv_client_import(struct samkv_client *client, const struct samkv_import_options *options, int fd,
                                      bool (*on_progress)(void *arg, const struct samkv_bundle_answer *), void *arg,
                                      struct samkv_reply *reply, struct samkv_error *err)
{
    uint64_t request;
    struct bundle_sink sink = {on_progress, arg};
    clear(reply);
    enum samkv_status status = samkv_client_submit_import(client, options, fd, &request, err);
    return status ? status : wait_for_stream(client, request, on_bundle_piece, &sink, reply, err);
}

struct compact_sink {
    bool (*on_progress)(void *arg, const struct samkv_compact_answer *);
    void *arg;
};

static bool on_compact_piece(void *arg, const struct samkv_reply *piece)
{
    const struct compact_sink *sink = arg;
    return !piece->more || !sink->on_progress || sink->on_progress(sink->arg, &piece->answer.compact);
}

enum samkv_status samkv_client_compact(struct samkv_client *client,
                                       bool (*on_progress)(void *arg, const struct samkv_compact_answer *), void *arg,
                                       struct samkv_reply *reply, struct samkv_error *err)
{
    uint64_t request;
    struct compact_sink sink = {on_progress, arg};
    clear(reply);
    enum samkv_status status = samkv_client_submit_compact(client, &request, err);
    return status ? status : wait_for_stream(client, request, on_compact_piece, &sink, reply, err);
}

enum samkv_status samkv_client_list(struct samkv_client *client, const char *collection, const char *after,
                                    uint32_t limit, struct samkv_reply *reply, struct samkv_error *err)
{
    uint64_t request;
    clear(reply);
    enum samkv_status status = samkv_client_submit_list(client, collection, after, limit, &request, err);
    return status ? status : wait_for(client, request, reply, err);
}

enum samkv_status samkv_client_list_collections(struct samkv_client *client, const char *after, uint32_t limit,
                                                struct samkv_reply *reply, struct samkv_error *err)
{
    uint64_t request;
    clear(reply);
    enum samkv_status status = samkv_client_submit_list_collections(client, after, limit, &request, err);
    return status ? status : wait_for(client, request, reply, err);
}

enum samkv_status samkv_client_show(struct samkv_client *client, const char *collection, const char *id,
                                    struct samkv_reply *reply, struct samkv_error *err)
{
    uint64_t request;
    clear(reply);
    enum samkv_status status = samkv_client_submit_show(client, collection, id, &request, err);
    return status ? status : wait_for(client, request, reply, err);
}

enum samkv_status samkv_client_remove(struct samkv_client *client, const char *collection, const char *const *ids,
                                      size_t count, struct samkv_reply *reply, struct samkv_error *err)
{
    uint64_t request;
    clear(reply);
    enum samkv_status status = samkv_client_submit_remove(client, collection, ids, count, &request, err);
    return status ? status : wait_for(client, request, reply, err);
}

struct remove_sink {
    bool (*on_progress)(void *arg, const struct samkv_remove_answer *);
    void *arg;
};

static bool on_remove_piece(void *arg, const struct samkv_reply *piece)
{
    const struct remove_sink *sink = arg;
    return !piece->more || !sink->on_progress || sink->on_progress(sink->arg, &piece->answer.remove);
}

enum samkv_status samkv_client_remove_collection(struct samkv_client *client, const char *collection,
                                                 bool (*on_progress)(void *arg, const struct samkv_remove_answer *),
                                                 void *arg, struct samkv_reply *reply, struct samkv_error *err)
{
    uint64_t request;
    struct remove_sink sink = {on_progress, arg};
    clear(reply);
    enum samkv_status status = samkv_client_submit_remove_collection(client, collection, &request, err);
    return status ? status : wait_for_stream(client, request, on_remove_piece, &sink, reply, err);
}

enum samkv_status samkv_client_pin(struct samkv_client *client, const char *collection, const char *const *ids,
                                   size_t count, bool pin, struct samkv_reply *reply, struct samkv_error *err)
{
    uint64_t request;
    clear(reply);
    enum samkv_status status = samkv_client_submit_pin(client, collection, ids, count, pin, &request, err);
    return status ? status : wait_for(client, request, reply, err);
}

enum samkv_status samkv_client_configure(struct samkv_client *client, const char *collection, int64_t quota_bytes,
                                         int64_t ttl_s, struct samkv_reply *reply, struct samkv_error *err)
{
    uint64_t request;
    clear(reply);
    enum samkv_status status = samkv_client_submit_configure(client, collection, quota_bytes, ttl_s, &request, err);
    return status ? status : wait_for(client, request, reply, err);
}

enum samkv_status samkv_client_share(struct samkv_client *client, const char *collection, int64_t group, int64_t mode,
                                     struct samkv_reply *reply, struct samkv_error *err)
{
    uint64_t request;
    clear(reply);
    enum samkv_status status = samkv_client_submit_share(client, collection, group, mode, &request, err);
    return status ? status : wait_for(client, request, reply, err);
}

struct gc_sink {
    bool (*on_progress)(void *arg, const struct samkv_gc_answer *);
    void *arg;
};

static bool on_gc_piece(void *arg, const struct samkv_reply *piece)
{
    const struct gc_sink *sink = arg;
    return !piece->more || !sink->on_progress || sink->on_progress(sink->arg, &piece->answer.gc);
}

enum samkv_status samkv_client_gc(struct samkv_client *client,
                                  bool (*on_progress)(void *arg, const struct samkv_gc_answer *), void *arg,
                                  struct samkv_reply *reply, struct samkv_error *err)
{
    uint64_t request;
    struct gc_sink sink = {on_progress, arg};
    clear(reply);
    enum samkv_status status = samkv_client_submit_gc(client, &request, err);
    return status ? status : wait_for_stream(client, request, on_gc_piece, &sink, reply, err);
}

enum samkv_status samkv_client_status(struct samkv_client *client, struct samkv_reply *reply, struct samkv_error *err)
{
    uint64_t request;
    clear(reply);
    enum samkv_status status = samkv_client_submit_status(client, &request, err);
    return status ? status : wait_for(client, request, reply, err);
}

enum samkv_status samkv_client_status_quick(struct samkv_client *client, uint32_t max_age_ms, struct samkv_reply *reply,
                                            struct samkv_error *err)
{
    uint64_t request;
    enum samkv_status status = samkv_client_submit_status_quick(client, max_age_ms, &request, err);
    return status ? status : wait_for(client, request, reply, err);
}

enum samkv_status samkv_client_trace(struct samkv_client *client, uint64_t id, uint32_t limit,
                                     struct samkv_reply *reply, struct samkv_error *err)
{
    uint64_t request;
    enum samkv_status status = samkv_client_submit_trace(client, id, limit, &request, err);
    return status ? status : wait_for(client, request, reply, err);
}

enum samkv_status samkv_client_set_quality(struct samkv_client *client, const char *collection, const char *quality,
                                           double share, struct samkv_reply *reply, struct samkv_error *err)
{
    uint64_t request;
    clear(reply);
    enum samkv_status status = samkv_client_submit_set_quality(client, collection, quality, share, &request, err);
    return status ? status : wait_for(client, request, reply, err);
}

struct calibrate_sink {
    bool (*on_progress)(void *arg, const struct samkv_calibrate_answer *);
    void *arg;
};

static bool on_calibrate_piece(void *arg, const struct samkv_reply *piece)
{
    const struct calibrate_sink *sink = arg;
    return !piece->more || !sink->on_progress || sink->on_progress(sink->arg, &piece->answer.calibrate);
}

enum samkv_status samkv_client_calibrate(struct samkv_client *client, const struct samkv_calibrate_options *options,
                                         bool (*on_progress)(void *arg, const struct samkv_calibrate_answer *),
                                         void *arg, struct samkv_reply *reply, struct samkv_error *err)
{
    uint64_t request;
    struct calibrate_sink sink = {on_progress, arg};
    clear(reply);
    enum samkv_status status = samkv_client_submit_calibrate(client, options, &request, err);
    return status ? status : wait_for_stream(client, request, on_calibrate_piece, &sink, reply, err);
}
