#include "daemon/store/entropy.h"

#include <string.h>

#define PARTS (1u << SAMKV_ENTROPY_BITS)

/* Frequencies as bytes: 0 and a length for a run of zeros, small ones as they are, larger ones in two bytes. */
#define RUN_MAX   256u
#define SMALL_MAX 191u
#define LARGE     (SMALL_MAX + 1)

static void scale_context(const uint32_t *counts, uint16_t *frequencies)
{
    uint64_t total = 0;
    for (size_t s = 0; s < SAMKV_ENTROPY_SYMBOLS; s++)
        total += counts[s];
    memset(frequencies, 0, SAMKV_ENTROPY_SYMBOLS * sizeof *frequencies);
    if (!total)
        return;
    uint32_t given = 0;
    size_t most = 0;
    for (size_t s = 0; s < SAMKV_ENTROPY_SYMBOLS; s++) {
        if (!counts[s])
            continue;
        uint32_t f = (uint32_t)(((uint64_t)counts[s] * PARTS + total / 2) / total);
        frequencies[s] = (uint16_t)(f ? f : 1);
        given += frequencies[s];
        if (frequencies[s] > frequencies[most])
            most = s;
    }
    if (given <= PARTS) {
        frequencies[most] = (uint16_t)(frequencies[most] + PARTS - given);
        return;
    }
    /* Too much was given to the rare: the frequent pay by what they have, one part each in every round. */
    for (uint32_t floor = frequencies[most] / 2 + 1; given > PARTS; floor = floor / 2 + 1)
        for (size_t s = 0; s < SAMKV_ENTROPY_SYMBOLS && given > PARTS; s++)
            if (frequencies[s] > 1 && frequencies[s] >= floor) {
                frequencies[s]--;
                given--;
            }
}

void samkv_entropy_scale(struct samkv_entropy_tables *t)
{
    for (size_t c = 0; c < SAMKV_ENTROPY_CONTEXTS; c++)
        scale_context(t->counts[c], t->frequencies.of[c]);
}

/* So that x / f is the high half of x * reciprocal, shifted; exact for x below 2^31 (Alverson, 1991, as used by
 * Giesen's ryg_rans). */
static struct samkv_entropy_code code_of(uint32_t f, uint32_t start)
{
    if (f == 1)
        return (struct samkv_entropy_code){UINT32_MAX, (start + PARTS - 1) | f << 12};
    uint32_t shift = 0;
    while (f > 1u << shift)
        shift++;
    uint64_t reciprocal = (((uint64_t)1 << (shift + 31)) + f - 1) / f;
    return (struct samkv_entropy_code){(uint32_t)reciprocal, start | f << 12 | (shift - 1) << 24};
}

void samkv_entropy_fill_codes(struct samkv_entropy_tables *t)
{
    for (size_t c = 0; c < SAMKV_ENTROPY_CONTEXTS; c++) {
        uint32_t start = 0;
        for (size_t s = 0; s < SAMKV_ENTROPY_SYMBOLS; s++) {
            uint32_t f = t->frequencies.of[c][s];
            if (!f)
                continue;
            t->codes[c * SAMKV_ENTROPY_SYMBOLS + s] = code_of(f, start);
            start += f;
        }
    }
}

void samkv_entropy_fill_slots(struct samkv_entropy_tables *t)
{
    for (size_t c = 0; c < SAMKV_ENTROPY_CONTEXTS; c++) {
        uint32_t *slot = t->slots + (c << SAMKV_ENTROPY_BITS), *end = slot + PARTS;
        for (uint32_t s = 0; s < SAMKV_ENTROPY_SYMBOLS; s++) {
            uint32_t f = t->frequencies.of[c][s], entry = f | s << 23;
            for (uint32_t i = 0; i < f; i++)
                slot[i] = entry + (i << 12);
            slot += f;
        }
        while (slot < end) /* a context without symbols: streams that use it do not fail here, but at their end */
            *slot++ = 1;
    }
}

size_t samkv_entropy_write(const struct samkv_frequencies *t, uint8_t *out)
{
    uint8_t *to = out;
    const uint16_t *all = t->of[0];
    size_t count = SAMKV_ENTROPY_CONTEXTS * SAMKV_ENTROPY_SYMBOLS;
    for (size_t i = 0; i < count;) {
        if (all[i]) {
            if (all[i] > SMALL_MAX)
                *to++ = (uint8_t)(LARGE + (all[i] >> 8));
            *to++ = (uint8_t)all[i++];
            continue;
        }
        size_t run = 1;
        while (i + run < count && !all[i + run] && run < RUN_MAX)
            run++;
        *to++ = 0;
        *to++ = (uint8_t)(run - 1);
        i += run;
    }
    return (size_t)(to - out);
}

static bool sums_are_whole(const struct samkv_frequencies *t)
{
    for (size_t c = 0; c < SAMKV_ENTROPY_CONTEXTS; c++) {
        uint32_t sum = 0;
        for (size_t s = 0; s < SAMKV_ENTROPY_SYMBOLS; s++)
            sum += t->of[c][s];
        if (sum && sum != PARTS)
            return false;
    }
    return true;
}

bool samkv_entropy_read(struct samkv_frequencies *t, const uint8_t *from, size_t bytes)
{
    uint16_t *all = t->of[0];
    const uint8_t *end = from + bytes;
    size_t count = SAMKV_ENTROPY_CONTEXTS * SAMKV_ENTROPY_SYMBOLS, i = 0;
    while (i < count) {
        if (from == end)
            return false;
        uint32_t first = *from++;
        bool two = first == 0 || first > SMALL_MAX;
        if (two && from == end)
            return false;
        uint32_t second = two ? *from++ : 0;
        if (first) {
            all[i++] = (uint16_t)(two ? (first - LARGE) << 8 | second : first);
            continue;
        }
        if (second + 1 > count - i)
            return false;
        memset(all + i, 0, (second + 1) * sizeof *all);
        i += second + 1;
    }
    return from == end && sums_are_whole(t);
}
