#include "daemon/store/quantised.h"

#include <string.h>

#include "daemon/store/coder.h"
#include "daemon/store/fields.h"

#define K_TOKENS   16
#define V_CHANNELS 32

enum { FORM_RAW = 0, FORM_CODED = 1 };
enum { LEVELS = 0, SCALES = 1 }; /* the scratch's buffers */

/* How many steps a group's spread is, and how many half levels share a context, as a shift. */
static const struct fineness {
    float k, v;
    int shift;
} fineness[] = {
    [SAMKV_CODEC_Q8] = {1 / 24.0f, 1 / 24.0f, 3},
    [SAMKV_CODEC_Q4] = {1 / 2.6f, 1 / 2.6f, 0},
};

struct geometry {
    enum samkv_dtype dtype;
    size_t element, pieces, tokens, channels, numbers;
    size_t k_scales, v_scales, scales; /* of a piece, and of all */
    float largest;
};

static struct geometry geometry_of(const struct samkv_layout *l)
{
    struct geometry g = {.dtype = l->dtype, .element = samkv_dtype_bytes(l->dtype), .pieces = l->count};
    g.numbers = l->bytes / g.element;
    g.channels = l->channels && g.numbers % l->channels == 0 ? l->channels : g.numbers;
    g.tokens = g.numbers / g.channels;
    g.k_scales = (g.tokens + K_TOKENS - 1) / K_TOKENS * g.channels;
    g.v_scales = (g.channels + V_CHANNELS - 1) / V_CHANNELS * g.tokens;
    g.scales = (g.pieces + 1) / 2 * g.k_scales + g.pieces / 2 * g.v_scales;
    g.largest = l->dtype == SAMKV_F16 ? 60000.0f : 0x1p60f; /* so that the highest level is a number, too */
    return g;
}

/* The rows and channels of a piece's n-th scale. */
struct group {
    size_t token, tokens, channel, channels;
};

static struct group group_of(const struct geometry *g, bool is_k, size_t scale)
{
    if (is_k) {
        size_t token = scale / g->channels * K_TOKENS;
        return (struct group){token, g->tokens - token < K_TOKENS ? g->tokens - token : K_TOKENS, scale % g->channels,
                              1};
    }
    size_t of_token = g->v_scales / g->tokens, channel = scale % of_token * V_CHANNELS;
    return (struct group){scale / of_token, 1, channel,
                          g->channels - channel < V_CHANNELS ? g->channels - channel : V_CHANNELS};
}

/* ------------------------------------------------------------------ encoding */

static void quantise_piece(const struct geometry *g, const struct samkv_lanes *lanes, bool is_k, float by,
                           const float *x, uint16_t *scales, uint16_t *symbols)
{
    if (is_k) {
        for (size_t t = 0; t < g->tokens; t += K_TOKENS, scales += g->channels)
            lanes->quantise_each(x + t * g->channels, g->tokens - t < K_TOKENS ? g->tokens - t : K_TOKENS, g->channels,
                                 g->channels, by, g->largest, scales, symbols + t * g->channels);
        return;
    }
    for (size_t s = 0; s < g->v_scales; s++) {
        struct group at = group_of(g, false, s);
        size_t i = at.token * g->channels + at.channel;
        lanes->quantise_all(x + i, at.channels, by, g->largest, &scales[s], symbols + i);
    }
}

/* Appends the exact groups of a piece to `to`; false when there is no room up to `end`. */
static bool put_exact(const struct geometry *g, bool is_k, const uint16_t *scales, const uint8_t *piece, uint8_t **to,
                      const uint8_t *end)
{
    for (size_t s = 0, count = is_k ? g->k_scales : g->v_scales; s < count; s++) {
        if (scales[s] != SAMKV_SCALE_EXACT)
            continue;
        struct group at = group_of(g, is_k, s);
        size_t row = at.channels * g->element;
        if ((size_t)(end - *to) < at.tokens * row)
            return false;
        for (size_t t = 0; t < at.tokens; t++, *to += row)
            memcpy(*to, piece + ((at.token + t) * g->channels + at.channel) * g->element, row);
    }
    return true;
}

static void encode_raw(const struct samkv_layout *l, const void *const *src, uint8_t *out, size_t *used)
{
    memset(out, 0, 4);
    uint8_t *to = out + 4;
    for (size_t i = 0; i < l->count; i++, to += l->bytes)
        memcpy(to, src[i], l->bytes);
    *used = (size_t)(to - out);
}

/* The scales' stream and the exact groups to out; how many bytes of each, false when they do not fit. */
static bool put_scales(const struct geometry *g, struct samkv_coder *scales, const void *const *src, uint8_t *out,
                       size_t room, size_t *scale_bytes, size_t *exact_bytes)
{
    /* Exact groups first, behind where the stream may end: writing the stream turns the scales into codes. */
    uint8_t *exact = out + room / 2, *end = exact;
    const uint16_t *of = scales->symbols;
    for (size_t i = 0; i < g->pieces; i++) {
        bool is_k = i % 2 == 0;
        if (!put_exact(g, is_k, of, src[i], &end, out + room))
            return false;
        of += is_k ? g->k_scales : g->v_scales;
    }
    *exact_bytes = (size_t)(end - exact);
    *scale_bytes = samkv_coder_write(scales, 0, out, room / 2);
    memmove(out + *scale_bytes, exact, *exact_bytes);
    return *scale_bytes > 0;
}

enum samkv_status samkv_quantised_encode(enum samkv_codec codec, const struct samkv_layout *l, const void *const *src,
                                         struct samkv_scratch *s, uint8_t *out, size_t *used)
{
    if (l->dtype == SAMKV_I32)
        return SAMKV_INVALID;
    struct geometry g = geometry_of(l);
    struct samkv_coder levels, scales;
    if (samkv_coder_begin(&levels, s, LEVELS, (struct samkv_coder_shape){g.pieces, g.tokens, g.channels}, true,
                          g.numbers * sizeof(float)) != SAMKV_OK ||
        samkv_coder_begin(&scales, s, SCALES, (struct samkv_coder_shape){1, 1, g.scales}, true, 0) != SAMKV_OK)
        return SAMKV_NO_MEMORY;
    float *x = (float *)levels.extra;
    uint16_t *scale = scales.symbols;
    for (size_t i = 0; i < g.pieces; i++) {
        bool is_k = i % 2 == 0;
        s->lanes->widen(g.dtype, src[i], g.numbers, x);
        quantise_piece(&g, s->lanes, is_k, is_k ? fineness[codec].k : fineness[codec].v, x, scale,
                       levels.symbols + i * g.numbers);
        scale += is_k ? g.k_scales : g.v_scales;
    }
    size_t total = samkv_layout_bytes(l), scale_bytes = 0, exact_bytes = 0, level_bytes = 0;
    uint8_t *body = out + SAMKV_QUANTISED_HEAD_BYTES;
    size_t room = total > SAMKV_QUANTISED_HEAD_BYTES ? total - SAMKV_QUANTISED_HEAD_BYTES : 0;
    if (put_scales(&g, &scales, src, body, room, &scale_bytes, &exact_bytes))
        level_bytes = samkv_coder_write(&levels, fineness[codec].shift, body + scale_bytes + exact_bytes,
                                        room - scale_bytes - exact_bytes);
    if (!level_bytes) {
        encode_raw(l, src, out, used);
        return SAMKV_OK;
    }
    struct samkv_fields f;
    samkv_fields_write(&f, out, SAMKV_QUANTISED_HEAD_BYTES);
    samkv_put_u32(&f, FORM_CODED);
    samkv_put_u32(&f, (uint32_t)scale_bytes);
    samkv_put_u32(&f, (uint32_t)exact_bytes);
    *used = SAMKV_QUANTISED_HEAD_BYTES + scale_bytes + exact_bytes + level_bytes;
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ decoding */

/* Takes the exact groups of a piece from *from; false when there are not so many bytes. */
static bool get_exact(const struct geometry *g, bool is_k, const uint16_t *scales, const uint8_t **from, size_t *left,
                      uint8_t *piece)
{
    for (size_t s = 0, count = is_k ? g->k_scales : g->v_scales; s < count; s++) {
        if (scales[s] != SAMKV_SCALE_EXACT)
            continue;
        struct group at = group_of(g, is_k, s);
        size_t row = at.channels * g->element;
        if (*left < at.tokens * row)
            return false;
        for (size_t t = 0; t < at.tokens; t++, *from += row, *left -= row)
            memcpy(piece + ((at.token + t) * g->channels + at.channel) * g->element, *from, row);
    }
    return true;
}

/* Steps of the token's channels; K's change every 16 tokens only. */
static void spread_steps(const struct geometry *g, bool is_k, size_t token, const uint16_t *scales, float *steps)
{
    if (is_k && token % K_TOKENS)
        return;
    for (size_t c = 0; is_k && c < g->channels; c++)
        steps[c] = samkv_scale_step(scales[token / K_TOKENS * g->channels + c]);
    for (size_t c = 0, of_token = g->v_scales / g->tokens; !is_k && c < g->channels; c++)
        steps[c] = samkv_scale_step(scales[token * of_token + c / V_CHANNELS]);
}

static bool decode_pieces(const struct geometry *g, const struct samkv_scratch *s, struct samkv_coder *levels,
                          const uint16_t *scales, const uint8_t *exact, size_t exact_bytes, void *const *dst)
{
    float *steps = (float *)levels->extra, *x = steps + g->channels;
    for (size_t i = 0; i < g->pieces; i++) {
        bool is_k = i % 2 == 0;
        samkv_coder_piece(levels, i);
        for (size_t t = 0; t < g->tokens; t++) {
            spread_steps(g, is_k, t, scales, steps);
            levels->lanes->dequantise(levels->symbols + t * g->channels, steps, g->channels, x);
            levels->lanes->narrow(g->dtype, x, g->channels, (uint8_t *)dst[i] + t * g->channels * g->element);
        }
        if (!get_exact(g, is_k, scales, &exact, &exact_bytes, dst[i]))
            return false;
        scales += is_k ? g->k_scales : g->v_scales;
        samkv_scratch_tell(s, i + 1);
    }
    return exact_bytes == 0 && samkv_coder_complete(levels);
}

enum samkv_status samkv_quantised_decode(const struct samkv_layout *l, const uint8_t *payload, size_t payload_bytes,
                                         struct samkv_scratch *s, void *const *dst)
{
    struct samkv_fields f;
    samkv_fields_read(&f, payload, payload_bytes);
    uint32_t form = samkv_get_u32(&f);
    if (form == FORM_RAW && !f.bad && f.left == samkv_layout_bytes(l)) {
        for (size_t i = 0; i < l->count; i++)
            memcpy(dst[i], f.from + i * l->bytes, l->bytes);
        return SAMKV_OK;
    }
    size_t scale_bytes = samkv_get_u32(&f), exact_bytes = samkv_get_u32(&f);
    const uint8_t *scale_stream = samkv_get_bytes(&f, scale_bytes), *exact = samkv_get_bytes(&f, exact_bytes);
    if (form != FORM_CODED || f.bad || l->dtype == SAMKV_I32)
        return SAMKV_CORRUPT;
    struct geometry g = geometry_of(l);
    struct samkv_coder levels, scales;
    if (samkv_coder_begin(&levels, s, LEVELS, (struct samkv_coder_shape){g.pieces, g.tokens, g.channels}, false,
                          2 * g.channels * sizeof(float)) != SAMKV_OK ||
        samkv_coder_begin(&scales, s, SCALES, (struct samkv_coder_shape){1, 1, g.scales}, false, 0) != SAMKV_OK)
        return SAMKV_NO_MEMORY;
    if (!samkv_coder_open(&scales, scale_stream, scale_bytes))
        return SAMKV_CORRUPT;
    samkv_coder_piece(&scales, 0);
    if (!samkv_coder_complete(&scales) || !samkv_coder_open(&levels, f.from, f.left))
        return SAMKV_CORRUPT;
    return decode_pieces(&g, s, &levels, scales.symbols, exact, exact_bytes, dst) ? SAMKV_OK : SAMKV_CORRUPT;
}
