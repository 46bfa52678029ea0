#include "daemon/store/account.h"

#define MIB(bytes) ((double)(bytes) / (1 << 20))

uint64_t samkv_user_quota(const struct samkv_store *s, uint32_t owner)
{
    return s->user_quota && owner != SAMKV_OWNER_DAEMON ? s->user_quota(s->user_quota_arg, owner) : 0;
}

/* False: nobody limits its owner. */
static bool charge_of(struct samkv_store *s, const char *collection, uint32_t *owner, uint64_t *charge)
{
    struct samkv_ledger *l = &s->ledger;
    pthread_mutex_lock(&l->lock);
    const struct samkv_ledger_collection *c = samkv_ledger_find_collection(l, collection);
    bool owned = c && c->owner;
    *owner = owned ? c->owner->owner : SAMKV_OWNER_DAEMON;
    *charge = owned ? samkv_ledger_charge(c->owner) : 0;
    pthread_mutex_unlock(&l->lock);
    return owned;
}

static enum samkv_status over(uint32_t owner, uint64_t quota, uint64_t charge, struct samkv_error *err)
{
    return samkv_fail(
        err, SAMKV_FULL,
        "the collections of user %u take %.1f MiB, and this would take them above the %.1f MiB that the user "
        "may have: remove documents, or ask for more",
        owner, MIB(charge), MIB(quota));
}

enum samkv_status samkv_account_admit(struct samkv_store *s, const char *collection, uint64_t bytes,
                                      struct samkv_error *err)
{
    uint32_t owner;
    uint64_t charge, quota;
    if (!charge_of(s, collection, &owner, &charge) || !(quota = samkv_user_quota(s, owner)))
        return SAMKV_OK;
    return charge <= quota && bytes <= quota - charge ? SAMKV_OK : over(owner, quota, charge, err);
}

enum samkv_status samkv_store_admit_owner(struct samkv_store *s, uint32_t owner, uint64_t bytes,
                                          struct samkv_error *err)
{
    struct samkv_account account;
    samkv_store_account(s, owner, &account);
    uint64_t quota = account.quota_bytes, charge = account.bytes_charged;
    return !quota || (charge <= quota && bytes <= quota - charge) ? SAMKV_OK : over(owner, quota, charge, err);
}

enum samkv_status samkv_account_check(struct samkv_change *c, const char *collection, struct samkv_error *err)
{
    enum samkv_status st = samkv_account_admit(c->store, collection, 0, err);
    c->broken |= st != SAMKV_OK;
    return st;
}
