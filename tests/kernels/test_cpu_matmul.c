/* Matrix products against plain sums in double. */
#include "tests/kernels/cpu_fixture.h"

/* Up to so many rows of a product keep their input in f32. */
#define FEW_ROWS 12

struct product {
    int n, in, out, pad_x, pad_y;
    bool bias, accumulate;
};

static void check_product(const struct product *p)
{
    size_t ldx = (size_t)(p->in + p->pad_x), ldy = (size_t)(p->out + p->pad_y), rows = (size_t)p->n;
    size_t in = (size_t)p->in, out = (size_t)p->out;
    float *x = numbers(rows * ldx, 1), *w = numbers(out * in, 2), *bias = numbers(out, 3);
    float *before = p->accumulate ? numbers(rows * ldy, 4) : poison(rows * ldy);
    float *y = copy_of(before, rows * ldy), *again = copy_of(before, rows * ldy);
    void *matrix = as_matrix(w, out * in);
    struct samkv_matmul m = {.x = x,
                             .ldx = ldx,
                             .w = matrix,
                             .bias = p->bias ? bias : NULL,
                             .y = y,
                             .ldy = ldy,
                             .n = p->n,
                             .in = p->in,
                             .out = p->out,
                             .accumulate = p->accumulate};
    device->ops->matmul(stream, &m);
    m.y = again;
    device->ops->matmul(stream, &m);
    check_same_bytes(y, again, rows * ldy);
    if (device->bf16_matrices && p->n > FEW_ROWS)
        round_to_bf16(x, rows * ldx);
    for (size_t i = 0; i < rows; i++) {
        for (size_t o = 0; o < out; o++) {
            double sum = (p->accumulate ? (double)before[i * ldy + o] : 0.0) + (p->bias ? (double)bias[o] : 0.0);
            double size = 1.0; /* rounding is relative to what is summed, not to the sum */
            for (size_t j = 0; j < in; j++) {
                double term = (double)x[i * ldx + j] * (double)w[o * in + j];
                sum += term;
                size += fabs(term);
            }
            check_near(y[i * ldy + o], sum, 5e-7 * size, "n %d in %d out %d bias %d accumulate %d: [%zu][%zu]", p->n,
                       p->in, p->out, p->bias, p->accumulate, i, o);
        }
        check_same_bytes(y + i * ldy + out, before + i * ldy + out, (size_t)p->pad_y);
    }
    free(x), free(w), free(bias), free(before), free(y), free(again), free(matrix);
}

START_TEST(test_shapes)
{
    static const int rows[] = {1, 2, 3, 5, 12, 13, 33, 130};
    static const int sizes[][2] = {{1, 1}, {7, 3}, {16, 16}, {65, 35}, {576, 37}, {130, 577}};
    open_cpu(_i, 0);
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (int flags = 0; flags < 8; flags++)
                check_product(&(struct product){.n = rows[r],
                                                .in = sizes[s][0],
                                                .out = sizes[s][1],
                                                .pad_x = flags & 1 ? 3 : 0,
                                                .pad_y = flags & 1 ? 5 : 0,
                                                .bias = flags & 2,
                                                .accumulate = flags & 4});
    close_cpu();
}
END_TEST

START_TEST(test_model_shapes)
{
    open_cpu(_i, 0);
    check_product(&(struct product){.n = 40, .in = 576, .out = 960});
    check_product(&(struct product){.n = 4, .in = 1536, .out = 576, .accumulate = true});
    check_product(&(struct product){.n = 1, .in = 576, .out = 4099});
    check_product(&(struct product){.n = 300, .in = 192, .out = 320, .pad_y = 64, .accumulate = true});
    close_cpu();
}
END_TEST

START_TEST(test_no_rows)
{
    float w[4] = {0};
    open_cpu(_i, 0);
    device->ops->matmul(stream, &(struct samkv_matmul){.w = w, .n = 0, .in = 2, .out = 2, .ldx = 2, .ldy = 2});
    close_cpu();
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {test_shapes, test_model_shapes, test_no_rows};
    return run_cpu_suite("cpu_matmul", tests, sizeof tests / sizeof *tests);
}
