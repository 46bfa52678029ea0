#pragma once
/*
 * Instructions of Hopper (sm_90a): barriers in shared memory, the tensor copy engine, and products of a warpgroup.
 *
 * Glossary
 *   panel      64 columns of a tile in shared memory, 128 bytes a row, 16-byte units swizzled by the row's lowest three
 *              bits (the engine's and the products' 128-byte swizzle). A panel begins at a multiple of 1,024 bytes.
 *   warpgroup  four warps that issue one product of 64 rows together. Products run on their own: issue, commit, await.
 */
#include <cuda.h>
#include <stdint.h>

#include "kernels/cuda/elements.cuh"

#define PANEL_COLUMNS 64
#define PANEL_PITCH   128 /* bytes */

/* ------------------------------------------------------------------ barriers */

__device__ __forceinline__ uint32_t barrier_address(const uint64_t *barrier)
{
    return (uint32_t)__cvta_generic_to_shared(barrier);
}

__device__ __forceinline__ void barrier_init(uint64_t *barrier, unsigned arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier_address(barrier)), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barriers_ready(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(uint64_t *barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier_address(barrier)) : "memory");
}

__device__ __forceinline__ void arrive_expecting(uint64_t *barrier, unsigned bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier_address(barrier)), "r"(bytes)
                 : "memory");
}

/* Waits until the phase of this parity is over. A fresh barrier counts as past parity 1. */
__device__ __forceinline__ void await(uint64_t *barrier, unsigned parity)
{
    uint32_t over;
    do {
        asm volatile("{\n"
                     ".reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n"
                     "}\n"
                     : "=r"(over)
                     : "r"(barrier_address(barrier)), "r"(parity)
                     : "memory");
    } while (!over);
}

/* What this thread wrote to shared memory becomes visible to the copy engine and the products. */
__device__ __forceinline__ void publish_to_engines(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* ------------------------------------------------------------------ the copy engine */

/* One box of a map of (columns, heads, rows) to shared memory; `barrier` gets its bytes. */
__device__ __forceinline__ void fetch_box(void *to, const CUtensorMap *map, int column, int head, int row,
                                          uint64_t *barrier)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%3, %4, %5}], [%2];" ::"r"((uint32_t)__cvta_generic_to_shared(to)),
                 "l"(map), "r"(barrier_address(barrier)), "r"(column), "r"(head), "r"(row)
                 : "memory");
}

/* ------------------------------------------------------------------ products of a warpgroup */

/*
 * How a product finds an operand in panels: its address, the distance between panels (used when the operand's columns
 * are the product's, as with V) and between groups of eight rows, all in units of 16 bytes; 128-byte swizzle.
 */
__device__ __forceinline__ uint64_t panels_at(const void *p, unsigned panel_bytes)
{
    uint64_t at = (uint32_t)__cvta_generic_to_shared(p) >> 4;
    return at | (uint64_t)(panel_bytes >> 4) << 16 | (uint64_t)(8 * PANEL_PITCH >> 4) << 32 | (uint64_t)1 << 62;
}

__device__ __forceinline__ void products_begin(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void products_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Waits until at most PENDING committed groups are unfinished. */
template <int PENDING>
__device__ __forceinline__ void products_await(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

/*
 * The two computing warpgroups issue in turns, so that one's softmax falls under the other's products. Both pass as
 * often as they take.
 */
__device__ __forceinline__ void take_turn(void)
{
    asm volatile("bar.sync %0, 256;" ::"r"((int)threadIdx.x / 128) : "memory");
}

__device__ __forceinline__ void pass_turn(void)
{
    asm volatile("bar.arrive %0, 256;" ::"r"(3 - (int)threadIdx.x / 128) : "memory");
}

/* Keeps the compiler from touching accumulators while a product may still write them. */
template <int N>
__device__ __forceinline__ void pin(float (&c)[N][4])
{
#pragma unroll
    for (int j = 0; j < N; j++)
        asm volatile("" : "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])::"memory");
}

/*
 * row_product: c (+)= a · bᵀ, rows of both in panels along the summed dimension.
 * column_product: c += a · b, a in registers (as four octets of m16n8k16), columns of b in panels.
 */
template <typename T, int N>
struct warpgroup_product;

/* clang-format off */
#define QUAD(c, j)   "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
#define QUADS4(c, j) QUAD(c, j), QUAD(c, j + 1), QUAD(c, j + 2), QUAD(c, j + 3)
#define QUADS8(c)    QUADS4(c, 0), QUADS4(c, 4)
#define QUADS16(c)   QUADS8(c), QUADS4(c, 8), QUADS4(c, 12)

#define NAMES32                                                                                     \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "    \
    "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES64 NAMES32                                                                             \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "  \
    "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

#define WARPGROUP_PRODUCT(TYPE, TYPES, N, NAMES, QUADS, P0, P1, P2, P3, P4)                         \
    template <>                                                                                     \
    struct warpgroup_product<TYPE, N> {                                                             \
        static __device__ __forceinline__ void row_product(float (&c)[N / 8][4], uint64_t a,        \
                                                           uint64_t b, int add)                     \
        {                                                                                           \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P2 ", 0;\n"                            \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPES                    \
                         " {" NAMES "}, " P0 ", " P1 ", p, 1, 1, 0, 0;\n}\n"                        \
                         : QUADS(c)                                                                 \
                         : "l"(a), "l"(b), "r"(add));                                               \
        }                                                                                           \
        static __device__ __forceinline__ void column_product(float (&c)[N / 8][4],                 \
                                                              const uint32_t (&a)[4], uint64_t b)   \
        {                                                                                           \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPES                    \
                         " {" NAMES "}, {" P0 ", " P1 ", " P2 ", " P3 "}, " P4 ", 1, 1, 1, 1;\n"    \
                         : QUADS(c)                                                                 \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                     \
        }                                                                                           \
    }

WARPGROUP_PRODUCT(__nv_bfloat16, "bf16.bf16", 64, NAMES32, QUADS8, "%32", "%33", "%34", "%35", "%36");
WARPGROUP_PRODUCT(__nv_bfloat16, "bf16.bf16", 128, NAMES64, QUADS16, "%64", "%65", "%66", "%67", "%68");
WARPGROUP_PRODUCT(__half, "f16.f16", 64, NAMES32, QUADS8, "%32", "%33", "%34", "%35", "%36");
WARPGROUP_PRODUCT(__half, "f16.f16", 128, NAMES64, QUADS16, "%64", "%65", "%66", "%67", "%68");
/* clang-format on */
