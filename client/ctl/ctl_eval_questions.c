/*
 * Questions files. A line is
 *   {"id", "question", "answers": [..], "documents": [{"title"?, "text"}, ..]}, or of token ids
 *   {"id", "query", "answer", "docs": [[..], ..], "preamble"?},
 * both with "type"? and "facts"?: [[document, first token, tokens], ..].
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/ctl/ctl_eval.h"
#include "client/ctl/ctl_source.h"

#define MAX_LINE_BYTES (64u << 20)

static enum samkv_status no_memory(struct samkv_error *err)
{
    return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for the questions");
}

static void question_deinit(struct eval_question *q)
{
    for (size_t i = 0; i < q->document_count; i++) {
        free(q->documents[i].id);
        free(q->documents[i].title);
        free(q->documents[i].text);
        free(q->documents[i].tokens.ids);
    }
    free(q->documents);
    free(q->facts);
    free(q->key);
    free(q->set);
    free(q->text);
    free(q->query.ids);
    free(q->gold.ids);
    free(q->preamble.ids);
    json_decref(q->answers);
}

void eval_questions_deinit(struct eval_questions *questions)
{
    for (size_t i = 0; i < questions->count; i++)
        question_deinit(&questions->list[i]);
    free(questions->list);
    *questions = (struct eval_questions){0};
}

static enum samkv_status copy_tokens(const json_t *list, const char *what, struct eval_tokens *out,
                                     struct samkv_error *err)
{
    size_t i;
    const json_t *item;
    if (!json_is_array(list))
        return samkv_fail(err, SAMKV_INVALID, "\"%s\" must be a list of token ids", what);
    out->ids = calloc(json_array_size(list) + 1, sizeof *out->ids);
    if (!out->ids)
        return no_memory(err);
    json_array_foreach(list, i, item)
    {
        json_int_t id = json_integer_value(item);
        if (!json_is_integer(item) || id < 0 || id > INT32_MAX)
            return samkv_fail(err, SAMKV_INVALID, "\"%s\" has something that is no token id", what);
        out->ids[out->count++] = (int32_t)id;
    }
    return SAMKV_OK;
}

/* An id from the content (FNV-1a, twice): what recurs in another question is stored once. */
static enum samkv_status name_document(struct eval_document *d, struct samkv_error *err)
{
    uint64_t hash[2] = {0xcbf29ce484222325u, 0x84222325cbf29ce4u};
    const struct {
        const void *bytes;
        size_t count;
    } parts[] = {{d->title ? d->title : "", d->title ? strlen(d->title) + 1 : 1},
                 {d->text ? d->text : "", d->text ? strlen(d->text) : 0},
                 {d->tokens.ids, d->tokens.count * sizeof *d->tokens.ids}};
    for (size_t p = 0; p < 3; p++)
        for (size_t i = 0; i < parts[p].count; i++)
            for (int k = 0; k < 2; k++)
                hash[k] = (hash[k] ^ ((const unsigned char *)parts[p].bytes)[i]) * 0x100000001b3u + (uint64_t)k;
    if (asprintf(&d->id, "%016llx%016llx", (unsigned long long)hash[0], (unsigned long long)hash[1]) >= 0)
        return SAMKV_OK;
    d->id = NULL;
    return no_memory(err);
}

/* The title stands above the text, as a reader would see it. */
static enum samkv_status read_text_document(const json_t *object, struct eval_document *d, struct samkv_error *err)
{
    const char *title = json_string_value(json_object_get(object, "title"));
    const char *text = json_string_value(json_object_get(object, "text"));
    bool has_title = title && *title;
    if (!text)
        return samkv_fail(err, SAMKV_INVALID, "a document has no \"text\"");
    if (asprintf(&d->text, "%s%s%s\n\n", has_title ? title : "", has_title ? "\n" : "", text) < 0) {
        d->text = NULL;
        return no_memory(err);
    }
    return name_document(d, err);
}

static enum samkv_status read_documents(const json_t *object, struct eval_question *q, struct samkv_error *err)
{
    const json_t *texts = json_object_get(object, "documents"), *lists = json_object_get(object, "docs");
    const json_t *list = texts ? texts : lists, *item;
    size_t i;
    if (!json_is_array(list) || !json_array_size(list))
        return samkv_fail(err, SAMKV_INVALID, "the question has no \"documents\" (or \"docs\" of token ids)");
    q->documents = calloc(json_array_size(list), sizeof *q->documents);
    if (!q->documents)
        return no_memory(err);
    json_array_foreach(list, i, item)
    {
        struct eval_document *d = &q->documents[q->document_count++];
        enum samkv_status status =
            texts ? read_text_document(item, d, err) : copy_tokens(item, "docs", &d->tokens, err);
        if (!status && !texts)
            status = name_document(d, err);
        if (status)
            return status;
    }
    return SAMKV_OK;
}

static enum samkv_status read_answers(const json_t *object, struct eval_question *q, struct samkv_error *err)
{
    json_t *answers = json_object_get(object, "answers"), *item;
    size_t i;
    if (q->query.ids)
        return copy_tokens(json_object_get(object, "answer"), "answer", &q->gold, err);
    if (!json_is_array(answers) || !json_array_size(answers))
        return samkv_fail(err, SAMKV_INVALID, "the question has no \"answers\"");
    json_array_foreach(answers, i, item) if (!json_is_string(item)) return samkv_fail(err, SAMKV_INVALID,
                                                                                      "an answer is no text");
    q->answers = json_incref(answers);
    return SAMKV_OK;
}

static enum samkv_status read_facts(const json_t *facts, struct eval_question *q, struct samkv_error *err)
{
    size_t i;
    const json_t *item;
    if (!facts)
        return SAMKV_OK;
    q->facts = calloc(json_array_size(facts) + 1, sizeof *q->facts);
    if (!q->facts)
        return no_memory(err);
    json_array_foreach(facts, i, item)
    {
        json_int_t n[3];
        for (size_t k = 0; k < 3; k++) {
            const json_t *number = json_array_get(item, k);
            n[k] = json_integer_value(number);
            if (!json_is_integer(number) || n[k] < 0 || n[k] > INT32_MAX)
                return samkv_fail(err, SAMKV_INVALID, "\"facts\" must be [[document, first token, tokens], ..]");
        }
        if ((size_t)n[0] >= q->document_count)
            return samkv_fail(err, SAMKV_INVALID, "a fact's document %lld is not there", (long long)n[0]);
        q->facts[q->fact_count++] = (struct eval_fact){(uint32_t)n[0], (uint32_t)n[1], (uint32_t)n[2]};
    }
    return SAMKV_OK;
}

static enum samkv_status read_names(const json_t *object, const char *file, struct eval_question *q,
                                    struct samkv_error *err)
{
    const char *id = json_string_value(json_object_get(object, "id"));
    const char *type = json_string_value(json_object_get(object, "type"));
    const char *question = json_string_value(json_object_get(object, "question"));
    const json_t *query = json_object_get(object, "query"), *preamble = json_object_get(object, "preamble");
    if (!id)
        return samkv_fail(err, SAMKV_INVALID, "the question has no \"id\"");
    if (!question == !query)
        return samkv_fail(err, SAMKV_INVALID, "the question must have one of \"question\" and \"query\"");
    if (asprintf(&q->set, "%s%s%s", file, type ? "/" : "", type ? type : "") < 0)
        q->set = NULL;
    if (!q->set || asprintf(&q->key, "%s/%s", q->set, id) < 0)
        q->key = NULL;
    q->text = question ? strdup(question) : NULL;
    if (!q->key || (question && !q->text))
        return no_memory(err);
    enum samkv_status status = query ? copy_tokens(query, "query", &q->query, err) : SAMKV_OK;
    return !status && preamble ? copy_tokens(preamble, "preamble", &q->preamble, err) : status;
}

static enum samkv_status read_question(const json_t *object, const char *file, struct eval_question *q,
                                       struct samkv_error *err)
{
    *q = (struct eval_question){0};
    enum samkv_status status = read_names(object, file, q, err);
    if (!status)
        status = read_documents(object, q, err);
    if (!status)
        status = read_answers(object, q, err);
    return status ? status : read_facts(json_object_get(object, "facts"), q, err);
}

static enum samkv_status read_line(struct eval_questions *all, const char *line, size_t bytes, const char *file,
                                   struct samkv_error *err)
{
    json_error_t why;
    if (all->count == all->capacity) {
        size_t capacity = all->capacity ? 2 * all->capacity : 64;
        struct eval_question *list = realloc(all->list, capacity * sizeof *list);
        if (!list)
            return no_memory(err);
        all->list = list;
        all->capacity = capacity;
    }
    json_t *object = json_loadb(line, bytes, 0, &why);
    if (!object)
        return samkv_fail(err, SAMKV_INVALID, "broken JSON: %s", why.text);
    enum samkv_status status = read_question(object, file, &all->list[all->count++], err);
    json_decref(object);
    return status;
}

static enum samkv_status read_lines(struct eval_questions *all, int fd, const char *file, uint64_t limit,
                                    struct samkv_error *err)
{
    static const volatile sig_atomic_t never = 0;
    struct ctl_lines lines;
    struct samkv_error why;
    enum samkv_status status = SAMKV_OK;
    char *line;
    size_t bytes;
    uint64_t used;
    ctl_lines_init(&lines, fd, MAX_LINE_BYTES);
    for (uint64_t read = 0; !status && (!limit || read < limit);) {
        status = ctl_lines_next(&lines, &never, &line, &bytes, &used, &why);
        if (status || !bytes)
            continue;
        status = read_line(all, line, bytes, file, &why);
        read++;
    }
    uint64_t number = lines.number;
    ctl_lines_deinit(&lines);
    if (!status || status == SAMKV_NOT_FOUND) /* the end */
        return SAMKV_OK;
    return samkv_fail(err, status, "%s:%llu: %s", file, (unsigned long long)number, why.text);
}

enum samkv_status eval_questions_read(struct eval_questions *all, const char *path, uint64_t limit,
                                      struct samkv_error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return samkv_fail(err, SAMKV_IO, "cannot open %s: %s", path, strerror(errno));
    char *copy = strdup(path), *file = copy ? basename(copy) : NULL;
    char *dot = file ? strrchr(file, '.') : NULL;
    if (dot && dot != file)
        *dot = 0;
    enum samkv_status status = file ? read_lines(all, fd, file, limit, err) : no_memory(err);
    free(copy);
    return status;
}
