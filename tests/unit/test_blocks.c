/* How documents are cut, against a count by hand of the definition: shortest prefix and suffix of whole blocks. */
#include <check.h>
#include <stdlib.h>

#include "daemon/samkv/blocks.h"

static uint32_t tokens_in(uint32_t tokens, uint32_t block, uint32_t from, uint32_t to)
{
    uint32_t n = 0;
    for (uint32_t t = 0; t < tokens; t++)
        n += t / block >= from && t / block < to;
    return n;
}

/* The definition, searched for: the fewest whole blocks at each end that hold enough tokens (or all of them). */
static struct samkv_blocks by_definition(uint32_t tokens, uint32_t block, uint32_t init, uint32_t local)
{
    struct samkv_blocks b = {.tokens = tokens, .block_tokens = block, .count = (tokens + block - 1) / block};
    while (b.init < b.count && tokens_in(tokens, block, 0, b.init) < init)
        b.init++;
    b.local = b.count;
    while (b.local > 0 && tokens_in(tokens, block, b.local, b.count) < local)
        b.local--;
    return b;
}

START_TEST(test_definition)
{
    static const uint32_t sizes[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100, 257};
    static const uint32_t blocks[] = {1, 2, 3, 8, 16, 64};
    static const uint32_t anchors[] = {0, 1, 5, 8, 16, 40, 1000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (size_t j = 0; j < sizeof blocks / sizeof *blocks; j++)
            for (size_t k = 0; k < sizeof anchors / sizeof *anchors; k++)
                for (size_t l = 0; l < sizeof anchors / sizeof *anchors; l++) {
                    struct samkv_blocks got = samkv_blocks_make(sizes[i], blocks[j], anchors[k], anchors[l]);
                    struct samkv_blocks want = by_definition(sizes[i], blocks[j], anchors[k], anchors[l]);
                    ck_assert_uint_eq(got.count, want.count);
                    ck_assert_uint_eq(got.init, want.init);
                    ck_assert_uint_eq(got.local, want.local);
                }
}
END_TEST

START_TEST(test_sizes_add_up)
{
    for (uint32_t tokens = 1; tokens < 70; tokens++) {
        for (uint32_t block = 1; block < 20; block++) {
            struct samkv_blocks b = samkv_blocks_make(tokens, block, 4, 4);
            uint32_t sum = 0;
            for (uint32_t k = 0; k < b.count; k++) {
                ck_assert_uint_eq(samkv_block_first(&b, k), sum);
                sum += samkv_block_size(&b, k);
            }
            ck_assert_uint_eq(sum, tokens);
        }
    }
}
END_TEST

START_TEST(test_short_document_is_all_anchors)
{
    struct samkv_blocks b = samkv_blocks_make(20, 16, 16, 16);
    /* 16 + 4: the last block alone has only 4 tokens, so the suffix takes both. */
    for (uint32_t k = 0; k < b.count; k++)
        ck_assert(samkv_block_is_anchor(&b, k));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("blocks");
    TCase *tc = tcase_create("blocks");
    tcase_add_test(tc, test_definition);
    tcase_add_test(tc, test_sizes_add_up);
    tcase_add_test(tc, test_short_document_is_all_anchors);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
