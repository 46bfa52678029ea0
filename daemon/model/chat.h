#pragma once
/* How a question is put to a chat model whose turn the preamble has opened, and how its answer ends. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"
#include "daemon/base/ids.h"
#include "daemon/model/model.h"

/*
 * Appends the query's tokens: a separator, the question as plain text, and what closes the user's turn and opens the
 * assistant's, for the chat format that the preamble speaks (ChatML, Llama 3, Phi-3, Llama 2 and Mistral); "Question: …
 * Answer:" for none. A ChatML model that thinks before it answers is told that it has, as its own template does.
 */
enum samkv_status samkv_chat_query(const struct samkv_model *, const int32_t *preamble, size_t preamble_count,
                                   const char *question, size_t bytes, struct samkv_ids *out,
                                   struct samkv_error *) SAMKV_MUST_USE;

/* The chat format that the model's tokenizer has the words of: "chatml", "llama3", "phi3", "mistral", "" for none. */
const char *samkv_chat_name(const struct samkv_model *);

/* Whether the token ends an answer. */
bool samkv_chat_is_end(const struct samkv_model *, int32_t token);
