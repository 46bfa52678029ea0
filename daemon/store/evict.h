#pragma once
/*
 * Eviction: what goes when there is no room, least valuable first (samkv_ledger_value). Documents with a pinned name,
 * preambles and the document that is being named never go. Two limits, each judged before it would be broken:
 *   file   a transaction that would not leave the reserve free (or that the disk has no room for) is not committed;
 *          documents go with all their names until it can be.
 *   quota  a name that would take its collection above its quota takes others' with it, in the same transaction.
 */
#include "proto/status.h"
#include "daemon/store/environment.h"

/* The search for room for one transaction. Zeroed at its start. */
struct samkv_hunt {
    unsigned rounds, waits, blind; /* blind: evictions though there is room by the count */
    unsigned compacted;            /* what is free was brought together, or back from an old file */
    bool held;                     /* there would be room, but for a reader */
};

/*
 * After a transaction that writes `bytes` was FULL: true when it may be tried again. Documents that are being removed
 * go first; then, with the store's `evict`, others. Pages that a reader still holds are waited for, three seconds at
 * most. Writer thread, without a transaction.
 */
bool samkv_evict_find_room(struct samkv_store *, size_t bytes, struct samkv_hunt *);

/* Room for a group of jobs before it is tried. Writer thread. */
void samkv_evict_ahead(struct samkv_store *, size_t bytes);

/*
 * A document of this manifest is about to be written. TOO_LARGE when it would not fit though everything unpinned went;
 * BUSY when it would not beside those that are being written: they could not finish either. Nothing was evicted then.
 * Sizes are expected from what documents of its codec took so far. *reserved is given back when the document is at
 * rest. Any thread.
 */
enum samkv_status samkv_evict_admit(struct samkv_store *, const struct samkv_manifest *, uint64_t *reserved,
                                    struct samkv_error *) SAMKV_MUST_USE;
void samkv_evict_give_back(struct samkv_store *, uint64_t reserved);

/* The same for a collection's quota. */
enum samkv_status samkv_evict_admit_to(struct samkv_store *, const char *collection, const struct samkv_manifest *,
                                       struct samkv_error *) SAMKV_MUST_USE;

/* The name of `keep` was put: evicts until the collection is within its quota. TOO_LARGE, FULL: the transaction must
 * not be committed. */
enum samkv_status samkv_evict_for_quota(struct samkv_change *, const char *collection, const struct samkv_key *keep,
                                        struct samkv_error *) SAMKV_MUST_USE;

/* Some documents of a collection that is above its quota; *more: it still is, and more can go. */
enum samkv_status samkv_evict_quota_step(struct samkv_change *, const char *collection, const struct samkv_key *keep,
                                         bool *more, struct samkv_error *) SAMKV_MUST_USE;
