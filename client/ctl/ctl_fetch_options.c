#include "client/ctl/ctl_fetch_options.h"

#include <string.h>

#include "client/ctl/ctl_text.h"

static const char *const selections[] = {"dynamic", "fixed", NULL};
static const char *const neighbours[] = {"none", "left", "both", NULL};
static const char *const scorings[] = {"mean", "tokens", "exact", "last", "attend", NULL};
static const char *const positions[] = {"original", "compact", NULL};

/* The interval is open at 0, which a table's bounds cannot say. */
static enum samkv_status apply_ratio(void *args, const char *value, struct samkv_error *err)
{
    struct ctl_fetch_args *fetch = args;
    enum samkv_status status = ctl_parse_real(value, 0, 1, &fetch->ratio, err);
    if (!status && !(fetch->ratio > 0))
        status = samkv_fail(err, SAMKV_INVALID, "must be above 0 and at most 1");
    return status;
}

static enum samkv_status apply_update(void *args, const char *value, struct samkv_error *err)
{
    struct ctl_fetch_args *fetch = args;
    if (!strcmp(value, "overwrite")) {
        fetch->update = SAMKV_FETCH_OVERWRITE;
    } else if (!strcmp(value, "cosine")) {
        fetch->update = SAMKV_FETCH_COSINE;
    } else if (!strcmp(value, "delta")) {
        fetch->update = SAMKV_FETCH_DELTA;
    } else {
        fetch->update = SAMKV_FETCH_THETA;
        if (ctl_parse_real(value, 0, 1, &fetch->theta, NULL))
            return samkv_fail(err, SAMKV_INVALID, "must be overwrite, cosine, delta, or a number from 0 to 1");
    }
    return SAMKV_OK;
}

const struct ctl_option ctl_fetch_shared_options[] = {
    {"docs", "ID,..", CTL_TEXTS, offsetof(struct ctl_fetch_args, ids), "the documents, in order; may be repeated"},
    {"collection", "NAME", CTL_TEXT, offsetof(struct ctl_fetch_args, collection), "of the documents [default]"},
    {"ratio", "R", CTL_CUSTOM,
     .help = "share of the documents' tokens to keep, above 0, at most 1 [calibrated, else 0.15]",
     .apply = apply_ratio},
    {"selection", "WAY", CTL_CHOICE, offsetof(struct ctl_fetch_args, selection),
     "dynamic (up to the ratio) or fixed (fills it) [dynamic]", .choices = selections},
    {"stable-layers", "L,..", CTL_NUMBERS, offsetof(struct ctl_fetch_args, stable_layers),
     "layers whose ranking counts [calibrated, else the last eighth]"},
    {"init-tokens", "N", CTL_INTEGER, offsetof(struct ctl_fetch_args, init_tokens),
     "anchors at the documents' starts [the collection's]", .min = 0, .max = UINT32_MAX},
    {"local-tokens", "N", CTL_INTEGER, offsetof(struct ctl_fetch_args, local_tokens),
     "anchors at the documents' ends [the collection's]", .min = 0, .max = UINT32_MAX},
    {"score", "WAY", CTL_CHOICE, offsetof(struct ctl_fetch_args, scoring),
     "of blocks: mean, tokens; exact, last, attend read all keys [mean]", .choices = scorings},
    {"neighbours", "SIDES", CTL_CHOICE, offsetof(struct ctl_fetch_args, neighbours),
     "of a chosen block that come along: none, left or both [none]", .choices = neighbours},
    {"update", "HOW", CTL_CUSTOM,
     .help = "recomputed values: overwrite, cosine, delta, or a share from 0 to 1 [overwrite]", .apply = apply_update},
    {"no-recompute", NULL, CTL_FLAG, offsetof(struct ctl_fetch_args, no_recompute), "reuse what is stored as it is"},
    {"positions", "WAY", CTL_CHOICE, offsetof(struct ctl_fetch_args, positions),
     "original (with gaps) or compact (0, 1, 2, ..) [original]", .choices = positions},
    {"deadline", "MS", CTL_INTEGER, offsetof(struct ctl_fetch_args, deadline_ms),
     "recompute everything where that is sooner; give up what takes longer [what the daemon allows]", .min = 1,
     .max = UINT32_MAX},
    {0},
};

void ctl_fetch_defaults(void *args)
{
    struct ctl_fetch_args *fetch = args;
    fetch->ratio = -1;
    fetch->init_tokens = fetch->local_tokens = -1;
}

enum samkv_status ctl_fetch_fill(const struct ctl_fetch_args *args, struct samkv_fetch_options *out,
                                 struct samkv_error *err)
{
    samkv_fetch_options_init(out);
    out->collection = args->collection;
    out->ids = (const char *const *)args->ids.items;
    out->id_count = args->ids.count;
    out->ratio = args->ratio;
    out->selection = (enum samkv_fetch_selection)args->selection;
    out->stable_layers = args->stable_layers.items;
    out->stable_layer_count = args->stable_layers.count;
    out->init_tokens = args->init_tokens;
    out->local_tokens = args->local_tokens;
    out->update = (enum samkv_fetch_update)args->update;
    out->theta = args->theta;
    out->no_recompute = args->no_recompute;
    out->scoring = (enum samkv_fetch_scoring)args->scoring;
    out->neighbours = (enum samkv_fetch_neighbours)args->neighbours;
    out->positions = (enum samkv_fetch_positions)args->positions;
    out->deadline_ms = (uint32_t)args->deadline_ms;
    if (!args->ids.count)
        return samkv_fail(err, SAMKV_INVALID, "name the documents: --docs ID,.. (samkvctl ls lists them)");
    return SAMKV_OK;
}

void ctl_print_ratios(const struct samkv_figures *f, FILE *out)
{
    struct ctl_buffer kept, total, share, again, read, stored, part;
    fprintf(out, "kept %s of %s tokens (%s), recomputed %s; read %s of %s (%s)", ctl_count(&kept, f->kept_tokens),
            ctl_count(&total, f->total_tokens), ctl_percent(&share, f->sequence_ratio, 1),
            ctl_percent(&again, f->recompute_ratio, 1), ctl_bytes(&read, f->bytes_read),
            ctl_bytes(&stored, f->bytes_stored), ctl_percent(&part, (double)f->bytes_read, (double)f->bytes_stored));
    if (f->anchors_exceed_budget)
        fputs("; the anchors alone exceed the ratio", out);
    if (f->decision == SAMKV_FETCH_RAISED)
        fprintf(out, "; the collection's quality needs a ratio of %g", f->ratio);
    else if (f->decision != SAMKV_FETCH_SPARSE)
        fprintf(out, "; everything was recomputed: %s",
                f->decision == SAMKV_FETCH_FULL_QUALITY ? "the collection's quality needs it" : "it is done sooner");
}
