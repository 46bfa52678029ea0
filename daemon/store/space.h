#pragma once
/*
 * Giving space of free pages back to the disk without moving anything: holes are punched into the data file where LMDB
 * keeps pages for later use. On the writer thread.
 *
 * Why that is safe. A page is punched only when LMDB's next write transaction might overwrite it, and while the right
 * to write is held:
 *   - The free list has a record for each transaction T that freed pages: those that snapshots up to T - 1 may see.
 * With N the last transaction committed, LMDB takes pages from records T < min(N, oldest reader), and so do we. Readers
 *     in other processes are in the same table (lock file), and one that begins meanwhile sees N.
 *   - The two meta pages are those of N and N - 1. T <= N - 1 was freed behind snapshot N - 2, so neither leads to such
 *     a page: after a crash, whichever of them is used, nothing that is punched is in use. There is nothing to be
 * undone and no order to be kept: a hole that the disk forgot is a free page with its old contents.
 *   - LMDB does not read a free page before it has written it: it takes memory for a new page, fills it, and writes it
 *     whole (a map that cannot be written to is the reason). The check of pages at opening follows trees and reads the
 *     free list's records, not what these name. Reading a hole, say for a backup, gives zeros.
 *   - The file's size stays; the file stays as long as its meta pages say.
 * What a hole costs is paid when its page is used again: the disk may then have no room, which is the error of a file
 * that grows, and is handled as that is. So what is likely to be used soon is left alone: punching begins when much
 * more is allocated than is in use, ends before all is given back, and takes the pages last that LMDB would take first.
 */
#include <stdbool.h>
#include <stdint.h>

#include "proto/status.h"

struct samkv_store;
struct samkv_environment;

/* How far a pass over the free list has come. In the environment. */
struct samkv_punching {
    uint64_t next_record; /* records below are to come; 0: begin a pass */
    uint64_t floor;       /* records below were all punched, every page */
    uint64_t pass_below;  /* the floor when this pass has come to its end */
    uint64_t next_place;  /* within the first of them: ids from here on are to come */
    uint64_t allocated;   /* when the last pass ended */
    int64_t rest_ms;
    int64_t rest_until_ms; /* the last pass brought less than was wanted: no other one before */
    bool short_runs;       /* this pass takes them too */
    bool unsupported;      /* this file system has no holes */
};

/* Bytes that the disk has given for an environment's file, and for all of the store's together. */
uint64_t samkv_space_allocated(const struct samkv_environment *);
uint64_t samkv_space_allocated_all(const struct samkv_store *);

/* How much more than is in use may stay allocated. */
uint64_t samkv_space_slack(const struct samkv_store *, uint64_t used_bytes);

/*
 * One bounded step of giving back until `keep_bytes` or less are allocated. *more: another step may bring more. Only a
 * failing disk is an error; a file system without holes is noted once. `every_page`: short runs too.
 */
enum samkv_status samkv_space_punch(struct samkv_store *, struct samkv_environment *, uint64_t keep_bytes,
                                    bool every_page, bool *more, struct samkv_error *) SAMKV_MUST_USE;

/* The same after each group, with slack. True: call again when there is nothing else to do. */
bool samkv_space_tend(struct samkv_store *);

/* Counts the bytes in use of an environment anew. */
void samkv_space_count(struct samkv_store *, struct samkv_environment *);

/* Whether more is allocated than should be: what readers hold, or a pass that rests. */
bool samkv_space_is_waiting(const struct samkv_store *);

/* Whether `bytes` more may be written: with all files of the store together the limit holds, and the disk has room. */
bool samkv_space_fits(const struct samkv_store *, uint64_t bytes);

/* What the disk still has, with what is allocated and not in use, once `used_bytes` are: more cannot be written. */
uint64_t samkv_space_left(const struct samkv_store *, uint64_t used_bytes);

/*
 * On a full disk LMDB may choose a free page that is a hole, though others are allocated: gives about a reserve of
 * these back to the disk. True: it has more than before, try again. On the writer thread, outside of transactions.
 */
bool samkv_space_relieve(struct samkv_store *);
