#pragma once
/* What the files ledger*.c share: hash tables of things that begin with their `next`, and the sums of owners. With the
 * lock held. */
#include "daemon/store/ledger.h"

/* False: there is no table yet, and no memory for one. A name needs its holding before. */
bool samkv_ledger_insert(struct samkv_ledger *, struct samkv_ledger_table *, void *entry);
void samkv_ledger_take_out(struct samkv_ledger *, struct samkv_ledger_table *, void *entry);

/* NULL without memory. */
struct samkv_ledger_owner *samkv_ledger_need_owner(struct samkv_ledger *, uint32_t owner);

/* A collection goes from its owner to another; NULL: to none. An owner without collections is forgotten. */
void samkv_ledger_move(struct samkv_ledger *, struct samkv_ledger_collection *, struct samkv_ledger_owner *to,
                       uint64_t preamble_stored);
