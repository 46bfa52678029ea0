#include "daemon/model/chat.h"

#include <stdlib.h>
#include <string.h>

struct format {
    const char *opening; /* a special token of the preamble that shows the format */
    const char *closing; /* behind the question */
};

/* The last one is for preambles that speak no chat format. */
static const struct format formats[] = {
    {"<|im_start|>", "<|im_end|>\n<|im_start|>assistant\n"},
    {"<|start_header_id|>", "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"},
    {NULL, "\nAnswer:"},
};

static const char *const endings[] = {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "</s>"};

static bool contains(const int32_t *tokens, size_t count, int32_t token)
{
    for (size_t i = 0; i < count; i++)
        if (tokens[i] == token)
            return true;
    return false;
}

static const struct format *format_of(const struct samkv_model *model, const int32_t *preamble, size_t count)
{
    const struct format *f = formats;
    for (; f->opening; f++) {
        int32_t id = samkv_tokenizer_id(model->tokenizer, f->opening);
        if (id >= 0 && contains(preamble, count, id))
            break;
    }
    return f;
}

/* As plain text (special tokens in it do not end the turn), with the space in front that makes its first word a usual
 * token. */
static enum samkv_status encode_question(const struct samkv_tokenizer *tokenizer, const char *question, size_t bytes,
                                         struct samkv_ids *out, struct samkv_error *err)
{
    char *spaced = malloc(bytes + 2);
    if (!spaced)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    size_t length = (size_t)(stpcpy(spaced, bytes && question[0] == ' ' ? "" : " ") - spaced);
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
    const struct format *format = format_of(model, preamble, preamble_count);
    enum samkv_status status = samkv_tokenizer_encode(model->tokenizer, lead, strlen(lead), 0, out, err);
    if (!status)
        status = encode_question(model->tokenizer, question, bytes, out, err);
    if (!status)
        status = samkv_tokenizer_encode(model->tokenizer, format->closing, strlen(format->closing),
                                        SAMKV_ENCODE_SPECIAL, out, err);
    return status;
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
