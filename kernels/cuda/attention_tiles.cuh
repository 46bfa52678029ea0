#pragma once
/*
 * Attention on tensor cores, in tiles (FlashAttention's scheme with the m16n8k16 instruction of sm_80 and later).
 *
 * Glossary (more in attention_view.cuh)
 *   strip    16 query rows, the height of one tensor-core product. A warp holds STRIPS of them.
 *   block    KEYS keys; K and V of the next block are fetched while this one is worked on.
 */
#include "kernels/cuda/attention_view.cuh"

/* ------------------------------------------------------------------ instructions */

__device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

__device__ __forceinline__ void copy16(uint32_t to, const void *from, bool wanted)
{
    int bytes = wanted ? 16 : 0; /* the rest is filled with zeros */
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

__device__ __forceinline__ void copies_done(void)
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

template <typename T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void multiply_add<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                            uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void multiply_add<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* ------------------------------------------------------------------ the kernel */

template <typename T, int HEAD_DIM, int WARPS, int STRIPS, int KEYS>
struct attention_tile {
    static constexpr int ROWS = WARPS * STRIPS * 16, THREADS = WARPS * 32;
    /* Rows padded by 16 bytes: an odd number of 16-byte units, so that eight rows of a matrix lie in eight banks. */
    static constexpr int PITCH = HEAD_DIM + 8;
    static constexpr int CHUNKS = HEAD_DIM / 8;
    static constexpr int STEPS = HEAD_DIM / 16; /* of 16 along the head, in Q·Kᵀ; pairs of columns in P·V */
    static constexpr int KEY_STEPS = KEYS / 16;
    using view_type = tile_view<ROWS>;

    struct storage {
        alignas(128) T q[ROWS * PITCH];
        T k[2][KEYS * PITCH];
        T v[2][KEYS * PITCH];
        view_type view;
    };

    float sums[STRIPS][2 * STEPS][4];
    float maximum[STRIPS][2], normaliser[STRIPS][2];

    static __device__ __forceinline__ void fetch_queries(storage &s, const attention_args &a, int row0, int kv_head)
    {
        int last = a.n * a.group - 1;
        for (int c = (int)threadIdx.x; c < ROWS * CHUNKS; c += THREADS) {
            int r = c / CHUNKS, column = (c - r * CHUNKS) * 8;
            int t = min(row0 + r, last), token = t / a.group, head = kv_head * a.group + t - token * a.group;
            copy16(shared_address(s.q + r * PITCH + column),
                   (const T *)a.q + (size_t)token * a.ldq + (size_t)head * HEAD_DIM + column, true);
        }
    }

    /* K and V of [k0, k0 + KEYS). What no row sees becomes zero in V; in K it is masked later. */
    static __device__ __forceinline__ void fetch_block(storage &s, const attention_args &a, int kv_head, int stage,
                                                       int k0, bool clear)
    {
        static_assert(KEYS * CHUNKS % THREADS == 0, "every thread copies the same number of chunks");
        const T *k = (const T *)a.k + (size_t)kv_head * HEAD_DIM, *v = (const T *)a.v + (size_t)kv_head * HEAD_DIM;
#pragma unroll
        for (int i = 0; i < KEYS * CHUNKS / THREADS; i++) {
            int c = (int)threadIdx.x + i * THREADS, r = c / CHUNKS, column = (c - r * CHUNKS) * 8, key = k0 + r;
            bool there = key < a.n_keys, seen = clear || (there && any_sees(s.view, a.prefix, key, key + 1));
            size_t from = (size_t)(there ? key : 0) * a.ldkv + column;
            copy16(shared_address(s.k[stage] + r * PITCH + column), k + from, there);
            copy16(shared_address(s.v[stage] + r * PITCH + column), v + from, seen);
        }
    }

    __device__ __forceinline__ void score(float (&p)[STRIPS][2 * KEY_STEPS][4], uint32_t q, uint32_t k) const
    {
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            uint32_t rows[STRIPS][4];
#pragma unroll
            for (int st = 0; st < STRIPS; st++)
                load_matrices(rows[st], q + (uint32_t)((st * 16 * PITCH + i * 16) * sizeof(T)));
#pragma unroll
            for (int j = 0; j < KEY_STEPS; j++) {
                uint32_t keys[4];
                load_matrices(keys, k + (uint32_t)((j * 16 * PITCH + i * 16) * sizeof(T)));
#pragma unroll
                for (int st = 0; st < STRIPS; st++) {
                    multiply_add<T>(p[st][2 * j], rows[st], keys[0], keys[1]);
                    multiply_add<T>(p[st][2 * j + 1], rows[st], keys[2], keys[3]);
                }
            }
        }
    }

    static __device__ __forceinline__ void mask(float (&p)[STRIPS][2 * KEY_STEPS][4], const view_type &view, int prefix,
                                                int row, int key)
    {
#pragma unroll
        for (int st = 0; st < STRIPS; st++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int first = view.first[row + st * 16 + half * 8], limit = view.limit[row + st * 16 + half * 8];
#pragma unroll
                for (int j = 0; j < 2 * KEY_STEPS; j++) {
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        int at = key + j * 8 + e;
                        if (!(at < prefix || (at >= first && at < limit)))
                            p[st][j][2 * half + e] = -INFINITY;
                    }
                }
            }
        }
    }

    /* Scores become weights; what was summed up so far is scaled to the new maximum. */
    __device__ __forceinline__ void soften(float (&p)[STRIPS][2 * KEY_STEPS][4], float scale_log2)
    {
#pragma unroll
        for (int st = 0; st < STRIPS; st++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float high = maximum[st][half];
#pragma unroll
                for (int j = 0; j < 2 * KEY_STEPS; j++)
                    high = fmaxf(high, fmaxf(p[st][j][2 * half], p[st][j][2 * half + 1]));
                high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
                high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
                /* A row that has seen nothing yet keeps −∞; 0 stands in, so that no ∞ − ∞ arises. */
                float base = high == -INFINITY ? 0.0f : high * scale_log2;
                float fade = power_of_two(maximum[st][half] * scale_log2 - base), sum = 0;
                maximum[st][half] = high;
#pragma unroll
                for (int j = 0; j < 2 * KEY_STEPS; j++) {
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float weight = power_of_two(p[st][j][2 * half + e] * scale_log2 - base);
                        p[st][j][2 * half + e] = weight;
                        sum += weight;
                    }
                }
                normaliser[st][half] = normaliser[st][half] * fade + sum;
#pragma unroll
                for (int j = 0; j < 2 * STEPS; j++) {
                    sums[st][j][2 * half] *= fade;
                    sums[st][j][2 * half + 1] *= fade;
                }
            }
        }
    }

    __device__ __forceinline__ void gather_values(const float (&p)[STRIPS][2 * KEY_STEPS][4], uint32_t v)
    {
#pragma unroll
        for (int i = 0; i < KEY_STEPS; i++) {
            uint32_t weights[STRIPS][4];
#pragma unroll
            for (int st = 0; st < STRIPS; st++) {
                weights[st][0] = pack2<T>(p[st][2 * i][0], p[st][2 * i][1]);
                weights[st][1] = pack2<T>(p[st][2 * i][2], p[st][2 * i][3]);
                weights[st][2] = pack2<T>(p[st][2 * i + 1][0], p[st][2 * i + 1][1]);
                weights[st][3] = pack2<T>(p[st][2 * i + 1][2], p[st][2 * i + 1][3]);
            }
#pragma unroll
            for (int j = 0; j < STEPS; j++) {
                uint32_t values[4];
                load_matrices_transposed(values, v + (uint32_t)((i * 16 * PITCH + j * 16) * sizeof(T)));
#pragma unroll
                for (int st = 0; st < STRIPS; st++) {
                    multiply_add<T>(sums[st][2 * j], weights[st], values[0], values[1]);
                    multiply_add<T>(sums[st][2 * j + 1], weights[st], values[2], values[3]);
                }
            }
        }
    }

    __device__ __forceinline__ void finish_normalisers(void)
    {
#pragma unroll
        for (int st = 0; st < STRIPS; st++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                normaliser[st][half] += __shfl_xor_sync(0xffffffffu, normaliser[st][half], 1);
                normaliser[st][half] += __shfl_xor_sync(0xffffffffu, normaliser[st][half], 2);
            }
        }
    }

    /* Through the warp's own rows of Q in shared memory, so that whole rows leave in 16-byte pieces. */
    __device__ __forceinline__ void store(storage &s, const attention_args &a, int row0, int kv_head, int warp,
                                          int lane)
    {
        T *own = s.q + warp * STRIPS * 16 * PITCH;
        __syncwarp();
#pragma unroll
        for (int st = 0; st < STRIPS; st++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float share = 1.0f / normaliser[st][half];
                T *row = own + (st * 16 + half * 8 + lane / 4) * PITCH + lane % 4 * 2;
#pragma unroll
                for (int j = 0; j < 2 * STEPS; j++)
                    *reinterpret_cast<uint32_t *>(row + j * 8) =
                        pack2<T>(sums[st][j][2 * half] * share, sums[st][j][2 * half + 1] * share);
            }
        }
        __syncwarp();
        for (int c = lane; c < STRIPS * 16 * CHUNKS; c += 32) {
            int r = c / CHUNKS, column = (c - r * CHUNKS) * 8, t = row0 + warp * STRIPS * 16 + r;
            if (t >= a.n * a.group)
                break;
            int token = t / a.group, head = kv_head * a.group + t - token * a.group;
            *reinterpret_cast<uint4 *>((T *)a.out + (size_t)token * a.ldo + (size_t)head * HEAD_DIM + column) =
                *reinterpret_cast<const uint4 *>(own + r * PITCH + column);
        }
    }

    __device__ __forceinline__ void store_split(const attention_args &a, int row0, int kv_head, int split, int warp,
                                                int lane)
    {
        size_t rows = (size_t)a.n * a.group, base = ((size_t)split * a.kv_heads + kv_head) * rows;
#pragma unroll
        for (int st = 0; st < STRIPS; st++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                size_t t = (size_t)row0 + (warp * STRIPS + st) * 16 + half * 8 + lane / 4;
                if (t >= rows)
                    continue;
                float *row = a.sums + (base + t) * HEAD_DIM + lane % 4 * 2;
#pragma unroll
                for (int j = 0; j < 2 * STEPS; j++)
                    *reinterpret_cast<float2 *>(row + j * 8) =
                        make_float2(sums[st][j][2 * half], sums[st][j][2 * half + 1]);
                if (lane % 4 == 0)
                    a.norms[base + t] = make_float2(maximum[st][half] * a.scale_log2, normaliser[st][half]);
            }
        }
    }
};

template <typename T, int HEAD_DIM, int WARPS, int STRIPS, int KEYS, int RESIDENT>
__global__ void __launch_bounds__(WARPS * 32, RESIDENT) attend_tile(const attention_args a)
{
    using tile = attention_tile<T, HEAD_DIM, WARPS, STRIPS, KEYS>;
    extern __shared__ __align__(128) unsigned char memory[];
    typename tile::storage &s = *reinterpret_cast<typename tile::storage *>(memory);
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;

    /* The last rows first: under a causal mask they have the most to do. */
    int across = a.kv_heads * a.splits, rest = (int)(blockIdx.x % across);
    int row0 = (a.tiles - 1 - (int)(blockIdx.x / across)) * tile::ROWS;
    int kv_head = rest % a.kv_heads, split = rest / a.kv_heads;

    tile::fetch_queries(s, a, row0, kv_head);
    if (warp == 0)
        look(s.view, a, row0);
    __syncthreads();
    block_list<KEYS> blocks(s.view, a.prefix, split, a.splits);
    int block = blocks.seen_from(blocks.at, s.view), stage = 0;
    if (block < blocks.end)
        tile::fetch_block(s, a, kv_head, 0, blocks.first_key(block), blocks.all_see(blocks.first_key(block)));

    tile state;
#pragma unroll
    for (int st = 0; st < STRIPS; st++) {
        state.maximum[st][0] = state.maximum[st][1] = -INFINITY;
        state.normaliser[st][0] = state.normaliser[st][1] = 0;
#pragma unroll
        for (int j = 0; j < 2 * tile::STEPS; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                state.sums[st][j][e] = 0;
    }
    /* Where this lane's rows of the matrices lie (see the fragments of ldmatrix). */
    uint32_t q = shared_address(s.q + (warp * STRIPS * 16 + lane % 16) * tile::PITCH + lane / 16 * 8);
    uint32_t k = shared_address(s.k[0] + (lane % 8 + lane / 16 * 8) * tile::PITCH + lane / 8 % 2 * 8);
    uint32_t v = shared_address(s.v[0] + lane % 16 * tile::PITCH + lane / 16 * 8);
    constexpr uint32_t STAGE_BYTES = KEYS * tile::PITCH * sizeof(T);

    while (block < blocks.end) {
        int k0 = blocks.first_key(block), next = blocks.seen_from(block + 1, s.view);
        copies_done();
        __syncthreads(); /* this block is there, and everybody is done with the other stage */
        if (next < blocks.end)
            tile::fetch_block(s, a, kv_head, stage ^ 1, blocks.first_key(next), blocks.all_see(blocks.first_key(next)));
        float p[STRIPS][2 * tile::KEY_STEPS][4] = {};
        state.score(p, q, k + (uint32_t)stage * STAGE_BYTES);
        if (!blocks.all_see(k0))
            tile::mask(p, s.view, a.prefix, warp * STRIPS * 16 + lane / 4, k0 + lane % 4 * 2);
        state.soften(p, a.scale_log2);
        state.gather_values(p, v + (uint32_t)stage * STAGE_BYTES);
        block = next;
        stage ^= 1;
    }
    copies_done(); /* of Q, when there was no block */
    state.finish_normalisers();
    if (a.splits == 1)
        state.store(s, a, row0, kv_head, warp, lane);
    else
        state.store_split(a, row0, kv_head, split, warp, lane);
}

/* ------------------------------------------------------------------ the kernels of one type */

struct attention_variant {
    int head_dim, rows, keys;
    int threads, resident; /* tiles on a multiprocessor at a time */
    size_t shared_bytes;
    const void *kernel;
};

/* Both end with head_dim 0. Per head size the tall tile comes before the flat one (16 rows, for decoding). */
const struct attention_variant *samkv_cuda_attention_bf16(void);
const struct attention_variant *samkv_cuda_attention_f16(void);

template <typename T, int HEAD_DIM, int WARPS, int STRIPS, int KEYS, int RESIDENT>
constexpr attention_variant variant_of(void)
{
    using tile = attention_tile<T, HEAD_DIM, WARPS, STRIPS, KEYS>;
    return {HEAD_DIM,
            tile::ROWS,
            KEYS,
            tile::THREADS,
            RESIDENT,
            sizeof(typename tile::storage),
            (const void *)attend_tile<T, HEAD_DIM, WARPS, STRIPS, KEYS, RESIDENT>};
}

/* Two strips a warp halve the reads of K and V from shared memory, which else would bound the products. */
#define SAMKV_CUDA_ATTENTION_VARIANTS(T)                                                                               \
    {                                                                                                                  \
        variant_of<T, 64, 4, 2, 128, 2>(), variant_of<T, 64, 1, 1, 64, 4>(), variant_of<T, 80, 4, 2, 64, 2>(),         \
            variant_of<T, 80, 1, 1, 64, 4>(), variant_of<T, 96, 4, 2, 64, 2>(), variant_of<T, 96, 1, 1, 64, 4>(),      \
            variant_of<T, 128, 4, 2, 64, 2>(), variant_of<T, 128, 1, 1, 64, 3>(), variant_of<T, 256, 8, 1, 32, 1>(),   \
            variant_of<T, 256, 1, 1, 32, 3>(),                                                                         \
        {                                                                                                              \
        }                                                                                                              \
    }
