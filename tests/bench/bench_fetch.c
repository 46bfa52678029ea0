/*
 * The main job, measured: ten documents go in, and a question over them is fetched sparsely and prefilled in full, by
 * the same kernels in the same run.
 *
 *   bench_fetch MODEL QUESTIONS.jsonl [RATIO]
 *   bench_fetch MODEL --random DOCUMENTS TOKENS QUERY [RATIO]     token ids by chance, for a model without a tokenizer
 *
 * QUESTIONS.jsonl: {"question", "documents": [{"text"}, ...]} a line; the first line is used. Times are medians. The
 * floor beside each is FLOPs over the rate that this device reaches on a large square product.
 */
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/base/pool.h"
#include "daemon/base/spin.h"
#include "daemon/fetch/ask.h"
#include "daemon/fetch/fetch.h"
#include "daemon/ingest/ingest.h"

#define PREAMBLE      "<|im_start|>system\nAnswer with a few words, from the documents.<|im_end|>\n<|im_start|>user\n"
#define MAX_DOCUMENTS 64
#define REPEATS       5
#define IN_FLIGHT     32 /* documents of --random */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, by_value);
    return values[count / 2];
}

static void die(const char *what, const struct samkv_error *err)
{
    fprintf(stderr, "bench_fetch: %s: %s\n", what, err->text);
    exit(1);
}

/* GFLOP/s of a large square product: 2048³ on the CPU, 8192³ on a GPU. */
static double measure_peak(const struct samkv_engine *e)
{
    const int n = e->device->unified ? 2048 : 8192;
    const size_t count = (size_t)n * (size_t)n, bytes = count * samkv_dtype_bytes(e->device->dtype);
    const struct samkv_ops *ops = e->device->ops;
    float *host = malloc(count * sizeof *host);
    void *f32, *x, *w, *y;
    double best = 1e30;
    if (!host || ops->alloc(e->device, count * 4, &f32) || ops->alloc(e->device, bytes, &x) ||
        ops->alloc(e->device, bytes, &w) || ops->alloc(e->device, bytes, &y))
        exit(1);
    for (size_t i = 0; i < count; i++)
        host[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    ops->upload(e->stream, f32, host, count * 4);
    ops->convert(e->stream, f32, SAMKV_F32, x, e->device->dtype, count);
    ops->convert(e->stream, f32, SAMKV_F32, w, samkv_device_matrix_dtype(e->device), count);
    for (int i = 0; i < 8; i++) {
        const struct samkv_matmul m = {
            .x = x, .ldx = (size_t)n, .w = w, .y = y, .ldy = (size_t)n, .n = n, .in = n, .out = n};
        if (ops->sync(e->stream, NULL))
            exit(1);
        double start = samkv_now_ms();
        ops->matmul(e->stream, &m);
        if (ops->sync(e->stream, NULL))
            exit(1);
        double ms = samkv_now_ms() - start;
        best = ms < best ? ms : best;
    }
    ops->release(e->device, f32);
    ops->release(e->device, x);
    ops->release(e->device, w);
    ops->release(e->device, y);
    free(host);
    return 2.0 * n * n * n / best * 1e-6;
}

/* GFLOP of `rows` tokens through all layers, each attending to `keys` on average. */
static double gflop(const struct samkv_model_config *c, double rows, double keys)
{
    double q = (double)c->heads * c->head_dim, kv = (double)c->kv_heads * c->head_dim;
    double per_row = c->hidden * (q + 2 * kv) + q * c->hidden + 3.0 * c->hidden * c->ffn + 2 * q * keys;
    return 2 * per_row * rows * c->layers * 1e-9;
}

struct bench {
    struct samkv_models *models;
    struct samkv_store *store;
    const char *ids[MAX_DOCUMENTS];
    char names[MAX_DOCUMENTS][16];
    size_t documents;
    int32_t *query; /* --random only */
    size_t query_tokens;
    uint32_t tokens;
    double ingest_ms, prefill_ms, ingest_gflop;
    pthread_mutex_t lock; /* of what documents add up to, when several are ingested at a time */
    uint64_t raw, stored;
};

static void ingest_one(struct bench *b, const struct samkv_ingest_request *request)
{
    const struct samkv_model_config *c = &b->models->engines[0].model->config;
    struct samkv_error err = {0};
    struct samkv_ingest_result result;
    if (samkv_ingest(b->models, b->store, request, &result, &err))
        die("ingest", &err);
    pthread_mutex_lock(&b->lock);
    b->tokens += result.documents[0].tokens;
    b->raw += result.documents[0].bytes_raw;
    b->stored += result.documents[0].bytes_stored;
    b->prefill_ms += result.prefill_ms;
    b->ingest_gflop += gflop(c, result.documents[0].tokens, result.documents[0].tokens / 2.0 + 20);
    pthread_mutex_unlock(&b->lock);
    samkv_ingest_result_deinit(&result);
}

static const char *next_id(struct bench *b)
{
    snprintf(b->names[b->documents], sizeof b->names[0], "d%zu", b->documents);
    b->ids[b->documents] = b->names[b->documents];
    return b->ids[b->documents++];
}

static void ingest_texts(struct bench *b, json_t *documents)
{
    size_t i;
    json_t *document;
    double start = samkv_now_ms();
    json_array_foreach(documents, i, document)
    {
        const char *text = json_string_value(json_object_get(document, "text"));
        if (i == MAX_DOCUMENTS || !text)
            break;
        const struct samkv_ingest_request request = {
            .id = next_id(b),
            .text = text,
            .text_bytes = strlen(text),
            .spec = {.preamble_text = PREAMBLE,
                     .preamble_bytes = strlen(PREAMBLE),
                     .has_preamble = true,
                     .preamble_is_text = true,
                     .block_tokens = -1,
                     .init_tokens = -1,
                     .local_tokens = -1},
        };
        ingest_one(b, &request);
    }
    b->ingest_ms = samkv_now_ms() - start;
}

static int32_t *random_tokens(const struct bench *b, size_t count)
{
    int32_t *tokens = malloc(count * sizeof *tokens);
    if (!tokens)
        exit(1);
    for (size_t i = 0; i < count; i++)
        tokens[i] = (int32_t)((uint32_t)rand() % b->models->engines[0].model->config.vocab);
    return tokens;
}

/* Documents of chance tokens, all on their way at once as a daemon has them. */
struct random_documents {
    struct bench *bench;
    int32_t *tokens[MAX_DOCUMENTS];
    size_t count;
};

static void ingest_random_one(void *arg, int i)
{
    const struct random_documents *all = arg;
    const struct samkv_ingest_request request = {
        .id = all->bench->ids[i],
        .tokens = all->tokens[i],
        .token_count = all->count,
        .spec = {.block_tokens = -1, .init_tokens = -1, .local_tokens = -1},
    };
    ingest_one(all->bench, &request);
}

static void ingest_random(struct bench *b, size_t documents, size_t count)
{
    struct random_documents all = {.bench = b, .count = count};
    if (documents > MAX_DOCUMENTS)
        documents = MAX_DOCUMENTS;
    for (size_t i = 0; i < documents; i++) {
        all.tokens[i] = random_tokens(b, count);
        next_id(b);
    }
    double start = samkv_now_ms();
    samkv_parallel_for((int)documents, IN_FLIGHT, ingest_random_one, &all);
    b->ingest_ms = samkv_now_ms() - start;
    for (size_t i = 0; i < documents; i++)
        free(all.tokens[i]);
}

static bool on_text(void *arg, const char *text, size_t bytes)
{
    (void)arg;
    (void)text;
    (void)bytes;
    return true;
}

/* One token of an answer by this method: milliseconds until it is known. */
static double ask_ms(struct bench *b, enum samkv_ask_method method, double ratio, const char *question,
                     struct samkv_ask_result *out)
{
    struct samkv_error err = {0};
    struct samkv_ask_request r = {
        .question = question, .question_bytes = strlen(question), .method = method, .max_tokens = 1};
    samkv_fetch_request_init(&r.fetch);
    r.fetch.ids = b->ids;
    r.fetch.id_count = b->documents;
    r.fetch.ratio = ratio;
    if (samkv_ask(b->models, b->store, &r, on_text, NULL, out, &err))
        die("ask", &err);
    return out->first_token_ms;
}

static double median_ask_ms(struct bench *b, enum samkv_ask_method method, double ratio, const char *question,
                            uint32_t *rows)
{
    double ms[REPEATS];
    for (int i = 0; i < REPEATS; i++) {
        struct samkv_ask_result result;
        ms[i] = ask_ms(b, method, ratio, question, &result);
        *rows = result.prompt_tokens;
        samkv_ask_result_deinit(&result);
    }
    return median(ms, REPEATS);
}

static void fetch_once(struct bench *b, double ratio, const char *question, struct samkv_fetch_result *out)
{
    struct samkv_error err = {0};
    struct samkv_fetch_request r;
    samkv_fetch_request_init(&r);
    r.ids = b->ids;
    r.id_count = b->documents;
    r.ratio = ratio;
    r.query_text = question;
    r.query_bytes = question ? strlen(question) : 0;
    r.query_tokens = b->query;
    r.query_count = b->query_tokens;
    r.fixed = ratio == 1; /* everything, recomputed: what a full prefill computes */
    r.with_query = true;
    if (samkv_fetch(b->models, b->store, &r, out, &err))
        die("fetch", &err);
}

/* Returns the median time of the fetch; full_ms 0: there is nothing to compare with. */
static double report_fetch(struct bench *b, double ratio, const char *question, double peak, double full_ms)
{
    const struct samkv_model_config *c = &b->models->engines[0].model->config;
    struct samkv_fetch_result r;
    double ms[REPEATS];
    for (int i = 0; i < REPEATS; i++) {
        fetch_once(b, ratio, question, &r);
        ms[i] = r.timing_ms.total;
        if (i + 1 < REPEATS)
            samkv_fetch_result_deinit(&r);
    }
    double total = median(ms, REPEATS), work = gflop(c, r.recompute_ratio * r.total_tokens, r.kept_tokens / 2.0);
    printf("fetch at %.2f, with the query      %9.1f ms   floor %7.1f ms", ratio, total, work / peak * 1e3);
    if (full_ms > 0)
        printf("   %.1fx faster than the full prefill", full_ms / total);
    printf("\n");
    const struct samkv_fetch_timing *t = &r.timing_ms;
    printf("  of its last run: index+anchors %.1f, query %.1f, select %.1f, read %.1f, recompute %.1f, reply %.1f ms\n",
           t->index, t->query, t->select, t->read, t->recompute, t->reply);
    printf("  kept %u of %u tokens (%.1f %%), read %.1f of %.1f MB stored (%.1f %%)\n", r.kept_tokens, r.total_tokens,
           100 * r.sequence_ratio, (double)r.bytes_read * 1e-6, (double)r.bytes_stored * 1e-6,
           100.0 * (double)r.bytes_read / (double)r.bytes_stored);
    samkv_fetch_result_deinit(&r);
    return total;
}

static void report(struct bench *b, double ratio, const char *question)
{
    const struct samkv_engine *e = &b->models->engines[0];
    double peak = measure_peak(e), full = 0;
    uint32_t rows = 0;
    printf("device %s, large square product: %.0f GFLOP/s\n", e->device->name, peak);
    printf("%zu documents of %.0f tokens, %.1f MB of KV, %.1f MB stored (%.2fx smaller)\n", b->documents,
           (double)b->tokens / (double)b->documents, (double)b->raw * 1e-6, (double)b->stored * 1e-6,
           (double)b->raw / (double)b->stored);
    printf("ingest, to disk                    %9.0f tokens/s   %.0f %% of the product's rate\n",
           b->tokens / b->ingest_ms * 1e3, 100 * b->ingest_gflop / b->ingest_ms * 1e3 / peak);
    printf("  its prefill alone                %9.0f tokens/s   %.0f %%\n", b->tokens / b->prefill_ms * 1e3,
           100 * b->ingest_gflop / b->prefill_ms * 1e3 / peak);
    if (question) {
        full = median_ask_ms(b, SAMKV_ASK_FULL, ratio, question, &rows);
        printf("full prefill of the prompt         %9.1f ms   floor %7.1f ms   (%u tokens)\n", full,
               gflop(&e->model->config, rows, rows / 2.0) / peak * 1e3, rows);
        double reuse = median_ask_ms(b, SAMKV_ASK_REUSE, ratio, question, &rows);
        printf("naive reuse of everything stored   %9.1f ms\n", reuse);
    } else {
        full = report_fetch(b, 1, NULL, peak, 0); /* recomputes everything, and reads it besides */
    }
    report_fetch(b, ratio, question, peak, full);
}

static void fill_from_file(struct bench *b, const char *path, const char **question, json_t **line)
{
    FILE *f = fopen(path, "re");
    *line = f ? json_loadf(f, JSON_DISABLE_EOF_CHECK, NULL) : NULL;
    *question = json_string_value(json_object_get(*line, "question"));
    if (!*question) {
        fprintf(stderr, "bench_fetch: cannot read a question from %s\n", path);
        exit(1);
    }
    fclose(f);
    ingest_texts(b, json_object_get(*line, "documents"));
}

int main(int argc, char **argv)
{
    struct bench b = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct samkv_error err = {0};
    char directory[] = "/tmp/samkv-bench-XXXXXX", command[64];
    const char *question = NULL;
    json_t *line = NULL;
    samkv_spin_briefly(argv);
    bool random = argc >= 6 && !strcmp(argv[2], "--random");
    if (argc < 3 || (!random && argc > 4)) {
        fprintf(stderr, "usage: bench_fetch MODEL QUESTIONS.jsonl [RATIO]\n"
                        "       bench_fetch MODEL --random DOCUMENTS TOKENS QUERY [RATIO]\n");
        return 2;
    }
    const struct samkv_models_options models = {
        .specs = (const char *const *)&argv[1], .spec_count = 1, .device = "auto", .dtype = -1};
    const struct samkv_store_options store = {.path = directory, .codec = SAMKV_CODEC_DEFAULT};
    if (!mkdtemp(directory) || samkv_models_open(&models, &b.models, &err) || samkv_store_open(&store, &b.store, &err))
        die("start", &err);
    const char *ratio = argc > (random ? 6 : 3) ? argv[random ? 6 : 3] : "0.15";
    if (random) {
        ingest_random(&b, strtoul(argv[3], NULL, 10), strtoul(argv[4], NULL, 10));
        b.query_tokens = strtoul(argv[5], NULL, 10);
        b.query = random_tokens(&b, b.query_tokens);
    } else {
        fill_from_file(&b, argv[2], &question, &line);
    }
    report(&b, atof(ratio), question);
    samkv_store_close(b.store);
    samkv_models_close(b.models);
    json_decref(line);
    free(b.query);
    snprintf(command, sizeof command, "rm -r %s", directory);
    return system(command) ? 1 : 0;
}
