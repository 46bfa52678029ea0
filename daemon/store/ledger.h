#pragma once
/*
 * The ledger: who holds what, in memory, so that limits are judged without reading the database. It is read once when
 * the store is opened and then follows every change: the writer thread books a change when it makes it, and takes the
 * bookings of a transaction back when that is undone. About 250 bytes a document, and a name's length.
 *
 * Glossary
 *   holding    a collection has a document, under one name or several: what a quota counts.
 *   footprint  pages that a document's records take, roughly; stored bytes without LMDB's rounding are less.
 *   weight     uses, each halved for every so many later uses of anything (see samkv_ledger_value): what is worth most
 *              to keep has most of it. Ticks count uses, so a resting store forgets nothing.
 *
 * Bookings are the writer thread's (or of who opens the store); everything else may be any thread's.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"
#include "daemon/store/store.h"

struct samkv_usage {
    float weight;        /* at `tick` */
    uint32_t uses;       /* by fetches */
    uint64_t tick;       /* when it was last added to */
    int64_t used_unix_s; /* 0: never */
};

/* What is booked of a document. */
struct samkv_ledger_facts {
    bool present; /* else only named: its record is damaged or lost */
    enum samkv_codec codec;
    uint64_t stored, raw, footprint;
    int64_t put_unix_s; /* when it last was named */
    struct samkv_usage usage;
};

struct samkv_ledger_document {
    struct samkv_ledger_document *next; /* in its bucket */
    struct samkv_key key;
    struct samkv_ledger_facts facts;
    struct samkv_ledger_holding *holdings;
    uint32_t preambles; /* collections whose preamble it is */
    uint32_t pinned;    /* of its names */
    uint64_t loose;     /* footprint that its eviction would give back; 0 when it must stay */
};

struct samkv_ledger_holding {
    struct samkv_ledger_collection *collection;
    struct samkv_ledger_document *document;
    struct samkv_ledger_name *names;
    struct samkv_ledger_holding *next;   /* of the document */
    struct samkv_ledger_holding *beside; /* of the collection, as a ring: both ways, for quick removal */
    struct samkv_ledger_holding *before;
    uint32_t pinned;
    uint64_t loose; /* stored bytes that the collection would get rid of; 0 when it must stay */
};

struct samkv_ledger_name {
    struct samkv_ledger_name *next; /* in its bucket */
    struct samkv_ledger_name *beside;
    struct samkv_ledger_holding *holding;
    int64_t put_unix_s;
    bool pinned;
    char id[];
};

/* What a collection's record says of limits. */
struct samkv_ledger_terms {
    bool exists; /* else there are names only */
    uint64_t quota_bytes, ttl_s;
    struct samkv_key preamble; /* zero: none */
    struct samkv_ownership ownership;
};

/* The least valuable documents when they were last looked for, ascending; from `next` on they were not taken yet. */
#define SAMKV_LEDGER_POOL 256
struct samkv_ledger_pool {
    struct samkv_ledger_pick {
        struct samkv_key key;
        double value;
        int64_t recent_unix_s; /* of two that are worth as much, the older one goes */
        uint64_t tick;         /* of its last use then */
    } picks[SAMKV_LEDGER_POOL];
    size_t count, next;
};

/* What all collections of a user come to. The daemon's have none: nobody limits them. */
struct samkv_ledger_owner {
    struct samkv_ledger_owner *next;
    uint32_t owner;
    uint64_t collections, names, stored; /* stored: with preambles */
};

struct samkv_ledger_collection {
    struct samkv_ledger_collection *next; /* in its bucket */
    struct samkv_ledger_terms terms;
    struct samkv_ledger_owner *owner; /* NULL: the daemon, or there are names only */
    uint64_t preamble_stored;         /* that its owner was charged with */
    struct samkv_ledger_holding *holdings;
    uint64_t stored, raw, documents, names;
    uint64_t loose; /* of stored: what eviction may take */
    struct samkv_ledger_pool *pool;
    char name[];
};

struct samkv_ledger_table {
    void **buckets;
    size_t count, entries; /* count: a power of two, 0 at first */
};

struct samkv_ledger {
    pthread_mutex_t lock;
    struct samkv_ledger_table documents, names, collections;
    struct samkv_ledger_owner *owners;
    uint64_t stored[SAMKV_CODEC_COUNT], raw[SAMKV_CODEC_COUNT], present;
    uint64_t footprint, loose; /* of all, and of what eviction may take */
    struct samkv_ledger_pool *pool;
    uint64_t writing; /* footprint that documents under way are expected to take */
    uint64_t tick;
    bool used_since_saved; /* uses that the side file does not know of */
    bool lost;             /* memory ran out while bookings were taken back: read it again */
};

/* The bookings of one transaction. Zeroed: none. */
struct samkv_journal {
    struct samkv_journal_entry *last;
};

void samkv_ledger_init(struct samkv_ledger *);
void samkv_ledger_deinit(struct samkv_ledger *);
void samkv_ledger_clear(struct samkv_ledger *); /* as if nothing were stored */

/* Everything that the database has. */
enum samkv_status samkv_ledger_load(struct samkv_store *, struct samkv_error *) SAMKV_MUST_USE;

/* Bookings: NO_MEMORY without text, and nothing booked. journal NULL: not to be taken back. */
enum samkv_status samkv_ledger_put_name(struct samkv_ledger *, struct samkv_journal *, const char *collection,
                                        const struct samkv_name *) SAMKV_MUST_USE;
enum samkv_status samkv_ledger_remove_name(struct samkv_ledger *, struct samkv_journal *, const char *collection,
                                           const char *id) SAMKV_MUST_USE;
enum samkv_status samkv_ledger_put_document(struct samkv_ledger *, struct samkv_journal *,
                                            const struct samkv_manifest *, size_t page_bytes) SAMKV_MUST_USE;
enum samkv_status samkv_ledger_remove_document(struct samkv_ledger *, struct samkv_journal *,
                                               const struct samkv_key *) SAMKV_MUST_USE;
enum samkv_status samkv_ledger_put_collection(struct samkv_ledger *, struct samkv_journal *, const char *name,
                                              const struct samkv_ledger_terms *) SAMKV_MUST_USE;

/* The transaction is on disk, or was undone. */
void samkv_ledger_keep(struct samkv_journal *);
void samkv_ledger_undo(struct samkv_ledger *, struct samkv_journal *);

/* Pages that a document of this manifest takes, in bytes; stored and index bytes as they are or are expected. */
uint64_t samkv_ledger_footprint(const struct samkv_manifest *, size_t page_bytes);

/* Stored bytes to be expected of `raw`, as documents of this codec have turned out so far. */
uint64_t samkv_ledger_expect(struct samkv_ledger *, enum samkv_codec, uint64_t raw);

/* A fetch reads this document. True when it is the first use since usage was saved. */
bool samkv_ledger_use(struct samkv_ledger *, const struct samkv_key *, int64_t now_unix_s);

/* Weight now. With the lock held. */
double samkv_ledger_value(const struct samkv_ledger *, const struct samkv_ledger_facts *);

/* With the lock held; NULL: not there. */
struct samkv_ledger_document *samkv_ledger_find_document(const struct samkv_ledger *, const struct samkv_key *);
struct samkv_ledger_name *samkv_ledger_find_name(const struct samkv_ledger *, const char *collection, const char *id);
struct samkv_ledger_collection *samkv_ledger_find_collection(const struct samkv_ledger *, const char *name);

/* The next collection in no order, from NULL on; with the lock held. */
struct samkv_ledger_collection *samkv_ledger_next_collection(const struct samkv_ledger *,
                                                             const struct samkv_ledger_collection *);

/* A user's sums; NULL: has none. With the lock held. */
const struct samkv_ledger_owner *samkv_ledger_find_owner(const struct samkv_ledger *, uint32_t owner);

/* What those are charged with (NULL: nothing). */
uint64_t samkv_ledger_charge(const struct samkv_ledger_owner *);

/* Calls back for every document, with the lock held, in no order. */
void samkv_ledger_each(struct samkv_ledger *, void (*fn)(void *arg, struct samkv_ledger_document *), void *arg);
