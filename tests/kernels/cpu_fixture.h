#pragma once
/*
 * What the tests of the CPU backend share: one device for each instruction set, reproducible numbers, outputs that
 * hold NaN until they are written, and comparisons that NaN fails. Twins compute in double.
 */
#include <check.h>
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

/* A test runs once for each; on a processor that lacks a set, its best one is tested again. "bf16" is the best set with
 * matrices in bf16, where the processor multiplies them. */
static const char *const cpu_sets[] = {"portable", "avx2", "avx512", "avx512bf16", "bf16"};
#define CPU_SETS ((int)(sizeof cpu_sets / sizeof *cpu_sets))

static struct samkv_device *device;
static struct samkv_stream *stream;

__attribute__((unused)) static void open_cpu(int set, int threads)
{
    struct samkv_error err;
    bool bf16 = strcmp(cpu_sets[set], "bf16") == 0;
    setenv("SAMKV_CPU_ISA", bf16 ? "avx512bf16" : cpu_sets[set], 1);
    ck_assert_msg(samkv_cpu_device_new(threads, &device, &err) == SAMKV_OK, "%s", err.text);
    if (bf16)
        (void)samkv_cpu_use_bf16(device);
    ck_assert_int_eq(device->ops->stream_new(device, &stream), SAMKV_OK);
}

__attribute__((unused)) static void close_cpu(void)
{
    struct samkv_error err;
    ck_assert_msg(device->ops->sync(stream, &err) == SAMKV_OK, "%s", err.text);
    device->ops->stream_free(stream);
    device->ops->device_free(device);
}

/* Exactly `count` elements from malloc, so that a sanitizer sees every step beyond. */
__attribute__((unused)) static float *poison(size_t count)
{
    ck_assert_uint_lt(count, PTRDIFF_MAX / sizeof(float));
    float *p = malloc(count * sizeof *p + (count == 0));
    ck_assert_ptr_nonnull(p);
    for (size_t i = 0; i < count; i++)
        p[i] = NAN;
    return p;
}

/* Uniform in [-1, 1), the same for the same seed. */
__attribute__((unused)) static float *numbers(size_t count, uint64_t seed)
{
    float *p = poison(count);
    uint64_t s = seed * 0x9e3779b97f4a7c15u + 1;
    for (size_t i = 0; i < count; i++) {
        s = s * 6364136223846793005u + 1442695040888963407u;
        p[i] = (float)(int32_t)(s >> 32) / 2147483648.0f;
    }
    return p;
}

__attribute__((unused)) static float *copy_of(const float *x, size_t count)
{
    float *p = poison(count);
    memcpy(p, x, count * sizeof *p);
    return p;
}

/* Rounds to bf16 and back, in place. */
__attribute__((unused)) static void round_to_bf16(float *x, size_t count)
{
    for (size_t i = 0; i < count; i++)
        x[i] = samkv_bf16_to_f32(samkv_f32_to_bf16(x[i]));
}

/* x in the device's matrix type, heap; in bf16, x itself becomes what is left of it. */
__attribute__((unused)) static void *as_matrix(float *x, size_t count)
{
    if (!device->bf16_matrices)
        return copy_of(x, count);
    uint16_t *matrix = malloc(count * sizeof *matrix + (count == 0));
    ck_assert_ptr_nonnull(matrix);
    for (size_t i = 0; i < count; i++)
        matrix[i] = samkv_f32_to_bf16(x[i]);
    round_to_bf16(x, count);
    return matrix;
}

/* |got - want| <= tolerance, and NaN fails. */
#define check_near(got, want, tolerance, ...)                                                                          \
    do {                                                                                                               \
        double got_ = (got), want_ = (want), diff_ = fabs(got_ - want_);                                               \
        if (!(diff_ <= (tolerance))) {                                                                                 \
            char where_[128];                                                                                          \
            snprintf(where_, sizeof where_, __VA_ARGS__);                                                              \
            ck_abort_msg("%s: %.9g, want %.9g", where_, got_, want_);                                                  \
        }                                                                                                              \
    } while (0)

#define check_same_bytes(a, b, count) ck_assert_int_eq(memcmp((a), (b), (count) * sizeof *(a)), 0)

/* Runs a suite of loop tests, one round for each instruction set. */
__attribute__((unused)) static int run_cpu_suite(const char *name, const TTest *const *tests, size_t count)
{
    Suite *suite = suite_create(name);
    TCase *tcase = tcase_create("cpu");
    tcase_set_timeout(tcase, 120);
    for (size_t i = 0; i < count; i++)
        tcase_add_loop_test(tcase, tests[i], 0, CPU_SETS);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
