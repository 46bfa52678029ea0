/* What the sets with 512-bit vectors have in common. Included by cpu_simd_avx512*.c, which switch the compiler first.
 */
#define SIMD_WIDTH 16

/* Blocks of sums that fit 32 registers with their operands. */
#define SCORE_KEYS    8
#define SCORE_VECTORS 3
#define SUM_ROWS      6
#define SUM_VECTORS   4
#define DOT_ROWS      4
#define DOT_OUTS      4

#define SIMD_OWN_OPERATIONS
static inline __m512 vmax(__m512 a, __m512 b)
{
    return _mm512_max_ps(a, b);
}

static inline __m512 vround(__m512 x)
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline __m512 vscale_above(__m512 x, float limit, __m512 p, __m512 n)
{
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_NLT_UQ), p, n);
}

#include "kernels/cpu/cpu_simd_vector.h"

#define HALF_LANES 16
INLINE void half_load(const uint16_t *src, float *dst)
{
    _mm512_storeu_ps(dst, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)src)));
}

INLINE void half_store(const float *src, uint16_t *dst)
{
    _mm256_storeu_si256((__m256i *)dst, _mm512_cvtps_ph(_mm512_loadu_ps(src), _MM_FROUND_TO_NEAREST_INT));
}

#include "kernels/cpu/cpu_simd_rows.h"
#include "kernels/cpu/cpu_simd_attention.h"
#ifdef SIMD_BF16
#include "kernels/cpu/cpu_simd_attention_bf16.h"
#endif
#include "kernels/cpu/cpu_simd_table.h"
