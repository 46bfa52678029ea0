/* A GGUF file as a source of weights. */
#include <stdlib.h>
#include <string.h>

#include "daemon/model/fingerprint.h"
#include "daemon/model/gguf.h"
#include "daemon/model/weights.h"

struct gguf_source {
    struct samkv_source base;
    struct samkv_gguf *file;
};

static const char *const names[SAMKV_SLOTS] = {
    [SAMKV_SLOT_EMBEDDING] = "token_embd.weight",
    [SAMKV_SLOT_FINAL_NORM] = "output_norm.weight",
    [SAMKV_SLOT_LM_HEAD] = "output.weight",
    [SAMKV_SLOT_ATTN_NORM] = "blk.%u.attn_norm.weight",
    [SAMKV_SLOT_WQ] = "blk.%u.attn_q.weight",
    [SAMKV_SLOT_WK] = "blk.%u.attn_k.weight",
    [SAMKV_SLOT_WV] = "blk.%u.attn_v.weight",
    [SAMKV_SLOT_BQ] = "blk.%u.attn_q.bias",
    [SAMKV_SLOT_BK] = "blk.%u.attn_k.bias",
    [SAMKV_SLOT_BV] = "blk.%u.attn_v.bias",
    [SAMKV_SLOT_Q_NORM] = "blk.%u.attn_q_norm.weight",
    [SAMKV_SLOT_K_NORM] = "blk.%u.attn_k_norm.weight",
    [SAMKV_SLOT_WO] = "blk.%u.attn_output.weight",
    [SAMKV_SLOT_FFN_NORM] = "blk.%u.ffn_norm.weight",
    [SAMKV_SLOT_GATE] = "blk.%u.ffn_gate.weight",
    [SAMKV_SLOT_UP] = "blk.%u.ffn_up.weight",
    [SAMKV_SLOT_DOWN] = "blk.%u.ffn_down.weight",
};

static enum samkv_status lookup(const struct samkv_source *base, const char *name, struct samkv_raw_tensor *out,
                                struct samkv_error *err)
{
    struct samkv_gguf_tensor t;
    enum samkv_status status = samkv_gguf_tensor(((const struct gguf_source *)base)->file, name, &t, err);
    if (status)
        return status;
    *out = (struct samkv_raw_tensor){.data = t.data, .type = t.type, .dims = t.dims};
    for (int i = 0; i < t.dims; i++)
        out->shape[i] = t.shape[t.dims - 1 - i];
    return SAMKV_OK;
}

static void close_gguf(struct samkv_source *base)
{
    struct gguf_source *s = (struct gguf_source *)base;
    samkv_gguf_close(s->file);
    samkv_tokenizer_free(base->tokenizer);
    free(s);
}

static const struct samkv_source_ops ops = {
    .names = names,
    .qkv_name = "blk.%u.attn_qkv.weight",
    .gate_up_name = "blk.%u.ffn_up.weight",
    .lookup = lookup,
    .close = close_gguf,
};

static bool is_known(const struct samkv_model_config *c, const char *name, size_t bytes)
{
    static const char rope_freqs[] = "rope_freqs.weight";
    if (bytes == strlen(rope_freqs) && !memcmp(name, rope_freqs, bytes))
        return true;
    unsigned long layer = 0;
    uint64_t first, total;
    char known[64];
    if (bytes >= sizeof known)
        return false;
    memcpy(known, name, bytes);
    known[bytes] = 0;
    if (!strncmp(known, "blk.", 4))
        layer = strtoul(known + 4, NULL, 10);
    if (layer >= c->layers)
        return false;
    for (enum samkv_slot slot = 0; slot < SAMKV_SLOTS; slot++) {
        if (!samkv_slot_present(c, slot))
            continue;
        samkv_slot_place(&ops, c, slot, (uint32_t)layer, known, sizeof known, &first, &total);
        if (bytes == strlen(known) && !memcmp(name, known, bytes))
            return true;
    }
    return false;
}

/* A GGUF file says by its tensors what the model computes: one that the forward pass would not use means another model.
 */
static enum samkv_status refuse_unknown(const struct gguf_source *s, struct samkv_error *err)
{
    size_t count = samkv_gguf_tensor_count(s->file);
    for (size_t i = 0; i < count; i++) {
        size_t bytes;
        const char *name = samkv_gguf_tensor_name(s->file, i, &bytes);
        if (!is_known(&s->base.config, name, bytes))
            return samkv_fail(err, SAMKV_UNSUPPORTED, "tensor %.*s is not supported", (int)(bytes < 128 ? bytes : 128),
                              name);
    }
    return SAMKV_OK;
}

static enum samkv_status read_all(struct gguf_source *s, struct samkv_error *err)
{
    enum samkv_status status = samkv_config_from_gguf(s->file, &s->base.config, err);
    if (!status)
        status = refuse_unknown(s, err);
    struct samkv_gguf_array tokens;
    if (!status && samkv_gguf_array(s->file, "tokenizer.ggml.tokens", &tokens))
        status = samkv_tokenizer_from_gguf(s->file, &s->base.tokenizer, err);
    if (status)
        return status;
    s->base.interleaved = s->base.config.family == SAMKV_FAMILY_LLAMA || s->base.config.family == SAMKV_FAMILY_SMOLLM3;
    struct samkv_fingerprint *f = samkv_fingerprint_new("gguf");
    if (!f)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory to open a model");
    for (size_t i = 0; i < samkv_gguf_file_count(s->file); i++) {
        size_t bytes;
        const void *data = samkv_gguf_bytes(s->file, i, &bytes);
        samkv_fingerprint_add_file(f, data, bytes);
    }
    samkv_fingerprint_finish(f, s->base.fingerprint);
    return SAMKV_OK;
}

enum samkv_status samkv_source_open_gguf(const char *path, struct samkv_source **out, struct samkv_error *err)
{
    *out = NULL;
    struct gguf_source *s = calloc(1, sizeof *s);
    if (!s)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory to open a model");
    s->base.ops = &ops;
    enum samkv_status status = samkv_gguf_open(path, &s->file, err);
    if (!status)
        status = read_all(s, err);
    if (status)
        close_gguf(&s->base);
    else
        *out = &s->base;
    return status;
}
