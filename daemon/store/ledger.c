#include "daemon/store/ledger.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/store/ledger_parts.h"

enum booking { BOOKED_NAME, BOOKED_DOCUMENT, BOOKED_COLLECTION };

/* What was there before. */
struct samkv_journal_entry {
    struct samkv_journal_entry *before;
    enum booking booking;
    bool existed;
    char collection[SAMKV_ID_MAX_BYTES + 1];
    union {
        struct samkv_name name; /* without title */
        struct {
            struct samkv_key key;
            struct samkv_ledger_facts facts;
        } document;
        struct samkv_ledger_terms terms;
    } was;
};

void samkv_ledger_init(struct samkv_ledger *l)
{
    *l = (struct samkv_ledger){0};
    pthread_mutex_init(&l->lock, NULL);
}

/* ------------------------------------------------------------------ parts, with the lock held */

static struct samkv_ledger_collection *need_collection(struct samkv_ledger *l, const char *name)
{
    struct samkv_ledger_collection *c = samkv_ledger_find_collection(l, name);
    if (c)
        return c;
    size_t length = strlen(name);
    c = calloc(1, sizeof *c + length + 1);
    if (!c)
        return NULL;
    memcpy(c->name, name, length);
    if (samkv_ledger_insert(l, &l->collections, c))
        return c;
    free(c);
    return NULL;
}

static void drop_collection_if_empty(struct samkv_ledger *l, struct samkv_ledger_collection *c)
{
    if (c->terms.exists || c->holdings)
        return;
    samkv_ledger_take_out(l, &l->collections, c);
    free(c->pool);
    free(c);
}

static struct samkv_ledger_document *need_document(struct samkv_ledger *l, const struct samkv_key *key)
{
    struct samkv_ledger_document *d = samkv_ledger_find_document(l, key);
    if (d)
        return d;
    d = calloc(1, sizeof *d);
    if (!d)
        return NULL;
    d->key = *key;
    if (samkv_ledger_insert(l, &l->documents, d))
        return d;
    free(d);
    return NULL;
}

static void drop_document_if_empty(struct samkv_ledger *l, struct samkv_ledger_document *d)
{
    if (d->facts.present || d->holdings || d->preambles)
        return;
    samkv_ledger_take_out(l, &l->documents, d);
    free(d);
}

/* Adds (or takes away) what a document counts for, in total and with those who hold it. */
static void count_totals(struct samkv_ledger *l, const struct samkv_ledger_facts *f, bool add)
{
    uint64_t sign = add ? 1 : (uint64_t)-1;
    if (!f->present)
        return;
    l->stored[f->codec] += sign * f->stored;
    l->raw[f->codec] += sign * f->raw;
    l->present += sign;
    l->footprint += sign * f->footprint;
}

/* After any change of a document: what eviction may take of it, in all and in each collection. */
static void recount(struct samkv_ledger *l, struct samkv_ledger_document *d)
{
    bool free_to_go = d->facts.present && d->holdings && !d->preambles && !d->pinned;
    uint64_t loose = free_to_go ? d->facts.footprint : 0;
    l->loose += loose - d->loose;
    d->loose = loose;
    for (struct samkv_ledger_holding *h = d->holdings; h; h = h->next) {
        loose = d->facts.present && !h->pinned ? d->facts.stored : 0;
        h->collection->loose += loose - h->loose;
        h->loose = loose;
    }
}

static void count_holding(struct samkv_ledger_holding *h, bool add)
{
    uint64_t sign = add ? 1 : (uint64_t)-1;
    h->collection->stored += sign * h->document->facts.stored;
    h->collection->raw += sign * h->document->facts.raw;
    h->collection->documents += sign;
    if (h->collection->owner)
        h->collection->owner->stored += sign * h->document->facts.stored;
}

static void set_facts(struct samkv_ledger *l, struct samkv_ledger_document *d, const struct samkv_ledger_facts *facts)
{
    for (struct samkv_ledger_holding *h = d->holdings; h; h = h->next)
        count_holding(h, false);
    count_totals(l, &d->facts, false);
    d->facts = *facts;
    count_totals(l, &d->facts, true);
    for (struct samkv_ledger_holding *h = d->holdings; h; h = h->next)
        count_holding(h, true);
    recount(l, d);
}

static struct samkv_ledger_holding *need_holding(struct samkv_ledger_collection *c, struct samkv_ledger_document *d)
{
    for (struct samkv_ledger_holding *h = d->holdings; h; h = h->next)
        if (h->collection == c)
            return h;
    struct samkv_ledger_holding *h = calloc(1, sizeof *h);
    if (!h)
        return NULL;
    *h = (struct samkv_ledger_holding){.collection = c, .document = d, .next = d->holdings, .beside = c->holdings};
    if (c->holdings)
        c->holdings->before = h;
    c->holdings = h;
    d->holdings = h;
    count_holding(h, true);
    return h;
}

static void drop_holding_if_empty(struct samkv_ledger_holding *h)
{
    if (h->names)
        return;
    count_holding(h, false);
    h->collection->loose -= h->loose;
    struct samkv_ledger_holding **at = &h->document->holdings;
    while (*at != h)
        at = &(*at)->next;
    *at = h->next;
    if (h->before)
        h->before->beside = h->beside;
    else
        h->collection->holdings = h->beside;
    if (h->beside)
        h->beside->before = h->before;
    free(h);
}

static void count_pins(struct samkv_ledger_name *n, int by)
{
    n->holding->pinned += (uint32_t)by;
    n->holding->document->pinned += (uint32_t)by;
}

static void unlink_name(struct samkv_ledger *l, struct samkv_ledger_name *n)
{
    struct samkv_ledger_holding *h = n->holding;
    struct samkv_ledger_collection *c = h->collection;
    struct samkv_ledger_document *d = h->document;
    samkv_ledger_take_out(l, &l->names, n);
    if (n->pinned)
        count_pins(n, -1);
    struct samkv_ledger_name **at = &h->names;
    while (*at != n)
        at = &(*at)->beside;
    *at = n->beside;
    c->names--;
    if (c->owner)
        c->owner->names--;
    free(n);
    drop_holding_if_empty(h);
    recount(l, d);
    drop_collection_if_empty(l, c);
    drop_document_if_empty(l, d);
}

/* The parts that were made for a name that there is no memory for go again. */
static void drop_parts(struct samkv_ledger *l, struct samkv_ledger_collection *c, struct samkv_ledger_document *d,
                       struct samkv_ledger_holding *h)
{
    if (h)
        drop_holding_if_empty(h);
    if (c)
        drop_collection_if_empty(l, c);
    if (d)
        drop_document_if_empty(l, d);
}

static enum samkv_status link_name(struct samkv_ledger *l, const char *collection, const struct samkv_name *name)
{
    size_t length = strlen(name->id);
    struct samkv_ledger_name *n = calloc(1, sizeof *n + length + 1);
    struct samkv_ledger_collection *c = n ? need_collection(l, collection) : NULL;
    struct samkv_ledger_document *d = c ? need_document(l, &name->key) : NULL;
    struct samkv_ledger_holding *h = d ? need_holding(c, d) : NULL;
    if (h) {
        memcpy(n->id, name->id, length);
        n->holding = h;
    }
    if (!h || !samkv_ledger_insert(l, &l->names, n)) {
        free(n);
        drop_parts(l, c, d, h);
        return SAMKV_NO_MEMORY;
    }
    n->put_unix_s = name->put_unix_s;
    n->pinned = name->pinned;
    n->beside = h->names;
    h->names = n;
    c->names++;
    if (c->owner)
        c->owner->names++;
    if (n->pinned)
        count_pins(n, 1);
    if (d->facts.put_unix_s < n->put_unix_s)
        d->facts.put_unix_s = n->put_unix_s;
    recount(l, d);
    return SAMKV_OK;
}

/* NULL name: it goes. */
static enum samkv_status set_name(struct samkv_ledger *l, const char *collection, const char *id,
                                  const struct samkv_name *name)
{
    struct samkv_ledger_name *old = samkv_ledger_find_name(l, collection, id);
    if (!old)
        return name ? link_name(l, collection, name) : SAMKV_OK;
    if (name && memcmp(&old->holding->document->key, &name->key, sizeof name->key) == 0) {
        if (old->pinned != name->pinned)
            count_pins(old, name->pinned ? 1 : -1);
        old->pinned = name->pinned;
        recount(l, old->holding->document);
        old->put_unix_s = name->put_unix_s;
        return SAMKV_OK;
    }
    /* The new one first: what can fail must not have lost the old one. Both may be there for a moment. */
    enum samkv_status st = name ? link_name(l, collection, name) : SAMKV_OK;
    if (st == SAMKV_OK)
        unlink_name(l, old);
    return st;
}

static bool is_zero(const struct samkv_key *key)
{
    static const struct samkv_key none;
    return memcmp(key, &none, sizeof none) == 0;
}

/* ------------------------------------------------------------------ terms, with the lock held */

static enum samkv_status set_terms(struct samkv_ledger *l, const char *name, const struct samkv_ledger_terms *terms)
{
    struct samkv_ledger_collection *c = need_collection(l, name);
    struct samkv_ledger_document *d = NULL;
    struct samkv_ledger_owner *owner = NULL;
    bool owned = terms->exists && terms->ownership.owner != SAMKV_OWNER_DAEMON;
    if (c && terms->exists && !is_zero(&terms->preamble))
        d = need_document(l, &terms->preamble);
    if (!c || (terms->exists && !is_zero(&terms->preamble) && !d) ||
        (owned && !(owner = samkv_ledger_need_owner(l, terms->ownership.owner)))) {
        drop_parts(l, c, d, NULL);
        return SAMKV_NO_MEMORY;
    }
    samkv_ledger_move(l, c, owner, d ? d->facts.stored : 0);
    if (d) {
        d->preambles++;
        recount(l, d);
    }
    struct samkv_ledger_document *old =
        c->terms.exists && !is_zero(&c->terms.preamble) ? samkv_ledger_find_document(l, &c->terms.preamble) : NULL;
    c->terms = *terms;
    if (old) {
        old->preambles--;
        recount(l, old);
        drop_document_if_empty(l, old);
    }
    drop_collection_if_empty(l, c);
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ bookings */

/* An entry at the journal's end; NULL without memory. With no journal, one that nobody keeps. */
static struct samkv_journal_entry *note(struct samkv_journal *j, struct samkv_journal_entry *scrap,
                                        enum booking booking, const char *collection)
{
    struct samkv_journal_entry *e = j ? calloc(1, sizeof *e) : scrap;
    if (!e)
        return NULL;
    e->booking = booking;
    e->existed = false;
    if (collection && j)
        memcpy(e->collection, collection, strnlen(collection, SAMKV_ID_MAX_BYTES));
    if (j) {
        e->before = j->last;
        j->last = e;
    }
    return e;
}

static void forget(struct samkv_journal *j)
{
    struct samkv_journal_entry *e = j->last;
    j->last = e->before;
    free(e);
}

static enum samkv_status book_name(struct samkv_ledger *l, struct samkv_journal *j, const char *collection,
                                   const char *id, const struct samkv_name *name)
{
    struct samkv_journal_entry scrap, *e = note(j, &scrap, BOOKED_NAME, collection);
    if (!e)
        return SAMKV_NO_MEMORY;
    if (j)
        memcpy(e->was.name.id, id, strnlen(id, SAMKV_ID_MAX_BYTES));
    pthread_mutex_lock(&l->lock);
    const struct samkv_ledger_name *old = samkv_ledger_find_name(l, collection, id);
    if (old) {
        e->existed = true;
        e->was.name.key = old->holding->document->key;
        e->was.name.put_unix_s = old->put_unix_s;
        e->was.name.pinned = old->pinned;
    }
    enum samkv_status st = set_name(l, collection, id, name);
    pthread_mutex_unlock(&l->lock);
    if (st != SAMKV_OK && j)
        forget(j);
    return st;
}

enum samkv_status samkv_ledger_put_name(struct samkv_ledger *l, struct samkv_journal *j, const char *collection,
                                        const struct samkv_name *name)
{
    return book_name(l, j, collection, name->id, name);
}

enum samkv_status samkv_ledger_remove_name(struct samkv_ledger *l, struct samkv_journal *j, const char *collection,
                                           const char *id)
{
    return book_name(l, j, collection, id, NULL);
}

/* NULL facts: it is there no longer. */
static enum samkv_status book_document(struct samkv_ledger *l, struct samkv_journal *j, const struct samkv_key *key,
                                       const struct samkv_ledger_facts *facts)
{
    struct samkv_journal_entry scrap, *e = note(j, &scrap, BOOKED_DOCUMENT, NULL);
    if (!e)
        return SAMKV_NO_MEMORY;
    e->was.document.key = *key;
    pthread_mutex_lock(&l->lock);
    struct samkv_ledger_document *d = samkv_ledger_find_document(l, key);
    e->existed = d && d->facts.present;
    if (d)
        e->was.document.facts = d->facts;
    struct samkv_ledger_facts none = {0};
    if (facts && !d)
        d = need_document(l, key);
    enum samkv_status st = facts && !d ? SAMKV_NO_MEMORY : SAMKV_OK;
    if (d) {
        set_facts(l, d, facts ? facts : &none);
        drop_document_if_empty(l, d);
    }
    pthread_mutex_unlock(&l->lock);
    if (st != SAMKV_OK && j)
        forget(j);
    return st;
}

enum samkv_status samkv_ledger_put_document(struct samkv_ledger *l, struct samkv_journal *j,
                                            const struct samkv_manifest *m, size_t page_bytes)
{
    struct samkv_ledger_facts facts = {.present = true,
                                       .codec = m->codec,
                                       .stored = m->bytes_stored,
                                       .raw = m->bytes_raw,
                                       .footprint = samkv_ledger_footprint(m, page_bytes),
                                       .put_unix_s = m->created_unix_s};
    pthread_mutex_lock(&l->lock);
    const struct samkv_ledger_document *d = samkv_ledger_find_document(l, &m->key);
    if (d && d->facts.put_unix_s > facts.put_unix_s)
        facts.put_unix_s = d->facts.put_unix_s;
    if (d && d->facts.present)
        facts.usage = d->facts.usage;
    else /* to come counts as a use; while loading nothing is known */
        facts.usage = (struct samkv_usage){.weight = 1, .tick = j ? ++l->tick : 0};
    pthread_mutex_unlock(&l->lock);
    return book_document(l, j, &m->key, &facts);
}

enum samkv_status samkv_ledger_remove_document(struct samkv_ledger *l, struct samkv_journal *j,
                                               const struct samkv_key *key)
{
    return book_document(l, j, key, NULL);
}

enum samkv_status samkv_ledger_put_collection(struct samkv_ledger *l, struct samkv_journal *j, const char *name,
                                              const struct samkv_ledger_terms *terms)
{
    struct samkv_journal_entry scrap, *e = note(j, &scrap, BOOKED_COLLECTION, name);
    if (!e)
        return SAMKV_NO_MEMORY;
    pthread_mutex_lock(&l->lock);
    const struct samkv_ledger_collection *old = samkv_ledger_find_collection(l, name);
    if (old)
        e->was.terms = old->terms;
    enum samkv_status st = set_terms(l, name, terms);
    pthread_mutex_unlock(&l->lock);
    if (st != SAMKV_OK && j)
        forget(j);
    return st;
}

void samkv_ledger_keep(struct samkv_journal *j)
{
    while (j->last)
        forget(j);
}

void samkv_ledger_undo(struct samkv_ledger *l, struct samkv_journal *j)
{
    for (; j->last; forget(j)) {
        const struct samkv_journal_entry *e = j->last;
        enum samkv_status st = SAMKV_OK;
        switch (e->booking) {
        case BOOKED_NAME:
            st = book_name(l, NULL, e->collection, e->was.name.id, e->existed ? &e->was.name : NULL);
            break;
        case BOOKED_DOCUMENT:
            st = book_document(l, NULL, &e->was.document.key, e->existed ? &e->was.document.facts : NULL);
            break;
        case BOOKED_COLLECTION:
            st = samkv_ledger_put_collection(l, NULL, e->collection, &e->was.terms);
            break;
        }
        if (st != SAMKV_OK)
            l->lost = true;
    }
}

/* ------------------------------------------------------------------ the end */

static void clear_names(struct samkv_ledger *l)
{
    for (size_t i = 0; i < l->names.count; i++)
        while (l->names.buckets[i])
            unlink_name(l, l->names.buckets[i]);
}

void samkv_ledger_clear(struct samkv_ledger *l)
{
    clear_names(l);
    for (struct samkv_ledger_collection *c; (c = samkv_ledger_next_collection(l, NULL));) {
        samkv_ledger_move(l, c, NULL, 0);
        samkv_ledger_take_out(l, &l->collections, c);
        free(c->pool);
        free(c);
    }
    free(l->collections.buckets);
    for (size_t i = 0; i < l->documents.count; i++)
        for (struct samkv_ledger_document *d = l->documents.buckets[i], *next; d; d = next) {
            next = d->next;
            free(d);
        }
    free(l->documents.buckets);
    free(l->names.buckets);
    l->documents = l->names = l->collections = (struct samkv_ledger_table){0};
    memset(l->stored, 0, sizeof l->stored);
    memset(l->raw, 0, sizeof l->raw);
    free(l->pool);
    l->pool = NULL;
    l->present = l->footprint = l->loose = 0;
}

void samkv_ledger_deinit(struct samkv_ledger *l)
{
    samkv_ledger_clear(l);
    pthread_mutex_destroy(&l->lock);
}
