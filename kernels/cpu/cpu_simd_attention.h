/*
 * Attention of one query tile against one KV head, in one pass over the keys with a running maximum (flash
 * attention, Dao et al. 2022). Included by cpu_simd_<set>.c behind cpu_simd_vector.h.
 *
 * Rows of the tile lie in vector lanes. The queries are turned once, and then nothing else must be:
 *   scores S [key][row] = Σ_t K[key][t] · Q[t][row]     keys broadcast from where they lie
 *   softmax over keys, lane by lane, without any horizontal step
 *   sums   O [row][t]   = α[row] · O[row][t] + Σ_key P[key][row] · V[key][t]
 */
#define TILE_ROWS SAMKV_CPU_ATTENTION_ROWS
#define TILE_KEYS SAMKV_CPU_ATTENTION_KEYS
#define SCORES_LD (TILE_ROWS + 16) /* reading the last rows in steps of SUM_ROWS may go beyond */
#define LOWEST    (-3.402823466e+38f)
#define ROUND(n)  (((n) + LANES - 1) / LANES * LANES)

_Static_assert(TILE_ROWS % (SCORE_VECTORS * LANES) == 0, "whole panels");
_Static_assert(TILE_KEYS % SCORE_KEYS == 0, "whole steps of keys");
_Static_assert(TILE_ROWS % SUM_ROWS == 0, "whole steps of rows");

/* What one tile carries from key tile to key tile. Arrays of rows are padded to whole vectors with rows that see
 * nothing. */
struct work {
    const struct samkv_attention *a;
    size_t kv_ld;        /* between rows of K and V */
    const float *k, *v;  /* this KV head's first row */
    int padded;          /* rows in whole vectors */
    int dim, out_ld;     /* head size, and rounded up */
    float *queries;      /* [dim][TILE_ROWS], scaled */
    float *scores;       /* [TILE_KEYS][SCORES_LD] */
    float *sums;         /* [TILE_ROWS][out_ld] */
    float *values;       /* [TILE_KEYS][out_ld], for heads that are not whole vectors */
    float *tail;         /* [SCORE_KEYS][dim]: the last keys, zeros behind them */
    float *max, *weight; /* [SCORES_LD] running maximum, and sum of weights */
    float *alpha;        /* [SCORES_LD] what the old sums are multiplied with */
    int32_t *first, *limit;
};

static size_t attention_scratch(int head_dim)
{
    size_t dim = (size_t)head_dim, out_ld = (dim + 15) / 16 * 16;
    size_t floats = TILE_ROWS * dim + TILE_KEYS * SCORES_LD + TILE_ROWS * out_ld + TILE_KEYS * out_ld +
                    SCORE_KEYS * dim + 5 * SCORES_LD;
    return (floats * sizeof(float) + 15 * 64) / 64 * 64;
}

static float *carve(float **from, size_t floats)
{
    float *piece = *from;
    *from += (floats + 15) / 16 * 16;
    return piece;
}

static void work_init(struct work *w, const struct samkv_cpu_tile *tile)
{
    const struct samkv_attention *a = tile->args;
    float *free_space = tile->scratch;
    *w = (struct work){.a = a, .kv_ld = (size_t)a->kv_heads * (size_t)a->head_dim, .dim = a->head_dim};
    w->k = (const float *)a->k + (size_t)tile->kv_head * (size_t)a->head_dim;
    w->v = (const float *)a->v + (size_t)tile->kv_head * (size_t)a->head_dim;
    w->padded = ROUND(tile->rows);
    w->out_ld = ROUND(a->head_dim);
    w->queries = carve(&free_space, (size_t)w->dim * TILE_ROWS);
    w->scores = carve(&free_space, (size_t)TILE_KEYS * SCORES_LD);
    w->sums = carve(&free_space, (size_t)TILE_ROWS * (size_t)w->out_ld);
    w->values = carve(&free_space, (size_t)TILE_KEYS * (size_t)w->out_ld);
    w->tail = carve(&free_space, (size_t)SCORE_KEYS * (size_t)w->dim);
    w->max = carve(&free_space, SCORES_LD);
    w->weight = carve(&free_space, SCORES_LD);
    w->alpha = carve(&free_space, SCORES_LD);
    w->first = (int32_t *)carve(&free_space, SCORES_LD);
    w->limit = (int32_t *)carve(&free_space, SCORES_LD);
    memset(w->sums, 0, (size_t)TILE_ROWS * (size_t)w->out_ld * sizeof(float));
    memset(w->scores, 0, (size_t)TILE_KEYS * SCORES_LD * sizeof(float));
    for (int r = 0; r < SCORES_LD; r++) {
        w->max[r] = LOWEST;
        w->weight[r] = w->alpha[r] = 0.0f;
        w->first[r] = w->limit[r] = 0;
    }
}

/* Turns the queries, scaled so that softmax is over powers of two, and notes what each row sees. */
static void load_queries(struct work *w, const struct samkv_cpu_tile *tile)
{
    const struct samkv_attention *a = w->a;
    int group = a->heads / a->kv_heads;
    float scale = a->scale * 1.44269504088896341f;
    for (int r = 0; r < w->padded; r++) {
        if (r >= tile->rows) {
            for (int t = 0; t < w->dim; t++)
                w->queries[(size_t)t * TILE_ROWS + (size_t)r] = 0.0f;
            continue;
        }
        int i = (tile->row0 + r) / group, head = tile->kv_head * group + (tile->row0 + r) % group;
        const float *q = (const float *)a->q + (size_t)i * a->ldq + (size_t)head * (size_t)a->head_dim;
        for (int t = 0; t < w->dim; t++)
            w->queries[(size_t)t * TILE_ROWS + (size_t)r] = q[t] * scale;
        w->first[r] = a->first ? a->first[i] : a->prefix;
        w->limit[r] = a->limit[i];
    }
}

/*
 * S for SCORE_KEYS keys and `vectors` vectors of rows (a constant where this is inlined). Loops over the sums
 * are unrolled: rolled, they would keep the sums in memory instead of in registers.
 */
INLINE void score_step(const struct work *w, const float *k, size_t ld, int row, int vectors, float *out)
{
    vf sums[SCORE_KEYS][SCORE_VECTORS];
    const float *q = w->queries + row;
#pragma GCC unroll 8
    for (int i = 0; i < SCORE_KEYS; i++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++)
            sums[i][j] = (vf){0};
    for (int t = 0; t < w->dim; t++, q += TILE_ROWS)
#pragma GCC unroll 8
        for (int i = 0; i < SCORE_KEYS; i++)
#pragma GCC unroll 8
            for (int j = 0; j < vectors; j++)
                sums[i][j] += k[(size_t)i * ld + (size_t)t] * vload(q + j * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < SCORE_KEYS; i++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++)
            vstore(out + i * SCORES_LD + row + j * LANES, sums[i][j]);
}

static void score_panel(const struct work *w, const float *k, size_t ld, int row, float *out)
{
    int vectors = (w->padded - row) / LANES;
    if (vectors >= SCORE_VECTORS)
        score_step(w, k, ld, row, SCORE_VECTORS, out);
    else if (vectors == 2)
        score_step(w, k, ld, row, 2, out);
    else
        score_step(w, k, ld, row, 1, out);
}

/* S for keys [key, key + count). Rows of K behind the last one may not exist: those steps read a padded copy. */
static void score_keys(const struct work *w, int key, int count)
{
    const float *k = w->k + (size_t)key * w->kv_ld;
    int whole = count / SCORE_KEYS * SCORE_KEYS;
    for (int row = 0; row < w->padded; row += SCORE_VECTORS * LANES)
        for (int i = 0; i < whole; i += SCORE_KEYS)
            score_panel(w, k + (size_t)i * w->kv_ld, w->kv_ld, row, w->scores + i * SCORES_LD);
    if (whole == count)
        return;
    memset(w->tail, 0, (size_t)SCORE_KEYS * (size_t)w->dim * sizeof(float));
    for (int i = whole; i < count; i++)
        memcpy(w->tail + (size_t)(i - whole) * (size_t)w->dim, k + (size_t)i * w->kv_ld,
               (size_t)w->dim * sizeof(float));
    for (int row = 0; row < w->padded; row += SCORE_VECTORS * LANES)
        score_panel(w, w->tail, (size_t)w->dim, row, w->scores + whole * SCORES_LD);
}

/* Rows [row, row + LANES) of the tile: what they may not see becomes LOWEST. */
static void mask_lanes(const struct work *w, int row, int key, int count)
{
    vi first = *(const vi_unaligned *)(w->first + row), limit = *(const vi_unaligned *)(w->limit + row);
    for (int i = 0; i < count; i++) {
        vi k = key + i - (vi){0};
        vi seen = ((k >= first) & (k < limit)) | (k < w->a->prefix - (vi){0});
        float *s = w->scores + i * SCORES_LD + row;
        vstore(s, vselect(seen, vload(s), vall(LOWEST)));
    }
}

/* Scores to weights 2^(s - max), with the running maximum and sum brought up to date. */
static void weigh_lanes(const struct work *w, int row, int count)
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
    vf max = vmax(max0, max1), sum = {0};
    /* Until a row sees a key, masked ones weigh 1; alpha is 0 at its first key, which undoes that. */
    for (i = 0; i < count; i++) {
        vf p = vexp2_softmax(vload(scores + i * SCORES_LD) - max);
        vstore(scores + i * SCORES_LD, p);
        sum += p;
    }
    vf alpha = vexp2_softmax(old - max);
    vstore(w->max + row, max);
    vstore(w->alpha + row, alpha);
    vstore(w->weight + row, vload(w->weight + row) * alpha + sum);
}

/* O for SUM_ROWS rows and `vectors` vectors of the head (a constant where this is inlined). */
INLINE void sum_step(const struct work *w, const float *v, size_t ld, int count, int row, int vectors, float *out)
{
    vf sums[SUM_ROWS][SUM_VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < SUM_ROWS; i++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++)
            sums[i][j] = vload(out + i * w->out_ld + j * LANES) * w->alpha[row + i];
    const float *p = w->scores + row;
    for (int key = 0; key < count; key++, p += SCORES_LD, v += ld)
#pragma GCC unroll 8
        for (int i = 0; i < SUM_ROWS; i++)
#pragma GCC unroll 8
            for (int j = 0; j < vectors; j++)
                sums[i][j] += p[i] * vload(v + j * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < SUM_ROWS; i++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++)
            vstore(out + i * w->out_ld + j * LANES, sums[i][j]);
}

static void sum_values(const struct work *w, int key, int count)
{
    const float *v = w->v + (size_t)key * w->kv_ld;
    size_t ld = w->kv_ld;
    if (w->out_ld != w->dim) { /* whole vectors would read beyond the head, and at the end beyond the cache */
        for (int i = 0; i < count; i++) {
            memcpy(w->values + i * w->out_ld, v + (size_t)i * ld, (size_t)w->dim * sizeof(float));
            memset(w->values + i * w->out_ld + w->dim, 0, (size_t)(w->out_ld - w->dim) * sizeof(float));
        }
        v = w->values;
        ld = (size_t)w->out_ld;
    }
    for (int row = 0; row < w->padded; row += SUM_ROWS) {
        float *out = w->sums + (size_t)row * (size_t)w->out_ld;
        int t = 0;
        for (; t + SUM_VECTORS * LANES <= w->out_ld; t += SUM_VECTORS * LANES)
            sum_step(w, v + t, ld, count, row, SUM_VECTORS, out + t);
        for (; t < w->out_ld; t += LANES)
            sum_step(w, v + t, ld, count, row, 1, out + t);
    }
}

/* Every row sees all of [key, end)? */
static bool all_seen(const struct work *w, int rows, int key, int end)
{
    if (end <= w->a->prefix)
        return true;
    for (int r = 0; r < rows; r++)
        if (w->first[r] > (key > w->a->prefix ? key : w->a->prefix) || w->limit[r] < end)
            return false;
    return true;
}

/* Keys [from, to), in tiles that end at multiples of TILE_KEYS. */
static void attend_range(struct work *w, int rows, int from, int to)
{
    for (int key = from; key < to;) {
        int end = (key / TILE_KEYS + 1) * TILE_KEYS;
        int count = (end < to ? end : to) - key;
        bool masked = !all_seen(w, rows, key, key + count);
        score_keys(w, key, count);
        for (int row = 0; row < w->padded; row += LANES) {
            if (masked)
                mask_lanes(w, row, key, count);
            weigh_lanes(w, row, count);
        }
        sum_values(w, key, count);
        key += count;
    }
}

static void store_rows(const struct work *w, const struct samkv_cpu_tile *tile)
{
    const struct samkv_attention *a = w->a;
    int group = a->heads / a->kv_heads;
    for (int r = 0; r < tile->rows; r++) {
        int i = (tile->row0 + r) / group, head = tile->kv_head * group + (tile->row0 + r) % group;
        float *out = (float *)a->out + (size_t)i * a->ldo + (size_t)head * (size_t)a->head_dim;
        const float *sums = w->sums + (size_t)r * (size_t)w->out_ld;
        float share = 1.0f / w->weight[r];
        for (int t = 0; t < w->dim; t++)
            out[t] = sums[t] * share;
    }
}

/* All that some row of the tile sees: the prefix, and what lies between the first and the last of the rows' ranges. */
INLINE void attend_visible(struct work *w, const struct samkv_cpu_tile *tile,
                           void (*attend)(struct work *, int rows, int from, int to))
{
    int first = w->first[0], limit = w->limit[0], prefix = tile->args->prefix;
    for (int r = 1; r < tile->rows; r++) {
        first = w->first[r] < first ? w->first[r] : first;
        limit = w->limit[r] > limit ? w->limit[r] : limit;
    }
    if (first <= prefix) {
        attend(w, tile->rows, 0, limit > prefix ? limit : prefix);
    } else { /* what lies between is other documents': nobody here sees it */
        attend(w, tile->rows, 0, prefix);
        attend(w, tile->rows, first, limit);
    }
}

static void attention_tile(const struct samkv_cpu_tile *tile)
{
    struct work work;
    work_init(&work, tile);
    load_queries(&work, tile);
    attend_visible(&work, tile, attend_range);
    store_rows(&work, tile);
}
