/* Caches → safetensors files. One whose K and V are on a device is written as a daemon would have made it for the host.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/client_internal.h"

#define DATA_ALIGNMENT 64
#define PIECE_BYTES    (4u << 20) /* copied from the device at a time */

/* ------------------------------------------------------------------ the header */

static const char *tensor_type(enum samkv_dtype dtype)
{
    return dtype == SAMKV_F16 ? "F16" : dtype == SAMKV_BF16 ? "BF16" : "F32";
}

/* One tensor behind those before it, whose end is *at. */
static void put_tensor(FILE *f, const char *name, const char *type, const char *shape, uint64_t bytes, uint64_t *at)
{
    fprintf(f, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", name, type,
            shape, *at, *at + bytes);
    *at += bytes;
}

static void put_layers(FILE *f, const struct samkv_cache *cache, char kind, uint64_t *at)
{
    char name[32], shape[64];
    snprintf(shape, sizeof shape, "%u,%u,%u", cache->rows, cache->kv_heads, cache->head_dim);
    for (uint32_t layer = 0; layer < cache->layers; layer++) {
        snprintf(name, sizeof name, "%c.%u", kind, layer);
        put_tensor(f, name, tensor_type(cache->dtype), shape, cache->rows * cache->row_stride_bytes, at);
    }
}

/* 8 bytes of size and the JSON, padded with spaces so that the data is aligned. Heap; NULL when out of memory. */
static char *make_header(const struct samkv_cache *cache, size_t *bytes)
{
    static const char *const columns[] = {"tokens", "doc", "index", "position"};
    char *text = NULL, shape[32];
    FILE *f = open_memstream(&text, bytes);
    if (!f)
        return NULL;
    uint64_t size = 0, at = 0;
    fwrite(&size, 1, sizeof size, f);
    fprintf(f, "{\"__metadata__\":{\"format\":\"pt\",\"producer\":\"samkvd\"}");
    put_layers(f, cache, 'k', &at);
    put_layers(f, cache, 'v', &at);
    snprintf(shape, sizeof shape, "%u", cache->rows);
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        put_tensor(f, columns[i], "I32", shape, cache->rows * sizeof(int32_t), &at);
    snprintf(shape, sizeof shape, "%u", cache->vocab);
    if (cache->logits)
        put_tensor(f, "logits", "F32", shape, cache->vocab * sizeof(float), &at);
    fputc('}', f);
    for (long end = ftell(f); end % DATA_ALIGNMENT; end++)
        fputc(' ', f);
    if (fclose(f)) {
        free(text);
        return NULL;
    }
    for (size_t i = 0; i < sizeof size; i++) /* little-endian */
        text[i] = (char)((*bytes - sizeof size) >> 8 * i);
    return text;
}

/* ------------------------------------------------------------------ writing */

/* Where a cache goes; path is for messages. */
struct file {
    int fd;
    const char *path;
    struct samkv_error *err;
};

static enum samkv_status cannot_write(const struct file *file, int errnum)
{
    return samkv_fail_errno(file->err, errnum, "cannot write %s", file->path);
}

static enum samkv_status write_all(const struct file *file, const void *from, size_t count)
{
    for (const uint8_t *bytes = from; count;) {
        ssize_t n = write(file->fd, bytes, count);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return cannot_write(file, errno);
        bytes += n;
        count -= (size_t)n;
    }
    return SAMKV_OK;
}

/* One layer's K or V from the device, piece by piece. */
static enum samkv_status write_layer(const struct file *file, const struct samkv_cache *cache, const void *layer,
                                     void *piece)
{
    enum samkv_status status = SAMKV_OK;
    size_t bytes = cache->rows * cache->row_stride_bytes;
    for (size_t at = 0; at < bytes && !status;) {
        size_t count = bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES;
        status = samkv_cache_read(cache, (const uint8_t *)layer + at, piece, count, file->err);
        if (!status)
            status = write_all(file, piece, count);
        at += count;
    }
    return status;
}

static enum samkv_status write_layers(const struct file *file, const struct samkv_cache *cache)
{
    enum samkv_status status = SAMKV_OK;
    void *piece = malloc(PIECE_BYTES);
    if (!piece)
        return samkv_fail(file->err, SAMKV_NO_MEMORY, "no memory to copy from the device");
    for (uint32_t layer = 0; layer < cache->layers && !status; layer++)
        status = write_layer(file, cache, samkv_cache_k(cache, layer), piece);
    for (uint32_t layer = 0; layer < cache->layers && !status; layer++)
        status = write_layer(file, cache, samkv_cache_v(cache, layer), piece);
    free(piece);
    return status;
}

static enum samkv_status write_device_cache(const struct file *file, const struct samkv_cache *cache)
{
    size_t header_bytes;
    char *header = make_header(cache, &header_bytes);
    if (!header)
        return samkv_fail(file->err, SAMKV_NO_MEMORY, "no memory for a file's header");
    enum samkv_status status = write_all(file, header, header_bytes);
    free(header);
    if (!status)
        status = write_layers(file, cache);
    const int32_t *const columns[] = {cache->tokens, cache->doc, cache->index, cache->position};
    for (size_t i = 0; i < sizeof columns / sizeof *columns && !status; i++)
        status = write_all(file, columns[i], cache->rows * sizeof(int32_t));
    if (!status && cache->logits)
        status = write_all(file, cache->logits, cache->vocab * sizeof(float));
    return status;
}

/* Closes fd. */
static enum samkv_status write_and_close(const struct file *file, const struct samkv_cache *cache, bool sync)
{
    enum samkv_status status = cache->where == SAMKV_FETCH_DEVICE ? write_device_cache(file, cache)
                                                                  : write_all(file, cache->memory, cache->memory_bytes);
    if (!status && sync && fsync(file->fd))
        status = cannot_write(file, errno);
    if (close(file->fd) && !status)
        status = cannot_write(file, errno);
    return status;
}

/* mkstemp gives 0600; a file that a person asked for gets what open would have given. */
static void apply_umask(int fd)
{
    mode_t mask = umask(0);
    umask(mask);
    fchmod(fd, 0666 & ~mask);
}

static enum samkv_status write_in_place(const struct samkv_cache *cache, const char *path, struct samkv_error *err)
{
    struct file file = {.fd = open(path, O_WRONLY | O_CLOEXEC), .path = path, .err = err};
    return file.fd < 0 ? cannot_write(&file, errno) : write_and_close(&file, cache, false);
}

enum samkv_status samkv_cache_save(const struct samkv_cache *cache, const char *path, struct samkv_error *err)
{
    struct stat st;
    if (!stat(path, &st) && !S_ISREG(st.st_mode))
        return write_in_place(cache, path, err);
    char *temporary = NULL;
    if (asprintf(&temporary, "%s.XXXXXX", path) < 0)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for a path");
    enum samkv_status status;
    struct file file = {.fd = mkostemp(temporary, O_CLOEXEC), .path = path, .err = err};
    if (file.fd < 0) {
        status = cannot_write(&file, errno);
    } else {
        apply_umask(file.fd);
        status = write_and_close(&file, cache, true);
        if (!status && rename(temporary, path))
            status = cannot_write(&file, errno);
        if (status)
            unlink(temporary);
    }
    free(temporary);
    return status;
}
