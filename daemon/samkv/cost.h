#pragma once
/*
 * What requests cost on an engine, learned from those that ran: milliseconds a FLOP in each kind of pass, and a byte
 * read from the store. For a fetch with a deadline, which asks before it runs whether the sparse way or a full
 * recomputation is done sooner. Older measurements fade. Any thread.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/model/config.h"

enum samkv_cost_kind {
    SAMKV_COST_QUERY,     /* the query's pass over the anchors */
    SAMKV_COST_RECOMPUTE, /* of what was kept */
    SAMKV_COST_PREFILL,   /* of whole prompts */
    SAMKV_COST_READ,      /* bytes of records, decoding included */
    SAMKV_COST_KINDS,
};

struct samkv_cost {
    pthread_mutex_t lock;
    struct {
        double units, ms; /* fading sums */
        uint32_t count;   /* measurements, up to some */
    } kinds[SAMKV_COST_KINDS];
};

void samkv_cost_init(struct samkv_cost *);
void samkv_cost_deinit(struct samkv_cost *);

/* That so many FLOPs or bytes took so long. Nothing, or no time, is not counted. */
void samkv_cost_note(struct samkv_cost *, enum samkv_cost_kind, double units, double ms);

/* How long they will take. Negative: it is not known. A prefill that was never measured goes by recomputations and the
 * other way round; a read that was never measured takes no time. */
double samkv_cost_ms(struct samkv_cost *, enum samkv_cost_kind, double units);

/* FLOPs of `rows` tokens through `depth` layers, each seeing `keys` rows on average. */
double samkv_cost_flops(const struct samkv_model_config *, double rows, double depth, double keys);
