/* config.json: families, defaults, RoPE in its old and new form, and what is refused by name. */
#include <math.h>

#include "daemon/model/config.h"
#include "tests/unit/model_files.h"

#define SIZES                                                                                                          \
    "\"num_hidden_layers\":2,\"hidden_size\":32,\"num_attention_heads\":4,\"intermediate_size\":48,\"vocab_size\":64,"
#define LLAMA(more)   "{\"architectures\":[\"LlamaForCausalLM\"]," SIZES more "\"model_type\":\"llama\"}"
#define QWEN3(more)   "{\"architectures\":[\"Qwen3ForCausalLM\"]," SIZES more "\"model_type\":\"qwen3\"}"
#define QWEN2(more)   "{\"architectures\":[\"Qwen2ForCausalLM\"]," SIZES more "\"model_type\":\"qwen2\"}"
#define SMOLLM3(more) "{\"architectures\":[\"SmolLM3ForCausalLM\"]," SIZES more "\"model_type\":\"smollm3\"}"
#define PHI3(more)    "{\"architectures\":[\"Phi3ForCausalLM\"]," SIZES more "\"model_type\":\"phi3\"}"
#define MISTRAL(more) "{\"architectures\":[\"MistralForCausalLM\"]," SIZES more "\"model_type\":\"mistral\"}"

static struct samkv_error why;

static enum samkv_status parse(const char *json, struct samkv_model_config *c)
{
    why = (struct samkv_error){0};
    return samkv_config_from_json(json, strlen(json), c, &why);
}

static struct samkv_model_config good(const char *json)
{
    struct samkv_model_config c;
    enum samkv_status status = parse(json, &c);
    ck_assert_msg(status == SAMKV_OK, "%s: %s", json, why.text);
    return c;
}

START_TEST(test_llama_defaults)
{
    struct samkv_model_config c = good(LLAMA(""));
    ck_assert_int_eq(c.family, SAMKV_FAMILY_LLAMA);
    ck_assert_uint_eq(c.layers, 2);
    ck_assert_uint_eq(c.hidden, 32);
    ck_assert_uint_eq(c.heads, 4);
    ck_assert_uint_eq(c.kv_heads, 4);
    ck_assert_uint_eq(c.head_dim, 8);
    ck_assert_uint_eq(c.ffn, 48);
    ck_assert_uint_eq(c.vocab, 64);
    ck_assert_uint_eq(c.context_tokens, 2048);
    ck_assert(c.rms_eps == 1e-6f);
    ck_assert(!c.qkv_bias && !c.qk_norm && !c.tied_embeddings);
    ck_assert_int_eq(c.bos, 1);
    ck_assert_int_eq(c.eos, 2);
    ck_assert(c.inv_freq[0] == 1 && fabs(c.inv_freq[1] - 0.1) < 1e-16 && fabs(c.inv_freq[3] - 0.001) < 1e-18);
    ck_assert(c.rope_scale == 1);
}
END_TEST

START_TEST(test_families)
{
    struct samkv_model_config c = good(QWEN2("\"num_key_value_heads\":2,\"tie_word_embeddings\":true,"));
    ck_assert_int_eq(c.family, SAMKV_FAMILY_QWEN2);
    ck_assert(c.qkv_bias && !c.qk_norm && c.tied_embeddings);
    ck_assert_uint_eq(c.kv_heads, 2);
    ck_assert_uint_eq(c.head_dim, 8);
    ck_assert_int_eq(c.bos, -1);
    c = good(QWEN3(""));
    ck_assert_int_eq(c.family, SAMKV_FAMILY_QWEN3);
    ck_assert(!c.qkv_bias && c.qk_norm && !c.tied_embeddings);
    ck_assert_uint_eq(c.head_dim, 128);
    ck_assert_uint_eq(good(QWEN3("\"head_dim\":16,")).head_dim, 16);
    ck_assert_int_eq(good(MISTRAL("\"sliding_window\":null,")).family, SAMKV_FAMILY_LLAMA);
    ck_assert_int_eq(good("{\"architectures\":[\"LLaMAForCausalLM\"]," SIZES "\"model_type\":\"llama\"}").family,
                     SAMKV_FAMILY_LLAMA);
    ck_assert_int_eq(good(SMOLLM3("")).family, SAMKV_FAMILY_SMOLLM3);
    ck_assert_int_eq(good(PHI3("")).family, SAMKV_FAMILY_PHI3);
    ck_assert_int_eq(good("{" SIZES "\"model_type\":\"qwen2\"}").family, SAMKV_FAMILY_QWEN2);
}
END_TEST

START_TEST(test_tokens)
{
    struct samkv_model_config c = good(LLAMA("\"eos_token_id\":[7,9],\"bos_token_id\":null,"));
    ck_assert_int_eq(c.eos, 7);
    ck_assert_int_eq(c.bos, -1);
    c = good(LLAMA("\"eos_token_id\":64,\"bos_token_id\":63,"));
    ck_assert_int_eq(c.eos, -1);
    ck_assert_int_eq(c.bos, 63);
    ck_assert_int_eq(good(LLAMA("\"eos_token_id\":[],")).eos, -1);
}
END_TEST

static void check_freq(const char *json, const double want[4])
{
    struct samkv_model_config c = good(json);
    for (int i = 0; i < 4; i++)
        ck_assert_msg(fabs(c.inv_freq[i] - want[i]) <= 1e-14 * want[i], "%s: frequency %d is %.17g, not %.17g", json, i,
                      c.inv_freq[i], want[i]);
}

START_TEST(test_rope)
{
    const double base[4] = {1, 0.01, 1e-4, 1e-6}, linear[4] = {0.25, 0.0025, 2.5e-5, 2.5e-7};
    check_freq(LLAMA("\"rope_theta\":1e8,"), base);
    check_freq(LLAMA("\"rope_parameters\":{\"rope_theta\":100000000,\"rope_type\":\"default\"},"), base);
    check_freq(LLAMA("\"rope_theta\":1e8,\"rope_scaling\":null,\"rope_parameters\":{\"rope_theta\":1e8},"), base);
    check_freq(LLAMA("\"rope_theta\":1e8,\"rope_scaling\":{\"type\":\"linear\",\"factor\":4},"), linear);
    check_freq(LLAMA("\"rope_parameters\":{\"rope_theta\":1e8,\"rope_type\":\"linear\",\"factor\":4.0},"), linear);
    /* What the specification's NumPy model computes: one frequency kept, one blended, two stretched. */
    const double llama3[4] = {1, 0.042751178754307596, 0.00125, 0.000125};
#define LLAMA3                                                                                                         \
    "\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"                        \
    "\"original_max_position_embeddings\":128"
    check_freq(LLAMA("\"rope_scaling\":{" LLAMA3 "},"), llama3);
    check_freq(LLAMA("\"rope_parameters\":{\"rope_theta\":10000.0," LLAMA3 "},"), llama3);
}
END_TEST

static const struct {
    const char *json;
    enum samkv_status status;
    const char *named; /* what the error must say */
} bad[] = {
    {"", SAMKV_INVALID, "config.json"},
    {"[]", SAMKV_INVALID, "object"},
    {"{}", SAMKV_INVALID, "architectures"},
    {"{\"architectures\":[\"GPT2LMHeadModel\"]}", SAMKV_UNSUPPORTED, "GPT2LMHeadModel"},
    {"{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"qwen2\"}", SAMKV_INVALID, "qwen2"},
    {"{\"model_type\":\"llama\"}", SAMKV_INVALID, "num_hidden_layers"},
    {LLAMA("\"head_dim\":7,"), SAMKV_INVALID, "7"},
    {LLAMA("\"head_dim\":1024,"), SAMKV_INVALID, "1024"},
    {LLAMA("\"head_dim\":-8,"), SAMKV_INVALID, "head_dim"},
    {LLAMA("\"head_dim\":8.5,"), SAMKV_INVALID, "head_dim"},
    {LLAMA("\"num_key_value_heads\":3,"), SAMKV_INVALID, "3"},
    {LLAMA("\"num_key_value_heads\":0,"), SAMKV_INVALID, "num_key_value_heads"},
    {LLAMA("\"num_hidden_layers\":513,"), SAMKV_INVALID, "513"},
    {LLAMA("\"num_hidden_layers\":99999999999999999999,"), SAMKV_INVALID, "config.json"},
    {LLAMA("\"vocab_size\":2147483647,"), SAMKV_INVALID, "2147483647"},
    {LLAMA("\"vocab_size\":\"64\","), SAMKV_INVALID, "vocab_size"},
    {LLAMA("\"num_attention_heads\":5,"), SAMKV_INVALID, "hidden_size"},
    {LLAMA("\"hidden_act\":\"gelu\","), SAMKV_UNSUPPORTED, "gelu"},
    {LLAMA("\"attention_bias\":true,"), SAMKV_UNSUPPORTED, "o_proj"},
    {LLAMA("\"mlp_bias\":true,"), SAMKV_UNSUPPORTED, "mlp_bias"},
    {LLAMA("\"mlp_bias\":1,"), SAMKV_INVALID, "mlp_bias"},
    {LLAMA("\"quantization_config\":{\"quant_method\":\"gptq\"},"), SAMKV_UNSUPPORTED, "gptq"},
    {LLAMA("\"rms_norm_eps\":-1,"), SAMKV_INVALID, "epsilon"},
    {LLAMA("\"rms_norm_eps\":\"1\","), SAMKV_INVALID, "rms_norm_eps"},
    {LLAMA("\"eos_token_id\":\"x\","), SAMKV_INVALID, "eos_token_id"},
    {LLAMA("\"rope_theta\":0.0,\"rope_scaling\":{\"type\":\"longrope\",\"factor\":4},"), SAMKV_UNSUPPORTED, "longrope"},
    {LLAMA("\"rope_scaling\":{\"type\":\"yarn\",\"factor\":-4},"), SAMKV_INVALID, "yarn"},
    {LLAMA("\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,\"beta_fast\":-1},"), SAMKV_INVALID, "yarn"},
    {LLAMA("\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,\"truncate\":1},"), SAMKV_INVALID, "truncate"},
    {LLAMA("\"rope_scaling\":{\"type\":\"yarn\",\"original_max_position_embeddings\":0},"), SAMKV_INVALID, "yarn"},
    {LLAMA("\"rope_scaling\":{\"rope_type\":\"dynamic\",\"factor\":4},"), SAMKV_UNSUPPORTED, "dynamic"},
    {LLAMA("\"rope_scaling\":{\"rope_type\":\"linear\"},"), SAMKV_INVALID, "factor"},
    {LLAMA("\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":-1},"), SAMKV_INVALID, "factor"},
    {LLAMA("\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8},"), SAMKV_INVALID, "high_freq_factor"},
    {LLAMA("\"rope_scaling\":{\"rope_type\":3},"), SAMKV_INVALID, "RoPE type"},
    {LLAMA("\"rope_scaling\":[],"), SAMKV_INVALID, "objects"},
    {LLAMA("\"rope_parameters\":{\"full_attention\":{\"rope_theta\":1}},"), SAMKV_UNSUPPORTED, "full_attention"},
    {LLAMA("\"rope_theta\":5.0,\"rope_parameters\":{\"rope_theta\":6.0},"), SAMKV_INVALID, "two values"},
    {LLAMA("\"rope_theta\":-5.0,"), SAMKV_INVALID, "rope_theta"},
    {LLAMA("\"rope_theta\":1e-300,"), SAMKV_INVALID, "frequencies"},
    {LLAMA("\"partial_rotary_factor\":0.5,"), SAMKV_UNSUPPORTED, "partial_rotary_factor"},
    {MISTRAL("\"sliding_window\":-1,"), SAMKV_INVALID, "sliding_window"},
    {QWEN2("\"use_sliding_window\":1,"), SAMKV_INVALID, "use_sliding_window"},
    {QWEN2("\"layer_types\":[\"full_attention\",\"chunked_attention\"],"), SAMKV_UNSUPPORTED, "chunked_attention"},
    {QWEN2("\"layer_types\":[3],"), SAMKV_UNSUPPORTED, "layer type"},
    {QWEN2("\"layer_types\":3,"), SAMKV_INVALID, "layer_types"},
    {SMOLLM3("\"no_rope_layers\":[1],"), SAMKV_INVALID, "no_rope_layers"},
    {SMOLLM3("\"no_rope_layers\":[1,2],"), SAMKV_INVALID, "no_rope_layers"},
    {SMOLLM3("\"no_rope_layers\":[1,null],"), SAMKV_INVALID, "no_rope_layers"},
    {SMOLLM3("\"no_rope_layer_interval\":0,"), SAMKV_INVALID, "no_rope_layer_interval"},
    {PHI3("\"rope_scaling\":{\"type\":\"longrope\"},"), SAMKV_UNSUPPORTED, "longrope"},
    {PHI3("\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4},"), SAMKV_UNSUPPORTED, "yarn"},
    {PHI3("\"partial_rotary_factor\":0.75,"), SAMKV_UNSUPPORTED, "partial_rotary_factor"},
};

START_TEST(test_refusals)
{
    struct samkv_model_config c;
    enum samkv_status status = parse(bad[_i].json, &c);
    ck_assert_msg(status == bad[_i].status, "%s gave %s: %s", bad[_i].json, samkv_status_name(status), why.text);
    ck_assert_msg(strstr(why.text, bad[_i].named) && !strchr(why.text, '\n'), "%s is not named: %s", bad[_i].named,
                  why.text);
}
END_TEST

/* What slides, and what only looks so. */
static const struct {
    const char *json;
    uint32_t window;
} windows[] = {
    {MISTRAL(""), 4096},
    {MISTRAL("\"sliding_window\":512,"), 512},
    {MISTRAL("\"sliding_window\":null,"), 0},
    {MISTRAL("\"sliding_window\":4096,\"max_position_embeddings\":4096,"), 0},
    {QWEN2(""), 0},
    {QWEN2("\"use_sliding_window\":false,\"sliding_window\":512,"), 0},
    {QWEN2("\"use_sliding_window\":true,\"sliding_window\":512,\"max_window_layers\":2,"), 0},
    {QWEN2("\"use_sliding_window\":true,\"sliding_window\":512,\"max_window_layers\":1,"), 512},
    {QWEN2("\"use_sliding_window\":true,\"sliding_window\":512,"
           "\"layer_types\":[\"full_attention\",\"full_attention\"],"),
     0},
    {QWEN2("\"use_sliding_window\":true,\"sliding_window\":512,"
           "\"layer_types\":[\"full_attention\",\"sliding_attention\"],"),
     512},
    {LLAMA("\"sliding_window\":16,"), 0},
    {PHI3(""), 0},
    {PHI3("\"sliding_window\":2047,"), 2047},
    {SMOLLM3("\"sliding_window\":512,"), 0},
};

START_TEST(test_sliding_window)
{
    struct samkv_model_config c = good(windows[_i].json);
    ck_assert_uint_eq(c.window_tokens, windows[_i].window);
    ck_assert_uint_eq(samkv_config_most_tokens(&c), windows[_i].window ? windows[_i].window : c.context_tokens);
}
END_TEST

/* SmolLM3 leaves out every fourth layer's rotation, or those that a list names. */
START_TEST(test_layers_without_rope)
{
    struct samkv_model_config c = good(SMOLLM3("\"no_rope_layer_interval\":2,"));
    ck_assert(!c.no_rope[0] && c.no_rope[1] && c.any_no_rope && c.tied_embeddings);
    ck_assert_int_eq(c.bos, -1); /* 128000 is outside of this vocabulary */
    c = good(SMOLLM3("\"no_rope_layers\":[0,1],"));
    ck_assert(c.no_rope[0] && !c.no_rope[1] && c.any_no_rope);
    c = good(SMOLLM3(""));
    ck_assert(!c.no_rope[0] && !c.no_rope[1] && !c.any_no_rope);
    ck_assert(fabs(c.inv_freq[1] * pow(2e6, 0.25) - 1) < 1e-12);
    c = good(LLAMA("\"no_rope_layers\":[0,0],"));
    ck_assert(!c.any_no_rope);
}
END_TEST

/* transformers 5.24's _compute_yarn_parameters for head_dim 8, theta 1e4, 64 original positions, factor 4. */
START_TEST(test_yarn)
{
    const double want[4] = {1, 0.0625, 0.0025, 0.00025};
    check_freq(LLAMA("\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4,"
                     "\"original_max_position_embeddings\":64},"),
               want);
    struct samkv_model_config c = good(LLAMA("\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4,"
                                             "\"original_max_position_embeddings\":64},"));
    ck_assert(fabs(c.rope_scale - 1.1386294361119891) < 1e-6);
    c = good(LLAMA("\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4,\"attention_factor\":1.5},"));
    ck_assert(c.rope_scale == 1.5f);
    c = good(LLAMA("\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4,\"mscale\":2,\"mscale_all_dim\":1},"));
    ck_assert(fabs(c.rope_scale - 1.2772588722239781 / 1.1386294361119891) < 1e-6);
    c = good(LLAMA("\"rope_scaling\":{\"rope_type\":\"yarn\",\"original_max_position_embeddings\":512},"));
    ck_assert(fabs(c.rope_scale - 1.1386294361119891) < 1e-6); /* 2048 / 512 */
}
END_TEST

START_TEST(test_hostile_text)
{
    const char *whole = LLAMA("\"rope_scaling\":{" LLAMA3 "},");
    struct samkv_model_config c;
    for (size_t n = 0; n < strlen(whole); n++) {
        char *cut = malloc(n + 1);
        memcpy(cut, whole, n);
        ck_assert_int_eq(samkv_config_from_json(cut, n, &c, &why), SAMKV_INVALID);
        for (int byte = 0; byte < 256; byte += 51) { /* any status, no crash; what is accepted keeps the bounds */
            char *flipped = strdup(whole);
            flipped[n] = (char)byte;
            if (samkv_config_from_json(flipped, strlen(whole), &c, NULL) == SAMKV_OK)
                ck_assert_int_eq(samkv_config_check(&c, NULL), SAMKV_OK);
            free(flipped);
        }
        free(cut);
    }
    size_t deep = 1 << 18;
    char *nested = malloc(deep);
    memset(nested, '[', deep);
    ck_assert_int_eq(samkv_config_from_json(nested, deep, &c, &why), SAMKV_INVALID);
    free(nested);
    char *huge = calloc(1, 3u << 20);
    ck_assert_int_eq(samkv_config_from_json(huge, 3u << 20, &c, &why), SAMKV_TOO_LARGE);
    free(huge);
}
END_TEST

START_TEST(test_check)
{
    struct samkv_model_config ok = good(LLAMA("")), c;
    ck_assert_int_eq(samkv_config_check(&ok, &why), SAMKV_OK);
#define BREAK(change)                                                                                                  \
    c = ok;                                                                                                            \
    c.change;                                                                                                          \
    ck_assert_int_eq(samkv_config_check(&c, &why), SAMKV_INVALID)
    BREAK(layers = 0);
    BREAK(hidden = 1u << 31);
    BREAK(kv_heads = 3);
    BREAK(head_dim = 5);
    BREAK(ffn = UINT32_MAX);
    BREAK(vocab = 0);
    BREAK(context_tokens = UINT32_MAX);
    BREAK(rms_eps = NAN);
    BREAK(bos = 64);
    BREAK(eos = -2);
    BREAK(inv_freq[3] = INFINITY);
    BREAK(rope_scale = 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("config");
    TCase *cases = tcase_create("config");
    tcase_add_test(cases, test_llama_defaults);
    tcase_add_test(cases, test_families);
    tcase_add_test(cases, test_tokens);
    tcase_add_test(cases, test_rope);
    tcase_add_loop_test(cases, test_refusals, 0, (int)(sizeof bad / sizeof *bad));
    tcase_add_loop_test(cases, test_sliding_window, 0, (int)(sizeof windows / sizeof *windows));
    tcase_add_test(cases, test_layers_without_rope);
    tcase_add_test(cases, test_yarn);
    tcase_add_test(cases, test_hostile_text);
    tcase_add_test(cases, test_check);
    tcase_set_timeout(cases, 120);
    suite_add_tcase(suite, cases);
    return run_tests(suite);
}
