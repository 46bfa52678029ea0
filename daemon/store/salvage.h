#pragma once
/*
 * A way out when a store does not open: what can still be found of it is copied to a new one.
 *
 * Records are found without LMDB (leaves.h) and checked one by one. A document whose own record is lost is made again
 * from its collection and its tokens, which give its key, so it is known to be the right one. Blocks and index records
 * that are missing are recomputed by the daemon when somebody asks for them. What is lost: a document whose tokens are
 * lost (it is to be ingested again), a name that is lost (the document gets one made of its key), and a collection's
 * settings (its next ingest sets them again). Where the trees are so damaged that old pages had to be searched,
 * documents that were removed lately may be back.
 */
#include <stdint.h>

#include "proto/status.h"

struct samkv_salvage_report {
    uint64_t records;    /* that were copied */
    uint64_t damaged;    /* that were found but do not check */
    uint64_t documents;  /* in the new store */
    uint64_t remade;     /* of which their own record was lost */
    uint64_t renamed;    /* of which their name was lost */
    uint64_t names;      /* in the new store */
    uint64_t names_lost; /* found, but their document was not; the log names them */
};

/*
 * from: the directory of a store that no daemon uses; it is only read (its lock is taken). to: a directory that is
 * missing or empty. BUSY, NOT_FOUND, DENIED, FULL, IO, and INVALID when `to` holds something.
 */
enum samkv_status samkv_store_salvage(const char *from, const char *to, struct samkv_salvage_report *,
                                      struct samkv_error *) SAMKV_MUST_USE;
