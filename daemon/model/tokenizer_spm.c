/*
 * SentencePiece's BPE ranks pieces by score: of all neighbours whose joined text is a piece, those with the highest
 * score merge first, the leftmost among equals. That is a table of merges, one for each way to cut a piece in two
 * pieces.
 */
#include <math.h>
#include <stdlib.h>

#include "daemon/model/tokenizer_load.h"

#define MAX_PIECE_BYTES 256 /* each piece is cut everywhere and its halves looked up */

struct ranked {
    float score;
    uint32_t id, rank;
};

static int by_score(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (x->score != y->score)
        return x->score < y->score ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

/* Calls for every cut of piece `id` whose halves are usable pieces: counts them, or puts them when put is set. */
static size_t cut_piece(struct samkv_tokenizer *tokenizer, const uint8_t *usable, uint32_t id, uint32_t rank, bool put)
{
    const struct samkv_tok_vocab *vocab = &tokenizer->vocab;
    const char *text = samkv_tok_vocab_text(vocab, id);
    size_t bytes = vocab->length[id], cuts = 0, at = 0;
    if (bytes)
        samkv_tok_utf8_next(text, bytes, &at);
    for (; at < bytes; samkv_tok_utf8_next(text, bytes, &at)) {
        int32_t left = samkv_tok_vocab_find(vocab, &vocab->model, text, at);
        int32_t right = left < 0 ? -1 : samkv_tok_vocab_find(vocab, &vocab->model, text + at, bytes - at);
        if (left < 0 || right < 0 || !usable[left] || !usable[right])
            continue;
        cuts++;
        if (put)
            samkv_tok_merges_put(&tokenizer->bpe.merges, (uint32_t)left, (uint32_t)right, rank, id);
    }
    return cuts;
}

static enum samkv_status rank_pieces(const struct samkv_tokenizer *tokenizer, const float *scores,
                                     const uint8_t *usable, struct ranked *ranked, size_t *count,
                                     struct samkv_error *err)
{
    *count = 0;
    for (uint32_t id = 0; id < tokenizer->vocab.ids; id++) {
        if (!usable[id])
            continue;
        if (!isfinite(scores[id]) || tokenizer->vocab.length[id] > MAX_PIECE_BYTES)
            return samkv_fail(err, SAMKV_INVALID, "token %u of the tokenizer has no score, or more than %d bytes", id,
                              MAX_PIECE_BYTES);
        ranked[(*count)++] = (struct ranked){.score = scores[id], .id = id};
    }
    if (*count)
        qsort(ranked, *count, sizeof *ranked, by_score);
    for (size_t i = 1; i < *count; i++)
        ranked[i].rank = ranked[i - 1].rank + (ranked[i].score != ranked[i - 1].score);
    return SAMKV_OK;
}

enum samkv_status samkv_tok_spm_merges(struct samkv_tokenizer *tokenizer, const float *scores, const uint8_t *usable,
                                       struct samkv_error *err)
{
    struct ranked *ranked = malloc(tokenizer->vocab.ids * sizeof *ranked);
    size_t count, cuts = 0;
    if (!ranked)
        return samkv_tok_no_memory(err);
    enum samkv_status status = rank_pieces(tokenizer, scores, usable, ranked, &count, err);
    if (status == SAMKV_OK) {
        for (size_t i = 0; i < count; i++)
            cuts += cut_piece(tokenizer, usable, ranked[i].id, 0, false);
        if (samkv_tok_merges_init(&tokenizer->bpe.merges, cuts) != SAMKV_OK)
            status = samkv_tok_no_memory(err);
    }
    for (size_t i = 0; status == SAMKV_OK && i < count; i++)
        cut_piece(tokenizer, usable, ranked[i].id, ranked[i].rank, true);
    free(ranked);
    return status;
}
