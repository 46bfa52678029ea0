/*
 * An alternative to SamKV with the same kernels: recomputation in the manner of CacheBlend (Yao et al., EuroSys 2025).
 * All tokens of all documents are kept and loaded; all are recomputed through the first two layers, which tell where
 * the cached values are wrong, and a share of them through the others. Which tokens are chosen does not change what it
 * costs: here every n-th block. bench_blend MODEL STORE PREFIX DOCUMENTS QUERY-TOKENS RATIO reads the documents
 * PREFIX0, PREFIX1, … of the collection "default" and prints one JSON object, times in milliseconds.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/spin.h"
#include "daemon/fetch/job.h"

#define FULL_LAYERS 2
#define REPEATS     5

struct bench {
    struct samkv_models *models;
    struct samkv_store *store;
    struct samkv_fetch_request request;
};

static void die(const char *what, const struct samkv_error *err)
{
    fprintf(stderr, "bench_blend: %s: %s\n", what, err->text);
    exit(1);
}

/* Depths of a share of each document's blocks, evenly spread. */
static void choose(struct samkv_fetch_job *job, double ratio)
{
    for (uint32_t i = 0; i < job->document_count; i++) {
        struct samkv_selected *s = &job->selection.documents[i];
        double due = 0;
        for (uint32_t k = 0; k < s->keep_count; k++) {
            due += ratio;
            s->depth[s->keep[k]] = due >= 1 ? job->engine.model->config.layers : FULL_LAYERS;
            due -= due >= 1;
        }
    }
}

static double blend_once(struct bench *b, double *read_ms, double *recompute_ms, uint32_t *kept)
{
    struct samkv_fetch_job job;
    struct samkv_error err = {0};
    if (samkv_fetch_job_open(&job, b->models, b->store, &b->request, &err) || samkv_fetch_job_keep_all(&job, &err))
        die("open", &err);
    choose(&job, b->request.ratio);
    if (samkv_fetch_job_lay_out(&job, true, &err) ||
        samkv_kv_cache_init(&job.cache, job.engine.model, job.rows, &err) ||
        samkv_fetch_job_fill(&job, NULL, NULL, &err))
        die("fetch", &err);
    double total = samkv_now_ms() - job.started_ms;
    *read_ms = job.timing.read;
    *recompute_ms = job.timing.recompute;
    *kept = job.selection.kept_tokens;
    samkv_fetch_job_close(&job);
    return total;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void fill_request(struct samkv_fetch_request *r, const char *prefix, size_t documents, size_t query,
                         double ratio)
{
    const char **ids = malloc(documents * sizeof *ids);
    int32_t *tokens = malloc(query * sizeof *tokens);
    if (!ids || !tokens)
        exit(1);
    for (size_t i = 0; i < documents; i++) {
        char *id;
        if (asprintf(&id, "%s%zu", prefix, i) < 0)
            exit(1);
        ids[i] = id;
    }
    for (size_t i = 0; i < query; i++)
        tokens[i] = 3 + (int32_t)(i * 37 % 200);
    samkv_fetch_request_init(r);
    r->ids = ids;
    r->id_count = documents;
    r->query_tokens = tokens;
    r->query_count = query;
    r->ratio = ratio;
    r->with_query = true;
}

int main(int argc, char **argv)
{
    struct bench b = {0};
    struct samkv_error err = {0};
    double ms[REPEATS], read_ms, recompute_ms;
    uint32_t kept;
    samkv_spin_briefly(argv);
    if (argc != 7) {
        fputs("usage: bench_blend MODEL STORE PREFIX DOCUMENTS QUERY-TOKENS RATIO\n", stderr);
        return 2;
    }
    fill_request(&b.request, argv[3], strtoul(argv[4], NULL, 10), strtoul(argv[5], NULL, 10), atof(argv[6]));
    const struct samkv_models_options models = {
        .specs = (const char *const *)&argv[1], .spec_count = 1, .device = "auto", .dtype = -1};
    const struct samkv_store_options store = {.path = argv[2], .codec = SAMKV_CODEC_DEFAULT};
    if (samkv_models_open(&models, &b.models, &err) || samkv_store_open(&store, &b.store, &err))
        die("start", &err);
    if (b.models->device->unified) {
        fputs("bench_blend: this needs a GPU\n", stderr);
        return 1;
    }
    blend_once(&b, &read_ms, &recompute_ms, &kept);
    for (int i = 0; i < REPEATS; i++)
        ms[i] = blend_once(&b, &read_ms, &recompute_ms, &kept);
    qsort(ms, REPEATS, sizeof *ms, compare);
    printf(
        "{\"label\":\"cacheblend\",\"documents\":%zu,\"query\":%zu,\"ratio\":%g,\"kept\":%u,\"ms\":%.3f,\"read\":%.3f,"
        "\"recompute\":%.3f}\n",
        b.request.id_count, b.request.query_count, b.request.ratio, kept, ms[REPEATS / 2], read_ms, recompute_ms);
    samkv_store_close(b.store);
    samkv_models_close(b.models);
    return 0;
}
