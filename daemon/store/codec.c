#include "daemon/store/codec.h"

#include <stdbool.h>
#include <string.h>

#include "daemon/store/lossless.h"
#include "daemon/store/planar.h"
#include "daemon/store/quantised.h"

#define PLANES_MAX_BYTES ((size_t)1 << 30) /* so that a plane's size fits into its 31 bits */

static bool layout_is_sane(const struct samkv_layout *l)
{
    size_t element = samkv_dtype_bytes(l->dtype);
    return element && l->bytes && l->count && l->bytes % element == 0 && l->count <= PLANES_MAX_BYTES / l->bytes;
}

size_t samkv_codec_bound(const struct samkv_layout *l)
{
    return samkv_layout_bytes(l) + SAMKV_LOSSLESS_HEAD_BYTES + 4 * samkv_dtype_bytes(l->dtype);
}

enum samkv_status samkv_codec_encode(enum samkv_codec codec, int zstd_level, const struct samkv_layout *l,
                                     const void *const *src, struct samkv_scratch *s, uint8_t *out, size_t *used)
{
    if (!layout_is_sane(l))
        return SAMKV_INVALID;
    switch (codec) {
    case SAMKV_CODEC_RAW:
        for (size_t i = 0; i < l->count; i++)
            memcpy(out + i * l->bytes, src[i], l->bytes);
        *used = samkv_layout_bytes(l);
        return SAMKV_OK;
    case SAMKV_CODEC_ZSTD:
        return samkv_planar_encode(zstd_level, l, src, s, out, used);
    case SAMKV_CODEC_RANS:
        return samkv_lossless_encode(zstd_level, l, src, s, out, used);
    case SAMKV_CODEC_Q8:
    case SAMKV_CODEC_Q4:
        return samkv_quantised_encode(codec, l, src, s, out, used);
    }
    return SAMKV_INVALID;
}

enum samkv_status samkv_codec_decode(enum samkv_codec codec, const struct samkv_layout *l, const uint8_t *payload,
                                     size_t payload_bytes, struct samkv_scratch *s, void *const *dst)
{
    if (!layout_is_sane(l))
        return SAMKV_INVALID;
    size_t total = samkv_layout_bytes(l);
    if (codec == SAMKV_CODEC_RAW) {
        if (payload_bytes != total)
            return SAMKV_CORRUPT;
        for (size_t i = 0; i < l->count; i++)
            memcpy(dst[i], payload + i * l->bytes, l->bytes);
        return SAMKV_OK;
    }
    if (codec == SAMKV_CODEC_RANS)
        return samkv_lossless_decode(l, payload, payload_bytes, s, dst);
    if (codec == SAMKV_CODEC_Q8 || codec == SAMKV_CODEC_Q4)
        return samkv_quantised_decode(l, payload, payload_bytes, s, dst);
    return codec == SAMKV_CODEC_ZSTD ? samkv_planar_decode(l, payload, payload_bytes, s, dst) : SAMKV_CORRUPT;
}

static const char *const names[SAMKV_CODEC_COUNT] = {
    [SAMKV_CODEC_RAW] = "raw", [SAMKV_CODEC_ZSTD] = "zstd", [SAMKV_CODEC_RANS] = "rans",
    [SAMKV_CODEC_Q8] = "q8",   [SAMKV_CODEC_Q4] = "q4",
};

const char *samkv_codec_name(enum samkv_codec codec)
{
    return samkv_codec_is_known(codec) ? names[codec] : "?";
}

int samkv_codec_parse(const char *name)
{
    for (int codec = 0; codec < SAMKV_CODEC_COUNT; codec++)
        if (strcmp(name, names[codec]) == 0)
            return codec;
    return -1;
}

enum samkv_codec samkv_codec_lossless(enum samkv_codec codec)
{
    return codec == SAMKV_CODEC_Q8 || codec == SAMKV_CODEC_Q4 ? SAMKV_CODEC_RANS : codec;
}
