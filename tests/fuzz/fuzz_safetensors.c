/* A safetensors file's bytes: what opens is whole, and each tensor that can be found lies inside. */
#include "daemon/model/safetensors.h"
#include "tests/fuzz/fuzz.h"

#define NAME_MAX_BYTES 64
#define MAX_NAMES      64

/* Tries every text between quotes as a tensor's name: the header has them all, and some that are none. */
static void find_all(const struct samkv_safetensors *file, const uint8_t *data, size_t size)
{
    const uint8_t *at = data, *end = data + size;
    for (int i = 0; i < MAX_NAMES && (at = memchr(at, '"', (size_t)(end - at))); i++) {
        const uint8_t *close = ++at < end ? memchr(at, '"', (size_t)(end - at)) : NULL;
        if (!close)
            return;
        char name[NAME_MAX_BYTES];
        snprintf(name, sizeof name, "%.*s", (int)(close - at < NAME_MAX_BYTES ? close - at : NAME_MAX_BYTES),
                 (const char *)at);
        struct samkv_tensor_view view = {0};
        struct samkv_error err = {0};
        enum samkv_status status = samkv_safetensors_find(file, name, &view, &err);
        if (status && status != SAMKV_NOT_FOUND)
            fuzz_check_error(status, &err);
        if (!status) {
            uint64_t elements = 1;
            FUZZ_REQUIRE(view.dims >= 0 && view.dims <= 4, "%d dimensions", view.dims);
            for (int d = 0; d < view.dims; d++)
                elements *= view.shape[d];
            FUZZ_REQUIRE(elements * samkv_dtype_bytes(view.dtype) == view.bytes, "%s", name);
            fuzz_touch(view.data, (size_t)view.bytes);
        }
        at = close;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct samkv_safetensors *file = NULL;
    struct samkv_error err = {0};
    heap_begin();
    enum samkv_status status = samkv_safetensors_from_bytes(data, size, &file, &err);
    fuzz_check_heap(size, 150, 64 << 10);
    if (status) {
        fuzz_check_error(status, &err);
        return 0;
    }
    find_all(file, data, size);
    samkv_safetensors_close(file);
    return 0;
}
