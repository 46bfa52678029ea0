/*
 * What an engine waits for: the time from a fetch request to usable K and V, through the socket, with one or more
 * clients. Prints one JSON object: medians and tails over all fetches, where the daemon's time went, and what is left
 * over. Times are milliseconds. Queries are tokens by chance, another one each time; documents are those of the
 * collection's ids PREFIX0, PREFIX1, ….
 */
#include <getopt.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/samkv/samkv.h"

#define MAX_FETCHES 100000

struct setup {
    const char *socket, *collection, *warm_collection, *between, *prefix, *label;
    const char **ids;
    size_t documents, query_tokens;
    int clients, fetches, vocab;
    struct samkv_fetch_options options;
};

struct sample {
    double wall;
    double overhead; /* what is no index, query's pass, selection or recomputation; reads may run beside these */
    struct samkv_timing t;
};

struct runner {
    const struct setup *setup;
    int number;
    struct sample *samples; /* [fetches] */
    double sequence_ratio, recompute_ratio, bytes_read, bytes_stored, kept, total, cache_bytes;
};

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static void die(const char *what, const struct samkv_error *err)
{
    fprintf(stderr, "bench_hand_off: %s: %s\n", what, err->text);
    exit(1);
}

static void fetch_once(struct runner *r, struct samkv_client *client, unsigned seed, struct sample *out)
{
    const struct setup *s = r->setup;
    struct samkv_fetch_options options = s->options;
    struct samkv_cache *cache;
    struct samkv_error err;
    int32_t *query = malloc(s->query_tokens * sizeof *query);
    for (size_t i = 0; query && i < s->query_tokens; i++)
        query[i] = 3 + (int32_t)(rand_r(&seed) % (unsigned)(s->vocab - 3));
    options.query_tokens = query;
    options.query_token_count = s->query_tokens;
    double start = now_ms();
    if (samkv_client_fetch(client, &options, &cache, &err))
        die("fetch", &err);
    out->wall = now_ms() - start;
    const struct samkv_figures *f = &cache->figures;
    out->t = f->timing_ms;
    out->overhead = out->wall - out->t.index - out->t.query - out->t.select - out->t.recompute;
    r->sequence_ratio = f->sequence_ratio;
    r->recompute_ratio = f->recompute_ratio;
    r->bytes_read = (double)f->bytes_read;
    r->bytes_stored = (double)f->bytes_stored;
    r->kept = f->kept_tokens;
    r->total = f->total_tokens;
    r->cache_bytes = 2.0 * cache->layers * cache->rows * (double)cache->row_stride_bytes;
    samkv_cache_free(cache);
    free(query);
}

static void *run(void *arg)
{
    struct runner *r = arg;
    struct samkv_client *client;
    struct samkv_error err;
    if (samkv_client_connect(r->setup->socket, &client, &err))
        die("connect", &err);
    for (int i = 0; i < r->setup->fetches; i++)
        fetch_once(r, client, (unsigned)(r->number * MAX_FETCHES + i), &r->samples[i]);
    samkv_client_close(client);
    return NULL;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* The q-th part of a double at `offset` in the samples. */
static double quantile(const struct sample *samples, int n, size_t offset, double q)
{
    double *values = malloc((size_t)n * sizeof *values);
    if (!values)
        exit(1);
    for (int i = 0; i < n; i++)
        values[i] = *(const double *)((const char *)&samples[i] + offset);
    qsort(values, (size_t)n, sizeof *values, compare);
    double out = values[(int)(q * (n - 1) + 0.5)];
    free(values);
    return out;
}

#define MEDIAN(field) quantile(samples, n, offsetof(struct sample, field), 0.5)

static void report(const struct setup *s, const struct runner *r, struct sample *samples, int n, double elapsed_ms)
{
    printf("{\"label\":\"%s\",\"documents\":%zu,\"query\":%zu,\"ratio\":%g,\"clients\":%d,\"fetches\":%d,\"placement\":"
           "\"%s\",",
           s->label, s->documents, s->query_tokens, s->options.ratio, s->clients, n,
           s->options.placement == SAMKV_FETCH_DEVICE ? "device" : "host");
    printf("\"ms\":%.3f,\"p10\":%.3f,\"p90\":%.3f,\"p99\":%.3f,\"fetches_s\":%.2f,", MEDIAN(wall),
           quantile(samples, n, offsetof(struct sample, wall), 0.1),
           quantile(samples, n, offsetof(struct sample, wall), 0.9),
           quantile(samples, n, offsetof(struct sample, wall), 0.99), n / elapsed_ms * 1e3);
    printf("\"daemon\":%.3f,\"queue\":%.3f,\"index\":%.3f,\"query_ms\":%.3f,\"select\":%.3f,\"read\":%.3f,"
           "\"recompute\":%.3f,"
           "\"reply\":%.3f,",
           MEDIAN(t.total), MEDIAN(t.queue), MEDIAN(t.index), MEDIAN(t.query), MEDIAN(t.select), MEDIAN(t.read),
           MEDIAN(t.recompute), MEDIAN(t.reply));
    printf("\"overhead\":%.3f,", MEDIAN(overhead));
    printf("\"kept\":%.0f,\"total\":%.0f,\"sequence_ratio\":%.4f,\"recompute_ratio\":%.4f,\"mb_read\":%.2f,\"mb_"
           "stored\":%.2f,"
           "\"mb_cache\":%.2f}\n",
           r->kept, r->total, r->sequence_ratio, r->recompute_ratio, r->bytes_read * 1e-6, r->bytes_stored * 1e-6,
           r->cache_bytes * 1e-6);
}

static void usage(void)
{
    fputs("usage: bench_hand_off --socket PATH [--collection NAME] [--prefix d] [--documents 16] [--query 64] [--vocab "
          "32000]\n"
          "         [--ratio 0.15] [--fixed] [--update overwrite|cosine] [--no-recompute] [--without-query] "
          "[--placement host|device]\n"
          "         [--clients 1] [--fetches 9] [--warm-up 1] [--warm-collection NAME] [--between COMMAND]"
          " [--label TEXT]\n",
          stderr);
    exit(2);
}

static int read_options(struct setup *s, int argc, char **argv)
{
    static const struct option table[] = {{"socket", 1, 0, 's'},
                                          {"collection", 1, 0, 'c'},
                                          {"prefix", 1, 0, 'p'},
                                          {"documents", 1, 0, 'd'},
                                          {"query", 1, 0, 'q'},
                                          {"vocab", 1, 0, 'v'},
                                          {"ratio", 1, 0, 'r'},
                                          {"fixed", 0, 0, 'f'},
                                          {"update", 1, 0, 'u'},
                                          {"no-recompute", 0, 0, 'n'},
                                          {"without-query", 0, 0, 'w'},
                                          {"placement", 1, 0, 'P'},
                                          {"clients", 1, 0, 'C'},
                                          {"fetches", 1, 0, 'F'},
                                          {"warm-up", 1, 0, 'W'},
                                          {"warm-collection", 1, 0, 'x'},
                                          {"between", 1, 0, 'b'},
                                          {"label", 1, 0, 'l'},
                                          {0}};
    int c, warm_up = 1;
    samkv_fetch_options_init(&s->options);
    s->options.with_query = true;
    while ((c = getopt_long(argc, argv, "", table, NULL)) != -1) {
        switch (c) {
        /* clang-format off */
        case 's': s->socket = optarg; break;
        case 'c': s->collection = optarg; break;
        case 'p': s->prefix = optarg; break;
        case 'd': s->documents = strtoul(optarg, NULL, 10); break;
        case 'q': s->query_tokens = strtoul(optarg, NULL, 10); break;
        case 'v': s->vocab = atoi(optarg); break;
        case 'r': s->options.ratio = atof(optarg); break;
        case 'f': s->options.selection = SAMKV_FETCH_FIXED; break;
        case 'u': s->options.update = strcmp(optarg, "cosine") ? SAMKV_FETCH_OVERWRITE : SAMKV_FETCH_COSINE; break;
        case 'n': s->options.no_recompute = true; break;
        case 'w': s->options.with_query = false; break;
        case 'P': s->options.placement = strcmp(optarg, "device") ? SAMKV_FETCH_HOST : SAMKV_FETCH_DEVICE; break;
        case 'C': s->clients = atoi(optarg); break;
        case 'F': s->fetches = atoi(optarg); break;
        case 'W': warm_up = atoi(optarg); break;
        case 'x': s->warm_collection = optarg; break;
        case 'b': s->between = optarg; break;
        case 'l': s->label = optarg; break;
        default: usage();
            /* clang-format on */
        }
    }
    if (optind != argc || s->documents < 1 || s->query_tokens < 1 || s->vocab < 4 || s->clients < 1 || s->fetches < 1 ||
        s->fetches > MAX_FETCHES)
        usage();
    return warm_up;
}

static void name_documents(struct setup *s)
{
    s->ids = malloc(s->documents * sizeof *s->ids);
    for (size_t i = 0; s->ids && i < s->documents; i++) {
        char *id = NULL;
        if (asprintf(&id, "%s%zu", s->prefix, i) < 0)
            exit(1);
        s->ids[i] = id;
    }
    s->options.collection = s->collection;
    s->options.ids = s->ids;
    s->options.id_count = s->documents;
}

/* Unmeasured fetches by one client: caches fill, the device's algorithms are chosen. */
static void warm_up(const struct setup *s, int fetches)
{
    struct setup few = *s;
    struct sample *samples = calloc((size_t)fetches + 1, sizeof *samples);
    struct runner r = {.setup = &few, .number = 9999, .samples = samples};
    few.fetches = fetches;
    if (s->warm_collection)
        few.options.collection = s->warm_collection;
    if (fetches > 0 && samples)
        run(&r);
    free(samples);
    if (s->between && system(s->between))
        exit(1);
}

int main(int argc, char **argv)
{
    struct setup s = {
        .prefix = "d", .label = "", .documents = 16, .query_tokens = 64, .clients = 1, .fetches = 9, .vocab = 32000};
    int fetches = read_options(&s, argc, argv);
    name_documents(&s);
    warm_up(&s, fetches);
    int n = s.clients * s.fetches;
    struct sample *samples = calloc((size_t)n, sizeof *samples);
    struct runner *runners = calloc((size_t)s.clients, sizeof *runners);
    pthread_t *threads = calloc((size_t)s.clients, sizeof *threads);
    if (!samples || !runners || !threads)
        return 1;
    double start = now_ms();
    for (int i = 0; i < s.clients; i++) {
        runners[i] = (struct runner){.setup = &s, .number = i, .samples = samples + (size_t)i * (size_t)s.fetches};
        if (pthread_create(&threads[i], NULL, run, &runners[i]))
            return 1;
    }
    for (int i = 0; i < s.clients; i++)
        pthread_join(threads[i], NULL);
    report(&s, &runners[0], samples, n, now_ms() - start);
    free(samples);
    free(runners);
    free(threads);
    return 0;
}
