/* The codecs' loops for any processor, and the choice among all. */
#define LANES_TABLE samkv_lanes_portable
#define LANES_NAME  "portable"
#define LANES_STEP  0
#include "daemon/store/lanes_rows.h"

#if SAMKV_LANES_X86
#if defined __clang__ /* knows no such name; processors that have AVX2 have it */
#define HAS_F16C true
#else
#define HAS_F16C __builtin_cpu_supports("f16c")
#endif

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HAS_F16C;
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

static bool has_portable(void)
{
    return true;
}

/* Best first. */
static const struct {
    const struct samkv_lanes *lanes;
    bool (*usable)(void);
} choices[] = {
#if SAMKV_LANES_X86
    {&samkv_lanes_avx512, has_avx512},
    {&samkv_lanes_avx2, has_avx2},
#endif
    {&samkv_lanes_portable, has_portable},
};

const struct samkv_lanes *samkv_lanes_choice(size_t n)
{
    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++)
        if (choices[i].usable() && n-- == 0)
            return choices[i].lanes;
    return NULL;
}
