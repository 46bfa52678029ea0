/*
 * Rows into a layer's cache from the projections, with RoPE and one of the updates. One pass: each element is read once
 * and written once.
 */
#include "kernels/cuda/backend.cuh"
#include "kernels/cuda/kv_octets.cuh"

template <typename T>
struct kv_write_args {
    const T *k, *v;
    size_t ld;
    const float *rope;
    const int32_t *rows;
    int first_row;
    T *k_cache, *v_cache;
    size_t total; /* n * kv_heads */
    int kv_heads, head_dim;
    int update;
    float theta;
    int fresh_from;
};

/* ------------------------------------------------------------------ kernels */

/* θ of SAMKV_UPDATE_COSINE from the sums over one head. */
__device__ __forceinline__ float cosine_of(float dot, float new_square, float old_square)
{
    float cosine = dot / fmaxf(sqrtf(new_square) * sqrtf(old_square), 1e-12f);
    return fminf(fmaxf(cosine, 0.0f), 1.0f);
}

/* LANES neighbouring lanes a row and KV head, a pair of octets of K and of V each. */
template <typename T, int LANES>
__global__ void __launch_bounds__(256) kv_write_octets(const kv_write_args<T> w)
{
    size_t item = ((size_t)blockIdx.x * 256 + threadIdx.x) / LANES;
    int half = w.head_dim / 2, at = 8 * (int)(threadIdx.x % LANES);
    bool active = item < w.total && at < half;
    size_t row = quotient(item, (unsigned)w.kv_heads), head = item - row * (unsigned)w.kv_heads;
    float ka[8] = {0}, kb[8] = {0}, oa[8] = {0}, ob[8] = {0}, dot = 0, new_square = 0, old_square = 0;
    octet_pair<T> k, v, old;
    T *k_to = NULL, *v_to = NULL;
    bool fresh = w.update == SAMKV_UPDATE_OVERWRITE || (int)row >= w.fresh_from;
    if (active) {
        size_t from = row * w.ld + head * w.head_dim + at;
        size_t to = (size_t)(w.rows ? w.rows[row] : w.first_row + (int)row) * w.kv_heads + head;
        k_to = w.k_cache + to * w.head_dim + at;
        v_to = w.v_cache + to * w.head_dim + at;
        k.load(w.k + from, half);
        v.load(w.v + from, half);
        if (!fresh)
            old.load(k_to, half);
        k.unpack(ka, kb);
        if (w.rope)
            rotate8(ka, kb, w.rope + row * 2 * half + at, half);
    }
    if (active && !fresh) {
        old.unpack(oa, ob);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            dot += ka[j] * oa[j] + kb[j] * ob[j];
            new_square += ka[j] * ka[j] + kb[j] * kb[j];
            old_square += oa[j] * oa[j] + ob[j] * ob[j];
        }
    }
    float theta = w.theta;
    if (w.update == SAMKV_UPDATE_COSINE) /* the same for all threads: the whole warp takes part in the sums */
        theta = cosine_of(group_sum<LANES>(dot), group_sum<LANES>(new_square), group_sum<LANES>(old_square));
    if (!active)
        return;
    float keep = w.update == SAMKV_UPDATE_DELTA ? 1.0f : 1 - theta;
    if (!fresh) {
        float va[8], vb[8], wa[8], wb[8];
        v.unpack(va, vb);
        old.load(v_to, half);
        old.unpack(wa, wb);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            ka[j] = keep * oa[j] + theta * ka[j];
            kb[j] = keep * ob[j] + theta * kb[j];
            va[j] = keep * wa[j] + theta * va[j];
            vb[j] = keep * wb[j] + theta * vb[j];
        }
        v.pack(va, vb);
    }
    k.pack(ka, kb);
    k.store(k_to, half);
    v.store(v_to, half);
}

/* One warp a row and KV head: any even size and alignment. */
template <typename T>
__global__ void __launch_bounds__(256) kv_write_scalar(const kv_write_args<T> w)
{
    size_t item = ((size_t)blockIdx.x * 256 + threadIdx.x) / 32;
    if (item >= w.total)
        return;
    int half = w.head_dim / 2, lane = (int)threadIdx.x % 32;
    size_t row = quotient(item, (unsigned)w.kv_heads), head = item - row * (unsigned)w.kv_heads;
    const T *k = w.k + row * w.ld + head * w.head_dim, *v = w.v + row * w.ld + head * w.head_dim;
    size_t to = ((size_t)(w.rows ? w.rows[row] : w.first_row + (int)row) * w.kv_heads + head) * w.head_dim;
    const float *angles = w.rope + row * 2 * half;
    bool fresh = w.update == SAMKV_UPDATE_OVERWRITE || (int)row >= w.fresh_from;
    float theta = w.theta;
    if (!fresh && w.update == SAMKV_UPDATE_COSINE) { /* one row a warp: all lanes come here or none */
        float dot = 0, new_square = 0, old_square = 0;
        for (int j = lane; j < half; j += 32) {
            float a = to_float(k[j]), b = to_float(k[half + j]);
            float oa = to_float(w.k_cache[to + j]), ob = to_float(w.k_cache[to + half + j]);
            if (w.rope)
                rotate(a, b, angles[j], angles[half + j]);
            dot += a * oa + b * ob;
            new_square += a * a + b * b;
            old_square += oa * oa + ob * ob;
        }
        theta = cosine_of(group_sum<32>(dot), group_sum<32>(new_square), group_sum<32>(old_square));
    }
    float keep = w.update == SAMKV_UPDATE_DELTA ? 1.0f : 1 - theta;
    for (int j = lane; j < half; j += 32) {
        float made[4] = {to_float(k[j]), to_float(k[half + j]), to_float(v[j]), to_float(v[half + j])};
        T *at[4] = {w.k_cache + to + j, w.k_cache + to + half + j, w.v_cache + to + j, w.v_cache + to + half + j};
        if (w.rope)
            rotate(made[0], made[1], angles[j], angles[half + j]);
#pragma unroll
        for (int i = 0; i < 4; i++)
            *at[i] = from_float<T>(fresh ? made[i] : keep * to_float(*at[i]) + theta * made[i]);
    }
}

/* ------------------------------------------------------------------ launchers */

template <typename T>
static void kv_write(struct cuda_stream *s, const struct samkv_kv_write *w)
{
    const kv_write_args<T> args = {
        (const T *)w->k, (const T *)w->v, w->ld,
        w->rope,         w->rows,         w->first_row,
        (T *)w->k_cache, (T *)w->v_cache, (size_t)w->n * (size_t)w->kv_heads,
        w->kv_heads,     w->head_dim,     (int)w->update,
        w->theta,        w->fresh_from,
    };
    int octets = w->head_dim / 16;
    bool vectors = w->head_dim % 16 == 0 && octets <= 16 && w->ld % 8 == 0 && samkv_cuda_aligned16(w->k) &&
                   samkv_cuda_aligned16(w->v) && samkv_cuda_aligned16(w->k_cache) && samkv_cuda_aligned16(w->v_cache) &&
                   samkv_cuda_aligned16(w->rope);
    if (!vectors)
        kv_write_scalar<T><<<samkv_cuda_blocks(args.total, 8), 256, 0, s->queue>>>(args);
    else if (octets <= 4)
        kv_write_octets<T, 4><<<samkv_cuda_blocks(args.total, 64), 256, 0, s->queue>>>(args);
    else if (octets <= 8)
        kv_write_octets<T, 8><<<samkv_cuda_blocks(args.total, 32), 256, 0, s->queue>>>(args);
    else
        kv_write_octets<T, 16><<<samkv_cuda_blocks(args.total, 16), 256, 0, s->queue>>>(args);
}

void samkv_cuda_kv_write(struct samkv_stream *stream, const struct samkv_kv_write *w)
{
    struct cuda_stream *s = samkv_cuda_begin(stream, "kv_write");
    if (!s || w->n <= 0 || w->kv_heads <= 0)
        return;
    if (s->device->base.dtype == SAMKV_BF16)
        kv_write<__nv_bfloat16>(s, w);
    else
        kv_write<__half>(s, w);
    samkv_cuda_end(s, "kv_write");
}
