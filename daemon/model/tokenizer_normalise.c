#include "daemon/model/tokenizer_private.h"

static enum samkv_status prepend(const struct samkv_tok_normaliser *step, struct samkv_tok_text text,
                                 struct samkv_tok_buffer *out)
{
    enum samkv_status status = samkv_tok_append(out, step->text, text.bytes ? step->text_bytes : 0);
    return status == SAMKV_OK ? samkv_tok_append(out, text.data, text.bytes) : status;
}

static enum samkv_status replace_all(const struct samkv_tok_normaliser *step, struct samkv_tok_matcher *matcher,
                                     struct samkv_tok_text text, struct samkv_tok_buffer *out, struct samkv_error *err)
{
    struct samkv_tok_match match = SAMKV_TOK_NO_MATCH;
    size_t copied = 0;
    enum samkv_status status;
    while ((status = samkv_tok_regex_next(step->pattern, matcher, text.data, text.bytes, &match, err)) == SAMKV_OK) {
        status = samkv_tok_append(out, text.data + copied, match.start - copied);
        if (status == SAMKV_OK)
            status = samkv_tok_append(out, step->text, step->text_bytes);
        if (status != SAMKV_OK)
            return status;
        copied = match.end;
    }
    return status == SAMKV_NOT_FOUND ? samkv_tok_append(out, text.data + copied, text.bytes - copied) : status;
}

static struct samkv_tok_text trim(const struct samkv_tok_normaliser *step, struct samkv_tok_text text)
{
    size_t at = 0;
    while (step->left && at < text.bytes) {
        size_t next = at;
        if (!samkv_tok_is_space(samkv_tok_utf8_next(text.data, text.bytes, &next)))
            break;
        at = next;
    }
    while (step->right && text.bytes > at) {
        size_t start = samkv_tok_utf8_previous(text.data, text.bytes), next = start;
        if (!samkv_tok_is_space(samkv_tok_utf8_next(text.data, text.bytes, &next)))
            break;
        text.bytes = start;
    }
    return (struct samkv_tok_text){.data = text.data + at, .bytes = text.bytes - at};
}

enum samkv_status samkv_tok_normalise(const struct samkv_tokenizer *tokenizer, struct samkv_tok_matcher *matcher,
                                      struct samkv_tok_text text, struct samkv_tok_buffer scratch[2],
                                      struct samkv_tok_text *out, struct samkv_error *err)
{
    int side = 0;
    for (int i = 0; i < tokenizer->normaliser_count; i++) {
        const struct samkv_tok_normaliser *step = &tokenizer->normalisers[i];
        if (step->kind == SAMKV_TOK_TRIM) {
            text = trim(step, text);
            continue;
        }
        struct samkv_tok_buffer *to = &scratch[side];
        to->count = 0;
        enum samkv_status status;
        if (step->kind == SAMKV_TOK_PREPEND)
            status = prepend(step, text, to);
        else if (step->kind == SAMKV_TOK_REPLACE_ALL)
            status = replace_all(step, matcher, text, to, err);
        else
            status = samkv_tok_normal_form(step->kind, text, to);
        if (status != SAMKV_OK)
            return status;
        text = (struct samkv_tok_text){.data = to->data, .bytes = to->count};
        side = !side;
    }
    *out = text;
    return SAMKV_OK;
}
