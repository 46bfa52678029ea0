/* Attention against a plain softmax in double. */
#include "tests/kernels/cpu_fixture.h"

struct shape {
    int n, n_keys, heads, kv_heads, head_dim, prefix;
    int pad; /* of ldq and ldo */
};

/* Row i's range. Filled by one of the fill_ functions. */
struct ranges {
    int32_t *first, *limit;
};

static bool sees(const struct shape *s, const struct ranges *r, bool with_first, int i, int key)
{
    int first = with_first ? r->first[i] : s->prefix;
    return key < s->prefix || (key >= first && key < r->limit[i]);
}

static void twin_head(const struct shape *s, const struct ranges *r, bool with_first, int i, int h, const float *q,
                      const float *k, const float *v, double scale, double *out)
{
    size_t dim = (size_t)s->head_dim, ld = (size_t)s->kv_heads * dim;
    size_t at = (size_t)(h / (s->heads / s->kv_heads)) * dim;
    double max = -INFINITY, sum = 0.0;
    double *score = malloc((size_t)s->n_keys * sizeof *score);
    for (int key = 0; key < s->n_keys; key++) {
        score[key] = -INFINITY;
        if (!sees(s, r, with_first, i, key))
            continue;
        double dot = 0.0;
        for (size_t t = 0; t < dim; t++)
            dot += (double)q[t] * (double)k[(size_t)key * ld + at + t];
        score[key] = dot * scale;
        max = fmax(max, score[key]);
    }
    for (size_t t = 0; t < dim; t++)
        out[t] = 0.0;
    for (int key = 0; key < s->n_keys; key++) {
        if (!sees(s, r, with_first, i, key))
            continue;
        double p = exp(score[key] - max);
        sum += p;
        for (size_t t = 0; t < dim; t++)
            out[t] += p * (double)v[(size_t)key * ld + at + t];
    }
    for (size_t t = 0; t < dim; t++)
        out[t] /= sum;
    free(score);
}

/* Keys that no row sees hold NaN: they must not be touched. */
static void poison_unseen(const struct shape *s, const struct ranges *r, bool with_first, float *k, float *v)
{
    size_t ld = (size_t)s->kv_heads * (size_t)s->head_dim;
    for (int key = 0; key < s->n_keys; key++) {
        bool seen = false;
        for (int i = 0; i < s->n && !seen; i++)
            seen = sees(s, r, with_first, i, key);
        for (size_t t = 0; !seen && t < ld; t++)
            k[(size_t)key * ld + t] = v[(size_t)key * ld + t] = NAN;
    }
}

static void check_shape(const struct shape *s, const struct ranges *r, bool with_first, float spread)
{
    size_t dim = (size_t)s->head_dim, width = (size_t)s->heads * dim, ld = width + (size_t)s->pad;
    size_t kv = (size_t)s->n_keys * (size_t)s->kv_heads * dim, rows = (size_t)s->n * ld;
    float *q = numbers(rows, 1), *k = numbers(kv, 2), *v = numbers(kv, 3), *out = poison(rows), *again = poison(rows);
    double want[512];
    for (size_t i = 0; i < rows; i++)
        q[i] *= spread;
    poison_unseen(s, r, with_first, k, v);
    struct samkv_attention a = {.q = q,
                                .ldq = ld,
                                .k = k,
                                .v = v,
                                .out = out,
                                .ldo = ld,
                                .n = s->n,
                                .n_keys = s->n_keys,
                                .heads = s->heads,
                                .kv_heads = s->kv_heads,
                                .head_dim = s->head_dim,
                                .scale = 1.0f / sqrtf((float)dim),
                                .prefix = s->prefix,
                                .first = with_first ? r->first : NULL,
                                .limit = r->limit};
    device->ops->attention(stream, &a);
    a.out = again;
    device->ops->attention(stream, &a);
    check_same_bytes(out, again, rows);
    double scale = (double)a.scale, tolerance = 1e-6 * (1.0 + (double)spread);
    if (device->bf16_matrices) { /* what is multiplied is rounded first; then the softmax's weights are, by 2^-9 */
        for (size_t i = 0; i < rows; i++)
            q[i] *= a.scale * 1.44269504088896341f;
        scale = 0.69314718055994531;
        round_to_bf16(q, rows), round_to_bf16(k, kv), round_to_bf16(v, kv);
        tolerance = 0x1p-8;
    }
    for (int i = 0; i < s->n; i++) {
        for (int h = 0; h < s->heads; h++) {
            size_t at = (size_t)i * ld + (size_t)h * dim;
            twin_head(s, r, with_first, i, h, q + at, k, v, scale, want);
            for (size_t t = 0; t < dim; t++)
                check_near(out[at + t], want[t], tolerance, "n %d keys %d dim %d heads %d/%d: row %d head %d at %zu",
                           s->n, s->n_keys, s->head_dim, s->heads, s->kv_heads, i, h, t);
        }
        for (int t = 0; t < s->pad; t++)
            ck_assert_msg(isnan(out[(size_t)i * ld + width + (size_t)t]), "wrote behind row %d", i);
    }
    free(q), free(k), free(v), free(out), free(again);
}

static struct ranges ranges_new(int n)
{
    size_t bytes = (size_t)n * sizeof(int32_t);
    return (struct ranges){malloc(bytes), malloc(bytes)};
}

static void ranges_free(struct ranges *r)
{
    free(r->first), free(r->limit);
}

/* The last n of n_keys tokens, each seeing itself and what is before it. */
static void check_causal(const struct shape *s, float spread)
{
    struct ranges r = ranges_new(s->n);
    for (int i = 0; i < s->n; i++) {
        r.first[i] = s->prefix;
        r.limit[i] = s->n_keys - s->n + i + 1;
    }
    check_shape(s, &r, false, spread);
    ranges_free(&r);
}

START_TEST(test_head_sizes)
{
    static const int sizes[] = {2, 6, 16, 20, 32, 36, 64, 80, 96, 128, 144, 256, 512};
    open_cpu(_i, 0);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        check_causal(&(struct shape){.n = 37, .n_keys = 71, .heads = 3, .kv_heads = 1, .head_dim = sizes[i], .pad = 5},
                     2.0f);
    close_cpu();
}
END_TEST

START_TEST(test_groups_and_lengths)
{
    static const struct shape shapes[] = {
        {.n = 1, .n_keys = 1, .heads = 1, .kv_heads = 1, .head_dim = 64},
        {.n = 1, .n_keys = 333, .heads = 9, .kv_heads = 3, .head_dim = 64, .pad = 1},
        {.n = 2, .n_keys = 65, .heads = 4, .kv_heads = 4, .head_dim = 32},
        {.n = 17, .n_keys = 17, .heads = 14, .kv_heads = 2, .head_dim = 64},
        {.n = 63, .n_keys = 64, .heads = 8, .kv_heads = 2, .head_dim = 16, .pad = 3},
        {.n = 96, .n_keys = 128, .heads = 2, .kv_heads = 2, .head_dim = 64},
        {.n = 5, .n_keys = 70, .heads = 100, .kv_heads = 1, .head_dim = 8},
        {.n = 301, .n_keys = 517, .heads = 9, .kv_heads = 3, .head_dim = 64},
    };
    open_cpu(_i, 0);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_causal(&shapes[i], 3.0f);
    close_cpu();
}
END_TEST

START_TEST(test_large_scores)
{
    open_cpu(_i, 0);
    check_causal(&(struct shape){.n = 50, .n_keys = 150, .heads = 2, .kv_heads = 1, .head_dim = 64}, 300.0f);
    close_cpu();
}
END_TEST

/* Documents one behind the other, each seeing the preamble and itself; gaps between preamble and documents. */
START_TEST(test_packed_documents)
{
    static const int lengths[] = {1, 40, 3, 130, 64, 7};
    static const int gaps[] = {0, 5, 200};
    open_cpu(_i, 0);
    for (int prefix = 0; prefix <= 70; prefix += 35) {
        for (size_t g = 0; g < sizeof gaps / sizeof *gaps; g++) {
            struct shape s = {.n = 0, .heads = 6, .kv_heads = 2, .head_dim = 32, .prefix = prefix, .pad = 2};
            struct ranges r = ranges_new(245);
            int start = prefix + gaps[g];
            for (size_t d = 0; d < sizeof lengths / sizeof *lengths; start += lengths[d++]) {
                for (int i = 0; i < lengths[d]; i++, s.n++) {
                    r.first[s.n] = start;
                    r.limit[s.n] = start + i + 1;
                }
            }
            ck_assert_int_eq(s.n, 245);
            s.n_keys = start + 9;
            check_shape(&s, &r, true, 2.0f);
            ranges_free(&r);
        }
    }
    close_cpu();
}
END_TEST

/* Kept tokens of a sparse cache: rows are any of the keys, and all see what is before them. */
START_TEST(test_scattered_rows)
{
    struct shape s = {.n = 90, .n_keys = 700, .heads = 9, .kv_heads = 3, .head_dim = 64, .prefix = 11};
    struct ranges r = ranges_new(s.n);
    open_cpu(_i, 0);
    for (int i = 0; i < s.n; i++) {
        r.first[i] = i % 2 ? 0 : 11; /* overlapping the prefix is allowed */
        r.limit[i] = 12 + i * 7;
    }
    check_shape(&s, &r, true, 2.0f);
    for (int i = 0; i < s.n; i++) /* the prefix alone */
        r.first[i] = r.limit[i] = 0;
    check_shape(&s, &r, true, 2.0f);
    close_cpu();
    ranges_free(&r);
}
END_TEST

/* The number of threads changes nothing in the result. */
START_TEST(test_threads)
{
    struct samkv_attention a = {
        .ldq = 576, .ldo = 576, .n = 200, .n_keys = 200, .heads = 9, .kv_heads = 3, .head_dim = 64, .scale = 0.125f};
    size_t rows = 200 * 576;
    float *q = numbers(rows, 1), *k = numbers(rows / 3, 2), *v = numbers(rows / 3, 3);
    float *outs[3] = {poison(rows), poison(rows), poison(rows)};
    static const int threads[3] = {1, 2, 40};
    int32_t limit[200];
    for (int i = 0; i < 200; i++)
        limit[i] = i + 1;
    a.q = q, a.k = k, a.v = v, a.limit = limit;
    for (int t = 0; t < 3; t++) {
        open_cpu(_i, threads[t]);
        a.out = outs[t];
        device->ops->attention(stream, &a);
        close_cpu();
    }
    ck_assert(!isnan(outs[0][0]));
    check_same_bytes(outs[0], outs[1], rows);
    check_same_bytes(outs[0], outs[2], rows);
    free(q), free(k), free(v), free(outs[0]), free(outs[1]), free(outs[2]);
}
END_TEST

/* A broken input shows in its own row and in no other. */
START_TEST(test_nan_stays_visible)
{
    float q[3 * 16], k[3 * 16], v[3 * 16], out[3 * 16];
    int32_t limit[3] = {1, 2, 3};
    for (int i = 0; i < 48; i++)
        q[i] = k[i] = v[i] = 0.5f;
    q[16] = NAN;
    open_cpu(_i, 1);
    struct samkv_attention a = {.q = q,
                                .ldq = 16,
                                .k = k,
                                .v = v,
                                .out = out,
                                .ldo = 16,
                                .n = 3,
                                .n_keys = 3,
                                .heads = 1,
                                .kv_heads = 1,
                                .head_dim = 16,
                                .scale = 0.25f,
                                .limit = limit};
    device->ops->attention(stream, &a);
    close_cpu();
    ck_assert(!isnan(out[0]) && isnan(out[16]) && !isnan(out[32]));
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {test_head_sizes,       test_groups_and_lengths, test_large_scores,
                                  test_packed_documents, test_scattered_rows,     test_threads,
                                  test_nan_stays_visible};
    return run_cpu_suite("cpu_attention", tests, sizeof tests / sizeof *tests);
}
