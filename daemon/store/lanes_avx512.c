/* The codecs' loops for AVX-512 (F, BW, DQ, VL). */
#include "daemon/store/lanes.h"

#if SAMKV_LANES_X86

#include <immintrin.h>

#define LANES_TABLE samkv_lanes_avx512
#define LANES_NAME  "avx512"
#define LANES_STEP  16

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt,bmi,bmi2,prefer-vector-width=512")

/* High halves of 32 x 32 bits. */
static inline __m512i multiply_high(__m512i a, __m512i b)
{
    __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(a, b), 32);
    __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32));
    return _mm512_mask_blend_epi32(0xaaaa, even, odd);
}

static inline void encode_step(uint32_t *state, const struct samkv_entropy_code *codes, const uint16_t *modelled,
                               uint8_t **at)
{
    __m512i x = _mm512_loadu_si512(state);
    __m512i at16 = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)modelled));
    __m512i reciprocal = _mm512_i32gather_epi32(at16, &codes->reciprocal, 8);
    __m512i rest = _mm512_i32gather_epi32(at16, &codes->rest, 8);
    __m512i frequency = _mm512_and_si512(_mm512_srli_epi32(rest, 12), _mm512_set1_epi32(0xfff));
    __mmask16 full = _mm512_cmpge_epu32_mask(_mm512_srli_epi32(x, 20), frequency);
    int count = _mm_popcnt_u32(full);
    *at -= 2 * count;
    _mm256_mask_storeu_epi16(*at, (__mmask16)((1u << count) - 1),
                             _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, x)));
    x = _mm512_mask_srli_epi32(x, full, x, 16);
    __m512i q = _mm512_srlv_epi32(multiply_high(x, reciprocal), _mm512_srli_epi32(rest, 24));
    __m512i rise = _mm512_mullo_epi32(q, _mm512_sub_epi32(_mm512_set1_epi32(1 << SAMKV_ENTROPY_BITS), frequency));
    x = _mm512_add_epi32(_mm512_add_epi32(x, _mm512_and_si512(rest, _mm512_set1_epi32(0xfff))), rise);
    _mm512_storeu_si512(state, x);
}

static inline void decode_step(uint32_t *state, const uint32_t *slots, const uint8_t *context, uint16_t *symbols,
                               const uint8_t **at)
{
    const __m512i mask = _mm512_set1_epi32((1 << SAMKV_ENTROPY_BITS) - 1);
    __m512i x = _mm512_loadu_si512(state);
    __m512i c = _mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)context)), SAMKV_ENTROPY_BITS);
    __m512i entry = _mm512_i32gather_epi32(_mm512_or_si512(c, _mm512_and_si512(x, mask)), slots, 4);
    _mm256_storeu_si256((__m256i *)symbols, _mm512_cvtepi32_epi16(_mm512_srli_epi32(entry, 23)));
    x = _mm512_mullo_epi32(_mm512_and_si512(entry, _mm512_set1_epi32(0xfff)), _mm512_srli_epi32(x, SAMKV_ENTROPY_BITS));
    x = _mm512_add_epi32(x, _mm512_and_si512(_mm512_srli_epi32(entry, 12), mask));
    __mmask16 empty = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(SAMKV_ENTROPY_FLOOR));
    __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)*at));
    words = _mm512_maskz_expand_epi32(empty, words);
    x = _mm512_mask_or_epi32(x, empty, _mm512_slli_epi32(x, 16), words);
    *at += 2 * _mm_popcnt_u32(empty);
    _mm512_storeu_si512(state, x);
}

#include "daemon/store/lanes_rows.h"
#pragma GCC pop_options
#endif
