/* A Hugging Face directory as a source of weights. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/model/fingerprint.h"
#include "daemon/model/gguf.h"
#include "daemon/model/mapping.h"
#include "daemon/model/safetensors.h"
#include "daemon/model/weights.h"

#define MAX_PATH_BYTES      4096
#define MAX_INDEX_BYTES     (4u << 20)
#define MAX_CONFIG_BYTES    (1u << 20)
#define MAX_TOKENIZER_BYTES (256u << 20)
#define MAX_SHARDS          1024

struct hf_source {
    struct samkv_source base;
    json_t *index; /* NULL for one file */
    struct shard {
        char *name; /* heap */
        struct samkv_safetensors *file;
    } * shards; /* [shard_count], by name */
    size_t shard_count;
};

static const char *const names[SAMKV_SLOTS] = {
    [SAMKV_SLOT_EMBEDDING] = "model.embed_tokens.weight",
    [SAMKV_SLOT_FINAL_NORM] = "model.norm.weight",
    [SAMKV_SLOT_LM_HEAD] = "lm_head.weight",
    [SAMKV_SLOT_ATTN_NORM] = "model.layers.%u.input_layernorm.weight",
    [SAMKV_SLOT_WQ] = "model.layers.%u.self_attn.q_proj.weight",
    [SAMKV_SLOT_WK] = "model.layers.%u.self_attn.k_proj.weight",
    [SAMKV_SLOT_WV] = "model.layers.%u.self_attn.v_proj.weight",
    [SAMKV_SLOT_BQ] = "model.layers.%u.self_attn.q_proj.bias",
    [SAMKV_SLOT_BK] = "model.layers.%u.self_attn.k_proj.bias",
    [SAMKV_SLOT_BV] = "model.layers.%u.self_attn.v_proj.bias",
    [SAMKV_SLOT_Q_NORM] = "model.layers.%u.self_attn.q_norm.weight",
    [SAMKV_SLOT_K_NORM] = "model.layers.%u.self_attn.k_norm.weight",
    [SAMKV_SLOT_WO] = "model.layers.%u.self_attn.o_proj.weight",
    [SAMKV_SLOT_FFN_NORM] = "model.layers.%u.post_attention_layernorm.weight",
    [SAMKV_SLOT_GATE] = "model.layers.%u.mlp.gate_proj.weight",
    [SAMKV_SLOT_UP] = "model.layers.%u.mlp.up_proj.weight",
    [SAMKV_SLOT_DOWN] = "model.layers.%u.mlp.down_proj.weight",
};

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct shard *)a)->name, ((const struct shard *)b)->name);
}

static const struct shard *shard_of(const struct hf_source *s, const char *tensor)
{
    if (!s->index)
        return s->shards;
    struct shard key = {.name = (char *)json_string_value(json_object_get(s->index, tensor))};
    return key.name ? bsearch(&key, s->shards, s->shard_count, sizeof key, by_name) : NULL;
}

static enum samkv_status lookup(const struct samkv_source *base, const char *name, struct samkv_raw_tensor *out,
                                struct samkv_error *err)
{
    static const uint32_t types[] = {
        [SAMKV_F32] = SAMKV_GGML_F32, [SAMKV_F16] = SAMKV_GGML_F16, [SAMKV_BF16] = SAMKV_GGML_BF16};
    const struct shard *shard = shard_of((const struct hf_source *)base, name);
    struct samkv_tensor_view view;
    enum samkv_status status = shard ? samkv_safetensors_find(shard->file, name, &view, err) : SAMKV_NOT_FOUND;
    if (status)
        return status;
    *out = (struct samkv_raw_tensor){.data = view.data, .type = types[view.dtype], .dims = view.dims};
    memcpy(out->shape, view.shape, sizeof out->shape);
    return SAMKV_OK;
}

static void close_hf(struct samkv_source *base)
{
    struct hf_source *s = (struct hf_source *)base;
    for (size_t i = 0; i < s->shard_count; i++) {
        samkv_safetensors_close(s->shards[i].file);
        free(s->shards[i].name);
    }
    free(s->shards);
    json_decref(s->index);
    samkv_tokenizer_free(base->tokenizer);
    free(s);
}

static const struct samkv_source_ops ops = {
    .names = names,
    .qkv_name = "model.layers.%u.self_attn.qkv_proj.weight",
    .gate_up_name = "model.layers.%u.mlp.gate_up_proj.weight",
    .lookup = lookup,
    .close = close_hf,
};

static enum samkv_status join(const char *directory, const char *file, char out[MAX_PATH_BYTES],
                              struct samkv_error *err)
{
    int n = snprintf(out, MAX_PATH_BYTES, "%s/%s", directory, file);
    return n > 0 && n < MAX_PATH_BYTES ? SAMKV_OK : samkv_fail(err, SAMKV_INVALID, "the path of the model is too long");
}

static bool exists(const char *directory, const char *file)
{
    char path[MAX_PATH_BYTES];
    return join(directory, file, path, NULL) == SAMKV_OK && !access(path, F_OK);
}

static enum samkv_status map_file(const char *directory, const char *file, size_t max_bytes, struct samkv_mapping *out,
                                  struct samkv_error *err)
{
    char path[MAX_PATH_BYTES];
    enum samkv_status status = join(directory, file, path, err);
    return status ? status : samkv_mapping_open(path, max_bytes, out, err);
}

static enum samkv_status read_config(struct hf_source *s, const char *directory, struct samkv_fingerprint *f,
                                     struct samkv_error *err)
{
    struct samkv_mapping m;
    enum samkv_status status = map_file(directory, "config.json", MAX_CONFIG_BYTES, &m, err);
    if (status)
        return status;
    samkv_fingerprint_add(f, m.data, m.bytes);
    status = samkv_config_from_json((const char *)m.data, m.bytes, &s->base.config, err);
    samkv_mapping_close(&m);
    return status;
}

static enum samkv_status read_tokenizer(struct hf_source *s, const char *directory, struct samkv_fingerprint *f,
                                        struct samkv_error *err)
{
    if (!exists(directory, "tokenizer.json"))
        return SAMKV_OK;
    struct samkv_mapping m;
    enum samkv_status status = map_file(directory, "tokenizer.json", MAX_TOKENIZER_BYTES, &m, err);
    if (status)
        return status;
    samkv_fingerprint_add(f, m.data, m.bytes);
    status = samkv_tokenizer_from_json((const char *)m.data, m.bytes, &s->base.tokenizer, err);
    samkv_mapping_close(&m);
    return status;
}

/* A shard is a file of the directory itself: an index must not lead the daemon to other places. */
static bool is_plain_name(const char *name)
{
    return name && *name && strlen(name) < 256 && !strchr(name, '/') && strcmp(name, ".") && strcmp(name, "..");
}

static enum samkv_status add_shard(struct hf_source *s, const char *name, struct samkv_error *err)
{
    for (size_t i = 0; i < s->shard_count; i++)
        if (!strcmp(s->shards[i].name, name))
            return SAMKV_OK;
    if (s->shard_count == MAX_SHARDS)
        return samkv_fail(err, SAMKV_TOO_LARGE, "the model has more than %d shards", MAX_SHARDS);
    if (!s->shards && !(s->shards = calloc(MAX_SHARDS, sizeof *s->shards)))
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for the list of shards");
    s->shards[s->shard_count].name = strdup(name);
    if (!s->shards[s->shard_count].name)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for the list of shards");
    s->shard_count++;
    return SAMKV_OK;
}

static enum samkv_status read_index(struct hf_source *s, const struct samkv_mapping *m, struct samkv_error *err)
{
    static const char file[] = "model.safetensors.index.json";
    json_error_t why;
    json_t *root = json_loadb((const char *)m->data, m->bytes, JSON_REJECT_DUPLICATES, &why);
    if (!root)
        return samkv_fail(err, SAMKV_CORRUPT, "%s: %.128s in line %d", file, why.text, why.line);
    s->index = json_incref(json_object_get(root, "weight_map"));
    json_decref(root);
    if (!json_is_object(s->index) || !json_object_size(s->index))
        return samkv_fail(err, SAMKV_CORRUPT, "%s has no weight_map", file);
    const char *tensor;
    json_t *name;
    json_object_foreach(s->index, tensor, name)
    {
        if (!is_plain_name(json_string_value(name)))
            return samkv_fail(err, SAMKV_CORRUPT, "%s: the shard of %.128s is not a file name in the same directory",
                              file, tensor);
        enum samkv_status status = add_shard(s, json_string_value(name), err);
        if (status)
            return status;
    }
    qsort(s->shards, s->shard_count, sizeof *s->shards, by_name);
    return SAMKV_OK;
}

static enum samkv_status list_shards(struct hf_source *s, const char *directory, struct samkv_fingerprint *f,
                                     struct samkv_error *err)
{
    if (exists(directory, "model.safetensors"))
        return add_shard(s, "model.safetensors", err);
    if (!exists(directory, "model.safetensors.index.json"))
        return samkv_fail(err, exists(directory, "pytorch_model.bin") ? SAMKV_UNSUPPORTED : SAMKV_NOT_FOUND,
                          "%.256s holds neither model.safetensors nor model.safetensors.index.json%s", directory,
                          exists(directory, "pytorch_model.bin") ? "; pytorch_model.bin must be converted first" : "");
    struct samkv_mapping m;
    enum samkv_status status = map_file(directory, "model.safetensors.index.json", MAX_INDEX_BYTES, &m, err);
    if (status)
        return status;
    samkv_fingerprint_add(f, m.data, m.bytes);
    status = read_index(s, &m, err);
    samkv_mapping_close(&m);
    return status;
}

static enum samkv_status open_shards(struct hf_source *s, const char *directory, struct samkv_fingerprint *f,
                                     struct samkv_error *err)
{
    for (size_t i = 0; i < s->shard_count; i++) {
        char path[MAX_PATH_BYTES];
        enum samkv_status status = join(directory, s->shards[i].name, path, err);
        if (!status)
            status = samkv_safetensors_open(path, &s->shards[i].file, err);
        if (status)
            return status;
        size_t bytes;
        const void *data = samkv_safetensors_bytes(s->shards[i].file, &bytes);
        samkv_fingerprint_add_file(f, data, bytes);
    }
    return SAMKV_OK;
}

/* Tensors that say the model computes something that its config.json does not: the first layer is enough to tell. */
static enum samkv_status refuse_unexpected(const struct hf_source *s, struct samkv_error *err)
{
    static const char *const never[] = {"model.layers.0.self_attn.o_proj.bias", "model.layers.0.mlp.gate_proj.bias",
                                        "model.layers.0.mlp.up_proj.bias", "model.layers.0.mlp.down_proj.bias",
                                        "lm_head.bias"};
    struct samkv_raw_tensor raw;
    for (size_t i = 0; i < sizeof never / sizeof *never; i++)
        if (lookup(&s->base, never[i], &raw, NULL) != SAMKV_NOT_FOUND)
            return samkv_fail(err, SAMKV_UNSUPPORTED, "tensor %s is not supported", never[i]);
    for (enum samkv_slot slot = SAMKV_SLOT_ATTN_NORM; slot < SAMKV_SLOTS; slot++) {
        char name[64];
        samkv_slot_name(names, slot, 0, name, sizeof name);
        if (!samkv_slot_present(&s->base.config, slot) && lookup(&s->base, name, &raw, NULL) != SAMKV_NOT_FOUND)
            return samkv_fail(err, SAMKV_UNSUPPORTED,
                              "tensor %s is there, but the architecture that config.json names has none", name);
    }
    return SAMKV_OK;
}

enum samkv_status samkv_source_open_hf(const char *directory, struct samkv_source **out, struct samkv_error *err)
{
    *out = NULL;
    struct hf_source *s = calloc(1, sizeof *s);
    if (!s)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory to open a model");
    s->base.ops = &ops;
    struct samkv_fingerprint *f = samkv_fingerprint_new("hf");
    enum samkv_status status = f ? SAMKV_OK : samkv_fail(err, SAMKV_NO_MEMORY, "no memory to open a model");
    if (!status)
        status = read_config(s, directory, f, err);
    if (!status)
        status = list_shards(s, directory, f, err);
    if (!status)
        status = open_shards(s, directory, f, err);
    if (!status)
        status = refuse_unexpected(s, err);
    if (!status)
        status = read_tokenizer(s, directory, f, err);
    samkv_fingerprint_finish(f, s->base.fingerprint);
    if (status)
        close_hf(&s->base);
    else
        *out = &s->base;
    return status;
}
