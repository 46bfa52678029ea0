/* A model's config.json: what is accepted also passes the check of sizes. */
#include "daemon/model/config.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct samkv_model_config config;
    struct samkv_error err = {0};
    heap_begin();
    enum samkv_status status = samkv_config_from_json((const char *)data, size, &config, &err);
    fuzz_check_heap(size, 150, 64 << 10);
    if (status) {
        fuzz_check_error(status, &err);
        return 0;
    }
    status = samkv_config_check(&config, &err);
    FUZZ_REQUIRE(!status, "%s", err.text);
    for (uint32_t i = 0; i < config.head_dim / 2; i++)
        FUZZ_REQUIRE(config.inv_freq[i] - config.inv_freq[i] == 0, "frequency %u is %g", i, config.inv_freq[i]);
    FUZZ_REQUIRE(config.rope_scale - config.rope_scale == 0, "scale %g", (double)config.rope_scale);
    return 0;
}
