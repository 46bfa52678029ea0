#include "daemon/store/lossless.h"

#include <string.h>

#include "daemon/store/coder.h"

#define F16_SHIFT 3 /* its levels are eighths of octaves */

enum { FORM_RAW = 0, FORM_CODED = 1 };

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

static void encode_raw(const struct samkv_layout *l, const void *const *src, uint8_t *out, size_t *used)
{
    memset(out, 0, SAMKV_LOSSLESS_HEAD_BYTES);
    uint8_t *to = out + SAMKV_LOSSLESS_HEAD_BYTES;
    for (size_t i = 0; i < l->count; i++, to += l->bytes)
        memcpy(to, src[i], l->bytes);
    *used = (size_t)(to - out);
}

enum samkv_status samkv_lossless_encode(const struct samkv_layout *l, const void *const *src, struct samkv_scratch *s,
                                        uint8_t *out, size_t *used)
{
    struct geometry g = geometry_of(l);
    size_t total = samkv_layout_bytes(l), uncoded = uncoded_bytes(&g);
    if (uncoded + samkv_coder_overhead(g.shape) >= total) {
        encode_raw(l, src, out, used);
        return SAMKV_OK;
    }
    struct samkv_coder c;
    if (samkv_coder_begin(&c, s, 0, g.shape, true, g.numbers) != SAMKV_OK)
        return SAMKV_NO_MEMORY;
    uint8_t *to = out + SAMKV_LOSSLESS_HEAD_BYTES;
    for (size_t i = 0; i < l->count; i++) {
        uint16_t *symbols = c.symbols + i * g.numbers;
        if (g.low_bytes)
            c.lanes->split32(src[i], g.numbers, symbols, c.extra, to + g.seven_bytes);
        else
            c.lanes->split16(src[i], g.numbers, symbols, c.extra);
        c.lanes->pack(c.extra, g.numbers, to);
        to += g.seven_bytes + g.low_bytes;
    }
    size_t stream = samkv_coder_write(&c, l->dtype == SAMKV_F16 ? F16_SHIFT : 0, to, total - uncoded);
    if (!stream) {
        encode_raw(l, src, out, used);
        return SAMKV_OK;
    }
    memset(out, 0, SAMKV_LOSSLESS_HEAD_BYTES);
    out[0] = FORM_CODED;
    *used = (size_t)(to - out) + stream;
    return SAMKV_OK;
}

static enum samkv_status decode_raw(const struct samkv_layout *l, const uint8_t *from, size_t bytes, void *const *dst)
{
    if (bytes != samkv_layout_bytes(l))
        return SAMKV_CORRUPT;
    for (size_t i = 0; i < l->count; i++, from += l->bytes)
        memcpy(dst[i], from, l->bytes);
    return SAMKV_OK;
}

enum samkv_status samkv_lossless_decode(const struct samkv_layout *l, const uint8_t *payload, size_t payload_bytes,
                                        struct samkv_scratch *s, void *const *dst)
{
    if (payload_bytes < SAMKV_LOSSLESS_HEAD_BYTES || payload[0] > FORM_CODED || payload[1] || payload[2] || payload[3])
        return SAMKV_CORRUPT;
    const uint8_t *from = payload + SAMKV_LOSSLESS_HEAD_BYTES;
    size_t left = payload_bytes - SAMKV_LOSSLESS_HEAD_BYTES;
    if (payload[0] == FORM_RAW)
        return decode_raw(l, from, left, dst);
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
    }
    return samkv_coder_complete(&c) ? SAMKV_OK : SAMKV_CORRUPT;
}
