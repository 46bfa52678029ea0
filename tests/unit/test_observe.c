#include <check.h>
#include <math.h>
#include <stdlib.h>

#include "daemon/fetch/gate_note.h"
#include "daemon/fetch/observe.h"
#include "daemon/ingest/calibration.h"
#include "daemon/store/notes.h"
#include "tests/unit/store_fixture.h"

START_TEST(kl_is_that_of_the_distributions)
{
    const float p[3] = {1, 2, 3}, shifted[3] = {501, 502, 503}, q[3] = {3, 2, 1};
    ck_assert_double_eq_tol(samkv_kl(p, p, 3), 0, 1e-12);
    ck_assert_double_eq_tol(samkv_kl(p, shifted, 3), 0, 1e-9);
    double sum = exp(1) + exp(2) + exp(3), wanted = 0;
    for (int i = 0; i < 3; i++)
        wanted += exp(p[i]) / sum * ((double)p[i] - q[i]);
    ck_assert_double_eq_tol(samkv_kl(p, q, 3), wanted, 1e-9);
    ck_assert_double_eq_tol(samkv_kl(shifted, q, 3), wanted, 1e-6);
    const float sure[2] = {1000, -1000}, other[2] = {-1000, 1000};
    ck_assert(isfinite(samkv_kl(sure, other, 2)) && samkv_kl(sure, other, 2) > 1000);
}
END_TEST

/* One document of 80 tokens in blocks of 10, first and last of them anchors; one layer. */
static struct samkv_blocks blocks = {80, 10, 8, 1, 7};
static float mass[8] = {0.5f, 0.1f, 0.1f, 0.3f, 0.0f, 0.2f, 0.3f, 0.5f};
static float scores[8] = {0, 1, 1, 5, 4, 2, 0, 0};
static const struct samkv_observation one = {1, 1, 8, &blocks, mass, scores};
static const uint32_t layer[1] = {0};

static double held(uint32_t factor, double ratio)
{
    const struct samkv_larger_blocks larger = {factor, 10, 10, ratio};
    return samkv_observation_held(&one, layer, 1, &larger);
}

START_TEST(larger_blocks_hold_what_their_parts_get)
{
    ck_assert_double_eq_tol(held(1, 1), 1, 1e-6);
    ck_assert_double_eq_tol(held(8, 1), 1, 1e-6);
    ck_assert_double_eq_tol(held(1, 0.25), 0, 1e-6);         /* the anchors alone */
    ck_assert_double_eq_tol(held(1, 0.375), 0.3, 1e-6);      /* and the best block, 3 */
    ck_assert_double_eq_tol(held(2, 0.5), 0.1 + 0.3, 1e-6);  /* anchors are 0, 1 and 6, 7 */
    ck_assert_double_eq_tol(held(2, 0.75), 0.4 + 0.4, 1e-6); /* then 2, 3 at 3, a tie with 4, 5: the first */
}
END_TEST

START_TEST(recall_is_of_the_best_that_could_be_held)
{
    /* A sixth of the middle is one block: block 3 is ranked first, and as much as any holds. */
    ck_assert_double_eq_tol(samkv_observation_recall(&one, layer, 1, 1.0 / 6), 1, 1e-6);
    ck_assert_double_eq_tol(samkv_observation_recall(&one, layer, 1, 2.0 / 6), 0.5, 1e-6);
}
END_TEST

/* ------------------------------------------------------------------ what is kept in the store */

static struct fixture_directory dir;
static struct samkv_store *store;
static struct samkv_error err;

static void setup(void)
{
    fixture_directory_make(&dir);
    store = fixture_open(&dir, 0);
}

static void teardown(void)
{
    samkv_store_close(store);
    fixture_directory_remove(&dir);
}

static struct samkv_snapshot *snapshot(void)
{
    struct samkv_snapshot *s;
    ck_assert_int_eq(samkv_snapshot_begin(store, &s, &err), SAMKV_OK);
    return s;
}

START_TEST(a_calibration_comes_back_and_is_checked)
{
    struct samkv_calibration c = {.fingerprint = {1, 2},
                                  .layers = {3, 5},
                                  .layer_count = 2,
                                  .ratio = 0.35,
                                  .block_tokens = 32,
                                  .init_tokens = -1,
                                  .local_tokens = 8,
                                  .samples = 16,
                                  .recall = 0.9,
                                  .agreement = 0.8,
                                  .kl = 0.1,
                                  .unix_s = 5};
    struct samkv_calibration got;
    FIXTURE_OK(samkv_calibration_save(store, &c, &err));
    struct samkv_snapshot *s = snapshot();
    FIXTURE_OK(samkv_calibration_load(s, c.fingerprint, 6, &got, &err));
    ck_assert_mem_eq(&got, &c, sizeof c);
    ck_assert_int_eq(samkv_calibration_load(s, c.fingerprint, 5, &got, &err), SAMKV_CORRUPT); /* has no layer 5 */
    const uint8_t other[16] = {9};
    ck_assert_int_eq(samkv_calibration_load(s, other, 6, &got, &err), SAMKV_NOT_FOUND);
    samkv_snapshot_end(s);
    c.layers[0] = 5;
    ck_assert_int_eq(samkv_calibration_save(store, &c, &err), SAMKV_INVALID);
    FIXTURE_OK(samkv_calibration_forget(store, c.fingerprint, &err));
    ck_assert_int_eq(samkv_calibration_forget(store, c.fingerprint, &err), SAMKV_NOT_FOUND);
}
END_TEST

START_TEST(what_is_no_calibration_is_corrupt)
{
    uint8_t name[12 + 16] = "calibration/", value[200];
    struct samkv_calibration got;
    for (size_t bytes = 0; bytes < sizeof value; bytes += 13) {
        for (size_t i = 0; i < sizeof value; i++)
            value[i] = (uint8_t)(i * 37 + bytes);
        value[0] = 1, value[1] = value[2] = value[3] = 0;
        FIXTURE_OK(samkv_store_note_put(store, name, sizeof name, value, bytes, &err));
        struct samkv_snapshot *s = snapshot();
        ck_assert_int_eq(samkv_calibration_load(s, name + 12, 8, &got, &err), SAMKV_CORRUPT);
        samkv_snapshot_end(s);
    }
}
END_TEST

START_TEST(a_gate_comes_back_and_is_checked)
{
    static struct samkv_gate gate, got; /* static: padding is zero, and they are compared as bytes */
    static struct samkv_quality_target target;
    double share;
    target.metric = SAMKV_QUALITY_KL;
    target.value = 0.05;
    samkv_gate_set(&gate, &target);
    for (int i = 0; i < 20; i++)
        samkv_gate_observe(&gate, gate.level, &(struct samkv_closeness){.kl = 0.3});
    FIXTURE_OK(samkv_gate_save(store, "c", &gate, 0.25, &err));
    struct samkv_snapshot *s = snapshot();
    FIXTURE_OK(samkv_gate_load(s, "c", &got, &share, &err));
    ck_assert_mem_eq(&got, &gate, sizeof gate);
    ck_assert_double_eq(share, 0.25);
    ck_assert_int_eq(samkv_gate_load(s, "d", &got, &share, &err), SAMKV_NOT_FOUND);
    samkv_snapshot_end(s);
    gate.level = SAMKV_GATE_LEVELS;
    FIXTURE_OK(samkv_gate_save(store, "c", &gate, 0.25, &err));
    s = snapshot();
    ck_assert_int_eq(samkv_gate_load(s, "c", &got, &share, &err), SAMKV_CORRUPT);
    samkv_snapshot_end(s);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("observe");
    TCase *pure = tcase_create("pure"), *stored = tcase_create("stored");
    tcase_add_test(pure, kl_is_that_of_the_distributions);
    tcase_add_test(pure, larger_blocks_hold_what_their_parts_get);
    tcase_add_test(pure, recall_is_of_the_best_that_could_be_held);
    tcase_add_checked_fixture(stored, setup, teardown);
    tcase_add_test(stored, a_calibration_comes_back_and_is_checked);
    tcase_add_test(stored, what_is_no_calibration_is_corrupt);
    tcase_add_test(stored, a_gate_comes_back_and_is_checked);
    suite_add_tcase(suite, pure);
    suite_add_tcase(suite, stored);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
