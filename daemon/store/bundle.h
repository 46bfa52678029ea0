#pragma once
/*
 * Bundles: a collection as one stream of bytes, to be kept or taken elsewhere. Format: proto/BUNDLE.md.
 *
 * Documents travel as they are stored: records are checked, but neither decoded nor encoded. A document's key follows
 * from its tokens and from what the collection was made with, so it is the same in every store, and what a store has
 * already need not be written again: an import that broke off goes on when it is simply done once more. Owners and
 * masks (store.h) do not travel: keys are without a mask in a bundle, and the importer says whose the collection shall
 * be.
 *
 * Bytes of a bundle are hostile. Memory grows with the bytes that really came and is bounded by the collection's shape;
 * every entry and every record is checked; a document shows itself when all of it has been. Checksums find damage,
 * not malice: K and V are believed to be what the tokens give, as those of a store are.
 *
 * Nothing here needs LMDB but samkv_bundle_export and samkv_bundle_import. Any thread but the event loop's; one call
 * at a time for a stream.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"
#include "daemon/store/store.h"

/* Where the bytes go to or come from. Functions fail with a text. */
struct samkv_bundle_stream {
    enum samkv_status (*write)(void *arg, const void *bytes, size_t count, struct samkv_error *);
    /* Up to `count` bytes, at least one but at the end of the stream: *got is 0 then. */
    enum samkv_status (*read)(void *arg, void *bytes, size_t count, size_t *got, struct samkv_error *);
    /* Passes over bytes. NULL: they are read. */
    enum samkv_status (*skip)(void *arg, uint64_t count, struct samkv_error *);
    void *arg;
};

/* How far it is. Names count documents as users know them: an id and what it stands for. */
struct samkv_bundle_progress {
    char collection[SAMKV_ID_MAX_BYTES + 1];
    char last_id[SAMKV_ID_MAX_BYTES + 1]; /* of the last name that is done; "" before the first */
    uint64_t names, names_total;          /* total: as announced, for a percentage */
    uint64_t documents;                   /* whole documents that the bundle carries for them so far */
    uint64_t bytes;                       /* of the stream */
    /* Import: of `names` */
    uint64_t skipped;  /* were there already, the same */
    uint64_t replaced; /* stood for something else before */
    uint64_t kept;     /* stand for something else, and still do */
};

/* Called often; anything but OK ends the work with that status (and its text). */
typedef enum samkv_status (*samkv_bundle_report)(void *arg, const struct samkv_bundle_progress *, struct samkv_error *);

/* What a partial bundle holds whole. */
struct samkv_bundle_state {
    struct samkv_bundle_progress progress;
    uint8_t fingerprint[16]; /* of the model */
    uint64_t bytes;          /* up to here all is whole; 0: nothing is */
    uint64_t digest;         /* of it */
    bool complete;           /* nothing is missing, the trailer is there */
};

/* ------------------------------------------------------------------ writing */

/*
 * Writes a collection as one snapshot holds it, names in order of their ids, behind `after` ("": all). resume: the
 * stream stands behind a part that samkv_bundle_scan has found; goes on behind its last id, in a snapshot of now.
 * NOT_FOUND: no such collection. MISMATCH: what is to be resumed was made of another one. CORRUPT: a record is damaged;
 * what was written before is whole up to the last name.
 */
enum samkv_status samkv_bundle_export(struct samkv_store *, const char *collection, const char *after,
                                      const struct samkv_bundle_state *resume, const struct samkv_bundle_stream *,
                                      samkv_bundle_report, void *arg, struct samkv_bundle_progress *out,
                                      struct samkv_error *) SAMKV_MUST_USE;

/* ------------------------------------------------------------------ reading */

/* How samkv_bundle_import is told what this daemon can take. NULL functions take everything. */
struct samkv_bundle_host {
    /* Of the bundle's collection, under the name that it will have. *max_tokens: of a document; *vocab: token ids are
     * below. MISMATCH with the way out when no model fits. */
    enum samkv_status (*on_collection)(void *arg, const struct samkv_collection *, uint32_t *max_tokens,
                                       uint32_t *vocab, struct samkv_error *);
    /* Gives the collection the name and the ownership that it would have here; only name and ownership may be changed.
     */
    enum samkv_status (*on_target)(void *arg, struct samkv_collection *, struct samkv_error *);
    /* An id and a title (NULL: none) as they came. */
    enum samkv_status (*on_name)(void *arg, const struct samkv_name *, struct samkv_error *);
    samkv_bundle_report report;
    void *arg;
};

struct samkv_bundle_options {
    const char *collection; /* to import into; NULL or "": as the bundle says. on_target sees this name */
    bool keep;              /* names that stand for something else stay as they are */
};

/*
 * Imports a bundle. Each document is on disk, with its name, before the next one begins: whatever ends an import, what
 * *out counts stays. INVALID: no bundle. UNSUPPORTED: of a later version. CORRUPT: damaged or cut off. MISMATCH: the
 * collection exists and was made otherwise. FULL as ever. A name keeps the time at which it was put, and its pin.
 */
enum samkv_status samkv_bundle_import(struct samkv_store *, const struct samkv_bundle_options *,
                                      const struct samkv_bundle_stream *, const struct samkv_bundle_host *,
                                      struct samkv_bundle_progress *out, struct samkv_error *) SAMKV_MUST_USE;

/* Reads all of a bundle and checks all that can be checked without a store. *collection (NULL: not wanted) is the
 * caller's to deinit, also on failure. */
enum samkv_status samkv_bundle_check(const struct samkv_bundle_stream *, samkv_bundle_report, void *arg,
                                     struct samkv_collection *collection, struct samkv_bundle_progress *out,
                                     struct samkv_error *) SAMKV_MUST_USE;

/* The same over a file that may end anywhere, or be empty: finds how much of it is whole. INVALID when it is something
 * else than the beginning of a bundle. */
enum samkv_status samkv_bundle_scan(const struct samkv_bundle_stream *, samkv_bundle_report, void *arg,
                                    struct samkv_bundle_state *out, struct samkv_error *) SAMKV_MUST_USE;
