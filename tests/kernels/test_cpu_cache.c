/* Rows in and out of the KV cache, against twins in double. */
#include "tests/kernels/cpu_fixture.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const float *angles_of(const struct samkv_kv_write *w, size_t i)
{
    return w->rope ? w->rope + i * (size_t)w->head_dim : NULL;
}

/* Element j of head `x` after RoPE, in double; as it is without a table. */
static double rotated(const float *x, const float *table, size_t dim, size_t j)
{
    size_t half = dim / 2;
    if (!table)
        return (double)x[j];
    if (j < half)
        return (double)x[j] * (double)table[j] - (double)x[j + half] * (double)table[half + j];
    return (double)x[j] * (double)table[j - half] + (double)x[j - half] * (double)table[j];
}

static double twin_theta(const struct samkv_kv_write *w, size_t i, const float *k_new, const float *k_old)
{
    size_t dim = (size_t)w->head_dim;
    if (w->update == SAMKV_UPDATE_OVERWRITE || (int)i >= w->fresh_from)
        return 1.0;
    if (w->update == SAMKV_UPDATE_THETA || w->update == SAMKV_UPDATE_DELTA)
        return (double)w->theta;
    double dot = 0.0, a = 0.0, b = 0.0;
    for (size_t j = 0; j < dim; j++) {
        double k = rotated(k_new, angles_of(w, i), dim, j);
        dot += k * (double)k_old[j];
        a += k * k;
        b += (double)k_old[j] * (double)k_old[j];
    }
    return fmin(1.0, fmax(0.0, dot / fmax(sqrt(a) * sqrt(b), 1e-12)));
}

/* One row of the cache after the write; k0 and v0 are the cache before. */
static void check_written(const struct samkv_kv_write *w, size_t i, size_t row, const float *k0, const float *v0)
{
    size_t dim = (size_t)w->head_dim, width = (size_t)w->kv_heads * dim;
    for (size_t g = 0; g < (size_t)w->kv_heads; g++) {
        size_t at = row * width + g * dim, from = i * w->ld + g * dim;
        const float *k = (const float *)w->k + from, *v = (const float *)w->v + from;
        double theta = twin_theta(w, i, k, k0 + at);
        for (size_t j = 0; j < dim; j++) {
            double new_k = rotated(k, angles_of(w, i), dim, j), new_v = (double)v[j];
            bool adds = w->update == SAMKV_UPDATE_DELTA && (int)i < w->fresh_from;
            double keep = adds ? 1.0 : 1.0 - theta;
            double want_k = keep > 0.0 ? keep * (double)k0[at + j] + theta * new_k : new_k;
            double want_v = keep > 0.0 ? keep * (double)v0[at + j] + theta * new_v : new_v;
            check_near(((const float *)w->k_cache)[at + j], want_k, 1e-6, "K update %d row %zu", (int)w->update, i);
            check_near(((const float *)w->v_cache)[at + j], want_v, 1e-6, "V update %d row %zu", (int)w->update, i);
        }
    }
}

struct write_case {
    size_t n, kv_heads, dim;
    enum samkv_update update;
    float theta;
    int fresh_from;
    bool scattered, no_rope;
};

static void check_write(const struct write_case *c)
{
    size_t width = c->kv_heads * c->dim, ld = width + 3, cache_rows = c->n * 3 + 4, cache = cache_rows * width;
    float *k = numbers(c->n * ld, 1), *v = numbers(c->n * ld, 2), *table = numbers(c->n * c->dim, 3);
    float *k0 = numbers(cache, 4), *v0 = numbers(cache, 5);
    int32_t *rows = malloc(c->n * sizeof *rows);
    bool *written = calloc(cache_rows, sizeof *written);
    for (size_t i = 0; i < c->n; i++) {
        rows[i] = c->scattered ? (int32_t)(3 * i + i % 2) : (int32_t)(4 + i);
        written[rows[i]] = true;
        /* Old rows that point the same way, the opposite way and nowhere; what is fresh replaces NaN. */
        for (size_t j = 0; j < width; j++) {
            size_t at = (size_t)rows[i] * width + j;
            if ((int)i >= c->fresh_from)
                k0[at] = v0[at] = NAN;
            else if (i % 4 == 1)
                k0[at] = (float)rotated(k + i * ld + j / c->dim * c->dim, c->no_rope ? NULL : table + i * c->dim,
                                        c->dim, j % c->dim);
            else if (i % 4 == 2)
                k0[at] = 0.0f;
        }
    }
    float *k_cache = copy_of(k0, cache), *v_cache = copy_of(v0, cache);
    struct samkv_kv_write w = {.k = k,
                               .v = v,
                               .ld = ld,
                               .rope = c->no_rope ? NULL : table,
                               .rows = c->scattered ? rows : NULL,
                               .first_row = 4,
                               .k_cache = k_cache,
                               .v_cache = v_cache,
                               .n = (int)c->n,
                               .kv_heads = (int)c->kv_heads,
                               .head_dim = (int)c->dim,
                               .update = c->update,
                               .theta = c->theta,
                               .fresh_from = c->fresh_from};
    device->ops->kv_write(stream, &w);
    for (size_t i = 0; i < c->n; i++)
        check_written(&w, i, (size_t)rows[i], k0, v0);
    for (size_t r = 0; r < cache_rows; r++)
        if (!written[r]) {
            check_same_bytes(k_cache + r * width, k0 + r * width, width);
            check_same_bytes(v_cache + r * width, v0 + r * width, width);
        }
    free(k), free(v), free(table), free(k0), free(v0), free(rows), free(written), free(k_cache), free(v_cache);
}

START_TEST(test_kv_write)
{
    static const size_t dims[] = {2, 20, 64, 96, 256};
    static const struct write_case base[] = {
        {.update = SAMKV_UPDATE_OVERWRITE, .fresh_from = 0},
        {.update = SAMKV_UPDATE_COSINE, .fresh_from = 1000},
        {.update = SAMKV_UPDATE_COSINE, .fresh_from = 5},
        {.update = SAMKV_UPDATE_THETA, .theta = 0.3f, .fresh_from = 6},
        {.update = SAMKV_UPDATE_THETA, .theta = 0.0f, .fresh_from = 1000},
        {.update = SAMKV_UPDATE_DELTA, .theta = -1.0f, .fresh_from = 1000},
        {.update = SAMKV_UPDATE_DELTA, .theta = 1.0f, .fresh_from = 5},
        {.update = SAMKV_UPDATE_OVERWRITE, .fresh_from = 0, .no_rope = true},
        {.update = SAMKV_UPDATE_COSINE, .fresh_from = 5, .no_rope = true},
    };
    open_cpu(_i, 0);
    for (size_t b = 0; b < COUNT(base); b++)
        for (size_t d = 0; d < COUNT(dims); d++)
            for (int scattered = 0; scattered < 2; scattered++) {
                struct write_case c = base[b];
                c.kv_heads = 3, c.dim = dims[d], c.scattered = scattered;
                c.n = 1, check_write(&c);
                c.n = 131, check_write(&c);
            }
    close_cpu();
}
END_TEST

/* n numbers as stored in `type`, and what they are in f32. */
static void *stored_numbers(enum samkv_dtype type, size_t n, uint64_t seed, float *values)
{
    uint16_t *half = malloc(n * samkv_dtype_bytes(type));
    float *source = numbers(n, seed);
    for (size_t i = 0; i < n; i++) {
        if (type == SAMKV_F16)
            half[i] = samkv_f32_to_f16(source[i]), values[i] = samkv_f16_to_f32(half[i]);
        else if (type == SAMKV_BF16)
            half[i] = samkv_f32_to_bf16(source[i]), values[i] = samkv_bf16_to_f32(half[i]);
        else
            values[i] = source[i];
    }
    if (type == SAMKV_F32)
        memcpy(half, source, n * sizeof *source);
    free(source);
    return half;
}

static void check_place(enum samkv_dtype type, size_t n, size_t kv_heads, size_t dim, bool in_place, bool no_rope)
{
    size_t width = kv_heads * dim, first = 3, count = n * width, cache = (n + first + 1) * width;
    float *k_values = poison(count), *v_values = poison(count), *table = numbers(n * dim, 3);
    void *k = stored_numbers(type, count, 1, k_values), *v = stored_numbers(type, count, 2, v_values);
    float *k_cache = poison(cache), *v_cache = poison(cache);
    if (in_place) {
        memcpy(k_cache + first * width, k, count * sizeof *k_cache);
        memcpy(v_cache + first * width, v, count * sizeof *v_cache);
    }
    struct samkv_place p = {.k_src = in_place ? (void *)(k_cache + first * width) : k,
                            .v_src = in_place ? (void *)(v_cache + first * width) : v,
                            .src_dtype = type,
                            .rope = no_rope ? NULL : table,
                            .k_cache = k_cache,
                            .v_cache = v_cache,
                            .first_row = (int)first,
                            .n = (int)n,
                            .kv_heads = (int)kv_heads,
                            .head_dim = (int)dim};
    device->ops->place(stream, &p);
    check_same_bytes(v_cache + first * width, v_values, count);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < width; j++) {
            double want = rotated(k_values + i * width + j / dim * dim, no_rope ? NULL : table + i * dim, dim, j % dim);
            check_near(k_cache[(first + i) * width + j], want, 3e-7, "place type %d dim %zu row %zu", (int)type, dim,
                       i);
        }
    for (size_t j = 0; j < width; j++) {
        ck_assert(isnan(k_cache[first * width - 1 - j]) && isnan(v_cache[first * width - 1 - j]));
        ck_assert(isnan(k_cache[cache - 1 - j]) && isnan(v_cache[cache - 1 - j]));
    }
    free(k_values), free(v_values), free(table), free(k), free(v), free(k_cache), free(v_cache);
}

START_TEST(test_place)
{
    static const enum samkv_dtype types[] = {SAMKV_F32, SAMKV_F16, SAMKV_BF16};
    static const size_t dims[] = {2, 6, 32, 64, 80, 128};
    open_cpu(_i, 0);
    for (size_t d = 0; d < COUNT(dims); d++) {
        for (size_t t = 0; t < COUNT(types); t++) {
            check_place(types[t], 1, 1, dims[d], false, false);
            check_place(types[t], 119, 3, dims[d], false, false);
            check_place(types[t], 119, 3, dims[d], false, true);
        }
        check_place(SAMKV_F32, 119, 3, dims[d], true, false);
        check_place(SAMKV_F32, 119, 3, dims[d], true, true);
    }
    close_cpu();
}
END_TEST

/* Runs of several lengths that touch each other or leave gaps, out of order; one of them leaves layers alone. */
#define RUNS     5
#define RUN_ROWS 220
static const struct samkv_run run_shapes[RUNS] = {{.tokens = 64, .first_row = 70},
                                                  {.tokens = 1, .first_row = 0, .first_layer = 2},
                                                  {.tokens = 17, .first_row = 134, .first_layer = 1},
                                                  {.tokens = 0, .first_row = 5},
                                                  {.tokens = 31, .first_row = 180, .first_layer = 9}};

static size_t round_up(size_t x)
{
    return (x + 15) / 16 * 16;
}

/* place_runs gives what `place` gives layer by layer, byte for byte, and writes nothing else. */
static void check_place_runs(enum samkv_dtype type, size_t layers, size_t kv_heads, size_t dim, const uint8_t *no_rope)
{
    size_t width = kv_heads * dim, element = samkv_dtype_bytes(type), layer = RUN_ROWS * width + 5;
    float *k[2], *v[2], *table = numbers(RUN_ROWS * dim, 3);
    struct samkv_run runs[RUNS];
    for (int i = 0; i < 2; i++)
        k[i] = poison(layers * layer), v[i] = poison(layers * layer);
    for (size_t r = 0; r < RUNS; r++) {
        size_t count = layers * 2 * (size_t)run_shapes[r].tokens * width;
        float *values = poison(count);
        void *stored = stored_numbers(type, count, 10 + r, values);
        runs[r] = run_shapes[r];
        runs[r].src = aligned_alloc(16, round_up(count * element + 1));
        memcpy((void *)(uintptr_t)runs[r].src, stored, count * element);
        free(values), free(stored);
        for (size_t l = (size_t)runs[r].first_layer; l < layers; l++) {
            size_t rows = (size_t)runs[r].tokens * width * element;
            struct samkv_place p = {.k_src = (const char *)runs[r].src + 2 * l * rows,
                                    .v_src = (const char *)runs[r].src + (2 * l + 1) * rows,
                                    .src_dtype = type,
                                    .rope = no_rope && no_rope[l] ? NULL : table + (size_t)runs[r].first_row * dim,
                                    .k_cache = k[0] + l * layer,
                                    .v_cache = v[0] + l * layer,
                                    .first_row = runs[r].first_row,
                                    .n = runs[r].tokens,
                                    .kv_heads = (int)kv_heads,
                                    .head_dim = (int)dim};
            device->ops->place(stream, &p);
        }
    }
    struct samkv_place_runs p = {.runs = runs,
                                 .count = RUNS,
                                 .max_tokens = 64,
                                 .src_dtype = type,
                                 .rope = table,
                                 .no_rope = no_rope,
                                 .k_cache = k[1],
                                 .v_cache = v[1],
                                 .layer_stride_bytes = layer * sizeof(float),
                                 .layers = (int)layers,
                                 .kv_heads = (int)kv_heads,
                                 .head_dim = (int)dim};
    device->ops->place_runs(stream, &p);
    check_same_bytes(k[0], k[1], layers * layer);
    check_same_bytes(v[0], v[1], layers * layer);
    ck_assert(!isnan(k[1][70 * width]) && isnan(k[1][0]) && isnan(k[1][180 * width]));
    for (size_t r = 0; r < RUNS; r++)
        free((void *)(uintptr_t)runs[r].src);
    free(k[0]), free(k[1]), free(v[0]), free(v[1]), free(table);
}

START_TEST(test_place_runs)
{
    static const enum samkv_dtype types[] = {SAMKV_F32, SAMKV_F16, SAMKV_BF16};
    static const size_t dims[] = {2, 6, 64, 80};
    open_cpu(_i, 0);
    for (size_t d = 0; d < COUNT(dims); d++)
        for (size_t t = 0; t < COUNT(types); t++) {
            check_place_runs(types[t], 1, 1, dims[d], NULL);
            check_place_runs(types[t], 4, 3, dims[d], NULL);
            check_place_runs(types[t], 4, 3, dims[d], (const uint8_t[]){0, 1, 0, 1});
        }
    device->ops->place_runs(stream, &(struct samkv_place_runs){.kv_heads = 1, .head_dim = 2, .layers = 3});
    close_cpu();
}
END_TEST

START_TEST(test_gather)
{
    enum { N = 1001, WIDTH = 67, ROWS = 300 };
    float *x = numbers(ROWS * WIDTH, 1), *out = poison(N * WIDTH);
    int32_t rows[N];
    for (int i = 0; i < N; i++)
        rows[i] = i * 7 % ROWS;
    open_cpu(_i, 0);
    device->ops->gather(stream, x, rows, N, WIDTH, out);
    close_cpu();
    for (size_t i = 0; i < N; i++)
        check_same_bytes(out + i * WIDTH, x + (size_t)rows[i] * WIDTH, WIDTH);
    free(x), free(out);
}
END_TEST

/* Every half there is, to f32 and back; and floats around every rounding edge. */
START_TEST(test_convert_halves)
{
    enum { ALL = 65536 };
    static const enum samkv_dtype types[] = {SAMKV_F16, SAMKV_BF16};
    uint16_t *halves = malloc(ALL * sizeof *halves), *back = malloc(ALL * sizeof *back);
    float *wide = poison(ALL);
    open_cpu(_i, 0);
    for (size_t t = 0; t < COUNT(types); t++) {
        for (int i = 0; i < ALL; i++)
            halves[i] = (uint16_t)i, back[i] = 0x5555;
        device->ops->convert(stream, halves, types[t], wide, SAMKV_F32, ALL);
        device->ops->convert(stream, wide, SAMKV_F32, back, types[t], ALL);
        for (int i = 0; i < ALL; i++) {
            float want = types[t] == SAMKV_F16 ? samkv_f16_to_f32(halves[i]) : samkv_bf16_to_f32(halves[i]);
            ck_assert(isnan(want) ? isnan(wide[i]) : memcmp(&want, &wide[i], 4) == 0);
            ck_assert_msg(isnan(want) || back[i] == halves[i], "type %d: %04x became %04x", (int)types[t], halves[i],
                          back[i]);
        }
    }
    close_cpu();
    free(halves), free(back), free(wide);
}
END_TEST

START_TEST(test_convert_rounds)
{
    enum { N = 40003 };
    float *wide = poison(N);
    uint16_t *narrow = malloc(N * sizeof *narrow);
    for (uint32_t i = 0; i < N; i++) {
        uint32_t bits = i * 107339u; /* all signs and exponents, with NaN and infinities among them */
        memcpy(&wide[i], &bits, sizeof bits);
    }
    wide[7] = INFINITY, wide[8] = -INFINITY, wide[9] = NAN, wide[10] = 65519.9f, wide[11] = 65520.0f, wide[12] = 1e-8f;
    open_cpu(_i, 0);
    device->ops->convert(stream, wide, SAMKV_F32, narrow, SAMKV_BF16, N);
    for (int i = 0; i < N; i++)
        ck_assert_int_eq(narrow[i], samkv_f32_to_bf16(wide[i]));
    device->ops->convert(stream, wide, SAMKV_F32, narrow, SAMKV_F16, N);
    for (int i = 0; i < N; i++)
        if (isnan(wide[i]))
            ck_assert(isnan(samkv_f16_to_f32(narrow[i])));
        else
            ck_assert_msg(narrow[i] == samkv_f32_to_f16(wide[i]), "%a became %04x", (double)wide[i], narrow[i]);
    close_cpu();
    free(wide), free(narrow);
}
END_TEST

START_TEST(test_convert_between)
{
    enum { N = 3001 };
    float *values = poison(N), *wide = numbers(N, 9), *same = poison(N);
    uint16_t *from = stored_numbers(SAMKV_F16, N, 3, values), *to = malloc(N * sizeof *to);
    open_cpu(_i, 0);
    device->ops->convert(stream, from, SAMKV_F16, to, SAMKV_BF16, N);
    for (int i = 0; i < N; i++)
        ck_assert_int_eq(to[i], samkv_f32_to_bf16(values[i]));
    device->ops->convert(stream, from, SAMKV_F16, to, SAMKV_F16, N);
    check_same_bytes(from, to, N);
    device->ops->convert(stream, wide, SAMKV_I32, same, SAMKV_I32, N);
    check_same_bytes(wide, same, N);
    device->ops->convert(stream, same, SAMKV_F32, same, SAMKV_F32, N);
    check_same_bytes(wide, same, N);
    device->ops->convert(stream, wide, SAMKV_F32, to, SAMKV_F16, 0);
    close_cpu();
    free(values), free(wide), free(same), free(from), free(to);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {test_kv_write,       test_place,          test_place_runs,     test_gather,
                                  test_convert_halves, test_convert_rounds, test_convert_between};
    return run_cpu_suite("cpu_cache", tests, COUNT(tests));
}
