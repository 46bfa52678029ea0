/* Unicode normal forms. utf8proc knows the characters; ordering and segmentation are done here, because its own
 * ordering of combining marks takes quadratic time, and most text needs no work at all. */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "daemon/model/tokenizer_private.h"
#include "daemon/model/tokenizer_younger.h"

#define SHORT_RUN 16 /* combining marks; longer runs are sorted by counting */

struct codepoints {
    int32_t *data, *sorted;
    size_t count, capacity;
};

/* Starters that NFC leaves alone and that never join what stands before them. Ranges hold only such characters. */
static bool is_settled_nfc(uint32_t c)
{
    return c < 0x300 || (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0xAC00 && c <= 0xD7A3) || (c >= 0x2010 && c <= 0x205E) ||
           (c >= 0x3000 && c <= 0x3029) || (c >= 0x3030 && c <= 0x3098) || (c >= 0x309B && c <= 0x30FF) ||
           (c >= 0xFF00 && c <= 0xFFEF) || (c >= 0x48A && c <= 0x52F);
}

static bool is_settled(enum samkv_tok_normaliser_kind form, uint32_t c)
{
    return form == SAMKV_TOK_NFC ? is_settled_nfc(c) : c < 0x80;
}

static enum samkv_status reserve(struct codepoints *points, size_t more)
{
    if (more <= points->capacity - points->count)
        return SAMKV_OK;
    size_t capacity = (points->count + more) + (points->count + more) / 2;
    int32_t *data = realloc(points->data, capacity * sizeof *data);
    if (!data)
        return SAMKV_NO_MEMORY;
    points->data = data;
    points->capacity = capacity;
    return SAMKV_OK;
}

static uint8_t combining_class(int32_t c)
{
    return (uint8_t)utf8proc_get_property(c)->combining_class;
}

static void sort_short(int32_t *marks, size_t count)
{
    for (size_t i = 1; i < count; i++) {
        int32_t mark = marks[i];
        size_t at = i;
        for (; at > 0 && combining_class(marks[at - 1]) > combining_class(mark); at--)
            marks[at] = marks[at - 1];
        marks[at] = mark;
    }
}

/* Stable, linear; `sorted` has room for the marks. */
static void sort_long(int32_t *marks, size_t count, int32_t *sorted)
{
    size_t starts[257] = {0};
    for (size_t i = 0; i < count; i++)
        starts[combining_class(marks[i]) + 1]++;
    for (int i = 0; i < 256; i++)
        starts[i + 1] += starts[i];
    for (size_t i = 0; i < count; i++)
        sorted[starts[combining_class(marks[i])]++] = marks[i];
    memcpy(marks, sorted, count * sizeof *marks);
}

/* Canonical ordering: marks between two starters, by class. */
static enum samkv_status order(struct codepoints *points)
{
    for (size_t start = 0, end; start < points->count; start = end + 1) {
        for (end = start; end < points->count && combining_class(points->data[end]); end++)
            ;
        size_t count = end - start;
        if (count <= SHORT_RUN) {
            sort_short(points->data + start, count);
            continue;
        }
        int32_t *sorted = realloc(points->sorted, count * sizeof *sorted);
        if (!sorted)
            return SAMKV_NO_MEMORY;
        points->sorted = sorted;
        sort_long(points->data + start, count, sorted);
    }
    return SAMKV_OK;
}

static enum samkv_status decompose(struct samkv_tok_text text, int options, struct codepoints *points)
{
    points->count = 0;
    for (size_t at = 0; at < text.bytes;) {
        int32_t c = (int32_t)samkv_tok_utf8_next(text.data, text.bytes, &at);
        enum samkv_status status = reserve(points, 32); /* no character has a longer decomposition */
        if (status != SAMKV_OK)
            return status;
        int unused = 0;
        utf8proc_ssize_t count =
            utf8proc_decompose_char(c, points->data + points->count, 32, (utf8proc_option_t)options, &unused);
        if (count < 1 || count > 32) {
            points->data[points->count] = c;
            count = 1;
        }
        points->count += (size_t)count;
    }
    return SAMKV_OK;
}

static enum samkv_status normalise_segment(enum samkv_tok_normaliser_kind form, struct samkv_tok_text text,
                                           struct codepoints *points, struct samkv_tok_buffer *out)
{
    bool compatible = form == SAMKV_TOK_NFKC || form == SAMKV_TOK_NFKD;
    int options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compatible ? UTF8PROC_COMPAT : 0);
    enum samkv_status status = decompose(text, options, points);
    if (status == SAMKV_OK)
        status = order(points);
    if (status != SAMKV_OK)
        return status;
    utf8proc_ssize_t count = (utf8proc_ssize_t)points->count;
    if (form == SAMKV_TOK_NFC || form == SAMKV_TOK_NFKC)
        count = utf8proc_normalize_utf32(points->data, count, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    for (utf8proc_ssize_t i = 0; status == SAMKV_OK && i < count; i++)
        status = samkv_tok_append_char(out, (uint32_t)points->data[i]);
    return status;
}

/* One past the stretch from `at` that needs work: up to the next settled character. */
static size_t unsettled_end(enum samkv_tok_normaliser_kind form, struct samkv_tok_text text, size_t at)
{
    while (at < text.bytes) {
        size_t next = at;
        uint32_t c = samkv_tok_utf8_next(text.data, text.bytes, &next);
        if (is_settled(form, c) || samkv_tok_is_inert(c))
            return at;
        at = next;
    }
    return at;
}

enum samkv_status samkv_tok_normal_form(enum samkv_tok_normaliser_kind form, struct samkv_tok_text text,
                                        struct samkv_tok_buffer *out)
{
    struct codepoints points = {0};
    enum samkv_status status = SAMKV_OK;
    size_t copied = 0, last = 0, at = 0; /* last: start of the character before at, or at when that one is inert */
    while (status == SAMKV_OK && at < text.bytes) {
        size_t next = at;
        uint32_t c = samkv_tok_utf8_next(text.data, text.bytes, &next);
        bool settled = is_settled(form, c);
        if (settled || samkv_tok_is_inert(c)) {
            last = settled ? at : next;
            at = next;
            continue;
        }
        /* The settled character before the stretch may take a mark from it. */
        size_t end = unsettled_end(form, text, next);
        status = samkv_tok_append(out, text.data + copied, last - copied);
        if (status == SAMKV_OK)
            status = normalise_segment(form, (struct samkv_tok_text){text.data + last, end - last}, &points, out);
        copied = last = at = end;
    }
    if (status == SAMKV_OK)
        status = samkv_tok_append(out, text.data + copied, text.bytes - copied);
    free(points.data);
    free(points.sorted);
    return status;
}
