/*
 * Operations on whole rows: gathering (embed is a gather from the embedding table) and RMS norms.
 * All of them are bound by memory: 16-byte accesses, several in flight a thread, each element read once.
 */
#include "kernels/cuda/backend.cuh"
#include "kernels/cuda/elements.cuh"

/* ------------------------------------------------------------------ kernels */

/* out[i] = x[rows[i]] over `units` of V each. */
template <typename V, int ITEMS>
__global__ void __launch_bounds__(256)
    gather_rows(const V *__restrict__ x, const int32_t *__restrict__ rows, size_t total, unsigned units, V *out)
{
    V held[ITEMS];
    size_t first = (size_t)blockIdx.x * (256 * ITEMS) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        size_t at = first + i * 256;
        if (at < total) {
            size_t row = quotient(at, units);
            held[i] = x[(size_t)rows[row] * units + (at - row * units)];
        }
    }
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        size_t at = first + i * 256;
        if (at < total)
            out[at] = held[i];
    }
}

/* One block a row, the row in registers between the two passes: up to blockDim * ITEMS octets. */
template <typename T, int ITEMS>
__global__ void rmsnorm_octets(const T *x, size_t ldx, const T *__restrict__ gain, float eps, int width, T *out,
                               size_t ldo)
{
    const T *in = x + blockIdx.x * ldx;
    octet<T> held[ITEMS];
    float sum = 0;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        int at = 8 * (int)(threadIdx.x + i * blockDim.x);
        if (at < width)
            held[i].load(in + at);
    }
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (8 * (int)(threadIdx.x + i * blockDim.x) >= width)
            break;
        float f[8];
        held[i].unpack(f);
#pragma unroll
        for (int j = 0; j < 8; j++)
            sum += f[j] * f[j];
    }
    float scale = 1.0f / sqrtf(block_sum(sum) / (float)width + eps);
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        int at = 8 * (int)(threadIdx.x + i * blockDim.x);
        if (at >= width)
            break;
        float f[8], g[8];
        octet<T> gains;
        gains.load(gain + at);
        held[i].unpack(f);
        gains.unpack(g);
#pragma unroll
        for (int j = 0; j < 8; j++)
            f[j] *= scale * g[j];
        held[i].pack(f);
        held[i].store(out + blockIdx.x * ldo + at);
    }
}

/* Any width and alignment. */
template <typename T>
__global__ void rmsnorm_scalar(const T *x, size_t ldx, const T *__restrict__ gain, float eps, int width, T *out,
                               size_t ldo)
{
    const T *in = x + blockIdx.x * ldx;
    float sum = 0;
    for (int j = (int)threadIdx.x; j < width; j += (int)blockDim.x)
        sum += to_float(in[j]) * to_float(in[j]);
    float scale = 1.0f / sqrtf(block_sum(sum) / (float)width + eps);
    for (int j = (int)threadIdx.x; j < width; j += (int)blockDim.x)
        out[blockIdx.x * ldo + j] = from_float<T>(to_float(in[j]) * scale * to_float(gain[j]));
}

/* LANES neighbouring lanes a head, an octet each; some of them idle when head_dim / 8 is no power of two. */
template <typename T, int LANES>
__global__ void __launch_bounds__(256)
    head_norm_octets(T *x, size_t ldx, const T *__restrict__ gain, float eps, size_t total, int heads, int head_dim)
{
    size_t item = ((size_t)blockIdx.x * 256 + threadIdx.x) / LANES;
    int at = 8 * (int)(threadIdx.x % LANES);
    bool active = item < total && at < head_dim;
    size_t row = quotient(item, (unsigned)heads);
    T *head = x + row * ldx + (item - row * heads) * head_dim + at;
    octet<T> held;
    float f[8] = {0}, g[8], sum = 0;
    if (active) {
        held.load(head);
        held.unpack(f);
    }
#pragma unroll
    for (int j = 0; j < 8; j++)
        sum += f[j] * f[j];
    float scale = 1.0f / sqrtf(group_sum<LANES>(sum) / (float)head_dim + eps);
    if (!active)
        return;
    held.load(gain + at);
    held.unpack(g);
#pragma unroll
    for (int j = 0; j < 8; j++)
        f[j] *= scale * g[j];
    held.pack(f);
    held.store(head);
}

/* One warp a head, any size and alignment. */
template <typename T>
__global__ void __launch_bounds__(256)
    head_norm_scalar(T *x, size_t ldx, const T *__restrict__ gain, float eps, size_t total, int heads, int head_dim)
{
    size_t item = ((size_t)blockIdx.x * 256 + threadIdx.x) / 32;
    int lane = (int)threadIdx.x % 32;
    if (item >= total)
        return;
    size_t row = quotient(item, (unsigned)heads);
    T *head = x + row * ldx + (item - row * heads) * head_dim;
    float sum = 0;
    for (int j = lane; j < head_dim; j += 32)
        sum += to_float(head[j]) * to_float(head[j]);
    float scale = 1.0f / sqrtf(group_sum<32>(sum) / (float)head_dim + eps);
    for (int j = lane; j < head_dim; j += 32)
        head[j] = from_float<T>(to_float(head[j]) * scale * to_float(gain[j]));
}

/* ------------------------------------------------------------------ launchers */

void samkv_cuda_gather(struct samkv_stream *stream, const void *x, const int32_t *rows, int n, int width, void *out)
{
    struct cuda_stream *s = samkv_cuda_begin(stream, "gather");
    if (!s || n <= 0 || width <= 0)
        return;
    if (width % 8 == 0 && samkv_cuda_aligned16(x) && samkv_cuda_aligned16(out)) {
        size_t total = (size_t)n * (size_t)(width / 8);
        gather_rows<uint4, 4><<<samkv_cuda_blocks(total, 1024), 256, 0, s->queue>>>((const uint4 *)x, rows, total,
                                                                                    (unsigned)width / 8, (uint4 *)out);
    } else {
        size_t total = (size_t)n * (size_t)width;
        gather_rows<uint16_t, 4><<<samkv_cuda_blocks(total, 1024), 256, 0, s->queue>>>(
            (const uint16_t *)x, rows, total, (unsigned)width, (uint16_t *)out);
    }
    samkv_cuda_end(s, "gather");
}

template <typename T>
static void rmsnorm(struct cuda_stream *s, const T *x, size_t ldx, const T *gain, float eps, int n, int width, T *out,
                    size_t ldo)
{
    /* Four octets a thread keep enough loads in flight and fit every hidden size up to 32,768. */
    int octets = width / 8, threads = ((octets + 3) / 4 + 31) / 32 * 32;
    bool vectors = width % 8 == 0 && ldx % 8 == 0 && ldo % 8 == 0 && threads <= 1024 && samkv_cuda_aligned16(x) &&
                   samkv_cuda_aligned16(gain) && samkv_cuda_aligned16(out);
    if (vectors)
        rmsnorm_octets<T, 4><<<(unsigned)n, (unsigned)threads, 0, s->queue>>>(x, ldx, gain, eps, width, out, ldo);
    else
        rmsnorm_scalar<T><<<(unsigned)n, 256, 0, s->queue>>>(x, ldx, gain, eps, width, out, ldo);
}

void samkv_cuda_rmsnorm(struct samkv_stream *stream, const void *x, size_t ldx, const void *gain, float eps, int n,
                        int width, void *out, size_t ldo)
{
    struct cuda_stream *s = samkv_cuda_begin(stream, "rmsnorm");
    if (!s || n <= 0 || width <= 0)
        return;
    if (s->device->base.dtype == SAMKV_BF16)
        rmsnorm(s, (const __nv_bfloat16 *)x, ldx, (const __nv_bfloat16 *)gain, eps, n, width, (__nv_bfloat16 *)out,
                ldo);
    else
        rmsnorm(s, (const __half *)x, ldx, (const __half *)gain, eps, n, width, (__half *)out, ldo);
    samkv_cuda_end(s, "rmsnorm");
}

template <typename T>
static void head_norm(struct cuda_stream *s, T *x, size_t ldx, const T *gain, float eps, int n, int heads, int d)
{
    size_t total = (size_t)n * (size_t)heads;
    bool vectors = d % 8 == 0 && d <= 256 && ldx % 8 == 0 && samkv_cuda_aligned16(x) && samkv_cuda_aligned16(gain);
    if (!vectors)
        head_norm_scalar<T><<<samkv_cuda_blocks(total, 8), 256, 0, s->queue>>>(x, ldx, gain, eps, total, heads, d);
    else if (d <= 64)
        head_norm_octets<T, 8><<<samkv_cuda_blocks(total, 32), 256, 0, s->queue>>>(x, ldx, gain, eps, total, heads, d);
    else if (d <= 128)
        head_norm_octets<T, 16><<<samkv_cuda_blocks(total, 16), 256, 0, s->queue>>>(x, ldx, gain, eps, total, heads, d);
    else
        head_norm_octets<T, 32><<<samkv_cuda_blocks(total, 8), 256, 0, s->queue>>>(x, ldx, gain, eps, total, heads, d);
}

void samkv_cuda_head_norm(struct samkv_stream *stream, void *x, size_t ldx, const void *gain, float eps, int n,
                          int heads, int head_dim)
{
    struct cuda_stream *s = samkv_cuda_begin(stream, "head_norm");
    if (!s || n <= 0)
        return;
    if (s->device->base.dtype == SAMKV_BF16)
        head_norm(s, (__nv_bfloat16 *)x, ldx, (const __nv_bfloat16 *)gain, eps, n, heads, head_dim);
    else
        head_norm(s, (__half *)x, ldx, (const __half *)gain, eps, n, heads, head_dim);
    samkv_cuda_end(s, "head_norm");
}
