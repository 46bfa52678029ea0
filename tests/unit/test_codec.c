#include "tests/unit/store_fixture.h"

#include "daemon/store/codec.h"
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
    ck_assert_int_eq(samkv_codec_encode(SAMKV_CODEC_ZSTD, 1, &l, src, scratch, payload, &used), SAMKV_OK);
    ck_assert_int_eq(samkv_codec_decode(SAMKV_CODEC_ZSTD, &l, payload, used, scratch, dst), SAMKV_OK);
    ck_assert_mem_eq(all, back, sizeof all);
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
    ck_assert_int_eq(samkv_codec_decode((enum samkv_codec)77, &l, payload, used, scratch, dst), SAMKV_CORRUPT);
    free(payload);
    pieces_free(&l, src);
    pieces_free(&l, dst);
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
        for (int codec = 0; codec < 2; codec++) {
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
    tcase_add_test(tc, layouts_that_are_none_are_refused);
    tcase_set_timeout(tc, 120);
    suite_add_tcase(suite, tc);
    return fixture_run(suite);
}
