/* The table on standard output, and the same as JSON. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/ctl_eval.h"
#include "client/ctl/ctl_text.h"

static double shown(enum eval_measure m, double value)
{
    return eval_measures[m].in_percent ? 100 * value : m == EVAL_BYTES ? value / 1e6 : value;
}

/* "31.4", or "31.4 [27.9, 35.0]" */
static void write_estimate(enum eval_measure m, const struct eval_estimate *e, bool interval, char *out, size_t bytes)
{
    int decimals = eval_measures[m].decimals;
    if (isnan(e->mean))
        snprintf(out, bytes, "-");
    else if (interval)
        snprintf(out, bytes, "%.*f [%.*f, %.*f]", decimals, shown(m, e->mean), decimals, shown(m, e->low), decimals,
                 shown(m, e->high));
    else
        snprintf(out, bytes, "%.*f", decimals, shown(m, e->mean));
}

static const enum eval_measure columns[] = {EVAL_SCORE,     EVAL_EXACT,  EVAL_LIKELIHOOD,
                                            EVAL_KL,        EVAL_AGREES, EVAL_SEQUENCE,
                                            EVAL_RECOMPUTE, EVAL_BYTES,  EVAL_FIRST_TOKEN_MS};
#define COLUMNS (sizeof columns / sizeof *columns)

static bool has_facts(struct eval_results *r, const char *set)
{
    return eval_estimate(r, set, 0, -1, EVAL_FACTS).count > 0;
}

static void print_set(struct eval_results *r, const char *set, FILE *out)
{
    bool facts = has_facts(r, set);
    struct ctl_table table = {.columns = (int)COLUMNS + 1 + facts};
    table.names[0] = "method";
    for (size_t c = 0; c < COLUMNS; c++)
        table.names[c + 1] = eval_measures[columns[c]].title, table.right[c + 1] = true;
    if (facts)
        table.names[COLUMNS + 1] = eval_measures[EVAL_FACTS].title, table.right[COLUMNS + 1] = true;
    for (size_t v = 0; v < r->variants->count; v++) {
        char text[COLUMNS + 2][64];
        const char *cells[COLUMNS + 2] = {text[0]};
        eval_variant_name(&r->variants->list[v], text[0], sizeof text[0]);
        for (size_t c = 0; c < COLUMNS + facts; c++) {
            enum eval_measure m = c < COLUMNS ? columns[c] : EVAL_FACTS;
            struct eval_estimate e = eval_estimate(r, set, v, -1, m);
            write_estimate(m, &e, c == 0, text[c + 1], sizeof text[c + 1]);
            cells[c + 1] = text[c + 1];
        }
        if (!ctl_table_add(&table, cells))
            break;
    }
    ctl_table_print(&table, out);
    ctl_table_free(&table);
}

void eval_print_table(struct eval_results *r, FILE *out)
{
    const char **sets;
    size_t count = eval_sets(r->questions, &sets);
    for (size_t s = 0; s < count; s++) {
        size_t questions = eval_estimate(r, sets[s], 0, -1, EVAL_SCORE).count;
        fprintf(out, "%s%s (%zu questions)\n", s ? "\n" : "", sets[s] ? sets[s] : "all", questions);
        print_set(r, sets[s], out);
    }
    free(sets);
}

static json_t *estimate_json(const struct eval_estimate *e)
{
    json_t *o = json_object();
    json_object_set_new(o, "mean", ctl_json_real(e->mean));
    json_object_set_new(o, "low", ctl_json_real(e->low));
    json_object_set_new(o, "high", ctl_json_real(e->high));
    return o;
}

static json_t *variant_json(struct eval_results *r, const char *set, size_t v)
{
    const struct eval_variant *variant = &r->variants->list[v];
    int full = eval_full_variant(r->variants);
    json_t *o = json_object();
    json_object_set_new(o, "method", ctl_json_text(variant->method));
    json_object_set_new(o, "ratio", variant->has_ratio ? ctl_json_real(variant->ratio) : json_null());
    for (size_t m = 0; m < EVAL_MEASURES; m++) {
        struct eval_estimate e = eval_estimate(r, set, v, -1, (enum eval_measure)m);
        if (e.count)
            json_object_set_new(o, eval_measures[m].key, estimate_json(&e));
    }
    if (full >= 0 && (size_t)full != v) {
        struct eval_estimate e = eval_estimate(r, set, v, full, EVAL_SCORE);
        json_object_set_new(o, "score_minus_full", estimate_json(&e));
    }
    return o;
}

json_t *eval_summary(struct eval_results *r)
{
    const char **sets;
    size_t count = eval_sets(r->questions, &sets);
    json_t *all = json_array();
    for (size_t s = 0; s < count; s++) {
        json_t *variants = json_array(), *o = json_object();
        for (size_t v = 0; v < r->variants->count; v++)
            json_array_append_new(variants, variant_json(r, sets[s], v));
        json_object_set_new(o, "set", ctl_json_text(sets[s] ? sets[s] : "all"));
        json_object_set_new(o, "questions",
                            json_integer((json_int_t)eval_estimate(r, sets[s], 0, -1, EVAL_SCORE).count));
        json_object_set_new(o, "variants", variants);
        json_array_append_new(all, o);
    }
    free(sets);
    return all;
}
