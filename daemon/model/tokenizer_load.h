#pragma once
/* Private to the tokenizer: what both loaders use, and the halves of the JSON loader. */
#include <jansson.h>

#include "daemon/model/tokenizer_private.h"

#define SAMKV_TOK_GPT2_PATTERN "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

/* --- tokenizer_steps.c: append one step; UNSUPPORTED when there are SAMKV_TOK_MAX_STEPS already. Texts are copied. */
enum samkv_status samkv_tok_add_normaliser(struct samkv_tokenizer *, struct samkv_tok_normaliser,
                                           struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_tok_add_replace(struct samkv_tokenizer *, const char *literal, const char *with,
                                        struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_tok_add_prepend(struct samkv_tokenizer *, const char *text, size_t bytes,
                                        struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_tok_add_split(struct samkv_tokenizer *, const char *pattern, size_t bytes,
                                      enum samkv_tok_behaviour, bool invert, struct samkv_error *) SAMKV_MUST_USE;
/* Takes stage.pattern, also when it fails. */
enum samkv_status samkv_tok_add_stage(struct samkv_tokenizer *, struct samkv_tok_stage,
                                      struct samkv_error *) SAMKV_MUST_USE;
/* text and literal: copied into the step's text and pattern; NULL for kinds without. */
enum samkv_status samkv_tok_add_decoder(struct samkv_tokenizer *, struct samkv_tok_decoder step, const char *text,
                                        size_t bytes, const char *literal, size_t literal_bytes,
                                        struct samkv_error *) SAMKV_MUST_USE;
/* An item of either added set; sets grow, and are sorted at the end by samkv_tok_finish. */
enum samkv_status samkv_tok_add_added(struct samkv_tok_added_set *, struct samkv_tok_added,
                                      struct samkv_error *) SAMKV_MUST_USE;
/* When all parts are in: look-up tables, sorting, consistency. */
enum samkv_status samkv_tok_finish(struct samkv_tokenizer *, struct samkv_error *) SAMKV_MUST_USE;

/* --- tokenizer_json_parts.c: a part of tokenizer.json is null, one typed object, or a Sequence of them. */
struct samkv_tok_json_part {
    const char *name;     /* its key in the file, for messages */
    const char *sequence; /* key of a Sequence's list */
    struct samkv_tok_json_type {
        const char *name;
        enum samkv_status (*parse)(struct samkv_tokenizer *, const json_t *, struct samkv_error *);
    } types[12]; /* ends with a NULL name */
};
enum samkv_status samkv_tok_json_parse(const struct samkv_tok_json_part *, struct samkv_tokenizer *, const json_t *,
                                       struct samkv_error *) SAMKV_MUST_USE;
/* INVALID: "what" is missing or of a wrong type. */
enum samkv_status samkv_tok_json_wrong(struct samkv_error *, const char *what) SAMKV_MUST_USE;
/* The string at key, which must be one character. */
enum samkv_status samkv_tok_json_char(const json_t *object, const char *key, const json_t **out,
                                      struct samkv_error *) SAMKV_MUST_USE;
/* Metaspace's: older files say add_prefix_space, newer ones prepend_scheme. */
enum samkv_status samkv_tok_json_prepend_scheme(const json_t *object, enum samkv_tok_prepend *out,
                                                struct samkv_error *) SAMKV_MUST_USE;

/* --- tokenizer_json_parts.c and tokenizer_json_ends.c: each takes the value of the key of the same name in
 * tokenizer.json; NULL and JSON's null are "none". */
enum samkv_status samkv_tok_json_normalizer(struct samkv_tokenizer *, const json_t *,
                                            struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_tok_json_pre_tokenizer(struct samkv_tokenizer *, const json_t *,
                                               struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_tok_json_post_processor(struct samkv_tokenizer *, const json_t *,
                                                struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_tok_json_decoder(struct samkv_tokenizer *, const json_t *, struct samkv_error *) SAMKV_MUST_USE;
/* The boolean at key; `missing` when there is none; INVALID for another type. */
enum samkv_status samkv_tok_json_bool(const json_t *object, const char *key, bool missing, bool *out,
                                      struct samkv_error *) SAMKV_MUST_USE;

/* --- tokenizer_spm.c: merges from SentencePiece scores (one an id). usable: by id, whether a piece may be merged or
 * be the result of merging. */
enum samkv_status samkv_tok_spm_merges(struct samkv_tokenizer *, const float *scores, const uint8_t *usable,
                                       struct samkv_error *) SAMKV_MUST_USE;
