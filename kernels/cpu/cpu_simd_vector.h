/*
 * Vectors of SIMD_WIDTH floats for the row kernels. No include guard and no names of its own to export: a
 * cpu_simd_<set>.c defines SIMD_WIDTH, switches the compiler to its instruction set and includes the cpu_simd_*.h
 * files, so that one readable source serves every set. (Function multi-versioning cannot do that: GCC splits wide
 * vectors for the base set before it makes the versions.)
 */
#define LANES      SIMD_WIDTH
#define SIMD_BYTES (SIMD_WIDTH * 4)
#define INLINE     static inline __attribute__((always_inline, unused))

typedef float vf __attribute__((vector_size(SIMD_BYTES)));
typedef int32_t vi __attribute__((vector_size(SIMD_BYTES)));
typedef uint32_t vu __attribute__((vector_size(SIMD_BYTES)));
typedef float vf_unaligned __attribute__((vector_size(SIMD_BYTES), aligned(4), may_alias));
typedef int32_t vi_unaligned __attribute__((vector_size(SIMD_BYTES), aligned(4), may_alias));

INLINE vf vload(const float *p)
{
    return *(const vf_unaligned *)p;
}

INLINE void vstore(float *p, vf v)
{
    *(vf_unaligned *)p = v;
}

/* bf16 is the upper half of a float. */
INLINE vf vload_bf16(const uint16_t *p)
{
    typedef uint16_t halves __attribute__((vector_size(SIMD_WIDTH * 2)));
    halves h;
    memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vu) << 16);
}

/* The first n < LANES elements, zeros behind them. */
INLINE vf vload_part(const float *p, int n)
{
    vf v = {0};
    memcpy(&v, p, (size_t)n * sizeof *p);
    return v;
}

INLINE void vstore_part(float *p, vf v, int n)
{
    memcpy(p, &v, (size_t)n * sizeof *p);
}

INLINE vf vall(float x)
{
    return x - (vf){0}; /* minus, since plus would turn -0 into 0 */
}

INLINE vf vselect(vi mask, vf yes, vf no)
{
    return (vf)(((vi)yes & mask) | ((vi)no & ~mask));
}

/* Sets may have their own of these three, in fewer instructions. */
#ifndef SIMD_OWN_OPERATIONS
/* The larger one; of a NaN and a number, `b`. */
INLINE vf vmax(vf a, vf b)
{
    return vselect(a > b, a, b);
}

/* p · 2^n, for whole n; zero where x < limit. x is not NaN, or p is. */
INLINE vf vscale_above(vf x, float limit, vf p, vf n)
{
    vf power = (vf)((vu)((__builtin_convertvector(n, vi) + 127) << 23));
    return vselect(x < limit, vall(0.0f), p * power);
}

INLINE vf vround(vf x)
{
    const float round_bits = 12582912.0f; /* 1.5 · 2^23: there is no room for a fraction behind it */
    return (x + round_bits) - round_bits;
}
#endif

INLINE float vsum(vf v)
{
    float part[LANES];
    memcpy(part, &v, sizeof part);
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++)
            part[i] += part[i + n];
    return part[0];
}

/*
 * e^x over [-87, 88], relative error below 1.5e-7: 2^n · e^r with |r| <= ln2 / 2 and a polynomial. Below, 0; above,
 * infinity. NaN stays NaN.
 */
INLINE vf vexp(vf x)
{
    vf n = vround(x * 1.44269504088896341f);
    vf r = x - n * 0.693145751953125f; /* ln2 in two parts: the first product is exact */
    r = r - n * 1.42860682030941723e-6f;
    vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return vselect(x > 88.0f, vall(__builtin_inff()), vscale_above(x, -87.0f, p, n));
}

/* 2^x for x <= 1, relative error below 1.5e-7; below 2^-125, 0: a softmax weight that small is nothing. */
INLINE vf vexp2_softmax(vf x)
{
    vf n = vround(x), r = x - n;
    vf p = r * 1.5353362e-4f + 1.33988745e-3f;
    p = p * r + 9.61843736e-3f;
    p = p * r + 5.55033247e-2f;
    p = p * r + 2.40226479e-1f;
    p = p * r + 6.93147203e-1f;
    p = p * r + 1.0f;
    return vscale_above(x, -125.0f, p, n);
}
