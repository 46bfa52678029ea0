#include "daemon/samkv/cost.h"

#define KEPT 0.9 /* of a kind's sums, by each new measurement: the last ten or so count */

void samkv_cost_init(struct samkv_cost *cost)
{
    *cost = (struct samkv_cost){.kinds = {{0}}};
    pthread_mutex_init(&cost->lock, NULL);
}

void samkv_cost_deinit(struct samkv_cost *cost)
{
    pthread_mutex_destroy(&cost->lock);
}

void samkv_cost_note(struct samkv_cost *cost, enum samkv_cost_kind kind, double units, double ms)
{
    if (!(units > 0) || !(ms > 0))
        return;
    pthread_mutex_lock(&cost->lock);
    cost->kinds[kind].units = KEPT * cost->kinds[kind].units + units;
    cost->kinds[kind].ms = KEPT * cost->kinds[kind].ms + ms;
    cost->kinds[kind].count += cost->kinds[kind].count < UINT32_MAX;
    pthread_mutex_unlock(&cost->lock);
}

double samkv_cost_ms(struct samkv_cost *cost, enum samkv_cost_kind kind, double units)
{
    static const enum samkv_cost_kind instead[SAMKV_COST_KINDS] = {
        [SAMKV_COST_QUERY] = SAMKV_COST_RECOMPUTE,
        [SAMKV_COST_RECOMPUTE] = SAMKV_COST_PREFILL,
        [SAMKV_COST_PREFILL] = SAMKV_COST_RECOMPUTE,
        [SAMKV_COST_READ] = SAMKV_COST_READ,
    };
    double ms = -1;
    if (!(units > 0))
        return 0;
    pthread_mutex_lock(&cost->lock);
    if (!cost->kinds[kind].count)
        kind = instead[kind];
    if (cost->kinds[kind].count)
        ms = units * cost->kinds[kind].ms / cost->kinds[kind].units;
    else if (kind == SAMKV_COST_READ)
        ms = 0;
    pthread_mutex_unlock(&cost->lock);
    return ms;
}

double samkv_cost_flops(const struct samkv_model_config *c, double rows, double depth, double keys)
{
    double q = (double)c->heads * c->head_dim, kv = (double)c->kv_heads * c->head_dim, hidden = c->hidden;
    double products = 2 * (hidden * (q + 2 * kv) + q * hidden + 3 * hidden * (double)c->ffn);
    return rows * depth * (products + 4 * keys * q);
}
