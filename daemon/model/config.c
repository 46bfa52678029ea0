/* config.json of Hugging Face → struct samkv_model_config. Defaults are those of transformers' configuration classes.
 */
#include "daemon/model/config_json.h"

#include <string.h>

/* config.json is a few kilobytes; the cap bounds what the JSON parser can be made to allocate. */
#define MAX_CONFIG_BYTES (1u << 20)

struct family {
    const char *architecture, *model_type;
    enum samkv_family family;
    uint32_t head_dim; /* when config.json has none; 0: hidden / heads */
    uint32_t context_tokens;
    int32_t bos, eos;
    bool qkv_bias, qk_norm, tied;
    bool sliding_by_default; /* Mistral and Phi-3 slide unless told otherwise, Qwen only when told so */
    bool slides;
    uint32_t window;       /* when config.json has none; 0: no window */
    double full_layers;    /* the first layers that never slide, when config.json does not say */
    bool layers_skip_rope; /* no_rope_layers counts */
};

static const struct family families[] = {
    {.architecture = "LlamaForCausalLM", .model_type = "llama", .context_tokens = 2048, .bos = 1, .eos = 2},
    /* How the first conversions of Llama 1 wrote it. */
    {.architecture = "LLaMAForCausalLM", .model_type = "llama", .context_tokens = 2048, .bos = 1, .eos = 2},
    {.architecture = "MistralForCausalLM",
     .model_type = "mistral",
     .context_tokens = 131072,
     .bos = 1,
     .eos = 2,
     .slides = true,
     .sliding_by_default = true,
     .window = 4096},
    {.architecture = "Qwen2ForCausalLM",
     .model_type = "qwen2",
     .family = SAMKV_FAMILY_QWEN2,
     .context_tokens = 32768,
     .bos = -1,
     .eos = -1,
     .qkv_bias = true,
     .slides = true,
     .window = 4096,
     .full_layers = 28},
    {.architecture = "Qwen3ForCausalLM",
     .model_type = "qwen3",
     .family = SAMKV_FAMILY_QWEN3,
     .head_dim = 128,
     .context_tokens = 32768,
     .bos = -1,
     .eos = -1,
     .qk_norm = true,
     .slides = true,
     .window = 4096,
     .full_layers = 28},
    {.architecture = "SmolLM3ForCausalLM",
     .model_type = "smollm3",
     .family = SAMKV_FAMILY_SMOLLM3,
     .context_tokens = 32768,
     .bos = 128000,
     .eos = 128001,
     .tied = true,
     .slides = true,
     .layers_skip_rope = true},
    {.architecture = "Phi3ForCausalLM",
     .model_type = "phi3",
     .family = SAMKV_FAMILY_PHI3,
     .context_tokens = 4096,
     .bos = 1,
     .eos = 32000,
     .slides = true,
     .sliding_by_default = true},
};

/* A token id, or a list of them (the first counts). Ids outside of the vocabulary can never occur: none. */
static enum samkv_status read_token(const json_t *root, const char *key, int32_t missing, uint32_t vocab, int32_t *out,
                                    struct samkv_error *err)
{
    const json_t *v = json_object_get(root, key);
    *out = missing < (int64_t)vocab ? missing : -1;
    if (json_is_array(v))
        v = json_array_get(v, 0);
    else if (!v)
        return SAMKV_OK;
    if (v && !json_is_integer(v) && !json_is_null(v))
        return samkv_fail(err, SAMKV_INVALID, "config.json: %s must be a token id or a list of them", key);
    json_int_t id = v && json_is_integer(v) ? json_integer_value(v) : -1;
    *out = id >= 0 && id < vocab ? (int32_t)id : -1;
    return SAMKV_OK;
}

static enum samkv_status find_family(const json_t *root, const struct family **out, struct samkv_error *err)
{
    const char *architecture = json_string_value(json_array_get(samkv_json_value(root, "architectures"), 0));
    const char *type = json_string_value(samkv_json_value(root, "model_type"));
    if (!architecture && !type)
        return samkv_fail(err, SAMKV_INVALID, "config.json names neither architectures nor model_type");
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        const struct family *f = &families[i];
        bool found = architecture ? !strcmp(architecture, f->architecture) : !strcmp(type, f->model_type);
        if (!found)
            continue;
        if (type && strcmp(type, f->model_type))
            return samkv_fail(err, SAMKV_INVALID, "config.json: architecture %s and model_type %.64s disagree",
                              f->architecture, type);
        *out = f;
        return SAMKV_OK;
    }
    return samkv_fail(err, SAMKV_UNSUPPORTED,
                      "model architecture %.64s is not supported; LlamaForCausalLM, MistralForCausalLM, "
                      "Qwen2ForCausalLM, Qwen3ForCausalLM, SmolLM3ForCausalLM and Phi3ForCausalLM are",
                      architecture ? architecture : type);
}

static enum samkv_status read_sizes(const json_t *root, const struct family *family, struct samkv_model_config *c,
                                    struct samkv_error *err)
{
    struct {
        const char *key;
        uint32_t *out;
        bool optional;
    } const sizes[] = {
        {"num_hidden_layers", &c->layers},  {"hidden_size", &c->hidden},
        {"num_attention_heads", &c->heads}, {"intermediate_size", &c->ffn},
        {"vocab_size", &c->vocab},          {"num_key_value_heads", &c->kv_heads, true},
        {"head_dim", &c->head_dim, true},   {"max_position_embeddings", &c->context_tokens, true},
    };
    c->context_tokens = family->context_tokens;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        enum samkv_status status = samkv_json_u32(root, sizes[i].key, sizes[i].out, err);
        if (status)
            return status;
        if (!*sizes[i].out && !sizes[i].optional)
            return samkv_fail(err, SAMKV_INVALID, "config.json has no %s", sizes[i].key);
    }
    if (!c->kv_heads)
        c->kv_heads = c->heads;
    if (!c->head_dim)
        c->head_dim = family->head_dim;
    if (!c->head_dim) {
        if (c->hidden % c->heads)
            return samkv_fail(
                err, SAMKV_INVALID,
                "config.json: hidden_size %u is no multiple of num_attention_heads %u and there is no head_dim",
                c->hidden, c->heads);
        c->head_dim = c->hidden / c->heads;
    }
    return SAMKV_OK;
}

/* Whether layer_types has layers that slide; *given is false without the key. */
static enum samkv_status read_layer_types(const json_t *root, bool *given, bool *slide, struct samkv_error *err)
{
    const json_t *types = samkv_json_value(root, "layer_types"), *type;
    size_t i;
    *given = types != NULL;
    *slide = false;
    if (types && !json_is_array(types))
        return samkv_fail(err, SAMKV_INVALID, "config.json: layer_types must be a list");
    json_array_foreach(types, i, type)
    {
        const char *name = json_is_string(type) ? json_string_value(type) : "(no string)";
        if (!strcmp(name, "sliding_attention"))
            *slide = true;
        else if (strcmp(name, "full_attention"))
            return samkv_fail(err, SAMKV_UNSUPPORTED,
                              "layer type %.64s is not supported; full_attention and sliding_attention are", name);
    }
    return SAMKV_OK;
}

static enum samkv_status read_window(const json_t *root, const struct family *family, struct samkv_model_config *c,
                                     struct samkv_error *err)
{
    if (!family->slides)
        return SAMKV_OK;
    bool used = family->sliding_by_default, given = false, slide = false;
    uint32_t window = json_object_get(root, "sliding_window") ? 0 : family->window;
    double full_layers = family->full_layers;
    enum samkv_status status = samkv_json_u32(root, "sliding_window", &window, err);
    if (!status && !family->sliding_by_default) {
        status = samkv_json_bool(root, "use_sliding_window", &used, err);
        if (!status && family->full_layers > 0)
            status = samkv_json_number(root, "max_window_layers", &full_layers, err);
        if (!status)
            status = read_layer_types(root, &given, &slide, err);
    }
    if (status)
        return status;
    if (given ? !slide : full_layers >= c->layers)
        used = false;
    if (used && window && window < c->context_tokens)
        c->window_tokens = window;
    return SAMKV_OK;
}

/* SmolLM3: a list of 1 (rotated) and 0, or every so many layers one that is not. */
static enum samkv_status read_no_rope(const json_t *root, const struct family *family, struct samkv_model_config *c,
                                      struct samkv_error *err)
{
    if (!family->layers_skip_rope)
        return SAMKV_OK;
    if (c->layers > SAMKV_MAX_LAYERS)
        return samkv_config_check(c, err);
    uint32_t interval = 4;
    const json_t *list = samkv_json_value(root, "no_rope_layers");
    enum samkv_status status = samkv_json_u32(root, "no_rope_layer_interval", &interval, err);
    if (status)
        return status;
    if (list && (!json_is_array(list) || json_array_size(list) != c->layers))
        return samkv_fail(err, SAMKV_INVALID, "config.json: no_rope_layers must be a list of %u numbers", c->layers);
    for (uint32_t i = 0; i < c->layers; i++) {
        const json_t *rotated = json_array_get(list, i);
        if (list && (!json_is_integer(rotated) || json_integer_value(rotated) < 0 || json_integer_value(rotated) > 1))
            return samkv_fail(err, SAMKV_INVALID, "config.json: no_rope_layers must be a list of 0 and 1");
        c->no_rope[i] = list ? !json_integer_value(rotated) : (i + 1) % interval == 0;
        c->any_no_rope |= c->no_rope[i];
    }
    return SAMKV_OK;
}

/* What would change the result and is unknown here is refused by its name. */
static enum samkv_status refuse_extras(const json_t *root, struct samkv_error *err)
{
    static const char *const flags[][2] = {
        {"attention_bias", "a bias on o_proj"},
        {"mlp_bias", "biases in the MLP"},
    };
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        bool on = false;
        enum samkv_status status = samkv_json_bool(root, flags[i][0], &on, err);
        if (status)
            return status;
        if (on)
            return samkv_fail(err, SAMKV_UNSUPPORTED, "%s (%s) is not supported", flags[i][0], flags[i][1]);
    }
    const json_t *act = samkv_json_value(root, "hidden_act");
    if (act &&
        (!json_is_string(act) || (strcmp(json_string_value(act), "silu") && strcmp(json_string_value(act), "swish"))))
        return samkv_fail(err, SAMKV_UNSUPPORTED, "hidden_act %.64s is not supported, only silu",
                          json_is_string(act) ? json_string_value(act) : "(no string)");
    const json_t *quantised = samkv_json_value(root, "quantization_config");
    if (quantised) {
        const char *method = json_string_value(json_object_get(quantised, "quant_method"));
        return samkv_fail(
            err, SAMKV_UNSUPPORTED,
            "quantization_config (%.64s) is not supported; take the F32, F16 or BF16 weights, or a GGUF file",
            method ? method : "unnamed");
    }
    return SAMKV_OK;
}

static enum samkv_status read_config(const json_t *root, struct samkv_model_config *c, struct samkv_error *err)
{
    if (!json_is_object(root))
        return samkv_fail(err, SAMKV_INVALID, "config.json is not a JSON object");
    const struct family *family = NULL;
    enum samkv_status status = find_family(root, &family, err);
    if (status)
        return status;
    c->family = family->family;
    c->qkv_bias = family->qkv_bias;
    c->qk_norm = family->qk_norm;
    c->tied_embeddings = family->tied;

    double eps = family->family == SAMKV_FAMILY_PHI3 ? 1e-5 : 1e-6;
    if ((status = refuse_extras(root, err)) || (status = read_sizes(root, family, c, err)) ||
        (status = read_window(root, family, c, err)) || (status = read_no_rope(root, family, c, err)) ||
        (status = samkv_json_number(root, "rms_norm_eps", &eps, err)) ||
        (status = samkv_json_bool(root, "tie_word_embeddings", &c->tied_embeddings, err)) ||
        (status = read_token(root, "bos_token_id", family->bos, c->vocab, &c->bos, err)) ||
        (status = read_token(root, "eos_token_id", family->eos, c->vocab, &c->eos, err)))
        return status;
    c->rms_eps = (float)eps;
    if (!samkv_config_head_dim_fits(c->head_dim))
        return samkv_config_check(c, err);
    status = samkv_config_read_rope(root, c, err);
    return status ? status : samkv_config_check(c, err);
}

enum samkv_status samkv_config_from_json(const char *json, size_t bytes, struct samkv_model_config *out,
                                         struct samkv_error *err)
{
    *out = (struct samkv_model_config){0};
    if (bytes > MAX_CONFIG_BYTES)
        return samkv_fail(err, SAMKV_TOO_LARGE, "config.json has %zu bytes, more than the %u that are read", bytes,
                          MAX_CONFIG_BYTES);
    json_error_t why;
    json_t *root = json_loadb(json, bytes, 0, &why);
    if (!root)
        return samkv_fail(err, SAMKV_INVALID, "config.json: %s in line %d", why.text, why.line);
    enum samkv_status status = read_config(root, out, err);
    json_decref(root);
    return status;
}
