/* Row kernels for AVX2 with FMA and F16C: most x86-64 processors since 2013. */
#if defined(__x86_64__)
#include "kernels/cpu/cpu.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

#define SIMD_TABLE samkv_cpu_simd_avx2
#define SIMD_NAME  "avx2"
#define SIMD_WIDTH 8

/* Blocks of sums that fit 16 registers with their operands. */
#define SCORE_KEYS    4
#define SCORE_VECTORS 3
#define SUM_ROWS      6
#define SUM_VECTORS   2
#define DOT_ROWS      2
#define DOT_OUTS      4

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#include "kernels/cpu/cpu_simd_vector.h"

#define HALF_LANES 8
INLINE void half_load(const uint16_t *src, float *dst)
{
    _mm256_storeu_ps(dst, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)src)));
}

INLINE void half_store(const float *src, uint16_t *dst)
{
    _mm_storeu_si128((__m128i *)dst, _mm256_cvtps_ph(_mm256_loadu_ps(src), _MM_FROUND_TO_NEAREST_INT));
}

#include "kernels/cpu/cpu_simd_rows.h"
#include "kernels/cpu/cpu_simd_attention.h"
#include "kernels/cpu/cpu_simd_table.h"
#pragma GCC pop_options
#endif
