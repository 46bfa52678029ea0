#pragma once
/*
 * A small cache in two memories, as a daemon replies with it to a fetch with placement DEVICE, for tests of the client:
 * its contents, its reply, its lease.
 */
#include <dlfcn.h>
#include <poll.h>

#include "tests/unit/fake_daemon.h"
#include "tests/unit/fake_libcuda.h"

enum { LAYERS = 2, ROWS = 3, HEADS = 2, DIM = 5, VOCAB = 7, WIDTH = HEADS * DIM };

/* The sealed file, without a header that nobody reads here. */
struct columns {
    int32_t nothing, tokens[ROWS], doc[ROWS], index[ROWS], position[ROWS];
    float logits[VOCAB];
};

/* The device's memory: layers are further apart than they are long. */
struct kv {
    float begin[16];
    struct {
        float data[ROWS][WIDTH], gap[2];
    } k[LAYERS], v[LAYERS];
    float end[1000];
};

static const struct columns columns = {.tokens = {11, 12, 13},
                                       .doc = {-1, 0, -2},
                                       .index = {0, 4, 0},
                                       .position = {0, 5, 9},
                                       .logits = {1, 2, 3, 4, 5, 6, 7}};

static inline void fill_kv(struct kv *kv)
{
    memset(kv, 0, sizeof *kv);
    for (int l = 0; l < LAYERS; l++)
        for (int r = 0; r < ROWS; r++)
            for (int i = 0; i < WIDTH; i++) {
                kv->k[l].data[r][i] = (float)(100 * l + 10 * r + i);
                kv->v[l].data[r][i] = -kv->k[l].data[r][i];
            }
}

static inline int make_memfd(const char *name, const void *bytes, size_t count, int seals)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    ck_assert_int_eq(write(fd, bytes, count), (ssize_t)count);
    ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

static inline void make_reply(Samkv__FetchReply *m, Samkv__DeviceMemory *device)
{
    samkv__fetch_reply__init(m);
    samkv__device_memory__init(device);
    m->memory_bytes = sizeof(struct columns);
    m->dtype = SAMKV_F32;
    m->layers = LAYERS;
    m->rows = ROWS;
    m->kv_heads = HEADS;
    m->head_dim = DIM;
    m->k_offset = offsetof(struct kv, k);
    m->v_offset = offsetof(struct kv, v);
    m->layer_stride = sizeof(((struct kv *)0)->k[0]);
    m->tokens_offset = offsetof(struct columns, tokens);
    m->doc_offset = offsetof(struct columns, doc);
    m->index_offset = offsetof(struct columns, index);
    m->position_offset = offsetof(struct columns, position);
    m->logits_offset = offsetof(struct columns, logits);
    m->vocab = VOCAB;
    m->backend = (char *)"cpu";
    device->bytes = sizeof(struct kv);
    m->device = device;
}

static inline const struct samkv_fetch_options *some_options(enum samkv_fetch_placement placement)
{
    static const char *const ids[] = {"a"};
    static struct samkv_fetch_options options;
    samkv_fetch_options_init(&options);
    options.ids = ids;
    options.id_count = 1;
    options.query = "q";
    options.query_bytes = 1;
    options.placement = placement;
    return &options;
}

/* Whether the client said that it has unmapped the memory; its end must be closed. */
static inline bool lease_was_returned(int lease)
{
    char bytes[4];
    struct pollfd p = {.fd = lease, .events = POLLIN};
    ck_assert_int_eq(poll(&p, 1, 10000), 1);
    ssize_t n = recv(lease, bytes, sizeof bytes, MSG_WAITALL);
    ck_assert_int_le(n, 1);
    bool returned = n == 1 && bytes[0] == 'R';
    ck_assert_int_eq(recv(lease, bytes, 1, 0), 0);
    close(lease);
    return returned;
}

static inline bool lease_is_held(int lease)
{
    char byte;
    return recv(lease, &byte, 1, MSG_DONTWAIT) < 0;
}

static inline struct fake_cuda *cuda(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    ck_assert_ptr_nonnull(library);
    struct fake_cuda *fake = dlsym(library, "fake_cuda");
    ck_assert_ptr_nonnull(fake);
    return fake;
}

/* contexts: 1 once a cache was mapped, since opening it again would take long. */
static inline void expect_nothing_open(const struct fake_cuda *fake, int contexts)
{
    ck_assert_int_eq(fake->contexts, contexts);
    ck_assert_int_eq(fake->current, 0);
    ck_assert_int_eq(fake->handles, 0);
    ck_assert_int_eq(fake->ranges, 0);
    ck_assert_int_eq(fake->mappings, 0);
}

static inline void check_contents(const struct samkv_cache *cache)
{
    struct kv kv;
    fill_kv(&kv);
    ck_assert_int_eq(cache->where, SAMKV_FETCH_DEVICE);
    ck_assert_uint_eq(cache->head_stride_bytes, DIM * sizeof(float));
    ck_assert_uint_eq(cache->row_stride_bytes, WIDTH * sizeof(float));
    ck_assert_uint_eq(cache->layer_stride_bytes, sizeof kv.k[0]);
    for (uint32_t l = 0; l < LAYERS; l++) {
        ck_assert_mem_eq(samkv_cache_k(cache, l), kv.k[l].data, sizeof kv.k[l].data);
        ck_assert_mem_eq(samkv_cache_v(cache, l), kv.v[l].data, sizeof kv.v[l].data);
    }
    ck_assert_ptr_null(samkv_cache_k(cache, LAYERS));
    ck_assert_mem_eq(cache->tokens, columns.tokens, sizeof columns.tokens);
    ck_assert_mem_eq(cache->position, columns.position, sizeof columns.position);
    ck_assert_mem_eq(cache->logits, columns.logits, sizeof columns.logits);
    ((float *)samkv_cache_k(cache, 0))[0] = 77; /* writing is allowed */
}
