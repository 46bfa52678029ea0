#include <stdlib.h>
#include <string.h>

#include "daemon/fetch/calibrate.h"
#include "daemon/ingest/spec.h"
#include "daemon/net/handlers.h"
#include "daemon/net/quality.h"

/* Calibration, which takes minutes, and tells how far it is. */

#define PROGRESS_MS 250

struct calibration {
    struct samkv_request *request;
    double told_ms;
    enum samkv_status status; /* of telling */
    struct samkv_error err;
};

static bool on_progress(void *arg, const struct samkv_calibrate_progress *p)
{
    struct calibration *c = arg;
    double now = samkv_now_ms();
    if (now - c->told_ms < PROGRESS_MS)
        return true;
    Samkv__CalibrateReply m = SAMKV__CALIBRATE_REPLY__INIT;
    c->told_ms = now;
    m.phase = (char *)p->phase;
    m.done = p->done;
    m.total = p->total;
    c->status = samkv_request_more(c->request, &m.base, &c->err);
    return c->status == SAMKV_OK;
}

/* ------------------------------------------------------------------ the request */

/* Heap, for the caller to free. Pointers are the message's. */
static struct samkv_given_question *read_questions(const Samkv__CalibrateRequest *m)
{
    struct samkv_given_question *out = calloc(m->n_questions + 1, sizeof *out);
    for (size_t i = 0; out && i < m->n_questions; i++) {
        const Samkv__CalibrateQuestion *q = m->questions[i];
        out[i] = (struct samkv_given_question){.raw = q->raw, .ids = (const char *const *)q->ids, .id_count = q->n_ids};
        if (q->tokens) {
            out[i].tokens = q->tokens->ids;
            out[i].token_count = q->tokens->n_ids;
        } else {
            out[i].text = (const char *)q->text.data;
            out[i].text_bytes = q->text.len;
        }
    }
    return out;
}

/* What the ratio is to reach: as the request says, else as the collection needs it. */
static enum samkv_status read_target(const struct samkv_service *service, const Samkv__CalibrateRequest *m,
                                     struct samkv_quality_target *out, struct samkv_error *err)
{
    struct samkv_gate_info gate;
    *out = (struct samkv_quality_target){.metric = SAMKV_QUALITY_NONE};
    if (*m->quality)
        return samkv_quality_parse(m->quality, out, err);
    if (samkv_gates_get(service->gates, m->collection, &gate))
        *out = gate.target;
    return SAMKV_OK;
}

static enum samkv_status run(struct samkv_request *r, const Samkv__CalibrateRequest *m,
                             struct samkv_calibrate_result *result, struct samkv_error *err)
{
    struct calibration telling = {.request = r, .told_ms = samkv_now_ms()};
    struct samkv_calibrate_request request = {
        .collection = m->collection,
        .questions = read_questions(m),
        .question_count = m->n_questions,
        .sample = m->sample,
        .seed = m->seed,
        .ratio = m->ratio_given_case == SAMKV__CALIBRATE_REQUEST__RATIO_GIVEN_RATIO ? m->ratio : 0,
        .fixed = m->selection == SAMKV__SELECTION__FIXED,
        .update = m->update == SAMKV__UPDATE__COSINE ? SAMKV_UPDATE_COSINE : SAMKV_UPDATE_OVERWRITE,
        .cancelled = &r->cancelled,
        .progress = on_progress,
        .progress_arg = &telling,
    };
    enum samkv_status st = request.questions ? read_target(r->service, m, &request.target, err) : SAMKV_NO_MEMORY;
    if (st == SAMKV_OK)
        st = samkv_calibrate(r->service->models, r->service->store, &request, result, err);
    if (telling.status != SAMKV_OK)
        st = samkv_fail(err, telling.status, "%s", telling.err.text);
    free((void *)request.questions);
    return st;
}

/* ------------------------------------------------------------------ the reply */

/* A reply with the arrays that it points to. */
struct calibrate_reply {
    Samkv__CalibrateReply message;
    Samkv__CalibrateLayer *layers, **layer_pointers;
    Samkv__CalibrateVariant variants[SAMKV_CALIBRATE_VARIANTS], *variant_pointers[SAMKV_CALIBRATE_VARIANTS];
    struct samkv_calibration_row calibration;
    struct samkv_quality_row quality;
};

static void fill_variant(struct samkv_calibrate_variant *v, Samkv__CalibrateVariant *m)
{
    samkv__calibrate_variant__init(m);
    m->kind = v->kind;
    m->what = v->what;
    m->layers = v->layers;
    m->n_layers = v->layer_count;
    m->ratio = v->ratio;
    m->fixed = v->fixed;
    m->recall = v->recall;
    m->agreement = v->close.agreement;
    m->agreement_error = v->agreement_error;
    m->kl = v->close.kl;
    m->kl_error = v->kl_error;
    m->sequence_ratio = v->sequence_ratio;
    m->recompute_ratio = v->recompute_ratio;
    m->ms = v->ms;
    m->chosen = v->chosen;
}

/* False without memory. */
static bool reply_fill(struct calibrate_reply *reply, struct samkv_calibrate_result *result)
{
    Samkv__CalibrateReply *m = &reply->message;
    samkv__calibrate_reply__init(m);
    reply->layers = calloc(result->layer_count + (size_t)1, sizeof *reply->layers);
    reply->layer_pointers = calloc(result->layer_count + (size_t)1, sizeof *reply->layer_pointers);
    if (!reply->layers || !reply->layer_pointers)
        return false;
    for (uint32_t l = 0; l < result->layer_count; l++) {
        samkv__calibrate_layer__init(&reply->layers[l]);
        reply->layers[l].layer = l;
        reply->layers[l].recall = result->layer_recall[l];
        reply->layer_pointers[l] = &reply->layers[l];
    }
    for (uint32_t v = 0; v < result->variant_count; v++) {
        fill_variant(&result->variants[v], &reply->variants[v]);
        reply->variant_pointers[v] = &reply->variants[v];
    }
    samkv_calibration_row_make(&result->calibration, result->model, &reply->calibration);
    m->samples = result->samples;
    m->full_ms = result->full_ms;
    m->layers = reply->layer_pointers;
    m->n_layers = result->layer_count;
    m->variants = reply->variant_pointers;
    m->n_variants = result->variant_count;
    m->calibration = &reply->calibration.message;
    return true;
}

static void reply_free(struct calibrate_reply *reply)
{
    if (!reply)
        return;
    free(reply->layers);
    free(reply->layer_pointers);
    free(reply);
}

static enum samkv_status apply(const struct samkv_service *service, const Samkv__CalibrateRequest *m,
                               const struct samkv_calibrate_result *result, struct samkv_error *err)
{
    enum samkv_status st = samkv_calibration_save(service->store, &result->calibration, err);
    if (st == SAMKV_OK)
        samkv_gates_seed(service->gates, m->collection, result->levels, result->samples);
    return st;
}

static enum samkv_status calibrate(struct samkv_request *r, const Samkv__CalibrateRequest *m,
                                   struct samkv_calibrate_result *result, struct samkv_outgoing **reply,
                                   struct samkv_error *err)
{
    enum samkv_status st = run(r, m, result, err);
    if (st == SAMKV_OK && m->apply)
        st = apply(r->service, m, result, err);
    if (st != SAMKV_OK)
        return st;
    struct calibrate_reply *answer = calloc(1, sizeof *answer);
    if (answer && reply_fill(answer, result)) {
        answer->message.applied = m->apply;
        answer->message.request = r->traced.id;
        if (samkv_quality_row_fill(r->service, m->collection, &answer->quality))
            answer->message.quality = &answer->quality.message;
        st = samkv_request_reply(r, &answer->message.base, NULL, reply, err);
    } else {
        st = SAMKV_NO_MEMORY;
    }
    reply_free(answer);
    return st;
}

static enum samkv_status forget(struct samkv_request *r, const Samkv__CalibrateRequest *m,
                                struct samkv_outgoing **reply, struct samkv_error *err)
{
    struct samkv_snapshot *snapshot;
    struct samkv_collection c = {0};
    struct samkv_engine *engine;
    Samkv__CalibrateReply answer = SAMKV__CALIBRATE_REPLY__INIT;
    enum samkv_status st = samkv_snapshot_begin(r->service->store, &snapshot, err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_spec_open(r->service->models, snapshot, m->collection, &c, &engine, err);
    samkv_snapshot_end(snapshot);
    if (st == SAMKV_OK) {
        st = samkv_calibration_forget(r->service->store, c.fingerprint, err);
        answer.applied = st == SAMKV_OK;
        if (st == SAMKV_NOT_FOUND)
            st = SAMKV_OK;
        samkv_collection_deinit(&c);
    }
    answer.request = r->traced.id;
    return st == SAMKV_OK ? samkv_request_reply(r, &answer.base, NULL, reply, err) : st;
}

enum samkv_status samkv_handle_calibrate(struct samkv_request *r, const ProtobufCMessage *message,
                                         struct samkv_outgoing **reply, struct samkv_error *err)
{
    Samkv__CalibrateRequest own = *(const Samkv__CalibrateRequest *)message;
    const Samkv__CalibrateRequest *m = &own;
    char collection[SAMKV_ID_MAX_BYTES + 1];
    enum samkv_status st = samkv_access_find(r, m->collection, SAMKV_RIGHT_READ, collection, err);
    if (st == SAMKV_OK && (m->apply || m->forget)) /* it is the model's, whoever uses it */
        st = samkv_access_check_admin(r, "change a model's calibration", err);
    if (st != SAMKV_OK)
        return st;
    own.collection = collection;
    if (m->forget)
        return forget(r, m, reply, err);
    struct samkv_calibrate_result *result = calloc(1, sizeof *result);
    if (!result)
        return SAMKV_NO_MEMORY;
    st = calibrate(r, m, result, reply, err);
    samkv_calibrate_result_deinit(result);
    free(result);
    return st;
}
