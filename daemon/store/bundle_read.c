#include "daemon/store/bundle_read.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/store/fields.h"

#define FIRST_PAYLOAD_BYTES ((size_t)1 << 20)
#define NAME_BYTES_MAX      ((uint64_t)128 << 10) /* its title has less than 64 KiB */
#define COLLECTION_MAX      ((uint64_t)68 << 20)  /* its preamble has at most 2^24 tokens */
#define PASSING_AHEAD_BYTES ((size_t)512)         /* between two payloads that nobody wants there is only a head */

enum samkv_status samkv_bundle_reader_init(struct samkv_bundle_reader *r, const struct samkv_bundle_stream *stream,
                                           struct samkv_error *err)
{
    *r = (struct samkv_bundle_reader){.stream = stream, .max_tokens = SAMKV_BUNDLE_MAX_TOKENS, .vocab = INT32_MAX};
    samkv_scratch_pool_init(&r->scratch);
    r->ahead = malloc(SAMKV_BUNDLE_AHEAD_BYTES);
    return r->ahead ? SAMKV_OK : samkv_fail(err, SAMKV_NO_MEMORY, "out of memory for reading a bundle");
}

void samkv_bundle_reader_deinit(struct samkv_bundle_reader *r)
{
    samkv_collection_deinit(&r->collection);
    samkv_name_deinit(&r->name);
    samkv_scratch_pool_deinit(&r->scratch);
    free(r->tokens);
    free(r->payload);
    free(r->ahead);
}

uint32_t samkv_bundle_layers(const struct samkv_manifest *m)
{
    return m->bytes_index ? m->shape.layers : 0; /* a preamble has no index */
}

/* ------------------------------------------------------------------ bytes */

static enum samkv_status damaged(const struct samkv_bundle_reader *r, const char *what, struct samkv_error *err)
{
    return samkv_fail(err, SAMKV_CORRUPT, "the bundle is damaged near byte %llu (%s): copy or export it again",
                      (unsigned long long)r->offset, what);
}

static enum samkv_status take(struct samkv_bundle_reader *r, uint8_t *to, size_t count, struct samkv_error *err)
{
    size_t ahead = r->passing ? PASSING_AHEAD_BYTES : SAMKV_BUNDLE_AHEAD_BYTES;
    while (count) {
        size_t n = r->end - r->begin, got;
        if (n == 0) {
            bool direct = count >= ahead;
            enum samkv_status st =
                r->stream->read(r->stream->arg, direct ? to : r->ahead, direct ? count : ahead, &got, err);
            if (st != SAMKV_OK)
                return st;
            if (got == 0) {
                r->ended = true;
                return samkv_fail(err, SAMKV_CORRUPT,
                                  "the bundle ends early, after %llu bytes: it was cut off; export or copy it again",
                                  (unsigned long long)r->offset);
            }
            if (!direct) {
                r->begin = 0, r->end = got;
                continue;
            }
            n = got;
        } else {
            n = n < count ? n : count;
            memcpy(to, r->ahead + r->begin, n);
            r->begin += n;
        }
        to += n, count -= n, r->offset += n;
    }
    return SAMKV_OK;
}

static enum samkv_status pass_over(struct samkv_bundle_reader *r, uint64_t count, struct samkv_error *err)
{
    uint64_t n = r->end - r->begin;
    n = n < count ? n : count;
    r->begin += (size_t)n, r->offset += n, count -= n;
    if (count && r->stream->skip) {
        r->offset += count;
        return r->stream->skip(r->stream->arg, count, err);
    }
    while (count) {
        size_t got, want = count < SAMKV_BUNDLE_AHEAD_BYTES ? (size_t)count : SAMKV_BUNDLE_AHEAD_BYTES;
        enum samkv_status st = r->stream->read(r->stream->arg, r->ahead, want, &got, err);
        if (st != SAMKV_OK)
            return st;
        if (got == 0)
            return take(r, r->ahead, 1, err); /* says that it ended */
        r->offset += got, count -= got;
    }
    return SAMKV_OK;
}

/* The payload, in memory that grows with what really comes. */
static enum samkv_status take_payload(struct samkv_bundle_reader *r, uint64_t bytes, struct samkv_error *err)
{
    free(r->payload);
    r->payload = NULL;
    r->payload_bytes = 0;
    for (size_t room = FIRST_PAYLOAD_BYTES; r->payload_bytes < bytes || !r->payload; room *= 2) {
        size_t now = bytes < room ? (size_t)bytes : room;
        uint8_t *grown = realloc(r->payload, now ? now : 1);
        if (!grown)
            return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory for %llu bytes of a bundle",
                              (unsigned long long)bytes);
        r->payload = grown;
        enum samkv_status st = take(r, grown + r->payload_bytes, now - r->payload_bytes, err);
        if (st != SAMKV_OK)
            return st;
        r->payload_bytes = now;
    }
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ which entry may come */

static enum samkv_bundle_kind part_expected(const struct samkv_bundle_reader *r, uint32_t *number)
{
    uint32_t layers = samkv_bundle_layers(&r->manifest), part = r->parts_read;
    *number = part == 0 ? 0 : part <= layers ? part - 1 : part - 1 - layers;
    if (part == 0)
        return SAMKV_BUNDLE_TOKENS;
    if (part <= layers)
        return SAMKV_BUNDLE_INDEX;
    return *number < r->manifest.blocks ? SAMKV_BUNDLE_BLOCK : SAMKV_BUNDLE_END;
}

static bool may_follow(const struct samkv_bundle_reader *r, const struct samkv_bundle_head *head)
{
    static const struct samkv_key none = {0};
    uint32_t number = 0;
    switch (r->kind) {
    case SAMKV_BUNDLE_NONE:
        return head->kind == SAMKV_BUNDLE_COLLECTION && head->number == 0;
    case SAMKV_BUNDLE_COLLECTION:
        if (memcmp(&r->collection.preamble_key, &none, sizeof none) != 0)
            return head->kind == SAMKV_BUNDLE_DOCUMENT && head->number == 0;
        break;
    case SAMKV_BUNDLE_NAME:
        if (r->carries)
            return head->kind == SAMKV_BUNDLE_DOCUMENT && head->number == 0;
        break;
    case SAMKV_BUNDLE_END:
        break;
    case SAMKV_BUNDLE_TRAILER:
        return false;
    default:
        if (head->kind != part_expected(r, &number))
            return false;
        return head->kind == SAMKV_BUNDLE_END ? head->number == 0 : head->number == number;
    }
    return (head->kind == SAMKV_BUNDLE_NAME || head->kind == SAMKV_BUNDLE_TRAILER) && head->number == 0;
}

/* How a part of the document is laid out, and the kind of its record. */
static struct samkv_layout part_layout(const struct samkv_bundle_reader *r, const struct samkv_bundle_head *head,
                                       enum samkv_record_kind *kind)
{
    switch (head->kind) {
    case SAMKV_BUNDLE_TOKENS:
        *kind = SAMKV_RECORD_TOKENS;
        return samkv_tokens_layout(&r->manifest);
    case SAMKV_BUNDLE_INDEX:
        *kind = SAMKV_RECORD_INDEX;
        return samkv_index_layout(&r->manifest);
    default:
        *kind = SAMKV_RECORD_BLOCK;
        return samkv_block_layout(&r->manifest, head->number);
    }
}

static uint64_t payload_bound(const struct samkv_bundle_reader *r, const struct samkv_bundle_head *head)
{
    enum samkv_record_kind kind;
    struct samkv_layout layout;
    switch (head->kind) {
    case SAMKV_BUNDLE_COLLECTION:
        return COLLECTION_MAX;
    case SAMKV_BUNDLE_NAME:
        return NAME_BYTES_MAX;
    case SAMKV_BUNDLE_DOCUMENT:
        return 1024;
    case SAMKV_BUNDLE_END:
        return SAMKV_BUNDLE_END_BYTES;
    case SAMKV_BUNDLE_TRAILER:
        return SAMKV_BUNDLE_TRAILER_BYTES;
    default:
        layout = part_layout(r, head, &kind);
        return SAMKV_RECORD_HEADER_BYTES + samkv_codec_bound(&layout);
    }
}

/* ------------------------------------------------------------------ what entries say */

static enum samkv_status open_collection(struct samkv_bundle_reader *r, struct samkv_error *err)
{
    struct samkv_fields f;
    samkv_fields_read(&f, r->payload, r->payload_bytes);
    uint32_t length = samkv_get_u32(&f), zero = samkv_get_u32(&f);
    r->names_announced = samkv_get_u64(&f);
    struct samkv_bytes key = {samkv_get_bytes(&f, length), length};
    enum samkv_status st = SAMKV_CORRUPT;
    if (!f.bad && zero == 0 && length >= 1 && length <= SAMKV_ID_MAX_BYTES && !memchr(key.data, 0, length))
        st = samkv_collection_open((struct samkv_bytes){f.from, f.left}, key, &r->collection);
    if (st == SAMKV_CORRUPT)
        return damaged(r, "its collection; or it was made by a later samkvd", err);
    if (st != SAMKV_OK)
        return samkv_fail(err, st, "out of memory for a bundle's collection");
    struct samkv_collection *c = &r->collection;
    struct samkv_key key_of_preamble = {0};
    static const struct samkv_key none;
    if (memcmp(&c->mask, &none, sizeof none) != 0)
        return damaged(r, "its collection's documents belong to somebody", err);
    c->ownership = (struct samkv_ownership){0};
    if (c->preamble_tokens)
        samkv_collection_document_key(c, true, c->preamble, c->preamble_tokens, &key_of_preamble);
    if (memcmp(&key_of_preamble, &c->preamble_key, sizeof key_of_preamble) != 0)
        return damaged(r, "its preamble has another key", err);
    return SAMKV_OK;
}

static enum samkv_status open_name(struct samkv_bundle_reader *r, struct samkv_error *err)
{
    struct samkv_fields f;
    samkv_fields_read(&f, r->payload, r->payload_bytes);
    uint32_t length = samkv_get_u32(&f), flags = samkv_get_u32(&f);
    const uint8_t *id = samkv_get_bytes(&f, length);
    samkv_name_deinit(&r->name);
    if (f.bad || flags & ~SAMKV_BUNDLE_CARRIES || length < 1 || length > SAMKV_ID_MAX_BYTES || memchr(id, 0, length))
        return damaged(r, "a name", err);
    char text[SAMKV_ID_MAX_BYTES + 1] = {0};
    uint8_t buffer[SAMKV_NAME_KEY_MAX];
    memcpy(text, id, length);
    struct samkv_bytes key = samkv_name_key(r->collection.name, text, buffer);
    enum samkv_status st = samkv_name_open((struct samkv_bytes){f.from, f.left}, key, true, &r->name);
    if (st != SAMKV_OK)
        return st == SAMKV_CORRUPT ? damaged(r, "a name", err)
                                   : samkv_fail(err, st, "out of memory for a bundle's name");
    r->carries = flags & SAMKV_BUNDLE_CARRIES;
    r->names++;
    return SAMKV_OK;
}

/* A document must be one of the collection, and the one that is named. */
static bool belongs(const struct samkv_bundle_reader *r, const struct samkv_manifest *m)
{
    const struct samkv_collection *c = &r->collection;
    const struct samkv_key *key = r->in_preamble ? &c->preamble_key : &r->name.key;
    return memcmp(&m->key, key, sizeof *key) == 0 && m->shape.layers == c->shape.layers &&
           m->shape.kv_heads == c->shape.kv_heads && m->shape.head_dim == c->shape.head_dim &&
           m->shape.dtype == c->shape.dtype && m->heads == c->heads && m->block_tokens == c->block_tokens &&
           m->local_tokens == c->local_tokens && m->preamble_tokens == (r->in_preamble ? 0 : c->preamble_tokens) &&
           (!r->in_preamble || m->tokens == c->preamble_tokens);
}

static enum samkv_status open_document(struct samkv_bundle_reader *r, struct samkv_error *err)
{
    struct samkv_key key;
    struct samkv_document d;
    if (r->payload_bytes < sizeof key)
        return damaged(r, "a document", err);
    memcpy(&key, r->payload, sizeof key);
    struct samkv_bytes record = {r->payload + sizeof key, r->payload_bytes - sizeof key};
    if (samkv_document_open(record, &key, &d) != SAMKV_OK || !belongs(r, &d.manifest))
        return damaged(r, "a document; or it was made by a later samkvd", err);
    if (d.manifest.tokens > r->max_tokens)
        return samkv_fail(err, SAMKV_TOO_LARGE,
                          "a document of %u tokens is too long for the model's context: %s has %u", d.manifest.tokens,
                          r->in_preamble ? "the preamble" : r->name.id, r->max_tokens);
    r->manifest = d.manifest;
    r->shared = d.references > 1;
    r->passing = false;
    r->parts_read = 0;
    r->part_digest = 0;
    free(r->tokens);
    r->tokens = NULL;
    return SAMKV_OK;
}

/* The tokens say which document it is: what claims to be one that they do not make is refused. */
static enum samkv_status open_tokens(struct samkv_bundle_reader *r, struct samkv_layout layout, struct samkv_error *err)
{
    const struct samkv_manifest *m = &r->manifest;
    const struct samkv_collection *c = &r->collection;
    r->tokens = malloc(layout.bytes);
    if (!r->tokens)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory for the %u tokens of a document", m->tokens);
    void *dst[1] = {r->tokens};
    enum samkv_status st = samkv_record_decode((struct samkv_bytes){r->payload, r->payload_bytes}, SAMKV_RECORD_TOKENS,
                                               samkv_key_bytes(&m->key), &layout, &r->scratch, dst);
    if (st != SAMKV_OK)
        return st == SAMKV_CORRUPT ? damaged(r, "a document's tokens", err) : samkv_fail(err, st, "out of memory");
    for (uint32_t i = 0; i < m->tokens; i++)
        if (r->tokens[i] < 0 || (uint32_t)r->tokens[i] >= r->vocab)
            return damaged(r, "a token that the model does not have", err);
    struct samkv_key key;
    samkv_collection_document_key(c, r->in_preamble, r->tokens, m->tokens, &key);
    if (memcmp(&key, &m->key, sizeof key) != 0)
        return damaged(r, "tokens that are another document's", err);
    return SAMKV_OK;
}

static enum samkv_status open_part(struct samkv_bundle_reader *r, const struct samkv_bundle_head *head,
                                   struct samkv_error *err)
{
    enum samkv_record_kind kind;
    struct samkv_record record;
    struct samkv_layout layout = part_layout(r, head, &kind);
    if (head->kind == SAMKV_BUNDLE_TOKENS)
        return open_tokens(r, layout, err);
    uint8_t buffer[SAMKV_PART_KEY_BYTES];
    struct samkv_bytes key = samkv_part_key(&r->manifest.key, head->number, buffer);
    if (samkv_record_open((struct samkv_bytes){r->payload, r->payload_bytes}, kind, key, &record) != SAMKV_OK ||
        record.dtype != (uint8_t)layout.dtype || record.pieces != layout.count ||
        record.raw_bytes != samkv_layout_bytes(&layout))
        return damaged(r, "a record", err);
    if (!samkv_codec_is_known(record.codec))
        return samkv_fail(err, SAMKV_UNSUPPORTED,
                          "the bundle's records have codec %u, which this samkvd does not know: "
                          "update it",
                          (unsigned)record.codec);
    return SAMKV_OK;
}

static enum samkv_status open_end(struct samkv_bundle_reader *r, struct samkv_error *err)
{
    struct samkv_fields f;
    samkv_fields_read(&f, r->payload, r->payload_bytes);
    const uint8_t *key = samkv_get_bytes(&f, SAMKV_KEY_BYTES);
    uint64_t digest = samkv_get_u64(&f);
    if (!samkv_fields_complete(&f) || memcmp(key, &r->manifest.key, SAMKV_KEY_BYTES) != 0 || digest != r->part_digest)
        return damaged(r, "the end of a document", err);
    r->passing = r->in_preamble = false;
    r->documents++;
    return SAMKV_OK;
}

static enum samkv_status open_trailer(struct samkv_bundle_reader *r, uint64_t before, struct samkv_error *err)
{
    struct samkv_fields f;
    samkv_fields_read(&f, r->payload, r->payload_bytes);
    uint64_t names = samkv_get_u64(&f), documents = samkv_get_u64(&f), bytes = samkv_get_u64(&f),
             digest = samkv_get_u64(&f);
    if (!samkv_fields_complete(&f) || names != r->names || documents != r->documents || bytes != before ||
        digest != r->digest)
        return damaged(r, "its end does not fit what came before: parts of it are missing", err);
    return SAMKV_OK;
}

static enum samkv_status open_entry(struct samkv_bundle_reader *r, const struct samkv_bundle_head *head,
                                    uint64_t before, struct samkv_error *err)
{
    switch (head->kind) {
    case SAMKV_BUNDLE_COLLECTION:
        return open_collection(r, err);
    case SAMKV_BUNDLE_NAME:
        return open_name(r, err);
    case SAMKV_BUNDLE_DOCUMENT:
        return open_document(r, err);
    case SAMKV_BUNDLE_END:
        return open_end(r, err);
    case SAMKV_BUNDLE_TRAILER:
        return open_trailer(r, before, err);
    default:
        return open_part(r, head, err);
    }
}

/* ------------------------------------------------------------------ the next one */

static enum samkv_status read_head(struct samkv_bundle_reader *r, uint8_t bytes[SAMKV_BUNDLE_HEAD_BYTES],
                                   struct samkv_bundle_head *head, struct samkv_error *err)
{
    enum samkv_status st = SAMKV_OK;
    if (r->offset == 0) {
        uint8_t start[SAMKV_BUNDLE_START_BYTES];
        st = take(r, start, sizeof start, err);
        if (st == SAMKV_OK)
            st = samkv_bundle_start_check(start, err);
    }
    if (st == SAMKV_OK)
        st = take(r, bytes, SAMKV_BUNDLE_HEAD_BYTES, err);
    if (st == SAMKV_OK && samkv_bundle_head_decode(bytes, head) != SAMKV_OK)
        st = damaged(r, "the head of an entry", err);
    if (st == SAMKV_OK && !may_follow(r, head))
        st = damaged(r, "an entry that may not stand there", err);
    return st;
}

enum samkv_status samkv_bundle_reader_next(struct samkv_bundle_reader *r, struct samkv_error *err)
{
    uint8_t bytes[SAMKV_BUNDLE_HEAD_BYTES];
    struct samkv_bundle_head head;
    enum samkv_status st = read_head(r, bytes, &head, err);
    if (st != SAMKV_OK)
        return st;
    uint64_t before = r->offset - SAMKV_BUNDLE_HEAD_BYTES;
    bool is_part = samkv_bundle_is_part(head.kind);
    if (head.kind == SAMKV_BUNDLE_DOCUMENT)
        r->in_preamble = r->kind == SAMKV_BUNDLE_COLLECTION;
    if (head.bytes > payload_bound(r, &head))
        return damaged(r, "an entry that is too large", err);
    if (is_part && r->passing) {
        st = pass_over(r, head.bytes, err);
    } else {
        st = take_payload(r, head.bytes, err);
        if (st == SAMKV_OK && samkv_bundle_sum(r->payload, r->payload_bytes) != head.sum)
            st = damaged(r, "a checksum", err);
        if (st == SAMKV_OK)
            st = open_entry(r, &head, before, err);
    }
    if (st != SAMKV_OK)
        return st;
    r->kind = head.kind;
    r->number = head.number;
    r->parts_read += is_part;
    uint64_t *digest = is_part ? &r->part_digest : &r->digest;
    if (head.kind != SAMKV_BUNDLE_TRAILER)
        *digest = samkv_bundle_digest(*digest, bytes);
    return SAMKV_OK;
}

void samkv_bundle_reader_pass(struct samkv_bundle_reader *r)
{
    r->passing = true;
}

enum samkv_status samkv_bundle_reader_finish(struct samkv_bundle_reader *r, struct samkv_error *err)
{
    size_t more = r->end - r->begin;
    if (!more && r->stream->skip) {
        enum samkv_status st = r->stream->read(r->stream->arg, r->ahead, 1, &more, err);
        if (st != SAMKV_OK)
            return st;
    }
    return more ? samkv_fail(err, SAMKV_INVALID,
                             "more bytes follow behind the bundle's end, at byte %llu: are these two files in one?",
                             (unsigned long long)r->offset)
                : SAMKV_OK;
}
