#include <stdlib.h>

#include "daemon/base/clock.h"
#include "daemon/fetch/evaluate.h"
#include "daemon/net/handle_fetch.h"
#include "daemon/net/handlers.h"

#define DEFAULT_SHARE        0.15
#define DEFAULT_FIRST_TOKENS 16

/* The pieces of the answer on their way. */
struct evaluate_stream {
    struct samkv_request *request;
    enum samkv_status status;
    struct samkv_error err;
};

static bool on_variant(void *arg, uint32_t variant, const struct samkv_evaluated *evaluated)
{
    struct evaluate_stream *stream = arg;
    Samkv__EvaluateReply piece = SAMKV__EVALUATE_REPLY__INIT;
    Samkv__Tokens tokens = SAMKV__TOKENS__INIT;
    struct samkv_fetch_message packed;
    piece.variant_given_case = SAMKV__EVALUATE_REPLY__VARIANT_GIVEN_VARIANT;
    piece.variant = variant;
    piece.text.data = (uint8_t *)evaluated->text;
    piece.text.len = evaluated->text ? evaluated->text_bytes : 0;
    tokens.ids = (int32_t *)evaluated->tokens;
    tokens.n_ids = evaluated->token_count;
    piece.tokens = &tokens;
    piece.log_likelihood = evaluated->log_likelihood;
    piece.gold_tokens = evaluated->gold_tokens;
    piece.kl = evaluated->kl;
    piece.agrees = evaluated->agrees;
    piece.first_token_ms = evaluated->first_token_ms;
    stream->status = samkv_fetch_message_init(&packed, stream->request, evaluated->fetch);
    piece.fetch = &packed.message;
    if (stream->status == SAMKV_OK)
        stream->status = samkv_request_more(stream->request, &piece.base, &stream->err);
    else
        samkv_fail(&stream->err, stream->status, "out of memory");
    samkv_fetch_message_deinit(&packed);
    return stream->status == SAMKV_OK;
}

static void read_variant(struct samkv_request *r, const Samkv__EvaluateVariant *m, const char *collection,
                         struct samkv_variant *out)
{
    static const Samkv__FetchRequest nothing = SAMKV__FETCH_REQUEST__INIT;
    static const enum samkv_evaluated_method methods[] = {
        [SAMKV__EVALUATED__EVALUATE_FULL] = SAMKV_EVALUATE_FULL,
        [SAMKV__EVALUATED__EVALUATE_REUSE] = SAMKV_EVALUATE_REUSE,
        [SAMKV__EVALUATED__EVALUATE_CACHEBLEND] = SAMKV_EVALUATE_CACHEBLEND,
        [SAMKV__EVALUATED__EVALUATE_EPIC] = SAMKV_EVALUATE_EPIC,
        [SAMKV__EVALUATED__EVALUATE_SAMKV] = SAMKV_EVALUATE_SAMKV,
    };
    static const enum samkv_cut cuts[] = {[SAMKV__CUT__CUT_NONE] = SAMKV_CUT_NONE,
                                          [SAMKV__CUT__CUT_FIRST] = SAMKV_CUT_FIRST,
                                          [SAMKV__CUT__CUT_RANDOM] = SAMKV_CUT_RANDOM};
    *out = (struct samkv_variant){.method = methods[m->method],
                                  .cut = cuts[m->cut],
                                  .share = m->share > 0 ? m->share : DEFAULT_SHARE,
                                  .first_tokens = m->first_tokens ? m->first_tokens : DEFAULT_FIRST_TOKENS};
    samkv_fetch_message_read(r, m->fetch ? m->fetch : &nothing, collection, &out->fetch);
    out->fetch.uncalibrated = true; /* what is compared must not depend on it */
    if (!(out->fetch.ratio > 0))
        out->fetch.ratio = SAMKV_FETCH_RATIO;
}

static enum samkv_status evaluate(struct samkv_request *r, const Samkv__EvaluateRequest *m,
                                  struct evaluate_stream *stream, struct samkv_error *err)
{
    char collection[SAMKV_ID_MAX_BYTES + 1];
    enum samkv_status st = samkv_access_find(r, m->collection, SAMKV_RIGHT_READ, collection, err);
    if (st != SAMKV_OK)
        return st;
    struct samkv_variant *variants = calloc(m->n_variants, sizeof *variants);
    if (!variants)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < m->n_variants; i++)
        read_variant(r, m->variants[i], collection, &variants[i]);
    const struct samkv_evaluate_request request = {
        .collection = collection,
        .ids = (const char *const *)m->ids,
        .id_count = m->n_ids,
        .question = (const char *)m->question.data,
        .question_bytes = m->question.len,
        .raw = m->raw,
        .query_tokens = m->query_tokens ? m->query_tokens->ids : NULL,
        .query_count = m->query_tokens ? m->query_tokens->n_ids : 0,
        .gold = (const char *)m->gold.data,
        .gold_bytes = m->gold.len,
        .gold_tokens = m->gold_tokens ? m->gold_tokens->ids : NULL,
        .gold_count = m->gold_tokens ? m->gold_tokens->n_ids : 0,
        .max_tokens = m->max_tokens,
        .seed = m->seed,
        .variants = variants,
        .variant_count = m->n_variants,
        .cancelled = &r->cancelled,
        .trace = &r->traced.trace,
    };
    st = samkv_evaluate(r->service->models, r->service->store, &request, on_variant, stream, err);
    free(variants);
    return st;
}

enum samkv_status samkv_handle_evaluate(struct samkv_request *r, const ProtobufCMessage *message,
                                        struct samkv_outgoing **reply, struct samkv_error *err)
{
    struct evaluate_stream stream = {.request = r};
    Samkv__EvaluateReply last = SAMKV__EVALUATE_REPLY__INIT;
    double started = samkv_now_ms();
    enum samkv_status st = evaluate(r, (const Samkv__EvaluateRequest *)message, &stream, err);
    samkv_metrics_add(&r->service->metrics, SAMKV_METRIC_REPAIRED, r->traced.trace.repaired);
    if (stream.status != SAMKV_OK) /* it stopped because we said so */
        return samkv_fail(err, stream.status, "%s", stream.err.text);
    if (st != SAMKV_OK)
        return st;
    last.total_ms = samkv_now_ms() - started + r->waited_ms;
    last.request = r->traced.id;
    return samkv_request_reply(r, &last.base, NULL, reply, err);
}
