#include "daemon/model/tokenizer_text.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "daemon/model/tokenizer_younger.h"

#define REPLACEMENT 0xFFFD

enum samkv_status samkv_tok_reserve(struct samkv_tok_buffer *buffer, size_t more)
{
    if (more <= buffer->capacity - buffer->count)
        return SAMKV_OK;
    size_t needed;
    if (__builtin_add_overflow(buffer->count, more, &needed) || needed > SIZE_MAX / 2)
        return SAMKV_TOO_LARGE;
    /* Growth by half keeps the memory of a long document near its size. */
    size_t capacity = buffer->capacity + buffer->capacity / 2;
    if (capacity < needed)
        capacity = needed < 64 ? 64 : needed;
    char *data = realloc(buffer->data, capacity);
    if (!data)
        return SAMKV_NO_MEMORY;
    buffer->data = data;
    buffer->capacity = capacity;
    return SAMKV_OK;
}

enum samkv_status samkv_tok_append(struct samkv_tok_buffer *buffer, const void *bytes, size_t count)
{
    enum samkv_status status = samkv_tok_reserve(buffer, count);
    if (status == SAMKV_OK && count) {
        memcpy(buffer->data + buffer->count, bytes, count);
        buffer->count += count;
    }
    return status;
}

enum samkv_status samkv_tok_append_char(struct samkv_tok_buffer *buffer, uint32_t codepoint)
{
    char encoded[4];
    return samkv_tok_append(buffer, encoded, (size_t)samkv_tok_utf8_put(codepoint, encoded));
}

void samkv_tok_buffer_deinit(struct samkv_tok_buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct samkv_tok_buffer){0};
}

/* How the second byte is bounded by the first (Unicode's table 3-7): surrogates, overlong forms and values
 * beyond U+10FFFF fail at the second byte, which is what makes the ill-formed subsequence one byte long there. */
static int sequence_length(uint8_t lead, uint8_t *low, uint8_t *high)
{
    *low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    *high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (lead < 0x80)
        return 1;
    if (lead >= 0xC2 && lead <= 0xDF)
        return 2;
    if (lead >= 0xE0 && lead <= 0xEF)
        return 3;
    return lead >= 0xF0 && lead <= 0xF4 ? 4 : 0;
}

/* Bytes of the well-formed character at text, or minus the bytes of the ill-formed subsequence there. */
static int measure(const uint8_t *text, size_t bytes)
{
    uint8_t low, high;
    int length = sequence_length(text[0], &low, &high);
    if (length == 0)
        return -1;
    for (int i = 1; i < length; i++) {
        if ((size_t)i == bytes || text[i] < low || text[i] > high)
            return -i;
        low = 0x80;
        high = 0xBF;
    }
    return length;
}

size_t samkv_tok_utf8_valid(const char *text, size_t bytes)
{
    size_t at = 0;
    while (at < bytes) {
        uint64_t word;
        while (bytes - at >= 8 && (memcpy(&word, text + at, 8), !(word & 0x8080808080808080u)))
            at += 8;
        if (at == bytes)
            break;
        int length = measure((const uint8_t *)text + at, bytes - at);
        if (length < 0)
            return at;
        at += (size_t)length;
    }
    return at;
}

enum samkv_status samkv_tok_utf8_repair(const char *text, size_t bytes, struct samkv_tok_buffer *out)
{
    size_t at = 0;
    while (at < bytes) {
        size_t good = samkv_tok_utf8_valid(text + at, bytes - at);
        enum samkv_status status = samkv_tok_append(out, text + at, good);
        at += good;
        if (status == SAMKV_OK && at < bytes) {
            at += (size_t)-measure((const uint8_t *)text + at, bytes - at);
            status = samkv_tok_append_char(out, REPLACEMENT);
        }
        if (status != SAMKV_OK)
            return status;
    }
    return SAMKV_OK;
}

uint32_t samkv_tok_utf8_next(const char *text, size_t bytes, size_t *at)
{
    const uint8_t *s = (const uint8_t *)text + *at;
    size_t left = bytes - *at;
    int length = s[0] < 0x80 ? 1 : s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;
    if ((size_t)length > left) { /* cannot happen in valid text; never read behind it */
        *at = bytes;
        return REPLACEMENT;
    }
    *at += (size_t)length;
    switch (length) {
    case 1:
        return s[0];
    case 2:
        return (uint32_t)(s[0] & 0x1F) << 6 | (s[1] & 0x3F);
    case 3:
        return (uint32_t)(s[0] & 0x0F) << 12 | (uint32_t)(s[1] & 0x3F) << 6 | (s[2] & 0x3F);
    default:
        return (uint32_t)(s[0] & 0x07) << 18 | (uint32_t)(s[1] & 0x3F) << 12 | (uint32_t)(s[2] & 0x3F) << 6 |
               (s[3] & 0x3F);
    }
}

size_t samkv_tok_utf8_previous(const char *text, size_t at)
{
    do
        at--;
    while (at > 0 && ((uint8_t)text[at] & 0xC0) == 0x80);
    return at;
}

int samkv_tok_utf8_put(uint32_t codepoint, char out[4])
{
    return (int)utf8proc_encode_char((utf8proc_int32_t)codepoint, (utf8proc_uint8_t *)out);
}

bool samkv_tok_is_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool samkv_tok_is_word(uint32_t c)
{
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    case UTF8PROC_CATEGORY_CN: /* perhaps only too young for the library */
        return samkv_tok_younger_is(c, "L") || samkv_tok_younger_is(c, "M") || samkv_tok_younger_is(c, "Nd");
    default: /* enclosed letters are symbols that count as alphabetic; joiners belong to words */
        return (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
               (c >= 0x1F170 && c <= 0x1F189) || c == 0x200C || c == 0x200D;
    }
}

bool samkv_tok_is_numeric(uint32_t c)
{
    if (c < 0x80)
        return c >= '0' && c <= '9';
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL || category == UTF8PROC_CATEGORY_NO ||
           (c >= 0x11DE0 && c <= 0x11DE9) || (c >= 0x16FF4 && c <= 0x16FF6) || /* Rust's tables are of Unicode 17 */
           (category == UTF8PROC_CATEGORY_CN && samkv_tok_younger_is(c, "N"));
}

/* Printable Latin-1 stands for itself; the other 68 bytes take the characters from U+0100 in ascending order. */
uint32_t samkv_tok_alphabet_char(uint8_t byte)
{
    if (byte <= 0x20)
        return 0x100 + byte;
    if (byte >= 0x7F && byte <= 0xA0)
        return 0x100 + 33 + (byte - 0x7Fu);
    return byte == 0xAD ? 0x143 : byte;
}

int samkv_tok_alphabet_byte(uint32_t c)
{
    if (c >= 0x100 && c <= 0x120)
        return (int)(c - 0x100);
    if (c >= 0x121 && c <= 0x142)
        return (int)(c - 0x121 + 0x7F);
    if (c == 0x143)
        return 0xAD;
    bool itself = (c >= 0x21 && c <= 0x7E) || (c >= 0xA1 && c <= 0xFF && c != 0xAD);
    return itself ? (int)c : -1;
}
