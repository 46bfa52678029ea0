/* SamKV's index: means over segments of rows, and the scores of blocks. Sums are f32, always in the same order. */
#include "kernels/cuda/backend.cuh"
#include "kernels/cuda/elements.cuh"

#define ROWS_AHEAD 8 /* rows whose loads are in flight together */

/* ------------------------------------------------------------------ kernels */

/* A thread sums one octet of columns over a segment's rows. */
template <typename T>
__global__ void __launch_bounds__(128)
    mean_octets(const T *__restrict__ x, size_t ldx, const int32_t *__restrict__ offsets, size_t total, unsigned octets,
                float *__restrict__ out)
{
    size_t item = (size_t)blockIdx.x * 128 + threadIdx.x;
    if (item >= total)
        return;
    size_t segment = quotient(item, octets);
    const T *column = x + (item - segment * octets) * 8;
    int row = offsets[segment], end = offsets[segment + 1], count = end - row;
    float sum[8] = {0}, f[8];
    for (; row < end; row += ROWS_AHEAD) {
        octet<T> held[ROWS_AHEAD];
#pragma unroll
        for (int i = 0; i < ROWS_AHEAD; i++)
            if (row + i < end)
                held[i].load(column + (size_t)(row + i) * ldx);
#pragma unroll
        for (int i = 0; i < ROWS_AHEAD; i++) {
            if (row + i >= end)
                break;
            held[i].unpack(f);
#pragma unroll
            for (int j = 0; j < 8; j++)
                sum[j] += f[j];
        }
    }
    float share = count > 0 ? 1.0f / (float)count : 0.0f;
#pragma unroll
    for (int j = 0; j < 8; j++)
        f[j] = sum[j] * share;
    octet<float> made;
    made.pack(f);
    made.store(out + item * 8);
}

template <typename T>
__global__ void __launch_bounds__(128)
    mean_scalar(const T *__restrict__ x, size_t ldx, const int32_t *__restrict__ offsets, size_t total, unsigned width,
                float *__restrict__ out)
{
    size_t item = (size_t)blockIdx.x * 128 + threadIdx.x;
    if (item >= total)
        return;
    size_t segment = quotient(item, width);
    int first = offsets[segment], end = offsets[segment + 1];
    float sum = 0;
    for (int row = first; row < end; row++)
        sum += to_float(x[(size_t)row * ldx + (item - segment * width)]);
    out[item] = end > first ? sum * (1.0f / (float)(end - first)) : 0.0f;
}

/* One warp a block; V is float4 or float. */
__device__ __forceinline__ float product(float a, float b)
{
    return a * b;
}
__device__ __forceinline__ float product(float4 a, float4 b)
{
    return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

template <typename V>
__global__ void __launch_bounds__(128)
    scores_of_blocks(const V *__restrict__ kmean, const V *__restrict__ query, int blocks, int units, float *out)
{
    int block = (int)(blockIdx.x * 4 + threadIdx.x / 32), lane = (int)threadIdx.x % 32;
    if (block >= blocks)
        return;
    const V *mean = kmean + (size_t)block * units;
    float sum = 0;
#pragma unroll 8
    for (int j = lane; j < units; j += 32)
        sum += product(mean[j], query[j]);
    sum = group_sum<32>(sum);
    if (lane == 0)
        out[block] = sum;
}

/* ------------------------------------------------------------------ launchers */

template <typename T>
static void segment_mean(struct cuda_stream *s, const T *x, size_t ldx, const int32_t *offsets, int segments, int width,
                         float *out)
{
    if (width % 8 == 0 && ldx % 8 == 0 && samkv_cuda_aligned16(x) && samkv_cuda_aligned16(out)) {
        size_t total = (size_t)segments * (size_t)(width / 8);
        mean_octets<T>
            <<<samkv_cuda_blocks(total, 128), 128, 0, s->queue>>>(x, ldx, offsets, total, (unsigned)width / 8, out);
    } else {
        size_t total = (size_t)segments * (size_t)width;
        mean_scalar<T>
            <<<samkv_cuda_blocks(total, 128), 128, 0, s->queue>>>(x, ldx, offsets, total, (unsigned)width, out);
    }
}

void samkv_cuda_segment_mean(struct samkv_stream *stream, const void *x, size_t ldx, const int32_t *offsets,
                             int segments, int width, float *out)
{
    struct cuda_stream *s = samkv_cuda_begin(stream, "segment_mean");
    if (!s || segments <= 0 || width <= 0)
        return;
    if (s->device->base.dtype == SAMKV_BF16)
        segment_mean(s, (const __nv_bfloat16 *)x, ldx, offsets, segments, width, out);
    else
        segment_mean(s, (const __half *)x, ldx, offsets, segments, width, out);
    samkv_cuda_end(s, "segment_mean");
}

void samkv_cuda_block_scores(struct samkv_stream *stream, const float *kmean, const float *query, int blocks, int width,
                             float *out)
{
    struct cuda_stream *s = samkv_cuda_begin(stream, "block_scores");
    if (!s || blocks <= 0)
        return;
    unsigned grid = samkv_cuda_blocks((size_t)blocks, 4);
    if (width % 4 == 0 && samkv_cuda_aligned16(kmean) && samkv_cuda_aligned16(query))
        scores_of_blocks<<<grid, 128, 0, s->queue>>>((const float4 *)kmean, (const float4 *)query, blocks, width / 4,
                                                     out);
    else
        scores_of_blocks<<<grid, 128, 0, s->queue>>>(kmean, query, blocks, width, out);
    samkv_cuda_end(s, "block_scores");
}
