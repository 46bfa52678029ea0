#pragma once
/*
 * Policies of a cache, simulated on traces of records with sizes: which records would be there. Each is exact about
 * bytes and knows nothing of memory, threads or overhead.
 *
 *   LRU         one queue.
 *   S3-FIFO     a small queue that new records go through (a tenth of the bytes), a main queue, and ghosts (keys alone,
 *               for as many bytes as the main queue holds). Yang, Zhang, Qiu, Yue, Vigfusson: FIFO queues are all you
 *               need for cache eviction (SOSP 2023).
 *   W-TinyLFU   a window, then a segmented LRU that a record enters when it is asked for more often than what would
 *               leave. Einziger, Friedman, Manes: TinyLFU (ACM ToS 2017). Frequencies are exact here where a real one
 *               has a sketch: the best it could do.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#define NOBODY UINT32_MAX

enum policy_kind { POLICY_LRU, POLICY_S3FIFO, POLICY_TINYLFU };
enum policy_where { POLICY_OUT, POLICY_FIRST, POLICY_SECOND, POLICY_THIRD, POLICY_QUEUES = POLICY_THIRD + 1 };

struct policy_queue {
    uint32_t newest, oldest;
    uint64_t bytes;
};

struct policy {
    enum policy_kind kind;
    uint64_t limit_bytes;
    double first_share;                        /* of the bytes: small queue or window */
    uint8_t promotes;                          /* S3-FIFO: hits in the small queue that lead to the main one */
    struct policy_queue queues[POLICY_QUEUES]; /* [POLICY_OUT]: ghosts */
    const uint32_t *bytes;
    uint32_t *newer, *older;
    uint8_t *where, *hits;
    bool *ghost;
    uint32_t *often; /* W-TinyLFU */
    uint64_t asked, entries, records;
    uint64_t hit_count, hit_bytes;
};

static inline void policy_init(struct policy *p, enum policy_kind kind, uint64_t limit_bytes, uint32_t records,
                               const uint32_t *bytes)
{
    *p = (struct policy){.kind = kind, .limit_bytes = limit_bytes, .bytes = bytes, .records = records};
    p->first_share = kind == POLICY_TINYLFU ? 0.01 : 0.1;
    p->promotes = 1;
    for (int q = 0; q < POLICY_QUEUES; q++)
        p->queues[q] = (struct policy_queue){NOBODY, NOBODY, 0};
    p->newer = calloc(records, sizeof *p->newer);
    p->older = calloc(records, sizeof *p->older);
    p->often = calloc(records, sizeof *p->often);
    p->where = calloc(records, 1);
    p->hits = calloc(records, 1);
    p->ghost = calloc(records, sizeof *p->ghost);
    if (!p->newer || !p->older || !p->often || !p->where || !p->hits || !p->ghost)
        abort();
}

static inline void policy_free(struct policy *p)
{
    free(p->newer), free(p->older), free(p->often), free(p->where), free(p->hits), free(p->ghost);
}

static inline void policy_link(struct policy *p, int q, uint32_t r)
{
    struct policy_queue *queue = &p->queues[q];
    p->newer[r] = NOBODY;
    p->older[r] = queue->newest;
    *(queue->newest == NOBODY ? &queue->oldest : &p->newer[queue->newest]) = r;
    queue->newest = r;
    queue->bytes += p->bytes[r];
    p->where[r] = (uint8_t)q;
    p->entries += q != POLICY_OUT;
}

static inline void policy_unlink(struct policy *p, uint32_t r)
{
    int q = p->where[r];
    struct policy_queue *queue = &p->queues[q];
    *(p->newer[r] == NOBODY ? &queue->newest : &p->older[p->newer[r]]) = p->older[r];
    *(p->older[r] == NOBODY ? &queue->oldest : &p->newer[p->older[r]]) = p->newer[r];
    queue->bytes -= p->bytes[r];
    p->where[r] = POLICY_OUT;
    p->entries -= q != POLICY_OUT;
}

static inline uint64_t policy_bytes(const struct policy *p)
{
    return p->queues[POLICY_FIRST].bytes + p->queues[POLICY_SECOND].bytes + p->queues[POLICY_THIRD].bytes;
}

/* ------------------------------------------------------------------ S3-FIFO */

static inline void policy_forget_ghost(struct policy *p, uint32_t r)
{
    policy_unlink(p, r);
    p->ghost[r] = false;
}

static inline void policy_s3_evict(struct policy *p)
{
    struct policy_queue *small = &p->queues[POLICY_FIRST], *main = &p->queues[POLICY_SECOND];
    bool from_small = (double)small->bytes > p->first_share * (double)p->limit_bytes || main->oldest == NOBODY;
    uint32_t r = from_small ? small->oldest : main->oldest;
    policy_unlink(p, r);
    if (from_small && p->hits[r] >= p->promotes) {
        p->hits[r] = 0;
        policy_link(p, POLICY_SECOND, r);
    } else if (from_small) {
        policy_link(p, POLICY_OUT, r);
        p->ghost[r] = true;
        while ((double)p->queues[POLICY_OUT].bytes > (1 - p->first_share) * (double)p->limit_bytes)
            policy_forget_ghost(p, p->queues[POLICY_OUT].oldest);
    } else if (p->hits[r] > 0) {
        p->hits[r]--;
        policy_link(p, POLICY_SECOND, r);
    }
}

static inline void policy_s3_add(struct policy *p, uint32_t r)
{
    bool known = p->ghost[r];
    if (known)
        policy_forget_ghost(p, r);
    while (policy_bytes(p) + p->bytes[r] > p->limit_bytes)
        policy_s3_evict(p);
    p->hits[r] = 0;
    policy_link(p, known ? POLICY_SECOND : POLICY_FIRST, r);
}

/* ------------------------------------------------------------------ W-TinyLFU */

/* FIRST is the window, SECOND the probation, THIRD the protected segment (four fifths of the main space). */
static inline void policy_tiny_hit(struct policy *p, uint32_t r)
{
    int to = p->where[r] == POLICY_FIRST ? POLICY_FIRST : POLICY_THIRD;
    policy_unlink(p, r);
    policy_link(p, to, r);
    while ((double)p->queues[POLICY_THIRD].bytes > 0.8 * (1 - p->first_share) * (double)p->limit_bytes) {
        uint32_t demoted = p->queues[POLICY_THIRD].oldest;
        policy_unlink(p, demoted);
        policy_link(p, POLICY_SECOND, demoted);
    }
}

/* The window's oldest goes to the main space if it is asked for more often than each one that has to leave for it. */
static inline void policy_tiny_leave_window(struct policy *p)
{
    uint32_t candidate = p->queues[POLICY_FIRST].oldest;
    policy_unlink(p, candidate);
    double main_limit = (1 - p->first_share) * (double)p->limit_bytes;
    for (;;) {
        uint64_t main = p->queues[POLICY_SECOND].bytes + p->queues[POLICY_THIRD].bytes;
        if ((double)(main + p->bytes[candidate]) <= main_limit)
            break;
        uint32_t victim = p->queues[POLICY_SECOND].oldest;
        if (victim == NOBODY)
            victim = p->queues[POLICY_THIRD].oldest;
        if (victim == NOBODY || p->often[candidate] <= p->often[victim])
            return;
        policy_unlink(p, victim);
    }
    policy_link(p, POLICY_SECOND, candidate);
}

static inline void policy_tiny_count(struct policy *p, uint32_t r)
{
    p->often[r] += p->often[r] < 15;
    if (++p->asked < 10 * (p->entries + 100))
        return;
    p->asked = 0;
    for (uint64_t i = 0; i < p->records; i++)
        p->often[i] /= 2;
}

/* ------------------------------------------------------------------ all */

/* One read: whether it was there. It is afterwards, unless it is too large or not admitted. */
static inline bool policy_read(struct policy *p, uint32_t r)
{
    bool there = p->where[r] != POLICY_OUT;
    p->hit_count += there;
    p->hit_bytes += there ? p->bytes[r] : 0;
    if (p->kind == POLICY_TINYLFU)
        policy_tiny_count(p, r);
    if (there && p->kind == POLICY_LRU) {
        policy_unlink(p, r);
        policy_link(p, POLICY_FIRST, r);
    } else if (there && p->kind == POLICY_S3FIFO) {
        p->hits[r] += p->hits[r] < 3;
    } else if (there) {
        policy_tiny_hit(p, r);
    } else if (p->bytes[r] > p->limit_bytes) {
        return false;
    } else if (p->kind == POLICY_LRU) {
        while (policy_bytes(p) + p->bytes[r] > p->limit_bytes)
            policy_unlink(p, p->queues[POLICY_FIRST].oldest);
        policy_link(p, POLICY_FIRST, r);
    } else if (p->kind == POLICY_S3FIFO) {
        policy_s3_add(p, r);
    } else {
        policy_link(p, POLICY_FIRST, r);
        while ((double)p->queues[POLICY_FIRST].bytes > p->first_share * (double)p->limit_bytes)
            policy_tiny_leave_window(p);
    }
    return there;
}
