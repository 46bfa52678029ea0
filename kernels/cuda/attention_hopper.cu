/* The attention kernels of Hopper. Compiled for sm_90a alone; no other chip has their instructions. */
#include <cudaTypedefs.h>
#include <stdlib.h>

#include "kernels/cuda/attention_hopper.cuh"
#include "kernels/cuda/backend.cuh"

struct hopper_variant {
    int head_dim, keys;
    enum samkv_dtype dtype;
    size_t shared_bytes;
    const void *kernel;
};

template <typename T, int HEAD_DIM, int KEYS>
constexpr hopper_variant variant_of(enum samkv_dtype dtype)
{
    return {HEAD_DIM, KEYS, dtype, sizeof(hopper_tile<T, HEAD_DIM, KEYS>) + 1024,
            (const void *)attend_hopper<T, HEAD_DIM, KEYS>};
}

static const struct hopper_variant variants[] = {
    variant_of<__nv_bfloat16, 64, 128>(SAMKV_BF16), variant_of<__nv_bfloat16, 128, 128>(SAMKV_BF16),
    variant_of<__nv_bfloat16, 256, 64>(SAMKV_BF16), variant_of<__half, 64, 128>(SAMKV_F16),
    variant_of<__half, 128, 128>(SAMKV_F16),        variant_of<__half, 256, 64>(SAMKV_F16),
};

cudaError_t samkv_cuda_hopper_prepare(struct cuda_device *d)
{
    cudaDriverEntryPointQueryResult found;
    d->encode_map = NULL;
    /* The variable keeps to the tiles of older chips, so that tests reach them on a Hopper too. */
    if (d->major != 9 || getenv("SAMKV_CUDA_NO_HOPPER"))
        return cudaSuccess;
    cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &d->encode_map, 12000, cudaEnableDefault, &found);
    if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) {
        d->encode_map = NULL; /* then the tiles of older chips serve */
        (void)cudaGetLastError();
        return cudaSuccess;
    }
    for (size_t i = 0; i < sizeof variants / sizeof *variants && error == cudaSuccess; i++)
        error = cudaFuncSetAttribute(variants[i].kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     (int)variants[i].shared_bytes);
    return error;
}

/* (columns, heads, keys) of one cache, fetched in boxes of one panel. */
static bool make_map(const struct cuda_device *d, const struct hopper_variant *v, const struct samkv_attention *a,
                     const void *cache, CUtensorMap *map)
{
    PFN_cuTensorMapEncodeTiled_v12000 encode = (PFN_cuTensorMapEncodeTiled_v12000)d->encode_map;
    cuuint64_t head_bytes = (cuuint64_t)a->head_dim * 2;
    cuuint64_t sizes[3] = {(cuuint64_t)a->head_dim, (cuuint64_t)a->kv_heads, (cuuint64_t)a->n_keys};
    cuuint64_t strides[2] = {head_bytes, head_bytes * (cuuint64_t)a->kv_heads};
    cuuint32_t box[3] = {PANEL_COLUMNS, 1, (cuuint32_t)v->keys}, steps[3] = {1, 1, 1};
    return encode(map, v->dtype == SAMKV_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3,
                  (void *)cache, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

const struct hopper_variant *samkv_cuda_hopper_variant(const struct cuda_device *d, const struct samkv_attention *a)
{
    if (!d->encode_map)
        return NULL;
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
        if (variants[i].head_dim == a->head_dim && variants[i].dtype == d->base.dtype)
            return &variants[i];
    return NULL;
}

int samkv_cuda_hopper_keys(const struct hopper_variant *v)
{
    return v->keys;
}

bool samkv_cuda_hopper_launch(struct cuda_stream *s, const struct hopper_variant *v, const struct samkv_attention *a,
                              const struct attention_args *args)
{
    CUtensorMap k_map, v_map;
    if (!make_map(s->device, v, a, a->k, &k_map) || !make_map(s->device, v, a, a->v, &v_map))
        return false;
    attention_args copied = *args;
    void *parameters[] = {&k_map, &v_map, &copied};
    long long items = (long long)args->tiles * args->kv_heads * args->splits;
    unsigned grid = (unsigned)(items < s->device->processors ? items : s->device->processors);
    samkv_cuda_check(s,
                     cudaLaunchKernel(v->kernel, dim3(grid), dim3(TILE_THREADS), parameters, v->shared_bytes, s->queue),
                     "attention");
    return true;
}
