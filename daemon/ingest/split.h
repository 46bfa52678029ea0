#pragma once
/* Cutting a long document into pieces that fit: at paragraph ends where it can. Pure. */
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"
#include "daemon/model/tokenizer.h"

/*
 * The end of the piece that begins at token `first`: at most first + chunk tokens, at the last paragraph end (a token
 * whose text holds "\n\n") in the piece's second half, else the last line end there, else hard. tokenizer may be NULL
 * (hard).
 */
size_t samkv_split_next(const struct samkv_tokenizer *tokenizer, const int32_t *tokens, size_t count, size_t first,
                        size_t chunk);
