#include "daemon/model/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/model/tokenizer_private.h"

struct samkv_tokenizer *samkv_tok_new(void)
{
    struct samkv_tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    if (tokenizer)
        tokenizer->bpe.unk = -1;
    return tokenizer;
}

enum samkv_status samkv_tok_no_memory(struct samkv_error *err)
{
    return samkv_fail(err, SAMKV_NO_MEMORY, "not enough memory for the tokenizer");
}

void samkv_tokenizer_free(struct samkv_tokenizer *tokenizer)
{
    if (!tokenizer)
        return;
    samkv_tok_vocab_deinit(&tokenizer->vocab);
    samkv_tok_merges_deinit(&tokenizer->bpe.merges);
    free(tokenizer->bpe.crossing);
    samkv_tok_added_deinit(&tokenizer->added);
    samkv_tok_added_deinit(&tokenizer->added_normalised);
    for (int i = 0; i < SAMKV_TOK_MAX_STEPS; i++) {
        samkv_tok_regex_free(tokenizer->normalisers[i].pattern);
        free(tokenizer->normalisers[i].text);
        samkv_tok_regex_free(tokenizer->stages[i].pattern);
        samkv_tok_regex_free(tokenizer->decoders[i].pattern);
        free(tokenizer->decoders[i].text);
    }
    free(tokenizer->prefix);
    free(tokenizer);
}

int32_t samkv_tokenizer_id(const struct samkv_tokenizer *tokenizer, const char *token)
{
    const struct samkv_tok_vocab *vocab = &tokenizer->vocab;
    int32_t id = samkv_tok_vocab_find(vocab, &vocab->added, token, strlen(token));
    return id >= 0 ? id : samkv_tok_vocab_find(vocab, &vocab->model, token, strlen(token));
}

uint32_t samkv_tokenizer_vocab(const struct samkv_tokenizer *tokenizer)
{
    return tokenizer->vocab.ids;
}

struct encoding {
    struct samkv_tok_encoder encoder;
    struct samkv_tok_buffer repaired, normalised[2];
    bool special;
};

/* What lies between added tokens: cut out those that match only now, then split and merge. */
static enum samkv_status encode_normalised(struct encoding *encoding, struct samkv_tok_text text, bool at_start)
{
    const struct samkv_tokenizer *tokenizer = encoding->encoder.tokenizer;
    struct samkv_tok_scan scan = {.text = text, .special = encoding->special};
    struct samkv_tok_found found;
    enum samkv_status status = SAMKV_OK;
    while (status == SAMKV_OK && samkv_tok_added_next(&tokenizer->added_normalised, &tokenizer->vocab, &scan, &found)) {
        struct samkv_tok_text gap = {.data = text.data + scan.taken};
        gap.bytes = found.start > scan.taken ? found.start - scan.taken : 0;
        status = samkv_tok_split(&encoding->encoder, 0, gap, at_start && scan.taken == 0);
        scan.taken = found.end;
        if (status == SAMKV_OK)
            status = samkv_ids_push(encoding->encoder.out, (int32_t)found.id);
    }
    struct samkv_tok_text rest = {.data = text.data + scan.taken, .bytes = text.bytes - scan.taken};
    return status == SAMKV_OK ? samkv_tok_split(&encoding->encoder, 0, rest, at_start && scan.taken == 0) : status;
}

static enum samkv_status encode_gap(struct encoding *encoding, struct samkv_tok_text text, bool at_start)
{
    if (text.bytes == 0)
        return SAMKV_OK;
    struct samkv_tok_text normalised;
    enum samkv_status status = samkv_tok_normalise(encoding->encoder.tokenizer, encoding->encoder.matcher, text,
                                                   encoding->normalised, &normalised, encoding->encoder.err);
    return status == SAMKV_OK ? encode_normalised(encoding, normalised, at_start) : status;
}

static enum samkv_status encode_text(struct encoding *encoding, struct samkv_tok_text text)
{
    const struct samkv_tokenizer *tokenizer = encoding->encoder.tokenizer;
    if (samkv_tok_utf8_valid(text.data, text.bytes) != text.bytes) {
        enum samkv_status status = samkv_tok_utf8_repair(text.data, text.bytes, &encoding->repaired);
        if (status != SAMKV_OK)
            return status;
        text = (struct samkv_tok_text){.data = encoding->repaired.data, .bytes = encoding->repaired.count};
    }
    struct samkv_tok_scan scan = {.text = text, .special = encoding->special};
    struct samkv_tok_found found;
    enum samkv_status status = SAMKV_OK;
    while (status == SAMKV_OK && samkv_tok_added_next(&tokenizer->added, &tokenizer->vocab, &scan, &found)) {
        struct samkv_tok_text gap = {.data = text.data + scan.taken};
        gap.bytes = found.start > scan.taken ? found.start - scan.taken : 0;
        status = encode_gap(encoding, gap, scan.taken == 0);
        scan.taken = found.end;
        if (status == SAMKV_OK)
            status = samkv_ids_push(encoding->encoder.out, (int32_t)found.id);
    }
    struct samkv_tok_text rest = {.data = text.data + scan.taken, .bytes = text.bytes - scan.taken};
    return status == SAMKV_OK ? encode_gap(encoding, rest, scan.taken == 0) : status;
}

static void encoding_deinit(struct encoding *encoding)
{
    samkv_tok_matcher_free(encoding->encoder.matcher);
    for (int i = 0; i < SAMKV_TOK_MAX_STEPS; i++)
        samkv_tok_buffer_deinit(&encoding->encoder.stage_text[i]);
    samkv_tok_bpe_scratch_deinit(&encoding->encoder.scratch);
    samkv_tok_buffer_deinit(&encoding->repaired);
    samkv_tok_buffer_deinit(&encoding->normalised[0]);
    samkv_tok_buffer_deinit(&encoding->normalised[1]);
}

enum samkv_status samkv_tokenizer_encode(const struct samkv_tokenizer *tokenizer, const char *text, size_t bytes,
                                         int flags, struct samkv_ids *out, struct samkv_error *err)
{
    /* Positions in a word have 32 bits; normal forms and byte fallback may multiply the length. */
    if (bytes > INT32_MAX / 16)
        return samkv_fail(err, SAMKV_TOO_LARGE, "a text of %zu bytes is too long to tokenize; split it", bytes);
    struct encoding encoding = {.encoder = {.tokenizer = tokenizer, .out = out, .err = err},
                                .special = flags & SAMKV_ENCODE_SPECIAL};
    struct samkv_error local = {0};
    encoding.encoder.err = err ? err : &local;
    encoding.encoder.err->text[0] = 0;
    size_t before = out->count;
    enum samkv_status status = samkv_tok_matcher_new(&encoding.encoder.matcher);
    if (status == SAMKV_OK && (flags & SAMKV_ENCODE_BOS))
        status = samkv_ids_append(out, tokenizer->prefix, tokenizer->prefix_count);
    if (status == SAMKV_OK)
        status = encode_text(&encoding, (struct samkv_tok_text){.data = text, .bytes = bytes});
    encoding_deinit(&encoding);
    if (status == SAMKV_OK)
        return SAMKV_OK;
    out->count = before;
    if (encoding.encoder.err->text[0]) /* whoever failed has said why */
        return status;
    return samkv_fail(err, status, "tokenizing %zu bytes: %s", bytes, samkv_status_text(status));
}
