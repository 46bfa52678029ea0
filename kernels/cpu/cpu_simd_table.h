/* The table itself. Included by cpu_simd_<set>.c as the last. SIMD_TABLE and SIMD_NAME name it. */
const struct samkv_cpu_simd SIMD_TABLE = {
    .name = SIMD_NAME,
    .attention_tile = attention_tile,
    .attention_scratch = attention_scratch,
    .matmul_rows = matmul_rows,
#ifdef SIMD_BF16
    .matmul_rows_bf16 = matmul_rows_bf16,
    .attention_tile_bf16 = attention_tile_bf16,
#endif
    .rmsnorm = row_rmsnorm,
    .rope = row_rope,
    .swiglu = row_swiglu,
    .add = row_add,
    .dot = row_dot,
    .mix = row_mix,
    .from_f16 = row_from_f16,
    .from_bf16 = row_from_bf16,
    .to_f16 = row_to_f16,
    .to_bf16 = row_to_bf16,
};
