#include "daemon/store/mend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/base/log.h"

#define NAME_PREFIX "salvaged/"

/* ------------------------------------------------------------------ making documents whole */

struct found_document {
    struct samkv_key key;
    uint64_t references;
    uint64_t bytes_stored, bytes_index;
};

struct collections {
    struct samkv_collection *items;
    size_t count;
};

struct names {
    struct name_entry {
        struct samkv_key document;
        uint8_t key[SAMKV_NAME_KEY_MAX];
        uint32_t key_bytes;
    } * items;
    size_t count, capacity;
};

static struct samkv_collection *find_collection(const struct collections *all, const uint8_t *name, size_t bytes)
{
    for (size_t i = 0; i < all->count; i++)
        if (strlen(all->items[i].name) == bytes && memcmp(all->items[i].name, name, bytes) == 0)
            return &all->items[i];
    return NULL;
}

typedef enum samkv_status each_fn(struct samkv_salvage *, void *arg, struct samkv_bytes key, struct samkv_bytes value,
                                  struct samkv_error *);

/* All records of one database of the new store, which fn must not change. */
static enum samkv_status each(struct samkv_salvage *v, enum samkv_db db, each_fn *fn, void *arg,
                              struct samkv_error *err)
{
    MDB_cursor *cursor;
    MDB_val k, value;
    int rc = mdb_cursor_open(v->change.txn, v->to->dbi[db], &cursor);
    if (rc)
        return samkv_fail_lmdb(err, rc, "salvaging");
    enum samkv_status st = SAMKV_OK;
    while (st == SAMKV_OK && (rc = mdb_cursor_get(cursor, &k, &value, MDB_NEXT)) == 0)
        st = fn(v, arg, samkv_val_bytes(&k), samkv_val_bytes(&value), err);
    mdb_cursor_close(cursor);
    return st == SAMKV_OK && rc != MDB_NOTFOUND ? samkv_fail_lmdb(err, rc, "salvaging") : st;
}

static enum samkv_status gather_collection(struct samkv_salvage *v, void *arg, struct samkv_bytes key,
                                           struct samkv_bytes value, struct samkv_error *err)
{
    struct collections *all = arg;
    (void)v;
    struct samkv_collection *more = realloc(all->items, (all->count + 1) * sizeof *more);
    if (!more)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory while salvaging");
    all->items = more;
    enum samkv_status st = samkv_collection_open(value, key, &all->items[all->count]);
    all->count += st == SAMKV_OK;
    return st == SAMKV_NO_MEMORY ? samkv_fail(err, st, "out of memory while salvaging") : SAMKV_OK;
}

static enum samkv_status gather_name(struct samkv_salvage *v, void *arg, struct samkv_bytes key,
                                     struct samkv_bytes value, struct samkv_error *err)
{
    struct names *all = arg;
    struct samkv_name name;
    (void)v;
    if (samkv_name_open(value, key, false, &name) != SAMKV_OK)
        return SAMKV_OK;
    if (all->count == all->capacity) {
        size_t capacity = 2 * all->capacity + 64;
        struct name_entry *more = realloc(all->items, capacity * sizeof *more);
        if (!more)
            return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory while salvaging");
        all->items = more, all->capacity = capacity;
    }
    struct name_entry *e = &all->items[all->count++];
    e->document = name.key;
    e->key_bytes = (uint32_t)key.size;
    memcpy(e->key, key.data, key.size);
    return SAMKV_OK;
}

static bool is_there(struct samkv_salvage *v, enum samkv_db db, const struct samkv_key *key)
{
    struct samkv_bytes value;
    return samkv_db_get(v->to, v->change.txn, db, samkv_key_bytes(key), &value, NULL) == SAMKV_OK;
}

/* A document's manifest from its collection and tokens. CORRUPT when they do not give its key. */
static enum samkv_status manifest_of(const struct samkv_collection *c, bool preamble, const int32_t *tokens,
                                     uint32_t count, const struct samkv_key *key, struct samkv_manifest *m)
{
    *m = (struct samkv_manifest){.shape = c->shape,
                                 .heads = c->heads,
                                 .tokens = count,
                                 .block_tokens = c->block_tokens,
                                 .blocks = (count - 1) / c->block_tokens + 1,
                                 .preamble_tokens = preamble ? 0 : c->preamble_tokens,
                                 .local_tokens = c->local_tokens,
                                 .created_unix_s = (int64_t)time(NULL),
                                 .codec = preamble ? samkv_codec_lossless(c->codec) : c->codec};
    samkv_collection_document_key(c, preamble, tokens, count, &m->key);
    m->bytes_raw = (uint64_t)count * samkv_kv_token_bytes(&c->shape);
    return memcmp(&m->key, key, sizeof *key) == 0 ? samkv_manifest_check(m, NULL) : SAMKV_CORRUPT;
}

/* The tokens of a document whose number is not known; heap. */
static enum samkv_status read_tokens(struct samkv_salvage *v, const struct samkv_key *key, int32_t **out,
                                     uint32_t *count)
{
    struct samkv_bytes value, k = samkv_key_bytes(key);
    struct samkv_record r;
    enum samkv_status st = samkv_db_get(v->to, v->change.txn, SAMKV_DB_TOKENS, k, &value, NULL);
    if (st == SAMKV_OK)
        st = samkv_record_open(value, SAMKV_RECORD_TOKENS, k, &r);
    if (st != SAMKV_OK || r.raw_bytes < sizeof **out || r.raw_bytes % sizeof **out || r.raw_bytes > UINT32_MAX)
        return SAMKV_CORRUPT;
    struct samkv_layout layout = {.dtype = SAMKV_I32, .count = 1, .bytes = (size_t)r.raw_bytes};
    *count = (uint32_t)(r.raw_bytes / sizeof **out);
    *out = malloc(layout.bytes);
    if (!*out)
        return SAMKV_NO_MEMORY;
    void *dst[1] = {*out};
    return samkv_record_decode(value, SAMKV_RECORD_TOKENS, k, &layout, &v->to->scratch, dst);
}

static enum samkv_status put_document(struct samkv_salvage *v, const struct samkv_document *d, struct samkv_error *err)
{
    uint8_t *record;
    size_t bytes;
    enum samkv_status st = samkv_document_seal(d, &record, &bytes);
    if (st != SAMKV_OK)
        return samkv_fail(err, st, "out of memory while salvaging");
    st = samkv_salvage_put(v, SAMKV_DB_DOCUMENT, samkv_key_bytes(&d->manifest.key), (struct samkv_bytes){record, bytes},
                           err);
    free(record);
    return st;
}

/* NOT_FOUND without text when there is not enough left of it. */
static enum samkv_status remake_document(struct samkv_salvage *v, const struct samkv_collection *c, bool preamble,
                                         const struct samkv_key *key, struct samkv_error *err)
{
    int32_t *tokens = NULL;
    uint32_t count = 0;
    struct samkv_document d = {0};
    enum samkv_status st = c ? read_tokens(v, key, &tokens, &count) : SAMKV_CORRUPT;
    if (st == SAMKV_OK)
        st = manifest_of(c, preamble, tokens, count, key, &d.manifest);
    free(tokens);
    if (st == SAMKV_NO_MEMORY)
        return samkv_fail(err, st, "out of memory while salvaging");
    if (st != SAMKV_OK)
        return SAMKV_NOT_FOUND;
    v->report->remade++;
    return put_document(v, &d, err);
}

static enum samkv_status delete_name(struct samkv_salvage *v, const struct name_entry *e, struct samkv_error *err)
{
    const char *id = memchr(e->key, 0, e->key_bytes);
    int collection = id ? (int)((const uint8_t *)id - e->key) : 0, rest = id ? (int)e->key_bytes - collection - 1 : 0;
    samkv_log(SAMKV_LOG_WARNING, "salvage: %.*s/%.*s is lost: ingest it again", collection, (const char *)e->key, rest,
              id ? id + 1 : "");
    v->report->names_lost++;
    MDB_val k = {e->key_bytes, (void *)e->key};
    int rc = mdb_del(v->change.txn, v->to->dbi[SAMKV_DB_NAME], &k, NULL);
    return rc && rc != MDB_NOTFOUND ? samkv_fail_lmdb(err, rc, "salvaging") : SAMKV_OK;
}

/* Every name and every collection leads to a document, or loses it. */
static enum samkv_status mend_names(struct samkv_salvage *v, struct names *names, const struct collections *collections,
                                    struct samkv_error *err)
{
    static const struct samkv_key none = {0};
    enum samkv_status st = SAMKV_OK;
    for (size_t i = 0; i < names->count && st == SAMKV_OK; i++) {
        struct name_entry *e = &names->items[i];
        const uint8_t *end = memchr(e->key, 0, e->key_bytes);
        if (is_there(v, SAMKV_DB_DOCUMENT, &e->document))
            continue;
        st = remake_document(v, end ? find_collection(collections, e->key, (size_t)(end - e->key)) : NULL, false,
                             &e->document, err);
        if (st == SAMKV_NOT_FOUND) {
            st = delete_name(v, e, err);
            e->key_bytes = 0;
        }
    }
    for (size_t i = 0; i < collections->count && st == SAMKV_OK; i++) {
        const struct samkv_collection *c = &collections->items[i];
        if (memcmp(&c->preamble_key, &none, sizeof none) == 0 || is_there(v, SAMKV_DB_DOCUMENT, &c->preamble_key))
            continue;
        st = remake_document(v, c, true, &c->preamble_key, err);
        if (st == SAMKV_NOT_FOUND) {
            samkv_log(SAMKV_LOG_WARNING, "salvage: the preamble of collection %s is lost: ingest into a new one",
                      c->name);
            st = SAMKV_OK;
        }
    }
    return st;
}

/* ------------------------------------------------------------------ what refers to what */

struct inventory {
    struct found_document *items; /* in the order of their keys */
    size_t count, capacity;
    struct samkv_key *orphans; /* of parts, each once */
    size_t orphan_count;
};

static enum samkv_status gather_document(struct samkv_salvage *v, void *arg, struct samkv_bytes key,
                                         struct samkv_bytes value, struct samkv_error *err)
{
    struct inventory *inv = arg;
    (void)v, (void)value;
    if (key.size != SAMKV_KEY_BYTES)
        return SAMKV_OK;
    if (inv->count == inv->capacity) {
        size_t capacity = 2 * inv->capacity + 64;
        struct found_document *more = realloc(inv->items, capacity * sizeof *more);
        if (!more)
            return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory while salvaging");
        inv->items = more, inv->capacity = capacity;
    }
    struct found_document *d = &inv->items[inv->count++];
    *d = (struct found_document){0};
    memcpy(d->key.bytes, key.data, key.size);
    return SAMKV_OK;
}

static int by_key(const void *a, const void *b)
{
    return memcmp(a, b, sizeof(struct samkv_key));
}

static struct found_document *find_document(const struct inventory *inv, const void *key)
{
    return inv->count ? bsearch(key, inv->items, inv->count, sizeof *inv->items, by_key) : NULL;
}

static enum samkv_status note_part(struct inventory *inv, enum samkv_db db, struct samkv_bytes key,
                                   struct samkv_bytes value, struct samkv_error *err)
{
    if (key.size < SAMKV_KEY_BYTES)
        return SAMKV_OK;
    struct found_document *d = find_document(inv, key.data);
    if (d) {
        d->bytes_stored += db == SAMKV_DB_TOKENS ? 0 : value.size;
        d->bytes_index += db == SAMKV_DB_INDEX ? value.size : 0;
        return SAMKV_OK;
    }
    if (inv->orphan_count && memcmp(&inv->orphans[inv->orphan_count - 1], key.data, SAMKV_KEY_BYTES) == 0)
        return SAMKV_OK;
    struct samkv_key *more = realloc(inv->orphans, (inv->orphan_count + 1) * sizeof *more);
    if (!more)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory while salvaging");
    inv->orphans = more;
    memcpy(inv->orphans[inv->orphan_count++].bytes, key.data, SAMKV_KEY_BYTES);
    return SAMKV_OK;
}

static enum samkv_status gather_tokens(struct samkv_salvage *v, void *arg, struct samkv_bytes k,
                                       struct samkv_bytes value, struct samkv_error *err)
{
    (void)v;
    return note_part(arg, SAMKV_DB_TOKENS, k, value, err);
}

static enum samkv_status gather_index(struct samkv_salvage *v, void *arg, struct samkv_bytes k,
                                      struct samkv_bytes value, struct samkv_error *err)
{
    (void)v;
    return note_part(arg, SAMKV_DB_INDEX, k, value, err);
}

static enum samkv_status gather_block(struct samkv_salvage *v, void *arg, struct samkv_bytes k,
                                      struct samkv_bytes value, struct samkv_error *err)
{
    (void)v;
    return note_part(arg, SAMKV_DB_BLOCK, k, value, err);
}

/* A document that no name leads to gets one in a collection that it may be of. */
static enum samkv_status name_document(struct samkv_salvage *v, const struct samkv_manifest *m,
                                       const struct collections *collections, bool *named, struct samkv_error *err)
{
    *named = false;
    for (size_t i = 0; i < collections->count && !*named; i++) {
        const struct samkv_collection *c = &collections->items[i];
        int32_t *tokens = NULL;
        uint32_t count = 0;
        struct samkv_manifest same;
        enum samkv_status st = read_tokens(v, &m->key, &tokens, &count);
        if (st == SAMKV_OK)
            st = manifest_of(c, false, tokens, count, &m->key, &same);
        free(tokens);
        if (st != SAMKV_OK)
            continue;
        uint8_t buffer[SAMKV_NAME_KEY_MAX], *record;
        struct samkv_name name = {.key = m->key, .put_unix_s = (int64_t)time(NULL)};
        int at = snprintf(name.id, sizeof name.id, NAME_PREFIX);
        for (int b = 0; b < SAMKV_KEY_BYTES; b++)
            at += snprintf(name.id + at, sizeof name.id - (size_t)at, "%02x", m->key.bytes[b]);
        struct samkv_bytes key = samkv_name_key(c->name, name.id, buffer);
        size_t bytes;
        st = samkv_name_seal(key, &name, &record, &bytes);
        if (st != SAMKV_OK)
            return samkv_fail(err, st, "out of memory while salvaging");
        st = samkv_salvage_put(v, SAMKV_DB_NAME, key, (struct samkv_bytes){record, bytes}, err);
        free(record);
        if (st != SAMKV_OK)
            return st;
        v->report->renamed++;
        v->report->names++;
        *named = true;
    }
    return SAMKV_OK;
}

/* It is not there any more; what is left of it goes when the store is opened. */
static enum samkv_status forget_document(struct samkv_salvage *v, const struct samkv_key *key, struct samkv_error *err)
{
    MDB_val k = samkv_val(samkv_key_bytes(key));
    int rc = mdb_del(v->change.txn, v->to->dbi[SAMKV_DB_DOCUMENT], &k, NULL);
    if (rc)
        return samkv_fail_lmdb(err, rc, "salvaging");
    return samkv_change_mark_pending(&v->change, key, err);
}

/* Counts and sums of every document as they are in the new store. */
static enum samkv_status settle_document(struct samkv_salvage *v, const struct found_document *found,
                                         const struct collections *collections, struct samkv_error *err)
{
    struct samkv_bytes value;
    struct samkv_document d;
    enum samkv_status st =
        samkv_db_get(v->to, v->change.txn, SAMKV_DB_DOCUMENT, samkv_key_bytes(&found->key), &value, err);
    if (st == SAMKV_OK)
        st = samkv_document_open(value, &found->key, &d);
    if (st != SAMKV_OK)
        return samkv_fail(err, SAMKV_IO, "the new store cannot be read back: check its disk");
    d.references = found->references;
    d.manifest.bytes_stored = found->bytes_stored;
    d.manifest.bytes_index = found->bytes_index;
    if (!d.references) {
        bool named;
        st = name_document(v, &d.manifest, collections, &named, err);
        if (st != SAMKV_OK)
            return st;
        if (!named)
            return forget_document(v, &found->key, err);
        d.references = 1;
    }
    v->report->documents++;
    return put_document(v, &d, err);
}

static void count_references(const struct inventory *inv, const struct names *names,
                             const struct collections *collections, struct samkv_salvage_report *report)
{
    struct found_document *d;
    for (size_t i = 0; i < names->count; i++)
        if (names->items[i].key_bytes && (d = find_document(inv, &names->items[i].document))) {
            d->references++;
            report->names++;
        }
    for (size_t i = 0; i < collections->count; i++)
        if ((d = find_document(inv, &collections->items[i].preamble_key)))
            d->references++;
}

static enum samkv_status settle(struct samkv_salvage *v, struct inventory *inv, const struct names *names,
                                const struct collections *collections, struct samkv_error *err)
{
    enum samkv_status st = each(v, SAMKV_DB_DOCUMENT, gather_document, inv, err);
    if (st == SAMKV_OK)
        st = each(v, SAMKV_DB_TOKENS, gather_tokens, inv, err);
    if (st == SAMKV_OK)
        st = each(v, SAMKV_DB_INDEX, gather_index, inv, err);
    if (st == SAMKV_OK)
        st = each(v, SAMKV_DB_BLOCK, gather_block, inv, err);
    if (st == SAMKV_OK)
        count_references(inv, names, collections, v->report);
    for (size_t i = 0; st == SAMKV_OK && i < inv->count; i++)
        st = settle_document(v, &inv->items[i], collections, err);
    for (size_t i = 0; st == SAMKV_OK && i < inv->orphan_count; i++)
        st = samkv_change_mark_pending(&v->change, &inv->orphans[i], err);
    return st;
}

enum samkv_status samkv_salvage_mend(struct samkv_salvage *v, struct samkv_error *err)
{
    struct collections collections = {0};
    struct names names = {0};
    struct inventory inv = {0};
    enum samkv_status st = each(v, SAMKV_DB_COLLECTION, gather_collection, &collections, err);
    if (st == SAMKV_OK)
        st = each(v, SAMKV_DB_NAME, gather_name, &names, err);
    if (st == SAMKV_OK)
        st = mend_names(v, &names, &collections, err);
    if (st == SAMKV_OK)
        st = settle(v, &inv, &names, &collections, err);
    for (size_t i = 0; i < collections.count; i++)
        samkv_collection_deinit(&collections.items[i]);
    free(collections.items);
    free(names.items);
    free(inv.items);
    free(inv.orphans);
    return st;
}
