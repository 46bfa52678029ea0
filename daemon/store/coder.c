#include "daemon/store/coder.h"

#include <string.h>

#include "daemon/store/fields.h"

#define HEAD_BYTES   8
#define STATES_BYTES (4 * SAMKV_ENTROPY_LANES)
#define ALIGN        64
#define BELOW_MEAN   10 /* half levels under the record's mean that have a context of their own */

static size_t aligned(size_t bytes)
{
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

/* The next `bytes` of the scratch buffer. */
static void *take(uint8_t **at, size_t bytes)
{
    void *taken = *at;
    *at += aligned(bytes);
    return taken;
}

enum samkv_status samkv_coder_begin(struct samkv_coder *c, struct samkv_scratch *s, int which,
                                    struct samkv_coder_shape shape, bool encoding, size_t extra_bytes)
{
    size_t piece = shape.tokens * shape.channels, all = encoding ? piece * shape.pieces : piece;
    size_t words = encoding ? 2 * all + ALIGN : 0; /* a symbol takes a word at most */
    uint8_t *at = samkv_scratch_buffer(s, which,
                                       aligned(sizeof *c->tables) + 3 * aligned(2 * shape.channels) + aligned(2 * all) +
                                           aligned(words) + aligned(extra_bytes) + 2 * ALIGN);
    if (!at)
        return SAMKV_NO_MEMORY;
    at += -(uintptr_t)at % ALIGN;
    *c = (struct samkv_coder){.lanes = s->lanes, .shape = shape};
    c->tables = take(&at, sizeof *c->tables);
    c->model.sum = take(&at, 2 * shape.channels);
    c->model.sign = take(&at, 2 * shape.channels);
    c->model.context = take(&at, 2 * shape.channels);
    c->symbols = take(&at, 2 * all);
    c->extra = take(&at, extra_bytes);
    c->words = (uint8_t *)take(&at, words) + aligned(words);
    return SAMKV_OK;
}

size_t samkv_coder_overhead(struct samkv_coder_shape shape)
{
    return HEAD_BYTES + shape.pieces + STATES_BYTES;
}

/* Means of the pieces to out, and from them where the contexts begin. */
static void choose_model(struct samkv_coder *c, int shift, uint8_t *means)
{
    size_t piece = c->shape.tokens * c->shape.channels, sum = 0;
    for (size_t p = 0; p < c->shape.pieces; p++)
        sum += means[p] = c->lanes->mean(c->symbols + p * piece, piece);
    c->model.shift = (uint8_t)shift;
    size_t middle = 2 * sum / c->shape.pieces >> c->model.shift;
    c->model.base = (uint8_t)(middle < BELOW_MEAN ? 0 : middle - BELOW_MEAN < 255 ? middle - BELOW_MEAN : 255);
}

static void count_symbols(struct samkv_coder *c, size_t count)
{
    uint32_t *counts = c->tables->counts[0];
    memset(counts, 0, sizeof c->tables->counts);
    for (size_t i = 0; i < count; i++)
        counts[c->symbols[i]]++;
}

size_t samkv_coder_write(struct samkv_coder *c, int shift, uint8_t *out, size_t room)
{
    const struct samkv_coder_shape *s = &c->shape;
    size_t piece = s->tokens * s->channels, fixed = samkv_coder_overhead(*s);
    if (room < fixed)
        return 0;
    uint8_t *means = out + HEAD_BYTES, table[SAMKV_ENTROPY_TABLE_MAX];
    choose_model(c, shift, means);
    for (size_t p = 0; p < s->pieces; p++)
        c->lanes->model(&c->model, means[p], s->tokens, s->channels, c->symbols + p * piece);
    count_symbols(c, piece * s->pieces);
    samkv_entropy_scale(c->tables);
    size_t table_bytes = samkv_entropy_write(&c->tables->frequencies, table);
    samkv_entropy_fill_codes(c->tables);
    struct samkv_lanes_writer w = {.codes = c->tables->codes, .at = c->words};
    for (size_t i = 0; i < SAMKV_ENTROPY_LANES; i++)
        w.state[i] = SAMKV_ENTROPY_FLOOR;
    for (size_t p = s->pieces; p-- > 0;)
        c->lanes->encode(&w, s->tokens, s->channels, c->symbols + p * piece);
    size_t words = (size_t)(c->words - w.at);
    if (room - fixed < table_bytes || room - fixed - table_bytes < words)
        return 0;
    struct samkv_fields f;
    samkv_fields_write(&f, out, HEAD_BYTES);
    samkv_put_u8(&f, c->model.base);
    samkv_put_u8(&f, c->model.shift);
    samkv_put_u8(&f, 0);
    samkv_put_u8(&f, 0);
    samkv_put_u32(&f, (uint32_t)table_bytes);
    samkv_fields_write(&f, means + s->pieces, STATES_BYTES);
    for (size_t i = 0; i < SAMKV_ENTROPY_LANES; i++)
        samkv_put_u32(&f, w.state[i]);
    memcpy(out + fixed, table, table_bytes);
    memcpy(out + fixed + table_bytes, w.at, words);
    return fixed + table_bytes + words;
}

bool samkv_coder_open(struct samkv_coder *c, const uint8_t *from, size_t bytes)
{
    size_t fixed = samkv_coder_overhead(c->shape);
    if (bytes < fixed)
        return false;
    struct samkv_fields f;
    samkv_fields_read(&f, from, HEAD_BYTES);
    c->model.base = samkv_get_u8(&f);
    c->model.shift = samkv_get_u8(&f);
    bool plain = samkv_get_u8(&f) == 0 && samkv_get_u8(&f) == 0 && c->model.shift < 16;
    size_t table_bytes = samkv_get_u32(&f);
    c->means = from + HEAD_BYTES;
    samkv_fields_read(&f, c->means + c->shape.pieces, STATES_BYTES);
    for (size_t i = 0; i < SAMKV_ENTROPY_LANES; i++) {
        uint32_t state = c->reader.state[i] = samkv_get_u32(&f);
        plain = plain && state >= SAMKV_ENTROPY_FLOOR && state < SAMKV_ENTROPY_CEILING;
    }
    if (!plain || table_bytes > bytes - fixed ||
        !samkv_entropy_read(&c->tables->frequencies, from + fixed, table_bytes))
        return false;
    samkv_entropy_fill_slots(c->tables);
    c->reader.slots = c->tables->slots;
    c->reader.at = from + fixed + table_bytes;
    c->reader.end = from + bytes;
    return true;
}

void samkv_coder_piece(struct samkv_coder *c, size_t piece)
{
    c->lanes->decode(&c->reader, &c->model, c->means[piece], c->shape.tokens, c->shape.channels, c->symbols);
}

bool samkv_coder_complete(const struct samkv_coder *c)
{
    bool whole = !c->reader.bad && c->reader.at == c->reader.end;
    for (size_t i = 0; i < SAMKV_ENTROPY_LANES; i++)
        whole = whole && c->reader.state[i] == SAMKV_ENTROPY_FLOOR;
    return whole;
}
