#pragma once
/* What collection a request means: the stored one, or one made from the request and the defaults. */
#include "proto/status.h"
#include "daemon/ingest/ingest.h"

#define SAMKV_DEFAULT_COLLECTION   "default"
#define SAMKV_DEFAULT_BLOCK_TOKENS 16
#define SAMKV_DEFAULT_INIT_TOKENS  16
#define SAMKV_DEFAULT_LOCAL_TOKENS 16
/* A block is one record and one step of a prefill at the least. */
#define SAMKV_MAX_BLOCK_TOKENS 512

/* The stored collection of this name with the model that it was made with. NOT_FOUND and MISMATCH say what to do. */
enum samkv_status samkv_spec_open(struct samkv_models *, struct samkv_snapshot *, const char *name,
                                  struct samkv_collection *out, struct samkv_engine **engine,
                                  struct samkv_error *) SAMKV_MUST_USE;

/*
 * The collection of an ingest. *exists says whether it is stored and the request asks for nothing else; otherwise it
 * must be put (which compares). is_text: the document is text (then a new collection without a preamble gets the
 * tokenizer's BOS, if it puts one in front). `codec`: of a new collection that does not choose. The caller deinits out.
 */
enum samkv_status samkv_spec_resolve(struct samkv_models *, struct samkv_snapshot *,
                                     const struct samkv_ingest_request *, enum samkv_codec codec,
                                     struct samkv_collection *out, struct samkv_engine **engine, bool *exists,
                                     struct samkv_error *) SAMKV_MUST_USE;
