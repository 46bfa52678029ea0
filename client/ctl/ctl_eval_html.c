/* The report: one page without scripts or other files. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/ctl_eval.h"
#include "client/ctl/ctl_eval_plot.h"

static const char head[] =
    "<!doctype html>\n<html lang='en'><meta charset='utf-8'><title>samkvctl eval</title>\n"
    "<meta name='viewport' content='width=device-width'>\n<style>\n"
    "body{font:15px/1.45 system-ui,sans-serif;color:#222;max-width:1180px;margin:2em auto;padding:0 1em}\n"
    "h1{font-size:1.5em}h2{font-size:1.2em;margin-top:2.2em;border-bottom:1px solid #ddd}\n"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px}\n"
    "td,th{padding:2px 9px;text-align:right;white-space:nowrap}td:first-child,th:first-child{text-align:left}\n"
    "th{border-bottom:1px solid #999}tr:nth-child(even){background:#f6f6f6}small{color:#777}\n"
    ".plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(400px,1fr));gap:8px 18px;margin:1em 0}\n"
    ".plots svg{width:100%}svg text{font:11px system-ui,sans-serif;fill:#444}\n"
    ".scroll{overflow-x:auto}.legend span{margin-right:14px;white-space:nowrap;font-size:13px}\n"
    "svg.key{width:26px;height:8px;margin-right:5px}\n</style>\n<h1>samkvctl eval</h1>\n";

static const char words[] =
    "<p>Each question is answered by the same model from every kind of cache. <b>F1</b>, <b>EM</b>: against the right "
    "answers (Chinese: ROUGE-L of characters; token ids: exact match). <b>log p</b>: of the first right answer, a "
    "token. <b>KL</b>: of the next token's distribution from the full cache's. <b>agrees</b>: the answer is the full "
    "cache's, token for token. <b>kept</b>, <b>recomputed</b>: of the documents' tokens, of pairs of token and layer. "
    "<b>Δ full</b>: F1 minus that of the full cache, question by question. Small figures and bars: 95&nbsp;% of "
    "bootstrap resamples of the questions. Dashed lines keep every token.</p>\n";

static double shown(enum eval_measure m, double value)
{
    return eval_measures[m].in_percent ? 100 * value : m == EVAL_BYTES ? value / 1e6 : value;
}

static void put_cell(FILE *out, enum eval_measure m, const struct eval_estimate *e, bool interval)
{
    int decimals = eval_measures[m].decimals;
    if (isnan(e->mean)) {
        fputs("<td>", out);
        return;
    }
    fprintf(out, "<td>%.*f", decimals, shown(m, e->mean));
    if (interval)
        fprintf(out, " <small>%.*f&thinsp;–&thinsp;%.*f</small>", decimals, shown(m, e->low), decimals,
                shown(m, e->high));
}

static bool is_shown(struct eval_results *r, const char *set, enum eval_measure m)
{
    return m != EVAL_FACTS || eval_estimate(r, set, 0, -1, m).count > 0;
}

static void put_row(struct eval_results *r, const char *set, size_t v, int full, FILE *out)
{
    char name[256];
    eval_variant_name(&r->variants->list[v], name, sizeof name);
    fprintf(out, "<tr><td><span style='color:%s'>■</span> ", eval_colour(r->variants, v));
    eval_put_html(out, name);
    for (int m = 0; m < EVAL_MEASURES; m++) {
        if (!is_shown(r, set, (enum eval_measure)m))
            continue;
        struct eval_estimate e = eval_estimate(r, set, v, -1, (enum eval_measure)m);
        put_cell(out, (enum eval_measure)m, &e, m < EVAL_SEQUENCE);
        if (m == EVAL_SCORE && full >= 0) {
            e = eval_estimate(r, set, v, full, EVAL_SCORE);
            put_cell(out, EVAL_SCORE, &e, (size_t)full != v);
        }
    }
    fputs("</tr>\n", out);
}

static void put_table(struct eval_results *r, const char *set, FILE *out)
{
    int full = eval_full_variant(r->variants);
    fputs("<div class='scroll'><table><tr><th>method", out);
    for (int m = 0; m < EVAL_MEASURES; m++) {
        if (!is_shown(r, set, (enum eval_measure)m))
            continue;
        fprintf(out, "<th>%s%s", eval_measures[m].title, eval_measures[m].in_percent ? " %" : "");
        if (m == EVAL_SCORE && full >= 0)
            fputs("<th>Δ full", out);
    }
    fputs("</tr>\n", out);
    for (size_t v = 0; v < r->variants->count; v++)
        put_row(r, set, v, full, out);
    fputs("</table></div>\n", out);
}

static void put_set(struct eval_results *r, const char *set, FILE *out)
{
    static const enum eval_measure plots[] = {EVAL_SCORE, EVAL_KL, EVAL_AGREES, EVAL_LIKELIHOOD, EVAL_FACTS};
    size_t questions = eval_estimate(r, set, 0, -1, EVAL_SEQUENCE).count;
    fputs("<h2>", out);
    eval_put_html(out, set ? set : "all sets together");
    fprintf(out, " <small>%zu questions</small></h2>\n<div class='plots'>\n", questions);
    for (size_t i = 0; i < sizeof plots / sizeof *plots && questions; i++)
        if (is_shown(r, set, plots[i]))
            eval_plot(r, set, plots[i], out);
    fputs("</div>\n", out);
    if (questions)
        put_table(r, set, out);
}

static void put_settings(const json_t *settings, FILE *out)
{
    const char *key;
    json_t *value;
    fputs("<p><small>", out);
    json_object_foreach((json_t *)settings, key, value)
    {
        if (json_is_array(value)) /* the variants have their tables */
            continue;
        eval_put_html(out, key);
        fputs(" ", out);
        if (json_is_string(value))
            eval_put_html(out, *json_string_value(value) ? json_string_value(value) : "default");
        else
            fprintf(out, "%lld", (long long)json_integer_value(value));
        fputs(" · ", out);
    }
    fprintf(out, "samkvctl %s</small></p>\n", samkv_client_version());
}

enum samkv_status eval_write_html(struct eval_results *r, const json_t *settings, const char *path,
                                  struct samkv_error *err)
{
    const char **sets;
    FILE *out = fopen(path, "we");
    if (!out)
        return samkv_fail(err, SAMKV_IO, "cannot write %s: %s", path, strerror(errno));
    size_t count = eval_sets(r->questions, &sets);
    fputs(head, out);
    put_settings(settings, out);
    fputs(words, out);
    eval_legend(r->variants, out);
    if (count > 1) /* together first */
        put_set(r, NULL, out);
    for (size_t s = 0; s < count; s++)
        if (sets[s])
            put_set(r, sets[s], out);
    free(sets);
    if (ferror(out) | fclose(out))
        return samkv_fail(err, SAMKV_IO, "cannot write %s: is the disk full?", path);
    return SAMKV_OK;
}
