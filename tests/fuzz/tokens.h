#pragma once
/* A tokenizer that was loaded from hostile bytes has to work: texts in, ids out, and back. */
#include "daemon/model/tokenizer.h"
#include "tests/fuzz/fuzz.h"

static inline void fuzz_encode(const struct samkv_tokenizer *tokenizer, const char *text, size_t bytes, int flags)
{
    struct samkv_ids ids;
    struct samkv_error err = {0};
    samkv_ids_init(&ids);
    enum samkv_status status = samkv_tokenizer_encode(tokenizer, text, bytes, flags, &ids, &err);
    uint32_t vocab = samkv_tokenizer_vocab(tokenizer);
    if (status)
        fuzz_check_error(status, &err);
    for (size_t i = 0; i < ids.count; i++)
        FUZZ_REQUIRE(ids.data[i] >= 0 && (uint32_t)ids.data[i] < vocab, "id %d of %u", ids.data[i], vocab);
    char *decoded;
    size_t count;
    for (int skip = 0; !status && skip < 2; skip++)
        if (!samkv_tokenizer_decode(tokenizer, ids.data, ids.count, skip, &decoded, &count, &err)) {
            FUZZ_REQUIRE(decoded[count] == 0, "%zu bytes", count);
            fuzz_touch(decoded, count);
            free(decoded);
        }
    samkv_ids_deinit(&ids);
}

static inline void fuzz_tokenizer(const struct samkv_tokenizer *tokenizer, const char *text, size_t bytes)
{
    static const char sample[] = "the <bos> caf\xc3\xa9's 12345  \n\n<s>hello<mask> \xff\xe4\xb8\xad";
    fuzz_encode(tokenizer, sample, sizeof sample - 1, SAMKV_ENCODE_SPECIAL | SAMKV_ENCODE_BOS);
    fuzz_encode(tokenizer, sample, sizeof sample - 1, 0);
    fuzz_encode(tokenizer, text, bytes, SAMKV_ENCODE_SPECIAL);
    (void)samkv_tokenizer_id(tokenizer, "<s>");
}
