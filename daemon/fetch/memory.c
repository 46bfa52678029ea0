#include "daemon/fetch/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/base/pool.h"

/* Tensors begin on a cache line, so that readers may use aligned vector loads. */
#define DATA_ALIGNMENT   64
#define PAGE_BYTES       4096
#define BYTES_PER_THREAD (8u << 20)

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

static const char *tensor_type(enum samkv_dtype dtype)
{
    switch (dtype) {
    case SAMKV_F16:
        return "F16";
    case SAMKV_BF16:
        return "BF16";
    case SAMKV_I32:
        return "I32";
    case SAMKV_F32:
        break;
    }
    return "F32";
}

/* Offsets relative to the data's begin; samkv_reply_memory_new adds the header's size. */
static enum samkv_status compute_layout(struct samkv_fetch_layout *l, const struct samkv_kv_shape *shape, uint32_t rows,
                                        uint32_t vocab, bool with_kv)
{
    uint64_t kv, column = (uint64_t)rows * sizeof(int32_t);
    *l = (struct samkv_fetch_layout){
        .dtype = shape->dtype,
        .layers = shape->layers,
        .rows = rows,
        .kv_heads = shape->kv_heads,
        .head_dim = shape->head_dim,
        .vocab = vocab,
    };
    if (__builtin_mul_overflow((uint64_t)rows, samkv_kv_width(shape) * samkv_dtype_bytes(shape->dtype),
                               &l->layer_stride) ||
        __builtin_mul_overflow(l->layer_stride, (uint64_t)shape->layers, &kv) || kv > INT64_MAX / 4)
        return SAMKV_TOO_LARGE;
    l->k_offset = 0;
    l->v_offset = kv;
    l->tokens_offset = with_kv ? 2 * kv : 0;
    l->doc_offset = l->tokens_offset + column;
    l->index_offset = l->doc_offset + column;
    l->position_offset = l->index_offset + column;
    l->logits_offset = l->position_offset + column;
    l->memory_bytes = l->logits_offset + (uint64_t)vocab * sizeof(float);
    return SAMKV_OK;
}

static void put_tensor(FILE *f, const char *name, const char *type, const char *shape, uint64_t first, uint64_t bytes)
{
    fprintf(f, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", name, type,
            shape, first, first + bytes);
}

static void put_layers(FILE *f, const struct samkv_fetch_layout *l, char kind, uint64_t offset)
{
    char name[32], shape[64];
    snprintf(shape, sizeof shape, "%u,%u,%u", l->rows, l->kv_heads, l->head_dim);
    for (uint32_t layer = 0; layer < l->layers; layer++) {
        snprintf(name, sizeof name, "%c.%u", kind, layer);
        put_tensor(f, name, tensor_type(l->dtype), shape, offset + layer * l->layer_stride, l->layer_stride);
    }
}

/* 8 bytes of size and the JSON, padded with spaces so that the data is aligned. Heap; NULL when out of memory. */
static char *make_header(const struct samkv_fetch_layout *l, bool with_kv, size_t *bytes)
{
    char *text = NULL, shape[32];
    FILE *f = open_memstream(&text, bytes);
    if (!f)
        return NULL;
    uint64_t size = 0, column = (uint64_t)l->rows * sizeof(int32_t);
    fwrite(&size, 1, sizeof size, f);
    fprintf(f, "{\"__metadata__\":{\"format\":\"pt\",\"producer\":\"samkvd\"}");
    if (with_kv) {
        put_layers(f, l, 'k', l->k_offset);
        put_layers(f, l, 'v', l->v_offset);
    }
    snprintf(shape, sizeof shape, "%u", l->rows);
    put_tensor(f, "tokens", "I32", shape, l->tokens_offset, column);
    put_tensor(f, "doc", "I32", shape, l->doc_offset, column);
    put_tensor(f, "index", "I32", shape, l->index_offset, column);
    put_tensor(f, "position", "I32", shape, l->position_offset, column);
    if (l->vocab) {
        snprintf(shape, sizeof shape, "%u", l->vocab);
        put_tensor(f, "logits", "F32", shape, l->logits_offset, (uint64_t)l->vocab * sizeof(float));
    }
    fputc('}', f);
    for (long at = ftell(f); at % DATA_ALIGNMENT; at++)
        fputc(' ', f);
    if (fclose(f)) {
        free(text);
        return NULL;
    }
    size = *bytes - sizeof size;
    memcpy(text, &size, sizeof size);
    return text;
}

static void add_header_size(struct samkv_fetch_layout *l, bool with_kv, size_t header)
{
    uint64_t *offsets[] = {&l->tokens_offset, &l->doc_offset,   &l->index_offset, &l->position_offset,
                           &l->logits_offset, &l->memory_bytes, &l->k_offset,     &l->v_offset};
    for (size_t i = 0; i < (with_kv ? 8 : 6); i++)
        *offsets[i] += header;
    if (!l->vocab)
        l->logits_offset = 0;
}

struct populate {
    uint8_t *map;
    size_t bytes, share;
    atomic_int errnum; /* the first failure */
};

static void populate_share(void *arg, int i)
{
    struct populate *p = arg;
    size_t first = (size_t)i * p->share, left = p->bytes - first;
    int none = 0, rc;
    do
        rc = madvise(p->map + first, left < p->share ? left : p->share, MADV_POPULATE_WRITE);
    while (rc && (errno == EINTR || errno == EAGAIN));
    if (rc)
        atomic_compare_exchange_strong(&p->errnum, &none, errno);
}

/*
 * All pages at once, so that no SIGBUS comes later and lack of memory is an error of this request. The kernel clears
 * them at two to three gigabytes a second and thread: several threads share a large reply.
 */
static int populate(uint8_t *map, size_t bytes)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    size_t threads = bytes / BYTES_PER_THREAD + 1;
    if (cores > 0 && threads > (size_t)cores)
        threads = (size_t)cores;
    struct populate p = {.map = map, .bytes = bytes};
    p.share = (bytes / threads + PAGE_BYTES) / PAGE_BYTES * PAGE_BYTES;
    samkv_parallel_for((int)((bytes + p.share - 1) / p.share), (int)threads, populate_share, &p);
    return p.errnum;
}

static enum samkv_status no_memory(const struct samkv_reply_memory *m, int errnum, struct samkv_error *err)
{
    samkv_fail_errno(err, errnum, "no memory for a reply of %" PRIu64 " MB: ask for fewer documents or a lower ratio",
                     m->layout.memory_bytes >> 20);
    return SAMKV_NO_MEMORY;
}

static enum samkv_status create(struct samkv_reply_memory *m, struct samkv_error *err)
{
    m->fd = memfd_create("samkv-reply", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (m->fd < 0)
        return samkv_fail_errno(err, errno, "cannot make the reply's memory");
    if (ftruncate(m->fd, (off_t)m->layout.memory_bytes))
        return no_memory(m, errno, err);
    void *map = mmap(NULL, m->layout.memory_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd, 0);
    if (map == MAP_FAILED)
        return samkv_fail_errno(err, errno, "cannot map the reply's memory");
    m->map = map;
    int errnum = populate(m->map, m->layout.memory_bytes);
    if (errnum == EINVAL) /* Linux before 5.14 */
        errnum = fallocate(m->fd, 0, 0, (off_t)m->layout.memory_bytes) ? errno : 0;
    return errnum ? no_memory(m, errnum, err) : SAMKV_OK;
}

enum samkv_status samkv_reply_memory_new(struct samkv_reply_memory *m, const struct samkv_kv_shape *shape,
                                         uint32_t rows, uint32_t vocab, bool with_kv, struct samkv_error *err)
{
    size_t header_bytes;
    *m = (struct samkv_reply_memory){.fd = -1};
    if (compute_layout(&m->layout, shape, rows, vocab, with_kv))
        return samkv_fail(err, SAMKV_TOO_LARGE, "a reply of %u tokens is too large: ask for fewer documents", rows);
    char *header = make_header(&m->layout, with_kv, &header_bytes);
    if (!header)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    add_header_size(&m->layout, with_kv, header_bytes);
    enum samkv_status status = samkv_memory_check(m->layout.memory_bytes, err);
    if (!status)
        status = create(m, err);
    if (status)
        samkv_reply_memory_free(m);
    else
        memcpy(m->map, header, header_bytes);
    free(header);
    return status;
}

enum samkv_status samkv_reply_memory_seal(struct samkv_reply_memory *m, struct samkv_error *err)
{
    munmap(m->map, m->layout.memory_bytes);
    m->map = NULL;
    if (fcntl(m->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL))
        return samkv_fail_errno(err, errno, "cannot seal the reply's memory");
    return SAMKV_OK;
}

void samkv_reply_memory_free(struct samkv_reply_memory *m)
{
    if (m->map)
        munmap(m->map, m->layout.memory_bytes);
    if (m->fd >= 0)
        close(m->fd);
    m->map = NULL;
    m->fd = -1;
}

/* MemAvailable in bytes; UINT64_MAX when the kernel does not say. */
static uint64_t available_bytes(void)
{
    char line[256];
    uint64_t kib = 0;
    FILE *f = fopen("/proc/meminfo", "re");
    if (!f)
        return UINT64_MAX;
    bool found = false;
    while (!found && fgets(line, sizeof line, f))
        found = sscanf(line, "MemAvailable: %" SCNu64, &kib) == 1;
    fclose(f);
    return found ? kib << 10 : UINT64_MAX;
}

enum samkv_status samkv_memory_check(uint64_t bytes, struct samkv_error *err)
{
    uint64_t available = available_bytes();
    if (bytes > available / 4 * 3)
        return samkv_fail(err, SAMKV_TOO_LARGE,
                          "this needs %" PRIu64 " MB and %" PRIu64
                          " MB are free: ask for fewer documents or a lower ratio",
                          bytes >> 20, available >> 20);
    return SAMKV_OK;
}
