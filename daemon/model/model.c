#include "daemon/model/model.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/model/gguf.h"
#include "daemon/model/weights.h"

#define ALIGNMENT     64
#define PROGRESS_MS   2000
#define STAGING_BYTES ((size_t)32 << 20) /* of each of two host buffers; a row has at most 2 MiB */

struct samkv_model_storage {
    void *allocation;            /* on the device: all weights, unless they are used in place */
    struct samkv_source *source; /* kept while weights are used in place; else NULL */
};

/* One tensor on its way from a file to where the model points. */
struct placement {
    struct samkv_weight weight;
    enum samkv_slot slot;
    const void **pointer;
    enum samkv_dtype dtype; /* on the device */
    bool is_matrix;
    bool in_place;   /* where the file has it */
    uint64_t bytes;  /* on the device */
    uint64_t offset; /* in the allocation, else */
};

struct plan {
    struct placement *items;
    size_t count;
    uint64_t bytes; /* of the allocation */
    bool in_place;  /* the source's mappings are kept */
};

static const void **slot_pointer(struct samkv_model *m, enum samkv_slot slot, uint32_t layer)
{
    static const size_t offsets[SAMKV_SLOTS] = {
        [SAMKV_SLOT_EMBEDDING] = offsetof(struct samkv_model, embedding),
        [SAMKV_SLOT_FINAL_NORM] = offsetof(struct samkv_model, final_norm),
        [SAMKV_SLOT_LM_HEAD] = offsetof(struct samkv_model, lm_head),
        [SAMKV_SLOT_ATTN_NORM] = offsetof(struct samkv_layer, attn_norm),
        [SAMKV_SLOT_WQ] = offsetof(struct samkv_layer, wq),
        [SAMKV_SLOT_WK] = offsetof(struct samkv_layer, wk),
        [SAMKV_SLOT_WV] = offsetof(struct samkv_layer, wv),
        [SAMKV_SLOT_BQ] = offsetof(struct samkv_layer, bq),
        [SAMKV_SLOT_BK] = offsetof(struct samkv_layer, bk),
        [SAMKV_SLOT_BV] = offsetof(struct samkv_layer, bv),
        [SAMKV_SLOT_Q_NORM] = offsetof(struct samkv_layer, q_norm),
        [SAMKV_SLOT_K_NORM] = offsetof(struct samkv_layer, k_norm),
        [SAMKV_SLOT_WO] = offsetof(struct samkv_layer, wo),
        [SAMKV_SLOT_FFN_NORM] = offsetof(struct samkv_layer, ffn_norm),
        [SAMKV_SLOT_GATE] = offsetof(struct samkv_layer, w_gate),
        [SAMKV_SLOT_UP] = offsetof(struct samkv_layer, w_up),
        [SAMKV_SLOT_DOWN] = offsetof(struct samkv_layer, w_down),
    };
    char *base = slot < SAMKV_SLOT_ATTN_NORM ? (char *)m : (char *)&m->layers[layer];
    return (const void **)(base + offsets[slot]);
}

/* A tensor that follows the one before it without a gap, so that one product does both. */
static bool is_fused(enum samkv_slot slot)
{
    return slot == SAMKV_SLOT_WK || slot == SAMKV_SLOT_WV || slot == SAMKV_SLOT_BK || slot == SAMKV_SLOT_BV ||
           slot == SAMKV_SLOT_UP;
}

static enum samkv_status plan_slot(struct plan *p, const struct samkv_source *s, struct samkv_model *m,
                                   enum samkv_slot slot, uint32_t layer, struct samkv_error *err)
{
    if (!samkv_slot_present(&s->config, slot))
        return SAMKV_OK;
    struct placement *item = &p->items[p->count];
    enum samkv_status status = samkv_source_find(s, slot, layer, &item->weight, err);
    if (status)
        return status;
    item->slot = slot;
    item->pointer = slot_pointer(m, slot, layer);
    uint64_t rows, cols;
    item->is_matrix = !samkv_slot_is_vector(&s->config, slot, &rows, &cols);
    item->dtype = item->is_matrix ? samkv_device_matrix_dtype(m->device) : m->device->dtype;
    item->bytes = item->weight.rows * item->weight.cols * samkv_dtype_bytes(item->dtype);
    p->count++;
    return SAMKV_OK;
}

/* Finds every tensor before anything is allocated: what a config.json claims is backed by bytes of a file from here on.
 */
static enum samkv_status make_plan(struct plan *p, const struct samkv_source *s, struct samkv_model *m,
                                   struct samkv_error *err)
{
    p->items = calloc((size_t)SAMKV_SLOTS * (s->config.layers + 1), sizeof *p->items);
    if (!p->items)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for the list of weights");
    enum samkv_status status = SAMKV_OK;
    for (enum samkv_slot slot = 0; !status && slot < SAMKV_SLOT_ATTN_NORM; slot++)
        status = plan_slot(p, s, m, slot, 0, err);
    for (uint32_t l = 0; !status && l < s->config.layers; l++)
        for (enum samkv_slot slot = SAMKV_SLOT_ATTN_NORM; !status && slot < SAMKV_SLOTS; slot++)
            status = plan_slot(p, s, m, slot, l, err);
    return status;
}

/* Whether the device can compute with this tensor's bytes as they are in the file. */
static bool fits_in_place(const struct placement *item, const struct samkv_device *d)
{
    const struct samkv_weight *w = &item->weight;
    return d->unified && w->type == samkv_ggml_of_dtype(item->dtype) && !w->interleaved &&
           (uintptr_t)w->data % samkv_dtype_bytes(item->dtype) == 0;
}

/*
 * The file's mapping is used when all matrices can be: vectors, which are small, are converted where they must.
 * Everything else gets its place in one allocation.
 */
static void lay_out(struct plan *p, const struct samkv_device *d)
{
    p->in_place = true;
    for (size_t i = 0; i < p->count; i++)
        if (p->items[i].is_matrix && !fits_in_place(&p->items[i], d))
            p->in_place = false;
    for (size_t i = 0; i < p->count; i++) {
        struct placement *item = &p->items[i];
        item->in_place = p->in_place && fits_in_place(item, d);
        if (item->in_place)
            continue;
        if (!is_fused(item->slot))
            p->bytes = (p->bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        item->offset = p->bytes;
        p->bytes += item->bytes;
    }
}

/* Rows go through two host buffers: one is being copied to the device while the other is filled. */
static enum samkv_status upload(struct samkv_stream *stream, const struct placement *item, uint8_t *dst,
                                void *const staging[2], struct samkv_error *err)
{
    struct samkv_device *d = stream->device;
    uint64_t row_bytes = item->weight.cols * samkv_dtype_bytes(item->dtype), step = STAGING_BYTES / row_bytes;
    int turn = 0;
    for (uint64_t row = 0; row < item->weight.rows; row += step, turn ^= 1) {
        uint64_t count = item->weight.rows - row < step ? item->weight.rows - row : step;
        samkv_weight_convert(&item->weight, row, count, item->dtype, staging[turn]);
        enum samkv_status status = d->ops->sync(stream, err);
        if (status)
            return status;
        d->ops->upload(stream, dst + row * row_bytes, staging[turn], count * row_bytes);
    }
    return d->ops->sync(stream, err);
}

/* Tells every few seconds how far a large file is. */
struct progress {
    const char *name;
    uint64_t done, all;
    double told_ms;
};

static void tell_progress(struct progress *p, uint64_t bytes)
{
    double now = samkv_now_ms();
    p->done += bytes;
    if (now - p->told_ms < PROGRESS_MS)
        return;
    p->told_ms = now;
    samkv_log(SAMKV_LOG_INFO, "model loading name=%s weights=%llu MB of %llu MB", p->name,
              (unsigned long long)(p->done >> 20), (unsigned long long)(p->all >> 20));
}

static enum samkv_status upload_all(const struct plan *p, struct samkv_model *m, uint8_t *base, struct samkv_error *err)
{
    struct samkv_device *d = m->device;
    struct progress progress = {m->name, 0, p->bytes, samkv_now_ms()};
    struct samkv_stream *stream = NULL;
    void *staging[2] = {NULL, NULL};
    enum samkv_status status = d->ops->stream_new(d, &stream);
    for (int i = 0; !status && i < 2; i++)
        status = d->ops->host_alloc(d, STAGING_BYTES, &staging[i]);
    if (status)
        (void)samkv_fail(err, status, "no buffers to copy weights to %s", d->name);
    for (size_t i = 0; !status && i < p->count; i++) {
        status = upload(stream, &p->items[i], base + p->items[i].offset, staging, err);
        tell_progress(&progress, p->items[i].bytes);
    }
    for (int i = 0; i < 2; i++)
        if (staging[i])
            d->ops->host_release(d, staging[i]);
    if (stream)
        d->ops->stream_free(stream);
    return status;
}

/* Points the model at its weights, which go to the device where they are not in place. */
static enum samkv_status convert_all(const struct plan *p, struct samkv_model *m, struct samkv_error *err)
{
    struct samkv_device *d = m->device;
    uint8_t *base = NULL;
    struct progress progress = {m->name, 0, p->bytes, samkv_now_ms()};
    enum samkv_status status = p->bytes > SIZE_MAX ? SAMKV_NO_MEMORY : SAMKV_OK;
    if (!status && p->bytes)
        status = d->ops->alloc(d, (size_t)p->bytes, (void **)&base);
    if (status)
        return samkv_fail(err, status, "no memory on %s for %llu MiB of weights", d->name,
                          (unsigned long long)(p->bytes >> 20));
    m->storage->allocation = base;
    for (size_t i = 0; i < p->count; i++) {
        const struct placement *item = &p->items[i];
        *item->pointer = item->in_place ? (const void *)item->weight.data : base + item->offset;
        m->weight_bytes += item->bytes;
    }
    if (!d->unified)
        return upload_all(p, m, base, err);
    for (size_t i = 0; i < p->count; i++) {
        const struct placement *item = &p->items[i];
        if (item->in_place)
            continue;
        samkv_weight_convert(&item->weight, 0, item->weight.rows, item->dtype, base + item->offset);
        tell_progress(&progress, item->bytes);
    }
    return SAMKV_OK;
}

static bool follows(const void *a, uint64_t elements, const void *b, enum samkv_dtype dtype)
{
    return (const uint8_t *)a + elements * samkv_dtype_bytes(dtype) == b;
}

static void find_fused(struct samkv_model *m)
{
    const struct samkv_model_config *c = &m->config;
    enum samkv_dtype t = m->device->dtype, w = samkv_device_matrix_dtype(m->device);
    uint64_t q = (uint64_t)c->heads * c->head_dim, kv = (uint64_t)c->kv_heads * c->head_dim, in = c->hidden;
    for (uint32_t l = 0; l < c->layers; l++) {
        struct samkv_layer *layer = &m->layers[l];
        bool bias = !layer->bq || (follows(layer->bq, q, layer->bk, t) && follows(layer->bk, kv, layer->bv, t));
        layer->qkv_fused =
            bias && follows(layer->wq, q * in, layer->wk, w) && follows(layer->wk, kv * in, layer->wv, w);
        layer->gate_up_fused = follows(layer->w_gate, c->ffn * in, layer->w_up, w);
    }
}

/* Points the model at its weights. Takes what it needs from the source; *source becomes NULL when it is kept. */
static enum samkv_status take_weights(struct samkv_model *m, struct samkv_source **source, struct samkv_error *err)
{
    struct samkv_source *s = *source;
    struct plan plan = {0};
    m->config = s->config;
    m->layers = calloc(m->config.layers, sizeof *m->layers);
    if (!m->layers)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for %u layers", m->config.layers);
    enum samkv_status status = make_plan(&plan, s, m, err);
    if (!status) {
        lay_out(&plan, m->device);
        status = convert_all(&plan, m, err);
    }
    free(plan.items);
    if (status)
        return status;
    if (plan.in_place) {
        m->storage->source = s;
        *source = NULL;
    }
    if (m->config.tied_embeddings)
        m->lm_head = m->embedding;
    find_fused(m);
    memcpy(m->fingerprint, s->fingerprint, sizeof m->fingerprint);
    m->tokenizer = s->tokenizer;
    s->tokenizer = NULL;
    return SAMKV_OK;
}

static enum samkv_status open_source(const char *path, struct samkv_source **out, struct samkv_error *err)
{
    struct stat st;
    *out = NULL;
    if (stat(path, &st))
        return samkv_fail_errno(err, errno, "cannot open the model %.256s", path);
    if (S_ISDIR(st.st_mode))
        return samkv_source_open_hf(path, out, err);
    size_t bytes = strlen(path);
    if (bytes > 5 && !strcmp(path + bytes - 5, ".gguf"))
        return samkv_source_open_gguf(path, out, err);
    return samkv_fail(err, SAMKV_INVALID, "%.256s is neither a Hugging Face directory nor a .gguf file", path);
}

static struct samkv_model *new_model(const char *name, const char *path, struct samkv_device *device)
{
    struct samkv_model *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    m->storage = calloc(1, sizeof *m->storage);
    if (!m->storage) {
        free(m);
        return NULL;
    }
    m->device = device;
    snprintf(m->name, sizeof m->name, "%s", name);
    snprintf(m->path, sizeof m->path, "%s", path);
    return m;
}

enum samkv_status samkv_model_load(const char *name, const char *path, struct samkv_device *device,
                                   struct samkv_model **out, struct samkv_error *err)
{
    *out = NULL;
    if (!*name || strlen(name) >= sizeof(*out)->name)
        return samkv_fail(err, SAMKV_INVALID, "a model's name has 1 to %zu bytes", sizeof(*out)->name - 1);
    if (strlen(path) >= sizeof(*out)->path)
        return samkv_fail(err, SAMKV_INVALID, "the path of model %s is too long", name);
    struct samkv_source *source;
    enum samkv_status status = open_source(path, &source, err);
    if (status)
        return status;
    struct samkv_model *m = new_model(name, path, device);
    status = m ? take_weights(m, &source, err) : samkv_fail(err, SAMKV_NO_MEMORY, "no memory for model %s", name);
    samkv_source_close(source);
    if (status)
        samkv_model_free(m);
    else
        *out = m;
    return status;
}

void samkv_model_free(struct samkv_model *m)
{
    if (!m)
        return;
    m->device->ops->release(m->device, m->storage->allocation);
    samkv_source_close(m->storage->source);
    samkv_tokenizer_free(m->tokenizer);
    free(m->storage);
    free(m->layers);
    free(m);
}

struct samkv_kv_shape samkv_model_kv_shape(const struct samkv_model *m, enum samkv_dtype stored)
{
    return (struct samkv_kv_shape){
        .layers = m->config.layers, .kv_heads = m->config.kv_heads, .head_dim = m->config.head_dim, .dtype = stored};
}
