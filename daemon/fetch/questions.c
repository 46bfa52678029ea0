#include "daemon/fetch/questions.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/base/ids.h"
#include "daemon/ingest/spec.h"
#include "daemon/model/chat.h"
#include "daemon/samkv/blocks.h"

#define DRAWN_DOCUMENTS    4    /* of a question, where there are as many */
#define DRAWN_TOKENS       4096 /* of them together, but for the first */
#define DRAWN_QUERY_TOKENS 16
#define POOL_NAMES         1024 /* of a collection that are drawn from: a fair choice of all */
#define TRIES              64   /* for each question */

static void question_deinit(struct samkv_question *q)
{
    for (size_t i = 0; i < q->id_count; i++)
        free(q->ids[i]);
    free(q->ids);
    free(q->query);
    *q = (struct samkv_question){0};
}

void samkv_questions_deinit(struct samkv_questions *q)
{
    for (size_t i = 0; i < q->count; i++)
        question_deinit(&q->items[i]);
    free(q->items);
    *q = (struct samkv_questions){0};
}

/* The collection, and the model that it was made with. */
struct place {
    struct samkv_snapshot *snapshot;
    struct samkv_collection collection;
    struct samkv_engine *engine;
};

static enum samkv_status place_open(struct place *p, struct samkv_models *models, struct samkv_store *store,
                                    const char *collection, struct samkv_error *err)
{
    *p = (struct place){0};
    enum samkv_status status = samkv_snapshot_begin(store, &p->snapshot, err);
    return status ? status : samkv_spec_open(models, p->snapshot, collection, &p->collection, &p->engine, err);
}

static void place_close(struct place *p)
{
    samkv_collection_deinit(&p->collection);
    if (p->snapshot)
        samkv_snapshot_end(p->snapshot);
}

static enum samkv_status questions_init(struct samkv_questions *out, size_t count)
{
    *out = (struct samkv_questions){.items = calloc(count + 1, sizeof *out->items)};
    return out->items ? SAMKV_OK : SAMKV_NO_MEMORY;
}

static enum samkv_status add_id(struct samkv_question *q, const char *id)
{
    char **more = realloc(q->ids, (q->id_count + 1) * sizeof *more);
    if (!more)
        return SAMKV_NO_MEMORY;
    q->ids = more;
    q->ids[q->id_count] = strdup(id);
    return q->ids[q->id_count] ? (q->id_count++, SAMKV_OK) : SAMKV_NO_MEMORY;
}

/* ------------------------------------------------------------------ given */

static enum samkv_status tokenise(const struct place *p, const struct samkv_given_question *given,
                                  struct samkv_ids *ids, struct samkv_error *err)
{
    const struct samkv_model *model = p->engine->model;
    if (!given->text)
        return samkv_ids_append(ids, given->tokens, given->token_count);
    if (!model->tokenizer)
        return samkv_fail(err, SAMKV_UNSUPPORTED, "model '%s' has no tokenizer: give the questions as token ids",
                          model->name);
    if (given->raw)
        return samkv_tokenizer_encode(model->tokenizer, given->text, given->text_bytes, SAMKV_ENCODE_SPECIAL, ids, err);
    return samkv_chat_query(model, p->collection.preamble, p->collection.preamble_tokens, given->text,
                            given->text_bytes, ids, err);
}

static enum samkv_status take_one(const struct place *p, const struct samkv_given_question *given,
                                  struct samkv_question *out, struct samkv_error *err)
{
    struct samkv_ids ids;
    samkv_ids_init(&ids);
    enum samkv_status status = tokenise(p, given, &ids, err);
    out->query = ids.data;
    out->query_count = ids.count;
    for (size_t i = 0; i < given->id_count && !status; i++)
        status = add_id(out, given->ids[i]);
    return status == SAMKV_NO_MEMORY ? samkv_fail(err, status, "out of memory") : status;
}

enum samkv_status samkv_questions_take(struct samkv_models *models, struct samkv_store *store, const char *collection,
                                       const struct samkv_given_question *given, size_t count,
                                       struct samkv_questions *out, struct samkv_error *err)
{
    struct place p;
    enum samkv_status status = place_open(&p, models, store, collection, err);
    if (questions_init(out, count) && !status)
        status = samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < count && !status; i++, out->count++) {
        status = take_one(&p, &given[i], &out->items[i], err);
        if (!status && (!out->items[i].query_count || !out->items[i].id_count))
            status = samkv_fail(err, SAMKV_INVALID, "question %zu is empty or names no documents", i + 1);
    }
    place_close(&p);
    return status;
}

/* ------------------------------------------------------------------ drawn */

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u); /* splitmix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static size_t below(uint64_t *state, size_t count)
{
    return (size_t)(next_random(state) % count);
}

/* Names of the collection: all of them, or a fair choice of many. */
struct names {
    char (*ids)[SAMKV_ID_MAX_BYTES + 1];
    size_t count;
    uint64_t seen, *random;
};

static bool take_name(void *arg, const struct samkv_name *name)
{
    struct names *n = arg;
    size_t at = n->count;
    n->seen++;
    if (n->count == POOL_NAMES)
        at = (size_t)(next_random(n->random) % n->seen);
    else
        n->count++;
    if (at < POOL_NAMES)
        memcpy(n->ids[at], name->id, sizeof name->id);
    return true;
}

static enum samkv_status manifest_of(const struct place *p, const char *id, struct samkv_manifest *out,
                                     struct samkv_error *err)
{
    struct samkv_name name;
    enum samkv_status status = samkv_snapshot_name(p->snapshot, p->collection.name, id, &name, err);
    if (status)
        return status;
    struct samkv_key key = name.key;
    samkv_name_deinit(&name);
    return samkv_snapshot_manifest(p->snapshot, &key, out, err);
}

/* A run of tokens from between the document's anchors; NOT_FOUND when there is nothing between them. */
static enum samkv_status copy_run(const struct place *p, const struct samkv_manifest *m, uint64_t *random,
                                  struct samkv_question *out, struct samkv_error *err)
{
    struct samkv_blocks b =
        samkv_blocks_make(m->tokens, m->block_tokens, p->collection.init_tokens, p->collection.local_tokens);
    if (b.local <= b.init)
        return SAMKV_NOT_FOUND;
    uint32_t first = samkv_block_first(&b, b.init), end = samkv_block_first(&b, b.local);
    uint32_t count = end - first < DRAWN_QUERY_TOKENS ? end - first : DRAWN_QUERY_TOKENS;
    int32_t *tokens = malloc(m->tokens * sizeof *tokens);
    out->query = malloc(count * sizeof *out->query);
    enum samkv_status status = tokens && out->query ? SAMKV_OK : SAMKV_NO_MEMORY;
    if (!status)
        status = samkv_snapshot_tokens(p->snapshot, &m->key, tokens, m->tokens, err);
    if (!status) {
        memcpy(out->query, tokens + first + below(random, end - first - count + 1), count * sizeof *tokens);
        out->query_count = count;
    }
    free(tokens);
    return status;
}

static bool has_id(const struct samkv_question *q, const char *id)
{
    for (size_t i = 0; i < q->id_count; i++)
        if (!strcmp(q->ids[i], id))
            return true;
    return false;
}

/* NOT_FOUND: the documents that were drawn have no middle. */
static enum samkv_status draw_one(const struct place *p, const struct names *names, uint64_t *random,
                                  struct samkv_question *out, struct samkv_error *err)
{
    struct samkv_manifest manifests[DRAWN_DOCUMENTS];
    size_t wanted = names->count < DRAWN_DOCUMENTS ? names->count : DRAWN_DOCUMENTS;
    uint64_t tokens = 0, most = p->engine->model->config.context_tokens;
    most = most > DRAWN_TOKENS ? DRAWN_TOKENS : most;
    for (int tries = 0; tries < TRIES && out->id_count < wanted; tries++) {
        const char *id = names->ids[below(random, names->count)];
        struct samkv_manifest *m = &manifests[out->id_count];
        if (has_id(out, id))
            continue;
        enum samkv_status status = manifest_of(p, id, m, err);
        if (status)
            return status;
        if (tokens && tokens + m->tokens > most)
            continue;
        tokens += m->tokens;
        if (add_id(out, id))
            return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    }
    size_t start = below(random, out->id_count);
    enum samkv_status status = SAMKV_NOT_FOUND;
    for (size_t i = 0; i < out->id_count && status == SAMKV_NOT_FOUND; i++)
        status = copy_run(p, &manifests[(start + i) % out->id_count], random, out, err);
    return status;
}

static enum samkv_status draw(const struct place *p, const struct names *names, size_t count, uint64_t *random,
                              struct samkv_questions *out, struct samkv_error *err)
{
    size_t misses = 0;
    if (!names->count)
        return samkv_fail(err, SAMKV_INVALID, "collection '%s' is empty: ingest documents, or give questions",
                          p->collection.name);
    while (out->count < count) {
        enum samkv_status status = draw_one(p, names, random, &out->items[out->count], err);
        if (status == SAMKV_NOT_FOUND && ++misses < TRIES) {
            question_deinit(&out->items[out->count]);
            continue;
        }
        out->count++; /* what it has is freed with the others */
        if (status == SAMKV_NOT_FOUND)
            return samkv_fail(err, SAMKV_INVALID,
                              "the documents of collection '%s' are all anchors: use smaller blocks or anchors, or "
                              "longer documents",
                              p->collection.name);
        if (status)
            return status;
    }
    return SAMKV_OK;
}

enum samkv_status samkv_questions_draw(struct samkv_models *models, struct samkv_store *store, const char *collection,
                                       size_t count, uint64_t seed, struct samkv_questions *out,
                                       struct samkv_error *err)
{
    struct place p;
    struct names names = {.ids = malloc(POOL_NAMES * sizeof *names.ids), .random = &seed};
    enum samkv_status status = place_open(&p, models, store, collection, err);
    if ((questions_init(out, count) || !names.ids) && !status)
        status = samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    if (!status)
        status = samkv_snapshot_each_name(p.snapshot, p.collection.name, "", take_name, &names, err);
    if (!status)
        status = draw(&p, &names, count, &seed, out, err);
    place_close(&p);
    free(names.ids);
    return status;
}
