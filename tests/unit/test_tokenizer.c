/*
 * Token ids against the reference's (tests/data/tokenizer_cases.json: small tokenizers of every supported kind, made by
 * tests/integration/make_tokenizer_cases.py), and the same vocabularies read from GGUF.
 */
#include <jansson.h>

#include "daemon/model/gguf.h"
#include "daemon/model/tokenizer.h"
#include "tests/unit/model_files.h"

static json_t *root; /* the cases file */
static struct samkv_error why;

static void load_cases(void)
{
    json_error_t error;
    root = json_load_file(SAMKV_TEST_DATA "/tokenizer_cases.json", 0, &error);
    ck_assert_msg(root, "%s", error.text);
}

static void free_cases(void)
{
    json_decref(root);
}

/* A description of the cases file with its model filled in: a whole tokenizer.json. */
static json_t *describe(const char *name)
{
    json_t *made = json_deep_copy(json_object_get(json_object_get(root, "tokenizers"), name));
    const char *model = json_string_value(json_object_get(made, "model"));
    ck_assert_ptr_nonnull(model);
    json_object_set(made, "model", json_object_get(json_object_get(root, "models"), model));
    return made;
}

static struct samkv_tokenizer *from_json(json_t *json)
{
    char *text = json_dumps(json, 0);
    struct samkv_tokenizer *tokenizer = NULL;
    enum samkv_status status = samkv_tokenizer_from_json(text, strlen(text), &tokenizer, &why);
    ck_assert_msg(status == SAMKV_OK, "%s", why.text);
    free(text);
    return tokenizer;
}

static struct samkv_tokenizer *named(const char *name)
{
    json_t *json = describe(name);
    struct samkv_tokenizer *tokenizer = from_json(json);
    json_decref(json);
    return tokenizer;
}

static struct samkv_ids encode(const struct samkv_tokenizer *tokenizer, const char *text, size_t bytes, int flags)
{
    struct samkv_ids ids;
    samkv_ids_init(&ids);
    enum samkv_status status = samkv_tokenizer_encode(tokenizer, text, bytes, flags, &ids, &why);
    ck_assert_msg(status == SAMKV_OK, "%s", why.text);
    return ids;
}

static void check_ids(const struct samkv_ids *got, const json_t *want, const char *text)
{
    ck_assert_msg(got->count == json_array_size(want), "\"%s\": %zu tokens, not %zu", text, got->count,
                  json_array_size(want));
    for (size_t i = 0; i < got->count; i++)
        ck_assert_msg(got->data[i] == json_integer_value(json_array_get(want, i)), "\"%s\": token %zu is %d", text, i,
                      got->data[i]);
}

static void check_text(const struct samkv_tokenizer *tokenizer, const struct samkv_ids *ids, bool skip_special,
                       const char *want)
{
    if (!want) /* the case has none */
        return;
    char *text;
    size_t bytes;
    ck_assert_int_eq(samkv_tokenizer_decode(tokenizer, ids->data, ids->count, skip_special, &text, &bytes, &why),
                     SAMKV_OK);
    ck_assert_uint_eq(bytes, strlen(want));
    ck_assert_str_eq(text, want);
    free(text);
}

/* All cases of `name`, with a tokenizer that should behave like it. Returns how many there were. */
static size_t check_cases(const struct samkv_tokenizer *tokenizer, const char *name, int flags_mask)
{
    size_t checked = 0, i;
    json_t *one;
    json_array_foreach(json_object_get(root, "cases"), i, one)
    {
        int flags = (int)json_integer_value(json_object_get(one, "flags"));
        if (strcmp(json_string_value(json_object_get(one, "tokenizer")), name) != 0 || (flags & ~flags_mask))
            continue;
        const json_t *text = json_object_get(one, "text");
        struct samkv_ids ids = encode(tokenizer, json_string_value(text), json_string_length(text), flags);
        check_ids(&ids, json_object_get(one, "ids"), json_string_value(text));
        check_text(tokenizer, &ids, false, json_string_value(json_object_get(one, "decoded")));
        check_text(tokenizer, &ids, true, json_string_value(json_object_get(one, "skipped")));
        samkv_ids_deinit(&ids);
        checked++;
    }
    return checked;
}

START_TEST(test_reference)
{
    const char *name;
    json_t *unused;
    json_object_foreach(json_object_get(root, "tokenizers"), name, unused)
    {
        (void)unused;
        struct samkv_tokenizer *tokenizer = named(name);
        ck_assert_msg(check_cases(tokenizer, name, 3) >= 5, "%s has no cases", name);
        samkv_tokenizer_free(tokenizer);
    }
}
END_TEST

START_TEST(test_lookup)
{
    struct samkv_tokenizer *tokenizer = named("llama3");
    ck_assert_int_eq(samkv_tokenizer_id(tokenizer, "Ġthe"), 258);
    ck_assert_int_eq(samkv_tokenizer_id(tokenizer, "<bos>"), 277);
    ck_assert_int_eq(samkv_tokenizer_id(tokenizer, "Ġ"), 32);
    ck_assert_int_eq(samkv_tokenizer_id(tokenizer, "nowhere"), -1);
    ck_assert_int_eq(samkv_tokenizer_id(tokenizer, ""), -1);
    ck_assert_uint_eq(samkv_tokenizer_vocab(tokenizer), 286);
    samkv_tokenizer_free(tokenizer);
}
END_TEST

/* encode appends; a failed decode says why. */
START_TEST(test_appends_and_ranges)
{
    struct samkv_tokenizer *tokenizer = named("llama3");
    struct samkv_ids ids = encode(tokenizer, "the", 3, SAMKV_ENCODE_BOS);
    ck_assert_int_eq(samkv_tokenizer_encode(tokenizer, " the", 4, 0, &ids, NULL), SAMKV_OK);
    ck_assert_uint_eq(ids.count, 4);
    ck_assert_int_eq(ids.data[0], 277);
    ck_assert_int_eq(ids.data[3], 258);
    char *text = NULL;
    size_t bytes;
    for (int i = 0; i < 2; i++) {
        ids.data[2] = i ? -1 : 286;
        ck_assert_int_eq(samkv_tokenizer_decode(tokenizer, ids.data, 4, false, &text, &bytes, &why), SAMKV_INVALID);
        ck_assert_ptr_nonnull(strstr(why.text, i ? "-1" : "286"));
    }
    ck_assert_int_eq(samkv_tokenizer_decode(tokenizer, NULL, 0, false, &text, &bytes, &why), SAMKV_OK);
    ck_assert_uint_eq(bytes, 0);
    free(text);
    samkv_ids_deinit(&ids);
    samkv_tokenizer_free(tokenizer);
}
END_TEST

/* Ill-formed UTF-8 reads as if each maximal bad subsequence were U+FFFD. */
START_TEST(test_invalid_utf8)
{
    static const struct {
        const char *bad, *good;
    } cases[] = {
        {"\xff", "\uFFFD"},
        {"a\x80\x80z", "a\uFFFD\uFFFDz"},
        {"\xc3", "\uFFFD"},
        {"\xc0\xaf", "\uFFFD\uFFFD"},
        {"\xe4\xb8", "\uFFFD"},
        {"\xe4\xb8z", "\uFFFDz"},
        {"\xe0\x80\x80", "\uFFFD\uFFFD\uFFFD"},
        {"\xed\xa0\x80", "\uFFFD\uFFFD\uFFFD"},
        {"\xf0\x9f\x98", "\uFFFD"},
        {"\xf0\x9f\x98 \xf0\x9f", "\uFFFD \uFFFD"},
        {"\xf4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},
        {"\xf5the thing\xe4the", "\uFFFDthe thing\uFFFDthe"},
    };
    static const char *const names[] = {"llama3", "qwen", "llama2", "always"};
    for (int n = 0; n < 4; n++) {
        struct samkv_tokenizer *tokenizer = named(names[n]);
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            size_t bytes = strlen(cases[i].bad);
            char *exact = malloc(bytes); /* for sanitizers: not a byte more */
            memcpy(exact, cases[i].bad, bytes);
            struct samkv_ids bad = encode(tokenizer, exact, bytes, 3);
            struct samkv_ids good = encode(tokenizer, cases[i].good, strlen(cases[i].good), 3);
            ck_assert_uint_eq(bad.count, good.count);
            ck_assert_mem_eq(bad.data, good.data, bad.count * sizeof *bad.data);
            free(exact);
            samkv_ids_deinit(&bad);
            samkv_ids_deinit(&good);
        }
        samkv_tokenizer_free(tokenizer);
    }
}
END_TEST

/* A token may end within a character; the bytes of all of them are whole again. */
START_TEST(test_incomplete_characters)
{
    static const char *const names[] = {"smollm", "llama2"};
    for (int n = 0; n < 2; n++) {
        struct samkv_tokenizer *tokenizer = named(names[n]);
        struct samkv_ids ids = encode(tokenizer, "\u4e8c", 3, 0);
        char joined[16];
        size_t count = 0;
        for (size_t i = ids.count - 3; i < ids.count; i++) {
            char *text;
            size_t bytes;
            ck_assert_int_eq(samkv_tokenizer_decode(tokenizer, ids.data + i, 1, false, &text, &bytes, &why), SAMKV_OK);
            ck_assert_uint_eq(bytes, 1);
            joined[count++] = text[0];
            free(text);
        }
        ck_assert_mem_eq(joined, "\u4e8c", 3);
        samkv_ids_deinit(&ids);
        samkv_tokenizer_free(tokenizer);
    }
}
END_TEST

/* --- GGUF */

static void gguf_array(struct gguf_maker *g, const char *key, uint32_t type, uint64_t count)
{
    gguf_key(g, key, 9);
    put_int(&g->pairs, type, 4);
    put_int(&g->pairs, count, 8);
}

/* Token texts by id, of the model and the added tokens; *special: by id. */
static const char **texts_of(const json_t *json, size_t *count, bool **special)
{
    const json_t *vocab = json_object_get(json_object_get(json, "model"), "vocab");
    const json_t *added = json_object_get(json, "added_tokens");
    const char *text, **texts = calloc(512, sizeof *texts);
    json_t *value;
    size_t i;
    *special = calloc(512, 1);
    *count = 0;
    json_object_foreach((json_t *)vocab, text, value)
    {
        texts[json_integer_value(value)] = text;
        *count += 1;
    }
    json_array_foreach(added, i, value)
    {
        size_t id = (size_t)json_integer_value(json_object_get(value, "id"));
        texts[id] = json_string_value(json_object_get(value, "content"));
        (*special)[id] = json_is_true(json_object_get(value, "special"));
        *count = id >= *count ? id + 1 : *count;
    }
    return texts;
}

static void put_tokens(struct gguf_maker *g, const json_t *json)
{
    size_t count;
    bool *special;
    const char **texts = texts_of(json, &count, &special);
    size_t model = json_object_size(json_object_get(json_object_get(json, "model"), "vocab"));
    gguf_array(g, "tokenizer.ggml.tokens", 8, count);
    for (size_t i = 0; i < count; i++)
        put_string(&g->pairs, texts[i]);
    gguf_array(g, "tokenizer.ggml.token_type", 5, count);
    for (size_t i = 0; i < count; i++)
        put_int(&g->pairs, special[i] ? 3 : i >= model ? 4 : strncmp(texts[i], "<0x", 3) == 0 ? 6 : 1, 4);
    free(texts);
    free(special);
}

static void put_merges(struct gguf_maker *g, const json_t *json)
{
    const json_t *merges = json_object_get(json_object_get(json, "model"), "merges"), *value;
    size_t i;
    gguf_array(g, "tokenizer.ggml.merges", 8, json_array_size(merges));
    json_array_foreach(merges, i, value)
    {
        char text[64];
        snprintf(text, sizeof text, "%s %s", json_string_value(json_array_get(value, 0)),
                 json_string_value(json_array_get(value, 1)));
        put_string(&g->pairs, json_is_string(value) ? json_string_value(value) : text);
    }
}

static enum samkv_status from_gguf(struct gguf_maker *g, struct samkv_tokenizer **out)
{
    struct bytes b = gguf_finish(g);
    struct samkv_gguf *file;
    *out = NULL;
    enum samkv_status status = samkv_gguf_from_bytes(b.data, b.count, &file, &why);
    ck_assert_msg(status == SAMKV_OK, "%s", why.text);
    status = samkv_tokenizer_from_gguf(file, out, &why);
    samkv_gguf_close(file);
    free(b.data);
    return status;
}

START_TEST(test_gguf_byte_level)
{
    static const struct {
        const char *pre, *like;
    } kinds[] = {{"smollm", "smollm"}, {"llama-bpe", "llama3"}, {"qwen2", "qwen"}};
    for (int i = 0; i < 3; i++) {
        json_t *json = describe(kinds[i].like);
        if (i == 1) /* GGUF has no flags for added tokens: leave those that need none */
            for (size_t at = json_array_size(json_object_get(json, "added_tokens")); at-- > 2;)
                json_array_remove(json_object_get(json, "added_tokens"), at);
        struct gguf_maker g = {0};
        gguf_string(&g, "tokenizer.ggml.model", "gpt2");
        gguf_string(&g, "tokenizer.ggml.pre", kinds[i].pre);
        put_tokens(&g, json);
        put_merges(&g, json);
        gguf_u32(&g, "tokenizer.ggml.bos_token_id", i == 1 ? 277 : 0);
        struct samkv_tokenizer *tokenizer, *like = from_json(json);
        ck_assert_msg(from_gguf(&g, &tokenizer) == SAMKV_OK, "%s", why.text);
        static const char text[] = "the <bos>thing's 12345 abc\n\n\n caf\u00e9 cafe\u0301<end> direct 'S  x";
        for (int flags = 0; flags < 4; flags++) {
            struct samkv_ids a = encode(tokenizer, text, strlen(text), flags),
                             b = encode(like, text, strlen(text), flags);
            ck_assert_uint_eq(a.count, b.count);
            ck_assert_mem_eq(a.data, b.data, a.count * sizeof *a.data);
            samkv_ids_deinit(&a);
            samkv_ids_deinit(&b);
        }
        if (i != 1)
            ck_assert_uint_ge(check_cases(tokenizer, kinds[i].like, 3), 10);
        samkv_tokenizer_free(tokenizer);
        samkv_tokenizer_free(like);
        json_decref(json);
    }
}
END_TEST

/* Scores in the order of the merges give the merges. */
START_TEST(test_gguf_sentencepiece)
{
    json_t *json = describe("llama2");
    const json_t *merges = json_object_get(json_object_get(json, "model"), "merges"), *value;
    size_t count, i;
    bool *special;
    const char **texts = texts_of(json, &count, &special);
    struct gguf_maker g = {0};
    gguf_string(&g, "tokenizer.ggml.model", "llama");
    put_tokens(&g, json);
    gguf_array(&g, "tokenizer.ggml.scores", 6, count);
    for (size_t id = 0; id < count; id++) {
        float score = -1000;
        json_array_foreach(merges, i, value)
        {
            char joined[64];
            const char *text = json_string_value(value), *space = strchr(text, ' ');
            snprintf(joined, sizeof joined, "%.*s%s", (int)(space - text), text, space + 1);
            if (score == -1000 && strcmp(joined, texts[id]) == 0)
                score = -(float)i;
        }
        put(&g.pairs, &score, 4);
    }
    gguf_u32(&g, "tokenizer.ggml.bos_token_id", 1);
    struct samkv_tokenizer *tokenizer;
    ck_assert_msg(from_gguf(&g, &tokenizer) == SAMKV_OK, "%s", why.text);
    ck_assert_uint_ge(check_cases(tokenizer, "llama2", 3), 10);
    samkv_tokenizer_free(tokenizer);
    free(texts);
    free(special);
    json_decref(json);
}
END_TEST

/* llama.cpp's default: punctuation apart, numbers in threes from the left. */
START_TEST(test_gguf_default)
{
    json_t *json = describe("smollm");
    struct gguf_maker g = {0};
    gguf_string(&g, "tokenizer.ggml.model", "gpt2");
    put_tokens(&g, json);
    put_merges(&g, json);
    struct samkv_tokenizer *tokenizer;
    ck_assert_msg(from_gguf(&g, &tokenizer) == SAMKV_OK, "%s", why.text);
    struct samkv_ids ids = encode(tokenizer, "1231 the.in", 11, SAMKV_ENCODE_BOS);
    static const int32_t want[] = {271, '1', 258, '.', 259};
    ck_assert_uint_eq(ids.count, 5);
    ck_assert_mem_eq(ids.data, want, sizeof want);
    samkv_ids_deinit(&ids);
    samkv_tokenizer_free(tokenizer);
    json_decref(json);
}
END_TEST

START_TEST(test_gguf_refused)
{
    static const struct {
        const char *model, *pre, *tokens[3], *merge, *says;
        enum samkv_status status;
    } cases[] = {
        {"bert", NULL, {"a", "b", "ab"}, "a b", "bert", SAMKV_UNSUPPORTED},
        {NULL, NULL, {"a", "b", "ab"}, "a b", "(none)", SAMKV_UNSUPPORTED},
        {"gpt2", "viking", {"a", "b", "ab"}, "a b", "viking", SAMKV_UNSUPPORTED},
        {"gpt2", "gpt-2", {"a", "b", "ab"}, "a c", "merge 0", SAMKV_INVALID},
        {"gpt2", "gpt-2", {"a", "b", "ab"}, "ab", "merge 0", SAMKV_INVALID},
        {"gpt2", "gpt-2", {"a", "b", "ab"}, "", "merge 0", SAMKV_INVALID},
        {"gpt2", "gpt-2", {"a", "b", "a"}, "a b", "same text", SAMKV_INVALID},
        {"gpt2", "gpt-2", {"a", "b", "\xff"}, "a b", "UTF-8", SAMKV_INVALID},
        {"gpt2", "gpt-2", {NULL}, "a b", "no tokens", SAMKV_INVALID},
        {"gpt2", "gpt-2", {"a", "b", "ab"}, NULL, "no merges", SAMKV_INVALID},
        {"llama", NULL, {"a", "b", "ab"}, NULL, "scores", SAMKV_INVALID},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gguf_maker g = {0};
        struct samkv_tokenizer *tokenizer;
        if (cases[i].model)
            gguf_string(&g, "tokenizer.ggml.model", cases[i].model);
        if (cases[i].pre)
            gguf_string(&g, "tokenizer.ggml.pre", cases[i].pre);
        if (cases[i].tokens[0])
            gguf_array(&g, "tokenizer.ggml.tokens", 8, 3);
        for (int t = 0; cases[i].tokens[0] && t < 3; t++)
            put_string(&g.pairs, cases[i].tokens[t]);
        if (cases[i].merge)
            gguf_array(&g, "tokenizer.ggml.merges", 8, 1);
        if (cases[i].merge)
            put_string(&g.pairs, cases[i].merge);
        ck_assert_int_eq(from_gguf(&g, &tokenizer), cases[i].status);
        ck_assert_msg(strstr(why.text, cases[i].says), "case %zu: %s", i, why.text);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tokenizer");
    TCase *tests = tcase_create("tokenizer");
    tcase_add_checked_fixture(tests, load_cases, free_cases);
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, test_reference);
    tcase_add_test(tests, test_lookup);
    tcase_add_test(tests, test_appends_and_ranges);
    tcase_add_test(tests, test_invalid_utf8);
    tcase_add_test(tests, test_incomplete_characters);
    tcase_add_test(tests, test_gguf_byte_level);
    tcase_add_test(tests, test_gguf_sentencepiece);
    tcase_add_test(tests, test_gguf_default);
    tcase_add_test(tests, test_gguf_refused);
    suite_add_tcase(suite, tests);
    return run_tests(suite);
}
