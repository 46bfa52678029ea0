#pragma once
/* Private to the tokenizer: characters that the reference's Unicode tables and those of our libraries tell apart. */
#include "daemon/model/tokenizer_text.h"

/* category: a general category ("Nd") or its first letter ("N"). */
bool samkv_tok_younger_is(uint32_t codepoint, const char *category);
/* Appends \x{first}-\x{last} for a character class of a pattern. */
enum samkv_status samkv_tok_younger_ranges(const char *category, size_t length,
                                           struct samkv_tok_buffer *out) SAMKV_MUST_USE;

/* The reference's normal forms take it as a starter that neither decomposes nor composes. */
bool samkv_tok_is_inert(uint32_t codepoint);
