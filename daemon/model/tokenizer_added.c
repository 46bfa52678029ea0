#include <stdlib.h>
#include <string.h>

#include "daemon/model/tokenizer_private.h"

static int compare(const void *a, const void *b)
{
    const struct samkv_tok_added *x = a, *y = b;
    size_t common = x->bytes < y->bytes ? x->bytes : y->bytes;
    int order = memcmp(x->match, y->match, common);
    return order ? order : (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

enum samkv_status samkv_tok_added_finish(struct samkv_tok_added_set *set, struct samkv_error *err)
{
    if (set->count)
        qsort(set->items, set->count, sizeof *set->items, compare);
    for (size_t i = 0; i < set->count; i++) {
        if (set->items[i].bytes == 0)
            return samkv_fail(err, SAMKV_INVALID, "added token %u of the tokenizer is empty", set->items[i].id);
        if (i && compare(&set->items[i - 1], &set->items[i]) == 0)
            return samkv_fail(err, SAMKV_INVALID, "added tokens %u and %u of the tokenizer are the same text",
                              set->items[i - 1].id, set->items[i].id);
        set->first[(uint8_t)set->items[i].match[0]] = true;
    }
    return SAMKV_OK;
}

void samkv_tok_added_deinit(struct samkv_tok_added_set *set)
{
    for (size_t i = 0; i < set->count; i++)
        free(set->items[i].normalised);
    free(set->items);
    *set = (struct samkv_tok_added_set){0};
}

/* The first item of [low, high) whose byte at `depth` is at least byte; those that end there come before all others. */
static size_t lower_bound(const struct samkv_tok_added_set *set, size_t low, size_t high, size_t depth, int byte)
{
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct samkv_tok_added *item = &set->items[middle];
        int there = item->bytes > depth ? (uint8_t)item->match[depth] : -1;
        if (there < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest item that text begins with. */
static const struct samkv_tok_added *longest(const struct samkv_tok_added_set *set, const char *text, size_t bytes)
{
    const struct samkv_tok_added *best = NULL;
    size_t low = 0, high = set->count;
    for (size_t depth = 0; depth < bytes; depth++) {
        uint8_t byte = (uint8_t)text[depth];
        low = lower_bound(set, low, high, depth, byte);
        high = lower_bound(set, low, high, depth, byte + 1);
        if (low == high)
            break;
        if (set->items[low].bytes == depth + 1)
            best = &set->items[low];
    }
    return best;
}

/* Touches a word on either side, where a token that is a word by itself must not. */
static bool is_inside_word(struct samkv_tok_text text, size_t start, size_t end)
{
    size_t at = start ? samkv_tok_utf8_previous(text.data, start) : 0;
    if (start && samkv_tok_is_word(samkv_tok_utf8_next(text.data, text.bytes, &at)))
        return true;
    return end < text.bytes && samkv_tok_is_word(samkv_tok_utf8_next(text.data, text.bytes, &end));
}

static size_t spaces_before(const struct samkv_tok_scan *scan, size_t start)
{
    while (start > scan->taken) {
        size_t at = samkv_tok_utf8_previous(scan->text.data, start), next = at;
        if (!samkv_tok_is_space(samkv_tok_utf8_next(scan->text.data, scan->text.bytes, &next)))
            break;
        start = at;
    }
    return start;
}

/* Remembers the last run, so that tokens made of spaces do not walk the same run again and again. */
static size_t spaces_behind(struct samkv_tok_scan *scan, size_t end)
{
    if (end >= scan->spaces_from && end < scan->spaces_to)
        return scan->spaces_to;
    scan->spaces_from = end;
    while (end < scan->text.bytes) {
        size_t next = end;
        if (!samkv_tok_is_space(samkv_tok_utf8_next(scan->text.data, scan->text.bytes, &next)))
            break;
        end = next;
    }
    scan->spaces_to = end;
    return end;
}

bool samkv_tok_added_next(const struct samkv_tok_added_set *set, const struct samkv_tok_vocab *vocab,
                          struct samkv_tok_scan *scan, struct samkv_tok_found *found)
{
    const char *text = scan->text.data;
    size_t bytes = set->count ? scan->text.bytes : 0;
    while (scan->at < bytes) {
        size_t start = scan->at;
        if (!set->first[(uint8_t)text[start]]) {
            scan->at++;
            continue;
        }
        const struct samkv_tok_added *item = longest(set, text + start, bytes - start);
        scan->at = start + (item ? item->bytes : 1);
        if (!item || (!scan->special && (vocab->flags[item->id] & SAMKV_TOK_SPECIAL)))
            continue;
        size_t end = scan->at;
        if (item->single_word && is_inside_word(scan->text, start, end))
            continue;
        found->start = item->lstrip ? spaces_before(scan, start) : start;
        found->end = item->rstrip ? spaces_behind(scan, end) : end;
        found->id = item->id;
        return true;
    }
    return false;
}
