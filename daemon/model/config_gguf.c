/* GGUF metadata → struct samkv_model_config. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "daemon/model/config.h"
#include "daemon/model/gguf.h"

struct architecture {
    const char *name;
    enum samkv_family family;
    bool qkv_bias, qk_norm;
    uint32_t no_rope_interval; /* every so many layers one is not rotated; 0: all are */
};

static const struct architecture architectures[] = {
    {.name = "llama", .family = SAMKV_FAMILY_LLAMA},
    {.name = "qwen2", .family = SAMKV_FAMILY_QWEN2, .qkv_bias = true},
    {.name = "qwen3", .family = SAMKV_FAMILY_QWEN3, .qk_norm = true},
    {.name = "smollm3", .family = SAMKV_FAMILY_SMOLLM3, .no_rope_interval = 4},
    {.name = "phi3", .family = SAMKV_FAMILY_PHI3},
};

/* Keys are "general.x" or, with the architecture in front, "llama.x". */
struct reader {
    const struct samkv_gguf *file;
    const char *architecture;
};

static const char *full_key(const struct reader *r, const char *key, char out[96])
{
    snprintf(out, 96, "%s.%s", r->architecture, key);
    return out;
}

static bool read_f64(const struct reader *r, const char *key, double *out)
{
    char full[96];
    return samkv_gguf_f64(r->file, full_key(r, key, full), out);
}

static bool text_is(const char *text, size_t bytes, const char *expected)
{
    return bytes == strlen(expected) && !memcmp(text, expected, bytes);
}

static enum samkv_status find_architecture(const struct samkv_gguf *file, const struct architecture **out,
                                           struct samkv_error *err)
{
    const char *name;
    size_t bytes;
    if (!samkv_gguf_string(file, "general.architecture", &name, &bytes))
        return samkv_fail(err, SAMKV_CORRUPT, "the file has no general.architecture");
    for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++) {
        if (text_is(name, bytes, architectures[i].name)) {
            *out = &architectures[i];
            return SAMKV_OK;
        }
    }
    return samkv_fail(err, SAMKV_UNSUPPORTED,
                      "GGUF architecture %.*s is not supported; llama, qwen2, qwen3, smollm3 and phi3 are",
                      (int)(bytes < 64 ? bytes : 64), name);
}

static bool has_tensor(const struct samkv_gguf *file, const char *name)
{
    struct samkv_gguf_tensor t;
    return samkv_gguf_tensor(file, name, &t, NULL) != SAMKV_NOT_FOUND;
}

static enum samkv_status read_sizes(const struct reader *r, struct samkv_model_config *c, struct samkv_error *err)
{
    struct {
        const char *key;
        uint32_t *out;
        bool optional;
    } const sizes[] = {
        {"block_count", &c->layers},
        {"embedding_length", &c->hidden},
        {"feed_forward_length", &c->ffn},
        {"attention.head_count", &c->heads},
        {"context_length", &c->context_tokens},
        {"attention.head_count_kv", &c->kv_heads, true},
        {"attention.key_length", &c->head_dim, true},
    };
    char key[96];
    struct samkv_gguf_array array;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint64_t v;
        full_key(r, sizes[i].key, key);
        if (samkv_gguf_array(r->file, key, &array))
            return samkv_fail(err, SAMKV_UNSUPPORTED, "%s differs from layer to layer, which is not supported", key);
        if (!samkv_gguf_u64(r->file, key, &v)) {
            if (sizes[i].optional)
                continue;
            return samkv_fail(err, SAMKV_CORRUPT, "the file has no %s", key);
        }
        if (v < 1 || v > INT32_MAX)
            return samkv_fail(err, SAMKV_INVALID, "%s is %llu", key, (unsigned long long)v);
        *sizes[i].out = (uint32_t)v;
    }
    if (!c->kv_heads)
        c->kv_heads = c->heads;
    if (!c->head_dim) {
        if (c->hidden % c->heads)
            return samkv_fail(err, SAMKV_INVALID, "the embedding length %u is no multiple of the head count %u",
                              c->hidden, c->heads);
        c->head_dim = c->hidden / c->heads;
    }
    return SAMKV_OK;
}

static enum samkv_status read_vocab(const struct reader *r, struct samkv_model_config *c, struct samkv_error *err)
{
    struct samkv_gguf_tensor embedding;
    enum samkv_status status = samkv_gguf_tensor(r->file, "token_embd.weight", &embedding, err);
    if (status == SAMKV_NOT_FOUND)
        return samkv_fail(err, SAMKV_CORRUPT, "tensor token_embd.weight is missing; the model is incomplete");
    if (status)
        return status;
    if (embedding.shape[1] > INT32_MAX)
        return samkv_fail(err, SAMKV_INVALID, "tensor token_embd.weight has %llu rows",
                          (unsigned long long)embedding.shape[1]);
    c->vocab = (uint32_t)embedding.shape[1];
    return SAMKV_OK;
}

/* Keys that change what the model computes, and the values that do not. */
static enum samkv_status refuse_extras(const struct reader *r, const struct samkv_model_config *c,
                                       struct samkv_error *err)
{
    const struct {
        const char *key;
        double neutral, also;
    } extras[] = {
        {"expert_count", 0, 0},
        {"attention.scale", 0, 1 / sqrt(c->head_dim)},
        {"logit_scale", 0, 1},
        {"embedding_scale", 0, 1},
        {"residual_scale", 0, 1},
        {"attention.causal", 1, 1},
        {"attention.clamp_kqv", 0, 0},
        {"attention.max_alibi_bias", 0, 0},
        {"attention.value_length", c->head_dim, c->head_dim},
        {"rope.dimension_count", c->head_dim, c->head_dim},
        {"rope.scaling.yarn_log_multiplier", 0, 0},
        {"rope.scaling.yarn_ext_factor", 1, -1}, /* the whole of YaRN, or as the type says */
    };
    for (size_t i = 0; i < sizeof extras / sizeof *extras; i++) {
        double v;
        if (!read_f64(r, extras[i].key, &v) || v == extras[i].neutral || fabs(v - extras[i].also) < 1e-6)
            continue;
        return samkv_fail(err, SAMKV_UNSUPPORTED, "%s.%s = %g is not supported", r->architecture, extras[i].key, v);
    }
    return SAMKV_OK;
}

/* llama3's scaling comes as a tensor of factors, one for each frequency. */
static enum samkv_status apply_factors(const struct reader *r, struct samkv_model_config *c, struct samkv_error *err)
{
    struct samkv_gguf_tensor t;
    enum samkv_status status = samkv_gguf_tensor(r->file, "rope_freqs.weight", &t, err);
    if (status == SAMKV_NOT_FOUND)
        return SAMKV_OK;
    if (status)
        return status;
    if (t.type != SAMKV_GGML_F32 || t.dims != 1 || t.shape[0] != c->head_dim / 2)
        return samkv_fail(err, SAMKV_CORRUPT, "tensor rope_freqs.weight must be F32 of shape (%u)", c->head_dim / 2);
    for (uint32_t i = 0; i < c->head_dim / 2; i++) {
        float factor;
        memcpy(&factor, (const uint8_t *)t.data + 4 * i, sizeof factor);
        if (!(factor > 0 && isfinite(factor)))
            return samkv_fail(err, SAMKV_CORRUPT, "tensor rope_freqs.weight has a factor that is not above 0");
        c->inv_freq[i] /= factor;
    }
    return SAMKV_OK;
}

/* llama.cpp multiplies an attention factor of the file with the one that the factor implies. */
static enum samkv_status rope_yarn(const struct reader *r, double theta, double factor, struct samkv_model_config *c,
                                   struct samkv_error *err)
{
    struct samkv_yarn y = {.theta = theta, .factor = factor, .original_tokens = c->context_tokens, .round = true};
    double attention = 1;
    (void)read_f64(r, "rope.scaling.original_context_length", &y.original_tokens);
    (void)read_f64(r, "rope.scaling.yarn_beta_fast", &y.beta_fast);
    (void)read_f64(r, "rope.scaling.yarn_beta_slow", &y.beta_slow);
    (void)read_f64(r, "rope.scaling.attn_factor", &attention); /* yarn_attn_factor has no effect there */
    enum samkv_status status = samkv_config_rope_yarn(c, &y, err);
    if (!status)
        c->rope_scale *= (float)attention; /* samkv_config_check sees what comes of it */
    return status;
}

static enum samkv_status read_rope(const struct reader *r, struct samkv_model_config *c, struct samkv_error *err)
{
    char key[96];
    double theta = 10000, factor = 1;
    (void)read_f64(r, "rope.freq_base", &theta);
    if (!(theta > 0 && isfinite(theta)))
        return samkv_fail(err, SAMKV_INVALID, "%s.rope.freq_base must be above 0", r->architecture);
    if (has_tensor(r->file, "rope_factors_long.weight"))
        return samkv_fail(err, SAMKV_UNSUPPORTED, "RoPE scaling type longrope is not supported; linear and yarn are");

    const char *type = "none";
    size_t bytes = 4;
    bool named = samkv_gguf_string(r->file, full_key(r, "rope.scaling.type", key), &type, &bytes);
    bool none = named && text_is(type, bytes, "none"), yarn = named && text_is(type, bytes, "yarn");
    if (named && !none && !yarn && !text_is(type, bytes, "linear"))
        return samkv_fail(err, SAMKV_UNSUPPORTED, "RoPE scaling type %.*s is not supported; linear and yarn are",
                          (int)(bytes < 64 ? bytes : 64), type);
    /* A factor without a type is linear, under its old name too. */
    if (!none && !read_f64(r, "rope.scaling.factor", &factor))
        (void)read_f64(r, "rope.scale_linear", &factor);
    if (factor == 0)
        factor = 1;
    if (!(factor > 0 && isfinite(factor)))
        return samkv_fail(err, SAMKV_INVALID, "%s.rope.scaling.factor must be above 0", r->architecture);
    if (yarn) {
        enum samkv_status status = rope_yarn(r, theta, factor, c, err);
        return status ? status : apply_factors(r, c, err);
    }
    samkv_config_rope_default(c, theta);
    for (uint32_t i = 0; i < c->head_dim / 2; i++)
        c->inv_freq[i] /= factor;
    return apply_factors(r, c, err);
}

/* Llama's and Phi-3's windows; llama.cpp gives Phi-3 files without the key none. */
static void read_window(const struct reader *r, struct samkv_model_config *c)
{
    double window = 0;
    if (read_f64(r, "attention.sliding_window", &window) && window >= 1 && window < c->context_tokens)
        c->window_tokens = (uint32_t)window;
}

static int32_t read_token(const struct samkv_gguf *file, const char *key, uint32_t vocab)
{
    uint64_t id;
    return samkv_gguf_u64(file, key, &id) && id < vocab ? (int32_t)id : -1;
}

enum samkv_status samkv_config_from_gguf(const struct samkv_gguf *file, struct samkv_model_config *out,
                                         struct samkv_error *err)
{
    *out = (struct samkv_model_config){0};
    const struct architecture *a = NULL;
    enum samkv_status status = find_architecture(file, &a, err);
    if (status)
        return status;
    struct reader r = {file, a->name};
    out->family = a->family;
    out->qk_norm = a->qk_norm;
    out->qkv_bias = a->qkv_bias || has_tensor(file, "blk.0.attn_q.bias");
    out->tied_embeddings = !has_tensor(file, "output.weight");
    if ((status = read_sizes(&r, out, err)) || (status = read_vocab(&r, out, err)) ||
        (status = refuse_extras(&r, out, err)))
        return status;
    read_window(&r, out);
    for (uint32_t i = 0; a->no_rope_interval && i < out->layers && i < SAMKV_MAX_LAYERS; i++) {
        out->no_rope[i] = (i + 1) % a->no_rope_interval == 0;
        out->any_no_rope |= out->no_rope[i];
    }
    double eps = 1e-6;
    if (!read_f64(&r, "attention.layer_norm_rms_epsilon", &eps))
        return samkv_fail(err, SAMKV_CORRUPT, "the file has no %s.attention.layer_norm_rms_epsilon", a->name);
    out->rms_eps = (float)eps;
    out->bos = read_token(file, "tokenizer.ggml.bos_token_id", out->vocab);
    out->eos = read_token(file, "tokenizer.ggml.eos_token_id", out->vocab);
    if (!samkv_config_head_dim_fits(out->head_dim))
        return samkv_config_check(out, err);
    status = read_rope(&r, out, err);
    return status ? status : samkv_config_check(out, err);
}
