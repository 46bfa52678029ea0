/* Row kernels of struct samkv_cpu_simd, except attention. Included by cpu_simd_<set>.c behind cpu_simd_vector.h. */

static float row_dot(const float *a, const float *b, int count)
{
    vf s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    int i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES) {
        s0 += vload(a + i) * vload(b + i);
        s1 += vload(a + i + LANES) * vload(b + i + LANES);
        s2 += vload(a + i + 2 * LANES) * vload(b + i + 2 * LANES);
        s3 += vload(a + i + 3 * LANES) * vload(b + i + 3 * LANES);
    }
    for (; i + LANES <= count; i += LANES)
        s0 += vload(a + i) * vload(b + i);
    if (i < count)
        s1 += vload_part(a + i, count - i) * vload_part(b + i, count - i);
    return vsum((s0 + s1) + (s2 + s3));
}

static void row_rmsnorm(const float *x, const float *gain, float eps, int width, float *out)
{
    float rms = 1.0f / sqrtf(row_dot(x, x, width) / (float)width + eps);
    int i = 0;
    for (; i + LANES <= width; i += LANES)
        vstore(out + i, vload(x + i) * rms * vload(gain + i));
    for (; i < width; i++)
        out[i] = x[i] * rms * gain[i];
}

static void row_rope(const float *src, const float *table, int half, float *dst)
{
    const float *cosines = table, *sines = table + half;
    int i = 0;
    for (; i + LANES <= half; i += LANES) {
        vf low = vload(src + i), high = vload(src + half + i), c = vload(cosines + i), s = vload(sines + i);
        vstore(dst + i, low * c - high * s);
        vstore(dst + half + i, high * c + low * s);
    }
    for (; i < half; i++) {
        float low = src[i], high = src[half + i];
        dst[i] = low * cosines[i] - high * sines[i];
        dst[half + i] = high * cosines[i] + low * sines[i];
    }
}

static void row_swiglu(const float *gate, const float *up, int count, float *out)
{
    int i = 0;
    for (; i + LANES <= count; i += LANES) {
        vf g = vload(gate + i);
        vstore(out + i, g / (vexp(-g) + 1.0f) * vload(up + i));
    }
    if (i < count) {
        vf g = vload_part(gate + i, count - i);
        vstore_part(out + i, g / (vexp(-g) + 1.0f) * vload_part(up + i, count - i), count - i);
    }
}

static void row_add(const float *x, size_t count, float *inout)
{
    size_t i = 0;
    for (; i + LANES <= count; i += LANES)
        vstore(inout + i, vload(inout + i) + vload(x + i));
    for (; i < count; i++)
        inout[i] += x[i];
}

static void row_mix(const float *src, float theta, int count, float *dst)
{
    int i = 0;
    float keep = 1.0f - theta;
    for (; i + LANES <= count; i += LANES)
        vstore(dst + i, vload(dst + i) * keep + vload(src + i) * theta);
    for (; i < count; i++)
        dst[i] = dst[i] * keep + src[i] * theta;
}

/* Weights as floats. bf16 is a constant where these are inlined. */
INLINE vf load_weights(const char *w, bool bf16)
{
    return bf16 ? vload_bf16((const uint16_t *)(const void *)w) : vload((const float *)(const void *)w);
}

INLINE vf load_last_weights(const char *w, bool bf16, int count)
{
    uint16_t last[LANES] = {0};
    if (!bf16)
        return vload_part((const float *)(const void *)w, count);
    memcpy(last, w, (size_t)count * sizeof *last);
    return vload_bf16(last);
}

/*
 * A block of `outs` outputs for `rows` rows: dot products side by side, so that each load serves several of them and
 * enough sums are under way to hide the latency of an addition. Both counts are constants where this is inlined.
 */
INLINE void dot_block(const struct samkv_matmul *m, bool bf16, int row, int rows, int o, int outs)
{
    size_t in = (size_t)m->in, element = bf16 ? sizeof(uint16_t) : sizeof(float);
    const float *x = (const float *)m->x + (size_t)row * m->ldx;
    const char *w = (const char *)m->w + (size_t)o * in * element;
    vf sums[DOT_ROWS][DOT_OUTS];
    int j = 0;
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int b = 0; b < outs; b++)
            sums[i][b] = (vf){0};
    for (; j + LANES <= m->in; j += LANES)
#pragma GCC unroll 8
        for (int b = 0; b < outs; b++) {
            /* The next block's row at the same place: the processor foresees one stream, not four. */
            __builtin_prefetch(w + ((size_t)(b + outs) * in + (size_t)j) * element);
            vf wide = load_weights(w + ((size_t)b * in + (size_t)j) * element, bf16);
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++)
                sums[i][b] += wide * vload(x + (size_t)i * m->ldx + j);
        }
    if (j < m->in)
#pragma GCC unroll 8
        for (int b = 0; b < outs; b++) {
            vf wide = load_last_weights(w + ((size_t)b * in + (size_t)j) * element, bf16, m->in - j);
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++)
                sums[i][b] += wide * vload_part(x + (size_t)i * m->ldx + j, m->in - j);
        }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        float *y = (float *)m->y + (size_t)(row + i) * m->ldy + o;
#pragma GCC unroll 8
        for (int b = 0; b < outs; b++) {
            float sum = vsum(sums[i][b]) + (m->bias ? ((const float *)m->bias)[o + b] : 0.0f);
            y[b] = m->accumulate ? y[b] + sum : sum;
        }
    }
}

/* All rows against `outs` outputs, whose weights stay in the nearest cache meanwhile. */
INLINE void dot_rows(const struct samkv_matmul *m, bool bf16, int o, int outs)
{
    int i = 0;
    for (; i + DOT_ROWS <= m->n; i += DOT_ROWS)
        dot_block(m, bf16, i, DOT_ROWS, o, outs);
    for (; i + 2 <= m->n; i += 2)
        dot_block(m, bf16, i, 2, o, outs);
    if (i < m->n)
        dot_block(m, bf16, i, 1, o, outs);
}

INLINE void dot_range(const struct samkv_matmul *m, bool bf16, int from, int to)
{
    int o = from;
    for (; o + DOT_OUTS <= to; o += DOT_OUTS)
        dot_rows(m, bf16, o, DOT_OUTS);
    for (; o < to; o++)
        dot_rows(m, bf16, o, 1);
}

static void matmul_rows(const struct samkv_matmul *m, int from, int to)
{
    dot_range(m, false, from, to);
}

#ifdef SIMD_BF16
static void matmul_rows_bf16(const struct samkv_matmul *m, int from, int to)
{
    dot_range(m, true, from, to);
}
#endif

static void row_from_bf16(const uint16_t *src, size_t count, float *dst)
{
    for (size_t i = 0; i < count; i++)
        dst[i] = samkv_bf16_to_f32(src[i]);
}

/* samkv_f32_to_bf16 without its branch, which the compiler does not vectorise. */
static void row_to_bf16(const float *src, size_t count, uint16_t *dst)
{
    const uint32_t *bits = (const uint32_t *)(const void *)src;
    for (size_t i = 0; i < count; i++) {
        uint32_t u;
        memcpy(&u, bits + i, sizeof u);
        uint32_t nan = u >> 16 | 0x40, number = (u + 0x7fff + (u >> 16 & 1)) >> 16;
        dst[i] = (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? nan : number);
    }
}

static void row_from_f16(const uint16_t *src, size_t count, float *dst)
{
    size_t i = 0;
#ifdef HALF_LANES
    for (; i + HALF_LANES <= count; i += HALF_LANES)
        half_load(src + i, dst + i);
#endif
    for (; i < count; i++)
        dst[i] = samkv_f16_to_f32(src[i]);
}

static void row_to_f16(const float *src, size_t count, uint16_t *dst)
{
    size_t i = 0;
#ifdef HALF_LANES
    for (; i + HALF_LANES <= count; i += HALF_LANES)
        half_store(src + i, dst + i);
#endif
    for (; i < count; i++)
        dst[i] = samkv_f32_to_f16(src[i]);
}
