#include "daemon/store/bundle_entry.h"

#include <string.h>
#include <xxhash.h>

#include "daemon/store/fields.h"

/* As PNG's: a transfer that drops the eighth bit or changes line ends is noticed at once. */
static const uint8_t magic[8] = {0x89, 'S', 'K', 'B', '\r', '\n', 0x1a, '\n'};
static const uint8_t head_magic[3] = {'S', 'K', 'B'};
#define HEAD_SUMMED_BYTES 24

void samkv_bundle_start_encode(uint8_t out[SAMKV_BUNDLE_START_BYTES])
{
    struct samkv_fields f;
    samkv_fields_write(&f, out, SAMKV_BUNDLE_START_BYTES);
    samkv_put_bytes(&f, magic, sizeof magic);
    samkv_put_u32(&f, SAMKV_BUNDLE_VERSION);
    samkv_put_u32(&f, 0);
}

enum samkv_status samkv_bundle_start_check(const uint8_t in[SAMKV_BUNDLE_START_BYTES], struct samkv_error *err)
{
    struct samkv_fields f;
    samkv_fields_read(&f, in + sizeof magic, SAMKV_BUNDLE_START_BYTES - sizeof magic);
    if (memcmp(in, magic, sizeof magic) != 0)
        return samkv_fail(err, SAMKV_INVALID,
                          "this is no bundle of samkvctl export: is it compressed, or another file?");
    uint32_t version = samkv_get_u32(&f);
    if (version != SAMKV_BUNDLE_VERSION)
        return samkv_fail(err, SAMKV_UNSUPPORTED, "the bundle has format %u, this samkvd reads %d: update it", version,
                          SAMKV_BUNDLE_VERSION);
    return samkv_get_u32(&f) == 0
               ? SAMKV_OK
               : samkv_fail(err, SAMKV_CORRUPT, "the bundle's first bytes are damaged: copy it again");
}

void samkv_bundle_head_encode(const struct samkv_bundle_head *head, uint8_t out[SAMKV_BUNDLE_HEAD_BYTES])
{
    struct samkv_fields f;
    samkv_fields_write(&f, out, SAMKV_BUNDLE_HEAD_BYTES);
    samkv_put_bytes(&f, head_magic, sizeof head_magic);
    samkv_put_u8(&f, (uint8_t)head->kind);
    samkv_put_u32(&f, head->number);
    samkv_put_u64(&f, head->bytes);
    samkv_put_u64(&f, head->sum);
    samkv_put_u64(&f, samkv_bundle_sum(out, HEAD_SUMMED_BYTES));
}

enum samkv_status samkv_bundle_head_decode(const uint8_t in[SAMKV_BUNDLE_HEAD_BYTES], struct samkv_bundle_head *out)
{
    struct samkv_fields f;
    samkv_fields_read(&f, in + sizeof head_magic, SAMKV_BUNDLE_HEAD_BYTES - sizeof head_magic);
    out->kind = (enum samkv_bundle_kind)samkv_get_u8(&f);
    out->number = samkv_get_u32(&f);
    out->bytes = samkv_get_u64(&f);
    out->sum = samkv_get_u64(&f);
    bool whole =
        memcmp(in, head_magic, sizeof head_magic) == 0 && samkv_get_u64(&f) == samkv_bundle_sum(in, HEAD_SUMMED_BYTES);
    return whole ? SAMKV_OK : SAMKV_CORRUPT;
}

uint64_t samkv_bundle_sum(const void *bytes, size_t count)
{
    return XXH3_64bits(bytes, count);
}

uint64_t samkv_bundle_digest(uint64_t digest, const uint8_t head[SAMKV_BUNDLE_HEAD_BYTES])
{
    return XXH3_64bits_withSeed(head, SAMKV_BUNDLE_HEAD_BYTES, digest);
}
