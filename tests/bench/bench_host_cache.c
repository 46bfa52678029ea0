/*
 * What a cache of decoded records would have: policies simulated on traces of fetches (cache_trace.h), and the store's
 * own code on the same reads.
 *
 *   bench_host_cache [SEED]
 *   bench_host_cache --store DIR     a store that no daemon has open
 *
 * Prints a Markdown table: share of the bytes that were read which came from memory, in percent, by trace and by the
 * cache's size as a share of all records' bytes. "this code" has its chunks, headers and tables in the same budget.
 *
 * With --store: what reading every block of it takes, in processor time of one thread (so that a busy machine does not
 * matter), from the data file (its pages in the page cache), with a first and with every later reading through memory.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "daemon/store/host_cache.h"
#include "daemon/store/record.h"
#include "tests/bench/cache_policies.h"
#include "tests/bench/cache_trace.h"

static const struct {
    const char *name;
    double scans, drift;
} mixes[] = {{"Zipf", 0, 0}, {"with scans", 0.05, 0}, {"with drift", 0, 0.3}, {"with fast drift", 0, 1}};
static const double alphas[] = {0.6, 0.9, 1.2}, shares[] = {0.01, 0.05, 0.10, 0.25};

enum { LRU, S3FIFO, TINYLFU, OURS, COLUMNS };

static double simulate(const struct trace *t, enum policy_kind kind, uint64_t budget)
{
    struct policy p;
    policy_init(&p, kind, budget, t->records, t->bytes);
    for (size_t i = 0; i < t->read_count; i++)
        policy_read(&p, t->reads[i]);
    double share = (double)p.hit_bytes / (double)t->read_bytes;
    policy_free(&p);
    return share;
}

static struct samkv_host_key key_of(const struct trace *t, uint32_t record)
{
    uint32_t document = t->document[record];
    struct samkv_host_key key = {.kind = SAMKV_RECORD_BLOCK, .number = record - t->first[document]};
    uint64_t state = document;
    for (int i = 0; i < 2; i++) {
        uint64_t r = trace_random(&state);
        memcpy(key.document.bytes + 8 * i, &r, 8);
    }
    return key;
}

/* Entries are made and not filled, so that only their headers take memory. */
static double replay(const struct trace *t, uint64_t budget)
{
    struct samkv_host_cache *cache;
    struct samkv_error err;
    uint64_t hit_bytes = 0;
    if (samkv_host_cache_new(budget, &cache, &err) != SAMKV_OK) {
        fprintf(stderr, "bench_host_cache: %s\n", err.text);
        exit(1);
    }
    for (size_t i = 0; i < t->read_count; i++) {
        const struct samkv_host_key key = key_of(t, t->reads[i]);
        struct samkv_hosted *entry = samkv_host_cache_find(cache, 1, &key);
        if (entry) {
            hit_bytes += t->bytes[t->reads[i]];
        } else {
            entry = samkv_host_cache_make(cache, 1, &key, t->bytes[t->reads[i]]);
            if (!entry)
                continue;
            samkv_host_cache_publish(cache, 1, entry);
        }
        samkv_host_cache_unpin(cache, entry);
    }
    samkv_host_cache_free(cache);
    return (double)hit_bytes / (double)t->read_bytes;
}

static void measure(const struct trace *t, const char *mix, double alpha, double share, double sums[COLUMNS],
                    double worst[COLUMNS])
{
    uint64_t budget = (uint64_t)(share * (double)t->footprint_bytes);
    double got[COLUMNS] = {simulate(t, POLICY_LRU, budget), simulate(t, POLICY_S3FIFO, budget),
                           simulate(t, POLICY_TINYLFU, budget), replay(t, budget)};
    double best = 0;
    for (int i = LRU; i <= TINYLFU; i++)
        best = got[i] > best ? got[i] : best;
    printf("| %s, alpha %.1f | %.0f %% |", mix, alpha, 100 * share);
    for (int i = 0; i < COLUMNS; i++) {
        printf(" %.1f |", 100 * got[i]);
        sums[i] += got[i];
        worst[i] = best - got[i] > worst[i] ? best - got[i] : worst[i];
    }
    putchar('\n');
    fflush(stdout);
}

/* ------------------------------------------------------------------ a real store */

static void must(enum samkv_status st, const struct samkv_error *err)
{
    if (st == SAMKV_OK)
        return;
    fprintf(stderr, "bench_host_cache: %s\n", err->text);
    exit(1);
}

struct reading {
    struct samkv_snapshot *snapshot;
    uint64_t raw_bytes;
};

static bool read_document(void *arg, const struct samkv_name *name)
{
    struct reading *r = arg;
    struct samkv_manifest m;
    struct samkv_error err;
    must(samkv_snapshot_manifest(r->snapshot, &name->key, &m, &err), &err);
    size_t pieces = 2 * (size_t)m.shape.layers, piece = m.block_tokens * samkv_kv_token_bytes(&m.shape) / pieces;
    uint8_t *bytes = malloc(pieces * piece);
    void **dst = malloc(pieces * sizeof *dst);
    for (size_t i = 0; bytes && dst && i < pieces; i++)
        dst[i] = bytes + i * piece;
    for (uint32_t b = 0; bytes && dst && b < m.blocks; b++)
        must(samkv_snapshot_block(r->snapshot, &m, b, dst, &err), &err);
    r->raw_bytes += m.bytes_raw;
    free(bytes), free(dst);
    return true;
}

static bool read_collection(void *arg, const struct samkv_collection *c)
{
    struct reading *r = arg;
    struct samkv_error err;
    must(samkv_snapshot_each_name(r->snapshot, c->name, "", read_document, r, &err), &err);
    return true;
}

static void read_store(struct samkv_store *store, const char *label, bool bypass, double *base)
{
    struct reading r = {0};
    struct samkv_error err;
    struct timespec from, to;
    must(samkv_snapshot_begin(store, &r.snapshot, &err), &err);
    if (bypass)
        samkv_snapshot_bypass_memory(r.snapshot);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
    must(samkv_snapshot_each_collection(r.snapshot, read_collection, &r, &err), &err);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
    double s = (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9;
    *base = *base > 0 ? *base : s;
    printf("%-34s %8.1f MB  %6.2f GB/s  %5.2f times the file's rate, %6.1f MB from the file\n", label,
           (double)r.raw_bytes / 1e6, (double)r.raw_bytes / s / 1e9, *base / s,
           (double)samkv_snapshot_bytes_read(r.snapshot) / 1e6);
    samkv_snapshot_end(r.snapshot);
}

static struct samkv_store *open_store(const char *path, uint64_t budget)
{
    const struct samkv_store_options o = {
        .path = path, .codec = SAMKV_CODEC_ZSTD, .read_only = true, .host_cache_bytes = budget};
    struct samkv_store *store;
    struct samkv_error err;
    must(samkv_store_open(&o, &store, &err), &err);
    return store;
}

static int measure_store(const char *path)
{
    double base = 0, ignored = 0;
    struct samkv_store *store = open_store(path, (uint64_t)1 << 30);
    read_store(store, "(into the page cache)", true, &ignored);
    read_store(store, "from the file", true, &base);
    read_store(store, "first through memory", false, &base);
    for (int i = 0; i < 2; i++) {
        read_store(store, "from memory", false, &base);
        read_store(store, "from the file", true, &base);
    }
    samkv_store_close(store);
    store = open_store(path, (uint64_t)8 << 20);
    read_store(store, "(fill)", false, &ignored);
    for (int i = 0; i < 2; i++) {
        read_store(store, "through 8 MiB: hardly any hit", false, &base);
        read_store(store, "from the file", true, &base);
    }
    samkv_store_close(store);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "--store"))
        return measure_store(argv[2]);
    double sums[COLUMNS] = {0}, worst[COLUMNS] = {0};
    int rows = 0;
    puts("| trace | cache | LRU | S3-FIFO | W-TinyLFU | this code (S3-FIFO) |\n|---|---|---|---|---|---|");
    for (size_t m = 0; m < sizeof mixes / sizeof *mixes; m++) {
        for (size_t a = 0; a < sizeof alphas / sizeof *alphas; a++) {
            struct trace t;
            const struct trace_options o = {.documents = 2000,
                                            .fetches = 20000,
                                            .alpha = alphas[a],
                                            .scans = mixes[m].scans,
                                            .drift = mixes[m].drift,
                                            .token_bytes = 46080, /* SmolLM2-135M in f32 */
                                            .index_bytes = 768,
                                            .seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1};
            trace_make(&t, &o);
            for (size_t s = 0; s < sizeof shares / sizeof *shares; s++, rows++)
                measure(&t, mixes[m].name, alphas[a], shares[s], sums, worst);
            trace_free(&t);
        }
    }
    printf("| **mean** | |");
    for (int i = 0; i < COLUMNS; i++)
        printf(" %.1f |", 100 * sums[i] / rows);
    printf("\n| **most behind the best of a row** | |");
    for (int i = 0; i < COLUMNS; i++)
        printf(" %.1f |", 100 * worst[i]);
    putchar('\n');
    return 0;
}
