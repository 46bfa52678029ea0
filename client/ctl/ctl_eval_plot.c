#include "client/ctl/ctl_eval_plot.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WIDTH  460.0
#define HEIGHT 300.0
#define LEFT   52.0
#define RIGHT  12.0
#define TOP    14.0
#define BOTTOM 40.0
#define TICKS  5

/* Distinguishable in colour and, being of different lightness, mostly without. */
static const char *const colours[] = {"#1f4e9c", "#d9531e", "#2a9d5c", "#8e44ad", "#b8860b", "#c2185b", "#008b8b",
                                      "#5d4037", "#7a9e00", "#455a64", "#e57373", "#64a0e8", "#000000", "#9575cd"};
#define COLOURS (sizeof colours / sizeof *colours)

struct plot {
    struct eval_results *results;
    const char *set;
    enum eval_measure measure;
    double low, high, step, right; /* of the axes: y from low to high, x from 0 to right */
    FILE *out;
};

void eval_put_html(FILE *out, const char *text)
{
    for (; *text; text++) {
        switch (*text) {
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        case '&':
            fputs("&amp;", out);
            break;
        case '"':
            fputs("&quot;", out);
            break;
        default:
            fputc(*text, out);
        }
    }
}

/* The first variant of the same method: variants of a method lie together. */
static size_t first_of(const struct eval_variants *variants, size_t v)
{
    while (v > 0 && !strcmp(variants->list[v - 1].method, variants->list[v].method))
        v--;
    return v;
}

const char *eval_colour(const struct eval_variants *variants, size_t variant)
{
    size_t method = 0;
    for (size_t v = 1; v <= variant; v++)
        method += first_of(variants, v) == v;
    return colours[method % COLOURS];
}

static double scale(const struct plot *p, double value)
{
    return eval_measures[p->measure].in_percent ? 100 * value : p->measure == EVAL_BYTES ? value / 1e6 : value;
}

static double x_of(const struct plot *p, double kept)
{
    return LEFT + kept / p->right * (WIDTH - LEFT - RIGHT);
}

static double y_of(const struct plot *p, double value)
{
    return HEIGHT - BOTTOM - (value - p->low) / (p->high - p->low) * (HEIGHT - TOP - BOTTOM);
}

/* 1, 2 or 5 times a power of ten, and no less than this. */
static double round_step(double least)
{
    double power = pow(10, floor(log10(least)));
    double factor = least / power;
    return power * (factor <= 1 ? 1 : factor <= 2 ? 2 : factor <= 5 ? 5 : 10);
}

static void find_axes(struct plot *p)
{
    p->low = INFINITY;
    p->high = -INFINITY;
    for (size_t v = 0; v < p->results->variants->count; v++) {
        struct eval_estimate e = eval_estimate(p->results, p->set, v, -1, p->measure);
        struct eval_estimate kept = eval_estimate(p->results, p->set, v, -1, EVAL_SEQUENCE);
        if (isnan(e.mean))
            continue;
        p->low = fmin(p->low, scale(p, e.low));
        p->high = fmax(p->high, scale(p, e.high));
        if (p->results->variants->list[v].has_ratio)
            p->right = fmax(p->right, kept.mean * 1.05);
    }
    if (p->low > 0 && p->low < 0.5 * p->high)
        p->low = 0;
    p->step = round_step(fmax(p->high - p->low, 1e-6) / TICKS);
    p->low = floor(p->low / p->step + 1e-9) * p->step;
    p->high = ceil(p->high / p->step - 1e-9) * p->step;
    if (p->high <= p->low)
        p->high = p->low + p->step;
    if (!(p->right > 0))
        p->right = 1;
}

static void draw_axes(const struct plot *p)
{
    const struct eval_measure_info *info = &eval_measures[p->measure];
    int decimals = p->step < 0.1 ? 2 : p->step < 1 ? 1 : 0;
    for (double value = p->low; value <= p->high + p->step / 2; value += p->step)
        fprintf(p->out,
                "<line x1='%.1f' x2='%.1f' y1='%.1f' y2='%.1f' stroke='#e4e4e4'/>"
                "<text x='%.1f' y='%.1f' text-anchor='end'>%.*f</text>\n",
                LEFT, WIDTH - RIGHT, y_of(p, value), y_of(p, value), LEFT - 6, y_of(p, value) + 4, decimals, value);
    double step = round_step(100 * p->right / TICKS);
    for (double kept = 0; kept <= 100 * p->right; kept += step)
        fprintf(p->out, "<text x='%.1f' y='%.1f' text-anchor='middle'>%.*f</text>\n", x_of(p, kept / 100),
                HEIGHT - BOTTOM + 16, step < 1 ? 1 : 0, kept);
    fprintf(p->out,
            "<text x='%.1f' y='%.1f' text-anchor='middle'>kept tokens, %%</text>"
            "<text x='14' y='%.1f' transform='rotate(-90 14 %.1f)' text-anchor='middle'>%s%s</text>\n",
            (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, (TOP + HEIGHT - BOTTOM) / 2, (TOP + HEIGHT - BOTTOM) / 2,
            info->title, info->in_percent ? ", %" : "");
}

static void draw_whole(const struct plot *p, size_t v, double mean)
{
    fprintf(p->out,
            "<line x1='%.1f' x2='%.1f' y1='%.1f' y2='%.1f' stroke='%s' stroke-width='1.5' stroke-dasharray='6 4'/>\n",
            LEFT, WIDTH - RIGHT, y_of(p, scale(p, mean)), y_of(p, scale(p, mean)),
            eval_colour(p->results->variants, v));
}

static void draw_method(const struct plot *p, size_t first)
{
    const struct eval_variants *variants = p->results->variants;
    const char *colour = eval_colour(variants, first);
    fputs("<polyline fill='none' stroke-width='1.8' points='", p->out);
    for (int pass = 0; pass < 2; pass++) {
        for (size_t v = first; v < variants->count && first_of(variants, v) == first; v++) {
            struct eval_estimate e = eval_estimate(p->results, p->set, v, -1, p->measure);
            double x = x_of(p, eval_estimate(p->results, p->set, v, -1, EVAL_SEQUENCE).mean);
            if (isnan(e.mean) || isnan(x))
                continue;
            if (pass == 0)
                fprintf(p->out, "%.1f,%.1f ", x, y_of(p, scale(p, e.mean)));
            else
                fprintf(p->out,
                        "<line x1='%.1f' x2='%.1f' y1='%.1f' y2='%.1f' stroke='%s' stroke-opacity='0.35'/>"
                        "<circle cx='%.1f' cy='%.1f' r='3' fill='%s'/>\n",
                        x, x, y_of(p, scale(p, e.low)), y_of(p, scale(p, e.high)), colour, x, y_of(p, scale(p, e.mean)),
                        colour);
        }
        if (pass == 0)
            fprintf(p->out, "' stroke='%s'/>\n", colour);
    }
}

void eval_plot(struct eval_results *r, const char *set, enum eval_measure measure, FILE *out)
{
    struct plot p = {.results = r, .set = set, .measure = measure, .out = out};
    find_axes(&p);
    if (!isfinite(p.low) || !isfinite(p.high))
        return;
    fprintf(out, "<svg viewBox='0 0 %.0f %.0f' role='img'>\n", WIDTH, HEIGHT);
    draw_axes(&p);
    for (size_t v = 0; v < r->variants->count; v++) {
        double mean = eval_estimate(r, set, v, -1, measure).mean;
        if (!r->variants->list[v].has_ratio && !isnan(mean))
            draw_whole(&p, v, mean);
        else if (r->variants->list[v].has_ratio && first_of(r->variants, v) == v)
            draw_method(&p, v);
    }
    fputs("</svg>\n", out);
}

void eval_legend(const struct eval_variants *variants, FILE *out)
{
    fputs("<p class='legend'>", out);
    for (size_t v = 0; v < variants->count; v++) {
        if (first_of(variants, v) != v)
            continue;
        fprintf(out,
                "<span><svg viewBox='0 0 26 8' class='key'><line x1='0' x2='26' y1='4' y2='4' stroke='%s' "
                "stroke-width='3'%s/></svg>",
                eval_colour(variants, v), variants->list[v].has_ratio ? "" : " stroke-dasharray='6 4'");
        eval_put_html(out, variants->list[v].method);
        fputs("</span> ", out);
    }
    fputs("</p>\n", out);
}
