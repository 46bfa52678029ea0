#include "daemon/store/bundle_read.h"

#include <string.h>

static void note(const struct samkv_bundle_reader *r, struct samkv_bundle_progress *p)
{
    memcpy(p->collection, r->collection.name, sizeof p->collection);
    memcpy(p->last_id, r->name.id, sizeof p->last_id);
    p->names = r->names;
    p->names_total = r->names_announced;
    p->documents = r->documents;
    p->bytes = r->offset;
}

/* All before the next entry is whole: it could be cut here and gone on with. */
static bool is_between(const struct samkv_bundle_reader *r)
{
    static const struct samkv_key none = {0};
    return r->kind == SAMKV_BUNDLE_END || (r->kind == SAMKV_BUNDLE_NAME && !r->carries) ||
           (r->kind == SAMKV_BUNDLE_COLLECTION && memcmp(&r->collection.preamble_key, &none, sizeof none) == 0);
}

/* Reads on to the trailer. *state is what was whole up to the last place between documents. */
static enum samkv_status read_all(struct samkv_bundle_reader *r, samkv_bundle_report report, void *arg,
                                  struct samkv_bundle_state *state, struct samkv_error *err)
{
    struct samkv_bundle_progress now = {0};
    while (r->kind != SAMKV_BUNDLE_TRAILER) {
        enum samkv_status st = samkv_bundle_reader_next(r, err);
        if (st == SAMKV_OK && report) {
            note(r, &now);
            st = report(arg, &now, err);
        }
        if (st != SAMKV_OK)
            return st;
        if (is_between(r) || r->kind == SAMKV_BUNDLE_TRAILER) {
            note(r, &state->progress);
            state->bytes = r->offset;
            state->digest = r->digest;
        }
    }
    state->complete = true;
    return SAMKV_OK;
}

enum samkv_status samkv_bundle_check(const struct samkv_bundle_stream *stream, samkv_bundle_report report, void *arg,
                                     struct samkv_collection *collection, struct samkv_bundle_progress *out,
                                     struct samkv_error *err)
{
    struct samkv_bundle_reader r;
    struct samkv_bundle_state state = {0};
    enum samkv_status st = samkv_bundle_reader_init(&r, stream, err);
    if (st == SAMKV_OK)
        st = read_all(&r, report, arg, &state, err);
    if (st == SAMKV_OK)
        st = samkv_bundle_reader_finish(&r, err);
    *out = state.progress;
    if (collection) {
        *collection = r.collection;
        r.collection = (struct samkv_collection){0};
    }
    samkv_bundle_reader_deinit(&r);
    return st;
}

enum samkv_status samkv_bundle_scan(const struct samkv_bundle_stream *stream, samkv_bundle_report report, void *arg,
                                    struct samkv_bundle_state *out, struct samkv_error *err)
{
    struct samkv_bundle_reader r;
    *out = (struct samkv_bundle_state){0};
    enum samkv_status st = samkv_bundle_reader_init(&r, stream, err);
    if (st == SAMKV_OK)
        st = read_all(&r, report, arg, out, err);
    memcpy(out->fingerprint, r.collection.fingerprint, sizeof out->fingerprint);
    /* What a crash leaves at the end of a file is as good as a file that ends there. */
    if (st == SAMKV_CORRUPT)
        st = SAMKV_OK;
    samkv_bundle_reader_deinit(&r);
    return st;
}
