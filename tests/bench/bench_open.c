/*
 * How long a store of many small documents takes to open, and what its limits cost: usage: bench_open [DOCUMENTS]
 * [DIR]. The store is made in DIR (default: /dev/shm), closed, opened, and filled beyond a quota.
 */
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/store/store.h"

static const struct samkv_kv_shape shape = {1, 1, 8, SAMKV_F32};

static void must(enum samkv_status st, const struct samkv_error *err)
{
    if (st == SAMKV_OK)
        return;
    fprintf(stderr, "%s: %s\n", samkv_status_name(st), err->text);
    exit(EXIT_FAILURE);
}

static void put(struct samkv_store *s, const char *collection, uint32_t number)
{
    struct samkv_manifest m = {.shape = shape, .heads = 1, .tokens = 1, .block_tokens = 16, .blocks = 1};
    struct samkv_writer *w;
    struct samkv_error err = {0};
    int32_t tokens[1] = {(int32_t)number};
    float kv[2][8], index[16] = {0};
    const void *src[2] = {kv[0], kv[1]};
    char id[32];
    for (int i = 0; i < 16; i++)
        kv[i / 8][i % 8] = (float)number / (float)(i + 1);
    uint8_t fingerprint[16] = {0};
    samkv_document_key(fingerprint, SAMKV_F32, NULL, 0, 16, 0, tokens, 1, &m.key);
    snprintf(id, sizeof id, "document-%08u", number);
    must(samkv_writer_begin(s, &m, tokens, &w, &err), &err);
    must(samkv_writer_block(w, 0, src, &err), &err);
    must(samkv_writer_index(w, 0, index, 16, &err), &err);
    must(samkv_writer_commit(w, collection, id, NULL, &err), &err);
}

static struct samkv_store *open_it(const char *path, double *ms)
{
    struct samkv_store_options options = {.path = path, .codec = SAMKV_CODEC_RAW};
    struct samkv_store *s;
    struct samkv_error err = {0};
    double since = samkv_now_ms();
    must(samkv_store_open(&options, &s, &err), &err);
    *ms = samkv_lap_ms(&since);
    return s;
}

/* Of memory that is no file's. */
static double own_mib(void)
{
    char line[128];
    double kib = 0;
    FILE *f = fopen("/proc/self/status", "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "RssAnon: %lf", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib / 1024;
}

static double cpu_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

int main(int argc, char **argv)
{
    uint32_t documents = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 100000;
    char path[256];
    double ms;
    snprintf(path, sizeof path, "%s/samkv-open-XXXXXX", argc > 2 ? argv[2] : "/dev/shm");
    if (!mkdtemp(path))
        return perror(path), EXIT_FAILURE;
    struct samkv_error err = {0};
    struct samkv_store *s = open_it(path, &ms);
    struct samkv_collection c = {.name = "c", .shape = shape, .heads = 1, .block_tokens = 16};
    must(samkv_store_collection_put(s, &c, &err), &err);
    double since = samkv_now_ms();
    for (uint32_t i = 0; i < documents; i++)
        put(s, "c", i);
    double each_us = samkv_lap_ms(&since) * 1e3 / documents;
    samkv_store_close(s);
    malloc_trim(0);
    double before = own_mib(), cpu = cpu_ms();
    s = open_it(path, &ms);
    printf(
        "%u documents: %.0f us a document written, opened in %.0f ms (%.0f of CPU time), %.0f bytes of memory each\n",
        documents, each_us, ms, cpu_ms() - cpu, (own_mib() - before) * (1 << 20) / documents);
    struct samkv_collection_stats stats;
    samkv_store_collection_stats(s, "c", &stats);
    struct samkv_limits limits = {.set_quota = true, .quota_bytes = stats.bytes_stored};
    must(samkv_store_configure(s, "c", &limits, &err), &err);
    samkv_lap_ms(&since);
    for (uint32_t i = 0; i < 1000; i++)
        put(s, "c", documents + i);
    printf("at its quota: %.0f us a document written, one evicted for each\n", samkv_lap_ms(&since));
    struct samkv_gc_report report;
    must(samkv_store_gc(s, &report, NULL, NULL, &err), &err);
    printf("gc that finds nothing: %.0f ms\n", samkv_lap_ms(&since));
    limits = (struct samkv_limits){.set_quota = true, .quota_bytes = stats.bytes_stored / 2};
    must(samkv_store_configure(s, "c", &limits, &err), &err);
    ms = samkv_lap_ms(&since);
    samkv_store_collection_stats(s, "c", &stats);
    printf("quota halved: %.0f us a document evicted\n", ms * 1e3 / (documents - (double)stats.documents));
    samkv_store_close(s);
    char command[512];
    snprintf(command, sizeof command, "rm -r '%s'", path);
    return system(command) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
