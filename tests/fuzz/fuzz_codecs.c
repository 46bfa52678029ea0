/*
 * Payloads of records as they come from a disk or a bundle. Four bytes say codec, type, pieces and how long each is;
 * the rest is decoded, with every set of loops that this processor has: all must give the same.
 */
#include "daemon/store/codec.h"
#include "tests/fuzz/fuzz.h"

#define MAX_PIECES 8

static enum samkv_status decode(const struct samkv_layout *layout, enum samkv_codec codec, const uint8_t *payload,
                                size_t bytes, const struct samkv_lanes *lanes, uint8_t *out)
{
    static struct samkv_scratch_pool pool;
    static bool ready;
    if (!ready)
        samkv_scratch_pool_init(&pool);
    ready = true;
    struct samkv_scratch *scratch = samkv_scratch_take(&pool);
    FUZZ_REQUIRE(scratch, "no memory");
    const struct samkv_lanes *best = scratch->lanes;
    void *pieces[MAX_PIECES];
    for (size_t i = 0; i < layout->count; i++)
        pieces[i] = out + i * layout->bytes;
    scratch->lanes = lanes;
    enum samkv_status status = samkv_codec_decode(codec, layout, payload, bytes, scratch, pieces);
    scratch->lanes = best;
    samkv_scratch_give(&pool, scratch);
    FUZZ_REQUIRE(status == SAMKV_OK || status == SAMKV_CORRUPT || status == SAMKV_INVALID, "%s",
                 samkv_status_name(status));
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 5)
        return 0;
    static const size_t channels[] = {0, 1, 2, 5, 8, 16, 33, 64};
    enum samkv_codec codec = (enum samkv_codec)(data[0] % (SAMKV_CODEC_COUNT + 1));
    struct samkv_layout layout = {.dtype = (enum samkv_dtype)(data[1] % 5), .count = data[2] % (MAX_PIECES + 1)};
    layout.channels = channels[data[3] % 8];
    size_t element = samkv_dtype_bytes(layout.dtype), unit = layout.channels ? layout.channels : 1;
    layout.bytes = data[4] * (element ? element : 1) * unit;
    size_t total = samkv_layout_bytes(&layout);
    uint8_t *first = malloc(total ? total : 1), *other = malloc(total ? total : 1);
    FUZZ_REQUIRE(first && other, "no memory");
    const struct samkv_lanes *lanes = samkv_lanes_choice(0);
    enum samkv_status status = decode(&layout, codec, data + 5, size - 5, lanes, first);
    for (size_t n = 1; (lanes = samkv_lanes_choice(n)); n++) {
        FUZZ_REQUIRE(decode(&layout, codec, data + 5, size - 5, lanes, other) == status, "%s differs", lanes->name);
        FUZZ_REQUIRE(status || memcmp(first, other, total) == 0, "%s gives other numbers", lanes->name);
    }
    free(first);
    free(other);
    return 0;
}
