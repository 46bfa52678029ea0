#pragma once
/*
 * Reading a bundle entry by entry, checked: what comes out may be used. Private to this folder; see bundle.h for what
 * is trusted (nothing).
 */
#include "daemon/store/bundle.h"
#include "daemon/store/bundle_entry.h"
#include "daemon/store/scratch.h"
#include "daemon/store/values.h"

#define SAMKV_BUNDLE_AHEAD_BYTES ((size_t)64 << 10)
#define SAMKV_BUNDLE_MAX_TOKENS  (1u << 24) /* of a document, when nobody says less */

struct samkv_bundle_reader {
    const struct samkv_bundle_stream *stream;
    struct samkv_scratch_pool scratch;
    uint8_t *ahead; /* read and not taken yet: [begin, end) */
    size_t begin, end;
    uint64_t offset; /* of the next byte that is taken */
    bool ended;      /* the stream ended there, inside the bundle */
    uint32_t max_tokens, vocab;

    enum samkv_bundle_kind kind; /* of the current entry; NONE before the first */
    uint32_t number;
    uint8_t *payload; /* of the current entry; heap. Who wants to keep a part's record takes it and leaves NULL */
    size_t payload_bytes;

    /* What was read last of each */
    struct samkv_collection collection;
    uint64_t names_announced;
    struct samkv_name name;
    bool carries;     /* the name's document follows */
    bool in_preamble; /* the document is the collection's preamble */
    bool shared;      /* more than one name refers to the document */
    struct samkv_manifest manifest;
    int32_t *tokens;     /* of the manifest, once its TOKENS came */
    bool passing;        /* the rest of the document is passed over */
    uint32_t parts_read; /* TOKENS, INDEX, BLOCK of it */
    uint64_t part_digest;

    uint64_t names, documents, digest;
};

/* NO_MEMORY. The stream must outlive the reader. */
enum samkv_status samkv_bundle_reader_init(struct samkv_bundle_reader *, const struct samkv_bundle_stream *,
                                           struct samkv_error *) SAMKV_MUST_USE;
void samkv_bundle_reader_deinit(struct samkv_bundle_reader *);

/*
 * Reads the next entry: r->kind says which, and what belongs to it is filled. After TRAILER there is none. CORRUPT,
 * INVALID and UNSUPPORTED as in bundle.h.
 */
enum samkv_status samkv_bundle_reader_next(struct samkv_bundle_reader *, struct samkv_error *) SAMKV_MUST_USE;

/* After a DOCUMENT: its parts are not wanted. The next entry is its END. */
void samkv_bundle_reader_pass(struct samkv_bundle_reader *);

/* After TRAILER: INVALID when more follows. A pipe's end is not waited for. */
enum samkv_status samkv_bundle_reader_finish(struct samkv_bundle_reader *, struct samkv_error *) SAMKV_MUST_USE;

/* Number of INDEX entries of the document. */
uint32_t samkv_bundle_layers(const struct samkv_manifest *);
