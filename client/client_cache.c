#include "client/client_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

struct samkv_cache_memory {
    struct samkv_fds fds; /* the first one is the sealed file */
    struct samkv_device_memory device;
    Samkv__FetchReply *message; /* the figures' lists point into it */
    struct samkv_blocks_kept *keep;
};

/* ------------------------------------------------------------------ checks */

/* Is [offset, offset + bytes) inside the memory and aligned for its elements? */
static bool is_inside(uint64_t offset, uint64_t bytes, size_t element_bytes, uint64_t memory_bytes)
{
    return offset % element_bytes == 0 && offset <= memory_bytes && bytes <= memory_bytes - offset;
}

/* Are all layers' regions inside, and apart? Numbers are the daemon's: every product may overflow. */
static bool layers_are_inside(const Samkv__FetchReply *m, uint64_t offset, size_t element_bytes, uint64_t memory_bytes)
{
    uint64_t layer_bytes, last;
    if (__builtin_mul_overflow((uint64_t)m->rows * m->kv_heads, (uint64_t)m->head_dim * element_bytes, &layer_bytes) ||
        __builtin_mul_overflow(m->layer_stride, (uint64_t)m->layers - 1, &last) ||
        __builtin_add_overflow(last, offset, &last))
        return false;
    return m->layer_stride % element_bytes == 0 && (m->layer_stride >= layer_bytes || m->layers == 1) &&
           is_inside(offset, layer_bytes, element_bytes, memory_bytes) &&
           is_inside(last, layer_bytes, element_bytes, memory_bytes);
}

static enum samkv_status check_layout(const Samkv__FetchReply *m, struct samkv_error *err)
{
    if (m->dtype != SAMKV_F32 && m->dtype != SAMKV_F16 && m->dtype != SAMKV_BF16)
        return samkv_fail(err, SAMKV_PROTOCOL, "the daemon's cache has element type %u, which is unknown here",
                          m->dtype);
    if (!m->layers || !m->rows || !m->kv_heads || !m->head_dim || m->rows > INT32_MAX)
        return samkv_fail(err, SAMKV_PROTOCOL, "the daemon's cache has an impossible shape");
    size_t element_bytes = samkv_dtype_bytes((enum samkv_dtype)m->dtype);
    const uint64_t arrays[] = {m->tokens_offset, m->doc_offset, m->index_offset, m->position_offset};
    uint64_t kv_bytes = m->device ? m->device->bytes : m->memory_bytes;
    bool good = layers_are_inside(m, m->k_offset, element_bytes, kv_bytes) &&
                layers_are_inside(m, m->v_offset, element_bytes, kv_bytes);
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        good = good && is_inside(arrays[i], (uint64_t)m->rows * sizeof(int32_t), sizeof(int32_t), m->memory_bytes);
    if (m->logits_offset)
        good = good && is_inside(m->logits_offset, (uint64_t)m->vocab * sizeof(float), sizeof(float), m->memory_bytes);
    if (!good)
        return samkv_fail(err, SAMKV_PROTOCOL, "the daemon's cache does not lie within its memory");
    return SAMKV_OK;
}

/* device_asked: whether the request was for device memory. A daemon may ignore that, but not invent it. */
static enum samkv_status check_descriptors(const Samkv__FetchReply *m, const struct samkv_fds *fds, bool device_asked,
                                           bool announced, struct samkv_error *err)
{
    if (m->device && !device_asked)
        return samkv_fail(err, SAMKV_PROTOCOL, "the daemon answered with device memory, which was not asked for");
    if (!fds->count)
        return samkv_fail(err, SAMKV_PROTOCOL, "the daemon's answer came without its memory");
    if (fds->count != (m->device && !announced ? SAMKV_DEVICE_FDS : 1) || fds->surplus)
        return samkv_fail(err, SAMKV_PROTOCOL, "the daemon's answer came with %s descriptors than its memory has",
                          fds->count < SAMKV_DEVICE_FDS && m->device && !announced ? "fewer" : "more");
    return SAMKV_OK;
}

/* Memory that could shrink or change under the reader is not accepted: reading it might kill the process. */
static enum samkv_status check_memory(int fd, uint64_t memory_bytes, struct samkv_error *err)
{
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & (F_SEAL_SHRINK | F_SEAL_WRITE)) != (F_SEAL_SHRINK | F_SEAL_WRITE))
        return samkv_fail(err, SAMKV_PROTOCOL, "the daemon's memory is not sealed against change");
    if (fstat(fd, &st))
        return samkv_fail_errno(err, errno, "cannot look at the daemon's memory");
    if (!memory_bytes || memory_bytes > SIZE_MAX || (uint64_t)st.st_size != memory_bytes)
        return samkv_fail(err, SAMKV_PROTOCOL, "the daemon announced %llu bytes of memory and sent %llu",
                          (unsigned long long)memory_bytes, (unsigned long long)st.st_size);
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ life */

static void point_at_arrays(struct samkv_cache *cache, const Samkv__FetchReply *m)
{
    const uint8_t *base = cache->memory;
    cache->layers = m->layers;
    cache->rows = m->rows;
    cache->kv_heads = m->kv_heads;
    cache->head_dim = m->head_dim;
    cache->dtype = (enum samkv_dtype)m->dtype;
    cache->head_stride_bytes = m->head_dim * samkv_dtype_bytes(cache->dtype);
    cache->row_stride_bytes = m->kv_heads * cache->head_stride_bytes;
    cache->layer_stride_bytes = m->layer_stride;
    cache->tokens = (const int32_t *)(base + m->tokens_offset);
    cache->doc = (const int32_t *)(base + m->doc_offset);
    cache->index = (const int32_t *)(base + m->index_offset);
    cache->position = (const int32_t *)(base + m->position_offset);
    if (m->logits_offset) {
        cache->logits = (const float *)(base + m->logits_offset);
        cache->vocab = m->vocab;
    }
}

static enum samkv_status build(struct samkv_cache *cache, bool device_asked, struct samkv_error *err)
{
    struct samkv_cache_memory *owner = cache->owner;
    const Samkv__FetchReply *m = owner->message;
    bool announced = owner->device.base != NULL;
    enum samkv_status status = check_descriptors(m, &owner->fds, device_asked, announced, err);
    if (!status && announced && (!m->device || m->device->bytes != owner->device.bytes))
        status = samkv_fail(err, SAMKV_PROTOCOL, "the daemon announced other device memory than it answers with");
    if (!status)
        status = check_memory(owner->fds.fd[SAMKV_FD_FILE], m->memory_bytes, err);
    if (!status)
        status = check_layout(m, err);
    if (!status)
        status = samkv_figures_fill(&cache->figures, m, owner->keep, err);
    if (!status && m->device && !announced)
        status = samkv_device_map(m->device, &owner->fds, &owner->device, err);
    if (status)
        return status;
    void *memory = mmap(NULL, m->memory_bytes, PROT_READ, MAP_SHARED, owner->fds.fd[SAMKV_FD_FILE], 0);
    if (memory == MAP_FAILED)
        return samkv_fail_errno(err, errno, "cannot map %llu bytes of the daemon's memory",
                                (unsigned long long)m->memory_bytes);
    cache->memory = memory;
    cache->memory_bytes = m->memory_bytes;
    cache->where = m->device ? SAMKV_FETCH_DEVICE : SAMKV_FETCH_HOST;
    cache->device = m->device ? owner->device.ordinal : -1;
    point_at_arrays(cache, m);
    return SAMKV_OK;
}

enum samkv_status samkv_cache_new(Samkv__FetchReply *message, struct samkv_fds *fds, bool device_asked,
                                  struct samkv_device_memory *announced, struct samkv_cache **out,
                                  struct samkv_error *err)
{
    struct samkv_cache *cache = calloc(1, sizeof *cache);
    struct samkv_cache_memory *owner = calloc(1, sizeof *owner);
    struct samkv_blocks_kept *keep = calloc(message->n_keep ? message->n_keep : 1, sizeof *keep);
    *out = NULL;
    if (!cache || !owner || !keep) {
        free(cache);
        free(owner);
        free(keep);
        samkv__fetch_reply__free_unpacked(message, NULL);
        samkv_device_refuse(fds);
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for a cache");
    }
    *owner = (struct samkv_cache_memory){.fds = *fds, .message = message, .keep = keep};
    *fds = (struct samkv_fds){.count = 0};
    cache->owner = owner;
    if (announced) {
        owner->device = *announced;
        *announced = (struct samkv_device_memory){.base = NULL};
    }
    enum samkv_status status = build(cache, device_asked, err);
    if (status)
        samkv_cache_free(cache);
    else
        *out = cache;
    return status;
}

void samkv_cache_free(struct samkv_cache *cache)
{
    if (!cache)
        return;
    if (cache->memory)
        munmap((void *)cache->memory, cache->memory_bytes);
    samkv_device_unmap(&cache->owner->device);
    samkv_device_refuse(&cache->owner->fds);
    samkv__fetch_reply__free_unpacked(cache->owner->message, NULL);
    free(cache->owner->keep);
    free(cache->owner);
    free(cache);
}

static const void *layer_at(const struct samkv_cache *cache, uint32_t layer, uint64_t offset)
{
    if (layer >= cache->layers)
        return NULL;
    const uint8_t *base = cache->where == SAMKV_FETCH_DEVICE ? cache->owner->device.base : cache->memory;
    return base + offset + layer * cache->owner->message->layer_stride;
}

const void *samkv_cache_k(const struct samkv_cache *cache, uint32_t layer)
{
    return layer_at(cache, layer, cache->owner->message->k_offset);
}

const void *samkv_cache_v(const struct samkv_cache *cache, uint32_t layer)
{
    return layer_at(cache, layer, cache->owner->message->v_offset);
}

int samkv_cache_fd(const struct samkv_cache *cache)
{
    return cache->owner->fds.fd[SAMKV_FD_FILE];
}

enum samkv_status samkv_cache_read(const struct samkv_cache *cache, const void *from, void *out, size_t bytes,
                                   struct samkv_error *err)
{
    const struct samkv_device_memory *device = &cache->owner->device;
    return samkv_device_read(device, (uint64_t)((const uint8_t *)from - device->base), out, bytes, err);
}
