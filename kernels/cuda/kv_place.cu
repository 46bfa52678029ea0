/*
 * Stored rows of any type into the cache: rows of one layer that lie together (place), or whole blocks into all layers
 * in one launch (place_runs). One pass: each element is read once and written once.
 */
#include <assert.h>

#include "kernels/cuda/backend.cuh"
#include "kernels/cuda/kv_octets.cuh"

/* ------------------------------------------------------------------ kernels */

/*
 * What one thread does: a pair of octets of K (rotated, given angles) and of V, or one pair of elements where sizes or
 * alignment are odd. Pointers are at the low half. In place is safe: it reads all before it writes.
 */
template <typename S, typename T>
struct pair_of_octets {
    static constexpr int elements = 8;
    static __device__ __forceinline__ void move(const S *k_from, const S *v_from, const float *angles, T *k_to, T *v_to,
                                                int half)
    {
        octet_pair<S> k, v;
        float a[8], b[8], c[8], d[8];
        k.load(k_from, half);
        v.load(v_from, half);
        k.unpack(a, b);
        v.unpack(c, d);
        if (angles)
            rotate8(a, b, angles, half);
        octet_pair<T> made;
        made.pack(a, b);
        made.store(k_to, half);
        made.pack(c, d);
        made.store(v_to, half);
    }
};

template <typename S, typename T>
struct pair_of_elements {
    static constexpr int elements = 1;
    static __device__ __forceinline__ void move(const S *k_from, const S *v_from, const float *angles, T *k_to, T *v_to,
                                                int half)
    {
        float a = to_float(k_from[0]), b = to_float(k_from[half]);
        float c = to_float(v_from[0]), d = to_float(v_from[half]);
        if (angles)
            rotate(a, b, angles[0], angles[half]);
        k_to[0] = from_float<T>(a);
        k_to[half] = from_float<T>(b);
        v_to[0] = from_float<T>(c);
        v_to[half] = from_float<T>(d);
    }
};

/* units: pairs in a head */
template <typename S, typename T, typename PAIR>
__global__ void __launch_bounds__(256)
    place_rows(const S *k_src, const S *v_src, const float *__restrict__ rope, T *k_cache, T *v_cache, size_t total,
               unsigned kv_heads, unsigned units)
{
    size_t item = (size_t)blockIdx.x * 256 + threadIdx.x;
    if (item >= total)
        return;
    int half = PAIR::elements * (int)units;
    size_t head = quotient(item, units), row = quotient(head, kv_heads);
    size_t j = PAIR::elements * (item - head * units), at = head * 2 * half + j;
    PAIR::move(k_src + at, v_src + at, rope ? rope + row * 2 * half + j : NULL, k_cache + at, v_cache + at, half);
}

struct place_runs_args {
    const samkv_run *runs;
    const float *rope;
    const uint8_t *no_rope;
    char *k_cache, *v_cache;
    size_t layer_stride_bytes;
    unsigned kv_heads, units;
    unsigned blocks; /* thread blocks for the longest run */
};

/* Layers along y; along x `blocks` for each run, those beyond the end of a shorter run have nothing to do. */
template <typename S, typename T, typename PAIR>
__global__ void __launch_bounds__(256) place_blocks(const place_runs_args a)
{
    unsigned place = blockIdx.x / a.blocks, layer = blockIdx.y;
    const samkv_run run = a.runs[place];
    size_t item = (size_t)(blockIdx.x - place * a.blocks) * 256 + threadIdx.x;
    if ((int)layer < run.first_layer || item >= (size_t)run.tokens * a.kv_heads * a.units)
        return;
    int half = PAIR::elements * (int)a.units;
    size_t head = quotient(item, a.units), token = quotient(head, a.kv_heads);
    size_t j = PAIR::elements * (item - head * a.units), part = (size_t)run.tokens * a.kv_heads * 2 * half;
    const S *k = (const S *)run.src + 2 * layer * part + head * 2 * half + j;
    size_t to = ((size_t)run.first_row * a.kv_heads + head) * 2 * half + j;
    const float *angles = a.rope + ((size_t)run.first_row + token) * 2 * half + j;
    PAIR::move(k, k + part, a.no_rope && a.no_rope[layer] ? NULL : angles,
               (T *)(a.k_cache + layer * a.layer_stride_bytes) + to,
               (T *)(a.v_cache + layer * a.layer_stride_bytes) + to, half);
}

/* ------------------------------------------------------------------ launchers */

template <typename S, typename T>
static void place(struct cuda_stream *s, const struct samkv_place *p)
{
    const S *k_src = (const S *)p->k_src, *v_src = (const S *)p->v_src;
    size_t skip = (size_t)p->first_row * (size_t)p->kv_heads * (size_t)p->head_dim;
    T *k = (T *)p->k_cache + skip, *v = (T *)p->v_cache + skip;
    bool vectors = p->head_dim % 16 == 0 && samkv_cuda_aligned16(k_src) && samkv_cuda_aligned16(v_src) &&
                   samkv_cuda_aligned16(k) && samkv_cuda_aligned16(v) && samkv_cuda_aligned16(p->rope);
    unsigned units = (unsigned)p->head_dim / (vectors ? 16 : 2), kv_heads = (unsigned)p->kv_heads;
    size_t total = (size_t)p->n * kv_heads * units;
    unsigned grid = samkv_cuda_blocks(total, 256);
    if (vectors)
        place_rows<S, T, pair_of_octets<S, T>>
            <<<grid, 256, 0, s->queue>>>(k_src, v_src, p->rope, k, v, total, kv_heads, units);
    else
        place_rows<S, T, pair_of_elements<S, T>>
            <<<grid, 256, 0, s->queue>>>(k_src, v_src, p->rope, k, v, total, kv_heads, units);
}

template <typename S, typename T>
static void place(struct cuda_stream *s, const struct samkv_place_runs *p)
{
    bool vectors = p->head_dim % 16 == 0 && p->layer_stride_bytes % 16 == 0 && samkv_cuda_aligned16(p->k_cache) &&
                   samkv_cuda_aligned16(p->v_cache) && samkv_cuda_aligned16(p->rope);
    unsigned units = (unsigned)p->head_dim / (vectors ? 16 : 2), kv_heads = (unsigned)p->kv_heads;
    const place_runs_args args = {
        p->runs,
        p->rope,
        p->no_rope,
        (char *)p->k_cache,
        (char *)p->v_cache,
        p->layer_stride_bytes,
        kv_heads,
        units,
        samkv_cuda_blocks((size_t)p->max_tokens * kv_heads * units, 256),
    };
    dim3 grid((unsigned)p->count * args.blocks, (unsigned)p->layers);
    if (vectors)
        place_blocks<S, T, pair_of_octets<S, T>><<<grid, 256, 0, s->queue>>>(args);
    else
        place_blocks<S, T, pair_of_elements<S, T>><<<grid, 256, 0, s->queue>>>(args);
}

template <typename T, typename P>
static void place_from(struct cuda_stream *s, const P *p)
{
    switch (p->src_dtype) {
    case SAMKV_F32:
        return place<float, T>(s, p);
    case SAMKV_F16:
        return place<__half, T>(s, p);
    case SAMKV_BF16:
        return place<__nv_bfloat16, T>(s, p);
    default:
        assert(!"place: no numeric type");
    }
}

void samkv_cuda_place(struct samkv_stream *stream, const struct samkv_place *p)
{
    struct cuda_stream *s = samkv_cuda_begin(stream, "place");
    if (!s || p->n <= 0 || p->kv_heads <= 0)
        return;
    if (s->device->base.dtype == SAMKV_BF16)
        place_from<__nv_bfloat16>(s, p);
    else
        place_from<__half>(s, p);
    samkv_cuda_end(s, "place");
}

void samkv_cuda_place_runs(struct samkv_stream *stream, const struct samkv_place_runs *p)
{
    struct cuda_stream *s = samkv_cuda_begin(stream, "place_runs");
    if (!s || p->count <= 0 || p->max_tokens <= 0 || p->layers <= 0 || p->kv_heads <= 0)
        return;
    assert(p->layers <= 65535); /* the grid's second size */
    if (s->device->base.dtype == SAMKV_BF16)
        place_from<__nv_bfloat16>(s, p);
    else
        place_from<__half>(s, p);
    samkv_cuda_end(s, "place_runs");
}
