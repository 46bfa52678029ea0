/* Row kernels for any processor: what the compiler's base instruction set has. */
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <string.h>

#define SIMD_TABLE samkv_cpu_simd_portable
#define SIMD_NAME  "portable"
#define SIMD_WIDTH 4

/* Blocks of sums that fit 16 registers with their operands. */
#define SCORE_KEYS    4
#define SCORE_VECTORS 3
#define SUM_ROWS      4
#define SUM_VECTORS   2
#define DOT_ROWS      2
#define DOT_OUTS      4

#include "kernels/cpu/cpu_simd_vector.h"
#include "kernels/cpu/cpu_simd_rows.h"
#include "kernels/cpu/cpu_simd_attention.h"
#include "kernels/cpu/cpu_simd_table.h"
