/*
 * Documents in one packed pass against each alone: the stored rows and the indexes are the same. On the CPU, and on the
 * CPU as a device with memory of its own, where what a pass leaves goes through copies.
 */
#include <check.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/samkv/packed.h"
#include "daemon/samkv/prefill.h"

enum { LAYERS = 3, HIDDEN = 32, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 8, FFN = 48, VOCAB = 50, BLOCK = 8 };
enum { Q = HEADS * HEAD_DIM, KV = KV_HEADS * HEAD_DIM };
/* LONG: its local anchors lie in two passes of 512 rows. */
enum { LONG = 1028, DOCUMENTS = 8 };

/* One token, less than a block, less than the anchors, whole blocks and not, and more than one pass on the CPU. */
static const uint32_t lengths[DOCUMENTS] = {1, 5, 13, 16, 17, 64, 150, LONG};

struct fixture {
    struct samkv_model model;
    struct samkv_layer layers[LAYERS];
    struct samkv_engine engine;
    int32_t ids[DOCUMENTS][LONG], preamble_ids[20];
};

static struct samkv_error why;
static unsigned seed;

static float *random_values(size_t count, float scale, float offset)
{
    float *values = malloc(count * sizeof *values);
    for (size_t i = 0; i < count; i++)
        values[i] = offset + scale * ((float)rand_r(&seed) / (float)RAND_MAX * 2 - 1);
    return values;
}

static const void *weights(struct fixture *f, size_t count, float scale, float offset)
{
    float *values = random_values(count, scale, offset);
    const struct samkv_ops *ops = f->engine.device->ops;
    void *to;
    ck_assert_int_eq(ops->alloc(f->engine.device, count * sizeof *values, &to), SAMKV_OK);
    ops->upload(f->engine.stream, to, values, count * sizeof *values);
    ck_assert_int_eq(ops->sync(f->engine.stream, &why), SAMKV_OK);
    free(values);
    return to;
}

static void make_layer(struct fixture *f, struct samkv_layer *layer)
{
    *layer = (struct samkv_layer){
        .attn_norm = weights(f, HIDDEN, 0.2f, 1),
        .ffn_norm = weights(f, HIDDEN, 0.2f, 1),
        .wq = weights(f, Q * HIDDEN, 0.4f, 0),
        .wk = weights(f, KV * HIDDEN, 0.4f, 0),
        .wv = weights(f, KV * HIDDEN, 0.4f, 0),
        .wo = weights(f, HIDDEN * Q, 0.3f, 0),
        .w_gate = weights(f, FFN * HIDDEN, 0.3f, 0),
        .w_up = weights(f, FFN * HIDDEN, 0.3f, 0),
        .w_down = weights(f, HIDDEN * FFN, 0.3f, 0),
    };
}

static void release_layer(struct fixture *f, struct samkv_layer *l)
{
    const void *all[] = {l->attn_norm, l->ffn_norm, l->wq, l->wk, l->wv, l->wo, l->w_gate, l->w_up, l->w_down};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        f->engine.device->ops->release(f->engine.device, (void *)all[i]);
}

static void fixture_init(struct fixture *f, const char *spec)
{
    struct samkv_engine *e = &f->engine;
    memset(f, 0, sizeof *f);
    seed = 7;
    ck_assert_msg(samkv_device_open(spec, SAMKV_F32, &e->device, NULL, 0, &why) == SAMKV_OK, "%s", why.text);
    ck_assert_int_eq(e->device->unified, !strcmp(spec, "cpu"));
    ck_assert_int_eq(e->device->ops->stream_new(e->device, &e->stream), SAMKV_OK);
    f->model = (struct samkv_model){.device = e->device, .layers = f->layers};
    f->model.config = (struct samkv_model_config){.layers = LAYERS,
                                                  .hidden = HIDDEN,
                                                  .heads = HEADS,
                                                  .kv_heads = KV_HEADS,
                                                  .head_dim = HEAD_DIM,
                                                  .ffn = FFN,
                                                  .vocab = VOCAB,
                                                  .context_tokens = 4096,
                                                  .rms_eps = 1e-5f};
    samkv_config_rope_default(&f->model.config, 10000);
    f->model.embedding = weights(f, VOCAB * HIDDEN, 1, 0);
    f->model.final_norm = weights(f, HIDDEN, 0.2f, 1);
    f->model.lm_head = f->model.embedding;
    for (int l = 0; l < LAYERS; l++)
        make_layer(f, &f->layers[l]);
    e->model = &f->model;
    ck_assert_int_eq(samkv_workspace_new(e->model, &e->workspace, &why), SAMKV_OK);
    ck_assert_int_eq(samkv_prefiller_new(e->device, e->workspace, &e->prefiller), SAMKV_OK);
    ck_assert_int_eq(samkv_lane_new("test", &e->lane), SAMKV_OK);
    for (int d = 0; d < DOCUMENTS; d++)
        for (int t = 0; t < LONG; t++)
            f->ids[d][t] = rand_r(&seed) % VOCAB;
    for (int t = 0; t < 20; t++)
        f->preamble_ids[t] = rand_r(&seed) % VOCAB;
}

static void fixture_deinit(struct fixture *f)
{
    struct samkv_engine *e = &f->engine;
    samkv_lane_free(e->lane);
    samkv_prefiller_free(e->prefiller);
    samkv_workspace_free(e->workspace);
    for (int l = 0; l < LAYERS; l++)
        release_layer(f, &f->layers[l]);
    e->device->ops->release(e->device, (void *)f->model.embedding);
    e->device->ops->release(e->device, (void *)f->model.final_norm);
    e->device->ops->stream_free(e->stream);
    e->device->ops->device_free(e->device);
}

/* What is kept of a document: rows [layers][K then V][tokens][KV], and the index; f32 whatever was stored. */
struct kept {
    uint32_t tokens;
    float *rows, *index;
    size_t index_count;
};

static float value_at(const struct samkv_stage *stage, const uint8_t *at, size_t i)
{
    if (stage->shape.dtype == SAMKV_F32)
        return ((const float *)at)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)at)[i] << 16; /* bf16 */
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Of the last step, as its pieces say. */
static void keep_step(struct kept *k, const struct samkv_prefill *p)
{
    void *pieces[2 * LAYERS];
    const struct samkv_blocks *b = &p->part.blocks;
    for (uint32_t block = p->part.first / b->block_tokens; block * b->block_tokens < p->done; block++) {
        uint32_t first = samkv_block_first(b, block), size = samkv_block_size(b, block);
        samkv_prefill_pieces(p, block, pieces);
        for (int i = 0; i < 2 * LAYERS; i++)
            for (size_t j = 0; j < (size_t)size * KV; j++)
                k->rows[((size_t)i * k->tokens + first) * KV + j] = value_at(&p->landing->stage, pieces[i], j);
    }
}

struct worker {
    struct fixture *f;
    const struct samkv_preamble *preamble;
    int document;
    enum samkv_dtype stored;
    struct kept kept;
    pthread_t thread;
};

static void prefill(struct fixture *f, const struct samkv_preamble *preamble, const int32_t *ids, uint32_t tokens,
                    enum samkv_dtype stored, struct kept *kept)
{
    struct samkv_engine engine = f->engine;
    struct samkv_prefill p;
    struct samkv_error err;
    engine.stored = stored;
    struct samkv_blocks blocks = samkv_blocks_make(tokens, BLOCK, 16, 12);
    ck_assert_int_eq(samkv_prefill_init(&p, &engine, preamble, ids, &blocks, NULL, &err), SAMKV_OK);
    *kept = (struct kept){tokens, calloc((size_t)2 * LAYERS * tokens * KV, sizeof(float)),
                          calloc(p.index_count * LAYERS, sizeof(float)), p.index_count * LAYERS};
    while (p.done < tokens) {
        ck_assert_msg(samkv_prefill_step(&p, &err) == SAMKV_OK, "%s", err.text);
        keep_step(kept, &p);
        samkv_prefill_release(&p);
    }
    memcpy(kept->index, p.index, kept->index_count * sizeof(float));
    ck_assert(p.ms >= 0);
    samkv_prefill_deinit(&p);
}

static void kept_deinit(struct kept *k)
{
    free(k->rows);
    free(k->index);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    prefill(w->f, w->preamble, w->f->ids[w->document], lengths[w->document], w->stored, &w->kept);
    return NULL;
}

static void compare(const float *a, const float *b, size_t count, double tolerance, const char *what, int document)
{
    double diff = 0, norm = 0;
    for (size_t i = 0; i < count; i++) {
        diff += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    ck_assert_msg(norm > 0 && sqrt(diff / norm) <= tolerance, "%s of document %d (%u tokens): %g", what, document,
                  lengths[document], sqrt(diff / norm));
}

static void compare_kept(const struct kept *a, const struct kept *b, double tolerance, int document)
{
    compare(a->rows, b->rows, (size_t)2 * LAYERS * a->tokens * KV, tolerance, "rows", document);
    compare(a->index, b->index, a->index_count, tolerance, "index", document);
}

/* The preamble is a document behind nothing; its stored rows are what the next ones stand behind. */
struct made_preamble {
    struct kept kept;
    struct samkv_device *device;
    int loads;
};

static enum samkv_status load(void *arg, struct samkv_stage *out, struct samkv_error *err)
{
    struct made_preamble *made = arg;
    const struct samkv_kv_shape shape = {LAYERS, KV_HEADS, HEAD_DIM, SAMKV_F32};
    enum samkv_status status = samkv_stage_init(out, made->device, &shape, made->kept.tokens, err);
    if (status)
        return status;
    size_t count = (size_t)made->kept.tokens * KV;
    for (uint32_t i = 0; i < 2 * LAYERS; i++)
        memcpy(samkv_stage_row(out, i / 2, i % 2, 0), made->kept.rows + i * count, count * sizeof(float));
    made->loads++;
    return SAMKV_OK;
}

static void wait_at_gate(void *arg)
{
    pthread_mutex_lock(arg);
    pthread_mutex_unlock(arg);
}

static void *hold_lane(void *arg)
{
    struct worker *w = arg;
    samkv_lane_call(w->f->engine.lane, SAMKV_URGENT, wait_at_gate, (void *)w->preamble);
    return NULL;
}

/* All documents, each on a thread of its own: while the lane is held the first waits there, the others gather. */
static void prefill_together(struct fixture *f, const struct samkv_preamble *preamble, struct worker *w,
                             enum samkv_dtype stored)
{
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    struct worker holder = {.f = f, .preamble = (const void *)&gate};
    pthread_mutex_lock(&gate);
    ck_assert_int_eq(pthread_create(&holder.thread, NULL, hold_lane, &holder), 0);
    for (int i = 0; i < DOCUMENTS; i++) {
        w[i] = (struct worker){.f = f, .preamble = preamble, .document = i, .stored = stored};
        ck_assert_int_eq(pthread_create(&w[i].thread, NULL, worker_main, &w[i]), 0);
    }
    pthread_mutex_unlock(&gate);
    pthread_join(holder.thread, NULL);
    for (int i = 0; i < DOCUMENTS; i++)
        pthread_join(w[i].thread, NULL);
}

static const struct {
    const char *device;
    uint32_t preamble_tokens;
    enum samkv_dtype stored;
} cases[] = {
    {"cpu", 0, SAMKV_F32},          {"cpu", 11, SAMKV_F32},          {"cpu", 11, SAMKV_BF16},
    {"cpu:discrete", 0, SAMKV_F32}, {"cpu:discrete", 11, SAMKV_F32}, {"cpu:discrete", 11, SAMKV_BF16},
};

static void make_preamble(struct fixture *f, uint32_t tokens, struct made_preamble *made, struct samkv_preamble *out)
{
    const struct samkv_preamble nothing = {0};
    *made = (struct made_preamble){.device = f->engine.device};
    *out = (struct samkv_preamble){.tokens = tokens, .key = {1, 2, (uint8_t)tokens}, .load = load, .arg = made};
    if (tokens)
        prefill(f, &nothing, f->preamble_ids, tokens, SAMKV_F32, &made->kept);
}

START_TEST(test_together_as_alone)
{
    struct fixture *f = malloc(sizeof *f);
    struct made_preamble made;
    struct samkv_preamble preamble;
    struct worker together[DOCUMENTS];
    enum samkv_dtype stored = cases[_i].stored;
    double tolerance = stored == SAMKV_F32 ? 1e-5 : 2e-3; /* one rounding of bf16 may fall either way */
    fixture_init(f, cases[_i].device);
    make_preamble(f, cases[_i].preamble_tokens, &made, &preamble);
    for (int round = 0; round < 3; round++) {
        prefill_together(f, &preamble, together, stored);
        for (int d = 0; d < DOCUMENTS; d++) {
            struct kept alone;
            prefill(f, &preamble, f->ids[d], lengths[d], stored, &alone);
            compare_kept(&together[d].kept, &alone, tolerance, d);
            kept_deinit(&alone);
            kept_deinit(&together[d].kept);
        }
    }
    kept_deinit(&made.kept);
    fixture_deinit(f);
    free(f);
}
END_TEST

/* The parts of one pass, known to be in one: rows, means and local queries of each are those of its own pass. */
static void run_parts(struct fixture *f, struct samkv_packer *packer, struct samkv_landing *landing,
                      const struct samkv_preamble *preamble, struct samkv_part **parts, uint32_t count)
{
    struct samkv_stage stage = {0};
    struct samkv_packed pass = {.engine = &f->engine, .parts = parts, .count = count};
    uint8_t id[SAMKV_PREAMBLE_ID_BYTES] = {(uint8_t)preamble->tokens};
    pass.preamble_tokens = preamble->tokens;
    pass.preamble_id = id;
    samkv_packed_place(&pass);
    ck_assert_int_eq(samkv_landing_reserve(landing, &f->engine, pass.rows, pass.blocks, count, 512, &why), SAMKV_OK);
    if (!samkv_packer_has_preamble(packer, &pass)) {
        ck_assert_int_eq(preamble->load(preamble->arg, &stage, &why), SAMKV_OK);
        pass.preamble = &stage;
    }
    ck_assert_msg(samkv_packer_run(packer, &pass, landing, &why) == SAMKV_OK, "%s", why.text);
    ck_assert_int_eq(samkv_landing_wait(landing, &why), SAMKV_OK);
    samkv_stage_deinit(&stage);
}

static void keep_part(struct fixture *f, const struct samkv_landing *landing, const struct samkv_part *part,
                      struct kept *k)
{
    size_t index = samkv_index_count(&f->engine, &part->blocks) * LAYERS, count = (size_t)part->count * KV;
    *k = (struct kept){part->count, malloc(2 * LAYERS * count * sizeof(float)), calloc(index, sizeof(float)), index};
    for (uint32_t i = 0; i < 2 * LAYERS; i++)
        memcpy(k->rows + i * count, samkv_stage_row(&landing->stage, i / 2, i % 2, part->row), count * sizeof(float));
    samkv_landing_read_index(landing, &f->engine, part, k->index);
}

START_TEST(test_one_pass)
{
    struct fixture *f = malloc(sizeof *f);
    struct made_preamble made;
    struct samkv_preamble preamble;
    struct samkv_packer *packer;
    struct samkv_landing landing;
    struct samkv_part part[DOCUMENTS - 1], *parts[DOCUMENTS - 1];
    struct kept packed[DOCUMENTS - 1], alone;
    fixture_init(f, cases[_i].device);
    f->engine.stored = SAMKV_F32;
    make_preamble(f, cases[_i].preamble_tokens, &made, &preamble);
    ck_assert_int_eq(samkv_packer_new(f->engine.device, &packer), SAMKV_OK);
    samkv_landing_init(&landing, f->engine.device);
    for (int d = 0; d < DOCUMENTS - 1; d++) {
        part[d] = (struct samkv_part){.ids = f->ids[d], .count = lengths[d]};
        part[d].blocks = samkv_blocks_make(lengths[d], BLOCK, 16, 12);
        parts[d] = &part[d];
    }
    run_parts(f, packer, &landing, &preamble, parts, DOCUMENTS - 1);
    for (int d = 0; d < DOCUMENTS - 1; d++)
        keep_part(f, &landing, &part[d], &packed[d]);
    for (int d = 0; d < DOCUMENTS - 1; d++) {
        run_parts(f, packer, &landing, &preamble, parts + d, 1);
        keep_part(f, &landing, &part[d], &alone);
        compare_kept(&packed[d], &alone, 1e-5, d);
        kept_deinit(&alone);
        kept_deinit(&packed[d]);
    }
    ck_assert_int_eq(made.loads, preamble.tokens ? 1 : 0); /* it stays where it is */
    samkv_packer_free(packer);
    samkv_landing_deinit(&landing);
    kept_deinit(&made.kept);
    fixture_deinit(f);
    free(f);
}
END_TEST

/* A document behind nothing by a plain pass on the CPU, and sums over what its tap and its cache show. */
struct plain {
    struct kept kept;
    uint32_t local_first;
};

static void on_plain_layer(void *arg, struct samkv_stream *stream, const struct samkv_tap *tap)
{
    struct plain *p = arg;
    uint32_t tokens = p->kept.tokens;
    size_t index_count = p->kept.index_count / LAYERS;
    float *local = p->kept.index + (tap->layer + 1) * index_count - Q;
    (void)stream;
    for (int i = 0; i < tap->n; i++) {
        uint32_t t = (uint32_t)(tap->first + i);
        const float *q = (const float *)tap->q + (size_t)i * tap->ld;
        memcpy(p->kept.rows + ((size_t)2 * tap->layer * tokens + t) * KV, (const float *)tap->k + (size_t)i * tap->ld,
               KV * sizeof(float));
        memcpy(p->kept.rows + ((size_t)(2 * tap->layer + 1) * tokens + t) * KV,
               (const float *)tap->v + (size_t)i * tap->ld, KV * sizeof(float));
        for (int j = 0; j < Q && t >= p->local_first; j++)
            local[j] += q[j] / (float)(tokens - p->local_first);
    }
}

static void plain_init(struct plain *p, const int32_t *ids, uint32_t tokens)
{
    struct fixture *f = malloc(sizeof *f);
    struct samkv_blocks blocks = samkv_blocks_make(tokens, BLOCK, 16, 12);
    struct samkv_kv_cache cache;
    int32_t *rows = malloc(2 * tokens * sizeof *rows);
    size_t count = (size_t)blocks.count * KV + Q;
    fixture_init(f, "cpu");
    *p = (struct plain){.local_first = samkv_block_first(&blocks, blocks.local)};
    p->kept = (struct kept){tokens, calloc((size_t)2 * LAYERS * tokens * KV, sizeof(float)),
                            calloc(count * LAYERS, sizeof(float)), count * LAYERS};
    for (uint32_t i = 0; i < tokens; i++) {
        rows[i] = (int32_t)i;
        rows[tokens + i] = (int32_t)i + 1;
    }
    const struct samkv_pass pass = {.n = (int)tokens,
                                    .ids = ids,
                                    .positions = rows,
                                    .cache_rows = rows,
                                    .limits = rows + tokens,
                                    .depth = LAYERS,
                                    .tap = on_plain_layer,
                                    .tap_arg = p};
    ck_assert_int_eq(samkv_kv_cache_init(&cache, &f->model, tokens, &why), SAMKV_OK);
    ck_assert_int_eq(samkv_forward(&f->model, f->engine.stream, f->engine.workspace, &pass, &cache, &why), SAMKV_OK);
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t t = 0; t < tokens; t++)
            for (uint32_t j = 0; j < KV; j++)
                p->kept.index[l * count + t / BLOCK * KV + j] +=
                    ((const float *)samkv_kv_cache_k(&cache, l))[(size_t)t * KV + j] /
                    (float)samkv_block_size(&blocks, t / BLOCK);
    samkv_kv_cache_deinit(&cache, f->engine.device);
    free(rows);
    fixture_deinit(f);
    free(f);
}

START_TEST(test_alone_as_plain)
{
    struct fixture *f = malloc(sizeof *f);
    const struct samkv_preamble nothing = {0};
    fixture_init(f, cases[_i].device);
    for (int d = 0; d < DOCUMENTS; d++) {
        struct plain plain;
        struct kept kept;
        plain_init(&plain, f->ids[d], lengths[d]);
        prefill(f, &nothing, f->ids[d], lengths[d], cases[_i].stored, &kept);
        compare_kept(&kept, &plain.kept, cases[_i].stored == SAMKV_F32 ? 1e-5 : 4e-3, d);
        kept_deinit(&plain.kept);
        kept_deinit(&kept);
    }
    fixture_deinit(f);
    free(f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("packed");
    TCase *tc = tcase_create("packed");
    int count = sizeof cases / sizeof *cases;
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, test_together_as_alone, 0, count);
    tcase_add_loop_test(tc, test_one_pass, 0, count);
    tcase_add_loop_test(tc, test_alone_as_plain, 0, count);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
