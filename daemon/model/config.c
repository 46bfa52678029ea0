/* config.json of Hugging Face → struct samkv_model_config. Defaults are those of transformers' configuration classes.
 */
#include "daemon/model/config.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

/* config.json is a few kilobytes; the cap bounds what the JSON parser can be made to allocate. */
#define MAX_CONFIG_BYTES (1u << 20)

struct family {
    const char *architecture, *model_type;
    enum samkv_family family;
    uint32_t head_dim; /* when config.json has none; 0: hidden / heads */
    uint32_t context_tokens;
    int32_t bos, eos;
    bool qkv_bias, qk_norm;
    bool sliding_by_default; /* Mistral slides unless told otherwise, Qwen only when told so */
    bool slides;
};

static const struct family families[] = {
    {.architecture = "LlamaForCausalLM", .model_type = "llama", .context_tokens = 2048, .bos = 1, .eos = 2},
    {.architecture = "MistralForCausalLM",
     .model_type = "mistral",
     .context_tokens = 131072,
     .bos = 1,
     .eos = 2,
     .slides = true,
     .sliding_by_default = true},
    {.architecture = "Qwen2ForCausalLM",
     .model_type = "qwen2",
     .family = SAMKV_FAMILY_QWEN2,
     .context_tokens = 32768,
     .bos = -1,
     .eos = -1,
     .qkv_bias = true,
     .slides = true},
    {.architecture = "Qwen3ForCausalLM",
     .model_type = "qwen3",
     .family = SAMKV_FAMILY_QWEN3,
     .head_dim = 128,
     .context_tokens = 32768,
     .bos = -1,
     .eos = -1,
     .qk_norm = true,
     .slides = true},
};

/* A key's value; NULL when it is missing or null, which Hugging Face treats alike. */
static const json_t *value(const json_t *object, const char *key)
{
    const json_t *v = json_object_get(object, key);
    return v && !json_is_null(v) ? v : NULL;
}

/* *out stays what it is (the default) when the key is missing. */
static enum samkv_status read_u32(const json_t *root, const char *key, uint32_t *out, struct samkv_error *err)
{
    const json_t *v = value(root, key);
    if (!v)
        return SAMKV_OK;
    if (!json_is_integer(v) || json_integer_value(v) < 1 || json_integer_value(v) > INT32_MAX)
        return samkv_fail(err, SAMKV_INVALID, "config.json: %s must be an integer from 1 to %d", key, INT32_MAX);
    *out = (uint32_t)json_integer_value(v);
    return SAMKV_OK;
}

static enum samkv_status read_bool(const json_t *root, const char *key, bool *out, struct samkv_error *err)
{
    const json_t *v = value(root, key);
    if (!v)
        return SAMKV_OK;
    if (!json_is_boolean(v))
        return samkv_fail(err, SAMKV_INVALID, "config.json: %s must be true or false", key);
    *out = json_is_true(v);
    return SAMKV_OK;
}

static enum samkv_status read_number(const json_t *root, const char *key, double *out, struct samkv_error *err)
{
    const json_t *v = value(root, key);
    if (!v)
        return SAMKV_OK;
    if (!json_is_number(v))
        return samkv_fail(err, SAMKV_INVALID, "config.json: %s must be a number", key);
    *out = json_number_value(v);
    return SAMKV_OK;
}

/* A token id, or a list of them (the first counts). Ids outside of the vocabulary can never occur: none. */
static enum samkv_status read_token(const json_t *root, const char *key, uint32_t vocab, int32_t *out,
                                    struct samkv_error *err)
{
    const json_t *v = json_object_get(root, key);
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
    const char *architecture = json_string_value(json_array_get(value(root, "architectures"), 0));
    const char *type = json_string_value(value(root, "model_type"));
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
                      "Qwen2ForCausalLM and Qwen3ForCausalLM are",
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
        enum samkv_status status = read_u32(root, sizes[i].key, sizes[i].out, err);
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

static enum samkv_status refuse_sliding_window(const json_t *root, const struct family *family,
                                               const struct samkv_model_config *c, struct samkv_error *err)
{
    if (!family->slides)
        return SAMKV_OK;
    bool used = family->sliding_by_default;
    uint32_t window = json_object_get(root, "sliding_window") ? 0 : 4096;
    double full_layers = family->sliding_by_default ? 0 : 28;
    enum samkv_status status = read_u32(root, "sliding_window", &window, err);
    if (!status && !family->sliding_by_default)
        status = read_bool(root, "use_sliding_window", &used, err);
    if (!status && !family->sliding_by_default)
        status = read_number(root, "max_window_layers", &full_layers, err);
    if (status)
        return status;
    if (!used || !window || window >= c->context_tokens || full_layers >= c->layers)
        return SAMKV_OK;
    return samkv_fail(
        err, SAMKV_UNSUPPORTED,
        "sliding_window %u is smaller than the context of %u tokens; attention with a sliding window is not "
        "supported: lower max_position_embeddings to the window, or set it to null if the model was trained "
        "without",
        window, c->context_tokens);
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
        enum samkv_status status = read_bool(root, flags[i][0], &on, err);
        if (status)
            return status;
        if (on)
            return samkv_fail(err, SAMKV_UNSUPPORTED, "%s (%s) is not supported", flags[i][0], flags[i][1]);
    }
    const json_t *act = value(root, "hidden_act");
    if (act &&
        (!json_is_string(act) || (strcmp(json_string_value(act), "silu") && strcmp(json_string_value(act), "swish"))))
        return samkv_fail(err, SAMKV_UNSUPPORTED, "hidden_act %.64s is not supported, only silu",
                          json_is_string(act) ? json_string_value(act) : "(no string)");
    const json_t *quantised = value(root, "quantization_config");
    if (quantised) {
        const char *method = json_string_value(json_object_get(quantised, "quant_method"));
        return samkv_fail(
            err, SAMKV_UNSUPPORTED,
            "quantization_config (%.64s) is not supported; take the F32, F16 or BF16 weights, or a GGUF file",
            method ? method : "unnamed");
    }
    return SAMKV_OK;
}

bool samkv_config_head_dim_fits(uint32_t head_dim)
{
    return head_dim >= 2 && head_dim <= SAMKV_MAX_HEAD_DIM && head_dim % 2 == 0;
}

void samkv_config_rope_default(struct samkv_model_config *c, double theta)
{
    for (uint32_t i = 0; i < c->head_dim / 2; i++)
        c->inv_freq[i] = 1.0 / pow(theta, 2.0 * i / c->head_dim);
    c->rope_scale = 1;
}

static enum samkv_status rope_linear(const json_t *rope, struct samkv_model_config *c, struct samkv_error *err)
{
    double factor = 0;
    enum samkv_status status = read_number(rope, "factor", &factor, err);
    if (status)
        return status;
    if (!(factor > 0 && isfinite(factor)))
        return samkv_fail(err, SAMKV_INVALID, "config.json: linear RoPE scaling needs a factor above 0");
    for (uint32_t i = 0; i < c->head_dim / 2; i++)
        c->inv_freq[i] /= factor;
    return SAMKV_OK;
}

/* Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between blended. */
static enum samkv_status rope_llama3(const json_t *root, const json_t *rope, struct samkv_model_config *c,
                                     struct samkv_error *err)
{
    double factor = 0, low = 0, high = 0, original = c->context_tokens;
    enum samkv_status status = read_number(rope, "factor", &factor, err);
    if (!status)
        status = read_number(rope, "low_freq_factor", &low, err);
    if (!status)
        status = read_number(rope, "high_freq_factor", &high, err);
    if (!status)
        status = read_number(rope, "original_max_position_embeddings", &original, err);
    if (!status) /* transformers gives the outer one precedence */
        status = read_number(root, "original_max_position_embeddings", &original, err);
    if (status)
        return status;
    if (!(factor > 0 && low >= 0 && high > low && original > 0 && isfinite(factor * high * original)))
        return samkv_fail(err, SAMKV_INVALID,
                          "config.json: llama3 RoPE scaling needs factor > 0, high_freq_factor > low_freq_factor >= 0 "
                          "and original_max_position_embeddings > 0");
    for (uint32_t i = 0; i < c->head_dim / 2; i++) {
        double f = c->inv_freq[i], wavelength = 2 * M_PI / f;
        double smooth = fmin(fmax((original / wavelength - low) / (high - low), 0), 1);
        c->inv_freq[i] = (1 - smooth) * f / factor + smooth * f;
    }
    return SAMKV_OK;
}

/* rope_theta stands in config.json itself (transformers 4), in the RoPE object (5), or in both with one value. */
static enum samkv_status read_theta(const json_t *root, const json_t *rope, double *theta, struct samkv_error *err)
{
    double outer = 0, inner = 0;
    enum samkv_status status = read_number(root, "rope_theta", &outer, err);
    if (!status)
        status = read_number(rope, "rope_theta", &inner, err);
    if (!status && !inner)
        status = read_number(value(root, "rope_parameters"), "rope_theta", &inner, err);
    if (status)
        return status;
    if (inner && outer && inner != outer)
        return samkv_fail(err, SAMKV_INVALID, "config.json gives two values for rope_theta, %g and %g", outer, inner);
    *theta = inner ? inner : outer ? outer : 10000;
    if (!(*theta > 0 && isfinite(*theta)))
        return samkv_fail(err, SAMKV_INVALID, "config.json: rope_theta must be above 0");
    return SAMKV_OK;
}

static enum samkv_status refuse_partial_rotary(const json_t *root, const json_t *rope, struct samkv_error *err)
{
    double part = 1;
    enum samkv_status status = read_number(root, "partial_rotary_factor", &part, err);
    if (!status)
        status = read_number(rope, "partial_rotary_factor", &part, err);
    if (status)
        return status;
    return part == 1 ? SAMKV_OK
                     : samkv_fail(err, SAMKV_UNSUPPORTED, "partial_rotary_factor %g is not supported, only 1", part);
}

static enum samkv_status read_rope(const json_t *root, struct samkv_model_config *c, struct samkv_error *err)
{
    const json_t *rope = value(root, "rope_scaling");
    if (!rope || (json_is_object(rope) && !json_object_size(rope)))
        rope = value(root, "rope_parameters");
    if (rope && !json_is_object(rope))
        return samkv_fail(err, SAMKV_INVALID, "config.json: rope_scaling and rope_parameters must be objects");
    const char *key;
    json_t *member;
    json_object_foreach((json_t *)rope, key, member) if (json_is_object(member)) return samkv_fail(
        err, SAMKV_UNSUPPORTED, "RoPE parameters for each layer type (%.64s) are not supported", key);

    double theta = 0;
    enum samkv_status status = read_theta(root, rope, &theta, err);
    if (!status)
        status = refuse_partial_rotary(root, rope, err);
    if (status)
        return status;
    samkv_config_rope_default(c, theta);

    const json_t *type = value(rope, "rope_type") ? value(rope, "rope_type") : value(rope, "type");
    const char *name = type ? json_string_value(type) : "default";
    if (!name)
        return samkv_fail(err, SAMKV_INVALID, "config.json: the RoPE type must be a string");
    if (!strcmp(name, "default"))
        return SAMKV_OK;
    if (!strcmp(name, "linear"))
        return rope_linear(rope, c, err);
    if (!strcmp(name, "llama3"))
        return rope_llama3(root, rope, c, err);
    return samkv_fail(err, SAMKV_UNSUPPORTED, "RoPE type %.64s is not supported; default, linear and llama3 are", name);
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
    c->bos = family->bos;
    c->eos = family->eos;

    double eps = 1e-6;
    if ((status = refuse_extras(root, err)) || (status = read_sizes(root, family, c, err)) ||
        (status = refuse_sliding_window(root, family, c, err)) ||
        (status = read_number(root, "rms_norm_eps", &eps, err)) ||
        (status = read_bool(root, "tie_word_embeddings", &c->tied_embeddings, err)) ||
        (status = read_token(root, "bos_token_id", c->vocab, &c->bos, err)) ||
        (status = read_token(root, "eos_token_id", c->vocab, &c->eos, err)))
        return status;
    c->rms_eps = (float)eps;
    if (!samkv_config_head_dim_fits(c->head_dim))
        return samkv_config_check(c, err);
    status = read_rope(root, c, err);
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
