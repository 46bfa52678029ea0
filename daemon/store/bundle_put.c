#include "daemon/store/writer.h"

#include "daemon/store/evict.h"

/* Names that come with a time and a pin of their own. */

enum samkv_status samkv_change_dress_name(struct samkv_change *c, const char *collection, const struct samkv_name *as,
                                          struct samkv_error *err)
{
    uint8_t buffer[SAMKV_NAME_KEY_MAX];
    struct samkv_bytes key = samkv_name_key(collection, as->id, buffer), value;
    struct samkv_name name;
    enum samkv_status st = samkv_db_get(c->store, c->txn, SAMKV_DB_NAME, key, &value, err);
    if (st == SAMKV_OK)
        st = samkv_name_open(value, key, true, &name);
    if (st != SAMKV_OK) {
        c->broken = true;
        return samkv_fail(err, st, "the name %s could not be written: %s", as->id, samkv_status_text(st));
    }
    name.put_unix_s = as->put_unix_s;
    name.pinned = name.pinned || as->pinned;
    st = samkv_change_put_name(c, collection, &name, err);
    samkv_name_deinit(&name);
    return st;
}

struct name_as_job {
    struct samkv_job job; /* first: a pointer to it is one to this */
    const char *collection;
    const struct samkv_name *name;
};

static enum samkv_status apply_name_as(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    const struct name_as_job *put = (struct name_as_job *)job;
    const struct samkv_name *name = put->name;
    struct samkv_document d;
    enum samkv_status st = samkv_change_get_document(c, &name->key, &d, err);
    if (st != SAMKV_OK)
        return st;
    c->grows = true;
    st = samkv_change_set_name(c, put->collection, name->id, name->title, &name->key, err);
    if (st == SAMKV_OK)
        st = samkv_change_dress_name(c, put->collection, name, err);
    return st == SAMKV_OK ? samkv_evict_for_quota(c, put->collection, &name->key, err) : st;
}

enum samkv_status samkv_store_name_put_as(struct samkv_store *s, const char *collection, const struct samkv_name *name,
                                          struct samkv_error *err)
{
    struct name_as_job put = {.job = {.apply = apply_name_as}, .collection = collection, .name = name};
    if (s->read_only)
        return samkv_fail(err, SAMKV_DENIED, "the store was opened for reading only");
    enum samkv_status st = samkv_name_check(collection, name->id, name->title, err);
    return st == SAMKV_OK ? samkv_queue_call(s, &put.job, err) : st;
}
