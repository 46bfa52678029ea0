#include "daemon/samkv/recall.h"

#include <stdlib.h>

struct candidate {
    double mass;
    uint32_t tokens;
};

/* The most attention a token first. */
static int compare(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    double left = x->mass * y->tokens, right = y->mass * x->tokens;
    return left > right ? -1 : left < right;
}

/* What `tokens` tokens of the candidates can hold at most; of the last one that does not fit, its share. */
static double most_mass(struct candidate *candidates, size_t count, uint64_t tokens)
{
    double sum = 0;
    qsort(candidates, count, sizeof *candidates, compare);
    for (size_t i = 0; i < count && tokens; i++) {
        uint64_t take = candidates[i].tokens < tokens ? candidates[i].tokens : tokens;
        sum += candidates[i].mass * (double)take / candidates[i].tokens;
        tokens -= take;
    }
    return sum;
}

double samkv_mass_recall(const struct samkv_blocks *documents, uint32_t count, const struct samkv_selected *kept,
                         const float *mass)
{
    size_t blocks = 0, n = 0, at = 0;
    double kept_mass = 0;
    uint64_t kept_tokens = 0;
    for (uint32_t i = 0; i < count; i++)
        blocks += documents[i].count;
    struct candidate *candidates = malloc((blocks + 1) * sizeof *candidates);
    if (!candidates)
        return -1;
    for (uint32_t i = 0; i < count; at += documents[i++].count) {
        for (uint32_t b = 0; b < documents[i].count; b++)
            if (!samkv_block_is_anchor(&documents[i], b))
                candidates[n++] = (struct candidate){mass[at + b], samkv_block_size(&documents[i], b)};
        for (uint32_t k = 0; k < kept[i].keep_count; k++) {
            if (samkv_block_is_anchor(&documents[i], kept[i].keep[k]))
                continue;
            kept_mass += mass[at + kept[i].keep[k]];
            kept_tokens += samkv_block_size(&documents[i], kept[i].keep[k]);
        }
    }
    double most = most_mass(candidates, n, kept_tokens);
    free(candidates);
    return most > 0 ? kept_mass / most : -1;
}

double samkv_middle_ratio(const struct samkv_blocks *documents, uint32_t count, double share)
{
    uint64_t anchors = 0, all = 0;
    for (uint32_t i = 0; i < count; i++) {
        all += documents[i].tokens;
        for (uint32_t b = 0; b < documents[i].count; b++)
            anchors += samkv_block_is_anchor(&documents[i], b) ? samkv_block_size(&documents[i], b) : 0;
    }
    double ratio = all ? ((double)anchors + share * (double)(all - anchors)) / (double)all : 1;
    return ratio < 1 ? ratio : 1;
}
