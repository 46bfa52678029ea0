/*
 * What becomes of the data file when documents come and go. Fills a store to a share of its limit, then removes
 * documents by chance and ingests others, of other sizes, until the live data has been turned over many times. A line
 * for each few turnovers: the file's size and what the disk has given for it, each beside the bytes in use, the pages
 * that wait to be used again, and the time a document takes. Blocks are 20 KB to 1.5 MB, stored raw.
 */
#include <dirent.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "daemon/store/store.h"

#define KV_HEADS     5 /* with these a layer of a block of 16 tokens is 20 KB */
#define HEAD_DIM     64
#define BLOCK_TOKENS 16
#define MAX_LAYERS   72
#define MAX_BLOCKS   40
#define MAX_LIVE     65536

struct churn {
    struct samkv_store *store;
    const char *dir;
    double live; /* share of the limit */
    double turnover;
    uint64_t limit_bytes, ingested_bytes, next;
    uint64_t numbers[MAX_LIVE]; /* of the documents that are there */
    size_t count, documents, refused;
    uint64_t state;
    uint8_t *kv;
    float *index;
    double worst_ms, busy_ms;
    double peak_file, peak_allocated; /* most since the last line, beside what is in use then */
    uint64_t peak_bytes;              /* allocated */
};

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static void die(const char *what, const struct samkv_error *err)
{
    fprintf(stderr, "bench_churn: %s: %s\n", what, err->text);
    exit(1);
}

static uint64_t chance(struct churn *c)
{
    uint64_t z = (c->state += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* As many small as large ones, by their logarithm. */
static uint32_t between(struct churn *c, uint32_t least, uint32_t most)
{
    double r = (double)(chance(c) >> 11) / 9007199254740992.0;
    return (uint32_t)(least * pow((double)(most + 1) / least, r));
}

static enum samkv_status write_document(struct churn *c, const struct samkv_manifest *m, const int32_t *tokens,
                                        const char *id, struct samkv_error *err)
{
    struct samkv_writer *w;
    const void *pieces[2 * MAX_LAYERS];
    enum samkv_status st = samkv_writer_begin(c->store, m, tokens, &w, err);
    if (st != SAMKV_OK)
        return st;
    size_t piece = BLOCK_TOKENS * samkv_kv_width(&m->shape) * 2;
    for (uint32_t i = 0; i < 2 * m->shape.layers; i++)
        pieces[i] = c->kv + i * piece;
    for (uint32_t b = 0; st == SAMKV_OK && b < m->blocks; b++)
        st = samkv_writer_block(w, b, pieces, err);
    size_t numbers = m->blocks * samkv_kv_width(&m->shape) + (size_t)m->heads * m->shape.head_dim;
    for (uint32_t l = 0; st == SAMKV_OK && l < m->shape.layers; l++)
        st = samkv_writer_index(w, l, c->index, numbers, err);
    if (st == SAMKV_OK)
        return samkv_writer_commit(w, "c", id, NULL, err);
    samkv_writer_abort(w);
    return st;
}

static void name_of(uint64_t number, char id[24])
{
    snprintf(id, 24, "d%llu", (unsigned long long)number);
}

static void remove_one(struct churn *c)
{
    char id[24];
    struct samkv_error err = {0};
    if (c->count == 0)
        return;
    size_t i = chance(c) % c->count;
    name_of(c->numbers[i], id);
    c->numbers[i] = c->numbers[--c->count];
    if (samkv_store_name_remove(c->store, "c", id, &err) != SAMKV_OK)
        die("remove", &err);
}

static void ingest_one(struct churn *c)
{
    static const uint8_t fingerprint[16] = {7};
    struct samkv_error err = {0};
    int32_t tokens[MAX_BLOCKS * BLOCK_TOKENS];
    struct samkv_manifest m = {.shape = {between(c, 1, MAX_LAYERS), KV_HEADS, HEAD_DIM, SAMKV_BF16},
                               .heads = 3 * KV_HEADS,
                               .blocks = between(c, 3, MAX_BLOCKS),
                               .block_tokens = BLOCK_TOKENS,
                               .local_tokens = BLOCK_TOKENS,
                               .codec = SAMKV_CODEC_RAW};
    m.tokens = m.blocks * BLOCK_TOKENS;
    uint64_t number = c->next++;
    for (uint32_t i = 0; i < m.tokens; i++)
        tokens[i] = (int32_t)(number % 100000 + i);
    samkv_document_key(fingerprint, SAMKV_BF16, NULL, 0, BLOCK_TOKENS, BLOCK_TOKENS, tokens, m.tokens, &m.key);
    char id[24];
    name_of(number, id);
    double start = now_ms();
    enum samkv_status st;
    while ((st = write_document(c, &m, tokens, id, &err)) == SAMKV_FULL && c->count) {
        c->refused++;
        remove_one(c);
    }
    if (st != SAMKV_OK)
        die("ingest", &err);
    double took = now_ms() - start;
    c->busy_ms += took;
    c->worst_ms = took > c->worst_ms ? took : c->worst_ms;
    c->documents++;
    c->ingested_bytes += (uint64_t)m.tokens * samkv_kv_token_bytes(&m.shape);
    if (c->count == MAX_LIVE)
        die("too many documents for this tool: lower the limit", &err);
    c->numbers[c->count++] = number;
}

static struct samkv_store_stats look(struct churn *c)
{
    struct samkv_store_stats s;
    struct samkv_error err = {0};
    if (samkv_store_stats(c->store, &s, &err) != SAMKV_OK)
        die("stats", &err);
    double file = (double)s.bytes_file / (double)s.bytes_used, given = (double)s.bytes_allocated / (double)s.bytes_used;
    c->peak_file = file > c->peak_file ? file : c->peak_file;
    c->peak_allocated = given > c->peak_allocated ? given : c->peak_allocated;
    c->peak_bytes = s.bytes_allocated > c->peak_bytes ? s.bytes_allocated : c->peak_bytes;
    return s;
}

static void print_line(struct churn *c, double turned)
{
    struct samkv_store_stats s = look(c);
    double mb = 1 << 20, used = (double)s.bytes_used;
    printf("%8.1f %9.1f %9.1f %9.1f %9.1f %6.2f %6.2f %6.2f %6.2f %8.1f %8.1f %7zu %9.1f %9.1f %4llu\n", turned,
           used / mb, (double)s.bytes_file / mb, (double)s.bytes_allocated / mb, (double)s.bytes_free / mb,
           (double)s.bytes_file / used, (double)s.bytes_allocated / used, c->peak_file, c->peak_allocated,
           c->documents ? c->busy_ms / (double)c->documents : 0, c->worst_ms, c->refused, (double)s.bytes_punched / mb,
           (double)s.bytes_moved / mb, (unsigned long long)s.compactions);
    fflush(stdout);
    c->documents = 0;
    c->busy_ms = c->worst_ms = c->peak_file = c->peak_allocated = 0;
}

static void fill(struct churn *c)
{
    while (look(c).bytes_used < (uint64_t)(c->live * (double)c->limit_bytes) && c->refused == 0)
        ingest_one(c);
}

static void run(struct churn *c)
{
    fill(c);
    printf("%8s %9s %9s %9s %9s %6s %6s %6s %6s %8s %8s %7s %9s %9s %4s\n", "turned", "used MB", "file", "given",
           "free", "f/used", "g/used", "most f", "most g", "ms/doc", "worst", "refused", "punched", "moved", "cmp");
    print_line(c, 0);
    uint64_t live = look(c).bytes_used, start = c->ingested_bytes;
    double next = 1, turned = 0;
    while (turned < c->turnover) {
        remove_one(c);
        while (look(c).bytes_used < live) {
            ingest_one(c);
            if (look(c).bytes_used > live + live / 64)
                break;
        }
        turned = (double)(c->ingested_bytes - start) / (double)live;
        if (turned >= next) {
            print_line(c, turned);
            next = next < 2 ? 2 : next < 5 ? 5 : next + 5;
        }
    }
    printf("most that the disk has given: %.3f of the limit\n", (double)c->peak_bytes / (double)c->limit_bytes);
}

static void fill_buffers(struct churn *c)
{
    size_t kv = (size_t)2 * MAX_LAYERS * BLOCK_TOKENS * KV_HEADS * HEAD_DIM * 2,
           index = (MAX_BLOCKS + 3) * (size_t)KV_HEADS * HEAD_DIM * sizeof(float);
    c->kv = malloc(kv);
    c->index = malloc(index);
    if (!c->kv || !c->index)
        exit(1);
    for (size_t i = 0; i < kv; i += 8)
        memcpy(c->kv + i, &(uint64_t){chance(c)}, 8);
    for (size_t i = 0; i < index / sizeof(float); i++)
        c->index[i] = (float)(chance(c) >> 40);
}

static void remove_directory(const char *path)
{
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && (e = readdir(dir));)
        unlinkat(dirfd(dir), e->d_name, 0);
    if (dir)
        closedir(dir);
    rmdir(path);
}

int main(int argc, char **argv)
{
    struct churn *c = calloc(1, sizeof *c);
    struct samkv_store_options o = {.codec = SAMKV_CODEC_RAW, .compact = SAMKV_COMPACT_AUTO};
    struct samkv_error err = {0};
    char path[4096], *parent = "/tmp";
    int option;
    if (!c)
        return 1;
    c->limit_bytes = (uint64_t)1 << 30;
    c->live = 0.6;
    c->turnover = 20;
    c->state = 1;
    while ((option = getopt(argc, argv, "d:m:l:t:s:n")) != -1)
        switch (option) {
        case 'd':
            parent = optarg;
            break;
        case 'm':
            c->limit_bytes = strtoull(optarg, NULL, 10) << 20;
            break;
        case 'l':
            c->live = atof(optarg);
            break;
        case 't':
            c->turnover = atof(optarg);
            break;
        case 's':
            c->state = strtoull(optarg, NULL, 10);
            break;
        case 'n':
            o.compact = SAMKV_COMPACT_OFF;
            break;
        default:
            fprintf(stderr, "usage: bench_churn [-d PARENT] [-m LIMIT_MIB] [-l SHARE_LIVE] [-t TURNOVERS] [-s SEED] "
                            "[-n: no compaction]\n");
            return 2;
        }
    snprintf(path, sizeof path, "%s/samkv-churn-XXXXXX", parent);
    if (!mkdtemp(path))
        return 1;
    fill_buffers(c);
    o.path = path;
    o.max_bytes = c->limit_bytes;
    if (samkv_store_open(&o, &c->store, &err) != SAMKV_OK)
        die("open", &err);
    run(c);
    samkv_store_close(c->store);
    remove_directory(path);
    free(c->kv);
    free(c->index);
    free(c);
    return 0;
}
