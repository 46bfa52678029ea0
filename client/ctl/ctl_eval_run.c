/*
 * Several questions on their way at once: the documents of each go in, then it is evaluated, so that a store with a
 * limit may evict what is done. Ctrl-C sends nothing more and waits for what is in flight.
 */
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/ctl/ctl.h"
#include "client/ctl/ctl_eval.h"
#include "client/ctl/ctl_progress.h"
#include "client/ctl/ctl_text.h"

#define MAX_FLIGHTS    16
#define MAX_INGESTS    8 /* of one question at a time */
#define WAIT_MS        200
#define BUSY_WAIT_S    0.2
#define SHOWN_FAILURES 20
#define MAX_ATTEMPTS   3 /* of a question whose documents were evicted before it was answered */

struct flight {
    bool used;
    size_t question;
    size_t next_document, stored; /* sent and answered */
    uint64_t ingests[MAX_INGESTS];
    size_t ingest_count;
    uint64_t evaluation; /* 0: not sent */
    int attempts;
    double again_s; /* the daemon was busy: not before */
    json_t *variants;
};

struct run {
    struct eval_results *results;
    const struct eval_setup *setup;
    const char **ids; /* of the question being sent, scratch */
    struct samkv_evaluated_variant *variants;
    struct flight flights[MAX_FLIGHTS];
    int flying;
    size_t next_question, done;
    uint64_t *failed;
    double start_s;
    struct ctl_progress progress;
    enum samkv_status status; /* not OK: it is over */
    struct samkv_error *err;
};

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    (void)number;
    if (interrupted++)
        _exit(CTL_FAILED);
}

static const struct eval_question *question_of(const struct run *run, const struct flight *f)
{
    return &run->results->questions->list[f->question];
}

/* ------------------------------------------------------------------ telling */

static void show_progress(struct run *run)
{
    char text[128];
    struct ctl_buffer left;
    size_t all = run->results->questions->count;
    double seconds = ctl_now_s() - run->start_s, share = all ? (double)run->done / (double)all : 1;
    size_t at = (size_t)snprintf(text, sizeof text, "%zu/%zu questions", run->done, all);
    if (run->done && seconds > 5)
        snprintf(text + at, sizeof text - at, "  ETA %s", ctl_duration(&left, seconds * (1 - share) / share));
    ctl_progress_show(&run->progress, share, text);
}

static void land(struct run *run, struct flight *f)
{
    json_decref(f->variants);
    *f = (struct flight){0};
    run->flying--;
    run->done++;
}

static void give_up(struct run *run, struct flight *f, const char *why)
{
    if (++*run->failed <= SHOWN_FAILURES) {
        ctl_progress_clear(&run->progress);
        ctl_error("%s: %s", question_of(run, f)->key, why);
    }
    land(run, f);
}

/* ------------------------------------------------------------------ sending */

static void postpone(struct flight *f)
{
    f->again_s = ctl_now_s() + BUSY_WAIT_S;
}

/* False: not now, or never again. */
static bool sent(struct run *run, struct flight *f, const struct samkv_error *err)
{
    if (err->status == SAMKV_BUSY)
        postpone(f);
    else if (samkv_client_fd(run->setup->client) >= 0)
        give_up(run, f, err->text);
    return false; /* else the connection is over, which shows in process */
}

static bool send_document(struct run *run, struct flight *f)
{
    const struct eval_question *q = question_of(run, f);
    const struct eval_document *from = &q->documents[f->next_document];
    struct samkv_document d;
    struct samkv_error err;
    samkv_document_init(&d);
    d.collection = run->setup->collection;
    d.id = from->id;
    d.text = from->text;
    d.text_bytes = from->text ? strlen(from->text) : 0;
    d.tokens = from->text ? NULL : from->tokens.ids;
    d.token_count = from->tokens.count;
    d.spec = run->setup->spec;
    if (q->preamble.ids) {
        d.spec.has_preamble = true;
        d.spec.preamble = NULL;
        d.spec.preamble_bytes = 0;
        d.spec.preamble_tokens = q->preamble.ids;
        d.spec.preamble_token_count = q->preamble.count;
    }
    if (samkv_client_submit_ingest(run->setup->client, &d, &f->ingests[f->ingest_count], &err))
        return sent(run, f, &err);
    f->ingest_count++;
    f->next_document++;
    return true;
}

static void send_evaluation(struct run *run, struct flight *f)
{
    const struct eval_question *q = question_of(run, f);
    struct samkv_error err;
    for (size_t i = 0; i < q->document_count; i++)
        run->ids[i] = q->documents[i].id;
    const char *gold = q->answers ? json_string_value(json_array_get(q->answers, 0)) : NULL;
    const struct samkv_evaluate_options options = {
        .collection = run->setup->collection,
        .ids = run->ids,
        .id_count = q->document_count,
        .question = q->text,
        .question_bytes = q->text ? strlen(q->text) : 0,
        .query_tokens = q->text ? NULL : q->query.ids,
        .query_token_count = q->query.count,
        .gold = gold,
        .gold_bytes = gold ? strlen(gold) : 0,
        .gold_tokens = q->text ? NULL : q->gold.ids,
        .gold_token_count = q->gold.count,
        .max_tokens = q->text ? run->setup->max_tokens : (uint32_t)q->gold.count,
        .seed = run->setup->seed + f->question,
        .variants = run->variants,
        .variant_count = run->results->variants->count,
    };
    if (samkv_client_submit_evaluate(run->setup->client, &options, &f->evaluation, &err)) {
        f->evaluation = 0;
        (void)sent(run, f, &err);
    }
}

static void advance(struct run *run, struct flight *f)
{
    const struct eval_question *q = question_of(run, f);
    if (f->evaluation || ctl_now_s() < f->again_s)
        return;
    while (f->next_document < q->document_count && f->ingest_count < MAX_INGESTS)
        if (!send_document(run, f))
            return;
    if (f->stored == q->document_count)
        send_evaluation(run, f);
}

static void start_questions(struct run *run)
{
    const struct eval_results *r = run->results;
    while (run->flying < run->setup->parallel && !interrupted) {
        while (run->next_question < r->questions->count && r->done[run->next_question])
            run->next_question++;
        if (run->next_question == r->questions->count)
            return;
        struct flight *f = run->flights;
        while (f->used)
            f++;
        *f = (struct flight){.used = true, .question = run->next_question++};
        f->variants = json_array();
        for (size_t v = 0; v < r->variants->count; v++)
            json_array_append_new(f->variants, json_null());
        run->flying++;
    }
}

/* ------------------------------------------------------------------ answers */

static bool is_kept(const struct samkv_figures *figures, uint32_t document, uint32_t token)
{
    const struct samkv_blocks_kept *kept = &figures->keep[document];
    for (size_t i = 0; i < kept->count; i++)
        if (kept->blocks[i] == token / figures->block_tokens)
            return true;
    return false;
}

/* The share of the facts of which every token is kept. */
static double facts_kept(const struct eval_question *q, const struct samkv_figures *figures)
{
    size_t whole = 0;
    if (!q->fact_count || !figures->block_tokens || figures->documents != q->document_count)
        return NAN;
    for (size_t i = 0; i < q->fact_count; i++) {
        uint32_t t = 0;
        while (t < q->facts[i].count && is_kept(figures, q->facts[i].document, q->facts[i].first + t))
            t++;
        whole += t == q->facts[i].count;
    }
    return (double)whole / (double)q->fact_count;
}

static void measure(const struct eval_question *q, const struct samkv_evaluate_answer *a, double *values)
{
    bool same = a->token_count == q->gold.count &&
                (!q->gold.count || !memcmp(a->tokens, q->gold.ids, q->gold.count * sizeof *a->tokens));
    values[EVAL_SCORE] = q->answers ? eval_score(a->text, a->text_bytes, q->answers) : same;
    values[EVAL_EXACT] = q->answers ? eval_exact(a->text, a->text_bytes, q->answers) : same;
    values[EVAL_LIKELIHOOD] = a->gold_tokens ? a->log_likelihood / a->gold_tokens : NAN;
    values[EVAL_KL] = a->kl;
    values[EVAL_AGREES] = a->agrees;
    values[EVAL_SEQUENCE] = a->figures->sequence_ratio;
    values[EVAL_RECOMPUTE] = a->figures->recompute_ratio;
    values[EVAL_BYTES] = (double)a->figures->bytes_read;
    values[EVAL_FIRST_TOKEN_MS] = a->first_token_ms;
    values[EVAL_FACTS] = facts_kept(q, a->figures);
}

static json_t *answer_json(const struct eval_variant *variant, const struct samkv_evaluate_answer *a,
                           const double *values)
{
    char name[256], *text = a->text_bytes ? strndup(a->text, a->text_bytes) : NULL;
    json_t *o = json_object();
    eval_variant_name(variant, name, sizeof name);
    json_object_set_new(o, "variant", ctl_json_text(name));
    if (text)
        json_object_set_new(o, "answer", ctl_json_text(text));
    else
        json_object_set_new(o, "tokens", json_array());
    for (size_t i = 0; !text && i < a->token_count; i++)
        json_array_append_new(json_object_get(o, "tokens"), json_integer(a->tokens[i]));
    for (size_t m = 0; m < EVAL_MEASURES; m++)
        if (!isnan(values[m]))
            json_object_set_new(o, eval_measures[m].key, ctl_json_real(values[m]));
    free(text);
    return o;
}

static void on_piece(struct run *run, struct flight *f, const struct samkv_evaluate_answer *a)
{
    const struct eval_results *r = run->results;
    if (a->variant < 0 || (size_t)a->variant >= r->variants->count || !a->figures)
        return;
    double *values = eval_results_at(r, f->question, (size_t)a->variant);
    measure(question_of(run, f), a, values);
    json_array_set_new(f->variants, (size_t)a->variant, answer_json(&r->variants->list[a->variant], a, values));
}

static void on_evaluated(struct run *run, struct flight *f, const struct samkv_reply *reply)
{
    if (reply->status == SAMKV_BUSY) {
        f->evaluation = 0;
        postpone(f);
    } else if (reply->status == SAMKV_NOT_FOUND && ++f->attempts < MAX_ATTEMPTS) {
        f->evaluation = 0; /* evicted for others: once more */
        f->next_document = f->stored = 0;
    } else if (reply->status) {
        give_up(run, f, reply->error.text);
    } else {
        on_piece(run, f, &reply->answer.evaluate);
        if (reply->more)
            return;
        json_t *variants = f->variants;
        f->variants = NULL;
        run->status = eval_results_write(run->results, f->question, variants, run->err);
        land(run, f);
    }
}

/* Documents that the daemon was too busy for are sent again with all others: those that are there are skipped. */
static void on_ingested(struct run *run, struct flight *f, size_t i, const struct samkv_reply *reply)
{
    f->ingests[i] = f->ingests[--f->ingest_count];
    if (!reply->status) {
        f->stored++;
        return;
    }
    if (reply->status != SAMKV_BUSY) {
        bool hopeless = reply->status == SAMKV_MISMATCH || reply->status == SAMKV_FULL;
        if (hopeless) {
            run->status = reply->status;
            samkv_fail(run->err, reply->status, "%s", reply->error.text);
        } else {
            give_up(run, f, reply->error.text);
        }
        return;
    }
    postpone(f);
    f->next_document = f->stored = 0;
    for (size_t k = 0; k < f->ingest_count; k++)
        samkv_client_abandon(run->setup->client, f->ingests[k]);
    f->ingest_count = 0;
}

static void on_reply(struct run *run, const struct samkv_reply *reply)
{
    for (int i = 0; i < MAX_FLIGHTS; i++) {
        struct flight *f = &run->flights[i];
        if (f->used && f->evaluation && f->evaluation == reply->request) {
            on_evaluated(run, f, reply);
            return;
        }
        for (size_t k = 0; f->used && k < f->ingest_count; k++) {
            if (f->ingests[k] == reply->request) {
                on_ingested(run, f, k, reply);
                return;
            }
        }
    }
}

/* ------------------------------------------------------------------ the loop */

static void take_replies(struct run *run)
{
    struct samkv_reply reply;
    enum samkv_status status = samkv_client_process(run->setup->client, run->err);
    while (samkv_client_next(run->setup->client, &reply)) {
        if (!status && !run->status)
            on_reply(run, &reply);
        samkv_reply_deinit(&reply);
    }
    if (status)
        run->status = status;
}

static void wait_for_replies(const struct run *run)
{
    struct samkv_client *client = run->setup->client;
    int wait_ms = samkv_client_wait_ms(client);
    struct pollfd p = {.fd = samkv_client_fd(client), .events = POLLIN};
    if (samkv_client_wants_write(client))
        p.events |= POLLOUT;
    poll(&p, 1, wait_ms >= 0 && wait_ms < WAIT_MS ? wait_ms : WAIT_MS);
}

static void loop(struct run *run)
{
    while (!run->status) {
        start_questions(run);
        if (!run->flying)
            return;
        for (int i = 0; i < MAX_FLIGHTS; i++)
            if (run->flights[i].used)
                advance(run, &run->flights[i]);
        take_replies(run);
        show_progress(run);
        if (!run->status && run->flying)
            wait_for_replies(run);
    }
}

static void catch_interrupt(void)
{
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

enum samkv_status eval_run(struct eval_results *results, const struct eval_setup *setup, uint64_t *failed,
                           struct samkv_error *err)
{
    struct run run = {.results = results, .setup = setup, .failed = failed, .start_s = ctl_now_s(), .err = err};
    size_t most = 0, variants = results->variants->count;
    for (size_t i = 0; i < results->questions->count; i++) {
        size_t documents = results->questions->list[i].document_count;
        most = documents > most ? documents : most;
        run.done += results->done[i];
    }
    run.ids = calloc(most + 1, sizeof *run.ids);
    run.variants = calloc(variants + 1, sizeof *run.variants);
    if (run.ids && run.variants) {
        for (size_t v = 0; v < variants; v++)
            run.variants[v] = results->variants->list[v].options;
        ctl_progress_init(&run.progress);
        catch_interrupt();
        loop(&run);
        ctl_progress_clear(&run.progress);
    } else {
        run.status = samkv_fail(err, SAMKV_NO_MEMORY, "no memory");
    }
    for (int i = 0; i < MAX_FLIGHTS; i++)
        json_decref(run.flights[i].variants);
    free(run.ids);
    free(run.variants);
    if (!run.status && interrupted)
        return samkv_fail(err, SAMKV_CANCELLED, "interrupted: --resume goes on with what is left");
    return run.status;
}
