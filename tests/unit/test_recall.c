#include <check.h>
#include <math.h>
#include <stdlib.h>

#include "daemon/samkv/cost.h"
#include "daemon/samkv/mass.h"
#include "daemon/samkv/recall.h"

/* Two documents of 50 and 40 tokens in blocks of 10, the first and last block of each being anchors. */
static const struct samkv_blocks documents[2] = {{50, 10, 5, 1, 4}, {40, 10, 4, 1, 3}};
static const float mass[9] = {0.5f, 0.01f, 0.04f, 0.02f, 0.1f, 0.2f, 0.03f, 0.0f, 0.1f};

static double recall_of(uint32_t *first, uint32_t first_count, uint32_t *second, uint32_t second_count)
{
    const struct samkv_selected kept[2] = {{.keep = first, .keep_count = first_count},
                                           {.keep = second, .keep_count = second_count}};
    return samkv_mass_recall(documents, 2, kept, mass);
}

START_TEST(the_best_selection_recalls_all_and_anchors_do_not_count)
{
    ck_assert_double_eq_tol(recall_of((uint32_t[]){0, 2, 4}, 3, (uint32_t[]){0, 1, 3}, 3), 1, 1e-6);
    ck_assert_double_eq_tol(recall_of((uint32_t[]){2}, 1, (uint32_t[]){1}, 1), 1, 1e-6);
    ck_assert_double_eq_tol(recall_of((uint32_t[]){0, 1, 4}, 3, (uint32_t[]){0, 2, 3}, 3), 0.01 / 0.07, 1e-6);
    ck_assert_double_lt(recall_of((uint32_t[]){0, 4}, 2, (uint32_t[]){0, 3}, 2), 0); /* nothing was chosen */
}
END_TEST

START_TEST(a_short_block_weighs_by_its_tokens)
{
    /* Blocks 1 and 2 are middle ones, of 10 and 5 tokens; as many tokens as the short one has would have held more in
     * the long one. */
    const struct samkv_blocks one = {25, 10, 3, 1, 3};
    const float m[3] = {0, 0.9f, 0.3f};
    uint32_t keep[] = {2};
    const struct samkv_selected kept = {.keep = keep, .keep_count = 1};
    ck_assert_double_eq_tol(samkv_mass_recall(&one, 1, &kept, m), 0.3 / 0.45, 1e-6);
}
END_TEST

START_TEST(the_middle_ratio_leaves_room_for_the_anchors)
{
    ck_assert_double_eq_tol(samkv_middle_ratio(documents, 2, 0), 40.0 / 90, 1e-9);
    ck_assert_double_eq_tol(samkv_middle_ratio(documents, 2, 0.5), 65.0 / 90, 1e-9);
    ck_assert_double_eq_tol(samkv_middle_ratio(documents, 2, 1), 1, 1e-9);
}
END_TEST

/* An engine of which the mass only needs sizes and a type. */
static struct samkv_model model = {.config = {.layers = 2, .heads = 4, .kv_heads = 2, .head_dim = 8, .hidden = 32}};
static struct samkv_device device = {.dtype = SAMKV_F32};
static const struct samkv_engine engine = {.model = &model, .device = &device};

START_TEST(mass_is_the_softmax_of_the_query_by_block)
{
    enum { FIRST = 9, QUERIES = 3, ROWS = FIRST + QUERIES, BLOCKS = 4 };
    struct samkv_mass m;
    float keys[ROWS][2][8], out[BLOCKS];
    double wanted[BLOCKS] = {0};
    const int32_t block_of[ROWS] = {-1, 0, 0, 1, 1, 2, 2, 3, 3, -1, -1, -1};
    ck_assert_int_eq(samkv_mass_init(&m, &engine, FIRST, ROWS, NULL), SAMKV_OK);
    float *q = (float *)m.q + (size_t)QUERIES * 32; /* of layer 1 */
    for (int i = 0; i < QUERIES * 32; i++)
        q[i] = sinf((float)i * 1.3f);
    for (int i = 0; i < ROWS * 16; i++)
        (&keys[0][0][0])[i] = cosf((float)i * 0.7f) * 2;
    for (int t = 0; t < QUERIES; t++) {
        for (int h = 0; h < 4; h++) {
            double w[ROWS], sum = 0;
            for (int i = 0; i <= FIRST + t; i++) {
                double dot = 0;
                for (int j = 0; j < 8; j++)
                    dot += (double)q[t * 32 + h * 8 + j] * keys[i][h / 2][j];
                sum += w[i] = exp(dot / sqrt(8));
            }
            for (int i = 0; i <= FIRST + t; i++)
                if (block_of[i] >= 0)
                    wanted[block_of[i]] += w[i] / sum / 4 / QUERIES;
        }
    }
    ck_assert_int_eq(samkv_mass_layer(&m, 1, keys, block_of, BLOCKS, out), SAMKV_OK);
    for (int b = 0; b < BLOCKS; b++)
        ck_assert_msg(fabs(out[b] - wanted[b]) < 1e-5, "block %d: %g, not %g", b, out[b], wanted[b]);
    samkv_mass_deinit(&m);
}
END_TEST

START_TEST(a_long_query_counts_by_its_end)
{
    struct samkv_mass m;
    ck_assert_int_eq(samkv_mass_init(&m, &engine, 10, 10 + 3 * SAMKV_MASS_MAX_QUERIES, NULL), SAMKV_OK);
    ck_assert_int_eq(m.first_row, 10 + 2 * SAMKV_MASS_MAX_QUERIES);
    ck_assert_int_eq(m.count, SAMKV_MASS_MAX_QUERIES);
    samkv_mass_deinit(&m);
}
END_TEST

START_TEST(costs_are_learned_and_fade)
{
    struct samkv_cost cost;
    samkv_cost_init(&cost);
    ck_assert_double_lt(samkv_cost_ms(&cost, SAMKV_COST_PREFILL, 1e9), 0);
    ck_assert_double_eq(samkv_cost_ms(&cost, SAMKV_COST_READ, 1e9), 0);
    samkv_cost_note(&cost, SAMKV_COST_RECOMPUTE, 1e9, 10);
    samkv_cost_note(&cost, SAMKV_COST_RECOMPUTE, 0, 10);
    samkv_cost_note(&cost, SAMKV_COST_RECOMPUTE, 1e9, 0);
    ck_assert_double_eq_tol(samkv_cost_ms(&cost, SAMKV_COST_RECOMPUTE, 2e9), 20, 1e-9);
    ck_assert_double_eq_tol(samkv_cost_ms(&cost, SAMKV_COST_PREFILL, 2e9), 20, 1e-9);
    ck_assert_double_eq_tol(samkv_cost_ms(&cost, SAMKV_COST_QUERY, 2e9), 20, 1e-9);
    ck_assert_double_eq(samkv_cost_ms(&cost, SAMKV_COST_PREFILL, 0), 0);
    for (int i = 0; i < 60; i++)
        samkv_cost_note(&cost, SAMKV_COST_RECOMPUTE, 1e9, 40);
    ck_assert_double_eq_tol(samkv_cost_ms(&cost, SAMKV_COST_RECOMPUTE, 1e9), 40, 0.5);
    samkv_cost_deinit(&cost);
}
END_TEST

START_TEST(flops_are_those_of_the_layers)
{
    const struct samkv_model_config c = {.layers = 2, .hidden = 8, .heads = 2, .kv_heads = 1, .head_dim = 4, .ffn = 16};
    /* A layer: q, k, v: 8 x 16; o: 8 x 8; gate, up, down: 3 x 8 x 16. Attention over 10 keys: 4 x 10 x 8. */
    ck_assert_double_eq(samkv_cost_flops(&c, 3, 2, 10), 3 * 2 * (2 * (128 + 64 + 384) + 320));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("recall");
    TCase *tests = tcase_create("recall");
    tcase_add_test(tests, the_best_selection_recalls_all_and_anchors_do_not_count);
    tcase_add_test(tests, a_short_block_weighs_by_its_tokens);
    tcase_add_test(tests, the_middle_ratio_leaves_room_for_the_anchors);
    tcase_add_test(tests, mass_is_the_softmax_of_the_query_by_block);
    tcase_add_test(tests, a_long_query_counts_by_its_end);
    tcase_add_test(tests, costs_are_learned_and_fade);
    tcase_add_test(tests, flops_are_those_of_the_layers);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
