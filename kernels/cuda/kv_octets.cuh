#pragma once
/* Rows of K and V in vectors: rotation pairs an element with the one half a head further, so octets go in pairs. */
#include "kernels/cuda/elements.cuh"

/* A pair of octets of one head: elements [at, at + 8) and the same half a head further. */
template <typename T>
struct octet_pair {
    octet<T> low, high;
    __device__ __forceinline__ void load(const T *p, int half)
    {
        low.load(p);
        high.load(p + half);
    }
    __device__ __forceinline__ void store(T *p, int half) const
    {
        low.store(p);
        high.store(p + half);
    }
    __device__ __forceinline__ void unpack(float (&a)[8], float (&b)[8]) const
    {
        low.unpack(a);
        high.unpack(b);
    }
    __device__ __forceinline__ void pack(const float (&a)[8], const float (&b)[8])
    {
        low.pack(a);
        high.pack(b);
    }
};

__device__ __forceinline__ void rotate8(float (&a)[8], float (&b)[8], const float *angles, int half)
{
    float cosine[8], sine[8];
    octet<float> held;
    held.load(angles);
    held.unpack(cosine);
    held.load(angles + half);
    held.unpack(sine);
#pragma unroll
    for (int j = 0; j < 8; j++)
        rotate(a[j], b[j], cosine[j], sine[j]);
}
