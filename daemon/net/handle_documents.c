#include <stdlib.h>
#include <string.h>

#include "daemon/net/handlers.h"
#include "daemon/net/quality.h"

#define LIST_DEFAULT   1000
#define LIST_MAX       10000
#define SHOW_MAX_BYTES (32u << 20) /* of text; the reply must fit a frame */

/* ------------------------------------------------------------------ messages */

/* Text that a message points to while it is packed. */
struct document_row {
    Samkv__Document message;
    struct samkv_name name;
    char key[33];
};

static void fill_document(struct samkv_store *store, const struct samkv_manifest *manifest,
                          const struct samkv_collection *c, struct document_row *row)
{
    struct samkv_key key = row->name.key;
    samkv__document__init(&row->message);
    Samkv__Document *m = &row->message;
    samkv_document_key_mask(&key, &c->mask); /* nobody is told the mask */
    samkv_hex(key.bytes, row->key);
    m->collection = (char *)c->name;
    m->id = row->name.id;
    m->title = row->name.title ? row->name.title : (char *)"";
    m->tokens = manifest->tokens;
    m->blocks = manifest->blocks;
    m->bytes_raw = manifest->bytes_raw;
    m->bytes_stored = manifest->bytes_stored;
    m->bytes_index = manifest->bytes_index;
    m->created_unix_s = manifest->created_unix_s;
    m->key = row->key;
    m->pinned = row->name.pinned;
    m->put_unix_s = row->name.put_unix_s;
    m->expires_unix_s = row->name.expires_unix_s;
    samkv_store_document_usage(store, &row->name.key, &m->uses, &m->used_unix_s);
}

void samkv_collection_row_fill(struct samkv_store *store, const struct samkv_collection *c,
                               struct samkv_collection_row *row)
{
    struct samkv_collection_stats stats;
    samkv__collection__init(&row->message);
    Samkv__Collection *m = &row->message;
    memcpy(row->name, c->name, sizeof row->name);
    memcpy(row->model, c->model, sizeof row->model);
    samkv_hex(c->fingerprint, row->fingerprint);
    m->name = row->name;
    m->model = row->model;
    m->fingerprint = row->fingerprint;
    m->dtype = (char *)samkv_dtype_name(c->shape.dtype);
    m->block_size = c->block_tokens;
    m->init_tokens = c->init_tokens;
    m->local_tokens = c->local_tokens;
    m->preamble_tokens = c->preamble_tokens;
    m->quota_bytes = c->quota_bytes;
    m->ttl_s = c->ttl_s;
    samkv_store_collection_stats(store, c->name, &stats);
    m->bytes_raw = stats.bytes_raw;
    m->bytes_stored = stats.bytes_stored;
    m->codec = (char *)samkv_codec_name(c->codec);
    m->owner = c->ownership.owner;
    m->group = c->ownership.group;
    m->mode = c->ownership.mode;
}

static enum samkv_status no_document(const char *collection, const char *id, struct samkv_error *err)
{
    return samkv_fail(err, SAMKV_NOT_FOUND, "there is no document '%s' in collection '%s'", id, collection);
}

static enum samkv_status expired_document(const char *collection, const char *id, struct samkv_error *err)
{
    return samkv_fail(err, SAMKV_NOT_FOUND,
                      "document '%s' of collection '%s' has expired by the collection's TTL: ingest it again", id,
                      collection);
}

static bool count_name(void *arg, const struct samkv_name *name)
{
    (void)name;
    ++*(uint64_t *)arg;
    return true;
}

/* ------------------------------------------------------------------ list: documents */

struct document_list {
    struct document_row *rows;
    Samkv__Document **pointers;
    size_t count, capacity, limit;
    bool more;
    enum samkv_status status;
};

static enum samkv_status list_grow(void **items, size_t item_bytes, size_t count, size_t *capacity)
{
    if (count < *capacity)
        return SAMKV_OK;
    size_t bigger = *capacity ? *capacity * 2 : 64;
    void *moved = realloc(*items, bigger * item_bytes);
    if (!moved)
        return SAMKV_NO_MEMORY;
    *items = moved;
    *capacity = bigger;
    return SAMKV_OK;
}

static bool take_name(void *arg, const struct samkv_name *name)
{
    struct document_list *list = arg;
    if (list->count == list->limit) {
        list->more = true;
        return false;
    }
    list->status = list_grow((void **)&list->rows, sizeof *list->rows, list->count, &list->capacity);
    if (list->status != SAMKV_OK)
        return false;
    struct document_row *row = &list->rows[list->count];
    row->name = *name;
    row->name.title = name->title ? strdup(name->title) : NULL; /* what the store lends ends with this call */
    if (name->title && !row->name.title)
        list->status = SAMKV_NO_MEMORY;
    list->count += list->status == SAMKV_OK;
    return list->status == SAMKV_OK;
}

static void document_list_deinit(struct document_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        samkv_name_deinit(&list->rows[i].name);
    free(list->rows);
    free(list->pointers);
}

/* After the walk: the rows do not move any more. */
static enum samkv_status document_list_fill(struct document_list *list, struct samkv_store *store,
                                            struct samkv_snapshot *snapshot, const struct samkv_collection *c,
                                            struct samkv_error *err)
{
    list->pointers = calloc(list->count + 1, sizeof *list->pointers);
    if (!list->pointers)
        return SAMKV_NO_MEMORY;
    for (size_t i = 0; i < list->count; i++) {
        struct samkv_manifest manifest;
        enum samkv_status st = samkv_snapshot_manifest(snapshot, &list->rows[i].name.key, &manifest, err);
        if (st == SAMKV_NOT_FOUND)
            return samkv_fail(err, SAMKV_CORRUPT, "document '%s' has a name but no manifest; run samkvctl verify",
                              list->rows[i].name.id);
        if (st != SAMKV_OK)
            return st;
        fill_document(store, &manifest, c, &list->rows[i]);
        list->pointers[i] = &list->rows[i].message;
    }
    return SAMKV_OK;
}

static enum samkv_status list_documents(struct samkv_request *r, const Samkv__ListRequest *m,
                                        struct samkv_snapshot *snapshot, size_t limit, struct samkv_outgoing **reply,
                                        struct samkv_error *err)
{
    char name[SAMKV_ID_MAX_BYTES + 1];
    Samkv__ListReply message = SAMKV__LIST_REPLY__INIT;
    struct samkv_collection c;
    enum samkv_status st = samkv_access_find(r, m->collection, SAMKV_RIGHT_READ, name, err);
    if (st == SAMKV_OK)
        st = samkv_snapshot_collection(snapshot, name, &c, err);
    if (st == SAMKV_NOT_FOUND && !*m->collection) /* nothing was ingested yet: an empty list, not an error */
        return samkv_request_reply(r, &message.base, NULL, reply, err);
    if (st != SAMKV_OK)
        return st;
    struct document_list list = {.limit = limit};
    st = samkv_snapshot_each_name(snapshot, name, m->after, take_name, &list, err);
    if (st == SAMKV_OK)
        st = list.status;
    if (st == SAMKV_OK)
        st = document_list_fill(&list, r->service->store, snapshot, &c, err);
    if (st == SAMKV_OK) {
        message.documents = list.pointers;
        message.n_documents = list.count;
        message.more = list.more;
        st = samkv_request_reply(r, &message.base, NULL, reply, err);
    }
    document_list_deinit(&list);
    samkv_collection_deinit(&c);
    return st;
}

/* ------------------------------------------------------------------ list: collections */

struct collection_list {
    const struct samkv_caller *caller;
    struct samkv_collection_row *rows;
    Samkv__Collection **pointers;
    size_t count, capacity, limit;
    const char *after;
    bool more;
    enum samkv_status status;
};

static bool take_collection(void *arg, const struct samkv_collection *c)
{
    struct collection_list *list = arg;
    if (strcmp(c->name, list->after) <= 0 || !samkv_caller_may(list->caller, &c->ownership, SAMKV_RIGHT_READ))
        return true;
    if (list->count == list->limit) {
        list->more = true;
        return false;
    }
    list->status = list_grow((void **)&list->rows, sizeof *list->rows, list->count, &list->capacity);
    if (list->status != SAMKV_OK)
        return false;
    memcpy(list->rows[list->count].name, c->name, sizeof c->name);
    list->count++;
    return true;
}

static enum samkv_status collection_row_read(struct samkv_store *store, struct samkv_snapshot *snapshot,
                                             struct samkv_collection_row *row, struct samkv_error *err)
{
    struct samkv_collection c;
    char name[SAMKV_ID_MAX_BYTES + 1];
    memcpy(name, row->name, sizeof name);
    enum samkv_status st = samkv_snapshot_collection(snapshot, name, &c, err);
    if (st != SAMKV_OK)
        return st;
    samkv_collection_row_fill(store, &c, row);
    samkv_collection_deinit(&c);
    return samkv_snapshot_each_name(snapshot, name, "", count_name, &row->message.documents, err);
}

static enum samkv_status list_collections(struct samkv_request *r, const Samkv__ListRequest *m,
                                          struct samkv_snapshot *snapshot, size_t limit, struct samkv_outgoing **reply,
                                          struct samkv_error *err)
{
    struct collection_list list = {.caller = r->caller, .limit = limit, .after = m->after};
    enum samkv_status st = samkv_snapshot_each_collection(snapshot, take_collection, &list, err);
    if (st == SAMKV_OK)
        st = list.status;
    if (st == SAMKV_OK && !(list.pointers = calloc(list.count + 1, sizeof *list.pointers)))
        st = SAMKV_NO_MEMORY;
    for (size_t i = 0; i < list.count && st == SAMKV_OK; i++) {
        st = collection_row_read(r->service->store, snapshot, &list.rows[i], err);
        list.pointers[i] = &list.rows[i].message;
    }
    if (st == SAMKV_OK) {
        Samkv__ListReply message = SAMKV__LIST_REPLY__INIT;
        message.collections = list.pointers;
        message.n_collections = list.count;
        message.more = list.more;
        st = samkv_request_reply(r, &message.base, NULL, reply, err);
    }
    free(list.pointers);
    free(list.rows);
    return st;
}

enum samkv_status samkv_handle_list(struct samkv_request *r, const ProtobufCMessage *message,
                                    struct samkv_outgoing **reply, struct samkv_error *err)
{
    const Samkv__ListRequest *m = (const Samkv__ListRequest *)message;
    size_t limit = m->limit == 0 ? LIST_DEFAULT : m->limit > LIST_MAX ? LIST_MAX : m->limit;
    struct samkv_snapshot *snapshot;
    enum samkv_status st = samkv_snapshot_begin(r->service->store, &snapshot, err);
    if (st != SAMKV_OK)
        return st;
    st = m->collections ? list_collections(r, m, snapshot, limit, reply, err)
                        : list_documents(r, m, snapshot, limit, reply, err);
    samkv_snapshot_end(snapshot);
    return st;
}

/* ------------------------------------------------------------------ show */

/* The document's text by the tokenizer that made its tokens; *text stays NULL when that model is not loaded. */
static enum samkv_status decode(struct samkv_request *r, struct samkv_snapshot *snapshot,
                                const struct samkv_collection *c, const struct samkv_manifest *manifest, char **text,
                                size_t *bytes, struct samkv_error *err)
{
    struct samkv_engine *engine = samkv_models_match(r->service->models, c->fingerprint);
    if (!engine || !engine->model->tokenizer || manifest->tokens == 0)
        return SAMKV_OK;
    int32_t *tokens = calloc(manifest->tokens, sizeof *tokens);
    if (!tokens)
        return SAMKV_NO_MEMORY;
    enum samkv_status st = samkv_snapshot_tokens(snapshot, &manifest->key, tokens, manifest->tokens, err);
    if (st == SAMKV_OK)
        st = samkv_tokenizer_decode(engine->model->tokenizer, tokens, manifest->tokens, false, text, bytes, err);
    free(tokens);
    if (st == SAMKV_OK && *bytes > SHOW_MAX_BYTES)
        return samkv_fail(err, SAMKV_TOO_LARGE, "the document's text has %zu bytes; at most %u can be shown", *bytes,
                          SHOW_MAX_BYTES);
    return st;
}

static enum samkv_status show(struct samkv_request *r, struct samkv_snapshot *snapshot,
                              const struct samkv_collection *c, struct document_row *row, struct samkv_outgoing **reply,
                              struct samkv_error *err)
{
    struct samkv_manifest manifest;
    enum samkv_status st = samkv_snapshot_manifest(snapshot, &row->name.key, &manifest, err);
    if (st != SAMKV_OK)
        return st == SAMKV_NOT_FOUND ? samkv_fail(err, SAMKV_CORRUPT, "document '%s' has no manifest", row->name.id)
                                     : st;
    struct samkv_collection_row collection;
    fill_document(r->service->store, &manifest, c, row);
    samkv_collection_row_fill(r->service->store, c, &collection);
    Samkv__ShowReply message = SAMKV__SHOW_REPLY__INIT;
    message.document = &row->message;
    message.collection = &collection.message;
    struct samkv_quality_row quality;
    struct samkv_calibration_row calibration;
    const struct samkv_engine *engine = samkv_models_match(r->service->models, c->fingerprint);
    if (samkv_quality_row_fill(r->service, c->name, &quality))
        message.quality = &quality.message;
    if (engine && samkv_calibration_row_fill(r->service, engine, &calibration))
        message.calibration = &calibration.message;
    char *text = NULL;
    size_t bytes = 0;
    st = samkv_snapshot_each_name(snapshot, c->name, "", count_name, &collection.message.documents, err);
    if (st == SAMKV_OK)
        st = decode(r, snapshot, c, &manifest, &text, &bytes, err);
    if (st == SAMKV_OK) {
        message.text.data = (uint8_t *)text;
        message.text.len = bytes;
        st = samkv_request_reply(r, &message.base, NULL, reply, err);
    }
    free(text);
    return st;
}

static enum samkv_status find_and_show(struct samkv_request *r, const Samkv__ShowRequest *m, const char *collection,
                                       struct samkv_snapshot *snapshot, struct samkv_outgoing **reply,
                                       struct samkv_error *err)
{
    struct samkv_collection c;
    struct document_row row;
    enum samkv_status st = samkv_snapshot_collection(snapshot, collection, &c, err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_snapshot_name(snapshot, collection, m->id, &row.name, err);
    if (st == SAMKV_NOT_FOUND)
        st = row.name.expired ? expired_document(collection, m->id, err) : no_document(collection, m->id, err);
    else if (st == SAMKV_OK) {
        st = show(r, snapshot, &c, &row, reply, err);
        samkv_name_deinit(&row.name);
    }
    samkv_collection_deinit(&c);
    return st;
}

enum samkv_status samkv_handle_show(struct samkv_request *r, const ProtobufCMessage *message,
                                    struct samkv_outgoing **reply, struct samkv_error *err)
{
    const Samkv__ShowRequest *m = (const Samkv__ShowRequest *)message;
    char collection[SAMKV_ID_MAX_BYTES + 1];
    struct samkv_snapshot *snapshot;
    enum samkv_status st = samkv_access_find(r, m->collection, SAMKV_RIGHT_READ, collection, err);
    if (st == SAMKV_NOT_FOUND && !*m->collection)
        return no_document(SAMKV_DEFAULT_COLLECTION, m->id, err);
    if (st == SAMKV_OK)
        st = samkv_snapshot_begin(r->service->store, &snapshot, err);
    if (st != SAMKV_OK)
        return st;
    st = find_and_show(r, m, collection, snapshot, reply, err);
    samkv_snapshot_end(snapshot);
    return st;
}

/* ------------------------------------------------------------------ remove */

enum samkv_status samkv_handle_remove(struct samkv_request *r, const ProtobufCMessage *message,
                                      struct samkv_outgoing **reply, struct samkv_error *err)
{
    const Samkv__RemoveRequest *m = (const Samkv__RemoveRequest *)message;
    char collection[SAMKV_ID_MAX_BYTES + 1];
    Samkv__RemoveReply answer = SAMKV__REMOVE_REPLY__INIT;
    if (m->all)
        return samkv_handle_remove_all(r, message, reply, err);
    enum samkv_status found = samkv_access_find(r, m->collection, SAMKV_RIGHT_WRITE, collection, err);
    enum samkv_status st = found == SAMKV_NOT_FOUND ? SAMKV_OK : found;
    if (st == SAMKV_OK && !(answer.missing = calloc(m->n_ids + 1, sizeof *answer.missing)))
        st = SAMKV_NO_MEMORY;
    for (size_t i = 0; i < m->n_ids && st == SAMKV_OK; i++) {
        st = found == SAMKV_OK ? samkv_store_name_remove(r->service->store, collection, m->ids[i], err) : found;
        if (st == SAMKV_NOT_FOUND) {
            answer.missing[answer.n_missing++] = m->ids[i];
            st = SAMKV_OK;
        } else if (st == SAMKV_OK) {
            answer.removed++;
        }
    }
    if (st == SAMKV_OK)
        st = samkv_request_reply(r, &answer.base, NULL, reply, err);
    free(answer.missing);
    return st;
}
