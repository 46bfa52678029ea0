/* Row kernels for AVX-512 as in Skylake servers, Ice Lake, Zen 4 and later. */
#include "kernels/cpu/cpu.h"

#if SAMKV_CPU_X86

#include <immintrin.h>
#include <math.h>
#include <string.h>

#define SIMD_TABLE samkv_cpu_simd_avx512
#define SIMD_NAME  "avx512"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#include "kernels/cpu/cpu_simd_wide.h"
#pragma GCC pop_options
#endif
