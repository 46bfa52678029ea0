/* A GGUF file's bytes: directory, metadata, tensors, and the configuration and tokenizer that they say. */
#include "daemon/model/config.h"
#include "daemon/model/gguf.h"
#include "tests/fuzz/tokens.h"

#define NAME_MAX_BYTES      256
#define DEQUANTISE_ELEMENTS 4096

static void read_tensors(const struct samkv_gguf *file)
{
    size_t count = samkv_gguf_tensor_count(file);
    for (size_t i = 0; i < count && i < 64; i++) {
        size_t bytes;
        const char *at = samkv_gguf_tensor_name(file, i, &bytes);
        char name[NAME_MAX_BYTES];
        fuzz_touch(at, bytes);
        snprintf(name, sizeof name, "%.*s", (int)(bytes < sizeof name ? bytes : sizeof name), at);
        struct samkv_gguf_tensor t;
        struct samkv_error err = {0};
        enum samkv_status status = samkv_gguf_tensor(file, name, &t, &err);
        if (status && status != SAMKV_NOT_FOUND)
            fuzz_check_error(status, &err);
        if (status)
            continue;
        fuzz_touch(t.data, (size_t)t.bytes);
        uint32_t elements, block_bytes;
        FUZZ_REQUIRE(samkv_gguf_type_block(t.type, &elements, &block_bytes), "type %u", t.type);
        float out[DEQUANTISE_ELEMENTS];
        uint64_t blocks = t.bytes / block_bytes, room = DEQUANTISE_ELEMENTS / elements;
        blocks = blocks < room ? blocks : room;
        FUZZ_REQUIRE(samkv_gguf_dequantise(t.type, t.data, blocks * elements, out), "type %u", t.type);
    }
}

static void read_values(const struct samkv_gguf *file)
{
    static const char *const keys[] = {
        "general.architecture",      "general.alignment",           "tokenizer.ggml.tokens", "tokenizer.ggml.scores",
        "tokenizer.ggml.token_type", "tokenizer.ggml.bos_token_id", "llama.block_count",     "a"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        uint64_t u;
        double d;
        bool b;
        const char *text;
        size_t bytes;
        (void)samkv_gguf_u64(file, keys[i], &u);
        (void)samkv_gguf_f64(file, keys[i], &d);
        (void)samkv_gguf_bool(file, keys[i], &b);
        if (samkv_gguf_string(file, keys[i], &text, &bytes))
            fuzz_touch(text, bytes);
        struct samkv_gguf_array array, again;
        if (!samkv_gguf_array(file, keys[i], &array))
            continue;
        again = array;
        uint64_t strings = 0;
        while (samkv_gguf_array_next_string(&array, &text, &bytes)) {
            fuzz_touch(text, bytes);
            strings++;
        }
        FUZZ_REQUIRE(strings <= again.count, "%s", keys[i]);
        int64_t number;
        array = again;
        while (samkv_gguf_array_next_i64(&array, &number))
            ;
        while (samkv_gguf_array_next_f64(&again, &d))
            ;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct samkv_gguf *file = NULL;
    struct samkv_error err = {0};
    heap_begin();
    enum samkv_status status = samkv_gguf_from_bytes(data, size, &file, &err);
    fuzz_check_heap(size, 8, 64 << 10);
    if (status) {
        fuzz_check_error(status, &err);
        return 0;
    }
    read_tensors(file);
    read_values(file);
    struct samkv_model_config config;
    status = samkv_config_from_gguf(file, &config, &err);
    if (status)
        fuzz_check_error(status, &err);
    else
        FUZZ_REQUIRE(!samkv_config_check(&config, &err), "%s", err.text);
    struct samkv_tokenizer *tokenizer = NULL;
    status = samkv_tokenizer_from_gguf(file, &tokenizer, &err);
    fuzz_check_heap(size, 100, 1 << 20);
    if (status)
        fuzz_check_error(status, &err);
    else
        fuzz_tokenizer(tokenizer, "", 0);
    samkv_tokenizer_free(tokenizer);
    samkv_gguf_close(file);
    return 0;
}
