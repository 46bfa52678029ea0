#include "daemon/store/lossless.h"

#include <string.h>

#include "daemon/store/coder.h"
#include "daemon/store/planar.h"

#define F16_SHIFT 3 /* its levels are eighths of octaves */

#define BOTH_BELOW ((size_t)64 << 10) /* small records may not pay for tables: the shorter form is kept */

enum { FORM_PLANES = 0, FORM_CODED = 1 };

/* Of one piece, and where its uncoded bits lie. */
struct geometry {
    struct samkv_coder_shape shape;
    size_t numbers, seven_bytes, low_bytes;
};

static struct geometry geometry_of(const struct samkv_layout *l)
{
    size_t element = samkv_dtype_bytes(l->dtype), numbers = l->bytes / element;
    bool ordered = l->channels && numbers % l->channels == 0;
    size_t channels = ordered ? l->channels : numbers;
    return (struct geometry){.shape = {l->count, numbers / channels, channels},
                             .numbers = numbers,
                             .seven_bytes = samkv_seven_bytes(numbers),
                             .low_bytes = element == 4 ? 2 * numbers : 0};
}

static size_t uncoded_bytes(const struct geometry *g)
{
    return g->shape.pieces * (g->seven_bytes + g->low_bytes);
}

static enum samkv_status encode_planes(int zstd_level, const struct samkv_layout *l, const void *const *src,
                                       struct samkv_scratch *s, uint8_t *out, size_t *used)
{
    memset(out, 0, SAMKV_LOSSLESS_HEAD_BYTES);
    enum samkv_status st = samkv_planar_encode(zstd_level, l, src, s, out + SAMKV_LOSSLESS_HEAD_BYTES, used);
    *used += SAMKV_LOSSLESS_HEAD_BYTES;
    return st;
}

/* *used: 0 when it does not shrink. */
static enum samkv_status encode_coded(const struct geometry *g, const struct samkv_layout *l, const void *const *src,
                                      struct samkv_scratch *s, uint8_t *out, size_t *used)
{
    size_t total = samkv_layout_bytes(l), uncoded = uncoded_bytes(g);
    *used = 0;
    if (uncoded + samkv_coder_overhead(g->shape) >= total)
        return SAMKV_OK;
    struct samkv_coder c;
    if (samkv_coder_begin(&c, s, 0, g->shape, true, g->numbers) != SAMKV_OK)
        return SAMKV_NO_MEMORY;
    uint8_t *to = out + SAMKV_LOSSLESS_HEAD_BYTES;
    for (size_t i = 0; i < l->count; i++) {
        uint16_t *symbols = c.symbols + i * g->numbers;
        if (g->low_bytes)
            c.lanes->split32(src[i], g->numbers, symbols, c.extra, to + g->seven_bytes);
        else
            c.lanes->split16(src[i], g->numbers, symbols, c.extra);
        c.lanes->pack(c.extra, g->numbers, to);
        to += g->seven_bytes + g->low_bytes;
    }
    size_t stream = samkv_coder_write(&c, l->dtype == SAMKV_F16 ? F16_SHIFT : 0, to, total - uncoded);
    memset(out, 0, SAMKV_LOSSLESS_HEAD_BYTES);
    out[0] = FORM_CODED;
    *used = stream ? (size_t)(to - out) + stream : 0;
    return SAMKV_OK;
}

enum samkv_status samkv_lossless_encode(int zstd_level, const struct samkv_layout *l, const void *const *src,
                                        struct samkv_scratch *s, uint8_t *out, size_t *used)
{
    struct geometry g = geometry_of(l);
    size_t planes = 0;
    uint8_t *kept = NULL;
    if (samkv_layout_bytes(l) < BOTH_BELOW) {
        if (!(kept = samkv_scratch_buffer(s, 1, samkv_codec_bound(l))) ||
            encode_planes(zstd_level, l, src, s, kept, &planes) != SAMKV_OK)
            return SAMKV_NO_MEMORY;
    }
    enum samkv_status st = encode_coded(&g, l, src, s, out, used);
    if (st != SAMKV_OK || (*used && (!planes || *used < planes)))
        return st;
    if (!planes)
        return encode_planes(zstd_level, l, src, s, out, used);
    memcpy(out, kept, *used = planes);
    return SAMKV_OK;
}

enum samkv_status samkv_lossless_decode(const struct samkv_layout *l, const uint8_t *payload, size_t payload_bytes,
                                        struct samkv_scratch *s, void *const *dst)
{
    if (payload_bytes < SAMKV_LOSSLESS_HEAD_BYTES || payload[0] > FORM_CODED || payload[1] || payload[2] || payload[3])
        return SAMKV_CORRUPT;
    const uint8_t *from = payload + SAMKV_LOSSLESS_HEAD_BYTES;
    size_t left = payload_bytes - SAMKV_LOSSLESS_HEAD_BYTES;
    if (payload[0] == FORM_PLANES)
        return samkv_planar_decode(l, from, left, s, dst);
    struct geometry g = geometry_of(l);
    size_t uncoded = uncoded_bytes(&g);
    if (left < uncoded)
        return SAMKV_CORRUPT;
    struct samkv_coder c;
    if (samkv_coder_begin(&c, s, 0, g.shape, false, g.numbers) != SAMKV_OK)
        return SAMKV_NO_MEMORY;
    if (!samkv_coder_open(&c, from + uncoded, left - uncoded))
        return SAMKV_CORRUPT;
    for (size_t i = 0; i < l->count; i++) {
        samkv_coder_piece(&c, i);
        c.lanes->unpack(from, g.numbers, c.extra);
        if (g.low_bytes)
            c.lanes->join32(c.symbols, c.extra, from + g.seven_bytes, g.numbers, dst[i]);
        else
            c.lanes->join16(c.symbols, c.extra, g.numbers, dst[i]);
        from += g.seven_bytes + g.low_bytes;
        samkv_scratch_tell(s, i + 1);
    }
    return samkv_coder_complete(&c) ? SAMKV_OK : SAMKV_CORRUPT;
}
