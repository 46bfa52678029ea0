#include "tests/unit/store_fixture.h"

#include <math.h>

#include "daemon/store/codec.h"
#include "daemon/store/entropy.h"
#include "daemon/store/planes.h"

static struct samkv_scratch_pool pool;
static struct samkv_scratch *scratch;

static void setup(void)
{
    samkv_scratch_pool_init(&pool);
    scratch = samkv_scratch_take(&pool);
    ck_assert_ptr_nonnull(scratch);
}

static void teardown(void)
{
    samkv_scratch_give(&pool, scratch);
    samkv_scratch_pool_deinit(&pool);
}

static const enum samkv_dtype dtypes[] = {SAMKV_F32, SAMKV_F16, SAMKV_BF16, SAMKV_I32};
static const size_t sizes[] = {1, 2, 3, 7, 15, 16, 17, 33, 255, 4096, 12345, 100003};

enum filling { NORMAL, ZERO, NOISE, FILLINGS };

/* `count` pieces in memory of exactly their size, so that a sanitizer sees a byte too many. */
static void **pieces_new(const struct samkv_layout *l, int filling, uint64_t seed)
{
    void **list = malloc(l->count * sizeof *list);
    for (size_t i = 0; i < l->count; i++) {
        uint8_t *p = list[i] = malloc(l->bytes);
        memset(p, filling == ZERO ? 0 : 0xa5, l->bytes);
        if (filling == NORMAL && l->dtype != SAMKV_I32)
            fixture_fill(l->dtype, seed + i, l->bytes / samkv_dtype_bytes(l->dtype), p);
        for (size_t b = 0; filling == NOISE && b < l->bytes; b++)
            p[b] = (uint8_t)fixture_random(&seed);
    }
    return list;
}

static void pieces_free(const struct samkv_layout *l, void **list)
{
    for (size_t i = 0; i < l->count; i++)
        free(list[i]);
    free(list);
}

static bool pieces_equal(const struct samkv_layout *l, void **a, void **b)
{
    for (size_t i = 0; i < l->count; i++)
        if (memcmp(a[i], b[i], l->bytes) != 0)
            return false;
    return true;
}

static void round_trip(enum samkv_codec codec, int level, struct samkv_layout l, int filling)
{
    void **src = pieces_new(&l, filling, 3), **dst = pieces_new(&l, -1, 0);
    uint8_t *payload = malloc(samkv_codec_bound(&l));
    size_t used = 0;
    ck_assert_int_eq(samkv_codec_encode(codec, level, &l, (const void *const *)src, scratch, payload, &used), SAMKV_OK);
    ck_assert_uint_le(used, samkv_codec_bound(&l));
    payload = realloc(payload, used);
    ck_assert_int_eq(samkv_codec_decode(codec, &l, payload, used, scratch, dst), SAMKV_OK);
    ck_assert_msg(pieces_equal(&l, src, dst), "codec %d level %d dtype %s %zu x %zu", codec, level,
                  samkv_dtype_name(l.dtype), l.count, l.bytes);
    free(payload);
    pieces_free(&l, src);
    pieces_free(&l, dst);
}

START_TEST(every_size_and_dtype_comes_back)
{
    size_t elements = sizes[_i];
    for (size_t t = 0; t < sizeof dtypes / sizeof *dtypes; t++)
        for (int filling = 0; filling < FILLINGS; filling++)
            for (size_t count = 1; count <= 5; count += 2) {
                struct samkv_layout l = {dtypes[t], count, elements * samkv_dtype_bytes(dtypes[t])};
                round_trip(SAMKV_CODEC_RAW, 0, l, filling);
                round_trip(SAMKV_CODEC_ZSTD, 0, l, filling);
                round_trip(SAMKV_CODEC_RANS, 0, l, filling);
                if (elements < 5000)
                    round_trip(SAMKV_CODEC_ZSTD, 9, l, filling);
            }
}
END_TEST

START_TEST(every_bit_pattern_survives)
{
    static uint16_t all[65536], back[65536];
    for (size_t i = 0; i < 65536; i++)
        all[i] = (uint16_t)i;
    struct samkv_layout l = {_i ? SAMKV_BF16 : SAMKV_F16, 1, sizeof all};
    uint8_t *payload = malloc(samkv_codec_bound(&l));
    size_t used;
    const void *src[1] = {all};
    void *dst[1] = {back};
    for (enum samkv_codec codec = SAMKV_CODEC_ZSTD; codec <= SAMKV_CODEC_RANS; codec++)
        for (l.channels = 0; l.channels <= 256; l.channels += 64) {
            memset(back, 0, sizeof back);
            ck_assert_int_eq(samkv_codec_encode(codec, 1, &l, src, scratch, payload, &used), SAMKV_OK);
            ck_assert_int_eq(samkv_codec_decode(codec, &l, payload, used, scratch, dst), SAMKV_OK);
            ck_assert_mem_eq(all, back, sizeof all);
        }
    free(payload);
}
END_TEST

START_TEST(planes_are_the_bytes)
{
    uint8_t planes[4 * 3];
    uint32_t words[3] = {0x80000001u, 0x3f800000u, 0xdeadbeefu}, back[3];
    samkv_planes_split(SAMKV_I32, words, 3, planes, 3);
    static const uint8_t want[] = {0x01, 0x00, 0xef, 0x00, 0x00, 0xbe, 0x00, 0x80, 0xad, 0x80, 0x3f, 0xde};
    ck_assert_mem_eq(planes, want, sizeof want);
    /* Floats turned by one: 1.0f is 0x3f800000, its exponent 127 fills the highest plane. */
    samkv_planes_split(SAMKV_F32, words, 3, planes, 3);
    ck_assert_uint_eq(planes[3 * 3 + 1], 127);
    ck_assert_uint_eq(planes[0], 0x03);
    const uint8_t *const at[4] = {planes, planes + 3, planes + 6, planes + 9};
    samkv_planes_join(SAMKV_F32, at, 3, back);
    ck_assert_mem_eq(words, back, sizeof back);
}
END_TEST

START_TEST(numbers_shrink_and_noise_does_not_grow)
{
    struct samkv_layout l = {SAMKV_BF16, 60, 16 * 192 * 2};
    uint8_t *payload = malloc(samkv_codec_bound(&l));
    size_t used;
    void **src = pieces_new(&l, NORMAL, 1);
    ck_assert_int_eq(samkv_codec_encode(SAMKV_CODEC_ZSTD, 0, &l, (const void *const *)src, scratch, payload, &used),
                     SAMKV_OK);
    ck_assert_msg((double)samkv_layout_bytes(&l) / (double)used > 1.3, "%zu of %zu", used, samkv_layout_bytes(&l));
    pieces_free(&l, src);
    src = pieces_new(&l, NOISE, 1);
    ck_assert_int_eq(samkv_codec_encode(SAMKV_CODEC_ZSTD, 0, &l, (const void *const *)src, scratch, payload, &used),
                     SAMKV_OK);
    ck_assert_uint_eq(used, samkv_layout_bytes(&l) + 8);
    pieces_free(&l, src);
    free(payload);
}
END_TEST

START_TEST(hostile_payloads_are_refused)
{
    struct samkv_layout l = {dtypes[_i], 4, 64 * samkv_dtype_bytes(dtypes[_i])};
    void **src = pieces_new(&l, NORMAL, 5), **dst = pieces_new(&l, -1, 0);
    uint8_t *payload = malloc(samkv_codec_bound(&l));
    size_t used;
    ck_assert_int_eq(samkv_codec_encode(SAMKV_CODEC_ZSTD, 1, &l, (const void *const *)src, scratch, payload, &used),
                     SAMKV_OK);
    for (size_t n = 0; n < used; n++) { /* every prefix, at the end of its memory */
        uint8_t *cut = malloc(n ? n : 1);
        memcpy(cut, payload, n);
        ck_assert_int_eq(samkv_codec_decode(SAMKV_CODEC_ZSTD, &l, cut, n, scratch, dst), SAMKV_CORRUPT);
        ck_assert_int_eq(samkv_codec_decode(SAMKV_CODEC_RAW, &l, cut, n, scratch, dst),
                         n == samkv_layout_bytes(&l) ? SAMKV_OK : SAMKV_CORRUPT);
        free(cut);
    }
    uint64_t state = 11;
    for (int round = 0; round < 20000; round++) { /* anything but a crash */
        uint8_t *harmed = malloc(used);
        memcpy(harmed, payload, used);
        for (uint64_t flips = 1 + fixture_random(&state) % 4; flips; flips--)
            harmed[fixture_random(&state) % (round % 2 ? used : 32)] ^= (uint8_t)(1 + fixture_random(&state) % 255);
        enum samkv_status st = samkv_codec_decode(SAMKV_CODEC_ZSTD, &l, harmed, used, scratch, dst);
        ck_assert(st == SAMKV_OK || st == SAMKV_CORRUPT);
        free(harmed);
    }
    ck_assert_int_eq(samkv_codec_encode(SAMKV_CODEC_Q8, 0, &(struct samkv_layout){SAMKV_I32, 1, 64},
                                        (const void *const *)src, scratch, payload, &used),
                     SAMKV_INVALID);
    ck_assert_int_eq(samkv_codec_decode((enum samkv_codec)77, &l, payload, used, scratch, dst), SAMKV_CORRUPT);
    free(payload);
    pieces_free(&l, src);
    pieces_free(&l, dst);
}
END_TEST

/* ------------------------------------------------------------------ pieces of tokens and channels */

static const size_t widths[] = {1, 3, 33, 64, 80, 96, 128, 192, 256, 8 * 80};
static const size_t lengths[] = {1, 2, 15, 16, 17, 40, 150};
#define COUNT_OF(list) (sizeof(list) / sizeof *(list))

static struct samkv_layout ordered(enum samkv_dtype dtype, size_t count, size_t tokens, size_t channels)
{
    return (struct samkv_layout){dtype, count, tokens * channels * samkv_dtype_bytes(dtype), channels};
}

static uint8_t *encoded(enum samkv_codec codec, const struct samkv_layout *l, void **src, size_t *used)
{
    uint8_t *payload = malloc(samkv_codec_bound(l));
    ck_assert_int_eq(samkv_codec_encode(codec, 0, l, (const void *const *)src, scratch, payload, used), SAMKV_OK);
    ck_assert_uint_le(*used, samkv_codec_bound(l));
    return realloc(payload, *used);
}

/* With every set of loops that this processor has: the same payload, and the same pieces from it. */
static void loops_agree(enum samkv_codec codec, struct samkv_layout l, int filling)
{
    void **src = pieces_new(&l, filling, 9), **first = pieces_new(&l, -1, 0), **dst = pieces_new(&l, -1, 0);
    size_t used, again;
    scratch->lanes = samkv_lanes_choice(0);
    uint8_t *payload = encoded(codec, &l, src, &used);
    for (size_t i = 0; samkv_lanes_choice(i); i++) {
        scratch->lanes = samkv_lanes_choice(i);
        uint8_t *other = encoded(codec, &l, src, &again);
        ck_assert_uint_eq(again, used);
        ck_assert_mem_eq(other, payload, used);
        free(other);
        ck_assert_int_eq(samkv_codec_decode(codec, &l, payload, used, scratch, i ? dst : first), SAMKV_OK);
        ck_assert_msg(!i || pieces_equal(&l, first, dst), "%s decodes codec %d otherwise", scratch->lanes->name, codec);
    }
    if (codec == SAMKV_CODEC_RANS)
        ck_assert_msg(pieces_equal(&l, src, first), "dtype %s, %zu bytes of %zu channels", samkv_dtype_name(l.dtype),
                      l.bytes, l.channels);
    scratch->lanes = samkv_lanes_choice(0);
    free(payload);
    pieces_free(&l, src);
    pieces_free(&l, first);
    pieces_free(&l, dst);
}

START_TEST(all_loops_agree_on_all_shapes)
{
    for (size_t t = 0; t < COUNT_OF(lengths); t++)
        for (size_t d = 0; d < COUNT_OF(dtypes); d++)
            for (int filling = 0; filling < FILLINGS; filling++)
                for (size_t count = 1; count <= 4; count += 3) {
                    struct samkv_layout l = ordered(dtypes[d], count, lengths[t], widths[_i]);
                    loops_agree(SAMKV_CODEC_RANS, l, filling);
                    if (dtypes[d] != SAMKV_I32) {
                        loops_agree(SAMKV_CODEC_Q8, l, filling);
                        loops_agree(SAMKV_CODEC_Q4, l, filling);
                    }
                }
}
END_TEST

/* Floats whose channels have scales and signs of their own, as K has. */
static void **habits_new(const struct samkv_layout *l)
{
    void **list = pieces_new(l, ZERO, 0);
    uint64_t state = 77;
    size_t element = samkv_dtype_bytes(l->dtype);
    for (size_t i = 0; i < l->count; i++)
        for (size_t j = 0; j < l->bytes / element; j++) {
            double sum = 0, channel = (double)(j % l->channels);
            for (int k = 0; k < 12; k++)
                sum += (double)(fixture_random(&state) & 0xffff) / 65536 - 0.5;
            float f = (float)((sum + 2 * sin(channel)) * exp2(fmod(channel * 7, 5)));
            uint16_t half = l->dtype == SAMKV_BF16 ? samkv_f32_to_bf16(f) : samkv_f32_to_f16(f);
            memcpy((uint8_t *)list[i] + element * j, l->dtype == SAMKV_F32 ? (void *)&f : (void *)&half, element);
        }
    return list;
}

START_TEST(habits_of_channels_pay)
{
    struct samkv_layout l = ordered(SAMKV_BF16, 60, 16, 192);
    void **src = habits_new(&l);
    static const double least[SAMKV_CODEC_COUNT] = {1, 1.4, 1.52, 2.2, 4};
    for (int codec = 0; codec < SAMKV_CODEC_COUNT; codec++) {
        size_t used;
        free(encoded((enum samkv_codec)codec, &l, src, &used));
        double ratio = (double)samkv_layout_bytes(&l) / (double)used;
        ck_assert_msg(ratio >= least[codec], "codec %d: %f", codec, ratio);
    }
    pieces_free(&l, src);
}
END_TEST

/* ------------------------------------------------------------------ lossy */

static double number(enum samkv_dtype dtype, const void *piece, size_t i)
{
    float f;
    uint16_t half;
    if (dtype == SAMKV_F32) {
        memcpy(&f, (const uint8_t *)piece + 4 * i, 4);
        return f;
    }
    memcpy(&half, (const uint8_t *)piece + 2 * i, 2);
    return dtype == SAMKV_F16 ? samkv_f16_to_f32(half) : samkv_bf16_to_f32(half);
}

/* Errors against the spread of a group of `rows` tokens and `wide` channels that begins at `from`. */
static void group_is_near(const struct samkv_layout *l, const void *x, const void *y, size_t from, size_t rows,
                          size_t wide, bool centred, double steps)
{
    double sum = 0, square = 0, top = 0, n = (double)(rows * wide);
    for (size_t t = 0; t < rows; t++)
        for (size_t c = 0; c < wide; c++) {
            double v = number(l->dtype, x, from + t * l->channels + c);
            sum += v, square += v * v, top = fmax(top, fabs(v));
        }
    double spread = sqrt(square / n - (centred ? sum * sum / n / n * (1 - 1 / n / n) : 0));
    /* Half a step, which is up to a quarter of an octave off, and the result's own rounding. */
    double most = 0.5 * 1.26 * fmax(spread / steps, top / 255 * 1.26);
    for (size_t t = 0; t < rows; t++)
        for (size_t c = 0; c < wide; c++) {
            size_t i = from + t * l->channels + c;
            double a = number(l->dtype, x, i), b = number(l->dtype, y, i);
            double rounding = fabs(a) * (l->dtype == SAMKV_BF16 ? 0x1p-7 : 0x1p-10) + 1e-7;
            ck_assert_msg(fabs(a - b) <= most + rounding, "%g became %g: spread %g", a, b, spread);
        }
}

START_TEST(lossy_codecs_stay_within_their_steps)
{
    static const struct {
        enum samkv_codec codec;
        double steps;
    } lossy[] = {{SAMKV_CODEC_Q8, 24}, {SAMKV_CODEC_Q4, 2.6}};
    for (size_t q = 0; q < COUNT_OF(lossy); q++)
        for (size_t t = 0; t < COUNT_OF(lengths); t++)
            for (size_t w = 0; w < COUNT_OF(widths); w++) {
                struct samkv_layout l = ordered(dtypes[_i], 2, lengths[t], widths[w]);
                void **src = pieces_new(&l, NORMAL, 21), **dst = pieces_new(&l, -1, 0);
                size_t used;
                uint8_t *payload = encoded(lossy[q].codec, &l, src, &used);
                ck_assert_int_eq(samkv_codec_decode(lossy[q].codec, &l, payload, used, scratch, dst), SAMKV_OK);
                for (size_t from = 0; from < lengths[t]; from += 16)
                    for (size_t c = 0; c < l.channels; c++)
                        group_is_near(&l, src[0], dst[0], from * l.channels + c,
                                      lengths[t] - from < 16 ? lengths[t] - from : 16, 1, true, lossy[q].steps);
                for (size_t token = 0; token < lengths[t]; token++)
                    for (size_t c = 0; c < l.channels; c += 32)
                        group_is_near(&l, src[1], dst[1], token * l.channels + c, 1,
                                      l.channels - c < 32 ? l.channels - c : 32, false, lossy[q].steps);
                free(payload);
                pieces_free(&l, src);
                pieces_free(&l, dst);
            }
}
END_TEST

/* Infinity, NaN with a payload, the largest, a denormal, minus zero, of each dtype. */
static const uint32_t special[3][5] = {
    {0x7f800000, 0xffc12345, 0x7f7fffff, 0x00000001, 0x80000000},
    {0x7c00, 0xfe12, 0x7bff, 0x0001, 0x8000},
    {0x7f80, 0xffc5, 0x7f7f, 0x0001, 0x8000},
};

START_TEST(groups_with_special_numbers_stay_exact)
{
    enum samkv_dtype dtype = dtypes[_i];
    size_t element = samkv_dtype_bytes(dtype);
    struct samkv_layout l = ordered(dtype, 4, 40, 96);
    for (int codec = SAMKV_CODEC_Q8; codec <= SAMKV_CODEC_Q4; codec++)
        for (size_t k = 0; k < 4; k++) {
            bool is_normal_f16 = dtype == SAMKV_F16 && k == 3; /* 2^-24 is a number like others to a float */
            void **src = pieces_new(&l, NORMAL, 31), **dst = pieces_new(&l, -1, 0);
            for (size_t p = 0; p < 2; p++) { /* channel 5 of K, tokens 16 to 31; the last 32 channels of V's token 20 */
                size_t at = 20 * 96 + (p ? 70 : 5);
                for (size_t t = 0; t < 16; t++)
                    for (size_t c = 0; is_normal_f16 == false && k == 3 && c < (p ? 32 : 1); c++)
                        memset((uint8_t *)src[p] + ((p ? 20 : 16 + t) * 96 + (p ? 64 + c : 5)) * element, 0, element);
                memcpy((uint8_t *)src[p] + at * element, &special[_i][k], element);
            }
            size_t used;
            uint8_t *payload = encoded((enum samkv_codec)codec, &l, src, &used);
            ck_assert_uint_lt(used, samkv_layout_bytes(&l));
            ck_assert_int_eq(samkv_codec_decode((enum samkv_codec)codec, &l, payload, used, scratch, dst), SAMKV_OK);
            for (size_t t = 16; t < 32 && !is_normal_f16; t++)
                ck_assert_mem_eq((uint8_t *)dst[0] + (t * 96 + 5) * element, (uint8_t *)src[0] + (t * 96 + 5) * element,
                                 element);
            if (!is_normal_f16)
                ck_assert_mem_eq((uint8_t *)dst[1] + (20 * 96 + 64) * element,
                                 (uint8_t *)src[1] + (20 * 96 + 64) * element, 32 * element);
            ck_assert_mem_ne(dst[2], src[2], l.bytes); /* the others are as lossy as ever */
            for (size_t i = 0; i < 40 * 96; i++)
                ck_assert(isfinite(number(dtype, dst[2], i)));
            free(payload);
            pieces_free(&l, src);
            pieces_free(&l, dst);
        }
}
END_TEST

START_TEST(zeros_stay_zeros)
{
    struct samkv_layout l = ordered(dtypes[_i], 4, 16, 64);
    for (int codec = SAMKV_CODEC_RANS; codec <= SAMKV_CODEC_Q4; codec++) {
        void **src = pieces_new(&l, ZERO, 0), **dst = pieces_new(&l, -1, 0);
        size_t used;
        uint8_t *payload = encoded((enum samkv_codec)codec, &l, src, &used);
        ck_assert_int_eq(samkv_codec_decode((enum samkv_codec)codec, &l, payload, used, scratch, dst), SAMKV_OK);
        ck_assert(pieces_equal(&l, src, dst));
        free(payload);
        pieces_free(&l, src);
        pieces_free(&l, dst);
    }
}
END_TEST

/* ------------------------------------------------------------------ hostile */

static void harmed_payloads(enum samkv_codec codec, const struct samkv_layout *l, const uint8_t *payload, size_t used)
{
    void **dst = pieces_new(l, -1, 0);
    for (size_t n = 0; n < used; n += n < 400 || n + 64 > used ? 1 : 101) {
        uint8_t *cut = malloc(n ? n : 1); /* at the end of its memory */
        memcpy(cut, payload, n);
        ck_assert_int_eq(samkv_codec_decode(codec, l, cut, n, scratch, dst), SAMKV_CORRUPT);
        free(cut);
    }
    uint8_t *harmed = malloc(used + 1);
    memcpy(harmed, payload, used);
    harmed[used] = 0;
    ck_assert_int_eq(samkv_codec_decode(codec, l, harmed, used + 1, scratch, dst), SAMKV_CORRUPT);
    harmed = realloc(harmed, used);
    for (size_t bit = 0; bit < 8 * used; bit += bit < 8 * 400 ? 1 : 1009) {
        harmed[bit / 8] ^= (uint8_t)(1 << bit % 8);
        enum samkv_status st = samkv_codec_decode(codec, l, harmed, used, scratch, dst);
        ck_assert(st == SAMKV_OK || st == SAMKV_CORRUPT);
        harmed[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    uint64_t state = 11;
    for (int round = 0; round < 600; round++) {
        size_t from = round % 3 == 0 ? 0 : fixture_random(&state) % used; /* noise from there on, or in the head */
        size_t to = round % 3 == 1 ? used : from + fixture_random(&state) % (used - from);
        memcpy(harmed, payload, used);
        for (size_t i = from; i < to; i++)
            harmed[i] = (uint8_t)fixture_random(&state);
        harmed[0] = (uint8_t)(round & 1); /* the form, else little is reached */
        harmed[1] = harmed[2] = harmed[3] = 0;
        enum samkv_status st = samkv_codec_decode(codec, l, harmed, used, scratch, dst);
        ck_assert(st == SAMKV_OK || st == SAMKV_CORRUPT);
    }
    free(harmed);
    pieces_free(l, dst);
}

START_TEST(hostile_streams_are_refused)
{
    static const enum samkv_codec coded[] = {SAMKV_CODEC_RANS, SAMKV_CODEC_Q8, SAMKV_CODEC_Q4};
    for (size_t k = 0; k < COUNT_OF(coded); k++)
        for (size_t i = 0; samkv_lanes_choice(i); i++) {
            struct samkv_layout l = ordered(dtypes[_i], 2, dtypes[_i] == SAMKV_F16 ? 100 : 30, 200);
            void **src = habits_new(&l);
            uint16_t infinity = 0x7c00;
            memcpy(src[1], &infinity, 2); /* an exact group, at least of f16 */
            size_t used;
            scratch->lanes = samkv_lanes_choice(i);
            uint8_t *payload = encoded(coded[k], &l, src, &used);
            ck_assert_uint_eq(payload[0], 1);
            harmed_payloads(coded[k], &l, payload, used);
            free(payload);
            pieces_free(&l, src);
        }
    scratch->lanes = samkv_lanes_choice(0);
}
END_TEST

START_TEST(tables_come_back)
{
    static struct samkv_entropy_tables t;
    static struct samkv_frequencies back;
    uint8_t bytes[SAMKV_ENTROPY_TABLE_MAX];
    uint64_t state = (uint64_t)_i;
    memset(t.counts, 0, sizeof t.counts);
    for (size_t c = 0; c < SAMKV_ENTROPY_CONTEXTS; c++) /* none, one, few and all symbols; rare beside frequent */
        for (size_t s = 0; c && s < SAMKV_ENTROPY_SYMBOLS; s++)
            if (c == 1 ? s == 511 : fixture_random(&state) % 16 < c)
                t.counts[c][s] = s % 7 == 0 ? 1u << fixture_random(&state) % 28 : 1;
    samkv_entropy_scale(&t);
    for (size_t c = 0; c < SAMKV_ENTROPY_CONTEXTS; c++) {
        uint32_t sum = 0;
        for (size_t s = 0; s < SAMKV_ENTROPY_SYMBOLS; s++) {
            ck_assert_int_eq(t.frequencies.of[c][s] > 0, t.counts[c][s] > 0);
            sum += t.frequencies.of[c][s];
        }
        ck_assert_uint_eq(sum, c ? 1u << SAMKV_ENTROPY_BITS : 0);
    }
    size_t used = samkv_entropy_write(&t.frequencies, bytes);
    ck_assert_uint_le(used, sizeof bytes);
    ck_assert(samkv_entropy_read(&back, bytes, used));
    ck_assert_mem_eq(&back, &t.frequencies, sizeof back);
    ck_assert(!samkv_entropy_read(&back, bytes, used - 1));
    bytes[used / 2] ^= 1; /* a sum, or a length, is off by one */
    ck_assert(!samkv_entropy_read(&back, bytes, used));
}
END_TEST

START_TEST(layouts_that_are_none_are_refused)
{
    static const struct samkv_layout bad[] = {
        {SAMKV_F32, 0, 4},           {SAMKV_F32, 1, 0},        {SAMKV_F32, 1, 6},
        {(enum samkv_dtype)9, 1, 4}, {SAMKV_F32, SIZE_MAX, 4}, {SAMKV_F32, 1u << 30, (size_t)1 << 40},
    };
    uint8_t out[64] = {0};
    size_t used;
    const void *src[1] = {out};
    void *dst[1] = {out};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        for (int codec = 0; codec < SAMKV_CODEC_COUNT; codec++) {
            ck_assert_int_eq(samkv_codec_encode((enum samkv_codec)codec, 1, &bad[i], src, scratch, out, &used),
                             SAMKV_INVALID);
            ck_assert_int_eq(samkv_codec_decode((enum samkv_codec)codec, &bad[i], out, 8, scratch, dst), SAMKV_INVALID);
        }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("codec");
    TCase *tc = tcase_create("codec");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, every_size_and_dtype_comes_back, 0, (int)(sizeof sizes / sizeof *sizes));
    tcase_add_loop_test(tc, every_bit_pattern_survives, 0, 2);
    tcase_add_test(tc, planes_are_the_bytes);
    tcase_add_test(tc, numbers_shrink_and_noise_does_not_grow);
    tcase_add_loop_test(tc, hostile_payloads_are_refused, 0, 4);
    tcase_add_loop_test(tc, all_loops_agree_on_all_shapes, 0, (int)COUNT_OF(widths));
    tcase_add_test(tc, habits_of_channels_pay);
    tcase_add_loop_test(tc, lossy_codecs_stay_within_their_steps, 0, 3);
    tcase_add_loop_test(tc, groups_with_special_numbers_stay_exact, 0, 3);
    tcase_add_loop_test(tc, zeros_stay_zeros, 0, 3);
    tcase_add_loop_test(tc, hostile_streams_are_refused, 0, 3);
    tcase_add_loop_test(tc, tables_come_back, 0, 20);
    tcase_add_test(tc, layouts_that_are_none_are_refused);
    tcase_set_timeout(tc, 120);
    suite_add_tcase(suite, tc);
    return fixture_run(suite);
}
