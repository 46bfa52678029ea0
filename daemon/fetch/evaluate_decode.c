/* Answers from several caches side by side: each token of each is one row of one pass. */
#include <math.h>
#include <stdlib.h>

#include "daemon/fetch/evaluate_work.h"
#include "daemon/model/chat.h"

/* Rows of one pass; their logits are on the host. */
#define STEP_ROWS 64

struct step {
    struct samkv_eval *e;
    int n;
    int32_t ids[STEP_ROWS], positions[STEP_ROWS], rows[STEP_ROWS], firsts[STEP_ROWS], limits[STEP_ROWS];
    struct samkv_eval_slot *slots[STEP_ROWS];
    size_t gold[STEP_ROWS]; /* which of the gold tokens each row is */
    float *logits;          /* [STEP_ROWS][vocab] */
    enum samkv_status status;
    struct samkv_error *err;
};

/* ------------------------------------------------------------------ distributions */

static double log_sum_exp(const float *logits, uint32_t vocab)
{
    float highest = logits[0];
    double sum = 0;
    for (uint32_t i = 1; i < vocab; i++)
        highest = logits[i] > highest ? logits[i] : highest;
    for (uint32_t i = 0; i < vocab; i++)
        sum += (double)expf(logits[i] - highest);
    return (double)highest + log(sum);
}

double samkv_eval_kl(const float *p, const float *q, uint32_t vocab)
{
    double p_all = log_sum_exp(p, vocab), q_all = log_sum_exp(q, vocab), sum = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        double log_p = (double)p[i] - p_all;
        if (log_p > -60) /* what is left out is less than rounding */
            sum += exp(log_p) * (log_p - ((double)q[i] - q_all));
    }
    return sum > 0 ? sum : 0;
}

double samkv_eval_log_likelihood(const float *logits, uint32_t vocab, int32_t token)
{
    return (double)logits[token] - log_sum_exp(logits, vocab);
}

static int32_t best_token(const float *logits, uint32_t vocab)
{
    int32_t best = 0;
    for (uint32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = (int32_t)i;
    return best;
}

/* ------------------------------------------------------------------ a pass */

static void step_on_lane(void *arg)
{
    struct step *s = arg;
    const struct samkv_engine *engine = s->e->engine;
    const struct samkv_pass pass = {
        .n = s->n,
        .ids = s->ids,
        .positions = s->positions,
        .cache_rows = s->rows,
        .firsts = s->firsts,
        .limits = s->limits,
        .depth = engine->model->config.layers,
        .logits = s->logits,
        .logits_rows = s->n,
        .cancelled = s->e->request->cancelled,
    };
    s->status = samkv_forward(engine->model, engine->stream, engine->workspace, &pass, &s->e->arena, s->err);
}

static enum samkv_status run_step(struct step *s)
{
    if (!s->n)
        return SAMKV_OK;
    samkv_lane_call(s->e->engine->lane, SAMKV_URGENT, step_on_lane, s);
    return s->status;
}

/* A token that is `ahead` places behind the slot's prompt. */
static void add(struct step *s, struct samkv_eval_slot *slot, size_t ahead, int32_t token)
{
    int i = s->n++;
    s->slots[i] = slot;
    s->gold[i] = ahead;
    s->ids[i] = token;
    s->positions[i] = slot->position + (int32_t)ahead;
    s->rows[i] = (int32_t)(slot->first_row + slot->rows + ahead);
    s->firsts[i] = (int32_t)slot->first_row;
    s->limits[i] = s->rows[i] + 1;
}

static const float *logits_of(const struct step *s, int i)
{
    return s->logits + (size_t)i * s->e->engine->model->config.vocab;
}

/* ------------------------------------------------------------------ the gold answer */

static enum samkv_status judge_gold(struct step *s)
{
    const struct samkv_ids *gold = &s->e->gold;
    uint32_t vocab = s->e->engine->model->config.vocab;
    enum samkv_status status = run_step(s);
    for (int i = 0; i < s->n && !status; i++)
        s->slots[i]->log_likelihood += samkv_eval_log_likelihood(logits_of(s, i), vocab, gold->data[s->gold[i] + 1]);
    s->n = 0;
    return status;
}

static enum samkv_status read_gold(struct step *s)
{
    struct samkv_eval *e = s->e;
    enum samkv_status status = SAMKV_OK;
    for (size_t i = 0; i < e->slot_count && e->gold.count; i++) {
        struct samkv_eval_slot *slot = &e->slots[i];
        slot->log_likelihood = samkv_eval_log_likelihood(slot->logits, e->engine->model->config.vocab, e->gold.data[0]);
        for (size_t t = 0; t + 1 < e->gold.count && !status; t++) {
            add(s, slot, t, e->gold.data[t]);
            if (s->n == STEP_ROWS)
                status = judge_gold(s);
        }
    }
    return status ? status : judge_gold(s);
}

/* ------------------------------------------------------------------ the greedy answer */

static enum samkv_status take_logits(struct step *s)
{
    uint32_t vocab = s->e->engine->model->config.vocab;
    enum samkv_status status = run_step(s);
    for (int i = 0; i < s->n && !status; i++)
        for (uint32_t j = 0; j < vocab; j++)
            s->slots[i]->logits[j] = logits_of(s, i)[j];
    s->n = 0;
    return status;
}

/* The slot's next token; true when another one is to follow it. */
static bool take_token(struct samkv_eval *e, struct samkv_eval_slot *slot, enum samkv_status *status)
{
    int32_t token = best_token(slot->logits, e->engine->model->config.vocab);
    if (samkv_chat_is_end(e->engine->model, token))
        slot->ended = true;
    else
        *status = samkv_ids_push(&slot->answer, token);
    slot->ended |= slot->answer.count >= e->max_tokens;
    return !slot->ended;
}

static enum samkv_status answer(struct step *s)
{
    struct samkv_eval *e = s->e;
    enum samkv_status status = SAMKV_OK;
    for (bool more = true; more && !status;) {
        more = false;
        for (size_t i = 0; i < e->slot_count && !status; i++) {
            struct samkv_eval_slot *slot = &e->slots[i];
            if (slot->ended || !take_token(e, slot, &status))
                continue;
            more = true;
            add(s, slot, slot->answer.count - 1, slot->answer.data[slot->answer.count - 1]);
            if (s->n == STEP_ROWS)
                status = take_logits(s);
        }
        if (!status)
            status = take_logits(s);
    }
    return status == SAMKV_NO_MEMORY ? samkv_fail(s->err, status, "out of memory") : status;
}

enum samkv_status samkv_eval_decode(struct samkv_eval *e, struct samkv_error *err)
{
    struct step step = {.e = e, .err = err};
    step.logits = malloc(STEP_ROWS * (size_t)e->engine->model->config.vocab * sizeof *step.logits);
    if (!step.logits)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    enum samkv_status status = read_gold(&step);
    if (!status)
        status = answer(&step);
    free(step.logits);
    return status;
}
