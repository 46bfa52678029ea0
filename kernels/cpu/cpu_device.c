/* The CPU as a device: memory, streams, events, the operation table, and the choice of instruction set. */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <omp.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>

#define ALIGNMENT 64

/* From so many bytes on, pages of 2 MiB are asked for: products walk through weights in strides that small pages' table
 * does not hold. */
#define HUGE_BYTES ((size_t)64 << 20)
#define HUGE_PAGE  ((size_t)2 << 20)

static enum samkv_status cpu_alloc(struct samkv_device *device, size_t bytes, void **out)
{
    (void)device;
    *out = NULL;
    if (bytes > PTRDIFF_MAX - ALIGNMENT)
        return SAMKV_NO_MEMORY;
    size_t alignment = bytes >= HUGE_BYTES ? HUGE_PAGE : ALIGNMENT;
    size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (posix_memalign(out, alignment, rounded ? rounded : ALIGNMENT))
        *out = NULL;
    if (*out && alignment == HUGE_PAGE)
        (void)madvise(*out, rounded, MADV_HUGEPAGE); /* a wish: without, small pages do */
    return *out ? SAMKV_OK : SAMKV_NO_MEMORY;
}

static void cpu_release(struct samkv_device *device, void *memory)
{
    (void)device;
    free(memory);
}

static enum samkv_status stream_new(struct samkv_device *device, struct samkv_stream **out)
{
    struct samkv_cpu_stream *stream = calloc(1, sizeof *stream);
    if (!stream)
        return SAMKV_NO_MEMORY;
    stream->base.device = device;
    *out = &stream->base;
    return SAMKV_OK;
}

static void stream_free(struct samkv_stream *base)
{
    struct samkv_cpu_stream *stream = (struct samkv_cpu_stream *)base;
    if (!stream)
        return;
    free(stream->scratch);
    free(stream);
}

void samkv_cpu_stream_fail(struct samkv_stream *base, enum samkv_status status, const char *why)
{
    struct samkv_cpu_stream *stream = (struct samkv_cpu_stream *)base;
    if (stream->failed)
        return;
    stream->failed = status;
    snprintf(stream->why, sizeof stream->why, "%s", why);
}

bool samkv_cpu_stream_failed(const struct samkv_stream *base)
{
    return ((const struct samkv_cpu_stream *)base)->failed != SAMKV_OK;
}

void *samkv_cpu_stream_scratch(struct samkv_stream *base, size_t bytes)
{
    struct samkv_cpu_stream *stream = (struct samkv_cpu_stream *)base;
    if (bytes <= stream->scratch_bytes)
        return stream->scratch;
    cpu_release(base->device, stream->scratch);
    stream->scratch_bytes = 0;
    if (cpu_alloc(base->device, bytes, &stream->scratch) != SAMKV_OK) {
        samkv_cpu_stream_fail(base, SAMKV_NO_MEMORY, "no memory for the work space of an operation");
        return NULL;
    }
    stream->scratch_bytes = bytes;
    return stream->scratch;
}

static void transfer(struct samkv_stream *stream, void *dst, const void *src, size_t bytes)
{
    if (bytes && !samkv_cpu_stream_failed(stream))
        memmove(dst, src, bytes);
}

static void zero(struct samkv_stream *stream, void *dst, size_t bytes)
{
    if (bytes && !samkv_cpu_stream_failed(stream))
        memset(dst, 0, bytes);
}

static enum samkv_status sync_stream(struct samkv_stream *base, struct samkv_error *err)
{
    struct samkv_cpu_stream *stream = (struct samkv_cpu_stream *)base;
    enum samkv_status status = stream->failed;
    stream->failed = SAMKV_OK;
    return status == SAMKV_OK ? SAMKV_OK : samkv_fail(err, status, "cpu: %s", stream->why);
}

static void device_free(struct samkv_device *device)
{
    free(device);
}

/* What the kernel says could be given out: free pages alone leave out the page cache, which is most of memory. */
static void cpu_memory(struct samkv_device *device, uint64_t *free_bytes, uint64_t *total_bytes)
{
    struct sysinfo info;
    unsigned long long kilobytes;
    char line[128];
    (void)device;
    *free_bytes = *total_bytes = 0;
    if (sysinfo(&info) == 0) {
        *free_bytes = (uint64_t)info.freeram * info.mem_unit;
        *total_bytes = (uint64_t)info.totalram * info.mem_unit;
    }
    FILE *f = fopen("/proc/meminfo", "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kilobytes) == 1)
            *free_bytes = (uint64_t)kilobytes << 10;
    if (f)
        fclose(f);
}

/*
 * Operations run at once, so an event has nothing to wait for: it only makes what one thread wrote before record()
 * visible to another after await() or event_sync().
 */
struct cpu_event {
    struct samkv_event base;
    atomic_uint recordings;
};

static enum samkv_status event_new(struct samkv_device *device, struct samkv_event **out)
{
    struct cpu_event *event = calloc(1, sizeof *event);
    *out = NULL;
    if (!event)
        return SAMKV_NO_MEMORY;
    event->base.device = device;
    *out = &event->base;
    return SAMKV_OK;
}

static void event_free(struct samkv_event *event)
{
    free(event);
}

static void record(struct samkv_stream *stream, struct samkv_event *event)
{
    (void)stream;
    assert(stream->device == event->device);
    atomic_fetch_add_explicit(&((struct cpu_event *)event)->recordings, 1, memory_order_release);
}

static void await(struct samkv_stream *stream, struct samkv_event *event)
{
    (void)stream;
    assert(stream->device == event->device);
    (void)atomic_load_explicit(&((struct cpu_event *)event)->recordings, memory_order_acquire);
}

static enum samkv_status event_sync(struct samkv_event *event, struct samkv_error *err)
{
    (void)err;
    (void)atomic_load_explicit(&((struct cpu_event *)event)->recordings, memory_order_acquire);
    return SAMKV_OK;
}

const struct samkv_ops samkv_cpu_ops = {
    .alloc = cpu_alloc,
    .release = cpu_release,
    .host_alloc = cpu_alloc,
    .host_release = cpu_release,
    .stream_new = stream_new,
    .stream_free = stream_free,
    .upload = transfer,
    .download = transfer,
    .copy = transfer,
    .zero = zero,
    .sync = sync_stream,
    .device_free = device_free,
    .memory = cpu_memory,
    .event_new = event_new,
    .event_free = event_free,
    .record = record,
    .await = await,
    .event_sync = event_sync,
    .embed = samkv_cpu_embed,
    .rmsnorm = samkv_cpu_rmsnorm,
    .head_norm = samkv_cpu_head_norm,
    .matmul = samkv_cpu_matmul,
    .rope_table = samkv_cpu_rope_table,
    .rope = samkv_cpu_rope,
    .attention = samkv_cpu_attention,
    .swiglu = samkv_cpu_swiglu,
    .kv_write = samkv_cpu_kv_write,
    .place = samkv_cpu_place,
    .place_runs = samkv_cpu_place_runs,
    .gather = samkv_cpu_gather,
    .convert = samkv_cpu_convert,
    .segment_mean = samkv_cpu_segment_mean,
    .rope_f32 = samkv_cpu_rope_f32,
    .block_scores = samkv_cpu_block_scores,
    .score = samkv_cpu_score,
};

#if SAMKV_CPU_X86
static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static bool has_avx512_bf16(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512bf16");
}
#endif

static bool has_portable(void)
{
    return true;
}

/* Best first. */
static const struct {
    const struct samkv_cpu_simd *simd;
    bool (*usable)(void);
} instruction_sets[] = {
#if SAMKV_CPU_X86
    {&samkv_cpu_simd_avx512_bf16, has_avx512_bf16},
    {&samkv_cpu_simd_avx512, has_avx512},
    {&samkv_cpu_simd_avx2, has_avx2},
#endif
    {&samkv_cpu_simd_portable, has_portable},
};

#define INSTRUCTION_SETS (sizeof instruction_sets / sizeof *instruction_sets)

/*
 * The best set that this processor has. SAMKV_CPU_ISA=avx512, avx2 or portable in the environment takes a lesser one,
 * so that one machine can test all of them; a name that is unknown or not usable here changes nothing.
 */
static const struct samkv_cpu_simd *choose_simd(void)
{
    const char *wanted = getenv("SAMKV_CPU_ISA");
#if SAMKV_CPU_X86
    __builtin_cpu_init();
#endif
    for (size_t i = 0; wanted && i < INSTRUCTION_SETS; i++)
        if (!strcmp(wanted, instruction_sets[i].simd->name) && instruction_sets[i].usable())
            return instruction_sets[i].simd;
    for (size_t i = 0; i + 1 < INSTRUCTION_SETS; i++)
        if (instruction_sets[i].usable())
            return instruction_sets[i].simd;
    return &samkv_cpu_simd_portable;
}

static int usable_processors(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        return CPU_COUNT(&set);
    return omp_get_num_procs(); /* more processors than the fixed set can say */
}

enum samkv_status samkv_cpu_device_init(struct samkv_cpu_device *device, const struct samkv_ops *ops, const char *kind,
                                        int threads, struct samkv_error *err)
{
    if (threads < 0 || threads > 4096)
        return samkv_fail(err, SAMKV_INVALID, "%d threads: give 0 (all processors) to 4096", threads);
    device->threads = threads ? threads : usable_processors();
    device->simd = choose_simd();
    device->base.ops = ops;
    device->base.dtype = SAMKV_F32;
    snprintf(device->base.name, sizeof device->base.name, "cpu (%s%s, %d thread%s)", kind, device->simd->name,
             device->threads, device->threads == 1 ? "" : "s");
    return SAMKV_OK;
}

bool samkv_cpu_use_bf16(struct samkv_device *base)
{
    struct samkv_cpu_device *device = (struct samkv_cpu_device *)base;
    if (base->ops != &samkv_cpu_ops || !device->simd->matmul_rows_bf16)
        return false;
    base->bf16_matrices = true;
    snprintf(base->name, sizeof base->name, "cpu (%s, bf16 products, %d thread%s)", device->simd->name, device->threads,
             device->threads == 1 ? "" : "s");
    return true;
}

enum samkv_status samkv_cpu_device_new(int threads, struct samkv_device **out, struct samkv_error *err)
{
    *out = NULL;
    struct samkv_cpu_device *device = calloc(1, sizeof *device);
    if (!device)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for a device");
    enum samkv_status status = samkv_cpu_device_init(device, &samkv_cpu_ops, "", threads, err);
    if (status) {
        free(device);
        return status;
    }
    device->base.unified = true;
    *out = &device->base;
    return SAMKV_OK;
}
