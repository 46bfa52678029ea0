/* Fetched caches: every number that the daemon says about its memory may be a lie, and a good cache outlives everybody.
 */
#include <stdio.h>
#include <sys/stat.h>

#include "tests/unit/fake_daemon.h"

/* ------------------------------------------------------------------ a small cache */

enum { LAYERS = 2, ROWS = 3, HEADS = 2, DIM = 5, VOCAB = 7, WIDTH = HEADS * DIM };

/* As the daemon lays it out, without safetensors' header: nobody reads that here. */
struct memory {
    float k[LAYERS][ROWS][WIDTH], v[LAYERS][ROWS][WIDTH];
    int32_t tokens[ROWS], doc[ROWS], index[ROWS], position[ROWS];
    float logits[VOCAB];
};

static struct memory make_memory(void)
{
    struct memory m = {.tokens = {11, 12, 13}, .doc = {-1, 0, -2}, .index = {0, 4, 0}, .position = {0, 5, 9}};
    for (int l = 0; l < LAYERS; l++)
        for (int r = 0; r < ROWS; r++)
            for (int i = 0; i < WIDTH; i++) {
                m.k[l][r][i] = (float)(100 * l + 10 * r + i);
                m.v[l][r][i] = -m.k[l][r][i];
            }
    for (int i = 0; i < VOCAB; i++)
        m.logits[i] = (float)i;
    return m;
}

static int make_memfd(int seals)
{
    struct memory m = make_memory();
    int fd = memfd_create("fake", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    ck_assert_int_eq(write(fd, &m, sizeof m), sizeof m);
    if (seals)
        ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

#define GOOD_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL)

/* A reply and the arrays that it points to. */
struct reply {
    Samkv__FetchReply m;
    Samkv__Timing timing;
    Samkv__Kept kept;
    Samkv__Kept *keep[1];
    double top_p[2];
    uint32_t blocks[2], document_tokens[2], stable[1];
};

static void fill_figures(struct reply *r)
{
    samkv__kept__init(&r->kept);
    r->blocks[1] = 3;
    r->kept.blocks = r->blocks;
    r->kept.n_blocks = 2;
    r->keep[0] = &r->kept;
    r->m.keep = r->keep;
    r->m.n_keep = 1;
    r->top_p[0] = 0.25;
    r->m.top_p = r->top_p;
    r->m.n_top_p = 1;
    r->document_tokens[0] = 60;
    r->m.document_tokens = r->document_tokens;
    r->m.n_document_tokens = 1;
    r->stable[0] = 1;
    r->m.stable_layers = r->stable;
    r->m.n_stable_layers = 1;
    samkv__timing__init(&r->timing);
    r->timing.total = 12.5;
    r->m.timing_ms = &r->timing;
    r->m.kept_tokens = 1;
    r->m.total_tokens = 60;
    r->m.sequence_ratio = 1.0 / 60;
    r->m.block_tokens = 16;
    r->m.bytes_read = 10;
    r->m.bytes_stored = 100;
    r->m.next_position = 61;
    r->m.backend = (char *)"cpu";
}

static void make_reply(struct reply *r)
{
    memset(r, 0, sizeof *r);
    samkv__fetch_reply__init(&r->m);
    r->m.memory_bytes = sizeof(struct memory);
    r->m.dtype = SAMKV_F32;
    r->m.layers = LAYERS;
    r->m.rows = ROWS;
    r->m.kv_heads = HEADS;
    r->m.head_dim = DIM;
    r->m.v_offset = offsetof(struct memory, v);
    r->m.layer_stride = sizeof(float[ROWS][WIDTH]);
    r->m.tokens_offset = offsetof(struct memory, tokens);
    r->m.doc_offset = offsetof(struct memory, doc);
    r->m.index_offset = offsetof(struct memory, index);
    r->m.position_offset = offsetof(struct memory, position);
    r->m.logits_offset = offsetof(struct memory, logits);
    r->m.vocab = VOCAB;
    fill_figures(r);
}

static const struct samkv_fetch_options *some_options(void)
{
    static const char *const ids[] = {"a"};
    static struct samkv_fetch_options options;
    samkv_fetch_options_init(&options);
    options.ids = ids;
    options.id_count = 1;
    options.query = "q";
    options.query_bytes = 1;
    return &options;
}

/* ------------------------------------------------------------------ truth */

static void serve_a_cache(struct fake_daemon *d)
{
    struct reply r;
    make_reply(&r);
    fake_greet(d);
    uint64_t id = fake_await(d);
    int fd = make_memfd(GOOD_SEALS);
    fake_send(d, SAMKV_TYPE_FETCH, SAMKV_FLAG_REPLY | SAMKV_FLAG_FD, id, &r.m.base, fd);
    close(fd);
}

/* The cache of a daemon that is gone, by a client that is closed. */
static struct samkv_cache *fetch_cache(void)
{
    struct fake_daemon d = {0};
    struct samkv_cache *cache;
    struct samkv_error err = {.text = ""};
    struct samkv_client *client = fake_connect(&d, serve_a_cache);
    enum samkv_status status = samkv_client_fetch(client, some_options(), &cache, &err);
    ck_assert_msg(!status, "%s", err.text);
    fake_end(&d, client);
    return cache;
}

START_TEST(cache_outlives_daemon_and_client)
{
    int before = fake_open_descriptors();
    struct samkv_cache *cache = fetch_cache();
    const struct memory expected = make_memory();
    ck_assert_uint_eq(cache->layers, LAYERS);
    ck_assert_uint_eq(cache->rows, ROWS);
    ck_assert_uint_eq(cache->kv_heads, HEADS);
    ck_assert_uint_eq(cache->head_dim, DIM);
    ck_assert_int_eq(cache->dtype, SAMKV_F32);
    for (uint32_t l = 0; l < LAYERS; l++) {
        ck_assert_mem_eq(samkv_cache_k(cache, l), expected.k[l], sizeof expected.k[l]);
        ck_assert_mem_eq(samkv_cache_v(cache, l), expected.v[l], sizeof expected.v[l]);
    }
    ck_assert_ptr_null(samkv_cache_k(cache, LAYERS));
    ck_assert_ptr_null(samkv_cache_v(cache, UINT32_MAX));
    ck_assert_mem_eq(cache->tokens, expected.tokens, sizeof expected.tokens);
    ck_assert_mem_eq(cache->doc, expected.doc, sizeof expected.doc);
    ck_assert_mem_eq(cache->index, expected.index, sizeof expected.index);
    ck_assert_mem_eq(cache->position, expected.position, sizeof expected.position);
    ck_assert_uint_eq(cache->vocab, VOCAB);
    ck_assert_mem_eq(cache->logits, expected.logits, sizeof expected.logits);
    samkv_cache_free(cache);
    samkv_cache_free(NULL);
    ck_assert_int_eq(fake_open_descriptors(), before);
}
END_TEST

START_TEST(figures_arrive)
{
    struct samkv_cache *cache = fetch_cache();
    const struct samkv_figures *f = &cache->figures;
    ck_assert_uint_eq(f->documents, 1);
    ck_assert_uint_eq(f->keep[0].count, 2);
    ck_assert_uint_eq(f->keep[0].blocks[1], 3);
    ck_assert(f->top_p[0] == 0.25);
    ck_assert_uint_eq(f->document_tokens[0], 60);
    ck_assert_uint_eq(f->stable_layer_count, 1);
    ck_assert_uint_eq(f->stable_layers[0], 1);
    ck_assert_uint_eq(f->block_tokens, 16);
    ck_assert_uint_eq(f->bytes_read, 10);
    ck_assert_uint_eq(f->bytes_stored, 100);
    ck_assert_uint_eq(f->next_position, 61);
    ck_assert_str_eq(f->backend, "cpu");
    ck_assert(f->timing_ms.total == 12.5);
    ck_assert(!f->anchors_exceed_budget);
    samkv_cache_free(cache);
}
END_TEST

/* ------------------------------------------------------------------ lies */

static void lie_size(Samkv__FetchReply *m)
{
    m->memory_bytes++;
}
static void lie_size_less(Samkv__FetchReply *m)
{
    m->memory_bytes--;
}
static void lie_size_huge(Samkv__FetchReply *m)
{
    m->memory_bytes = UINT64_MAX;
}
static void lie_nothing(Samkv__FetchReply *m)
{
    m->memory_bytes = 0;
}
static void lie_dtype(Samkv__FetchReply *m)
{
    m->dtype = SAMKV_I32;
}
static void lie_dtype_unknown(Samkv__FetchReply *m)
{
    m->dtype = 77;
}
static void lie_no_layers(Samkv__FetchReply *m)
{
    m->layers = 0;
}
static void lie_layers(Samkv__FetchReply *m)
{
    m->layers = 2 * LAYERS + 1;
}
static void lie_layers_huge(Samkv__FetchReply *m)
{
    m->layers = UINT32_MAX;
}
static void lie_rows(Samkv__FetchReply *m)
{
    m->rows = 100;
}
static void lie_no_rows(Samkv__FetchReply *m)
{
    m->rows = 0;
}
static void lie_rows_huge(Samkv__FetchReply *m)
{
    m->rows = UINT32_MAX;
}
static void lie_heads(Samkv__FetchReply *m)
{
    m->kv_heads = UINT32_MAX;
}
static void lie_dim(Samkv__FetchReply *m)
{
    m->head_dim = UINT32_MAX;
}
/* 2^31 heads of 2^31 elements of 4 bytes: 0 in 64 bits. */
static void lie_product(Samkv__FetchReply *m)
{
    m->kv_heads = m->head_dim = 1u << 31;
}
static void lie_k(Samkv__FetchReply *m)
{
    m->k_offset = sizeof(struct memory) - 4;
}
static void lie_k_misaligned(Samkv__FetchReply *m)
{
    m->k_offset = 2;
}
static void lie_v(Samkv__FetchReply *m)
{
    m->v_offset = UINT64_MAX - 3;
}
static void lie_stride(Samkv__FetchReply *m)
{
    m->layer_stride = sizeof(struct memory);
}
static void lie_stride_misaligned(Samkv__FetchReply *m)
{
    m->layer_stride += 2;
}
static void lie_stride_wraps(Samkv__FetchReply *m)
{
    m->layer_stride = UINT64_MAX - 3;
}
static void lie_tokens(Samkv__FetchReply *m)
{
    m->tokens_offset = sizeof(struct memory);
}
static void lie_tokens_misaligned(Samkv__FetchReply *m)
{
    m->tokens_offset++;
}
static void lie_doc(Samkv__FetchReply *m)
{
    m->doc_offset = UINT64_MAX - 7;
}
static void lie_index(Samkv__FetchReply *m)
{
    m->index_offset = sizeof(struct memory) - 8;
}
static void lie_position(Samkv__FetchReply *m)
{
    m->position_offset = 1ull << 63;
}
static void lie_logits(Samkv__FetchReply *m)
{
    m->logits_offset += 4;
}
static void lie_vocab(Samkv__FetchReply *m)
{
    m->vocab = UINT32_MAX;
}
static void lie_documents(Samkv__FetchReply *m)
{
    m->n_keep = 0;
}
static void lie_top_p(Samkv__FetchReply *m)
{
    m->n_top_p = 2;
}
static void lie_document_tokens(Samkv__FetchReply *m)
{
    m->n_document_tokens = 2;
}

static void (*const lies[])(Samkv__FetchReply *) = {
    lie_size,
    lie_size_less,
    lie_size_huge,
    lie_nothing,
    lie_dtype,
    lie_dtype_unknown,
    lie_no_layers,
    lie_layers,
    lie_layers_huge,
    lie_rows,
    lie_no_rows,
    lie_rows_huge,
    lie_heads,
    lie_dim,
    lie_product,
    lie_k,
    lie_k_misaligned,
    lie_v,
    lie_stride,
    lie_stride_misaligned,
    lie_stride_wraps,
    lie_tokens,
    lie_tokens_misaligned,
    lie_doc,
    lie_index,
    lie_position,
    lie_logits,
    lie_vocab,
    lie_documents,
    lie_top_p,
    lie_document_tokens,
};

struct bad_answer {
    void (*lie)(Samkv__FetchReply *);
    int (*make_fd)(void);
    uint16_t flags;
};

static void serve_badly(struct fake_daemon *d)
{
    const struct bad_answer *bad = d->arg;
    struct reply r;
    make_reply(&r);
    if (bad->lie)
        bad->lie(&r.m);
    fake_greet(d);
    uint64_t id = fake_await(d);
    int fd = bad->make_fd();
    fake_send(d, SAMKV_TYPE_FETCH, bad->flags, id, &r.m.base, fd);
    if (fd >= 0)
        close(fd);
    fake_serve_pings(d);
}

/* A bad answer costs its own request and nothing else: no descriptor, no memory, not the connection. */
static void check_refusal(const struct bad_answer *bad, bool survives)
{
    int before = fake_open_descriptors();
    struct fake_daemon d = {.arg = bad};
    struct samkv_client *client = fake_connect(&d, serve_badly);
    struct samkv_cache *cache = (void *)&d;
    struct samkv_error err = {.text = ""};
    ck_assert_int_eq(samkv_client_fetch(client, some_options(), &cache, &err), SAMKV_PROTOCOL);
    ck_assert_ptr_null(cache);
    ck_assert(*err.text);
    ck_assert_int_eq(samkv_client_ping(client, &err), survives ? SAMKV_OK : SAMKV_PROTOCOL);
    fake_end(&d, client);
    ck_assert_int_eq(fake_open_descriptors(), before);
}

static int good_memfd(void)
{
    return make_memfd(GOOD_SEALS);
}
static int unsealed_memfd(void)
{
    return make_memfd(0);
}
static int shrinkable_memfd(void)
{
    return make_memfd(F_SEAL_WRITE | F_SEAL_GROW);
}
static int writable_memfd(void)
{
    return make_memfd(F_SEAL_SHRINK | F_SEAL_GROW);
}
static int no_fd(void)
{
    return -1;
}
static int device_fd(void)
{
    return open("/dev/zero", O_RDONLY | O_CLOEXEC);
}
static int plain_file(void)
{
    struct memory m = make_memory();
    FILE *file = tmpfile();
    fwrite(&m, sizeof m, 1, file);
    fflush(file);
    int fd = dup(fileno(file));
    fclose(file);
    return fd;
}

#define WITH_FD (SAMKV_FLAG_REPLY | SAMKV_FLAG_FD)

START_TEST(lie_is_refused)
{
    check_refusal(&(struct bad_answer){lies[_i], good_memfd, WITH_FD}, true);
}
END_TEST

START_TEST(wrong_memory_is_refused)
{
    static int (*const makers[])(void) = {unsealed_memfd, shrinkable_memfd, writable_memfd,
                                          no_fd,          device_fd,        plain_file};
    for (size_t i = 0; i < sizeof makers / sizeof *makers; i++)
        check_refusal(&(struct bad_answer){NULL, makers[i], WITH_FD}, true);
    check_refusal(&(struct bad_answer){NULL, no_fd, SAMKV_FLAG_REPLY}, true);
}
END_TEST

START_TEST(unannounced_memory_ends_the_connection)
{
    check_refusal(&(struct bad_answer){NULL, good_memfd, SAMKV_FLAG_REPLY}, false);
}
END_TEST

/* ------------------------------------------------------------------ saving */

static char directory[] = "/tmp/samkv-cache-XXXXXX";

static void read_back(const char *path)
{
    const struct memory expected = make_memory();
    struct memory got;
    FILE *file = fopen(path, "r");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fread(&got, 1, sizeof got + 1, file), sizeof got);
    ck_assert_mem_eq(&got, &expected, sizeof got);
    fclose(file);
}

START_TEST(save_writes_the_memory)
{
    char path[64];
    struct stat st;
    struct samkv_error err;
    struct samkv_cache *cache = fetch_cache();
    ck_assert_ptr_nonnull(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/out", directory);
    umask(027);
    for (int i = 0; i < 2; i++) { /* also over what is there */
        ck_assert_int_eq(samkv_cache_save(cache, path, &err), SAMKV_OK);
        read_back(path);
    }
    ck_assert_int_eq(stat(path, &st), 0);
    ck_assert_uint_eq(st.st_mode & 0777, 0640);
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(rmdir(directory), 0); /* nothing else was left there */
    samkv_cache_free(cache);
}
END_TEST

START_TEST(save_that_fails_leaves_nothing)
{
    char path[64];
    struct stat st;
    struct samkv_error err;
    struct samkv_cache *cache = fetch_cache();
    ck_assert_int_eq(samkv_cache_save(cache, "/nonexistent/out", &err), SAMKV_NOT_FOUND);
    ck_assert_ptr_nonnull(strstr(err.text, "/nonexistent/out"));
    ck_assert_int_eq(samkv_cache_save(cache, "/dev/full", &err), SAMKV_FULL);
    ck_assert_int_eq(samkv_cache_save(cache, "/dev/null", &err), SAMKV_OK);
    ck_assert(!stat("/dev/null", &st) && S_ISCHR(st.st_mode));
    ck_assert_ptr_nonnull(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/sub", directory);
    ck_assert_int_eq(mkdir(path, 0700), 0);
    ck_assert_int_ne(samkv_cache_save(cache, path, &err), SAMKV_OK); /* a directory is in the way */
    ck_assert_int_eq(rmdir(path), 0);
    ck_assert_int_eq(rmdir(directory), 0);
    samkv_cache_free(cache);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("client_cache");
    TCase *truth = tcase_create("truth"), *hostile = tcase_create("lies"), *saving = tcase_create("saving");
    tcase_add_test(truth, cache_outlives_daemon_and_client);
    tcase_add_test(truth, figures_arrive);
    tcase_add_loop_test(hostile, lie_is_refused, 0, sizeof lies / sizeof *lies);
    tcase_add_test(hostile, wrong_memory_is_refused);
    tcase_add_test(hostile, unannounced_memory_ends_the_connection);
    tcase_add_test(saving, save_writes_the_memory);
    tcase_add_test(saving, save_that_fails_leaves_nothing);
    suite_add_tcase(suite, truth);
    suite_add_tcase(suite, hostile);
    suite_add_tcase(suite, saving);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
