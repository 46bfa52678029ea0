#include "daemon/model/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/model/gguf.h"

void samkv_source_close(struct samkv_source *s)
{
    if (s)
        s->ops->close(s);
}

bool samkv_slot_present(const struct samkv_model_config *c, enum samkv_slot slot)
{
    switch (slot) {
    case SAMKV_SLOT_LM_HEAD:
        return !c->tied_embeddings;
    case SAMKV_SLOT_BQ:
    case SAMKV_SLOT_BK:
    case SAMKV_SLOT_BV:
        return c->qkv_bias;
    case SAMKV_SLOT_Q_NORM:
    case SAMKV_SLOT_K_NORM:
        return c->qk_norm;
    default:
        return true;
    }
}

bool samkv_slot_is_vector(const struct samkv_model_config *c, enum samkv_slot slot, uint64_t *rows, uint64_t *cols)
{
    uint64_t q = (uint64_t)c->heads * c->head_dim, kv = (uint64_t)c->kv_heads * c->head_dim;
    const uint64_t shapes[SAMKV_SLOTS][2] = {
        [SAMKV_SLOT_EMBEDDING] = {c->vocab, c->hidden},
        [SAMKV_SLOT_FINAL_NORM] = {0, c->hidden},
        [SAMKV_SLOT_LM_HEAD] = {c->vocab, c->hidden},
        [SAMKV_SLOT_ATTN_NORM] = {0, c->hidden},
        [SAMKV_SLOT_WQ] = {q, c->hidden},
        [SAMKV_SLOT_WK] = {kv, c->hidden},
        [SAMKV_SLOT_WV] = {kv, c->hidden},
        [SAMKV_SLOT_BQ] = {0, q},
        [SAMKV_SLOT_BK] = {0, kv},
        [SAMKV_SLOT_BV] = {0, kv},
        [SAMKV_SLOT_Q_NORM] = {0, c->head_dim},
        [SAMKV_SLOT_K_NORM] = {0, c->head_dim},
        [SAMKV_SLOT_WO] = {c->hidden, q},
        [SAMKV_SLOT_FFN_NORM] = {0, c->hidden},
        [SAMKV_SLOT_GATE] = {c->ffn, c->hidden},
        [SAMKV_SLOT_UP] = {c->ffn, c->hidden},
        [SAMKV_SLOT_DOWN] = {c->hidden, c->ffn},
    };
    *rows = shapes[slot][0] ? shapes[slot][0] : 1;
    *cols = shapes[slot][1];
    return !shapes[slot][0];
}

/* pattern with its one %u, if any, replaced. */
static void write_name(const char *pattern, const uint32_t *layer, char *out, size_t bytes)
{
    const char *mark = layer ? strstr(pattern, "%u") : NULL;
    if (mark)
        snprintf(out, bytes, "%.*s%u%s", (int)(mark - pattern), pattern, *layer, mark + 2);
    else
        snprintf(out, bytes, "%s", pattern);
}

void samkv_slot_name(const char *const *names, enum samkv_slot slot, uint32_t layer, char *out, size_t bytes)
{
    write_name(names[slot], slot < SAMKV_SLOT_ATTN_NORM ? NULL : &layer, out, bytes);
}

void samkv_slot_place(const struct samkv_source_ops *ops, const struct samkv_model_config *c, enum samkv_slot slot,
                      uint32_t layer, char *out, size_t bytes, uint64_t *first, uint64_t *total)
{
    uint64_t q = (uint64_t)c->heads * c->head_dim, kv = (uint64_t)c->kv_heads * c->head_dim, rows, cols;
    bool attention = slot == SAMKV_SLOT_WQ || slot == SAMKV_SLOT_WK || slot == SAMKV_SLOT_WV;
    bool mlp = slot == SAMKV_SLOT_GATE || slot == SAMKV_SLOT_UP;
    (void)samkv_slot_is_vector(c, slot, &rows, &cols);
    *first = 0;
    *total = rows;
    if (c->family != SAMKV_FAMILY_PHI3 || (!attention && !mlp)) {
        samkv_slot_name(ops->names, slot, layer, out, bytes);
        return;
    }
    write_name(attention ? ops->qkv_name : ops->gate_up_name, &layer, out, bytes);
    *total = attention ? q + 2 * kv : 2 * (uint64_t)c->ffn;
    *first = slot == SAMKV_SLOT_WK ? q : slot == SAMKV_SLOT_WV ? q + kv : slot == SAMKV_SLOT_UP ? c->ffn : 0;
}

static void print_shape(const struct samkv_raw_tensor *raw, char *out, size_t bytes)
{
    size_t at = 0;
    out[0] = 0;
    for (int i = 0; i < raw->dims && at < bytes; i++)
        at += (size_t)snprintf(out + at, bytes - at, "%s%llu", i ? ", " : "", (unsigned long long)raw->shape[i]);
}

enum samkv_status samkv_source_find(const struct samkv_source *s, enum samkv_slot slot, uint32_t layer,
                                    struct samkv_weight *out, struct samkv_error *err)
{
    char name[64], want[48], got[96];
    struct samkv_raw_tensor raw = {0};
    uint64_t rows, cols, first, total;
    bool vector = samkv_slot_is_vector(&s->config, slot, &rows, &cols);
    samkv_slot_place(s->ops, &s->config, slot, layer, name, sizeof name, &first, &total);
    struct samkv_raw_tensor expected = {.dims = vector ? 1 : 2, .shape = {vector ? cols : total, cols}};
    print_shape(&expected, want, sizeof want);

    enum samkv_status status = s->ops->lookup(s, name, &raw, err);
    if (status == SAMKV_NOT_FOUND)
        return samkv_fail(err, SAMKV_CORRUPT, "tensor %s (%s) is missing; the model is incomplete", name, want);
    if (status)
        return status;
    if (raw.dims != expected.dims || memcmp(raw.shape, expected.shape, sizeof *raw.shape * (size_t)raw.dims)) {
        print_shape(&raw, got, sizeof got);
        return samkv_fail(err, SAMKV_CORRUPT, "tensor %s has shape (%s), the configuration says (%s)", name, got, want);
    }
    uint32_t elements, bytes;
    if (!samkv_gguf_type_block(raw.type, &elements, &bytes) || (vector && elements != 1))
        return samkv_fail(err, SAMKV_UNSUPPORTED, "tensor %s is a vector encoded as %s, which is not supported", name,
                          samkv_gguf_type_name(raw.type));
    bool rotated = slot == SAMKV_SLOT_WQ || slot == SAMKV_SLOT_WK || slot == SAMKV_SLOT_BQ || slot == SAMKV_SLOT_BK;
    *out = (struct samkv_weight){.data = raw.data, .type = raw.type, .rows = rows, .cols = cols};
    out->data += first * samkv_weight_row_bytes(out);
    if (s->interleaved && rotated) {
        out->interleaved = s->config.head_dim;
        if (vector) /* a bias is permuted element by element */
            *out = (struct samkv_weight){out->data, out->type, cols, 1, s->config.head_dim};
    }
    return SAMKV_OK;
}
