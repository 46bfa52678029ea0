#pragma once
/*
 * A stream of symbols: the pieces of a record, modelled and entropy coded (lanes.h), with all that the decoder needs.
 *
 *   0 u8 base   1 u8 shift   2 u16 zero   4 u32 bytes of tables   8 u8 mean level of each piece   then 32 u32 states,
 *   tables, words
 *
 * Use, encoding: begin → fill symbols → write. Decoding: begin → open → piece for each, in order → complete.
 * Everything lives in the scratch's buffer `which`, until the next begin with it. Hostile streams decode to
 * something; `complete` then says no.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"
#include "daemon/store/lanes.h"
#include "daemon/store/scratch.h"

struct samkv_coder_shape {
    size_t pieces, tokens, channels;
};

struct samkv_coder {
    const struct samkv_lanes *lanes;
    struct samkv_coder_shape shape;
    struct samkv_entropy_tables *tables;
    struct samkv_lanes_model model;
    struct samkv_lanes_reader reader;
    const uint8_t *means;
    uint16_t *symbols; /* encoding: (pieces, tokens, channels); decoding: of one piece */
    uint8_t *extra;    /* what the caller asked for besides */
    uint8_t *words;    /* encoding only: the end of the memory that the words are written to */
};

/* NO_MEMORY. The shape's product was checked by the caller: its symbols fit in 2^31 bytes. */
enum samkv_status samkv_coder_begin(struct samkv_coder *, struct samkv_scratch *, int which, struct samkv_coder_shape,
                                    bool encoding, size_t extra_bytes) SAMKV_MUST_USE;

/* What a stream takes at least. */
size_t samkv_coder_overhead(struct samkv_coder_shape);

/* Writes the stream, 0 when it needs more than `room` bytes. `shift`: how much finer levels
 * are than contexts should be, a power of two. */
size_t samkv_coder_write(struct samkv_coder *, int shift, uint8_t *out, size_t room);

/* False for bytes that are no stream. They must stay until the last piece. */
bool samkv_coder_open(struct samkv_coder *, const uint8_t *from, size_t bytes);

/* The next piece's symbols (tokens, channels), to coder->symbols. */
void samkv_coder_piece(struct samkv_coder *, size_t piece);

/* Whether all that was decoded is what was encoded, as far as the stream can tell. */
bool samkv_coder_complete(const struct samkv_coder *);
