#include "daemon/net/quality.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/net/handlers.h"

static void fill_quality(struct samkv_quality_row *row)
{
    const struct samkv_gate_info *info = &row->info;
    Samkv__Quality *m = &row->message;
    samkv__quality__init(m);
    samkv_quality_format(&info->target, row->target, sizeof row->target);
    m->collection = row->info.collection;
    m->target = row->target;
    m->share = info->share;
    m->level = info->level;
    m->ratio = info->ratio;
    m->full = info->full;
    m->estimate = info->estimate.mean;
    m->bound = info->estimate.bound;
    m->measurements = info->estimate.count;
    m->met = info->estimate.met;
    m->measured = info->measured;
    m->raised = info->raised;
    m->lowered = info->lowered;
}

bool samkv_quality_row_fill(const struct samkv_service *service, const char *collection, struct samkv_quality_row *row)
{
    if (!samkv_gates_get(service->gates, collection, &row->info))
        return false;
    fill_quality(row);
    return true;
}

void samkv_calibration_row_make(const struct samkv_calibration *c, const char *model, struct samkv_calibration_row *row)
{
    Samkv__Calibration *m = &row->message;
    samkv__calibration__init(m);
    row->calibration = *c;
    snprintf(row->model, sizeof row->model, "%s", model);
    samkv_hex(c->fingerprint, row->fingerprint);
    m->model = row->model;
    m->fingerprint = row->fingerprint;
    m->stable_layers = row->calibration.layers;
    m->n_stable_layers = c->layer_count;
    m->ratio = c->ratio;
    m->block_size = c->block_tokens;
    if (c->init_tokens >= 0) {
        m->init_tokens_given_case = SAMKV__CALIBRATION__INIT_TOKENS_GIVEN_INIT_TOKENS;
        m->init_tokens = (uint32_t)c->init_tokens;
    }
    if (c->local_tokens >= 0) {
        m->local_tokens_given_case = SAMKV__CALIBRATION__LOCAL_TOKENS_GIVEN_LOCAL_TOKENS;
        m->local_tokens = (uint32_t)c->local_tokens;
    }
    m->samples = c->samples;
    m->recall = c->recall;
    m->agreement = c->agreement;
    m->kl = c->kl;
    m->unix_s = c->unix_s;
}

bool samkv_calibration_row_fill(const struct samkv_service *service, const struct samkv_engine *engine,
                                struct samkv_calibration_row *row)
{
    struct samkv_snapshot *snapshot;
    struct samkv_calibration c;
    const struct samkv_model *model = engine->model;
    if (samkv_snapshot_begin(service->store, &snapshot, NULL) != SAMKV_OK)
        return false;
    enum samkv_status st = samkv_calibration_load(snapshot, model->fingerprint, model->config.layers, &c, NULL);
    samkv_snapshot_end(snapshot);
    if (st == SAMKV_OK)
        samkv_calibration_row_make(&c, model->name, row);
    return st == SAMKV_OK;
}

static bool lists(const Samkv__StatusReply *readable, const char *collection)
{
    for (size_t i = 0; readable && i < readable->n_collection_list; i++)
        if (!strcmp(readable->collection_list[i]->name, collection))
            return true;
    return !readable;
}

struct samkv_quality_list *samkv_quality_list_new(const struct samkv_service *service,
                                                  const Samkv__StatusReply *readable)
{
    struct samkv_quality_list *list = calloc(1, sizeof *list);
    struct samkv_gate_info *infos = calloc(SAMKV_QUALITY_ROWS, sizeof *infos);
    size_t all = 0;
    if (list && infos)
        all = samkv_gates_list(service->gates, infos, SAMKV_QUALITY_ROWS);
    for (size_t i = 0; i < all; i++) {
        if (!lists(readable, infos[i].collection))
            continue;
        struct samkv_quality_row *row = &list->rows[list->count];
        row->info = infos[i];
        fill_quality(row);
        list->pointers[list->count++] = &row->message;
    }
    free(infos);
    for (size_t i = 0; list && i < service->models->count; i++) {
        struct samkv_calibration_row *row = &list->calibrations[list->calibration_count];
        if (samkv_calibration_row_fill(service, &service->models->engines[i], row))
            list->calibration_pointers[list->calibration_count++] = &row->message;
    }
    return list;
}

/* ------------------------------------------------------------------ metrics */

/* A label's value: backslash, quote and newline are escaped, as the format wants it. */
static void write_label(FILE *out, const char *value)
{
    for (; *value; value++) {
        if (*value == '\\' || *value == '"')
            fputc('\\', out);
        if (*value == '\n')
            fputs("\\n", out);
        else
            fputc(*value, out);
    }
}

static double target_of(const struct samkv_gate_info *i)
{
    return i->target.value;
}

static double estimate_of(const struct samkv_gate_info *i)
{
    return i->estimate.mean;
}

static double bound_of(const struct samkv_gate_info *i)
{
    return i->estimate.bound;
}

static double met_of(const struct samkv_gate_info *i)
{
    return i->estimate.met;
}

static double ratio_of(const struct samkv_gate_info *i)
{
    return i->ratio;
}

static double full_of(const struct samkv_gate_info *i)
{
    return i->full;
}

void samkv_quality_write_metrics(const struct samkv_service *service, FILE *out)
{
    static const struct {
        const char *family, *help;
        double (*value)(const struct samkv_gate_info *);
    } gauges[] = {
        {"samkv_quality_target", "What a collection needs: agreement at least, or KL in nats at most.", target_of},
        {"samkv_quality_estimate", "What its fetches are measured to have, by that metric.", estimate_of},
        {"samkv_quality_bound", "What they are surely not worse than (95 %).", bound_of},
        {"samkv_quality_met", "1 when the estimate meets the target.", met_of},
        {"samkv_quality_ratio", "What the gate has fetches keep at least; 0: as they ask.", ratio_of},
        {"samkv_quality_full", "1 when the gate has everything recomputed.", full_of},
    };
    struct samkv_gate_info *infos = calloc(SAMKV_QUALITY_ROWS, sizeof *infos);
    size_t count = infos ? samkv_gates_list(service->gates, infos, SAMKV_QUALITY_ROWS) : 0;
    for (size_t g = 0; count && g < sizeof gauges / sizeof *gauges; g++) {
        fprintf(out, "# HELP %s %s\n# TYPE %s gauge\n", gauges[g].family, gauges[g].help, gauges[g].family);
        for (size_t i = 0; i < count; i++) {
            bool is_kl = infos[i].target.metric == SAMKV_QUALITY_KL;
            fprintf(out, "%s{collection=\"", gauges[g].family);
            write_label(out, infos[i].collection);
            fprintf(out, "\",metric=\"%s\"} %.9g\n", is_kl ? "kl" : "agreement", gauges[g].value(&infos[i]));
        }
    }
    free(infos);
}
