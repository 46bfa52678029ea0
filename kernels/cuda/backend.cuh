#pragma once
/*
 * What the sources of the CUDA backend share: a device, a stream, and how an operation begins and ends.
 *
 * Every operation has the same form: begin() gives the stream or NULL when it failed earlier; the launcher enqueues
 * kernels; end() looks at the launch's error and makes it stick to the stream. Nothing but sync waits for the device.
 */
#include <cublasLt.h>
#include <cuda_runtime.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

extern "C" {
#include "kernels/kernels.h"
}

/* A multiple of what cuBLASLt asks for on Hopper (32 MiB); attention's split results live in it too, in stream order.
 */
#define SAMKV_CUDA_WORKSPACE_BYTES ((size_t)64 << 20)

struct product_plans; /* products.cu */
struct host_pool;     /* host_memory.cu */
struct shared_pool;   /* shared.cu */
struct cuda_stream;

struct cuda_device {
    struct samkv_device base;
    int ordinal;
    int major;          /* compute capability */
    int processors;     /* streaming multiprocessors */
    void *encode_map;   /* the driver's cuTensorMapEncodeTiled on Hopper, else NULL */
    cudaMemPool_t pool; /* ours, so that memory given back stays bounded whatever else the process does */
    cudaStream_t allocations, releases;
    pthread_mutex_t lock;
    struct cuda_stream *streams; /* under lock */
    struct host_pool *host;
    struct shared_pool *shared; /* NULL when the GPU or its driver shares no memory */
    int lost;                   /* atomic: an error was seen that ends this process's use of the GPU */
};

struct cuda_stream {
    struct samkv_stream base;
    struct cuda_device *device;
    cudaStream_t queue;
    cudaEvent_t fence; /* under the device's lock: what a release waits for */
    struct product_plans *plans;
    void *workspace; /* SAMKV_CUDA_WORKSPACE_BYTES, for one operation at a time */
    enum samkv_status failed;
    char failure[384];
    struct cuda_stream *next;
};

/* What to do about a device that is lost, to be put behind a message about it. */
#define SAMKV_CUDA_LOST_ADVICE "the GPU was lost or a kernel failed: restart samkvd"

/* The one place that translates CUDA's codes (the driver's and the runtime's have the same numbers). */
enum samkv_status samkv_cuda_status(cudaError_t error);

/*
 * The same for an error of this device. Some errors end a process's use of a GPU: from then on CUDA answers every call
 * with them, or worse. They are noted here, later calls give DEVICE without asking CUDA, and what is given back is left
 * to the end of the process.
 */
enum samkv_status samkv_cuda_seen(struct cuda_device *, cudaError_t error);

static inline bool samkv_cuda_lost(const struct cuda_device *d)
{
    return __atomic_load_n(&d->lost, __ATOMIC_RELAXED) != 0;
}

/* Makes the device current for this thread; DEVICE when it is lost. */
enum samkv_status samkv_cuda_enter(struct cuda_device *);

/* Later work on d->releases comes after everything that is enqueued on any stream now. */
void samkv_cuda_wait_for_streams(struct cuda_device *);

/* Makes the first failure stick to the stream. `what` names the operation. */
void samkv_cuda_failed(struct cuda_stream *, enum samkv_status, const char *what, const char *why);

static inline void samkv_cuda_check(struct cuda_stream *s, cudaError_t error, const char *what)
{
    if (error != cudaSuccess)
        samkv_cuda_failed(s, samkv_cuda_seen(s->device, error), what, cudaGetErrorString(error));
}

/* The stream, with its device current for this thread; NULL when an earlier operation failed. */
static inline struct cuda_stream *samkv_cuda_begin(struct samkv_stream *stream, const char *what)
{
    struct cuda_stream *s = (struct cuda_stream *)stream;
    if (s->failed)
        return NULL;
    if (samkv_cuda_lost(s->device))
        samkv_cuda_failed(s, SAMKV_DEVICE, what, "earlier work failed");
    else
        samkv_cuda_check(s, cudaSetDevice(s->device->ordinal), what);
    return s->failed ? NULL : s;
}

static inline void samkv_cuda_end(struct cuda_stream *s, const char *what)
{
    samkv_cuda_check(s, cudaGetLastError(), what);
}

static inline bool samkv_cuda_aligned16(const void *p)
{
    return ((uintptr_t)p & 15) == 0;
}

static inline unsigned samkv_cuda_blocks(size_t items, size_t per_block)
{
    return (unsigned)((items + per_block - 1) / per_block);
}

/* --- memory and order; the operations of the table, and what the device has of each family --- */
/* events.cu */
enum samkv_status samkv_cuda_event_new(struct samkv_device *, struct samkv_event **out);
void samkv_cuda_event_free(struct samkv_event *);
void samkv_cuda_record(struct samkv_stream *, struct samkv_event *);
void samkv_cuda_await(struct samkv_stream *, struct samkv_event *);
enum samkv_status samkv_cuda_event_sync(struct samkv_event *, struct samkv_error *);

/* host_memory.cu */
enum samkv_status samkv_cuda_host_pool_new(struct host_pool **out);
void samkv_cuda_host_pool_free(struct host_pool *);
enum samkv_status samkv_cuda_host_alloc(struct samkv_device *, size_t bytes, void **out);
void samkv_cuda_host_release(struct samkv_device *, void *);

/* shared.cu; prepare leaves d->shared NULL when memory cannot be shared, and fails only without memory */
enum samkv_status samkv_cuda_shared_prepare(struct cuda_device *);
void samkv_cuda_shared_pool_free(struct shared_pool *);
enum samkv_status samkv_cuda_shared_alloc(struct samkv_device *, size_t *bytes, void **out);
enum samkv_status samkv_cuda_shared_export(struct samkv_device *, void *, int *fd);
void samkv_cuda_shared_release(struct samkv_device *, void *);

/* --- the operations, one source a family --- */
/* products.cu */
enum samkv_status samkv_cuda_plans_new(struct product_plans **out);
void samkv_cuda_plans_free(struct product_plans *);
void samkv_cuda_matmul(struct samkv_stream *, const struct samkv_matmul *);

/* rows.cu */
void samkv_cuda_gather(struct samkv_stream *, const void *x, const int32_t *rows, int n, int width, void *out);
void samkv_cuda_rmsnorm(struct samkv_stream *, const void *x, size_t ldx, const void *gain, float eps, int n, int width,
                        void *out, size_t ldo);
void samkv_cuda_head_norm(struct samkv_stream *, void *x, size_t ldx, const void *gain, float eps, int n, int heads,
                          int head_dim);
/* elementwise.cu */
void samkv_cuda_swiglu(struct samkv_stream *, const void *gate_up, int n, int ffn, void *out);
void samkv_cuda_convert(struct samkv_stream *, const void *src, enum samkv_dtype src_dtype, void *dst,
                        enum samkv_dtype dst_dtype, size_t count);

/* rotary.cu */
void samkv_cuda_rope_table(struct samkv_stream *, const double *inv_freq, int half, const int32_t *pos, int n,
                           float scale, float *table);
void samkv_cuda_rope(struct samkv_stream *, void *x, size_t ldx, const float *table, int n, int heads, int head_dim);
void samkv_cuda_rope_f32(struct samkv_stream *, float *x, const float *table, int n, int heads, int head_dim);

/* kv_write.cu */
void samkv_cuda_kv_write(struct samkv_stream *, const struct samkv_kv_write *);

/* kv_place.cu */
void samkv_cuda_place(struct samkv_stream *, const struct samkv_place *);
void samkv_cuda_place_runs(struct samkv_stream *, const struct samkv_place_runs *);

/* index_means.cu */
void samkv_cuda_segment_mean(struct samkv_stream *, const void *x, size_t ldx, const int32_t *offsets, int segments,
                             int width, float *out);
void samkv_cuda_block_scores(struct samkv_stream *, const float *kmean, const float *query, int blocks, int width,
                             float *out);

/* score.cu */
void samkv_cuda_score(struct samkv_stream *, const struct samkv_score *);

/* attention.cu; prepare raises the kernels' limits of shared memory on the current device */
cudaError_t samkv_cuda_attention_prepare(struct cuda_device *);
void samkv_cuda_attention(struct samkv_stream *, const struct samkv_attention *);

/* attention_hopper.cu; a variant for the head sizes that it has, else NULL. launch is false when the driver refuses. */
struct attention_args;
struct hopper_variant;
#define SAMKV_CUDA_HOPPER_ROWS 128
cudaError_t samkv_cuda_hopper_prepare(struct cuda_device *);
const struct hopper_variant *samkv_cuda_hopper_variant(const struct cuda_device *, const struct samkv_attention *);
int samkv_cuda_hopper_keys(const struct hopper_variant *);
bool samkv_cuda_hopper_launch(struct cuda_stream *, const struct hopper_variant *, const struct samkv_attention *,
                              const struct attention_args *);
