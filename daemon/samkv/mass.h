#pragma once
/*
 * Where a full prefill's query attention really goes: the softmax weights of the query's tokens over all rows, summed
 * by block, the mean over heads and query tokens. Queries are taken off the pass by a tap, keys from the finished
 * cache; the sums are made on the host, since this is for calibration, not for requests.
 */
#include "daemon/model/forward.h"
#include "daemon/samkv/models.h"

#define SAMKV_MASS_MAX_QUERIES 64 /* the query's last tokens, at most */

struct samkv_mass {
    const struct samkv_engine *engine;
    int first_row, count; /* the rows of the prompt whose attention is taken */
    int pass_first;       /* the prompt's row that is row 0 of the pass that runs; the caller sets it */
    uint8_t *q;           /* [layers][count][heads * head_dim] in the device's type, after RoPE */
};

/* Rows [first_row, rows) of a prompt, but no more than the last SAMKV_MASS_MAX_QUERIES. deinit in every case. */
enum samkv_status samkv_mass_init(struct samkv_mass *, const struct samkv_engine *, int first_row, int rows,
                                  struct samkv_error *) SAMKV_MUST_USE;
void samkv_mass_deinit(struct samkv_mass *);

/* The pass's tap; arg is the mass. On the lane. */
void samkv_mass_tap(void *arg, struct samkv_stream *, const struct samkv_tap *);

/*
 * One layer's mass of each block. keys: [first_row + count][kv_heads * head_dim] on the host, in the device's type,
 * after RoPE; block_of: [first_row + count], -1 for rows that belong to none. out: [blocks]. Not on the lane: it takes
 * all cores for a moment. NO_MEMORY.
 */
enum samkv_status samkv_mass_layer(const struct samkv_mass *, uint32_t layer, const void *keys, const int32_t *block_of,
                                   uint32_t blocks, float *out) SAMKV_MUST_USE;
