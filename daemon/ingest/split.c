#include "daemon/ingest/split.h"

#include <stdlib.h>
#include <string.h>

/* 2: ends a paragraph (also a newline right behind another one), 1: ends a line, 0: neither. */
static int end_kind(const struct samkv_tokenizer *tokenizer, const int32_t *tokens, size_t at)
{
    char *text;
    size_t bytes, first = at > 0 ? at - 1 : at;
    if (samkv_tokenizer_decode(tokenizer, tokens + first, at + 1 - first, false, &text, &bytes, NULL))
        return 0;
    int kind = 0;
    if (bytes && text[bytes - 1] == '\n')
        kind = bytes > 1 && text[bytes - 2] == '\n' ? 2 : 1;
    free(text);
    return kind;
}

size_t samkv_split_next(const struct samkv_tokenizer *tokenizer, const int32_t *tokens, size_t count, size_t first,
                        size_t chunk)
{
    if (count - first <= chunk)
        return count;
    size_t end = first + chunk, line_end = 0;
    for (size_t at = end; tokenizer && at > first + chunk / 2; at--) {
        int kind = end_kind(tokenizer, tokens, at - 1);
        if (kind == 2)
            return at;
        if (kind == 1 && !line_end)
            line_end = at;
    }
    return line_end ? line_end : end;
}
