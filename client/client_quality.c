/* Quality gates and calibration: requests and answers. */
#include "client/client_internal.h"

#include <stdlib.h>
#include <string.h>

static char *text(const char *s)
{
    return (char *)(s ? s : "");
}

enum samkv_status samkv_client_submit_set_quality(struct samkv_client *client, const char *collection,
                                                  const char *quality, double share, uint64_t *request,
                                                  struct samkv_error *err)
{
    Samkv__ConfigureRequest message = SAMKV__CONFIGURE_REQUEST__INIT;
    message.collection = text(collection);
    if (quality) {
        message.quality_given_case = SAMKV__CONFIGURE_REQUEST__QUALITY_GIVEN_QUALITY;
        message.quality = text(quality);
    }
    if (share != -1) {
        message.gate_share_given_case = SAMKV__CONFIGURE_REQUEST__GATE_SHARE_GIVEN_GATE_SHARE;
        message.gate_share = share;
    }
    return samkv_client_submit(client, SAMKV_OPERATION_CONFIGURE, &message.base, request, err);
}

void samkv_calibrate_options_init(struct samkv_calibrate_options *options)
{
    *options = (struct samkv_calibrate_options){.ratio = -1};
}

/* A question's message with its tokens'. */
struct question {
    Samkv__CalibrateQuestion message;
    Samkv__Tokens tokens;
};

static void fill_question(struct question *q, const struct samkv_calibrate_question *from)
{
    samkv__calibrate_question__init(&q->message);
    samkv__tokens__init(&q->tokens);
    q->message.raw = from->raw;
    q->message.ids = (char **)from->ids;
    q->message.n_ids = from->id_count;
    if (from->text) {
        q->message.text = (ProtobufCBinaryData){.len = from->text_bytes, .data = (uint8_t *)from->text};
    } else {
        q->tokens.ids = (int32_t *)from->tokens;
        q->tokens.n_ids = from->token_count;
        q->message.tokens = &q->tokens;
    }
}

enum samkv_status samkv_client_submit_calibrate(struct samkv_client *client,
                                                const struct samkv_calibrate_options *options, uint64_t *request,
                                                struct samkv_error *err)
{
    Samkv__CalibrateRequest message = SAMKV__CALIBRATE_REQUEST__INIT;
    size_t count = options->questions ? options->question_count : 0;
    struct question *questions = calloc(count + 1, sizeof *questions);
    Samkv__CalibrateQuestion **pointers = calloc(count + 1, sizeof *pointers);
    enum samkv_status status = SAMKV_NO_MEMORY;
    if (questions && pointers) {
        for (size_t i = 0; i < count; i++) {
            fill_question(&questions[i], &options->questions[i]);
            pointers[i] = &questions[i].message;
        }
        message.collection = text(options->collection);
        message.questions = pointers;
        message.n_questions = count;
        message.sample = options->sample;
        message.seed = options->seed;
        if (options->ratio != -1) {
            message.ratio_given_case = SAMKV__CALIBRATE_REQUEST__RATIO_GIVEN_RATIO;
            message.ratio = options->ratio;
        }
        message.selection = (Samkv__Selection)options->selection;
        message.update = (Samkv__Update)options->update;
        message.quality = text(options->quality);
        message.apply = options->apply;
        message.forget = options->forget;
        status = samkv_client_submit(client, SAMKV_OPERATION_CALIBRATE, &message.base, request, err);
    } else {
        samkv_fail(err, status, "no memory for %zu questions", count);
    }
    free(questions);
    free(pointers);
    return status;
}

/* ------------------------------------------------------------------ answers */

struct samkv_quality_info samkv_quality_info(const Samkv__Quality *m)
{
    return (struct samkv_quality_info){.collection = m->collection,
                                       .target = m->target,
                                       .share = m->share,
                                       .level = m->level,
                                       .ratio = m->ratio,
                                       .full = m->full,
                                       .estimate = m->estimate,
                                       .bound = m->bound,
                                       .measurements = m->measurements,
                                       .met = m->met,
                                       .measured = m->measured,
                                       .raised = m->raised,
                                       .lowered = m->lowered};
}

struct samkv_calibration_info samkv_calibration_info(const Samkv__Calibration *m)
{
    bool init = m->init_tokens_given_case == SAMKV__CALIBRATION__INIT_TOKENS_GIVEN_INIT_TOKENS;
    bool local = m->local_tokens_given_case == SAMKV__CALIBRATION__LOCAL_TOKENS_GIVEN_LOCAL_TOKENS;
    return (struct samkv_calibration_info){.model = m->model,
                                           .fingerprint = m->fingerprint,
                                           .stable_layers = m->stable_layers,
                                           .stable_layer_count = m->n_stable_layers,
                                           .ratio = m->ratio,
                                           .block_tokens = m->block_size,
                                           .init_tokens = init ? (int64_t)m->init_tokens : -1,
                                           .local_tokens = local ? (int64_t)m->local_tokens : -1,
                                           .samples = m->samples,
                                           .recall = m->recall,
                                           .agreement = m->agreement,
                                           .kl = m->kl,
                                           .unix_s = m->unix_s};
}

static struct samkv_calibrated_variant variant_of(const Samkv__CalibrateVariant *m)
{
    return (struct samkv_calibrated_variant){.kind = m->kind,
                                             .what = m->what,
                                             .layers = m->layers,
                                             .layer_count = m->n_layers,
                                             .ratio = m->ratio,
                                             .fixed = m->fixed,
                                             .chosen = m->chosen,
                                             .recall = m->recall,
                                             .agreement = m->agreement,
                                             .agreement_error = m->agreement_error,
                                             .kl = m->kl,
                                             .kl_error = m->kl_error,
                                             .sequence_ratio = m->sequence_ratio,
                                             .recompute_ratio = m->recompute_ratio,
                                             .ms = m->ms};
}

enum samkv_status samkv_fill_calibrate(struct samkv_reply *reply, const ProtobufCMessage *message,
                                       struct samkv_error *err)
{
    const Samkv__CalibrateReply *m = (const Samkv__CalibrateReply *)message;
    struct samkv_calibrated_layer *layers = calloc(m->n_layers + 1, sizeof *layers);
    struct samkv_calibrated_variant *variants = calloc(m->n_variants + 1, sizeof *variants);
    struct samkv_calibration_info *calibration = calloc(1, sizeof *calibration);
    struct samkv_quality_info *quality = calloc(1, sizeof *quality);
    void *arrays[] = {layers, variants, calibration, quality};
    memcpy(reply->owner->arrays, arrays, sizeof arrays);
    if (!layers || !variants || !calibration || !quality)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for the answer");
    for (size_t i = 0; i < m->n_layers; i++)
        layers[i] = (struct samkv_calibrated_layer){m->layers[i]->layer, m->layers[i]->recall};
    for (size_t i = 0; i < m->n_variants; i++)
        variants[i] = variant_of(m->variants[i]);
    if (m->calibration)
        *calibration = samkv_calibration_info(m->calibration);
    if (m->quality)
        *quality = samkv_quality_info(m->quality);
    reply->answer.calibrate = (struct samkv_calibrate_answer){
        .phase = m->phase,
        .done = m->done,
        .total = m->total,
        .samples = m->samples,
        .layers = layers,
        .layer_count = m->n_layers,
        .variants = variants,
        .variant_count = m->n_variants,
        .calibration = m->calibration ? calibration : NULL,
        .applied = m->applied,
        .quality = m->quality ? quality : NULL,
        .full_ms = m->full_ms,
        .request = m->request,
    };
    return SAMKV_OK;
}
