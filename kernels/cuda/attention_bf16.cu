/* The attention kernels in bf16; a source of their own, because they take long to compile. */
#include "kernels/cuda/attention_tiles.cuh"

const struct attention_variant *samkv_cuda_attention_bf16(void)
{
    static const attention_variant variants[] = SAMKV_CUDA_ATTENTION_VARIANTS(__nv_bfloat16);
    return variants;
}
