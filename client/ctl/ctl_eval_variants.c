/* Methods as the command line names them: a base and, behind '+', what is different. */
#include <stdlib.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "client/ctl/ctl_eval.h"

static const struct {
    const char *name;
    enum samkv_evaluated_method method;
} bases[] = {
    {"full", SAMKV_EVALUATED_FULL}, {"reuse", SAMKV_EVALUATED_REUSE}, {"cacheblend", SAMKV_EVALUATED_CACHEBLEND},
    {"epic", SAMKV_EVALUATED_EPIC}, {"samkv", SAMKV_EVALUATED_SAMKV},
};

/* Words without a value. */
static bool apply_word(struct samkv_evaluated_variant *v, const char *word)
{
    static const struct {
        const char *name;
        int selection, scoring, update, cut, positions; /* -1: not this one */
        int neighbours;
        bool no_recompute;
    } words[] = {
        {"dynamic", SAMKV_FETCH_DYNAMIC, -1, -1, -1, -1, 0, false},
        {"fixed", SAMKV_FETCH_FIXED, -1, -1, -1, -1, 0, false},
        {"mean", -1, SAMKV_FETCH_MEAN, -1, -1, -1, 0, false},
        {"tokens", -1, SAMKV_FETCH_TOKENS, -1, -1, -1, 0, false},
        {"exact", -1, SAMKV_FETCH_EXACT, -1, -1, -1, 0, false},
        {"last", -1, SAMKV_FETCH_LAST, -1, -1, -1, 0, false},
        {"attend", -1, SAMKV_FETCH_ATTEND, -1, -1, -1, 0, false},
        {"overwrite", -1, -1, SAMKV_FETCH_OVERWRITE, -1, -1, 0, false},
        {"cosine", -1, -1, SAMKV_FETCH_COSINE, -1, -1, 0, false},
        {"delta", -1, -1, SAMKV_FETCH_DELTA, -1, -1, 0, false},
        {"first", -1, -1, -1, SAMKV_CUT_FIRST, -1, 0, false},
        {"random", -1, -1, -1, SAMKV_CUT_RANDOM, -1, 0, false},
        {"compact", -1, -1, -1, -1, SAMKV_FETCH_COMPACT, false, false},
        {"left", -1, -1, -1, -1, -1, SAMKV_FETCH_LEFT, false},
        {"both", -1, -1, -1, -1, -1, SAMKV_FETCH_BOTH, false},
        {"no-recompute", -1, -1, -1, -1, -1, 0, true},
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strcmp(words[i].name, word))
            continue;
        if (words[i].selection >= 0)
            v->fetch.selection = (enum samkv_fetch_selection)words[i].selection;
        if (words[i].scoring >= 0)
            v->fetch.scoring = (enum samkv_fetch_scoring)words[i].scoring;
        if (words[i].update >= 0)
            v->fetch.update = (enum samkv_fetch_update)words[i].update;
        if (words[i].cut >= 0)
            v->cut = (enum samkv_evaluated_cut)words[i].cut;
        if (words[i].positions >= 0)
            v->fetch.positions = (enum samkv_fetch_positions)words[i].positions;
        if (words[i].neighbours)
            v->fetch.neighbours = (enum samkv_fetch_neighbours)words[i].neighbours;
        v->fetch.no_recompute |= words[i].no_recompute;
        return true;
    }
    return false;
}

/* "6/7" or "23-29" */
static enum samkv_status apply_layers(struct samkv_evaluated_variant *v, const char *list, struct samkv_error *err)
{
    uint32_t *layers = calloc(1024, sizeof *layers);
    size_t count = 0;
    if (!layers)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory");
    v->fetch.stable_layers = layers;
    for (const char *at = list; *at;) {
        char *end;
        unsigned long first = strtoul(at, &end, 10), last = first;
        if (end == at || (*end && *end != '-' && *end != '/'))
            return samkv_fail(err, SAMKV_INVALID, "layers are numbers with / between them, or a range like 4-7");
        if (*end == '-') {
            at = end + 1;
            last = strtoul(at, &end, 10);
        }
        if (end == at)
            return samkv_fail(err, SAMKV_INVALID, "layers are numbers with / between them, or a range like 4-7");
        for (unsigned long l = first; l <= last && count < 1024; l++)
            layers[count++] = (uint32_t)l;
        at = *end == '/' ? end + 1 : end;
        if (*end && *end != '/')
            return samkv_fail(err, SAMKV_INVALID, "layers are numbers with / between them, or a range like 4-7");
    }
    if (!count || count == 1024)
        return samkv_fail(err, SAMKV_INVALID, "name 1 to 1023 layers");
    v->fetch.stable_layer_count = count;
    return SAMKV_OK;
}

static enum samkv_status apply_value(struct samkv_evaluated_variant *v, const char *name, const char *value,
                                     struct samkv_error *err)
{
    int64_t number;
    enum samkv_status status;
    if (!strcmp(name, "layers"))
        return apply_layers(v, value, err);
    if (!strcmp(name, "share")) {
        status = ctl_parse_real(value, 0, 1, &v->share, err);
        return !status && !(v->share > 0) ? samkv_fail(err, SAMKV_INVALID, "share must be above 0") : status;
    }
    if (!strcmp(name, "theta")) {
        v->fetch.update = SAMKV_FETCH_THETA;
        return ctl_parse_real(value, 0, 1, &v->fetch.theta, err);
    }
    status = ctl_parse_integer(value, 0, 65536, &number, err);
    if (status)
        return status;
    if (!strcmp(name, "init"))
        v->fetch.init_tokens = number;
    else if (!strcmp(name, "local"))
        v->fetch.local_tokens = number;
    else if (!strcmp(name, "tokens") && number > 0)
        v->first_tokens = (uint32_t)number;
    else
        return samkv_fail(err, SAMKV_INVALID, "'%.30s=' is not known: layers, init, local, theta, share, tokens", name);
    return SAMKV_OK;
}

static enum samkv_status apply_part(struct samkv_evaluated_variant *v, char *part, struct samkv_error *err)
{
    char *value = strchr(part, '=');
    if (value) {
        *value = 0;
        return apply_value(v, part, value + 1, err);
    }
    if (apply_word(v, part))
        return SAMKV_OK;
    return samkv_fail(
        err, SAMKV_INVALID,
        "'%.40s' is not known: dynamic, fixed, mean, tokens, exact, last, attend, left, both, overwrite, cosine, "
        "delta, theta=, layers=, init=, local=, compact, no-recompute; for others first, random, share=, "
        "tokens=",
        part);
}

static enum samkv_status parse_parts(char *text, struct samkv_evaluated_variant *v, struct samkv_error *err)
{
    char *rest, *part = strtok_r(text, "+", &rest);
    const char *base = part ? part : "";
    samkv_evaluated_variant_init(v);
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
        if (strcmp(bases[i].name, base))
            continue;
        v->method = bases[i].method;
        enum samkv_status status = SAMKV_OK;
        while (!status && (part = strtok_r(NULL, "+", &rest)))
            status = apply_part(v, part, err);
        return status;
    }
    return samkv_fail(err, SAMKV_INVALID, "'%.40s' is not known: full, reuse, cacheblend, epic, samkv", base);
}

static enum samkv_status parse_method(const char *method, struct samkv_evaluated_variant *v, struct samkv_error *err)
{
    struct samkv_error why;
    char *copy = strdup(method);
    if (!copy)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory");
    enum samkv_status status = parse_parts(copy, v, &why);
    if (!status && v->method == SAMKV_EVALUATED_SAMKV && v->cut)
        status = samkv_fail(&why, SAMKV_INVALID, "samkv chooses its blocks itself: leave first and random out");
    if (!status && v->method == SAMKV_EVALUATED_FULL && v->cut)
        status = samkv_fail(&why, SAMKV_INVALID, "the full cache keeps everything: leave first and random out");
    free(copy);
    return status ? samkv_fail(err, status, "method %.80s: %s", method, why.text) : SAMKV_OK;
}

enum samkv_status eval_variants_make(struct eval_variants *out, char *const *methods, size_t method_count,
                                     const double *ratios, size_t ratio_count, struct samkv_error *err)
{
    *out = (struct eval_variants){.list = calloc(method_count * ratio_count + 1, sizeof *out->list)};
    if (!out->list)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory");
    for (size_t m = 0; m < method_count; m++) {
        for (size_t r = 0; r < ratio_count; r++) {
            struct eval_variant *v = &out->list[out->count++];
            enum samkv_status status = parse_method(methods[m], &v->options, err);
            v->method = strdup(methods[m]);
            if (status)
                return status;
            if (!v->method)
                return samkv_fail(err, SAMKV_NO_MEMORY, "no memory");
            v->has_ratio = v->options.method == SAMKV_EVALUATED_SAMKV || v->options.cut;
            v->ratio = v->options.fetch.ratio = v->has_ratio ? ratios[r] : 1;
            if (!v->has_ratio)
                break;
        }
    }
    if (out->count > 256)
        return samkv_fail(err, SAMKV_INVALID, "%zu variants are more than 256: fewer methods or ratios", out->count);
    return SAMKV_OK;
}

void eval_variants_deinit(struct eval_variants *variants)
{
    for (size_t i = 0; i < variants->count; i++) {
        free(variants->list[i].method);
        free((void *)variants->list[i].options.fetch.stable_layers);
    }
    free(variants->list);
    *variants = (struct eval_variants){0};
}

void eval_variant_name(const struct eval_variant *v, char *out, size_t bytes)
{
    if (v->has_ratio)
        snprintf(out, bytes, "%s %g", v->method, v->ratio);
    else
        snprintf(out, bytes, "%s", v->method);
}

int eval_full_variant(const struct eval_variants *variants)
{
    for (size_t i = 0; i < variants->count; i++)
        if (variants->list[i].options.method == SAMKV_EVALUATED_FULL)
            return (int)i;
    return -1;
}
