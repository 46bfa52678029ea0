#include "daemon/fetch/observe.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/fetch/job.h"
#include "daemon/samkv/mass.h"
#include "daemon/samkv/recall.h"

void samkv_observation_deinit(struct samkv_observation *o)
{
    free(o->documents);
    free(o->mass);
    free(o->scores);
    *o = (struct samkv_observation){0};
}

static enum samkv_status observation_init(struct samkv_observation *o, const struct samkv_fetch_job *job,
                                          struct samkv_error *err)
{
    o->layers = job->engine.model->config.layers;
    o->document_count = job->document_count;
    o->blocks = 0;
    o->documents = malloc((job->document_count + (size_t)1) * sizeof *o->documents);
    if (!o->documents)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (uint32_t i = 0; i < job->document_count; i++) {
        o->documents[i] = job->documents[i].blocks;
        o->blocks += job->documents[i].blocks.count;
    }
    o->mass = calloc(o->blocks + (size_t)1, sizeof *o->mass);
    o->scores = calloc((size_t)o->layers * o->blocks + 1, sizeof *o->scores);
    return o->mass && o->scores ? SAMKV_OK : samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
}

/* ------------------------------------------------------------------ where the attention went */

struct probe {
    struct samkv_observation *out;
    struct samkv_mass mass;
};

static enum samkv_status begin_prefill(void *arg, struct samkv_fetch_job *job, struct samkv_full_prefill *how,
                                       struct samkv_error *err)
{
    struct probe *p = arg;
    enum samkv_status status = observation_init(p->out, job, err);
    if (!status)
        status = samkv_mass_init(&p->mass, &job->engine, (int)(job->rows - job->query_rows), (int)job->rows, err);
    how->tap = samkv_mass_tap;
    how->tap_arg = &p->mass;
    how->pass_first = &p->mass.pass_first;
    return status;
}

struct key_download {
    const struct samkv_fetch_job *job;
    uint32_t layer;
    void *to;
    size_t bytes;
    enum samkv_status status;
    struct samkv_error *err;
};

static void download_on_lane(void *arg)
{
    struct key_download *d = arg;
    const struct samkv_engine *e = &d->job->engine;
    e->device->ops->download(e->stream, d->to, samkv_kv_cache_k(&d->job->cache, d->layer), d->bytes);
    d->status = e->device->ops->sync(e->stream, d->err);
}

/* Which block, of all documents', each row of the prompt is in. */
static void number_blocks(const struct samkv_observation *o, uint32_t preamble, uint32_t rows, int32_t *block_of)
{
    uint32_t row = 0, first = 0;
    while (row < preamble)
        block_of[row++] = -1;
    for (uint32_t i = 0; i < o->document_count; first += o->documents[i++].count)
        for (uint32_t t = 0; t < o->documents[i].tokens; t++)
            block_of[row++] = (int32_t)(first + t / o->documents[i].block_tokens);
    while (row < rows)
        block_of[row++] = -1;
}

static enum samkv_status sum_layers(struct probe *p, struct key_download *d, const int32_t *block_of, float *layer)
{
    struct samkv_observation *o = p->out;
    for (d->layer = 0; d->layer < o->layers; d->layer++) {
        samkv_lane_call(d->job->engine.lane, d->job->request->urgency, download_on_lane, d);
        enum samkv_status status = d->status;
        if (!status && samkv_mass_layer(&p->mass, d->layer, d->to, block_of, o->blocks, layer))
            status = samkv_fail(d->err, SAMKV_NO_MEMORY, "out of memory");
        if (status)
            return status;
        for (uint32_t b = 0; b < o->blocks; b++)
            o->mass[b] += layer[b] / (float)o->layers;
    }
    return SAMKV_OK;
}

static enum samkv_status end_prefill(void *arg, struct samkv_fetch_job *job, struct samkv_error *err)
{
    struct probe *p = arg;
    size_t width = (size_t)job->engine.model->config.kv_heads * job->engine.model->config.head_dim;
    struct key_download d = {
        .job = job, .bytes = job->rows * width * samkv_dtype_bytes(job->engine.device->dtype), .err = err};
    int32_t *block_of = malloc((job->rows + (size_t)1) * sizeof *block_of);
    float *layer = malloc((p->out->blocks + (size_t)1) * sizeof *layer);
    d.to = malloc(d.bytes + 1);
    enum samkv_status status;
    if (block_of && layer && d.to) {
        number_blocks(p->out, job->collection.preamble_tokens, job->rows, block_of);
        status = sum_layers(p, &d, block_of, layer);
    } else {
        status = samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    }
    free(block_of);
    free(layer);
    free(d.to);
    return status;
}

/* ------------------------------------------------------------------ how the layers rank */

/* A plan with every layer stable leaves every layer's scores. */
static enum samkv_status read_scores(struct samkv_models *models, struct samkv_store *store,
                                     const struct samkv_fetch_request *request, struct samkv_observation *o,
                                     struct samkv_error *err)
{
    struct samkv_fetch_job job;
    struct samkv_fetch_request all = *request;
    uint32_t *layers = malloc((o->layers + (size_t)1) * sizeof *layers);
    if (!layers)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (uint32_t l = 0; l < o->layers; l++)
        layers[l] = l;
    all.stable_layers = layers;
    all.stable_count = o->layers;
    enum samkv_status status = samkv_fetch_job_open(&job, models, store, &all, err);
    uint32_t blocks = 0;
    for (uint32_t i = 0; i < job.document_count && !status; i++)
        blocks += job.documents[i].blocks.count;
    if (!status && (blocks != o->blocks || job.document_count != o->document_count))
        status = samkv_fail(err, SAMKV_MISMATCH, "the documents were replaced meanwhile: calibrate again");
    job.scores = o->scores;
    if (!status)
        status = samkv_fetch_job_plan(&job, err);
    samkv_fetch_job_close(&job);
    free(layers);
    return status;
}

enum samkv_status samkv_observe(struct samkv_models *models, struct samkv_store *store,
                                const struct samkv_fetch_request *request, struct samkv_observation *out,
                                struct samkv_reference *reference, struct samkv_error *err)
{
    struct probe p = {.out = out};
    const struct samkv_reference_probe probe = {begin_prefill, end_prefill, &p};
    *out = (struct samkv_observation){0};
    enum samkv_status status = samkv_reference_make(models, store, request, &probe, reference, err);
    samkv_mass_deinit(&p.mass);
    return status ? status : read_scores(models, store, request, out, err);
}

double samkv_observation_recall(const struct samkv_observation *o, const uint32_t *layers, uint32_t count, double share)
{
    struct samkv_selection selection;
    float *scores = malloc((size_t)count * o->blocks * sizeof *scores + 1);
    struct samkv_select_document *documents = calloc(o->document_count + (size_t)1, sizeof *documents);
    double recall = -1;
    if (scores && documents) {
        for (uint32_t i = 0; i < o->document_count; i++)
            documents[i].blocks = o->documents[i];
        for (uint32_t s = 0; s < count; s++)
            memcpy(scores + (size_t)s * o->blocks, o->scores + (size_t)layers[s] * o->blocks,
                   o->blocks * sizeof *scores);
        const struct samkv_select_input in = {
            .stable_count = count,
            .stable_layers = layers,
            .scores = scores,
            .documents = documents,
            .document_count = o->document_count,
            .ratio = samkv_middle_ratio(o->documents, o->document_count, share),
            .fixed = true,
        };
        if (samkv_select(&in, &selection, NULL) == SAMKV_OK) {
            recall = samkv_mass_recall(o->documents, o->document_count, selection.documents, o->mass);
            samkv_selection_deinit(&selection);
        }
    }
    free(scores);
    free(documents);
    return recall;
}

/* ------------------------------------------------------------------ larger blocks */

/* The documents cut into larger blocks; how many there are of them. */
static uint32_t cut_larger(const struct samkv_observation *o, const struct samkv_larger_blocks *larger,
                           struct samkv_select_document *out)
{
    uint32_t blocks = 0;
    for (uint32_t i = 0; i < o->document_count; i++) {
        out[i].blocks = samkv_blocks_make(o->documents[i].tokens, o->documents[i].block_tokens * larger->factor,
                                          larger->init_tokens, larger->local_tokens);
        blocks += out[i].blocks.count;
    }
    return blocks;
}

/* Means of a layer's scores, weighted by tokens. */
static void merge_scores(const struct samkv_observation *o, const struct samkv_select_document *documents,
                         uint32_t factor, const float *scores, float *out)
{
    uint32_t from = 0, to = 0;
    for (uint32_t i = 0; i < o->document_count; i++) {
        for (uint32_t b = 0; b < documents[i].blocks.count; b++)
            out[to + b] = 0;
        for (uint32_t b = 0; b < o->documents[i].count; b++)
            out[to + b / factor] += scores[from + b] * (float)samkv_block_size(&o->documents[i], b) /
                                    (float)samkv_block_size(&documents[i].blocks, b / factor);
        from += o->documents[i].count;
        to += documents[i].blocks.count;
    }
}

static double held_mass(const struct samkv_observation *o, const struct samkv_selection *selection, uint32_t factor)
{
    double held = 0, all = 0;
    uint32_t first = 0;
    for (uint32_t i = 0; i < o->document_count; first += o->documents[i++].count) {
        const struct samkv_selected *s = &selection->documents[i];
        for (uint32_t b = 0, k = 0; b < o->documents[i].count; b++) {
            while (k < s->keep_count && s->keep[k] < b / factor)
                k++;
            if (samkv_block_is_anchor(&o->documents[i], b))
                continue;
            all += o->mass[first + b];
            held += k < s->keep_count && s->keep[k] == b / factor ? o->mass[first + b] : 0;
        }
    }
    return all > 0 ? held / all : -1;
}

double samkv_observation_held(const struct samkv_observation *o, const uint32_t *layers, uint32_t count,
                              const struct samkv_larger_blocks *larger)
{
    struct samkv_selection selection;
    struct samkv_select_document *documents = calloc(o->document_count + (size_t)1, sizeof *documents);
    float *scores = malloc((size_t)count * o->blocks * sizeof *scores + 1); /* larger ones are fewer */
    double held = -1;
    if (documents && scores) {
        uint32_t blocks = cut_larger(o, larger, documents);
        for (uint32_t s = 0; s < count; s++)
            merge_scores(o, documents, larger->factor, o->scores + (size_t)layers[s] * o->blocks,
                         scores + (size_t)s * blocks);
        const struct samkv_select_input in = {
            .stable_count = count,
            .stable_layers = layers,
            .scores = scores,
            .documents = documents,
            .document_count = o->document_count,
            .ratio = larger->ratio,
            .fixed = true,
        };
        if (samkv_select(&in, &selection, NULL) == SAMKV_OK) {
            /* Anchors that break the budget hold more because more is kept, not because it was found. */
            bool fair = larger->factor == 1 || !selection.anchors_exceed_budget;
            held = fair ? held_mass(o, &selection, larger->factor) : -1;
            samkv_selection_deinit(&selection);
        }
    }
    free(documents);
    free(scores);
    return held;
}
