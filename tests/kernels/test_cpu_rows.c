/* Row operations (embedding, norms, RoPE, SwiGLU) against twins in double. */
#include "tests/kernels/cpu_fixture.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const int widths[] = {1, 2, 7, 16, 33, 64, 130, 576, 1537};
static const int lengths[] = {1, 3, 100};

static void twin_rmsnorm(const float *x, const float *gain, float eps, size_t width, double *out)
{
    double squares = 0.0;
    for (size_t j = 0; j < width; j++)
        squares += (double)x[j] * (double)x[j];
    double rms = 1.0 / sqrt(squares / (double)width + (double)eps);
    for (size_t j = 0; j < width; j++)
        out[j] = (double)x[j] * rms * (double)gain[j];
}

static void check_rmsnorm(size_t n, size_t width, bool in_place)
{
    size_t ldx = width + 3, ldo = in_place ? ldx : width + 1;
    float *x = numbers(n * ldx, 1), *gain = numbers(width, 2), *source = copy_of(x, n * ldx);
    float *out = in_place ? x : poison(n * ldo), *again = in_place ? copy_of(x, n * ldx) : poison(n * ldo);
    double want[1537];
    device->ops->rmsnorm(stream, source, ldx, gain, 1e-5f, (int)n, (int)width, again, ldo);
    device->ops->rmsnorm(stream, in_place ? x : source, ldx, gain, 1e-5f, (int)n, (int)width, out, ldo);
    for (size_t i = 0; i < n; i++) {
        twin_rmsnorm(source + i * ldx, gain, 1e-5f, width, want);
        for (size_t j = 0; j < width; j++)
            check_near(out[i * ldo + j], want[j], 2e-6, "rmsnorm n %zu width %zu: [%zu][%zu]", n, width, i, j);
        check_same_bytes(out + i * ldo, again + i * ldo, width);
        if (in_place)
            check_same_bytes(out + i * ldo + width, source + i * ldx + width, 3);
        else
            ck_assert(isnan(out[i * ldo + width]));
    }
    if (!in_place)
        free(x);
    free(gain), free(source), free(out), free(again);
}

START_TEST(test_rmsnorm)
{
    open_cpu(_i, 0);
    for (size_t w = 0; w < COUNT(widths); w++)
        for (size_t l = 0; l < COUNT(lengths); l++)
            for (int in_place = 0; in_place < 2; in_place++)
                check_rmsnorm((size_t)lengths[l], (size_t)widths[w], in_place);
    close_cpu();
}
END_TEST

static void check_head_norm(size_t n, size_t heads, size_t dim)
{
    size_t ld = heads * dim + 2;
    float *x = numbers(n * ld, 1), *gain = numbers(dim, 2), *source = copy_of(x, n * ld);
    double want[512];
    device->ops->head_norm(stream, x, ld, gain, 1e-6f, (int)n, (int)heads, (int)dim);
    for (size_t i = 0; i < n; i++) {
        for (size_t h = 0; h < heads; h++) {
            size_t at = i * ld + h * dim;
            twin_rmsnorm(source + at, gain, 1e-6f, dim, want);
            for (size_t j = 0; j < dim; j++)
                check_near(x[at + j], want[j], 2e-6, "head_norm dim %zu: [%zu][%zu][%zu]", dim, i, h, j);
        }
        check_same_bytes(x + i * ld + heads * dim, source + i * ld + heads * dim, 2);
    }
    free(x), free(gain), free(source);
}

START_TEST(test_head_norm)
{
    open_cpu(_i, 0);
    check_head_norm(1, 1, 2);
    check_head_norm(5, 3, 20);
    check_head_norm(130, 9, 64);
    check_head_norm(3, 2, 512);
    close_cpu();
}
END_TEST

/* The angles are exact also far out: a float angle would be wrong in the fourth digit there. */
START_TEST(test_rope_table)
{
    enum { HALF = 33, N = 401 };
    double inv_freq[HALF];
    int32_t pos[N];
    float *table = poison(N * 2 * HALF), *again = poison(N * 2 * HALF);
    for (int j = 0; j < HALF; j++)
        inv_freq[j] = pow(10000.0, -2.0 * j / (2.0 * HALF));
    for (int i = 0; i < N; i++)
        pos[i] = i * i - 3 * i - 7;
    open_cpu(_i, 0);
    device->ops->rope_table(stream, inv_freq, HALF, pos, N, 1.25f, table);
    device->ops->rope_table(stream, inv_freq, HALF, pos, N, 1.25f, again);
    close_cpu();
    check_same_bytes(table, again, N * 2 * HALF);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < HALF; j++) {
            check_near(table[i * 2 * HALF + j], 1.25 * cos(pos[i] * inv_freq[j]), 1e-7, "cos [%d][%d]", i, j);
            check_near(table[i * 2 * HALF + HALF + j], 1.25 * sin(pos[i] * inv_freq[j]), 1e-7, "sin [%d][%d]", i, j);
        }
    free(table), free(again);
}
END_TEST

static void check_rope(size_t n, size_t heads, size_t dim, size_t pad)
{
    size_t ld = heads * dim + pad, half = dim / 2;
    float *x = numbers(n * ld, 1), *source = copy_of(x, n * ld), *again = copy_of(x, n * ld);
    float *table = numbers(n * dim, 2);
    device->ops->rope(stream, x, ld, table, (int)n, (int)heads, (int)dim);
    if (pad)
        device->ops->rope(stream, again, ld, table, (int)n, (int)heads, (int)dim);
    else
        device->ops->rope_f32(stream, again, table, (int)n, (int)heads, (int)dim);
    check_same_bytes(x, again, n * ld);
    for (size_t i = 0; i < n; i++) {
        const float *c = table + i * dim, *s = c + half;
        for (size_t h = 0; h < heads; h++)
            for (size_t j = 0; j < half; j++) {
                size_t at = i * ld + h * dim + j;
                double low = source[at], high = source[at + half];
                check_near(x[at], low * (double)c[j] - high * (double)s[j], 3e-7, "rope dim %zu low %zu", dim, j);
                check_near(x[at + half], high * (double)c[j] + low * (double)s[j], 3e-7, "rope dim %zu high %zu", dim,
                           j);
            }
        check_same_bytes(x + i * ld + heads * dim, source + i * ld + heads * dim, pad);
    }
    free(x), free(source), free(again), free(table);
}

START_TEST(test_rope)
{
    static const size_t dims[] = {2, 6, 16, 32, 64, 80, 96, 128, 256, 512};
    open_cpu(_i, 0);
    for (size_t d = 0; d < COUNT(dims); d++) {
        check_rope(1, 1, dims[d], 0);
        check_rope(67, 3, dims[d], 5);
        check_rope(67, 3, dims[d], 0);
    }
    close_cpu();
}
END_TEST

static double silu(double g)
{
    return g / (1.0 + exp(-g));
}

/* Also a test of the exponential: the whole range of gates, relative to the result. */
START_TEST(test_swiglu_range)
{
    enum { N = 20001 };
    float *row = poison(2 * N), *out = poison(N);
    for (int i = 0; i < N; i++) {
        row[i] = (float)(i - N / 2) * 0.0087f; /* -87 to 87 */
        row[N + i] = 1.0f;
    }
    open_cpu(_i, 0);
    device->ops->swiglu(stream, row, 1, N, out);
    close_cpu();
    for (int i = 0; i < N; i++)
        check_near(out[i], silu(row[i]), 4e-7 * fabs(silu(row[i])) + 1e-43, "silu(%g)", (double)row[i]);
    free(row), free(out);
}
END_TEST

START_TEST(test_swiglu_extremes)
{
    float row[14] = {-INFINITY, -1e30f, -200.0f, 200.0f, 1e30f, NAN, 0.0f, 1, 1, 1, 1, 1, 1, 1}, out[7];
    open_cpu(_i, 0);
    device->ops->swiglu(stream, row, 1, 7, out);
    close_cpu();
    ck_assert(isnan(out[0])); /* -inf / inf, as in NumPy */
    ck_assert_float_eq(out[1], 0.0f);
    ck_assert_float_eq(out[2], 0.0f);
    ck_assert_float_eq(out[3], 200.0f);
    ck_assert_float_eq(out[4], 1e30f);
    ck_assert(isnan(out[5]));
    ck_assert_float_eq(out[6], 0.0f);
}
END_TEST

START_TEST(test_swiglu_shapes)
{
    open_cpu(_i, 0);
    for (size_t w = 0; w < COUNT(widths); w++)
        for (size_t l = 0; l < COUNT(lengths); l++) {
            size_t n = (size_t)lengths[l], ffn = (size_t)widths[w];
            float *rows = numbers(n * 2 * ffn, 1), *out = poison(n * ffn), *again = poison(n * ffn);
            device->ops->swiglu(stream, rows, (int)n, (int)ffn, out);
            device->ops->swiglu(stream, rows, (int)n, (int)ffn, again);
            check_same_bytes(out, again, n * ffn);
            for (size_t i = 0; i < n; i++)
                for (size_t j = 0; j < ffn; j++) {
                    const float *row = rows + i * 2 * ffn;
                    check_near(out[i * ffn + j], silu(row[j]) * (double)row[ffn + j], 3e-7, "n %zu ffn %zu", n, ffn);
                }
            free(rows), free(out), free(again);
        }
    close_cpu();
}
END_TEST

START_TEST(test_embed)
{
    static const int32_t ids[] = {4, 0, 4, 9, 1};
    float *table = numbers(10 * 33, 1), *out = poison(5 * 33);
    open_cpu(_i, 0);
    void *matrix = as_matrix(table, 10 * 33);
    device->ops->embed(stream, matrix, ids, 5, 33, out);
    close_cpu();
    free(matrix);
    for (size_t i = 0; i < 5; i++)
        check_same_bytes(out + i * 33, table + (size_t)ids[i] * 33, 33);
    free(table), free(out);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {test_rmsnorm,      test_head_norm,       test_rope_table,    test_rope,
                                  test_swiglu_range, test_swiglu_extremes, test_swiglu_shapes, test_embed};
    return run_cpu_suite("cpu_rows", tests, COUNT(tests));
}
