/*
 * Attention: the choice of a kernel, the combination of splits, and a plain kernel for head sizes that have no tiles.
 */
#include <assert.h>

#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/backend.cuh"

#define PLAIN_HEAD_DIM 512 /* largest head of the plain kernel */
#define MAX_SPLITS     64  /* two a lane of the combining kernel */
#define COMBINED_AHEAD 16  /* splits whose loads are in flight together; divides 32 */

/* ------------------------------------------------------------------ kernels */

/*
 * One warp a row, head and 64 columns. Each lane weighs up to two splits; then the splits' sums are added up in their
 * order, many loads in flight: with few rows there is little else to hide their latency.
 */
template <typename T>
__global__ void __launch_bounds__(128) combine_splits(const attention_args a, int head_dim)
{
    size_t rows = (size_t)a.n * a.group, all = rows * a.kv_heads;
    unsigned slices = (unsigned)(head_dim + 63) / 64;
    size_t warp = (size_t)blockIdx.x * 4 + threadIdx.x / 32, item = quotient(warp, slices);
    int lane = (int)threadIdx.x % 32, column = (int)(warp - item * slices) * 64 + lane * 2;
    if (item >= all)
        return;
    float2 none = make_float2(-INFINITY, 0);
    float2 near = lane < a.splits ? a.norms[lane * all + item] : none;
    float2 far = lane + 32 < a.splits ? a.norms[(lane + 32) * all + item] : none;
    float maximum = fmaxf(near.x, far.x);
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
        maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, step));
    float near_weight = power_of_two(near.x - maximum), far_weight = power_of_two(far.x - maximum);
    float share = 1.0f / group_sum<32>(near.y * near_weight + far.y * far_weight);
    float low = 0, high = 0;
    for (int s = 0; s < a.splits; s += COMBINED_AHEAD) {
        float2 sums[COMBINED_AHEAD];
#pragma unroll
        for (int i = 0; i < COMBINED_AHEAD; i++)
            if (s + i < a.splits && column < head_dim)
                sums[i] = *reinterpret_cast<const float2 *>(a.sums + ((s + i) * all + item) * head_dim + column);
#pragma unroll
        for (int i = 0; i < COMBINED_AHEAD; i++) {
            float weight = __shfl_sync(0xffffffffu, s < 32 ? near_weight : far_weight, (s + i) % 32);
            if (s + i < a.splits && column < head_dim) {
                low += weight * sums[i].x;
                high += weight * sums[i].y;
            }
        }
    }
    size_t kv_head = quotient(item, (unsigned)rows), t = item - kv_head * rows, token = quotient(t, (unsigned)a.group);
    size_t head = kv_head * a.group + (t - token * a.group);
    if (column < head_dim)
        *reinterpret_cast<uint32_t *>((T *)a.out + token * a.ldo + head * head_dim + column) =
            pack2<T>(low * share, high * share);
}

/* One warp a row and query head, key by key: for head sizes and alignments that the tiles do not take. */
template <typename T>
__global__ void __launch_bounds__(128) attend_plain(const attention_args a, int head_dim)
{
    size_t item = (size_t)blockIdx.x * 4 + threadIdx.x / 32;
    int lane = (int)threadIdx.x % 32, heads = a.kv_heads * a.group;
    size_t row = item / (unsigned)heads;
    if (row >= (size_t)a.n)
        return;
    int head = (int)(item - row * heads), kv_head = head / a.group;
    const T *k = (const T *)a.k + (size_t)kv_head * head_dim, *v = (const T *)a.v + (size_t)kv_head * head_dim;
    const T *query = (const T *)a.q + row * a.ldq + (size_t)head * head_dim;
    float q[PLAIN_HEAD_DIM / 32], sum[PLAIN_HEAD_DIM / 32];
#pragma unroll
    for (int i = 0; i < PLAIN_HEAD_DIM / 32; i++) {
        q[i] = lane + 32 * i < head_dim ? to_float(query[lane + 32 * i]) * a.scale_log2 : 0.0f;
        sum[i] = 0;
    }
    int first = a.first ? max(a.first[row], a.prefix) : a.prefix, limit = min(a.limit[row], a.n_keys);
    float maximum = -INFINITY, normaliser = 0;
    for (int key = a.prefix > 0 ? 0 : first; key < max(limit, a.prefix); key++) {
        if (key == a.prefix)
            key = first; /* over the gap */
        if (key >= max(limit, a.prefix))
            break;
        float dot = 0;
#pragma unroll
        for (int i = 0; i < PLAIN_HEAD_DIM / 32; i++)
            if (lane + 32 * i < head_dim)
                dot += q[i] * to_float(k[(size_t)key * a.ldkv + lane + 32 * i]);
        dot = group_sum<32>(dot);
        float high = fmaxf(maximum, dot), fade = power_of_two(maximum - high), weight = power_of_two(dot - high);
        maximum = high;
        normaliser = normaliser * fade + weight;
#pragma unroll
        for (int i = 0; i < PLAIN_HEAD_DIM / 32; i++)
            if (lane + 32 * i < head_dim)
                sum[i] = sum[i] * fade + weight * to_float(v[(size_t)key * a.ldkv + lane + 32 * i]);
    }
    T *out = (T *)a.out + row * a.ldo + (size_t)head * head_dim;
#pragma unroll
    for (int i = 0; i < PLAIN_HEAD_DIM / 32; i++)
        if (lane + 32 * i < head_dim)
            out[lane + 32 * i] = from_float<T>(sum[i] / normaliser);
}

/* ------------------------------------------------------------------ launchers */

cudaError_t samkv_cuda_attention_prepare(struct cuda_device *d)
{
    const struct attention_variant *tables[] = {samkv_cuda_attention_bf16(), samkv_cuda_attention_f16()};
    for (int i = 0; i < 2; i++) {
        for (const struct attention_variant *v = tables[i]; v->head_dim; v++) {
            cudaError_t error =
                cudaFuncSetAttribute(v->kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)v->shared_bytes);
            if (error != cudaSuccess)
                return error;
        }
    }
    return samkv_cuda_hopper_prepare(d);
}

/* The tiles for this call; NULL when only the plain kernel will do. */
static const struct attention_variant *variant_for(enum samkv_dtype dtype, const struct samkv_attention *a)
{
    const struct attention_variant *v = dtype == SAMKV_BF16 ? samkv_cuda_attention_bf16() : samkv_cuda_attention_f16();
    if (a->ldq % 8 || a->ldo % 8 || !samkv_cuda_aligned16(a->q) || !samkv_cuda_aligned16(a->k) ||
        !samkv_cuda_aligned16(a->v) || !samkv_cuda_aligned16(a->out))
        return NULL;
    bool few = (size_t)a->n * (size_t)(a->heads / a->kv_heads) <= 16;
    for (; v->head_dim; v++)
        if (v->head_dim == a->head_dim && (v->rows == 16) == few)
            return v;
    return NULL;
}

/*
 * Splits so that the chip, which takes `slots` tiles at a time, is full when there are fewer. They depend on the sizes
 * alone, and so does the result. A split has two blocks of keys at least, and all partial results fit the workspace.
 */
static int splits_for(const struct samkv_attention *a, size_t slots, int tiles, int keys)
{
    size_t rows = (size_t)a->n * (size_t)a->heads, blocks = (size_t)a->n_keys / (2 * (size_t)keys);
    size_t room = (SAMKV_CUDA_WORKSPACE_BYTES - 64) / (rows * ((size_t)a->head_dim + 2) * sizeof(float));
    size_t splits = slots / ((size_t)tiles * (size_t)a->kv_heads);
    splits = splits < blocks ? splits : blocks;
    splits = splits < room ? splits : room;
    splits = splits < MAX_SPLITS ? splits : MAX_SPLITS;
    return splits > 1 ? (int)splits : 1;
}

static attention_args args_of(const struct samkv_attention *a)
{
    attention_args args = {};
    args.q = a->q;
    args.k = a->k;
    args.v = a->v;
    args.out = a->out;
    args.ldq = a->ldq;
    args.ldo = a->ldo;
    args.ldkv = (size_t)a->kv_heads * (size_t)a->head_dim;
    args.n = a->n;
    args.n_keys = a->n_keys;
    args.group = a->heads / a->kv_heads;
    args.kv_heads = a->kv_heads;
    args.prefix = a->prefix < a->n_keys ? a->prefix : a->n_keys;
    args.first = a->first;
    args.limit = a->limit;
    args.scale_log2 = a->scale * 1.44269504088896341f;
    args.splits = 1;
    return args;
}

/* Cuts the rows into tiles and the keys into splits, and lays out the partial results in the stream's workspace. */
static void cut(struct cuda_stream *s, const struct samkv_attention *a, int rows, int keys, int resident,
                attention_args *args)
{
    size_t all = (size_t)a->n * (size_t)args->group;
    args->tiles = (int)((all + (size_t)rows - 1) / (size_t)rows);
    args->splits = splits_for(a, (size_t)s->device->processors * (size_t)resident, args->tiles, keys);
    size_t partial = (size_t)args->splits * all * (size_t)a->kv_heads;
    args->norms = (float2 *)s->workspace;
    args->sums = (float *)(args->norms + (partial + 1) / 2 * 2);
}

static void combine(struct cuda_stream *s, const struct samkv_attention *a, const attention_args &args)
{
    size_t slices = ((size_t)a->head_dim + 63) / 64;
    unsigned grid = samkv_cuda_blocks((size_t)a->n * (size_t)a->heads * slices, 4);
    if (args.splits == 1)
        return;
    if (s->device->base.dtype == SAMKV_BF16)
        combine_splits<__nv_bfloat16><<<grid, 128, 0, s->queue>>>(args, a->head_dim);
    else
        combine_splits<__half><<<grid, 128, 0, s->queue>>>(args, a->head_dim);
}

static void launch_tiles(struct cuda_stream *s, const struct attention_variant *v, const struct samkv_attention *a)
{
    attention_args args = args_of(a);
    const struct hopper_variant *hopper = v->rows == 16 ? NULL : samkv_cuda_hopper_variant(s->device, a);
    if (hopper) {
        cut(s, a, SAMKV_CUDA_HOPPER_ROWS, samkv_cuda_hopper_keys(hopper), 1, &args);
        if (samkv_cuda_hopper_launch(s, hopper, a, &args))
            return combine(s, a, args);
    }
    cut(s, a, v->rows, v->keys, v->resident, &args);
    void *parameters[] = {&args};
    dim3 grid((unsigned)args.tiles * (unsigned)a->kv_heads * (unsigned)args.splits), block((unsigned)v->threads);
    samkv_cuda_check(s, cudaLaunchKernel(v->kernel, grid, block, parameters, v->shared_bytes, s->queue), "attention");
    combine(s, a, args);
}

static void launch_plain(struct cuda_stream *s, const struct samkv_attention *a, const attention_args &args)
{
    unsigned grid = samkv_cuda_blocks((size_t)a->n * (size_t)a->heads, 4);
    if (a->head_dim > PLAIN_HEAD_DIM)
        samkv_cuda_failed(s, SAMKV_UNSUPPORTED, "attention", "heads are larger than 512");
    else if (s->device->base.dtype == SAMKV_BF16)
        attend_plain<__nv_bfloat16><<<grid, 128, 0, s->queue>>>(args, a->head_dim);
    else
        attend_plain<__half><<<grid, 128, 0, s->queue>>>(args, a->head_dim);
}

void samkv_cuda_attention(struct samkv_stream *stream, const struct samkv_attention *a)
{
    struct cuda_stream *s = samkv_cuda_begin(stream, "attention");
    if (!s || a->n <= 0)
        return;
    assert(a->heads % a->kv_heads == 0 && a->n_keys > 0 && a->scale > 0);
    const struct attention_variant *v = variant_for(s->device->base.dtype, a);
    if (v)
        launch_tiles(s, v, a);
    else
        launch_plain(s, a, args_of(a));
    samkv_cuda_end(s, "attention");
}
