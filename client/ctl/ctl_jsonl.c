#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "client/ctl/ctl_source.h"

static enum samkv_status no_memory(struct samkv_error *err)
{
    return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for a document");
}

/* A string without NUL characters, which neither ids nor the tokenizer know. */
static enum samkv_status copy_text(const json_t *value, const char *name, char **out, size_t *bytes,
                                   struct samkv_error *err)
{
    if (!json_is_string(value))
        return samkv_fail(err, SAMKV_INVALID, "\"%s\" must be a string", name);
    size_t n = json_string_length(value);
    if (memchr(json_string_value(value), 0, n))
        return samkv_fail(err, SAMKV_INVALID, "\"%s\" holds a NUL character", name);
    *out = strdup(json_string_value(value));
    if (bytes)
        *bytes = n;
    return *out ? SAMKV_OK : no_memory(err);
}

static enum samkv_status copy_id(const json_t *value, struct ctl_document *out, struct samkv_error *err)
{
    if (!value)
        return samkv_fail(err, SAMKV_INVALID, "the document has no \"id\"");
    if (!json_is_integer(value))
        return copy_text(value, "id", &out->id, NULL, err);
    if (asprintf(&out->id, "%lld", (long long)json_integer_value(value)) < 0) {
        out->id = NULL;
        return no_memory(err);
    }
    return SAMKV_OK;
}

static enum samkv_status copy_tokens(const json_t *list, struct ctl_document *out, struct samkv_error *err)
{
    if (!json_is_array(list))
        return samkv_fail(err, SAMKV_INVALID, "\"tokens\" must be a list of token ids");
    size_t count = json_array_size(list);
    out->tokens = malloc((count ? count : 1) * sizeof *out->tokens);
    if (!out->tokens)
        return no_memory(err);
    for (size_t i = 0; i < count; i++) {
        const json_t *item = json_array_get(list, i);
        json_int_t id = json_integer_value(item);
        if (!json_is_integer(item) || id < 0 || id > INT32_MAX)
            return samkv_fail(err, SAMKV_INVALID, "\"tokens\"[%zu] is no token id", i);
        out->tokens[i] = (int32_t)id;
    }
    out->token_count = count;
    return SAMKV_OK;
}

static enum samkv_status fill(const json_t *object, struct ctl_document *out, struct samkv_error *err)
{
    if (!json_is_object(object))
        return samkv_fail(err, SAMKV_INVALID, "a line must be an object with \"id\" and \"text\" or \"tokens\"");
    const json_t *text = json_object_get(object, "text"), *tokens = json_object_get(object, "tokens");
    const json_t *title = json_object_get(object, "title");
    enum samkv_status status = copy_id(json_object_get(object, "id"), out, err);
    if (status)
        return status;
    if (!text == !tokens)
        return samkv_fail(err, SAMKV_INVALID, "the document must have one of \"text\" and \"tokens\"");
    if (title && !json_is_null(title) && (status = copy_text(title, "title", &out->title, NULL, err)))
        return status;
    return text ? copy_text(text, "text", &out->text, &out->text_bytes, err) : copy_tokens(tokens, out, err);
}

enum samkv_status ctl_jsonl_parse(const char *line, size_t bytes, struct ctl_document *out, struct samkv_error *err)
{
    json_error_t why;
    json_t *object = json_loadb(line, bytes, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &why);
    if (!object)
        return samkv_fail(err, SAMKV_INVALID, "broken JSON at column %d: %s", why.column, why.text);
    enum samkv_status status = fill(object, out, err);
    json_decref(object);
    return status;
}
