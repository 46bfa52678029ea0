/* Row kernels for AVX2 with FMA and F16C: most x86-64 processors since 2013. */
#include "kernels/cpu/cpu.h"

#if SAMKV_CPU_X86

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

#define SIMD_OWN_OPERATIONS
static inline __m256 vmax(__m256 a, __m256 b)
{
    return _mm256_max_ps(a, b);
}

static inline __m256 vround(__m256 x)
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline __m256 vscale_above(__m256 x, float limit, __m256 p, __m256 n)
{
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    __m256 small = _mm256_cmp_ps(x, _mm256_set1_ps(limit), _CMP_LT_OQ);
    return _mm256_andnot_ps(small, _mm256_mul_ps(p, _mm256_castsi256_ps(power)));
}

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
