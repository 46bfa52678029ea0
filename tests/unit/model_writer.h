#pragma once
/* One small model of every family, written as a Hugging Face directory or a GGUF file, with values known by formula. */
#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/model/gguf.h"
#include "proto/tensor.h"
#include "tests/unit/model_files.h"

enum { LAYERS = 2, HIDDEN = 12, HEADS = 3, KV_HEADS = 1, HEAD_DIM = 6, FFN = 10, VOCAB = 7 };

static char dir[64]; /* the running test's own directory */

static void setup(void)
{
    strcpy(dir, P_tmpdir "/samkv-model-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
}

static const char *path_of(const char *file)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    return path;
}

static void teardown(void)
{
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));)
        if (e->d_name[0] != '.')
            unlink(path_of(e->d_name));
    if (d)
        closedir(d);
    rmdir(dir);
}

static void write_file(const char *file, const void *data, size_t bytes)
{
    FILE *f = fopen(path_of(file), "w");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(data, 1, bytes, f), bytes);
    ck_assert_int_eq(fclose(f), 0);
}

static void write_text(const char *file, const char *text)
{
    write_file(file, text, strlen(text));
}

/* The weights' values: different in every element, exact in bf16 and f16. */
static float value(unsigned tensor, unsigned i)
{
    static const float signs[2] = {1, -1};
    return signs[i % 2] * (float)(1 + (tensor * 37 + i * 11) % 97) / 32 * (float)(1 << i / 97 % 7);
}

enum kind { LLAMA, LLAMA_BIAS, QWEN2, QWEN3 };
struct tensor {
    const char *hf, *gguf;
    unsigned rows, cols; /* rows 0: a vector */
    unsigned mask;       /* kinds that have it */
};
#define ALL  0xf
#define BIAS (1u << LLAMA_BIAS | 1u << QWEN2)
#define NORM (1u << QWEN3)
static const struct tensor outer[] = {
    {"model.embed_tokens.weight", "token_embd.weight", VOCAB, HIDDEN, ALL},
    {"model.norm.weight", "output_norm.weight", 0, HIDDEN, ALL},
    {"lm_head.weight", "output.weight", VOCAB, HIDDEN, ALL},
};
/* In an order that puts q, k and v side by side, but not gate and up. */
static const struct tensor inner[] = {
    {"input_layernorm.weight", "attn_norm.weight", 0, HIDDEN, ALL},
    {"self_attn.q_proj.weight", "attn_q.weight", HEADS *HEAD_DIM, HIDDEN, ALL},
    {"self_attn.k_proj.weight", "attn_k.weight", KV_HEADS *HEAD_DIM, HIDDEN, ALL},
    {"self_attn.v_proj.weight", "attn_v.weight", KV_HEADS *HEAD_DIM, HIDDEN, ALL},
    {"self_attn.q_proj.bias", "attn_q.bias", 0, HEADS *HEAD_DIM, BIAS},
    {"self_attn.k_proj.bias", "attn_k.bias", 0, KV_HEADS *HEAD_DIM, BIAS},
    {"self_attn.v_proj.bias", "attn_v.bias", 0, KV_HEADS *HEAD_DIM, BIAS},
    {"self_attn.q_norm.weight", "attn_q_norm.weight", 0, HEAD_DIM, NORM},
    {"self_attn.k_norm.weight", "attn_k_norm.weight", 0, HEAD_DIM, NORM},
    {"self_attn.o_proj.weight", "attn_output.weight", HIDDEN, HEADS *HEAD_DIM, ALL},
    {"post_attention_layernorm.weight", "ffn_norm.weight", 0, HIDDEN, ALL},
    {"mlp.up_proj.weight", "ffn_up.weight", FFN, HIDDEN, ALL},
    {"mlp.gate_proj.weight", "ffn_gate.weight", FFN, HIDDEN, ALL},
    {"mlp.down_proj.weight", "ffn_down.weight", HIDDEN, FFN, ALL},
};
#define INNER (sizeof inner / sizeof *inner)
#define OUTER (sizeof outer / sizeof *outer)

/* The values of tensor t (numbered over the model) in HF's order, as float. */
static unsigned fill(const struct tensor *t, unsigned number, float *out)
{
    unsigned count = (t->rows ? t->rows : 1) * t->cols;
    for (unsigned i = 0; i < count; i++)
        out[i] = value(number, i);
    return count;
}

static void write_config(enum kind kind, bool tied)
{
    static const char *const architectures[] = {"Llama", NULL, "Qwen2", "Qwen3"};
    char text[1024];
    snprintf(text, sizeof text,
             "{\"architectures\":[\"%sForCausalLM\"],\"num_hidden_layers\":%d,\"hidden_size\":%d,"
             "\"num_attention_heads\":%d,\"num_key_value_heads\":%d,\"head_dim\":%d,\"intermediate_size\":%d,"
             "\"vocab_size\":%d,\"tie_word_embeddings\":%s}",
             architectures[kind], LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB, tied ? "true" : "false");
    write_text("config.json", text);
}

/* A safetensors file in the making. */
struct st_maker {
    struct bytes header, data;
    enum samkv_dtype dtype;
};

static void st_add(struct st_maker *m, const char *name, unsigned rows, unsigned cols, const float *values)
{
    static const char *const types[] = {"F32", "F16", "BF16"};
    unsigned count = (rows ? rows : 1) * cols;
    size_t begin = m->data.count;
    for (unsigned i = 0; i < count; i++)
        put_int(&m->data,
                m->dtype == SAMKV_BF16  ? samkv_f32_to_bf16(values[i])
                : m->dtype == SAMKV_F16 ? samkv_f32_to_f16(values[i])
                                        : *(const uint32_t *)(const void *)&values[i],
                samkv_dtype_bytes(m->dtype));
    char text[256], shape[32];
    if (rows)
        snprintf(shape, sizeof shape, "%u,%u", rows, cols);
    else
        snprintf(shape, sizeof shape, "%u", cols);
    snprintf(text, sizeof text, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
             m->header.count ? "," : "{", name, types[m->dtype], shape, begin, m->data.count);
    put_text(&m->header, text);
}

/* pad: spaces after the header, which decide whether the data is aligned */
static void st_write(struct st_maker *m, const char *file, unsigned pad)
{
    struct bytes b = {0};
    put_text(&m->header, "}");
    while ((8 + m->header.count) % 8 != pad % 8)
        put_text(&m->header, " ");
    put_int(&b, m->header.count, 8);
    put(&b, m->header.data, m->header.count);
    put(&b, m->data.data, m->data.count);
    write_file(file, b.data, b.count);
    free(b.data);
    free(m->header.data);
    free(m->data.data);
    *m = (struct st_maker){0};
}

struct hf_options {
    enum samkv_dtype dtype;
    bool tied;
    unsigned pad;
    const char *leave_out;  /* a tensor's name */
    const char *transpose;  /* written with rows and columns swapped */
    const char *extra_bias; /* a vector of HIDDEN more */
};

static void write_hf(enum kind kind, struct hf_options o)
{
    struct st_maker m = {.dtype = o.dtype};
    float values[HIDDEN * HEADS * HEAD_DIM];
    unsigned number = 0;
    write_config(kind, o.tied);
    for (unsigned t = 0; t < OUTER + LAYERS * INNER; t++, number++) {
        const struct tensor *tensor = t < OUTER ? &outer[t] : &inner[(t - OUTER) % INNER];
        char name[96];
        if (t < OUTER)
            snprintf(name, sizeof name, "%s", tensor->hf);
        else
            snprintf(name, sizeof name, "model.layers.%u.%s", (unsigned)((t - OUTER) / INNER), tensor->hf);
        if (!(tensor->mask >> kind & 1) || (o.leave_out && !strcmp(name, o.leave_out)))
            continue;
        fill(tensor, number, values);
        bool swap = o.transpose && !strcmp(name, o.transpose);
        st_add(&m, name, swap ? tensor->cols : tensor->rows, swap ? tensor->rows : tensor->cols, values);
    }
    if (o.extra_bias)
        st_add(&m, o.extra_bias, 0, HIDDEN, values);
    st_write(&m, "model.safetensors", o.pad);
}

/* llama.cpp's converter: of each head, rows i and i + d/2 become rows 2i and 2i + 1. */
static void permute(float *x, unsigned heads, unsigned width)
{
    float head[HEAD_DIM * HIDDEN];
    for (unsigned h = 0; h < heads; h++, x += HEAD_DIM * width) {
        memcpy(head, x, sizeof *x * HEAD_DIM * width);
        for (unsigned i = 0; i < HEAD_DIM / 2; i++) {
            memcpy(x + 2 * i * width, head + i * width, sizeof *x * width);
            memcpy(x + (2 * i + 1) * width, head + (i + HEAD_DIM / 2) * width, sizeof *x * width);
        }
    }
}

static struct bytes make_gguf(enum kind kind, bool tied, const char *extra_tensor)
{
    static const char *const architectures[] = {"llama", "llama", "qwen2", "qwen3"};
    static const struct {
        const char *key;
        uint32_t value;
    } keys[] = {{"block_count", LAYERS},
                {"embedding_length", HIDDEN},
                {"feed_forward_length", FFN},
                {"attention.head_count", HEADS},
                {"attention.head_count_kv", KV_HEADS},
                {"attention.key_length", HEAD_DIM},
                {"attention.value_length", HEAD_DIM},
                {"context_length", 64}};
    struct gguf_maker g = {0};
    char name[96];
    float values[HIDDEN * HEADS * HEAD_DIM];
    gguf_string(&g, "general.architecture", architectures[kind]);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        snprintf(name, sizeof name, "%s.%s", architectures[kind], keys[i].key);
        gguf_u32(&g, name, keys[i].value);
    }
    snprintf(name, sizeof name, "%s.attention.layer_norm_rms_epsilon", architectures[kind]);
    gguf_f32(&g, name, 1e-6f);
    for (unsigned t = 0; t < OUTER + LAYERS * INNER; t++) {
        const struct tensor *tensor = t < OUTER ? &outer[t] : &inner[(t - OUTER) % INNER];
        if (!(tensor->mask >> kind & 1) || (tied && !strcmp(tensor->gguf, "output.weight")))
            continue;
        if (t < OUTER)
            snprintf(name, sizeof name, "%s", tensor->gguf);
        else
            snprintf(name, sizeof name, "blk.%u.%s", (unsigned)((t - OUTER) / INNER), tensor->gguf);
        unsigned count = fill(tensor, t, values), width = tensor->rows ? tensor->cols : 1;
        if (kind <= LLAMA_BIAS && !strncmp(tensor->gguf, "attn_q.", 7))
            permute(values, HEADS, width);
        if (kind <= LLAMA_BIAS && !strncmp(tensor->gguf, "attn_k.", 7))
            permute(values, KV_HEADS, width);
        gguf_tensor(&g, name, SAMKV_GGML_F32, tensor->cols, tensor->rows, values, count * sizeof *values);
    }
    if (extra_tensor)
        gguf_tensor(&g, extra_tensor, SAMKV_GGML_F32, HIDDEN, 0, values, HIDDEN * sizeof *values);
    return gguf_finish(&g);
}

static void write_gguf(enum kind kind, bool tied, const char *extra_tensor)
{
    struct bytes b = make_gguf(kind, tied, extra_tensor);
    write_file("m.gguf", b.data, b.count);
    free(b.data);
}
