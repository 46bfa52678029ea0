/* Filling a tokenizer, step by step, for both loaders. */
#include <stdlib.h>
#include <string.h>

#include "daemon/model/tokenizer_load.h"

static enum samkv_status too_many(struct samkv_error *err)
{
    return samkv_fail(err, SAMKV_UNSUPPORTED, "the tokenizer has more than %d steps of one kind", SAMKV_TOK_MAX_STEPS);
}

static char *copy(const char *text, size_t bytes)
{
    char *copied = malloc(bytes + 1);
    if (copied) {
        memcpy(copied, text, bytes);
        copied[bytes] = 0;
    }
    return copied;
}

enum samkv_status samkv_tok_add_normaliser(struct samkv_tokenizer *tokenizer, struct samkv_tok_normaliser step,
                                           struct samkv_error *err)
{
    if (tokenizer->normaliser_count == SAMKV_TOK_MAX_STEPS) {
        samkv_tok_regex_free(step.pattern);
        return too_many(err);
    }
    struct samkv_tok_normaliser *to = &tokenizer->normalisers[tokenizer->normaliser_count++];
    const char *text = step.text;
    *to = step;
    to->text = NULL;
    if (text && !(to->text = copy(text, step.text_bytes)))
        return samkv_tok_no_memory(err);
    return SAMKV_OK;
}

enum samkv_status samkv_tok_add_prepend(struct samkv_tokenizer *tokenizer, const char *text, size_t bytes,
                                        struct samkv_error *err)
{
    struct samkv_tok_normaliser step = {.kind = SAMKV_TOK_PREPEND, .text = (char *)text, .text_bytes = bytes};
    return samkv_tok_add_normaliser(tokenizer, step, err);
}

enum samkv_status samkv_tok_add_replace(struct samkv_tokenizer *tokenizer, const char *literal, const char *with,
                                        struct samkv_error *err)
{
    struct samkv_tok_normaliser step = {
        .kind = SAMKV_TOK_REPLACE_ALL, .text = (char *)with, .text_bytes = strlen(with)};
    enum samkv_status status = samkv_tok_regex_literal(literal, strlen(literal), &step.pattern, err);
    return status == SAMKV_OK ? samkv_tok_add_normaliser(tokenizer, step, err) : status;
}

enum samkv_status samkv_tok_add_stage(struct samkv_tokenizer *tokenizer, struct samkv_tok_stage stage,
                                      struct samkv_error *err)
{
    if (tokenizer->stage_count == SAMKV_TOK_MAX_STEPS) {
        samkv_tok_regex_free(stage.pattern);
        return too_many(err);
    }
    tokenizer->stages[tokenizer->stage_count++] = stage;
    return SAMKV_OK;
}

enum samkv_status samkv_tok_add_split(struct samkv_tokenizer *tokenizer, const char *pattern, size_t bytes,
                                      enum samkv_tok_behaviour behaviour, bool invert, struct samkv_error *err)
{
    struct samkv_tok_stage stage = {.kind = SAMKV_TOK_SPLIT, .behaviour = behaviour, .invert = invert};
    enum samkv_status status = samkv_tok_regex_compile(pattern, bytes, &stage.pattern, err);
    return status == SAMKV_OK ? samkv_tok_add_stage(tokenizer, stage, err) : status;
}

enum samkv_status samkv_tok_add_decoder(struct samkv_tokenizer *tokenizer, struct samkv_tok_decoder step,
                                        const char *text, size_t bytes, const char *literal, size_t literal_bytes,
                                        struct samkv_error *err)
{
    if (tokenizer->decoder_count == SAMKV_TOK_MAX_STEPS)
        return too_many(err);
    struct samkv_tok_decoder *to = &tokenizer->decoders[tokenizer->decoder_count++];
    *to = step;
    if (text && !(to->text = copy(text, bytes)))
        return samkv_tok_no_memory(err);
    to->text_bytes = bytes;
    return literal ? samkv_tok_regex_literal(literal, literal_bytes, &to->pattern, err) : SAMKV_OK;
}

enum samkv_status samkv_tok_add_added(struct samkv_tok_added_set *set, struct samkv_tok_added item,
                                      struct samkv_error *err)
{
    if ((set->count & (set->count - 1)) == 0) { /* doubles at powers of two */
        size_t capacity = set->count ? 2 * set->count : 1;
        struct samkv_tok_added *items = realloc(set->items, capacity * sizeof *items);
        if (!items) {
            free(item.normalised);
            return samkv_tok_no_memory(err);
        }
        set->items = items;
    }
    set->items[set->count++] = item;
    return SAMKV_OK;
}

enum samkv_status samkv_tok_finish(struct samkv_tokenizer *tokenizer, struct samkv_error *err)
{
    samkv_tok_bpe_symbols(&tokenizer->bpe, &tokenizer->vocab);
    if (samkv_tok_bpe_crossing(&tokenizer->bpe, &tokenizer->vocab) != SAMKV_OK)
        return samkv_tok_no_memory(err);
    enum samkv_status status = samkv_tok_added_finish(&tokenizer->added, err);
    return status == SAMKV_OK ? samkv_tok_added_finish(&tokenizer->added_normalised, err) : status;
}
