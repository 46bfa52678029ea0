#include "daemon/fetch/heal.h"

#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/ingest/spec.h"
#include "daemon/ingest/repair.h"

/* The preamble first: documents are recomputed behind it. */
static enum samkv_status heal_preamble(struct samkv_models *models, struct samkv_store *store,
                                       struct samkv_snapshot *snapshot, struct samkv_collection *collection,
                                       const char *name, uint64_t *repaired, struct samkv_error *err)
{
    struct samkv_engine *engine;
    enum samkv_status status = samkv_spec_open(models, snapshot, name, collection, &engine, err);
    if (!status && collection->preamble_tokens)
        status = samkv_repair(models, store, name, &collection->preamble_key, repaired, err);
    return status;
}

enum samkv_status samkv_fetch_heal(struct samkv_models *models, struct samkv_store *store,
                                   const struct samkv_fetch_request *request, struct samkv_error *err)
{
    const char *collection_name =
        request->collection && *request->collection ? request->collection : SAMKV_DEFAULT_COLLECTION;
    struct samkv_collection collection = {0};
    struct samkv_snapshot *snapshot;
    uint64_t repaired = 0;
    double since = samkv_now_ms();
    enum samkv_status status = samkv_snapshot_begin(store, &snapshot, err);
    if (status)
        return status;
    status = heal_preamble(models, store, snapshot, &collection, collection_name, &repaired, err);
    for (size_t i = 0; i < request->id_count && !status; i++) {
        struct samkv_name name;
        status = samkv_snapshot_name(snapshot, collection_name, request->ids[i], &name, err);
        if (status)
            break;
        struct samkv_key key = name.key;
        samkv_name_deinit(&name);
        status = samkv_repair(models, store, collection_name, &key, &repaired, err);
    }
    samkv_collection_deinit(&collection);
    samkv_snapshot_end(snapshot);
    samkv_trace_lap(request->trace, SAMKV_PHASE_HEAL, &since);
    if (request->trace)
        request->trace->repaired += repaired;
    samkv_log(SAMKV_LOG_WARNING, "damage met by a fetch: collection=%s repaired=%llu records, %s", collection_name,
              (unsigned long long)repaired, status ? "not all" : "trying again");
    return status;
}
