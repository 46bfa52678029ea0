#pragma once
/*
 * Elements in threes: f32, bf16 and f16 in memory, f32 in registers. Eight elements are the unit of vector access:
 * 16 bytes of a half type, two times 16 bytes of f32.
 */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stddef.h>
#include <stdint.h>

__device__ __forceinline__ float to_float(float x)
{
    return x;
}
__device__ __forceinline__ float to_float(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}
__device__ __forceinline__ float to_float(__half x)
{
    return __half2float(x);
}

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x)
{
    return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x)
{
    return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x)
{
    return __float2half_rn(x);
}

/* Two elements in one register, the first in the low half. */
template <typename T>
__device__ __forceinline__ uint32_t pack2(float lo, float hi);
template <>
__device__ __forceinline__ uint32_t pack2<__nv_bfloat16>(float lo, float hi)
{
    __nv_bfloat162 p = __floats2bfloat162_rn(lo, hi);
    return *reinterpret_cast<uint32_t *>(&p);
}
template <>
__device__ __forceinline__ uint32_t pack2<__half>(float lo, float hi)
{
    __half2 p = __floats2half2_rn(lo, hi);
    return *reinterpret_cast<uint32_t *>(&p);
}

template <typename T>
__device__ __forceinline__ float2 unpack2(uint32_t u);
template <>
__device__ __forceinline__ float2 unpack2<__nv_bfloat16>(uint32_t u)
{
    return make_float2(__uint_as_float(u << 16), __uint_as_float(u & 0xffff0000u));
}
template <>
__device__ __forceinline__ float2 unpack2<__half>(uint32_t u)
{
    return __half22float2(*reinterpret_cast<__half2 *>(&u));
}

/* What eight elements look like on their way: loaded first, unpacked when all loads of a thread are in flight. */
template <typename T>
struct octet {
    uint4 raw;
    __device__ __forceinline__ void load(const T *p) { raw = *reinterpret_cast<const uint4 *>(p); }
    __device__ __forceinline__ void store(T *p) const { *reinterpret_cast<uint4 *>(p) = raw; }
    __device__ __forceinline__ void unpack(float (&f)[8]) const
    {
        const uint32_t u[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 p = unpack2<T>(u[i]);
            f[2 * i] = p.x;
            f[2 * i + 1] = p.y;
        }
    }
    __device__ __forceinline__ void pack(const float (&f)[8])
    {
        raw = make_uint4(pack2<T>(f[0], f[1]), pack2<T>(f[2], f[3]), pack2<T>(f[4], f[5]), pack2<T>(f[6], f[7]));
    }
};

template <>
struct octet<float> {
    float4 low, high;
    __device__ __forceinline__ void load(const float *p)
    {
        low = reinterpret_cast<const float4 *>(p)[0];
        high = reinterpret_cast<const float4 *>(p)[1];
    }
    __device__ __forceinline__ void store(float *p) const
    {
        reinterpret_cast<float4 *>(p)[0] = low;
        reinterpret_cast<float4 *>(p)[1] = high;
    }
    __device__ __forceinline__ void unpack(float (&f)[8]) const
    {
        f[0] = low.x, f[1] = low.y, f[2] = low.z, f[3] = low.w;
        f[4] = high.x, f[5] = high.y, f[6] = high.z, f[7] = high.w;
    }
    __device__ __forceinline__ void pack(const float (&f)[8])
    {
        low = make_float4(f[0], f[1], f[2], f[3]);
        high = make_float4(f[4], f[5], f[6], f[7]);
    }
};

/* a / b, by the short division where it serves: the long one costs as much as the memory access it addresses. */
__device__ __forceinline__ size_t quotient(size_t a, unsigned b)
{
    return a >> 32 ? a / b : (uint32_t)a / b;
}

/* Sum over groups of LANES neighbouring lanes (a power of two); every lane of the warp takes part and gets its sum. */
template <int LANES>
__device__ __forceinline__ float group_sum(float x)
{
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

/* Sum over a block of whole warps, at most 1,024 threads; every thread gets it. Always in the same order. */
__device__ __forceinline__ float block_sum(float x)
{
    __shared__ float warps[32];
    x = group_sum<32>(x);
    if (blockDim.x == 32)
        return x;
    if ((threadIdx.x & 31) == 0)
        warps[threadIdx.x >> 5] = x;
    __syncthreads();
    float total = 0;
    for (unsigned i = 0; i < blockDim.x >> 5; i++)
        total += warps[i];
    return total;
}

/* HF's rotation: element i of a head is paired with i + head_dim / 2. */
__device__ __forceinline__ void rotate(float &low, float &high, float cosine, float sine)
{
    float a = low, b = high;
    low = a * cosine - b * sine;
    high = b * cosine + a * sine;
}
