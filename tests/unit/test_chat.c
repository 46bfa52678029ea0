/* A question in each chat format: what stands behind it, told from what the preamble has. */
#include <jansson.h>

#include "daemon/model/chat.h"
#include "tests/unit/model_files.h"

static struct samkv_error why;

/* A byte-level tokenizer without merges, or Llama 2's kind with bytes alone, whose added tokens are `added`. */
static struct samkv_tokenizer *make(const char *const *added, bool spaces)
{
    json_t *vocab = json_object(), *list = json_array();
    for (int byte = 0, other = 0; byte < 256; byte++) {
        bool plain = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
        int code = plain ? byte : 256 + other;
        char letter[8] = {(char)(0xc0 | code >> 6), (char)(0x80 | (code & 0x3f))};
        if (code < 128)
            letter[0] = (char)code, letter[1] = 0;
        other += !plain;
        if (spaces)
            snprintf(letter, sizeof letter, "<0x%02X>", byte);
        json_object_set_new(vocab, letter, json_integer(byte));
    }
    for (int i = 0; spaces && i < 3; i++)
        json_object_set_new(vocab, (const char *const[]){"\u2581", "a", "\u2581a"}[i], json_integer(256 + i));
    for (int i = 0; added[i]; i++)
        json_array_append_new(list, json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", (spaces ? 259 : 256) + i,
                                              "content", added[i], "single_word", 0, "lstrip", 0, "rstrip", 0,
                                              "normalized", 0, "special", 1));
    json_t *level = json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1,
                              "use_regex", 0);
    json_t *normalizer =
        json_pack("{s:s, s:[{s:s, s:s}, {s:s, s:{s:s}, s:s}]}", "type", "Sequence", "normalizers", "type", "Prepend",
                  "prepend", "\u2581", "type", "Replace", "pattern", "String", " ", "content", "\u2581");
    json_t *root = json_pack("{s:s, s:o, s:o, s:o, s:n, s:o, s:{s:s, s:b, s:b, s:o, s:o}}", "version", "1.0",
                             "added_tokens", list, "normalizer", spaces ? normalizer : json_null(), "pre_tokenizer",
                             spaces ? json_null() : json_incref(level), "post_processor", "decoder",
                             spaces ? json_pack("{s:s}", "type", "ByteFallback") : json_incref(level), "model", "type",
                             "BPE", "byte_fallback", spaces, "ignore_merges", 0, "vocab", vocab, "merges",
                             spaces ? json_pack("[s]", "\u2581 a") : json_array());
    ck_assert_ptr_nonnull(root);
    char *text = json_dumps(root, 0);
    struct samkv_tokenizer *tokenizer = NULL;
    enum samkv_status status = samkv_tokenizer_from_json(text, strlen(text), &tokenizer, &why);
    ck_assert_msg(status == SAMKV_OK, "%s", why.text);
    free(text);
    json_decref(root);
    json_decref(level);
    if (!spaces)
        json_decref(normalizer);
    return tokenizer;
}

static char *query_text(struct samkv_tokenizer *tokenizer, const char *preamble)
{
    struct samkv_model model = {.tokenizer = tokenizer, .config = {.eos = -1}};
    struct samkv_ids before, query;
    samkv_ids_init(&before);
    samkv_ids_init(&query);
    char *text = NULL;
    size_t bytes;
    ck_assert_int_eq(samkv_tokenizer_encode(tokenizer, preamble, strlen(preamble), SAMKV_ENCODE_SPECIAL, &before, &why),
                     SAMKV_OK);
    ck_assert_int_eq(samkv_chat_query(&model, before.data, before.count, "Who?", 4, &query, &why), SAMKV_OK);
    ck_assert_int_eq(samkv_tokenizer_decode(tokenizer, query.data, query.count, false, &text, &bytes, &why), SAMKV_OK);
    samkv_ids_deinit(&before);
    samkv_ids_deinit(&query);
    return text;
}

static void check(const char *const *added, bool spaces, const char *preamble, const char *want)
{
    struct samkv_tokenizer *tokenizer = make(added, spaces);
    char *text = query_text(tokenizer, preamble);
    ck_assert_str_eq(text, want);
    free(text);
    samkv_tokenizer_free(tokenizer);
}

#define ADDED(...) ((const char *const[]){__VA_ARGS__, NULL})
#define ASK        "\n\nQuestion: Who?"

START_TEST(test_formats)
{
    check(ADDED("<|im_start|>", "<|im_end|>"), false, "<|im_start|>user\n", ASK "<|im_end|>\n<|im_start|>assistant\n");
    check(ADDED("<|im_start|>", "<|im_end|>", "<think>", "</think>"), false, "<|im_start|>user\n",
          ASK "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n");
    check(ADDED("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), false, "<|start_header_id|>user",
          ASK "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n");
    check(ADDED("<|user|>", "<|end|>", "<|assistant|>"), false, "<|user|>\n", ASK "<|end|>\n<|assistant|>\n");
    check(ADDED("[INST]", "[/INST]"), false, "[INST] Read this.", ASK "[/INST]");
    check(ADDED("<s>"), false, "[INST] Read this.", ASK "[/INST]");
    check(ADDED("<|im_start|>"), false, "Read this: [INST", ASK "\nAnswer:");
    check(ADDED("<|im_start|>", "<|user|>"), false, "", ASK "\nAnswer:");
}
END_TEST

/* Llama 2's tokenizer puts a space in front of each text itself. */
START_TEST(test_a_tokenizer_that_puts_spaces)
{
    check(ADDED("<s>"), true, "<s>[INST] Read this.", "\u2581\n\nQuestion:\u2581Who?\u2581[/INST]");
}
END_TEST

START_TEST(test_ends)
{
    struct samkv_model model = {.tokenizer = make(ADDED("</s>", "<|end|>"), false), .config = {.eos = 7}};
    ck_assert(samkv_chat_is_end(&model, 7) && samkv_chat_is_end(&model, 256) && samkv_chat_is_end(&model, 257));
    ck_assert(!samkv_chat_is_end(&model, 8));
    samkv_tokenizer_free(model.tokenizer);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("chat");
    TCase *cases = tcase_create("chat");
    tcase_add_test(cases, test_formats);
    tcase_add_test(cases, test_a_tokenizer_that_puts_spaces);
    tcase_add_test(cases, test_ends);
    suite_add_tcase(suite, cases);
    return run_tests(suite);
}
