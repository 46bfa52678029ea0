#include "client/client_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct samkv_cache_memory {
    int fd;
    Samkv__FetchReply *message; /* the figures' lists point into it */
    struct samkv_blocks_kept *keep;
};

/* ------------------------------------------------------------------ checks */

/* Is [offset, offset + bytes) inside the memory and aligned for its elements? */
static bool is_inside(uint64_t offset, uint64_t bytes, size_t element_bytes, uint64_t memory_bytes)
{
    return offset % element_bytes == 0 && offset <= memory_bytes && bytes <= memory_bytes - offset;
}

/* Are all layers' regions inside? Numbers are the daemon's: every product may overflow. */
static bool layers_are_inside(const Samkv__FetchReply *m, uint64_t offset, size_t element_bytes)
{
    uint64_t layer_bytes, last;
    if (__builtin_mul_overflow((uint64_t)m->rows * m->kv_heads, (uint64_t)m->head_dim * element_bytes, &layer_bytes) ||
        __builtin_mul_overflow(m->layer_stride, (uint64_t)m->layers - 1, &last) ||
        __builtin_add_overflow(last, offset, &last))
        return false;
    return m->layer_stride % element_bytes == 0 && is_inside(offset, layer_bytes, element_bytes, m->memory_bytes) &&
           is_inside(last, layer_bytes, element_bytes, m->memory_bytes);
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
    bool good = layers_are_inside(m, m->k_offset, element_bytes) && layers_are_inside(m, m->v_offset, element_bytes);
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        good = good && is_inside(arrays[i], (uint64_t)m->rows * sizeof(int32_t), sizeof(int32_t), m->memory_bytes);
    if (m->logits_offset)
        good = good && is_inside(m->logits_offset, (uint64_t)m->vocab * sizeof(float), sizeof(float), m->memory_bytes);
    if (!good)
        return samkv_fail(err, SAMKV_PROTOCOL, "the daemon's cache does not lie within its memory");
    return SAMKV_OK;
}

/* Memory that could shrink or change under the reader is not accepted: reading it might kill the process. */
static enum samkv_status check_memory(int fd, uint64_t memory_bytes, struct samkv_error *err)
{
    struct stat st;
    if (fd < 0)
        return samkv_fail(err, SAMKV_PROTOCOL, "the daemon's answer came without its memory");
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
    cache->tokens = (const int32_t *)(base + m->tokens_offset);
    cache->doc = (const int32_t *)(base + m->doc_offset);
    cache->index = (const int32_t *)(base + m->index_offset);
    cache->position = (const int32_t *)(base + m->position_offset);
    if (m->logits_offset) {
        cache->logits = (const float *)(base + m->logits_offset);
        cache->vocab = m->vocab;
    }
}

static enum samkv_status build(struct samkv_cache *cache, struct samkv_error *err)
{
    const Samkv__FetchReply *m = cache->owner->message;
    enum samkv_status status = check_memory(cache->owner->fd, m->memory_bytes, err);
    if (!status)
        status = check_layout(m, err);
    if (!status)
        status = samkv_figures_fill(&cache->figures, m, cache->owner->keep, err);
    if (status)
        return status;
    void *memory = mmap(NULL, m->memory_bytes, PROT_READ, MAP_SHARED, cache->owner->fd, 0);
    if (memory == MAP_FAILED)
        return samkv_fail_errno(err, errno, "cannot map %llu bytes of the daemon's memory",
                                (unsigned long long)m->memory_bytes);
    cache->memory = memory;
    cache->memory_bytes = m->memory_bytes;
    point_at_arrays(cache, m);
    return SAMKV_OK;
}

enum samkv_status samkv_cache_new(Samkv__FetchReply *message, int fd, struct samkv_cache **out, struct samkv_error *err)
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
        if (fd >= 0)
            close(fd);
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for a cache");
    }
    *owner = (struct samkv_cache_memory){.fd = fd, .message = message, .keep = keep};
    cache->owner = owner;
    enum samkv_status status = build(cache, err);
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
    if (cache->owner->fd >= 0)
        close(cache->owner->fd);
    samkv__fetch_reply__free_unpacked(cache->owner->message, NULL);
    free(cache->owner->keep);
    free(cache->owner);
    free(cache);
}

static const void *layer_at(const struct samkv_cache *cache, uint32_t layer, uint64_t offset)
{
    if (layer >= cache->layers)
        return NULL;
    return (const uint8_t *)cache->memory + offset + layer * cache->owner->message->layer_stride;
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
    return cache->owner->fd;
}

/* ------------------------------------------------------------------ saving */

static int write_all(int fd, const uint8_t *bytes, size_t count)
{
    while (count) {
        ssize_t n = write(fd, bytes, count);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno;
        bytes += n;
        count -= (size_t)n;
    }
    return 0;
}

/* Closes fd. */
static int write_and_close(int fd, const struct samkv_cache *cache, bool sync)
{
    int errnum = write_all(fd, cache->memory, cache->memory_bytes);
    if (!errnum && sync && fsync(fd))
        errnum = errno;
    if (close(fd) && !errnum)
        errnum = errno;
    return errnum;
}

/* mkstemp gives 0600; a file that a person asked for gets what open would have given. */
static void apply_umask(int fd)
{
    mode_t mask = umask(0);
    umask(mask);
    fchmod(fd, 0666 & ~mask);
}

enum samkv_status samkv_cache_save(const struct samkv_cache *cache, const char *path, struct samkv_error *err)
{
    struct stat st;
    if (!stat(path, &st) && !S_ISREG(st.st_mode)) {
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        int errnum = fd < 0 ? errno : write_and_close(fd, cache, false);
        return errnum ? samkv_fail_errno(err, errnum, "cannot write %s", path) : SAMKV_OK;
    }
    char *temporary = NULL;
    if (asprintf(&temporary, "%s.XXXXXX", path) < 0)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for a path");
    int errnum = 0, fd = mkostemp(temporary, O_CLOEXEC);
    if (fd < 0) {
        errnum = errno;
    } else {
        apply_umask(fd);
        errnum = write_and_close(fd, cache, true);
        if (!errnum && rename(temporary, path))
            errnum = errno;
        if (errnum)
            unlink(temporary);
    }
    free(temporary);
    return errnum ? samkv_fail_errno(err, errnum, "cannot write %s", path) : SAMKV_OK;
}
