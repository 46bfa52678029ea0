/* The index's means and scores against twins in double. */
#include "tests/kernels/cpu_fixture.h"

START_TEST(test_segment_mean)
{
    static const int32_t offsets[] = {2, 3, 3, 19, 400, 400, 401, 1000}; /* segments 1 and 4 are empty */
    static const size_t widths[] = {1, 33, 192, 257, 600};
    enum { SEGMENTS = 7, ROWS = 1000 };
    open_cpu(_i, 0);
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
        size_t width = widths[w], ld = width + 5;
        float *x = numbers(ROWS * ld, 1), *out = poison(SEGMENTS * width + 1), *again = poison(SEGMENTS * width);
        device->ops->segment_mean(stream, x, ld, offsets, SEGMENTS, (int)width, out);
        device->ops->segment_mean(stream, x, ld, offsets, SEGMENTS, (int)width, again);
        check_same_bytes(out, again, SEGMENTS * width);
        ck_assert(isnan(out[SEGMENTS * width]));
        for (size_t s = 0; s < SEGMENTS; s++)
            for (size_t j = 0; j < width; j++) {
                double sum = 0.0;
                int count = offsets[s + 1] - offsets[s];
                for (int i = offsets[s]; i < offsets[s + 1]; i++)
                    sum += (double)x[(size_t)i * ld + j];
                check_near(out[s * width + j], count ? sum / count : 0.0, 1e-7, "segment %zu column %zu", s, j);
            }
        free(x), free(out), free(again);
    }
    device->ops->segment_mean(stream, NULL, 8, offsets, 0, 8, NULL);
    close_cpu();
}
END_TEST

START_TEST(test_block_scores)
{
    static const int widths[] = {1, 7, 64, 192, 577, 4096};
    static const int counts[] = {1, 2, 313};
    open_cpu(_i, 0);
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            size_t width = (size_t)widths[w], blocks = (size_t)counts[c];
            float *means = numbers(blocks * width, 1), *query = numbers(width, 2);
            float *out = poison(blocks + 1), *again = poison(blocks);
            device->ops->block_scores(stream, means, query, counts[c], widths[w], out);
            device->ops->block_scores(stream, means, query, counts[c], widths[w], again);
            check_same_bytes(out, again, blocks);
            ck_assert(isnan(out[blocks]));
            for (size_t b = 0; b < blocks; b++) {
                double sum = 0.0, size = 1.0;
                for (size_t j = 0; j < width; j++) {
                    double term = (double)means[b * width + j] * (double)query[j];
                    sum += term;
                    size += fabs(term);
                }
                check_near(out[b], sum, 2e-7 * size, "width %zu block %zu", width, b);
            }
            free(means), free(query), free(out), free(again);
        }
    close_cpu();
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {test_segment_mean, test_block_scores};
    return run_cpu_suite("cpu_index", tests, sizeof tests / sizeof *tests);
}
