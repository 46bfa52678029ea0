/* RoPE: its tables from float64 angles, and the rotation of queries (activation type) and index vectors (f32). */
#include "kernels/cuda/backend.cuh"
#include "kernels/cuda/elements.cuh"

#define HEADS_A_THREAD 4 /* one read of cosines and sines serves this many heads */

/* ------------------------------------------------------------------ kernels */

__global__ void __launch_bounds__(256)
    rope_angles(const double *__restrict__ inv_freq, int half, const int32_t *__restrict__ pos, size_t total,
                float scale, float *__restrict__ table)
{
    size_t at = (size_t)blockIdx.x * 256 + threadIdx.x;
    if (at >= total)
        return;
    size_t row = quotient(at, (unsigned)half);
    int j = (int)(at - row * (unsigned)half);
    double sine, cosine;
    sincos((double)pos[row] * inv_freq[j], &sine, &cosine);
    table[row * 2 * half + j] = (float)(cosine * scale);
    table[row * 2 * half + half + j] = (float)(sine * scale);
}

/* A thread rotates one pair of octets (low and high half) in up to HEADS_A_THREAD heads of a row, `groups` apart. */
template <typename T>
__global__ void __launch_bounds__(128) rope_octets(T *x, size_t ldx, const float *__restrict__ table, size_t total,
                                                   int heads, unsigned groups, unsigned octets)
{
    size_t item = (size_t)blockIdx.x * 128 + threadIdx.x;
    if (item >= total)
        return;
    size_t row = quotient(item, groups * octets);
    unsigned rest = (unsigned)(item - row * (groups * octets)), group = rest / octets, at = 8 * (rest - group * octets);
    unsigned half = 8 * octets;
    const float *angles = table + row * 2 * half + at;
    T *base = x + row * ldx + at;
    octet<T> low[HEADS_A_THREAD], high[HEADS_A_THREAD];
#pragma unroll
    for (int i = 0; i < HEADS_A_THREAD; i++) {
        unsigned head = group + i * groups;
        if (head < (unsigned)heads) {
            low[i].load(base + (size_t)head * 2 * half);
            high[i].load(base + (size_t)head * 2 * half + half);
        }
    }
    float cosine[8], sine[8];
    octet<float> angle;
    angle.load(angles);
    angle.unpack(cosine);
    angle.load(angles + half);
    angle.unpack(sine);
#pragma unroll
    for (int i = 0; i < HEADS_A_THREAD; i++) {
        unsigned head = group + i * groups;
        if (head >= (unsigned)heads)
            break;
        float a[8], b[8];
        low[i].unpack(a);
        high[i].unpack(b);
#pragma unroll
        for (int j = 0; j < 8; j++)
            rotate(a[j], b[j], cosine[j], sine[j]);
        low[i].pack(a);
        high[i].pack(b);
        low[i].store(base + (size_t)head * 2 * half);
        high[i].store(base + (size_t)head * 2 * half + half);
    }
}

/* One pair a thread: any size and alignment. */
template <typename T>
__global__ void __launch_bounds__(256)
    rope_scalar(T *x, size_t ldx, const float *__restrict__ table, size_t total, int heads, int half)
{
    size_t item = (size_t)blockIdx.x * 256 + threadIdx.x;
    if (item >= total)
        return;
    size_t row = quotient(item, (unsigned)(heads * half));
    int rest = (int)(item - row * (unsigned)(heads * half)), head = rest / half, j = rest - head * half;
    T *low = x + row * ldx + (size_t)head * 2 * half + j;
    float a = to_float(low[0]), b = to_float(low[half]);
    rotate(a, b, table[row * 2 * half + j], table[row * 2 * half + half + j]);
    low[0] = from_float<T>(a);
    low[half] = from_float<T>(b);
}

/* ------------------------------------------------------------------ launchers */

void samkv_cuda_rope_table(struct samkv_stream *stream, const double *inv_freq, int half, const int32_t *pos, int n,
                           float scale, float *table)
{
    struct cuda_stream *s = samkv_cuda_begin(stream, "rope_table");
    if (!s || n <= 0 || half <= 0)
        return;
    size_t total = (size_t)n * (size_t)half;
    rope_angles<<<samkv_cuda_blocks(total, 256), 256, 0, s->queue>>>(inv_freq, half, pos, total, scale, table);
    samkv_cuda_end(s, "rope_table");
}

template <typename T>
static void rope(struct cuda_stream *s, T *x, size_t ldx, const float *table, int n, int heads, int head_dim)
{
    int half = head_dim / 2;
    if (half % 8 == 0 && ldx % 8 == 0 && samkv_cuda_aligned16(x) && samkv_cuda_aligned16(table)) {
        unsigned groups = (unsigned)(heads + HEADS_A_THREAD - 1) / HEADS_A_THREAD, octets = (unsigned)half / 8;
        size_t total = (size_t)n * groups * octets;
        rope_octets<T>
            <<<samkv_cuda_blocks(total, 128), 128, 0, s->queue>>>(x, ldx, table, total, heads, groups, octets);
    } else {
        size_t total = (size_t)n * (size_t)heads * (size_t)half;
        rope_scalar<T><<<samkv_cuda_blocks(total, 256), 256, 0, s->queue>>>(x, ldx, table, total, heads, half);
    }
}

void samkv_cuda_rope(struct samkv_stream *stream, void *x, size_t ldx, const float *table, int n, int heads,
                     int head_dim)
{
    struct cuda_stream *s = samkv_cuda_begin(stream, "rope");
    if (!s || n <= 0 || heads <= 0)
        return;
    if (s->device->base.dtype == SAMKV_BF16)
        rope(s, (__nv_bfloat16 *)x, ldx, table, n, heads, head_dim);
    else
        rope(s, (__half *)x, ldx, table, n, heads, head_dim);
    samkv_cuda_end(s, "rope");
}

void samkv_cuda_rope_f32(struct samkv_stream *stream, float *x, const float *table, int n, int heads, int head_dim)
{
    struct cuda_stream *s = samkv_cuda_begin(stream, "rope_f32");
    if (!s || n <= 0 || heads <= 0)
        return;
    rope(s, x, (size_t)heads * (size_t)head_dim, table, n, heads, head_dim);
    samkv_cuda_end(s, "rope_f32");
}
