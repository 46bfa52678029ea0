/*
 * The loops of lanes.h, compiled once for each instruction set: include it once in a file that has defined
 *   LANES_TABLE, LANES_NAME
 *   LANES_STEP       how many lanes a lanes_vector of states has, a divisor of SAMKV_ENTROPY_LANES; and
 *   static lanes_vector encode_step(lanes_vector, const struct samkv_entropy_code *, const uint16_t *modelled,
 *                                   uint8_t **at)
 *   static lanes_vector decode_step(lanes_vector, const uint32_t *slots, const uint8_t *context, uint16_t *symbols,
 *                                   const uint8_t **at); reads up to 2 * LANES_STEP bytes
 * or LANES_STEP 0 and none of them.
 */
#include <string.h>

#include "daemon/store/lanes.h"

#define INLINE    static inline __attribute__((always_inline))
#define SLOT_MASK ((1u << SAMKV_ENTROPY_BITS) - 1)
#define COUNT_MAX 64 /* tokens that a channel remembers at full weight: 64 * 255 fits the sums' arithmetic */

INLINE uint16_t load16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, 2);
    return v;
}

INLINE void store16(uint8_t *p, uint16_t v)
{
    memcpy(p, &v, 2);
}

/* ------------------------------------------------------------------ bits */

static void split16(const void *src, size_t count, uint16_t *restrict symbols, uint8_t *restrict seven)
{
    const uint8_t *restrict from = src;
    for (size_t i = 0; i < count; i++) {
        uint16_t v = load16(from + 2 * i);
        symbols[i] = (uint16_t)(v >> 7);
        seven[i] = v & 127;
    }
}

static void join16(const uint16_t *restrict symbols, const uint8_t *restrict seven, size_t count, void *dst)
{
    uint8_t *restrict to = dst;
    for (size_t i = 0; i < count; i++)
        store16(to + 2 * i, (uint16_t)(symbols[i] << 7 | seven[i]));
}

static void split32(const void *src, size_t count, uint16_t *restrict symbols, uint8_t *restrict seven,
                    uint8_t *restrict low)
{
    const uint8_t *restrict from = src;
    for (size_t i = 0; i < count; i++) {
        uint32_t v;
        memcpy(&v, from + 4 * i, 4);
        symbols[i] = (uint16_t)(v >> 23);
        seven[i] = v >> 16 & 127;
        store16(low + 2 * i, (uint16_t)v);
    }
}

static void join32(const uint16_t *restrict symbols, const uint8_t *restrict seven, const uint8_t *restrict low,
                   size_t count, void *dst)
{
    uint8_t *restrict to = dst;
    for (size_t i = 0; i < count; i++) {
        uint32_t v = (uint32_t)symbols[i] << 23 | (uint32_t)seven[i] << 16 | load16(low + 2 * i);
        memcpy(to + 4 * i, &v, 4);
    }
}

/* Eight runs of a piece side by side: the last run's bits fill the free ones of the other seven. */
static void pack(const uint8_t *restrict seven, size_t count, uint8_t *restrict packed)
{
    size_t run = count / 8;
    const uint8_t *last = seven + 7 * run;
    for (size_t j = 0; j < 7; j++)
        for (size_t i = 0; i < run; i++)
            packed[j * run + i] = (uint8_t)(seven[j * run + i] | (last[i] >> j & 1) << 7);
    memcpy(packed + 7 * run, seven + 8 * run, count - 8 * run);
}

/* `bit` where the highest bit is set: bytes have no vector shifts, but comparisons. */
INLINE uint8_t top_as(uint8_t v, uint8_t bit)
{
    return (int8_t)v < 0 ? bit : 0;
}

static void unpack(const uint8_t *restrict packed, size_t count, uint8_t *restrict seven)
{
    size_t run = count / 8;
    for (size_t i = 0; i < 7 * run; i++)
        seven[i] = packed[i] & 127;
    uint8_t *restrict last = seven + 7 * run;
    const uint8_t *a = packed, *b = a + run, *c = b + run, *d = c + run, *e = d + run, *f = e + run, *g = f + run;
    for (size_t i = 0; i < run; i++)
        last[i] = (uint8_t)(top_as(a[i], 1) | top_as(b[i], 2) | top_as(c[i], 4) | top_as(d[i], 8) | top_as(e[i], 16) |
                            top_as(f[i], 32) | top_as(g[i], 64));
    for (size_t i = 8 * run; i < count; i++)
        seven[i] = packed[i - run] & 127;
}

/* ------------------------------------------------------------------ contexts */

INLINE void model_start(const struct samkv_lanes_model *m, uint8_t mean, size_t channels)
{
    for (size_t c = 0; c < channels; c++) {
        m->sum[c] = mean;
        m->sign[c] = 0;
    }
}

/* Contexts of the next token, after `count` - 1 of them. */
INLINE void model_contexts(const struct samkv_lanes_model *m, unsigned count, size_t channels)
{
    const uint16_t *restrict sum = m->sum;
    uint8_t *restrict context = m->context;
    uint16_t times = (uint16_t)(32768 / count), base = m->base;
    int shift = m->shift;
    for (size_t c = 0; c < channels; c++) {
        uint16_t half = (uint16_t)((uint32_t)(uint16_t)(sum[c] << 2) * times >> 16);
        half = (uint16_t)(half >> shift);
        half = (uint16_t)(half > base ? half - base : 0);
        context[c] = (uint8_t)(half < SAMKV_ENTROPY_CONTEXTS ? half : SAMKV_ENTROPY_CONTEXTS - 1);
    }
}

/* Turns the signs of one token's symbols; the same turns them back, as long as the levels are not known before. */
INLINE uint16_t turn(uint16_t symbol, int16_t sign)
{
    return (uint16_t)(symbol ^ ((symbol & 255) && sign < 0 ? 256 : 0));
}

/* After each token: one more, or half of what is remembered. */
INLINE void model_age(const struct samkv_lanes_model *m, unsigned *count, size_t channels)
{
    if (++*count < COUNT_MAX)
        return;
    for (size_t c = 0; c < channels; c++) {
        m->sum[c] = (uint16_t)(m->sum[c] >> 1);
        m->sign[c] = (int16_t)(m->sign[c] / 2);
    }
    *count = COUNT_MAX / 2;
}

static uint8_t mean(const uint16_t *symbols, size_t count)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < count;) {
        uint32_t part = 0; /* narrow sums make wider vectors */
        size_t end = count - i < 4096 ? count : i + 4096;
        for (; i < end; i++)
            part += symbols[i] & 255;
        sum += part;
    }
    return (uint8_t)(count ? (sum + count / 2) / count : 0);
}

static void model(const struct samkv_lanes_model *m, uint8_t start, size_t tokens, size_t channels, uint16_t *symbols)
{
    unsigned count = 1;
    model_start(m, start, channels);
    for (size_t t = 0; t < tokens; t++) {
        model_contexts(m, count, channels);
        const uint8_t *restrict context = m->context;
        uint16_t *restrict sum = m->sum, *restrict row = symbols + t * channels;
        int16_t *restrict sign = m->sign;
        for (size_t c = 0; c < channels; c++) {
            uint16_t symbol = row[c];
            row[c] = (uint16_t)(turn(symbol, sign[c]) | context[c] << 9);
            sum[c] = (uint16_t)(sum[c] + (symbol & 255));
            sign[c] = (int16_t)(sign[c] + 1 - (symbol >> 7 & 2));
        }
        model_age(m, &count, channels);
    }
}

/* ------------------------------------------------------------------ the coder */

INLINE uint32_t encode_one(uint32_t x, const struct samkv_entropy_code *code, uint8_t **at)
{
    uint32_t f = code->rest >> 12 & 0xfff;
    if (x >> (31 - SAMKV_ENTROPY_BITS) >= f) {
        store16(*at -= 2, (uint16_t)x);
        x >>= 16;
    }
    uint32_t q = (uint32_t)((uint64_t)x * code->reciprocal >> 32) >> (code->rest >> 24);
    return x + (code->rest & 0xfff) + q * ((1u << SAMKV_ENTROPY_BITS) - f);
}

#if LANES_STEP
#define VECTORS (SAMKV_ENTROPY_LANES / LANES_STEP)

INLINE void load_states(const uint32_t *state, lanes_vector *x)
{
#pragma GCC unroll 8
    for (size_t v = 0; v < VECTORS; v++)
        memcpy(&x[v], state + v * LANES_STEP, sizeof *x);
}

INLINE void store_states(uint32_t *state, const lanes_vector *x)
{
#pragma GCC unroll 8
    for (size_t v = 0; v < VECTORS; v++)
        memcpy(state + v * LANES_STEP, &x[v], sizeof *x);
}

/* The channels from 0 to `count`, a multiple of LANES_STEP, last first. */
INLINE uint8_t *encode_vectors(struct samkv_lanes_writer *w, size_t count, const uint16_t *row, uint8_t *at)
{
    lanes_vector x[VECTORS];
    load_states(w->state, x);
    size_t whole = count - count % SAMKV_ENTROPY_LANES, c = count;
#pragma GCC unroll 8
    for (size_t v = VECTORS; v-- > 0;)
        if (whole + v * LANES_STEP < count)
            x[v] = encode_step(x[v], w->codes, row + (c -= LANES_STEP), &at);
    for (; c > 0; c -= SAMKV_ENTROPY_LANES) {
#pragma GCC unroll 8
        for (size_t v = VECTORS; v-- > 0;)
            x[v] = encode_step(x[v], w->codes, row + c - SAMKV_ENTROPY_LANES + v * LANES_STEP, &at);
    }
    store_states(w->state, x);
    return at;
}
#endif

static void encode(struct samkv_lanes_writer *w, size_t tokens, size_t channels, const uint16_t *modelled)
{
    uint8_t *at = w->at;
    size_t vectors = 0;
#if LANES_STEP
    vectors = channels - channels % LANES_STEP;
#endif
    for (size_t t = tokens; t-- > 0;) {
        const uint16_t *row = modelled + t * channels;
        for (size_t c = channels; c-- > vectors;)
            w->state[c % SAMKV_ENTROPY_LANES] = encode_one(w->state[c % SAMKV_ENTROPY_LANES], &w->codes[row[c]], &at);
#if LANES_STEP
        at = encode_vectors(w, vectors, row, at);
#endif
    }
    w->at = at;
}

INLINE void decode_one(struct samkv_lanes_reader *r, size_t lane, uint8_t context, uint16_t *symbol)
{
    uint32_t x = r->state[lane], entry = r->slots[(uint32_t)context << SAMKV_ENTROPY_BITS | (x & SLOT_MASK)];
    *symbol = (uint16_t)(entry >> 23);
    x = (entry & 0xfff) * (x >> SAMKV_ENTROPY_BITS) + (entry >> 12 & SLOT_MASK);
    if (x < SAMKV_ENTROPY_FLOOR) {
        if (r->end - r->at < 2) {
            r->bad = true;
            return;
        }
        x = x << 16 | load16(r->at);
        r->at += 2;
    }
    r->state[lane] = x;
}

#if LANES_STEP
/* As many channels as vectors take; stops early where the stream's last bytes want to be looked at one by one. */
INLINE size_t decode_vectors(struct samkv_lanes_reader *r, const uint8_t *context, size_t channels, uint16_t *symbols)
{
    lanes_vector x[VECTORS];
    load_states(r->state, x);
    const uint8_t *at = r->at;
    const uint32_t *slots = r->slots;
    size_t c = 0;
    for (; c + SAMKV_ENTROPY_LANES <= channels && r->end - at >= 2 * SAMKV_ENTROPY_LANES; c += SAMKV_ENTROPY_LANES) {
#pragma GCC unroll 8
        for (size_t v = 0; v < VECTORS; v++)
            x[v] = decode_step(x[v], slots, context + c + v * LANES_STEP, symbols + c + v * LANES_STEP, &at);
    }
    if (r->end - at >= 2 * SAMKV_ENTROPY_LANES) {
#pragma GCC unroll 8
        for (size_t v = 0; v < VECTORS; v++)
            if (c % SAMKV_ENTROPY_LANES == v * LANES_STEP && c + LANES_STEP <= channels) {
                x[v] = decode_step(x[v], slots, context + c, symbols + c, &at);
                c += LANES_STEP;
            }
    }
    store_states(r->state, x);
    r->at = at;
    return c;
}
#endif

INLINE void decode_row(struct samkv_lanes_reader *r, const uint8_t *context, size_t channels, uint16_t *symbols)
{
    size_t c = 0;
#if LANES_STEP
    c = decode_vectors(r, context, channels, symbols);
#endif
    for (; c < channels; c++)
        decode_one(r, c % SAMKV_ENTROPY_LANES, context[c], symbols + c);
}

static void decode(struct samkv_lanes_reader *r, const struct samkv_lanes_model *m, uint8_t start, size_t tokens,
                   size_t channels, uint16_t *symbols)
{
    unsigned count = 1;
    model_start(m, start, channels);
    for (size_t t = 0; t < tokens; t++) {
        uint16_t *restrict row = symbols + t * channels;
        model_contexts(m, count, channels);
        decode_row(r, m->context, channels, row);
        uint16_t *restrict sum = m->sum;
        int16_t *restrict sign = m->sign;
        for (size_t c = 0; c < channels; c++) {
            uint16_t symbol = turn(row[c], sign[c]);
            row[c] = symbol;
            sum[c] = (uint16_t)(sum[c] + (symbol & 255));
            sign[c] = (int16_t)(sign[c] + 1 - (symbol >> 7 & 2));
        }
        model_age(m, &count, channels);
    }
}

#include "daemon/store/lanes_steps.h"

const struct samkv_lanes LANES_TABLE = {
    .name = LANES_NAME,
    .split16 = split16,
    .join16 = join16,
    .split32 = split32,
    .join32 = join32,
    .pack = pack,
    .unpack = unpack,
    .mean = mean,
    .model = model,
    .encode = encode,
    .decode = decode,
    .widen = widen,
    .narrow = narrow,
    .quantise_each = quantise_each,
    .quantise_all = quantise_all,
    .dequantise = dequantise,
};
