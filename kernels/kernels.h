#pragma once
/*
 * The operation table: every numeric step of a transformer's forward pass and of SamKV, as an
 * interface that the CPU (kernels/cpu) and CUDA (kernels/cuda) implement as twins. The forward pass
 * and the recomputation are written once over this table.
 *
 * Glossary
 *   device     one processor with its memory: the CPU, or one GPU.
 *   stream     an ordered queue of operations on a device. CPU streams run each operation at once, on
 *              OpenMP threads.
 *   row        one token's vector. Matrices are row-major; `ld*` is the distance between rows in elements.
 *   activation type  the element type of hidden states, vectors of weights and KV caches on a device: device->dtype,
 *              f32 on the CPU, bf16 or f16 on CUDA. Accumulation is f32 everywhere.
 *   matrix type  that of weights with two dimensions, the embedding among them: the activation type, or bf16 on a CPU
 *              that multiplies bf16 (samkv_device_matrix_dtype). Such products round their input to bf16, too.
 *   KV cache   K and V of one layer, each (keys, kv_heads, head_dim), rows contiguous, K AFTER RoPE, rows in
 *              ascending order of position. So what a query row may see, "causal by position", is a range of rows.
 *   RoPE table for n rows: float [n][2][head_dim/2], cosines then sines (rotate-half convention of HF: element
 *              i is paired with i + head_dim/2). Always f32, made from float64 angles: at position 8,000 a
 *              float32 angle is wrong in the fourth digit.
 *
 * Errors: operations return nothing. A failure (a launch that failed, a device that was lost) sticks to the
 * stream, later operations on it do nothing, and the next sync() reports and clears it.
 * Threads: a stream belongs to one thread at a time. Arguments are checked by callers; operations assert.
 * All pointers are device pointers except where "host" is said. On a `unified` device they are the same.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>

#include "proto/status.h"
#include "proto/tensor.h"

struct samkv_ops;

struct samkv_device {
    const struct samkv_ops *ops;
    enum samkv_dtype dtype; /* activation type */
    bool bf16_matrices;     /* matrices are bf16, whatever dtype is */
    bool unified;           /* device pointers are host pointers: weights and replies need no copy */
    bool shares;            /* has memory that other processes can map: the shared_ operations are there */
    char name[64];          /* "cpu (avx512, 2 threads)", "cuda:0 NVIDIA H100 80GB HBM3" */
    uint8_t uuid[16];       /* of the GPU, so that another process finds the same one; zeros on the CPU */
};

static inline enum samkv_dtype samkv_device_matrix_dtype(const struct samkv_device *d)
{
    return d->bf16_matrices ? SAMKV_BF16 : d->dtype;
}

struct samkv_stream {
    struct samkv_device *device;
};

/* A point in a stream's order that other streams and the host can wait for. */
struct samkv_event {
    struct samkv_device *device;
};

/* y[n, out] (+)= x[n, in] · wᵀ + bias. w is (out, in) row-major with ld = in, as Hugging Face stores it, in the
 * device's matrix type; x, bias and y are in its activation type. */
struct samkv_matmul {
    const void *x;
    size_t ldx;
    const void *w;
    const void *bias; /* [out] or NULL */
    void *y;
    size_t ldy;
    int n, in, out;
    bool accumulate; /* add to what y holds (the residual) instead of replacing it */
};

/*
 * out[i] = softmax(scale · q_i · Kᵀ) · V for each row i and query head, GQA: query head h reads KV head
 * h / (heads / kv_heads). Row i sees keys [0, prefix) and [first[i], limit[i]).
 * first == NULL means prefix (so simply [0, limit[i])). limit[i] >= 1 or prefix >= 1: a row sees something.
 * limit is non-decreasing over rows that share a first; first is non-decreasing.
 * No T×T matrix is ever held.
 */
struct samkv_attention {
    const void *q; /* [n, heads, head_dim], after RoPE */
    size_t ldq;
    const void *k, *v; /* [n_keys, kv_heads, head_dim], row stride kv_heads * head_dim */
    void *out;         /* [n, heads, head_dim] */
    size_t ldo;
    int n, n_keys;
    int heads, kv_heads, head_dim;
    float scale;
    int prefix;
    const int32_t *first; /* [n] on the device, or NULL */
    const int32_t *limit; /* [n] on the device */
};

enum samkv_update {
    SAMKV_UPDATE_OVERWRITE = 0, /* new values replace old */
    SAMKV_UPDATE_COSINE = 1,    /* θ = clamp(cos(K_old, K_new), 0, 1) for each token and KV head */
    SAMKV_UPDATE_THETA = 2,     /* a fixed θ */
    SAMKV_UPDATE_DELTA = 3, /* what is new is added: K[r] + θ·rope(k_i), V[r] + θ·v_i; of one pass, θ is 1 or −1 */
};

/*
 * A layer's cache write: for row i, with r = rows[i] (rows == NULL: r = first_row + i):
 *   K[r] = (1−θ)·K[r] + θ·rope(k_i),  V[r] = (1−θ)·V[r] + θ·v_i
 * Rows i >= fresh_from hold tokens that were not cached before (the query) and always overwrite.
 * The cosine is the same before and after RoPE, since both sides are rotated by the same angle.
 */
struct samkv_kv_write {
    const void *k, *v; /* [n, kv_heads, head_dim] before RoPE */
    size_t ld;
    const float *rope;   /* [n][2][head_dim/2]; NULL: the layer's K is not rotated */
    const int32_t *rows; /* [n] on the device, or NULL */
    int first_row;
    void *k_cache, *v_cache;
    int n, kv_heads, head_dim;
    enum samkv_update update;
    float theta; /* for SAMKV_UPDATE_THETA and _DELTA */
    int fresh_from;
};

/*
 * Stored rows into a layer's cache: K_cache[first_row + i] = rope(convert(k_src[i])), V likewise without RoPE.
 * k_src may be the destination itself when the types are equal.
 */
struct samkv_place {
    const void *k_src, *v_src; /* [n, kv_heads, head_dim], K before RoPE */
    enum samkv_dtype src_dtype;
    const float *rope; /* [n][2][head_dim/2]; NULL: the layer's K is not rotated */
    void *k_cache, *v_cache;
    int first_row;
    int n, kv_heads, head_dim;
};

/*
 * Stored blocks into all layers of a cache at once, which `place` does for one layer of rows that lie together. A
 * *run* is one block as it is stored: [layers][K then V][tokens, kv_heads, head_dim], K before RoPE, contiguous. For
 * each layer l >= first_layer and token t: K_cache[l][first_row + t] = rope(convert(K[l][t])), V likewise without RoPE.
 * Layers below first_layer are left alone: the recomputation writes these rows itself.
 */
struct samkv_run {
    const void *src; /* on the device, aligned to 16 bytes */
    int32_t tokens, first_row, first_layer, reserved;
};

struct samkv_place_runs {
    const struct samkv_run *runs; /* [count] on the device */
    int count, max_tokens;        /* max_tokens: of the longest run */
    enum samkv_dtype src_dtype;
    const float *rope;       /* [rows of the cache][2][head_dim/2]: row r of the cache takes angles r */
    const uint8_t *no_rope;  /* [layers] on the device: 1 for a layer whose K is not rotated. NULL: all are */
    void *k_cache, *v_cache; /* layer 0; rows as in samkv_place */
    size_t layer_stride_bytes;
    int layers, kv_heads, head_dim;
};

/*
 * SamKV's steps 2 and 3 up to the scores, for n documents and S layers at once (Cao et al., section 3; select.h has
 * the same in f64 for one processor):
 *
 *   q_i = R(start_i) · qlocal_i, per query head
 *
 *   Q̂_i = q_query + 1/(n−1) · Σ_{j≠i} |cos(q_j, q_query)| · q_j
 *
 *   score of block b = Σ_g ⟨kmean_b[g], R(−start_i) · mean of Q̂_i over the heads of g⟩
 *
 * Without a bias term when n = 1; norms below 1e-12 count as 1e-12. All f32; sums always in the same order.
 */
struct samkv_score {
    int documents, layers; /* n, S */
    int heads, kv_heads, head_dim;
    const float *q_query; /* [S][heads · head_dim], after RoPE at joint positions */
    /* [n][S] device pointers, on the device: block means [blocks_i][kv_heads · head_dim], then the local query [heads ·
     * head_dim], both rotated to document-relative positions, as the store keeps them */
    const float *const *index;
    const int32_t *first_block; /* [n + 1] on the device: sums of block counts */
    int blocks;                 /* first_block[n], known to the host */
    const float *rope;          /* [n][2][head_dim/2]: angles of start_i */
    const uint8_t *no_rope;     /* [S] on the device: 1 for a layer without RoPE, whose R is 1. NULL: all have it */
    float *work;   /* [n][S][heads + kv_heads · head_dim] scratch: cosines, then the turned query vectors */
    float *scores; /* [S][blocks] */
};

struct samkv_ops {
    /* --- memory and order --- */
    enum samkv_status (*alloc)(struct samkv_device *, size_t bytes, void **out) SAMKV_MUST_USE; /* 64-byte aligned */
    void (*release)(struct samkv_device *, void *);                                             /* NULL is allowed */
    /* Host memory that copies run fastest from (page-locked on CUDA). */
    enum samkv_status (*host_alloc)(struct samkv_device *, size_t bytes, void **out) SAMKV_MUST_USE;
    void (*host_release)(struct samkv_device *, void *);
    enum samkv_status (*stream_new)(struct samkv_device *, struct samkv_stream **out) SAMKV_MUST_USE;
    void (*stream_free)(struct samkv_stream *);
    void (*upload)(struct samkv_stream *, void *dst, const void *host_src, size_t bytes);
    void (*download)(struct samkv_stream *, void *host_dst, const void *src, size_t bytes);
    void (*copy)(struct samkv_stream *, void *dst, const void *src, size_t bytes);
    void (*zero)(struct samkv_stream *, void *dst, size_t bytes);
    /* Waits for everything on the stream; the first failure since the last sync. */
    enum samkv_status (*sync)(struct samkv_stream *, struct samkv_error *) SAMKV_MUST_USE;
    void (*device_free)(struct samkv_device *);
    /* Device memory that is free and that there is; the CPU says what the machine has. */
    void (*memory)(struct samkv_device *, uint64_t *free_bytes, uint64_t *total_bytes);

    /* Order between streams. Recording puts the event behind everything on the stream so far, again and again if
     * wanted; await makes later operations of a stream come after the last recording (none yet: after nothing).
     * record and await follow a stream's rule of one thread at a time; event_sync is the host's wait, from any thread,
     * and gives DEVICE when the device was lost. An event may be freed while operations wait for it. */
    enum samkv_status (*event_new)(struct samkv_device *, struct samkv_event **out) SAMKV_MUST_USE;
    void (*event_free)(struct samkv_event *); /* NULL is allowed */
    void (*record)(struct samkv_stream *, struct samkv_event *);
    void (*await)(struct samkv_stream *, struct samkv_event *);
    enum samkv_status (*event_sync)(struct samkv_event *, struct samkv_error *) SAMKV_MUST_USE;

    /* Memory that other processes can map, when device->shares; NULL otherwise. *bytes is rounded up to what is mapped.
     * export makes a new file descriptor for the whole of it. release takes it out of this process after all work that
     * is enqueued (it waits): another process's mapping stays valid, and keeps the memory. Any thread. */
    enum samkv_status (*shared_alloc)(struct samkv_device *, size_t *bytes, void **out) SAMKV_MUST_USE;
    enum samkv_status (*shared_export)(struct samkv_device *, void *, int *fd) SAMKV_MUST_USE;
    void (*shared_release)(struct samkv_device *, void *); /* NULL is allowed */

    /* --- transformer --- */
    /* out[i] = table[ids[i]], [n, width]; the table is in the matrix type */
    void (*embed)(struct samkv_stream *, const void *table, const int32_t *ids, int n, int width, void *out);
    /* out = x / rms(x) · gain over each row of `width`, rows at distance ldx and ldo. In place is allowed. */
    void (*rmsnorm)(struct samkv_stream *, const void *x, size_t ldx, const void *gain, float eps, int n, int width,
                    void *out, size_t ldo);
    /* The same over each head of each row, in place: x [n, heads, head_dim] (Qwen3's q_norm and k_norm). */
    void (*head_norm)(struct samkv_stream *, void *x, size_t ldx, const void *gain, float eps, int n, int heads,
                      int head_dim);
    void (*matmul)(struct samkv_stream *, const struct samkv_matmul *);
    /* table [n][2][half] of cos and sin of pos[i]·inv_freq[j] (angles in float64), times `scale` (YaRN's, else 1) */
    void (*rope_table)(struct samkv_stream *, const double *inv_freq, int half, const int32_t *pos, int n, float scale,
                       float *table);
    /* Rotates x [n, heads, head_dim] in place. */
    void (*rope)(struct samkv_stream *, void *x, size_t ldx, const float *table, int n, int heads, int head_dim);
    void (*attention)(struct samkv_stream *, const struct samkv_attention *);
    /* out[n, ffn] = silu(gate) · up, where a row of gate_up is gate [ffn] then up [ffn] */
    void (*swiglu)(struct samkv_stream *, const void *gate_up, int n, int ffn, void *out);

    /* --- KV cache --- */
    void (*kv_write)(struct samkv_stream *, const struct samkv_kv_write *);
    void (*place)(struct samkv_stream *, const struct samkv_place *);
    void (*place_runs)(struct samkv_stream *, const struct samkv_place_runs *);
    /* out[i] = x[rows[i]], [n, width]; out is not x */
    void (*gather)(struct samkv_stream *, const void *x, const int32_t *rows, int n, int width, void *out);
    /* count elements from one type to another; dst may be src when the types are equal (then nothing happens) */
    void (*convert)(struct samkv_stream *, const void *src, enum samkv_dtype src_dtype, void *dst,
                    enum samkv_dtype dst_dtype, size_t count);

    /* --- SamKV's index and scores, always f32 --- */
    /* out[s] = mean of x rows [offsets[s], offsets[s+1]), s < segments; x [.., width] in the activation type at
     * distance ldx, out [segments, width] f32. offsets is on the device. An empty segment gives zeros. */
    void (*segment_mean)(struct samkv_stream *, const void *x, size_t ldx, const int32_t *offsets, int segments,
                         int width, float *out);
    /* Rotates f32 rows in place: rope() for the index's vectors. */
    void (*rope_f32)(struct samkv_stream *, float *x, const float *table, int n, int heads, int head_dim);
    /* out[b] = Σ_j kmean[b][j] · query[j]; kmean [blocks, width], query [width] */
    void (*block_scores)(struct samkv_stream *, const float *kmean, const float *query, int blocks, int width,
                         float *out);
    void (*score)(struct samkv_stream *, const struct samkv_score *);
};

/* The CPU. threads 0: all that the process may run on. Free with ops->device_free. */
enum samkv_status samkv_cpu_device_new(int threads, struct samkv_device **out, struct samkv_error *err) SAMKV_MUST_USE;

/*
 * Takes bf16 matrices on a device of samkv_cpu_device_new where the processor multiplies bf16 (AVX512-BF16, with AMX or
 * without): half the weights' memory, and products at up to twice the rate. False where it does not; then nothing
 * changes. Before any model is loaded.
 */
bool samkv_cpu_use_bf16(struct samkv_device *);

/*
 * The CPU as a device that is not unified: its "device memory" is other memory, streams are independent (operations
 * still run at once), shared memory is a memfd. A double for tests, in f32, so that what is written for GPUs is tested
 * where there is none.
 */
enum samkv_status samkv_cpu_discrete_new(int threads, struct samkv_device **out,
                                         struct samkv_error *err) SAMKV_MUST_USE;

/*
 * What such a device lacks, as text: "lost=N": the N-th copy from now fails with DEVICE and so does everything behind
 * it, as on a GPU that fell off the bus; "memory=N": it has so many bytes; both with ':' between them. INVALID.
 */
enum samkv_status samkv_cpu_discrete_spoil(struct samkv_device *, const char *how,
                                           struct samkv_error *err) SAMKV_MUST_USE;

/*
 * `spec` is "auto", "cpu", "cuda", "cuda:N" or, for tests, "cpu:discrete": the CPU with a memory of its own, so that
 * everything a GPU needs (copies, events, shared memory) happens without one; "cpu:discrete:lost=N:memory=N" spoils it.
 * dtype: the activation type wanted on a GPU (the CPU computes in f32). "auto" takes the first GPU and falls back to
 * the CPU with a line in `note` (may be NULL) that says why; "cuda" without a usable GPU is an error.
 */
enum samkv_status samkv_device_open(const char *spec, enum samkv_dtype dtype, struct samkv_device **out, char *note,
                                    size_t note_bytes, struct samkv_error *err) SAMKV_MUST_USE;
