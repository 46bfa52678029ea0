#pragma once
/*
 * Questions to calibrate with: those that a client gives, or ones drawn from a collection's own text. A drawn question
 * is a few of its documents and, as the query, a run of tokens copied from the middle of one of them: a model that is
 * given them all attends to where the run stands and goes on as the document does, so where its attention belongs is
 * known to be in the documents' middle, which is what the ranking of blocks must find. The same seed draws the same
 * questions.
 */
#include "daemon/fetch/fetch.h"
#include "daemon/store/store.h"

/* As a client gives it. */
struct samkv_given_question {
    const char *text; /* or NULL when tokens are given */
    size_t text_bytes;
    bool raw; /* the text is the whole query: no chat template around it */
    const int32_t *tokens;
    size_t token_count;
    const char *const *ids;
    size_t id_count;
};

struct samkv_question {
    char **ids; /* heap, each too */
    size_t id_count;
    int32_t *query; /* heap */
    size_t query_count;
};

struct samkv_questions {
    struct samkv_question *items; /* heap */
    size_t count;
};

/* Text gets the chat template of the collection's model, as a question to ask has it. INVALID names the question. */
enum samkv_status samkv_questions_take(struct samkv_models *, struct samkv_store *, const char *collection,
                                       const struct samkv_given_question *, size_t count, struct samkv_questions *out,
                                       struct samkv_error *) SAMKV_MUST_USE;

/* As many as asked for. INVALID when the collection has no document with a middle to ask for. */
enum samkv_status samkv_questions_draw(struct samkv_models *, struct samkv_store *, const char *collection,
                                       size_t count, uint64_t seed, struct samkv_questions *out,
                                       struct samkv_error *) SAMKV_MUST_USE;

void samkv_questions_deinit(struct samkv_questions *);
