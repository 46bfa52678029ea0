#include "daemon/net/exposition.h"

#include <dirent.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "daemon/net/handlers.h"
#include "daemon/net/quality.h"

/* ------------------------------------------------------------------ the table */

/* A counter of STATUS → a sample. Rows of a family stand together; the first one has its type and help. */
struct row {
    const char *counter, *family, *labels; /* labels NULL: none */
    const char *type, *help;
};

#define COUNTER "counter"
#define GAUGE   "gauge"
#define REQUEST "samkv_requests_total"
#define TIER(x) "tier=\"" x "\""
#define KIND(x) "type=\"" x "\""

/* clang-format off */
static const struct row table[] = {
    {"requests_ping", REQUEST, KIND("ping"), COUNTER, "Requests that were begun, by type."},
    {"requests_ingest", REQUEST, KIND("ingest")},
    {"requests_fetch", REQUEST, KIND("fetch")},
    {"requests_ask", REQUEST, KIND("ask")},
    {"requests_list", REQUEST, KIND("list")},
    {"requests_show", REQUEST, KIND("show")},
    {"requests_remove", REQUEST, KIND("remove")},
    {"requests_status", REQUEST, KIND("status")},
    {"requests_verify", REQUEST, KIND("verify")},
    {"requests_export", REQUEST, KIND("export")},
    {"requests_import", REQUEST, KIND("import")},
    {"requests_configure", REQUEST, KIND("configure")},
    {"requests_pin", REQUEST, KIND("pin")},
    {"requests_gc", REQUEST, KIND("gc")},
    {"requests_compact", REQUEST, KIND("compact")},
    {"requests_trace", REQUEST, KIND("trace")},
    {"requests_calibrate", REQUEST, KIND("calibrate")},
    {"requests_failed", "samkv_requests_failed_total", NULL, COUNTER, "Requests that were answered with an error."},
    {"requests_busy", "samkv_requests_busy_total", NULL, COUNTER, "Failed requests whose error was BUSY."},
    {"requests_running", "samkv_requests_in_flight", NULL, GAUGE, "Requests that a worker has or that wait for one."},
    {"queue_urgent", "samkv_queue_requests", "class=\"urgent\"", GAUGE, "Requests that wait for a worker: urgent before relaxed (ingest, verify)."},
    {"queue_relaxed", "samkv_queue_requests", "class=\"relaxed\""},
    {"lane_waiting", "samkv_lane_jobs_waiting", NULL, GAUGE, "Jobs that wait for a device."},
    {"connections_total", "samkv_connections_accepted_total", NULL, COUNTER, "Connections that were accepted."},
    {"connections_refused", "samkv_connections_refused_total", NULL, COUNTER, "Connections beyond the limit."},
    {"connections_now", "samkv_connections", NULL, GAUGE, "Connections that are open."},
    {"protocol_errors", "samkv_protocol_errors_total", NULL, COUNTER, "Connections that were closed for breaking the protocol."},
    {"bytes_received", "samkv_socket_received_bytes_total", NULL, COUNTER, "Bytes that clients sent."},
    {"bytes_sent", "samkv_socket_sent_bytes_total", NULL, COUNTER, "Bytes that clients were sent; memory that is passed does not count."},
    {"ingest_documents", "samkv_ingest_documents_total", "result=\"stored\"", COUNTER, "Documents (or pieces of them) that were ingested."},
    {"ingest_skipped", "samkv_ingest_documents_total", "result=\"skipped\""},
    {"ingest_tokens", "samkv_ingest_tokens_total", NULL, COUNTER, "Tokens of documents that were newly stored."},
    {"ingest_bytes_raw", "samkv_ingest_raw_bytes_total", NULL, COUNTER, "Their KV caches before compression."},
    {"ingest_bytes_stored", "samkv_store_written_bytes_total", NULL, COUNTER, "Records of new documents that were written."},
    {"fetch_bytes_read", "samkv_store_read_bytes_total", NULL, COUNTER, "Index and block records that fetches read."},
    {"fetch_bytes_stored", "samkv_fetch_stored_bytes_total", NULL, COUNTER, "What reading the fetched documents whole would have been."},
    {"fetch_tokens_kept", "samkv_fetch_tokens_total", "kind=\"kept\"", COUNTER, "Document tokens of fetches: all of them, and of those, kept."},
    {"fetch_tokens_total", "samkv_fetch_tokens_total", "kind=\"all\""},
    {"fetch_raised", "samkv_fetch_decisions_total", "decision=\"raised\"", COUNTER, "Fetches that kept more than they asked for, or recomputed everything, and why."},
    {"fetch_full_quality", "samkv_fetch_decisions_total", "decision=\"full_quality\""},
    {"fetch_full_cheaper", "samkv_fetch_decisions_total", "decision=\"full_cheaper\""},
    {"fetch_deadline_missed", "samkv_fetch_deadlines_missed_total", NULL, COUNTER, "Fetches that failed for their deadline."},
    {"quality_gates", "samkv_quality_gates", NULL, GAUGE, "Collections that need a quality."},
    {"quality_measured", "samkv_quality_measurements_total", NULL, COUNTER, "Comparisons with full recomputation."},
    {"quality_raised", "samkv_quality_moves_total", "direction=\"up\"", COUNTER, "Moves of quality gates."},
    {"quality_lowered", "samkv_quality_moves_total", "direction=\"down\""},
    {"quality_dropped", "samkv_quality_dropped_total", NULL, COUNTER, "Measurements that found no room or no idle moment, or failed."},
    {"quality_waiting", "samkv_quality_waiting", NULL, GAUGE, "Fetches that wait to be measured."},
    {"ask_tokens", "samkv_ask_tokens_total", NULL, COUNTER, "Tokens of answers."},
    {"repaired_records", "samkv_repaired_records_total", NULL, COUNTER, "Damaged records that were computed again."},
    {"checksum_failures", "samkv_damaged_records_total", NULL, COUNTER, "Times that reading met a damaged record."},
    {"store_commits", "samkv_store_commits_total", NULL, COUNTER, "Transactions that were brought to disk."},
    {"store_readers", "samkv_store_readers", NULL, GAUGE, "Snapshots that are being read."},
    {"store_collections", "samkv_store_collections", NULL, GAUGE, "Collections."},
    {"store_documents", "samkv_store_documents", NULL, GAUGE, "Documents; those with the same content are one."},
    {"store_names", "samkv_store_names", NULL, GAUGE, "Names of documents."},
    {"store_file_bytes", "samkv_store_file_bytes", NULL, GAUGE, "Size of the data file."},
    {"store_limit_bytes", "samkv_store_limit_bytes", NULL, GAUGE, "Its limit."},
    {"store_raw_bytes", "samkv_store_documents_bytes", "form=\"raw\"", GAUGE, "KV caches of all documents, raw and as stored."},
    {"store_stored_bytes", "samkv_store_documents_bytes", "form=\"stored\""},
    {"store_disk_free_bytes", "samkv_store_disk_free_bytes", NULL, GAUGE, "Free space where the store is."},
    {"store_reclaimable_bytes", "samkv_store_reclaimable_bytes", NULL, GAUGE, "Pages of the data file that hold nothing."},
    {"store_allocated_bytes", "samkv_store_allocated_bytes", NULL, GAUGE, "What the data file takes of the disk."},
    {"store_free_bytes", "samkv_store_free_bytes", NULL, GAUGE, "Free space within the data file."},
    {"store_punched_bytes", "samkv_store_punched_bytes_total", NULL, COUNTER, "Bytes of free pages that were given back to the disk."},
    {"store_moved_bytes", "samkv_store_moved_bytes_total", NULL, COUNTER, "Bytes that compactions copied."},
    {"store_compactions", "samkv_store_compactions_total", NULL, COUNTER, "Compactions of the data file."},
    {"store_oldest_reader", "samkv_store_oldest_reader_seconds", NULL, GAUGE, "For how long the oldest snapshot has been read."},
    {"store_evicted_bytes", "samkv_store_evicted_bytes_total", NULL, COUNTER, "Stored bytes of documents that made room for others."},
    {"store_expirations", "samkv_store_expirations_total", NULL, COUNTER, "Names whose time to live was over."},
    {"store_sample_age_seconds", "samkv_store_sample_age_seconds", NULL, GAUGE, "Age of the numbers about what is stored."},
    {"store_used_bytes", "samkv_tier_bytes", TIER("disk"), GAUGE, "What is kept in a tier."},
    {"host_cache_bytes", "samkv_tier_bytes", TIER("host")},
    {"device_cache_bytes", "samkv_tier_bytes", TIER("device")},
    {"tier_limit_disk", "samkv_tier_limit_bytes", TIER("disk"), GAUGE, "What may be kept in a tier."},
    {"host_cache_limit_bytes", "samkv_tier_limit_bytes", TIER("host")},
    {"device_cache_limit_bytes", "samkv_tier_limit_bytes", TIER("device")},
    {"host_cache_records", "samkv_tier_records", TIER("host"), GAUGE, "Records that are kept in a tier."},
    {"device_cache_records", "samkv_tier_records", TIER("device")},
    {"host_cache_hits", "samkv_tier_hits_total", TIER("host"), COUNTER, "Records that were found in a tier."},
    {"device_cache_hits", "samkv_tier_hits_total", TIER("device")},
    {"host_cache_misses", "samkv_tier_misses_total", TIER("host"), COUNTER, "Records that were not."},
    {"device_cache_misses", "samkv_tier_misses_total", TIER("device")},
    {"store_evictions", "samkv_tier_evictions_total", TIER("disk"), COUNTER, "What made room for other things: documents on the disk, records elsewhere."},
    {"host_cache_evictions", "samkv_tier_evictions_total", TIER("host")},
    {"device_cache_evictions", "samkv_tier_evictions_total", TIER("device")},
    {"device_replies_held", "samkv_device_replies", NULL, GAUGE, "Caches in device memory that clients hold."},
    {"device_replies_bytes", "samkv_device_replies_bytes", "state=\"held\"", GAUGE, "Device memory of such caches: held, and kept for the next ones."},
    {"device_replies_kept_bytes", "samkv_device_replies_bytes", "state=\"kept\""},
    {"device_replies_limit_bytes", "samkv_device_replies_limit_bytes", NULL, GAUGE, "Its limit."},
    {"process_resident", "process_resident_memory_bytes", NULL, GAUGE, "Resident memory size in bytes."},
    {"process_cpu", "process_cpu_seconds_total", NULL, COUNTER, "Total user and system CPU time spent in seconds."},
    {"process_fds", "process_open_fds", NULL, GAUGE, "Number of open file descriptors."},
    {"process_start", "process_start_time_seconds", NULL, GAUGE, "Start time of the process since unix epoch in seconds."},
};
/* clang-format on */
#define ROWS (sizeof table / sizeof *table)
#define MORE 24 /* counters that STATUS has in other fields */

/* ------------------------------------------------------------------ what there is to tell */

struct counters {
    Samkv__Counter all[SAMKV_STATUS_COUNTERS + MORE];
    bool told[SAMKV_STATUS_COUNTERS + MORE];
    size_t count;
};

static void put(struct counters *c, const char *name, double value)
{
    if (c->count == sizeof c->all / sizeof *c->all)
        return;
    samkv__counter__init(&c->all[c->count]);
    c->all[c->count].name = (char *)name;
    c->all[c->count++].value = value;
}

static void put_store(struct counters *c, const struct samkv_sample *sample)
{
    const struct samkv_store_stats *s = &sample->stats;
    if (sample->taken_ms <= 0)
        return;
    put(c, "store_collections", (double)s->collections);
    put(c, "store_documents", (double)s->documents);
    put(c, "store_names", (double)s->names);
    put(c, "store_file_bytes", (double)s->bytes_file);
    put(c, "store_used_bytes", (double)s->bytes_used);
    put(c, "store_limit_bytes", (double)s->bytes_limit);
    put(c, "tier_limit_disk", (double)s->bytes_limit);
    put(c, "store_raw_bytes", (double)s->bytes_raw);
    put(c, "store_stored_bytes", (double)s->bytes_stored);
    put(c, "store_disk_free_bytes", (double)s->bytes_disk_free);
    put(c, "store_reclaimable_bytes", (double)s->bytes_reclaimable);
    put(c, "store_oldest_reader", (double)s->oldest_reader_s);
    put(c, "store_evictions", (double)s->evictions);
    put(c, "store_evicted_bytes", (double)s->evicted_bytes);
    put(c, "store_expirations", (double)s->expirations);
    put(c, "store_sample_age_seconds", (samkv_now_ms() - sample->taken_ms) / 1e3);
}

static double open_descriptors(void)
{
    DIR *folder = opendir("/proc/self/fd");
    double count = -3; /* ".", ".." and this one */
    if (!folder)
        return 0;
    while (readdir(folder))
        count++;
    closedir(folder);
    return count;
}

static void put_process(struct counters *c, const struct samkv_service *service)
{
    struct rusage used;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    getrusage(RUSAGE_SELF, &used);
    put(c, "connections_now", atomic_load(&service->connections));
    put(c, "process_resident", (double)samkv_resident_bytes());
    put(c, "process_fds", open_descriptors());
    put(c, "process_cpu",
        (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
            (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
    /* Rounded, so that it is the same at each scrape. */
    put(c, "process_start", (double)(now.tv_sec - (time_t)((samkv_now_ms() - service->started_ms) / 1e3 + 0.5)));
}

/* ------------------------------------------------------------------ writing */

/* Whole numbers stay whole; all digits that a double has. */
static void write_value(FILE *out, double value)
{
    if (value == (double)(int64_t)value)
        fprintf(out, " %lld\n", (long long)value);
    else
        fprintf(out, " %.15g\n", value);
}

static void write_head(FILE *out, const char *family, const char *type, const char *help)
{
    fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", family, help, family, type);
}

static const Samkv__Counter *take(struct counters *c, const char *name)
{
    for (size_t i = 0; i < c->count; i++)
        if (!c->told[i] && strcmp(c->all[i].name, name) == 0) {
            c->told[i] = true;
            return &c->all[i];
        }
    return NULL;
}

static void write_rows(FILE *out, struct counters *c)
{
    const struct row *head = NULL;
    bool begun = false;
    for (size_t i = 0; i < ROWS; i++) {
        const struct row *row = &table[i];
        if (row->help) {
            head = row;
            begun = false;
        }
        const Samkv__Counter *counter = take(c, row->counter);
        if (!counter)
            continue;
        if (!begun)
            write_head(out, row->family, head->type, head->help);
        begun = true;
        fprintf(out, row->labels ? "%s{%s}" : "%s", row->family, row->labels);
        write_value(out, counter->value);
    }
}

/* What has no row yet: a counter when it is one of the table of metrics, else something that is true just now. */
static void write_others(FILE *out, const struct counters *c)
{
    for (size_t i = 0; i < c->count; i++) {
        if (c->told[i])
            continue;
        bool grows = false;
        for (int k = 0; k < SAMKV_METRIC_COUNT && !grows; k++)
            grows = strcmp(samkv_metric_name(k), c->all[i].name) == 0;
        char name[100];
        size_t length = strlen(c->all[i].name);
        bool ends = length > 6 && strcmp(c->all[i].name + length - 6, "_total") == 0;
        snprintf(name, sizeof name, "samkv_%s%s", c->all[i].name, grows && !ends ? "_total" : "");
        write_head(out, name, grows ? COUNTER : GAUGE, "As in samkvctl status.");
        fputs(name, out);
        write_value(out, c->all[i].value);
    }
}

static void write_histogram(FILE *out, const struct samkv_metrics *metrics, enum samkv_histogram_id which)
{
    const struct samkv_histogram_row *row = samkv_metric_histogram(which);
    struct samkv_histogram_state state;
    size_t bounds;
    const double *bound = samkv_scale_bounds(row->scale, &bounds);
    uint64_t sum = 0;
    char label[64] = "", lone[80] = "";
    samkv_histogram_read(&metrics->histograms[which], row->scale, &state);
    if (row->phase) {
        snprintf(label, sizeof label, "phase=\"%s\",", row->phase);
        snprintf(lone, sizeof lone, "{phase=\"%s\"}", row->phase);
    }
    for (size_t i = 0; i < bounds; i++) {
        sum += state.buckets[i];
        fprintf(out, "samkv_%s_bucket{%sle=\"%.9g\"} %llu\n", row->family, label, bound[i], (unsigned long long)sum);
    }
    fprintf(out, "samkv_%s_bucket{%sle=\"+Inf\"} %llu\n", row->family, label, (unsigned long long)state.count);
    fprintf(out, "samkv_%s_sum%s", row->family, lone);
    write_value(out, state.sum);
    fprintf(out, "samkv_%s_count%s %llu\n", row->family, lone, (unsigned long long)state.count);
}

void samkv_exposition_write(const struct samkv_service *service, const struct samkv_sample *sample, FILE *out)
{
    struct counters c = {.count = 0};
    c.count = samkv_status_counters(service, &sample->stats, c.all);
    put_store(&c, sample);
    put_process(&c, service);
    write_head(out, "samkv_build_info", GAUGE, "Always 1; the version is in the label.");
    fputs("samkv_build_info{version=\"" SAMKV_VERSION "\"} 1\n", out);
    write_rows(out, &c);
    write_others(out, &c);
    samkv_quality_write_metrics(service, out);
    for (int i = 0; i < SAMKV_HISTOGRAM_COUNT; i++) {
        const struct samkv_histogram_row *row = samkv_metric_histogram(i);
        char family[80];
        snprintf(family, sizeof family, "samkv_%s", row->family);
        if (row->help)
            write_head(out, family, "histogram", row->help);
        write_histogram(out, &service->metrics, i);
    }
}
