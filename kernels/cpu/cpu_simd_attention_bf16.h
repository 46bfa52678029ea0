/*
 * Attention of one query tile as in cpu_simd_attention.h, with products of bf16 pairs: queries, keys, weights of the
 * softmax and values are rounded to bf16, sums and the softmax are f32. Included behind it by sets that multiply bf16.
 *
 * A *pair* is two bf16 in 32 bits, neighbours along what a product sums over: elements of a head for scores, keys for
 * the sum of values. With pairs in the place of floats everything lies as it does there:
 *   queries Q [head_dim / 2][row], keys K [key][head_dim / 2], scores S [key][row] in f32,
 *   weights P [key / 2][row], where the scores were, values V [key / 2][head_dim]
 */

/* Where the pairs lie in a tile's work space. */
struct pairs {
    uint32_t *queries, *keys, *values;
};

static struct pairs pairs_of(const struct work *w)
{
    uint32_t *values = (uint32_t *)(void *)w->values;
    return (struct pairs){(uint32_t *)(void *)w->queries, values + TILE_KEYS / 2 * w->out_ld, values};
}

/* 16 pairs (low[i], high[i]). */
INLINE __m512i pair_up(__m512 low, __m512 high)
{
    static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_loadu_si512(order), (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

INLINE __m512 dot_pairs(__m512 sum, uint32_t pair, __m512i pairs)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32((int)pair), (__m512bh)pairs);
}

/* 2^x for x <= 1 with a relative error of 1e-4, which bf16 does not see; below 2^-125, 0. */
INLINE vf vexp2_rough(vf x)
{
    vf n = vround(x), r = x - n;
    vf p = r * 5.5828318e-2f + 2.4015361e-1f;
    p = p * r + 6.9313675e-1f;
    p = p * r + 9.9999464e-1f;
    return vscale_above(x, -125.0f, p, n);
}

/* What load_queries left, as pairs in the same place: row t / 2 is written when rows t and t + 1 have been read. */
static void pair_queries(const struct work *w)
{
    uint32_t *to = pairs_of(w).queries;
    for (int t = 0; t < w->dim; t += 2)
        for (int row = 0; row < TILE_ROWS; row += LANES) {
            const float *from = w->queries + (size_t)t * TILE_ROWS + row;
            __m512i pair = pair_up(vload(from), vload(from + TILE_ROWS));
            _mm512_storeu_si512(to + (size_t)(t / 2) * TILE_ROWS + row, pair);
        }
}

/* Keys [key, key + count), zeros behind them up to a whole step of SCORE_KEYS. */
static void pair_keys(const struct work *w, int key, int count)
{
    uint32_t *to = pairs_of(w).keys;
    size_t half = (size_t)w->dim / 2;
    int whole = (count + SCORE_KEYS - 1) / SCORE_KEYS * SCORE_KEYS;
    for (int i = 0; i < count; i++)
        row_to_bf16(w->k + (size_t)(key + i) * w->kv_ld, (size_t)w->dim, (uint16_t *)(void *)(to + (size_t)i * half));
    memset(to + (size_t)count * half, 0, (size_t)(whole - count) * half * sizeof *to);
}

INLINE vf load_values(const float *v, int count)
{
    return count >= LANES ? vload(v) : vload_part(v, count);
}

/* Two keys a row; a last single one with zeros, and zeros behind the head. */
static void pair_values(const struct work *w, int key, int count)
{
    uint32_t *to = pairs_of(w).values;
    for (int i = 0; i < count; i += 2, to += w->out_ld) {
        const float *low = w->v + (size_t)(key + i) * w->kv_ld, *high = low + w->kv_ld;
        for (int t = 0; t < w->dim; t += LANES) {
            vf a = load_values(low + t, w->dim - t), b = {0};
            if (i + 1 < count)
                b = load_values(high + t, w->dim - t);
            _mm512_storeu_si512(to + t, pair_up(a, b));
        }
    }
}

INLINE void score_pairs_step(const struct work *w, const uint32_t *k, int row, int vectors, float *out)
{
    __m512 sums[SCORE_KEYS][SCORE_VECTORS];
    size_t half = (size_t)w->dim / 2;
    const uint32_t *q = pairs_of(w).queries + row;
#pragma GCC unroll 8
    for (int i = 0; i < SCORE_KEYS; i++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++)
            sums[i][j] = _mm512_setzero_ps();
    for (size_t t = 0; t < half; t++, q += TILE_ROWS)
#pragma GCC unroll 8
        for (int i = 0; i < SCORE_KEYS; i++)
#pragma GCC unroll 8
            for (int j = 0; j < vectors; j++)
                sums[i][j] = dot_pairs(sums[i][j], k[(size_t)i * half + t], _mm512_loadu_si512(q + j * LANES));
#pragma GCC unroll 8
    for (int i = 0; i < SCORE_KEYS; i++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++)
            _mm512_storeu_ps(out + i * SCORES_LD + row + j * LANES, sums[i][j]);
}

static void score_pairs(const struct work *w, int count)
{
    const uint32_t *k = pairs_of(w).keys;
    size_t half = (size_t)w->dim / 2;
    for (int row = 0; row < w->padded; row += SCORE_VECTORS * LANES)
        for (int i = 0; i < count; i += SCORE_KEYS) {
            int vectors = (w->padded - row) / LANES;
            float *out = w->scores + i * SCORES_LD;
            if (vectors >= SCORE_VECTORS)
                score_pairs_step(w, k + (size_t)i * half, row, SCORE_VECTORS, out);
            else if (vectors == 2)
                score_pairs_step(w, k + (size_t)i * half, row, 2, out);
            else
                score_pairs_step(w, k + (size_t)i * half, row, 1, out);
        }
}

/* Scores to pairs of weights; row i / 2 of the scores has been read when it is written. */
static void weigh_pairs(const struct work *w, int row, int count)
{
    float *scores = w->scores + row;
    vf old = vload(w->max + row), max0 = old, max1 = old;
    int i = 0;
    for (; i + 2 <= count; i += 2) {
        max0 = vmax(vload(scores + i * SCORES_LD), max0);
        max1 = vmax(vload(scores + (i + 1) * SCORES_LD), max1);
    }
    if (i < count)
        max0 = vmax(vload(scores + i * SCORES_LD), max0);
    vf max = vmax(max0, max1), sum0 = {0}, sum1 = {0};
    for (i = 0; i < count; i += 2) {
        vf a = vexp2_rough(vload(scores + i * SCORES_LD) - max), b = {0};
        if (i + 1 < count)
            b = vexp2_rough(vload(scores + (i + 1) * SCORES_LD) - max);
        sum0 += a;
        sum1 += b;
        _mm512_storeu_si512(scores + i / 2 * SCORES_LD, pair_up(a, b));
    }
    vf alpha = vexp2_softmax(old - max);
    vstore(w->max + row, max);
    vstore(w->alpha + row, alpha);
    vstore(w->weight + row, vload(w->weight + row) * alpha + (sum0 + sum1));
}

INLINE void sum_pairs_step(const struct work *w, const uint32_t *v, int count, int row, int vectors, float *out)
{
    __m512 sums[SUM_ROWS][SUM_VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < SUM_ROWS; i++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++)
            sums[i][j] = vload(out + i * w->out_ld + j * LANES) * w->alpha[row + i];
    const uint32_t *p = (const uint32_t *)(const void *)w->scores + row;
    for (int key = 0; key < count; key += 2, p += SCORES_LD, v += w->out_ld)
#pragma GCC unroll 8
        for (int i = 0; i < SUM_ROWS; i++)
#pragma GCC unroll 8
            for (int j = 0; j < vectors; j++)
                sums[i][j] = dot_pairs(sums[i][j], p[i], _mm512_loadu_si512(v + j * LANES));
#pragma GCC unroll 8
    for (int i = 0; i < SUM_ROWS; i++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++)
            _mm512_storeu_ps(out + i * w->out_ld + j * LANES, sums[i][j]);
}

static void sum_pairs(const struct work *w, int count)
{
    const uint32_t *v = pairs_of(w).values;
    for (int row = 0; row < w->padded; row += SUM_ROWS) {
        float *out = w->sums + (size_t)row * (size_t)w->out_ld;
        int t = 0;
        for (; t + SUM_VECTORS * LANES <= w->out_ld; t += SUM_VECTORS * LANES)
            sum_pairs_step(w, v + t, count, row, SUM_VECTORS, out + t);
        for (; t < w->out_ld; t += LANES)
            sum_pairs_step(w, v + t, count, row, 1, out + t);
    }
}

static void attend_pairs(struct work *w, int rows, int from, int to)
{
    for (int key = from; key < to;) {
        int end = (key / TILE_KEYS + 1) * TILE_KEYS;
        int count = (end < to ? end : to) - key;
        bool masked = !all_seen(w, rows, key, key + count);
        pair_keys(w, key, count);
        pair_values(w, key, count);
        score_pairs(w, count);
        for (int row = 0; row < w->padded; row += LANES) {
            if (masked)
                mask_lanes(w, row, key, count);
            weigh_pairs(w, row, count);
        }
        sum_pairs(w, count);
        key += count;
    }
}

static void attention_tile_bf16(const struct samkv_cpu_tile *tile)
{
    struct work work;
    work_init(&work, tile);
    load_queries(&work, tile);
    pair_queries(&work);
    attend_visible(&work, tile, attend_pairs);
    store_rows(&work, tile);
}
