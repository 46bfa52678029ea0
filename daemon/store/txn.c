#include "daemon/store/txn.h"

#include "daemon/base/log.h"
#include "daemon/store/generation.h"
#include "daemon/store/guard.h"

/* A step's arguments and results, for the functions that run in the section. */
struct step {
    void (*fn)(void *arg);
    void *arg;
    struct samkv_change *change;
    struct samkv_job *job;
    const struct samkv_key *key;
    struct samkv_error *err;
    bool *more;
    uint64_t *bytes;
    int rc;
    enum samkv_status status;
};

static enum samkv_status lost_page(struct samkv_store *s, struct samkv_error *err)
{
    return samkv_fail(
        err, SAMKV_IO,
        "a page of the data file in %s could not be read while writing: nothing more is written until the daemon "
        "is restarted; check the disk",
        s->path);
}

/* LMDB reads in the maps of both environments while records are moved. */
struct in_old {
    const struct samkv_environment *old;
    void (*fn)(void *arg);
    void *arg;
    bool whole;
};

static void run_in_old(void *arg)
{
    struct in_old *o = arg;
    o->whole = samkv_guard_run(o->old->map, o->old->map_bytes, o->fn, o->arg);
}

static bool run_guarded(struct samkv_store *s, void (*fn)(void *arg), void *arg)
{
    struct in_old o = {.old = s->old, .fn = fn, .arg = arg};
    if (!s->old)
        return samkv_guard_run(s->now->map, s->now->map_bytes, fn, arg);
    return samkv_guard_run(s->now->map, s->now->map_bytes, run_in_old, &o) && o.whole;
}

static enum samkv_status run(void (*fn)(void *arg), struct step *step)
{
    struct samkv_store *s = step->change->store;
    if (atomic_load(&s->queue.lost_page))
        return lost_page(s, step->err);
    if (run_guarded(s, fn, step))
        return step->status;
    atomic_store(&s->queue.lost_page, true);
    struct samkv_error text;
    lost_page(s, &text);
    samkv_log(SAMKV_LOG_ERROR, "store: %s", text.text);
    return lost_page(s, step->err);
}

static void begin(void *arg)
{
    struct step *step = arg;
    step->rc = mdb_txn_begin(step->change->env->env, NULL, 0, &step->change->txn);
}

enum samkv_status samkv_txn_begin(struct samkv_store *s, struct samkv_change *out, struct samkv_error *err)
{
    return samkv_txn_begin_in(s, s->now, out, err);
}

enum samkv_status samkv_txn_begin_in(struct samkv_store *s, struct samkv_environment *e, struct samkv_change *out,
                                     struct samkv_error *err)
{
    *out = (struct samkv_change){.store = s, .env = e};
    struct step step = {.change = out, .err = err};
    enum samkv_status st = run(begin, &step);
    return st == SAMKV_OK && step.rc ? samkv_fail_lmdb(err, step.rc, "starting a transaction") : st;
}

void samkv_txn_abort(struct samkv_change *c)
{
    if (c->txn && !atomic_load(&c->store->queue.lost_page))
        mdb_txn_abort(c->txn);
    c->txn = NULL;
}

static void commit(void *arg)
{
    struct step *step = arg;
    step->rc = mdb_txn_commit(step->change->txn);
}

enum samkv_status samkv_txn_commit(struct samkv_change *c, struct samkv_error *err)
{
    struct step step = {.change = c, .err = err};
    enum samkv_status st = run(commit, &step);
    c->txn = NULL;
    return st == SAMKV_OK && step.rc ? samkv_fail_lmdb(err, samkv_db_write_code(c->store, step.rc), "committing") : st;
}

static void apply(void *arg)
{
    struct step *step = arg;
    step->status = step->job->apply(step->change, step->job, step->err);
}

enum samkv_status samkv_txn_apply(struct samkv_change *c, struct samkv_job *job, struct samkv_error *err)
{
    struct step step = {.change = c, .job = job, .err = err};
    enum samkv_status st = run(apply, &step);
    c->broken |= atomic_load(&c->store->queue.lost_page);
    return st;
}

static void used_bytes(void *arg)
{
    struct step *step = arg;
    step->status = samkv_db_used_bytes(step->change->store, step->change->txn, step->bytes, step->err);
}

enum samkv_status samkv_txn_used_bytes(struct samkv_change *c, uint64_t *out, struct samkv_error *err)
{
    struct step step = {.change = c, .bytes = out, .err = err};
    return run(used_bytes, &step);
}

static void remove_some(void *arg)
{
    struct step *step = arg;
    step->status = samkv_change_remove_some(step->change, step->key, step->more, step->err);
}

enum samkv_status samkv_txn_remove_some(struct samkv_change *c, const struct samkv_key *key, bool *more,
                                        struct samkv_error *err)
{
    struct step step = {.change = c, .key = key, .more = more, .err = err};
    return run(remove_some, &step);
}

static void run_plain(void *arg)
{
    struct step *step = arg;
    step->fn(step->arg);
}

enum samkv_status samkv_txn_run(struct samkv_change *c, void (*fn)(void *arg), void *arg, struct samkv_error *err)
{
    struct step step = {.change = c, .fn = fn, .arg = arg, .err = err};
    return run(run_plain, &step);
}

struct mark {
    struct samkv_change *change;
    uint8_t schema;
    enum samkv_status status;
    struct samkv_error *err;
};

static void write_mark(void *arg)
{
    struct mark *m = arg;
    m->status = samkv_generation_write_schema(m->change->store, m->change->txn, m->schema, m->err);
}

enum samkv_status samkv_txn_mark(struct samkv_change *c, uint8_t schema, struct samkv_error *err)
{
    struct mark m = {.change = c, .schema = schema, .err = err};
    enum samkv_status st = samkv_txn_run(c, write_mark, &m, err);
    st = st == SAMKV_OK ? m.status : st;
    if (st == SAMKV_OK)
        return samkv_txn_commit(c, err);
    samkv_txn_abort(c);
    return st;
}
