/* RoPE of config.json: frequencies for each kind of scaling (transformers' modeling_rope_utils is the reference). */
#include <math.h>
#include <string.h>

#include "daemon/model/config_json.h"

const json_t *samkv_json_value(const json_t *object, const char *key)
{
    const json_t *v = json_object_get(object, key);
    return v && !json_is_null(v) ? v : NULL;
}

enum samkv_status samkv_json_u32(const json_t *root, const char *key, uint32_t *out, struct samkv_error *err)
{
    const json_t *v = samkv_json_value(root, key);
    if (!v)
        return SAMKV_OK;
    if (!json_is_integer(v) || json_integer_value(v) < 1 || json_integer_value(v) > INT32_MAX)
        return samkv_fail(err, SAMKV_INVALID, "config.json: %s must be an integer from 1 to %d", key, INT32_MAX);
    *out = (uint32_t)json_integer_value(v);
    return SAMKV_OK;
}

enum samkv_status samkv_json_bool(const json_t *root, const char *key, bool *out, struct samkv_error *err)
{
    const json_t *v = samkv_json_value(root, key);
    if (!v)
        return SAMKV_OK;
    if (!json_is_boolean(v))
        return samkv_fail(err, SAMKV_INVALID, "config.json: %s must be true or false", key);
    *out = json_is_true(v);
    return SAMKV_OK;
}

enum samkv_status samkv_json_number(const json_t *root, const char *key, double *out, struct samkv_error *err)
{
    const json_t *v = samkv_json_value(root, key);
    if (!v)
        return SAMKV_OK;
    if (!json_is_number(v))
        return samkv_fail(err, SAMKV_INVALID, "config.json: %s must be a number", key);
    *out = json_number_value(v);
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
    enum samkv_status status = samkv_json_number(rope, "factor", &factor, err);
    if (status)
        return status;
    if (!(factor > 0 && isfinite(factor)))
        return samkv_fail(err, SAMKV_INVALID, "config.json: linear RoPE scaling needs a factor above 0");
    for (uint32_t i = 0; i < c->head_dim / 2; i++)
        c->inv_freq[i] /= factor;
    return SAMKV_OK;
}

static enum samkv_status read_original(const json_t *root, const json_t *rope, double *out, struct samkv_error *err)
{
    enum samkv_status status = samkv_json_number(rope, "original_max_position_embeddings", out, err);
    /* transformers gives the outer one precedence */
    return status ? status : samkv_json_number(root, "original_max_position_embeddings", out, err);
}

/* Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between blended. */
static enum samkv_status rope_llama3(const json_t *root, const json_t *rope, struct samkv_model_config *c,
                                     struct samkv_error *err)
{
    double factor = 0, low = 0, high = 0, original = c->context_tokens;
    enum samkv_status status = samkv_json_number(rope, "factor", &factor, err);
    if (!status)
        status = samkv_json_number(rope, "low_freq_factor", &low, err);
    if (!status)
        status = samkv_json_number(rope, "high_freq_factor", &high, err);
    if (!status)
        status = read_original(root, rope, &original, err);
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

/* The pair whose wavelength fits `rotations` times into the original context. */
static double pair_of_rotations(const struct samkv_yarn *y, uint32_t head_dim, double rotations)
{
    return head_dim * log(y->original_tokens / (rotations * 2 * M_PI)) / (2 * log(y->theta));
}

enum samkv_status samkv_config_rope_yarn(struct samkv_model_config *c, const struct samkv_yarn *yarn,
                                         struct samkv_error *err)
{
    struct samkv_yarn y = *yarn;
    if (!(y.factor > 0 && y.original_tokens > 0 && y.beta_fast >= 0 && y.beta_slow >= 0 && y.attention_factor >= 0 &&
          y.theta > 0 && y.theta != 1 &&
          isfinite(y.theta + y.factor * y.original_tokens + y.beta_fast + y.beta_slow + y.attention_factor)))
        return samkv_fail(err, SAMKV_INVALID,
                          "yarn RoPE scaling needs a factor and an original context above 0, and no negative betas or "
                          "attention factor");
    double low = pair_of_rotations(&y, c->head_dim, y.beta_fast > 0 ? y.beta_fast : 32);
    double high = pair_of_rotations(&y, c->head_dim, y.beta_slow > 0 ? y.beta_slow : 1);
    if (y.round) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, c->head_dim - 1.0);
    if (low == high)
        high += 0.001; /* the reference's, so that nothing is divided by zero */
    samkv_config_rope_default(c, y.theta);
    for (uint32_t i = 0; i < c->head_dim / 2; i++) {
        double stretched = fmin(fmax((i - low) / (high - low), 0), 1);
        c->inv_freq[i] = c->inv_freq[i] / y.factor * stretched + c->inv_freq[i] * (1 - stretched);
    }
    double automatic = y.factor > 1 ? 0.1 * log(y.factor) + 1 : 1;
    c->rope_scale = (float)(y.attention_factor > 0 ? y.attention_factor : automatic);
    return SAMKV_OK;
}

static enum samkv_status rope_yarn(const json_t *root, const json_t *rope, double theta, struct samkv_model_config *c,
                                   struct samkv_error *err)
{
    struct samkv_yarn y = {.theta = theta, .original_tokens = c->context_tokens, .round = true};
    double mscale = 0, all_dim = 0;
    struct {
        const char *key;
        double *out;
    } const numbers[] = {
        {"beta_fast", &y.beta_fast}, {"beta_slow", &y.beta_slow},  {"attention_factor", &y.attention_factor},
        {"mscale", &mscale},         {"mscale_all_dim", &all_dim},
    };
    enum samkv_status status = read_original(root, rope, &y.original_tokens, err);
    y.factor = c->context_tokens / y.original_tokens;
    if (!status)
        status = samkv_json_number(rope, "factor", &y.factor, err);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers && !status; i++)
        status = samkv_json_number(rope, numbers[i].key, numbers[i].out, err);
    if (!status)
        status = samkv_json_bool(rope, "truncate", &y.round, err);
    if (status)
        return status;
    if (!samkv_json_value(rope, "attention_factor") && mscale != 0 && all_dim != 0 && y.factor > 1)
        y.attention_factor = (0.1 * mscale * log(y.factor) + 1) / (0.1 * all_dim * log(y.factor) + 1);
    return samkv_config_rope_yarn(c, &y, err);
}

/* rope_theta stands in config.json itself (transformers 4), in the RoPE object (5), or in both with one value. */
static enum samkv_status read_theta(const json_t *root, const json_t *rope, double missing, double *theta,
                                    struct samkv_error *err)
{
    double outer = 0, inner = 0;
    enum samkv_status status = samkv_json_number(root, "rope_theta", &outer, err);
    if (!status)
        status = samkv_json_number(rope, "rope_theta", &inner, err);
    if (!status && !inner)
        status = samkv_json_number(samkv_json_value(root, "rope_parameters"), "rope_theta", &inner, err);
    if (status)
        return status;
    if (inner && outer && inner != outer)
        return samkv_fail(err, SAMKV_INVALID, "config.json gives two values for rope_theta, %g and %g", outer, inner);
    *theta = inner ? inner : outer ? outer : missing;
    if (!(*theta > 0 && isfinite(*theta)))
        return samkv_fail(err, SAMKV_INVALID, "config.json: rope_theta must be above 0");
    return SAMKV_OK;
}

static enum samkv_status refuse_partial_rotary(const json_t *root, const json_t *rope, struct samkv_error *err)
{
    double part = 1;
    enum samkv_status status = samkv_json_number(root, "partial_rotary_factor", &part, err);
    if (!status)
        status = samkv_json_number(rope, "partial_rotary_factor", &part, err);
    if (status)
        return status;
    return part == 1 ? SAMKV_OK
                     : samkv_fail(err, SAMKV_UNSUPPORTED, "partial_rotary_factor %g is not supported, only 1", part);
}

enum samkv_status samkv_config_read_rope(const json_t *root, struct samkv_model_config *c, struct samkv_error *err)
{
    const json_t *rope = samkv_json_value(root, "rope_scaling");
    if (!rope || (json_is_object(rope) && !json_object_size(rope)))
        rope = samkv_json_value(root, "rope_parameters");
    if (rope && !json_is_object(rope))
        return samkv_fail(err, SAMKV_INVALID, "config.json: rope_scaling and rope_parameters must be objects");
    const char *key;
    json_t *member;
    json_object_foreach((json_t *)rope, key, member) if (json_is_object(member)) return samkv_fail(
        err, SAMKV_UNSUPPORTED, "RoPE parameters for each layer type (%.64s) are not supported", key);

    double theta = 0;
    enum samkv_status status = read_theta(root, rope, c->family == SAMKV_FAMILY_SMOLLM3 ? 2e6 : 1e4, &theta, err);
    if (!status)
        status = refuse_partial_rotary(root, rope, err);
    if (status)
        return status;
    samkv_config_rope_default(c, theta);

    const json_t *type =
        samkv_json_value(rope, "rope_type") ? samkv_json_value(rope, "rope_type") : samkv_json_value(rope, "type");
    const char *name = type ? json_string_value(type) : "default";
    if (!name)
        return samkv_fail(err, SAMKV_INVALID, "config.json: the RoPE type must be a string");
    if (!strcmp(name, "default"))
        return SAMKV_OK;
    if (c->family == SAMKV_FAMILY_PHI3) /* transformers takes all others for longrope here */
        return samkv_fail(err, SAMKV_UNSUPPORTED, "RoPE type %.64s is not supported for Phi-3, only default", name);
    if (!strcmp(name, "linear"))
        return rope_linear(rope, c, err);
    if (!strcmp(name, "llama3"))
        return rope_llama3(root, rope, c, err);
    if (!strcmp(name, "yarn"))
        return rope_yarn(root, rope, theta, c, err);
    return samkv_fail(err, SAMKV_UNSUPPORTED, "RoPE type %.64s is not supported; default, linear, llama3 and yarn are",
                      name);
}
