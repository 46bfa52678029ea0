#pragma once
/*
 * Questions of a JSON Lines file, with their documents. A line is an object:
 *   "question" (or "query")    text, or a list of token ids
 *   "documents" (or "docs")    a list; each is the id of a document that is stored, or one to be stored: an object with
 *                              "text" or "tokens" (and "id", "title" if it has them), or a list of token ids
 * Documents that are to be stored are called by their content where they have no id, so that the same one is stored
 * once.
 */
#include "client/ctl/ctl.h"
#include "client/ctl/ctl_source.h"

struct ctl_question {
    char *text; /* heap, or NULL when tokens are given */
    size_t text_bytes;
    int32_t *tokens; /* heap */
    size_t token_count;
    char **ids; /* heap, each too */
    size_t id_count;
};

struct ctl_questions {
    struct ctl_question *items; /* heap */
    size_t count;
};

/* Gets each document that is to be stored, its id being set; OK goes on. */
typedef enum samkv_status ctl_store_document(void *arg, const struct ctl_document *, struct samkv_error *);

/* deinit in every case. INVALID names the line. */
enum samkv_status ctl_questions_read(struct ctl_questions *, const char *path, ctl_store_document *store, void *arg,
                                     struct samkv_error *) SAMKV_MUST_USE;
void ctl_questions_deinit(struct ctl_questions *);
