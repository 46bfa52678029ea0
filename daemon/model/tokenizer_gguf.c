/* Loading a tokenizer from GGUF metadata (tokenizer.ggml.*). */
#include <stdlib.h>
#include <string.h>

#include "daemon/model/gguf.h"
#include "daemon/model/tokenizer_load.h"

#define MAX_TOKENS 16777216

/* Values of tokenizer.ggml.token_type. */
enum { TYPE_NORMAL = 1, TYPE_UNKNOWN = 2, TYPE_CONTROL = 3, TYPE_USER = 4, TYPE_UNUSED = 5, TYPE_BYTE = 6 };

/* How llama-like vocabularies cut words; %s is what they do with digits. */
#define LLAMA3_PATTERN(digits)                                                                                         \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits                                               \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define CASED_UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED_LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define TEKKEN_PATTERN                                                                                                 \
    "[^\\r\\n\\p{L}\\p{N}]?" CASED_UPPER "*" CASED_LOWER "+|[^\\r\\n\\p{L}\\p{N}]?" CASED_UPPER "+" CASED_LOWER        \
    "*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/* What the name in tokenizer.ggml.pre stands for. */
struct pre_tokenizer {
    const char *names[8];
    const char *patterns[4]; /* one after the other, each on the pieces of the one before */
    bool single_digits, nfc, ignore_merges, bos;
};

static const struct pre_tokenizer pre_tokenizers[] = {
    {.names = {"smollm", "starcoder", "refact", "command-r", "codeshell"},
     .patterns = {SAMKV_TOK_GPT2_PATTERN},
     .single_digits = true},
    {.names = {"llama-bpe", "llama3", "llama-v3", "falcon3"},
     .patterns = {LLAMA3_PATTERN("\\p{N}{1,3}")},
     .ignore_merges = true,
     .bos = true},
    {.names = {"qwen2", "deepseek-r1-qwen"}, .patterns = {LLAMA3_PATTERN("\\p{N}")}, .nfc = true},
    {.names = {"tekken"}, .patterns = {TEKKEN_PATTERN}, .ignore_merges = true, .bos = true},
    {.names = {"gpt-2", "phi-2", "mpt", "olmo", "jais"}, .patterns = {SAMKV_TOK_GPT2_PATTERN}},
    {.names = {"default"},
     .patterns = {"[\\p{P}\\$\\+<=>\\^~\\|]+", SAMKV_TOK_GPT2_PATTERN, "\\p{N}+", "[0-9][0-9][0-9]"}},
};

struct loading {
    struct samkv_tokenizer *tokenizer;
    const struct samkv_gguf *file;
    uint8_t *types; /* by id */
    float *scores;  /* by id; SentencePiece only */
    struct samkv_error *err;
};

static enum samkv_status invalid(struct loading *loading, const char *what)
{
    return samkv_fail(loading->err, SAMKV_INVALID, "the GGUF file's tokenizer: %s", what);
}

static bool is_string(const struct loading *loading, const char *key, const char *value)
{
    const char *text;
    size_t bytes;
    return samkv_gguf_string(loading->file, key, &text, &bytes) && bytes == strlen(value) &&
           memcmp(text, value, bytes) == 0;
}

static bool flag(const struct loading *loading, const char *key, bool missing)
{
    bool value;
    return samkv_gguf_bool(loading->file, key, &value) ? value : missing;
}

static enum samkv_status load_types(struct loading *loading, uint32_t count)
{
    struct samkv_gguf_array types;
    loading->types = malloc(count);
    if (!loading->types)
        return samkv_tok_no_memory(loading->err);
    memset(loading->types, TYPE_NORMAL, count);
    if (!samkv_gguf_array(loading->file, "tokenizer.ggml.token_type", &types))
        return SAMKV_OK;
    for (uint32_t id = 0; id < count; id++) {
        int64_t type;
        if (types.count != count || !samkv_gguf_array_next_i64(&types, &type) || type < TYPE_NORMAL || type > TYPE_BYTE)
            return invalid(loading, "token_type does not fit tokens, or has a value outside 1 to 6");
        loading->types[id] = (uint8_t)type;
    }
    return SAMKV_OK;
}

/* Control tokens are no part of the merging vocabulary: no text may merge into one. */
static enum samkv_status load_token(struct loading *loading, uint32_t id, const char *text, size_t bytes)
{
    static const uint8_t flags[] = {
        [TYPE_NORMAL] = SAMKV_TOK_MODEL,
        [TYPE_UNUSED] = SAMKV_TOK_MODEL,
        [TYPE_BYTE] = SAMKV_TOK_MODEL,
        [TYPE_USER] = SAMKV_TOK_MODEL | SAMKV_TOK_ADDED,
        [TYPE_UNKNOWN] = SAMKV_TOK_ADDED | SAMKV_TOK_SPECIAL,
        [TYPE_CONTROL] = SAMKV_TOK_ADDED | SAMKV_TOK_SPECIAL,
    };
    struct samkv_tok_vocab *vocab = &loading->tokenizer->vocab;
    uint8_t mine = flags[loading->types[id]];
    if (samkv_tok_utf8_valid(text, bytes) != bytes)
        return samkv_fail(loading->err, SAMKV_INVALID, "the GGUF file's tokenizer: token %u is not UTF-8", id);
    enum samkv_status status = samkv_tok_vocab_add(vocab, id, text, bytes, mine, loading->err);
    if (status != SAMKV_OK || !(mine & SAMKV_TOK_ADDED) || bytes == 0)
        return status;
    struct samkv_tok_added item = {.match = samkv_tok_vocab_text(vocab, id), .bytes = bytes, .id = id};
    return samkv_tok_add_added(&loading->tokenizer->added, item, loading->err);
}

static enum samkv_status load_tokens(struct loading *loading)
{
    struct samkv_gguf_array tokens, again;
    const char *text;
    size_t bytes, total = 0;
    if (!samkv_gguf_array(loading->file, "tokenizer.ggml.tokens", &tokens) || tokens.count == 0 ||
        tokens.count > MAX_TOKENS)
        return invalid(loading, "there are no tokens, or far too many");
    again = tokens;
    for (uint64_t i = 0; i < tokens.count; i++) {
        if (!samkv_gguf_array_next_string(&again, &text, &bytes))
            return invalid(loading, "tokens is no list of strings");
        total += bytes;
    }
    uint32_t count = (uint32_t)tokens.count;
    enum samkv_status status = load_types(loading, count);
    if (status == SAMKV_OK)
        status = samkv_tok_vocab_init(&loading->tokenizer->vocab, count, count, total, loading->err);
    for (uint32_t id = 0; status == SAMKV_OK && id < count; id++)
        if (samkv_gguf_array_next_string(&tokens, &text, &bytes))
            status = load_token(loading, id, text, bytes);
    return status;
}

static enum samkv_status load_merge(struct loading *loading, const char *text, size_t bytes, uint32_t rank,
                                    struct samkv_tok_buffer *joined)
{
    struct samkv_tokenizer *tokenizer = loading->tokenizer;
    const struct samkv_tok_vocab *vocab = &tokenizer->vocab;
    const char *space = bytes > 1 ? memchr(text + 1, ' ', bytes - 1) : NULL;
    int32_t a = -1, b = -1, ab = -1;
    if (space) {
        size_t left = (size_t)(space - text), right = bytes - left - 1;
        joined->count = 0;
        enum samkv_status status = samkv_tok_append(joined, text, left);
        if (status == SAMKV_OK)
            status = samkv_tok_append(joined, space + 1, right);
        if (status != SAMKV_OK)
            return samkv_tok_no_memory(loading->err);
        a = samkv_tok_vocab_find(vocab, &vocab->model, text, left);
        b = samkv_tok_vocab_find(vocab, &vocab->model, space + 1, right);
        ab = samkv_tok_vocab_find(vocab, &vocab->model, joined->data, joined->count);
    }
    if (a < 0 || b < 0 || ab < 0)
        return samkv_fail(loading->err, SAMKV_INVALID,
                          "the GGUF file's tokenizer: merge %u is no pair, or names a token outside the vocabulary",
                          rank);
    samkv_tok_merges_put(&tokenizer->bpe.merges, (uint32_t)a, (uint32_t)b, rank, (uint32_t)ab);
    return SAMKV_OK;
}

static enum samkv_status load_merges(struct loading *loading)
{
    struct samkv_gguf_array merges;
    if (!samkv_gguf_array(loading->file, "tokenizer.ggml.merges", &merges) || merges.count > 4 * (uint64_t)MAX_TOKENS)
        return invalid(loading, "there are no merges, or far too many");
    if (samkv_tok_merges_init(&loading->tokenizer->bpe.merges, merges.count) != SAMKV_OK)
        return samkv_tok_no_memory(loading->err);
    struct samkv_tok_buffer joined = {0};
    enum samkv_status status = SAMKV_OK;
    for (uint32_t rank = 0; status == SAMKV_OK && rank < merges.count; rank++) {
        const char *text;
        size_t bytes;
        status = samkv_gguf_array_next_string(&merges, &text, &bytes)
                     ? load_merge(loading, text, bytes, rank, &joined)
                     : invalid(loading, "merges is no list of strings");
    }
    samkv_tok_buffer_deinit(&joined);
    return status;
}

static enum samkv_status load_bos(struct loading *loading, bool missing)
{
    if (!flag(loading, "tokenizer.ggml.add_bos_token", missing))
        return SAMKV_OK;
    uint64_t id;
    if (!samkv_gguf_u64(loading->file, "tokenizer.ggml.bos_token_id", &id) || id >= loading->tokenizer->vocab.ids)
        return invalid(loading, "bos_token_id is missing or outside the vocabulary");
    loading->tokenizer->prefix = malloc(sizeof *loading->tokenizer->prefix);
    if (!loading->tokenizer->prefix)
        return samkv_tok_no_memory(loading->err);
    loading->tokenizer->prefix[0] = (int32_t)id;
    loading->tokenizer->prefix_count = 1;
    return SAMKV_OK;
}

static enum samkv_status load_pre_tokenizer(struct loading *loading, const struct pre_tokenizer *pre)
{
    struct samkv_tokenizer *tokenizer = loading->tokenizer;
    enum samkv_status status = SAMKV_OK;
    tokenizer->bpe.ignore_merges = pre->ignore_merges;
    if (pre->nfc)
        status =
            samkv_tok_add_normaliser(tokenizer, (struct samkv_tok_normaliser){.kind = SAMKV_TOK_NFC}, loading->err);
    if (status == SAMKV_OK && pre->single_digits)
        status = samkv_tok_add_stage(tokenizer, (struct samkv_tok_stage){.kind = SAMKV_TOK_DIGITS}, loading->err);
    for (int i = 0; status == SAMKV_OK && i < 4 && pre->patterns[i]; i++)
        status = samkv_tok_add_split(tokenizer, pre->patterns[i], strlen(pre->patterns[i]), SAMKV_TOK_ISOLATED, false,
                                     loading->err);
    return status;
}

/* Without a name llama.cpp takes the default, and so do we. */
static const struct pre_tokenizer *find_pre_tokenizer(struct loading *loading)
{
    const char *name = "default";
    size_t bytes = strlen(name);
    (void)samkv_gguf_string(loading->file, "tokenizer.ggml.pre", &name, &bytes);
    for (size_t i = 0; i < sizeof pre_tokenizers / sizeof *pre_tokenizers; i++)
        for (int j = 0; j < 8 && pre_tokenizers[i].names[j]; j++)
            if (strlen(pre_tokenizers[i].names[j]) == bytes && !memcmp(pre_tokenizers[i].names[j], name, bytes))
                return &pre_tokenizers[i];
    (void)samkv_fail(loading->err, SAMKV_UNSUPPORTED, "the GGUF file's pre-tokenizer \"%.*s\" is not supported",
                     (int)(bytes < 64 ? bytes : 64), name);
    return NULL;
}

static enum samkv_status load_byte_level(struct loading *loading)
{
    struct samkv_tokenizer *tokenizer = loading->tokenizer;
    const struct pre_tokenizer *pre = find_pre_tokenizer(loading);
    if (!pre)
        return SAMKV_UNSUPPORTED;
    tokenizer->bpe.byte_level = true;
    enum samkv_status status = load_tokens(loading);
    if (status == SAMKV_OK)
        status = load_merges(loading);
    if (status == SAMKV_OK)
        status = load_pre_tokenizer(loading, pre);
    if (status == SAMKV_OK)
        status = load_bos(loading, pre->bos);
    if (status == SAMKV_OK)
        status = samkv_tok_add_decoder(tokenizer, (struct samkv_tok_decoder){.kind = SAMKV_TOK_DECODE_BYTE_LEVEL}, NULL,
                                       0, NULL, 0, loading->err);
    return status;
}

static enum samkv_status load_scores(struct loading *loading)
{
    struct samkv_gguf_array scores;
    uint32_t count = loading->tokenizer->vocab.ids;
    if (!samkv_gguf_array(loading->file, "tokenizer.ggml.scores", &scores) || scores.count != count)
        return invalid(loading, "scores does not fit tokens");
    loading->scores = malloc(count * sizeof *loading->scores);
    if (!loading->scores)
        return samkv_tok_no_memory(loading->err);
    for (uint32_t id = 0; id < count; id++) {
        double score;
        if (!samkv_gguf_array_next_f64(&scores, &score))
            return invalid(loading, "scores is no list of numbers");
        loading->scores[id] = (float)score;
    }
    /* From here on: whether merging may use or make the piece. */
    for (uint32_t id = 0; id < count; id++)
        loading->types[id] = loading->types[id] == TYPE_NORMAL || loading->types[id] == TYPE_USER;
    return samkv_tok_spm_merges(loading->tokenizer, loading->scores, loading->types, loading->err);
}

/* Spaces become U+2581 before merging; bytes outside the vocabulary become <0xHH>. */
static enum samkv_status load_sentencepiece(struct loading *loading)
{
    static const struct samkv_tok_decoder bytes = {.kind = SAMKV_TOK_DECODE_BYTE_FALLBACK},
                                          fuse = {.kind = SAMKV_TOK_DECODE_FUSE},
                                          replace = {.kind = SAMKV_TOK_DECODE_REPLACE},
                                          strip = {.kind = SAMKV_TOK_DECODE_STRIP, .start = 1};
    struct samkv_tokenizer *tokenizer = loading->tokenizer;
    struct samkv_error *err = loading->err;
    bool prefix = flag(loading, "tokenizer.ggml.add_space_prefix", true);
    if (flag(loading, "tokenizer.ggml.remove_extra_whitespaces", false))
        return samkv_fail(err, SAMKV_UNSUPPORTED,
                          "the GGUF file's tokenizer: remove_extra_whitespaces is not supported");
    uint64_t unk = 0;
    enum samkv_status status = load_tokens(loading);
    if (status == SAMKV_OK &&
        (samkv_gguf_u64(loading->file, "tokenizer.ggml.unknown_token_id", &unk), unk >= tokenizer->vocab.ids))
        status = invalid(loading, "unknown_token_id is outside the vocabulary");
    if (status == SAMKV_OK)
        status = load_scores(loading);
    tokenizer->bpe.byte_fallback = tokenizer->bpe.fuse_unk = true;
    tokenizer->bpe.unk = (int32_t)unk;
    if (status == SAMKV_OK && prefix)
        status = samkv_tok_add_prepend(tokenizer, "▁", strlen("▁"), err);
    if (status == SAMKV_OK)
        status = samkv_tok_add_replace(tokenizer, " ", "▁", err);
    if (status == SAMKV_OK)
        status = samkv_tok_add_decoder(tokenizer, replace, " ", 1, "▁", strlen("▁"), err);
    if (status == SAMKV_OK)
        status = samkv_tok_add_decoder(tokenizer, bytes, NULL, 0, NULL, 0, err);
    if (status == SAMKV_OK)
        status = samkv_tok_add_decoder(tokenizer, fuse, NULL, 0, NULL, 0, err);
    if (status == SAMKV_OK && prefix)
        status = samkv_tok_add_decoder(tokenizer, strip, " ", 1, NULL, 0, err);
    return status == SAMKV_OK ? load_bos(loading, true) : status;
}

static enum samkv_status load(struct loading *loading)
{
    enum samkv_status status;
    const char *name = "(none)";
    size_t bytes = strlen(name);
    if (is_string(loading, "tokenizer.ggml.model", "gpt2"))
        status = load_byte_level(loading);
    else if (is_string(loading, "tokenizer.ggml.model", "llama"))
        status = load_sentencepiece(loading);
    else {
        (void)samkv_gguf_string(loading->file, "tokenizer.ggml.model", &name, &bytes);
        return samkv_fail(loading->err, SAMKV_UNSUPPORTED, "the GGUF file's tokenizer \"%.*s\" is not supported",
                          (int)(bytes < 64 ? bytes : 64), name);
    }
    return status == SAMKV_OK ? samkv_tok_finish(loading->tokenizer, loading->err) : status;
}

enum samkv_status samkv_tokenizer_from_gguf(const struct samkv_gguf *file, struct samkv_tokenizer **out,
                                            struct samkv_error *err)
{
    struct loading loading = {.tokenizer = samkv_tok_new(), .file = file, .err = err};
    enum samkv_status status = loading.tokenizer ? load(&loading) : samkv_tok_no_memory(err);
    free(loading.types);
    free(loading.scores);
    if (status != SAMKV_OK) {
        samkv_tokenizer_free(loading.tokenizer);
        return status;
    }
    *out = loading.tokenizer;
    return SAMKV_OK;
}
