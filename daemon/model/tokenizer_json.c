/* Loading a tokenizer.json: the model (vocabulary and merges), the added tokens, and the order of it all. */
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/model/tokenizer_load.h"

#define MAX_FILE_BYTES  ((size_t)256 << 20)
#define MAX_MERGE_BYTES 65536
#define MAX_SPARE_IDS   4096 /* ids without token, besides as many as there are tokens */

struct loading {
    struct samkv_tokenizer *tokenizer;
    const json_t *model, *vocab, *merges, *added;
    struct samkv_error *err;
};

static enum samkv_status invalid(struct loading *loading, const char *what)
{
    return samkv_fail(loading->err, SAMKV_INVALID, "tokenizer.json: %s", what);
}

/* An id that a token may have: not negative, and not so high that tables by id would outgrow the file. */
static bool id_of(const json_t *value, json_int_t limit, uint32_t *id)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) >= limit)
        return false;
    *id = (uint32_t)json_integer_value(value);
    return true;
}

/* Highest id, number and length of all texts, then room for them. */
static enum samkv_status measure(struct loading *loading)
{
    size_t tokens = json_object_size(loading->vocab) + json_array_size(loading->added), text_bytes = 0;
    json_int_t limit = 2 * (json_int_t)tokens + MAX_SPARE_IDS;
    uint32_t id, highest = 0;
    const char *text;
    json_t *value;
    json_object_foreach((json_t *)loading->vocab, text, value)
    {
        if (!id_of(value, limit, &id))
            return invalid(loading, "a token id of the vocabulary is no number, negative or far too high");
        highest = id > highest ? id : highest;
        text_bytes += strlen(text);
    }
    for (size_t i = 0; i < json_array_size(loading->added); i++) {
        const json_t *token = json_array_get(loading->added, i);
        if (!id_of(json_object_get(token, "id"), limit, &id) || !json_is_string(json_object_get(token, "content")))
            return invalid(loading, "an added token has no content, or its id is no number, negative or far too high");
        highest = id > highest ? id : highest;
        text_bytes += json_string_length(json_object_get(token, "content"));
    }
    if (tokens == 0)
        return invalid(loading, "the vocabulary is empty");
    return samkv_tok_vocab_init(&loading->tokenizer->vocab, highest + 1, (uint32_t)tokens, text_bytes, loading->err);
}

static enum samkv_status load_vocab(struct loading *loading)
{
    const char *text;
    json_t *value;
    enum samkv_status status = SAMKV_OK;
    json_object_foreach((json_t *)loading->vocab, text, value)
    {
        status = samkv_tok_vocab_add(&loading->tokenizer->vocab, (uint32_t)json_integer_value(value), text,
                                     strlen(text), SAMKV_TOK_MODEL, loading->err);
        if (status != SAMKV_OK)
            break;
    }
    return status;
}

/* "left right" or ["left", "right"]. */
static bool merge_texts(const json_t *value, struct samkv_tok_text *left, struct samkv_tok_text *right)
{
    const json_t *first = json_array_get(value, 0), *second = json_array_get(value, 1);
    if (json_array_size(value) == 2 && json_is_string(first) && json_is_string(second)) {
        *left = (struct samkv_tok_text){json_string_value(first), json_string_length(first)};
        *right = (struct samkv_tok_text){json_string_value(second), json_string_length(second)};
        return true;
    }
    if (!json_is_string(value))
        return false;
    const char *text = json_string_value(value), *end = text + json_string_length(value);
    const char *space = memchr(text, ' ', (size_t)(end - text));
    if (!space || memchr(space + 1, ' ', (size_t)(end - space - 1)))
        return false;
    *left = (struct samkv_tok_text){text, (size_t)(space - text)};
    *right = (struct samkv_tok_text){space + 1, (size_t)(end - space - 1)};
    return true;
}

static enum samkv_status load_merge(struct loading *loading, const json_t *value, uint32_t rank, char *joined)
{
    struct samkv_tok_text left, right;
    if (!merge_texts(value, &left, &right) || left.bytes + right.bytes > MAX_MERGE_BYTES)
        return samkv_fail(loading->err, SAMKV_INVALID, "tokenizer.json: merge %u is no pair of texts", rank);
    const struct samkv_tok_vocab *vocab = &loading->tokenizer->vocab;
    memcpy(joined, left.data, left.bytes);
    memcpy(joined + left.bytes, right.data, right.bytes);
    int32_t a = samkv_tok_vocab_find(vocab, &vocab->model, left.data, left.bytes);
    int32_t b = samkv_tok_vocab_find(vocab, &vocab->model, right.data, right.bytes);
    int32_t ab = samkv_tok_vocab_find(vocab, &vocab->model, joined, left.bytes + right.bytes);
    if (a < 0 || b < 0 || ab < 0)
        return samkv_fail(loading->err, SAMKV_INVALID, "tokenizer.json: merge %u names a token outside the vocabulary",
                          rank);
    samkv_tok_merges_put(&loading->tokenizer->bpe.merges, (uint32_t)a, (uint32_t)b, rank, (uint32_t)ab);
    return SAMKV_OK;
}

static enum samkv_status load_merges(struct loading *loading)
{
    size_t count = json_array_size(loading->merges);
    char *joined = malloc(MAX_MERGE_BYTES);
    if (!joined || samkv_tok_merges_init(&loading->tokenizer->bpe.merges, count) != SAMKV_OK) {
        free(joined);
        return samkv_tok_no_memory(loading->err);
    }
    enum samkv_status status = SAMKV_OK;
    uint32_t rank = 0;
    for (size_t i = 0; status == SAMKV_OK && i < count; i++) {
        const json_t *value = json_array_get(loading->merges, i);
        const char *text = json_string_value(value);
        if (!text || strncmp(text, "#version", 8) != 0) /* a line that old files carry along */
            status = load_merge(loading, value, rank++, joined);
    }
    free(joined);
    return status;
}

/* Parts of BPE that would change the result and are not done here. */
static enum samkv_status refuse_variants(struct loading *loading)
{
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const char *type = json_string_value(json_object_get(loading->model, "type"));
    if (type ? strcmp(type, "BPE") != 0 : !loading->merges)
        return samkv_fail(loading->err, SAMKV_UNSUPPORTED,
                          "tokenizer.json: the model \"%.64s\" is not supported, only BPE is", type ? type : "(none)");
    for (int i = 0; i < 2; i++) {
        const json_t *value = json_object_get(loading->model, affixes[i]);
        if (value && !json_is_null(value) && !(json_is_string(value) && json_string_length(value) == 0))
            return samkv_fail(loading->err, SAMKV_UNSUPPORTED, "tokenizer.json: BPE with %s is not supported",
                              affixes[i]);
    }
    const json_t *dropout = json_object_get(loading->model, "dropout");
    if (dropout && !json_is_null(dropout) && !(json_is_number(dropout) && json_number_value(dropout) == 0))
        return samkv_fail(loading->err, SAMKV_UNSUPPORTED, "tokenizer.json: BPE with dropout is not supported");
    return SAMKV_OK;
}

static enum samkv_status load_model(struct loading *loading)
{
    struct samkv_tok_bpe *bpe = &loading->tokenizer->bpe;
    const struct samkv_tok_vocab *vocab = &loading->tokenizer->vocab;
    enum samkv_status status = refuse_variants(loading);
    if (status == SAMKV_OK && (!json_is_object(loading->vocab) || !json_is_array(loading->merges)))
        status = invalid(loading, "the model has no vocab or no merges");
    if (status == SAMKV_OK)
        status = samkv_tok_json_bool(loading->model, "byte_fallback", false, &bpe->byte_fallback, loading->err);
    if (status == SAMKV_OK)
        status = samkv_tok_json_bool(loading->model, "fuse_unk", false, &bpe->fuse_unk, loading->err);
    if (status == SAMKV_OK)
        status = samkv_tok_json_bool(loading->model, "ignore_merges", false, &bpe->ignore_merges, loading->err);
    if (status == SAMKV_OK)
        status = measure(loading);
    if (status == SAMKV_OK)
        status = load_vocab(loading);
    if (status == SAMKV_OK)
        status = load_merges(loading);
    const json_t *unk = json_object_get(loading->model, "unk_token");
    if (status != SAMKV_OK || !unk || json_is_null(unk))
        return status;
    bpe->unk = json_is_string(unk)
                   ? samkv_tok_vocab_find(vocab, &vocab->model, json_string_value(unk), json_string_length(unk))
                   : -1;
    return bpe->unk < 0 ? invalid(loading, "unk_token is not in the vocabulary") : SAMKV_OK;
}

/* The text that a token with normalized=true is searched as. */
static enum samkv_status normalise_added(struct loading *loading, struct samkv_tok_added *item)
{
    struct samkv_tok_matcher *matcher;
    struct samkv_tok_buffer scratch[2] = {0};
    struct samkv_tok_text text = {.data = item->match, .bytes = item->bytes};
    enum samkv_status status = samkv_tok_matcher_new(&matcher);
    if (status != SAMKV_OK)
        return samkv_tok_no_memory(loading->err);
    status = samkv_tok_normalise(loading->tokenizer, matcher, text, scratch, &text, loading->err);
    if (status == SAMKV_OK && (item->normalised = malloc(text.bytes + 1))) {
        memcpy(item->normalised, text.data, text.bytes);
        item->match = item->normalised;
        item->bytes = text.bytes;
    } else if (status == SAMKV_OK) {
        status = samkv_tok_no_memory(loading->err);
    }
    samkv_tok_buffer_deinit(&scratch[0]);
    samkv_tok_buffer_deinit(&scratch[1]);
    samkv_tok_matcher_free(matcher);
    return status;
}

/* The reference numbers added tokens itself: those outside the model's vocabulary one after the other behind it. A file
 * that says otherwise would mean one thing there and another to whoever trained on its ids. */
static enum samkv_status check_id(struct loading *loading, const json_t *content, uint32_t id, uint32_t *next)
{
    const struct samkv_tok_vocab *vocab = &loading->tokenizer->vocab;
    int32_t known = samkv_tok_vocab_find(vocab, &vocab->model, json_string_value(content), json_string_length(content));
    uint32_t expected = known >= 0 ? (uint32_t)known : (*next)++;
    if (expected == id)
        return SAMKV_OK;
    return samkv_fail(loading->err, SAMKV_INVALID, "tokenizer.json: the added token \"%.64s\" has id %u, but %u is due",
                      json_string_value(content), id, expected);
}

static enum samkv_status load_added_token(struct loading *loading, const json_t *token, uint32_t *next)
{
    struct samkv_tok_vocab *vocab = &loading->tokenizer->vocab;
    const json_t *content = json_object_get(token, "content");
    uint32_t id = (uint32_t)json_integer_value(json_object_get(token, "id"));
    struct samkv_tok_added item = {.id = id, .bytes = json_string_length(content)};
    bool special, normalized;
    enum samkv_status status = samkv_tok_json_bool(token, "single_word", false, &item.single_word, loading->err);
    if (status == SAMKV_OK)
        status = samkv_tok_json_bool(token, "lstrip", false, &item.lstrip, loading->err);
    if (status == SAMKV_OK)
        status = samkv_tok_json_bool(token, "rstrip", false, &item.rstrip, loading->err);
    if (status == SAMKV_OK)
        status = samkv_tok_json_bool(token, "special", false, &special, loading->err);
    if (status == SAMKV_OK)
        status = samkv_tok_json_bool(token, "normalized", !special, &normalized, loading->err);
    if (status != SAMKV_OK || item.bytes == 0) /* the reference ignores empty ones */
        return status;
    status = check_id(loading, content, id, next);
    if (status == SAMKV_OK)
        status = samkv_tok_vocab_add(vocab, id, json_string_value(content), item.bytes,
                                     (uint8_t)(SAMKV_TOK_ADDED | (special ? SAMKV_TOK_SPECIAL : 0)), loading->err);
    if (status != SAMKV_OK)
        return status;
    item.match = samkv_tok_vocab_text(vocab, id);
    if (normalized)
        status = normalise_added(loading, &item);
    if (status != SAMKV_OK)
        return status;
    struct samkv_tokenizer *tokenizer = loading->tokenizer;
    return samkv_tok_add_added(normalized ? &tokenizer->added_normalised : &tokenizer->added, item, loading->err);
}

static enum samkv_status load(struct loading *loading, const json_t *root)
{
    struct samkv_tokenizer *tokenizer = loading->tokenizer;
    struct samkv_error *err = loading->err;
    loading->model = json_object_get(root, "model");
    loading->vocab = json_object_get(loading->model, "vocab");
    loading->merges = json_object_get(loading->model, "merges");
    loading->added = json_object_get(root, "added_tokens");
    if (!json_is_object(loading->model))
        return invalid(loading, "there is no model");
    if (loading->added && !json_is_array(loading->added) && !json_is_null(loading->added))
        return invalid(loading, "added_tokens is no list");
    enum samkv_status status = load_model(loading);
    if (status == SAMKV_OK)
        status = samkv_tok_json_normalizer(tokenizer, json_object_get(root, "normalizer"), err);
    if (status == SAMKV_OK)
        status = samkv_tok_json_pre_tokenizer(tokenizer, json_object_get(root, "pre_tokenizer"), err);
    if (status == SAMKV_OK)
        status = samkv_tok_json_decoder(tokenizer, json_object_get(root, "decoder"), err);
    if (status == SAMKV_OK)
        status = samkv_tok_json_post_processor(tokenizer, json_object_get(root, "post_processor"), err);
    uint32_t next = (uint32_t)json_object_size(loading->vocab);
    for (size_t i = 0; status == SAMKV_OK && i < json_array_size(loading->added); i++)
        status = load_added_token(loading, json_array_get(loading->added, i), &next);
    return status == SAMKV_OK ? samkv_tok_finish(tokenizer, err) : status;
}

enum samkv_status samkv_tokenizer_from_json(const char *json, size_t bytes, struct samkv_tokenizer **out,
                                            struct samkv_error *err)
{
    if (bytes > MAX_FILE_BYTES)
        return samkv_fail(err, SAMKV_TOO_LARGE, "tokenizer.json has %zu bytes, more than any tokenizer", bytes);
    json_error_t why;
    json_t *root = json_loadb(json, bytes, 0, &why);
    if (!root)
        return samkv_fail(err, SAMKV_INVALID, "tokenizer.json: line %d: %s", why.line, why.text);
    struct loading loading = {.tokenizer = samkv_tok_new(), .err = err};
    enum samkv_status status = loading.tokenizer ? load(&loading, root) : samkv_tok_no_memory(err);
    json_decref(root);
#ifdef __GLIBC__
    malloc_trim(0); /* the parsed file takes many times what stays of it */
#endif
    if (status != SAMKV_OK) {
        samkv_tokenizer_free(loading.tokenizer);
        return status;
    }
    *out = loading.tokenizer;
    return SAMKV_OK;
}
