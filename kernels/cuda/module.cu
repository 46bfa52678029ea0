/*
 * The module's two exported functions, and what is not a kernel: devices, memory, streams, errors.
 *
 * Memory comes from a pool of ours. Requests allocate and release by the hundred megabytes, and cudaMalloc would wait
 * for the whole device each time. A release waits, on the device and not on the host, for what every stream had
 * enqueued before it: so memory may be released as on the CPU, without a thought for work in flight. Allocations have
 * a stream of their own and take only what has been given back for good: they wait for nobody, unless memory is out.
 */
#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/backend.cuh"

#define SAMKV_CUDA_ABI  2
#define SAMKV_EXPORT    extern "C" __attribute__((visibility("default")))
#define POOL_KEEP_BYTES ((uint64_t)2 << 30) /* more than this goes back to the driver, for the engine beside us */

/* ------------------------------------------------------------------ errors */

enum samkv_status samkv_cuda_status(cudaError_t error)
{
    switch (error) {
    case cudaSuccess:
        return SAMKV_OK;
    case cudaErrorMemoryAllocation:
        return SAMKV_NO_MEMORY;
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
        return SAMKV_NOT_FOUND;
    case cudaErrorInsufficientDriver:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorNotSupported:
        return SAMKV_UNSUPPORTED;
    default:
        return SAMKV_DEVICE;
    }
}

/* Errors after which CUDA's manual says: terminate the process. */
static bool is_final(cudaError_t error)
{
    switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorExternalDevice:
    case cudaErrorMpsClientTerminated:
#if CUDART_VERSION >= 13000
    case cudaErrorContained:
    case cudaErrorTensorMemoryLeak:
#endif
        return true;
    default:
        return false;
    }
}

enum samkv_status samkv_cuda_seen(struct cuda_device *d, cudaError_t error)
{
    if (is_final(error))
        __atomic_store_n(&d->lost, 1, __ATOMIC_RELAXED);
    return samkv_cuda_status(error);
}

enum samkv_status samkv_cuda_enter(struct cuda_device *d)
{
    return samkv_cuda_lost(d) ? SAMKV_DEVICE : samkv_cuda_seen(d, cudaSetDevice(d->ordinal));
}

void samkv_cuda_failed(struct cuda_stream *s, enum samkv_status status, const char *what, const char *why)
{
    if (s->failed)
        return;
    s->failed = status;
    snprintf(s->failure, sizeof s->failure, "%s: %s failed: %s%s", s->device->base.name, what, why,
             samkv_cuda_lost(s->device) ? ": " SAMKV_CUDA_LOST_ADVICE : "");
}

/* ------------------------------------------------------------------ memory */

void samkv_cuda_wait_for_streams(struct cuda_device *d)
{
    pthread_mutex_lock(&d->lock);
    for (struct cuda_stream *s = d->streams; s; s = s->next)
        if (cudaEventRecord(s->fence, s->queue) == cudaSuccess)
            (void)cudaStreamWaitEvent(d->releases, s->fence, 0);
    pthread_mutex_unlock(&d->lock);
}

/* On failure *out is NULL and the error does not surface in the next launch. */
static cudaError_t take(struct cuda_device *d, size_t bytes, void **out)
{
    *out = NULL;
    cudaError_t error = cudaMallocFromPoolAsync(out, bytes ? bytes : 1, d->pool, d->allocations);
    if (error == cudaSuccess) { /* nearly always done already, and asking is cheaper than waiting */
        error = cudaStreamQuery(d->allocations);
        if (error == cudaErrorNotReady) {
            (void)cudaGetLastError();
            error = cudaStreamSynchronize(d->allocations);
        }
    }
    if (error == cudaSuccess)
        return error;
    if (*out)
        (void)cudaFreeAsync(*out, d->allocations);
    *out = NULL;
    (void)cudaGetLastError();
    return error;
}

static enum samkv_status device_alloc(struct samkv_device *device, size_t bytes, void **out)
{
    struct cuda_device *d = (struct cuda_device *)device;
    *out = NULL;
    enum samkv_status status = samkv_cuda_enter(d);
    if (status)
        return status;
    cudaError_t error = take(d, bytes, out);
    if (error == cudaErrorMemoryAllocation) {
        error = cudaStreamSynchronize(d->releases);
        if (error == cudaSuccess)
            error = take(d, bytes, out); /* what was being given back is there now */
    }
    return samkv_cuda_seen(d, error);
}

static void device_release(struct samkv_device *device, void *memory)
{
    struct cuda_device *d = (struct cuda_device *)device;
    if (!memory || samkv_cuda_enter(d))
        return;
    samkv_cuda_wait_for_streams(d);
    (void)samkv_cuda_seen(d, cudaFreeAsync(memory, d->releases));
    (void)cudaGetLastError();
}

/* What the pool keeps is free too: for our own allocations at once, for others when memory is short. */
static void device_memory(struct samkv_device *device, uint64_t *free_bytes, uint64_t *total_bytes)
{
    struct cuda_device *d = (struct cuda_device *)device;
    size_t available = 0, all = 0;
    uint64_t reserved = 0, used = 0;
    *free_bytes = *total_bytes = 0;
    if (samkv_cuda_enter(d) || samkv_cuda_seen(d, cudaMemGetInfo(&available, &all)))
        return;
    *free_bytes = available;
    *total_bytes = all;
    if (cudaMemPoolGetAttribute(d->pool, cudaMemPoolAttrReservedMemCurrent, &reserved) == cudaSuccess &&
        cudaMemPoolGetAttribute(d->pool, cudaMemPoolAttrUsedMemCurrent, &used) == cudaSuccess && reserved > used)
        *free_bytes += reserved - used;
}

/* ------------------------------------------------------------------ streams */

static void stream_free(struct samkv_stream *stream)
{
    struct cuda_stream *s = (struct cuda_stream *)stream;
    if (!s)
        return;
    struct cuda_device *d = s->device;
    bool alive = samkv_cuda_enter(d) == SAMKV_OK;
    pthread_mutex_lock(&d->lock);
    for (struct cuda_stream **at = &d->streams; *at; at = &(*at)->next) {
        if (*at == s) {
            *at = s->next;
            break;
        }
    }
    pthread_mutex_unlock(&d->lock);
    if (alive && s->queue)
        alive = samkv_cuda_seen(d, cudaStreamSynchronize(s->queue)) == SAMKV_OK;
    if (alive) {
        if (s->queue)
            (void)cudaStreamDestroy(s->queue);
        if (s->fence)
            (void)cudaEventDestroy(s->fence);
        device_release(&d->base, s->workspace);
        samkv_cuda_plans_free(s->plans);
        (void)cudaGetLastError();
    }
    free(s);
}

static enum samkv_status stream_new(struct samkv_device *device, struct samkv_stream **out)
{
    struct cuda_device *d = (struct cuda_device *)device;
    *out = NULL;
    struct cuda_stream *s = (struct cuda_stream *)calloc(1, sizeof *s);
    if (!s)
        return SAMKV_NO_MEMORY;
    s->base.device = device;
    s->device = d;
    enum samkv_status status = samkv_cuda_enter(d);
    if (!status)
        status = samkv_cuda_seen(d, cudaStreamCreateWithFlags(&s->queue, cudaStreamNonBlocking));
    if (!status)
        status = samkv_cuda_seen(d, cudaEventCreateWithFlags(&s->fence, cudaEventDisableTiming));
    if (!status)
        status = samkv_cuda_plans_new(&s->plans);
    if (!status)
        status = device_alloc(device, SAMKV_CUDA_WORKSPACE_BYTES, &s->workspace);
    if (status) {
        stream_free(&s->base);
        return status;
    }
    pthread_mutex_lock(&d->lock);
    s->next = d->streams;
    d->streams = s;
    pthread_mutex_unlock(&d->lock);
    *out = &s->base;
    return SAMKV_OK;
}

static void enqueue_copy(struct samkv_stream *stream, void *dst, const void *src, size_t bytes, cudaMemcpyKind kind,
                         const char *what)
{
    struct cuda_stream *s = samkv_cuda_begin(stream, what);
    if (s && bytes)
        samkv_cuda_check(s, cudaMemcpyAsync(dst, src, bytes, kind, s->queue), what);
}

static void upload(struct samkv_stream *stream, void *dst, const void *host_src, size_t bytes)
{
    enqueue_copy(stream, dst, host_src, bytes, cudaMemcpyHostToDevice, "upload");
}

static void download(struct samkv_stream *stream, void *host_dst, const void *src, size_t bytes)
{
    enqueue_copy(stream, host_dst, src, bytes, cudaMemcpyDeviceToHost, "download");
}

static void copy(struct samkv_stream *stream, void *dst, const void *src, size_t bytes)
{
    enqueue_copy(stream, dst, src, bytes, cudaMemcpyDeviceToDevice, "copy");
}

static void zero(struct samkv_stream *stream, void *dst, size_t bytes)
{
    struct cuda_stream *s = samkv_cuda_begin(stream, "zero");
    if (s && bytes)
        samkv_cuda_check(s, cudaMemsetAsync(dst, 0, bytes, s->queue), "zero");
}

static enum samkv_status sync_stream(struct samkv_stream *stream, struct samkv_error *err)
{
    struct cuda_stream *s = (struct cuda_stream *)stream;
    if (samkv_cuda_lost(s->device)) {
        samkv_cuda_failed(s, SAMKV_DEVICE, "work on the device", "earlier work failed");
    } else {
        cudaError_t error = cudaSetDevice(s->device->ordinal);
        if (error == cudaSuccess)
            error = cudaStreamSynchronize(s->queue);
        samkv_cuda_check(s, error, "work on the device");
    }
    if (!s->failed)
        return SAMKV_OK;
    (void)cudaGetLastError();
    enum samkv_status status = s->failed;
    s->failed = SAMKV_OK;
    return samkv_fail(err, status, "%s", s->failure);
}

/* ------------------------------------------------------------------ device */

static void device_free(struct samkv_device *device)
{
    struct cuda_device *d = (struct cuda_device *)device;
    if (!d)
        return;
    assert(!d->streams);
    bool alive = samkv_cuda_enter(d) == SAMKV_OK;
    if (alive && d->releases)
        alive = samkv_cuda_seen(d, cudaStreamSynchronize(d->releases)) == SAMKV_OK;
    if (alive) {
        samkv_cuda_host_pool_free(d->host);
        if (d->releases)
            (void)cudaStreamDestroy(d->releases);
        if (d->allocations)
            (void)cudaStreamDestroy(d->allocations);
        if (d->pool)
            (void)cudaMemPoolDestroy(d->pool);
        (void)cudaGetLastError();
    }
    samkv_cuda_shared_pool_free(d->shared);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

static const struct samkv_ops operations = {
    device_alloc,
    device_release,
    samkv_cuda_host_alloc,
    samkv_cuda_host_release,
    stream_new,
    stream_free,
    upload,
    download,
    copy,
    zero,
    sync_stream,
    device_free,
    device_memory,
    samkv_cuda_event_new,
    samkv_cuda_event_free,
    samkv_cuda_record,
    samkv_cuda_await,
    samkv_cuda_event_sync,
    samkv_cuda_shared_alloc,
    samkv_cuda_shared_export,
    samkv_cuda_shared_release,
    samkv_cuda_gather, /* embed: the table's rows by id */
    samkv_cuda_rmsnorm,
    samkv_cuda_head_norm,
    samkv_cuda_matmul,
    samkv_cuda_rope_table,
    samkv_cuda_rope,
    samkv_cuda_attention,
    samkv_cuda_swiglu,
    samkv_cuda_kv_write,
    samkv_cuda_place,
    samkv_cuda_place_runs,
    samkv_cuda_gather,
    samkv_cuda_convert,
    samkv_cuda_segment_mean,
    samkv_cuda_rope_f32,
    samkv_cuda_block_scores,
    samkv_cuda_score,
};

static cudaError_t open_pool(struct cuda_device *d)
{
    cudaMemPoolProps props = {};
    props.allocType = cudaMemAllocationTypePinned;
    props.location.type = cudaMemLocationTypeDevice;
    props.location.id = d->ordinal;
    uint64_t keep = POOL_KEEP_BYTES;
    int no = 0;
    cudaError_t error = cudaMemPoolCreate(&d->pool, &props);
    if (error == cudaSuccess)
        error = cudaMemPoolSetAttribute(d->pool, cudaMemPoolAttrReleaseThreshold, &keep);
    if (error == cudaSuccess) /* else an allocation could come to wait for a release, and so for another stream */
        error = cudaMemPoolSetAttribute(d->pool, cudaMemPoolReuseAllowInternalDependencies, &no);
    return error;
}

static enum samkv_status open_device(struct cuda_device *d, struct samkv_error *err)
{
    cudaDeviceProp properties;
    cudaError_t error = cudaGetDeviceProperties(&properties, d->ordinal);
    if (error != cudaSuccess)
        return samkv_fail(err, samkv_cuda_status(error), "cuda:%d does not answer: %s", d->ordinal,
                          cudaGetErrorString(error));
    snprintf(d->base.name, sizeof d->base.name, "cuda:%d %.48s", d->ordinal, properties.name);
    if (properties.major < 8)
        return samkv_fail(err, SAMKV_UNSUPPORTED, "%s has compute capability %d.%d: 8.0 (Ampere) or later is needed",
                          d->base.name, properties.major, properties.minor);
    if (!properties.memoryPoolsSupported)
        return samkv_fail(err, SAMKV_UNSUPPORTED, "%s has no memory pools: use a newer driver", d->base.name);
    d->major = properties.major;
    d->processors = properties.multiProcessorCount;
    memcpy(d->base.uuid, properties.uuid.bytes, sizeof d->base.uuid);
    error = cudaSetDevice(d->ordinal);
    if (error == cudaSuccess)
        error = cudaStreamCreateWithFlags(&d->allocations, cudaStreamNonBlocking);
    if (error == cudaSuccess)
        error = cudaStreamCreateWithFlags(&d->releases, cudaStreamNonBlocking);
    if (error == cudaSuccess)
        error = open_pool(d);
    if (error == cudaSuccess)
        error = samkv_cuda_attention_prepare(d);
    if (error != cudaSuccess)
        return samkv_fail(err, samkv_cuda_status(error), "%s cannot be used: %s", d->base.name,
                          cudaGetErrorString(error));
    if (samkv_cuda_host_pool_new(&d->host) || samkv_cuda_shared_prepare(d))
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    d->base.shares = d->shared != NULL;
    return SAMKV_OK;
}

SAMKV_EXPORT int samkv_cuda_abi(void)
{
    return SAMKV_CUDA_ABI;
}

/*
 * Opens GPU `ordinal` for activations of `dtype`, bf16 or f16. NOT_FOUND without a driver or such a GPU, UNSUPPORTED
 * when driver or GPU is too old, INVALID for another type. Any thread. Free with ops->device_free, after its streams.
 */
SAMKV_EXPORT enum samkv_status samkv_cuda_device_new(int ordinal, enum samkv_dtype dtype, struct samkv_device **out,
                                                     struct samkv_error *err)
{
    int count = 0;
    *out = NULL;
    if (dtype != SAMKV_BF16 && dtype != SAMKV_F16)
        return samkv_fail(err, SAMKV_INVALID, "a GPU computes in bf16 or f16: choose one of them with --dtype");
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
        return samkv_fail(err, samkv_cuda_status(error), "no usable NVIDIA GPU or driver: %s",
                          cudaGetErrorString(error));
    }
    if (ordinal < 0 || ordinal >= count)
        return samkv_fail(err, SAMKV_NOT_FOUND, "there is no cuda:%d: this machine has %d GPU%s", ordinal, count,
                          count == 1 ? "" : "s");
    struct cuda_device *d = (struct cuda_device *)calloc(1, sizeof *d);
    if (!d)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    d->base.ops = &operations;
    d->base.dtype = dtype;
    d->ordinal = ordinal;
    pthread_mutex_init(&d->lock, NULL);
    enum samkv_status status = open_device(d, err);
    if (status) {
        device_free(&d->base);
        return status;
    }
    *out = &d->base;
    return SAMKV_OK;
}
