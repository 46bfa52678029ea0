#pragma once
/*
 * The entropy coder's tables: how often each symbol of nine bits comes in each of sixteen contexts, in parts of 2^11,
 * and what encoder and decoder look up. The coder is rANS (Duda, arXiv 1311.2540) with one state a lane: a state lies
 * in [2^15, 2^31), words of 16 bits go to and fro. Lanes share one stream of words: the decoder's states that fall
 * below 2^15 take the next ones in order of lane.
 *
 * Pure functions; any thread. Frequencies that come from disk are checked by samkv_entropy_read: those of a context sum
 * to 2^11 or are all zero, and the decoder's table is total, whatever a stream says.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SAMKV_ENTROPY_BITS     10
#define SAMKV_ENTROPY_SYMBOLS  512
#define SAMKV_ENTROPY_CONTEXTS 16
#define SAMKV_ENTROPY_LANES    64
#define SAMKV_ENTROPY_FLOOR    0x8000u
#define SAMKV_ENTROPY_CEILING  0x80000000u

/* At most this many bytes are written for a set of frequencies: two for each symbol and two for each context. */
#define SAMKV_ENTROPY_TABLE_MAX (SAMKV_ENTROPY_CONTEXTS * (2 * SAMKV_ENTROPY_SYMBOLS + 2))

struct samkv_frequencies {
    uint16_t of[SAMKV_ENTROPY_CONTEXTS][SAMKV_ENTROPY_SYMBOLS];
};

/* What the encoder needs of a symbol: x / frequency as a multiplication and a shift. */
struct samkv_entropy_code {
    uint32_t reciprocal;
    uint32_t rest; /* bias | frequency << 12 | shift << 24 */
};

struct samkv_entropy_tables {
    uint32_t counts[SAMKV_ENTROPY_CONTEXTS][SAMKV_ENTROPY_SYMBOLS];
    struct samkv_frequencies frequencies;
    union {
        struct samkv_entropy_code codes[SAMKV_ENTROPY_CONTEXTS * SAMKV_ENTROPY_SYMBOLS];
        uint32_t slots[SAMKV_ENTROPY_CONTEXTS << SAMKV_ENTROPY_BITS]; /* frequency | offset << 12 | symbol << 23 */
    };
};

/* counts → frequencies: what occurs keeps at least one part. */
void samkv_entropy_scale(struct samkv_entropy_tables *);

/* frequencies → codes, and → slots. */
void samkv_entropy_fill_codes(struct samkv_entropy_tables *);
void samkv_entropy_fill_slots(struct samkv_entropy_tables *);

/* Writes at most SAMKV_ENTROPY_TABLE_MAX bytes, returns how many. */
size_t samkv_entropy_write(const struct samkv_frequencies *, uint8_t *out);

/* False unless exactly `bytes` make whole frequencies. */
bool samkv_entropy_read(struct samkv_frequencies *, const uint8_t *from, size_t bytes);
