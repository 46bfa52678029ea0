#include "daemon/ingest/calibration.h"

#include <string.h>

#include "daemon/store/fields.h"
#include "daemon/store/notes.h"

#define FORM      1
#define NAME_TEXT "calibration/"

struct note_name {
    uint8_t bytes[sizeof NAME_TEXT - 1 + 16];
};

static struct note_name name_of(const uint8_t fingerprint[16])
{
    struct note_name name;
    memcpy(name.bytes, NAME_TEXT, sizeof NAME_TEXT - 1);
    memcpy(name.bytes + sizeof NAME_TEXT - 1, fingerprint, 16);
    return name;
}

/* Everything that others compute with. Comparisons are written so that NaN fails. */
static bool is_sound(const struct samkv_calibration *c, uint32_t layers)
{
    if (c->layer_count < 1 || c->layer_count > SAMKV_CALIBRATION_MAX_LAYERS || !(c->ratio >= 0 && c->ratio <= 1))
        return false;
    for (uint32_t i = 0; i < c->layer_count; i++)
        if (c->layers[i] >= layers || (i && c->layers[i] <= c->layers[i - 1]))
            return false;
    return c->block_tokens <= 512 && c->init_tokens >= -1 && c->init_tokens <= 1 << 20 && c->local_tokens >= -1 &&
           c->local_tokens <= 1 << 20;
}

static enum samkv_status decode(const uint8_t *value, size_t bytes, struct samkv_calibration *out)
{
    struct samkv_fields f;
    samkv_fields_read(&f, value, bytes);
    if (samkv_get_u32(&f) != FORM)
        return SAMKV_CORRUPT;
    out->layer_count = samkv_get_u32(&f);
    if (out->layer_count > SAMKV_CALIBRATION_MAX_LAYERS)
        return SAMKV_CORRUPT;
    for (uint32_t i = 0; i < out->layer_count; i++)
        out->layers[i] = samkv_get_u32(&f);
    out->ratio = samkv_get_real(&f);
    out->block_tokens = samkv_get_u32(&f);
    out->init_tokens = (int64_t)samkv_get_u64(&f);
    out->local_tokens = (int64_t)samkv_get_u64(&f);
    out->samples = samkv_get_u32(&f);
    out->recall = samkv_get_real(&f);
    out->agreement = samkv_get_real(&f);
    out->kl = samkv_get_real(&f);
    out->unix_s = (int64_t)samkv_get_u64(&f);
    return samkv_fields_complete(&f) ? SAMKV_OK : SAMKV_CORRUPT;
}

enum samkv_status samkv_calibration_load(struct samkv_snapshot *snapshot, const uint8_t fingerprint[16],
                                         uint32_t layers, struct samkv_calibration *out, struct samkv_error *err)
{
    uint8_t value[SAMKV_NOTE_MAX_BYTES];
    size_t bytes;
    struct note_name name = name_of(fingerprint);
    *out = (struct samkv_calibration){.init_tokens = -1, .local_tokens = -1};
    enum samkv_status status = samkv_snapshot_note(snapshot, name.bytes, sizeof name.bytes, value, &bytes, NULL);
    if (status == SAMKV_NOT_FOUND)
        return status;
    if (!status)
        status = decode(value, bytes, out);
    if (!status && !is_sound(out, layers))
        status = SAMKV_CORRUPT;
    memcpy(out->fingerprint, fingerprint, sizeof out->fingerprint);
    return status ? samkv_fail(err, status,
                               "the model's calibration is damaged: run samkvctl calibrate again, or "
                               "samkvctl calibrate --forget")
                  : SAMKV_OK;
}

enum samkv_status samkv_calibration_save(struct samkv_store *store, const struct samkv_calibration *c,
                                         struct samkv_error *err)
{
    uint8_t value[SAMKV_NOTE_MAX_BYTES];
    struct samkv_fields f;
    struct note_name name = name_of(c->fingerprint);
    if (!is_sound(c, SAMKV_MAX_LAYERS))
        return samkv_fail(err, SAMKV_INVALID, "a calibration of %u layers cannot be stored", c->layer_count);
    samkv_fields_write(&f, value, sizeof value);
    samkv_put_u32(&f, FORM);
    samkv_put_u32(&f, c->layer_count);
    for (uint32_t i = 0; i < c->layer_count; i++)
        samkv_put_u32(&f, c->layers[i]);
    samkv_put_real(&f, c->ratio);
    samkv_put_u32(&f, c->block_tokens);
    samkv_put_u64(&f, (uint64_t)c->init_tokens);
    samkv_put_u64(&f, (uint64_t)c->local_tokens);
    samkv_put_u32(&f, c->samples);
    samkv_put_real(&f, c->recall);
    samkv_put_real(&f, c->agreement);
    samkv_put_real(&f, c->kl);
    samkv_put_u64(&f, (uint64_t)c->unix_s);
    return samkv_store_note_put(store, name.bytes, sizeof name.bytes, value, sizeof value - f.left, err);
}

enum samkv_status samkv_calibration_forget(struct samkv_store *store, const uint8_t fingerprint[16],
                                           struct samkv_error *err)
{
    struct note_name name = name_of(fingerprint);
    return samkv_store_note_remove(store, name.bytes, sizeof name.bytes, err);
}
