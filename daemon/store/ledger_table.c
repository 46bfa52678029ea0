#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "daemon/store/ledger_parts.h"

#define BUCKETS_FIRST 64

/* Every entry begins with its `next`. */
struct link {
    struct link *next;
};

static uint64_t hash_key(const struct samkv_key *key)
{
    uint64_t h;
    memcpy(&h, key->bytes, sizeof h); /* a hash already */
    return h;
}

static uint64_t hash_name(const char *collection, const char *id)
{
    return XXH3_64bits_withSeed(id, strlen(id), XXH3_64bits(collection, strlen(collection)));
}

static uint64_t hash_collection(const char *name)
{
    return XXH3_64bits(name, strlen(name));
}

static uint64_t hash_of(const struct samkv_ledger *l, const struct samkv_ledger_table *t, const void *entry)
{
    if (t == &l->documents)
        return hash_key(&((const struct samkv_ledger_document *)entry)->key);
    if (t == &l->collections)
        return hash_collection(((const struct samkv_ledger_collection *)entry)->name);
    const struct samkv_ledger_name *name = entry;
    return hash_name(name->holding->collection->name, name->id);
}

static struct link **bucket_of(const struct samkv_ledger_table *t, uint64_t hash)
{
    return (struct link **)&t->buckets[hash & (t->count - 1)];
}

/* A table that cannot grow is slower, no more. */
static void grow(struct samkv_ledger *l, struct samkv_ledger_table *t)
{
    struct samkv_ledger_table larger = {.count = t->count ? 2 * t->count : BUCKETS_FIRST};
    larger.buckets = calloc(larger.count, sizeof *larger.buckets);
    if (!larger.buckets)
        return;
    for (size_t i = 0; i < t->count; i++)
        for (struct link *e = t->buckets[i], *next; e; e = next) {
            next = e->next;
            struct link **at = bucket_of(&larger, hash_of(l, t, e));
            e->next = *at;
            *at = e;
        }
    free(t->buckets);
    t->buckets = larger.buckets;
    t->count = larger.count;
}

bool samkv_ledger_insert(struct samkv_ledger *l, struct samkv_ledger_table *t, void *entry)
{
    if (t->entries >= t->count)
        grow(l, t);
    if (!t->count)
        return false;
    struct link *e = entry, **at = bucket_of(t, hash_of(l, t, entry));
    e->next = *at;
    *at = e;
    t->entries++;
    return true;
}

void samkv_ledger_take_out(struct samkv_ledger *l, struct samkv_ledger_table *t, void *entry)
{
    struct link **at = bucket_of(t, hash_of(l, t, entry));
    while (*at != entry)
        at = &(*at)->next;
    *at = (*at)->next;
    t->entries--;
}

struct samkv_ledger_document *samkv_ledger_find_document(const struct samkv_ledger *l, const struct samkv_key *key)
{
    struct samkv_ledger_document *d = l->documents.count ? (void *)*bucket_of(&l->documents, hash_key(key)) : NULL;
    while (d && memcmp(&d->key, key, sizeof *key) != 0)
        d = d->next;
    return d;
}

struct samkv_ledger_name *samkv_ledger_find_name(const struct samkv_ledger *l, const char *collection, const char *id)
{
    struct samkv_ledger_name *n = l->names.count ? (void *)*bucket_of(&l->names, hash_name(collection, id)) : NULL;
    while (n && (strcmp(n->id, id) != 0 || strcmp(n->holding->collection->name, collection) != 0))
        n = n->next;
    return n;
}

struct samkv_ledger_collection *samkv_ledger_find_collection(const struct samkv_ledger *l, const char *name)
{
    struct samkv_ledger_collection *c =
        l->collections.count ? (void *)*bucket_of(&l->collections, hash_collection(name)) : NULL;
    while (c && strcmp(c->name, name) != 0)
        c = c->next;
    return c;
}

struct samkv_ledger_collection *samkv_ledger_next_collection(const struct samkv_ledger *l,
                                                             const struct samkv_ledger_collection *c)
{
    const struct samkv_ledger_table *t = &l->collections;
    if (c && c->next)
        return c->next;
    for (size_t i = c ? (hash_collection(c->name) & (t->count - 1)) + 1 : 0; i < t->count; i++)
        if (t->buckets[i])
            return t->buckets[i];
    return NULL;
}

void samkv_ledger_each(struct samkv_ledger *l, void (*fn)(void *arg, struct samkv_ledger_document *), void *arg)
{
    for (size_t i = 0; i < l->documents.count; i++)
        for (struct samkv_ledger_document *d = l->documents.buckets[i]; d; d = d->next)
            fn(arg, d);
}
