#pragma once
/*
 * What model.c loads from: one tensor after the other by its role, whatever the kind of file. Private to loading.
 *
 *   slot    the role of a tensor: WQ of a layer, the final norm, ...
 *   source  an opened Hugging Face directory or GGUF file: configuration, tokenizer, fingerprint, tensors in its
 * mappings.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"
#include "proto/tensor.h"
#include "daemon/model/config.h"
#include "daemon/model/tokenizer.h"

enum samkv_slot {
    SAMKV_SLOT_EMBEDDING,
    SAMKV_SLOT_FINAL_NORM,
    SAMKV_SLOT_LM_HEAD,
    SAMKV_SLOT_ATTN_NORM, /* the first of a layer's */
    SAMKV_SLOT_WQ,
    SAMKV_SLOT_WK,
    SAMKV_SLOT_WV,
    SAMKV_SLOT_BQ,
    SAMKV_SLOT_BK,
    SAMKV_SLOT_BV,
    SAMKV_SLOT_Q_NORM,
    SAMKV_SLOT_K_NORM,
    SAMKV_SLOT_WO,
    SAMKV_SLOT_FFN_NORM,
    SAMKV_SLOT_GATE,
    SAMKV_SLOT_UP,
    SAMKV_SLOT_DOWN,
    SAMKV_SLOTS,
};

/* A tensor as the file has it. Vectors have one row. */
struct samkv_weight {
    const uint8_t *data;
    uint32_t type; /* enum samkv_ggml_type */
    uint64_t rows, cols;
    uint32_t interleaved; /* head_dim when each head's rows are in the order of adjacent-pair RoPE; else 0 */
};

/* What a reader finds under a name; shape as Hugging Face writes it (rows first). */
struct samkv_raw_tensor {
    const void *data;
    uint32_t type;
    int dims;
    uint64_t shape[4];
};

struct samkv_source;

struct samkv_source_ops {
    const char *const *names; /* [SAMKV_SLOTS]; a layer's have one %u */
    /* Of Phi-3, where Q, K and V are rows of one matrix, gate and up of another. */
    const char *qkv_name, *gate_up_name;
    enum samkv_status (*lookup)(const struct samkv_source *, const char *name, struct samkv_raw_tensor *,
                                struct samkv_error *);
    void (*close)(struct samkv_source *); /* frees the whole */
};

struct samkv_source {
    const struct samkv_source_ops *ops;
    struct samkv_model_config config;
    struct samkv_tokenizer *tokenizer; /* NULL without; who takes it sets NULL here */
    uint8_t fingerprint[16];
    bool interleaved; /* Q and K are in the order of adjacent-pair RoPE */
};

enum samkv_status samkv_source_open_hf(const char *directory, struct samkv_source **out,
                                       struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_source_open_gguf(const char *path, struct samkv_source **out,
                                         struct samkv_error *) SAMKV_MUST_USE;
void samkv_source_close(struct samkv_source *); /* NULL is allowed */

/* Whether a model of this configuration has that tensor. */
bool samkv_slot_present(const struct samkv_model_config *, enum samkv_slot);

/* (rows, cols); rows is 1 for vectors, which is also what the result says. */
bool samkv_slot_is_vector(const struct samkv_model_config *, enum samkv_slot, uint64_t *rows, uint64_t *cols);

/* The tensor's name in that source; bytes of at least 64. */
void samkv_slot_name(const char *const *names, enum samkv_slot, uint32_t layer, char *out, size_t bytes);

/* The same for a model whose file may hold several slots in one matrix: its name, and where the slot's rows begin in
 * it. *total is the matrix's rows; that of the slot alone where it is not shared. */
void samkv_slot_place(const struct samkv_source_ops *, const struct samkv_model_config *, enum samkv_slot,
                      uint32_t layer, char *out, size_t bytes, uint64_t *first, uint64_t *total);

/* The tensor, its shape checked. A missing one or a wrong shape is refused in one line with its name and the shapes. */
enum samkv_status samkv_source_find(const struct samkv_source *, enum samkv_slot, uint32_t layer,
                                    struct samkv_weight *out, struct samkv_error *) SAMKV_MUST_USE;

/* The encoding that holds a numeric type as it is. */
uint32_t samkv_ggml_of_dtype(enum samkv_dtype);

/* Bytes of one row as the file has it. */
size_t samkv_weight_row_bytes(const struct samkv_weight *);

/*
 * Rows [first, first + count) → dst (count, cols) in dtype (F32, F16 or BF16), in HF's row order whatever the file's.
 * Uses several threads for large matrices; any thread may call it.
 */
void samkv_weight_convert(const struct samkv_weight *, uint64_t first, uint64_t count, enum samkv_dtype dtype,
                          void *dst);
