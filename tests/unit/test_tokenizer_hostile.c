/* Tokenizer files that lie, patterns that blow up, and texts made to be slow. */
#include <jansson.h>

#include "daemon/model/tokenizer_pattern.h"
#include "daemon/model/tokenizer_private.h"
#include "tests/unit/model_files.h"

static json_t *root; /* tests/data/tokenizer_cases.json, see test_tokenizer.c */
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

static json_t *describe(const char *name)
{
    json_t *made = json_deep_copy(json_object_get(json_object_get(root, "tokenizers"), name));
    json_t *model = json_object_get(json_object_get(root, "models"), json_string_value(json_object_get(made, "model")));
    json_object_set_new(made, "model", json_deep_copy(model));
    return made;
}

static enum samkv_status load(const json_t *json, struct samkv_tokenizer **out)
{
    char *text = json_dumps(json, 0);
    *out = NULL;
    enum samkv_status status = samkv_tokenizer_from_json(text, strlen(text), out, &why);
    free(text);
    return status;
}

static struct samkv_tokenizer *named(const char *name, bool jit)
{
    json_t *json = describe(name);
    struct samkv_tokenizer *tokenizer;
    ck_assert_msg(load(json, &tokenizer) == SAMKV_OK, "%s", why.text);
    for (int i = 0; !jit && i < tokenizer->stage_count; i++)
        if (tokenizer->stages[i].pattern)
            samkv_tok_regex_forget_jit(tokenizer->stages[i].pattern);
    json_decref(json);
    return tokenizer;
}

/* --- texts */

/* At least `wanted` bytes of `unit`, over and over. */
static char *repeat(const char *unit, size_t wanted, size_t *bytes)
{
    size_t length = strlen(unit), count = wanted / length + 1;
    char *text = malloc(count * length);
    for (size_t i = 0; i < count; i++)
        memcpy(text + i * length, unit, length);
    *bytes = count * length;
    return text;
}

static void check_long(const struct samkv_tokenizer *tokenizer, const char *unit, size_t wanted, bool exact)
{
    size_t bytes, decoded_bytes;
    char *text = repeat(unit, wanted, &bytes), *decoded;
    struct samkv_ids ids;
    samkv_ids_init(&ids);
    ck_assert_msg(samkv_tokenizer_encode(tokenizer, text, bytes, 1, &ids, &why) == SAMKV_OK, "%s", why.text);
    ck_assert_uint_gt(ids.count, 0);
    if (exact) {
        ck_assert_int_eq(samkv_tokenizer_decode(tokenizer, ids.data, ids.count, false, &decoded, &decoded_bytes, &why),
                         SAMKV_OK);
        ck_assert_uint_eq(decoded_bytes, bytes);
        ck_assert_mem_eq(decoded, text, bytes);
        free(decoded);
    }
    samkv_ids_deinit(&ids);
    free(text);
}

/* One kind of character, or two taking turns: each finishes (the suite has a time limit), and nothing is lost. */
START_TEST(test_long_runs)
{
    static const char *const units[] = {
        "a",  "A",      " ",      "\n",      " \n",          "\r", "'",      "'s",           "1",         ".", "<",
        "<|", "\u4e2d", "\u0301", "a\u0301", "\u0301\u0323", "ab", "\u00a0", "\u1100\u1161", "\U0001f600"};
    static const char *const names[] = {"llama3", "smollm", "qwen", "llama2", "always"};
    for (int n = 0; n < 5; n++) {
        struct samkv_tokenizer *tokenizer = named(names[n], _i == 0);
        for (size_t i = 0; i < sizeof units / sizeof *units; i++)
            check_long(tokenizer, units[i], _i == 0 ? 1000000 : 200000, n < 2 || (n == 3 && units[i][0] != ' '));
        samkv_tokenizer_free(tokenizer);
    }
}
END_TEST

START_TEST(test_long_word)
{
    struct samkv_tokenizer *tokenizer = named("smollm", true);
    struct samkv_ids ids;
    size_t bytes;
    char *text = repeat("a", 1000000, &bytes);
    samkv_ids_init(&ids);
    ck_assert_int_eq(samkv_tokenizer_encode(tokenizer, text, 999999, 0, &ids, &why), SAMKV_OK);
    ck_assert_uint_eq(ids.count, 250001); /* aaaa over and over, then aa, then a */
    for (size_t i = 0; i < 249999; i++)
        ck_assert_int_eq(ids.data[i], 274);
    ck_assert_int_eq(ids.data[249999], 273);
    ck_assert_int_eq(ids.data[250000], 'a');
    samkv_ids_deinit(&ids);
    free(text);
    samkv_tokenizer_free(tokenizer);
}
END_TEST

/* Where generated code is forbidden, the interpreter gives the same ids. */
START_TEST(test_interpreter)
{
    const char *name;
    json_t *unused, *one;
    size_t i;
    json_object_foreach(json_object_get(root, "tokenizers"), name, unused)
    {
        (void)unused;
        struct samkv_tokenizer *tokenizer = named(name, false);
        json_array_foreach(json_object_get(root, "cases"), i, one)
        {
            if (strcmp(json_string_value(json_object_get(one, "tokenizer")), name) != 0)
                continue;
            const json_t *text = json_object_get(one, "text"), *want = json_object_get(one, "ids");
            struct samkv_ids ids;
            samkv_ids_init(&ids);
            ck_assert_int_eq(samkv_tokenizer_encode(tokenizer, json_string_value(text), json_string_length(text),
                                                    (int)json_integer_value(json_object_get(one, "flags")), &ids, &why),
                             SAMKV_OK);
            ck_assert_uint_eq(ids.count, json_array_size(want));
            for (size_t t = 0; t < ids.count; t++)
                ck_assert_int_eq(ids.data[t], json_integer_value(json_array_get(want, t)));
            samkv_ids_deinit(&ids);
        }
        samkv_tokenizer_free(tokenizer);
    }
}
END_TEST

/* Random bytes of every kind come back from the byte-level tokenizers, once repaired. */
START_TEST(test_round_trip)
{
    struct samkv_tokenizer *tokenizer = named("smollm", true);
    uint32_t seed = 12345;
    for (int round = 0; round < 500; round++) {
        char text[300], *decoded;
        size_t bytes = (size_t)(round * 7 % 299), count;
        for (size_t i = 0; i < bytes; i++) {
            seed = seed * 1664525 + 1013904223;
            text[i] = round % 3 ? " a1.\n\xc3\xa9'"[seed >> 24 & 7] : (char)(seed >> 24);
        }
        struct samkv_tok_buffer want = {0};
        struct samkv_ids ids;
        samkv_ids_init(&ids);
        ck_assert_int_eq(samkv_tok_utf8_repair(text, bytes, &want), SAMKV_OK);
        ck_assert_int_eq(samkv_tokenizer_encode(tokenizer, text, bytes, 0, &ids, &why), SAMKV_OK);
        ck_assert_int_eq(samkv_tokenizer_decode(tokenizer, ids.data, ids.count, false, &decoded, &count, &why),
                         SAMKV_OK);
        ck_assert_uint_eq(count, want.count);
        if (count)
            ck_assert_mem_eq(decoded, want.data, count);
        samkv_tok_buffer_deinit(&want);
        samkv_ids_deinit(&ids);
        free(decoded);
    }
    samkv_tokenizer_free(tokenizer);
}
END_TEST

/* --- patterns */

START_TEST(test_patterns_refused)
{
    static const char *const patterns[] = {
        "[a&&b]",  "[[:alpha:]]",   "[a[b]]",   "\\h+",  "\\p{Greek}", "\\p{Cn}",
        "\\pL",    "\\p{",          "[\\P{L}]", "[\\W]", "^a",         "a{,3}",
        "a{1,2}+", "(?<n>a)",       "(?m:.)",   "(?#a)", "\\",         "[a",
        "[]",      "\\x{110000}",   "\\xff",    "\\u12", "\\k<n>",     "\\1",
        "(?i:ss)", "(?i:\xc3\x9f)", "(a",       "a**b)", "*a",         "\\K",
        "\\R",     "(*ACCEPT)",     "\\C",      "\\X",   "(?R)",       "",
    };
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        struct samkv_tok_regex *regex = NULL;
        enum samkv_status status = samkv_tok_regex_compile(patterns[i], strlen(patterns[i]), &regex, &why);
        ck_assert_msg(status == SAMKV_UNSUPPORTED, "%s gives %d", patterns[i], status);
        ck_assert_ptr_null(regex);
    }
}
END_TEST

/* A pattern that tries every way to cut a run is stopped with an error, in both engines; nothing is appended. */
START_TEST(test_pattern_gives_up)
{
    json_t *json = describe("Isolated"),
           *stages = json_object_get(json_object_get(json, "pre_tokenizer"), "pretokenizers");
    json_object_set_new(json_object_get(json_array_get(stages, 0), "pattern"), "Regex", json_string("(?:a|aa)+!!"));
    struct samkv_tokenizer *tokenizer;
    ck_assert_msg(load(json, &tokenizer) == SAMKV_OK, "%s", why.text);
    if (_i)
        samkv_tok_regex_forget_jit(tokenizer->stages[0].pattern);
    char text[200];
    memset(text, 'a', sizeof text);
    memcpy(text + sizeof text - 2, "b!", 2); /* a text without ! would be given up for a good reason at once */
    struct samkv_ids ids;
    samkv_ids_init(&ids);
    ck_assert_int_eq(samkv_tokenizer_encode(tokenizer, "xa", 2, 0, &ids, &why), SAMKV_OK);
    ck_assert_int_eq(samkv_tokenizer_encode(tokenizer, text, sizeof text, 0, &ids, &why), SAMKV_TOO_LARGE);
    ck_assert_ptr_nonnull(strstr(why.text, "gave up"));
    ck_assert_uint_eq(ids.count, 2);
    samkv_ids_deinit(&ids);
    samkv_tokenizer_free(tokenizer);
    json_decref(json);
}
END_TEST

/* --- files */

/* path: keys and indices; value: JSON, NULL removes. The file then fails with this status and text. */
static const struct {
    const char *of, *path[5], *value;
    enum samkv_status status;
    const char *says;
} lies[] = {
    {"llama3", {"model"}, NULL, SAMKV_INVALID, "no model"},
    {"llama3", {"model", "type"}, "\"WordPiece\"", SAMKV_UNSUPPORTED, "WordPiece"},
    {"llama3", {"model", "type"}, "\"Unigram\"", SAMKV_UNSUPPORTED, "Unigram"},
    {"llama3", {"model", "vocab"}, "[]", SAMKV_INVALID, "no vocab"},
    {"llama3", {"model", "merges"}, "{}", SAMKV_INVALID, "no merges"},
    {"llama3", {"model", "merges"}, "[\"a b c\"]", SAMKV_INVALID, "merge 0"},
    {"llama3", {"model", "merges"}, "[\"a zz\"]", SAMKV_INVALID, "outside the vocabulary"},
    {"llama3", {"model", "merges"}, "[[\"a\",1]]", SAMKV_INVALID, "merge 0"},
    {"llama3", {"model", "vocab", "a"}, "-1", SAMKV_INVALID, "negative"},
    {"llama3", {"model", "vocab", "a"}, "4294967295", SAMKV_INVALID, "too high"},
    {"llama3", {"model", "vocab", "a"}, "9223372036854775807", SAMKV_INVALID, "too high"},
    {"llama3", {"model", "vocab", "a"}, "1.5", SAMKV_INVALID, "no number"},
    {"llama3", {"model", "vocab", "a"}, "98", SAMKV_INVALID, "two tokens"},
    {"llama3", {"model", "unk_token"}, "\"nowhere\"", SAMKV_INVALID, "unk_token"},
    {"llama3", {"model", "dropout"}, "0.1", SAMKV_UNSUPPORTED, "dropout"},
    {"llama3", {"model", "end_of_word_suffix"}, "\"</w>\"", SAMKV_UNSUPPORTED, "end_of_word_suffix"},
    {"llama3", {"added_tokens"}, "7", SAMKV_INVALID, "no list"},
    {"llama3", {"added_tokens", "0", "id"}, "-5", SAMKV_INVALID, "negative"},
    {"llama3", {"added_tokens", "0", "id"}, "300", SAMKV_INVALID, "is due"},
    {"llama3", {"added_tokens", "0", "content"}, "\"<end>\"", SAMKV_INVALID, "same text"},
    {"llama3", {"added_tokens", "0", "special"}, "\"yes\"", SAMKV_INVALID, "special"},
    {"llama3", {"normalizer"}, "{\"type\":\"Lowercase\"}", SAMKV_UNSUPPORTED, "Lowercase"},
    {"llama3", {"normalizer"}, "{\"type\":\"Precompiled\"}", SAMKV_UNSUPPORTED, "Precompiled"},
    {"llama3", {"normalizer"}, "\"NFC\"", SAMKV_INVALID, "normalizer"},
    {"llama3", {"pre_tokenizer"}, "{\"type\":\"BertPreTokenizer\"}", SAMKV_UNSUPPORTED, "BertPreTokenizer"},
    {"llama3", {"decoder"}, "{\"type\":\"CTC\"}", SAMKV_UNSUPPORTED, "CTC"},
    {"llama3", {"post_processor"}, "{\"type\":\"RobertaProcessing\"}", SAMKV_UNSUPPORTED, "RobertaProcessing"},
    {"llama2", {"post_processor", "special_tokens"}, "{}", SAMKV_INVALID, "TemplateProcessing"},
    {"llama2", {"post_processor", "special_tokens", "<s>", "ids"}, "[9999]", SAMKV_INVALID, "unknown token id"},
    {"llama2", {"decoder", "decoders", "3", "start"}, "-1", SAMKV_INVALID, "Strip"},
    {"llama2", {"normalizer", "normalizers", "1", "pattern"}, "{\"String\":\"\"}", SAMKV_UNSUPPORTED, "empty string"},
    {"always", {"pre_tokenizer", "replacement"}, "\"ab\"", SAMKV_INVALID, "no character"},
    {"always", {"pre_tokenizer", "prepend_scheme"}, "\"sometimes\"", SAMKV_INVALID, "prepend_scheme"},
};

static void set_at(json_t *json, const char *const *path, json_t *value)
{
    json_t *parent = json;
    int last = 0;
    for (; last < 4 && path[last + 1]; last++)
        parent = json_is_array(parent) ? json_array_get(parent, (size_t)atoi(path[last]))
                                       : json_object_get(parent, path[last]);
    if (json_is_array(parent))
        json_array_set_new(parent, (size_t)atoi(path[last]), value);
    else if (value)
        json_object_set_new(parent, path[last], value);
    else
        json_object_del(parent, path[last]);
}

START_TEST(test_lies)
{
    json_t *json = describe(lies[_i].of);
    set_at(json, lies[_i].path, lies[_i].value ? json_loads(lies[_i].value, JSON_DECODE_ANY, NULL) : NULL);
    struct samkv_tokenizer *tokenizer;
    ck_assert_msg(load(json, &tokenizer) == lies[_i].status, "lie %d: %s", _i, why.text);
    ck_assert_msg(strstr(why.text, lies[_i].says), "lie %d: %s", _i, why.text);
    json_decref(json);
}
END_TEST

/* Whatever loads must also work. */
static void exercise(const char *text, size_t bytes)
{
    struct samkv_tokenizer *tokenizer;
    if (samkv_tokenizer_from_json(text, bytes, &tokenizer, &why) != SAMKV_OK)
        return;
    static const char sample[] = "the <bos> caf\u00e9's 12345  \n\n<s>hello<mask> \xff\u4e2d";
    struct samkv_ids ids;
    samkv_ids_init(&ids);
    if (samkv_tokenizer_encode(tokenizer, sample, sizeof sample - 1, 3, &ids, &why) == SAMKV_OK) {
        char *decoded;
        size_t count;
        if (samkv_tokenizer_decode(tokenizer, ids.data, ids.count, true, &decoded, &count, &why) == SAMKV_OK)
            free(decoded);
    }
    samkv_ids_deinit(&ids);
    samkv_tokenizer_free(tokenizer);
}

static void exercise_json(const json_t *json)
{
    char *text = json_dumps(json, JSON_ENCODE_ANY);
    exercise(text, strlen(text));
    free(text);
}

static const char *const odd_values[] = {"null",  "true", "-1", "1e300",  "\"\"",
                                         "\"x\"", "[]",   "{}", "[[[]]]", "4294967296"};

/* Puts every odd value in place of everything below node, the vocabulary's bulk left out. */
static void mutate(json_t *whole, json_t *node)
{
    const char *key;
    json_t *child;
    void *safe;
    size_t count = 0;
    json_object_foreach_safe(node, safe, key, child)
    {
        if (count++ > 6)
            break;
        json_t *kept = json_incref(child);
        for (size_t i = 0; i < sizeof odd_values / sizeof *odd_values; i++) {
            json_object_set_new(node, key, json_loads(odd_values[i], JSON_DECODE_ANY, NULL));
            exercise_json(whole);
        }
        json_object_set_new(node, key, kept);
        mutate(whole, kept);
    }
    for (size_t at = 0; at < json_array_size(node) && at < 6; at++) {
        json_t *kept = json_incref(json_array_get(node, at));
        for (size_t i = 0; i < sizeof odd_values / sizeof *odd_values; i++) {
            json_array_set_new(node, at, json_loads(odd_values[i], JSON_DECODE_ANY, NULL));
            exercise_json(whole);
        }
        json_array_set_new(node, at, kept);
        mutate(whole, kept);
    }
}

static const char *const mutated[] = {"llama3", "llama2", "first"};

START_TEST(test_mutated_values)
{
    json_t *json = describe(mutated[_i]);
    struct samkv_tokenizer *tokenizer;
    mutate(json, json);
    ck_assert_int_eq(load(json, &tokenizer), SAMKV_OK); /* as good as before */
    samkv_tokenizer_free(tokenizer);
    json_decref(json);
}
END_TEST

START_TEST(test_mutated_bytes)
{
    json_t *json = describe(mutated[_i]);
    char *text = json_dumps(json, JSON_COMPACT);
    size_t bytes = strlen(text);
    uint32_t seed = 99;
    for (size_t cut = 0; cut < bytes; cut += 1 + cut / 8) {
        char *exact = malloc(cut + 1); /* so that a sanitizer sees reads behind the end */
        memcpy(exact, text, cut);
        exercise(exact, cut);
        free(exact);
    }
    for (int round = 0; round < 400; round++) {
        char kept[4];
        size_t where[4];
        for (int i = 0; i < 4; i++) {
            seed = seed * 1664525 + 1013904223;
            where[i] = seed % bytes;
            kept[i] = text[where[i]];
            text[where[i]] = "0\"[]{},:9\\\xffn-"[(seed >> 24) % 13];
        }
        exercise(text, bytes);
        for (int i = 3; i >= 0; i--)
            text[where[i]] = kept[i];
    }
    free(text);
    json_decref(json);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tokenizer hostile");
    TCase *tests = tcase_create("hostile");
    tcase_add_checked_fixture(tests, load_cases, free_cases);
    tcase_set_timeout(tests, 200);
    tcase_add_loop_test(tests, test_long_runs, 0, 2);
    tcase_add_test(tests, test_long_word);
    tcase_add_test(tests, test_interpreter);
    tcase_add_test(tests, test_round_trip);
    tcase_add_test(tests, test_patterns_refused);
    tcase_add_loop_test(tests, test_pattern_gives_up, 0, 2);
    tcase_add_loop_test(tests, test_lies, 0, (int)(sizeof lies / sizeof *lies));
    tcase_add_loop_test(tests, test_mutated_values, 0, 3);
    tcase_add_loop_test(tests, test_mutated_bytes, 0, 3);
    suite_add_tcase(suite, tests);
    return run_tests(suite);
}
