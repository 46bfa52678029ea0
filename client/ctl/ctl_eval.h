#pragma once
/*
 * `samkvctl eval`: questions over documents, answered from several kinds of caches, and what each kind loses.
 *
 * Glossary
 *   question   one line of a questions file; its set is the file's name, with its type behind a slash when it has one
 *   method     how a cache is made, as the command line names it: "samkv+fixed+delta", "reuse+first"
 *   variant    a method at one ratio; methods that keep everything are one variant
 *   measure    one number a question and variant; tables show its mean over questions
 */
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "samkv/samkv.h"

/* ------------------------------------------------------------------ measures */

enum eval_measure {
    EVAL_SCORE,          /* F1 of words; for Chinese, ROUGE-L of characters; for token ids, exact match */
    EVAL_EXACT,          /* exact match after normalisation, 0 or 1 */
    EVAL_LIKELIHOOD,     /* log-likelihood of the gold answer, nats a token */
    EVAL_KL,             /* of the next token, from the full cache's, nats */
    EVAL_AGREES,         /* the answer is that of the full cache, token for token */
    EVAL_SEQUENCE,       /* kept tokens, of all */
    EVAL_RECOMPUTE,      /* recomputed pairs of token and layer, of all */
    EVAL_BYTES,          /* read from the store */
    EVAL_FIRST_TOKEN_MS, /* to the first token */
    EVAL_FACTS,          /* needed facts that are wholly kept, of all; NaN where the file does not say */
    EVAL_MEASURES,
};

struct eval_measure_info {
    const char *key, *title;
    bool in_percent;
    int decimals;
};
extern const struct eval_measure_info eval_measures[EVAL_MEASURES];

/* Best over the right answers. */
double eval_score(const char *answer, size_t bytes, const json_t *answers);
double eval_exact(const char *answer, size_t bytes, const json_t *answers);

/* ------------------------------------------------------------------ questions */

struct eval_tokens {
    int32_t *ids;
    size_t count;
};

struct eval_document {
    char *id, *title, *text; /* of text: id from its content, so that what recurs is stored once */
    struct eval_tokens tokens;
};

/* Tokens of a document that an answer needs. */
struct eval_fact {
    uint32_t document, first, count;
};

struct eval_question {
    char *key; /* "set/id": unique in a run */
    char *set, *text;
    json_t *answers; /* texts; NULL where tokens are given */
    struct eval_tokens query, gold, preamble;
    struct eval_document *documents;
    size_t document_count;
    struct eval_fact *facts;
    size_t fact_count;
};

struct eval_questions {
    struct eval_question *list;
    size_t count, capacity;
};

/* All lines of a file, at most `limit` (0: all). INVALID says which line and why. */
enum samkv_status eval_questions_read(struct eval_questions *, const char *path, uint64_t limit,
                                      struct samkv_error *) SAMKV_MUST_USE;
void eval_questions_deinit(struct eval_questions *);

/* ------------------------------------------------------------------ variants */

struct eval_variant {
    char *method; /* heap */
    bool has_ratio;
    double ratio;
    struct samkv_evaluated_variant options; /* stable layers are the method's, heap */
};

struct eval_variants {
    struct eval_variant *list;
    size_t count;
};

/* methods at all ratios. INVALID says which part of which method is wrong. */
enum samkv_status eval_variants_make(struct eval_variants *, char *const *methods, size_t method_count,
                                     const double *ratios, size_t ratio_count, struct samkv_error *) SAMKV_MUST_USE;
void eval_variants_deinit(struct eval_variants *);

/* "samkv+fixed 0.15", "full" */
void eval_variant_name(const struct eval_variant *, char *out, size_t bytes);

/* ------------------------------------------------------------------ results */

/* values[question][variant][measure]; NaN: not there. */
struct eval_results {
    const struct eval_questions *questions;
    const struct eval_variants *variants;
    double *values;
    bool *done;             /* [question] */
    FILE *out;              /* JSON Lines, one a question; NULL: nowhere */
    struct eval_memo *memo; /* estimates that were made: ctl_eval_stats.c */
};

enum samkv_status eval_results_init(struct eval_results *, const struct eval_questions *, const struct eval_variants *,
                                    struct samkv_error *) SAMKV_MUST_USE;
void eval_results_deinit(struct eval_results *);
double *eval_results_at(const struct eval_results *, size_t question, size_t variant);

/*
 * Opens the file to write to. settings (an object) is its first line; with resume, a file whose first line is the same
 * is read, and what is done in it stays; MISMATCH when it is another. A last line that was cut off is done again.
 */
enum samkv_status eval_results_open(struct eval_results *, const char *path, const json_t *settings, bool resume,
                                    struct samkv_error *) SAMKV_MUST_USE;

/* One question's line; takes `variants` over. IO. */
enum samkv_status eval_results_write(struct eval_results *, size_t question, json_t *variants,
                                     struct samkv_error *) SAMKV_MUST_USE;

/* ------------------------------------------------------------------ statistics */

struct eval_estimate {
    double mean, low, high; /* 95 % of bootstrap resamples of the questions; NaN without any */
    size_t count;
};

/* Of the questions of a set (NULL: all; a name that eval_sets gave); minus the same measure of variant `against` (-1:
 * of none), question by question. Deterministic: the seed is fixed. Remembered: ask once all questions are done. */
struct eval_estimate eval_estimate(struct eval_results *, const char *set, size_t variant, int against,
                                   enum eval_measure);

/* Names of the sets, in order of appearance; "all" comes last as NULL when there are several. Returns how many; heap,
 * the names are the questions'. */
size_t eval_sets(const struct eval_questions *, const char ***out);

/* The variant that is the full cache; -1: none. */
int eval_full_variant(const struct eval_variants *);

/* ------------------------------------------------------------------ output */

void eval_print_table(struct eval_results *, FILE *);
json_t *eval_summary(struct eval_results *);

/* One page without any other file. IO. */
enum samkv_status eval_write_html(struct eval_results *, const json_t *settings, const char *path,
                                  struct samkv_error *) SAMKV_MUST_USE;

/* ------------------------------------------------------------------ the run */

struct eval_setup {
    struct samkv_client *client;
    const char *collection;
    struct samkv_collection_options spec;
    int parallel;        /* questions at a time */
    uint32_t max_tokens; /* 0: the daemon's; for questions of token ids as many as the gold answer has */
    uint64_t seed;
};

/* Evaluates what is not done. failed: questions that could not be; told on stderr. */
enum samkv_status eval_run(struct eval_results *, const struct eval_setup *, uint64_t *failed,
                           struct samkv_error *) SAMKV_MUST_USE;
