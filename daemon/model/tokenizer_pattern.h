#pragma once
/* Private to the tokenizer: an Oniguruma pattern (Ruby syntax, UTF-8) said in PCRE2's words. */
#include "daemon/model/tokenizer_text.h"

/* Appends the translation; UNSUPPORTED names the construct that has none. */
enum samkv_status samkv_tok_pattern_translate(const char *pattern, size_t bytes, struct samkv_tok_buffer *out,
                                              struct samkv_error *) SAMKV_MUST_USE;
