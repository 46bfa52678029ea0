#include "client/ctl/ctl_eval.h"

#include <stdlib.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "client/ctl/ctl_text.h"

struct eval_args {
    struct ctl_common common;
    const char *model, *collection, *preamble, *codec, *out, *html;
    struct ctl_texts methods, ratios;
    struct ctl_tokens preamble_tokens;
    int64_t block_size, init_tokens, local_tokens, max_tokens, limit, parallel, seed;
    bool resume;
};

static const char *const default_methods[] = {
    "full",
    "reuse",
    "cacheblend",
    "epic",
    "reuse+random",
    "cacheblend+random",
    "epic+random",
    "samkv",
    "samkv+cosine",
    "samkv+delta",
    "samkv+fixed",
    "samkv+fixed+tokens+cosine",
    "samkv+fixed+exact+both+cosine",
    "samkv+fixed+attend+both+delta",
};
static const double default_ratios[] = {0.10, 0.15, 0.25, 0.5};
#define COUNT(array) (sizeof(array) / sizeof *(array))

static const struct ctl_option options[] = {
    {"methods", "M,..", CTL_TEXTS, offsetof(struct eval_args, methods),
     "what is compared, see above [full, reuse, .., samkv in ten ways]"},
    {"ratios", "R,..", CTL_TEXTS, offsetof(struct eval_args, ratios),
     "of documents' tokens to keep [0.1,0.15,0.25,0.5]"},
    {"out", "FILE", CTL_TEXT, offsetof(struct eval_args, out), "results, a line of JSON a question"},
    {"resume", NULL, CTL_FLAG, offsetof(struct eval_args, resume), "go on with what --out has"},
    {"html", "FILE", CTL_TEXT, offsetof(struct eval_args, html), "a report with plots, in one file"},
    {"limit", "N", CTL_INTEGER, offsetof(struct eval_args, limit), "questions of each file [all]", .min = 1,
     .max = 1e9},
    {"parallel", "N", CTL_INTEGER, offsetof(struct eval_args, parallel),
     "questions at a time; 1 for times that can be compared [2]", .min = 1, .max = 16},
    {"max-tokens", "N", CTL_INTEGER, offsetof(struct eval_args, max_tokens), "of an answer [32]", .min = 1,
     .max = 4096},
    {"seed", "N", CTL_INTEGER, offsetof(struct eval_args, seed), "of random cuts [1]", .min = 0, .max = UINT32_MAX},
    {"collection", "NAME", CTL_TEXT, offsetof(struct eval_args, collection), "where the documents go [eval]"},
    {"model", "NAME", CTL_TEXT, offsetof(struct eval_args, model), "of a new collection [the daemon's first]"},
    {"preamble", "TEXT", CTL_TEXT, offsetof(struct eval_args, preamble),
     "in front of the documents [instructions in the model's chat format]"},
    {"preamble-tokens", "1,2,..", CTL_TOKENS, offsetof(struct eval_args, preamble_tokens), "the same, as token ids"},
    {"block-size", "N", CTL_INTEGER, offsetof(struct eval_args, block_size), "tokens of a block [8]", .min = 1,
     .max = UINT32_MAX},
    {"init-tokens", "N", CTL_INTEGER, offsetof(struct eval_args, init_tokens), "anchors at documents' starts [8]",
     .min = 0, .max = UINT32_MAX},
    {"local-tokens", "N", CTL_INTEGER, offsetof(struct eval_args, local_tokens), "anchors at documents' ends [8]",
     .min = 0, .max = UINT32_MAX},
    {"codec", "NAME", CTL_TEXT, offsetof(struct eval_args, codec), "of a new collection [the daemon's]"},
    {"json", NULL, CTL_FLAG, offsetof(struct ctl_common, json), "print one JSON object"},
    {0},
};

static void defaults(void *args)
{
    struct eval_args *a = args;
    a->block_size = a->init_tokens = a->local_tokens = 8;
    a->max_tokens = 32;
    a->parallel = 2;
    a->seed = 1;
    a->collection = "eval";
}

/* ------------------------------------------------------------------ what is compared */

static enum samkv_status read_ratios(const struct ctl_texts *texts, double **out, size_t *count,
                                     struct samkv_error *err)
{
    *count = texts->count ? texts->count : COUNT(default_ratios);
    *out = malloc(*count * sizeof **out);
    if (!*out)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory");
    if (!texts->count)
        memcpy(*out, default_ratios, sizeof default_ratios);
    for (size_t i = 0; i < texts->count; i++)
        if (ctl_parse_real(texts->items[i], 0, 1, &(*out)[i], NULL) || !((*out)[i] > 0))
            return samkv_fail(err, SAMKV_INVALID, "ratio %.20s must be above 0 and at most 1", texts->items[i]);
    return SAMKV_OK;
}

static enum samkv_status make_variants(const struct eval_args *args, struct eval_variants *out, struct samkv_error *err)
{
    double *ratios = NULL;
    size_t ratio_count, method_count = args->methods.count ? args->methods.count : COUNT(default_methods);
    char *const *methods = args->methods.count ? args->methods.items : (char *const *)default_methods;
    enum samkv_status status = read_ratios(&args->ratios, &ratios, &ratio_count, err);
    if (!status)
        status = eval_variants_make(out, methods, method_count, ratios, ratio_count, err);
    free(ratios);
    return status;
}

/* ------------------------------------------------------------------ the prompt */

/* The beginning of a conversation that the daemon's question ends (daemon/model/chat.h), with one short answer to show
 * what is wanted, in the format whose words the model's tokenizer has, as the daemon says. */
#define INSTRUCTIONS "Answer the question with a name, a number or a few words from the documents."
#define EXAMPLE                                                                                                        \
    "The Eiffel Tower\nThe Eiffel Tower is a tower in Paris, built by the company of Gustave Eiffel from 1887 to "     \
    "1889.\n\n\n\nQuestion: Who built the tower in Paris?"
#define ANSWER "Gustave Eiffel"

static const struct {
    const char *chat, *text;
} templates[] = {
    {"chatml", "<|im_start|>system\n" INSTRUCTIONS "<|im_end|>\n<|im_start|>user\n" EXAMPLE
               "<|im_end|>\n<|im_start|>assistant\n" ANSWER "<|im_end|>\n<|im_start|>user\n"},
    {"llama3", "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n" INSTRUCTIONS
               "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n" EXAMPLE
               "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n" ANSWER
               "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"},
    {"phi3",
     "<|system|>\n" INSTRUCTIONS "<|end|>\n<|user|>\n" EXAMPLE "<|end|>\n<|assistant|>\n" ANSWER "<|end|>\n<|user|>\n"},
    {"mistral", "<s>[INST] " INSTRUCTIONS "\n\n" EXAMPLE "[/INST] " ANSWER "</s>[INST] "},
    {"", INSTRUCTIONS "\n\n" EXAMPLE "\nAnswer: " ANSWER "\n\n"},
};

static enum samkv_status find_template(struct samkv_client *client, const char *model, const char **text,
                                       struct samkv_error *err)
{
    struct samkv_reply reply;
    enum samkv_status status = samkv_client_status(client, &reply, err);
    if (status)
        return status;
    const char *chat = "";
    for (size_t i = reply.answer.status.model_count; i-- > 0;)
        if (!model || !strcmp(model, reply.answer.status.models[i].name))
            chat = reply.answer.status.models[i].chat;
    size_t t = 0;
    while (*templates[t].chat && strcmp(templates[t].chat, chat) != 0)
        t++;
    *text = templates[t].text;
    samkv_reply_deinit(&reply);
    return SAMKV_OK;
}

static enum samkv_status fill_spec(const struct eval_args *args, struct samkv_client *client,
                                   struct samkv_collection_options *spec, struct samkv_error *err)
{
    const char *preamble = args->preamble;
    if (preamble && args->preamble_tokens.given)
        return samkv_fail(err, SAMKV_INVALID, "give one of --preamble and --preamble-tokens");
    if (!preamble && !args->preamble_tokens.given) {
        enum samkv_status status = find_template(client, args->model, &preamble, err);
        if (status)
            return status;
    }
    *spec = (struct samkv_collection_options){
        .model = args->model,
        .codec = args->codec,
        .has_preamble = true,
        .preamble = preamble,
        .preamble_bytes = preamble ? strlen(preamble) : 0,
        .preamble_tokens = args->preamble_tokens.ids,
        .preamble_token_count = args->preamble_tokens.count,
        .block_tokens = args->block_size,
        .init_tokens = args->init_tokens,
        .local_tokens = args->local_tokens,
        .quota_bytes = -1,
        .ttl_s = -1,
    };
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ the whole */

/* What results depend on: another run with the same can go on with a file. */
static json_t *settings_json(const struct eval_args *args, const struct eval_variants *variants)
{
    json_t *o = json_object(), *names = json_array();
    char name[256];
    for (size_t v = 0; v < variants->count; v++) {
        eval_variant_name(&variants->list[v], name, sizeof name);
        json_array_append_new(names, ctl_json_text(name));
    }
    json_object_set_new(o, "variants", names);
    json_object_set_new(o, "model", ctl_json_text(args->model ? args->model : ""));
    json_object_set_new(o, "collection", ctl_json_text(args->collection));
    json_object_set_new(o, "block_size", json_integer(args->block_size));
    json_object_set_new(o, "init_tokens", json_integer(args->init_tokens));
    json_object_set_new(o, "local_tokens", json_integer(args->local_tokens));
    json_object_set_new(o, "max_tokens", json_integer(args->max_tokens));
    json_object_set_new(o, "seed", json_integer(args->seed));
    return o;
}

static enum samkv_status evaluate(struct ctl *ctl, struct eval_results *results, const json_t *settings,
                                  uint64_t *failed, struct samkv_error *err)
{
    const struct eval_args *args = ctl->args;
    struct eval_setup setup = {.client = ctl->client,
                               .collection = args->collection,
                               .parallel = (int)args->parallel,
                               .max_tokens = (uint32_t)args->max_tokens,
                               .seed = (uint64_t)args->seed << 32};
    enum samkv_status status = fill_spec(args, ctl->client, &setup.spec, err);
    if (!status && args->out)
        status = eval_results_open(results, args->out, settings, args->resume, err);
    return status ? status : eval_run(results, &setup, failed, err);
}

/* What there is, also of a run that was interrupted. */
static int report(struct ctl *ctl, struct eval_results *results, json_t *settings, uint64_t failed)
{
    const struct eval_args *args = ctl->args;
    struct samkv_error err;
    int code = failed ? CTL_FAILED : CTL_DONE;
    if (args->html && eval_write_html(results, settings, args->html, &err)) {
        ctl_error("%s", err.text);
        code = CTL_FAILED;
    }
    if (!ctl->common->json) {
        eval_print_table(results, stdout);
        return code;
    }
    json_t *o = json_object();
    json_object_set(o, "eval", settings);
    json_object_set_new(o, "failed", json_integer((json_int_t)failed));
    json_object_set_new(o, "sets", eval_summary(results));
    int printed = ctl_json_print(o);
    return code ? code : printed;
}

static int run_with(struct ctl *ctl, struct eval_questions *questions, struct eval_variants *variants)
{
    struct samkv_error err;
    struct eval_results results = {0};
    uint64_t failed = 0;
    int code = ctl_connect(ctl);
    if (code)
        return code;
    json_t *settings = settings_json(ctl->args, variants);
    enum samkv_status status = eval_results_init(&results, questions, variants, &err);
    if (!status)
        status = evaluate(ctl, &results, settings, &failed, &err);
    if (status)
        code = ctl_fail(&err);
    if (!status || status == SAMKV_CANCELLED) {
        int reported = report(ctl, &results, settings, failed);
        code = code ? code : reported;
    }
    eval_results_deinit(&results);
    json_decref(settings);
    return code;
}

static int run(struct ctl *ctl)
{
    const struct eval_args *args = ctl->args;
    struct eval_questions questions = {0};
    struct eval_variants variants = {0};
    struct samkv_error err;
    enum samkv_status status = make_variants(args, &variants, &err);
    if (!status && args->resume && !args->out)
        status = samkv_fail(&err, SAMKV_INVALID, "--resume goes on with a file: name it with --out");
    for (int i = 0; i < ctl->word_count && !status; i++)
        status = eval_questions_read(&questions, ctl->words[i], (uint64_t)args->limit, &err);
    if (!status && !questions.count)
        status = samkv_fail(&err, SAMKV_INVALID, "there are no questions");
    int code = CTL_USAGE;
    if (status)
        ctl_error("%s", err.text);
    else
        code = run_with(ctl, &questions, &variants);
    eval_questions_deinit(&questions);
    eval_variants_deinit(&variants);
    return code;
}

const struct ctl_command ctl_command_eval = {
    .name = "eval",
    .arguments = "QUESTIONS.jsonl ..",
    .summary = "Answers questions from several kinds of caches and says what each loses",
    .details =
        "A line is {\"id\", \"question\", \"answers\": [..], \"documents\": [{\"title\", \"text\"}, ..], \"type\"?}, "
        "or\n"
        "of token ids {\"id\", \"query\", \"answer\", \"docs\", \"preamble\"?}; \"facts\"?: [[document, first, "
        "tokens], ..].\n"
        "A method is full, reuse, cacheblend, epic or samkv with what is different behind '+':\n"
        "  samkv: fixed (dynamic), tokens exact last attend (mean), left both, cosine delta theta=T (overwrite),\n"
        "         layers=6/7 or 23-29, init=N, local=N, compact, no-recompute\n"
        "  others: first or random (as many tokens as samkv keeps; all otherwise), cacheblend share=0.15,\n"
        "         epic tokens=16\n"
        "F1 and EM as in SQuAD, ROUGE-L of characters for Chinese; log p of the first right answer a token; KL of\n"
        "the next token and agreement against full. Intervals: 95 % of 2,000 bootstrap resamples of the questions.\n"
        "The documents stay in the collection: samkvctl rm --collection eval --all.",
    .options = {options},
    .args_bytes = sizeof(struct eval_args),
    .defaults = defaults,
    .min_words = 1,
    .max_words = -1,
    .run = run,
};
