/* Bounds of a configuration, whatever it was read from. Everything computed from it afterwards relies on these. */
#include "daemon/model/config.h"

#include <math.h>

/* Wide enough for any model of these families; rows and columns fit an int, and a matrix's bytes 48 bits. */
#define MAX_HIDDEN  (1u << 16)
#define MAX_FFN     (1u << 19)
#define MAX_HEADS   1024u
#define MAX_VOCAB   (1u << 22)
#define MAX_CONTEXT (1u << 30)
#define MAX_QKV     (1u << 17)

/* Radians a token: 1 for the fastest pair of every known model. Times a position it must stay exact in float64. */
#define MAX_FREQUENCY 1e4

static enum samkv_status check_sizes(const struct samkv_model_config *c, struct samkv_error *err)
{
    struct {
        const char *name;
        uint32_t value, most;
    } const bounds[] = {
        {"number of layers", c->layers, SAMKV_MAX_LAYERS}, {"hidden size", c->hidden, MAX_HIDDEN},
        {"number of heads", c->heads, MAX_HEADS},          {"number of KV heads", c->kv_heads, MAX_HEADS},
        {"head size", c->head_dim, SAMKV_MAX_HEAD_DIM},    {"MLP size", c->ffn, MAX_FFN},
        {"vocabulary size", c->vocab, MAX_VOCAB},          {"context", c->context_tokens, MAX_CONTEXT},
    };
    for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++)
        if (bounds[i].value < 1 || bounds[i].value > bounds[i].most)
            return samkv_fail(err, SAMKV_INVALID, "the model's %s is %u, outside of 1 to %u", bounds[i].name,
                              bounds[i].value, bounds[i].most);
    return SAMKV_OK;
}

uint32_t samkv_config_most_tokens(const struct samkv_model_config *c)
{
    return c->window_tokens && c->window_tokens < c->context_tokens ? c->window_tokens : c->context_tokens;
}

enum samkv_status samkv_config_check(const struct samkv_model_config *c, struct samkv_error *err)
{
    enum samkv_status status = check_sizes(c, err);
    if (status)
        return status;
    if (!samkv_config_head_dim_fits(c->head_dim))
        return samkv_fail(err, SAMKV_INVALID, "the model's head size %u is odd; RoPE needs pairs", c->head_dim);
    if (c->heads % c->kv_heads)
        return samkv_fail(err, SAMKV_INVALID, "the model's %u heads are no multiple of its %u KV heads", c->heads,
                          c->kv_heads);
    if (c->heads * c->head_dim > MAX_QKV)
        return samkv_fail(err, SAMKV_INVALID, "the model's %u heads of %u elements are more than %u", c->heads,
                          c->head_dim, MAX_QKV);
    if (!(c->rms_eps >= 0 && c->rms_eps < 1))
        return samkv_fail(err, SAMKV_INVALID, "the model's RMS norm epsilon is outside of 0 to 1");
    if (c->bos < -1 || c->eos < -1 || c->bos >= (int64_t)c->vocab || c->eos >= (int64_t)c->vocab)
        return samkv_fail(err, SAMKV_INVALID, "the model's BOS or EOS token is outside of its vocabulary");
    for (uint32_t i = 0; i < c->head_dim / 2; i++)
        if (!(c->inv_freq[i] >= 0 && c->inv_freq[i] <= MAX_FREQUENCY))
            return samkv_fail(err, SAMKV_INVALID, "the model's RoPE frequencies are not between 0 and %g",
                              MAX_FREQUENCY);
    if (!(c->rope_scale > 0 && isfinite(c->rope_scale)))
        return samkv_fail(err, SAMKV_INVALID, "the model's RoPE scale is not above 0");
    return SAMKV_OK;
}
