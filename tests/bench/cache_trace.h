#pragma once
/*
 * Seeded traces of what fetches read from a store, for comparing policies of a cache. A store of documents with sizes
 * as in real ones (16 tokens a block, lengths from 100 to 4,000 tokens, half of them below 600); each fetch names some
 * documents by Zipf's law, and reads of each the index records of its stable layers, its two anchors, and the blocks
 * that the query needs: a few that many queries need, and now and then any other. Mixed in, when asked for: scans,
 * which read whole documents one after the other (an export, the method `full`), and drift (what is popular changes).
 *
 *   record   one block or index record: a number below `records`, with its size in `bytes[]`.
 *
 * Nothing depends on the machine: same options, same trace.
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TRACE_STABLE_LAYERS 4
#define TRACE_BLOCK_TOKENS  16

struct trace_options {
    uint32_t documents, fetches;
    double alpha;         /* of Zipf's law over documents */
    double scans;         /* share of fetches that are pieces of a scan */
    double drift;         /* share of the ranking that moves in the course of the trace */
    uint32_t token_bytes; /* KV of a token; an index record has a block mean of 1/16 of a layer's K for each block */
    uint32_t index_bytes; /* of an index record for each block */
    uint64_t seed;
};

struct trace {
    struct trace_options o;
    uint32_t *first, *blocks; /* [documents]: its index records from first[d], then its blocks */
    uint32_t records;
    uint32_t *bytes;    /* [records] */
    uint32_t *document; /* [records] */
    uint64_t footprint_bytes;
    uint32_t *reads; /* records in the order of reading */
    size_t read_count, read_room;
    uint64_t read_bytes;
    /* private */
    uint64_t state;
    double *ranks, *block_ranks; /* cumulative */
    uint32_t *ranked;            /* [rank] → document */
    uint32_t scan_at;
};

static inline uint64_t trace_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static inline double trace_unit(struct trace *t)
{
    return (double)(trace_random(&t->state) >> 11) * 0x1p-53;
}

static inline void *trace_array(size_t count, size_t each)
{
    void *p = calloc(count + 1, each);
    if (!p)
        abort();
    return p;
}

static inline double *trace_zipf(uint32_t count, double alpha)
{
    double *sums = trace_array(count, sizeof *sums), sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sums[i] = sum += pow(i + 1, -alpha);
    for (uint32_t i = 0; i < count; i++)
        sums[i] /= sum;
    return sums;
}

/* Among the first `count` ranks of a table that may have more. */
static inline uint32_t trace_rank(struct trace *t, const double *sums, uint32_t count)
{
    double u = trace_unit(t) * sums[count - 1];
    uint32_t low = 0, high = count - 1;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (sums[middle] > u)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static inline void trace_read(struct trace *t, uint32_t record)
{
    if (t->read_count == t->read_room) {
        t->read_room = 2 * t->read_room + 1024;
        t->reads = realloc(t->reads, t->read_room * sizeof *t->reads);
        if (!t->reads)
            abort();
    }
    t->reads[t->read_count++] = record;
    t->read_bytes += t->bytes[record];
}

static inline void trace_make_documents(struct trace *t)
{
    uint32_t n = t->o.documents;
    t->first = trace_array(n, sizeof *t->first);
    t->blocks = trace_array(n, sizeof *t->blocks);
    uint32_t *tokens = trace_array(n, sizeof *tokens);
    for (uint32_t d = 0; d < n; d++) {
        double octaves = trace_unit(t) + trace_unit(t) + trace_unit(t) - 1.5;
        double wanted = 600 * pow(2, 2 * octaves);
        tokens[d] = wanted < 100 ? 100 : (uint32_t)wanted;
        t->blocks[d] = (tokens[d] - 1) / TRACE_BLOCK_TOKENS + 1;
        t->first[d] = t->records;
        t->records += TRACE_STABLE_LAYERS + t->blocks[d];
    }
    t->bytes = trace_array(t->records, sizeof *t->bytes);
    t->document = trace_array(t->records, sizeof *t->document);
    for (uint32_t d = 0; d < n; d++) {
        uint32_t *bytes = t->bytes + t->first[d], left = tokens[d];
        for (uint32_t i = 0; i < TRACE_STABLE_LAYERS + t->blocks[d]; i++) {
            uint32_t of_block = left < TRACE_BLOCK_TOKENS ? left : TRACE_BLOCK_TOKENS;
            bytes[i] = i < TRACE_STABLE_LAYERS ? t->blocks[d] * t->o.index_bytes : of_block * t->o.token_bytes;
            left -= i < TRACE_STABLE_LAYERS ? 0 : of_block;
            t->document[t->first[d] + i] = d;
            t->footprint_bytes += bytes[i];
        }
    }
    free(tokens);
}

static inline void trace_scan(struct trace *t)
{
    for (int i = 0; i < 8; i++) {
        uint32_t d = t->scan_at++ % t->o.documents;
        for (uint32_t r = 0; r < TRACE_STABLE_LAYERS + t->blocks[d]; r++)
            trace_read(t, t->first[d] + r);
    }
}

static inline void trace_fetch_document(struct trace *t, uint32_t d)
{
    uint32_t blocks = t->blocks[d], first = t->first[d] + TRACE_STABLE_LAYERS;
    for (uint32_t i = 0; i < TRACE_STABLE_LAYERS; i++)
        trace_read(t, t->first[d] + i);
    trace_read(t, first);
    trace_read(t, first + blocks - 1);
    /* About 15 % of the blocks, by a ranking of each document's own. */
    uint32_t chosen[64], n = 0, wanted = blocks * 15 / 100;
    for (uint32_t tries = 0; n < wanted && n < 64 && tries < 4 * wanted; tries++) {
        uint32_t rank = trace_rank(t, t->block_ranks, blocks);
        uint32_t block = (uint32_t)((uint64_t)rank * 2654435761u + d * 40503u) % blocks;
        bool again = block == 0 || block == blocks - 1;
        for (uint32_t i = 0; i < n; i++)
            again |= chosen[i] == block;
        if (again)
            continue;
        chosen[n++] = block;
        trace_read(t, first + block);
    }
}

static inline void trace_drift(struct trace *t)
{
    double swaps = t->o.drift * t->o.documents / t->o.fetches;
    for (double left = swaps; left > 0; left -= 1) {
        if (left < 1 && trace_unit(t) > left)
            break;
        uint32_t a = trace_rank(t, t->ranks, t->o.documents), b = (uint32_t)(trace_random(&t->state) % t->o.documents);
        uint32_t other = t->ranked[a];
        t->ranked[a] = t->ranked[b];
        t->ranked[b] = other;
    }
}

static inline void trace_fetch(struct trace *t)
{
    uint32_t chosen[8];
    uint32_t n = 1 + (uint32_t)(trace_random(&t->state) % 8);
    for (uint32_t i = 0; i < n;) {
        uint32_t d = t->ranked[trace_rank(t, t->ranks, t->o.documents)];
        bool again = false;
        for (uint32_t k = 0; k < i; k++)
            again |= chosen[k] == d;
        if (again)
            continue;
        chosen[i++] = d;
        trace_fetch_document(t, d);
    }
}

static inline void trace_make(struct trace *t, const struct trace_options *o)
{
    *t = (struct trace){.o = *o, .state = o->seed};
    trace_make_documents(t);
    uint32_t most = 0;
    for (uint32_t d = 0; d < o->documents; d++)
        most = t->blocks[d] > most ? t->blocks[d] : most;
    t->ranks = trace_zipf(o->documents, o->alpha);
    t->block_ranks = trace_zipf(most, 0.9);
    t->ranked = trace_array(o->documents, sizeof *t->ranked);
    for (uint32_t d = 0; d < o->documents; d++)
        t->ranked[d] = d;
    for (uint32_t d = o->documents - 1; d > 0; d--) {
        uint32_t other = (uint32_t)(trace_random(&t->state) % (d + 1)), was = t->ranked[d];
        t->ranked[d] = t->ranked[other];
        t->ranked[other] = was;
    }
    for (uint32_t f = 0; f < o->fetches; f++) {
        trace_drift(t);
        if (trace_unit(t) < o->scans)
            trace_scan(t);
        else
            trace_fetch(t);
    }
}

static inline void trace_free(struct trace *t)
{
    free(t->first), free(t->blocks), free(t->bytes), free(t->document), free(t->reads);
    free(t->ranks), free(t->block_ranks), free(t->ranked);
}
