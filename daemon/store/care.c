#include "daemon/store/snapshot.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/base/clock.h"
#include "daemon/store/room.h"

/* Where the records of one document are decoded to, only to see that they can be. */
struct verify_room {
    void **pieces;
    uint8_t *bytes;
};

static enum samkv_status make_room(const struct samkv_manifest *m, struct verify_room *room)
{
    size_t count = 2 * (size_t)m->shape.layers, largest = samkv_index_layout(m).bytes;
    struct samkv_layout block = samkv_block_layout(m, 0), tokens = samkv_tokens_layout(m);
    if (samkv_layout_bytes(&block) > largest)
        largest = samkv_layout_bytes(&block);
    if (tokens.bytes > largest)
        largest = tokens.bytes;
    room->pieces = malloc(count * sizeof *room->pieces);
    room->bytes = malloc(largest);
    return room->pieces && room->bytes ? SAMKV_OK : SAMKV_NO_MEMORY;
}

/* Statuses other than OK and CORRUPT are failures of reading, not damage. */
static enum samkv_status verify_part(struct samkv_snapshot *snapshot, enum samkv_db db, enum samkv_record_kind kind,
                                     struct samkv_bytes key, struct samkv_layout layout, struct verify_room *room,
                                     struct samkv_verify_report *report, struct samkv_error *err)
{
    struct samkv_held held = {0};
    for (size_t i = 0; i < layout.count; i++)
        room->pieces[i] = room->bytes + i * layout.bytes;
    enum samkv_status st = samkv_snapshot_get(snapshot, db, key, &held, err);
    if (st == SAMKV_OK) {
        report->bytes += held.bytes.size;
        st = samkv_record_decode(held.bytes, kind, key, &layout, &snapshot->store->scratch, room->pieces);
        if (st == SAMKV_NO_MEMORY)
            samkv_fail(err, st, "out of memory while verifying");
    }
    samkv_held_release(snapshot->store, &held);
    if (st == SAMKV_NOT_FOUND || st == SAMKV_CORRUPT) {
        report->damaged++;
        atomic_fetch_add(&snapshot->store->damaged, 1);
        st = SAMKV_OK;
    }
    return st;
}

static enum samkv_status verify_parts(struct samkv_snapshot *snapshot, const struct samkv_manifest *m,
                                      struct verify_room *room, struct samkv_verify_report *report,
                                      struct samkv_error *err)
{
    uint8_t buffer[SAMKV_PART_KEY_BYTES];
    enum samkv_status st = verify_part(snapshot, SAMKV_DB_TOKENS, SAMKV_RECORD_TOKENS, samkv_key_bytes(&m->key),
                                       samkv_tokens_layout(m), room, report, err);
    for (uint32_t block = 0; st == SAMKV_OK && block < m->blocks; block++, report->blocks++)
        st = verify_part(snapshot, SAMKV_DB_BLOCK, SAMKV_RECORD_BLOCK, samkv_part_key(&m->key, block, buffer),
                         samkv_block_layout(m, block), room, report, err);
    for (uint32_t layer = 0; st == SAMKV_OK && m->bytes_index && layer < m->shape.layers; layer++)
        st = verify_part(snapshot, SAMKV_DB_INDEX, SAMKV_RECORD_INDEX, samkv_part_key(&m->key, layer, buffer),
                         samkv_index_layout(m), room, report, err);
    return st;
}

enum samkv_status samkv_snapshot_verify(struct samkv_snapshot *snapshot, const struct samkv_key *key,
                                        struct samkv_verify_report *report, struct samkv_error *err)
{
    struct samkv_manifest m;
    enum samkv_status st = samkv_snapshot_manifest(snapshot, key, &m, err);
    if (st == SAMKV_CORRUPT) {
        report->documents++;
        report->damaged++;
        return SAMKV_OK;
    }
    if (st != SAMKV_OK)
        return st;
    report->documents++;
    struct verify_room room = {0};
    st = make_room(&m, &room);
    if (st == SAMKV_OK)
        st = verify_parts(snapshot, &m, &room, report, err);
    else
        samkv_fail(err, st, "out of memory while verifying");
    free(room.pieces);
    free(room.bytes);
    return st;
}

static enum samkv_status sum_documents(struct samkv_snapshot *snapshot, struct samkv_store_stats *out,
                                       struct samkv_error *err)
{
    MDB_cursor *cursor;
    MDB_val k, v;
    int rc = mdb_cursor_open(snapshot->now.txn, snapshot->store->dbi[SAMKV_DB_DOCUMENT], &cursor);
    if (rc)
        return samkv_fail_lmdb(err, rc, "adding up documents");
    while ((rc = mdb_cursor_get(cursor, &k, &v, MDB_NEXT)) == 0) {
        struct samkv_key key;
        struct samkv_document d;
        if (k.mv_size != sizeof key.bytes)
            continue;
        memcpy(key.bytes, k.mv_data, sizeof key.bytes);
        if (samkv_document_open(samkv_val_bytes(&v), &key, &d) != SAMKV_OK)
            continue; /* verify tells of it */
        out->bytes_raw += d.manifest.bytes_raw;
        out->bytes_stored += d.manifest.bytes_stored;
    }
    mdb_cursor_close(cursor);
    return rc == MDB_NOTFOUND ? SAMKV_OK : samkv_fail_lmdb(err, rc, "adding up documents");
}

static enum samkv_status count_entries(struct samkv_snapshot *snapshot, enum samkv_db db, uint64_t *out,
                                       struct samkv_error *err)
{
    MDB_stat stat;
    int rc = mdb_stat(snapshot->now.txn, snapshot->store->dbi[db], &stat);
    if (rc)
        return samkv_fail_lmdb(err, rc, "counting records");
    *out = stat.ms_entries;
    return SAMKV_OK;
}

static double oldest_reader_ms(struct samkv_reading *r)
{
    pthread_mutex_lock(&r->lock);
    double ms = r->first ? samkv_now_ms() - r->first->began_ms : 0;
    pthread_mutex_unlock(&r->lock);
    return ms;
}

static enum samkv_status count_limits(struct samkv_store *s, struct samkv_store_stats *out, struct samkv_error *err)
{
    struct samkv_room room;
    out->oldest_reader_s = (uint64_t)(oldest_reader_ms(&s->reading) / 1e3);
    out->evictions = atomic_load(&s->evictions);
    out->evicted_bytes = atomic_load(&s->evicted_bytes);
    out->expirations = atomic_load(&s->expirations);
    enum samkv_status st = samkv_room_measure(s, &room, err);
    out->bytes_reclaimable = room.free_bytes + room.held_bytes;
    out->bytes_disk_free = room.disk_bytes;
    return st;
}

/* As the ledger has it; a store that is only read has none. */
static bool sum_ledger(struct samkv_store *s, struct samkv_store_stats *out)
{
    pthread_mutex_lock(&s->ledger.lock);
    for (int i = 0; !s->read_only && i < SAMKV_CODEC_COUNT; i++) {
        out->bytes_raw += s->ledger.raw[i];
        out->bytes_stored += s->ledger.stored[i];
    }
    pthread_mutex_unlock(&s->ledger.lock);
    return !s->read_only;
}

struct gathering {
    struct samkv_snapshot *snapshot;
    struct samkv_store_stats *stats;
    enum samkv_status status;
    struct samkv_error *err;
    bool summed; /* by the ledger */
};

static void gather(void *arg)
{
    struct gathering *g = arg;
    struct samkv_store *s = g->snapshot->store;
    enum samkv_status st = count_entries(g->snapshot, SAMKV_DB_COLLECTION, &g->stats->collections, g->err);
    if (st == SAMKV_OK)
        st = count_entries(g->snapshot, SAMKV_DB_NAME, &g->stats->names, g->err);
    if (st == SAMKV_OK)
        st = count_entries(g->snapshot, SAMKV_DB_DOCUMENT, &g->stats->documents, g->err);
    if (st == SAMKV_OK)
        st = samkv_db_used_bytes(s, g->snapshot->now.txn, &g->stats->bytes_used, g->err);
    if (g->snapshot->old.env)
        g->stats->bytes_used += atomic_load(&g->snapshot->old.env->bytes_in_use);
    if (st == SAMKV_OK && !g->summed)
        st = sum_documents(g->snapshot, g->stats, g->err);
    g->status = st;
}

/* Both of a store that is being compacted. */
static void add_files(const struct samkv_snapshot *snapshot, struct samkv_store_stats *out)
{
    const struct samkv_environment *files[] = {snapshot->now.env, snapshot->old.env};
    struct stat file;
    MDB_envinfo info;
    uint64_t pages = 0;
    for (int i = 0; i < 2; i++)
        if (files[i] && fstat(files[i]->fd, &file) == 0 && mdb_env_info(files[i]->env, &info) == 0) {
            out->bytes_file += (uint64_t)file.st_size;
            out->bytes_allocated += (uint64_t)file.st_blocks * 512;
            pages += info.me_last_pgno + 1;
        }
    out->bytes_free = pages * snapshot->store->page_bytes; /* what is in use comes off it */
}

enum samkv_status samkv_store_stats(struct samkv_store *s, struct samkv_store_stats *out, struct samkv_error *err)
{
    *out = (struct samkv_store_stats){
        .bytes_limit = s->limit_bytes, .commits = atomic_load(&s->commits), .damaged = atomic_load(&s->damaged)};
    out->readers = atomic_load(&s->snapshots);
    out->bytes_punched = atomic_load(&s->bytes_punched);
    out->bytes_moved = atomic_load(&s->bytes_moved);
    out->compactions = atomic_load(&s->compactions);
    struct gathering g = {.stats = out, .err = err};
    enum samkv_status st = count_limits(s, out, err);
    if (st == SAMKV_OK)
        st = samkv_snapshot_begin(s, &g.snapshot, err);
    if (st != SAMKV_OK)
        return st;
    g.summed = sum_ledger(s, out);
    add_files(g.snapshot, out);
    st = samkv_snapshot_run(g.snapshot, gather, &g, err);
    samkv_snapshot_end(g.snapshot);
    out->bytes_free -= out->bytes_used < out->bytes_free ? out->bytes_used : out->bytes_free;
    return st == SAMKV_OK ? g.status : st;
}
