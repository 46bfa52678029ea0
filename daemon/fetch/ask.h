#pragma once
/*
 * Ask: the daemon's own greedy answer over a sparse (samkv), naively reused (reuse) or fully recomputed (full) cache,
 * so that a person sees the difference. Called on a pool worker; blocks.
 */
#include "daemon/fetch/fetch.h"

enum samkv_ask_method { SAMKV_ASK_SAMKV = 0, SAMKV_ASK_FULL = 1, SAMKV_ASK_REUSE = 2 };

struct samkv_ask_request {
    struct samkv_fetch_request fetch; /* its query is ignored */
    const char *question;
    size_t question_bytes;
    bool raw; /* the question is the whole query: no chat template */
    enum samkv_ask_method method;
    uint32_t max_tokens; /* 0: 64 */
};

struct samkv_ask_result {
    uint32_t answer_tokens, prompt_tokens;
    double first_token_ms, total_ms;
    struct samkv_fetch_result fetch; /* filled for SAMKV_ASK_SAMKV; memfd is -1 */
};

/* on_text gets pieces of valid UTF-8 as they are decoded, on the calling worker; false stops. */
enum samkv_status samkv_ask(struct samkv_models *, struct samkv_store *, const struct samkv_ask_request *,
                            bool (*on_text)(void *arg, const char *text, size_t bytes), void *arg,
                            struct samkv_ask_result *out, struct samkv_error *) SAMKV_MUST_USE;
void samkv_ask_result_deinit(struct samkv_ask_result *);
