#pragma once
/*
 * A model ready to run: configuration, weights on a device, tokenizer, fingerprint.
 * Immutable once loaded; shared by all requests. Operations on its weights run on the device's lane only.
 */
#include <stdint.h>

#include "proto/status.h"
#include "proto/tensor.h"
#include "kernels/kernels.h"
#include "daemon/model/config.h"
#include "daemon/model/tokenizer.h"

/* Weights of one layer, on the device, in its activation type. Matrices are (out, in) row-major. */
struct samkv_layer {
    const void *attn_norm; /* [hidden] */
    const void *ffn_norm;  /* [hidden] */
    /* q, k, v follow each other in memory when `qkv_fused`: one product of ((heads + 2 kv_heads) · head_dim, hidden) */
    const void *wq, *wk, *wv;
    const void *bq, *bk, *bv;    /* NULL without bias; contiguous too when qkv_fused */
    const void *q_norm, *k_norm; /* [head_dim], NULL without */
    const void *wo;              /* (hidden, heads · head_dim) */
    /* gate then up follow each other in memory when `gate_up_fused`: (2 ffn, hidden) */
    const void *w_gate, *w_up;
    const void *w_down; /* (hidden, ffn) */
    bool qkv_fused, gate_up_fused;
};

struct samkv_model {
    char name[64];
    char path[4096];
    struct samkv_model_config config;
    struct samkv_device *device;         /* borrowed */
    const void *embedding;               /* (vocab, hidden) */
    const void *final_norm;              /* [hidden] */
    const void *lm_head;                 /* (vocab, hidden); the embedding itself when tied */
    struct samkv_layer *layers;          /* [config.layers] */
    struct samkv_tokenizer *tokenizer;   /* NULL when the directory has none (token ids only) */
    uint8_t fingerprint[16];             /* xxh3-128 over config, weights and tokenizer */
    uint64_t weight_bytes;               /* resident, in the form the device computes with */
    struct samkv_model_storage *storage; /* mappings and allocations behind the pointers; private to loading */
};

/*
 * path: a Hugging Face directory (config.json, model.safetensors or model.safetensors.index.json with its shards,
 * tokenizer.json if any) or a .gguf file. Weights that already have the device's type on a unified device are used in
 * place from the file's mapping; others are converted once, and the mapping is dropped. GGUF's Llama Q and K rows are
 * permuted back to HF's rotate-half order. Must run on the device's lane (or before it exists).
 */
enum samkv_status samkv_model_load(const char *name, const char *path, struct samkv_device *device,
                                   struct samkv_model **out, struct samkv_error *) SAMKV_MUST_USE;
void samkv_model_free(struct samkv_model *); /* NULL is allowed */

/* (layers, kv_heads, head_dim) with the given stored type. */
struct samkv_kv_shape samkv_model_kv_shape(const struct samkv_model *, enum samkv_dtype stored);
