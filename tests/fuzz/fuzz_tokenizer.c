/* A tokenizer.json, up to the first NUL byte, and a text for it, behind. */
#include "tests/fuzz/tokens.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *nul = memchr(data, 0, size);
    size_t json_bytes = nul ? (size_t)(nul - data) : size;
    const char *text = nul ? (const char *)nul + 1 : "";
    size_t text_bytes = nul ? size - json_bytes - 1 : 0;
    struct samkv_tokenizer *tokenizer = NULL;
    struct samkv_error err = {0};
    char *json = (char *)fuzz_copy(data, json_bytes);
    heap_begin();
    enum samkv_status status = samkv_tokenizer_from_json(json, json_bytes, &tokenizer, &err);
    fuzz_check_heap(json_bytes, 200, 1 << 20);
    free(json);
    if (status) {
        fuzz_check_error(status, &err);
        return 0;
    }
    heap_begin();
    fuzz_tokenizer(tokenizer, text, text_bytes);
    fuzz_check_heap(text_bytes, 400, 1 << 20);
    samkv_tokenizer_free(tokenizer);
    return 0;
}
