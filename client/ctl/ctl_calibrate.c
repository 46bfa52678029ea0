#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/ctl_progress.h"
#include "client/ctl/ctl_quality.h"
#include "client/ctl/ctl_questions.h"

struct calibrate_args {
    struct ctl_common common;
    const char *collection, *questions, *quality;
    int64_t sample, seed;
    double ratio;
    int selection, update;
    bool raw, apply, forget;
};

enum { BLOCKS = 3 }; /* kind of variant */

static const char *const selections[] = {"dynamic", "fixed", NULL};
static const char *const updates[] = {"overwrite", "cosine", NULL};

static enum samkv_status apply_ratio(void *args, const char *value, struct samkv_error *err)
{
    double *ratio = &((struct calibrate_args *)args)->ratio;
    enum samkv_status status = ctl_parse_real(value, 0, 1, ratio, err);
    if (!status && !(*ratio > 0))
        status = samkv_fail(err, SAMKV_INVALID, "must be above 0 and at most 1");
    return status;
}

static const struct ctl_option options[] = {
    {"collection", "NAME", CTL_TEXT, offsetof(struct calibrate_args, collection), "to calibrate with [default]"},
    {"questions", "FILE", CTL_TEXT, offsetof(struct calibrate_args, questions),
     "JSON Lines with question and documents [drawn from the collection's text]"},
    {"raw", NULL, CTL_FLAG, offsetof(struct calibrate_args, raw), "no chat template around the questions"},
    {"sample", "N", CTL_INTEGER, offsetof(struct calibrate_args, sample), "questions at most [16; all of a file's]",
     .min = 1, .max = 512},
    {"seed", "N", CTL_INTEGER, offsetof(struct calibrate_args, seed), "of drawing [0]", .min = 0, .max = UINT32_MAX},
    {"ratio", "R", CTL_CUSTOM, .help = "that layers and anchors are compared at [0.15]", .apply = apply_ratio},
    {"selection", "WAY", CTL_CHOICE, offsetof(struct calibrate_args, selection), "dynamic or fixed [dynamic]",
     .choices = selections},
    {"update", "HOW", CTL_CHOICE, offsetof(struct calibrate_args, update), "overwrite or cosine [overwrite]",
     .choices = updates},
    {"quality", "Q", CTL_TEXT, offsetof(struct calibrate_args, quality),
     "find the ratio for it: agreement=A or kl=NATS [the collection's]"},
    {"apply", NULL, CTL_FLAG, offsetof(struct calibrate_args, apply), "store what was found: it is used from then on"},
    {"forget", NULL, CTL_FLAG, offsetof(struct calibrate_args, forget), "only remove what is stored"},
    {"json", NULL, CTL_FLAG, offsetof(struct ctl_common, json), "print one JSON object"},
    {0},
};

static void defaults(void *args)
{
    ((struct calibrate_args *)args)->ratio = -1;
}

static bool on_progress(void *arg, const struct samkv_calibrate_answer *a)
{
    char text[96];
    if (a->total)
        snprintf(text, sizeof text, "%.32s  %u/%u", a->phase, a->done, a->total);
    else
        snprintf(text, sizeof text, "%.32s", a->phase);
    ctl_progress_show(arg, a->total ? (double)a->done / a->total : -1, text);
    return true;
}

/* ------------------------------------------------------------------ what was found */

static const char *layers_text(const uint32_t *layers, size_t count, char *out, size_t size)
{
    size_t at = 0;
    *out = 0;
    for (size_t i = 0; i < count && at + 12 < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s%u", i ? "," : "", layers[i]);
    return out;
}

static void print_layers(const struct samkv_calibrate_answer *a)
{
    printf("recall of each layer's ranking alone:\n");
    for (size_t i = 0; i < a->layer_count; i++)
        printf("%s%3u %.3f%s", i % 8 ? "  " : "  ", a->layers[i].layer, a->layers[i].recall,
               i % 8 == 7 || i + 1 == a->layer_count ? "\n" : "");
}

static void print_variants(const struct samkv_calibrate_answer *a)
{
    struct ctl_table table = {
        .columns = 9,
        .names = {"", "WHAT", "LAYERS", "RECALL", "AGREEMENT", "KL", "KEPT", "RECOMPUTED", "TIME"},
        .right = {false, false, false, true, true, true, true, true, true}};
    for (size_t i = 0; i < a->variant_count; i++) {
        const struct samkv_calibrated_variant *v = &a->variants[i];
        char layers[64], recall[16] = "", agreement[32], kl[48];
        struct ctl_buffer kept, again, time;
        if (v->recall >= 0)
            snprintf(recall, sizeof recall, "%.3f", v->recall);
        snprintf(agreement, sizeof agreement, "%.3f ±%.3f", v->agreement, 1.96 * v->agreement_error);
        snprintf(kl, sizeof kl, "%.4f ±%.4f", v->kl, 1.96 * v->kl_error);
        const char *cells[] = {v->chosen ? "*" : "",
                               v->what,
                               layers_text(v->layers, v->layer_count, layers, sizeof layers),
                               recall,
                               agreement,
                               kl,
                               ctl_percent(&kept, v->sequence_ratio, 1),
                               ctl_percent(&again, v->recompute_ratio, 1),
                               ctl_duration(&time, v->ms / 1e3)};
        for (int c = 4; c < 9 && v->kind == BLOCKS; c++) /* nothing was fetched with them */
            cells[c] = "";
        if (!ctl_table_add(&table, cells))
            break;
    }
    ctl_table_print(&table, stdout);
    ctl_table_free(&table);
}

static void print_result(const struct samkv_calibrate_answer *a)
{
    struct ctl_buffer full;
    if (!a->calibration) {
        puts(a->applied ? "forgotten" : "there was nothing to forget");
        return;
    }
    print_layers(a);
    print_variants(a);
    printf("%u questions, a full prefill %s; * chosen\n", a->samples, ctl_duration(&full, a->full_ms / 1e3));
    ctl_print_calibration(a->calibration);
    if (a->quality)
        ctl_print_quality(a->quality);
    puts(a->applied ? "stored: fetches that name no stable layers use it from now on"
                    : "nothing was stored: --apply does");
}

static json_t *json_variants(const struct samkv_calibrate_answer *a)
{
    static const char *const kinds[] = {"layers", "ratio", "anchors", "blocks"};
    json_t *list = json_array();
    for (size_t i = 0; i < a->variant_count; i++) {
        const struct samkv_calibrated_variant *v = &a->variants[i];
        json_t *o = json_object(), *layers = json_array();
        for (size_t k = 0; k < v->layer_count; k++)
            json_array_append_new(layers, json_integer(v->layers[k]));
        json_object_set_new(o, "kind", json_string(v->kind < 4 ? kinds[v->kind] : "?"));
        json_object_set_new(o, "what", ctl_json_text(v->what));
        json_object_set_new(o, "stable_layers", layers);
        json_object_set_new(o, "ratio", ctl_json_real(v->ratio));
        json_object_set_new(o, "selection", json_string(v->fixed ? "fixed" : "dynamic"));
        json_object_set_new(o, "recall", v->recall >= 0 ? ctl_json_real(v->recall) : json_null());
        json_object_set_new(o, "agreement", ctl_json_real(v->agreement));
        json_object_set_new(o, "agreement_error", ctl_json_real(v->agreement_error));
        json_object_set_new(o, "kl", ctl_json_real(v->kl));
        json_object_set_new(o, "kl_error", ctl_json_real(v->kl_error));
        json_object_set_new(o, "sequence_ratio", ctl_json_real(v->sequence_ratio));
        json_object_set_new(o, "recompute_ratio", ctl_json_real(v->recompute_ratio));
        json_object_set_new(o, "ms", ctl_json_real(v->ms));
        json_object_set_new(o, "chosen", json_boolean(v->chosen));
        json_array_append_new(list, o);
    }
    return list;
}

static int print_json(const struct samkv_calibrate_answer *a)
{
    json_t *o = json_object(), *layers = json_array();
    for (size_t i = 0; i < a->layer_count; i++)
        json_array_append_new(layers, ctl_json_real(a->layers[i].recall));
    json_object_set_new(o, "samples", json_integer(a->samples));
    json_object_set_new(o, "layer_recall", layers);
    json_object_set_new(o, "variants", json_variants(a));
    json_object_set_new(o, "calibration", a->calibration ? ctl_json_calibration(a->calibration) : json_null());
    json_object_set_new(o, "quality", a->quality ? ctl_json_quality(a->quality) : json_null());
    json_object_set_new(o, "full_ms", ctl_json_real(a->full_ms));
    json_object_set_new(o, "applied", json_boolean(a->applied));
    return ctl_json_print(o);
}

/* ------------------------------------------------------------------ the questions */

static enum samkv_status store_document(void *arg, const struct ctl_document *from, struct samkv_error *err)
{
    struct ctl *ctl = arg;
    const struct calibrate_args *args = ctl->args;
    struct samkv_document document;
    samkv_document_init(&document);
    document.collection = args->collection;
    document.id = from->id;
    document.title = from->title;
    document.text = from->text;
    document.text_bytes = from->text_bytes;
    document.tokens = from->tokens;
    document.token_count = from->token_count;
    return samkv_client_ingest(ctl->client, &document, NULL, err);
}

/* As the library takes them; NULL without memory. */
static struct samkv_calibrate_question *given(const struct ctl_questions *questions, bool raw)
{
    struct samkv_calibrate_question *out = calloc(questions->count + 1, sizeof *out);
    for (size_t i = 0; out && i < questions->count; i++) {
        const struct ctl_question *q = &questions->items[i];
        out[i] = (struct samkv_calibrate_question){.text = q->text,
                                                   .text_bytes = q->text_bytes,
                                                   .raw = raw,
                                                   .tokens = q->tokens,
                                                   .token_count = q->token_count,
                                                   .ids = (const char *const *)q->ids,
                                                   .id_count = q->id_count};
    }
    return out;
}

static int calibrate(struct ctl *ctl, const struct ctl_questions *questions)
{
    const struct calibrate_args *args = ctl->args;
    struct samkv_calibrate_options request;
    struct ctl_progress progress;
    struct samkv_reply reply;
    struct samkv_error err;
    samkv_calibrate_options_init(&request);
    request.collection = args->collection;
    request.questions = questions->count ? given(questions, args->raw) : NULL;
    request.question_count = questions->count;
    request.sample = (uint32_t)args->sample;
    request.seed = (uint64_t)args->seed;
    request.ratio = args->ratio;
    request.selection = (enum samkv_fetch_selection)args->selection;
    request.update = (enum samkv_fetch_update)args->update;
    request.quality = args->quality;
    request.apply = args->apply;
    request.forget = args->forget;
    if (questions->count && !request.questions) {
        ctl_error("no memory for the questions");
        return CTL_FAILED;
    }
    ctl_progress_init(&progress);
    enum samkv_status status = samkv_client_calibrate(ctl->client, &request, on_progress, &progress, &reply, &err);
    ctl_progress_clear(&progress);
    free((void *)request.questions);
    if (status)
        return ctl_fail(&err);
    int code = CTL_DONE;
    if (ctl->common->json)
        code = print_json(&reply.answer.calibrate);
    else
        print_result(&reply.answer.calibrate);
    samkv_reply_deinit(&reply);
    return code;
}

static int run(struct ctl *ctl)
{
    const struct calibrate_args *args = ctl->args;
    struct ctl_questions questions = {0};
    struct samkv_error err;
    if (args->apply && args->forget) {
        ctl_error("give one of --apply and --forget");
        return CTL_USAGE;
    }
    int code = ctl_connect(ctl);
    if (code)
        return code;
    if (args->questions && !args->forget && ctl_questions_read(&questions, args->questions, store_document, ctl, &err))
        code = ctl_fail(&err);
    if (!code)
        code = calibrate(ctl, &questions);
    ctl_questions_deinit(&questions);
    return code;
}

const struct ctl_command ctl_command_calibrate = {
    .name = "calibrate",
    .arguments = "[--collection NAME] [--questions FILE] [--apply]",
    .summary = "Finds a model's stable layers, anchors and ratio on a sample",
    .details =
        "Prompts of the sample are prefilled in full; sets of layers are ranked by how much of the query's\n"
        "attention the blocks that they choose got (recall), and tried: AGREEMENT of the first tokens with full\n"
        "recomputation's, and KL of their distributions (nats). Without questions, a run of tokens is copied\n"
        "from the middle of a document and asked for. Documents in a file of questions are ids, or texts that\n"
        "are ingested into the collection. With --apply, fetches that name no stable layers use those found.",
    .options = {options},
    .args_bytes = sizeof(struct calibrate_args),
    .defaults = defaults,
    .run = run,
};
