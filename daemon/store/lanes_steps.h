/* The second half of lanes_rows.h: numbers, steps and levels. Sums are written so that every instruction set adds in
 * the same order; the room is compiled without contraction. */

#define SMALLEST 0x1p-60f /* below, and above the caller's `largest`, groups stay exact */
#define CHUNK    64       /* channels whose sums fit on the stack */

INLINE float as_float(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

INLINE uint32_t as_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static void widen(enum samkv_dtype dtype, const void *src, size_t count, float *restrict out)
{
    const uint8_t *restrict from = src;
    if (dtype == SAMKV_F32) {
        memcpy(out, src, count * sizeof *out);
    } else if (dtype == SAMKV_F16) {
        for (size_t i = 0; i < count; i++) {
            uint32_t v = load16(from + 2 * i);
            out[i] = as_float(as_bits(as_float((v & 0x7fff) << 13) * 0x1p112f) | (v & 0x8000) << 16);
        }
    } else {
        for (size_t i = 0; i < count; i++)
            out[i] = as_float((uint32_t)load16(from + 2 * i) << 16);
    }
}

static void narrow(enum samkv_dtype dtype, const float *restrict src, size_t count, void *out)
{
    uint8_t *restrict to = out;
    if (dtype == SAMKV_F32) {
        memcpy(out, src, count * sizeof *src);
    } else if (dtype == SAMKV_F16) {
        for (size_t i = 0; i < count; i++) {
            uint32_t bits = as_bits(src[i]), v = as_bits(as_float(bits & 0x7fffffff) * 0x1p-112f);
            store16(to + 2 * i, (uint16_t)((v + 0xfff + (v >> 13 & 1)) >> 13 | (bits >> 16 & 0x8000)));
        }
    } else {
        for (size_t i = 0; i < count; i++) {
            uint32_t v = as_bits(src[i]);
            store16(to + 2 * i, (uint16_t)((v + 0x7fff + (v >> 16 & 1)) >> 16));
        }
    }
}

/* The half octave nearest to spread * fineness, at least that at which `top` is level 255. */
INLINE uint16_t scale_of(float spread, float top, float fineness, float largest)
{
    if (top == 0)
        return SAMKV_SCALE_ZERO;
    if (!(top >= SMALLEST && top <= largest))
        return SAMKV_SCALE_EXACT;
    float wanted = spread * fineness, least = top * (1.0f / 255);
    uint32_t scale = (as_bits(wanted > least ? wanted : least) + (1u << 21)) >> 22;
    while (samkv_scale_step((uint16_t)scale) * 255.0f < top)
        scale++;
    return (uint16_t)scale;
}

INLINE float inverse_of(uint16_t scale)
{
    float step = samkv_scale_step(scale);
    return step > 0 ? 1 / step : 0;
}

/* Adding this leaves the nearest integer, ties to even, in the lowest bits. */
#define ROUNDER 0x1.8p23f

INLINE uint16_t symbol_of(float x, float inverse)
{
    float level = x * inverse; /* no NaN gets here: its group's inverse is 0, and then so is the symbol */
    uint32_t bits = as_bits(level), sign = bits >> 23 & 256;
    uint32_t size = as_bits(as_float(bits & 0x7fffffff) + ROUNDER) & 0x3fffff;
    size = size > 255 ? 255 : size;
    size = inverse > 0 ? size : 0;
    return (uint16_t)(size ? size | sign : 0);
}

INLINE float larger(float a, float b)
{
    return a >= b ? a : b;
}

/* |x|, with NaN as infinity so that it is seen to be too large. */
INLINE float size_of(float x)
{
    uint32_t bits = as_bits(x) & 0x7fffffff;
    return as_float(bits > 0x7f800000 ? 0x7f800000 : bits);
}

INLINE void quantise_chunk(const float *x, size_t tokens, size_t channels, size_t stride, float fineness, float largest,
                           uint16_t *scales, uint16_t *symbols)
{
    float sum[CHUNK] = {0}, square[CHUNK] = {0}, top[CHUNK] = {0}, inverse[CHUNK], count = (float)tokens;
    for (size_t t = 0; t < tokens; t++)
        for (size_t c = 0; c < channels; c++) {
            float v = x[t * stride + c];
            sum[c] += v;
            square[c] += v * v;
            top[c] = larger(top[c], size_of(v));
        }
    for (size_t c = 0; c < channels; c++) {
        float mean = sum[c] / count, variance = square[c] / count - mean * mean;
        /* A few tokens do not tell a mean from a spread. */
        variance = (variance > 0 ? variance : 0) + mean * mean / (count * count);
        scales[c] = scale_of(__builtin_sqrtf(variance), top[c], fineness, largest);
        inverse[c] = inverse_of(scales[c]);
    }
    for (size_t t = 0; t < tokens; t++)
        for (size_t c = 0; c < channels; c++)
            symbols[t * stride + c] = symbol_of(x[t * stride + c], inverse[c]);
}

static void quantise_each(const float *x, size_t tokens, size_t channels, size_t stride, float fineness, float largest,
                          uint16_t *scales, uint16_t *symbols)
{
    for (size_t c = 0; c < channels; c += CHUNK)
        quantise_chunk(x + c, tokens, channels - c < CHUNK ? channels - c : CHUNK, stride, fineness, largest,
                       scales + c, symbols + c);
}

static void quantise_all(const float *x, size_t channels, float fineness, float largest, uint16_t *scale,
                         uint16_t *symbols)
{
    float square[16] = {0}, top[16] = {0}, sum = 0, most = 0;
    size_t whole = channels - channels % 16;
    for (size_t c = 0; c < whole; c += 16)
        for (size_t i = 0; i < 16; i++) {
            square[i] += x[c + i] * x[c + i];
            top[i] = larger(top[i], size_of(x[c + i]));
        }
    for (size_t i = 0; i < 16; i++) {
        if (whole + i < channels) {
            square[i] += x[whole + i] * x[whole + i];
            top[i] = larger(top[i], size_of(x[whole + i]));
        }
        sum += square[i];
        most = larger(most, top[i]);
    }
    *scale = scale_of(__builtin_sqrtf(sum / (float)channels), most, fineness, largest);
    float inverse = inverse_of(*scale);
    for (size_t c = 0; c < channels; c++)
        symbols[c] = symbol_of(x[c], inverse);
}

static void dequantise(const uint16_t *restrict symbols, const float *restrict steps, size_t count, float *restrict out)
{
    for (size_t i = 0; i < count; i++) {
        int32_t symbol = symbols[i];
        out[i] = as_float(as_bits((float)(symbol & 255) * steps[i]) | (uint32_t)(symbol & 256) << 23);
    }
}
