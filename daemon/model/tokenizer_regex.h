#pragma once
/*
 * Private to the tokenizer: the patterns that tokenizer files bring, written for Oniguruma, run by PCRE2. A pattern is
 * translated construct by construct; one whose meaning could differ is refused by name, never run on a guess.
 * Plain strings are searched without the engine.
 */
#include <stdbool.h>
#include <stddef.h>

#include "proto/status.h"

struct samkv_tok_regex;
struct samkv_tok_matcher;

enum samkv_status samkv_tok_regex_compile(const char *pattern, size_t bytes, struct samkv_tok_regex **out,
                                          struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_tok_regex_literal(const char *text, size_t bytes, struct samkv_tok_regex **out,
                                          struct samkv_error *) SAMKV_MUST_USE;
void samkv_tok_regex_free(struct samkv_tok_regex *); /* NULL is allowed */
/* For tests of machines that forbid generated code: the interpreter from now on. */
void samkv_tok_regex_forget_jit(struct samkv_tok_regex *);

/* What one thread needs to match with any number of patterns. */
enum samkv_status samkv_tok_matcher_new(struct samkv_tok_matcher **out) SAMKV_MUST_USE;
void samkv_tok_matcher_free(struct samkv_tok_matcher *); /* NULL is allowed */

struct samkv_tok_match {
    size_t start, end;
};

/*
 * The next match in valid UTF-8, after `*previous` (none yet: start > end). Follows the reference's rule for empty
 * matches: none right behind the previous match. NOT_FOUND without text at the end; TOO_LARGE when the engine gives up.
 */
enum samkv_status samkv_tok_regex_next(const struct samkv_tok_regex *, struct samkv_tok_matcher *, const char *text,
                                       size_t bytes, struct samkv_tok_match *previous,
                                       struct samkv_error *) SAMKV_MUST_USE;
#define SAMKV_TOK_NO_MATCH ((struct samkv_tok_match){.start = 1, .end = 0})
