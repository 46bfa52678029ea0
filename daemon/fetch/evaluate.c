#include "daemon/fetch/evaluate.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/fetch/evaluate_work.h"
#include "daemon/fetch/heal.h"
#include "daemon/model/chat.h"

#define DEFAULT_TOKENS 32

/* ------------------------------------------------------------------ the question */

static enum samkv_status encode_question(struct samkv_eval *e, const struct samkv_collection *collection,
                                         struct samkv_error *err)
{
    const struct samkv_evaluate_request *r = e->request;
    const struct samkv_model *model = e->engine->model;
    if (r->query_tokens)
        return samkv_ids_append(&e->query, r->query_tokens, r->query_count)
                   ? samkv_fail(err, SAMKV_NO_MEMORY, "out of memory")
                   : SAMKV_OK;
    if (!model->tokenizer)
        return samkv_fail(err, SAMKV_UNSUPPORTED, "model '%s' has no tokenizer: give the question as tokens",
                          model->name);
    if (r->raw)
        return samkv_tokenizer_encode(model->tokenizer, r->question, r->question_bytes, SAMKV_ENCODE_SPECIAL, &e->query,
                                      err);
    return samkv_chat_query(model, collection->preamble, collection->preamble_tokens, r->question, r->question_bytes,
                            &e->query, err);
}

static enum samkv_status encode_gold(struct samkv_eval *e, struct samkv_error *err)
{
    const struct samkv_evaluate_request *r = e->request;
    const struct samkv_model *model = e->engine->model;
    enum samkv_status status = SAMKV_OK;
    if (r->gold_tokens) {
        status = samkv_ids_append(&e->gold, r->gold_tokens, r->gold_count);
        if (status)
            return samkv_fail(err, status, "out of memory");
    } else if (r->gold_bytes) {
        if (!model->tokenizer)
            return samkv_fail(err, SAMKV_UNSUPPORTED, "model '%s' has no tokenizer: give the gold answer as tokens",
                              model->name);
        status = samkv_tokenizer_encode(model->tokenizer, r->gold, r->gold_bytes, 0, &e->gold, err);
    }
    if (e->gold.count > SAMKV_EVALUATED_GOLD_TOKENS)
        e->gold.count = SAMKV_EVALUATED_GOLD_TOKENS;
    for (size_t i = 0; i < e->gold.count && !status; i++)
        if (e->gold.data[i] < 0 || (uint32_t)e->gold.data[i] >= model->config.vocab)
            status = samkv_fail(err, SAMKV_INVALID, "gold token %zu is %d: the model's vocabulary is 0 to %u", i,
                                e->gold.data[i], model->config.vocab - 1);
    return status;
}

static enum samkv_status tokenise(struct samkv_eval *e, struct samkv_error *err)
{
    struct samkv_snapshot *snapshot;
    struct samkv_collection collection;
    enum samkv_status status = samkv_snapshot_begin(e->store, &snapshot, err);
    if (status)
        return status;
    status = samkv_spec_open(e->models, snapshot, e->request->collection, &collection, &e->engine, err);
    samkv_snapshot_end(snapshot);
    if (status)
        return status;
    status = encode_question(e, &collection, err);
    if (!status)
        status = encode_gold(e, err);
    samkv_collection_deinit(&collection);
    return status;
}

/* ------------------------------------------------------------------ results */

struct teller {
    bool (*on_variant)(void *arg, uint32_t variant, const struct samkv_evaluated *);
    void *arg;
};

static bool is_full_answer(const struct samkv_eval *e, const struct samkv_ids *answer)
{
    return answer->count == e->full_answer.count &&
           (!answer->count || !memcmp(answer->data, e->full_answer.data, answer->count * sizeof *answer->data));
}

static enum samkv_status tell(const struct samkv_eval *e, const struct samkv_eval_slot *slot,
                              const struct teller *teller, struct samkv_error *err)
{
    const struct samkv_tokenizer *tokenizer = e->engine->model->tokenizer;
    char *text = NULL;
    struct samkv_evaluated out = {.tokens = slot->answer.data,
                                  .token_count = slot->answer.count,
                                  .log_likelihood = slot->log_likelihood,
                                  .gold_tokens = (uint32_t)e->gold.count,
                                  .kl = slot->kl,
                                  .agrees = is_full_answer(e, &slot->answer),
                                  .first_token_ms = slot->first_token_ms,
                                  .fetch = &slot->fetch};
    enum samkv_status status = SAMKV_OK;
    if (tokenizer)
        status = samkv_tokenizer_decode(tokenizer, out.tokens, out.token_count, true, &text, &out.text_bytes, err);
    out.text = text;
    bool more = status || teller->on_variant(teller->arg, slot->variant, &out);
    free(text);
    return more ? status : samkv_fail(err, SAMKV_CANCELLED, "cancelled: the client is gone");
}

/* The full cache is one slot, however many variants name it. */
static enum samkv_status tell_full(const struct samkv_eval *e, struct samkv_eval_slot *slot,
                                   const struct teller *teller, struct samkv_error *err)
{
    enum samkv_status status = SAMKV_OK;
    for (size_t v = 0; v < e->request->variant_count && !status; v++) {
        slot->variant = (uint32_t)v;
        if (e->request->variants[v].method == SAMKV_EVALUATE_FULL)
            status = tell(e, slot, teller, err);
    }
    return status;
}

static void empty_slots(struct samkv_eval *e)
{
    for (size_t i = 0; i < e->slot_count; i++) {
        free(e->slots[i].logits);
        samkv_ids_deinit(&e->slots[i].answer);
        samkv_fetch_result_deinit(&e->slots[i].fetch);
    }
    e->slot_count = 0;
    e->used_rows = 0;
}

/* Decodes what is in the arena, tells of it, and makes room. */
static enum samkv_status flush(struct samkv_eval *e, bool *has_full, const struct teller *teller,
                               struct samkv_error *err)
{
    enum samkv_status status = samkv_eval_decode(e, err);
    if (!status && *has_full && samkv_ids_append(&e->full_answer, e->slots[0].answer.data, e->slots[0].answer.count))
        status = samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < e->slot_count && !status; i++)
        status = *has_full && i == 0 ? tell_full(e, &e->slots[i], teller, err) : tell(e, &e->slots[i], teller, err);
    *has_full = false;
    empty_slots(e);
    return status;
}

/* ------------------------------------------------------------------ the whole */

/* As in samkv_fetch: damage is recomputed, and the answer only comes later. */
static enum samkv_status fill(struct samkv_eval *e, uint32_t v, const struct samkv_variant *variant, bool *fits,
                              struct samkv_error *err)
{
    enum samkv_status status = samkv_eval_fill(e, v, variant, fits, err);
    if (status != SAMKV_CORRUPT)
        return status;
    const struct samkv_fetch_request fetch = samkv_eval_fetch(e, variant);
    if (samkv_fetch_heal(e->models, e->store, &fetch, NULL))
        return status;
    return samkv_eval_fill(e, v, variant, fits, err);
}

static enum samkv_status run(struct samkv_eval *e, const struct teller *teller, struct samkv_error *err)
{
    struct samkv_variant full = {.method = SAMKV_EVALUATE_FULL};
    bool has_full = true, fits;
    samkv_fetch_request_init(&full.fetch);
    enum samkv_status status = tokenise(e, err);
    if (!status)
        status = fill(e, 0, &full, &fits, err);
    for (uint32_t v = 0; v < e->request->variant_count && !status; v++) {
        const struct samkv_variant *variant = &e->request->variants[v];
        if (variant->method == SAMKV_EVALUATE_FULL)
            continue;
        status = fill(e, v, variant, &fits, err);
        if (status || fits)
            continue;
        status = flush(e, &has_full, teller, err);
        if (!status)
            status = fill(e, v, variant, &fits, err);
        if (!status && !fits)
            status = samkv_fail(err, SAMKV_INTERNAL, "a variant of an evaluation needs more rows than the full cache");
    }
    return status ? status : flush(e, &has_full, teller, err);
}

enum samkv_status samkv_evaluate(struct samkv_models *models, struct samkv_store *store,
                                 const struct samkv_evaluate_request *request,
                                 bool (*on_variant)(void *arg, uint32_t variant, const struct samkv_evaluated *),
                                 void *arg, struct samkv_error *err)
{
    struct samkv_eval e = {.models = models, .store = store, .request = request};
    const struct teller teller = {on_variant, arg};
    e.max_tokens = request->max_tokens ? request->max_tokens : DEFAULT_TOKENS;
    samkv_ids_init(&e.query);
    samkv_ids_init(&e.gold);
    samkv_ids_init(&e.full_answer);
    e.slots = calloc(request->variant_count + 1, sizeof *e.slots);
    enum samkv_status status = e.slots ? run(&e, &teller, err) : samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    empty_slots(&e);
    if (e.engine)
        samkv_kv_cache_deinit(&e.arena, e.engine->device);
    free(e.slots);
    free(e.full_logits);
    samkv_ids_deinit(&e.query);
    samkv_ids_deinit(&e.gold);
    samkv_ids_deinit(&e.full_answer);
    return status;
}
