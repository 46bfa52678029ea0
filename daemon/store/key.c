#include "daemon/store/store.h"

#include <string.h>
#include <xxhash.h>

#include "daemon/store/fields.h"

#define HEAD_BYTES (4 + 16 + 3 * 4 + 2 * 8)

static XXH128_hash_t hash_ids(const int32_t *ids, size_t count, uint64_t seed)
{
    return XXH3_128bits_withSeed(ids, count * sizeof *ids, seed);
}

void samkv_document_key(const uint8_t fingerprint[16], enum samkv_dtype dtype, const int32_t *preamble,
                        size_t preamble_count, uint32_t block_tokens, uint32_t local_tokens, const int32_t *tokens,
                        size_t count, struct samkv_key *out)
{
    /* Lengths stand in the head, so no list can run into the next; both lists' 128 bits are hashed with the head. */
    uint8_t buffer[HEAD_BYTES + 2 * sizeof(XXH128_canonical_t)];
    struct samkv_fields f;
    samkv_fields_write(&f, buffer, HEAD_BYTES);
    samkv_put_bytes(&f, "SKD1", 4);
    samkv_put_bytes(&f, fingerprint, 16);
    samkv_put_u32(&f, (uint32_t)dtype);
    samkv_put_u32(&f, block_tokens);
    samkv_put_u32(&f, local_tokens);
    samkv_put_u64(&f, preamble_count);
    samkv_put_u64(&f, count);
    XXH128_canonical_t part;
    XXH128_canonicalFromHash(&part, hash_ids(preamble, preamble_count, 1));
    memcpy(buffer + HEAD_BYTES, &part, sizeof part);
    XXH128_canonicalFromHash(&part, hash_ids(tokens, count, 2));
    memcpy(buffer + HEAD_BYTES + sizeof part, &part, sizeof part);
    XXH128_canonicalFromHash(&part, XXH3_128bits(buffer, sizeof buffer));
    memcpy(out->bytes, &part, sizeof out->bytes);
}

void samkv_document_key_of_codec(struct samkv_key *key, enum samkv_codec codec)
{
    if (samkv_codec_lossless(codec) == codec)
        return;
    XXH128_canonical_t part;
    XXH128_canonicalFromHash(&part,
                             XXH3_128bits_withSeed(key->bytes, sizeof key->bytes, 0x4c444b53u + (unsigned)codec));
    memcpy(key->bytes, &part, sizeof key->bytes);
}

void samkv_document_key_mask(struct samkv_key *key, const struct samkv_key *mask)
{
    for (size_t i = 0; i < sizeof key->bytes; i++)
        key->bytes[i] ^= mask->bytes[i];
}

void samkv_collection_document_key(const struct samkv_collection *c, bool preamble, const int32_t *tokens, size_t count,
                                   struct samkv_key *out)
{
    samkv_document_key(c->fingerprint, c->shape.dtype, preamble ? NULL : c->preamble, preamble ? 0 : c->preamble_tokens,
                       c->block_tokens, c->local_tokens, tokens, count, out);
    if (!preamble) /* a preamble is never lossy */
        samkv_document_key_of_codec(out, c->codec);
    samkv_document_key_mask(out, &c->mask);
}
