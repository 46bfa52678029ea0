/*
 * How fast blocks come out of a store, beside what its disk gives.
 *
 *   bench_store_read make DIR GIB            a store of documents of 1,024 tokens in the shape of SmolLM2-135M, bf16
 *   bench_store_read run DIR [MAX_THREADS [SECONDS [REDIS_SOCKET]]]
 *
 * `run` prints a JSON object a line: kind, threads, blocks, seconds, mb_s (10^6 bytes as stored, or as read) and
 * raw_mb_s (K and V). Before each measurement the files leave the page cache (posix_fadvise; that is checked with
 * mincore), except for those named warm. Blocks are chosen at random, each at most once while there are enough.
 *   raw_direct, raw_buffered   pread of as many bytes at as many places of the same file, with and without O_DIRECT
 *   raw_ahead                  as raw_buffered, with the thread's next place announced (POSIX_FADV_WILLNEED)
 *   map                        the same through a mapping, madvise(WILLNEED) first: what the store did before
 *   record                     look-up and reading, nothing decoded
 *   block                      samkv_snapshot_block
 *   record_direct, block_direct  the same with the option `direct`
 *   safetensors                the same blocks of one file a document, K and V of a layer a tensor: two preads a layer
 *   redis                      GET of the same K and V as values, from memory: nothing of it is cold
 *   block_warm                 all in the page cache: the rate of decoding
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/store/snapshot.h"

#define DOCUMENT_TOKENS 1024
#define BLOCK_TOKENS    16
#define SAFETENSORS_MAX 256 /* documents that are also written as files */
#define REDIS_BLOCKS    2000
#define ALIGN           4096u
#define ROUNDS          3

static const struct samkv_kv_shape shape = {30, 3, 64, SAMKV_BF16};

/* One block of one document. */
struct item {
    uint32_t document, block;
};

enum kind {
    RAW_DIRECT,
    RAW_BUFFERED,
    RAW_AHEAD,
    MAP,
    RECORD,
    RECORD_DIRECT,
    BLOCK,
    BLOCK_DIRECT,
    BLOCK_WARM,
    SAFETENSORS,
    REDIS,
    KINDS
};

static const char *const kind_names[KINDS] = {"raw_direct", "raw_buffered",  "raw_ahead", "map",
                                              "record",     "record_direct", "block",     "block_direct",
                                              "block_warm", "safetensors",   "redis"};

struct bench {
    const char *path;
    char data[4096];
    struct samkv_store *store;
    struct samkv_snapshot *snapshot;
    struct samkv_manifest *documents;
    uint32_t document_count;
    int direct_fd; /* of the store, when it reads past the page cache */
    struct item *items;
    uint64_t item_count;
    size_t stored_bytes; /* of a block, on average */
    uint64_t file_bytes;
    const char *redis;
    enum kind kind;
    double until_ms;
    unsigned threads;
    atomic_uint_fast64_t next, bytes, blocks;
    atomic_bool failed;
};

static _Noreturn void die(const char *what, const char *why)
{
    fprintf(stderr, "bench_store_read: %s: %s\n", what, why);
    exit(1);
}

static uint64_t random64(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static size_t block_bytes(void)
{
    return BLOCK_TOKENS * samkv_kv_token_bytes(&shape);
}

static size_t piece_bytes(void)
{
    return block_bytes() / (2 * shape.layers);
}

/* ------------------------------------------------------------------ making a store */

/* bf16 of roughly normal numbers, with a scale for each channel: what real K and V compress like, more or less. */
static void fill(uint16_t *to, size_t count, uint64_t seed)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t r = random64(&seed);
        float sum = 0;
        for (int k = 0; k < 4; k++)
            sum += (float)(r >> 16 * k & 0xffff) / 65536.0f - 0.5f;
        to[i] = samkv_f32_to_bf16(sum * (float)(1u << i % 5) * 0.25f);
    }
}

struct making {
    struct samkv_store *store;
    atomic_uint next;
    uint32_t count;
};

static void write_document(struct making *m, uint32_t number, uint16_t *room)
{
    uint64_t seed = number;
    int32_t tokens[DOCUMENT_TOKENS];
    uint8_t fingerprint[16] = {1};
    struct samkv_error err = {0};
    struct samkv_writer *w;
    struct samkv_manifest manifest = {.shape = shape,
                                      .heads = 9,
                                      .tokens = DOCUMENT_TOKENS,
                                      .block_tokens = BLOCK_TOKENS,
                                      .blocks = DOCUMENT_TOKENS / BLOCK_TOKENS,
                                      .local_tokens = 16};
    for (int i = 0; i < DOCUMENT_TOKENS; i++)
        tokens[i] = (int32_t)(random64(&seed) % 49152);
    samkv_document_key(fingerprint, shape.dtype, NULL, 0, BLOCK_TOKENS, 16, tokens, DOCUMENT_TOKENS, &manifest.key);
    if (samkv_writer_begin(m->store, &manifest, tokens, &w, &err) != SAMKV_OK)
        die("begin", err.text);
    for (uint32_t b = 0; w && b < manifest.blocks; b++) {
        const void *src[2 * 30];
        /* A rolling window over numbers made once: every block another one, at no cost. */
        const uint16_t *from = room + (random64(&seed) % (block_bytes() / 2)) / 8 * 8;
        for (size_t i = 0; i < 2 * (size_t)shape.layers; i++)
            src[i] = (const uint8_t *)from + i * piece_bytes();
        if (samkv_writer_block(w, b, src, &err) != SAMKV_OK)
            die("block", err.text);
    }
    char id[32];
    snprintf(id, sizeof id, "%08u", number);
    enum samkv_status st = w ? samkv_writer_commit(w, "bench", id, NULL, &err)
                             : samkv_store_name_put(m->store, "bench", id, NULL, &manifest.key, &err);
    if (st != SAMKV_OK)
        die("commit", err.text);
}

static void *make_some(void *arg)
{
    struct making *m = arg;
    uint16_t *room = malloc(2 * block_bytes());
    fill(room, block_bytes(), 7);
    for (uint32_t n; (n = atomic_fetch_add(&m->next, 1)) < m->count;)
        write_document(m, n, room);
    free(room);
    return NULL;
}

static void put_collection(struct samkv_store *s)
{
    struct samkv_error err = {0};
    struct samkv_collection c = {.name = "bench",
                                 .fingerprint = {1},
                                 .shape = shape,
                                 .heads = 9,
                                 .block_tokens = BLOCK_TOKENS,
                                 .init_tokens = 16,
                                 .local_tokens = 16};
    if (samkv_store_collection_put(s, &c, &err) != SAMKV_OK)
        die("collection", err.text);
}

static void make(const char *path, double gib)
{
    struct samkv_store_options o = {.path = path, .codec = SAMKV_CODEC_ZSTD};
    struct samkv_error err = {0};
    struct making m = {0};
    pthread_t threads[4];
    if (samkv_store_open(&o, &m.store, &err) != SAMKV_OK)
        die("open", err.text);
    put_collection(m.store);
    double stored = 0.68 * DOCUMENT_TOKENS * (double)samkv_kv_token_bytes(&shape); /* what zstd leaves of it */
    m.count = (uint32_t)(gib * 1073741824.0 / stored) + 1;
    double began = samkv_now_ms();
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, make_some, &m);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    struct samkv_store_stats stats;
    if (samkv_store_stats(m.store, &stats, &err) != SAMKV_OK)
        die("stats", err.text);
    double seconds = (samkv_now_ms() - began) / 1000;
    printf("{\"kind\": \"make\", \"documents\": %u, \"file_bytes\": %llu, \"stored_bytes\": %llu, \"raw_bytes\": %llu, "
           "\"seconds\": %.1f, \"mb_s\": %.0f}\n",
           m.count, (unsigned long long)stats.bytes_file, (unsigned long long)stats.bytes_stored,
           (unsigned long long)stats.bytes_raw, seconds, (double)stats.bytes_stored / 1e6 / seconds);
    samkv_store_close(m.store);
}

/* ------------------------------------------------------------------ reading it */

static bool on_name(void *arg, const struct samkv_name *name)
{
    struct bench *b = arg;
    b->documents = realloc(b->documents, (b->document_count + 1) * sizeof *b->documents);
    if (samkv_snapshot_manifest(b->snapshot, &name->key, &b->documents[b->document_count], NULL) != SAMKV_OK)
        die("manifest", name->id);
    b->document_count++;
    return true;
}

static void open_bench(struct bench *b)
{
    struct samkv_store_options o = {.path = b->path, .read_only = true, .direct = true};
    struct samkv_error err = {0};
    struct stat st;
    if (samkv_store_open(&o, &b->store, &err) != SAMKV_OK ||
        samkv_snapshot_begin(b->store, &b->snapshot, &err) != SAMKV_OK ||
        samkv_snapshot_each_name(b->snapshot, "bench", "", on_name, b, &err) != SAMKV_OK || !b->document_count)
        die(b->path, err.text[0] ? err.text : "holds no documents of `make`");
    b->direct_fd = b->store->now->direct_fd;
    const struct samkv_manifest *m = b->documents;
    b->stored_bytes = (size_t)((m->bytes_stored - m->bytes_index) / m->blocks);
    snprintf(b->data, sizeof b->data, "%s/data.mdb", b->path);
    if (stat(b->data, &st) != 0)
        die(b->data, strerror(errno));
    b->file_bytes = (uint64_t)st.st_size;
    b->item_count = (uint64_t)b->document_count * m->blocks;
    b->items = malloc(b->item_count * sizeof *b->items);
    for (uint64_t i = 0; i < b->item_count; i++)
        b->items[i] = (struct item){(uint32_t)(i / m->blocks), (uint32_t)(i % m->blocks)};
}

static void shuffle(struct bench *b, uint64_t count, uint64_t seed)
{
    for (uint64_t i = count; i > 1; i--) {
        uint64_t j = random64(&seed) % i;
        struct item t = b->items[i - 1];
        b->items[i - 1] = b->items[j];
        b->items[j] = t;
    }
}

/* The share of the file that is still in the page cache after asking the kernel to let go of it. */
static double drop_cache(const char *path)
{
    struct stat st;
    int fd = open(path, O_RDONLY), caches = open("/proc/sys/vm/drop_caches", O_WRONLY);
    if (fd < 0 || fstat(fd, &st) != 0)
        die(path, strerror(errno));
    fdatasync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    if (caches >= 0) {
        (void)!write(caches, "1", 1);
        close(caches);
    }
    size_t pages = ((size_t)st.st_size + ALIGN - 1) / ALIGN, left = 0;
    unsigned char *in = malloc(pages);
    void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (map != MAP_FAILED && mincore(map, (size_t)st.st_size, in) == 0)
        for (size_t i = 0; i < pages; i++)
            left += in[i] & 1;
    munmap(map, (size_t)st.st_size);
    free(in);
    close(fd);
    return (double)left / (double)pages;
}

/* What a thread reads with. */
struct reader {
    struct bench *b;
    uint8_t *room;
    void *pieces[2 * 30];
    int fd, redis;
    uint8_t *map;
};

static void file_of_document(const struct bench *b, uint32_t document, char out[4200])
{
    snprintf(out, 4200, "%s/safetensors/%08u.safetensors", b->path, document);
}

static bool read_exactly(int fd, void *to, size_t bytes, uint64_t at)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pread(fd, (uint8_t *)to + done, bytes - done, (off_t)(at + done));
        if (n <= 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

static uint64_t header_bytes_of(int fd)
{
    uint64_t n = 0;
    return read_exactly(fd, &n, sizeof n, 0) ? 8 + n : 0;
}

static bool read_safetensors(struct reader *r, const struct item *it)
{
    char path[4200];
    file_of_document(r->b, it->document, path);
    int fd = open(path, O_RDONLY);
    uint64_t at = fd >= 0 ? header_bytes_of(fd) : 0, tensor = piece_bytes() * (DOCUMENT_TOKENS / BLOCK_TOKENS);
    bool ok = at > 0;
    posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    for (size_t i = 0; ok && i < 2 * (size_t)shape.layers; i++)
        ok = read_exactly(fd, r->pieces[i], piece_bytes(), at + i * tensor + it->block * piece_bytes());
    if (fd >= 0)
        close(fd);
    return ok;
}

static bool receive(int fd, uint8_t *to, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = read(fd, to + done, bytes - done);
        if (n <= 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

static bool receive_line(int fd, char *to, size_t room)
{
    for (size_t i = 0; i + 1 < room; i++) {
        if (read(fd, to + i, 1) != 1)
            return false;
        if (to[i] == '\n') {
            to[i + 1] = 0;
            return true;
        }
    }
    return false;
}

static int connect_redis(const char *path)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(to.sun_path, sizeof to.sun_path, "%s", path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) != 0)
        die(path, strerror(errno));
    return fd;
}

static bool redis_get(struct reader *r, uint64_t number)
{
    char command[128], line[64], key[32];
    int n = snprintf(key, sizeof key, "b%llu", (unsigned long long)(number % REDIS_BLOCKS));
    n = snprintf(command, sizeof command, "*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n", n, key);
    return write(r->redis, command, (size_t)n) == n && receive_line(r->redis, line, sizeof line) && line[0] == '$' &&
           (size_t)atoll(line + 1) == block_bytes() && receive(r->redis, r->room, block_bytes() + 2);
}

static bool read_record(struct reader *r, const struct item *it, size_t *bytes)
{
    struct bench *b = r->b;
    uint8_t key[SAMKV_PART_KEY_BYTES];
    struct samkv_held held = {0};
    struct samkv_error err;
    enum samkv_status st = samkv_snapshot_get(
        b->snapshot, SAMKV_DB_BLOCK, samkv_part_key(&b->documents[it->document].key, it->block, key), &held, &err);
    *bytes = held.bytes.size;
    samkv_held_release(b->store, &held);
    return st == SAMKV_OK;
}

/* A place in the file for each block, none twice: the file divided into as many. */
static uint64_t place_of(const struct bench *b, const struct item *it, size_t bytes)
{
    uint64_t place = (uint64_t)it->document * b->documents->blocks + it->block;
    return place * ((b->file_bytes - bytes) / ((uint64_t)b->document_count * b->documents->blocks) / ALIGN) * ALIGN;
}

static bool read_one(struct reader *r, uint64_t number)
{
    struct bench *b = r->b;
    const struct item *it = &b->items[number % b->item_count];
    size_t bytes = b->stored_bytes, aligned = (b->stored_bytes + ALIGN - 1) / ALIGN * ALIGN;
    uint64_t at = place_of(b, it, aligned);
    bool ok = true;
    switch (b->kind) {
    case RAW_AHEAD:
        posix_fadvise(r->fd, (off_t)place_of(b, &b->items[(number + b->threads) % b->item_count], aligned),
                      (off_t)aligned, POSIX_FADV_WILLNEED);
        /* fall through */
    case RAW_DIRECT:
    case RAW_BUFFERED:
        ok = read_exactly(r->fd, r->room, aligned, at);
        break;
    case MAP: {
        uint8_t sum = 0;
        madvise(r->map + at, aligned, MADV_WILLNEED);
        for (size_t i = 0; i < aligned; i += ALIGN)
            sum |= *(volatile uint8_t *)(r->map + at + i);
        memcpy(r->room, r->map + at, aligned); /* hashing and decoding touch it all, too */
        r->room[0] |= sum;
        break;
    }
    case RECORD:
    case RECORD_DIRECT:
        ok = read_record(r, it, &bytes);
        break;
    case BLOCK:
    case BLOCK_DIRECT:
    case BLOCK_WARM:
        ok = samkv_snapshot_block(b->snapshot, &b->documents[it->document], it->block, r->pieces, NULL) == SAMKV_OK;
        break;
    case SAFETENSORS:
        ok = read_safetensors(r, it);
        bytes = block_bytes();
        break;
    case REDIS:
        ok = redis_get(r, number);
        bytes = block_bytes();
        break;
    case KINDS:
        break;
    }
    atomic_fetch_add(&b->bytes, b->kind <= MAP ? aligned : bytes);
    atomic_fetch_add(&b->blocks, 1);
    return ok;
}

static void *read_some(void *arg)
{
    struct reader r = {.b = arg, .fd = -1, .redis = -1};
    struct bench *b = r.b;
    size_t room = 2 * block_bytes() + ALIGN;
    r.room = aligned_alloc(ALIGN, (room + ALIGN - 1) / ALIGN * ALIGN);
    for (size_t i = 0; i < 2 * (size_t)shape.layers; i++)
        r.pieces[i] = r.room + i * piece_bytes();
    if (b->kind <= MAP)
        r.fd = open(b->data, O_RDONLY | (b->kind == RAW_DIRECT ? O_DIRECT : 0));
    if (b->kind == RAW_BUFFERED || b->kind == RAW_AHEAD)
        posix_fadvise(r.fd, 0, 0, POSIX_FADV_RANDOM);
    if (b->kind == MAP) {
        r.map = mmap(NULL, b->file_bytes, PROT_READ, MAP_SHARED, r.fd, 0);
        madvise(r.map, b->file_bytes, MADV_RANDOM);
    }
    if (b->kind == REDIS)
        r.redis = connect_redis(b->redis);
    uint64_t limit = b->kind == SAFETENSORS && b->document_count > SAFETENSORS_MAX
                         ? (uint64_t)SAFETENSORS_MAX * b->documents->blocks
                         : b->item_count;
    while (samkv_now_ms() < b->until_ms) {
        uint64_t number = atomic_fetch_add(&b->next, 1);
        if (number >= limit && b->kind != BLOCK_WARM && b->kind != REDIS)
            break; /* nothing cold is left */
        if (!read_one(&r, number)) {
            atomic_store(&b->failed, true);
            break;
        }
    }
    if (r.map)
        munmap(r.map, b->file_bytes);
    if (r.fd >= 0)
        close(r.fd);
    if (r.redis >= 0)
        close(r.redis);
    free(r.room);
    return NULL;
}

static void drop_safetensors(const struct bench *b)
{
    char path[4200];
    for (uint32_t d = 0; d < b->document_count && d < SAFETENSORS_MAX; d++) {
        file_of_document(b, d, path);
        int fd = open(path, O_RDONLY);
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        close(fd);
    }
}

static void measure(struct bench *b, enum kind kind, int count, double seconds)
{
    pthread_t threads[256];
    double left = 0;
    static uint64_t seed = 1;
    uint64_t among = kind == BLOCK_WARM    ? 2000
                     : kind == SAFETENSORS ? (uint64_t)SAFETENSORS_MAX * b->documents->blocks
                                           : b->item_count;
    for (uint64_t i = 0; i < b->item_count; i++)
        b->items[i] = (struct item){(uint32_t)(i / b->documents->blocks), (uint32_t)(i % b->documents->blocks)};
    shuffle(b, among < b->item_count ? among : b->item_count, seed++);
    b->kind = kind;
    b->store->now->direct_fd = kind == RECORD_DIRECT || kind == BLOCK_DIRECT ? b->direct_fd : -1;
    b->threads = (unsigned)count;
    b->next = b->bytes = b->blocks = 0;
    if (kind == SAFETENSORS)
        drop_safetensors(b);
    if (kind == BLOCK_WARM) {
        struct item *all = b->items;
        uint64_t total = b->item_count;
        b->item_count = total < 2000 ? total : 2000;
        struct reader r = {.b = b};
        for (uint64_t i = 0; i < b->item_count; i++) {
            size_t bytes;
            read_record(&r, &b->items[i], &bytes);
        }
        b->until_ms = samkv_now_ms() + 1000 * seconds;
        double began = samkv_now_ms();
        for (int i = 0; i < count; i++)
            pthread_create(&threads[i], NULL, read_some, b);
        for (int i = 0; i < count; i++)
            pthread_join(threads[i], NULL);
        seconds = (samkv_now_ms() - began) / 1000;
        b->items = all, b->item_count = total;
    } else {
        left = drop_cache(b->data);
        b->until_ms = samkv_now_ms() + 1000 * seconds;
        double began = samkv_now_ms();
        for (int i = 0; i < count; i++)
            pthread_create(&threads[i], NULL, read_some, b);
        for (int i = 0; i < count; i++)
            pthread_join(threads[i], NULL);
        seconds = (samkv_now_ms() - began) / 1000;
    }
    if (b->failed)
        die(kind_names[kind], "a read failed");
    double bytes = (double)b->bytes, blocks = (double)b->blocks;
    printf(
        "{\"kind\": \"%s\", \"threads\": %d, \"blocks\": %.0f, \"seconds\": %.3f, \"mb_s\": %.1f, \"raw_mb_s\": %.1f, "
        "\"cached_before\": %.3f}\n",
        kind_names[kind], count, blocks, seconds, bytes / 1e6 / seconds, blocks * (double)block_bytes() / 1e6 / seconds,
        left);
    fflush(stdout);
}

/* The first documents as files: a header, then K and V of each layer, (tokens, kv_heads, head_dim). */
static void write_safetensors(struct bench *b)
{
    char path[4200], directory[4200], *header = malloc(1 << 16);
    size_t tensor = piece_bytes() * b->documents->blocks, tensors = 2 * (size_t)shape.layers;
    uint8_t *all = malloc(tensor * tensors);
    void *pieces[2 * 30];
    snprintf(directory, sizeof directory, "%s/safetensors", b->path);
    mkdir(directory, 0700);
    int n = snprintf(header, 1 << 16, "{");
    for (size_t i = 0; i < tensors; i++)
        n += snprintf(header + n, (size_t)(1 << 16) - (size_t)n,
                      "%s\"%c.%zu\":{\"dtype\":\"BF16\",\"shape\":[%d,%u,%u],\"data_offsets\":[%zu,%zu]}", i ? "," : "",
                      i % 2 ? 'v' : 'k', i / 2, DOCUMENT_TOKENS, shape.kv_heads, shape.head_dim, i * tensor,
                      (i + 1) * tensor);
    n += snprintf(header + n, (size_t)(1 << 16) - (size_t)n, "}");
    while (n % 8)
        header[n++] = ' ';
    for (uint32_t d = 0; d < b->document_count && d < SAFETENSORS_MAX; d++) {
        for (uint32_t k = 0; k < b->documents->blocks; k++) {
            for (size_t i = 0; i < tensors; i++)
                pieces[i] = all + i * tensor + k * piece_bytes();
            if (samkv_snapshot_block(b->snapshot, &b->documents[d], k, pieces, NULL) != SAMKV_OK)
                die("safetensors", "a block cannot be read");
        }
        file_of_document(b, d, path);
        FILE *f = fopen(path, "w");
        uint64_t length = (uint64_t)n;
        if (!f || fwrite(&length, 8, 1, f) != 1 || fwrite(header, (size_t)n, 1, f) != 1 ||
            fwrite(all, tensor * tensors, 1, f) != 1 || fflush(f) != 0 || fdatasync(fileno(f)) != 0)
            die(path, strerror(errno));
        fclose(f);
    }
    free(all);
    free(header);
}

static void fill_redis(struct bench *b)
{
    int fd = connect_redis(b->redis);
    uint8_t *room = malloc(block_bytes() + 2);
    void *pieces[2 * 30];
    for (size_t i = 0; i < 2 * (size_t)shape.layers; i++)
        pieces[i] = room + i * piece_bytes();
    memcpy(room + block_bytes(), "\r\n", 2);
    for (uint64_t i = 0; i < REDIS_BLOCKS; i++) {
        const struct item *it = &b->items[i % b->item_count];
        char line[128], key[32];
        if (samkv_snapshot_block(b->snapshot, &b->documents[it->document], it->block, pieces, NULL) != SAMKV_OK)
            die("redis", "a block cannot be read");
        int n = snprintf(key, sizeof key, "b%llu", (unsigned long long)i);
        n = snprintf(line, sizeof line, "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%zu\r\n", n, key, block_bytes());
        if (write(fd, line, (size_t)n) != n)
            die("redis", "cannot write");
        for (size_t done = 0; done < block_bytes() + 2;) {
            ssize_t wrote = write(fd, room + done, block_bytes() + 2 - done);
            if (wrote <= 0)
                die("redis", "cannot write");
            done += (size_t)wrote;
        }
        if (!receive_line(fd, line, sizeof line) || line[0] != '+')
            die("redis", line);
    }
    free(room);
    close(fd);
}

static void run(struct bench *b, int most, double seconds)
{
    open_bench(b);
    write_safetensors(b);
    printf("{\"kind\": \"store\", \"documents\": %u, \"blocks\": %llu, \"file_bytes\": %llu, \"block_stored\": %zu, "
           "\"block_raw\": %zu}\n",
           b->document_count, (unsigned long long)b->item_count, (unsigned long long)b->file_bytes, b->stored_bytes,
           block_bytes());
    if (b->redis)
        fill_redis(b);
    /* Round after round, so that what else the machine does falls on all of them. */
    for (int round = 0; round < ROUNDS; round++)
        for (int threads = 1; threads <= most; threads *= 2)
            for (int kind = 0; kind < KINDS; kind++)
                if (kind != REDIS || b->redis)
                    measure(b, (enum kind)kind, threads, seconds);
    samkv_snapshot_end(b->snapshot);
    b->store->now->direct_fd = b->direct_fd;
    samkv_store_close(b->store);
    free(b->items);
    free(b->documents);
}

int main(int argc, char **argv)
{
    samkv_log_set_level(SAMKV_LOG_ERROR);
    if (argc == 4 && !strcmp(argv[1], "make")) {
        make(argv[2], atof(argv[3]));
    } else if (argc >= 3 && argc <= 6 && !strcmp(argv[1], "run")) {
        struct bench b = {.path = argv[2], .redis = argc > 5 ? argv[5] : NULL};
        int threads = argc > 3 ? atoi(argv[3]) : 8;
        run(&b, threads < 256 ? threads : 256, argc > 4 ? atof(argv[4]) : 5);
    } else {
        fprintf(stderr, "usage: bench_store_read make DIR GIB | run DIR [MAX_THREADS [SECONDS [REDIS_SOCKET]]]\n");
        return 2;
    }
    return 0;
}
