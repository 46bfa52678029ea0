#include "daemon/fetch/calibrate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/fetch/observe.h"
#include "daemon/ingest/spec.h"

#define MOST_BLOCKS_FACTOR    8
#define NEARLY                0.98                /* of what today's blocks hold */
#define GREEDY_LAYERS         4                   /* of the largest set that is built */
#define REFERENCE_BYTES_LIMIT ((uint64_t)1 << 30) /* of all samples' distributions */

/* One question on its way. */
struct sample {
    const struct samkv_question *question;
    struct samkv_observation observation;
    struct samkv_reference reference;
};

struct run {
    struct samkv_models *models;
    struct samkv_store *store;
    const struct samkv_calibrate_request *request;
    struct samkv_calibrate_result *out;
    struct samkv_questions questions;
    struct sample *samples; /* [questions.count] */
    double ratio;
    uint32_t block_tokens, init_tokens, local_tokens; /* the collection's */
    struct samkv_compared *compared;                  /* [samples] of the variant that runs */
    struct samkv_error *err;
};

static enum samkv_status tell(struct run *r, const char *phase, uint32_t done, uint32_t total)
{
    const struct samkv_calibrate_progress p = {phase, done, total};
    bool gone = r->request->cancelled && __atomic_load_n(r->request->cancelled, __ATOMIC_RELAXED);
    if (!gone && (!r->request->progress || r->request->progress(r->request->progress_arg, &p)))
        return SAMKV_OK;
    return samkv_fail(r->err, SAMKV_CANCELLED, "cancelled: nobody waits for the calibration");
}

/* ------------------------------------------------------------------ the sample */

static struct samkv_fetch_request fetch_of(const struct run *r, const struct samkv_question *q)
{
    struct samkv_fetch_request fetch;
    samkv_fetch_request_init(&fetch);
    fetch.collection = r->request->collection;
    fetch.ids = (const char *const *)q->ids;
    fetch.id_count = q->id_count;
    fetch.query_tokens = q->query;
    fetch.query_count = q->query_count;
    fetch.ratio = r->ratio;
    fetch.update = r->request->update;
    fetch.with_query = true;
    fetch.urgency = SAMKV_RELAXED;
    fetch.unseen = true;
    fetch.cancelled = r->request->cancelled;
    return fetch;
}

/* The collection's model and sizes. */
static enum samkv_status read_collection(struct run *r)
{
    struct samkv_snapshot *snapshot;
    struct samkv_collection c = {0};
    struct samkv_engine *engine;
    enum samkv_status status = samkv_snapshot_begin(r->store, &snapshot, r->err);
    if (status)
        return status;
    status = samkv_spec_open(r->models, snapshot, r->request->collection, &c, &engine, r->err);
    if (!status) {
        snprintf(r->out->model, sizeof r->out->model, "%s", engine->model->name);
        memcpy(r->out->calibration.fingerprint, engine->model->fingerprint, sizeof engine->model->fingerprint);
        r->out->layer_count = engine->model->config.layers;
        r->block_tokens = c.block_tokens;
        r->init_tokens = c.init_tokens;
        r->local_tokens = c.local_tokens;
        uint64_t bytes = r->questions.count * (uint64_t)SAMKV_REFERENCE_TOKENS * engine->model->config.vocab * 4;
        if (bytes > REFERENCE_BYTES_LIMIT)
            status = samkv_fail(r->err, SAMKV_TOO_LARGE, "a sample of %zu questions is too large: take at most %llu",
                                r->questions.count,
                                (unsigned long long)(REFERENCE_BYTES_LIMIT / (bytes / r->questions.count)));
    }
    samkv_collection_deinit(&c);
    samkv_snapshot_end(snapshot);
    return status;
}

static enum samkv_status choose_questions(struct run *r)
{
    const struct samkv_calibrate_request *q = r->request;
    size_t given = q->question_count, count = q->sample ? q->sample : given ? given : SAMKV_CALIBRATE_SAMPLE;
    if (given && given < count)
        count = given;
    if (count > SAMKV_CALIBRATE_MAX_SAMPLE && q->sample)
        return samkv_fail(r->err, SAMKV_INVALID, "a sample of %u questions is too large: say at most %d", q->sample,
                          SAMKV_CALIBRATE_MAX_SAMPLE);
    if (count > SAMKV_CALIBRATE_MAX_SAMPLE)
        count = SAMKV_CALIBRATE_MAX_SAMPLE;
    if (!given)
        return samkv_questions_draw(r->models, r->store, q->collection, count, q->seed, &r->questions, r->err);
    /* Of many, evenly spread ones: files are often sorted by kind. */
    struct samkv_given_question *chosen = malloc((count + 1) * sizeof *chosen);
    if (!chosen)
        return samkv_fail(r->err, SAMKV_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < count; i++)
        chosen[i] = q->questions[i * given / count];
    enum samkv_status status =
        samkv_questions_take(r->models, r->store, q->collection, chosen, count, &r->questions, r->err);
    free(chosen);
    return status;
}

static enum samkv_status observe_all(struct run *r)
{
    uint32_t count = (uint32_t)r->questions.count;
    r->samples = calloc(count + (size_t)1, sizeof *r->samples);
    r->compared = calloc(count + (size_t)1, sizeof *r->compared);
    r->out->levels = calloc((size_t)SAMKV_GATE_LEVELS * count + 1, sizeof *r->out->levels);
    r->out->layer_recall = calloc(r->out->layer_count + (size_t)1, sizeof *r->out->layer_recall);
    if (!r->samples || !r->compared || !r->out->levels || !r->out->layer_recall)
        return samkv_fail(r->err, SAMKV_NO_MEMORY, "out of memory");
    for (uint32_t i = 0; i < count; i++) {
        struct sample *s = &r->samples[i];
        s->question = &r->questions.items[i];
        const struct samkv_fetch_request fetch = fetch_of(r, s->question);
        enum samkv_status status = tell(r, "prefill", i, count);
        if (!status)
            status = samkv_observe(r->models, r->store, &fetch, &s->observation, &s->reference, r->err);
        if (status)
            return status;
        r->out->full_ms += s->reference.ms / count;
        r->out->samples++;
    }
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ sets of layers, by recall */

/* Mean over the samples in which there is something to choose; negative when there is none. */
static double mean_recall(const struct run *r, const uint32_t *layers, uint32_t count)
{
    double sum = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->out->samples; i++) {
        double recall = samkv_observation_recall(&r->samples[i].observation, layers, count, r->ratio);
        sum += recall < 0 ? 0 : recall;
        n += recall >= 0;
    }
    return n ? sum / n : -1;
}

/* A layer more, in its place; nothing when it is there. */
static uint32_t insert_layer(uint32_t *layers, uint32_t count, uint32_t layer)
{
    uint32_t at = 0;
    while (at < count && layers[at] < layer)
        at++;
    if (at < count && layers[at] == layer)
        return count;
    memmove(layers + at + 1, layers + at, (count - at) * sizeof *layers);
    layers[at] = layer;
    return count + 1;
}

static bool has_layers(const struct samkv_calibrate_result *out, const uint32_t *layers, uint32_t count)
{
    for (uint32_t v = 0; v < out->variant_count; v++)
        if (out->variants[v].layer_count == count && !memcmp(out->variants[v].layers, layers, count * sizeof *layers))
            return true;
    return false;
}

static struct samkv_calibrate_variant *add_variant(struct run *r, enum samkv_calibrate_kind kind,
                                                   const uint32_t *layers, uint32_t count)
{
    struct samkv_calibrate_variant *v = &r->out->variants[r->out->variant_count++];
    *v = (struct samkv_calibrate_variant){.kind = kind,
                                          .layer_count = count,
                                          .ratio = r->ratio,
                                          .fixed = r->request->fixed,
                                          .init_tokens = -1,
                                          .local_tokens = -1,
                                          .recall = -1};
    memcpy(v->layers, layers, count * sizeof *layers);
    return v;
}

static void add_set(struct run *r, const char *what, const uint32_t *layers, uint32_t count)
{
    if (!count || count > SAMKV_CALIBRATION_MAX_LAYERS || has_layers(r->out, layers, count))
        return;
    struct samkv_calibrate_variant *v = add_variant(r, SAMKV_VARIANT_LAYERS, layers, count);
    snprintf(v->what, sizeof v->what, "%s", what);
    v->recall = mean_recall(r, layers, count);
}

static void add_last(struct run *r, const char *what, uint32_t count)
{
    uint32_t layers[SAMKV_CALIBRATION_MAX_LAYERS];
    count = count < 1 ? 1 : count > SAMKV_CALIBRATION_MAX_LAYERS ? SAMKV_CALIBRATION_MAX_LAYERS : count;
    for (uint32_t i = 0; i < count; i++)
        layers[i] = r->out->layer_count - count + i;
    add_set(r, what, layers, count);
}

/* The layer that adds most to the recall of those that are chosen. */
static uint32_t best_addition(const struct run *r, const uint32_t *chosen, uint32_t count)
{
    uint32_t set[GREEDY_LAYERS + 1], best = 0;
    double most = -INFINITY;
    for (uint32_t layer = 0; layer < r->out->layer_count; layer++) {
        memcpy(set, chosen, count * sizeof *set);
        if (insert_layer(set, count, layer) == count)
            continue;
        double recall = mean_recall(r, set, count + 1);
        if (count == 0)
            r->out->layer_recall[layer] = recall;
        if (recall > most) {
            most = recall;
            best = layer;
        }
    }
    return best;
}

static enum samkv_status build_sets(struct run *r)
{
    uint32_t set[GREEDY_LAYERS + 2], with_last[GREEDY_LAYERS + 2], count = 0, layers = r->out->layer_count;
    char what[32];
    add_last(r, "last eighth", layers / 8);
    add_last(r, "last quarter", layers / 4);
    if (r->out->variants[0].recall < 0)
        return samkv_fail(r->err, SAMKV_INVALID,
                          "there is nothing to rank: the sample's documents are all anchors; use smaller blocks or "
                          "anchors, or longer documents");
    while (count < GREEDY_LAYERS && count < layers) {
        enum samkv_status status = tell(r, "layers", 0, 0);
        if (status)
            return status;
        count = insert_layer(set, count, best_addition(r, set, count));
        snprintf(what, sizeof what, "best %u", count);
        add_set(r, what, set, count);
        memcpy(with_last, set, sizeof set);
        snprintf(what, sizeof what, "best %u and last", count);
        add_set(r, what, with_last, insert_layer(with_last, count, layers - 1));
    }
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ variants, for real */

static void sum_up(struct run *r, struct samkv_calibrate_variant *v)
{
    double n = r->out->samples, agreement = 0, kl = 0;
    for (uint32_t i = 0; i < r->out->samples; i++) {
        const struct samkv_compared *c = &r->compared[i];
        v->close.agreement += c->close.agreement / n;
        v->close.kl += c->close.kl / n;
        v->sequence_ratio += c->sequence_ratio / n;
        v->recompute_ratio += c->recompute_ratio / n;
        v->ms += c->ms / n;
    }
    for (uint32_t i = 0; i < r->out->samples; i++) {
        agreement += pow(r->compared[i].close.agreement - v->close.agreement, 2);
        kl += pow(r->compared[i].close.kl - v->close.kl, 2);
    }
    v->agreement_error = n > 1 ? sqrt(agreement / (n - 1) / n) : 0;
    v->kl_error = n > 1 ? sqrt(kl / (n - 1) / n) : 0;
}

static enum samkv_status measure(struct run *r, struct samkv_calibrate_variant *v)
{
    for (uint32_t i = 0; i < r->out->samples; i++) {
        const struct sample *s = &r->samples[i];
        struct samkv_fetch_request fetch = fetch_of(r, s->question);
        fetch.stable_layers = v->layers;
        fetch.stable_count = v->layer_count;
        fetch.ratio = v->ratio;
        fetch.fixed = v->fixed;
        fetch.init_tokens = v->init_tokens;
        fetch.local_tokens = v->local_tokens;
        enum samkv_status status =
            samkv_reference_compare(r->models, r->store, &fetch, &s->reference, &r->compared[i], r->err);
        if (status)
            return status;
    }
    sum_up(r, v);
    return SAMKV_OK;
}

/* Variants [first, end). */
static enum samkv_status measure_all(struct run *r, const char *phase, uint32_t first, uint32_t end)
{
    enum samkv_status status = SAMKV_OK;
    for (uint32_t v = first; v < end && !status; v++) {
        status = tell(r, phase, v - first, end - first);
        if (!status)
            status = measure(r, &r->out->variants[v]);
    }
    return status;
}

/* The nearest to full recomputation; of equals the first, which is the simplest. */
static struct samkv_calibrate_variant *nearest(struct run *r, uint32_t first, uint32_t end)
{
    struct samkv_calibrate_variant *best = &r->out->variants[first];
    for (uint32_t v = first + 1; v < end; v++)
        if (r->out->variants[v].close.kl < best->close.kl)
            best = &r->out->variants[v];
    return best;
}

static enum samkv_status choose_layers(struct run *r)
{
    enum samkv_status status = build_sets(r);
    if (!status)
        status = measure_all(r, "layers", 0, r->out->variant_count);
    if (status)
        return status;
    struct samkv_calibrate_variant *best = nearest(r, 0, r->out->variant_count);
    struct samkv_calibration *c = &r->out->calibration;
    best->chosen = true;
    memcpy(c->layers, best->layers, sizeof c->layers);
    c->layer_count = best->layer_count;
    c->recall = best->recall;
    c->agreement = best->close.agreement;
    c->kl = best->close.kl;
    c->init_tokens = c->local_tokens = -1;
    c->samples = r->out->samples;
    c->unix_s = (int64_t)time(NULL);
    return SAMKV_OK;
}

static bool meets(const struct samkv_quality_target *t, const struct samkv_calibrate_variant *v)
{
    return t->metric == SAMKV_QUALITY_KL ? v->close.kl <= t->value : v->close.agreement >= t->value - 1e-9;
}

/* The gate's levels with the chosen layers: level 0 is as the set was measured, the others fill their ratio. */
static enum samkv_status measure_levels(struct run *r)
{
    const struct samkv_calibration *c = &r->out->calibration;
    uint32_t n = r->out->samples;
    bool chosen = r->request->target.metric == SAMKV_QUALITY_NONE;
    for (uint32_t level = 0; level + 1 < SAMKV_GATE_LEVELS; level++) {
        struct samkv_calibrate_variant *v = add_variant(r, SAMKV_VARIANT_RATIO, c->layers, c->layer_count);
        bool raises = samkv_gate_ratio(level) > r->ratio;
        v->ratio = raises ? samkv_gate_ratio(level) : r->ratio;
        v->fixed = r->request->fixed || raises;
        snprintf(v->what, sizeof v->what, v->fixed ? "filled %g" : "up to %g", v->ratio);
        enum samkv_status status = tell(r, "ratios", level, SAMKV_GATE_LEVELS - 1);
        if (!status)
            status = measure(r, v);
        if (status)
            return status;
        for (uint32_t i = 0; i < n; i++)
            r->out->levels[(size_t)level * n + i] = r->compared[i].close;
        v->chosen = !chosen && meets(&r->request->target, v);
        if (v->chosen && raises)
            r->out->calibration.ratio = v->ratio;
        chosen |= v->chosen;
    }
    return SAMKV_OK;
}

static void add_anchors(struct run *r, int64_t init, int64_t local)
{
    const struct samkv_calibration *c = &r->out->calibration;
    struct samkv_calibrate_variant *v = add_variant(r, SAMKV_VARIANT_ANCHORS, c->layers, c->layer_count);
    v->init_tokens = init;
    v->local_tokens = local;
    if (init < 0)
        snprintf(v->what, sizeof v->what, "anchors as stored");
    else
        snprintf(v->what, sizeof v->what, "anchors %lld, %lld", (long long)init, (long long)local);
}

/* At the same budget. The local query stays the one that was stored. */
static enum samkv_status choose_anchors(struct run *r)
{
    uint32_t first = r->out->variant_count;
    int64_t block = r->block_tokens;
    add_anchors(r, -1, -1);
    add_anchors(r, block, 0);
    add_anchors(r, block, block);
    add_anchors(r, 2 * block, block);
    enum samkv_status status = measure_all(r, "anchors", first, r->out->variant_count);
    if (status)
        return status;
    struct samkv_calibrate_variant *best = nearest(r, first, r->out->variant_count);
    /* Others than those that are stored only when they are better than chance makes them. */
    if (best->close.kl + best->kl_error >= r->out->variants[first].close.kl)
        best = &r->out->variants[first];
    best->chosen = true;
    r->out->calibration.init_tokens = best->init_tokens;
    r->out->calibration.local_tokens = best->local_tokens;
    return SAMKV_OK;
}

/* Of the samples' mean; larger blocks have a smaller index and fewer records, if they find as much. */
static void choose_blocks(struct run *r)
{
    struct samkv_calibration *c = &r->out->calibration;
    struct samkv_calibrate_variant *best = NULL;
    double today = 0;
    for (uint32_t factor = 1; factor <= MOST_BLOCKS_FACTOR && factor * r->block_tokens <= SAMKV_MAX_BLOCK_TOKENS;
         factor *= 2) {
        const struct samkv_larger_blocks larger = {factor, r->init_tokens, r->local_tokens, r->ratio};
        struct samkv_calibrate_variant *v = add_variant(r, SAMKV_VARIANT_BLOCKS, c->layers, c->layer_count);
        double sum = 0;
        bool fits = true;
        for (uint32_t i = 0; i < r->out->samples; i++) {
            double held = samkv_observation_held(&r->samples[i].observation, c->layers, c->layer_count, &larger);
            sum += held > 0 ? held : 0;
            fits = fits && (held >= 0 || factor == 1);
        }
        v->recall = fits ? sum / r->out->samples : -1;
        v->fixed = true;
        snprintf(v->what, sizeof v->what, "blocks of %u", factor * r->block_tokens);
        if (factor == 1)
            today = v->recall;
        if (fits && v->recall >= NEARLY * today) {
            best = v;
            c->block_tokens = factor * r->block_tokens;
        }
    }
    if (best)
        best->chosen = true;
}

/* ------------------------------------------------------------------ the whole */

static void run_deinit(struct run *r)
{
    for (uint32_t i = 0; r->samples && i < r->questions.count; i++) {
        samkv_observation_deinit(&r->samples[i].observation);
        samkv_reference_deinit(&r->samples[i].reference);
    }
    free(r->samples);
    free(r->compared);
    samkv_questions_deinit(&r->questions);
}

enum samkv_status samkv_calibrate(struct samkv_models *models, struct samkv_store *store,
                                  const struct samkv_calibrate_request *request, struct samkv_calibrate_result *out,
                                  struct samkv_error *err)
{
    struct run r = {.models = models, .store = store, .request = request, .out = out, .err = err};
    *out = (struct samkv_calibrate_result){0};
    r.ratio = request->ratio > 0 ? request->ratio : SAMKV_FETCH_RATIO;
    enum samkv_status status = choose_questions(&r);
    if (!status)
        status = read_collection(&r);
    if (!status)
        status = observe_all(&r);
    if (!status)
        status = choose_layers(&r);
    if (!status)
        status = measure_levels(&r);
    if (!status)
        status = choose_anchors(&r);
    if (!status)
        choose_blocks(&r);
    run_deinit(&r);
    return status;
}

void samkv_calibrate_result_deinit(struct samkv_calibrate_result *r)
{
    free(r->layer_recall);
    free(r->levels);
    *r = (struct samkv_calibrate_result){0};
}
