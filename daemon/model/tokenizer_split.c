#include <string.h>

#include "daemon/model/tokenizer_private.h"

/* One text being cut: pieces that a behaviour may still enlarge wait in [start, end). */
struct cutter {
    struct samkv_tok_encoder *encoder;
    int stage; /* the one that runs over the pieces */
    struct samkv_tok_text text;
    bool at_start;
    enum samkv_tok_behaviour behaviour;
    bool invert;
    size_t start, end;
    bool waiting, was_match;
};

static enum samkv_status emit(struct cutter *cutter, size_t start, size_t end)
{
    if (start == end)
        return SAMKV_OK;
    struct samkv_tok_text piece = {.data = cutter->text.data + start, .bytes = end - start};
    return samkv_tok_split(cutter->encoder, cutter->stage, piece, cutter->at_start && start == 0);
}

static enum samkv_status finish(struct cutter *cutter)
{
    bool waiting = cutter->waiting;
    cutter->waiting = false;
    return waiting ? emit(cutter, cutter->start, cutter->end) : SAMKV_OK;
}

static bool joins_waiting(const struct cutter *cutter, bool match)
{
    switch (cutter->behaviour) {
    case SAMKV_TOK_CONTIGUOUS:
        return match == cutter->was_match;
    case SAMKV_TOK_MERGED_WITH_PREVIOUS:
        return match && !cutter->was_match;
    case SAMKV_TOK_MERGED_WITH_NEXT:
        return !match && cutter->was_match;
    default:
        return false;
    }
}

/* The next stretch of the text in order, a match or what lies between two. */
static enum samkv_status take(struct cutter *cutter, size_t start, size_t end, bool match)
{
    match ^= cutter->invert;
    if (cutter->behaviour == SAMKV_TOK_ISOLATED)
        return emit(cutter, start, end);
    if (cutter->behaviour == SAMKV_TOK_REMOVED)
        return match ? SAMKV_OK : emit(cutter, start, end);
    bool joins = cutter->waiting && joins_waiting(cutter, match);
    cutter->was_match = match;
    if (joins) {
        cutter->end = end;
        return SAMKV_OK;
    }
    enum samkv_status status = finish(cutter);
    cutter->start = start;
    cutter->end = end;
    cutter->waiting = true;
    return status;
}

static enum samkv_status cut_at_pattern(struct cutter *cutter, const struct samkv_tok_regex *pattern)
{
    struct samkv_tok_match match = SAMKV_TOK_NO_MATCH;
    struct samkv_tok_encoder *encoder = cutter->encoder;
    size_t done = 0;
    enum samkv_status status;
    while ((status = samkv_tok_regex_next(pattern, encoder->matcher, cutter->text.data, cutter->text.bytes, &match,
                                          encoder->err)) == SAMKV_OK) {
        if (match.start > done)
            status = take(cutter, done, match.start, false);
        if (status == SAMKV_OK)
            status = take(cutter, match.start, match.end, true);
        if (status != SAMKV_OK)
            return status;
        done = match.end;
    }
    if (status != SAMKV_NOT_FOUND)
        return status;
    status = done < cutter->text.bytes ? take(cutter, done, cutter->text.bytes, false) : SAMKV_OK;
    return status == SAMKV_OK ? finish(cutter) : status;
}

static enum samkv_status cut_at_digits(struct cutter *cutter)
{
    struct samkv_tok_text text = cutter->text;
    size_t start = 0, at = 0;
    enum samkv_status status = SAMKV_OK;
    while (status == SAMKV_OK && at < text.bytes) {
        size_t digit = at;
        if (!samkv_tok_is_numeric(samkv_tok_utf8_next(text.data, text.bytes, &at)))
            continue;
        if (digit > start)
            status = take(cutter, start, digit, false);
        if (status == SAMKV_OK)
            status = take(cutter, digit, at, true);
        start = at;
    }
    if (status == SAMKV_OK && start < text.bytes)
        status = take(cutter, start, text.bytes, false);
    return status == SAMKV_OK ? finish(cutter) : status;
}

/* text with a space in front, unless it has one. */
static enum samkv_status prefix_space(struct samkv_tok_buffer *to, struct samkv_tok_text *text)
{
    if (text->bytes && text->data[0] == ' ')
        return SAMKV_OK;
    to->count = 0;
    enum samkv_status status = samkv_tok_append(to, " ", 1);
    if (status == SAMKV_OK)
        status = samkv_tok_append(to, text->data, text->bytes);
    *text = (struct samkv_tok_text){.data = to->data, .bytes = to->count};
    return status;
}

/* text with its spaces replaced, and one replacement in front where the scheme asks for it. */
static enum samkv_status metaspace(const struct samkv_tok_stage *stage, bool at_start, struct samkv_tok_buffer *to,
                                   struct samkv_tok_text *text)
{
    size_t length = (size_t)stage->replacement_bytes, spaces = 0;
    bool has_one = text->bytes &&
                   (text->data[0] == ' ' || (text->bytes >= length && !memcmp(text->data, stage->replacement, length)));
    bool wanted = stage->prepend == SAMKV_TOK_ALWAYS || (stage->prepend == SAMKV_TOK_FIRST && at_start);
    for (size_t i = 0; i < text->bytes; i++)
        spaces += text->data[i] == ' ';
    to->count = 0;
    enum samkv_status status = samkv_tok_reserve(to, text->bytes + spaces * length + length);
    if (status == SAMKV_OK && wanted && !has_one)
        status = samkv_tok_append(to, stage->replacement, length);
    for (size_t i = 0; status == SAMKV_OK && i < text->bytes; i++) {
        bool space = text->data[i] == ' ';
        status = samkv_tok_append(to, space ? stage->replacement : text->data + i, space ? length : 1);
    }
    *text = (struct samkv_tok_text){.data = to->data, .bytes = to->count};
    return status;
}

enum samkv_status samkv_tok_split(struct samkv_tok_encoder *encoder, int stage_index, struct samkv_tok_text text,
                                  bool at_start)
{
    if (text.bytes == 0)
        return SAMKV_OK;
    const struct samkv_tokenizer *tokenizer = encoder->tokenizer;
    if (stage_index == tokenizer->stage_count)
        return samkv_tok_bpe_word(tokenizer, &encoder->scratch, text, encoder->out);
    const struct samkv_tok_stage *stage = &tokenizer->stages[stage_index];
    enum samkv_status status = SAMKV_OK;
    if (stage->kind == SAMKV_TOK_PREFIX_SPACE)
        status = prefix_space(&encoder->stage_text[stage_index], &text);
    else if (stage->kind == SAMKV_TOK_METASPACE)
        status = metaspace(stage, at_start, &encoder->stage_text[stage_index], &text);
    if (status != SAMKV_OK)
        return status;
    if (stage->kind == SAMKV_TOK_PREFIX_SPACE || (stage->kind == SAMKV_TOK_METASPACE && stage->whole))
        return samkv_tok_split(encoder, stage_index + 1, text, at_start);
    struct cutter cutter = {.encoder = encoder,
                            .stage = stage_index + 1,
                            .text = text,
                            .at_start = at_start,
                            .behaviour = stage->behaviour,
                            .invert = stage->invert};
    return stage->kind == SAMKV_TOK_DIGITS ? cut_at_digits(&cutter) : cut_at_pattern(&cutter, stage->pattern);
}
