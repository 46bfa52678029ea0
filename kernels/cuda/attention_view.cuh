#pragma once
/*
 * What all attention kernels share: their arguments, and which keys a tile of query rows sees.
 *
 * Glossary
 *   tile     ROWS query rows that share a KV head. GQA is packed: row t of a KV head is query head t % group of token
 *            t / group, so that one read of K and V serves the whole group, and a causal tile spans few tokens.
 *   block    KEYS keys, the step of a kernel's loop.
 *   run      rows of a tile with the same `first`; together they see [first, max limit). Keys that no run sees are
 *            never read into a product: the cache may hold anything there, NaN included, and 0 · NaN is NaN.
 *   split    a share of a tile's blocks. Splits leave (unnormalised sums, maximum, normaliser) to a combining kernel.
 *
 * Softmax is online, in f32 and in powers of two: `scale_log2` is scale · log2(e).
 */
#include <stdint.h>

#include "kernels/cuda/elements.cuh"

struct attention_args {
    const void *q, *k, *v;
    void *out;
    size_t ldq, ldo, ldkv;
    int n, n_keys;
    int group, kv_heads;
    int prefix;
    const int32_t *first, *limit;
    float scale_log2;
    int tiles, splits;
    float *sums;   /* [splits, kv_heads, n * group, head_dim], when splits > 1 */
    float2 *norms; /* [splits, kv_heads, n * group]: maximum (scaled) and normaliser */
};

__device__ __forceinline__ float power_of_two(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* ------------------------------------------------------------------ what a tile sees */

template <int ROWS>
struct tile_view {
    int first[ROWS], limit[ROWS];
    int run_first[ROWS], run_limit[ROWS];
    int runs;
    int min_first, max_first, min_limit, max_limit;
};

/* One warp fills the view; rows behind the last one repeat it. The other warps need a barrier afterwards. */
template <int ROWS>
__device__ void look(tile_view<ROWS> &view, const attention_args &a, int row0)
{
    int last = a.n * a.group - 1, lane = (int)threadIdx.x % 32;
    int low = INT32_MAX, high = 0, short_limit = INT32_MAX, long_limit = 0;
#pragma unroll
    for (int i = 0; i < (ROWS + 31) / 32; i++) {
        int r = lane + 32 * i;
        if (r >= ROWS)
            break;
        int token = min(row0 + r, last) / a.group;
        int first = a.first ? a.first[token] : a.prefix, limit = min(a.limit[token], a.n_keys);
        view.first[r] = first;
        view.limit[r] = limit;
        low = min(low, first);
        high = max(high, first);
        short_limit = min(short_limit, limit);
        long_limit = max(long_limit, limit);
    }
    low = __reduce_min_sync(0xffffffffu, low);
    high = __reduce_max_sync(0xffffffffu, high);
    short_limit = __reduce_min_sync(0xffffffffu, short_limit);
    long_limit = __reduce_max_sync(0xffffffffu, long_limit);
    __syncwarp();
    if (lane == 0) {
        int run = 0;
        view.min_first = low;
        view.max_first = high;
        view.min_limit = short_limit;
        view.max_limit = long_limit;
        view.run_first[0] = view.first[0];
        view.run_limit[0] = low == high ? long_limit : view.limit[0];
        for (int r = 1; r < ROWS && low != high; r++) {
            if (view.first[r] != view.run_first[run]) {
                view.run_first[++run] = view.first[r];
                view.run_limit[run] = view.limit[r];
            }
            view.run_limit[run] = max(view.run_limit[run], view.limit[r]);
        }
        view.runs = run + 1;
    }
    __syncwarp();
}

/* Does some row see a key of [k0, k1)? */
template <int ROWS>
__device__ __forceinline__ bool any_sees(const tile_view<ROWS> &view, int prefix, int k0, int k1)
{
    if (k0 < prefix)
        return true;
    for (int i = 0; i < view.runs; i++)
        if (view.run_first[i] < k1 && view.run_limit[i] > k0)
            return true;
    return false;
}

/*
 * The blocks of a tile's keys in ascending order: those of the prefix, then those from the first `first` on. What the
 * loop over blocks asks again and again is kept in registers.
 */
template <int KEYS>
struct block_list {
    int prefix, prefix_blocks, gap, at, end;
    int clear_from, clear_to; /* keys that every row sees, besides the prefix */
    bool single;              /* one run: some row sees a key of every block */

    template <int ROWS>
    __device__ __forceinline__ block_list(const tile_view<ROWS> &view, int all_prefix, int split, int splits)
    {
        prefix = all_prefix;
        clear_from = view.max_first <= prefix ? 0 : view.max_first;
        clear_to = view.min_limit;
        single = view.runs == 1;
        prefix_blocks = (prefix + KEYS - 1) / KEYS;
        int from = max(prefix_blocks, view.min_first / KEYS), to = max(from, (view.max_limit + KEYS - 1) / KEYS);
        int count = prefix_blocks + to - from, share = (count + splits - 1) / splits;
        gap = from - prefix_blocks;
        at = min(split * share, count);
        end = min(at + share, count);
    }

    __device__ __forceinline__ int first_key(int index) const
    {
        return (index < prefix_blocks ? index : index + gap) * KEYS;
    }

    /* The first block from `index` on that some row sees; `end` when there is none. */
    template <int ROWS>
    __device__ __forceinline__ int seen_from(int index, const tile_view<ROWS> &view) const
    {
        while (!single && index < end && !any_sees(view, prefix, first_key(index), first_key(index) + KEYS))
            index++;
        return index < end ? index : end;
    }

    /* Does every row see all keys of the block at k0? Then nothing is masked. */
    __device__ __forceinline__ bool all_see(int k0) const
    {
        return k0 + KEYS <= prefix || (k0 + KEYS <= clear_to && k0 >= clear_from);
    }
};
