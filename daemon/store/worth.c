#include "daemon/store/ledger.h"

#include <math.h>

/* What documents take and what they are worth keeping for. */

/* Uses of anything that halve a weight, for each document there is; see tests/bench/bench_evict.c. */
#define HALF_LIFE_TICKS 4.0

static uint64_t records_footprint(uint64_t count, uint64_t bytes, size_t page_bytes)
{
    uint64_t each = count ? bytes / count + 1 : 0;
    /* Half a page or more lies on pages of its own; less shares leaves that are two thirds full. */
    return each >= page_bytes / 2 ? count * ((each + 16 + page_bytes - 1) / page_bytes * page_bytes) : bytes * 3 / 2;
}

uint64_t samkv_ledger_footprint(const struct samkv_manifest *m, size_t page_bytes)
{
    uint64_t blocks = m->bytes_stored - (m->bytes_index < m->bytes_stored ? m->bytes_index : m->bytes_stored);
    return records_footprint(m->blocks, blocks, page_bytes) +
           records_footprint(m->shape.layers, m->bytes_index, page_bytes) + 2 * (uint64_t)m->tokens + page_bytes;
}

uint64_t samkv_ledger_expect(struct samkv_ledger *l, enum samkv_codec codec, uint64_t raw)
{
    pthread_mutex_lock(&l->lock);
    double stored = (double)l->stored[codec], of = (double)l->raw[codec];
    pthread_mutex_unlock(&l->lock);
    double ratio = of > 0 ? stored / of : codec == SAMKV_CODEC_RAW ? 1.05 : 0.75;
    return (uint64_t)((double)raw * (ratio > 1.1 ? 1.1 : ratio));
}

double samkv_ledger_value(const struct samkv_ledger *l, const struct samkv_ledger_facts *f)
{
    double half_life = HALF_LIFE_TICKS * (double)(l->present > 4 ? l->present : 4);
    return f->usage.weight * exp2(-(double)(l->tick - f->usage.tick) / half_life);
}

bool samkv_ledger_use(struct samkv_ledger *l, const struct samkv_key *key, int64_t now_unix_s)
{
    pthread_mutex_lock(&l->lock);
    struct samkv_ledger_document *d = samkv_ledger_find_document(l, key);
    bool first = d && !l->used_since_saved;
    if (d) {
        struct samkv_usage *u = &d->facts.usage;
        l->tick++;
        u->weight = (float)samkv_ledger_value(l, &d->facts) + 1;
        u->tick = l->tick;
        u->uses += u->uses < UINT32_MAX;
        u->used_unix_s = now_unix_s;
        l->used_since_saved = true;
    }
    pthread_mutex_unlock(&l->lock);
    return first;
}
