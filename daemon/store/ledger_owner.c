#include <stdlib.h>

#include "daemon/store/ledger_parts.h"

/* What a user is charged with beyond documents' bytes, so that nothing that takes disk or memory is free. */
#define NAME_CHARGE_BYTES       1024
#define COLLECTION_CHARGE_BYTES 4096

const struct samkv_ledger_owner *samkv_ledger_find_owner(const struct samkv_ledger *l, uint32_t owner)
{
    const struct samkv_ledger_owner *o = l->owners;
    while (o && o->owner != owner)
        o = o->next;
    return o;
}

struct samkv_ledger_owner *samkv_ledger_need_owner(struct samkv_ledger *l, uint32_t owner)
{
    struct samkv_ledger_owner *o = (struct samkv_ledger_owner *)samkv_ledger_find_owner(l, owner);
    if (o || !(o = calloc(1, sizeof *o)))
        return o;
    o->owner = owner;
    o->next = l->owners;
    l->owners = o;
    return o;
}

void samkv_ledger_move(struct samkv_ledger *l, struct samkv_ledger_collection *c, struct samkv_ledger_owner *to,
                       uint64_t preamble_stored)
{
    struct samkv_ledger_owner *from = c->owner;
    if (from) {
        from->collections--;
        from->names -= c->names;
        from->stored -= c->stored + c->preamble_stored;
    }
    c->owner = to;
    c->preamble_stored = to ? preamble_stored : 0;
    if (to) {
        to->collections++;
        to->names += c->names;
        to->stored += c->stored + c->preamble_stored;
    }
    if (!from || from->collections)
        return;
    struct samkv_ledger_owner **at = &l->owners;
    while (*at != from)
        at = &(*at)->next;
    *at = from->next;
    free(from);
}

uint64_t samkv_ledger_charge(const struct samkv_ledger_owner *o)
{
    return o ? o->stored + o->names * NAME_CHARGE_BYTES + o->collections * COLLECTION_CHARGE_BYTES : 0;
}
