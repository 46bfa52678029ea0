#include "daemon/samkv/select.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Everything of one call, so that a failure frees it in one place. */
struct work {
    const struct samkv_select_input *in;
    size_t q_width, k_width; /* H·d and G·d */
    double *q_local;         /* [n][S][H·d], rotated to joint positions */
    double *cosine;          /* [n][S][H], |cos(Q_loc, Q_que)| */
    double *bias_sum;        /* [S][H·d], Σ_j |cos| · Q_loc over all documents */
    double *score;           /* [S][all blocks] */
    double *rank;            /* [all blocks] */
    uint16_t *proposed; /* [all blocks]: 1 + the last stable layer (its place in the list) that proposed it, 0: none */
    uint32_t *first_block; /* [n + 1]: where a document's blocks begin in the arrays above */
    uint32_t *order;       /* [all blocks], scratch for sorting */
};

static void work_deinit(struct work *w)
{
    free(w->q_local);
    free(w->cosine);
    free(w->bias_sum);
    free(w->score);
    free(w->rank);
    free(w->proposed);
    free(w->first_block);
    free(w->order);
}

static enum samkv_status work_init(struct work *w, const struct samkv_select_input *in)
{
    size_t n = in->document_count, s = in->stable_count, blocks = 0;
    *w = (struct work){.in = in};
    w->q_width = (size_t)in->heads * in->head_dim;
    w->k_width = (size_t)in->kv_heads * in->head_dim;
    w->first_block = malloc((n + 1) * sizeof *w->first_block);
    if (!w->first_block)
        return SAMKV_NO_MEMORY;
    for (size_t i = 0; i < n; i++) {
        w->first_block[i] = (uint32_t)blocks;
        blocks += in->documents[i].blocks.count;
    }
    w->first_block[n] = (uint32_t)blocks;
    if (in->scores)
        s = 0; /* of the next three nothing is needed */
    w->q_local = malloc((n * s * w->q_width + 1) * sizeof *w->q_local);
    w->cosine = malloc((n * s * in->heads + 1) * sizeof *w->cosine);
    w->bias_sum = calloc(s * w->q_width + 1, sizeof *w->bias_sum);
    s = in->stable_count;
    w->score = malloc((s * blocks + 1) * sizeof *w->score);
    w->rank = calloc(blocks + 1, sizeof *w->rank);
    w->proposed = calloc(blocks + 1, sizeof *w->proposed);
    w->order = malloc((blocks + 1) * sizeof *w->order);
    if (!w->q_local || !w->cosine || !w->bias_sum || !w->score || !w->rank || !w->proposed || !w->order)
        return SAMKV_NO_MEMORY;
    return SAMKV_OK;
}

/* R(position) on heads × d doubles, rotate-half convention. */
static void rotate(double *x, uint32_t heads, uint32_t d, const double *inv_freq, double position)
{
    uint32_t half = d / 2;
    for (uint32_t j = 0; j < half; j++) {
        double c = cos(position * inv_freq[j]), s = sin(position * inv_freq[j]);
        for (uint32_t h = 0; h < heads; h++) {
            double *a = x + (size_t)h * d + j, *b = a + half, x1 = *a, x2 = *b;
            *a = x1 * c - x2 * s;
            *b = x2 * c + x1 * s;
        }
    }
}

static bool is_rotated(const struct samkv_select_input *in, uint32_t s)
{
    return !in->no_rope || !in->no_rope[in->stable_layers[s]];
}

static double cosine(const double *a, const float *b, uint32_t d)
{
    double dot = 0, aa = 0, bb = 0;
    for (uint32_t j = 0; j < d; j++) {
        dot += a[j] * b[j];
        aa += a[j] * a[j];
        bb += (double)b[j] * b[j];
    }
    double norms = sqrt(aa) * sqrt(bb);
    return dot / (norms > 1e-12 ? norms : 1e-12);
}

static double *q_local_of(const struct work *w, uint32_t i, uint32_t s)
{
    return w->q_local + ((size_t)i * w->in->stable_count + s) * w->q_width;
}

static double *cosine_of(const struct work *w, uint32_t i, uint32_t s)
{
    return w->cosine + ((size_t)i * w->in->stable_count + s) * w->in->heads;
}

/* Step 2, first half: every document's local query at its joint position, weighted by |cos| with the query's vector. */
static void weigh_local_queries(struct work *w)
{
    const struct samkv_select_input *in = w->in;
    for (uint32_t i = 0; i < in->document_count; i++) {
        for (uint32_t s = 0; s < in->stable_count; s++) {
            double *q = q_local_of(w, i, s), *c = cosine_of(w, i, s), *sum = w->bias_sum + s * w->q_width;
            for (size_t j = 0; j < w->q_width; j++)
                q[j] = in->documents[i].qlocal[s][j];
            if (is_rotated(in, s))
                rotate(q, in->heads, in->head_dim, in->inv_freq, in->documents[i].start);
            for (uint32_t h = 0; h < in->heads; h++) {
                size_t at = (size_t)h * in->head_dim;
                c[h] = fabs(cosine(q + at, in->q_query[s] + at, in->head_dim));
                for (uint32_t j = 0; j < in->head_dim; j++)
                    sum[at + j] += c[h] * q[at + j];
            }
        }
    }
}

/*
 * Step 2, second half: Q̂_i = Q_que + 1/(n−1) · Σ_{j≠i} |cos_j| · Q_loc_j, heads of a group averaged, then rotated by
 * R(−s_i): the block means stay document-relative, and one vector is turned instead of all of them.
 * out: [G][d]
 */
static void personalise(const struct work *w, uint32_t i, uint32_t s, double *out)
{
    const struct samkv_select_input *in = w->in;
    uint32_t d = in->head_dim, group = in->heads / in->kv_heads;
    const double *own = q_local_of(w, i, s), *own_cosine = cosine_of(w, i, s), *sum = w->bias_sum + s * w->q_width;
    double others = in->document_count > 1 ? 1.0 / (in->document_count - 1) : 0.0;
    memset(out, 0, w->k_width * sizeof *out);
    for (uint32_t h = 0; h < in->heads; h++) {
        for (uint32_t j = 0; j < d; j++) {
            size_t at = (size_t)h * d + j;
            double q = in->q_query[s][at] + others * (sum[at] - own_cosine[h] * own[at]);
            out[(size_t)(h / group) * d + j] += q / group;
        }
    }
    if (is_rotated(in, s))
        rotate(out, in->kv_heads, d, in->inv_freq, -(double)in->documents[i].start);
}

static double dot(const double *q, const float *k, size_t width)
{
    double sum = 0;
    for (size_t j = 0; j < width; j++)
        sum += q[j] * k[j];
    return sum;
}

/*
 * Step 3 in one layer: scores of all blocks, and P_i[l] = clamp((max − s_anc) / (max − min), 0, 1) over the middle
 * blocks. The anchors' score is that of their token-weighted mean, which is the weighted mean of their scores.
 */
static double score_layer(struct work *w, uint32_t i, uint32_t s, const double *query)
{
    const struct samkv_select_document *doc = &w->in->documents[i];
    double *score = w->score + (size_t)s * w->first_block[w->in->document_count] + w->first_block[i];
    double highest = -INFINITY, lowest = INFINITY, anchors = 0, anchor_tokens = 0;
    for (uint32_t b = 0; b < doc->blocks.count; b++) {
        score[b] = w->in->scores
                       ? w->in->scores[(size_t)s * w->first_block[w->in->document_count] + w->first_block[i] + b]
                       : dot(query, doc->kmean[s] + b * w->k_width, w->k_width);
        if (samkv_block_is_anchor(&doc->blocks, b)) {
            anchors += score[b] * samkv_block_size(&doc->blocks, b);
            anchor_tokens += samkv_block_size(&doc->blocks, b);
        } else {
            highest = fmax(highest, score[b]);
            lowest = fmin(lowest, score[b]);
        }
    }
    if (!(highest > lowest))
        return 0;
    /* Without anchors (both sizes 0) there is nothing to measure against; every block proposes itself. */
    double p = anchor_tokens > 0 ? (highest - anchors / anchor_tokens) / (highest - lowest) : 1;
    return p < 0 ? 0 : p > 1 ? 1 : p;
}

struct by_score {
    const double *score;
};

/* Best first; equal scores in order of block. */
static int compare_scores(const void *a, const void *b, void *arg)
{
    const double *score = ((const struct by_score *)arg)->score;
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    if (score[x] != score[y])
        return score[x] > score[y] ? -1 : 1;
    return x < y ? -1 : x > y;
}

/* The document's ⌈P_i · #middle⌉ best blocks of each stable layer. */
static void propose(struct work *w, uint32_t i, double top_p)
{
    const struct samkv_blocks *blocks = &w->in->documents[i].blocks;
    uint32_t all = w->first_block[w->in->document_count], first = w->first_block[i];
    for (uint32_t s = 0; s < w->in->stable_count; s++) {
        uint32_t middle = 0;
        for (uint32_t b = 0; b < blocks->count; b++)
            if (!samkv_block_is_anchor(blocks, b))
                w->order[middle++] = b;
        struct by_score by = {w->score + (size_t)s * all + first};
        qsort_r(w->order, middle, sizeof *w->order, compare_scores, &by);
        double wanted = ceil(top_p * middle - 1e-6);
        for (uint32_t k = 0; k < middle && k < wanted; k++)
            w->proposed[first + w->order[k]] = (uint16_t)(s + 1);
    }
}

/* Steps 2 and 3 for one document. */
static double score_document(struct work *w, uint32_t i, double *query)
{
    double sum = 0;
    for (uint32_t s = 0; s < w->in->stable_count; s++) {
        if (!w->in->scores)
            personalise(w, i, s, query);
        sum += score_layer(w, i, s, query);
    }
    double top_p = w->in->stable_count ? sum / w->in->stable_count : 0;
    propose(w, i, top_p);
    return top_p;
}

/* Step 4: rank_b = mean over N* of (s_b − μ[l]) / σ[l], μ and σ over the middle blocks of all documents. */
static void rank_blocks(struct work *w)
{
    const struct samkv_select_input *in = w->in;
    uint32_t all = w->first_block[in->document_count];
    for (uint32_t s = 0; s < in->stable_count; s++) {
        const double *score = w->score + (size_t)s * all;
        double sum = 0, squares = 0;
        size_t count = 0;
        for (int pass = 0; pass < 2; pass++) {
            double mean = count ? sum / (double)count : 0;
            for (uint32_t i = 0; i < in->document_count; i++) {
                for (uint32_t b = 0; b < in->documents[i].blocks.count; b++) {
                    if (samkv_block_is_anchor(&in->documents[i].blocks, b))
                        continue;
                    double x = score[w->first_block[i] + b];
                    if (pass == 0) {
                        sum += x;
                        count++;
                    } else {
                        squares += (x - mean) * (x - mean);
                    }
                }
            }
        }
        if (!count)
            return;
        double mean = sum / (double)count, deviation = sqrt(squares / (double)count) + 1e-12;
        for (uint32_t b = 0; b < all; b++)
            w->rank[b] += (score[b] - mean) / deviation / in->stable_count;
    }
}

static uint32_t document_of(const struct work *w, uint32_t block)
{
    uint32_t low = 0, high = w->in->document_count;
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (w->first_block[middle] <= block)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Keeps what block `at` of document i brings along, while it fits `room` tokens; returns how many it took. */
static uint64_t add_neighbours(const struct work *w, uint32_t i, uint32_t at, uint64_t room, uint8_t *keep)
{
    const struct samkv_blocks *blocks = &w->in->documents[i].blocks;
    uint32_t first = w->first_block[i], end = w->first_block[i + 1];
    uint32_t sides[2] = {at > first ? at - 1 : at, at + 1 < end ? at + 1 : at};
    uint64_t used = 0;
    for (int side = 0; side < (int)w->in->neighbours; side++) {
        uint32_t size = samkv_block_size(blocks, sides[side] - first);
        if (keep[sides[side]] || used + size > room)
            continue;
        keep[sides[side]] = 1;
        used += size;
    }
    return used;
}

/* Anchors first, then candidates by rank until the next one does not fit. keep: [all blocks] */
static void fill_budget(struct work *w, struct samkv_selection *out, uint8_t *keep)
{
    const struct samkv_select_input *in = w->in;
    uint64_t used = 0, total = 0;
    uint32_t candidates = 0;
    for (uint32_t i = 0; i < in->document_count; i++) {
        const struct samkv_blocks *blocks = &in->documents[i].blocks;
        total += blocks->tokens;
        for (uint32_t b = 0; b < blocks->count; b++) {
            uint32_t at = w->first_block[i] + b;
            if (samkv_block_is_anchor(blocks, b)) {
                keep[at] = 1;
                used += samkv_block_size(blocks, b);
            } else if (in->fixed || w->proposed[at]) {
                w->order[candidates++] = at;
            }
        }
    }
    out->budget_tokens = (uint64_t)ceil(in->ratio * (double)total - 1e-6);
    out->anchors_exceed_budget = used > out->budget_tokens;
    struct by_score by = {w->rank};
    qsort_r(w->order, candidates, sizeof *w->order, compare_scores, &by);
    for (uint32_t k = 0; k < candidates; k++) {
        uint32_t at = w->order[k], i = document_of(w, at);
        uint32_t size = samkv_block_size(&in->documents[i].blocks, at - w->first_block[i]);
        if (keep[at]) /* as a neighbour */
            continue;
        if (used + size > out->budget_tokens)
            break;
        keep[at] = 1;
        used += size;
        used += add_neighbours(w, i, at, out->budget_tokens - used, keep);
    }
    out->kept_tokens = (uint32_t)used;
}

static enum samkv_status selected_init(struct samkv_selected *d, uint32_t blocks)
{
    d->keep = malloc((blocks + 1) * sizeof *d->keep);
    d->depth = calloc(blocks + 1, sizeof *d->depth);
    return d->keep && d->depth ? SAMKV_OK : SAMKV_NO_MEMORY;
}

/* How deep each kept block is recomputed (step 5's active sets). */
static uint32_t depth_of(const struct work *w, uint32_t i, uint32_t b)
{
    const struct samkv_select_input *in = w->in;
    uint32_t last = in->stable_layers[in->stable_count - 1];
    if (in->fixed || samkv_block_is_anchor(&in->documents[i].blocks, b))
        return last + 1;
    uint16_t proposed = w->proposed[w->first_block[i] + b];
    return proposed ? in->stable_layers[proposed - 1] + 1 : last + 1; /* else it came as a neighbour */
}

static void write_out(const struct work *w, const uint8_t *keep, struct samkv_selection *out)
{
    for (uint32_t i = 0; i < w->in->document_count; i++) {
        struct samkv_selected *d = &out->documents[i];
        for (uint32_t b = 0; b < w->in->documents[i].blocks.count; b++) {
            if (!keep[w->first_block[i] + b])
                continue;
            d->keep[d->keep_count++] = b;
            d->depth[b] = depth_of(w, i, b);
        }
    }
}

static enum samkv_status selection_init(struct samkv_selection *out, uint32_t documents)
{
    *out = (struct samkv_selection){.document_count = documents};
    out->documents = calloc(documents + (size_t)1, sizeof *out->documents);
    return out->documents ? SAMKV_OK : SAMKV_NO_MEMORY;
}

enum samkv_status samkv_select(const struct samkv_select_input *in, struct samkv_selection *out,
                               struct samkv_error *err)
{
    struct work w = {0};
    double *query = NULL;
    uint8_t *keep = NULL;
    enum samkv_status status = selection_init(out, in->document_count);
    if (!status)
        status = work_init(&w, in);
    if (status)
        goto done;
    status = SAMKV_NO_MEMORY;
    query = malloc((w.k_width + 1) * sizeof *query);
    keep = calloc(w.first_block[in->document_count] + (size_t)1, 1);
    if (!query || !keep)
        goto done;
    for (uint32_t i = 0; i < in->document_count; i++)
        if (selected_init(&out->documents[i], in->documents[i].blocks.count))
            goto done;
    if (!in->scores)
        weigh_local_queries(&w);
    for (uint32_t i = 0; i < in->document_count; i++)
        out->documents[i].top_p = score_document(&w, i, query);
    rank_blocks(&w);
    fill_budget(&w, out, keep);
    write_out(&w, keep, out);
    status = SAMKV_OK;
done:
    free(query);
    free(keep);
    work_deinit(&w);
    if (status) {
        samkv_selection_deinit(out);
        return samkv_fail(err, status, "out of memory while selecting blocks of %u documents", in->document_count);
    }
    return SAMKV_OK;
}

enum samkv_status samkv_select_all(const struct samkv_blocks *documents, uint32_t document_count, uint32_t depth,
                                   struct samkv_selection *out, struct samkv_error *err)
{
    enum samkv_status status = selection_init(out, document_count);
    for (uint32_t i = 0; i < document_count && !status; i++) {
        struct samkv_selected *d = &out->documents[i];
        status = selected_init(d, documents[i].count);
        for (uint32_t b = 0; b < documents[i].count && !status; b++) {
            d->keep[d->keep_count++] = b;
            d->depth[b] = depth;
        }
        out->kept_tokens += documents[i].tokens;
    }
    out->budget_tokens = out->kept_tokens;
    if (status) {
        samkv_selection_deinit(out);
        return samkv_fail(err, status, "out of memory while selecting blocks of %u documents", document_count);
    }
    return SAMKV_OK;
}

void samkv_selection_deinit(struct samkv_selection *s)
{
    for (uint32_t i = 0; s->documents && i < s->document_count; i++) {
        free(s->documents[i].keep);
        free(s->documents[i].depth);
    }
    free(s->documents);
    *s = (struct samkv_selection){0};
}

enum samkv_status samkv_select_scores(const struct samkv_select_input *in, float *out, struct samkv_error *err)
{
    struct work w = {0};
    struct samkv_select_input host = *in;
    host.scores = NULL;
    enum samkv_status status = work_init(&w, &host);
    double *query = status ? NULL : malloc((w.k_width + 1) * sizeof *query);
    if (query) {
        size_t scores = (size_t)in->stable_count * w.first_block[in->document_count];
        weigh_local_queries(&w);
        for (uint32_t i = 0; i < in->document_count; i++)
            score_document(&w, i, query);
        for (size_t j = 0; j < scores; j++)
            out[j] = (float)w.score[j];
    } else {
        status = SAMKV_NO_MEMORY;
    }
    free(query);
    work_deinit(&w);
    return status ? samkv_fail(err, status, "out of memory while scoring %u documents", in->document_count) : SAMKV_OK;
}
