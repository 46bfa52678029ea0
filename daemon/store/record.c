#include "daemon/store/record.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "daemon/store/fields.h"

#define MAGIC         0x31524b53u /* "SKR1" */
#define VERSION       1
#define CHECKSUM_AT   32
#define KEY_MAX_BYTES 511 /* LMDB's */

static uint64_t checksum(struct samkv_bytes key, const uint8_t *header, const void *payload, size_t payload_bytes)
{
    /* The payload's hash is seeded with the hash of what stands before it: one number that depends on all three. */
    uint64_t seed = XXH3_64bits_withSeed(key.data, key.size, XXH3_64bits(header, CHECKSUM_AT));
    return XXH3_64bits_withSeed(payload, payload_bytes, seed);
}

void samkv_record_seal(uint8_t *to, enum samkv_record_kind kind, struct samkv_bytes key,
                       const struct samkv_record *head)
{
    struct samkv_fields f;
    samkv_fields_write(&f, to, SAMKV_RECORD_HEADER_BYTES);
    samkv_put_u32(&f, MAGIC);
    samkv_put_u8(&f, VERSION);
    samkv_put_u8(&f, (uint8_t)kind);
    samkv_put_u8(&f, (uint8_t)head->codec);
    samkv_put_u8(&f, head->dtype);
    samkv_put_u32(&f, head->pieces);
    samkv_put_u32(&f, 0);
    samkv_put_u64(&f, head->raw_bytes);
    samkv_put_u64(&f, head->payload_bytes);
    samkv_put_u64(&f, checksum(key, to, to + SAMKV_RECORD_HEADER_BYTES, head->payload_bytes));
}

enum samkv_status samkv_record_open(struct samkv_bytes value, enum samkv_record_kind kind, struct samkv_bytes key,
                                    struct samkv_record *out)
{
    if (value.size < SAMKV_RECORD_HEADER_BYTES || key.size > KEY_MAX_BYTES)
        return SAMKV_CORRUPT;
    uint8_t header[SAMKV_RECORD_HEADER_BYTES];
    memcpy(header, value.data, sizeof header);
    struct samkv_fields f;
    samkv_fields_read(&f, header, sizeof header);
    uint32_t magic = samkv_get_u32(&f);
    uint8_t version = samkv_get_u8(&f), found = samkv_get_u8(&f), codec = samkv_get_u8(&f), dtype = samkv_get_u8(&f);
    uint32_t pieces = samkv_get_u32(&f), zero = samkv_get_u32(&f);
    uint64_t raw = samkv_get_u64(&f), stored = samkv_get_u64(&f), sum = samkv_get_u64(&f);
    const uint8_t *payload = (const uint8_t *)value.data + sizeof header;
    if (magic != MAGIC || version != VERSION || found != (uint8_t)kind || zero != 0 ||
        stored != value.size - sizeof header || sum != checksum(key, header, payload, (size_t)stored))
        return SAMKV_CORRUPT;
    *out = (struct samkv_record){(enum samkv_codec)codec, dtype, pieces, raw, payload, (size_t)stored};
    return SAMKV_OK;
}

enum samkv_status samkv_record_encode(enum samkv_record_kind kind, struct samkv_bytes key, enum samkv_codec codec,
                                      int zstd_level, const struct samkv_layout *layout, const void *const *src,
                                      struct samkv_scratch_pool *pool, uint8_t **out, size_t *out_bytes)
{
    uint8_t *record = malloc(SAMKV_RECORD_HEADER_BYTES + samkv_codec_bound(layout));
    struct samkv_scratch *scratch = samkv_scratch_take(pool);
    size_t used = 0;
    enum samkv_status st = SAMKV_NO_MEMORY;
    if (record && scratch)
        st = samkv_codec_encode(codec, zstd_level, layout, src, scratch, record + SAMKV_RECORD_HEADER_BYTES, &used);
    samkv_scratch_give(pool, scratch);
    if (st != SAMKV_OK) {
        free(record);
        return st;
    }
    struct samkv_record head = {.codec = codec,
                                .dtype = (uint8_t)layout->dtype,
                                .pieces = (uint32_t)layout->count,
                                .raw_bytes = samkv_layout_bytes(layout),
                                .payload_bytes = used};
    samkv_record_seal(record, kind, key, &head);
    *out_bytes = SAMKV_RECORD_HEADER_BYTES + used;
    uint8_t *smaller = realloc(record, *out_bytes); /* queued records wait at their real size */
    *out = smaller ? smaller : record;
    return SAMKV_OK;
}

enum samkv_status samkv_record_decode(struct samkv_bytes value, enum samkv_record_kind kind, struct samkv_bytes key,
                                      const struct samkv_layout *layout, struct samkv_scratch_pool *pool,
                                      void *const *dst)
{
    return samkv_record_decode_watched(value, kind, key, layout, pool, dst, NULL);
}

enum samkv_status samkv_record_decode_watched(struct samkv_bytes value, enum samkv_record_kind kind,
                                              struct samkv_bytes key, const struct samkv_layout *layout,
                                              struct samkv_scratch_pool *pool, void *const *dst,
                                              const struct samkv_decode_watch *watch)
{
    struct samkv_record r;
    enum samkv_status st = samkv_record_open(value, kind, key, &r);
    if (st != SAMKV_OK)
        return st;
    if (r.dtype != (uint8_t)layout->dtype || r.pieces != layout->count || r.raw_bytes != samkv_layout_bytes(layout))
        return SAMKV_CORRUPT;
    struct samkv_scratch *scratch = samkv_scratch_take(pool);
    if (!scratch)
        return SAMKV_NO_MEMORY;
    scratch->watch = watch;
    st = samkv_codec_decode(r.codec, layout, r.payload, r.payload_bytes, scratch, dst);
    scratch->watch = NULL;
    samkv_scratch_give(pool, scratch);
    return st;
}
