#pragma once
/* A transformer's hyper-parameters, from a Hugging Face config.json or a GGUF file's metadata. */
#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>

#include "proto/status.h"
#include "proto/tensor.h"

enum samkv_family {
    SAMKV_FAMILY_LLAMA,   /* Llama, Mistral, SmolLM2: nothing special */
    SAMKV_FAMILY_QWEN2,   /* bias on q, k, v */
    SAMKV_FAMILY_QWEN3,   /* RMS norm on q and k heads */
    SAMKV_FAMILY_SMOLLM3, /* some layers give Q and K no position */
    SAMKV_FAMILY_PHI3,    /* q, k and v in one matrix, gate and up in another */
};

#define SAMKV_MAX_LAYERS   512
#define SAMKV_MAX_HEAD_DIM 512

struct samkv_model_config {
    enum samkv_family family;
    uint32_t layers, hidden, heads, kv_heads, head_dim, ffn, vocab;
    uint32_t context_tokens; /* max_position_embeddings */
    uint32_t window_tokens;  /* of the sliding window: what a layer of it sees; 0: all layers see everything */
    float rms_eps;
    bool qkv_bias, qk_norm, tied_embeddings;
    bool no_rope[SAMKV_MAX_LAYERS]; /* layers whose Q and K are not rotated (NoPE) */
    bool any_no_rope;
    int32_t bos, eos;                        /* -1 when there is none */
    double inv_freq[SAMKV_MAX_HEAD_DIM / 2]; /* RoPE, scaling applied, float64 */
    float rope_scale;                        /* factor on cos and sin (YaRN); else 1 */
};

/* json: config.json's bytes. What is not supported (architecture, rope type, activation, sliding window, ...) gives
 * UNSUPPORTED with a text that names it; sizes out of bounds or contradictory give INVALID. */
enum samkv_status samkv_config_from_json(const char *json, size_t bytes, struct samkv_model_config *out,
                                         struct samkv_error *) SAMKV_MUST_USE;

/* Bounds and consistency, whatever the source: products cannot overflow, heads is a multiple of kv_heads, ... */
enum samkv_status samkv_config_check(const struct samkv_model_config *, struct samkv_error *) SAMKV_MUST_USE;

struct samkv_gguf;

/*
 * The same from a GGUF file's metadata: general.architecture llama, qwen2, qwen3, smollm3 or phi3. Sizes that the
 * metadata may leave out (vocabulary, bias, tied embeddings) come from the tensor table. Same statuses.
 */
enum samkv_status samkv_config_from_gguf(const struct samkv_gguf *, struct samkv_model_config *out,
                                         struct samkv_error *) SAMKV_MUST_USE;

/*
 * The most tokens that may stand behind each other: the context, or the sliding window where it is shorter. Attention
 * is computed over everything, which is the same as with the window as long as no sequence is longer than it.
 */
uint32_t samkv_config_most_tokens(const struct samkv_model_config *);

/* YaRN (Peng et al. 2023): zeros in beta_fast, beta_slow and attention_factor are the defaults 32, 1 and
 * 0.1 ln(factor) + 1. `round` widens the blended range to whole pairs, as the reference does. */
struct samkv_yarn {
    double theta, factor, original_tokens, beta_fast, beta_slow, attention_factor;
    bool round;
};

/* Fills inv_freq and rope_scale. INVALID with a text for sizes that are not above 0. */
enum samkv_status samkv_config_rope_yarn(struct samkv_model_config *, const struct samkv_yarn *,
                                         struct samkv_error *) SAMKV_MUST_USE;

/* Fills inv_freq with theta^(-2i/head_dim), rope_scale with 1. head_dim must have been checked. */
void samkv_config_rope_default(struct samkv_model_config *, double theta);

/* Whether head_dim is one that inv_freq has room for: even, 2 to SAMKV_MAX_HEAD_DIM. */
bool samkv_config_head_dim_fits(uint32_t head_dim);
