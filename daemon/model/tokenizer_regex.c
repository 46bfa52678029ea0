#include "daemon/model/tokenizer_regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/model/tokenizer_pattern.h"

#define MAX_PATTERN_BYTES    65536
#define JIT_STACK_BYTES      (1024 * 1024)
#define HEAP_LIMIT_KIBIBYTES (64 * 1024)

struct samkv_tok_regex {
    pcre2_code *code; /* NULL: a literal */
    char *literal;
    size_t literal_bytes;
    uint32_t options; /* of pcre2_match */
};

struct samkv_tok_matcher {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

static enum samkv_status explain(struct samkv_error *err, enum samkv_status status, const char *what, int code)
{
    char text[200];
    if (pcre2_get_error_message(code, (PCRE2_UCHAR *)text, sizeof text) < 0)
        text[0] = 0;
    return samkv_fail(err, code == PCRE2_ERROR_NOMEMORY ? SAMKV_NO_MEMORY : status, "%s: %s", what, text);
}

static enum samkv_status compile_translated(const struct samkv_tok_buffer *pattern, struct samkv_tok_regex *regex,
                                            struct samkv_error *err)
{
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context)
        return samkv_fail(err, SAMKV_NO_MEMORY, "not enough memory for the tokenizer's pattern");
    pcre2_set_newline(context,
                      PCRE2_NEWLINE_LF); /* what . and the anchors go by, whatever the library was built with */
    int code;
    PCRE2_SIZE offset;
    regex->code = pcre2_compile((PCRE2_SPTR)pattern->data, pattern->count,
                                PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &offset, context);
    pcre2_compile_context_free(context);
    if (!regex->code)
        return explain(err, SAMKV_UNSUPPORTED, "the tokenizer's pattern cannot be compiled", code);
    /* Fails where generated code is forbidden; the interpreter then does the work. */
    if (pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE) != 0)
        regex->options |= PCRE2_NO_JIT;
    return SAMKV_OK;
}

enum samkv_status samkv_tok_regex_compile(const char *pattern, size_t bytes, struct samkv_tok_regex **out,
                                          struct samkv_error *err)
{
    if (bytes == 0 || bytes > MAX_PATTERN_BYTES)
        return samkv_fail(err, SAMKV_UNSUPPORTED, "the tokenizer's pattern is empty or longer than %d bytes",
                          MAX_PATTERN_BYTES);
    struct samkv_tok_regex *regex = calloc(1, sizeof *regex);
    if (!regex)
        return samkv_fail(err, SAMKV_NO_MEMORY, "not enough memory for the tokenizer's pattern");
    regex->options = PCRE2_NO_UTF_CHECK; /* checked once for a whole text; here it would cost its length a match */
    struct samkv_tok_buffer translated = {0};
    enum samkv_status status = samkv_tok_pattern_translate(pattern, bytes, &translated, err);
    if (status == SAMKV_OK)
        status = compile_translated(&translated, regex, err);
    samkv_tok_buffer_deinit(&translated);
    if (status != SAMKV_OK) {
        samkv_tok_regex_free(regex);
        return status;
    }
    *out = regex;
    return SAMKV_OK;
}

enum samkv_status samkv_tok_regex_literal(const char *text, size_t bytes, struct samkv_tok_regex **out,
                                          struct samkv_error *err)
{
    if (bytes == 0)
        return samkv_fail(err, SAMKV_UNSUPPORTED, "the tokenizer splits at or replaces an empty string");
    struct samkv_tok_regex *regex = calloc(1, sizeof *regex);
    if (regex)
        regex->literal = malloc(bytes);
    if (!regex || !regex->literal) {
        samkv_tok_regex_free(regex);
        return samkv_fail(err, SAMKV_NO_MEMORY, "not enough memory for the tokenizer's pattern");
    }
    memcpy(regex->literal, text, bytes);
    regex->literal_bytes = bytes;
    *out = regex;
    return SAMKV_OK;
}

void samkv_tok_regex_free(struct samkv_tok_regex *regex)
{
    if (!regex)
        return;
    pcre2_code_free(regex->code);
    free(regex->literal);
    free(regex);
}

void samkv_tok_regex_forget_jit(struct samkv_tok_regex *regex)
{
    regex->options |= PCRE2_NO_JIT;
}

enum samkv_status samkv_tok_matcher_new(struct samkv_tok_matcher **out)
{
    struct samkv_tok_matcher *matcher = calloc(1, sizeof *matcher);
    if (!matcher)
        return SAMKV_NO_MEMORY;
    matcher->data = pcre2_match_data_create(1, NULL);
    matcher->context = pcre2_match_context_create(NULL);
    matcher->stack = pcre2_jit_stack_create(32 * 1024, JIT_STACK_BYTES, NULL);
    if (!matcher->data || !matcher->context) {
        samkv_tok_matcher_free(matcher);
        return SAMKV_NO_MEMORY;
    }
    if (matcher->stack) /* NULL also when the library has no JIT */
        pcre2_jit_stack_assign(matcher->context, NULL, matcher->stack);
    pcre2_set_heap_limit(matcher->context, HEAP_LIMIT_KIBIBYTES);
    *out = matcher;
    return SAMKV_OK;
}

void samkv_tok_matcher_free(struct samkv_tok_matcher *matcher)
{
    if (!matcher)
        return;
    pcre2_jit_stack_free(matcher->stack);
    pcre2_match_context_free(matcher->context);
    pcre2_match_data_free(matcher->data);
    free(matcher);
}

static enum samkv_status search_literal(const struct samkv_tok_regex *regex, const char *text, size_t bytes,
                                        size_t from, struct samkv_tok_match *match)
{
    const char *hit = from < bytes ? memmem(text + from, bytes - from, regex->literal, regex->literal_bytes) : NULL;
    if (!hit)
        return SAMKV_NOT_FOUND;
    match->start = (size_t)(hit - text);
    match->end = match->start + regex->literal_bytes;
    return SAMKV_OK;
}

static enum samkv_status search(const struct samkv_tok_regex *regex, struct samkv_tok_matcher *matcher,
                                const char *text, size_t bytes, size_t from, struct samkv_tok_match *match,
                                struct samkv_error *err)
{
    if (!regex->code)
        return search_literal(regex, text, bytes, from, match);
    /* Room for one backtrack a character of a long run; patterns that need more are stopped. */
    size_t left = bytes - from;
    pcre2_set_match_limit(matcher->context, left > UINT32_MAX / 16 ? UINT32_MAX : (uint32_t)(10000000 + 8 * left));
    int count =
        pcre2_match(regex->code, (PCRE2_SPTR)text, bytes, from, regex->options, matcher->data, matcher->context);
    if (count == PCRE2_ERROR_JIT_STACKLIMIT)
        count = pcre2_match(regex->code, (PCRE2_SPTR)text, bytes, from, regex->options | PCRE2_NO_JIT, matcher->data,
                            matcher->context);
    if (count == PCRE2_ERROR_NOMATCH)
        return SAMKV_NOT_FOUND;
    if (count < 0)
        return explain(err, SAMKV_TOO_LARGE, "the tokenizer's pattern gave up on this text", count);
    const PCRE2_SIZE *offsets = pcre2_get_ovector_pointer(matcher->data);
    *match = (struct samkv_tok_match){.start = offsets[0], .end = offsets[1]};
    return SAMKV_OK;
}

enum samkv_status samkv_tok_regex_next(const struct samkv_tok_regex *regex, struct samkv_tok_matcher *matcher,
                                       const char *text, size_t bytes, struct samkv_tok_match *previous,
                                       struct samkv_error *err)
{
    bool first = previous->start > previous->end;
    size_t from = first ? 0 : previous->end;
    struct samkv_tok_match match;
    for (;;) {
        enum samkv_status status = search(regex, matcher, text, bytes, from, &match, err);
        if (status != SAMKV_OK)
            return status;
        if (match.end > match.start || first || match.end != previous->end)
            break;
        if (from == bytes)
            return SAMKV_NOT_FOUND;
        samkv_tok_utf8_next(text, bytes, &from);
    }
    *previous = match;
    return SAMKV_OK;
}
