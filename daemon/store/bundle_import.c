#include "daemon/store/bundle_read.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/environment.h"
#include "daemon/store/writer.h"

struct import {
    struct samkv_store *store;
    const struct samkv_bundle_options *options;
    const struct samkv_bundle_host *host;
    struct samkv_bundle_reader reader;
    struct samkv_collection target; /* the bundle's collection as it is or will be here. Borrows its preamble */
    struct samkv_bundle_progress progress;
    struct samkv_error *err;
};

/* What is done about a name. */
enum plan {
    SKIP,      /* it is there, the same */
    KEEP,      /* it stands for something else, and shall */
    NAME_ONLY, /* its document is there */
    WRITE,     /* its document must be written, if the bundle carries it */
};

static enum samkv_status report(struct import *im)
{
    const struct samkv_bundle_reader *r = &im->reader;
    im->progress.bytes = r->offset;
    im->progress.documents = r->documents;
    im->progress.names_total = r->names_announced;
    return im->host->report ? im->host->report(im->host->arg, &im->progress, im->err) : SAMKV_OK;
}

/* The next entry, with a look at whether anybody still wants it. */
static enum samkv_status next(struct import *im)
{
    enum samkv_status st = samkv_bundle_reader_next(&im->reader, im->err);
    return st == SAMKV_OK ? report(im) : st;
}

/* ------------------------------------------------------------------ the collection */

static void take_mask(struct samkv_collection *c, const struct samkv_key *mask)
{
    static const struct samkv_key none;
    c->mask = *mask;
    if (memcmp(&c->preamble_key, &none, sizeof none) != 0)
        samkv_document_key_mask(&c->preamble_key, mask);
}

static enum samkv_status find_there(struct import *im, struct samkv_collection *there)
{
    struct samkv_snapshot *snapshot;
    enum samkv_status st = samkv_snapshot_begin(im->store, &snapshot, im->err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_snapshot_collection(snapshot, im->target.name, there, im->err);
    samkv_snapshot_end(snapshot);
    return st;
}

/* With the collection of this name, whose mask the target gets, or a new one's. */
static enum samkv_status compare(struct import *im)
{
    struct samkv_collection there, *c = &im->target;
    enum samkv_status st = find_there(im, &there);
    if (st == SAMKV_NOT_FOUND) {
        st = samkv_collection_mask(c, im->err);
        if (st == SAMKV_OK)
            take_mask(c, &c->mask);
        return st;
    }
    if (st != SAMKV_OK)
        return st;
    take_mask(c, &there.mask);
    st = samkv_collection_compare(&there, c, im->err);
    if (st == SAMKV_OK && there.codec != c->codec)
        st = samkv_fail(im->err, SAMKV_MISMATCH,
                        "collection %s encodes its blocks otherwise than the bundle: import into another --collection",
                        c->name);
    samkv_collection_deinit(&there);
    return st;
}

static enum samkv_status on_collection(struct import *im)
{
    struct samkv_bundle_reader *r = &im->reader;
    struct samkv_collection *c = &im->target;
    const char *name = im->options->collection;
    *c = r->collection; /* borrows its preamble */
    if (name && *name) {
        enum samkv_status st = samkv_id_check("collection's name", name, im->err);
        if (st != SAMKV_OK)
            return st;
        memset(c->name, 0, sizeof c->name);
        memcpy(c->name, name, strlen(name));
    }
    enum samkv_status st = im->host->on_target ? im->host->on_target(im->host->arg, c, im->err) : SAMKV_OK;
    if (st != SAMKV_OK)
        return st;
    memcpy(im->progress.collection, c->name, sizeof c->name);
    uint32_t max_tokens = r->max_tokens, vocab = r->vocab;
    if (im->host->on_collection)
        st = im->host->on_collection(im->host->arg, c, &max_tokens, &vocab, im->err);
    r->max_tokens = max_tokens < r->max_tokens ? max_tokens : r->max_tokens;
    r->vocab = vocab < r->vocab ? vocab : r->vocab;
    return st == SAMKV_OK ? compare(im) : st;
}

/* Somebody else may have made it meanwhile, with a mask that our keys do not have. */
static enum samkv_status put_collection(struct import *im)
{
    struct samkv_collection there;
    enum samkv_status st = samkv_store_collection_put(im->store, &im->target, im->err);
    if (st == SAMKV_OK)
        st = find_there(im, &there);
    if (st != SAMKV_OK)
        return st;
    bool same = memcmp(&there.mask, &im->target.mask, sizeof there.mask) == 0;
    samkv_collection_deinit(&there);
    return same ? SAMKV_OK
                : samkv_fail(im->err, SAMKV_BUSY, "collection %s has just been made by another request: try again",
                             im->target.name);
}

/* ------------------------------------------------------------------ documents */

static struct samkv_key masked(const struct import *im, const struct samkv_key *key)
{
    struct samkv_key out = *key;
    samkv_document_key_mask(&out, &im->target.mask);
    return out;
}

/* The part that was just read, sealed under the key that it has here. */
static void seal_part(struct import *im, enum samkv_record_kind kind, uint8_t *bytes, size_t count)
{
    static const struct samkv_key none;
    uint8_t buffer[SAMKV_PART_KEY_BYTES];
    struct samkv_record record;
    const struct samkv_bundle_reader *r = &im->reader;
    struct samkv_bytes key = samkv_part_key(&r->manifest.key, r->number, buffer);
    if (memcmp(&im->target.mask, &none, sizeof none) == 0)
        return;
    enum samkv_status st = samkv_record_open((struct samkv_bytes){bytes, count}, kind, key, &record);
    assert(st == SAMKV_OK); /* the reader has just done the same */
    (void)st;
    struct samkv_key document = masked(im, &r->manifest.key);
    samkv_record_seal(bytes, kind, samkv_part_key(&document, r->number, buffer), &record);
}

/* After a DOCUMENT: goes on to its END without looking at the parts. */
static enum samkv_status pass_document(struct import *im)
{
    enum samkv_status st = SAMKV_OK;
    samkv_bundle_reader_pass(&im->reader);
    while (st == SAMKV_OK && im->reader.kind != SAMKV_BUNDLE_END)
        st = next(im);
    return st;
}

/* Index and block records up to the END. */
static enum samkv_status write_parts(struct import *im, struct samkv_writer *w)
{
    struct samkv_bundle_reader *r = &im->reader;
    for (;;) {
        enum samkv_status st = next(im);
        if (st != SAMKV_OK || r->kind == SAMKV_BUNDLE_END)
            return st;
        bool is_block = r->kind == SAMKV_BUNDLE_BLOCK;
        uint8_t *smaller = realloc(r->payload, r->payload_bytes), *record = smaller ? smaller : r->payload;
        r->payload = NULL;
        enum samkv_record_kind kind = is_block ? SAMKV_RECORD_BLOCK : SAMKV_RECORD_INDEX;
        seal_part(im, kind, record, r->payload_bytes);
        st = samkv_writer_sealed(w, kind, r->number, record, r->payload_bytes, im->err);
        if (st != SAMKV_OK)
            return st;
    }
}

/* At a document that was there a moment ago. */
static enum samkv_status point_name(struct import *im, const struct samkv_name *name)
{
    enum samkv_status st = samkv_store_name_put_as(im->store, im->target.name, name, im->err);
    if (st != SAMKV_NOT_FOUND)
        return st;
    return samkv_fail(im->err, SAMKV_BUSY, "the document of %s was removed or evicted meanwhile: import again",
                      name->id);
}

/* After a DOCUMENT: writes it, under a name if there is one. */
static enum samkv_status write_document(struct import *im, const struct samkv_name *name)
{
    struct samkv_bundle_reader *r = &im->reader;
    struct samkv_manifest manifest = r->manifest;
    struct samkv_writer *w;
    manifest.key = masked(im, &r->manifest.key);
    enum samkv_status st = next(im); /* TOKENS */
    if (st == SAMKV_OK)
        st = samkv_writer_begin_sealed(im->store, &manifest, r->tokens, &w, im->err);
    if (st != SAMKV_OK)
        return st;
    if (!w) { /* somebody else has just written it */
        st = pass_document(im);
        return st == SAMKV_OK && name ? point_name(im, name) : st;
    }
    st = write_parts(im, w);
    if (st != SAMKV_OK) {
        samkv_writer_abort(w);
        return st;
    }
    return name ? samkv_writer_commit_as(w, im->target.name, name, im->err)
                : samkv_writer_commit(w, NULL, NULL, NULL, im->err);
}

static enum samkv_status has_document(struct import *im, const struct samkv_key *key, bool *out)
{
    struct samkv_snapshot *snapshot;
    struct samkv_manifest m;
    enum samkv_status st = samkv_snapshot_begin(im->store, &snapshot, im->err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_snapshot_manifest(snapshot, key, &m, NULL);
    samkv_snapshot_end(snapshot);
    *out = st == SAMKV_OK;
    return st == SAMKV_NOT_FOUND || st == SAMKV_CORRUPT ? SAMKV_OK : st; /* a damaged one is written anew */
}

/* A stored document that a name of the bundle asks for: its own tokens must make its key in this collection, or the
 * name would lead into another one's. NOT_FOUND without text when it is gone. */
static enum samkv_status check_stored(struct import *im, const struct samkv_name *name)
{
    const struct samkv_collection *c = &im->target;
    struct samkv_snapshot *snapshot;
    struct samkv_manifest m;
    struct samkv_key key = {0};
    int32_t *tokens = NULL;
    enum samkv_status st = samkv_snapshot_begin(im->store, &snapshot, im->err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_snapshot_manifest(snapshot, &name->key, &m, NULL);
    if (st == SAMKV_OK && !(tokens = malloc((size_t)m.tokens * sizeof *tokens)))
        st = samkv_fail(im->err, SAMKV_NO_MEMORY, "out of memory for the %u tokens of a document", m.tokens);
    if (st == SAMKV_OK)
        st = samkv_snapshot_tokens(snapshot, &name->key, tokens, m.tokens, im->err);
    if (st == SAMKV_OK)
        samkv_collection_document_key(c, false, tokens, m.tokens, &key);
    free(tokens);
    samkv_snapshot_end(snapshot);
    if (st == SAMKV_OK && memcmp(&key, &name->key, sizeof key) != 0)
        st = samkv_fail(im->err, SAMKV_CORRUPT,
                        "the bundle's '%s' is a document of another collection: export it again", name->id);
    return st;
}

static enum samkv_status put_name(struct import *im, const struct samkv_name *name)
{
    enum samkv_status st = check_stored(im, name);
    return st == SAMKV_OK ? point_name(im, name) : st;
}

static enum samkv_status import_preamble(struct import *im)
{
    bool there;
    enum samkv_status st = next(im); /* DOCUMENT */
    if (st == SAMKV_OK)
        st = has_document(im, &im->target.preamble_key, &there);
    if (st != SAMKV_OK)
        return st;
    return there ? pass_document(im) : write_document(im, NULL);
}

/* ------------------------------------------------------------------ names */

static bool same_text(const char *a, const char *b)
{
    return strcmp(a ? a : "", b ? b : "") == 0;
}

/* Looks at what is there; *name is what shall be: of two copies of the same, the younger time and any pin. */
static enum samkv_status make_plan(struct import *im, struct samkv_name *name, enum plan *plan, bool *replaces)
{
    struct samkv_snapshot *snapshot;
    struct samkv_name there;
    struct samkv_manifest m;
    *replaces = false;
    enum samkv_status st = samkv_snapshot_begin(im->store, &snapshot, im->err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_snapshot_manifest(snapshot, &name->key, &m, NULL);
    *plan = st == SAMKV_OK ? NAME_ONLY : WRITE;
    if (st == SAMKV_OK || st == SAMKV_NOT_FOUND || st == SAMKV_CORRUPT)
        st = samkv_snapshot_name(snapshot, im->target.name, name->id, &there, NULL);
    samkv_snapshot_end(snapshot);
    if (st == SAMKV_NOT_FOUND || st == SAMKV_CORRUPT)
        return SAMKV_OK;
    if (st != SAMKV_OK)
        return samkv_fail(im->err, st, "the store could not be read: %s", samkv_status_text(st));
    if (memcmp(&there.key, &name->key, sizeof there.key) != 0) {
        *replaces = !im->options->keep;
        *plan = im->options->keep ? KEEP : *plan;
    } else {
        name->put_unix_s = there.put_unix_s > name->put_unix_s ? there.put_unix_s : name->put_unix_s;
        name->pinned = name->pinned || there.pinned;
        if (*plan == NAME_ONLY && same_text(name->title, there.title) && name->put_unix_s == there.put_unix_s &&
            name->pinned == there.pinned)
            *plan = SKIP;
    }
    samkv_name_deinit(&there);
    return SAMKV_OK;
}

/* The document that the name's entry carries, as planned. */
static enum samkv_status import_carried(struct import *im, const struct samkv_name *name, enum plan plan)
{
    bool there = true;
    enum samkv_status st = SAMKV_OK;
    /* First the name: it may be that its document has just been removed. */
    if (plan == NAME_ONLY)
        st = put_name(im, name);
    if (st == SAMKV_NOT_FOUND)
        st = SAMKV_OK, plan = WRITE;
    if (st == SAMKV_OK)
        st = next(im); /* DOCUMENT */
    /* Another name of the bundle may need what this one does not. */
    if (st == SAMKV_OK && plan == KEEP && im->reader.shared)
        st = has_document(im, &name->key, &there);
    if (st != SAMKV_OK)
        return st;
    if (plan == WRITE || !there)
        return write_document(im, plan == WRITE ? name : NULL);
    return pass_document(im);
}

static enum samkv_status import_alone(struct import *im, const struct samkv_name *name, enum plan plan)
{
    if (plan == SKIP || plan == KEEP)
        return SAMKV_OK;
    enum samkv_status st = plan == NAME_ONLY ? put_name(im, name) : SAMKV_NOT_FOUND;
    return st == SAMKV_NOT_FOUND
               ? samkv_fail(im->err, SAMKV_CORRUPT,
                            "the bundle names '%s' and has not brought its document: import it again, "
                            "or export it again",
                            name->id)
               : st;
}

static enum samkv_status import_name(struct import *im)
{
    struct samkv_name name = im->reader.name; /* borrows its title */
    name.key = masked(im, &name.key);
    enum plan plan;
    bool replaces;
    enum samkv_status st = SAMKV_OK;
    if (im->host->on_name)
        st = im->host->on_name(im->host->arg, &name, im->err);
    if (st == SAMKV_OK)
        st = make_plan(im, &name, &plan, &replaces);
    if (st == SAMKV_OK)
        st = im->reader.carries ? import_carried(im, &name, plan) : import_alone(im, &name, plan);
    if (st != SAMKV_OK)
        return st;
    im->progress.names++;
    im->progress.skipped += plan == SKIP;
    im->progress.kept += plan == KEEP;
    im->progress.replaced += replaces;
    memcpy(im->progress.last_id, name.id, sizeof name.id);
    return report(im);
}

/* ------------------------------------------------------------------ the whole */

static enum samkv_status import_all(struct import *im)
{
    static const struct samkv_key none = {0};
    struct samkv_bundle_reader *r = &im->reader;
    enum samkv_status st = next(im); /* COLLECTION */
    if (st == SAMKV_OK)
        st = on_collection(im);
    if (st == SAMKV_OK && memcmp(&r->collection.preamble_key, &none, sizeof none) != 0)
        st = import_preamble(im);
    if (st == SAMKV_OK)
        st = put_collection(im);
    while (st == SAMKV_OK) {
        st = next(im); /* NAME or TRAILER */
        if (st == SAMKV_OK && r->kind == SAMKV_BUNDLE_TRAILER)
            return samkv_bundle_reader_finish(r, im->err);
        if (st == SAMKV_OK)
            st = import_name(im);
    }
    return st;
}

enum samkv_status samkv_bundle_import(struct samkv_store *s, const struct samkv_bundle_options *options,
                                      const struct samkv_bundle_stream *stream, const struct samkv_bundle_host *host,
                                      struct samkv_bundle_progress *out, struct samkv_error *err)
{
    struct import im = {.store = s, .options = options, .host = host, .err = err};
    *out = (struct samkv_bundle_progress){0};
    if (s->read_only)
        return samkv_fail(err, SAMKV_DENIED, "the store was opened for reading only");
    enum samkv_status st = samkv_bundle_reader_init(&im.reader, stream, err);
    if (st == SAMKV_OK)
        st = import_all(&im);
    *out = im.progress;
    samkv_bundle_reader_deinit(&im.reader);
    return st;
}
