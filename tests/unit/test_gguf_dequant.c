/* Every tensor encoding of GGUF against reference values. */
#include <math.h>

#include "daemon/model/gguf.h"
#include "proto/tensor.h"
#include "tests/unit/model_files.h"

/*
 * Two blocks of each encoding: byte i is 7i² + 31i + 11 (mod 256), but d is the half 0x2e66 and m or dmin 0xb123.
 * Expected: elements 0, 1, 17, n/2 + 3 and n − 1, and the float64 sum of (i + 1)·element i, as gguf.dequantize() of
 * ggml's own Python package (gguf 0.19) gives them.
 */
static const struct {
    uint32_t type;
    int d_at, m_at;
    float some[5];
    double sum;
} golden[] = {
    {SAMKV_GGML_Q8_0, 0, -1, {0x1.431fp+3f, -0x1.1cbbp+3f, 0x1.5feap+2f, 0x1.2321p+3f, -0x1.3fecp+1f}, 0x1.5eb6ep+11},
    {SAMKV_GGML_Q4_0, 0, -1, {-0x1.332p-2f, -0x1.998p-4f, 0x1.998p-3f, 0x1.332p-2f, 0x1.998p-2f}, 0x1.f4ad8p+4},
    {SAMKV_GGML_Q4_1, 0, 2, {0x1.142p-1f, 0x1.5b8p-2f, 0x1.5b8p-2f, 0x1.56dp+0f, 0x1.5b8p-2f}, 0x1.463a7p+10},
    {SAMKV_GGML_Q5_0, 0, -1, {0x1.998p-4f, -0x1.ffep-2f, 0x1.332p-2f, -0x1.4cb8p+0f, -0x1.998p-2f}, 0x1.ab6548p+8},
    {SAMKV_GGML_Q5_1, 0, 2, {0x1.bd3p+0f, 0x1.2b6p+1f, 0x1.5b8p-2f, 0x1.11c8p+1f, 0x1.43p-5f}, 0x1.7fe29ep+11},
    {SAMKV_GGML_Q2_K, 80, 82, {0x1.a64cp+1f, 0x1.1988p+0f, 0x1.29cp-1f, 0x1.35d4p+1f, 0x1.665p-1f}, 0x1.2976247cp+18},
    {SAMKV_GGML_Q3_K,
     108,
     -1,
     {0x1.0323p+3f, 0x1.5984p+1f, -0x1.7fe8p+0f, -0x1.665p-1f, 0x1.a64cp+2f},
     0x1.b2dad0ap+14},
    {SAMKV_GGML_Q4_K, 0, 2, {0x1.e7bcp+5f, 0x1.7ebcp+2f, 0x1.7ebcp+2f, 0x1.1bd7p+5f, 0x1.75c4p+3f}, 0x1.08b12814p+22},
    {SAMKV_GGML_Q5_K,
     0,
     2,
     {0x1.29e4p+7f, 0x1.77d5cp+6f, 0x1.77d5cp+6f, 0x1.3256p+4f, 0x1.d22dcp+6f},
     0x1.185bf158p+23},
    {SAMKV_GGML_Q6_K,
     208,
     -1,
     {0x1.94e6bp+7f, -0x1.c1e3ep+6f, 0x1.67e98p+4f, 0x1.d6af6p+6f, 0x1.0323p+5f},
     -0x1.1e2be8fp+19},
};

START_TEST(test_golden)
{
    uint32_t elements, bytes;
    ck_assert(samkv_gguf_type_block(golden[_i].type, &elements, &bytes));
    uint8_t *raw = malloc(2 * bytes);
    float *y = malloc(2 * elements * sizeof *y);
    for (uint32_t i = 0; i < 2 * bytes; i++)
        raw[i] = (uint8_t)(i * i * 7 + i * 31 + 11);
    for (uint32_t block = 0; block < 2; block++) {
        memcpy(raw + block * bytes + golden[_i].d_at, &(uint16_t){0x2e66}, 2);
        if (golden[_i].m_at >= 0)
            memcpy(raw + block * bytes + golden[_i].m_at, &(uint16_t){0xb123}, 2);
    }
    uint32_t n = 2 * elements;
    ck_assert(samkv_gguf_dequantise(golden[_i].type, raw, n, y));
    const uint32_t places[5] = {0, 1, 17, n / 2 + 3, n - 1};
    for (int i = 0; i < 5; i++)
        ck_assert_msg(y[places[i]] == golden[_i].some[i], "element %u is %a, not %a", places[i], (double)y[places[i]],
                      (double)golden[_i].some[i]);
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)y[i] * (i + 1);
    ck_assert_msg(sum == golden[_i].sum, "%s: %a, not %a", samkv_gguf_type_name(golden[_i].type), sum, golden[_i].sum);
    ck_assert(!samkv_gguf_dequantise(golden[_i].type, raw, elements / 2, y));
    free(raw);
    free(y);
}
END_TEST

START_TEST(test_plain_floats)
{
    /* Every half, from an odd address and in a number that leaves a rest. */
    uint8_t *raw = malloc(2 * 65536 + 1);
    float *y = malloc(65536 * sizeof *y);
    for (uint32_t i = 0; i < 65536; i++)
        memcpy(raw + 1 + 2 * i, &(uint16_t){(uint16_t)i}, 2);
    ck_assert(samkv_gguf_dequantise(SAMKV_GGML_F16, raw + 1, 65533, y));
    for (uint32_t i = 0; i < 65533; i++) {
        float want = samkv_f16_to_f32((uint16_t)i);
        ck_assert(isnan(want) ? isnan(y[i]) : !memcmp(&want, &y[i], 4));
    }
    ck_assert(samkv_gguf_dequantise(SAMKV_GGML_BF16, raw + 1, 65533, y));
    for (uint32_t i = 0; i < 65533; i++) {
        float want = samkv_bf16_to_f32((uint16_t)i);
        ck_assert(isnan(want) ? isnan(y[i]) : !memcmp(&want, &y[i], 4));
    }
    for (int i = 0; i < 35; i++)
        memcpy(raw + 3 + 4 * i, &(float){(float)i}, 4);
    ck_assert(samkv_gguf_dequantise(SAMKV_GGML_F32, raw + 3, 35, y) && y[0] == 0 && y[34] == 34);
    ck_assert(!samkv_gguf_dequantise(9, raw, 32, y) && !samkv_gguf_dequantise(12345, raw, 32, y));
    free(raw);
    free(y);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gguf_dequant");
    TCase *cases = tcase_create("gguf_dequant");
    tcase_add_loop_test(cases, test_golden, 0, (int)(sizeof golden / sizeof *golden));
    tcase_add_test(cases, test_plain_floats);
    suite_add_tcase(suite, cases);
    return run_tests(suite);
}
