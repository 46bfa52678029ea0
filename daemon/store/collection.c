#include "daemon/store/values.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "daemon/store/fields.h"

#define MODEL_BYTES  64
#define FIXED_BYTES  (MODEL_BYTES + 16 + 5 * 4 + 3 * 4 + SAMKV_KEY_BYTES + 4)
#define TAIL_BYTES   (2 * 4 + 2 * 8 + 16)      /* behind the preamble's tokens, since schema 2 */
#define OWNER_BYTES  (3 * 4 + SAMKV_KEY_BYTES) /* behind that, where a collection is not simply the daemon's */
#define PREAMBLE_MAX ((uint32_t)1 << 24)

/* `pieces` of the record's header says how the payload is laid out. */
enum { FORM_OF_SCHEMA_1 = 1, FORM_WITH_TAIL = 2, FORM_WITH_OWNER = 3 };

void samkv_collection_deinit(struct samkv_collection *c)
{
    free(c->preamble);
    *c = (struct samkv_collection){0};
}

enum samkv_status samkv_mode_check(uint32_t mode, struct samkv_error *err)
{
    uint32_t group = mode >> 3 & 7, others = mode & 7;
    if (mode >> 6 == 6 && (group == 0 || group == 4 || group == 6) && (others == 0 || others == 4 || others == 6))
        return SAMKV_OK;
    return samkv_fail(
        err, SAMKV_INVALID,
        "mode %04o cannot be: say 06, then 0, 4 (read) or 6 (read and write) for the group and for others, "
        "like 0640",
        mode);
}

enum samkv_status samkv_collection_mask(struct samkv_collection *c, struct samkv_error *err)
{
    const struct samkv_ownership *o = &c->ownership;
    c->mask = (struct samkv_key){0};
    if (o->owner == SAMKV_OWNER_DAEMON && !(o->mode & SAMKV_MODE_WRITERS))
        return SAMKV_OK;
    if (getrandom(c->mask.bytes, sizeof c->mask.bytes, 0) != (ssize_t)sizeof c->mask.bytes)
        return samkv_fail(err, SAMKV_IO, "the system gives no random bytes for a new collection");
    return SAMKV_OK;
}

const char *samkv_collection_bare_name(const struct samkv_collection *c)
{
    char prefix[16];
    int n = snprintf(prefix, sizeof prefix, "~%u/", c->ownership.owner);
    bool has_it = c->ownership.owner != SAMKV_OWNER_DAEMON && strncmp(c->name, prefix, (size_t)n) == 0 && c->name[n];
    return c->name + (has_it ? n : 0);
}

/* As all of them were before they had owners, and as those of a daemon with one user are. */
static bool is_plain(const struct samkv_collection *c)
{
    static const struct samkv_key none;
    const struct samkv_ownership *o = &c->ownership;
    return o->owner == SAMKV_OWNER_DAEMON && o->group == SAMKV_OWNER_DAEMON &&
           (o->mode == 0 || o->mode == SAMKV_MODE_DEFAULT) && memcmp(&c->mask, &none, sizeof none) == 0;
}

enum samkv_status samkv_collection_check(const struct samkv_collection *c, struct samkv_error *err)
{
    enum samkv_status st = samkv_id_check("collection's name", c->name, err);
    if (st != SAMKV_OK)
        return st;
    st = c->ownership.mode ? samkv_mode_check(c->ownership.mode, err) : SAMKV_OK;
    if (st != SAMKV_OK)
        return st;
    if (memchr(c->model, 0, sizeof c->model) == NULL)
        return samkv_fail(err, SAMKV_INVALID, "a model's name has at most %zu bytes", sizeof c->model - 1);
    if (c->preamble_tokens > PREAMBLE_MAX || (c->preamble_tokens && !c->preamble))
        return samkv_fail(err, SAMKV_INVALID, "a preamble of %u tokens cannot be stored", c->preamble_tokens);
    /* The bounds of shapes are those of a one-token document. */
    struct samkv_manifest probe = {.shape = c->shape,
                                   .heads = c->heads,
                                   .tokens = 1,
                                   .block_tokens = c->block_tokens,
                                   .blocks = 1,
                                   .codec = c->codec};
    return samkv_manifest_check(&probe, err);
}

enum samkv_status samkv_collection_seal(const struct samkv_collection *c, uint8_t **out, size_t *out_bytes)
{
    bool plain = is_plain(c);
    size_t payload = FIXED_BYTES + 4 * (size_t)c->preamble_tokens + TAIL_BYTES + (plain ? 0 : OWNER_BYTES);
    uint8_t *record = malloc(SAMKV_RECORD_HEADER_BYTES + payload);
    if (!record)
        return SAMKV_NO_MEMORY;
    char model[MODEL_BYTES] = {0};
    memcpy(model, c->model, strnlen(c->model, sizeof model - 1));
    struct samkv_fields f;
    samkv_fields_write(&f, record + SAMKV_RECORD_HEADER_BYTES, payload);
    samkv_put_bytes(&f, model, sizeof model);
    samkv_put_bytes(&f, c->fingerprint, sizeof c->fingerprint);
    samkv_put_u32(&f, c->shape.layers);
    samkv_put_u32(&f, c->shape.kv_heads);
    samkv_put_u32(&f, c->shape.head_dim);
    samkv_put_u32(&f, (uint32_t)c->shape.dtype);
    samkv_put_u32(&f, c->heads);
    samkv_put_u32(&f, c->block_tokens);
    samkv_put_u32(&f, c->init_tokens);
    samkv_put_u32(&f, c->local_tokens);
    samkv_put_bytes(&f, c->preamble_key.bytes, SAMKV_KEY_BYTES);
    samkv_put_u32(&f, c->preamble_tokens);
    for (uint32_t i = 0; i < c->preamble_tokens; i++)
        samkv_put_u32(&f, (uint32_t)c->preamble[i]);
    samkv_put_u32(&f, (uint32_t)c->codec);
    samkv_put_u32(&f, 0);
    samkv_put_u64(&f, c->quota_bytes);
    samkv_put_u64(&f, c->ttl_s);
    samkv_put_u64(&f, 0); /* room, so that a field more does not move the others */
    samkv_put_u64(&f, 0);
    if (!plain) {
        samkv_put_u32(&f, c->ownership.owner);
        samkv_put_u32(&f, c->ownership.group);
        samkv_put_u32(&f, c->ownership.mode ? c->ownership.mode : SAMKV_MODE_DEFAULT);
        samkv_put_bytes(&f, c->mask.bytes, sizeof c->mask.bytes);
    }
    struct samkv_record head = {
        .pieces = plain ? FORM_WITH_TAIL : FORM_WITH_OWNER, .raw_bytes = payload, .payload_bytes = payload};
    struct samkv_bytes key = {c->name, strnlen(c->name, SAMKV_ID_MAX_BYTES)};
    samkv_record_seal(record, SAMKV_RECORD_COLLECTION, key, &head);
    *out = record;
    *out_bytes = SAMKV_RECORD_HEADER_BYTES + payload;
    return SAMKV_OK;
}

/* What stands behind the preamble's tokens, of which `f` is a copy that stands in front of them. */
static enum samkv_status open_tail(struct samkv_fields f, uint32_t form, struct samkv_collection *out)
{
    out->codec = SAMKV_CODEC_ZSTD; /* schema 1 knew no other */
    out->ownership = (struct samkv_ownership){.mode = SAMKV_MODE_DEFAULT};
    samkv_get_bytes(&f, 4 * (size_t)out->preamble_tokens);
    if (form == FORM_WITH_TAIL || form == FORM_WITH_OWNER) {
        out->codec = (enum samkv_codec)samkv_get_u32(&f);
        samkv_get_u32(&f);
        out->quota_bytes = samkv_get_u64(&f);
        out->ttl_s = samkv_get_u64(&f);
        samkv_get_bytes(&f, 16);
    } else if (form != FORM_OF_SCHEMA_1) {
        return SAMKV_CORRUPT;
    }
    if (form == FORM_WITH_OWNER) {
        out->ownership.owner = samkv_get_u32(&f);
        out->ownership.group = samkv_get_u32(&f);
        out->ownership.mode = samkv_get_u32(&f);
        const uint8_t *mask = samkv_get_bytes(&f, sizeof out->mask.bytes);
        if (!mask || samkv_mode_check(out->ownership.mode, NULL) != SAMKV_OK)
            return SAMKV_CORRUPT;
        memcpy(out->mask.bytes, mask, sizeof out->mask.bytes);
    }
    return samkv_fields_complete(&f) ? SAMKV_OK : SAMKV_CORRUPT;
}

/* All but the preamble's tokens; f stands at them afterwards. */
static enum samkv_status open_fixed(struct samkv_bytes value, struct samkv_bytes key, struct samkv_fields *f,
                                    struct samkv_collection *out)
{
    struct samkv_record r;
    *out = (struct samkv_collection){0};
    enum samkv_status st = samkv_record_open(value, SAMKV_RECORD_COLLECTION, key, &r);
    if (st != SAMKV_OK)
        return st;
    if (r.payload_bytes < FIXED_BYTES || key.size < 1 || key.size > SAMKV_ID_MAX_BYTES)
        return SAMKV_CORRUPT;
    samkv_fields_read(f, r.payload, r.payload_bytes);
    memcpy(out->name, key.data, key.size);
    memcpy(out->model, samkv_get_bytes(f, MODEL_BYTES), MODEL_BYTES);
    out->model[MODEL_BYTES - 1] = 0;
    memcpy(out->fingerprint, samkv_get_bytes(f, sizeof out->fingerprint), sizeof out->fingerprint);
    out->shape.layers = samkv_get_u32(f);
    out->shape.kv_heads = samkv_get_u32(f);
    out->shape.head_dim = samkv_get_u32(f);
    out->shape.dtype = (enum samkv_dtype)samkv_get_u32(f);
    out->heads = samkv_get_u32(f);
    out->block_tokens = samkv_get_u32(f);
    out->init_tokens = samkv_get_u32(f);
    out->local_tokens = samkv_get_u32(f);
    memcpy(out->preamble_key.bytes, samkv_get_bytes(f, SAMKV_KEY_BYTES), SAMKV_KEY_BYTES);
    out->preamble_tokens = samkv_get_u32(f);
    return open_tail(*f, r.pieces, out);
}

enum samkv_status samkv_collection_open_bare(struct samkv_bytes value, struct samkv_bytes key,
                                             struct samkv_collection *out)
{
    struct samkv_fields f;
    return open_fixed(value, key, &f, out);
}

enum samkv_status samkv_collection_open_preamble(struct samkv_bytes value, struct samkv_bytes key,
                                                 struct samkv_key *out)
{
    struct samkv_fields f;
    struct samkv_collection c;
    enum samkv_status st = open_fixed(value, key, &f, &c);
    *out = c.preamble_key;
    return st;
}

enum samkv_status samkv_collection_open(struct samkv_bytes value, struct samkv_bytes key, struct samkv_collection *out)
{
    struct samkv_fields f;
    enum samkv_status st = open_fixed(value, key, &f, out);
    if (st == SAMKV_OK && out->preamble_tokens) {
        out->preamble = malloc(out->preamble_tokens * sizeof *out->preamble);
        st = out->preamble ? SAMKV_OK : SAMKV_NO_MEMORY;
        for (uint32_t i = 0; st == SAMKV_OK && i < out->preamble_tokens; i++)
            out->preamble[i] = (int32_t)samkv_get_u32(&f);
    }
    if (st == SAMKV_OK && samkv_collection_check(out, NULL) != SAMKV_OK)
        st = SAMKV_CORRUPT;
    if (st != SAMKV_OK)
        samkv_collection_deinit(out);
    return st;
}

enum samkv_status samkv_collection_compare(const struct samkv_collection *there, const struct samkv_collection *asked,
                                           struct samkv_error *err)
{
    const struct {
        const char *what;
        uint32_t there, asked;
    } numbers[] = {
        {"layers", there->shape.layers, asked->shape.layers},
        {"kv heads", there->shape.kv_heads, asked->shape.kv_heads},
        {"head size", there->shape.head_dim, asked->shape.head_dim},
        {"query heads", there->heads, asked->heads},
        {"block size", there->block_tokens, asked->block_tokens},
        {"init tokens", there->init_tokens, asked->init_tokens},
        {"local tokens", there->local_tokens, asked->local_tokens},
        {"preamble tokens", there->preamble_tokens, asked->preamble_tokens},
    };
    if (memcmp(there->fingerprint, asked->fingerprint, sizeof there->fingerprint) != 0)
        return samkv_fail(err, SAMKV_MISMATCH,
                          "collection %s was made with another model (%s, not %s, or its files changed): "
                          "use that model or another collection",
                          there->name, there->model, asked->model);
    if (there->shape.dtype != asked->shape.dtype)
        return samkv_fail(err, SAMKV_MISMATCH, "collection %s holds %s, not %s: use that dtype or another collection",
                          there->name, samkv_dtype_name(there->shape.dtype), samkv_dtype_name(asked->shape.dtype));
    if (there->codec != asked->codec)
        return samkv_fail(err, SAMKV_MISMATCH,
                          "collection %s has codec %s, not %s: leave it out or use another collection", there->name,
                          samkv_codec_name(there->codec), samkv_codec_name(asked->codec));
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (numbers[i].there != numbers[i].asked)
            return samkv_fail(err, SAMKV_MISMATCH,
                              "collection %s has %s %u, not %u: leave it out or use another collection", there->name,
                              numbers[i].what, numbers[i].there, numbers[i].asked);
    struct samkv_key ours = asked->preamble_key, theirs = there->preamble_key; /* their masks may differ */
    samkv_document_key_mask(&ours, &asked->mask);
    samkv_document_key_mask(&theirs, &there->mask);
    bool differs = there->preamble_tokens && memcmp(&ours, &theirs, sizeof ours) != 0;
    if (differs || (there->preamble_tokens &&
                    memcmp(there->preamble, asked->preamble, there->preamble_tokens * sizeof *there->preamble) != 0))
        return samkv_fail(err, SAMKV_MISMATCH,
                          "collection %s has another preamble: leave the preamble out or use another collection",
                          there->name);
    return SAMKV_OK;
}
