/*
 * How good is cuBLASLt's first choice? For the matrix products of a model's layer at the rows of a fetch: the times of
 * the heuristic's best eight answers, each over weights that are not in the cache. One JSON object a line.
 *   bench_products [ROWS...]
 */
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define WORKSPACE_BYTES ((size_t)64 << 20)
#define WEIGHT_BYTES    ((size_t)2 << 30) /* copies of a matrix to go through, more than any cache holds */
#define CANDIDATES      8

static void die(const char *what, int code)
{
    fprintf(stderr, "bench_products: %s: %d\n", what, code);
    exit(1);
}

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        int code_ = (int)(call);                                                                                       \
        if (code_)                                                                                                     \
            die(#call, code_);                                                                                         \
    } while (0)

__global__ void fill(__nv_bfloat16 *x, size_t n, uint32_t seed)
{
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        uint32_t h = (uint32_t)i * 2654435761u + seed;
        h ^= h >> 16, h *= 0x85ebca6bu, h ^= h >> 13;
        x[i] = __float2bfloat16((float)(int32_t)h * 4.6e-10f * 0.05f);
    }
}

struct shape {
    const char *name;
    int in, out, accumulate;
};

struct bench {
    cublasLtHandle_t handle;
    void *workspace;
    __nv_bfloat16 *x, *w, *y;
    cudaEvent_t begin, end;
};

static double milliseconds(struct bench *b, cublasLtMatmulDesc_t op, cublasLtMatrixLayout_t lw,
                           cublasLtMatrixLayout_t lx, cublasLtMatrixLayout_t ly, const cublasLtMatmulAlgo_t *algo,
                           const struct shape *s)
{
    size_t matrix = (size_t)s->in * s->out, copies = WEIGHT_BYTES / 2 / matrix;
    int turns = 24;
    float one = 1, beta = s->accumulate ? 1.0f : 0.0f, ms = 0;
    for (int t = -4; t < turns; t++) {
        if (t == 0)
            CHECK(cudaEventRecord(b->begin));
        const __nv_bfloat16 *w = b->w + (size_t)(t + 4) % copies * matrix;
        if (cublasLtMatmul(b->handle, op, &one, w, lw, b->x, lx, &beta, b->y, ly, b->y, ly, algo, b->workspace,
                           WORKSPACE_BYTES, 0))
            return -1;
    }
    CHECK(cudaEventRecord(b->end));
    CHECK(cudaEventSynchronize(b->end));
    CHECK(cudaEventElapsedTime(&ms, b->begin, b->end));
    return ms / turns;
}

static void measure(struct bench *b, const struct shape *s, int rows)
{
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t lw, lx, ly;
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t found[CANDIDATES];
    cublasOperation_t transposed = CUBLAS_OP_T;
    size_t workspace = WORKSPACE_BYTES;
    int count = 0;
    CHECK(cublasLtMatmulDescCreate(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    CHECK(cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
    CHECK(cublasLtMatrixLayoutCreate(&lw, CUDA_R_16BF, s->in, s->out, s->in));
    CHECK(cublasLtMatrixLayoutCreate(&lx, CUDA_R_16BF, s->in, rows, s->in));
    CHECK(cublasLtMatrixLayoutCreate(&ly, CUDA_R_16BF, s->out, rows, s->out));
    CHECK(cublasLtMatmulPreferenceCreate(&preference));
    CHECK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                               sizeof workspace));
    CHECK(cublasLtMatmulAlgoGetHeuristic(b->handle, op, lw, lx, ly, ly, preference, CANDIDATES, found, &count));
    double flop = 2.0 * rows * s->in * s->out;
    for (int i = 0; i < count; i++) {
        int tile = 0, split = 0;
        cublasLtMatmulAlgoConfigGetAttribute(&found[i].algo, CUBLASLT_ALGO_CONFIG_TILE_ID, &tile, sizeof tile, NULL);
        cublasLtMatmulAlgoConfigGetAttribute(&found[i].algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split, sizeof split,
                                             NULL);
        double ms = milliseconds(b, op, lw, lx, ly, &found[i].algo, s);
        printf("{\"op\":\"%s\",\"rows\":%d,\"choice\":%d,\"tile\":%d,\"split\":%d,\"waves\":%.2f,\"us\":%.1f,"
               "\"tflop_s\":%.1f}\n",
               s->name, rows, i, tile, split, found[i].wavesCount, ms * 1e3, flop / ms * 1e-9);
    }
    cublasLtMatmulPreferenceDestroy(preference);
    cublasLtMatrixLayoutDestroy(lw);
    cublasLtMatrixLayoutDestroy(lx);
    cublasLtMatrixLayoutDestroy(ly);
    cublasLtMatmulDescDestroy(op);
}

int main(int argc, char **argv)
{
    static const struct shape shapes[] = {
        {"qkv", 4096, 6144, 0}, {"o", 4096, 4096, 1}, {"gate_up", 4096, 28672, 0}, {"down", 14336, 4096, 1}};
    static const int usual[] = {64, 512, 2522};
    struct bench b;
    int most = 16384;
    CHECK(cublasLtCreate(&b.handle));
    CHECK(cudaMalloc(&b.workspace, WORKSPACE_BYTES));
    CHECK(cudaMalloc(&b.x, (size_t)most * 14336 * 2));
    CHECK(cudaMalloc(&b.y, (size_t)most * 28672 * 2));
    CHECK(cudaMalloc(&b.w, WEIGHT_BYTES));
    fill<<<1024, 256>>>(b.x, (size_t)most * 14336, 1);
    fill<<<1024, 256>>>(b.y, (size_t)most * 28672, 3);
    fill<<<1024, 256>>>(b.w, WEIGHT_BYTES / 2, 2);
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaEventCreate(&b.begin));
    CHECK(cudaEventCreate(&b.end));
    int n = argc > 1 ? argc - 1 : (int)(sizeof usual / sizeof *usual);
    for (int r = 0; r < n; r++) {
        int rows = argc > 1 ? atoi(argv[r + 1]) : usual[r];
        if (rows < 1 || rows > most)
            die("rows", rows);
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            measure(&b, &shapes[i], rows);
    }
    return 0;
}
