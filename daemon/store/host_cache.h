#pragma once
/*
 * What host memory keeps of the store: blocks and index records as they come out of decoding, between a device's
 * memory and the data file. Decoded, because the page cache keeps what is stored already: what is to be saved is the
 * decoding.
 *
 *   entry    the bytes of one record: its pieces one after the other.
 *   pin      an entry in use. It may be evicted or dropped meanwhile: nobody finds it any longer then, and its memory
 *            comes back with the last pin.
 *   epoch    counts the transactions that changed records which may be here. A snapshot notes it before it begins.
 *   closed   a document whose records a transaction is about to change.
 *
 * Budget. One mapping of at most the budget holds everything: tables, entry headers, keys of what was evicted (ghosts)
 * and the entries, cut into chunks (arena.h). Nothing else is ever allocated, so the limit holds at every moment; what
 * finds no room is not kept, and nothing fails for it.
 *
 * What is kept: S3-FIFO. A new entry goes through a small queue (a tenth of the memory) and stays only if it is asked
 * for again before it reaches the end; one that comes back soon after it was evicted goes to the main queue at once.
 * A scan passes through the small queue alone. tests/bench/bench_host_cache compares it with others on traces.
 *
 * Never another version. A document that is removed and ingested again has the same key and may differ in the last
 * bit, as may a record that was rewritten. The writer closes a document before its transaction commits, which drops
 * its entries, and reopens it under a new epoch afterwards. Snapshots from before that epoch neither find nor add
 * anything of that document: they read their own version from the data file. (Kept for the documents' hash, so a few
 * others share that fate, and only lose time.)
 *
 * Two threads that miss the same record both decode it, and the second one's copy is dropped: within a fetch each
 * record is read once, and waiting would tie one request to another's failure or cancellation.
 *
 * Threads: any, also at once. One lock, held for look-ups and list changes; bytes are copied without it.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"
#include "daemon/store/codec.h"
#include "daemon/store/store.h"

#define SAMKV_HOST_CACHE_MIN_BYTES ((uint64_t)1 << 20)

struct samkv_host_cache;
struct samkv_hosted;

/* Without padding: compared as bytes. */
struct samkv_host_key {
    struct samkv_key document;
    uint32_t kind; /* enum samkv_record_kind */
    uint32_t number;
};

/* INVALID below SAMKV_HOST_CACHE_MIN_BYTES; NO_MEMORY. */
enum samkv_status samkv_host_cache_new(uint64_t budget_bytes, struct samkv_host_cache **out,
                                       struct samkv_error *) SAMKV_MUST_USE;
/* Nothing may be pinned. NULL is allowed. */
void samkv_host_cache_free(struct samkv_host_cache *);

/* To be noted before a snapshot's transaction begins. */
uint64_t samkv_host_cache_epoch(struct samkv_host_cache *);

/* Copies a record to layout->count pieces of dst. False: it is not here, or not of that size; dst is untouched. */
bool samkv_host_cache_read(struct samkv_host_cache *, uint64_t epoch, const struct samkv_host_key *,
                           const struct samkv_layout *, void *const *dst);

/* Keeps a copy, if there is room and no newer version. */
void samkv_host_cache_add(struct samkv_host_cache *, uint64_t epoch, const struct samkv_host_key *,
                          const struct samkv_layout *, void *const *src);

/* Before the commit of a transaction that changes or hides a document's records; any number of documents. By one
 * thread at a time, as is reopen. Both accept NULL: there is no cache. */
void samkv_host_cache_close(struct samkv_host_cache *, const struct samkv_key *document);
/* After the transaction's end, whatever it was: reopens all that are closed. */
void samkv_host_cache_reopen(struct samkv_host_cache *);

struct samkv_host_cache_stats {
    uint64_t entries, bytes, budget_bytes; /* bytes: tables, and the chunks of entries and of those in the making */
    uint64_t hits, misses, evictions;      /* records */
};
void samkv_host_cache_stats(struct samkv_host_cache *, struct samkv_host_cache_stats *);

/* ------------------------------------------------------------------ what read and add are made of */

/* Pinned; NULL when it is not here. Counts as a use. */
struct samkv_hosted *samkv_host_cache_find(struct samkv_host_cache *, uint64_t epoch, const struct samkv_host_key *);

/* Its bytes, in pieces, into dst. False when it has not that many. */
bool samkv_hosted_copy(const struct samkv_host_cache *, const struct samkv_hosted *, const struct samkv_layout *,
                       void *const *dst);

/* Room for an entry, pinned, that nobody finds before it is published. NULL: no room, or it is here already, or this
 * epoch may not add it. */
struct samkv_hosted *samkv_host_cache_make(struct samkv_host_cache *, uint64_t epoch, const struct samkv_host_key *,
                                           size_t bytes);
void samkv_host_cache_publish(struct samkv_host_cache *, uint64_t epoch, struct samkv_hosted *);
void samkv_host_cache_unpin(struct samkv_host_cache *, struct samkv_hosted *);
