/*
 * Which documents should a full store give up? Policies at the grain of documents, on traces that are made from a seed:
 *   zipf    documents of log-normal size, used by a Zipf law (exponent 0.9)
 *   scan    the same, and now and then a run through documents that nobody asks for again (a bulk ingest, a crawl)
 *   shift   the same law over another set of documents after each fifth of the trace
 *   fresh   what was ingested lately is asked for most (logs, mail)
 * A miss costs a prefill, which is proportional to the document's size: so bytes that hit are what counts. Store sizes
 * are shares of all documents' bytes. Numbers, no pass or fail.
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DOCUMENTS 4000
#define REQUESTS  200000
#define GHOSTS    DOCUMENTS

static uint64_t state;

static double uniform(void)
{
    state += 0x9e3779b97f4a7c15u;
    uint64_t z = state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) / 9007199254740992.0;
}

/* ------------------------------------------------------------------ traces */

struct trace {
    uint32_t *requests;
    double *sizes;
    uint32_t documents;
    double bytes; /* of the documents that are asked for more than by scans */
};

static double zipf_sums[DOCUMENTS];

static void make_zipf(void)
{
    double sum = 0;
    for (int i = 0; i < DOCUMENTS; i++)
        zipf_sums[i] = sum += pow(i + 1, -0.9);
}

static uint32_t zipf(void)
{
    double at = uniform() * zipf_sums[DOCUMENTS - 1];
    uint32_t low = 0, high = DOCUMENTS - 1;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (zipf_sums[middle] < at)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void make_trace(const char *kind, struct trace *t)
{
    state = 20250101;
    uint32_t order[DOCUMENTS], scanned = DOCUMENTS;
    t->documents = DOCUMENTS + REQUESTS;
    t->requests = malloc(REQUESTS * sizeof *t->requests);
    t->sizes = malloc(t->documents * sizeof *t->sizes);
    t->bytes = 0;
    for (uint32_t i = 0; i < t->documents; i++) {
        t->sizes[i] = exp(sqrt(-2 * log(1 - uniform())) * cos(6.283185307179586 * uniform()));
        t->bytes += i < DOCUMENTS ? t->sizes[i] : 0;
    }
    for (uint32_t i = 0; i < DOCUMENTS; i++)
        order[i] = i;
    bool scan = !strcmp(kind, "scan"), shift = !strcmp(kind, "shift"), fresh = !strcmp(kind, "fresh");
    for (uint32_t i = 0, left = 0; i < REQUESTS; i++) {
        if (i % (REQUESTS / 5) == 0)
            for (uint32_t k = DOCUMENTS - 1; (shift || i == 0) && k > 0; k--) {
                uint32_t other = (uint32_t)(uniform() * (k + 1)), kept = order[k];
                order[k] = order[other];
                order[other] = kept;
            }
        if (scan && !left && uniform() < 0.0003)
            left = DOCUMENTS / 2;
        if (left) {
            left--;
            t->requests[i] = scanned++;
        } else if (fresh) { /* a new one for each 20 requests, asked for by its age */
            uint32_t newest = i / 20, age = zipf();
            t->requests[i] = DOCUMENTS + (age < newest ? newest - age : newest);
        } else {
            t->requests[i] = order[zipf()];
        }
    }
}

/* ------------------------------------------------------------------ policies */

/* One that is stored; `value` is what a policy makes of its uses. */
struct entry {
    bool stored, main;
    uint32_t uses, place; /* in `list` */
    double value, weight;
    uint64_t tick;
};

struct store {
    struct entry *entries;
    const struct trace *trace;
    uint32_t *list, count; /* of what is stored */
    double bytes, limit;
    uint64_t tick;
    double half_life; /* in ticks a document; aged frequency only */
    /* S3-FIFO: rings of documents in their order, and how often each is a ghost */
    uint32_t *small, *large, small_head, small_tail, large_head, large_tail, *ghost, ghost_at;
    uint8_t *ghosts;
    double small_bytes;
};

static void drop(struct store *s, uint32_t d)
{
    struct entry *e = &s->entries[d];
    uint32_t moved = s->list[--s->count];
    s->list[e->place] = moved;
    s->entries[moved].place = e->place;
    e->stored = false;
    s->bytes -= s->trace->sizes[d];
}

static double value_of(const struct store *s, const struct entry *e)
{
    if (!s->half_life)
        return e->value;
    return e->weight * exp2(-(double)(s->tick - e->tick) / (s->half_life * (s->count ? s->count : 1)));
}

static void evict_least(struct store *s)
{
    uint32_t least = s->list[0];
    double value = value_of(s, &s->entries[least]);
    for (uint32_t i = 1; i < s->count; i++) {
        double v = value_of(s, &s->entries[s->list[i]]);
        if (v < value || (v == value && s->entries[s->list[i]].tick < s->entries[least].tick)) {
            value = v;
            least = s->list[i];
        }
    }
    drop(s, least);
}

#define RING (4 * REQUESTS)

static void evict_s3(struct store *s)
{
    while (s->small_head < s->small_tail && (s->small_bytes > s->limit / 10 || s->large_head == s->large_tail)) {
        uint32_t d = s->small[s->small_head++ % RING];
        s->small_bytes -= s->trace->sizes[d];
        if (s->entries[d].uses > 1) {
            s->entries[d].uses = 0;
            s->entries[d].main = true;
            s->large[s->large_tail++ % RING] = d;
            continue;
        }
        uint32_t *old = &s->ghost[s->ghost_at++ % GHOSTS];
        s->ghosts[*old] = 0;
        s->ghosts[ *old = d] = 1;
        drop(s, d);
        return;
    }
    for (;;) {
        uint32_t d = s->large[s->large_head++ % RING];
        if (!s->entries[d].uses) {
            drop(s, d);
            return;
        }
        s->entries[d].uses--;
        s->large[s->large_tail++ % RING] = d;
    }
}

enum policy { FIFO, LRU, S3, AGED };

static void use(struct store *s, enum policy policy, struct entry *e, bool comes)
{
    if (policy == AGED && !comes)
        e->weight = value_of(s, e) + 1;
    else if (policy == AGED)
        e->weight = 1;
    if (policy == LRU || comes)
        e->value = (double)s->tick;
    e->tick = s->tick;
    e->uses = comes ? 0 : e->uses < 3 ? e->uses + 1 : 3;
}

static double run(const struct trace *t, enum policy policy, double share, double half_life)
{
    struct store s = {.trace = t, .limit = share * t->bytes, .half_life = policy == AGED ? half_life : 0};
    double hits = 0, all = 0;
    s.entries = calloc(t->documents, sizeof *s.entries);
    s.list = malloc(t->documents * sizeof *s.list);
    s.small = malloc(RING * sizeof *s.small);
    s.large = malloc(RING * sizeof *s.large);
    s.ghost = calloc(GHOSTS, sizeof *s.ghost);
    s.ghosts = calloc(t->documents, 1);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        uint32_t d = t->requests[i];
        struct entry *e = &s.entries[d];
        s.tick++;
        all += t->sizes[d];
        if (e->stored) {
            hits += t->sizes[d];
            use(&s, policy, e, false);
            continue;
        }
        if (t->sizes[d] > s.limit)
            continue;
        while (s.bytes + t->sizes[d] > s.limit) {
            if (policy == S3)
                evict_s3(&s);
            else
                evict_least(&s);
        }
        *e = (struct entry){.stored = true, .place = s.count, .main = s.ghosts[d]};
        s.list[s.count++] = d;
        s.bytes += t->sizes[d];
        use(&s, policy, e, true);
        if (policy == S3 && e->main) {
            s.large[s.large_tail++ % RING] = d;
        } else if (policy == S3) {
            s.small[s.small_tail++ % RING] = d;
            s.small_bytes += t->sizes[d];
        }
    }
    free(s.entries), free(s.list), free(s.small), free(s.large), free(s.ghost), free(s.ghosts);
    return 100 * hits / all;
}

int main(void)
{
    static const char *const kinds[] = {"zipf", "scan", "shift", "fresh"};
    static const double shares[] = {0.05, 0.2}, lives[] = {0.5, 1, 2, 4, 8, 16};
    make_zipf();
    printf("bytes that hit, %%; aged N: uses, halved every N uses a stored document\n"
           "trace  store   FIFO    LRU  S3-FIFO");
    for (size_t l = 0; l < sizeof lives / sizeof *lives; l++)
        printf("  aged%4g", lives[l]);
    putchar('\n');
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        struct trace t;
        make_trace(kinds[k], &t);
        for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
            printf("%-6s %4.0f%%  %5.1f  %5.1f  %7.1f", kinds[k], 100 * shares[i], run(&t, FIFO, shares[i], 0),
                   run(&t, LRU, shares[i], 0), run(&t, S3, shares[i], 0));
            for (size_t l = 0; l < sizeof lives / sizeof *lives; l++)
                printf("  %8.1f", run(&t, AGED, shares[i], lives[l]));
            putchar('\n');
            fflush(stdout);
        }
        free(t.requests), free(t.sizes);
    }
    return 0;
}
