/* Row kernels for AVX-512 with BF16: Cooper Lake, Sapphire Rapids, Zen 4 and later. The same source as avx512's, and
 * matrices in bf16. */
#include "kernels/cpu/cpu.h"

#if SAMKV_CPU_X86

#include <immintrin.h>
#include <math.h>
#include <string.h>

#define SIMD_TABLE samkv_cpu_simd_avx512_bf16
#define SIMD_NAME  "avx512bf16"
#define SIMD_BF16

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,prefer-vector-width=512")
#include "kernels/cpu/cpu_simd_wide.h"
#pragma GCC pop_options
#endif
