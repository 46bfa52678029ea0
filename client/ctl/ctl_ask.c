#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/ctl_fetch_options.h"
#include "client/ctl/ctl_text.h"

struct ask_args {
    struct ctl_fetch_args shared;
    int method;
    int64_t max_tokens;
    bool raw, stats;
};

static const char *const methods[] = {"samkv", "full", "reuse", NULL};

static const struct ctl_option options[] = {
    {"method", "WAY", CTL_CHOICE, offsetof(struct ask_args, method),
     "samkv, full (everything recomputed) or reuse (everything as stored) [samkv]", .choices = methods},
    {"max-tokens", "N", CTL_INTEGER, offsetof(struct ask_args, max_tokens), "of the answer [64]", .min = 1,
     .max = UINT32_MAX},
    {"raw", NULL, CTL_FLAG, offsetof(struct ask_args, raw), "no chat template around the question"},
    {"stats", NULL, CTL_FLAG, offsetof(struct ask_args, stats), "a line of figures on stderr [on a terminal]"},
    {"json", NULL, CTL_FLAG, offsetof(struct ctl_common, json), "print one JSON object"},
    {0},
};

/* Where pieces of the answer go: to stdout as they come, or together for JSON. */
struct answer {
    bool collect;
    FILE *stream;
    char *text;
    size_t bytes;
    bool broken;
};

static bool on_text(void *arg, const char *text, size_t bytes)
{
    struct answer *answer = arg;
    if (answer->collect || !ctl_is_terminal(stdout))
        fwrite(text, 1, bytes, answer->collect ? answer->stream : stdout);
    else
        ctl_put(stdout, text, bytes, -1, true);
    if (!answer->collect)
        answer->broken = fflush(stdout) != 0;
    return !answer->broken;
}

static int print_json(const struct samkv_reply *reply, const struct answer *answer, int method)
{
    const struct samkv_ask_answer *a = &reply->answer.ask;
    json_t *o = json_object();
    json_t *text = json_stringn(answer->text, answer->bytes);
    json_object_set_new(o, "answer", text ? text : ctl_json_text(answer->text));
    json_object_set_new(o, "method", json_string(methods[method]));
    json_object_set_new(o, "answer_tokens", json_integer(a->answer_tokens));
    json_object_set_new(o, "prompt_tokens", json_integer(a->prompt_tokens));
    json_object_set_new(o, "first_token_ms", ctl_json_real(a->first_token_ms));
    json_object_set_new(o, "total_ms", ctl_json_real(a->total_ms));
    if (a->figures)
        ctl_json_figures(o, a->figures);
    return ctl_json_print(o);
}

static void print_stats(const struct samkv_reply *reply, int method)
{
    const struct samkv_ask_answer *a = &reply->answer.ask;
    struct ctl_buffer first, total, prompt;
    fprintf(stderr, "%s: first token after %s, %u tokens in %s, over %s rows", methods[method],
            ctl_duration(&first, a->first_token_ms / 1e3), a->answer_tokens, ctl_duration(&total, a->total_ms / 1e3),
            ctl_count(&prompt, a->prompt_tokens));
    if (a->figures) {
        fputs("; ", stderr);
        ctl_print_ratios(a->figures, stderr);
    }
    fputc('\n', stderr);
}

static int ask(struct ctl *ctl, const struct samkv_ask_options *request, struct answer *answer)
{
    const struct ask_args *args = ctl->args;
    struct samkv_reply reply;
    struct samkv_error err;
    int code = ctl_connect(ctl);
    if (code)
        return code;
    enum samkv_status status = samkv_client_ask(ctl->client, request, on_text, answer, &reply, &err);
    if (!answer->collect)
        putchar('\n');
    else if (fflush(answer->stream) && !status)
        status = samkv_fail(&err, SAMKV_NO_MEMORY, "no memory for the answer");
    if (answer->broken)
        return CTL_FAILED; /* main says why */
    if (status)
        return ctl_fail(&err);
    if (answer->collect)
        code = print_json(&reply, answer, args->method);
    else if (args->stats || ctl_is_terminal(stderr)) {
        fflush(stdout);
        print_stats(&reply, args->method);
    }
    samkv_reply_deinit(&reply);
    return code;
}

static int run(struct ctl *ctl)
{
    const struct ask_args *args = ctl->args;
    struct samkv_ask_options request;
    struct samkv_error err;
    samkv_ask_options_init(&request);
    if (ctl_fetch_fill(&args->shared, &request.fetch, &err)) {
        ctl_error("%s", err.text);
        return CTL_USAGE;
    }
    request.question = ctl->words[0];
    request.question_bytes = strlen(ctl->words[0]);
    request.method = (enum samkv_method)args->method;
    request.max_tokens = (uint32_t)args->max_tokens;
    request.raw = args->raw;
    struct answer answer = {.collect = ctl->common->json};
    if (answer.collect && !(answer.stream = open_memstream(&answer.text, &answer.bytes))) {
        ctl_error("no memory");
        return CTL_FAILED;
    }
    int code = ask(ctl, &request, &answer);
    if (answer.stream)
        fclose(answer.stream);
    free(answer.text);
    return code;
}

const struct ctl_command ctl_command_ask = {
    .name = "ask",
    .arguments = "--docs ID,.. QUESTION",
    .summary = "Answers a question about documents with the daemon's own model",
    .details = "Compare --method samkv, full and reuse to see what sparse caches cost and keep.",
    .options = {options, ctl_fetch_shared_options},
    .args_bytes = sizeof(struct ask_args),
    .defaults = ctl_fetch_defaults,
    .min_words = 1,
    .max_words = 1,
    .run = run,
};
