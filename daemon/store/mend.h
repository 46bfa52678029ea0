#pragma once
/* The inside of a salvage: making a store of the records that were found. */
#include "daemon/store/salvage.h"
#include "daemon/store/txn.h"

struct samkv_salvage {
    struct samkv_store *to;
    struct samkv_change change; /* the transaction that is open; no other writes to the new store */
    size_t uncommitted_bytes;
    struct samkv_salvage_report *report;
};

/* Puts a record; commits and begins anew after so many bytes, so no cursor may be open. */
enum samkv_status samkv_salvage_put(struct samkv_salvage *, enum samkv_db, struct samkv_bytes key,
                                    struct samkv_bytes record, struct samkv_error *) SAMKV_MUST_USE;

/* After all records were put: documents that lack their own record are made again, every name leads to a document,
 * every document has a name and the right counts, and parts that belong to nothing are marked for removal. */
enum samkv_status samkv_salvage_mend(struct samkv_salvage *, struct samkv_error *) SAMKV_MUST_USE;
