#include "daemon/model/chat.h"

#include <stdlib.h>
#include <string.h>

struct format {
    const char *name;
    const char *opening;  /* what the preamble has when it speaks this format */
    const char *closing;  /* behind the question */
    const char *thinking; /* a token of models that think first unless told that they have: closing_thought's mark */
    const char *closing_thought;
};

/* The last one is for preambles that speak no chat format. As the families' own templates have it: ChatML (Qwen,
 * SmolLM), Llama 3, Phi-3, Llama 2 and Mistral. */
static const struct format formats[] = {
    {"chatml", "<|im_start|>", "<|im_end|>\n<|im_start|>assistant\n", "<think>",
     "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"},
    {"llama3", "<|start_header_id|>", "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"},
    {"phi3", "<|user|>", "<|end|>\n<|assistant|>\n"},
    {"mistral", "[INST]", "[/INST]"},
    {"", NULL, "\nAnswer:"},
};

static const char *const endings[] = {"<|im_end|>",      "<|endoftext|>", "<|eot_id|>", "<|eom_id|>",
                                      "<|end_of_text|>", "<|end|>",       "</s>"};

static bool contains(const int32_t *tokens, size_t count, const int32_t *part, size_t part_count)
{
    for (size_t i = 0; part_count && i + part_count <= count; i++)
        if (!memcmp(tokens + i, part, part_count * sizeof *part))
            return true;
    return false;
}

/* A format's opening is one token, or (Llama 2's "[INST]") the tokens of its text, whose first one depends on what
 * stands in front of it. */
static bool speaks(const struct samkv_tokenizer *tokenizer, const char *opening, const int32_t *preamble, size_t count)
{
    int32_t id = samkv_tokenizer_id(tokenizer, opening);
    if (id >= 0)
        return contains(preamble, count, &id, 1);
    struct samkv_ids ids;
    samkv_ids_init(&ids);
    bool found = samkv_tokenizer_encode(tokenizer, opening, strlen(opening), 0, &ids, NULL) == SAMKV_OK &&
                 ids.count > 1 && contains(preamble, count, ids.data + 1, ids.count - 1);
    samkv_ids_deinit(&ids);
    return found;
}

static const struct format *format_of(const struct samkv_model *model, const int32_t *preamble, size_t count)
{
    const struct format *f = formats;
    while (f->opening && !speaks(model->tokenizer, f->opening, preamble, count))
        f++;
    return f;
}

static const char *closing_of(const struct samkv_model *model, const struct format *f)
{
    bool thinks = f->thinking && samkv_tokenizer_id(model->tokenizer, f->thinking) >= 0;
    return thinks ? f->closing_thought : f->closing;
}

/* Whether encoding puts a space in front of what it is given, as Llama 2's does. */
static bool puts_a_space(const struct samkv_tokenizer *tokenizer)
{
    struct samkv_ids ids;
    samkv_ids_init(&ids);
    bool puts = samkv_tokenizer_encode(tokenizer, "a", 1, 0, &ids, NULL) == SAMKV_OK && ids.count == 1 &&
                ids.data[0] == samkv_tokenizer_id(tokenizer, "\u2581a");
    samkv_ids_deinit(&ids);
    return puts;
}

/* As plain text (special tokens in it do not end the turn), with the space in front that makes its first word a usual
 * token. */
static enum samkv_status encode_question(const struct samkv_tokenizer *tokenizer, const char *question, size_t bytes,
                                         struct samkv_ids *out, struct samkv_error *err)
{
    char *spaced = malloc(bytes + 2);
    if (!spaced)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    bool has_space = (bytes && question[0] == ' ') || puts_a_space(tokenizer);
    size_t length = (size_t)(stpcpy(spaced, has_space ? "" : " ") - spaced);
    memcpy(spaced + length, question, bytes);
    enum samkv_status status = samkv_tokenizer_encode(tokenizer, spaced, length + bytes, 0, out, err);
    free(spaced);
    return status;
}

enum samkv_status samkv_chat_query(const struct samkv_model *model, const int32_t *preamble, size_t preamble_count,
                                   const char *question, size_t bytes, struct samkv_ids *out, struct samkv_error *err)
{
    const char *lead = "\n\nQuestion:";
    if (!model->tokenizer)
        return samkv_fail(err, SAMKV_UNSUPPORTED, "model '%s' has no tokenizer: it cannot answer in text", model->name);
    const char *closing = closing_of(model, format_of(model, preamble, preamble_count));
    enum samkv_status status = samkv_tokenizer_encode(model->tokenizer, lead, strlen(lead), 0, out, err);
    if (!status)
        status = encode_question(model->tokenizer, question, bytes, out, err);
    if (!status)
        status = samkv_tokenizer_encode(model->tokenizer, closing, strlen(closing), SAMKV_ENCODE_SPECIAL, out, err);
    return status;
}

const char *samkv_chat_name(const struct samkv_model *model)
{
    const struct format *f = formats;
    while (f->opening && (!model->tokenizer || samkv_tokenizer_id(model->tokenizer, f->opening) < 0))
        f++;
    return f->name;
}

bool samkv_chat_is_end(const struct samkv_model *model, int32_t token)
{
    if (token == model->config.eos)
        return true;
    for (size_t i = 0; model->tokenizer && i < sizeof endings / sizeof *endings; i++)
        if (samkv_tokenizer_id(model->tokenizer, endings[i]) == token)
            return true;
    return false;
}
