/*
 * usage: bench_codec STORE COLLECTION [TOKENS [JOBS]]
 *
 * Codecs side by side on the blocks of a collection that is there: ratio, encode and decode rate of one thread, and how
 * far lossy ones are off. Blocks come in batches; every codec works on each batch, slow ones on every eighth, and a
 * rate is the median over batches. Time is the thread's own CPU time and rates are of uncompressed bytes. JOBS
 * processes share the documents out (1: rates of a core that has the memory for itself). The store is opened for
 * reading only.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <zstd.h>
#ifdef BENCH_LZ4
#include <lz4.h>
#endif

#include "daemon/store/codec.h"
#include "daemon/store/values.h"

#define BATCH_BYTES  ((size_t)48 << 20)
#define BATCHES_MAX  4096
#define SLOW_EVERY   8
#define JOBS_MAX     64
#define LAYERS_BATCH 4 /* batches that the table of layers is made of */

struct block {
    struct samkv_layout layout;
    void **piece;
};

struct batch {
    struct block *block;
    size_t count, bytes;
    uint64_t tokens;
};

struct candidate {
    const char *name;
    enum { STORE, ZSTD_PLAIN, ZSTD_SPLIT, LZ4_PLAIN } kind;
    int argument; /* codec, or level */
    size_t lanes; /* STORE: the n-th choice of loops */
    bool slow, lossy;
    uint64_t raw, stored, tokens;
    double encode_rate[BATCHES_MAX], decode_rate[BATCHES_MAX];
    size_t batches;
    double error[2], power[2]; /* K, V */
};

static struct candidate candidates[] = {
    {.name = "raw", .argument = SAMKV_CODEC_RAW},
#ifdef BENCH_LZ4
    {.name = "lz4, whole record", .kind = LZ4_PLAIN},
#endif
    {.name = "zstd -1, whole record", .kind = ZSTD_PLAIN, .argument = 1},
    {.name = "zstd -3, whole record", .kind = ZSTD_PLAIN, .argument = 3, .slow = true},
    {.name = "zstd -9, whole record", .kind = ZSTD_PLAIN, .argument = 9, .slow = true},
    {.name = "bytes split, zstd -1", .kind = ZSTD_SPLIT, .argument = 1},
    {.name = "codec zstd", .argument = SAMKV_CODEC_ZSTD},
    {.name = "codec rans", .argument = SAMKV_CODEC_RANS},
    {.name = "codec q8", .argument = SAMKV_CODEC_Q8, .lossy = true},
    {.name = "codec q4", .argument = SAMKV_CODEC_Q4, .lossy = true},
    {.name = "codec rans, 2nd loops", .argument = SAMKV_CODEC_RANS, .lanes = 1, .slow = true},
    {.name = "codec rans, 3rd loops", .argument = SAMKV_CODEC_RANS, .lanes = 2, .slow = true},
};
#define CANDIDATES (sizeof candidates / sizeof *candidates)

static struct samkv_scratch_pool pool;
static struct samkv_scratch *scratch;
static struct samkv_snapshot *snapshot;
static struct samkv_error err;
static struct batch batch;
static uint64_t tokens_wanted, tokens_seen, documents_seen;
static size_t batches_seen;
static unsigned jobs = 1, job;
static uint8_t *packed, *planes; /* a record's codes, and a record */
static size_t packed_bytes;

static void die(const char *what)
{
    fprintf(stderr, "bench_codec: %s\n", what);
    exit(1);
}

static void *get(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    if (!p)
        die("out of memory");
    return p;
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ------------------------------------------------------------------ the others */

static void gather(const struct block *b, uint8_t *to, bool split)
{
    const struct samkv_layout *l = &b->layout;
    size_t element = samkv_dtype_bytes(l->dtype), n = l->bytes / element, plane = l->count * n;
    for (size_t i = 0; i < l->count; i++) {
        const uint8_t *from = b->piece[i];
        if (!split)
            memcpy(to + i * l->bytes, from, l->bytes);
        for (size_t p = 0; split && p < element; p++)
            for (size_t j = 0; j < n; j++)
                to[p * plane + i * n + j] = from[j * element + p];
    }
}

static void scatter(const struct block *b, const uint8_t *from, bool split, void **dst)
{
    const struct samkv_layout *l = &b->layout;
    size_t element = samkv_dtype_bytes(l->dtype), n = l->bytes / element, plane = l->count * n;
    for (size_t i = 0; i < l->count; i++) {
        uint8_t *to = dst[i];
        if (!split)
            memcpy(to, from + i * l->bytes, l->bytes);
        for (size_t p = 0; split && p < element; p++)
            for (size_t j = 0; j < n; j++)
                to[j * element + p] = from[p * plane + i * n + j];
    }
}

/* Compresses `parts` equal parts one after the other, sizes in front. */
static size_t pack_parts(const struct candidate *c, const uint8_t *from, size_t bytes, size_t parts, uint8_t *to)
{
    size_t used = 4 * parts, part = bytes / parts;
    for (size_t p = 0; p < parts; p++) {
        size_t n;
#ifdef BENCH_LZ4
        if (c->kind == LZ4_PLAIN)
            n = (size_t)LZ4_compress_default((const char *)from + p * part, (char *)to + used, (int)part,
                                             (int)(packed_bytes - used));
        else
#endif
            n = ZSTD_compressCCtx(scratch->compress, to + used, packed_bytes - used, from + p * part, part,
                                  c->argument);
        if (ZSTD_isError(n) || !n)
            die("a library cannot compress");
        uint32_t size = (uint32_t)n;
        memcpy(to + 4 * p, &size, 4);
        used += n;
    }
    return used;
}

static void unpack_parts(const struct candidate *c, const uint8_t *from, uint8_t *to, size_t bytes, size_t parts)
{
    const uint8_t *at = from + 4 * parts;
    size_t part = bytes / parts;
    for (size_t p = 0; p < parts; p++) {
        uint32_t size;
        memcpy(&size, from + 4 * p, 4);
        size_t n;
#ifdef BENCH_LZ4
        if (c->kind == LZ4_PLAIN)
            n = (size_t)LZ4_decompress_safe((const char *)at, (char *)to + p * part, (int)size, (int)part);
        else
#endif
            n = ZSTD_decompressDCtx(scratch->decompress, to + p * part, part, at, size);
        if (n != part)
            die("a library cannot decompress");
        at += size;
    }
}

/* ------------------------------------------------------------------ measuring */

static size_t encode(const struct candidate *c, const struct block *b, uint8_t *to)
{
    size_t used = 0, bytes = samkv_layout_bytes(&b->layout);
    if (c->kind == STORE) {
        if (samkv_codec_encode((enum samkv_codec)c->argument, 0, &b->layout, (const void *const *)b->piece, scratch, to,
                               &used) != SAMKV_OK)
            die("a codec cannot encode");
        return used;
    }
    gather(b, planes, c->kind == ZSTD_SPLIT);
    return pack_parts(c, planes, bytes, c->kind == ZSTD_SPLIT ? samkv_dtype_bytes(b->layout.dtype) : 1, to);
}

static void decode(const struct candidate *c, const struct block *b, const uint8_t *from, size_t bytes, void **dst)
{
    if (c->kind == STORE) {
        if (samkv_codec_decode((enum samkv_codec)c->argument, &b->layout, from, bytes, scratch, dst) != SAMKV_OK)
            die("a codec cannot decode what it encoded");
        return;
    }
    unpack_parts(c, from, planes, samkv_layout_bytes(&b->layout),
                 c->kind == ZSTD_SPLIT ? samkv_dtype_bytes(b->layout.dtype) : 1);
    scatter(b, planes, c->kind == ZSTD_SPLIT, dst);
}

static float number(enum samkv_dtype dtype, const void *at, size_t i)
{
    uint32_t bits;
    float f;
    if (dtype == SAMKV_F32) {
        memcpy(&f, (const char *)at + 4 * i, 4);
        return f;
    }
    uint16_t half;
    memcpy(&half, (const char *)at + 2 * i, 2);
    if (dtype == SAMKV_F16) {
        int e = half >> 10 & 31;
        f = ldexpf((float)((half & 1023) | (e ? 1024 : 0)), (e ? e : 1) - 25);
        return half >> 15 ? -f : f;
    }
    bits = (uint32_t)half << 16;
    memcpy(&f, &bits, 4);
    return f;
}

static void compare(struct candidate *c, const struct block *b, void **got)
{
    for (size_t i = 0; i < b->layout.count; i++) {
        if (!c->lossy && memcmp(got[i], b->piece[i], b->layout.bytes) != 0) {
            fprintf(stderr, "\nbench_codec: %s lost something in piece %zu of %zu bytes\n", c->name, i,
                    b->layout.bytes);
            exit(1);
        }
        for (size_t j = 0; c->lossy && j < b->layout.bytes / samkv_dtype_bytes(b->layout.dtype); j++) {
            double x = number(b->layout.dtype, b->piece[i], j), y = number(b->layout.dtype, got[i], j);
            c->error[i % 2] += (x - y) * (x - y);
            c->power[i % 2] += x * x;
        }
    }
}

static void measure(struct candidate *c)
{
    uint8_t **codes = get(batch.count * sizeof *codes);
    size_t *sizes = get(batch.count * sizeof *sizes);
    scratch->lanes = samkv_lanes_choice(c->lanes);
    double encoding = 0, decoding = 0;
    for (size_t i = 0; i < batch.count; i++) {
        double start = seconds();
        sizes[i] = encode(c, &batch.block[i], packed);
        encoding += seconds() - start;
        memcpy(codes[i] = get(sizes[i]), packed, sizes[i]);
        c->stored += sizes[i];
    }
    const struct samkv_layout *l = &batch.block[0].layout;
    size_t longest = 0; /* a document's last block may be shorter than others */
    for (size_t i = 0; i < batch.count; i++)
        longest = batch.block[i].layout.bytes > longest ? batch.block[i].layout.bytes : longest;
    void **dst = get(l->count * sizeof *dst);
    for (size_t p = 0; p < l->count; p++)
        dst[p] = get(longest);
    for (size_t i = 0; i < batch.count; i++) {
        double start = seconds();
        decode(c, &batch.block[i], codes[i], sizes[i], dst);
        decoding += seconds() - start;
        compare(c, &batch.block[i], dst);
        free(codes[i]);
    }
    for (size_t p = 0; p < l->count; p++)
        free(dst[p]);
    free(dst);
    free(codes);
    free(sizes);
    scratch->lanes = samkv_lanes_choice(0);
    c->raw += batch.bytes;
    c->tokens += batch.tokens;
    c->encode_rate[c->batches] = (double)batch.bytes / encoding / 1e6;
    c->decode_rate[c->batches++] = (double)batch.bytes / decoding / 1e6;
}

/* Ratios of one layer's K or V: what codecs make of these pieces of many blocks as one record. */
static uint64_t layer_raw[2], (*layer_stored)[2][2]; /* by layer, K or V, codec */

static void measure_layers(void)
{
    const struct samkv_layout *l = &batch.block[0].layout;
    for (size_t i = 1; i < batch.count; i++)
        if (batch.block[i].layout.bytes > l->bytes)
            l = &batch.block[i].layout;
    static const enum samkv_codec codecs[2] = {SAMKV_CODEC_ZSTD, SAMKV_CODEC_RANS};
    if (!layer_stored && !(layer_stored = calloc(l->count / 2, sizeof *layer_stored)))
        die("out of memory");
    for (size_t piece = 0; piece < l->count; piece++) {
        const void **src = get(l->count * sizeof *src);
        struct samkv_layout together = *l;
        together.count = 0;
        for (size_t i = 0; i < batch.count && together.count < l->count; i++)
            if (batch.block[i].layout.bytes == l->bytes)
                src[together.count++] = batch.block[i].piece[piece];
        for (int codec = 0; codec < 2; codec++) {
            size_t used;
            if (samkv_codec_encode(codecs[codec], 0, &together, src, scratch, packed, &used) != SAMKV_OK)
                die("a codec cannot encode");
            layer_stored[piece / 2][piece % 2][codec] += used;
        }
        if (piece == 0)
            layer_raw[0] += samkv_layout_bytes(&together);
        free(src);
    }
}

static void finish_batch(void)
{
    if (!batch.count)
        return;
    for (size_t i = 0; i < CANDIDATES; i++)
        if (candidates[i].batches < BATCHES_MAX && samkv_lanes_choice(candidates[i].lanes) &&
            (!candidates[i].slow || batches_seen % SLOW_EVERY == 0))
            measure(&candidates[i]);
    if (job == 0 && batches_seen < LAYERS_BATCH)
        measure_layers();
    batches_seen++;
    for (size_t i = 0; i < batch.count; i++) {
        for (size_t p = 0; p < batch.block[i].layout.count; p++)
            free(batch.block[i].piece[p]);
        free(batch.block[i].piece);
    }
    if (job == 0)
        fprintf(stderr, "\r%llu tokens", (unsigned long long)tokens_seen * jobs);
    batch.count = batch.bytes = batch.tokens = 0;
}

/* ------------------------------------------------------------------ reading */

static void add_block(const struct samkv_manifest *m, uint32_t number)
{
    struct samkv_layout l = samkv_block_layout(m, number);
    size_t bytes = samkv_layout_bytes(&l);
    if (batch.bytes + bytes > BATCH_BYTES)
        finish_batch();
    if (2 * bytes + (1 << 16) > packed_bytes) {
        free(packed);
        free(planes);
        packed = get(packed_bytes = 2 * bytes + (1 << 16));
        planes = get(bytes);
    }
    struct block *b = realloc(batch.block, (batch.count + 1) * sizeof *b);
    if (!b)
        die("out of memory");
    batch.block = b;
    b += batch.count;
    *b = (struct block){l, get(l.count * sizeof *b->piece)};
    for (size_t p = 0; p < l.count; p++)
        b->piece[p] = get(l.bytes);
    if (samkv_snapshot_block(snapshot, m, number, b->piece, &err) != SAMKV_OK)
        die(err.text);
    size_t here = l.bytes / samkv_dtype_bytes(l.dtype) / samkv_kv_width(&m->shape);
    batch.count++;
    batch.bytes += bytes;
    batch.tokens += here;
    tokens_seen += here;
}

static bool add_document(void *arg, const struct samkv_name *name)
{
    (void)arg;
    struct samkv_manifest m;
    if (documents_seen++ % jobs != job)
        return true;
    if (samkv_snapshot_manifest(snapshot, &name->key, &m, &err) != SAMKV_OK)
        die(err.text);
    for (uint32_t b = 0; b < m.blocks; b++)
        add_block(&m, b);
    return tokens_seen < tokens_wanted / jobs;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *of, size_t count)
{
    qsort(of, count, sizeof *of, by_size);
    return count ? of[count / 2] : 0;
}

static void print_tables(void)
{
    printf("%-24s %9s %7s %12s %12s  %s\n", "", "tokens", "ratio", "encode MB/s", "decode MB/s", "error of K, V");
    for (size_t i = 0; i < CANDIDATES; i++) {
        struct candidate *c = &candidates[i];
        if (!c->batches)
            continue;
        printf("%-24s %9llu %7.4f %12.0f %12.0f", c->name, (unsigned long long)c->tokens,
               (double)c->raw / (double)c->stored, median(c->encode_rate, c->batches),
               median(c->decode_rate, c->batches));
        if (c->lossy)
            printf("  %.5f %.5f", sqrt(c->error[0] / c->power[0]), sqrt(c->error[1] / c->power[1]));
        else
            printf("  none");
        printf("\n");
    }
    printf("loops:");
    for (size_t i = 0; samkv_lanes_choice(i); i++)
        printf(" %s", samkv_lanes_choice(i)->name);
    printf("\n\n%5s %10s %10s %10s %10s\n", "layer", "K zstd", "K rans", "V zstd", "V rans");
    for (size_t l = 0; layer_stored && l < batch.block[0].layout.count / 2; l++)
        printf("%5zu %10.4f %10.4f %10.4f %10.4f\n", l, (double)layer_raw[0] / (double)layer_stored[l][0][0],
               (double)layer_raw[0] / (double)layer_stored[l][0][1],
               (double)layer_raw[0] / (double)layer_stored[l][1][0],
               (double)layer_raw[0] / (double)layer_stored[l][1][1]);
}

/* One process's share of the documents. */
static void run_job(const char *path, const char *collection)
{
    samkv_scratch_pool_init(&pool);
    if (!(scratch = samkv_scratch_take(&pool)))
        die("out of memory");
    struct samkv_store_options options = {.path = path, .codec = SAMKV_CODEC_ZSTD, .read_only = true};
    struct samkv_store *store;
    if (samkv_store_open(&options, &store, &err) != SAMKV_OK ||
        samkv_snapshot_begin(store, &snapshot, &err) != SAMKV_OK)
        die(err.text);
    if (samkv_snapshot_each_name(snapshot, collection, "", add_document, NULL, &err) != SAMKV_OK)
        die(err.text);
    finish_batch();
    samkv_snapshot_end(snapshot);
    samkv_store_close(store);
    samkv_scratch_give(&pool, scratch);
    samkv_scratch_pool_deinit(&pool);
}

static void add_results(const struct candidate *from)
{
    for (size_t i = 0; i < CANDIDATES; i++) {
        struct candidate *c = &candidates[i];
        c->raw += from[i].raw;
        c->stored += from[i].stored;
        c->tokens += from[i].tokens;
        for (size_t b = 0; b < from[i].batches && c->batches < BATCHES_MAX; b++, c->batches++) {
            c->encode_rate[c->batches] = from[i].encode_rate[b];
            c->decode_rate[c->batches] = from[i].decode_rate[b];
        }
        for (int kv = 0; kv < 2; kv++) {
            c->error[kv] += from[i].error[kv];
            c->power[kv] += from[i].power[kv];
        }
    }
}

/* All processes but this one, which is the first; their results come through memory that they share. */
static void run_jobs(const char *path, const char *collection)
{
    struct candidate *results =
        mmap(NULL, jobs * sizeof candidates, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (results == MAP_FAILED)
        die("out of memory");
    for (unsigned i = 1; i < jobs; i++) {
        pid_t pid = fork();
        if (pid < 0)
            die("no process");
        if (pid > 0)
            continue;
        job = i;
        run_job(path, collection);
        memcpy(results + i * CANDIDATES, candidates, sizeof candidates);
        _exit(0);
    }
    run_job(path, collection);
    int status;
    for (unsigned i = 1; i < jobs; i++)
        if (wait(&status) < 0 || status != 0)
            die("a process failed");
    for (unsigned i = 1; i < jobs; i++)
        add_results(results + i * CANDIDATES);
    munmap(results, jobs * sizeof candidates);
}

int main(int argc, char **argv)
{
    tokens_wanted = argc >= 4 ? strtoull(argv[3], NULL, 10) : UINT64_MAX;
    if (argc == 5)
        jobs = (unsigned)strtoul(argv[4], NULL, 10);
    if (argc < 3 || argc > 5 || jobs < 1 || jobs > JOBS_MAX) {
        fprintf(stderr, "usage: bench_codec STORE COLLECTION [TOKENS [JOBS]]\n");
        return 2;
    }
    run_jobs(argv[1], argv[2]);
    if (!candidates[0].tokens)
        die("the collection is empty or is none");
    fprintf(stderr, "\r");
    print_tables();
    return 0;
}
