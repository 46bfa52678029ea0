#include "daemon/samkv/gate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define Z            1.645 /* one-sided 95 % of a normal distribution */
#define RECENT_MOST  128
#define LASTING_MOST 4096
#define RAISE_LEAST  8
#define RAISE_ENOUGH 64
#define LOWER_LEAST  32

static const double ratios[SAMKV_GATE_LEVELS] = {0, 0.25, 0.35, 0.5, 0.7, 1, 1};

double samkv_gate_ratio(uint32_t level)
{
    return ratios[level < SAMKV_GATE_LEVELS ? level : SAMKV_GATE_LEVELS - 1];
}

bool samkv_gate_is_full(uint32_t level)
{
    return level >= SAMKV_GATE_LEVELS - 1;
}

/* ------------------------------------------------------------------ targets as text */

enum samkv_status samkv_quality_parse(const char *text, struct samkv_quality_target *out, struct samkv_error *err)
{
    static const char agreement[] = "agreement=", kl[] = "kl=";
    *out = (struct samkv_quality_target){.metric = SAMKV_QUALITY_NONE};
    if (!*text || !strcmp(text, "none"))
        return SAMKV_OK;
    const char *number = text;
    double most = 1;
    if (!strncmp(text, agreement, sizeof agreement - 1)) {
        out->metric = SAMKV_QUALITY_AGREEMENT;
        number += sizeof agreement - 1;
    } else if (!strncmp(text, kl, sizeof kl - 1)) {
        out->metric = SAMKV_QUALITY_KL;
        number += sizeof kl - 1;
        most = 100;
    }
    char *end = NULL;
    out->value = strtod(number, &end);
    bool whole = *number >= '0' && *number <= '9' && !*end;
    if (out->metric && whole && out->value > 0 && out->value <= most)
        return SAMKV_OK;
    *out = (struct samkv_quality_target){.metric = SAMKV_QUALITY_NONE};
    return samkv_fail(err, SAMKV_INVALID,
                      "quality '%.40s' is not known: say agreement=A (0 < A <= 1), kl=NATS (0 < NATS <= 100) or none",
                      text);
}

void samkv_quality_format(const struct samkv_quality_target *target, char *out, size_t bytes)
{
    if (target->metric == SAMKV_QUALITY_NONE)
        snprintf(out, bytes, "none");
    else
        snprintf(out, bytes, "%s=%g", target->metric == SAMKV_QUALITY_KL ? "kl" : "agreement", target->value);
}

/* ------------------------------------------------------------------ windows */

/* How bad it is; both metrics are better when this is smaller. */
static double badness(enum samkv_quality_metric metric, const struct samkv_closeness *close)
{
    return metric == SAMKV_QUALITY_KL ? close->kl : 1 - close->agreement;
}

/* 1 - 0.8 is a little less than a fifth: what is met exactly counts as met. */
static double allowed(const struct samkv_quality_target *target)
{
    return (target->metric == SAMKV_QUALITY_KL ? target->value : 1 - target->value) + 1e-9;
}

static void add(struct samkv_gate_window *w, double bad, double most)
{
    w->count += 1;
    w->sum += bad;
    w->squares += bad * bad;
    if (w->count >= most) {
        w->count /= 2;
        w->sum /= 2;
        w->squares /= 2;
    }
}

static double mean_of(const struct samkv_gate_window *w)
{
    return w->count > 0 ? w->sum / w->count : 0;
}

/*
 * What the true mean is surely above (side -1) or below (+1). A share has Wilson's interval, which is right for means
 * near 0 too; a divergence has no upper end, and gets the normal one.
 */
static double bound_of(const struct samkv_gate_window *w, enum samkv_quality_metric metric, int side)
{
    double n = w->count, mean = mean_of(w);
    if (n <= 0)
        return side > 0 ? INFINITY : 0;
    if (metric == SAMKV_QUALITY_KL) {
        double variance = n > 1 ? (w->squares - n * mean * mean) / (n - 1) : INFINITY;
        double bound = mean + side * Z * sqrt(fmax(variance, 0) / n);
        return bound > 0 ? bound : 0;
    }
    double centre = mean + Z * Z / (2 * n), half = Z * sqrt(mean * (1 - mean) / n + Z * Z / (4 * n * n));
    return fmin(1, fmax(0, (centre + side * half) / (1 + Z * Z / n)));
}

/* ------------------------------------------------------------------ the gate */

void samkv_gate_set(struct samkv_gate *gate, const struct samkv_quality_target *target)
{
    if (gate->target.metric != target->metric) {
        memset(gate->recent, 0, sizeof gate->recent);
        memset(gate->lasting, 0, sizeof gate->lasting);
    }
    gate->target = *target;
    if (target->metric == SAMKV_QUALITY_NONE)
        gate->level = 0;
}

static bool must_rise(const struct samkv_gate *gate)
{
    const struct samkv_gate_window *w = &gate->recent[gate->level];
    double most = allowed(&gate->target);
    if (samkv_gate_is_full(gate->level))
        return false;
    return (w->count >= RAISE_LEAST && bound_of(w, gate->target.metric, -1) > most) ||
           (w->count >= RAISE_ENOUGH && mean_of(w) > most);
}

static bool may_fall(const struct samkv_gate *gate)
{
    if (gate->level == 0)
        return false;
    const struct samkv_gate_window *lasting = &gate->lasting[gate->level - 1], *recent = &gate->recent[gate->level - 1];
    double most = allowed(&gate->target);
    return lasting->count >= LOWER_LEAST && bound_of(lasting, gate->target.metric, +1) <= most &&
           mean_of(recent) <= most;
}

enum samkv_gate_move samkv_gate_observe(struct samkv_gate *gate, uint32_t level, const struct samkv_closeness *close)
{
    double bad = badness(gate->target.metric, close);
    bool is_share = gate->target.metric == SAMKV_QUALITY_AGREEMENT;
    if (gate->target.metric == SAMKV_QUALITY_NONE || level >= SAMKV_GATE_LEVELS || !(bad >= 0) || !isfinite(bad) ||
        (is_share && bad > 1))
        return SAMKV_GATE_STAYS;
    add(&gate->recent[level], bad, RECENT_MOST);
    add(&gate->lasting[level], bad, LASTING_MOST);
    gate->measured++;
    if (must_rise(gate)) {
        /* Should it ever be good enough again, what it was long before is no evidence. */
        gate->lasting[gate->level] = gate->recent[gate->level];
        gate->level++;
        gate->raised++;
        return SAMKV_GATE_RAISED;
    }
    if (may_fall(gate)) {
        gate->level--;
        gate->lowered++;
        return SAMKV_GATE_LOWERED;
    }
    return SAMKV_GATE_STAYS;
}

void samkv_gate_seed(struct samkv_gate *gate, const struct samkv_closeness *samples, uint32_t count)
{
    uint32_t chosen = SAMKV_GATE_LEVELS - 1;
    if (gate->target.metric == SAMKV_QUALITY_NONE || !count)
        return;
    for (uint32_t level = SAMKV_GATE_LEVELS - 1; level-- > 0;) {
        gate->recent[level] = gate->lasting[level] = (struct samkv_gate_window){0};
        for (uint32_t i = 0; i < count; i++) {
            double bad = badness(gate->target.metric, &samples[(size_t)level * count + i]);
            if (!isfinite(bad))
                continue;
            add(&gate->recent[level], bad, RECENT_MOST);
            add(&gate->lasting[level], bad, LASTING_MOST);
        }
        if (gate->recent[level].count > 0 && mean_of(&gate->recent[level]) <= allowed(&gate->target))
            chosen = level;
    }
    gate->level = chosen;
}

struct samkv_gate_estimate samkv_gate_estimate(const struct samkv_gate *gate, uint32_t level)
{
    bool is_kl = gate->target.metric == SAMKV_QUALITY_KL;
    struct samkv_gate_estimate e = {.mean = is_kl ? 0 : 1, .bound = is_kl ? 0 : 1, .met = true};
    if (samkv_gate_is_full(level))
        return e;
    const struct samkv_gate_window *w = &gate->recent[level];
    e.count = w->count;
    if (w->count <= 0)
        return e;
    double bound = bound_of(w, gate->target.metric, +1);
    e.mean = is_kl ? mean_of(w) : 1 - mean_of(w);
    e.bound = is_kl ? bound : 1 - bound;
    e.met = mean_of(w) <= allowed(&gate->target);
    return e;
}
