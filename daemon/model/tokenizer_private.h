#pragma once
/*
 * Private to the tokenizer: its parts, put together by the loaders (tokenizer_json.c, tokenizer_gguf.c) and run in this
 * order: repair UTF-8, cut out added tokens, normalise, cut out added tokens that are matched in normalised text, split
 * into words (the stages), merge each word's symbols (BPE).
 */
#include "daemon/model/tokenizer.h"
#include "daemon/model/tokenizer_regex.h"
#include "daemon/model/tokenizer_text.h"
#include "daemon/model/tokenizer_vocab.h"

#define SAMKV_TOK_MAX_STEPS 16 /* normalisers, stages, decoders; far more than any tokenizer has */

enum samkv_tok_normaliser_kind {
    SAMKV_TOK_NFC,
    SAMKV_TOK_NFD,
    SAMKV_TOK_NFKC,
    SAMKV_TOK_NFKD,
    SAMKV_TOK_PREPEND,
    SAMKV_TOK_REPLACE_ALL,
    SAMKV_TOK_TRIM,
};

struct samkv_tok_normaliser {
    enum samkv_tok_normaliser_kind kind;
    struct samkv_tok_regex *pattern; /* REPLACE_ALL */
    char *text;                      /* PREPEND, REPLACE_ALL: what is put in; heap */
    size_t text_bytes;
    bool left, right; /* TRIM */
};

enum samkv_tok_stage_kind {
    SAMKV_TOK_SPLIT,
    SAMKV_TOK_DIGITS,
    SAMKV_TOK_METASPACE,
    SAMKV_TOK_PREFIX_SPACE, /* ByteLevel's add_prefix_space */
};

/* What happens to the matches of a pattern when a text is cut at them. */
enum samkv_tok_behaviour {
    SAMKV_TOK_ISOLATED,
    SAMKV_TOK_REMOVED,
    SAMKV_TOK_MERGED_WITH_PREVIOUS,
    SAMKV_TOK_MERGED_WITH_NEXT,
    SAMKV_TOK_CONTIGUOUS,
};

enum samkv_tok_prepend { SAMKV_TOK_ALWAYS, SAMKV_TOK_FIRST, SAMKV_TOK_NEVER };

struct samkv_tok_stage {
    enum samkv_tok_stage_kind kind;
    enum samkv_tok_behaviour behaviour; /* SPLIT, DIGITS, METASPACE */
    bool invert;                        /* SPLIT: what the pattern does not match is the match */
    bool whole;                         /* METASPACE: do not split */
    enum samkv_tok_prepend prepend;     /* METASPACE */
    struct samkv_tok_regex *pattern;    /* SPLIT; METASPACE's replacement as a literal */
    char replacement[4];                /* METASPACE: instead of a space */
    int replacement_bytes;
};

enum samkv_tok_decoder_kind {
    SAMKV_TOK_DECODE_BYTE_LEVEL,
    SAMKV_TOK_DECODE_BYTE_FALLBACK,
    SAMKV_TOK_DECODE_FUSE,
    SAMKV_TOK_DECODE_REPLACE,
    SAMKV_TOK_DECODE_STRIP,
    SAMKV_TOK_DECODE_METASPACE,
};

struct samkv_tok_decoder {
    enum samkv_tok_decoder_kind kind;
    struct samkv_tok_regex *pattern; /* REPLACE */
    char *text;                      /* REPLACE: instead of the pattern; STRIP, METASPACE: the character; heap */
    size_t text_bytes;
    uint32_t start, stop; /* STRIP: at most so many characters */
    bool keep_first;      /* METASPACE: the first token keeps its leading space */
};

struct samkv_tok_added {
    const char *match; /* what is searched for: in the vocabulary's arena, or `normalised` */
    size_t bytes;
    char *normalised; /* heap or NULL */
    uint32_t id;
    bool single_word, lstrip, rstrip;
};

/* Patterns sorted by bytes; a search narrows the range byte by byte. */
struct samkv_tok_added_set {
    struct samkv_tok_added *items; /* heap */
    size_t count;
    bool first[256]; /* some item begins with this byte */
};

#define SAMKV_TOK_CROSSING_BITS 18

struct samkv_tok_bpe {
    struct samkv_tok_merges merges;
    bool byte_level, byte_fallback, fuse_unk, ignore_merges;
    int32_t unk;           /* -1: characters outside the vocabulary vanish */
    int32_t symbol[256];   /* byte level: of each byte; else of ASCII; -1: none */
    int32_t fallback[256]; /* the tokens <0x00> to <0xFF> */
    /* A hashed set of (last symbol, first symbol) over all merges. Where two neighbours are not in it, nothing can ever
     * merge across, so a text is cut there: the exact result with short words. NULL: never cut. */
    uint64_t *crossing;
};

struct samkv_tokenizer {
    struct samkv_tok_vocab vocab;
    struct samkv_tok_bpe bpe;
    struct samkv_tok_added_set added, added_normalised;
    struct samkv_tok_normaliser normalisers[SAMKV_TOK_MAX_STEPS];
    struct samkv_tok_stage stages[SAMKV_TOK_MAX_STEPS];
    struct samkv_tok_decoder decoders[SAMKV_TOK_MAX_STEPS];
    int normaliser_count, stage_count, decoder_count;
    bool join_with_spaces; /* a file without decoder */
    int32_t *prefix;       /* BOS and the like; heap */
    size_t prefix_count;
};

/* --- tokenizer_normalise.c: runs all normalisers; *out is where the result is (the input itself when nothing changes).
 */
struct samkv_tok_text {
    const char *data;
    size_t bytes;
};
enum samkv_status samkv_tok_normalise(const struct samkv_tokenizer *, struct samkv_tok_matcher *,
                                      struct samkv_tok_text text, struct samkv_tok_buffer scratch[2],
                                      struct samkv_tok_text *out, struct samkv_error *) SAMKV_MUST_USE;

/* --- tokenizer_unicode.c: one normal form, appended to out. Linear in the text, whatever it holds. */
enum samkv_status samkv_tok_normal_form(enum samkv_tok_normaliser_kind, struct samkv_tok_text text,
                                        struct samkv_tok_buffer *out) SAMKV_MUST_USE;

/* --- tokenizer_added.c */
/* Sorts; fills `first`; INVALID for two equal or an empty pattern. */
enum samkv_status samkv_tok_added_finish(struct samkv_tok_added_set *, struct samkv_error *) SAMKV_MUST_USE;
void samkv_tok_added_deinit(struct samkv_tok_added_set *);

struct samkv_tok_scan { /* zero before the first call, besides text and special */
    struct samkv_tok_text text;
    bool special; /* special tokens are matched too */
    size_t at;    /* searched up to here */
    size_t taken; /* belongs to matches up to here (rstrip takes spaces behind one) */
    size_t spaces_from, spaces_to;
};
struct samkv_tok_found {
    size_t start, end; /* with the spaces that lstrip and rstrip take */
    uint32_t id;
};
bool samkv_tok_added_next(const struct samkv_tok_added_set *, const struct samkv_tok_vocab *, struct samkv_tok_scan *,
                          struct samkv_tok_found *);

/* --- tokenizer_bpe.c */
struct samkv_tok_bpe_scratch {
    uint32_t *symbols; /* of the stretch at hand */
    size_t count, capacity;
    uint32_t *links; /* previous and next of each symbol */
    uint64_t *heap;
    size_t links_capacity;
    struct samkv_tok_buffer mapped;
};
void samkv_tok_bpe_scratch_deinit(struct samkv_tok_bpe_scratch *);
/* symbol[] and fallback[] from the vocabulary. */
void samkv_tok_bpe_symbols(struct samkv_tok_bpe *, const struct samkv_tok_vocab *);
/* crossing from the merges in place; stays NULL when the vocabulary does not allow it. */
enum samkv_status samkv_tok_bpe_crossing(struct samkv_tok_bpe *, const struct samkv_tok_vocab *) SAMKV_MUST_USE;
/* Appends the ids of one word. O(n log n) in its bytes. */
enum samkv_status samkv_tok_bpe_word(const struct samkv_tokenizer *, struct samkv_tok_bpe_scratch *,
                                     struct samkv_tok_text word, struct samkv_ids *out) SAMKV_MUST_USE;

/* --- tokenizer_split.c */
struct samkv_tok_encoder { /* what one call of encode needs */
    const struct samkv_tokenizer *tokenizer;
    struct samkv_tok_matcher *matcher;
    struct samkv_tok_buffer stage_text[SAMKV_TOK_MAX_STEPS]; /* texts that a stage changed */
    struct samkv_tok_bpe_scratch scratch;
    struct samkv_ids *out;
    struct samkv_error *err;
};
/* Runs stages[stage..] over text and BPE over what comes out. at_start: text begins where the input begins. */
enum samkv_status samkv_tok_split(struct samkv_tok_encoder *, int stage, struct samkv_tok_text text,
                                  bool at_start) SAMKV_MUST_USE;

/* --- tokenizer.c: an empty tokenizer for the loaders to fill. NULL: no memory. */
struct samkv_tokenizer *samkv_tok_new(void);
enum samkv_status samkv_tok_no_memory(struct samkv_error *) SAMKV_MUST_USE;
