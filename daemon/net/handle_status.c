#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "daemon/model/chat.h"
#include "daemon/net/handlers.h"
#include "daemon/net/quality.h"
#include "daemon/samkv/lease.h"
#include "daemon/samkv/transfer.h"
#include "daemon/store/host_cache.h"

uint64_t samkv_resident_bytes(void)
{
    unsigned long long size, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f)
        return 0;
    if (fscanf(f, "%llu %llu", &size, &resident) != 2)
        resident = 0;
    fclose(f);
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

struct model_row {
    Samkv__ModelStatus message;
    char fingerprint[33];
};

static void fill_model(const struct samkv_engine *engine, struct model_row *row)
{
    const struct samkv_model *model = engine->model;
    samkv__model_status__init(&row->message);
    samkv_hex(model->fingerprint, row->fingerprint);
    row->message.name = (char *)model->name;
    row->message.path = (char *)model->path;
    row->message.device = engine->device->name;
    row->message.fingerprint = row->fingerprint;
    row->message.layers = model->config.layers;
    row->message.context_tokens = model->config.context_tokens;
    row->message.weight_bytes = model->weight_bytes;
    row->message.dtype = (char *)samkv_dtype_name(engine->stored);
    row->message.chat = (char *)samkv_chat_name(model);
}

static void fill_store(const struct samkv_store_stats *stats, Samkv__StatusReply *m)
{
    m->collections = stats->collections;
    m->documents = stats->documents;
    m->names = stats->names;
    m->bytes_file = stats->bytes_file;
    m->bytes_used = stats->bytes_used;
    m->bytes_limit = stats->bytes_limit;
    m->bytes_raw = stats->bytes_raw;
    m->bytes_stored = stats->bytes_stored;
    m->bytes_disk_free = stats->bytes_disk_free;
    m->bytes_reclaimable = stats->bytes_reclaimable;
    m->oldest_reader_s = stats->oldest_reader_s;
    m->evictions = stats->evictions;
    m->evicted_bytes = stats->evicted_bytes;
    m->expirations = stats->expirations;
}

#define COLLECTIONS_MAX 100

/* The first collections by name. */
struct collection_list {
    struct samkv_store *store;
    const struct samkv_caller *caller;
    struct samkv_collection_row rows[COLLECTIONS_MAX];
    Samkv__Collection *pointers[COLLECTIONS_MAX];
    size_t count;
};

static bool take_collection(void *arg, const struct samkv_collection *c)
{
    struct collection_list *list = arg;
    struct samkv_collection_stats stats;
    if (list->count == COLLECTIONS_MAX)
        return false;
    if (!samkv_caller_may(list->caller, &c->ownership, SAMKV_RIGHT_READ))
        return true;
    struct samkv_collection_row *row = &list->rows[list->count];
    samkv_collection_row_fill(list->store, c, row);
    samkv_store_collection_stats(list->store, c->name, &stats);
    row->message.documents = stats.names;
    list->pointers[list->count++] = &row->message;
    return true;
}

/* On the heap, NULL without memory. A damaged record ends it early, which verify tells of. */
static struct collection_list *list_collections(struct samkv_store *store, const struct samkv_caller *caller)
{
    struct samkv_snapshot *snapshot;
    struct collection_list *list = calloc(1, sizeof *list);
    if (!list || samkv_snapshot_begin(store, &snapshot, NULL) != SAMKV_OK)
        return list;
    list->store = store;
    list->caller = caller;
    enum samkv_status st = samkv_snapshot_each_collection(snapshot, take_collection, list, NULL);
    (void)st;
    samkv_snapshot_end(snapshot);
    return list;
}

#define GAUGES        12
#define QUALITY       6
#define DEVICE_GAUGES 10
#define HOST_GAUGES   6
#define COUNTERS      (SAMKV_METRIC_COUNT + GAUGES + QUALITY + HOST_GAUGES + DEVICE_GAUGES)

static void put_counter(Samkv__Counter *counters, size_t *n, const char *name, double value)
{
    samkv__counter__init(&counters[*n]);
    counters[*n].name = (char *)name;
    counters[*n].value = value;
    ++*n;
}

/* Only where replies can lie in device memory. */
static void put_leases(struct samkv_leases *leases, Samkv__Counter *counters, size_t *n)
{
    struct samkv_leases_stats stats;
    samkv_leases_stats(leases, &stats);
    put_counter(counters, n, "device_replies_held", (double)stats.held);
    put_counter(counters, n, "device_replies_bytes", (double)stats.held_bytes);
    put_counter(counters, n, "device_replies_kept_bytes", (double)stats.kept_bytes);
    put_counter(counters, n, "device_replies_limit_bytes", (double)stats.limit_bytes);
}

/* What the device keeps of hot documents. */
static void put_device_cache(struct samkv_transfer *transfer, Samkv__Counter *counters, size_t *n)
{
    struct samkv_device_cache_stats stats;
    samkv_device_cache_stats(samkv_transfer_cache(transfer), &stats);
    put_counter(counters, n, "device_cache_records", (double)stats.entries);
    put_counter(counters, n, "device_cache_bytes", (double)stats.bytes);
    put_counter(counters, n, "device_cache_limit_bytes", (double)stats.budget_bytes);
    put_counter(counters, n, "device_cache_hits", (double)stats.hits);
    put_counter(counters, n, "device_cache_misses", (double)stats.misses);
    put_counter(counters, n, "device_cache_evictions", (double)stats.evictions);
}

/* What the quality gates did. */
static void put_quality(struct samkv_gates *gates, Samkv__Counter *counters, size_t *n)
{
    struct samkv_gates_stats stats;
    samkv_gates_stats(gates, &stats);
    put_counter(counters, n, "quality_gates", (double)stats.gates);
    put_counter(counters, n, "quality_measured", (double)stats.measured);
    put_counter(counters, n, "quality_raised", (double)stats.raised);
    put_counter(counters, n, "quality_lowered", (double)stats.lowered);
    put_counter(counters, n, "quality_dropped", (double)stats.dropped);
    put_counter(counters, n, "quality_waiting", (double)stats.waiting);
}

/* What memory keeps of hot documents. */
static void put_host_cache(struct samkv_host_cache *cache, Samkv__Counter *counters, size_t *n)
{
    struct samkv_host_cache_stats stats;
    samkv_host_cache_stats(cache, &stats);
    put_counter(counters, n, "host_cache_records", (double)stats.entries);
    put_counter(counters, n, "host_cache_bytes", (double)stats.bytes);
    put_counter(counters, n, "host_cache_limit_bytes", (double)stats.budget_bytes);
    put_counter(counters, n, "host_cache_hits", (double)stats.hits);
    put_counter(counters, n, "host_cache_misses", (double)stats.misses);
    put_counter(counters, n, "host_cache_evictions", (double)stats.evictions);
}

/* Counters of the table, then what is true just now. */
static size_t fill_counters(const struct samkv_service *service, const struct samkv_store_stats *stats,
                            Samkv__Counter *counters)
{
    size_t n = 0;
    int waiting = 0;
    for (int i = 0; i < SAMKV_METRIC_COUNT; i++)
        put_counter(counters, &n, samkv_metric_name(i), (double)samkv_metrics_get(&service->metrics, i));
    for (size_t i = 0; i < service->models->count; i++)
        waiting += samkv_lane_waiting(service->models->engines[i].lane);
    put_counter(counters, &n, "requests_running", atomic_load(&service->requests));
    put_counter(counters, &n, "lane_waiting", waiting);
    put_counter(counters, &n, "store_readers", (double)stats->readers);
    put_counter(counters, &n, "store_commits", (double)stats->commits);
    put_counter(counters, &n, "store_allocated_bytes", (double)stats->bytes_allocated);
    put_counter(counters, &n, "store_free_bytes", (double)stats->bytes_free);
    put_counter(counters, &n, "store_punched_bytes", (double)stats->bytes_punched);
    put_counter(counters, &n, "store_moved_bytes", (double)stats->bytes_moved);
    put_counter(counters, &n, "store_compactions", (double)stats->compactions);
    if (samkv_store_host_cache(service->store))
        put_host_cache(samkv_store_host_cache(service->store), counters, &n);
    put_counter(counters, &n, "checksum_failures", (double)stats->damaged);
    put_counter(counters, &n, "queue_urgent", samkv_pool_waiting(service->telemetry.pool, SAMKV_URGENT));
    put_counter(counters, &n, "queue_relaxed",
                samkv_pool_waiting(service->telemetry.pool, SAMKV_RELAXED) +
                    samkv_pool_waiting(service->telemetry.pool, SAMKV_DURABLE));
    put_quality(service->gates, counters, &n);
    if (service->models->leases)
        put_leases(service->models->leases, counters, &n);
    if (service->models->transfer)
        put_device_cache(service->models->transfer, counters, &n);
    return n;
}

_Static_assert(COUNTERS <= SAMKV_STATUS_COUNTERS, "more counters than anybody has room for");

size_t samkv_status_counters(const struct samkv_service *service, const struct samkv_store_stats *stats,
                             Samkv__Counter out[SAMKV_STATUS_COUNTERS])
{
    return fill_counters(service, stats, out);
}

/* ------------------------------------------------------------------ histograms */

struct histogram_rows {
    Samkv__Histogram rows[SAMKV_HISTOGRAM_COUNT], *pointers[SAMKV_HISTOGRAM_COUNT];
    struct samkv_histogram_state states[SAMKV_HISTOGRAM_COUNT];
};

static void fill_histograms(const struct samkv_service *service, struct histogram_rows *h)
{
    for (int i = 0; i < SAMKV_HISTOGRAM_COUNT; i++) {
        const struct samkv_histogram_row *row = samkv_metric_histogram(i);
        Samkv__Histogram *m = &h->rows[i];
        samkv_histogram_read(&service->metrics.histograms[i], row->scale, &h->states[i]);
        samkv__histogram__init(m);
        m->name = (char *)row->family;
        m->phase = (char *)(row->phase ? row->phase : "");
        m->bounds = (double *)samkv_scale_bounds(row->scale, &m->n_bounds);
        m->counts = h->states[i].buckets;
        m->n_counts = m->n_bounds + 1;
        m->sum = h->states[i].sum;
        h->pointers[i] = m;
    }
}

/* What a STATUS reply points to while it is packed. */
struct status_rows {
    struct model_row models[SAMKV_MAX_MODELS];
    Samkv__ModelStatus *model_pointers[SAMKV_MAX_MODELS];
    Samkv__Counter counters[COUNTERS], *counter_pointers[COUNTERS];
    struct histogram_rows histograms;
};

static void fill_models(const struct samkv_service *service, struct status_rows *rows, Samkv__StatusReply *m)
{
    for (size_t i = 0; i < service->models->count; i++) {
        fill_model(&service->models->engines[i], &rows->models[i]);
        rows->model_pointers[i] = &rows->models[i].message;
    }
    m->models = rows->model_pointers;
    m->n_models = service->models->count;
    m->version = SAMKV_VERSION;
    m->uptime_s = (uint64_t)((samkv_now_ms() - service->started_ms) / 1e3);
}

/* What others' doing can be seen in. */
static enum samkv_status fill_all(struct samkv_request *r, const Samkv__StatusRequest *asked, struct status_rows *rows,
                                  Samkv__StatusReply *m, struct samkv_error *err)
{
    const struct samkv_service *service = r->service;
    struct samkv_sample sample;
    enum samkv_status st = samkv_telemetry_sample(r->service, asked->max_age_ms, &sample, err);
    if (st != SAMKV_OK)
        return st;
    fill_store(&sample.stats, m);
    m->n_counters = fill_counters(service, &sample.stats, rows->counters);
    for (size_t i = 0; i < m->n_counters; i++)
        rows->counter_pointers[i] = &rows->counters[i];
    m->counters = rows->counter_pointers;
    if (asked->histograms) {
        fill_histograms(service, &rows->histograms);
        m->histograms = rows->histograms.pointers;
        m->n_histograms = SAMKV_HISTOGRAM_COUNT;
    }
    m->store = (char *)service->store_path;
    m->connections = atomic_load(&service->connections);
    m->resident_bytes = samkv_resident_bytes();
    return SAMKV_OK;
}

/* Sums over the caller's own collections and those it may read. */
static void fill_own(const struct collection_list *list, Samkv__StatusReply *m)
{
    m->partial = true;
    for (size_t i = 0; list && i < list->count; i++) {
        m->collections++;
        m->names += list->pointers[i]->documents;
        m->bytes_raw += list->pointers[i]->bytes_raw;
        m->bytes_stored += list->pointers[i]->bytes_stored;
    }
}

enum samkv_status samkv_handle_status(struct samkv_request *r, const ProtobufCMessage *message,
                                      struct samkv_outgoing **reply, struct samkv_error *err)
{
    const struct samkv_service *service = r->service;
    Samkv__StatusReply m = SAMKV__STATUS_REPLY__INIT;
    struct status_rows rows;
    struct samkv_account account;
    enum samkv_status st = SAMKV_OK;
    struct collection_list *list = list_collections(service->store, r->caller);
    if (r->caller->admin)
        st = fill_all(r, (const Samkv__StatusRequest *)message, &rows, &m, err);
    else
        fill_own(list, &m);
    fill_models(service, &rows, &m);
    if (list) {
        m.collection_list = list->pointers;
        m.n_collection_list = list->count;
    }
    struct samkv_quality_list *qualities = samkv_quality_list_new(service, r->caller->admin ? NULL : &m);
    if (qualities) {
        m.qualities = qualities->pointers;
        m.n_qualities = qualities->count;
        m.calibrations = qualities->calibration_pointers;
        m.n_calibrations = qualities->calibration_count;
    }
    samkv_store_account(service->store, r->caller->owner, &account);
    m.user = r->caller->owner;
    m.user_bytes = account.bytes_charged;
    m.user_quota_bytes = account.quota_bytes;
    if (st == SAMKV_OK)
        st = samkv_request_reply(r, &m.base, NULL, reply, err);
    free(list);
    free(qualities);
    return st;
}
