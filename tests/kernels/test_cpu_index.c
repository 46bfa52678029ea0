/* The index's means and scores against twins in double. */
#include "tests/kernels/cpu_fixture.h"

START_TEST(test_segment_mean)
{
    static const int32_t offsets[] = {2, 3, 3, 19, 400, 400, 401, 1000}; /* segments 1 and 4 are empty */
    static const size_t widths[] = {1, 33, 192, 257, 600};
    enum { SEGMENTS = 7, ROWS = 1000 };
    open_cpu(_i, 0);
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
        size_t width = widths[w], ld = width + 5;
        float *x = numbers(ROWS * ld, 1), *out = poison(SEGMENTS * width + 1), *again = poison(SEGMENTS * width);
        device->ops->segment_mean(stream, x, ld, offsets, SEGMENTS, (int)width, out);
        device->ops->segment_mean(stream, x, ld, offsets, SEGMENTS, (int)width, again);
        check_same_bytes(out, again, SEGMENTS * width);
        ck_assert(isnan(out[SEGMENTS * width]));
        for (size_t s = 0; s < SEGMENTS; s++)
            for (size_t j = 0; j < width; j++) {
                double sum = 0.0;
                int count = offsets[s + 1] - offsets[s];
                for (int i = offsets[s]; i < offsets[s + 1]; i++)
                    sum += (double)x[(size_t)i * ld + j];
                check_near(out[s * width + j], count ? sum / count : 0.0, 1e-7, "segment %zu column %zu", s, j);
            }
        free(x), free(out), free(again);
    }
    device->ops->segment_mean(stream, NULL, 8, offsets, 0, 8, NULL);
    close_cpu();
}
END_TEST

START_TEST(test_block_scores)
{
    static const int widths[] = {1, 7, 64, 192, 577, 4096};
    static const int counts[] = {1, 2, 313};
    open_cpu(_i, 0);
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            size_t width = (size_t)widths[w], blocks = (size_t)counts[c];
            float *means = numbers(blocks * width, 1), *query = numbers(width, 2);
            float *out = poison(blocks + 1), *again = poison(blocks);
            device->ops->block_scores(stream, means, query, counts[c], widths[w], out);
            device->ops->block_scores(stream, means, query, counts[c], widths[w], again);
            check_same_bytes(out, again, blocks);
            ck_assert(isnan(out[blocks]));
            for (size_t b = 0; b < blocks; b++) {
                double sum = 0.0, size = 1.0;
                for (size_t j = 0; j < width; j++) {
                    double term = (double)means[b * width + j] * (double)query[j];
                    sum += term;
                    size += fabs(term);
                }
                check_near(out[b], sum, 2e-7 * size, "width %zu block %zu", width, b);
            }
            free(means), free(query), free(out), free(again);
        }
    close_cpu();
}
END_TEST

/* ------------------------------------------------------------------ score */

#define MOST_DOCUMENTS 21
#define HALF_MOST      128

struct score_case {
    int documents, layers, heads, kv_heads, dim;
    bool zeros; /* some vectors are zero, and one document has no block */
    const uint8_t *no_rope;
};

/* One case's arguments, on the heap, and the angles of every document in f64. */
struct score_data {
    struct samkv_score args;
    const float *index[MOST_DOCUMENTS * 3];
    int32_t first_block[MOST_DOCUMENTS + 1];
    float *q_query, *rope;
};

static void make_score(const struct score_case *c, struct score_data *d)
{
    size_t n = (size_t)c->documents, layers = (size_t)c->layers, dim = (size_t)c->dim;
    size_t q_width = (size_t)c->heads * dim, width = (size_t)c->kv_heads * dim;
    *d = (struct score_data){.q_query = numbers(layers * q_width, 1), .rope = poison(n * dim)};
    if (c->zeros)
        memset(d->q_query, 0, dim * sizeof *d->q_query);
    for (size_t i = 0; i < n; i++) {
        size_t blocks = c->zeros && i % 3 == 1 ? 0 : 1 + i * 5 % 9;
        d->first_block[i + 1] = d->first_block[i] + (int32_t)blocks;
        for (size_t j = 0; j < dim / 2; j++) {
            double angle = (double)(i * 977) * pow(10000.0, -2.0 * (double)j / (double)dim);
            d->rope[i * dim + j] = (float)cos(angle);
            d->rope[i * dim + dim / 2 + j] = (float)sin(angle);
        }
        for (size_t s = 0; s < layers; s++) {
            float *record = numbers(blocks * width + q_width, 100 + i * 7 + s);
            if (c->zeros && i == 0)
                memset(record + blocks * width, 0, q_width * sizeof *record);
            d->index[i * layers + s] = record;
        }
    }
    d->args = (struct samkv_score){.documents = c->documents,
                                   .layers = c->layers,
                                   .heads = c->heads,
                                   .kv_heads = c->kv_heads,
                                   .head_dim = c->dim,
                                   .q_query = d->q_query,
                                   .index = d->index,
                                   .first_block = d->first_block,
                                   .blocks = d->first_block[n],
                                   .rope = d->rope,
                                   .no_rope = c->no_rope,
                                   .work = poison(n * layers * ((size_t)c->heads + width)),
                                   .scores = poison(layers * (size_t)d->first_block[n] + 1)};
}

static void free_score(struct score_data *d)
{
    for (int i = 0; i < d->args.documents * d->args.layers; i++)
        free((void *)(uintptr_t)d->index[i]);
    free(d->q_query), free(d->rope), free(d->args.work), free(d->args.scores);
}

/* out := R(±start_i) · x, one head in layer s */
static void turned(const struct samkv_score *a, size_t i, size_t s, int sign, const double *x, double *out)
{
    size_t dim = (size_t)a->head_dim, half = dim / 2;
    for (size_t j = 0; j < half; j++) {
        bool still = a->no_rope && a->no_rope[s];
        double c = still ? 1 : (double)a->rope[i * dim + j];
        double sine = still ? 0 : sign * (double)a->rope[i * dim + half + j];
        out[j] = x[j] * c - x[j + half] * sine;
        out[j + half] = x[j + half] * c + x[j] * sine;
    }
}

/* |cos(q_j, q_query)| and q_j of one head, as the formula has them */
static double twin_cosine(const struct samkv_score *a, size_t j, size_t s, size_t h, double *q)
{
    size_t dim = (size_t)a->head_dim, blocks = (size_t)(a->first_block[j + 1] - a->first_block[j]);
    const float *local = a->index[j * (size_t)a->layers + s] + blocks * (size_t)a->kv_heads * dim + h * dim;
    const float *query = a->q_query + (s * (size_t)a->heads + h) * dim;
    double x[2 * HALF_MOST], dot = 0, qq = 0, gg = 0;
    for (size_t k = 0; k < dim; k++)
        x[k] = (double)local[k];
    turned(a, j, s, 1, x, q);
    for (size_t k = 0; k < dim; k++)
        dot += q[k] * (double)query[k], qq += q[k] * q[k], gg += (double)query[k] * (double)query[k];
    return fabs(dot / fmax(sqrt(qq) * sqrt(gg), 1e-12));
}

/* R(−start_i) · mean over the heads of g of Q̂_i, the sum over the other documents written out */
static void twin_query(const struct samkv_score *a, size_t i, size_t s, size_t g, double *out)
{
    size_t dim = (size_t)a->head_dim, group = (size_t)(a->heads / a->kv_heads);
    double mean[2 * HALF_MOST] = {0}, q[2 * HALF_MOST];
    for (size_t h = g * group; h < (g + 1) * group; h++) {
        for (size_t k = 0; k < dim; k++)
            mean[k] += (double)a->q_query[(s * (size_t)a->heads + h) * dim + k] / (double)group;
        for (size_t j = 0; j < (size_t)a->documents; j++) {
            double c = j == i ? 0 : twin_cosine(a, j, s, h, q);
            for (size_t k = 0; j != i && k < dim; k++)
                mean[k] += c * q[k] / (a->documents - 1) / (double)group;
        }
    }
    turned(a, i, s, -1, mean, out);
}

static void check_score(const struct samkv_score *a, size_t i, size_t s)
{
    size_t dim = (size_t)a->head_dim, width = (size_t)a->kv_heads * dim, first = (size_t)a->first_block[i];
    double query[64 * 2 * HALF_MOST];
    for (size_t g = 0; g < (size_t)a->kv_heads; g++)
        twin_query(a, i, s, g, query + g * dim);
    for (size_t b = first; b < (size_t)a->first_block[i + 1]; b++) {
        const float *mean = a->index[i * (size_t)a->layers + s] + (b - first) * width;
        double sum = 0, size = 1;
        for (size_t j = 0; j < width; j++) {
            sum += (double)mean[j] * query[j];
            size += fabs((double)mean[j] * query[j]);
        }
        check_near(a->scores[s * (size_t)a->blocks + b], sum, 5e-7 * size, "%d documents, dim %zu, document %zu",
                   a->documents, dim, i);
    }
}

START_TEST(test_score)
{
    static const uint8_t second[] = {0, 1, 0};
    static const struct score_case cases[] = {
        {1, 1, 1, 1, 2, false},         {1, 2, 6, 3, 64, false}, {2, 3, 9, 3, 20, false},
        {5, 2, 14, 2, 80, false},       {5, 2, 14, 2, 80, true}, {21, 2, 8, 8, 128, true},
        {3, 1, 5, 1, 256, false},       {1, 1, 2, 1, 6, true},   {5, 2, 14, 2, 80, false, second},
        {3, 3, 4, 2, 20, true, second},
    };
    open_cpu(_i, 0);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct score_data d;
        make_score(&cases[c], &d);
        size_t count = (size_t)d.args.layers * (size_t)d.args.blocks;
        device->ops->score(stream, &d.args);
        float *first = copy_of(d.args.scores, count);
        device->ops->score(stream, &d.args);
        check_same_bytes(first, d.args.scores, count);
        ck_assert(isnan(d.args.scores[count]));
        for (int p = 0; p < d.args.documents * d.args.layers; p++)
            check_score(&d.args, (size_t)(p / d.args.layers), (size_t)(p % d.args.layers));
        free(first);
        free_score(&d);
    }
    close_cpu();
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {test_segment_mean, test_block_scores, test_score};
    return run_cpu_suite("cpu_index", tests, sizeof tests / sizeof *tests);
}
