/* Element by element: the gated activation and conversions between types. Bound by memory. */
#include <assert.h>

#include "kernels/cuda/backend.cuh"
#include "kernels/cuda/elements.cuh"

/* ------------------------------------------------------------------ kernels */

__device__ __forceinline__ float gated(float gate, float up)
{
    /* For very negative gates the exponential is infinite and the quotient 0, as it should be. */
    return gate / (1.0f + __expf(-gate)) * up;
}

/* A thread takes ITEMS octets, 256 octets apart; both halves of each are in flight before the first use. */
template <typename T, int ITEMS>
__global__ void __launch_bounds__(256)
    swiglu_octets(const T *__restrict__ gate_up, size_t total, unsigned octets, T *__restrict__ out)
{
    octet<T> gate[ITEMS], up[ITEMS];
    size_t first = (size_t)blockIdx.x * (256 * ITEMS) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        size_t at = first + i * 256;
        if (at < total) {
            const T *row = gate_up + (at + quotient(at, octets) * octets) * 8;
            gate[i].load(row);
            up[i].load(row + (size_t)octets * 8);
        }
    }
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        size_t at = first + i * 256;
        if (at >= total)
            break;
        float g[8], u[8];
        gate[i].unpack(g);
        up[i].unpack(u);
#pragma unroll
        for (int j = 0; j < 8; j++)
            g[j] = gated(g[j], u[j]);
        gate[i].pack(g);
        gate[i].store(out + at * 8);
    }
}

template <typename T>
__global__ void __launch_bounds__(256) swiglu_scalar(const T *gate_up, size_t total, unsigned ffn, T *out)
{
    size_t at = (size_t)blockIdx.x * 256 + threadIdx.x;
    if (at >= total)
        return;
    const T *gate = gate_up + at + quotient(at, ffn) * ffn;
    out[at] = from_float<T>(gated(to_float(gate[0]), to_float(gate[ffn])));
}

template <typename S, typename D, int ITEMS>
__global__ void __launch_bounds__(256) convert_octets(const S *__restrict__ src, D *__restrict__ dst, size_t total)
{
    octet<S> held[ITEMS];
    size_t first = (size_t)blockIdx.x * (256 * ITEMS) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < ITEMS; i++)
        if (first + i * 256 < total)
            held[i].load(src + (first + i * 256) * 8);
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (first + i * 256 >= total)
            break;
        float f[8];
        octet<D> made;
        held[i].unpack(f);
        made.pack(f);
        made.store(dst + (first + i * 256) * 8);
    }
}

template <typename S, typename D>
__global__ void __launch_bounds__(256) convert_scalar(const S *src, D *dst, size_t count)
{
    size_t at = (size_t)blockIdx.x * 256 + threadIdx.x;
    if (at < count)
        dst[at] = from_float<D>(to_float(src[at]));
}

/* ------------------------------------------------------------------ launchers */

template <typename T>
static void swiglu(struct cuda_stream *s, const T *gate_up, int n, int ffn, T *out)
{
    if (ffn % 8 == 0 && samkv_cuda_aligned16(gate_up) && samkv_cuda_aligned16(out)) {
        size_t total = (size_t)n * (size_t)(ffn / 8);
        swiglu_octets<T, 2>
            <<<samkv_cuda_blocks(total, 512), 256, 0, s->queue>>>(gate_up, total, (unsigned)ffn / 8, out);
    } else {
        size_t total = (size_t)n * (size_t)ffn;
        swiglu_scalar<T><<<samkv_cuda_blocks(total, 256), 256, 0, s->queue>>>(gate_up, total, (unsigned)ffn, out);
    }
}

void samkv_cuda_swiglu(struct samkv_stream *stream, const void *gate_up, int n, int ffn, void *out)
{
    struct cuda_stream *s = samkv_cuda_begin(stream, "swiglu");
    if (!s || n <= 0 || ffn <= 0)
        return;
    if (s->device->base.dtype == SAMKV_BF16)
        swiglu(s, (const __nv_bfloat16 *)gate_up, n, ffn, (__nv_bfloat16 *)out);
    else
        swiglu(s, (const __half *)gate_up, n, ffn, (__half *)out);
    samkv_cuda_end(s, "swiglu");
}

template <typename S, typename D>
static void convert(struct cuda_stream *s, const void *src, void *dst, size_t count)
{
    const S *from = (const S *)src;
    D *to = (D *)dst;
    size_t octets = samkv_cuda_aligned16(src) && samkv_cuda_aligned16(dst) ? count / 8 : 0, done = octets * 8;
    if (octets)
        convert_octets<S, D, 2><<<samkv_cuda_blocks(octets, 512), 256, 0, s->queue>>>(from, to, octets);
    if (count > done)
        convert_scalar<S, D>
            <<<samkv_cuda_blocks(count - done, 256), 256, 0, s->queue>>>(from + done, to + done, count - done);
}

template <typename S>
static void convert_from(struct cuda_stream *s, const void *src, void *dst, enum samkv_dtype dst_dtype, size_t count)
{
    switch (dst_dtype) {
    case SAMKV_F32:
        return convert<S, float>(s, src, dst, count);
    case SAMKV_F16:
        return convert<S, __half>(s, src, dst, count);
    case SAMKV_BF16:
        return convert<S, __nv_bfloat16>(s, src, dst, count);
    default:
        assert(!"convert: no numeric type");
    }
}

void samkv_cuda_convert(struct samkv_stream *stream, const void *src, enum samkv_dtype src_dtype, void *dst,
                        enum samkv_dtype dst_dtype, size_t count)
{
    struct cuda_stream *s = samkv_cuda_begin(stream, "convert");
    if (!s || !count || (src == dst && src_dtype == dst_dtype))
        return;
    if (src_dtype == dst_dtype)
        samkv_cuda_check(
            s, cudaMemcpyAsync(dst, src, count * samkv_dtype_bytes(src_dtype), cudaMemcpyDeviceToDevice, s->queue),
            "convert");
    else if (src_dtype == SAMKV_F32)
        convert_from<float>(s, src, dst, dst_dtype, count);
    else if (src_dtype == SAMKV_F16)
        convert_from<__half>(s, src, dst, dst_dtype, count);
    else if (src_dtype == SAMKV_BF16)
        convert_from<__nv_bfloat16>(s, src, dst, dst_dtype, count);
    else
        assert(!"convert: no numeric type");
    samkv_cuda_end(s, "convert");
}
