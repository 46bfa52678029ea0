#include "tests/fuzz/bundle_seal.h"

#include <string.h>

#include "daemon/store/bundle_entry.h"
#include "daemon/store/fields.h"
#include "daemon/store/values.h"

struct sealing {
    uint8_t collection[256];
    size_t collection_bytes;
    struct samkv_key key; /* of the document at hand */
    uint64_t names, documents, digest, part_digest;
};

static uint64_t number_at(const uint8_t *at, size_t bytes)
{
    uint64_t v = 0;
    memcpy(&v, at, bytes); /* little-endian, as the tests' machines are */
    return v;
}

static void put_number(uint8_t *at, uint64_t v)
{
    memcpy(at, &v, sizeof v);
}

/* What of a record's header is no checksum stays, but for its magic, kind and length. */
static void seal_record(uint8_t *at, size_t bytes, enum samkv_record_kind kind, struct samkv_bytes key)
{
    if (bytes < SAMKV_RECORD_HEADER_BYTES || key.size > SAMKV_NAME_KEY_MAX)
        return;
    const struct samkv_record head = {.codec = (enum samkv_codec)at[6],
                                      .dtype = at[7],
                                      .pieces = (uint32_t)number_at(at + 8, 4),
                                      .raw_bytes = number_at(at + 16, 8),
                                      .payload_bytes = bytes - SAMKV_RECORD_HEADER_BYTES};
    samkv_record_seal(at, kind, key, &head);
}

static void seal_collection(struct sealing *s, uint8_t *at, size_t bytes)
{
    uint64_t length = bytes >= 16 ? number_at(at, 4) : 0;
    if (length == 0 || length >= sizeof s->collection || length > bytes - 16)
        return;
    memcpy(s->collection, at + 16, (size_t)length);
    s->collection_bytes = (size_t)length;
    seal_record(at + 16 + length, bytes - 16 - (size_t)length, SAMKV_RECORD_COLLECTION,
                (struct samkv_bytes){s->collection, s->collection_bytes});
}

static void seal_name(struct sealing *s, uint8_t *at, size_t bytes)
{
    uint8_t key[SAMKV_NAME_KEY_MAX + 1];
    uint64_t length = bytes >= 8 ? number_at(at, 4) : 0;
    s->names++;
    if (length == 0 || length > 255 || length > bytes - 8)
        return;
    memcpy(key, s->collection, s->collection_bytes);
    key[s->collection_bytes] = 0;
    memcpy(key + s->collection_bytes + 1, at + 8, (size_t)length);
    seal_record(at + 8 + length, bytes - 8 - (size_t)length, SAMKV_RECORD_NAME,
                (struct samkv_bytes){key, s->collection_bytes + 1 + (size_t)length});
}

static void seal_part(struct sealing *s, const struct samkv_bundle_head *head, uint8_t *at)
{
    uint8_t buffer[SAMKV_PART_KEY_BYTES];
    if (head->kind == SAMKV_BUNDLE_TOKENS)
        seal_record(at, (size_t)head->bytes, SAMKV_RECORD_TOKENS, samkv_key_bytes(&s->key));
    else
        seal_record(at, (size_t)head->bytes, head->kind == SAMKV_BUNDLE_INDEX ? SAMKV_RECORD_INDEX : SAMKV_RECORD_BLOCK,
                    samkv_part_key(&s->key, head->number, buffer));
}

static void seal_payload(struct sealing *s, const struct samkv_bundle_head *head, uint8_t *at, uint64_t before)
{
    size_t bytes = (size_t)head->bytes;
    switch (head->kind) {
    case SAMKV_BUNDLE_COLLECTION:
        seal_collection(s, at, bytes);
        break;
    case SAMKV_BUNDLE_NAME:
        seal_name(s, at, bytes);
        break;
    case SAMKV_BUNDLE_DOCUMENT:
        if (bytes < SAMKV_KEY_BYTES)
            break;
        memcpy(s->key.bytes, at, SAMKV_KEY_BYTES);
        s->part_digest = 0;
        seal_record(at + SAMKV_KEY_BYTES, bytes - SAMKV_KEY_BYTES, SAMKV_RECORD_DOCUMENT, samkv_key_bytes(&s->key));
        break;
    case SAMKV_BUNDLE_END:
        s->documents++;
        if (bytes == SAMKV_BUNDLE_END_BYTES)
            put_number(at + SAMKV_KEY_BYTES, s->part_digest);
        break;
    case SAMKV_BUNDLE_TRAILER:
        if (bytes != SAMKV_BUNDLE_TRAILER_BYTES)
            break;
        put_number(at, s->names);
        put_number(at + 8, s->documents);
        put_number(at + 16, before);
        put_number(at + 24, s->digest);
        break;
    default:
        seal_part(s, head, at);
    }
}

void bundle_seal(uint8_t *bytes, size_t count)
{
    struct sealing s = {.names = 0};
    if (count < SAMKV_BUNDLE_START_BYTES)
        return;
    samkv_bundle_start_encode(bytes);
    for (size_t at = SAMKV_BUNDLE_START_BYTES; count - at >= SAMKV_BUNDLE_HEAD_BYTES;) {
        uint8_t *head_at = bytes + at, *payload = head_at + SAMKV_BUNDLE_HEAD_BYTES;
        struct samkv_bundle_head head = {.kind = (enum samkv_bundle_kind)head_at[3],
                                         .number = (uint32_t)number_at(head_at + 4, 4),
                                         .bytes = number_at(head_at + 8, 8)};
        if (head.bytes > count - at - SAMKV_BUNDLE_HEAD_BYTES) {
            samkv_bundle_head_encode(&head, head_at);
            return;
        }
        seal_payload(&s, &head, payload, at);
        head.sum = samkv_bundle_sum(payload, (size_t)head.bytes);
        samkv_bundle_head_encode(&head, head_at);
        uint64_t *digest = samkv_bundle_is_part(head.kind) ? &s.part_digest : &s.digest;
        *digest = samkv_bundle_digest(*digest, head_at);
        at += SAMKV_BUNDLE_HEAD_BYTES + (size_t)head.bytes;
    }
}
