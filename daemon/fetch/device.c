#include "daemon/fetch/device.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/fetch/score.h"
#include "daemon/samkv/transfer.h"
#include "daemon/store/scratch.h"

/* ------------------------------------------------------------------ a latch */

/* Set once by the thread that loads; the lane waits for it. */
struct latch {
    pthread_mutex_t lock;
    pthread_cond_t set;
    bool is_set;
    enum samkv_status status;
};

static void latch_init(struct latch *latch)
{
    *latch = (struct latch){0};
    pthread_mutex_init(&latch->lock, NULL);
    pthread_cond_init(&latch->set, NULL);
}

static void latch_deinit(struct latch *latch)
{
    pthread_cond_destroy(&latch->set);
    pthread_mutex_destroy(&latch->lock);
}

static void latch_set(struct latch *latch, enum samkv_status status)
{
    pthread_mutex_lock(&latch->lock);
    latch->is_set = true;
    latch->status = status;
    pthread_cond_signal(&latch->set);
    pthread_mutex_unlock(&latch->lock);
}

/* On the lane: waits for the loading thread, and says so when it failed. That thread has the text of what went wrong.
 */
static enum samkv_status latch_wait(struct latch *latch, struct samkv_error *err)
{
    pthread_mutex_lock(&latch->lock);
    while (!latch->is_set)
        pthread_cond_wait(&latch->set, &latch->lock);
    enum samkv_status status = latch->status;
    pthread_mutex_unlock(&latch->lock);
    return status ? samkv_fail(err, status, "the documents' records could not be loaded") : SAMKV_OK;
}

/* ------------------------------------------------------------------ memory */

bool samkv_fetch_device_trim(const struct samkv_fetch_job *job)
{
    return samkv_device_cache_trim(samkv_transfer_cache(job->engine.transfer));
}

enum samkv_status samkv_fetch_device_cache_init(const struct samkv_fetch_job *job, struct samkv_kv_cache *cache,
                                                size_t rows, struct samkv_error *err)
{
    enum samkv_status status = samkv_kv_cache_init(cache, job->engine.model, rows, err);
    if (status == SAMKV_NO_MEMORY && samkv_fetch_device_trim(job))
        status = samkv_kv_cache_init(cache, job->engine.model, rows, err);
    return status;
}

/* ------------------------------------------------------------------ records that are wanted */

/* What a want is in the store. */
struct item {
    const struct samkv_manifest *manifest;
    uint32_t number; /* of the block, or the index record's layer */
};

/* Wants and their items; runs are for the blocks among them, which come first. */
struct list {
    struct samkv_fetch_job *job;
    struct samkv_fetch_pins *pins;
    struct item *items;
    struct samkv_run *runs;
    size_t blocks;
};

static enum samkv_status list_init(struct list *l, struct samkv_fetch_job *job, struct samkv_fetch_pins *pins,
                                   size_t capacity, struct samkv_error *err)
{
    *l = (struct list){.job = job, .pins = pins};
    pins->wants = calloc(capacity + 1, sizeof *pins->wants);
    l->items = malloc((capacity + 1) * sizeof *l->items);
    l->runs = calloc(capacity + 1, sizeof *l->runs);
    return pins->wants && l->items && l->runs ? SAMKV_OK : samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
}

static void list_deinit(struct list *l)
{
    free(l->items);
    free(l->runs);
}

void samkv_fetch_pins_deinit(struct samkv_fetch_pins *pins)
{
    for (size_t i = 0; i < pins->count; i++)
        samkv_device_cache_unpin(pins->wants[i].entry);
    free(pins->wants);
    *pins = (struct samkv_fetch_pins){0};
}

static void add(struct list *l, const struct samkv_manifest *manifest, uint32_t kind, uint32_t number, size_t bytes)
{
    struct samkv_record_want *want = &l->pins->wants[l->pins->count];
    *want = (struct samkv_record_want){
        .key = {.made = (uint64_t)manifest->created_unix_s, .kind = kind, .number = number}, .bytes = bytes};
    memcpy(want->key.document, manifest->key.bytes, sizeof want->key.document);
    l->items[l->pins->count++] = (struct item){manifest, number};
}

static void add_block(struct list *l, const struct samkv_manifest *manifest, uint32_t block, size_t first_row,
                      uint32_t first_layer)
{
    uint32_t first = block * manifest->block_tokens, left = manifest->tokens - first;
    uint32_t tokens = left < manifest->block_tokens ? left : manifest->block_tokens;
    l->runs[l->blocks++] = (struct samkv_run){
        .tokens = (int32_t)tokens, .first_row = (int32_t)first_row, .first_layer = (int32_t)first_layer};
    add(l, manifest, SAMKV_CACHED_BLOCK, block, tokens * samkv_kv_token_bytes(&manifest->shape));
}

static void add_preamble(struct list *l)
{
    const struct samkv_manifest *m = &l->job->preamble_manifest;
    for (uint32_t b = 0; b < m->blocks; b++)
        add_block(l, m, b, (size_t)b * m->block_tokens, 0);
}

/* The store tells of pieces, the transfer wants bytes. */
struct telling {
    const struct samkv_fill_watch *watch;
    size_t piece_bytes;
};

static void tell(void *arg, size_t pieces)
{
    const struct telling *t = arg;
    t->watch->fn(t->watch->arg, pieces * t->piece_bytes);
}

/* Record i of the list from the store; on any of the threads that decode. */
static enum samkv_status fill_record(void *arg, size_t i, void *host, const struct samkv_fill_watch *watch,
                                     struct samkv_error *err)
{
    struct list *l = arg;
    const struct item *item = &l->items[i];
    const struct samkv_record_want *want = &l->pins->wants[i];
    if (want->key.kind == SAMKV_CACHED_INDEX)
        return samkv_snapshot_index(l->job->snapshot, item->manifest, item->number, host, want->bytes / sizeof(float),
                                    err);
    uint32_t pieces = 2 * item->manifest->shape.layers;
    size_t piece_bytes = want->bytes / pieces;
    void **dst = malloc(pieces * sizeof *dst);
    if (!dst)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (uint32_t p = 0; p < pieces; p++)
        dst[p] = (uint8_t *)host + p * piece_bytes;
    struct telling telling = {watch, piece_bytes};
    const struct samkv_decode_watch pieces_watch = {tell, &telling};
    enum samkv_status status = samkv_snapshot_block_watched(l->job->snapshot, item->manifest, item->number, dst,
                                                            watch->fn ? &pieces_watch : NULL, err);
    free(dst);
    return status;
}

/* Records [first, end) of the list to the device. */
static enum samkv_status bring(struct list *l, size_t first, size_t end, struct samkv_error *err)
{
    struct samkv_fetch_pins part = {l->pins->wants + first, end - first};
    struct list some = {.job = l->job, .pins = &part, .items = l->items + first};
    return samkv_transfer_up(l->job->engine.transfer, part.wants, part.count, fill_record, &some, err);
}

/* Where the list's blocks go: into the cache, whose rows have these positions. */
struct destination {
    struct samkv_kv_cache *cache;
    const int32_t *positions;
    size_t rows;
};

static struct samkv_place_runs placed_runs(const struct list *l, const struct samkv_kv_cache *cache)
{
    const struct samkv_kv_shape *shape = &l->job->collection.shape;
    return (struct samkv_place_runs){
        .src_dtype = shape->dtype,
        .k_cache = cache->k,
        .v_cache = cache->v,
        .layer_stride_bytes = cache->layer_stride_bytes,
        .layers = (int)shape->layers,
        .kv_heads = (int)shape->kv_heads,
        .head_dim = (int)shape->head_dim,
        .no_rope = samkv_workspace_no_rope(l->job->engine.workspace),
    };
}

static struct samkv_placing placing_of(const struct list *l, size_t first, const struct destination *to,
                                       const struct samkv_place_runs *place)
{
    const struct samkv_engine *e = &l->job->engine;
    return (struct samkv_placing){
        .runs = l->runs + first,
        .positions = to->positions,
        .rows = to->rows,
        .inv_freq = samkv_workspace_inv_freq(e->workspace),
        .rope_scale = e->model->config.rope_scale,
        .place = place,
    };
}

/* Blocks [first, end) of the list, which were brought. */
static enum samkv_status place(struct list *l, size_t first, size_t end, const struct destination *to,
                               struct samkv_error *err)
{
    const struct samkv_place_runs runs = placed_runs(l, to->cache);
    const struct samkv_placing placing = placing_of(l, first, to, &runs);
    return samkv_transfer_place(l->job->engine.transfer, l->pins->wants + first, end - first, &placing, err);
}

/* All blocks of the list, brought and placed in bands. */
static enum samkv_status stream_blocks(struct list *l, const struct destination *to, struct samkv_bands *bands,
                                       struct samkv_error *err)
{
    struct samkv_fetch_pins blocks = {l->pins->wants, l->blocks};
    struct list some = {.job = l->job, .pins = &blocks, .items = l->items};
    const struct samkv_place_runs runs = placed_runs(l, to->cache);
    const struct samkv_placing placing = placing_of(l, 0, to, &runs);
    return samkv_transfer_stream(l->job->engine.transfer, blocks.wants, blocks.count, fill_record, &some, &placing,
                                 bands, err);
}

static enum samkv_status bands_init(struct samkv_bands *bands, const struct samkv_fetch_job *job,
                                    void (*begin)(void *arg), void *arg, struct samkv_error *err)
{
    const struct samkv_kv_shape *shape = &job->collection.shape;
    size_t layer_token_bytes = 2 * samkv_kv_width(shape) * samkv_dtype_bytes(shape->dtype);
    return samkv_bands_init(bands, job->engine.device, shape->layers, layer_token_bytes, begin, arg, err);
}

/* ------------------------------------------------------------------ plan */

struct plan {
    struct samkv_fetch_job *job;
    struct samkv_engine engine; /* as queries use it */
    struct list list;
    size_t index_first;   /* want of the first index record: [document][stable] from there on */
    size_t rows;          /* preamble and anchors */
    int32_t *positions;   /* [rows] */
    int32_t *first_block; /* [documents + 1] */
    int32_t *starts;      /* [documents] */
    const float **index;  /* [documents][stable], on the device */
    float *scores;        /* [stable][blocks] */
    float *q_rows;        /* for scores of the query's tokens, which are made on the host; else NULL */
    struct samkv_select_document *documents;
    struct samkv_kv_cache cache;
    struct samkv_bands bands; /* of the anchors */
    struct latch indexed;
    struct samkv_lane_job lane_job;
    bool started;
    enum samkv_status status; /* of the lane's part */
    struct samkv_error lane_err;
    struct samkv_error *err;
};

static void plan_deinit(struct plan *p)
{
    samkv_kv_cache_deinit(&p->cache, p->job->engine.device);
    samkv_bands_deinit(&p->bands, p->job->engine.device);
    latch_deinit(&p->indexed);
    list_deinit(&p->list);
    free(p->positions);
    free(p->first_block);
    free(p->starts);
    free(p->index);
    free(p->scores);
    free(p->q_rows);
    free(p->documents);
}

static enum samkv_status plan_init(struct plan *p, struct samkv_fetch_job *job, struct samkv_error *err)
{
    size_t n = job->document_count, blocks = 0, tokens = job->collection.preamble_tokens + (size_t)job->total_tokens;
    *p = (struct plan){.job = job, .engine = samkv_engine_for_queries(&job->engine), .err = err};
    latch_init(&p->indexed);
    for (size_t i = 0; i < n; i++)
        blocks += job->documents[i].blocks.count;
    p->positions = malloc((tokens + 1) * sizeof *p->positions);
    p->first_block = malloc((n + 1) * sizeof *p->first_block);
    p->starts = malloc(n * sizeof *p->starts);
    p->index = malloc(n * job->stable_count * sizeof *p->index);
    p->scores = malloc(job->stable_count * blocks * sizeof *p->scores);
    p->documents = calloc(n, sizeof *p->documents);
    bool rows = samkv_fetch_job_scores_tokens(job);
    p->q_rows = rows ? samkv_fetch_job_rows_new(job) : NULL;
    if ((rows && !p->q_rows) || !p->positions || !p->first_block || !p->starts || !p->index || !p->scores ||
        !p->documents)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    return list_init(&p->list, job, &job->planned, job->preamble_manifest.blocks + blocks + n * job->stable_count, err);
}

static void add_anchors(struct plan *p)
{
    const struct samkv_fetch_job *job = p->job;
    for (; p->rows < job->collection.preamble_tokens; p->rows++)
        p->positions[p->rows] = (int32_t)p->rows;
    for (uint32_t i = 0; i < job->document_count; i++) {
        const struct samkv_fetch_document *d = &job->documents[i];
        for (uint32_t b = 0; b < d->blocks.count; b++) {
            if (!samkv_fetch_job_query_sees(job, &d->blocks, b))
                continue;
            add_block(&p->list, &d->manifest, b, p->rows, 0);
            for (uint32_t t = 0; t < samkv_block_size(&d->blocks, b); t++)
                p->positions[p->rows++] = (int32_t)(d->start + samkv_block_first(&d->blocks, b) + t);
        }
    }
}

static void add_index(struct plan *p)
{
    const struct samkv_fetch_job *job = p->job;
    size_t width = samkv_kv_width(&job->collection.shape);
    size_t q_width = (size_t)job->collection.heads * job->collection.shape.head_dim;
    p->index_first = p->list.pins->count;
    p->first_block[0] = 0;
    for (uint32_t i = 0; i < job->document_count; i++) {
        const struct samkv_fetch_document *d = &job->documents[i];
        p->documents[i] = (struct samkv_select_document){.blocks = d->blocks, .start = d->start};
        p->first_block[i + 1] = p->first_block[i] + (int32_t)d->blocks.count;
        p->starts[i] = (int32_t)d->start;
        for (uint32_t s = 0; s < job->stable_count && !p->q_rows; s++)
            add(&p->list, &d->manifest, SAMKV_CACHED_INDEX, job->stable[s],
                (d->blocks.count * width + q_width) * sizeof(float));
    }
}

static void point_at_index(struct plan *p)
{
    const struct samkv_record_want *wants = p->list.pins->wants + p->index_first;
    for (size_t i = 0; !p->q_rows && i < (size_t)p->job->document_count * p->job->stable_count; i++)
        p->index[i] = samkv_cached_memory(wants[i].entry);
}

static enum samkv_status bring_index(struct plan *p)
{
    enum samkv_status status = bring(&p->list, p->index_first, p->list.pins->count, p->err);
    if (!status)
        point_at_index(p);
    return status;
}

static enum samkv_status wait_for_index(void *arg, struct samkv_error *err)
{
    struct plan *p = arg;
    return latch_wait(&p->indexed, err);
}

static enum samkv_status wait_for_anchors(void *arg, uint32_t layer, struct samkv_error *err)
{
    struct plan *p = arg;
    return samkv_bands_await(&p->bands, p->engine.stream, layer, err);
}

static void score_on_lane(void *arg)
{
    struct plan *p = arg;
    struct samkv_fetch_job *job = p->job;
    double since = samkv_now_ms();
    struct samkv_query_pass query = samkv_fetch_job_query_pass(job, p->rows);
    query.before_layer = wait_for_anchors;
    query.before_layer_arg = p;
    if (p->q_rows) {
        p->status = samkv_query_rows(&p->engine, &p->cache, &query, (int)samkv_fetch_job_scored_tokens(job), p->q_rows,
                                     &p->lane_err);
        return;
    }
    const struct samkv_query_scoring scoring = {
        .documents = job->document_count,
        .index = p->index,
        .first_block = p->first_block,
        .starts = p->starts,
        .scores = p->scores,
        .ready = wait_for_index,
        .ready_arg = p,
    };
    p->status = samkv_query_scores(&p->engine, &p->cache, &query, &scoring, &p->lane_err);
    job->query_lane_ms = samkv_now_ms() - since;
}

static void start_query(void *arg)
{
    struct plan *p = arg;
    p->started = true;
    samkv_lane_start(p->engine.lane, p->job->request->urgency, score_on_lane, p, &p->lane_job);
}

/* Preamble and anchors, which the query's pass sees: it begins with the first band of their layers. */
static enum samkv_status bring_anchors(struct plan *p)
{
    struct samkv_fetch_job *job = p->job;
    add_preamble(&p->list);
    add_anchors(p);
    add_index(p);
    enum samkv_status status = samkv_fetch_device_cache_init(job, &p->cache, p->rows + job->query_count, p->err);
    if (!status)
        status = bands_init(&p->bands, job, start_query, p, p->err);
    const struct destination to = {&p->cache, p->positions, p->rows};
    return status ? status : stream_blocks(&p->list, &to, &p->bands, p->err);
}

/* The index, of which only the scores know, and the tokens, while the query's pass runs; then that pass. */
static enum samkv_status score(struct plan *p, enum samkv_status status)
{
    if (!status)
        status = bring_index(p);
    latch_set(&p->indexed, status);
    if (!status)
        status = samkv_fetch_job_read_tokens(p->job, p->err);
    if (p->started)
        samkv_lane_wait(p->engine.lane, &p->lane_job);
    if (!status && p->status) {
        status = p->status;
        if (p->err)
            *p->err = p->lane_err;
    }
    return status || !p->q_rows ? status : samkv_fetch_job_score(p->job, p->q_rows, p->scores, p->err);
}

enum samkv_status samkv_fetch_device_plan(struct samkv_fetch_job *job, struct samkv_error *err)
{
    struct plan p;
    double since = samkv_now_ms();
    enum samkv_status status = plan_init(&p, job, err);
    if (!status)
        status = bring_anchors(&p);
    job->timing.index = samkv_fetch_job_lap(job, SAMKV_PHASE_INDEX, &since);
    status = score(&p, status);
    job->timing.query = samkv_fetch_job_lap(job, SAMKV_PHASE_QUERY, &since);
    if (!status)
        status = samkv_fetch_job_select(job, p.documents, NULL, p.scores, err);
    job->timing.select = samkv_fetch_job_lap(job, SAMKV_PHASE_SELECT, &since);
    plan_deinit(&p);
    return status;
}

/* ------------------------------------------------------------------ fill */

struct fill {
    struct samkv_fetch_job *job;
    struct list list;
    uint32_t needed_from; /* first layer that needs what is loaded */
    struct latch loaded;
    struct samkv_bands bands; /* when the first layer needs it: then the blocks come in bands */
    struct samkv_lane_job lane_job;
    bool started;
    enum samkv_status status; /* of the recomputation */
    struct samkv_error recompute_err;
};

static enum samkv_status wait_for_load(void *arg, uint32_t layer, struct samkv_error *err)
{
    struct fill *f = arg;
    if (f->bands.count)
        return samkv_bands_await(&f->bands, f->job->engine.stream, layer, err);
    return layer < f->needed_from ? SAMKV_OK : latch_wait(&f->loaded, err);
}

/* Kept blocks but for those that the recomputation writes in all layers. */
static void add_kept(struct fill *f)
{
    const struct samkv_fetch_job *job = f->job;
    for (uint32_t i = 0; i < job->document_count; i++) {
        const struct samkv_fetch_document *d = &job->documents[i];
        const struct samkv_selected *s = &job->selection.documents[i];
        size_t row = d->first_kept_row;
        for (uint32_t k = 0; k < s->keep_count; k++) {
            uint32_t first_layer = samkv_fetch_job_first_layer(job, i, s->keep[k]);
            if (first_layer < job->collection.shape.layers)
                add_block(&f->list, &d->manifest, s->keep[k], row, first_layer);
            if (first_layer < f->needed_from)
                f->needed_from = first_layer;
            row += samkv_block_size(&d->blocks, s->keep[k]);
        }
    }
}

static enum samkv_status fill_init(struct fill *f, struct samkv_fetch_job *job, struct samkv_error *err)
{
    size_t blocks = job->preamble_manifest.blocks;
    *f = (struct fill){.job = job, .needed_from = job->collection.shape.layers};
    latch_init(&f->loaded);
    for (uint32_t i = 0; i < job->document_count; i++)
        blocks += job->selection.documents[i].keep_count;
    enum samkv_status status = list_init(&f->list, job, &job->kept, blocks, err);
    if (!status) {
        add_preamble(&f->list);
        add_kept(f);
    }
    return status;
}

static void fill_deinit(struct fill *f)
{
    list_deinit(&f->list);
    samkv_bands_deinit(&f->bands, f->job->engine.device);
    latch_deinit(&f->loaded);
}

static void recompute_on_lane(void *arg)
{
    struct fill *f = arg;
    struct samkv_fetch_job *job = f->job;
    struct samkv_recompute recompute = samkv_fetch_job_recomputation(job);
    recompute.before_layer = wait_for_load;
    recompute.before_layer_arg = f;
    double since = samkv_now_ms();
    f->status = samkv_recompute(&job->engine, &job->cache, &recompute, &f->recompute_err);
    job->recompute_lane_ms = job->timing.recompute = samkv_fetch_job_lap(job, SAMKV_PHASE_RECOMPUTE, &since);
}

static void start_recomputation(void *arg)
{
    struct fill *f = arg;
    f->started = true;
    samkv_lane_start(f->job->engine.lane, f->job->request->urgency, recompute_on_lane, f, &f->lane_job);
}

static struct destination reply_of(struct fill *f)
{
    return (struct destination){&f->job->cache, f->job->position, f->job->rows};
}

/* Blocks [first, end) of the list, brought and placed. */
static enum samkv_status load(struct fill *f, size_t first, size_t end, struct samkv_error *err)
{
    const struct destination to = reply_of(f);
    enum samkv_status status = bring(&f->list, first, end, err);
    return status ? status : place(&f->list, first, end, &to, err);
}

/* All blocks in bands: the recomputation begins with the first. */
static enum samkv_status load_in_bands(struct fill *f, struct samkv_error *err)
{
    const struct destination to = reply_of(f);
    enum samkv_status status = bands_init(&f->bands, f->job, start_recomputation, f, err);
    return status ? status : stream_blocks(&f->list, &to, &f->bands, err);
}

/*
 * The preamble is seen by the first layer already, and is at hand since the plan. The blocks may come later: with the
 * update "overwrite", a block's stored rows are first needed behind the layers that are recomputed.
 */
static enum samkv_status load_behind(struct fill *f, struct samkv_error *err)
{
    size_t preamble = f->job->preamble_manifest.blocks;
    enum samkv_status status = load(f, 0, preamble, err);
    if (status)
        return status;
    start_recomputation(f);
    status = load(f, preamble, f->list.blocks, err);
    latch_set(&f->loaded, status);
    return status;
}

static enum samkv_status run_fill(struct fill *f, void (*meanwhile)(void *arg), void *arg, struct samkv_error *err)
{
    struct samkv_fetch_job *job = f->job;
    double since = samkv_now_ms();
    enum samkv_status status = f->needed_from == 0 ? load_in_bands(f, err) : load_behind(f, err);
    job->timing.read = samkv_fetch_job_lap(job, SAMKV_PHASE_READ, &since);
    if (!f->started)
        return status;
    if (meanwhile)
        meanwhile(arg);
    samkv_lane_wait(job->engine.lane, &f->lane_job);
    if (!status && f->status) {
        status = f->status;
        if (err)
            *err = f->recompute_err;
    }
    return status;
}

enum samkv_status samkv_fetch_device_fill(struct samkv_fetch_job *job, void (*meanwhile)(void *arg), void *arg,
                                          struct samkv_error *err)
{
    struct fill f;
    enum samkv_status status = fill_init(&f, job, err);
    if (!status)
        status = run_fill(&f, meanwhile, arg, err);
    fill_deinit(&f);
    return status;
}
