/*
 * The CPU as a device with a memory of its own, a double for tests. It has the CPU's operations; what differs is what
 * a GPU would be strict about, so that mistakes show where there is none: device memory begins as NaN, copies look at
 * which side of the bus their pointers are, and memory can be shared with other processes (a memfd).
 */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct piece {
    struct piece *next;
    char *memory;
    size_t bytes;
    int fd; /* of shared memory, else −1 */
};

struct discrete_device {
    struct samkv_cpu_device cpu;
    struct samkv_ops ops;
    pthread_mutex_t lock;
    struct piece *pieces; /* all device memory, under lock */
    uint64_t bytes;       /* of them, under lock */
    uint64_t memory_bytes;
    _Atomic int64_t copies_left; /* until the device is lost; it never is when this starts at INT64_MAX */
};

static struct discrete_device *discrete_of(struct samkv_device *device)
{
    return (struct discrete_device *)device;
}

/* ------------------------------------------------------------------ memory */

static bool is_lost(struct discrete_device *d)
{
    return atomic_load(&d->copies_left) <= 0;
}

/* Whether this much more fits, which is then taken. A device that is lost gives nothing. */
static bool reserve(struct discrete_device *d, size_t bytes)
{
    pthread_mutex_lock(&d->lock);
    bool fits = bytes <= d->memory_bytes && d->bytes <= d->memory_bytes - bytes && !is_lost(d);
    if (fits)
        d->bytes += bytes;
    pthread_mutex_unlock(&d->lock);
    return fits;
}

static void unreserve(struct discrete_device *d, size_t bytes)
{
    pthread_mutex_lock(&d->lock);
    d->bytes -= bytes;
    pthread_mutex_unlock(&d->lock);
}

static void add(struct discrete_device *d, struct piece *piece)
{
    pthread_mutex_lock(&d->lock);
    piece->next = d->pieces;
    d->pieces = piece;
    pthread_mutex_unlock(&d->lock);
}

/* Takes the piece that begins at `memory` out of the list. What was never allocated must not be released. */
static struct piece *take(struct discrete_device *d, const void *memory)
{
    pthread_mutex_lock(&d->lock);
    struct piece **at = &d->pieces, *found;
    while (*at && (*at)->memory != memory)
        at = &(*at)->next;
    found = *at;
    if (found) {
        *at = found->next;
        d->bytes -= found->bytes;
    }
    pthread_mutex_unlock(&d->lock);
    assert(found);
    return found;
}

/* Whether the range lies in one piece of device memory (wanted), or touches none (not wanted). */
static bool on_side(struct samkv_device *device, const void *p, size_t bytes, bool wanted)
{
    struct discrete_device *d = discrete_of(device);
    uintptr_t from = (uintptr_t)p, to = from + bytes;
    bool inside = false, touches = false;
    pthread_mutex_lock(&d->lock);
    for (const struct piece *piece = d->pieces; piece; piece = piece->next) {
        uintptr_t first = (uintptr_t)piece->memory, end = first + piece->bytes;
        inside = inside || (from >= first && to <= end);
        touches = touches || (from < end && to > first);
    }
    pthread_mutex_unlock(&d->lock);
    return wanted ? inside : !touches;
}

static enum samkv_status discrete_alloc(struct samkv_device *device, size_t bytes, void **out)
{
    *out = NULL;
    if (!reserve(discrete_of(device), bytes))
        return is_lost(discrete_of(device)) ? SAMKV_DEVICE : SAMKV_NO_MEMORY;
    struct piece *piece = calloc(1, sizeof *piece);
    enum samkv_status status = piece ? samkv_cpu_ops.alloc(device, bytes, out) : SAMKV_NO_MEMORY;
    if (status) {
        unreserve(discrete_of(device), bytes);
        free(piece);
        return status;
    }
    memset(*out, 0xff, bytes); /* NaN in every type: nobody may count on what is there */
    *piece = (struct piece){.memory = *out, .bytes = bytes, .fd = -1};
    add(discrete_of(device), piece);
    return SAMKV_OK;
}

static void discrete_release(struct samkv_device *device, void *memory)
{
    struct piece *piece = memory ? take(discrete_of(device), memory) : NULL;
    if (!piece)
        return;
    assert(piece->fd < 0);
    samkv_cpu_ops.release(device, memory);
    free(piece);
}

/* ------------------------------------------------------------------ shared memory */

static void piece_close(struct piece *piece)
{
    if (piece->memory)
        munmap(piece->memory, piece->bytes);
    if (piece->fd >= 0)
        close(piece->fd);
    free(piece);
}

static enum samkv_status shared_alloc(struct samkv_device *device, size_t *bytes, void **out)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    *out = NULL;
    if (*bytes > PTRDIFF_MAX - page)
        return SAMKV_NO_MEMORY;
    size_t rounded = *bytes ? (*bytes + page - 1) / page * page : page;
    struct discrete_device *d = discrete_of(device);
    if (!reserve(d, rounded))
        return is_lost(d) ? SAMKV_DEVICE : SAMKV_NO_MEMORY;
    struct piece *piece = calloc(1, sizeof *piece);
    if (!piece) {
        unreserve(d, rounded);
        return SAMKV_NO_MEMORY;
    }
    piece->bytes = rounded;
    piece->fd = memfd_create("samkv-device", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    /* Who maps it must not be killed by a size that shrinks. */
    if (piece->fd < 0 || ftruncate(piece->fd, (off_t)rounded) != 0 ||
        fcntl(piece->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        piece_close(piece);
        unreserve(d, rounded);
        return SAMKV_NO_MEMORY;
    }
    void *mapped = mmap(NULL, rounded, PROT_READ | PROT_WRITE, MAP_SHARED, piece->fd, 0);
    if (mapped == MAP_FAILED) {
        piece_close(piece);
        unreserve(d, rounded);
        return SAMKV_NO_MEMORY;
    }
    piece->memory = mapped;
    add(d, piece);
    *bytes = rounded;
    *out = mapped;
    return SAMKV_OK;
}

static enum samkv_status shared_export(struct samkv_device *device, void *memory, int *fd)
{
    struct discrete_device *d = discrete_of(device);
    *fd = -1;
    pthread_mutex_lock(&d->lock);
    for (const struct piece *piece = d->pieces; piece; piece = piece->next)
        if (piece->memory == memory && piece->fd >= 0)
            *fd = fcntl(piece->fd, F_DUPFD_CLOEXEC, 0);
    pthread_mutex_unlock(&d->lock);
    return *fd < 0 ? SAMKV_IO : SAMKV_OK;
}

static void shared_release(struct samkv_device *device, void *memory)
{
    struct piece *piece = memory ? take(discrete_of(device), memory) : NULL;
    if (!piece)
        return;
    assert(piece->fd >= 0);
    piece_close(piece);
}

/* ------------------------------------------------------------------ copies */

static bool allowed(struct samkv_stream *stream, const void *p, size_t bytes, bool wanted, const char *why)
{
    if (on_side(stream->device, p, bytes, wanted))
        return true;
    samkv_cpu_stream_fail(stream, SAMKV_DEVICE, why);
    return false;
}

/* Counts a copy down to the loss of the device, which fails this one and all that come. */
static bool lives(struct samkv_stream *stream)
{
    struct discrete_device *d = discrete_of(stream->device);
    if (!is_lost(d) && (atomic_load(&d->copies_left) == INT64_MAX || atomic_fetch_sub(&d->copies_left, 1) > 1))
        return true;
    samkv_cpu_stream_fail(stream, SAMKV_DEVICE, "the device is lost: restart samkvd");
    return false;
}

static void upload(struct samkv_stream *stream, void *dst, const void *host_src, size_t bytes)
{
    if (bytes && lives(stream) && allowed(stream, dst, bytes, true, "upload to what is not device memory") &&
        allowed(stream, host_src, bytes, false, "upload from device memory"))
        samkv_cpu_ops.upload(stream, dst, host_src, bytes);
}

static void download(struct samkv_stream *stream, void *host_dst, const void *src, size_t bytes)
{
    if (bytes && lives(stream) && allowed(stream, src, bytes, true, "download from what is not device memory") &&
        allowed(stream, host_dst, bytes, false, "download to device memory"))
        samkv_cpu_ops.download(stream, host_dst, src, bytes);
}

static void copy(struct samkv_stream *stream, void *dst, const void *src, size_t bytes)
{
    if (bytes && lives(stream) && allowed(stream, dst, bytes, true, "copy to what is not device memory") &&
        allowed(stream, src, bytes, true, "copy from what is not device memory"))
        samkv_cpu_ops.copy(stream, dst, src, bytes);
}

static void zero(struct samkv_stream *stream, void *dst, size_t bytes)
{
    if (bytes && lives(stream) && allowed(stream, dst, bytes, true, "zero of what is not device memory"))
        samkv_cpu_ops.zero(stream, dst, bytes);
}

/* ------------------------------------------------------------------ device */

static void discrete_memory(struct samkv_device *device, uint64_t *free_bytes, uint64_t *total_bytes)
{
    struct discrete_device *d = discrete_of(device);
    samkv_cpu_ops.memory(device, free_bytes, total_bytes);
    pthread_mutex_lock(&d->lock);
    if (d->memory_bytes < *total_bytes) {
        *total_bytes = d->memory_bytes;
        *free_bytes = d->memory_bytes - d->bytes;
    }
    pthread_mutex_unlock(&d->lock);
}

static void discrete_free(struct samkv_device *device)
{
    struct discrete_device *d = discrete_of(device);
    if (!d)
        return;
    assert(!d->pieces); /* all memory goes back before its device does */
    pthread_mutex_destroy(&d->lock);
    free(d);
}

enum samkv_status samkv_cpu_discrete_new(int threads, struct samkv_device **out, struct samkv_error *err)
{
    *out = NULL;
    struct discrete_device *d = calloc(1, sizeof *d);
    if (!d)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for a device");
    enum samkv_status status = samkv_cpu_device_init(&d->cpu, &d->ops, "discrete, ", threads, err);
    if (status) {
        free(d);
        return status;
    }
    d->ops = samkv_cpu_ops;
    d->ops.alloc = discrete_alloc;
    d->ops.release = discrete_release;
    d->ops.upload = upload;
    d->ops.download = download;
    d->ops.copy = copy;
    d->ops.zero = zero;
    d->ops.shared_alloc = shared_alloc;
    d->ops.shared_export = shared_export;
    d->ops.shared_release = shared_release;
    d->ops.memory = discrete_memory;
    d->ops.device_free = discrete_free;
    d->cpu.base.shares = true;
    d->memory_bytes = UINT64_MAX;
    atomic_init(&d->copies_left, INT64_MAX);
    pthread_mutex_init(&d->lock, NULL);
    *out = &d->cpu.base;
    return SAMKV_OK;
}

enum samkv_status samkv_cpu_discrete_spoil(struct samkv_device *device, const char *how, struct samkv_error *err)
{
    struct discrete_device *d = discrete_of(device);
    while (*how) {
        char *end = NULL;
        const char *value = strchr(how, '=');
        unsigned long long n = value ? strtoull(value + 1, &end, 10) : 0;
        if (!value || end == value + 1 || (*end && *end != ':') || n < 1 || n >= INT64_MAX)
            break;
        if (!strncmp(how, "lost=", 5))
            atomic_store(&d->copies_left, (int64_t)n);
        else if (!strncmp(how, "memory=", 7))
            d->memory_bytes = n;
        else
            break;
        how = *end ? end + 1 : end;
    }
    return *how ? samkv_fail(err, SAMKV_INVALID, "cpu:discrete takes lost=COPIES and memory=BYTES, not '%.40s'", how)
                : SAMKV_OK;
}
