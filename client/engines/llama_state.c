/*
 * A sequence's state, as llama.cpp's llama_kv_cache::state_write writes it (little-endian, not aligned):
 *
 *   u32 MAGIC, i32 sequence, u32 streams, then for each stream
 *     u32 cells; when there are any:
 *     cells times  i32 position, u32 1, i32 sequence
 *     u32 v_transposed, u32 layers
 *     layers times i32 type, u64 bytes of a row, K (cells, width)
 *     layers times i32 type, u64 bytes of a row, V (cells, width)                             not transposed
 *                  i32 type, u32 bytes of an element, u32 width, V (width, cells)             transposed
 *
 * A sequence has cells in one stream; which one, the reader decides.
 */
#include <stdlib.h>
#include <string.h>

#include "client/client_internal.h"
#include "samkv/samkv_llama.h"

#define MAGIC          0xaf143cd8u
#define MAX_STREAMS    256 /* llama.cpp's LLAMA_MAX_SEQ */
#define HEADER_BYTES   12  /* magic, sequence, streams */
#define CELL_BYTES     12
#define SHAPE_BYTES    8  /* v_transposed, layers */
#define K_HEADER_BYTES 12 /* type, bytes of a row; as long as V's, transposed or not */

static size_t type_bytes(int32_t type)
{
    switch (type) {
    case SAMKV_LLAMA_F32:
        return 4;
    case SAMKV_LLAMA_F16:
    case SAMKV_LLAMA_BF16:
        return 2;
    default:
        return 0;
    }
}

/* ------------------------------------------------------------------ reading */

struct reader {
    const uint8_t *at;
    size_t left;
    bool bad; /* it ended early, or said something else than expected */
};

static uint64_t take(struct reader *r, size_t bytes)
{
    uint64_t value = 0;
    if (r->bad || r->left < bytes) {
        r->bad = true;
        return 0;
    }
    memcpy(&value, r->at, bytes); /* little-endian, as everything that runs this */
    r->at += bytes;
    r->left -= bytes;
    return value;
}

static void skip(struct reader *r, uint64_t bytes)
{
    if (r->bad || r->left < bytes) {
        r->bad = true;
        return;
    }
    r->at += bytes;
    r->left -= (size_t)bytes;
}

static void expect(struct reader *r, bool fact)
{
    r->bad = r->bad || !fact;
}

/* The layers of K or of V: one type, one width. A type that is not known here ends the reading: *type tells. */
static void read_layers(struct reader *r, uint32_t layers, uint32_t cells, bool transposed, int32_t *type,
                        uint64_t *width)
{
    for (uint32_t l = 0; l < layers && !r->bad; l++) {
        int32_t this_type = (int32_t)take(r, 4);
        if (!l)
            *type = this_type;
        expect(r, this_type == *type && type_bytes(this_type));
        if (r->bad)
            return;
        uint64_t row_bytes = transposed ? take(r, 4) : take(r, 8);
        if (transposed) {
            expect(r, row_bytes == type_bytes(*type));
            row_bytes = take(r, 4) * type_bytes(*type);
        }
        if (!l)
            *width = row_bytes / type_bytes(*type);
        uint64_t bytes = 0;
        expect(r, row_bytes && row_bytes == *width * type_bytes(*type) && *width <= UINT32_MAX &&
                      !__builtin_mul_overflow(row_bytes, cells, &bytes));
        skip(r, bytes);
    }
}

static void read_cells(struct reader *r, uint32_t cells, struct samkv_llama_layout *out)
{
    uint64_t k_width = 0, v_width = 0;
    for (uint32_t i = 0; i < cells && !r->bad; i++) {
        expect(r, (int32_t)take(r, 4) >= 0);
        expect(r, take(r, 4) == 1);
        take(r, 4);
    }
    uint32_t transposed = (uint32_t)take(r, 4);
    out->layers = (uint32_t)take(r, 4);
    expect(r, transposed <= 1 && out->layers);
    read_layers(r, out->layers, cells, false, &out->k_type, &k_width);
    if (!r->bad)
        read_layers(r, out->layers, cells, transposed, &out->v_type, &v_width);
    expect(r, k_width == v_width);
    out->v_transposed = transposed;
    out->width = (uint32_t)k_width;
}

static enum samkv_status unknown_form(const struct samkv_llama_layout *seen, struct samkv_error *err)
{
    int32_t type = type_bytes(seen->k_type) ? seen->v_type : seen->k_type;
    if (!type_bytes(type))
        return samkv_fail(err, SAMKV_UNSUPPORTED,
                          "the llama.cpp context keeps K or V as ggml type %d: make it with type_k and type_v of f16, "
                          "bf16 or f32",
                          type);
    return samkv_fail(
        err, SAMKV_UNSUPPORTED,
        "this llama.cpp keeps sequences in a form that is not known here: use the one of llama-cpp-python "
        "0.3.36 (commit 0c1e57098), or hand K and V over by yourself");
}

enum samkv_status samkv_llama_layout_read(const void *state, size_t bytes, int rope_type,
                                          struct samkv_llama_layout *out, struct samkv_error *err)
{
    *out = (struct samkv_llama_layout){.rope_type = rope_type};
    if (rope_type != SAMKV_LLAMA_ROPE_NORM && rope_type != SAMKV_LLAMA_ROPE_NEOX)
        return samkv_fail(err, SAMKV_UNSUPPORTED,
                          "the model's rope type is %d: only NORM (0) and NEOX (2) are supported", rope_type);
    struct reader r = {.at = state, .left = bytes};
    expect(&r, take(&r, 4) == MAGIC);
    take(&r, 4);
    out->streams = (uint32_t)take(&r, 4);
    expect(&r, out->streams && out->streams <= MAX_STREAMS);
    bool found = false;
    for (uint32_t s = 0; s < out->streams && !r.bad; s++) {
        uint32_t cells = (uint32_t)take(&r, 4);
        if (!cells)
            continue;
        expect(&r, !found);
        found = true;
        read_cells(&r, cells, out);
    }
    expect(&r, !r.left);
    if (r.bad)
        return unknown_form(out, err);
    if (!found)
        return samkv_fail(err, SAMKV_INVALID,
                          "the llama.cpp sequence is empty: decode one token into it before its state is read");
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ checks */

static enum samkv_status check_positions(const struct samkv_cache *cache, struct samkv_error *err)
{
    for (uint32_t r = 0; r < cache->rows; r++)
        if (cache->position[r] < 0 || (r && cache->position[r] <= cache->position[r - 1]))
            return samkv_fail(err, SAMKV_PROTOCOL, "the cache's positions do not ascend at row %u", r);
    if ((uint32_t)cache->position[cache->rows - 1] + 1 != cache->figures.next_position)
        return samkv_fail(err, SAMKV_INVALID,
                          "the last row is at position %d and the query begins at %u, but llama.cpp goes on right "
                          "behind the last one: fetch with local_tokens of 1 or more, or with positions compact",
                          cache->position[cache->rows - 1], cache->figures.next_position);
    return SAMKV_OK;
}

static enum samkv_status check_layout(const struct samkv_cache *cache, const struct samkv_llama_layout *layout,
                                      struct samkv_error *err)
{
    if (!layout->streams || layout->streams > MAX_STREAMS || !type_bytes(layout->k_type) || !type_bytes(layout->v_type))
        return samkv_fail(err, SAMKV_INVALID, "the layout was not filled in by samkv_llama_layout_read");
    if (layout->layers != cache->layers || layout->width != (uint64_t)cache->kv_heads * cache->head_dim)
        return samkv_fail(err, SAMKV_MISMATCH,
                          "the cache has %u layers of %u x %u elements, the llama.cpp context %u of %u: load the same "
                          "model in both",
                          cache->layers, cache->kv_heads, cache->head_dim, layout->layers, layout->width);
    if (layout->rope_type == SAMKV_LLAMA_ROPE_NORM && cache->head_dim % 2)
        return samkv_fail(err, SAMKV_MISMATCH, "heads of %u elements cannot be rotated in pairs", cache->head_dim);
    return check_positions(cache, err);
}

enum samkv_status samkv_llama_state_bytes(const struct samkv_cache *cache, const struct samkv_llama_layout *layout,
                                          size_t *out, struct samkv_error *err)
{
    *out = 0;
    enum samkv_status status = check_layout(cache, layout, err);
    if (status)
        return status;
    uint64_t element_bytes = type_bytes(layout->k_type) + type_bytes(layout->v_type), layer_bytes, bytes;
    if (__builtin_mul_overflow((uint64_t)layout->width * element_bytes, cache->rows, &layer_bytes) ||
        __builtin_add_overflow(layer_bytes, 2 * K_HEADER_BYTES, &layer_bytes) ||
        __builtin_mul_overflow(layer_bytes, layout->layers, &bytes) ||
        __builtin_add_overflow(
            bytes, HEADER_BYTES + 4ull * layout->streams + CELL_BYTES * (uint64_t)cache->rows + SHAPE_BYTES, &bytes) ||
        bytes > SIZE_MAX)
        return samkv_fail(err, SAMKV_TOO_LARGE, "the cache is too large for this machine's memory");
    *out = (size_t)bytes;
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ writing */

struct writer {
    const struct samkv_cache *cache;
    const struct samkv_llama_layout *layout;
    uint8_t *at;
    uint8_t *layer; /* a layer copied from a device; NULL: the cache is the host's */
    float *row;     /* [width] */
    float *ordered; /* [width] */
};

static void put(struct writer *w, uint64_t value, size_t bytes)
{
    memcpy(w->at, &value, bytes);
    w->at += bytes;
}

static void widen(const void *from, enum samkv_dtype dtype, float *to, size_t n)
{
    const uint16_t *half = from;
    if (dtype == SAMKV_F32)
        memcpy(to, from, n * sizeof *to);
    else if (dtype == SAMKV_F16)
        for (size_t i = 0; i < n; i++)
            to[i] = samkv_f16_to_f32(half[i]);
    else
        for (size_t i = 0; i < n; i++)
            to[i] = samkv_bf16_to_f32(half[i]);
}

/* stride in elements. The destination has no alignment. */
static void narrow(const float *from, int32_t type, uint8_t *to, size_t stride, size_t n)
{
    size_t step = stride * type_bytes(type);
    for (size_t i = 0; i < n; i++, to += step) {
        if (type == SAMKV_LLAMA_F32) {
            memcpy(to, from + i, sizeof *from);
            continue;
        }
        uint16_t half = type == SAMKV_LLAMA_F16 ? samkv_f32_to_f16(from[i]) : samkv_f32_to_bf16(from[i]);
        memcpy(to, &half, sizeof half);
    }
}

/* Of each head: the halves, which Hugging Face's RoPE rotates against each other, become neighbours. */
static const float *neighbours(struct writer *w)
{
    uint32_t d = w->cache->head_dim;
    for (uint32_t h = 0; h < w->cache->kv_heads; h++)
        for (uint32_t i = 0; i < d / 2; i++) {
            w->ordered[h * d + 2 * i] = w->row[h * d + i];
            w->ordered[h * d + 2 * i + 1] = w->row[h * d + d / 2 + i];
        }
    return w->ordered;
}

/* A layer's K or V in host memory: (rows, width). */
static enum samkv_status host_layer(struct writer *w, const void *layer, const uint8_t **out, struct samkv_error *err)
{
    *out = layer;
    if (!w->layer)
        return SAMKV_OK;
    *out = w->layer;
    return samkv_cache_read(w->cache, layer, w->layer, w->cache->rows * w->cache->row_stride_bytes, err);
}

static enum samkv_status put_k(struct writer *w, uint32_t layer, struct samkv_error *err)
{
    const uint8_t *from;
    size_t row_bytes = w->layout->width * type_bytes(w->layout->k_type);
    put(w, (uint32_t)w->layout->k_type, 4);
    put(w, row_bytes, 8);
    enum samkv_status status = host_layer(w, samkv_cache_k(w->cache, layer), &from, err);
    for (uint32_t r = 0; r < w->cache->rows && !status; r++, w->at += row_bytes) {
        widen(from + r * w->cache->row_stride_bytes, w->cache->dtype, w->row, w->layout->width);
        const float *row = w->layout->rope_type == SAMKV_LLAMA_ROPE_NORM ? neighbours(w) : w->row;
        narrow(row, w->layout->k_type, w->at, 1, w->layout->width);
    }
    return status;
}

static enum samkv_status put_v(struct writer *w, uint32_t layer, struct samkv_error *err)
{
    const uint8_t *from;
    bool transposed = w->layout->v_transposed;
    size_t element_bytes = type_bytes(w->layout->v_type), row_bytes = w->layout->width * element_bytes;
    put(w, (uint32_t)w->layout->v_type, 4);
    put(w, transposed ? element_bytes : row_bytes, transposed ? 4 : 8);
    if (transposed)
        put(w, w->layout->width, 4);
    enum samkv_status status = host_layer(w, samkv_cache_v(w->cache, layer), &from, err);
    for (uint32_t r = 0; r < w->cache->rows && !status; r++) {
        widen(from + r * w->cache->row_stride_bytes, w->cache->dtype, w->row, w->layout->width);
        narrow(w->row, w->layout->v_type, w->at + r * (transposed ? element_bytes : row_bytes),
               transposed ? w->cache->rows : 1, w->layout->width);
    }
    w->at += w->cache->rows * row_bytes;
    return status;
}

static void put_cells(struct writer *w, int32_t sequence)
{
    put(w, MAGIC, 4);
    put(w, (uint32_t)sequence, 4);
    put(w, w->layout->streams, 4);
    put(w, w->cache->rows, 4);
    for (uint32_t r = 0; r < w->cache->rows; r++) {
        put(w, (uint32_t)w->cache->position[r], 4);
        put(w, 1, 4);
        put(w, (uint32_t)sequence, 4);
    }
    put(w, w->layout->v_transposed, 4);
    put(w, w->layout->layers, 4);
}

static enum samkv_status put_state(struct writer *w, int32_t sequence, struct samkv_error *err)
{
    enum samkv_status status = SAMKV_OK;
    put_cells(w, sequence);
    for (uint32_t l = 0; l < w->cache->layers && !status; l++)
        status = put_k(w, l, err);
    for (uint32_t l = 0; l < w->cache->layers && !status; l++)
        status = put_v(w, l, err);
    for (uint32_t s = 1; s < w->layout->streams && !status; s++)
        put(w, 0, 4); /* no cells */
    return status;
}

enum samkv_status samkv_llama_state_write(const struct samkv_cache *cache, const struct samkv_llama_layout *layout,
                                          int32_t sequence, void *out, size_t bytes, struct samkv_error *err)
{
    size_t wanted;
    enum samkv_status status = samkv_llama_state_bytes(cache, layout, &wanted, err);
    if (status)
        return status;
    if (bytes != wanted)
        return samkv_fail(err, SAMKV_INVALID, "the state has %zu bytes, there is room for %zu", wanted, bytes);
    if (sequence < 0)
        return samkv_fail(err, SAMKV_INVALID, "sequences are counted from 0");
    bool device = cache->where == SAMKV_FETCH_DEVICE;
    struct writer w = {.cache = cache, .layout = layout, .at = out};
    w.row = malloc(layout->width * sizeof *w.row);
    w.ordered = malloc(layout->width * sizeof *w.ordered);
    w.layer = device ? malloc(cache->rows * cache->row_stride_bytes) : NULL;
    if (!w.row || !w.ordered || (device && !w.layer))
        status = samkv_fail(err, SAMKV_NO_MEMORY, "no memory to write a llama.cpp state");
    else
        status = put_state(&w, sequence, err);
    free(w.row);
    free(w.ordered);
    free(w.layer);
    return status;
}
