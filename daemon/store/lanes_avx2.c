/* The codecs' loops for AVX2 with FMA and F16C. */
#include "daemon/store/lanes.h"

#if SAMKV_LANES_X86

#include <immintrin.h>

#define LANES_TABLE samkv_lanes_avx2
#define LANES_NAME  "avx2"
#define LANES_STEP  8

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,popcnt,bmi,bmi2")

typedef __m256i lanes_vector;

/* Which lane of eight goes, or comes from, where: a byte for each, to the front in their order. */
static inline __m256i spread(uint64_t bytes)
{
    return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes));
}

static inline uint64_t lanes_of(unsigned mask)
{
    return _pdep_u64(mask, 0x0101010101010101u) * 255;
}

static inline __m256i multiply_high(__m256i a, __m256i b)
{
    __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(a, b), 32);
    __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
    return _mm256_blend_epi32(even, odd, 0xaa);
}

/* The lowest 16 bits of eight lanes. */
static inline __m128i low_words(__m256i v)
{
    v = _mm256_and_si256(v, _mm256_set1_epi32(0xffff));
    return _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}

static inline __m256i encode_step(__m256i x, const struct samkv_entropy_code *codes, const uint16_t *modelled,
                                  uint8_t **at)
{
    __m256i index = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)modelled));
    __m256i reciprocal = _mm256_i32gather_epi32((const int *)&codes->reciprocal, index, 8);
    __m256i rest = _mm256_i32gather_epi32((const int *)&codes->rest, index, 8);
    __m256i frequency = _mm256_and_si256(_mm256_srli_epi32(rest, 12), _mm256_set1_epi32(0xfff));
    __m256i fits = _mm256_cmpgt_epi32(frequency, _mm256_srli_epi32(x, 31 - SAMKV_ENTROPY_BITS));
    unsigned full = ~(unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(fits)) & 255;
    uint16_t words[8];
    __m256i front = spread(_pext_u64(0x0706050403020100u, lanes_of(full)));
    _mm_storeu_si128((__m128i *)words, low_words(_mm256_permutevar8x32_epi32(x, front)));
    size_t bytes = 2 * (size_t)_mm_popcnt_u32(full);
    *at -= bytes;
    __builtin_memcpy(*at, words, bytes);
    x = _mm256_blendv_epi8(_mm256_srli_epi32(x, 16), x, fits);
    __m256i q = _mm256_srlv_epi32(multiply_high(x, reciprocal), _mm256_srli_epi32(rest, 24));
    __m256i rise = _mm256_mullo_epi32(q, _mm256_sub_epi32(_mm256_set1_epi32(1 << SAMKV_ENTROPY_BITS), frequency));
    return _mm256_add_epi32(_mm256_add_epi32(x, _mm256_and_si256(rest, _mm256_set1_epi32(0xfff))), rise);
}

static inline __m256i decode_step(__m256i x, const uint32_t *slots, const uint8_t *context, uint16_t *symbols,
                                  const uint8_t **at)
{
    const __m256i mask = _mm256_set1_epi32((1 << SAMKV_ENTROPY_BITS) - 1);
    __m256i c = _mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)context)), SAMKV_ENTROPY_BITS);
    __m256i entry = _mm256_i32gather_epi32((const int *)slots, _mm256_or_si256(c, _mm256_and_si256(x, mask)), 4);
    _mm_storeu_si128((__m128i *)symbols, low_words(_mm256_srli_epi32(entry, 23)));
    x = _mm256_mullo_epi32(_mm256_and_si256(entry, _mm256_set1_epi32(0xfff)), _mm256_srli_epi32(x, SAMKV_ENTROPY_BITS));
    x = _mm256_add_epi32(x, _mm256_and_si256(_mm256_srli_epi32(entry, 12), mask));
    __m256i empty = _mm256_cmpgt_epi32(_mm256_set1_epi32(SAMKV_ENTROPY_FLOOR), x);
    unsigned bits = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(empty));
    __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)*at));
    words = _mm256_permutevar8x32_epi32(words, spread(_pdep_u64(0x0706050403020100u, lanes_of(bits))));
    *at += 2 * _mm_popcnt_u32(bits);
    return _mm256_blendv_epi8(x, _mm256_or_si256(_mm256_slli_epi32(x, 16), words), empty);
}

#include "daemon/store/lanes_rows.h"
#pragma GCC pop_options
#endif
