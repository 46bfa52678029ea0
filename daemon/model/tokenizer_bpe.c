#include <stdlib.h>
#include <string.h>

#include "daemon/model/tokenizer_private.h"

#define NO_LINK    UINT32_MAX
#define SHORT_WORD 48 /* symbols; below, scanning a small array beats a heap */

void samkv_tok_bpe_scratch_deinit(struct samkv_tok_bpe_scratch *scratch)
{
    free(scratch->symbols);
    free(scratch->links);
    free(scratch->heap);
    samkv_tok_buffer_deinit(&scratch->mapped);
    *scratch = (struct samkv_tok_bpe_scratch){0};
}

static uint64_t crossing_bit(uint32_t left, uint32_t right)
{
    return (((uint64_t)left << 32 | right) * 0xD6E8FEB86659FD93u) >> (64 - SAMKV_TOK_CROSSING_BITS);
}

static bool may_cross(const struct samkv_tok_bpe *bpe, uint32_t left, uint32_t right)
{
    uint64_t bit = crossing_bit(left, right);
    return !bpe->crossing || (bpe->crossing[bit / 64] >> (bit % 64) & 1);
}

void samkv_tok_bpe_symbols(struct samkv_tok_bpe *bpe, const struct samkv_tok_vocab *vocab)
{
    static const char digits[] = "0123456789ABCDEF";
    for (int byte = 0; byte < 256; byte++) {
        char text[6];
        size_t bytes =
            (size_t)samkv_tok_utf8_put(bpe->byte_level ? samkv_tok_alphabet_char((uint8_t)byte) : (uint32_t)byte, text);
        bool known = bpe->byte_level || byte < 0x80;
        bpe->symbol[byte] = known ? samkv_tok_vocab_find(vocab, &vocab->model, text, bytes) : -1;
        memcpy(text, "<0x", 3);
        text[3] = digits[byte / 16];
        text[4] = digits[byte % 16];
        text[5] = '>';
        bpe->fallback[byte] = samkv_tok_vocab_find(vocab, &vocab->model, text, sizeof text);
    }
}

/* The ids of the first and of the last character of a token; false when either is no symbol by itself. */
static bool end_symbols(const struct samkv_tok_vocab *vocab, uint32_t id, uint32_t *first, uint32_t *last)
{
    const char *text = samkv_tok_vocab_text(vocab, id);
    size_t bytes = vocab->length[id], end = 0;
    if (bytes == 0)
        return false;
    samkv_tok_utf8_next(text, bytes, &end);
    size_t start = samkv_tok_utf8_previous(text, bytes);
    int32_t head = samkv_tok_vocab_find(vocab, &vocab->model, text, end);
    int32_t tail = samkv_tok_vocab_find(vocab, &vocab->model, text + start, bytes - start);
    *first = (uint32_t)head;
    *last = (uint32_t)tail;
    return head >= 0 && tail >= 0;
}

/* Symbols that do not stand for their own text: then a token's text does not tell what it was merged from. */
static bool is_opaque(const struct samkv_tok_bpe *bpe, uint32_t id)
{
    if ((int32_t)id == bpe->unk)
        return true;
    for (int byte = 0; bpe->byte_fallback && byte < 256; byte++)
        if (bpe->fallback[byte] == (int32_t)id)
            return true;
    return false;
}

enum samkv_status samkv_tok_bpe_crossing(struct samkv_tok_bpe *bpe, const struct samkv_tok_vocab *vocab)
{
    bpe->crossing = calloc((1u << SAMKV_TOK_CROSSING_BITS) / 64, sizeof *bpe->crossing);
    uint8_t *opaque = calloc(vocab->ids, 1);
    if (!bpe->crossing || !opaque) {
        free(opaque);
        return SAMKV_NO_MEMORY;
    }
    for (uint32_t id = 0; id < vocab->ids; id++)
        opaque[id] = vocab->length[id] == 6 || (int32_t)id == bpe->unk ? is_opaque(bpe, id) : 0;
    bool exact = true;
    for (size_t i = 0; i <= bpe->merges.mask; i++) {
        if (bpe->merges.slots[i].pair == UINT64_MAX)
            continue;
        uint32_t left = (uint32_t)(bpe->merges.slots[i].pair >> 32), right = (uint32_t)bpe->merges.slots[i].pair;
        uint32_t first, last, unused;
        exact &= !opaque[left] && !opaque[right] && !opaque[(uint32_t)bpe->merges.slots[i].into];
        /* A token whose end is no symbol never comes up, nor does a merge with it. */
        if (end_symbols(vocab, left, &unused, &last) && end_symbols(vocab, right, &first, &unused)) {
            uint64_t bit = crossing_bit(last, first);
            bpe->crossing[bit / 64] |= (uint64_t)1 << (bit % 64);
        }
    }
    free(opaque);
    if (!exact) {
        free(bpe->crossing);
        bpe->crossing = NULL;
    }
    return SAMKV_OK;
}

/* Merges the pair of lowest rank, leftmost first, until none is left: quadratic, for short stretches. */
static size_t merge_short(const struct samkv_tok_merges *merges, uint32_t *symbols, size_t count)
{
    uint64_t into[SHORT_WORD];
    for (size_t i = 0; i + 1 < count; i++)
        into[i] = samkv_tok_merges_get(merges, symbols[i], symbols[i + 1]);
    while (count > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < count; i++)
            if (into[i] >> 32 < into[best] >> 32)
                best = i;
        if (into[best] == SAMKV_TOK_NO_MERGE)
            break;
        symbols[best] = (uint32_t)into[best];
        count--;
        memmove(symbols + best + 1, symbols + best + 2, (count - best - 1) * sizeof *symbols);
        if (best + 1 < count) {
            memmove(into + best + 1, into + best + 2, (count - best - 2) * sizeof *into);
            into[best] = samkv_tok_merges_get(merges, symbols[best], symbols[best + 1]);
        }
        if (best > 0)
            into[best - 1] = samkv_tok_merges_get(merges, symbols[best - 1], symbols[best]);
    }
    return count;
}

static void sift_down(uint64_t *heap, size_t count, size_t at)
{
    uint64_t value = heap[at];
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= value)
            break;
        heap[at] = heap[child];
    }
    heap[at] = value;
}

static void sift_up(uint64_t *heap, size_t at)
{
    uint64_t value = heap[at];
    for (; at > 0 && heap[(at - 1) / 2] > value; at = (at - 1) / 2)
        heap[at] = heap[(at - 1) / 2];
    heap[at] = value;
}

struct long_word {
    const struct samkv_tok_merges *merges;
    uint32_t *symbols, *previous, *next;
    uint64_t *heap; /* rank << 32 | position of the left symbol; may be outdated */
    size_t heap_count;
};

static void push_pair(struct long_word *word, uint32_t left)
{
    uint64_t into = samkv_tok_merges_get(word->merges, word->symbols[left], word->symbols[word->next[left]]);
    if (into == SAMKV_TOK_NO_MERGE)
        return;
    word->heap[word->heap_count] = (into & 0xFFFFFFFF00000000u) | left;
    sift_up(word->heap, word->heap_count++);
}

/* An entry is outdated when its pair is gone; a pair that took its place has its own entry. */
static void merge_top(struct long_word *word)
{
    uint64_t top = word->heap[0];
    word->heap[0] = word->heap[--word->heap_count];
    if (word->heap_count)
        sift_down(word->heap, word->heap_count, 0);
    uint32_t left = (uint32_t)top, right = word->next[left];
    if (right == NO_LINK || word->previous[left] == left)
        return;
    uint64_t into = samkv_tok_merges_get(word->merges, word->symbols[left], word->symbols[right]);
    if (into >> 32 != top >> 32)
        return;
    word->symbols[left] = (uint32_t)into;
    word->next[left] = word->next[right];
    word->previous[right] = right; /* marks it as gone */
    if (word->next[left] != NO_LINK) {
        word->previous[word->next[left]] = left;
        push_pair(word, left);
    }
    if (word->previous[left] != NO_LINK)
        push_pair(word, word->previous[left]);
}

static size_t merge_long(struct long_word *word, size_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        word->previous[i] = i ? i - 1 : NO_LINK;
        word->next[i] = i + 1 < count ? i + 1 : NO_LINK;
    }
    for (uint32_t i = 0; i + 1 < count; i++)
        push_pair(word, i);
    while (word->heap_count)
        merge_top(word);
    size_t kept = 0;
    for (uint32_t i = 0; i != NO_LINK; i = word->next[i])
        word->symbols[kept++] = word->symbols[i];
    return kept;
}

static enum samkv_status reserve_links(struct samkv_tok_bpe_scratch *scratch)
{
    if (scratch->links_capacity >= scratch->capacity)
        return SAMKV_OK;
    free(scratch->links);
    free(scratch->heap);
    scratch->links_capacity = 0;
    /* A merge takes one entry out and puts two in, so entries stay below pairs + merges. */
    scratch->links = malloc(2 * scratch->capacity * sizeof *scratch->links);
    scratch->heap = malloc(2 * scratch->capacity * sizeof *scratch->heap);
    if (!scratch->links || !scratch->heap)
        return SAMKV_NO_MEMORY;
    scratch->links_capacity = scratch->capacity;
    return SAMKV_OK;
}

/* Merges the symbols gathered so far and appends them to out. */
static enum samkv_status flush(const struct samkv_tok_bpe *bpe, struct samkv_tok_bpe_scratch *scratch,
                               struct samkv_ids *out)
{
    size_t count = scratch->count;
    if (count > SHORT_WORD) {
        enum samkv_status status = reserve_links(scratch);
        if (status != SAMKV_OK)
            return status;
        struct long_word word = {.merges = &bpe->merges,
                                 .symbols = scratch->symbols,
                                 .previous = scratch->links,
                                 .next = scratch->links + scratch->links_capacity,
                                 .heap = scratch->heap};
        count = merge_long(&word, count);
    } else if (count > 1) {
        count = merge_short(&bpe->merges, scratch->symbols, count);
    }
    scratch->count = 0;
    return samkv_ids_append(out, (const int32_t *)scratch->symbols, count);
}

static enum samkv_status add_symbol(const struct samkv_tok_bpe *bpe, struct samkv_tok_bpe_scratch *scratch, int32_t id,
                                    struct samkv_ids *out)
{
    if (scratch->count && !may_cross(bpe, scratch->symbols[scratch->count - 1], (uint32_t)id)) {
        enum samkv_status status = flush(bpe, scratch, out);
        if (status != SAMKV_OK)
            return status;
    }
    if (scratch->count == scratch->capacity) {
        size_t capacity = scratch->capacity ? scratch->capacity + scratch->capacity / 2 : 2 * SHORT_WORD;
        uint32_t *symbols = realloc(scratch->symbols, capacity * sizeof *symbols);
        if (!symbols)
            return SAMKV_NO_MEMORY;
        scratch->symbols = symbols;
        scratch->capacity = capacity;
    }
    scratch->symbols[scratch->count++] = (uint32_t)id;
    return SAMKV_OK;
}

/* A character outside the vocabulary: its bytes' tokens if all exist, else the unknown token, which with fuse_unk
 * stands once for a run. `pending` tells that an unknown token waits to be added before the next known symbol. */
static enum samkv_status add_unknown(const struct samkv_tok_bpe *bpe, struct samkv_tok_bpe_scratch *scratch,
                                     const char *text, size_t bytes, bool *pending, struct samkv_ids *out)
{
    bool all = bpe->byte_fallback;
    for (size_t i = 0; all && i < bytes; i++)
        all = bpe->fallback[(uint8_t)text[i]] >= 0;
    if (all) {
        enum samkv_status status = SAMKV_OK;
        for (size_t i = 0; status == SAMKV_OK && i < bytes; i++)
            status = add_symbol(bpe, scratch, bpe->fallback[(uint8_t)text[i]], out);
        return status;
    }
    if (bpe->unk < 0 || (*pending && bpe->fuse_unk))
        return SAMKV_OK;
    bool flush_one = *pending;
    *pending = true;
    return flush_one ? add_symbol(bpe, scratch, bpe->unk, out) : SAMKV_OK;
}

/* The symbol of the character at *at, which moves behind it; for an unknown one its text goes to text[4]. */
static int32_t next_symbol(const struct samkv_tokenizer *tokenizer, struct samkv_tok_text word, size_t *at,
                           char text[4], size_t *bytes)
{
    const struct samkv_tok_bpe *bpe = &tokenizer->bpe;
    uint8_t byte = (uint8_t)word.data[*at];
    size_t start = *at;
    if (bpe->byte_level || byte < 0x80) {
        (*at)++;
        if (bpe->symbol[byte] < 0)
            *bytes = (size_t)samkv_tok_utf8_put(bpe->byte_level ? samkv_tok_alphabet_char(byte) : byte, text);
        return bpe->symbol[byte];
    }
    samkv_tok_utf8_next(word.data, word.bytes, at);
    *bytes = *at - start;
    memcpy(text, word.data + start, *bytes);
    return samkv_tok_vocab_find(&tokenizer->vocab, &tokenizer->vocab.model, text, *bytes);
}

/* The id of the word as a whole; with ignore_merges it wins over what merging would give. */
static enum samkv_status find_whole(const struct samkv_tokenizer *tokenizer, struct samkv_tok_bpe_scratch *scratch,
                                    struct samkv_tok_text word, int32_t *id)
{
    struct samkv_tok_text key = word;
    if (tokenizer->bpe.byte_level) {
        scratch->mapped.count = 0;
        enum samkv_status status = samkv_tok_reserve(&scratch->mapped, 2 * word.bytes);
        if (status != SAMKV_OK)
            return status;
        char *to = scratch->mapped.data;
        for (size_t i = 0; i < word.bytes; i++)
            to += samkv_tok_utf8_put(samkv_tok_alphabet_char((uint8_t)word.data[i]), to);
        key = (struct samkv_tok_text){.data = scratch->mapped.data, .bytes = (size_t)(to - scratch->mapped.data)};
    }
    *id = samkv_tok_vocab_find(&tokenizer->vocab, &tokenizer->vocab.model, key.data, key.bytes);
    return SAMKV_OK;
}

enum samkv_status samkv_tok_bpe_word(const struct samkv_tokenizer *tokenizer, struct samkv_tok_bpe_scratch *scratch,
                                     struct samkv_tok_text word, struct samkv_ids *out)
{
    const struct samkv_tok_bpe *bpe = &tokenizer->bpe;
    enum samkv_status status = SAMKV_OK;
    if (bpe->ignore_merges) {
        int32_t id;
        status = find_whole(tokenizer, scratch, word, &id);
        if (status != SAMKV_OK || id >= 0)
            return status == SAMKV_OK ? samkv_ids_push(out, id) : status;
    }
    bool pending = false;
    size_t at = 0, bytes = 0;
    char text[4];
    scratch->count = 0;
    while (status == SAMKV_OK && at < word.bytes) {
        int32_t id = next_symbol(tokenizer, word, &at, text, &bytes);
        if (id < 0) {
            status = add_unknown(bpe, scratch, text, bytes, &pending, out);
            continue;
        }
        if (pending)
            status = add_symbol(bpe, scratch, bpe->unk, out);
        pending = false;
        if (status == SAMKV_OK)
            status = add_symbol(bpe, scratch, id, out);
    }
    if (status == SAMKV_OK && pending)
        status = add_symbol(bpe, scratch, bpe->unk, out);
    return status == SAMKV_OK && scratch->count ? flush(bpe, scratch, out) : status;
}
