/* Caches that others make: a cut of the blocks, and CacheBlend's choice of tokens. */
#include <math.h>
#include <stdlib.h>

#include "daemon/fetch/evaluate_work.h"

/* ------------------------------------------------------------------ cut */

/* A block, as the order of keeping has it. */
struct place {
    uint32_t document, block;
};

static uint64_t next_random(uint64_t *state)
{
    /* SplitMix64 (Steele, Lea, Flood, OOPSLA 2014). */
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void shuffle(struct place *places, size_t count, uint64_t seed)
{
    for (size_t i = count; i > 1; i--) {
        size_t j = next_random(&seed) % i;
        struct place swap = places[i - 1];
        places[i - 1] = places[j];
        places[j] = swap;
    }
}

/* All blocks: block 0 of each document, then block 1, … */
static size_t list_in_turn(const struct samkv_fetch_job *job, struct place *places)
{
    size_t n = 0;
    bool more = true;
    for (uint32_t b = 0; more; b++) {
        more = false;
        for (uint32_t i = 0; i < job->document_count; i++) {
            if (b >= job->documents[i].blocks.count)
                continue;
            places[n++] = (struct place){i, b};
            more = true;
        }
    }
    return n;
}

/* What SAMKV keeps at most: its budget, or the anchors alone. */
static uint64_t budget_tokens(const struct samkv_fetch_job *job, size_t *blocks)
{
    uint64_t anchors = 0, budget = (uint64_t)ceil(job->ratio * job->total_tokens - 1e-6);
    *blocks = 0;
    for (uint32_t i = 0; i < job->document_count; i++) {
        const struct samkv_blocks *b = &job->documents[i].blocks;
        for (uint32_t k = 0; k < b->count; k++)
            anchors += samkv_block_is_anchor(b, k) ? samkv_block_size(b, k) : 0;
        *blocks += b->count;
    }
    return anchors > budget ? anchors : budget;
}

static int compare_blocks(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

enum samkv_status samkv_eval_cut(struct samkv_fetch_job *job, enum samkv_cut cut, uint64_t seed,
                                 struct samkv_error *err)
{
    size_t count;
    uint64_t budget = budget_tokens(job, &count), used = 0;
    struct samkv_selection *selection = &job->selection;
    struct place *places = malloc((count + 1) * sizeof *places);
    if (!places)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    enum samkv_status status = samkv_fetch_job_keep_all(job, err);
    if (status) {
        free(places);
        return status;
    }
    count = list_in_turn(job, places);
    if (cut == SAMKV_CUT_RANDOM)
        shuffle(places, count, seed);
    for (uint32_t i = 0; i < job->document_count; i++)
        selection->documents[i].keep_count = 0;
    for (size_t k = 0; k < count; k++) {
        struct samkv_selected *s = &selection->documents[places[k].document];
        uint32_t size = samkv_block_size(&job->documents[places[k].document].blocks, places[k].block);
        if (used + size > budget)
            break;
        s->keep[s->keep_count++] = places[k].block;
        used += size;
    }
    for (uint32_t i = 0; i < job->document_count; i++)
        qsort(selection->documents[i].keep, selection->documents[i].keep_count, sizeof(uint32_t), compare_blocks);
    selection->kept_tokens = (uint32_t)used;
    selection->budget_tokens = budget;
    free(places);
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ CacheBlend */

struct blend {
    struct samkv_fetch_job *job;
    uint32_t layer;                    /* whose K and V are compared */
    uint32_t shallow;                  /* layers that all tokens go through for that */
    size_t width;                      /* of a row of K */
    float *before, *after, *deviation; /* [rows][2 * width] each, [rows] */
    uint32_t *order;
    const struct samkv_recompute *recompute;
    enum samkv_status status;
    struct samkv_error *err;
};

/* K and V of the layer, one behind the other, as f32 on the host; on the lane. */
static enum samkv_status download(struct blend *b, float *out)
{
    struct samkv_fetch_job *job = b->job;
    struct samkv_device *device = job->engine.device;
    size_t count = (size_t)(job->rows - job->query_rows) * b->width;
    float *scratch;
    enum samkv_status status = device->ops->alloc(device, 2 * count * sizeof *scratch + 1, (void **)&scratch);
    if (status)
        return samkv_fail(b->err, status, "no memory on %s to compare K and V", device->name);
    device->ops->convert(job->engine.stream, samkv_kv_cache_k(&job->cache, b->layer), device->dtype, scratch, SAMKV_F32,
                         count);
    device->ops->convert(job->engine.stream, samkv_kv_cache_v(&job->cache, b->layer), device->dtype, scratch + count,
                         SAMKV_F32, count);
    device->ops->download(job->engine.stream, out, scratch, 2 * count * sizeof *scratch);
    status = device->ops->sync(job->engine.stream, b->err);
    device->ops->release(device, scratch);
    return status;
}

static void compare_on_lane(void *arg)
{
    struct blend *b = arg;
    b->status = download(b, b->before);
    if (!b->status)
        b->status = samkv_recompute(&b->job->engine, &b->job->cache, b->recompute, b->err);
    if (!b->status)
        b->status = download(b, b->after);
}

static void recompute_on_lane(void *arg)
{
    struct blend *b = arg;
    b->status = samkv_recompute(&b->job->engine, &b->job->cache, b->recompute, b->err);
}

static int compare_deviations(const void *a, const void *b, void *arg)
{
    const float *deviation = arg;
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    if (deviation[x] != deviation[y])
        return deviation[x] > deviation[y] ? -1 : 1;
    return x < y ? -1 : x > y;
}

/* The share of the kept tokens that differ most goes through all layers, the others through the first ones. */
static void choose(struct blend *b, double share)
{
    struct samkv_fetch_job *job = b->job;
    size_t rows = job->rows - job->query_rows;
    uint32_t kept = 0;
    for (uint32_t r = 0; r < rows; r++) {
        float sum = 0;
        for (size_t half = 0; half < 2; half++) {
            for (size_t j = 0; j < b->width; j++) {
                size_t at = (half * rows + r) * b->width + j;
                sum += (b->after[at] - b->before[at]) * (b->after[at] - b->before[at]);
            }
        }
        b->deviation[r] = sum;
        if (job->doc[r] >= 0)
            b->order[kept++] = r;
    }
    qsort_r(b->order, kept, sizeof *b->order, compare_deviations, b->deviation);
    uint32_t chosen = (uint32_t)ceil(share * kept - 1e-6), layers = job->engine.model->config.layers;
    for (uint32_t k = 0; k < kept; k++) {
        job->depth[b->order[k]] = k < chosen ? layers : b->shallow;
        job->recomputed += job->depth[b->order[k]];
    }
}

static void set_depths(struct samkv_fetch_job *job, uint32_t documents, uint32_t query)
{
    for (uint32_t r = 0; r < job->rows; r++)
        job->depth[r] = job->doc[r] == -1 ? 0 : job->doc[r] == -2 ? query : documents;
}

static enum samkv_status run_blend(struct blend *b, double share, struct samkv_error *err)
{
    struct samkv_fetch_job *job = b->job;
    uint32_t layers = job->engine.model->config.layers;
    set_depths(job, 0, 0);
    enum samkv_status status = samkv_fetch_job_fill(job, NULL, NULL, err);
    if (status)
        return status;
    struct samkv_recompute recompute = samkv_fetch_job_recomputation(job);
    b->recompute = &recompute;
    recompute.logits = NULL;
    set_depths(job, b->shallow, 0);
    samkv_lane_call(job->engine.lane, SAMKV_URGENT, compare_on_lane, b);
    if (b->status)
        return b->status;
    set_depths(job, 0, layers);
    choose(b, share);
    recompute.logits = job->logits;
    samkv_lane_call(job->engine.lane, SAMKV_URGENT, recompute_on_lane, b);
    return b->status;
}

enum samkv_status samkv_eval_blend(struct samkv_fetch_job *job, double share, struct samkv_error *err)
{
    uint32_t layers = job->engine.model->config.layers;
    size_t rows = job->rows - job->query_rows;
    struct blend b = {.job = job,
                      .layer = layers > 1 ? 1 : 0,
                      .shallow = layers > 1 ? 2 : 1,
                      .width = samkv_kv_width(&job->collection.shape),
                      .err = err};
    b.before = malloc(2 * rows * b.width * sizeof *b.before + 1);
    b.after = malloc(2 * rows * b.width * sizeof *b.after + 1);
    b.deviation = malloc((rows + 1) * sizeof *b.deviation);
    b.order = malloc((rows + 1) * sizeof *b.order);
    enum samkv_status status = b.before && b.after && b.deviation && b.order
                                   ? run_blend(&b, share, err)
                                   : samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    free(b.before);
    free(b.after);
    free(b.deviation);
    free(b.order);
    return status;
}
