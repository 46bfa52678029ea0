#include "proto/tensor.h"

static const char *const names[] = {
    [SAMKV_F32] = "f32",
    [SAMKV_F16] = "f16",
    [SAMKV_BF16] = "bf16",
    [SAMKV_I32] = "i32",
};

const char *samkv_dtype_name(enum samkv_dtype dtype)
{
    return (unsigned)dtype < sizeof names / sizeof *names ? names[dtype] : "?";
}

int samkv_dtype_parse(const char *name)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i]))
            return (int)i;
    return -1;
}

float samkv_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 0x1f, mantissa = h & 0x3ffu, u;
    if (exponent == 0x1f) {
        u = sign | 0x7f800000u | mantissa << 13;
    } else if (exponent) {
        u = sign | (exponent + 112) << 23 | mantissa << 13;
    } else {
        /* Zero or a denormal: mantissa · 2^-24, exact in float32. */
        float f = (float)mantissa * 0x1p-24f;
        memcpy(&u, &f, sizeof u);
        u |= sign;
    }
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

uint16_t samkv_f32_to_f16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000u);
    u &= 0x7fffffffu;
    if (u > 0x7f800000u)
        return sign | 0x7e00u;
    if (u >= 0x477ff000u) /* 65520 and above round to infinity */
        return sign | 0x7c00u;
    if (u < 0x38800000u) {
        /* Below 2^-14: adding 0.5 shifts the mantissa to where half keeps it, and the FPU rounds to even. */
        float a;
        memcpy(&a, &u, sizeof a);
        a += 0.5f;
        uint32_t r;
        memcpy(&r, &a, sizeof r);
        return sign | (uint16_t)(r - 0x3f000000u);
    }
    u += 0xfffu + (u >> 13 & 1);
    return sign | (uint16_t)((u - 0x38000000u) >> 13);
}
