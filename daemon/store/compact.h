#pragma once
/*
 * Compaction: a store moves to a new data file while it is read and written, in bounded steps on the writer thread.
 *
 * LMDB never makes its file smaller, and large records leave gaps that fit no other. So a new file (the next
 * generation, generation.h) takes over:
 *   1. Turn. Everything but the bulk (tokens, index, blocks) is copied to the new file: names, collections, manifests,
 *      marks; small beside the rest, and nothing is written meanwhile. One transaction in the old file then says that
 * it was moved (its schema): with that, and not before, the new file is the store. From here on all writing goes to the
 * new file, and snapshots look there first, then in the old one.
 *   2. Drain. Records of the old file are put into the new one (committed), then deleted in the old one (committed),
 *      some megabytes at a time, and the pages that become free are punched out of the old file (space.h). Jobs go
 *      between the steps; while anybody reads, a step is followed by a pause as long as itself.
 *   3. End. When nothing is left the old file's name goes, and the file itself with the last snapshot that refers to
 *      it.
 * Why not a copy beside the store that then takes its place: writing would have to wait or be caught up with, and the
 * disk would have to hold everything twice. So the limit on bytes allocated holds at every moment, for both files
 * together: a step that does not fit waits for space to be punched, which the snapshots of readers may delay.
 *
 * Killed at any point, a store opens with all that was acknowledged: a newer file beside one that was not moved is a
 * leftover and is removed; a record that was put but not deleted yet is in both files, with the same bytes. Removing a
 * document removes its records from the old file first, and its mark (pending) in the new one last.
 *
 * What is damaged moves as it is: checksums go with the records. What cannot be read is left behind, so that reading
 * it is damage as before, and its tokens may bring it back.
 */
#include <stdbool.h>
#include <stdint.h>

#include "proto/status.h"
#include "daemon/store/store.h"

/* In the store; the writer thread's, but for what is asked and told (under the queue's lock). */
struct samkv_compaction {
    int database;          /* that is being drained; -1: none */
    uint64_t left_behind;  /* records at its beginning that cannot be moved */
    double pause_until_ms; /* no step before: a reader's turn, or another try after a failure */
    double retry_ms;
    int failures;          /* in a row */
    double large_since_ms; /* that the file is too large; 0: it is not */
    bool complained;       /* about the failure that it waits over */
    /* asked and told */
    uint64_t asked, done; /* compactions wanted and those brought to an end or given up, counted */
    enum samkv_status status;
    struct samkv_error error;
};

/* The most that a file grows by with one more record, trees included. */
uint64_t samkv_compact_cost(const struct samkv_store *, uint64_t value_bytes);

/* One step of whatever compaction there is to do, or beginning one where it is time. True: call again soon. */
bool samkv_compact_tend(struct samkv_store *);

/* Whether something is to be done, though not now. */
bool samkv_compact_is_waiting(const struct samkv_store *);

/* A record of `bytes` found no room though enough is free: begins a compaction, in whose new file it fits; or, while
 * there is one, makes what is free room. False when that is not so or cannot be done. */
bool samkv_compact_for_room(struct samkv_store *, uint64_t bytes);

/* Removes, in steps, what the old file has of a document. *more: call again. */
enum samkv_status samkv_compact_remove_some(struct samkv_store *, const struct samkv_key *, bool *more,
                                            struct samkv_error *) SAMKV_MUST_USE;

/* The size of a record that has not been moved yet; 0: there is none. */
uint64_t samkv_compact_record_bytes(struct samkv_store *, int database, const void *key, size_t key_bytes);
