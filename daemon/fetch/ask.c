#include "daemon/fetch/ask.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/base/ids.h"
#include "daemon/fetch/device.h"
#include "daemon/fetch/heal.h"
#include "daemon/fetch/job.h"
#include "daemon/fetch/memory.h"
#include "daemon/model/chat.h"

#define DEFAULT_ANSWER_TOKENS 64
#define MAX_ANSWER_TOKENS     4096

/* An answer on its way: a job whose cache goes on growing by one row a token. */
struct answer {
    struct samkv_fetch_job job;
    const struct samkv_ask_request *request;
    bool (*on_text)(void *arg, const char *text, size_t bytes);
    void *arg;
    struct samkv_ids query;
    struct samkv_ids tokens; /* of the answer */
    size_t told_bytes;       /* of its text */
    uint32_t max_tokens;
    int32_t row, position; /* of the next token */
    float *logits;
    struct samkv_ask_result *out;
    enum samkv_status status; /* of the last lane call */
    struct samkv_error *err;
};

/* ------------------------------------------------------------------ the prompt's cache */

static enum samkv_status allocate_cache(struct answer *a)
{
    const struct samkv_model_config *c = &a->job.engine.model->config;
    uint64_t row_bytes = 2ull * c->layers * c->kv_heads * c->head_dim * samkv_dtype_bytes(a->job.engine.device->dtype);
    enum samkv_status status = SAMKV_OK;
    if (a->job.engine.device->unified)
        status = samkv_memory_check((a->job.rows + (uint64_t)a->max_tokens) * row_bytes, a->err);
    if (status)
        return status;
    size_t rows = (size_t)a->job.rows + a->max_tokens;
    return a->job.engine.device->unified ? samkv_kv_cache_init(&a->job.cache, a->job.engine.model, rows, a->err)
                                         : samkv_fetch_device_cache_init(&a->job, &a->job.cache, rows, a->err);
}

/* samkv and reuse: stored rows, placed, and the query over them. */
static enum samkv_status sparse_prompt(struct answer *a)
{
    struct samkv_fetch_job *job = &a->job;
    enum samkv_status status = a->request->method == SAMKV_ASK_REUSE ? samkv_fetch_job_keep_all(job, a->err)
                                                                     : samkv_fetch_job_plan(job, a->err);
    if (!status)
        status = samkv_fetch_job_lay_out(job, true, a->err);
    if (!status && job->engine.device->unified)
        status = samkv_stage_init(&job->stage, job->engine.device, &job->collection.shape, job->rows - job->query_rows,
                                  a->err);
    if (!status)
        status = allocate_cache(a);
    if (!status)
        status = samkv_fetch_job_fill(job, NULL, NULL, a->err);
    return status;
}

static void prefill_on_lane(void *arg)
{
    struct answer *a = arg;
    a->status = samkv_fetch_job_prefill_in_place(&a->job, a->err);
}

/* full: the same tokens, prefilled jointly; nothing stored is used but the tokens. */
static enum samkv_status full_prompt(struct answer *a)
{
    struct samkv_fetch_job *job = &a->job;
    enum samkv_status status = samkv_fetch_job_keep_all(job, a->err);
    if (!status)
        status = samkv_fetch_job_lay_out(job, true, a->err);
    if (!status)
        status = allocate_cache(a);
    if (status)
        return status;
    double since = samkv_now_ms();
    samkv_lane_call(job->engine.lane, SAMKV_URGENT, prefill_on_lane, a);
    samkv_fetch_job_lap(job, SAMKV_PHASE_PREFILL, &since);
    return a->status;
}

/* ------------------------------------------------------------------ decoding */

static int32_t best_token(const float *logits, uint32_t vocab)
{
    int32_t best = 0;
    for (uint32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = (int32_t)i;
    return best;
}

/* One token through the model; a->logits are then those of the next. */
static void step_on_lane(void *arg)
{
    struct answer *a = arg;
    const struct samkv_engine *e = &a->job.engine;
    int32_t limit = a->row + 1;
    const struct samkv_pass pass = {
        .n = 1,
        .ids = &a->tokens.data[a->tokens.count - 1],
        .positions = &a->position,
        .cache_rows = &a->row,
        .limits = &limit,
        .depth = e->model->config.layers,
        .logits = a->logits,
        .cancelled = a->job.request->cancelled,
    };
    a->status = samkv_forward(e->model, e->stream, e->workspace, &pass, &a->job.cache, a->err);
}

/* Bytes of text that end in a whole UTF-8 character. */
static size_t whole_characters(const char *text, size_t bytes)
{
    size_t back = 0;
    while (back < 3 && back < bytes && ((unsigned char)text[bytes - 1 - back] & 0xc0) == 0x80)
        back++;
    if (back >= bytes)
        return bytes;
    unsigned char lead = (unsigned char)text[bytes - 1 - back];
    size_t wanted = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
    return wanted > back + 1 ? bytes - 1 - back : bytes;
}

/* Tells what is new in the answer's text. False when the reader has had enough. */
static bool tell(struct answer *a, bool last)
{
    char *text;
    size_t bytes;
    if (samkv_tokenizer_decode(a->job.engine.model->tokenizer, a->tokens.data, a->tokens.count, true, &text, &bytes,
                               NULL))
        return false;
    size_t whole = last ? bytes : whole_characters(text, bytes);
    bool more = true;
    if (whole > a->told_bytes) {
        more = a->on_text(a->arg, text + a->told_bytes, whole - a->told_bytes);
        a->told_bytes = whole;
    }
    free(text);
    return more;
}

static enum samkv_status decode(struct answer *a)
{
    const struct samkv_model *model = a->job.engine.model;
    bool more = true;
    while (more && a->tokens.count < a->max_tokens) {
        int32_t token = best_token(a->logits, model->config.vocab);
        if (a->tokens.count == 0)
            a->out->first_token_ms = samkv_now_ms() - a->job.started_ms;
        if (samkv_chat_is_end(model, token))
            break;
        if (samkv_ids_push(&a->tokens, token))
            return samkv_fail(a->err, SAMKV_NO_MEMORY, "out of memory");
        more = tell(a, false);
        if (!more || a->tokens.count == a->max_tokens)
            break;
        samkv_lane_call(a->job.engine.lane, SAMKV_URGENT, step_on_lane, a);
        if (a->status)
            return a->status;
        a->row++;
        a->position++;
    }
    if (more && a->tokens.count)
        tell(a, true);
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ the request */

static enum samkv_status tokenise_question(struct answer *a, struct samkv_models *models, struct samkv_store *store)
{
    const struct samkv_ask_request *r = a->request;
    struct samkv_snapshot *snapshot;
    struct samkv_collection collection;
    struct samkv_engine *engine;
    enum samkv_status status = samkv_snapshot_begin(store, &snapshot, a->err);
    if (status)
        return status;
    status = samkv_spec_open(models, snapshot, r->fetch.collection, &collection, &engine, a->err);
    samkv_snapshot_end(snapshot);
    if (status)
        return status;
    if (!engine->model->tokenizer)
        status = samkv_fail(a->err, SAMKV_UNSUPPORTED, "model '%s' has no tokenizer: it cannot answer in text",
                            engine->model->name);
    else if (r->raw)
        status = samkv_tokenizer_encode(engine->model->tokenizer, r->question, r->question_bytes, SAMKV_ENCODE_SPECIAL,
                                        &a->query, a->err);
    else if (!r->question_bytes)
        status = samkv_fail(a->err, SAMKV_INVALID, "the question is empty: say what is asked");
    else
        status = samkv_chat_query(engine->model, collection.preamble, collection.preamble_tokens, r->question,
                                  r->question_bytes, &a->query, a->err);
    samkv_collection_deinit(&collection);
    return status;
}

static enum samkv_status prompt(struct answer *a, struct samkv_models *models, struct samkv_store *store,
                                const struct samkv_fetch_request *fetch)
{
    double since = samkv_now_ms();
    enum samkv_status status = samkv_fetch_job_open(&a->job, models, store, fetch, a->err);
    samkv_trace_lap(fetch->trace, SAMKV_PHASE_OPEN, &since);
    if (status)
        return status;
    return a->request->method == SAMKV_ASK_FULL ? full_prompt(a) : sparse_prompt(a);
}

static enum samkv_status run(struct answer *a, struct samkv_models *models, struct samkv_store *store)
{
    struct samkv_fetch_request fetch = a->request->fetch;
    double started = samkv_now_ms();
    enum samkv_status status = tokenise_question(a, models, store);
    if (status)
        return status;
    fetch.query_text = NULL;
    fetch.query_tokens = a->query.data;
    fetch.query_count = a->query.count;
    if (a->request->method == SAMKV_ASK_FULL)
        fetch.compact = false;
    status = prompt(a, models, store, &fetch);
    /* As in samkv_fetch: damage is recomputed, and the answer only comes later. */
    if (status == SAMKV_CORRUPT && samkv_fetch_heal(models, store, &fetch, NULL) == SAMKV_OK) {
        samkv_fetch_job_close(&a->job);
        status = prompt(a, models, store, &fetch);
    }
    if (status)
        return status;
    a->job.started_ms = started;
    a->logits = a->job.logits;
    a->row = (int32_t)a->job.rows;
    a->position = a->job.position[a->job.rows - 1] + 1;
    a->out->prompt_tokens = a->job.rows;
    double since = samkv_now_ms();
    status = decode(a);
    samkv_trace_lap(fetch.trace, SAMKV_PHASE_DECODE, &since);
    a->out->answer_tokens = (uint32_t)a->tokens.count;
    a->out->total_ms = samkv_now_ms() - started;
    if (!status && a->request->method == SAMKV_ASK_SAMKV)
        status = samkv_fetch_job_report(&a->job, &a->out->fetch, a->err);
    return status;
}

enum samkv_status samkv_ask(struct samkv_models *models, struct samkv_store *store,
                            const struct samkv_ask_request *request,
                            bool (*on_text)(void *arg, const char *text, size_t bytes), void *arg,
                            struct samkv_ask_result *out, struct samkv_error *err)
{
    struct answer a = {.request = request, .on_text = on_text, .arg = arg, .out = out, .err = err};
    *out = (struct samkv_ask_result){.fetch.memfd = -1};
    a.max_tokens = request->max_tokens ? request->max_tokens : DEFAULT_ANSWER_TOKENS;
    if (a.max_tokens > MAX_ANSWER_TOKENS)
        return samkv_fail(err, SAMKV_INVALID, "an answer of %u tokens is too long: say at most %d", a.max_tokens,
                          MAX_ANSWER_TOKENS);
    samkv_ids_init(&a.query);
    samkv_ids_init(&a.tokens);
    enum samkv_status status = run(&a, models, store);
    samkv_fetch_job_close(&a.job);
    samkv_ids_deinit(&a.query);
    samkv_ids_deinit(&a.tokens);
    if (status)
        samkv_ask_result_deinit(out);
    return status;
}

void samkv_ask_result_deinit(struct samkv_ask_result *r)
{
    samkv_fetch_result_deinit(&r->fetch);
}
