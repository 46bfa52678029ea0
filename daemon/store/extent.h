#pragma once
/*
 * Getting a record's bytes out of the data file. LMDB says where a value lies in its map; a value on pages of its own
 * (an extent: all blocks, most index records) is then read from the file with pread: a bad sector is an error instead
 * of a signal, a file that was cut short is a short read, what is resident does not grow with the store, and the disk
 * sees one large request. Small values share their page with the keys that LMDB has just compared, and are copied from
 * there.
 *
 * With the option `direct` what the page cache does not have is read past it (O_DIRECT) and does not enter it: the
 * disk's full rate for less of the CPU, for a store far larger than memory or a daemon that keeps a cache of its own.
 *
 * The bytes are those of the snapshot that looked the value up as long as it lives: LMDB writes with pwrite to the same
 * file, and never to a page that a reader may still see.
 *
 * Glossary
 *   held   bytes of one value, in memory of their own, until they are given back.
 *   room   such memory; the store keeps idle rooms, since getting large ones from the system costs more than reading.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"
#include "daemon/store/record.h"

struct samkv_held_room {
    struct samkv_held_room *next;
    size_t capacity;
    uint8_t *memory;
};

struct samkv_held_pool {
    pthread_mutex_t lock;
    struct samkv_held_room *idle;
    int idle_count;
};

struct samkv_held {
    struct samkv_bytes bytes;
    struct samkv_held_room *room; /* NULL: holds nothing */
};

struct samkv_store;
struct samkv_environment;

void samkv_held_pool_init(struct samkv_held_pool *);
void samkv_held_pool_deinit(struct samkv_held_pool *);

/* Makes held->room one of at least `bytes`; what it held before is gone. NO_MEMORY. */
enum samkv_status samkv_held_reserve(struct samkv_store *, struct samkv_held *, size_t bytes,
                                     struct samkv_error *) SAMKV_MUST_USE;

/* Gives the memory back. Holding nothing is allowed. */
void samkv_held_release(struct samkv_store *, struct samkv_held *);

/* Finds out where an environment's map begins, and opens its file a second time when it is to be read past the page
 * cache. Once, after its databases were opened. */
enum samkv_status samkv_extent_locate(struct samkv_store *, struct samkv_environment *,
                                      struct samkv_error *) SAMKV_MUST_USE;

/* True when the value (an address in the map) lies on pages of its own, false when on a page with others. */
bool samkv_extent_is(const struct samkv_store *, const struct samkv_environment *, struct samkv_bytes in_map);

/*
 * Reads an extent's value to *held. CORRUPT when the file ends before it or a sector of it cannot be read: both are
 * damage of this record, which its tokens may bring back. IO for any other error. Any thread, no lock needed.
 */
enum samkv_status samkv_extent_read(struct samkv_store *, const struct samkv_environment *, struct samkv_bytes in_map,
                                    struct samkv_held *, struct samkv_error *) SAMKV_MUST_USE;

/* `bytes` of the data file from `offset` on, the same errors. */
enum samkv_status samkv_extent_read_at(const struct samkv_environment *, uint64_t offset, void *to, size_t bytes,
                                       struct samkv_error *) SAMKV_MUST_USE;
