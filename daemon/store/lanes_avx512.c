/* The codecs' loops for AVX-512 (F, BW, DQ, VL). */
#include "daemon/store/lanes.h"

#if SAMKV_LANES_X86

#include <immintrin.h>

#define LANES_TABLE samkv_lanes_avx512
#define LANES_NAME  "avx512"
#define LANES_STEP  16

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt,bmi,bmi2,prefer-vector-width=512")

typedef __m512i lanes_vector;

/* High halves of 32 x 32 bits. */
static inline __m512i multiply_high(__m512i a, __m512i b)
{
    __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(a, b), 32);
    __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32));
    return _mm512_mask_blend_epi32(0xaaaa, even, odd);
}

static inline __m512i encode_step(__m512i x, const struct samkv_entropy_code *codes, const uint16_t *modelled,
                                  uint8_t **at)
{
    __m512i at16 = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)modelled));
    __m512i reciprocal = _mm512_i32gather_epi32(at16, &codes->reciprocal, 8);
    __m512i rest = _mm512_i32gather_epi32(at16, &codes->rest, 8);
    __m512i frequency = _mm512_and_si512(_mm512_srli_epi32(rest, 12), _mm512_set1_epi32(0xfff));
    __mmask16 full = _mm512_cmpge_epu32_mask(_mm512_srli_epi32(x, 31 - SAMKV_ENTROPY_BITS), frequency);
    int count = _mm_popcnt_u32(full);
    *at -= 2 * count;
    _mm256_mask_storeu_epi16(*at, (__mmask16)((1u << count) - 1),
                             _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, x)));
    x = _mm512_mask_srli_epi32(x, full, x, 16);
    __m512i q = _mm512_srlv_epi32(multiply_high(x, reciprocal), _mm512_srli_epi32(rest, 24));
    __m512i rise = _mm512_mullo_epi32(q, _mm512_sub_epi32(_mm512_set1_epi32(1 << SAMKV_ENTROPY_BITS), frequency));
    return _mm512_add_epi32(_mm512_add_epi32(x, _mm512_and_si512(rest, _mm512_set1_epi32(0xfff))), rise);
}

/* Sixteen loads: not slower than the instruction for it where that is good, and twice as fast where it is not. */
static inline __attribute__((always_inline)) __m512i look_up(const uint32_t *slots, __m512i at)
{
    uint32_t i[16] __attribute__((aligned(64)));
    _mm512_store_si512(i, at);
    __m128i p[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        p[k] = _mm_cvtsi32_si128((int)slots[i[4 * k]]);
        p[k] = _mm_insert_epi32(p[k], (int)slots[i[4 * k + 1]], 1);
        p[k] = _mm_insert_epi32(p[k], (int)slots[i[4 * k + 2]], 2);
        p[k] = _mm_insert_epi32(p[k], (int)slots[i[4 * k + 3]], 3);
    }
    __m256i lo = _mm256_inserti128_si256(_mm256_castsi128_si256(p[0]), p[1], 1);
    __m256i hi = _mm256_inserti128_si256(_mm256_castsi128_si256(p[2]), p[3], 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(lo), hi, 1);
}

static inline __m512i decode_step(__m512i x, const uint32_t *slots, const uint8_t *context, uint16_t *symbols,
                                  const uint8_t **at)
{
    const __m512i mask = _mm512_set1_epi32((1 << SAMKV_ENTROPY_BITS) - 1);
    __m512i c = _mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)context)), SAMKV_ENTROPY_BITS);
    __m512i entry = look_up(slots, _mm512_or_si512(c, _mm512_and_si512(x, mask)));
    _mm256_storeu_si256((__m256i *)symbols, _mm512_cvtepi32_epi16(_mm512_srli_epi32(entry, 23)));
    x = _mm512_mullo_epi32(_mm512_and_si512(entry, _mm512_set1_epi32(0xfff)), _mm512_srli_epi32(x, SAMKV_ENTROPY_BITS));
    x = _mm512_add_epi32(x, _mm512_and_si512(_mm512_srli_epi32(entry, 12), mask));
    __mmask16 empty = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(SAMKV_ENTROPY_FLOOR));
    __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)*at));
    words = _mm512_maskz_expand_epi32(empty, words);
    *at += 2 * _mm_popcnt_u32(empty);
    return _mm512_mask_or_epi32(x, empty, _mm512_slli_epi32(x, 16), words);
}

#include "daemon/store/lanes_rows.h"
#pragma GCC pop_options
#endif
