/*
 * Matrix products by cuBLASLt, bias and residual in its epilogue.
 *
 * Which algorithm runs is asked once a shape. A fetch sends another number of rows through every layer, so rows are
 * rounded up to a class first: the answer for the class serves all its members, and does not depend on which of them
 * came first, so that the same request gives the same bytes in every process.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/backend.cuh"

#define PLANS 512 /* direct-mapped: a model has some ten shapes a class of rows */

struct plan_key {
    uint64_t ldx, ldy;
    int32_t rows, in, out; /* rows: the class */
    uint16_t align_x, align_w, align_y;
    uint8_t bias, accumulate;
};

struct plan {
    bool known;
    struct plan_key key;
    cublasLtMatmulAlgo_t algorithm;
};

struct product_plans {
    cublasLtHandle_t handle;
    struct plan plans[PLANS];
};

/* The descriptors of one product; they live on the stack. */
struct product {
    cublasLtMatmulDescOpaque_t operation;
    cublasLtMatrixLayoutOpaque_t w, x, y;
};

enum samkv_status samkv_cuda_plans_new(struct product_plans **out)
{
    *out = (struct product_plans *)calloc(1, sizeof **out);
    if (!*out)
        return SAMKV_NO_MEMORY;
    cublasStatus_t status = cublasLtCreate(&(*out)->handle);
    if (status == CUBLAS_STATUS_SUCCESS)
        return SAMKV_OK;
    free(*out);
    *out = NULL;
    return status == CUBLAS_STATUS_ALLOC_FAILED ? SAMKV_NO_MEMORY : SAMKV_DEVICE;
}

void samkv_cuda_plans_free(struct product_plans *p)
{
    if (!p)
        return;
    (void)cublasLtDestroy(p->handle);
    free(p);
}

/* Classes of rows: exact while a product is bound by its weights, then steps that a tile of 128 rows hardly notices. */
static int class_of(int n)
{
    int step = n <= 16 ? 1 : n <= 128 ? 16 : n <= 1024 ? 64 : 256;
    return n > INT32_MAX - step ? n : (n + step - 1) / step * step;
}

static uint16_t alignment(const void *p)
{
    uintptr_t lowest = (uintptr_t)p & -(uintptr_t)p;
    return (uint16_t)(lowest == 0 || lowest > 256 ? 256 : lowest);
}

static uint64_t hash(const struct plan_key *key)
{
    const uint8_t *bytes = (const uint8_t *)key;
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < sizeof *key; i++)
        h = (h ^ bytes[i]) * 0x100000001b3u;
    return h ^ h >> 29;
}

static struct plan_key key_of(const struct samkv_matmul *m, int rows)
{
    struct plan_key key;
    memset(&key, 0, sizeof key); /* padding takes part in the comparison */
    key.ldx = m->ldx;
    key.ldy = m->ldy;
    key.rows = rows;
    key.in = m->in;
    key.out = m->out;
    key.align_x = alignment(m->x);
    key.align_w = alignment(m->w);
    key.align_y = alignment(m->y);
    key.bias = m->bias != NULL;
    key.accumulate = m->accumulate;
    return key;
}

/*
 * cuBLASLt thinks in columns: its D (out × n) is our y, its A our w transposed, its B our x. So y = x·wᵀ without any
 * copy, and its bias, one value a row of D, is our bias.
 */
static cublasStatus_t describe(struct product *p, const struct samkv_matmul *m, int rows, cudaDataType_t type)
{
    cublasOperation_t transposed = CUBLAS_OP_T;
    uint64_t in = (uint64_t)m->in, out = (uint64_t)m->out, n = (uint64_t)rows;
    cublasStatus_t status = cublasLtMatmulDescInit(&p->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (!status)
        status =
            cublasLtMatmulDescSetAttribute(&p->operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
    if (!status && m->bias) {
        cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        status =
            cublasLtMatmulDescSetAttribute(&p->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
        if (!status)
            status = cublasLtMatmulDescSetAttribute(&p->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &m->bias,
                                                    sizeof m->bias);
    }
    if (!status)
        status = cublasLtMatrixLayoutInit(&p->w, type, in, out, (int64_t)m->in);
    if (!status)
        status = cublasLtMatrixLayoutInit(&p->x, type, in, n, (int64_t)m->ldx);
    if (!status)
        status = cublasLtMatrixLayoutInit(&p->y, type, out, n, (int64_t)m->ldy);
    return status;
}

/* cuBLASLt's first choice for these rows. */
static cublasStatus_t choose(struct product_plans *plans, const struct samkv_matmul *m, const struct plan_key *key,
                             cudaDataType_t type, cublasLtMatmulAlgo_t *algorithm)
{
    struct product p;
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulHeuristicResult_t result;
    size_t workspace = SAMKV_CUDA_WORKSPACE_BYTES;
    const struct {
        cublasLtMatmulPreferenceAttributes_t attribute;
        uint32_t bytes;
    } alignments[] = {
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key->align_w},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key->align_x},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key->align_y},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key->align_y},
    };
    int found = 0;
    cublasStatus_t status = describe(&p, m, key->rows, type);
    if (!status)
        status = cublasLtMatmulPreferenceInit(&preference);
    if (!status)
        status = cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                                      sizeof workspace);
    for (size_t i = 0; i < sizeof alignments / sizeof *alignments && !status; i++)
        status = cublasLtMatmulPreferenceSetAttribute(&preference, alignments[i].attribute, &alignments[i].bytes,
                                                      sizeof alignments[i].bytes);
    if (!status)
        status = cublasLtMatmulAlgoGetHeuristic(plans->handle, &p.operation, &p.w, &p.x, &p.y, &p.y, &preference, 1,
                                                &result, &found);
    if (!status && found == 0)
        status = CUBLAS_STATUS_NOT_SUPPORTED;
    if (!status)
        *algorithm = result.algo;
    return status;
}

static cublasStatus_t plan_for(struct product_plans *plans, const struct samkv_matmul *m, int rows, cudaDataType_t type,
                               const cublasLtMatmulAlgo_t **algorithm)
{
    struct plan_key key = key_of(m, rows);
    struct plan *plan = &plans->plans[hash(&key) % PLANS];
    if (!plan->known || memcmp(&plan->key, &key, sizeof key)) {
        plan->known = false;
        cublasStatus_t status = choose(plans, m, &key, type, &plan->algorithm);
        if (status)
            return status;
        plan->key = key;
        plan->known = true;
    }
    *algorithm = &plan->algorithm;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t multiply(struct cuda_stream *s, const struct samkv_matmul *m, int rows)
{
    cudaDataType_t type = s->device->base.dtype == SAMKV_BF16 ? CUDA_R_16BF : CUDA_R_16F;
    const cublasLtMatmulAlgo_t *algorithm;
    struct product p;
    float one = 1, beta = m->accumulate ? 1 : 0;
    cublasStatus_t status = plan_for(s->plans, m, rows, type, &algorithm);
    if (!status)
        status = describe(&p, m, m->n, type);
    if (!status)
        status = cublasLtMatmul(s->plans->handle, &p.operation, &one, m->w, &p.w, m->x, &p.x, &beta, m->y, &p.y, m->y,
                                &p.y, algorithm, s->workspace, SAMKV_CUDA_WORKSPACE_BYTES, s->queue);
    return status;
}

void samkv_cuda_matmul(struct samkv_stream *stream, const struct samkv_matmul *m)
{
    struct cuda_stream *s = samkv_cuda_begin(stream, "matmul");
    if (!s || m->n <= 0 || m->out <= 0)
        return;
    int rows = class_of(m->n);
    cublasStatus_t status = multiply(s, m, rows);
    /* An algorithm may refuse fewer rows than it was chosen for: then these rows get their own. */
    if ((status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) && rows != m->n)
        status = multiply(s, m, m->n);
    if (status) {
        char why[160];
        snprintf(why, sizeof why, "cuBLASLt: %s (%d rows, %d to %d)", cublasLtGetStatusString(status), m->n, m->in,
                 m->out);
        samkv_cuda_failed(s, status == CUBLAS_STATUS_ALLOC_FAILED ? SAMKV_NO_MEMORY : SAMKV_DEVICE, "matmul", why);
    }
    samkv_cuda_end(s, "matmul");
}
