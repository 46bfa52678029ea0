#include "daemon/samkv/blocks.h"

static uint32_t ceil_div(uint32_t a, uint32_t b)
{
    return a / b + (a % b != 0);
}

struct samkv_blocks samkv_blocks_make(uint32_t tokens, uint32_t block_tokens, uint32_t init_tokens,
                                      uint32_t local_tokens)
{
    struct samkv_blocks b = {.tokens = tokens, .block_tokens = block_tokens, .count = ceil_div(tokens, block_tokens)};
    uint32_t init = ceil_div(init_tokens, block_tokens);
    b.init = init < b.count ? init : b.count;

    /* The last block may be short, so the suffix is counted in tokens. */
    b.local = b.count;
    while (b.local > 0 && (b.local == b.count ? 0 : tokens - b.local * block_tokens) < local_tokens)
        b.local--;
    return b;
}
