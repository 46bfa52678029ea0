#include "daemon/fetch/gate_note.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "daemon/store/fields.h"
#include "daemon/store/notes.h"

#define FORM 1

/* The note's name; its length. */
static size_t name_of(const char *collection, char name[SAMKV_NOTE_NAME_BYTES])
{
    int n = snprintf(name, SAMKV_NOTE_NAME_BYTES, "quality/%s", collection);
    return n > 0 && n < SAMKV_NOTE_NAME_BYTES ? (size_t)n : 0;
}

static void put_windows(struct samkv_fields *f, const struct samkv_gate_window *w)
{
    for (int i = 0; i < SAMKV_GATE_LEVELS; i++) {
        samkv_put_real(f, w[i].count);
        samkv_put_real(f, w[i].sum);
        samkv_put_real(f, w[i].squares);
    }
}

/* False: these are no sums of measurements. */
static bool get_windows(struct samkv_fields *f, struct samkv_gate_window *w)
{
    bool sound = true;
    for (int i = 0; i < SAMKV_GATE_LEVELS; i++) {
        w[i].count = samkv_get_real(f);
        w[i].sum = samkv_get_real(f);
        w[i].squares = samkv_get_real(f);
        sound = sound && w[i].count >= 0 && w[i].sum >= 0 && w[i].squares >= 0 && isfinite(w[i].count) &&
                isfinite(w[i].sum) && isfinite(w[i].squares);
    }
    return sound;
}

static enum samkv_status decode(const uint8_t *value, size_t bytes, struct samkv_gate *gate, double *share)
{
    struct samkv_fields f;
    struct samkv_quality_target again;
    char text[32];
    samkv_fields_read(&f, value, bytes);
    if (samkv_get_u32(&f) != FORM)
        return SAMKV_CORRUPT;
    gate->target.metric = (enum samkv_quality_metric)samkv_get_u32(&f);
    gate->target.value = samkv_get_real(&f);
    *share = samkv_get_real(&f);
    gate->level = samkv_get_u32(&f);
    bool sound = get_windows(&f, gate->recent) & get_windows(&f, gate->lasting);
    gate->measured = samkv_get_u64(&f);
    gate->raised = samkv_get_u64(&f);
    gate->lowered = samkv_get_u64(&f);
    if (!sound || !samkv_fields_complete(&f) || gate->level >= SAMKV_GATE_LEVELS || !(*share >= 0 && *share <= 1) ||
        gate->target.metric > SAMKV_QUALITY_KL)
        return SAMKV_CORRUPT;
    samkv_quality_format(&gate->target, text, sizeof text);
    return samkv_quality_parse(text, &again, NULL) == SAMKV_OK ? SAMKV_OK : SAMKV_CORRUPT;
}

enum samkv_status samkv_gate_load(struct samkv_snapshot *snapshot, const char *collection, struct samkv_gate *gate,
                                  double *share, struct samkv_error *err)
{
    char name[SAMKV_NOTE_NAME_BYTES];
    uint8_t value[SAMKV_NOTE_MAX_BYTES];
    size_t bytes;
    *gate = (struct samkv_gate){0};
    enum samkv_status status = samkv_snapshot_note(snapshot, name, name_of(collection, name), value, &bytes, err);
    if (!status)
        status = decode(value, bytes, gate, share);
    if (status == SAMKV_CORRUPT)
        return samkv_fail(err, status, "the quality of collection %s is damaged: set it again", collection);
    return status;
}

enum samkv_status samkv_gate_save(struct samkv_store *store, const char *collection, const struct samkv_gate *gate,
                                  double share, struct samkv_error *err)
{
    char name[SAMKV_NOTE_NAME_BYTES];
    uint8_t value[SAMKV_NOTE_MAX_BYTES];
    struct samkv_fields f;
    samkv_fields_write(&f, value, sizeof value);
    samkv_put_u32(&f, FORM);
    samkv_put_u32(&f, gate->target.metric);
    samkv_put_real(&f, gate->target.value);
    samkv_put_real(&f, share);
    samkv_put_u32(&f, gate->level);
    put_windows(&f, gate->recent);
    put_windows(&f, gate->lasting);
    samkv_put_u64(&f, gate->measured);
    samkv_put_u64(&f, gate->raised);
    samkv_put_u64(&f, gate->lowered);
    return samkv_store_note_put(store, name, name_of(collection, name), value, sizeof value - f.left, err);
}

enum samkv_status samkv_gate_remove(struct samkv_store *store, const char *collection, struct samkv_error *err)
{
    char name[SAMKV_NOTE_NAME_BYTES];
    return samkv_store_note_remove(store, name, name_of(collection, name), err);
}
