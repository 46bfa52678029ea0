/*
 * Selection by itself: what must hold whatever the scores are. That the scores are the paper's is shown against
 * golden cases of the NumPy oracle in tests/integration.
 */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/samkv/select.h"

enum {
    HEADS = 4,
    KV_HEADS = 2,
    HEAD_DIM = 8,
    WIDTH = KV_HEADS * HEAD_DIM,
    Q_WIDTH = HEADS * HEAD_DIM,
    MAX_DOCUMENTS = 8,
    STABLE = 2
};

/* A made-up request over documents of random index records. */
struct world {
    struct samkv_select_input input;
    struct samkv_select_document documents[MAX_DOCUMENTS];
    const float *kmean[MAX_DOCUMENTS][STABLE], *qlocal[MAX_DOCUMENTS][STABLE], *q_query[STABLE];
    float *memory;
};

static const double inv_freq[HEAD_DIM / 2] = {1.0, 0.1, 0.01, 0.001};
static const uint32_t stable_layers[STABLE] = {2, 5};

static float *fill(float *at, size_t count)
{
    for (size_t i = 0; i < count; i++)
        at[i] = (float)rand() / (float)RAND_MAX * 2 - 1;
    return at + count;
}

static void world_init(struct world *w, unsigned seed, const uint32_t *tokens, uint32_t documents, uint32_t block,
                       uint32_t anchors)
{
    size_t floats = STABLE * Q_WIDTH;
    memset(w, 0, sizeof *w);
    srand(seed);
    for (uint32_t i = 0; i < documents; i++)
        floats += STABLE * ((tokens[i] / block + 1) * (size_t)WIDTH + Q_WIDTH);
    w->memory = malloc(floats * sizeof *w->memory);
    float *at = w->memory;
    uint32_t start = 5;
    for (uint32_t i = 0; i < documents; i++) {
        struct samkv_blocks blocks = samkv_blocks_make(tokens[i], block, anchors, anchors);
        for (uint32_t s = 0; s < STABLE; s++) {
            w->kmean[i][s] = at;
            at = fill(at, blocks.count * (size_t)WIDTH);
            w->qlocal[i][s] = at;
            at = fill(at, Q_WIDTH);
        }
        w->documents[i] = (struct samkv_select_document){blocks, start, w->kmean[i], w->qlocal[i]};
        start += tokens[i];
    }
    for (uint32_t s = 0; s < STABLE; s++) {
        w->q_query[s] = at;
        at = fill(at, Q_WIDTH);
    }
    w->input = (struct samkv_select_input){
        .stable_count = STABLE,
        .stable_layers = stable_layers,
        .heads = HEADS,
        .kv_heads = KV_HEADS,
        .head_dim = HEAD_DIM,
        .inv_freq = inv_freq,
        .q_query = w->q_query,
        .documents = w->documents,
        .document_count = documents,
        .ratio = 0.4,
    };
}

static uint64_t total_tokens(const struct world *w)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < w->input.document_count; i++)
        n += w->documents[i].blocks.tokens;
    return n;
}

static bool keeps(const struct samkv_selected *d, uint32_t block)
{
    for (uint32_t k = 0; k < d->keep_count; k++)
        if (d->keep[k] == block)
            return true;
    return false;
}

static void check_invariants(const struct world *w, const struct samkv_selection *s)
{
    uint64_t kept = 0, anchors = 0;
    for (uint32_t i = 0; i < s->document_count; i++) {
        const struct samkv_selected *d = &s->documents[i];
        const struct samkv_blocks *b = &w->documents[i].blocks;
        ck_assert(d->top_p >= 0 && d->top_p <= 1);
        for (uint32_t k = 0; k < d->keep_count; k++) {
            ck_assert(k == 0 || d->keep[k] > d->keep[k - 1]);
            kept += samkv_block_size(b, d->keep[k]);
            uint32_t depth = d->depth[d->keep[k]];
            if (w->input.fixed || samkv_block_is_anchor(b, d->keep[k]))
                ck_assert_uint_eq(depth, stable_layers[STABLE - 1] + 1);
            else
                ck_assert(depth == stable_layers[0] + 1 || depth == stable_layers[1] + 1);
        }
        for (uint32_t k = 0; k < b->count; k++) {
            if (samkv_block_is_anchor(b, k)) {
                anchors += samkv_block_size(b, k);
                ck_assert_msg(keeps(d, k), "anchor %u of document %u is not kept", k, i);
            }
        }
    }
    ck_assert_uint_eq(kept, s->kept_tokens);
    ck_assert_uint_eq(s->budget_tokens, (uint64_t)ceil(w->input.ratio * (double)total_tokens(w) - 1e-6));
    ck_assert(s->anchors_exceed_budget == (anchors > s->budget_tokens));
    ck_assert(kept <= (anchors > s->budget_tokens ? anchors : s->budget_tokens));
}

static void selected(const struct samkv_select_input *input, struct samkv_selection *out)
{
    struct samkv_error err = {0};
    ck_assert_msg(samkv_select(input, out, &err) == SAMKV_OK, "%s", err.text);
}

static const uint32_t mixed[] = {100, 1, 37, 64, 5, 81, 200, 16};

START_TEST(test_invariants)
{
    static const double ratios[] = {0.01, 0.15, 0.4, 0.99, 1.0};
    for (unsigned seed = 0; seed < 40; seed++) {
        struct world w;
        struct samkv_selection s;
        world_init(&w, seed, mixed, 1 + seed % MAX_DOCUMENTS, 1 + seed % 9, seed % 13);
        w.input.ratio = ratios[seed % 5];
        w.input.fixed = seed & 1;
        selected(&w.input, &s);
        check_invariants(&w, &s);
        samkv_selection_deinit(&s);
        free(w.memory);
    }
}
END_TEST

START_TEST(test_fixed_at_ratio_one_keeps_everything)
{
    struct world w;
    struct samkv_selection s;
    world_init(&w, 7, mixed, MAX_DOCUMENTS, 8, 8);
    w.input.ratio = 1;
    w.input.fixed = true;
    selected(&w.input, &s);
    ck_assert_uint_eq(s.kept_tokens, total_tokens(&w));
    samkv_selection_deinit(&s);
    free(w.memory);
}
END_TEST

/* The highest-scored middle block of a single document: found by the plain sum of the definition. */
START_TEST(test_best_block_wins)
{
    static const uint32_t tokens[] = {160};
    struct world w;
    struct samkv_selection s;
    world_init(&w, 3, tokens, 1, 8, 8);
    /* Block 11 gets the query's own (rotated) direction in both layers and both heads, far above the rest. */
    for (uint32_t l = 0; l < STABLE; l++) {
        float *kmean = w.memory + (w.kmean[0][l] - w.memory);
        for (uint32_t g = 0; g < KV_HEADS; g++) {
            for (uint32_t j = 0; j < HEAD_DIM / 2; j++) {
                double c = cos(5 * inv_freq[j]), n = sin(-5 * inv_freq[j]);
                double a = 0, b = 0;
                for (uint32_t h = g * 2; h < g * 2 + 2; h++) {
                    a += w.q_query[l][h * HEAD_DIM + j];
                    b += w.q_query[l][h * HEAD_DIM + j + HEAD_DIM / 2];
                }
                kmean[11 * WIDTH + g * HEAD_DIM + j] = (float)(100 * (a * c - b * n));
                kmean[11 * WIDTH + g * HEAD_DIM + j + HEAD_DIM / 2] = (float)(100 * (b * c + a * n));
            }
        }
    }
    w.input.ratio = (8 + 8 + 8) / 160.0; /* both anchors and one more */
    selected(&w.input, &s);
    ck_assert_uint_eq(s.documents[0].keep_count, 3);
    ck_assert_msg(keeps(&s.documents[0], 11), "the planted block is not kept");
    samkv_selection_deinit(&s);
    free(w.memory);
}
END_TEST

/* Turning the index by R(a) and moving the document by −a is the same document: nothing may change. */
START_TEST(test_position_is_only_a_rotation)
{
    static const uint32_t tokens[] = {120, 90};
    struct world w;
    struct samkv_selection before, after;
    const double a = 17;
    world_init(&w, 11, tokens, 2, 8, 8);
    selected(&w.input, &before);
    for (uint32_t i = 0; i < 2; i++) {
        for (uint32_t s = 0; s < STABLE; s++) {
            float *at = w.memory + (w.kmean[i][s] - w.memory);
            size_t heads = (size_t)w.documents[i].blocks.count * KV_HEADS + HEADS; /* means, then the local query */
            for (size_t h = 0; h < heads; h++) {
                for (uint32_t j = 0; j < HEAD_DIM / 2; j++) {
                    float *x = at + h * HEAD_DIM + j, *y = x + HEAD_DIM / 2, x1 = *x, y1 = *y;
                    double c = cos(a * inv_freq[j]), n = sin(a * inv_freq[j]);
                    *x = (float)(x1 * c - y1 * n);
                    *y = (float)(y1 * c + x1 * n);
                }
            }
        }
        w.documents[i].start += 100 - (uint32_t)a;
    }
    /* The query moves by 100 with the documents, so its vector turns by R(100). */
    for (uint32_t s = 0; s < STABLE; s++) {
        float *q = w.memory + (w.q_query[s] - w.memory);
        for (uint32_t h = 0; h < HEADS; h++) {
            for (uint32_t j = 0; j < HEAD_DIM / 2; j++) {
                float *x = q + h * HEAD_DIM + j, *y = x + HEAD_DIM / 2, x1 = *x, y1 = *y;
                double c = cos(100 * inv_freq[j]), n = sin(100 * inv_freq[j]);
                *x = (float)(x1 * c - y1 * n);
                *y = (float)(y1 * c + x1 * n);
            }
        }
    }
    selected(&w.input, &after);
    for (uint32_t i = 0; i < 2; i++) {
        ck_assert_double_eq_tol(before.documents[i].top_p, after.documents[i].top_p, 1e-5);
        ck_assert_uint_eq(before.documents[i].keep_count, after.documents[i].keep_count);
        ck_assert_mem_eq(before.documents[i].keep, after.documents[i].keep,
                         before.documents[i].keep_count * sizeof(uint32_t));
    }
    samkv_selection_deinit(&before);
    samkv_selection_deinit(&after);
    free(w.memory);
}
END_TEST

/* A block that is chosen brings those beside it: what is kept are runs around the best ones, within the budget. */
START_TEST(test_neighbours)
{
    static const uint32_t tokens[] = {160};
    float scores[STABLE * 20] = {0};
    for (int sides = SAMKV_NEIGHBOURS_NONE; sides <= SAMKV_NEIGHBOURS_BOTH; sides++) {
        struct world w;
        struct samkv_selection s;
        world_init(&w, 3, tokens, 1, 8, 0);
        for (uint32_t l = 0; l < STABLE; l++) {
            scores[l * 20 + 7] = 3;
            scores[l * 20 + 13] = 2;
            scores[l * 20 + 0] = 1; /* nothing on its left */
        }
        w.input.scores = scores;
        w.input.fixed = true;
        w.input.neighbours = (enum samkv_neighbours)sides;
        w.input.ratio = (sides == 0 ? 3 : sides == 1 ? 5 : 8) / 20.0;
        selected(&w.input, &s);
        check_invariants(&w, &s);
        static const char *const expected[] = {"0 7 13 ", "0 6 7 12 13 ", "0 1 6 7 8 12 13 14 "};
        char kept[64] = "";
        for (uint32_t k = 0; k < s.documents[0].keep_count; k++)
            sprintf(kept + strlen(kept), "%u ", s.documents[0].keep[k]);
        ck_assert_str_eq(kept, expected[sides]);
        samkv_selection_deinit(&s);
        free(w.memory);
    }
}
END_TEST

START_TEST(test_all)
{
    struct samkv_blocks blocks[3] = {samkv_blocks_make(33, 8, 8, 8), samkv_blocks_make(1, 8, 8, 8),
                                     samkv_blocks_make(64, 8, 8, 8)};
    struct samkv_selection s;
    ck_assert(samkv_select_all(blocks, 3, 4, &s, NULL) == SAMKV_OK);
    ck_assert_uint_eq(s.kept_tokens, 33 + 1 + 64);
    for (uint32_t i = 0; i < 3; i++) {
        ck_assert_uint_eq(s.documents[i].keep_count, blocks[i].count);
        for (uint32_t b = 0; b < blocks[i].count; b++)
            ck_assert_uint_eq(s.documents[i].depth[b], 4);
    }
    samkv_selection_deinit(&s);
}
END_TEST

/* Without RoPE in any layer the documents' places make no difference; with it they do. */
START_TEST(test_layers_without_rope)
{
    static const uint32_t tokens[] = {120, 90, 60};
    static bool none[6];
    struct samkv_selection here, there;
    for (int rope = 0; rope < 2; rope++) {
        struct world w;
        bool same = true;
        memset(none, !rope, sizeof none);
        world_init(&w, 17, tokens, 3, 8, 8);
        w.input.no_rope = none;
        selected(&w.input, &here);
        for (uint32_t i = 0; i < 3; i++)
            w.documents[i].start = 1000 * (3 - i);
        selected(&w.input, &there);
        for (uint32_t i = 0; i < 3; i++)
            same &= here.documents[i].top_p == there.documents[i].top_p;
        ck_assert_int_eq(same, !rope);
        samkv_selection_deinit(&here);
        samkv_selection_deinit(&there);
        free(w.memory);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("select");
    TCase *tc = tcase_create("select");
    tcase_add_test(tc, test_invariants);
    tcase_add_test(tc, test_fixed_at_ratio_one_keeps_everything);
    tcase_add_test(tc, test_best_block_wins);
    tcase_add_test(tc, test_position_is_only_a_rotation);
    tcase_add_test(tc, test_neighbours);
    tcase_add_test(tc, test_layers_without_rope);
    tcase_add_test(tc, test_all);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
