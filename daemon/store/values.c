#include "daemon/store/values.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/store/fields.h"

#define LAYERS_MAX      65536u
#define WIDTH_MAX       ((uint64_t)1 << 20) /* kv_heads * head_dim */
#define TOKENS_MAX      ((uint64_t)1 << 28)
#define RECORD_RAW_MAX  ((uint64_t)1 << 30)
#define DOCUMENT_BYTES  104 /* payload of a document's record */
#define TITLE_MAX_BYTES 65535

/* Flags of a name's record. Schema 1 knew the first one only. */
enum { NAME_IS_TITLED = 1, NAME_IS_PINNED = 2, NAME_IS_TIMED = 4, NAME_FLAGS_KNOWN = 7 };

enum samkv_status samkv_id_check(const char *what, const char *id, struct samkv_error *err)
{
    size_t length = id ? strnlen(id, SAMKV_ID_MAX_BYTES + 1) : 0;
    if (length >= 1 && length <= SAMKV_ID_MAX_BYTES)
        return SAMKV_OK;
    return samkv_fail(err, SAMKV_INVALID, "a %s has 1 to %d bytes, this one has %s: choose another", what,
                      SAMKV_ID_MAX_BYTES, length ? "more" : "none");
}

enum samkv_status samkv_name_check(const char *collection, const char *id, const char *title, struct samkv_error *err)
{
    enum samkv_status st = samkv_id_check("collection's name", collection, err);
    if (st == SAMKV_OK)
        st = samkv_id_check("document's id", id, err);
    if (st == SAMKV_OK && title && strnlen(title, TITLE_MAX_BYTES + 1) > TITLE_MAX_BYTES)
        st =
            samkv_fail(err, SAMKV_TOO_LARGE, "the title of %s has more than %d bytes: shorten it", id, TITLE_MAX_BYTES);
    return st;
}

static bool shape_is_sane(const struct samkv_kv_shape *s, uint32_t heads)
{
    return s->layers >= 1 && s->layers <= LAYERS_MAX && s->kv_heads >= 1 && s->head_dim >= 1 &&
           (uint64_t)s->kv_heads * s->head_dim <= WIDTH_MAX && heads >= 1 &&
           (uint64_t)heads * s->head_dim <= WIDTH_MAX && (unsigned)s->dtype <= SAMKV_BF16;
}

enum samkv_status samkv_manifest_check(const struct samkv_manifest *m, struct samkv_error *err)
{
    if (!shape_is_sane(&m->shape, m->heads))
        return samkv_fail(err, SAMKV_INVALID, "a document of %u layers, %u KV heads of %u, dtype %u cannot be stored",
                          m->shape.layers, m->shape.kv_heads, m->shape.head_dim, (unsigned)m->shape.dtype);
    if (m->tokens < 1 || m->tokens > TOKENS_MAX || m->block_tokens < 1 ||
        m->blocks != (m->tokens - 1) / m->block_tokens + 1)
        return samkv_fail(err, SAMKV_INVALID, "%u tokens in %u blocks of %u do not make a document", m->tokens,
                          m->blocks, m->block_tokens);
    if (!samkv_codec_is_known(m->codec))
        return samkv_fail(err, SAMKV_INVALID, "codec %u is none of this samkvd", (unsigned)m->codec);
    /* Bounded above: 2^17 * 2^20 * 4 bytes of a token, and 2^28 * 2^20 elements of an index, fit into 64 bits. */
    uint64_t longest = m->tokens < m->block_tokens ? m->tokens : m->block_tokens;
    uint64_t token_bytes = samkv_kv_token_bytes(&m->shape);
    uint64_t index_bytes =
        ((uint64_t)m->blocks * samkv_kv_width(&m->shape) + (uint64_t)m->heads * m->shape.head_dim) * sizeof(float);
    if (longest > RECORD_RAW_MAX / token_bytes || index_bytes > RECORD_RAW_MAX)
        return samkv_fail(err, SAMKV_TOO_LARGE, "blocks of %u tokens make records of more than 1 GiB: use smaller ones",
                          m->block_tokens);
    return SAMKV_OK;
}

struct samkv_layout samkv_block_layout(const struct samkv_manifest *m, uint32_t block)
{
    uint32_t tokens = block + 1 < m->blocks ? m->block_tokens : m->tokens - (m->blocks - 1) * m->block_tokens;
    return (struct samkv_layout){.dtype = m->shape.dtype,
                                 .count = 2 * (size_t)m->shape.layers,
                                 .bytes = tokens * samkv_kv_width(&m->shape) * samkv_dtype_bytes(m->shape.dtype),
                                 .channels = samkv_kv_width(&m->shape)};
}

struct samkv_layout samkv_index_layout(const struct samkv_manifest *m)
{
    size_t elements = m->blocks * samkv_kv_width(&m->shape) + (size_t)m->heads * m->shape.head_dim;
    return (struct samkv_layout){
        .dtype = SAMKV_F32, .count = 1, .bytes = elements * sizeof(float), .channels = samkv_kv_width(&m->shape)};
}

struct samkv_layout samkv_tokens_layout(const struct samkv_manifest *m)
{
    return (struct samkv_layout){.dtype = SAMKV_I32, .count = 1, .bytes = (size_t)m->tokens * sizeof(int32_t)};
}

struct samkv_bytes samkv_part_key(const struct samkv_key *key, uint32_t number, uint8_t *to)
{
    memcpy(to, key->bytes, SAMKV_KEY_BYTES);
    for (int i = 0; i < 4; i++)
        to[SAMKV_KEY_BYTES + i] = (uint8_t)(number >> (24 - 8 * i)); /* big-endian: LMDB sorts bytes */
    return (struct samkv_bytes){to, SAMKV_PART_KEY_BYTES};
}

struct samkv_bytes samkv_name_key(const char *collection, const char *id, uint8_t *to)
{
    size_t first = strnlen(collection, SAMKV_ID_MAX_BYTES), second = strnlen(id, SAMKV_ID_MAX_BYTES);
    memcpy(to, collection, first);
    to[first] = 0;
    memcpy(to + first + 1, id, second);
    return (struct samkv_bytes){to, first + 1 + second};
}

/* A record with room for `payload` bytes, and the fields to write them with. */
static uint8_t *start_record(size_t payload, struct samkv_fields *f)
{
    uint8_t *record = malloc(SAMKV_RECORD_HEADER_BYTES + payload);
    if (record)
        samkv_fields_write(f, record + SAMKV_RECORD_HEADER_BYTES, payload);
    return record;
}

static void finish_record(uint8_t *record, enum samkv_record_kind kind, struct samkv_bytes key, size_t payload,
                          uint8_t **out, size_t *out_bytes)
{
    struct samkv_record head = {.codec = SAMKV_CODEC_RAW, .pieces = 1, .raw_bytes = payload, .payload_bytes = payload};
    samkv_record_seal(record, kind, key, &head);
    *out = record;
    *out_bytes = SAMKV_RECORD_HEADER_BYTES + payload;
}

static void put_shape(struct samkv_fields *f, const struct samkv_kv_shape *s, uint32_t heads)
{
    samkv_put_u32(f, s->layers);
    samkv_put_u32(f, s->kv_heads);
    samkv_put_u32(f, s->head_dim);
    samkv_put_u32(f, (uint32_t)s->dtype);
    samkv_put_u32(f, heads);
}

static void get_shape(struct samkv_fields *f, struct samkv_kv_shape *s, uint32_t *heads)
{
    s->layers = samkv_get_u32(f);
    s->kv_heads = samkv_get_u32(f);
    s->head_dim = samkv_get_u32(f);
    s->dtype = (enum samkv_dtype)samkv_get_u32(f);
    *heads = samkv_get_u32(f);
}

enum samkv_status samkv_document_seal(const struct samkv_document *d, uint8_t **out, size_t *out_bytes)
{
    const struct samkv_manifest *m = &d->manifest;
    struct samkv_fields f;
    uint8_t *record = start_record(DOCUMENT_BYTES, &f);
    if (!record)
        return SAMKV_NO_MEMORY;
    put_shape(&f, &m->shape, m->heads);
    samkv_put_u32(&f, m->tokens);
    samkv_put_u32(&f, m->block_tokens);
    samkv_put_u32(&f, m->blocks);
    samkv_put_u32(&f, m->preamble_tokens);
    samkv_put_u32(&f, m->local_tokens);
    samkv_put_u64(&f, m->bytes_raw);
    samkv_put_u64(&f, m->bytes_stored);
    samkv_put_u64(&f, m->bytes_index);
    samkv_put_u64(&f, (uint64_t)m->created_unix_s);
    samkv_put_u64(&f, d->references);
    /* Codec plus one: 0 is schema 1, which knew one codec for all. */
    samkv_put_u64(&f, (uint64_t)m->codec + 1);
    samkv_put_u64(&f, 0); /* room, so that a field more does not move the others */
    samkv_put_u64(&f, 0);
    finish_record(record, SAMKV_RECORD_DOCUMENT, samkv_key_bytes(&m->key), DOCUMENT_BYTES, out, out_bytes);
    return SAMKV_OK;
}

enum samkv_status samkv_document_open(struct samkv_bytes value, const struct samkv_key *key, struct samkv_document *out)
{
    struct samkv_record r;
    enum samkv_status st = samkv_record_open(value, SAMKV_RECORD_DOCUMENT, samkv_key_bytes(key), &r);
    if (st != SAMKV_OK)
        return st;
    struct samkv_fields f;
    samkv_fields_read(&f, r.payload, r.payload_bytes);
    struct samkv_manifest *m = &out->manifest;
    *m = (struct samkv_manifest){.key = *key};
    get_shape(&f, &m->shape, &m->heads);
    m->tokens = samkv_get_u32(&f);
    m->block_tokens = samkv_get_u32(&f);
    m->blocks = samkv_get_u32(&f);
    m->preamble_tokens = samkv_get_u32(&f);
    m->local_tokens = samkv_get_u32(&f);
    m->bytes_raw = samkv_get_u64(&f);
    m->bytes_stored = samkv_get_u64(&f);
    m->bytes_index = samkv_get_u64(&f);
    m->created_unix_s = (int64_t)samkv_get_u64(&f);
    out->references = samkv_get_u64(&f);
    uint64_t codec = samkv_get_u64(&f);
    m->codec = codec ? (enum samkv_codec)(codec - 1) : SAMKV_CODEC_ZSTD;
    samkv_get_bytes(&f, 16);
    return samkv_fields_complete(&f) && samkv_manifest_check(m, NULL) == SAMKV_OK ? SAMKV_OK : SAMKV_CORRUPT;
}

enum samkv_status samkv_name_seal(struct samkv_bytes key, const struct samkv_name *name, uint8_t **out,
                                  size_t *out_bytes)
{
    const char *title = name->title;
    size_t length = title ? strnlen(title, TITLE_MAX_BYTES + 1) : 0;
    if (length > TITLE_MAX_BYTES)
        return SAMKV_TOO_LARGE;
    struct samkv_fields f;
    size_t payload = SAMKV_KEY_BYTES + 1 + 8 + length;
    uint8_t *record = start_record(payload, &f);
    if (!record)
        return SAMKV_NO_MEMORY;
    samkv_put_bytes(&f, name->key.bytes, SAMKV_KEY_BYTES);
    samkv_put_u8(&f, NAME_IS_TIMED | (title ? NAME_IS_TITLED : 0) | (name->pinned ? NAME_IS_PINNED : 0));
    samkv_put_u64(&f, (uint64_t)name->put_unix_s);
    samkv_put_bytes(&f, title, length);
    finish_record(record, SAMKV_RECORD_NAME, key, payload, out, out_bytes);
    return SAMKV_OK;
}

/* Counted bytes as a string on the heap. */
static char *copy_text(const void *bytes, size_t count)
{
    char *text = malloc(count + 1);
    if (!text)
        return NULL;
    memcpy(text, bytes, count);
    text[count] = '\0';
    return text;
}

enum samkv_status samkv_name_open(struct samkv_bytes value, struct samkv_bytes key, bool with_title,
                                  struct samkv_name *out)
{
    struct samkv_record r;
    enum samkv_status st = samkv_record_open(value, SAMKV_RECORD_NAME, key, &r);
    if (st != SAMKV_OK)
        return st;
    const uint8_t *id = memchr(key.data, 0, key.size);
    size_t id_bytes = id ? key.size - (size_t)(++id - (const uint8_t *)key.data) : 0;
    struct samkv_fields f;
    samkv_fields_read(&f, r.payload, r.payload_bytes);
    const uint8_t *document = samkv_get_bytes(&f, SAMKV_KEY_BYTES);
    uint8_t flags = samkv_get_u8(&f);
    int64_t put_unix_s = flags & NAME_IS_TIMED ? (int64_t)samkv_get_u64(&f) : 0;
    if (f.bad || (flags & ~NAME_FLAGS_KNOWN) || f.left > TITLE_MAX_BYTES || id_bytes < 1 ||
        id_bytes > SAMKV_ID_MAX_BYTES)
        return SAMKV_CORRUPT;
    *out = (struct samkv_name){0};
    memcpy(out->id, id, id_bytes);
    memcpy(out->key.bytes, document, SAMKV_KEY_BYTES);
    out->put_unix_s = put_unix_s;
    out->pinned = flags & NAME_IS_PINNED;
    if (with_title && (flags & NAME_IS_TITLED) && !(out->title = copy_text(f.from, f.left)))
        return SAMKV_NO_MEMORY;
    return SAMKV_OK;
}

void samkv_name_deinit(struct samkv_name *name)
{
    free(name->title);
    *name = (struct samkv_name){0};
}
