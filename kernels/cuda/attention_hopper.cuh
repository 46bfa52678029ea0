#pragma once
/*
 * Attention on Hopper: products of warpgroups (wgmma) fed by the tensor copy engine.
 *
 * One block of threads stays on each multiprocessor and takes tiles in turn, longest first. Its first warpgroup only
 * fetches: warp 0 looks what the tile sees and has K and V copied block by block, two stages each; the other warps
 * bring the queries. The other two warpgroups compute, 64 rows each. While the softmax of a block runs on the ordinary
 * units, the product of the block before with its values runs on the tensor cores. Fetching does not stop at a tile's
 * end, so the next tile's first blocks are there when its turn comes.
 */
#include "kernels/cuda/attention_view.cuh"
#include "kernels/cuda/backend.cuh"
#include "kernels/cuda/hopper.cuh"

#define TILE_ROWS       SAMKV_CUDA_HOPPER_ROWS
#define TILE_THREADS    384
#define QUERY_THREADS   96 /* warps 1 to 3 */
#define COMPUTING_WARPS 8

/* Shared memory of one block of threads. A ring's barriers: full (there is something) and empty (it was used up). */
template <typename T, int HEAD_DIM, int KEYS>
struct hopper_tile {
    static constexpr int PANELS = HEAD_DIM / PANEL_COLUMNS, CHUNKS = HEAD_DIM / 8;
    static constexpr unsigned Q_PANEL_BYTES = TILE_ROWS * PANEL_PITCH, PANEL_BYTES = KEYS * PANEL_PITCH;
    static constexpr unsigned BLOCK_BYTES = PANELS * PANEL_BYTES;

    alignas(1024) unsigned char q[PANELS * Q_PANEL_BYTES];
    alignas(1024) unsigned char k[2][BLOCK_BYTES];
    alignas(1024) unsigned char v[2][BLOCK_BYTES];
    tile_view<TILE_ROWS> view[2];
    alignas(8) uint64_t view_full[2], view_empty[2], q_full, q_empty;
    uint64_t k_full[2], k_empty[2], v_full[2], v_empty[2], v_raw;
};

struct hopper_item {
    int row0, kv_head, split;
};

/* The turn's work of this block of threads: there and back over the blocks, so that all get alike. False at the end. */
__device__ __forceinline__ bool item_of(const attention_args &a, int turn, hopper_item &item)
{
    int blocks = (int)gridDim.x, across = a.kv_heads * a.splits;
    int at = turn * blocks + (turn % 2 ? blocks - 1 - (int)blockIdx.x : (int)blockIdx.x);
    if (at >= a.tiles * across)
        return false;
    int rest = at % across;
    item.row0 = (a.tiles - 1 - at / across) * TILE_ROWS;
    item.kv_head = rest % a.kv_heads;
    item.split = rest / a.kv_heads;
    return true;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* ------------------------------------------------------------------ fetching */

template <typename T, int HEAD_DIM, int KEYS>
struct hopper_fetcher {
    using storage = hopper_tile<T, HEAD_DIM, KEYS>;
    storage &s;
    const attention_args &a;
    const CUtensorMap *k_map, *v_map;
    unsigned k_count, v_count, raw_count; /* blocks fetched so far, over all tiles */

    __device__ __forceinline__ void copy_block(unsigned char *to, const CUtensorMap *map, int kv_head, int k0,
                                               uint64_t *barrier)
    {
        if (threadIdx.x == 0) {
            arrive_expecting(barrier, storage::BLOCK_BYTES);
            for (int panel = 0; panel < storage::PANELS; panel++)
                fetch_box(to + panel * storage::PANEL_BYTES, map, panel * PANEL_COLUMNS, kv_head, k0, barrier);
        }
        __syncwarp();
    }

    __device__ __forceinline__ void fetch_keys(int kv_head, int k0)
    {
        unsigned stage = k_count % 2, parity = k_count / 2 % 2;
        await(&s.k_empty[stage], parity ^ 1);
        copy_block(s.k[stage], k_map, kv_head, k0, &s.k_full[stage]);
        k_count++;
    }

    __device__ __forceinline__ static bool hides(const tile_view<TILE_ROWS> &view, int prefix, int k0, int k1)
    {
        if (k1 <= prefix)
            return false;
        for (int i = 0; i < view.runs; i++)
            if ((view.run_first[i] <= k0 || view.run_first[i] <= prefix) && view.run_limit[i] >= k1)
                return false;
        return true;
    }

    /* Values of keys that no row sees become zeros before anybody computes with them. */
    __device__ __forceinline__ void fetch_values(const tile_view<TILE_ROWS> &view, int kv_head, int k0)
    {
        unsigned stage = v_count % 2, parity = v_count / 2 % 2;
        await(&s.v_empty[stage], parity ^ 1);
        v_count++;
        if (!hides(view, a.prefix, k0, k0 + KEYS)) {
            copy_block(s.v[stage], v_map, kv_head, k0, &s.v_full[stage]);
            return;
        }
        copy_block(s.v[stage], v_map, kv_head, k0, &s.v_raw);
        await(&s.v_raw, raw_count++ % 2);
        int lane = (int)threadIdx.x % 32;
        for (int row = lane / 8; row < KEYS; row += 4) {
            if (any_sees(view, a.prefix, k0 + row, k0 + row + 1))
                continue;
            for (int panel = 0; panel < storage::PANELS; panel++)
                *reinterpret_cast<uint4 *>(s.v[stage] + panel * storage::PANEL_BYTES + row * PANEL_PITCH +
                                           lane % 8 * 16) = make_uint4(0, 0, 0, 0);
        }
        publish_to_engines();
        __syncwarp();
        if (threadIdx.x == 0)
            arrive(&s.v_full[stage]);
        __syncwarp();
    }

    /* Warp 0. Values come one block after their keys: that is the order in which they are used. */
    __device__ void fetch_blocks(void)
    {
        hopper_item item;
        for (int turn = 0; item_of(a, turn, item); turn++) {
            tile_view<TILE_ROWS> &view = s.view[turn % 2];
            await(&s.view_empty[turn % 2], (unsigned)(turn / 2 % 2) ^ 1);
            look(view, a, item.row0);
            arrive(&s.view_full[turn % 2]);
            block_list<KEYS> blocks(view, a.prefix, item.split, a.splits);
            int before = -1;
            for (int block = blocks.seen_from(blocks.at, view); block < blocks.end;
                 block = blocks.seen_from(block + 1, view)) {
                fetch_keys(item.kv_head, blocks.first_key(block));
                if (before >= 0)
                    fetch_values(view, item.kv_head, before);
                before = blocks.first_key(block);
            }
            if (before >= 0)
                fetch_values(view, item.kv_head, before);
        }
    }

    /* Warps 1 to 3: each tile's queries, swizzled as the copy engine would. */
    __device__ void fetch_queries(void)
    {
        hopper_item item;
        int last = a.n * a.group - 1;
        for (int turn = 0; item_of(a, turn, item); turn++) {
            await(&s.q_empty, (unsigned)(turn % 2) ^ 1);
            for (int c = (int)threadIdx.x - 32; c < TILE_ROWS * storage::CHUNKS; c += QUERY_THREADS) {
                int r = c / storage::CHUNKS, chunk = c - r * storage::CHUNKS;
                int t = min(item.row0 + r, last), token = t / a.group;
                int head = item.kv_head * a.group + t - token * a.group;
                const T *from = (const T *)a.q + (size_t)token * a.ldq + (size_t)head * HEAD_DIM + chunk * 8;
                unsigned char *to =
                    s.q + chunk / 8 * storage::Q_PANEL_BYTES + r * PANEL_PITCH + (chunk % 8 ^ r % 8) * 16;
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(to)),
                             "l"(from)
                             : "memory");
            }
            asm volatile("cp.async.wait_all;" ::: "memory");
            publish_to_engines();
            arrive(&s.q_full);
        }
    }
};

/* ------------------------------------------------------------------ computing */

/* One warpgroup's 64 rows; a thread holds parts of two of them, eight rows apart. */
template <typename T, int HEAD_DIM, int KEYS>
struct hopper_rows {
    using storage = hopper_tile<T, HEAD_DIM, KEYS>;
    static constexpr int PART = HEAD_DIM < 128 ? HEAD_DIM : 128, PARTS = HEAD_DIM / PART;

    float scores[KEYS / 8][4];
    uint32_t weights[KEYS / 16][4];
    float sums[PARTS][PART / 8][4];
    float maximum[2], normaliser[2], fade[2];
    int first[2], limit[2];

    __device__ __forceinline__ void issue_scores(uint64_t q, uint64_t k)
    {
        pin(scores);
        products_begin();
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 16; i++)
            warpgroup_product<T, KEYS>::row_product(
                scores, q + (uint64_t)((i / 4 * storage::Q_PANEL_BYTES + i % 4 * 32) >> 4),
                k + (uint64_t)((i / 4 * storage::PANEL_BYTES + i % 4 * 32) >> 4), i > 0);
        products_commit();
    }

    __device__ __forceinline__ void issue_values(uint64_t v)
    {
#pragma unroll
        for (int part = 0; part < PARTS; part++)
            pin(sums[part]);
        products_begin();
#pragma unroll
        for (int i = 0; i < KEYS / 16; i++)
#pragma unroll
            for (int part = 0; part < PARTS; part++)
                warpgroup_product<T, PART>::column_product(
                    sums[part], weights[i],
                    v + (uint64_t)((part * 2 * storage::PANEL_BYTES + i * 16 * PANEL_PITCH) >> 4));
        products_commit();
    }

    __device__ __forceinline__ void values_done(void)
    {
        products_await<0>();
#pragma unroll
        for (int part = 0; part < PARTS; part++)
            pin(sums[part]);
    }

    __device__ __forceinline__ void mask(int prefix, int key)
    {
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int at = key + j * 8 + e % 2;
                if (!(at < prefix || (at >= first[e / 2] && at < limit[e / 2])))
                    scores[j][e] = -INFINITY;
            }
        }
    }

    /* Scores become weights, still in f32; `fade` is what the sums so far are to be multiplied with. */
    __device__ __forceinline__ void soften(float scale_log2)
    {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float high = maximum[half];
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
                high = fmaxf(high, fmaxf(scores[j][2 * half], scores[j][2 * half + 1]));
            high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
            high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
            /* A row that has seen nothing yet keeps −∞; 0 stands in, so that no ∞ − ∞ arises. */
            float base = high == -INFINITY ? 0.0f : high * scale_log2, sum = 0;
            fade[half] = power_of_two(maximum[half] * scale_log2 - base);
            maximum[half] = high;
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float weight = power_of_two(scores[j][2 * half + e] * scale_log2 - base);
                    scores[j][2 * half + e] = weight;
                    sum += weight;
                }
            }
            normaliser[half] = normaliser[half] * fade[half] + sum;
        }
    }

    __device__ __forceinline__ void fade_sums(void)
    {
#pragma unroll
        for (int part = 0; part < PARTS; part++)
#pragma unroll
            for (int j = 0; j < PART / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    sums[part][j][e] *= fade[e / 2];
    }

    __device__ __forceinline__ void pack_weights(void)
    {
#pragma unroll
        for (int i = 0; i < KEYS / 16; i++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                weights[i][e] = pack2<T>(scores[2 * i + e / 2][e % 2 * 2], scores[2 * i + e / 2][e % 2 * 2 + 1]);
    }

    __device__ __forceinline__ void begin(const tile_view<TILE_ROWS> &view, int row)
    {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            first[half] = view.first[row + 8 * half];
            limit[half] = view.limit[row + 8 * half];
            maximum[half] = -INFINITY;
            normaliser[half] = 0;
        }
#pragma unroll
        for (int part = 0; part < PARTS; part++)
#pragma unroll
            for (int j = 0; j < PART / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    sums[part][j][e] = 0;
    }

    /* Neighbouring lanes trade pieces, so that each has 16 bytes of a row to store. */
    __device__ __forceinline__ static uint4 trade(uint32_t a, uint32_t b, uint32_t c, uint32_t d, int lane)
    {
        bool odd = lane & 1, upper = lane & 2;
        uint32_t x = __shfl_xor_sync(0xffffffffu, odd ? a : b, 1), y = __shfl_xor_sync(0xffffffffu, odd ? c : d, 1);
        a = odd ? x : a, b = odd ? b : x, c = odd ? y : c, d = odd ? d : y;
        x = __shfl_xor_sync(0xffffffffu, upper ? a : c, 2), y = __shfl_xor_sync(0xffffffffu, upper ? b : d, 2);
        return upper ? make_uint4(x, y, c, d) : make_uint4(a, b, x, y);
    }

    __device__ __forceinline__ void store(const attention_args &a, const hopper_item &item, int row, int lane)
    {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int t = item.row0 + row + 8 * half, token = t / a.group;
            int head = item.kv_head * a.group + t - token * a.group;
            float share = 1.0f / normaliser[half];
            T *out = (T *)a.out + (size_t)token * a.ldo + (size_t)head * HEAD_DIM + lane % 4 * 8;
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
#pragma unroll
                for (int j = 0; j < PART / 8; j += 4) {
                    uint32_t pieces[4];
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        pieces[i] =
                            pack2<T>(sums[part][j + i][2 * half] * share, sums[part][j + i][2 * half + 1] * share);
                    uint4 whole = trade(pieces[0], pieces[1], pieces[2], pieces[3], lane);
                    if (t < a.n * a.group)
                        *reinterpret_cast<uint4 *>(out + part * PART + j * 8) = whole;
                }
            }
        }
    }

    __device__ __forceinline__ void store_split(const attention_args &a, const hopper_item &item, int row, int lane)
    {
        size_t rows = (size_t)a.n * a.group, base = ((size_t)item.split * a.kv_heads + item.kv_head) * rows;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            size_t t = (size_t)item.row0 + row + 8 * half;
            if (t >= rows)
                continue;
            float *out = a.sums + (base + t) * HEAD_DIM + lane % 4 * 2;
#pragma unroll
            for (int part = 0; part < PARTS; part++)
#pragma unroll
                for (int j = 0; j < PART / 8; j++)
                    *reinterpret_cast<float2 *>(out + part * PART + j * 8) =
                        make_float2(sums[part][j][2 * half], sums[part][j][2 * half + 1]);
            if (lane % 4 == 0)
                a.norms[base + t] = make_float2(maximum[half] * a.scale_log2, normaliser[half]);
        }
    }

    /* All blocks of one tile. `count` numbers blocks over all tiles, as the fetcher does. */
    __device__ __forceinline__ void attend(storage &s, const attention_args &a, const hopper_item &item, int turn,
                                           uint64_t q, unsigned &count, int lane)
    {
        const tile_view<TILE_ROWS> &view = s.view[turn % 2];
        block_list<KEYS> blocks(view, a.prefix, item.split, a.splits);
        int block = blocks.seen_from(blocks.at, view);
        if (block >= blocks.end)
            return release(s, turn, lane);
        await(&s.k_full[count % 2], count / 2 % 2);
        issue_scores(q, panels_at(s.k[count % 2], 0));
        scores_done<0>(s, count, lane);
        settle(a, blocks, blocks.first_key(block), lane);
        pack_weights();
        for (block = blocks.seen_from(block + 1, view); block < blocks.end; block = blocks.seen_from(block + 1, view)) {
            unsigned next = count + 1;
            await(&s.k_full[next % 2], next / 2 % 2);
            take_turn();
            issue_scores(q, panels_at(s.k[next % 2], 0));
            await(&s.v_full[count % 2], count / 2 % 2);
            issue_values(panels_at(s.v[count % 2], storage::PANEL_BYTES));
            pass_turn();
            scores_done<1>(s, next, lane);
            settle(a, blocks, blocks.first_key(block), lane);
            values_done();
            if (lane == 0)
                arrive(&s.v_empty[count % 2]);
            fade_sums();
            pack_weights();
            count = next;
        }
        release(s, turn, lane);
        await(&s.v_full[count % 2], count / 2 % 2);
        issue_values(panels_at(s.v[count % 2], storage::PANEL_BYTES));
        values_done();
        if (lane == 0)
            arrive(&s.v_empty[count % 2]);
        count++;
    }

    /* The tile's queries and view are used up: the next tile's may come. */
    static __device__ __forceinline__ void release(storage &s, int turn, int lane)
    {
        arrive(&s.view_empty[turn % 2]);
        __syncwarp();
        if (lane == 0)
            arrive(&s.q_empty);
    }

    template <int PENDING>
    __device__ __forceinline__ void scores_done(storage &s, unsigned count, int lane)
    {
        products_await<PENDING>();
        pin(scores);
        if (lane == 0)
            arrive(&s.k_empty[count % 2]);
    }

    __device__ __forceinline__ void settle(const attention_args &a, const block_list<KEYS> &blocks, int k0, int lane)
    {
        if (!blocks.all_see(k0))
            mask(a.prefix, k0 + lane % 4 * 2);
        soften(a.scale_log2);
    }
};

template <typename T, int HEAD_DIM, int KEYS>
__device__ __forceinline__ void compute(hopper_tile<T, HEAD_DIM, KEYS> &s, const attention_args &a)
{
    hopper_rows<T, HEAD_DIM, KEYS> rows;
    hopper_item item;
    int warpgroup = (int)threadIdx.x / 128 - 1, lane = (int)threadIdx.x % 32;
    int row = warpgroup * 64 + (int)threadIdx.x % 128 / 32 * 16 + lane / 4;
    uint64_t q = panels_at(s.q + warpgroup * 64 * PANEL_PITCH, 0);
    unsigned count = 0;
    if (warpgroup == 1)
        pass_turn(); /* the first turn is the other's */
    for (int turn = 0; item_of(a, turn, item); turn++) {
        await(&s.view_full[turn % 2], (unsigned)(turn / 2 % 2));
        rows.begin(s.view[turn % 2], row);
        await(&s.q_full, (unsigned)(turn % 2));
        rows.attend(s, a, item, turn, q, count, lane);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            rows.normaliser[half] += __shfl_xor_sync(0xffffffffu, rows.normaliser[half], 1);
            rows.normaliser[half] += __shfl_xor_sync(0xffffffffu, rows.normaliser[half], 2);
        }
        if (a.splits == 1)
            rows.store(a, item, row, lane);
        else
            rows.store_split(a, item, row, lane);
    }
}
#endif

/* ------------------------------------------------------------------ the kernel */

template <typename T, int HEAD_DIM, int KEYS>
__global__ void __launch_bounds__(TILE_THREADS, 1)
    attend_hopper(const __grid_constant__ CUtensorMap k_map, const __grid_constant__ CUtensorMap v_map,
                  const __grid_constant__ attention_args a)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    using storage = hopper_tile<T, HEAD_DIM, KEYS>;
    extern __shared__ unsigned char memory[];
    storage &s = *reinterpret_cast<storage *>(((uintptr_t)memory + 1023) & ~(uintptr_t)1023);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            barrier_init(&s.view_full[i], 32); /* views are ordinary accesses of every thread, which arrives itself */
            barrier_init(&s.view_empty[i], COMPUTING_WARPS * 32);
            barrier_init(&s.k_full[i], 1);
            barrier_init(&s.k_empty[i], COMPUTING_WARPS);
            barrier_init(&s.v_full[i], 1);
            barrier_init(&s.v_empty[i], COMPUTING_WARPS);
        }
        barrier_init(&s.q_full, QUERY_THREADS);
        barrier_init(&s.q_empty, COMPUTING_WARPS);
        barrier_init(&s.v_raw, 1);
        barriers_ready();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        hopper_fetcher<T, HEAD_DIM, KEYS> fetcher = {s, a, &k_map, &v_map, 0, 0, 0};
        if (threadIdx.x < 32)
            fetcher.fetch_blocks();
        else
            fetcher.fetch_queries();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        compute<T, HEAD_DIM, KEYS>(s, a);
    }
#endif
}
