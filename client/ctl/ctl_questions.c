#include "client/ctl/ctl_questions.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#define LINE_MAX_BYTES ((size_t)64 << 20)

static enum samkv_status no_memory(struct samkv_error *err)
{
    return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for a question");
}

void ctl_questions_deinit(struct ctl_questions *q)
{
    for (size_t i = 0; i < q->count; i++) {
        for (size_t k = 0; k < q->items[i].id_count; k++)
            free(q->items[i].ids[k]);
        free(q->items[i].ids);
        free(q->items[i].text);
        free(q->items[i].tokens);
    }
    free(q->items);
    *q = (struct ctl_questions){0};
}

/* ------------------------------------------------------------------ parts of a line */

/* What calls a document that has no name: FNV-1a of its content. */
static uint64_t hash(uint64_t seed, const void *data, size_t bytes)
{
    const uint8_t *at = data;
    for (size_t i = 0; i < bytes; i++)
        seed = (seed ^ at[i]) * 0x100000001b3u;
    return seed;
}

static enum samkv_status read_tokens(const json_t *list, int32_t **out, size_t *count, struct samkv_error *err)
{
    *count = json_array_size(list);
    *out = malloc((*count ? *count : 1) * sizeof **out);
    if (!*out)
        return no_memory(err);
    for (size_t i = 0; i < *count; i++) {
        const json_t *item = json_array_get(list, i);
        json_int_t id = json_integer_value(item);
        if (!json_is_integer(item) || id < 0 || id > INT32_MAX)
            return samkv_fail(err, SAMKV_INVALID, "number %zu of a list of tokens is no token id", i);
        (*out)[i] = (int32_t)id;
    }
    return SAMKV_OK;
}

static enum samkv_status copy_text(const json_t *value, char **out, size_t *bytes, struct samkv_error *err)
{
    *bytes = json_string_length(value);
    if (memchr(json_string_value(value), 0, *bytes))
        return samkv_fail(err, SAMKV_INVALID, "a text holds a NUL character");
    *out = strdup(json_string_value(value));
    return *out ? SAMKV_OK : no_memory(err);
}

/* Title and text as one text: what a reader would see. */
static enum samkv_status join_title(struct ctl_document *d, struct samkv_error *err)
{
    char *joined;
    if (!d->title || !*d->title || !d->text)
        return SAMKV_OK;
    int n = asprintf(&joined, "%s\n%s", d->title, d->text);
    if (n < 0)
        return no_memory(err);
    free(d->text);
    d->text = joined;
    d->text_bytes = (size_t)n;
    return SAMKV_OK;
}

static enum samkv_status read_document(const json_t *value, struct ctl_document *d, struct samkv_error *err)
{
    size_t bytes;
    if (json_is_array(value))
        return read_tokens(value, &d->tokens, &d->token_count, err);
    const json_t *text = json_object_get(value, "text"), *tokens = json_object_get(value, "tokens");
    const json_t *id = json_object_get(value, "id"), *title = json_object_get(value, "title");
    if (json_is_string(text) == json_is_array(tokens))
        return samkv_fail(err, SAMKV_INVALID,
                          "a document must be an id, a list of token ids, or an object with one of "
                          "\"text\" and \"tokens\"");
    enum samkv_status status =
        text ? copy_text(text, &d->text, &d->text_bytes, err) : read_tokens(tokens, &d->tokens, &d->token_count, err);
    if (!status && json_is_string(title))
        status = copy_text(title, &d->title, &bytes, err);
    if (!status && json_is_string(id))
        status = copy_text(id, &d->id, &bytes, err);
    return status ? status : join_title(d, err);
}

static enum samkv_status name_document(struct ctl_document *d, struct samkv_error *err)
{
    uint64_t sum = hash(0xcbf29ce484222325u, d->text, d->text ? d->text_bytes : 0);
    sum = hash(sum, d->tokens, d->tokens ? d->token_count * sizeof *d->tokens : 0);
    if (d->id)
        return SAMKV_OK;
    if (asprintf(&d->id, "text-%016" PRIx64, sum) >= 0)
        return SAMKV_OK;
    d->id = NULL;
    return no_memory(err);
}

/* The id of a document that is stored, after storing it if it is not. Heap. */
static enum samkv_status take_document(const json_t *value, ctl_store_document *store, void *arg, char **out,
                                       struct samkv_error *err)
{
    struct ctl_document d = {0};
    size_t bytes;
    if (json_is_string(value))
        return copy_text(value, out, &bytes, err);
    enum samkv_status status = read_document(value, &d, err);
    if (!status)
        status = name_document(&d, err);
    if (!status)
        status = store(arg, &d, err);
    if (!status && !(*out = strdup(d.id)))
        status = no_memory(err);
    ctl_document_deinit(&d);
    return status;
}

static enum samkv_status read_question(const json_t *object, struct ctl_question *q, ctl_store_document *store,
                                       void *arg, struct samkv_error *err)
{
    const json_t *question = json_object_get(object, "question"), *documents = json_object_get(object, "documents");
    question = question ? question : json_object_get(object, "query");
    documents = documents ? documents : json_object_get(object, "docs");
    if (!json_is_array(documents) || !json_array_size(documents) ||
        !(json_is_string(question) || json_is_array(question)))
        return samkv_fail(err, SAMKV_INVALID,
                          "a line must be an object with a \"question\" and a list of \"documents\"");
    enum samkv_status status = json_is_string(question) ? copy_text(question, &q->text, &q->text_bytes, err)
                                                        : read_tokens(question, &q->tokens, &q->token_count, err);
    q->ids = calloc(json_array_size(documents), sizeof *q->ids);
    if (!status && !q->ids)
        status = no_memory(err);
    for (size_t i = 0; i < json_array_size(documents) && !status; i++) {
        status = take_document(json_array_get(documents, i), store, arg, &q->ids[i], err);
        q->id_count += !status;
    }
    return status;
}

/* ------------------------------------------------------------------ the file */

static enum samkv_status add_line(struct ctl_questions *out, const char *line, size_t bytes, ctl_store_document *store,
                                  void *arg, struct samkv_error *err)
{
    json_error_t why;
    if (out->count % 64 == 0) {
        struct ctl_question *more = realloc(out->items, (out->count + 64) * sizeof *more);
        if (!more)
            return no_memory(err);
        out->items = more;
    }
    json_t *object = json_loadb(line, bytes, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &why);
    if (!object)
        return samkv_fail(err, SAMKV_INVALID, "broken JSON at column %d: %s", why.column, why.text);
    out->items[out->count] = (struct ctl_question){0};
    enum samkv_status status = read_question(object, &out->items[out->count++], store, arg, err);
    json_decref(object);
    return status;
}

enum samkv_status ctl_questions_read(struct ctl_questions *out, const char *path, ctl_store_document *store, void *arg,
                                     struct samkv_error *err)
{
    static const volatile sig_atomic_t never = 0;
    struct ctl_lines lines;
    char *line;
    size_t bytes;
    uint64_t used;
    *out = (struct ctl_questions){0};
    int fd = strcmp(path, "-") ? open(path, O_RDONLY | O_CLOEXEC) : STDIN_FILENO;
    if (fd < 0)
        return samkv_fail_errno(err, errno, "cannot open %s", path);
    ctl_lines_init(&lines, fd, LINE_MAX_BYTES);
    enum samkv_status status;
    while ((status = ctl_lines_next(&lines, &never, &line, &bytes, &used, err)) == SAMKV_OK) {
        struct samkv_error why;
        if (!bytes)
            continue;
        status = add_line(out, line, bytes, store, arg, &why);
        if (status) {
            samkv_fail(err, status, "%s:%" PRIu64 ": %s", path, lines.number, why.text);
            break;
        }
    }
    ctl_lines_deinit(&lines);
    if (status != SAMKV_NOT_FOUND)
        return status;
    return out->count ? SAMKV_OK : samkv_fail(err, SAMKV_INVALID, "%s holds no questions", path);
}
