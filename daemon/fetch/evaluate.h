#pragma once
/*
 * Evaluate: one question over documents, answered from several caches, so that what they lose can be compared. The
 * caches of all variants lie behind each other in one memory, as far as it is there, and their answers are decoded side
 * by side: the weights are read once a token and not once a token and variant. Called on a pool worker; blocks.
 *
 * Methods
 *   FULL        the documents prefilled jointly; what the others are compared with
 *   REUSE       stored rows as they are, at their joint positions
 *   CACHEBLEND  of these, the `share` whose K and V differ most, in layer 1, from what a recomputation of all of them
 *               gives, recomputed through all layers (Yao et al., "CacheBlend", EuroSys 2025). All go through two
 * layers for that, which counts EPIC        the first `first_tokens` of each document but the first one recomputed
 * through all layers (Hu et al., "EPIC", ICML 2025) SAMKV       what a fetch with these options gives A cut keeps whole
 * blocks up to as many tokens as SAMKV would keep with these options at most, instead of all: the first ones of each
 * document in turn, or some at random. Nothing else is then there to be recomputed, or seen by it.
 */
#include "daemon/fetch/fetch.h"

#define SAMKV_MAX_VARIANTS 256

enum samkv_evaluated_method {
    SAMKV_EVALUATE_FULL = 0,
    SAMKV_EVALUATE_REUSE = 1,
    SAMKV_EVALUATE_CACHEBLEND = 2,
    SAMKV_EVALUATE_EPIC = 3,
    SAMKV_EVALUATE_SAMKV = 4,
};

enum samkv_cut { SAMKV_CUT_NONE = 0, SAMKV_CUT_FIRST = 1, SAMKV_CUT_RANDOM = 2 };

struct samkv_variant {
    enum samkv_evaluated_method method;
    enum samkv_cut cut;
    double share;          /* (0, 1] */
    uint32_t first_tokens; /* of EPIC */
    /* How SAMKV is to fetch. Its collection, ids and query are ignored, for they are the question's. */
    struct samkv_fetch_request fetch;
};

struct samkv_evaluate_request {
    const char *collection;
    const char *const *ids;
    size_t id_count;
    const char *question; /* as in struct samkv_ask_request, or NULL when tokens are given */
    size_t question_bytes;
    bool raw;
    const int32_t *query_tokens; /* the whole query */
    size_t query_count;
    const char *gold; /* the right answer; or tokens. May be empty: no likelihood is wanted */
    size_t gold_bytes;
    const int32_t *gold_tokens;
    size_t gold_count;
    uint32_t max_tokens; /* of an answer; 0: 32 */
    uint64_t seed;       /* of SAMKV_CUT_RANDOM */
    const struct samkv_variant *variants;
    size_t variant_count;
    const bool *cancelled;     /* may be NULL */
    struct samkv_trace *trace; /* may be NULL */
};

/* What one variant gave; borrowed until the callback returns. */
struct samkv_evaluated {
    const char *text; /* the greedy answer; NULL where the model has no tokenizer */
    size_t text_bytes;
    const int32_t *tokens; /* the same, without what ends it */
    size_t token_count;
    double log_likelihood; /* of the gold answer's first gold_tokens tokens, their sum, in nats */
    uint32_t gold_tokens;
    double kl;             /* KL(full ‖ this) of the next token's distribution, in nats */
    bool agrees;           /* the answer is FULL's, token for token */
    double first_token_ms; /* from nothing to the logits of the first token, others' use of the device included */
    const struct samkv_fetch_result *fetch; /* what was kept and recomputed; memfd is -1 */
};

/* on_variant is called once a variant, on the calling worker, in any order; false ends with CANCELLED. */
enum samkv_status samkv_evaluate(struct samkv_models *, struct samkv_store *, const struct samkv_evaluate_request *,
                                 bool (*on_variant)(void *arg, uint32_t variant, const struct samkv_evaluated *),
                                 void *arg, struct samkv_error *) SAMKV_MUST_USE;
