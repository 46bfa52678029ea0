/* From ids to bytes: a list of pieces, one a token at first, goes through the decoders in order. */
#include <stdlib.h>
#include <string.h>

#include "daemon/model/tokenizer_private.h"

struct pieces {
    struct samkv_tok_buffer text;
    size_t *ends; /* of each piece in text; heap */
    size_t count, capacity;
};

static void pieces_deinit(struct pieces *pieces)
{
    samkv_tok_buffer_deinit(&pieces->text);
    free(pieces->ends);
}

/* What was appended to text since the last piece becomes one. */
static enum samkv_status end_piece(struct pieces *pieces)
{
    if (pieces->count == pieces->capacity) {
        size_t capacity = pieces->capacity ? pieces->capacity + pieces->capacity / 2 : 64;
        size_t *ends = realloc(pieces->ends, capacity * sizeof *ends);
        if (!ends)
            return SAMKV_NO_MEMORY;
        pieces->ends = ends;
        pieces->capacity = capacity;
    }
    pieces->ends[pieces->count++] = pieces->text.count;
    return SAMKV_OK;
}

static struct samkv_tok_text piece_at(const struct pieces *pieces, size_t index)
{
    size_t start = index ? pieces->ends[index - 1] : 0;
    return (struct samkv_tok_text){.data = pieces->text.data + start, .bytes = pieces->ends[index] - start};
}

/* The bytes that the alphabet's characters stand for; a piece with any other character stays as it is. */
static enum samkv_status byte_level(struct samkv_tok_text piece, struct samkv_tok_buffer *out)
{
    enum samkv_status status = samkv_tok_reserve(out, piece.bytes);
    size_t before = out->count;
    for (size_t at = 0; status == SAMKV_OK && at < piece.bytes;) {
        int byte = samkv_tok_alphabet_byte(samkv_tok_utf8_next(piece.data, piece.bytes, &at));
        if (byte < 0) {
            out->count = before;
            return samkv_tok_append(out, piece.data, piece.bytes);
        }
        out->data[out->count++] = (char)byte;
    }
    return status;
}

static int hexadecimal(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The byte of "<0x41>", or -1. */
static int fallback_byte(struct samkv_tok_text piece)
{
    if (piece.bytes != 6 || memcmp(piece.data, "<0x", 3) != 0 || piece.data[5] != '>')
        return -1;
    int high = hexadecimal(piece.data[3]), low = hexadecimal(piece.data[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

static enum samkv_status replace(const struct samkv_tok_decoder *step, struct samkv_tok_matcher *matcher,
                                 struct samkv_tok_text piece, struct samkv_tok_buffer *out, struct samkv_error *err)
{
    struct samkv_tok_match match = SAMKV_TOK_NO_MATCH;
    size_t copied = 0;
    enum samkv_status status;
    while ((status = samkv_tok_regex_next(step->pattern, matcher, piece.data, piece.bytes, &match, err)) == SAMKV_OK) {
        status = samkv_tok_append(out, piece.data + copied, match.start - copied);
        if (status == SAMKV_OK)
            status = samkv_tok_append(out, step->text, step->text_bytes);
        if (status != SAMKV_OK)
            return status;
        copied = match.end;
    }
    return status == SAMKV_NOT_FOUND ? samkv_tok_append(out, piece.data + copied, piece.bytes - copied) : status;
}

static enum samkv_status strip(const struct samkv_tok_decoder *step, struct samkv_tok_text piece,
                               struct samkv_tok_buffer *out)
{
    for (uint32_t i = 0;
         i < step->start && piece.bytes >= step->text_bytes && memcmp(piece.data, step->text, step->text_bytes) == 0;
         i++) {
        piece.data += step->text_bytes;
        piece.bytes -= step->text_bytes;
    }
    for (uint32_t i = 0; i < step->stop && piece.bytes >= step->text_bytes &&
                         memcmp(piece.data + piece.bytes - step->text_bytes, step->text, step->text_bytes) == 0;
         i++)
        piece.bytes -= step->text_bytes;
    return samkv_tok_append(out, piece.data, piece.bytes);
}

/* The first piece loses every replacement character, as the reference has it. */
static enum samkv_status metaspace(const struct samkv_tok_decoder *step, bool first, struct samkv_tok_text piece,
                                   struct samkv_tok_buffer *out)
{
    enum samkv_status status = SAMKV_OK;
    while (status == SAMKV_OK && piece.bytes) {
        const char *hit = memmem(piece.data, piece.bytes, step->text, step->text_bytes);
        size_t plain = hit ? (size_t)(hit - piece.data) : piece.bytes;
        status = samkv_tok_append(out, piece.data, plain);
        if (status == SAMKV_OK && hit && (!first || step->keep_first))
            status = samkv_tok_append(out, " ", 1);
        plain += hit ? step->text_bytes : 0;
        piece.data += plain;
        piece.bytes -= plain;
    }
    return status;
}

static enum samkv_status decode_piece(const struct samkv_tok_decoder *step, struct samkv_tok_matcher *matcher,
                                      bool first, struct samkv_tok_text piece, struct samkv_tok_buffer *out,
                                      struct samkv_error *err)
{
    char byte = (char)fallback_byte(piece);
    switch (step->kind) {
    case SAMKV_TOK_DECODE_BYTE_LEVEL:
        return byte_level(piece, out);
    case SAMKV_TOK_DECODE_BYTE_FALLBACK:
        return fallback_byte(piece) >= 0 ? samkv_tok_append(out, &byte, 1)
                                         : samkv_tok_append(out, piece.data, piece.bytes);
    case SAMKV_TOK_DECODE_REPLACE:
        return replace(step, matcher, piece, out, err);
    case SAMKV_TOK_DECODE_STRIP:
        return strip(step, piece, out);
    case SAMKV_TOK_DECODE_METASPACE:
        return metaspace(step, first, piece, out);
    case SAMKV_TOK_DECODE_FUSE:
        return samkv_tok_append(out, piece.data, piece.bytes);
    }
    return SAMKV_INTERNAL;
}

/* ByteLevel and Fuse make one piece of all; a run of fallback bytes is one piece too. */
static bool joins_next(const struct samkv_tok_decoder *step, const struct pieces *in, size_t index)
{
    if (step->kind == SAMKV_TOK_DECODE_BYTE_LEVEL || step->kind == SAMKV_TOK_DECODE_FUSE)
        return true;
    return step->kind == SAMKV_TOK_DECODE_BYTE_FALLBACK && fallback_byte(piece_at(in, index)) >= 0 &&
           fallback_byte(piece_at(in, index + 1)) >= 0;
}

static enum samkv_status run_step(const struct samkv_tok_decoder *step, struct samkv_tok_matcher *matcher,
                                  const struct pieces *in, struct pieces *out, struct samkv_error *err)
{
    enum samkv_status status = SAMKV_OK;
    out->count = out->text.count = 0;
    for (size_t i = 0; status == SAMKV_OK && i < in->count; i++) {
        status = decode_piece(step, matcher, i == 0, piece_at(in, i), &out->text, err);
        if (status == SAMKV_OK && (i + 1 == in->count || !joins_next(step, in, i)))
            status = end_piece(out);
    }
    return status;
}

static enum samkv_status gather(const struct samkv_tokenizer *tokenizer, const int32_t *ids, size_t count,
                                bool skip_special, struct pieces *out, struct samkv_error *err)
{
    const struct samkv_tok_vocab *vocab = &tokenizer->vocab;
    enum samkv_status status = SAMKV_OK;
    for (size_t i = 0; status == SAMKV_OK && i < count; i++) {
        if (ids[i] < 0 || (uint32_t)ids[i] >= vocab->ids)
            return samkv_fail(err, SAMKV_INVALID, "token id %d is not in the vocabulary of %u", ids[i], vocab->ids);
        uint32_t id = (uint32_t)ids[i];
        uint8_t flags = vocab->flags[id];
        if (!(flags & SAMKV_TOK_PRESENT) || (skip_special && (flags & SAMKV_TOK_SPECIAL)))
            continue;
        if (tokenizer->join_with_spaces && out->count)
            status = samkv_tok_append(&out->text, " ", 1);
        if (status == SAMKV_OK)
            status = samkv_tok_append(&out->text, samkv_tok_vocab_text(vocab, id), vocab->length[id]);
        if (status == SAMKV_OK)
            status = end_piece(out);
    }
    return status;
}

enum samkv_status samkv_tokenizer_decode(const struct samkv_tokenizer *tokenizer, const int32_t *ids, size_t count,
                                         bool skip_special, char **out, size_t *bytes, struct samkv_error *err)
{
    struct pieces pieces[2] = {0};
    struct samkv_tok_matcher *matcher = NULL;
    struct samkv_error local = {0};
    struct samkv_error *why = err ? err : &local;
    why->text[0] = 0;
    int side = 0;
    enum samkv_status status = samkv_tok_matcher_new(&matcher);
    if (status == SAMKV_OK)
        status = gather(tokenizer, ids, count, skip_special, &pieces[0], why);
    for (int i = 0; status == SAMKV_OK && i < tokenizer->decoder_count; i++, side = !side)
        status = run_step(&tokenizer->decoders[i], matcher, &pieces[side], &pieces[!side], why);
    if (status == SAMKV_OK)
        status = samkv_tok_append(&pieces[side].text, "", 1);
    if (status == SAMKV_OK) {
        *bytes = pieces[side].text.count - 1;
        *out = pieces[side].text.data;
        pieces[side].text = (struct samkv_tok_buffer){0};
    } else if (!why->text[0]) {
        (void)samkv_fail(err, status, "turning %zu tokens into text: %s", count, samkv_status_text(status));
    }
    samkv_tok_matcher_free(matcher);
    pieces_deinit(&pieces[0]);
    pieces_deinit(&pieces[1]);
    return status;
}
